"""Training anew on everything, and whether the result may replace a run."""

from __future__ import annotations

import math
import shutil

import numpy as np
import pandas as pd
import pytest
import torch

import alphafuse_ext as af
from alphafuse_ext.cli import main
from alphafuse_ext.data import synthetic_catalog
from alphafuse_ext.experiments.check import check

ITEMS, NEW = 80, 5
SMALL = {"dim": 16, "null_dim": 8, "epochs": 4, "history": 6}


def quiet(_: str) -> None:
    pass


@pytest.fixture(scope="module")
def shop():
    """Clicks up to a time, later ones, the last ones, items, rows; some items are new later on."""
    clicks, items = synthetic_catalog(num_users=150, num_items=ITEMS + NEW, seed=2)
    rows = np.random.default_rng(1).standard_normal((len(items), 24)).astype(np.float32)
    old = clicks["item_id"].isin(items["item_id"][:ITEMS])
    moment, last = clicks["timestamp"].quantile([0.7, 0.9])
    first = clicks[(clicks["timestamp"] < moment) & old]
    later = clicks[(clicks["timestamp"] >= moment) & (clicks["timestamp"] < last)]
    return first, later, clicks[clicks["timestamp"] >= last], items, rows


@pytest.fixture(scope="module")
def first(tmp_path_factory, shop):
    """To read only: its validation chose fewer epochs than it trained."""
    clicks, _, _, items, rows = shop
    folder = tmp_path_factory.mktemp("refit") / "first"
    given = {**SMALL, "patience": 1, "epochs": 12, "neighbors": True, "learning_rate": 0.01}
    return af.fit(clicks, items[:ITEMS], rows[:ITEMS], folder, log=quiet, **given)


def settings(recommender):
    """Those that a refit takes over."""
    of_split = ("protocol", "epochs", "validation_users", "test_users")
    of_neighbors = ("neighbors_weight", "neighbors_language_weight", "neighbors_temperature")
    values = recommender.config.to_dict()
    return {n: v for n, v in values.items() if n not in (*of_split, *of_neighbors)}


def test_a_run_is_trained_anew_on_everything(first, shop, tmp_path):
    clicks, later, _, items, rows = shop
    before = {path: path.stat().st_mtime_ns for path in first.run.path.iterdir()}
    lines = []
    new = items[ITEMS:]
    again = af.refit(
        first.run.path,
        later,
        new,
        rows[ITEMS:],
        tmp_path / "again",
        any_embeddings=True,
        log=lines.append,
    )
    assert {path: path.stat().st_mtime_ns for path in first.run.path.iterdir()} == before
    chosen = first.run.results()["best_epoch"]
    assert chosen < first.run.results()["epochs"]
    assert again.config.epochs == again.run.results()["epochs"] == math.ceil(chosen)
    assert again.config.protocol == "none"
    assert settings(again) == settings(first)
    weights = first.neighbors.weights()
    assert again.neighbors.weights() == weights
    assert len(again.interactions) == len(clicks) + len(later)
    assert again.items.tokens[-NEW:].tolist() == new["item_id"].tolist()
    assert again.run.source()["refitted_from"] == str(first.run.path)
    assert any(f"{math.ceil(chosen)} epochs, as its validation chose" in line for line in lines)
    # It is what fit makes of all of it, with these settings, bit for bit.
    every = pd.concat([clicks, later])
    given = {**SMALL, "learning_rate": 0.01, "epochs": math.ceil(chosen), "protocol": "none"}
    given |= {f"neighbors_{name.removeprefix('neighbors_')}": w for name, w in weights.items()}
    by_hand = af.fit(
        af.Dataset.read(every, items, rows, log=None),
        output=tmp_path / "by-hand",
        log=quiet,
        **given,
        patience=1,
        neighbors=True,
    )
    users = by_hand.interactions.users[:20].tolist()
    for one, other in ((again.recommend(users), by_hand.recommend(users)),):
        pd.testing.assert_frame_equal(one, other)
    for name, tensor in by_hand.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], tensor), name
    # And again, of what has no validation of its own.
    third = af.refit(tmp_path / "again", output=tmp_path / "third", log=quiet)
    assert third.config.epochs == again.config.epochs
    assert torch.equal(
        third.model.state_dict()["norm.weight"], again.model.state_dict()["norm.weight"]
    )


