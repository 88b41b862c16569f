"""What is exported, read by the software that it is for."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.numpy import load_file

import alphafuse_ext as af
from alphafuse_ext.data import synthetic_catalog

pytestmark = pytest.mark.slow

K = 7


def trained(folder, **options) -> af.Recommender:
    clicks, items = synthetic_catalog(num_users=201, num_items=90, seed=2)
    settings = {"dim": 16, "epochs": 1, "history": 6, "encoder": "tfidf", **options}
    return af.fit(clicks, items, output=folder / "run", log=lambda _: None, **settings)


@pytest.fixture(scope="module")
def recommender(recommender) -> af.Recommender:
    """With a retired item."""
    return recommender.retire_items(recommender.items.tokens[[3]])


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
    assert items.index.tolist() == list(range(90))
    if recommender.items.retired is not None:
        assert items.index[items["retired"]].tolist() == [3]


def lists(folder, name, histories, exclude) -> list[list]:
    """What someone computes who has the files, their own software and nothing of ours."""
    onnxruntime = pytest.importorskip("onnxruntime")
    items = pd.read_parquet(folder / "items.parquet")
    said = json.loads((folder / "export.json").read_text())
    of = dict(zip(items["item"], items["id"], strict=True))
    longest = max(map(len, histories))
    ids = np.full((len(histories), longest), said["padding_id"], dtype=np.int64)
    for number, history in enumerate(histories):
        row = [of.get(item, -1) for item in history]
        start = number % (longest - len(row) + 1)  # padded on either side
        ids[number, start : start + len(row)] = row
    session = onnxruntime.InferenceSession(folder / "encoder.onnx")
    (asked,) = session.run(None, {"histories": ids})
    usable = ~np.isnan(asked).any(axis=1)
    count = K + longest
    if name == "safetensors":
        held = load_file(folder / "items.safetensors")
        best = (-(asked[usable] @ held["embeddings"].T)).argsort(axis=1, kind="stable")[:, :count]
        found = held["ids"][best]
    elif name == "faiss":
        faiss = pytest.importorskip("faiss")
        _, found = faiss.read_index(str(folder / "items.faiss")).search(asked[usable], count)
    else:
        index = pytest.importorskip("usearch.index").Index.restore(folder / "items.usearch")
        found = index.search(asked[usable], count, exact=True).keys.astype(np.int64)
    ranked = iter(found.tolist())
    tokens = items["item"].tolist()
    answers = []
    for number, history in enumerate(histories):
        names = [tokens[item] for item in next(ranked)] if usable[number] else []
        answers.append([one for one in names if not (exclude and one in history)][:K])
    return answers


@pytest.mark.parametrize("options", [{}, {"block": "bsarec"}, {"history": 1}], ids=str)
def test_the_files_alone_give_the_recommendations(tmp_path, options):
    """Of a catalog that has grown and shrunk, after histories of every kind."""
    pytest.importorskip("onnxscript")
    run = trained(tmp_path, **options)
    new = pd.DataFrame({"item_id": ["new-1", "new-2"], "title": ["one", "two"]})
    rows = np.random.default_rng(0).normal(size=(2, 90)).astype(np.float32)
    run = run.add_items(new, rows, any_embeddings=True)
    run = run.retire_items([*run.items.tokens[[3, 7, 20]], "new-2"])
    tokens = run.items.tokens.tolist()
    generator = np.random.default_rng(1)
    asked = [
        [tokens[item] for item in generator.integers(92, size=size)]
        for size in (1, 2, 5, 6, 7, 15, 3, 4)
    ]
    asked += [[tokens[3]], [tokens[5], tokens[7], tokens[3]], ["new-2"], ["new-1", tokens[9]]]
    asked += [["?", tokens[5], "?", tokens[6]], ["?"], [], [tokens[20]] * 7, [*tokens[10:16], "?"]]
    folder = run.export(tmp_path / "out", to=["safetensors", "faiss", "usearch", "onnx"])
    for keep_seen in (True, False):
        frame = run.recommend(histories=asked, k=K, keep_seen=keep_seen)
        frame = frame[frame["from"] == "model"]  # not what someone unknown gets
        expected = [frame["item"][frame["user"] == number].tolist() for number in range(len(asked))]
        assert [number for number, one in enumerate(expected) if not one] == [13, 14]
        for name in ("safetensors", "faiss", "usearch"):
            assert lists(folder, name, asked, exclude=not keep_seen) == expected, name


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"norm": "post", "embedding_norm": True, "heads": 2, "blocks": 2},
        {"norm": "query", "input_scale": 4.0, "zero_sink": False},
        {"block": "bsarec"},
        {"block": "ligr"},
        {"space_split": "learned"},
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
    (found,) = session.run(None, {"histories": np.zeros((4, 0), dtype=np.int64)})
    assert np.isnan(found).all()
    assert found.shape == (4, 16)
    for rows, length in ((1, 1), (2, 3), (5, 6), (9, 4)):
        ids = np.full((rows, length), said["padding_id"], dtype=np.int64)
        for row in range(rows):
            kept = 1 + row % length
            ids[row, :kept] = np.random.default_rng(row).integers(90, size=kept)
        (found,) = session.run(None, {"histories": ids})
        with torch.inference_mode():
            expected = run.model.encode(torch.from_numpy(ids)).numpy()
        np.testing.assert_allclose(found, expected, atol=1e-5)
    assert run.recommend(k=3)["score"].notna().all()  # the model is as it was


FULL = """
import resource, sys
from pathlib import Path
import numpy as np
from alphafuse_ext.serving import export

rows, ids = np.ones((3, 4), np.float32), np.arange(3)
resource.setrlimit(resource.RLIMIT_FSIZE, (50, 50))
for name, write in export._INDEXES.items():
    try:
        write(Path(sys.argv[1]) / f"items.{name}", rows, ids)
    except OSError as error:
        print(name, error.strerror)
"""


def test_an_index_on_a_full_disk_is_an_error(tmp_path):
    """Also one that ends within what is written when the file is closed."""
    for name in ("faiss", "usearch"):
        pytest.importorskip(name)
    command = [sys.executable, "-c", FULL, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    names = ("safetensors", "faiss", "usearch")
    assert done.stdout.splitlines() == [f"{name} File too large" for name in names]


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

    def fails(*_, **__):
        raise RuntimeError("Failed to export.\n" + "and why\n" * 130)

    monkeypatch.setattr(torch.onnx, "export", fails)
    with pytest.raises(NotImplementedError, match=r"to: got onnx, .*: Failed to export.; expected"):
        recommender.export(tmp_path / "out", to=["onnx"])
    assert not (tmp_path / "out").exists()
