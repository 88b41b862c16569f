"""Every user ranked by actors of a local Ray cluster: what one process gives."""

from __future__ import annotations

import shutil

import pandas as pd
import pytest
import torch

import alphafuse_ext as af

ray = pytest.importorskip("ray", reason="NO RAY: pip install '.[ray]'")
pytest.importorskip("ray.data")

from alphafuse_ext.integrations import ray as integration  # noqa: E402
from alphafuse_ext.integrations.ray import recommendation_dataset, write_recommendations  # noqa: E402

pytestmark = pytest.mark.slow

RESOURCES = {"num_cpus": 0.5}


@pytest.fixture(scope="module")
def cluster():
    ray.shutdown()  # one that the code of a page has started
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    yield
    ray.shutdown()


def test_parts(cluster, recommender, tmp_path):
    """By two actors, and again by none; a part that was lost is made again, alone."""
    output, run = tmp_path / "out", recommender.run.path
    written = write_recommendations(run, output, 5, concurrency=2, resources=RESOURCES, k=4)
    assert written == (804, 201)
    files = sorted(output.glob("part-*"))
    found = pd.concat(map(pd.read_parquet, files), ignore_index=True)
    pd.testing.assert_frame_equal(found, recommender.recommend(k=4))
    assert write_recommendations(run, output, 5, k=4) == (0, 0)
    before = files[0].stat().st_mtime_ns
    files[3].unlink()
    rows, users = write_recommendations(run, output, 5, resources=RESOURCES, k=4)
    assert (rows, users) == (4 * users, len(pd.read_parquet(files[3])["user"].unique()))
    assert files[0].stat().st_mtime_ns == before
    # The command goes on with them as well.
    from alphafuse_ext.serving.offline import Parts

    assert not Parts(recommender, output, 5, k=4).missing()


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
    """Where the run's folder has changed since its parts were begun, or between asking and use."""
    run = shutil.copytree(recommender.run.path, tmp_path / "run")
    write_recommendations(run, tmp_path / "out", 5, resources=RESOURCES, k=4)
    asked = recommendation_dataset(run, resources=RESOURCES, k=3)
    best = af.Recommender.load(run)
    with torch.no_grad():
        best.model.position.weight += 1
    best.save(tmp_path / "changed")
    shutil.rmtree(run)
    (tmp_path / "changed").rename(run)
    with pytest.raises(ValueError, match="whose parts are of other model"):
        write_recommendations(run, tmp_path / "out", 5, k=4)
    with pytest.raises(ray.exceptions.RayError, match="which has changed since"):
        asked.to_pandas()


def test_bad_input(recommender, tmp_path):
    run = recommender.run.path
    with pytest.raises(ValueError, match="concurrency: got 0"):
        write_recommendations(run, tmp_path / "out", 5, concurrency=0)
    with pytest.raises(ValueError, match="parts: got 202"):
        write_recommendations(run, tmp_path / "out", 202)
    with pytest.raises(ValueError, match="users_at_once"):
        recommendation_dataset(run, users_at_once=0)
    warned = pytest.warns(FutureWarning, match="recommendations is now recommendation_dataset")
    with warned, pytest.raises(ValueError, match="users_at_once"):
        integration.recommendations(run, users_at_once=0)
    warned = pytest.warns(FutureWarning, match="recommend_in_parts is now write_recommendations")
    with warned, pytest.raises(ValueError, match="parts: got 202"):
        integration.recommend_in_parts(run, tmp_path / "out", 202)
    with pytest.raises(ValueError, match="only: got a list for each user"):
        recommendation_dataset(run, only=[["i"]])
    with pytest.raises(FileNotFoundError, match="run"):
        recommendation_dataset(tmp_path / "none")
    assert not (tmp_path / "out").exists()
