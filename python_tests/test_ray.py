"""Every user ranked by actors of a local Ray cluster: what one process gives."""

from __future__ import annotations

import shutil

import pandas as pd
import pytest
import torch

import alphafuse_ext as af

ray = pytest.importorskip("ray", reason="NO RAY: pip install '.[ray]'")
pytest.importorskip("ray.data")

from alphafuse_ext.integrations.ray import recommendation_dataset  # noqa: E402

pytestmark = pytest.mark.slow

RESOURCES = {"num_cpus": 0.5}


@pytest.fixture(scope="module")
def cluster():
    ray.shutdown()  # one that the code of a page has started
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    yield
    ray.shutdown()


def test_a_dataset(cluster, recommender):
    run = recommender.run.path
    found = recommendation_dataset(
        run, concurrency=2, users_at_once=10, resources=RESOURCES, k=3
    ).to_pandas()
    by_user = ["user", "rank"]
    expected = recommender.recommend(k=3).sort_values(by_user, ignore_index=True)
    pd.testing.assert_frame_equal(
        found.sort_values(by_user, ignore_index=True), expected, check_dtype=False
    )
    some = expected["user"].unique()[:3].tolist()
    found = recommendation_dataset(run, some, resources=RESOURCES, k=3).to_pandas()
    assert sorted(found["user"].unique()) == sorted(some)


def test_actors_of_another_model_are_refused(cluster, recommender, tmp_path):
    """Where the run's folder has changed between asking and use."""
    run = shutil.copytree(recommender.run.path, tmp_path / "run")
    asked = recommendation_dataset(run, resources=RESOURCES, k=3)
    best = af.Recommender.load(run)
    with torch.no_grad():
        best.model.position.weight += 1
    best.save(tmp_path / "changed")
    shutil.rmtree(run)
    (tmp_path / "changed").rename(run)
    with pytest.raises(ray.exceptions.RayError, match="which has changed since"):
        asked.to_pandas()


def test_bad_input(recommender, tmp_path):
    run = recommender.run.path
    with pytest.raises(ValueError, match="concurrency: got 0"):
        recommendation_dataset(run, concurrency=0)
    with pytest.raises(ValueError, match="users_at_once"):
        recommendation_dataset(run, users_at_once=0)
    with pytest.raises(ValueError, match="only: got a list for each user"):
        recommendation_dataset(run, only=[["i"]])
    with pytest.raises(FileNotFoundError, match="run"):
        recommendation_dataset(tmp_path / "none")
