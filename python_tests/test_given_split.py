"""Splits that come with the data: three files, or a column of one."""

from __future__ import annotations

import json
import re

import numpy as np
import pandas as pd
import pytest

import alphafuse_ext as af
from alphafuse_ext.cli import main
from alphafuse_ext.data import k_core, leave_one_out, split_interactions
from alphafuse_ext.data.split import describe_split

SMALL = {"dim": 8, "epochs": 2, "history": 8, "threads": 1, "item_embedding": "id"}


def silent(_: str) -> None:
    pass


@pytest.fixture
def clicks() -> pd.DataFrame:
    """Nine interactions of each user, in time order; some share a time."""
    rng = np.random.default_rng(5)
    return pd.DataFrame(
        {
            "user": np.repeat([f"u{n}" for n in range(20)], 9),
            "item": [f"i{n}" for n in rng.integers(0, 15, size=180)],
            "time": np.tile([1, 2, 3, 4, 5, 6, 6, 6, 6], 20) + 100,
        }
    )


@pytest.fixture
def parts(clicks) -> list[pd.DataFrame]:
    """A user's last interaction for test, the one before it for validation."""
    place = clicks.groupby("user").cumcount()
    return [clicks[place < 7], clicks[place == 7], clicks[place == 8]]


def of_parts(parts, **options) -> af.Dataset:
    train, validation, test = parts
    return af.Dataset.read(train, validation=validation, test=test, log=silent, **options)


def split_read(interactions, **options):
    data = af.Dataset.read(interactions, log=silent, **options)
    return split_interactions(data.interactions, "given")


def same(one, other) -> bool:
    """Whether two splits have the same sequences and examples."""
    pairs = [(one.train, other.train)]
    for first, second in ((one.validation, other.validation), (one.test, other.test)):
        every = range(len(first))
        pairs.append((first.histories.select(every), second.histories.select(every)))
        assert np.array_equal(first.users, second.users)
        assert np.array_equal(first.targets, second.targets)
    return all(
        np.array_equal(a.values, b.values) and np.array_equal(a.lengths, b.lengths)
        for a, b in pairs
    )


@pytest.mark.parametrize("times", [True, False])
def test_leave_one_out_by_hand_is_leave_one_out(clicks, parts, times):
    columns = {} if times else {"time_column": ""}
    whole = af.Dataset.read(clicks, log=silent, **columns)
    expected = leave_one_out(whole.interactions)
    by_files = of_parts(parts, **columns)
    labels = ["train"] * 7 + ["valid", "Test"]
    column = clicks.assign(split=labels * 20)
    by_column = af.Dataset.read(column, split_column="split", log=silent, **columns)
    for data in (by_files, by_column):
        assert list(data.users) == list(whole.users)
        # Items are numbered by their first appearance, file by file.
        found = split_interactions(data.interactions.within(whole.items), "given")
        assert same(found, expected)


def test_histories_run_through_the_parts(clicks):
    """Each target comes after all that its user did before it, whichever part that is of."""
    part = np.repeat("train", len(clicks)).astype(object)
    place = clicks.groupby("user").cumcount().to_numpy()
    apart = clicks["user"].isin(["u18", "u19"]).to_numpy()  # whom nothing is trained on
    part[(place >= 4) & (place < 6)] = "validation"
    part[place >= 6] = "test"
    part[apart] = "test"
    data = af.Dataset.read(clicks.assign(part=part), split_column="part", log=silent)
    split = split_interactions(data.interactions, "given")
    assert list(split.train.lengths) == [4] * 18
    assert list(split.validation.histories.lengths) == [4, 5] * 18
    assert list(split.test.histories.lengths) == [6, 7, 8] * 18 + [*range(1, 9)] * 2
    sequences = data.interactions.sequences
    for examples in (split.validation, split.test):
        for row, user in enumerate(examples.users):
            length = len(examples.histories[row])
            assert np.array_equal(examples.histories[row], sequences[user][:length])
            assert examples.targets[row] == sequences[user][length]
    assert split.report["test_interactions"] == 3 * 18 + 9 * 2
    assert split.report["test_interactions_without_history"] == 2
    lines = describe_split(split.report)
    assert lines[0] == "split given: 36 interactions for validation and 72 interactions for test"
    assert lines[1] == "no example: 2 of them, their users' first"
    assert f"{'validation interactions':>26}  36" in data.describe().splitlines()


def test_parts_stay_with_their_interactions(clicks, parts):
    few = pd.DataFrame({"user": ["u0"] * 2 + ["lone"] * 3, "item": ["rare"] * 5, "time": 101})
    parts = [pd.concat([few, parts[0]]), *parts[1:]]
    data = of_parts(parts)
    left = data.k_core(6).interactions
    assert "rare" not in left.items
    assert "lone" not in left.users
    kept = set(clicks["item"].unique()) & set(left.items)
    for number, part in enumerate(parts):
        expected = part[part["item"].isin(kept)]
        assert int(np.sum(left.parts == number)) == len(expected)
    core, _ = k_core(data.interactions, 6)
    assert np.array_equal(core.parts, left.parts)
    items = pd.DataFrame({"item": sorted(kept)})
    dropped = of_parts(parts, items=items, unknown_items="drop").interactions
    for user in dropped.users[:3]:
        place = dropped.user_index([user])[0]
        start, stop = dropped.sequences.offsets[place : place + 2]
        of_user = [part[(part["user"] == user) & part["item"].isin(kept)] for part in parts]
        assert list(dropped.parts[start:stop]) == [
            number for number, part in enumerate(of_user) for _ in range(len(part))
        ]


