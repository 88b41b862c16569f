"""Saving for the Hugging Face hub, and back, in local folders."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

import alphafuse_ext as af
from alphafuse_ext.data import synthetic_catalog

pytest.importorskip("huggingface_hub", reason="NO HUGGINGFACE_HUB: pip install '.[hub]'")

from alphafuse_ext.integrations.hub import HubRecommender
from alphafuse_ext.reports.run import write_run_report


def test_round_trip_without_users(recommender, tmp_path):
    """The same lists for histories and items; nobody's interactions in any file."""
    HubRecommender(recommender).save_pretrained(tmp_path / "repo")
    again = HubRecommender.from_pretrained(tmp_path / "repo").recommender
    history = [list(recommender.items.tokens[[3, 1]])]
    one, other = (each.recommend(histories=history, k=5) for each in (recommender, again))
    pd.testing.assert_frame_equal(one, other)
    wanted = [recommender.items.tokens[7]]
    one, other = (each.recommend_to_items(wanted, k=5) for each in (recommender, again))
    pd.testing.assert_frame_equal(one, other)
    assert again.interactions.num_users == 0
    page = write_run_report(again, tmp_path / "page.html").read_text()
    assert "Nearest items" in page
    rows = np.random.default_rng(0).normal(size=(len(again.items), 16)).astype(np.float32)
    assert again.upgrade_embeddings(rows).report["users"] == 0
    width = recommender.source()["embeddings"]["shape"][1]
    new = pd.DataFrame({"item_id": ["new"], "title": ["A new thing"]})
    vector = np.random.default_rng(0).normal(size=(1, width)).astype(np.float32)
    grown = again.add_items(new, vector, any_embeddings=True)
    assert len(grown.recommend(histories=history, k=91 - 2)) == 91 - 2
    user = str(recommender.interactions.users[0])
    for path in (tmp_path / "repo").rglob("*.parquet"):
        for column in pd.read_parquet(path).astype(str):
            assert user not in pd.read_parquet(path)[column].astype(str).tolist()
    with pytest.warns(UserWarning, match="unknown users"):
        assert len(again.recommend([user], k=5)) == 0
    assert json.loads((tmp_path / "repo" / "config.json").read_text())["null_dim"] == 12
    assert "alphafuse" in (tmp_path / "repo" / "README.md").read_text()


def test_with_users(recommender, tmp_path):
    HubRecommender(recommender, with_interactions=True).save_pretrained(tmp_path / "repo")
    again = HubRecommender.from_pretrained(tmp_path / "repo")
    assert again.with_interactions
    pd.testing.assert_frame_equal(recommender.recommend(k=3), again.recommender.recommend(k=3))


def test_refusals(recommender, tmp_path):
    HubRecommender(recommender).save_pretrained(tmp_path / "repo")
    with pytest.raises(FileExistsError, match="save_directory"):
        HubRecommender(recommender).save_pretrained(tmp_path / "repo")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="'run'"):
        HubRecommender.from_pretrained(tmp_path / "empty")
    other = recommender.interactions
    fewer = type(other)(other.users, np.arange(len(other.items)), other.sequences)
    with pytest.raises(ValueError, match="interactions"):
        recommender.with_interactions(fewer)


@pytest.mark.parametrize("made_with", [False, True])
@pytest.mark.parametrize("asked", [None, False, True])
def test_interactions_where_they_are_asked_for(recommender, tmp_path, made_with, asked):
    """Of `save_pretrained`, which comes before what the recommender was made with."""
    given = {} if asked is None else {"with_interactions": asked}
    HubRecommender(recommender, made_with).save_pretrained(tmp_path / "repo", **given)
    again = HubRecommender.from_pretrained(tmp_path / "repo").recommender
    wanted = made_with if asked is None else asked
    assert again.interactions.num_users == (recommender.interactions.num_users if wanted else 0)


def test_unknown_options(recommender, tmp_path):
    with pytest.raises(TypeError, match="with_interaction: got an unknown option"):
        HubRecommender(recommender).save_pretrained(tmp_path / "repo", with_interaction=True)
    with pytest.raises(TypeError, match="with_interactions: got 'yes'"):
        HubRecommender(recommender).save_pretrained(tmp_path / "repo", with_interactions="yes")
    assert not (tmp_path / "repo").exists()


def test_uploads_have_no_paths_and_no_users(tmp_path):
    """Uploads, exports and pages; the run's own folder keeps where its files lay."""
    clicks, items = synthetic_catalog(num_users=60, num_items=50, seed=1)
    clicks["user_id"] = [f"someone-{user}" for user in clicks["user_id"]]
    home = tmp_path / "home-of-someone"
    home.mkdir()
    clicks.to_csv(home / "clicks.csv", index=False)
    items.to_csv(home / "items.csv", index=False)
    np.save(home / "rows.npy", np.random.default_rng(0).normal(size=(50, 16)).astype(np.float32))
    files = [home / name for name in ("clicks.csv", "items.csv", "rows.npy")]
    small = {"dim": 8, "null_dim": 4, "epochs": 1}
    run = af.fit(*files, home / "run", log=lambda _: None, **small)
    run = run.retire_items(run.items.tokens[:1]).save(home / "changed")
    out = tmp_path / "out"
    HubRecommender(run).save_pretrained(out / "repo")
    run.export(out / "exported")
    write_run_report(run, out / "page.html")
    written = [path for path in out.rglob("*") if path.is_file()]
    assert len(written) >= 8
    for path in written:
        assert b"someone" not in path.read_bytes(), path
    source = HubRecommender.from_pretrained(out / "repo").recommender.source()
    assert source["interactions"] == "clicks.csv"
    assert source["embeddings"]["from"] == "rows.npy"
    assert run.source()["interactions"] == str(home / "clicks.csv")
