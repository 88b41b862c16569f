"""Training as a whole: repeatable, resumable, and better than what it must beat."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import alphafuse_ext as af
from alphafuse_ext.data import Sequences, synthetic_catalog
from alphafuse_ext.training import trainer as training

SMALL = {"dim": 16, "epochs": 3, "negatives": 16, "history": 8, "dropout": 0.1}

# Three interactions of each user: after two are held out, nothing is left to predict.
SHORT = pd.DataFrame(
    {"user_id": np.repeat(np.arange(9), 3), "item_id": [f"item{n:05d}" for n in range(27)]}
)


def silent(_: str) -> None:
    pass


@pytest.fixture(scope="module")
def catalog() -> tuple[pd.DataFrame, pd.DataFrame]:
    return synthetic_catalog(num_users=300, num_items=120, seed=1)


@pytest.fixture(scope="module")
def embeddings(catalog) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(len(catalog[1]), 24)).astype(np.float32)


def fit(catalog, embeddings, output: Path, **options) -> af.Recommender:
    return af.fit(*catalog, embeddings, output, log=silent, **{**SMALL, **options})


def state(run: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(run / "last.safetensors")


def assert_same_run(first: Path, second: Path) -> None:
    one, other = state(first), state(second)
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name
    results = [json.loads((run / "results.json").read_text()) for run in (first, second)]
    for key in ("test", "validation", "best_epoch", "popularity"):
        assert results[0][key] == results[1][key]


@pytest.mark.parametrize("loss", ["cross_entropy", "sampled_softmax", "infonce", "bce"])
def test_same_seed_same_numbers(catalog, embeddings, tmp_path, loss):
    fit(catalog, embeddings, tmp_path / "a", loss=loss, epochs=2)
    torch.rand(3)  # what went before must not matter
    fit(catalog, embeddings, tmp_path / "b", loss=loss, epochs=2)
    assert_same_run(tmp_path / "a", tmp_path / "b")


def test_another_seed_other_numbers(catalog, embeddings, tmp_path):
    for seed in (0, 1):
        fit(catalog, embeddings, tmp_path / str(seed), seed=seed, epochs=1)
    one, other = state(tmp_path / "0"), state(tmp_path / "1")
    assert not torch.equal(one["model.norm.weight"], other["model.norm.weight"])


@pytest.mark.parametrize("sparse", [False, True])
def test_a_resumed_run_is_the_uninterrupted_run(catalog, embeddings, tmp_path, sparse, monkeypatch):
    fit(catalog, embeddings, tmp_path / "whole", sparse=sparse)
    loss, calls = training.next_item_loss, []

    def interrupt(*arguments):
        calls.append(1)
        if len(calls) == 5:  # in the second epoch: an epoch has three batches
            raise KeyboardInterrupt
        return loss(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(training, "next_item_loss", interrupt)
        with pytest.raises(KeyboardInterrupt):
            fit(catalog, embeddings, tmp_path / "cut", sparse=sparse)
    assert len(af.RunFolder(tmp_path / "cut").epochs()) == 1
    usable = af.Recommender.load(tmp_path / "cut").recommend(k=3)
    assert usable["user"].nunique() == 300
    af.resume(tmp_path / "cut", log=silent)
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


def test_a_run_that_ended_is_not_resumed(catalog, embeddings, tmp_path):
    fit(catalog, embeddings, tmp_path / "run", epochs=1)
    with pytest.raises(ValueError, match=r"^resume: got"):
        af.resume(tmp_path / "run", log=silent)


@pytest.mark.parametrize(
    "options",
    [
        {"item_embedding": "id"},
        {"item_embedding": "llminit"},
        {"item_embedding": "frozen"},
        {"fusion": "concat", "null_dim": 6, "standardize": False},
        {"null_dim": 16},
        {"null_dim": None, "null_threshold": 1.0, "dim": 24, "semantic_rms": 0.0},
        {"coordinates": "original"},
        {"coordinates": "projected"},
        {"weights": "frequency"},
        {"targets": "last", "epochs": 1},
        {"blocks": 2, "heads": 2, "zero_sink": False},
        {"negatives_per": "batch", "sparse": True},
        {"keep_seen": True},
    ],
    ids=str,
)
def test_every_kind_of_run(catalog, embeddings, tmp_path, options):
    recommender = fit(catalog, embeddings, tmp_path / "run", **options)
    results = recommender.run.results()
    assert all(math.isfinite(value) for value in results["test"].values())
    losses = [line["loss"] for line in recommender.run.epochs()]
    assert min(losses) < losses[0] or len(losses) == 1
    again = af.Recommender.load(tmp_path / "run")
    assert again.evaluate("test") == results["test"]
    pd.testing.assert_frame_equal(again.recommend(k=4), recommender.recommend(k=4))


def test_the_run_folder(catalog, embeddings, tmp_path):
    fit(catalog, embeddings, tmp_path / "run", epochs=2)
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert {
        "config.json", "metrics.jsonl", "results.json", "best.safetensors", "last.safetensors",
        "frozen.safetensors", "spectrum.png", "curves.png", "items.parquet",
        "interactions.parquet",
    } <= names  # fmt: skip
    assert any(name.startswith("events.out.tfevents") for name in names)
    assert not any(".tmp" in name for name in names)
    description = json.loads((tmp_path / "run" / "config.json").read_text())
    assert description["config"]["dim"] == 16
    assert description["config"]["null_dim"] == 15
    assert description["data"]["users"] == 300
    assert description["environment"]["torch"] == torch.__version__


def test_the_selected_epoch_is_the_best(catalog, embeddings, tmp_path):
    recommender = fit(catalog, embeddings, tmp_path / "run", epochs=8, patience=2)
    lines, results = recommender.run.epochs(), recommender.run.results()
    values = [line["validation"]["ndcg@20"] for line in lines]
    assert results["best_epoch"] == 1 + int(np.argmax(values))
    assert results["validation"]["ndcg@20"] == max(values)
    assert len(lines) == min(8, results["best_epoch"] + 2)
    assert recommender.evaluate("validation") == results["validation"]


def test_training_rows():
    train = Sequences.from_lists([np.arange(5), np.array([7]), np.array([8, 9])])
    rows = training.training_rows(train, 3, "all")
    assert [row.tolist() for row in rows] == [[1, 2, 3, 4], [8, 9]]
    rows = training.training_rows(train, 3, "last")
    assert [row.tolist() for row in rows] == [
        [0, 1], [0, 1, 2], [0, 1, 2, 3], [1, 2, 3, 4], [8, 9],
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("argument", "change"),
    [
        ("embeddings", {"embeddings": np.ones((3, 24), np.float32)}),
        ("embeddings", {"embeddings": None, "items": None}),
        ("null_dim", {"null_dim": 17}),
        ("dim", {"dim": 25}),
        ("language_embeddings", {"embeddings": np.full((120, 24), np.nan, np.float32)}),
        ("interactions", {"interactions": SHORT}),
        ("time_column", {"time_column": "when"}),
        ("device", {"device": "cuda"}),
    ],
)
def test_bad_input_leaves_nothing_behind(catalog, embeddings, tmp_path, argument, change):
    if argument == "device" and torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    arguments = {"interactions": catalog[0], "items": catalog[1], "embeddings": embeddings}
    with pytest.raises(ValueError, match=f"{argument}: got"):
        af.fit(**{**arguments, **SMALL, **change}, output=tmp_path / "run", log=silent)
    assert not (tmp_path / "run").exists()


def test_an_existing_folder_is_left_alone(catalog, embeddings, tmp_path):
    (tmp_path / "run").mkdir()
    with pytest.raises(FileExistsError, match=r"^output: got"):
        fit(catalog, embeddings, tmp_path / "run")
    assert list((tmp_path / "run").iterdir()) == []


def test_half_a_checkpoint_is_refused(catalog, embeddings, tmp_path):
    fit(catalog, embeddings, tmp_path / "run", epochs=1)
    best = tmp_path / "run" / "best.safetensors"
    best.write_bytes(best.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"best\.safetensors"):
        af.Recommender.load(tmp_path / "run")


@pytest.mark.data
@pytest.mark.slow
def test_real_data_beats_popularity_and_id_only(tmp_path):
    """amazon-industrial, one seed, a few epochs."""
    if "ALPHAFUSE_DATA" not in os.environ:
        pytest.skip("ALPHAFUSE_DATA does not name the folder of the real data sets")
    folder = Path(os.environ["ALPHAFUSE_DATA"]) / "amazon-industrial"
    results = {}
    for item_embedding in ("alphafuse", "id"):
        recommender = af.fit(
            folder / "amazon-industrial.inter",
            folder / "amazon-industrial.item",
            folder / "minilm-l6.npy",
            tmp_path / item_embedding,
            item_embedding=item_embedding,
            epochs=12,
            patience=12,
        )
        results[item_embedding] = recommender.run.results()
    found = {name: result["test"]["ndcg@10"] for name, result in results.items()}
    found["popularity"] = results["id"]["popularity"]["ndcg@10"]
    assert found["alphafuse"] > found["popularity"], found
    assert found["alphafuse"] > found["id"], found
