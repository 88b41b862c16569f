"""Runs under each protocol: what they train on, what they rank, and what they say of it."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import fresh_generator

import alphafuse_ext as af
from alphafuse_ext.cli import main
from alphafuse_ext.data import cold_start_users, synthetic_catalog, time_split
from alphafuse_ext.experiments.spec import comparison_of
from alphafuse_ext.runs import assembly
from alphafuse_ext.serving.geometry import write_geometry

SMALL = {"dim": 16, "epochs": 2, "negatives": 16, "item_embedding": "id"}


@pytest.fixture(scope="module")
def catalog() -> tuple[pd.DataFrame, pd.DataFrame]:
    return synthetic_catalog(num_users=200, num_items=90, seed=3)


def fit(catalog, output, log=lambda _: None, **options) -> af.Recommender:
    return af.fit(*catalog, None, output, log=log, **{**SMALL, **options})


@pytest.mark.parametrize(
    ("options", "split"),
    [
        (
            {"protocol": "cold-start-users", "split_seed": 4, "test_share": 0.3},
            lambda clicks: cold_start_users(clicks, 0.1, 0.3, seed=4),
        ),
        ({"protocol": "cold-start-users"}, cold_start_users),
        ({"protocol": "time", "validation_share": 0.2}, lambda clicks: time_split(clicks, 0.2)),
    ],
)
def test_a_run_keeps_to_its_protocol(catalog, tmp_path, options, split):
    run = tmp_path / "run"
    trained = fit(catalog, run, **options)
    again = af.Recommender.load(run)
    expected = split(trained.interactions)
    for found in (trained.split, again.split):
        assert found.report == expected.report
        for part in ("validation", "test"):
            one, other = getattr(found, part), getattr(expected, part)
            assert np.array_equal(one.users, other.users)
            assert np.array_equal(one.targets, other.targets)
            everything = np.arange(len(one))
            for name in ("histories", "seen"):
                chosen = [getattr(each, name).select(everything).values for each in (one, other)]
                assert np.array_equal(*chosen)
    results = trained.run.results()
    assert (results["protocol"], results["examples"]) == (options["protocol"], len(expected.test))
    assert set(results["test_by_seen_items"]) == {"excluded", "ranked"}
    assert again.evaluate("test") == results["test"]


def test_no_user_of_a_cold_start_is_trained_on(catalog, tmp_path):
    split = fit(catalog, tmp_path / "run", protocol="cold-start-users").split
    held_out = np.union1d(split.validation.users, split.test.users)
    assert not np.intersect1d(split.validation.users, split.test.users).size
    assert len(split.train) + len(held_out) == 200
    # Every prefix of such a user is an example.
    clicks = af.Recommender.load(tmp_path / "run").interactions
    lengths = clicks.sequences.lengths[np.unique(split.test.users)]
    assert len(split.test) == (lengths - 1).sum()


@pytest.mark.parametrize("protocol", ["cold-start-users", "time"])
def test_a_resumed_run_keeps_to_its_protocol(catalog, tmp_path, protocol):
    fit(catalog, tmp_path / "whole", protocol=protocol)
    fit(catalog, tmp_path / "cut", protocol=protocol, epochs=1)
    (tmp_path / "cut" / "results.json").unlink()
    af.resume(tmp_path / "cut", log=lambda _: None, epochs=2)
    whole, cut = (af.RunFolder(tmp_path / name).results() for name in ("whole", "cut"))
    assert cut["test"] == whole["test"]
    assert cut["validation"] == whole["validation"]


def test_times_that_are_positions_are_refused(catalog, tmp_path):
    clicks = catalog[0].copy()
    clicks["timestamp"] = clicks.groupby("user_id").cumcount()
    with pytest.raises(ValueError, match=r"^interactions: got times that only count each user's"):
        fit((clicks, catalog[1]), tmp_path / "run", protocol="time")
    assert not (tmp_path / "run").exists()


def test_a_core_has_its_own_catalog(catalog, tmp_path):
    """As a run on data that were filtered before; and it says what it removed."""
    clicks, items = catalog
    vectors = fresh_generator().standard_normal((len(items), 24)).astype(np.float32)
    lines = []
    options = {**SMALL, "item_embedding": "alphafuse", "log": lines.append}
    core = af.fit(clicks, items, vectors, tmp_path / "core", k_core=7, **options)
    while True:
        counts = [clicks[name].map(clicks[name].value_counts()) for name in ("user_id", "item_id")]
        kept = (counts[0] >= 7) & (counts[1] >= 7)
        if kept.all():
            break
        clicks = clicks[kept]
    chosen = items["item_id"].isin(clicks["item_id"]).to_numpy()
    assert 0 < chosen.sum() < len(items)
    plain = af.fit(clicks, items[chosen], vectors[chosen], tmp_path / "plain", **options)
    histories = [
        {
            user: run.items.tokens[ids].tolist()
            for user, ids in zip(data.users, data.sequences, strict=True)
        }
        for run, data in ((core, core.interactions), (plain, plain.interactions))
    ]
    assert histories[0] == histories[1]
    assert torch.equal(core.model.table.semantic_rows, plain.model.table.semantic_rows)
    assert core.items.tokens.tolist() == items["item_id"][chosen].tolist()
    assert core.items.titles == plain.items.titles
    removed = {
        "users": catalog[0]["user_id"].nunique() - clicks["user_id"].nunique(),
        "items": int((~chosen).sum()),
        "interactions": len(catalog[0]) - len(clicks),
    }
    report = core.run.report()
    assert {name: report[f"{name}_removed"] for name in removed} == removed
    np.save(tmp_path / "all.npy", vectors)
    with pytest.raises(ValueError, match=r"^embeddings: got .* rows; expected one row for each"):
        write_geometry(core.run.path, tmp_path / "all.npy")
    by_id = dict(zip(items["item_id"], vectors, strict=True))
    found = write_geometry(core.run.path, by_id)["embeddings"]["sha256"]
    assert found == core.run.source()["embeddings"]["sha256"]
    said = ", ".join(f"{count:,} {name}" for name, count in removed.items())
    assert f"7-core: removed {said}" in lines


def test_nothing_held_out(catalog, tmp_path, capsys):
    """All interactions are trained on; there is nothing to measure, and that is said."""
    lines: list[str] = []
    run = tmp_path / "run"
    trained = fit(catalog, run, lines.append, protocol="none", epochs=3)
    clicks = trained.interactions
    assert np.array_equal(trained.split.train.values, clicks.sequences.values)
    assert any("nothing was held out" in line for line in lines)
    results = trained.run.results()
    assert results["best_epoch"] == results["epochs"] == 3  # the last is what is kept
    assert "test" not in results
    assert (run / "curves.png").is_file()
    assert len(af.Recommender.load(run).recommend(k=3)) == 3 * clicks.num_users
    with pytest.raises(ValueError, match="held nothing out"):
        trained.evaluate()
    assert main(["evaluate", str(run)]) == 2
    assert "held nothing out" in capsys.readouterr().err
    assert main(["report", str(run)]) == 0
    assert "Nothing was held out" in (run / "report.html").read_text()


def test_upgrading_where_nothing_was_held_out(catalog, tmp_path):
    """How far recommendations moved is said, metrics there are none."""
    rows = np.random.default_rng(0).normal(size=(90, 24)).astype(np.float32)
    options = {**SMALL, "item_embedding": "alphafuse", "protocol": "none", "epochs": 1}
    trained = af.fit(*catalog, rows, tmp_path / "run", log=lambda _: None, **options)
    report = trained.upgrade_embeddings(rows[:, ::-1].copy()).report
    assert report["users"] == trained.interactions.num_users
    assert "before" not in report


def test_nothing_held_out_resumes(catalog, tmp_path):
    """Bit for bit, as every run does."""
    whole = fit(catalog, tmp_path / "whole", protocol="none", epochs=3)
    fit(catalog, tmp_path / "cut", protocol="none", epochs=1)
    (tmp_path / "cut" / "results.json").unlink()
    resumed = af.resume(tmp_path / "cut", log=lambda _: None, epochs=3)
    for one, other in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_nothing_held_out_cannot_be_compared(tmp_path):
    path = tmp_path / "c.csv"
    path.write_text("user,item\na,b\n")
    with pytest.raises(ValueError, match="holds something out"):
        comparison_of({"interactions": path}, ["id"], [0], {"protocol": "none", "epochs": 1})


@pytest.mark.parametrize("protocol", ["leave-one-out", "cold-start-users"])
def test_samples_of_users(catalog, tmp_path, protocol):
    """A part of the held-out users is ranked; what is trained on stays the same."""
    lines: list[str] = []
    whole = fit(catalog, tmp_path / "whole", protocol=protocol, seed=5)
    options = {"protocol": protocol, "seed": 5, "validation_users": 8, "test_users": 7}
    some = fit(catalog, tmp_path / "some", lines.append, **options)
    for part, number in (("validation", 8), ("test", 7)):
        one, every = getattr(some.split, part), getattr(whole.split, part)
        users = np.unique(one.users)
        assert len(users) == number < len(np.unique(every.users))
        kept = every.select(np.flatnonzero(np.isin(every.users, users)))  # all examples of a user
        assert np.array_equal(one.targets, kept.targets)
        of = len(np.unique(every.users))
        said = f"{part}: a sample of {number} of {of} users, drawn by seed 5 ({part}_users; 0 takes"
        assert any(line.startswith(said) for line in lines)
        assert some.run.results()["samples"][part] == {"users": number, "of": of, "seed": 5}
    results = some.run.results()
    assert results["examples"] == len(some.split.test)
    assert any(f"{len(some.split.test)} examples of 7 users (a sample" in line for line in lines)
    for one, other in zip(whole.run.epochs(), some.run.epochs(), strict=True):
        assert one["loss"] == other["loss"]
        assert one["validation"] != other["validation"]
    assert some.config.validation_users == 8
    assert whole.config.validation_users == whole.config.test_users == 0
    assert whole.run.results()["samples"] == {}
    again = af.Recommender.load(tmp_path / "some")
    assert np.array_equal(again.split.validation.users, some.split.validation.users)
    assert again.evaluate("test") == results["test"]


def test_many_users_are_sampled_by_default(catalog, tmp_path, monkeypatch):
    monkeypatch.setattr(assembly, "VALIDATED_UP_TO", 192)
    monkeypatch.setattr(assembly, "VALIDATION_SAMPLE", 20)
    lines: list[str] = []
    found = fit(catalog, tmp_path / "default", lines.append, epochs=1)
    assert (len(found.split.validation), len(found.split.test)) == (20, 193)
    assert found.run.config().validation_users == 20
    every = fit(catalog, tmp_path / "all", epochs=1, validation_users=0)
    assert len(every.split.validation) == 193
    lines.clear()
    cut = fit(catalog, tmp_path / "cut", lines.append, epochs=1, validation_users=1000)
    assert len(cut.split.validation) == 193
    assert "validation: validation_users 1,000 is cut to the 193 there are" in lines
    monkeypatch.setattr(assembly, "TESTED_UP_TO", 192 * found.model.table.num_embeddings)
    monkeypatch.setattr(assembly, "TEST_SAMPLE", 30)
    tested = fit(catalog, tmp_path / "tested", lines.append, epochs=1)
    assert len(tested.split.test) == 30
    assert tested.run.config().test_users == 30
    assert "test: a sample of 30 of 193 users, drawn by seed 0 (test_users; 0 takes all)" in lines
    with pytest.raises(ValueError, match="test_users: got 3; expected none with protocol=none"):
        fit(catalog, tmp_path / "none", protocol="none", test_users=3)
