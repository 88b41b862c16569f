"""Every user ranked by actors of a local Ray cluster: what one process gives."""

from __future__ import annotations

import shutil

import pandas as pd
import pytest
import torch

import alphafuse_ext as af

ray = pytest.importorskip("ray", reason="NO RAY: pip install '.[ray]'")
pytest.importorskip("ray.data")

from alphafuse_ext.integrations.ray import recommend_in_parts, recommendations  # noqa: E402

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
    assert recommend_in_parts(run, output, 5, concurrency=2, resources=RESOURCES, k=4) == (804, 201)
    files = sorted(output.glob("part-*"))
    found = pd.concat(map(pd.read_parquet, files), ignore_index=True)
    pd.testing.assert_frame_equal(found, recommender.recommend(k=4))
    assert recommend_in_parts(run, output, 5, k=4) == (0, 0)
    before = files[0].stat().st_mtime_ns
    files[3].unlink()
    rows, users = recommend_in_parts(run, output, 5, resources=RESOURCES, k=4)
    assert (rows, users) == (4 * users, len(pd.read_parquet(files[3])["user"].unique()))
    assert files[0].stat().st_mtime_ns == before
    # The command goes on with them as well.
    from alphafuse_ext.training.offline import Parts

    assert not Parts(recommender, output, 5, k=4).missing()


def test_a_dataset(cluster, recommender):
    run = recommender.run.path
    found = recommendations(
        run, concurrency=2, users_at_once=10, resources=RESOURCES, k=3
    ).to_pandas()
    by_user = ["user", "rank"]
    expected = recommender.recommend(k=3).sort_values(by_user, ignore_index=True)
    pd.testing.assert_frame_equal(
        found.sort_values(by_user, ignore_index=True), expected, check_dtype=False
    )
    some = expected["user"].unique()[:3].tolist()
    found = recommendations(run, some, resources=RESOURCES, k=3).to_pandas()
    assert sorted(found["user"].unique()) == sorted(some)


def test_actors_of_another_model_are_refused(cluster, recommender, tmp_path):
    """Where the run's folder has changed since its parts were begun, or between asking and use."""
    run = shutil.copytree(recommender.run.path, tmp_path / "run")
    recommend_in_parts(run, tmp_path / "out", 5, resources=RESOURCES, k=4)
    asked = recommendations(run, resources=RESOURCES, k=3)
    best = af.Recommender.load(run)
    with torch.no_grad():
        best.model.position.weight += 1
    best.save(tmp_path / "changed")
    shutil.rmtree(run)
    (tmp_path / "changed").rename(run)
    with pytest.raises(ValueError, match="whose parts are of other model"):
        recommend_in_parts(run, tmp_path / "out", 5, k=4)
    with pytest.raises(ray.exceptions.RayError, match="which has changed since"):
        asked.to_pandas()


def test_bad_input(recommender, tmp_path):
    run = recommender.run.path
    with pytest.raises(ValueError, match="concurrency: got 0"):
        recommend_in_parts(run, tmp_path / "out", 5, concurrency=0)
    with pytest.raises(ValueError, match="parts: got 202"):
        recommend_in_parts(run, tmp_path / "out", 202)
    with pytest.raises(ValueError, match="users_at_once"):
        recommendations(run, users_at_once=0)
    with pytest.raises(ValueError, match="only: got a list for each user"):
        recommendations(run, only=[["i"]])
    with pytest.raises(FileNotFoundError, match="run"):
        recommendations(tmp_path / "none")
    assert not (tmp_path / "out").exists()
