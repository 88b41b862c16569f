"""Data sets that are read once, inspected, and trained on."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

import alphafuse_ext as af
from alphafuse_ext.cli import main
from alphafuse_ext.data import Interactions, Items, Reading, Sequences, synthetic_catalog

SMALL = {"dim": 8, "epochs": 1, "history": 8, "threads": 1}


def silent(_: str) -> None:
    pass


@pytest.fixture(scope="module")
def catalog() -> tuple[pd.DataFrame, pd.DataFrame]:
    return synthetic_catalog(num_users=60, num_items=60, seed=2)


@pytest.fixture(scope="module")
def rows(catalog) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(len(catalog[1]), 12)).astype(np.float32)


def weights(recommender: af.Recommender) -> dict[str, np.ndarray]:
    return {name: part.numpy() for name, part in recommender.model.state_dict().items()}


def test_what_a_data_set_says_of_itself(catalog, rows):
    data = af.Dataset.read(*catalog, text_columns=["title"], log=silent)
    assert len(data) == len(catalog[0])
    assert sorted(data.users) == sorted(catalog[0]["user_id"].unique())
    assert list(data.items.tokens) == list(catalog[1]["item_id"])
    assert data.items.texts == list(catalog[1]["title"])
    assert data.language is None
    assert repr(data) == (
        f"Dataset({len(data):,} interactions, 60 users, 60 items, language: texts, encoder auto)"
    )
    assert data.summary["users"] == 60
    assert f"{'interactions':>26}  {len(data)}" in data.describe().splitlines()
    assert "language: 12 dimensions" in repr(af.Dataset.read(*catalog, rows, log=silent))
    assert "language: none" in repr(af.Dataset.read(catalog[0], log=silent))


def test_the_command_prints_the_description(catalog, tmp_path, capsys):
    for name, frame in zip(("clicks", "items"), catalog, strict=True):
        frame.to_csv(tmp_path / f"{name}.csv", index=False)
    files = [str(tmp_path / "clicks.csv"), str(tmp_path / "items.csv")]
    data = af.Dataset.read(*files, log=silent)
    assert main(["describe", "--interactions", files[0], "--items", files[1]]) == 0
    assert capsys.readouterr().out.endswith(data.describe() + "\n")


def test_a_data_set_trains_as_what_it_was_read_from(catalog, rows, tmp_path):
    options = {"time_column": "timestamp"}
    read = af.fit(*catalog, rows, tmp_path / "read", log=silent, k_core=2, **options, **SMALL)
    data = af.Dataset.read(*catalog, rows, log=silent, **options)
    given = af.fit(data, output=tmp_path / "given", log=silent, k_core=2, **SMALL)
    config = af.Config(k_core=2, **SMALL)
    whole = af.fit(data, output=tmp_path / "whole", log=silent, config=config)
    for other in (given, whole):
        assert other.config == read.config
        assert other.run.source() == read.run.source()
        assert other.run.report() == read.run.report()
        for name, part in weights(read).items():
            assert np.array_equal(part, weights(other)[name]), name
    assert len(data.items) == len(catalog[1])  # as it was read


def test_texts_are_encoded_where_a_method_needs_them(catalog, tmp_path, monkeypatch):
    said: list[str] = []
    data = af.Dataset.read(*catalog, encoder="tfidf", log=said.append)
    af.fit(data, output=tmp_path / "ids", item_embedding="id", log=said.append, **SMALL)
    assert not [line for line in said if line.startswith("texts:")]
    af.fit(data, output=tmp_path / "texts", log=said.append, **SMALL)
    assert len([line for line in said if line.startswith("texts:")]) == 1
    with pytest.raises(ValueError, match="embeddings: got None; expected language embeddings"):
        af.fit(af.Dataset.read(catalog[0], log=silent), output=tmp_path / "none", **SMALL)


def test_a_data_set_of_interactions_and_items(tmp_path):
    rng = np.random.default_rng(3)
    tokens = np.arange(9)
    lists = [rng.integers(0, 9, size=6) for _ in range(12)]
    clicks = Interactions(np.arange(12), tokens, Sequences.from_lists(lists))
    data = af.Dataset(clicks, Items(tokens, None, None))
    run = af.fit(data, output=tmp_path / "run", item_embedding="id", log=silent, **SMALL).run
    assert run.source()["interactions"] == "Interactions"
    assert run.source()["reading"] == {}
    with pytest.raises(ValueError, match="items: got other items"):
        af.Dataset(clicks, Items(tokens[::-1], None, None))
    other = af.data.LanguageEmbeddings(np.ones((8, 3), np.float32), {})
    with pytest.raises(ValueError, match="language: got 8 rows; expected one for each of the 9"):
        af.Dataset(clicks, Items(tokens, None, None), other)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"items": "items.csv"}, "items: got items.csv; expected none beside a Dataset"),
        ({"embeddings": np.ones((3, 2))}, "embeddings: got ndarray; expected none beside"),
        ({"text_columns": ["title"]}, "text_columns: got .*; expected none beside a Dataset"),
        ({"config": af.Config(), "dim": 8}, "dim: got settings beside a config; expected config"),
        ({"config": af.Config(), "preset": "public-code"}, "preset: got 'public-code'; expected"),
    ],
)
def test_what_is_said_twice_is_refused(catalog, tmp_path, given, said):
    data = af.Dataset.read(catalog[0], log=silent)
    with pytest.raises(ValueError, match=said):
        af.fit(data, output=tmp_path / "run", log=silent, **given)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"ids_are_rows": True}, "ids_are_rows: got True; expected False, or embeddings"),
        ({"text_columns": ["title"]}, "text_columns: got .*; expected None, or items"),
        ({"items_layout": af.data.Layout()}, "items_layout: got .*; expected None, or a file"),
        ({"embeddings": np.ones((60, 2)), "encoder": "tfidf"}, "encoder: got 'tfidf'; expected"),
    ],
)
def test_options_of_what_is_not_there(catalog, options, said):
    with pytest.raises(ValueError, match=said):
        af.Dataset.read(catalog[0], log=silent, **options)


def test_a_run_is_extended_by_a_data_set(catalog, rows, tmp_path):
    clicks, items = catalog
    known = items["item_id"][:50]
    before = clicks[clicks["item_id"].isin(known)]
    af.fit(before, items[:50], rows[:50], tmp_path / "run", log=silent, **SMALL)
    new = clicks.assign(timestamp=clicks["timestamp"] + 10**6)
    extended = [
        af.extend(tmp_path / "run", *sources, output=tmp_path / name, log=silent)
        for name, sources in (
            ("files", (new, items, rows)),
            ("set", (af.Dataset.read(new, items, rows, log=silent),)),
        )
    ]
    assert len(extended[0].items) == 60
    assert list(extended[0].items.tokens) == list(extended[1].items.tokens)
    for name, part in weights(extended[0]).items():
        assert np.array_equal(part, weights(extended[1])[name]), name
    sources = [json.dumps({**one.run.source(), "changes": 0}) for one in extended]
    assert sources[0] == sources[1]
    data = af.Dataset.read(new, items, rows, log=silent)
    with pytest.raises(ValueError, match="items: got DataFrame; expected none beside a Dataset"):
        af.extend(tmp_path / "run", data, items, output=tmp_path / "no", log=silent)


def test_unknown_items_are_dropped_and_counted(catalog, rows, tmp_path):
    clicks, items = catalog[0].sort_values("user_id", ignore_index=True), catalog[1]
    few = items[:50]
    known = clicks["item_id"].isin(few["item_id"])
    lost = clicks.groupby("user_id")["item_id"].apply(
        lambda one: not one.isin(few["item_id"]).any()
    )
    strange = pd.DataFrame({"user_id": ["only"], "item_id": [items["item_id"][55]]})
    clicks = pd.concat([clicks, strange.assign(timestamp=1)], ignore_index=True)
    with pytest.raises(ValueError, match="interactions with items that the catalog lacks"):
        af.Dataset.read(clicks, few, log=silent)
    said: list[str] = []
    data = af.Dataset.read(clicks, few, rows[:50], unknown_items="drop", log=said.append)
    counts = {
        "interactions": int((~known).sum()) + 1,
        "users": int(lost.sum()) + 1,
        "items": clicks["item_id"].nunique() - clicks["item_id"][: len(known)][known].nunique(),
    }
    assert data.dropped == counts
    assert [
        line for line in said if line.startswith(f"unknown items: dropped {counts['interactions']}")
    ]
    assert "only" not in data.users
    # What is left is what a file without them has.
    left = af.Dataset.read(clicks[: len(known)][known], few, rows[:50], log=silent)
    for name in ("users", "items", "timestamps"):
        assert np.array_equal(getattr(data.interactions, name), getattr(left.interactions, name))
    for name in ("values", "offsets"):
        sequences = data.interactions.sequences
        assert np.array_equal(getattr(sequences, name), getattr(left.interactions.sequences, name))
    run = af.fit(data, output=tmp_path / "run", log=silent, **SMALL).run
    assert run.source()["reading"] == {"unknown_items": "drop"}
    assert {name: run.report()[f"{name}_dropped"] for name in counts} == counts


def test_a_command_drops_unknown_items(catalog, tmp_path, capsys):
    clicks, items = catalog
    clicks.to_csv(tmp_path / "clicks.csv", index=False)
    items[:50].to_csv(tmp_path / "items.csv", index=False)
    files = [f"--{name}={tmp_path / name}.csv" for name in ("interactions", "items")]
    (tmp_path / "clicks.csv").rename(tmp_path / "interactions.csv")
    assert main(["describe", *files]) == 2
    assert "unknown_items" in capsys.readouterr().err
    assert main(["describe", *files, "--unknown-items", "drop"]) == 0
    assert "unknown items: dropped" in capsys.readouterr().out
    train = ["train", *files, "--unknown-items=drop", f"--output={tmp_path / 'run'}", "--dim=8"]
    assert main([*train, "--epochs=1", "--item-embedding=id"]) == 0
    assert af.RunFolder(tmp_path / "run").report()["items_dropped"] == 10
    # A run that goes on refuses them again, unless it is said anew.
    later = clicks.assign(timestamp=clicks["timestamp"] + 10**6)
    later.to_csv(tmp_path / "later.csv", index=False)
    for name, options in (("no", {}), ("more", {"unknown_items": "drop"})):
        given = {"output": tmp_path / name, "log": silent, "epochs": 1, **options}
        if options:
            run = af.extend(tmp_path / "run", tmp_path / "later.csv", **given).run
            assert run.report()["items_dropped"] == 10
        else:
            with pytest.raises(ValueError, match="items that the catalog lacks"):
                af.extend(tmp_path / "run", tmp_path / "later.csv", **given)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"unknown_items": "drop"}, "unknown_items: got 'drop'; expected 'raise', or items or"),
        ({"unknown_items": "keep"}, "unknown_items: got 'keep'; expected one of raise, drop"),
        (
            {"unknown_items": "drop", "items": pd.DataFrame({"item": ["x"]})},
            "interactions: got .* none with an item of the catalog",
        ),
    ],
)
def test_unknown_items_that_cannot_be_dropped(catalog, given, said):
    with pytest.raises(ValueError, match=said):
        af.Dataset.read(catalog[0], log=silent, **given)


@pytest.mark.parametrize(
    ("kept", "taken"),
    [
        ({"time_column": "when", "time_format": "%d/%m/%Y"}, ("when", "%d/%m/%Y")),
        # It was guessed, and what is read now may have no times.
        ({"time_format": "%d/%m/%Y"}, (None, None)),
        ({"unknown_items": "drop", "split_column": "part"}, (None, None)),
    ],
)
def test_what_later_commands_read_by(kept, taken):
    found = Reading().completed({"reading": kept}, {"interactions": "clicks.csv"})
    assert found == Reading(time_column=taken[0], time_format=taken[1])
