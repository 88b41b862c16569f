"""Training on with new interactions, items and users."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

import alphafuse_ext as af
from alphafuse_ext.data import (
    Interactions,
    Sequences,
    merge_interactions,
    read_interactions,
    synthetic_catalog,
)

WIDTH = 24


def language(num_items: int, seed: int = 0) -> np.ndarray:
    spread = np.linspace(2.0, 0.2, WIDTH)
    drawn = np.random.default_rng(seed).normal(size=(num_items, WIDTH))
    return (drawn * spread).astype(np.float32)


def quiet(_: str) -> None:
    pass


@pytest.fixture(scope="module")
def data() -> tuple[pd.DataFrame, pd.DataFrame, np.ndarray]:
    clicks, items = synthetic_catalog(num_users=150, num_items=80, seed=2)
    return clicks, items, language(len(items))


def trained(folder, data, **options) -> af.Recommender:
    clicks, items, rows = data
    settings = {"dim": 16, "epochs": 2, "history": 6, **options}
    return af.fit(clicks, items, rows, output=folder / "first", log=quiet, **settings)


@pytest.fixture(scope="module")
def first(tmp_path_factory, data) -> af.Recommender:
    """To read only."""
    return trained(tmp_path_factory.mktemp("runs"), data)


def later(data, users=("u-new", "u-other"), items=("new-1", "new-2")) -> pd.DataFrame:
    """Clicks after all others: of new users and of the first five, new items among them."""
    clicks, catalog, _ = data
    old_users = clicks["user_id"].unique()[:5].tolist()
    old_items = catalog["item_id"].tolist()[:3]
    rows = [(user, item) for user in (*users, *old_users) for item in (*items, *old_items)]
    frame = pd.DataFrame(rows, columns=["user_id", "item_id"])
    frame["timestamp"] = clicks["timestamp"].max() + 1 + np.arange(len(frame))
    return frame


NEW = pd.DataFrame({"item_id": ["new-1", "new-2"], "title": ["one", "two"]})


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"space_split": "soft"},
        {"item_embedding": "id"},
        {"item_embedding": "rlmrec-contrastive"},
        {"item_embedding": "morec"},
        {"loss": "sampled_softmax", "negative_sampling": "popularity", "negatives": 8},
    ],
    ids=str,
)
def test_trains_on(options, tmp_path, data):
    first = trained(tmp_path, data, **options)
    files = {p: p.stat().st_mtime_ns for p in first.run.path.iterdir()}
    lines = []
    extended = af.extend(
        first.run.path,
        later(data),
        NEW,
        language(2, 5),
        tmp_path / "second",
        epochs=3,
        log=lines.append,
    )
    assert {p: p.stat().st_mtime_ns for p in first.run.path.iterdir()} == files
    assert extended.items.tokens[-2:].tolist() == ["new-1", "new-2"]
    assert extended.interactions.num_users == first.interactions.num_users + 2
    assert len(extended.interactions) == len(first.interactions) + 35
    assert extended.config.epochs == 3
    assert "items: 80 known, 2 new ones" in lines
    assert sum(line.strip().startswith(("1 ", "2 ", "3 ")) for line in lines) == 3
    # It started where the first run ended: what old items begin with is what they had there.
    start = extended.run.model("start")[0]
    best = first.run.model("best")[0]
    name = "table.id_embeddings"
    if name in best:
        assert torch.equal(start[name][:80], best[name])
        assert not torch.equal(extended.model.state_dict()[name][:80], best[name])
    frame = extended.recommend(["u-new"], k=3)
    assert len(frame) == 3
    pd.testing.assert_frame_equal(
        af.Recommender.load(tmp_path / "second").recommend(k=4), extended.recommend(k=4)
    )
    # It can be extended, and changed, again.
    again = af.extend(
        tmp_path / "second",
        later(data, users=["u-third"], items=()).assign(timestamp=10**10),
        output=tmp_path / "third",
        epochs=1,
        log=quiet,
    )
    assert again.interactions.num_users == extended.interactions.num_users + 1


def test_all_interactions_again(first, tmp_path, data):
    """With times, what the run has is not taken twice; with a whole catalog, only what is new."""
    clicks, items, rows = data
    everything = pd.concat([clicks, later(data)], ignore_index=True)
    catalog = pd.concat([items, NEW], ignore_index=True)
    embeddings = np.concatenate([rows, language(2, 5)])
    lines: list[str] = []
    one = af.extend(
        first.run.path,
        everything,
        catalog,
        embeddings,
        tmp_path / "whole",
        epochs=1,
        log=lines.append,
    )
    two = af.extend(
        first.run.path, later(data), NEW, language(2, 5), tmp_path / "part", epochs=1, log=quiet
    )
    assert len(one.interactions) == len(two.interactions)
    for user in ("u-new", clicks["user_id"].iloc[0]):
        a, b = (
            run.interactions.items[
                run.interactions.sequences[run.interactions.user_index([user])[0]]
            ].tolist()
            for run in (one, two)
        )
        assert a == b
    assert any(f"{len(clicks):,} that were known already" in line for line in lines)


def test_interrupted_and_resumed(first, tmp_path, data):
    options = {"epochs": 3, "log": quiet}
    whole = af.extend(first.run.path, later(data, items=()), output=tmp_path / "a", **options)

    def stop(line: str) -> None:
        if line.strip().startswith("2 "):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        af.extend(first.run.path, later(data, items=()), output=tmp_path / "b", epochs=3, log=stop)
    resumed = af.resume(tmp_path / "b", log=quiet)
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], tensor), name


def test_refusals(first, tmp_path, data):
    clicks, _, rows = data
    path, new = first.run.path, later(data, items=())
    for given, options, fault in (
        (new, {"dim": 32}, "dim: got 32; expected one of epochs"),
        (later(data), {}, "items that the catalog lacks: 'new-1'"),
        (clicks, {}, "interactions: got none that the run has not"),
        (new.drop(columns="timestamp"), {}, "new interactions without, behind others with times"),
        (new.assign(timestamp=new["timestamp"] * 10**9), {}, "expected times in one unit"),
        (new, {"output": path}, "output: got .* which exists"),
        (later(data), {"items": NEW, "embeddings": 3 * rows[:2, ::-1].copy()}, "another model"),
        (later(data), {"items": NEW}, "embeddings: got None, of a run whose language"),
        (new, {"epochs": 0}, "epochs: got 0"),
    ):
        with pytest.raises((ValueError, FileExistsError), match=fault):
            af.extend(path, given, **{"output": tmp_path / "none", "log": quiet, **options})
        assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("times", [True, False])
def test_merged(times):
    known = Interactions(
        np.array(["a", "b"], dtype=object),
        np.arange(5),
        Sequences.from_lists([[0, 1, 1], [2]]),
        np.array([1, 3, 3, 2]) if times else None,
    )
    new = read_interactions(
        pd.DataFrame(
            {
                "user_id": ["c", "a", "a", "b", "c", "c"],
                "item_id": [4, 3, 1, 2, 0, 0],
                **({"timestamp": [9, 2, 3, 2, 9, 9]} if times else {}),
            }
        )
    )
    new = Interactions(new.users, np.arange(5), _renumbered(new), new.timestamps)
    merged = merge_interactions(known, new)
    assert merged.users.tolist() == ["a", "b", "c"]
    found = [one.tolist() for one in map(merged.sequences.__getitem__, range(3))]
    if times:
        assert found == [[0, 3, 1, 1], [2], [4, 0, 0]]
        assert merged.timestamps.tolist() == [1, 2, 3, 3, 2, 9, 9, 9]
    else:
        assert found == [[0, 1, 1, 3, 1], [2, 2], [4, 0, 0]]


def _renumbered(read: Interactions) -> Sequences:
    return Sequences(read.sequences.offsets, read.items[read.sequences.values])


def test_users_of_another_type():
    one = Interactions(np.arange(2), np.arange(3), Sequences.from_lists([[0], [1]]))
    other = Interactions(np.array(["x"], dtype=object), np.arange(3), Sequences.from_lists([[0]]))
    with pytest.raises(TypeError, match="interactions: got users such as 'x'"):
        merge_interactions(one, other)
    assert merge_interactions(other, one).users.tolist() == ["x", "0", "1"]


def test_killed_before_its_first_epoch(first, tmp_path, data):
    """Items that were added on the way do not make of it a run that was changed and saved."""
    given = (first.run.path, later(data), NEW, language(2, 5))
    whole = af.extend(*given, tmp_path / "a", epochs=1, log=quiet)

    def stop(line: str) -> None:
        if "extended:" in line:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        af.extend(*given, tmp_path / "b", epochs=1, log=stop)
    resumed = af.resume(tmp_path / "b", log=quiet)
    pd.testing.assert_frame_equal(resumed.recommend(k=3), whole.recommend(k=3))
