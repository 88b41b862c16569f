"""Every user ranked into parts: by one process, by several, and after an interruption."""

from __future__ import annotations

import os
import subprocess
import sys

import pandas as pd
import pytest

import alphafuse_ext as af
from alphafuse_ext.cli import main
from alphafuse_ext.data import synthetic_catalog
from alphafuse_ext.training.offline import recommend_in_parts


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    clicks, items = synthetic_catalog(num_users=61, num_items=50, seed=1)
    folder = tmp_path_factory.mktemp("offline") / "run"
    small = {"item_embedding": "id", "dim": 8, "epochs": 1}
    return af.fit(clicks, items, None, folder, log=lambda _: None, **small)


def read(folder) -> pd.DataFrame:
    return pd.concat(map(pd.read_parquet, sorted(folder.glob("part-*"))), ignore_index=True)


def test_parts_are_the_whole(trained, tmp_path):
    """The same rows in the same order, whoever wrote them."""
    expected = trained.recommend(k=4)
    assert recommend_in_parts(trained, tmp_path / "one", 5, k=4) == (4 * 61, 61)
    pd.testing.assert_frame_equal(read(tmp_path / "one"), expected)
    served = [recommend_in_parts(trained, tmp_path / "two", 5, rank, 2, k=4) for rank in (1, 0)]
    assert sum(users for _, users in served) == 61
    pd.testing.assert_frame_equal(read(tmp_path / "two"), expected)


def test_finished_parts_are_passed_over(trained, tmp_path, monkeypatch):
    """After a kill in the second part, the same call writes what is missing and nothing else."""
    whole, calls = af.Recommender.recommendations, []

    def killed(self, *arguments, **options):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return whole(self, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(af.Recommender, "recommendations", killed)
        with pytest.raises(KeyboardInterrupt):
            recommend_in_parts(trained, tmp_path / "out", 4, k=3)
    assert len(list((tmp_path / "out").glob("part-*"))) == 1
    first = (tmp_path / "out" / "part-00000.parquet").stat().st_mtime_ns
    assert recommend_in_parts(trained, tmp_path / "out", 4, k=3)[1] == 61 - 61 // 4
    assert (tmp_path / "out" / "part-00000.parquet").stat().st_mtime_ns == first
    pd.testing.assert_frame_equal(read(tmp_path / "out"), trained.recommend(k=3))
    assert recommend_in_parts(trained, tmp_path / "out", 4, k=3) == (0, 0)


def test_refusals(trained, tmp_path, capsys):
    recommend_in_parts(trained, tmp_path / "out", 4, k=3)
    with pytest.raises(ValueError, match="output"):
        recommend_in_parts(trained, tmp_path / "out", 4, k=5)
    for arguments, named in (((0,), "parts"), ((62,), "parts"), ((4, 2, 2), "rank")):
        with pytest.raises(ValueError, match=named):
            recommend_in_parts(trained, tmp_path / "other", *arguments, k=3)
    assert not (tmp_path / "other").exists()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("dear")
    with pytest.raises(FileExistsError, match="output"):
        recommend_in_parts(trained, tmp_path / "full", 4, k=3)
    run = str(trained.run.path)
    assert main(["recommend", run, "--parts", "2"]) == 2
    assert main(["recommend", run, "--parts", "2", "--output", "x", "--users", "u"]) == 2
    assert "--users" in capsys.readouterr().err


def test_under_torchrun(trained, tmp_path):
    """Each process writes its share, by the command."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command += ["-m", "alphafuse_ext", "recommend", str(trained.run.path), "--k", "3"]
    command += ["--parts", "3", "--output", str(tmp_path / "out")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert "rank 0 of 2" in done.stdout
    assert "rank 1 of 2" in done.stdout
    pd.testing.assert_frame_equal(read(tmp_path / "out"), trained.recommend(k=3))