@pytest.mark.parametrize(
    "options",
    [
        {"item_embedding": "id", "neighbors": False, "null_dim": None},
        {"protocol": "time", "neighbors": False, "validation_share": 0.2},
        {"model": "neighbors", **dict.fromkeys(("dim", "null_dim", "epochs"))},
        {"encoder": "tfidf"},
    ],
    ids=str,
)
def test_runs_of_all_kinds(shop, options, tmp_path):
    clicks, later, _, items, rows = shop
    given = {n: v for n, v in {**SMALL, "epochs": 2, **options}.items() if v is not None}
    embeddings = None if options.get("encoder") else rows[:ITEMS]
    if embeddings is not None:
        np.save(tmp_path / "rows.npy", embeddings)
        embeddings = tmp_path / "rows.npy"
    run = af.fit(clicks, items[:ITEMS], embeddings, tmp_path / "run", log=quiet, **given)
    known = later[later["item_id"].isin(items["item_id"][:ITEMS])]
    again = af.refit(tmp_path / "run", known, output=tmp_path / "again", log=quiet)
    assert again.config.protocol == "none"
    assert again.config.model == run.config.model
    assert len(again.interactions) == len(clicks) + len(known)
    assert len(again.recommend(k=3))
    with pytest.raises(ValueError, match="items that the catalog lacks"):
        af.refit(tmp_path / "run", later, output=tmp_path / "no", log=quiet)
    dropped = af.refit(
        tmp_path / "run", later, output=tmp_path / "dropped", unknown_items="drop", log=quiet
    )
    assert dropped.run.report()["interactions_dropped"] == len(later) - len(known)
    if options.get("protocol") != "time":
        return
    # New items beside the run's own file; and where that is another, those of all.
    new = items[ITEMS:]
    given = {"any_embeddings": True, "log": quiet}
    first = af.refit(tmp_path / "run", later, new, rows[ITEMS:], tmp_path / "new", **given)
    np.save(tmp_path / "rows.npy", rows[:ITEMS] + 1)
    with pytest.raises(ValueError, match="is gone or another; expected those of the whole catalog"):
        af.refit(tmp_path / "run", known, output=tmp_path / "no", log=quiet)
    second = af.refit(tmp_path / "run", later, items, rows, tmp_path / "all", **given)
    for name, tensor in first.model.state_dict().items():
        assert torch.equal(second.model.state_dict()[name], tensor), name


def test_a_changed_and_a_continued_run(first, shop, tmp_path):
    """Their number of epochs is that of the run before them."""
    _, later, _, items, _ = shop
    known = later[later["item_id"].isin(items["item_id"][:ITEMS])]
    gone = items["item_id"][0]
    moved = shutil.copytree(first.run.path, tmp_path / "moved")
    changed = af.Recommender.load(moved).retire_items([gone]).save(tmp_path / "changed")
    grown = af.extend(changed.run.path, known, output=tmp_path / "grown", epochs=1, log=quiet)
    again = af.refit(grown.run.path, output=tmp_path / "again", log=quiet)
    assert again.config.epochs == math.ceil(first.run.results()["best_epoch"])
    assert len(again.interactions) == len(grown.interactions)
    assert gone not in again.recommend(k=20)["item"].tolist()
    assert "changed_from" not in again.run.source()
    shutil.rmtree(moved)
    with pytest.raises(ValueError, match=r"epochs: got none, and .*moved, which .*, is gone"):
        af.refit(grown.run.path, output=tmp_path / "no", log=quiet)
    assert af.refit(grown.run.path, output=tmp_path / "one", epochs=1, log=quiet).config.epochs == 1


def test_refusals_of_a_refit(first, shop, copied_run, tmp_path):
    _, later, _, items, _ = shop
    (copied_run / "results.json").unlink()
    with pytest.raises(ValueError, match="which has not ended; expected a run with its results"):
        af.refit(copied_run)
    with pytest.raises(ValueError, match="embeddings: got None; expected those of the 5 new items"):
        af.refit(first.run.path, later, items, output=tmp_path / "no", log=quiet)
    with pytest.raises(ValueError, match="dim: got 8; expected epochs or threads"):
        af.refit(first.run.path, later, dim=8)
    assert not (tmp_path / "no").exists()


