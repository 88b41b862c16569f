"""What is exported, read by the software that it is for."""

from __future__ import annotations

import json
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.numpy import load_file

import alphafuse_ext as af
from alphafuse_ext.data import synthetic_catalog

K = 7


def trained(folder, **options) -> af.Recommender:
    clicks, items = synthetic_catalog(num_users=150, num_items=80, seed=2)
    settings = {"dim": 16, "epochs": 1, "history": 6, "encoder": "tfidf", **options}
    return af.fit(clicks, items, output=folder / "run", log=lambda _: None, **settings)


@pytest.fixture(scope="module")
def recommender(tmp_path_factory) -> af.Recommender:
    """With a retired item."""
    run = trained(tmp_path_factory.mktemp("runs"))
    return run.retire_items(run.items.tokens[[3]])


def histories(recommender, count=9) -> list[list]:
    sequences, items = recommender.interactions.sequences, recommender.items.tokens
    return [items[sequences[n][: 1 + n]].tolist() for n in range(count)]


def queries(recommender, count=9) -> np.ndarray:
    found = []
    for history in histories(recommender, count):
        ids = torch.from_numpy(recommender.interactions.item_index(history[-6:]))[None]
        with torch.inference_mode():
            found.append(recommender.model.encode(ids).numpy())
    return np.concatenate(found)


@pytest.mark.parametrize("cosine", [False, True])
@pytest.mark.parametrize("name", ["safetensors", "faiss", "usearch"])
def test_an_index_gives_the_recommendations(recommender, tmp_path, name, cosine):
    if cosine:
        recommender = trained(tmp_path, loss="infonce", negatives=8, ranking_similarity="cosine")
    folder = recommender.export(tmp_path / "out", to=[name])
    items = pd.read_parquet(folder / "items.parquet").set_index("id")
    asked = queries(recommender)
    if name == "safetensors":
        held = load_file(folder / "items.safetensors")
        best = (-(asked @ held["embeddings"].T)).argsort(axis=1, kind="stable")[:, :K]
        found = held["ids"][best]
    elif name == "faiss":
        faiss = pytest.importorskip("faiss")
        _, found = faiss.read_index(str(folder / "items.faiss")).search(asked, K)
    else:
        index = pytest.importorskip("usearch.index").Index.restore(folder / "items.usearch")
        found = index.search(asked, K, exact=True).keys
    expected = recommender.recommend(histories=histories(recommender), k=K, keep_seen=True)
    for number, ids in enumerate(found):
        mine = expected[expected["user"] == number]
        assert items.loc[ids.astype(np.int64), "item"].tolist() == mine["item"].tolist()
        assert items.loc[ids.astype(np.int64), "title"].tolist() == mine["title"].tolist()
    if recommender.items.retired is not None:
        assert 3 not in items.index


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"norm": "post", "embedding_norm": True, "heads": 2, "blocks": 2},
        {"norm": "query", "input_scale": 4.0, "zero_sink": False},
        {"block": "bsarec"},
        {"block": "ligr"},
        {"split": "learned"},
        {"item_embedding": "morec"},
    ],
    ids=str,
)
def test_the_encoder_runs_elsewhere(tmp_path, options):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    run = trained(tmp_path, **options)
    folder = run.export(tmp_path / "out", to="onnx")
    said = json.loads((folder / "export.json").read_text())
    session = onnxruntime.InferenceSession(folder / "encoder.onnx")
    for rows, length in ((1, 1), (2, 3), (5, 6), (9, 4)):
        ids = np.full((rows, length), said["padding_id"], dtype=np.int64)
        for row in range(rows):
            kept = 1 + row % length
            ids[row, :kept] = np.random.default_rng(row).integers(80, size=kept)
        (found,) = session.run(None, {"histories": ids})
        with torch.inference_mode():
            expected = run.model.encode(torch.from_numpy(ids)).numpy()
        np.testing.assert_allclose(found, expected, atol=1e-5)
    assert run.recommend(k=3)["score"].notna().all()  # the model is as it was


def test_refusals(recommender, tmp_path, monkeypatch):
    for to, fault in ((["parquet"], "to: got 'parquet'"), ([], "to: got"), (["faiss"] * 2, "to:")):
        with pytest.raises(ValueError, match=fault):
            recommender.export(tmp_path / "out", to=to)
    with pytest.raises(FileExistsError, match="output: got"):
        recommender.export(tmp_path)
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ImportError, match="to: got faiss, for which faiss cannot be imported"):
        recommender.export(tmp_path / "out", to=["faiss"])
    diffusion = trained(tmp_path, model="dreamrec", timesteps=4, stride=2)
    pytest.importorskip("onnxscript")
    with pytest.raises(NotImplementedError, match="to: got onnx, of DreamRec"):
        diffusion.export(tmp_path / "out", to=["onnx"])
    assert not (tmp_path / "out").exists()