def test_a_run_keeps_its_split(parts, tmp_path):
    files = {}
    for name, part in zip(("interactions", "validation", "test"), parts, strict=True):
        part.to_csv(tmp_path / f"{name}.csv", index=False)
        files[name] = tmp_path / f"{name}.csv"
    flags = [f"--{name}={path}" for name, path in files.items()]
    settings = [f"--{name.replace('_', '-')}={value}" for name, value in SMALL.items()]
    assert main(["train", *flags, *settings, f"--output={tmp_path / 'run'}"]) == 0
    run = af.RunFolder(tmp_path / "run")
    assert run.config().protocol == run.results()["protocol"] == "given"
    assert run.source()["test"] == str(files["test"])
    recommender = af.Recommender.load(tmp_path / "run")
    assert np.array_equal(recommender.interactions.parts, of_parts(parts).interactions.parts)
    assert len(recommender.split.test) == 20
    assert recommender.evaluate() == pytest.approx(run.results()["test"])
    # An interrupted run finds it again, and so does one that was saved.
    rest = af.fit(files.pop("interactions"), output=tmp_path / "half", log=silent, **files, **SMALL)
    (tmp_path / "half" / "results.json").unlink()
    resumed = af.resume(tmp_path / "half", log=silent, epochs=3)
    assert resumed.config.protocol == "given"
    saved = rest.save(tmp_path / "saved")
    assert np.array_equal(saved.interactions.parts, recommender.interactions.parts)
    with pytest.raises(ValueError, match="interactions with a given split; expected none with one"):
        af.extend(tmp_path / "run", parts[2], output=tmp_path / "more", log=silent)


def test_a_split_that_is_not_to_be_used(clicks, parts, tmp_path):
    data = of_parts(parts)
    with pytest.raises(ValueError, match="protocol: got 'leave-one-out'; expected given, or none"):
        af.fit(data, output=tmp_path / "run", protocol="leave-one-out", log=silent, **SMALL)
    whole = af.Dataset.read(clicks, log=silent)
    with pytest.raises(ValueError, match="interactions: got no split of their own"):
        af.fit(whole, output=tmp_path / "run", protocol="given", log=silent, **SMALL)
    config = af.Config(protocol="none", **SMALL)
    run = af.fit(data, config=config, output=tmp_path / "run", log=silent).run
    assert run.report()["train_interactions"] == len(clicks)


def test_a_comparison_on_a_given_split(parts, tmp_path):
    for name, part in zip(("train", "valid", "test"), parts, strict=True):
        part.to_csv(tmp_path / f"{name}.csv", index=False)
    (tmp_path / "compare.toml").write_text(
        """
        seeds = [0]
        settings = { dim = 8, epochs = 1, history = 8, item_embedding = "id" }
        [data.shop]
        interactions = "train.csv"
        validation = "valid.csv"
        test = "test.csv"
        [methods.IDs]
        """
    )
    file, out = str(tmp_path / "compare.toml"), str(tmp_path / "out")
    assert main(["compare", file, "--output", out]) == 0
    (found,) = json.loads((tmp_path / "out" / "runs.json").read_text())["runs"].values()
    assert found["results"]["protocol"] == "given"
    assert found["results"]["examples"] == 20


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"test": None}, "test: got None; expected both validation and test, or neither"),
        ({"validation": None}, "validation: got None; expected both"),
        ({"split_column": "time"}, "split_column: got 'time'; expected None beside"),
        ({"early": True}, "interactions: got 1 validation or test interactions before one of an"),
        ({"timeless": True}, "validation, test: got times in train and validation; expected"),
        ({"histories": True}, "validation: got histories in 'item_id_list'; expected a row for"),
        ({"typed": True}, "validation: got users such as 'x'; expected users such as 0"),
        ({"lost": True}, "no user with a history at a test target"),
    ],
)
def test_splits_that_are_refused(parts, change, said):
    train, validation, test = (part.copy() for part in parts)
    options = {}
    match change:
        case {"early": True}:
            validation.iloc[3, 2] = 1
        case {"timeless": True}:
            test = test.drop(columns="time")
        case {"histories": True}:
            validation = pd.DataFrame({"user": ["u1"], "item_id_list": [["i1", "i2"]]})
        case {"typed": True}:
            train["user"] = np.arange(len(train))
            validation["user"] = "x"
        case {"lost": True}:
            test["user"] = [f"new{n}" for n in range(len(test))]
        case {"split_column": name}:
            options["split_column"] = name
    held_out = {"validation": validation, "test": test, **change}
    held_out = {name: held_out[name] for name in ("validation", "test")}
    with pytest.raises((ValueError, TypeError), match=said):
        split_read(train, **held_out, **options)


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (
            ["train", "test", "holdout"],
            "split_column: got a column with 'holdout'; expected one of",
        ),
        (["train", None, "test"], "split_column: got a column with empty cells"),
        (["test"] * 3, "a split without training interactions"),
        (["train", "train", "test"], "no user with a history at a validation target"),
    ],
)
def test_columns_that_are_refused(clicks, labels, said):
    frame = clicks.assign(split=labels * 60)
    with pytest.raises(ValueError, match=re.escape(said)):
        split_read(frame, split_column="split", time_column="")