def test_without_validation_epochs_are_asked_for(shop, tmp_path):
    """It trained for 200 before."""
    clicks, _, _, _, _ = shop
    with pytest.raises(ValueError, match="epochs: got none; expected a number with protocol=none"):
        af.fit(clicks, item_embedding="id", protocol="none", output=tmp_path / "no", log=quiet)
    assert af.Config(protocol="none", epochs=3).epochs == 3
    assert af.Config(protocol="none", model="neighbors", neighbors_language_weight=1.0)


def test_a_better_and_a_worse_run(first, shop, tmp_path, capsys):
    clicks, _, last, items, _ = shop
    asked = last[last["item_id"].isin(items["item_id"][:ITEMS])]
    lines = []
    same = check(first.run.path, first.run.path, asked, log=lines.append)
    assert (same.worse, same.gain, same.p, same.lists["changed"]) == (False, 0.0, 1.0, 0)
    # By hand: each click after all before it.
    whole = pd.concat([clicks, asked]).sort_values(["user_id", "timestamp"], kind="stable")
    gains = []
    for _, rows_of in whole.groupby("user_id", sort=False):
        history = rows_of["item_id"].tolist()
        for place in range(1, len(history)):
            if rows_of["timestamp"].iloc[place] < asked["timestamp"].min():
                continue
            found = first.recommend(histories=[history[:place]])["item"].tolist()
            hit = history[place] in found
            gains.append(1 / np.log2(found.index(history[place]) + 2) if hit else 0.0)
    assert same.clicks == len(gains)
    assert same.metrics["ndcg@10"] == pytest.approx(np.mean(gains))
    # One that was trained on nonsense is worse, and the other way round it is better.
    shuffled = clicks.assign(item_id=np.random.default_rng(0).permutation(clicks["item_id"]))
    given = {"dim": 16, "epochs": 1, "neighbors": False, "item_embedding": "id"}
    af.fit(shuffled, items[:ITEMS], None, tmp_path / "bad", log=quiet, **given)
    asked.to_csv(tmp_path / "last.csv", index=False)
    command = ["check", str(tmp_path / "bad"), "--against", str(first.run.path)]
    command += ["--interactions", str(tmp_path / "last.csv")]
    assert main(command) == 1
    said = capsys.readouterr()
    assert "is worse than" in said.err
    assert "verdict: worse" in said.out
    assert main([*command, "--margin", "0.999"]) == 0
    bad, good = str(tmp_path / "bad"), str(first.run.path)
    assert main(["check", good, "--against", bad, *command[4:]]) == 0
    assert "verdict: not worse" in capsys.readouterr().out
    assert main([*command, "--margin", "2"]) == 2
    # Clicks that a run has are no test of it.
    with pytest.raises(ValueError, match="clicks that one of the runs has already"):
        check(first.run.path, first.run.path, clicks, log=quiet)
    both = check(first.run.path, first.run.path, pd.concat([clicks, asked]), log=lines.append)
    assert both.clicks == same.clicks
    assert f"interactions: {len(clicks):,} that one of the runs has already are left out" in lines


def test_new_items_in_a_check(first, shop, tmp_path):
    _, later, last, items, rows = shop
    fresh = items["item_id"][ITEMS:].tolist()
    taught = pd.concat([later, later.assign(item_id=fresh[0], timestamp=later["timestamp"] + 1)])
    af.refit(
        first.run.path,
        taught,
        items,
        rows,
        tmp_path / "new",
        any_embeddings=True,
        log=quiet,
        epochs=20,
    )
    found = check(tmp_path / "new", first.run.path, last, log=quiet)
    assert found.lists["new_items"] == NEW
    assert found.lists["new_items_recommended"] >= 1
    assert 0 < found.lists["lists_with_new_items"] <= found.lists["changed"]
    # Of the old run, whose catalog lacks them, targets among them are misses and not an error.
    assert found.clicks > 0
    strange = pd.concat([last, last[:1].assign(item_id="nowhere")])
    with pytest.raises(ValueError, match="items that the catalog lacks"):
        check(tmp_path / "new", first.run.path, strange, log=quiet)
    assert (
        check(tmp_path / "new", first.run.path, strange, unknown_items="drop", log=quiet).clicks
        == found.clicks
    )
