"""Every user ranked into parts: by one process, by several, and after an interruption."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch

import alphafuse_ext as af
from alphafuse_ext.cli import main
from alphafuse_ext.serving import offline
from alphafuse_ext.serving.offline import Parts, digests, write_recommendations


def read(folder) -> pd.DataFrame:
    return pd.concat(map(pd.read_parquet, sorted(folder.glob("part-*"))), ignore_index=True)


def test_parts_are_the_whole(recommender, tmp_path):
    """The same rows in the same order, whoever wrote them."""
    expected = recommender.recommend(k=4)
    assert write_recommendations(recommender, tmp_path / "one", 5, k=4) == (4 * 201, 201)
    pd.testing.assert_frame_equal(read(tmp_path / "one"), expected)
    two = tmp_path / "two"
    served = [write_recommendations(recommender, two, 5, rank, 2, k=4) for rank in (1, 0)]
    assert sum(users for _, users in served) == 201
    pd.testing.assert_frame_equal(read(tmp_path / "two"), expected)


def test_finished_parts_are_passed_over(recommender, tmp_path, monkeypatch):
    """After a kill in the second part, the same call writes what is missing and nothing else."""
    whole, calls = af.Recommender.recommend_in_batches, []

    def killed(self, *arguments, **options):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return whole(self, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(af.Recommender, "recommend_in_batches", killed)
        with pytest.raises(KeyboardInterrupt):
            write_recommendations(recommender, tmp_path / "out", 4, k=3)
    assert len(list((tmp_path / "out").glob("part-*"))) == 1
    first = (tmp_path / "out" / "part-00000.parquet").stat().st_mtime_ns
    assert write_recommendations(recommender, tmp_path / "out", 4, k=3)[1] == 201 - 201 // 4
    assert (tmp_path / "out" / "part-00000.parquet").stat().st_mtime_ns == first
    pd.testing.assert_frame_equal(read(tmp_path / "out"), recommender.recommend(k=3))
    assert write_recommendations(recommender, tmp_path / "out", 4, k=3) == (0, 0)


def other_tensors(recommender):
    """The same run, as if trained anew in the same folder."""
    other = af.Recommender.load(recommender.run.path)
    with torch.no_grad():
        other.model.position.weight[0, 0] += 1
    return other


def other_titles(recommender):
    other = af.Recommender.load(recommender.run.path)
    other.items.titles[7] += "!"
    return other


def other_history(recommender):
    clicks = recommender.interactions
    values = clicks.sequences.values.copy()
    values[0] = (values[0] + 1) % 90
    sequences = type(clicks.sequences)(clicks.sequences.offsets, values)
    return recommender.with_interactions(type(clicks)(clicks.users, clicks.items, sequences, None))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (other_tensors, "other model"),
        (lambda one: one.retire_items(one.items.tokens[[3]]), "other catalog"),
        (other_titles, "other catalog"),
        (other_history, "other histories"),
    ],
)
def test_parts_of_another_model_are_never_mixed(recommender, tmp_path, change, said):
    """Though it bears the name of the same run folder."""
    Parts(recommender, tmp_path / "out", 4, k=3).write(0)
    with pytest.raises(ValueError, match=f"output: got .*, whose parts are of {said}; expected"):
        write_recommendations(change(recommender), tmp_path / "out", 4, k=3)
    assert [path.name for path in (tmp_path / "out").glob("part-*")] == ["part-00000.parquet"]


def test_parts_know_a_run_by_what_it_holds(recommender, tmp_path):
    """A copy elsewhere goes on; defaults that are written out, and items in any order, as well."""
    Parts(recommender, tmp_path / "out", 4).write(0)
    shutil.copytree(recommender.run.path, tmp_path / "copy")
    copy = af.Recommender.load(tmp_path / "copy")
    assert Parts(copy, tmp_path / "out", 4, k=10, keep_seen=False).missing() == [1, 2, 3]
    some = recommender.items.tokens[[5, 1, 8]]
    Parts(recommender, tmp_path / "some", 4, k=2, only=some.tolist()).write(0)
    again = Parts(
        recommender, tmp_path / "some", 4, k=2, only=iter(some[[2, 0, 1, 0]]), strict=True
    )
    assert again.missing() == [1, 2, 3]
    assert again.write(1)[1] == again.write(2)[1] == 50  # an iterator is not used up
    for options, said in (
        ({"k": 2}, "other only"),
        ({"k": 3, "only": some}, "k 2"),
        ({"k": 2, "only": some[:2]}, "other only"),
        ({"k": 2, "only": some, "keep_seen": True}, "keep_seen False"),
        ({"k": 2, "only": some, "batch_size": 7}, "batch_size 512"),
        ({"k": 2, "only": some, "columns": "rectools"}, "columns plain"),
        ({"k": 2, "exclude": some}, "other only"),
    ):
        with pytest.raises(ValueError, match=f"whose parts are of {said}; expected a new folder"):
            Parts(recommender, tmp_path / "some", 4, **options)


def test_parts_with_columns_of_rectools(recommender, tmp_path):
    """And a folder that was begun before there was a choice goes on with plain ones."""
    options = {"k": 3, "columns": "rectools"}
    assert write_recommendations(recommender, tmp_path / "out", 4, **options)[1] == 201
    pd.testing.assert_frame_equal(read(tmp_path / "out"), recommender.recommend(**options))
    Parts(recommender, tmp_path / "old", 4, k=3).write(0)
    settings = tmp_path / "old" / "parts.json"
    recorded = json.loads(settings.read_text())
    assert recorded.pop("columns") == "plain"
    settings.write_text(json.dumps(recorded))
    assert Parts(recommender, tmp_path / "old", 4, k=3).missing() == [1, 2, 3]
    with pytest.raises(ValueError, match="whose parts are of columns plain"):
        Parts(recommender, tmp_path / "old", 4, **options)


def test_digests_tell_ids_apart(recommender):
    """Where their letters run on, and where only their types differ."""
    found = set()
    for users in (["ab", "c"], ["a", "bc"], ["abc", ""], [1, 2], [1.0, 2.0], ["1", "2"]):
        clicks = af.Recommender.load(recommender.run.path).interactions
        rows = clicks.sequences.select(np.array([0, 1]))
        kinds = {str: object}.get(type(users[0]), type(users[0]))
        other = type(clicks)(np.array(users, dtype=kinds), clicks.items, rows, None)
        found.add(digests(recommender.with_interactions(other))["histories"])
    assert len(found) == 6


@pytest.mark.parametrize("said", ["{}", "[]", "null", "old"])
def test_a_folder_that_does_not_say_of_what_model_is_refused(recommender, tmp_path, said):
    """As parts.json of earlier versions, which named the run's path."""
    (tmp_path / "out").mkdir()
    old = {
        "run": str(recommender.run.path),
        "users": 201,
        "items": 90,
        "parts": 4,
        "options": {"k": 3},
    }
    (tmp_path / "out" / "parts.json").write_text(json.dumps(old) if said == "old" else said)
    with pytest.raises(ValueError, match="does not say what model its parts are of; expected"):
        write_recommendations(recommender, tmp_path / "out", 4, k=3)


def test_of_two_models_that_come_at_once_one_goes_on(recommender, tmp_path, monkeypatch):
    """Both find no parts.json; the second's does not take the place of the first's."""

    write = offline.write_json

    def late(path, value, **options):
        monkeypatch.setattr(offline, "write_json", write)
        Parts(recommender, tmp_path / "out", 4, k=3)
        write(path, value, **options)

    monkeypatch.setattr(offline, "write_json", late)
    with pytest.raises(ValueError, match="other model"):
        Parts(other_tensors(recommender), tmp_path / "out", 4, k=3)
    assert Parts(recommender, tmp_path / "out", 4, k=3).missing() == [0, 1, 2, 3]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["parts.json"]


def test_refusals(recommender, tmp_path, capsys):
    write_recommendations(recommender, tmp_path / "out", 4, k=3)
    with pytest.raises(ValueError, match="output"):
        write_recommendations(recommender, tmp_path / "out", 4, k=5)
    for arguments, named in (((0,), "parts"), ((202,), "parts"), ((4, 2, 2), "rank")):
        with pytest.raises(ValueError, match=named):
            write_recommendations(recommender, tmp_path / "other", *arguments, k=3)
    for options, named in (
        ({"k": 91}, "k: got 91"),
        ({"k": 3, "only": [["i"]] * 201}, "only: got"),
    ):
        with pytest.raises(ValueError, match=named):
            write_recommendations(recommender, tmp_path / "other", 4, **options)
    assert not (tmp_path / "other").exists()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("dear")
    with pytest.raises(FileExistsError, match="output"):
        write_recommendations(recommender, tmp_path / "full", 4, k=3)
    run = str(recommender.run.path)
    assert main(["recommend", run, "--parts", "2"]) == 2
    assert main(["recommend", run, "--parts", "2", "--output", "x", "--users", "u"]) == 2
    assert "--users" in capsys.readouterr().err


@pytest.mark.slow
def test_under_torchrun(recommender, tmp_path):
    """Each process writes its share, by the command."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command += ["-m", "alphafuse_ext", "recommend", str(recommender.run.path), "--k", "3"]
    command += ["--parts", "3", "--output", str(tmp_path / "out")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert "rank 0 of 2" in done.stdout
    assert "rank 1 of 2" in done.stdout
    pd.testing.assert_frame_equal(read(tmp_path / "out"), recommender.recommend(k=3))
