"""Neighbors in language: who they are, and what a loss makes of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import alphafuse_ext as af
from alphafuse_ext import ItemTable
from alphafuse_ext.data import synthetic_catalog
from alphafuse_ext.files import UnreadableFileError
from alphafuse_ext.items import neighbors as module
from alphafuse_ext.items.neighbors import NEIGHBORS, TEMPERATURE, Neighbors
from alphafuse_ext.models import SASRec
from alphafuse_ext.models.losses import next_item_loss


def embeddings(num_items: int, width: int = 12) -> np.ndarray:
    rows = np.random.default_rng(0).standard_normal((num_items, width)) + 3.0
    rows[[4, 9]] = 0.0  # without text
    return rows.astype(np.float32)


@pytest.mark.parametrize("count", [1, 5, 60])
def test_they_are_the_nearest_by_cosine_about_the_mean(count, monkeypatch):
    monkeypatch.setattr(module, "_CHUNK", 7)
    rows = embeddings(40)
    found = Neighbors.of(rows, count)
    known = rows.any(1)
    centered = torch.from_numpy(rows - rows[known].mean(0)).double()
    cosines = F.normalize(centered, dim=1) @ F.normalize(centered, dim=1).T
    cosines[:, ~known] = -torch.inf
    cosines.fill_diagonal_(-torch.inf)
    kept = min(count, int(known.sum()) - 1)
    for item in range(40):
        if not known[item]:
            assert not found.weights[item].any()
            continue
        values, ids = cosines[item].topk(kept)
        assert found.ids[item, :kept].tolist() == ids.tolist()
        expected = (values / TEMPERATURE).softmax(0).float()
        torch.testing.assert_close(found.weights[item, :kept], expected, rtol=1e-3, atol=1e-6)
        assert not found.weights[item, kept:].any()


def test_few_items():
    assert not Neighbors.of(np.ones((1, 4), np.float32)).weights.any()
    assert not Neighbors.of(np.zeros((5, 4), np.float32)).weights.any()
    two = Neighbors.of(np.eye(2, 4, dtype=np.float32))
    assert two.ids[:, 0].tolist() == [1, 0]
    assert two.weights.sum(1).tolist() == [1.0, 1.0]


def test_files(tmp_path):
    found = Neighbors.of(embeddings(20))
    found.save(tmp_path / "neighbors")
    for one, other in zip(found, Neighbors.load(tmp_path / "neighbors"), strict=True):
        assert torch.equal(one, other)
    grown = found.extended(23)
    assert torch.equal(grown.ids[:20], found.ids)
    assert not grown.weights[20:].any()
    assert len(grown.ids) == 23
    with pytest.raises(FileNotFoundError):
        Neighbors.load(tmp_path / "none")
    (tmp_path / "damaged.safetensors").write_bytes(b"no")
    with pytest.raises(UnreadableFileError):
        Neighbors.load(tmp_path / "damaged")


@pytest.mark.parametrize("temperature", [1.0, 0.4])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_the_loss_is_cross_entropy_with_shared_targets(temperature, label_smoothing):
    """Against torch's own, of targets that are probabilities."""
    num_items, share = 30, 0.3
    found = Neighbors.of(embeddings(num_items))
    table = ItemTable.id_only(num_items, 6, init="normal")
    hidden = torch.randn(4, 5, 6, requires_grad=True)
    targets = torch.randint(num_items + 1, (4, 5))
    targets[0, :2] = torch.tensor([4, num_items])  # one without text, and no target
    value = next_item_loss(
        table,
        hidden,
        targets,
        temperature=temperature,
        label_smoothing=label_smoothing,
        language_smoothing=share,
        neighbors=found,
    )
    has_target = targets != num_items
    wanted = targets[has_target]
    own = F.one_hot(wanted, num_items).double()
    shared = torch.zeros_like(own).scatter_add_(
        1, found.ids[wanted], found.weights[wanted].double()
    )
    kept = 1 - share * shared.sum(1, keepdim=True) - label_smoothing
    probabilities = kept * own + share * shared + label_smoothing / num_items
    logits = hidden[has_target].double() @ table.id_embeddings.double().T / temperature
    expected = F.cross_entropy(logits, probabilities, reduction="sum")
    torch.testing.assert_close(value.double(), expected, rtol=2e-5, atol=1e-4)
    inputs = (hidden, table.id_embeddings)
    gradients = torch.autograd.grad(value, inputs)
    for gradient, reference in zip(gradients, torch.autograd.grad(expected, inputs), strict=True):
        torch.testing.assert_close(gradient, reference, rtol=2e-4, atol=2e-4)


def test_a_model_without_them_ranks_and_does_not_train():
    model = SASRec(ItemTable.id_only(10, 4), history=3, language_smoothing=0.2)
    ids = torch.tensor([[1, 2, 3]])
    assert model.encode(ids).shape == (1, 4)
    with pytest.raises(ValueError, match=r"^neighbors: got None; expected the items'"):
        model.loss(ids, ids)


@pytest.mark.parametrize("item_embedding", ["alphafuse", "id", "llminit"])
def test_runs(item_embedding, tmp_path):
    """They train by their language, go on, and leave it to others that do not ask for it."""
    clicks, items = synthetic_catalog(num_users=80, num_items=48, seed=3)
    options = {"item_embedding": item_embedding, "dim": 8, "epochs": 2, "seed": 1}
    losses, lines = {}, []
    for share in (0.0, 0.3):
        run = af.fit(
            clicks,
            items,
            embeddings(48),
            tmp_path / str(share),
            language_smoothing=share,
            log=lines.append,
            **options,
        ).run
        losses[share] = [line["loss"] for line in run.epochs()]
        assert run.has("neighbors.safetensors") == (share > 0)
    assert losses[0.0] != losses[0.3]
    unused = "item embedding id: language embeddings and encoder are not used"
    assert lines.count(unused) == (item_embedding == "id")
    kept = af.RunFolder(tmp_path / "0.3").neighbors()
    assert kept.ids.shape == (48, NEIGHBORS)

    new = clicks.assign(user_id=clicks["user_id"] + "-new")
    extended = af.extend(tmp_path / "0.3", new, output=tmp_path / "on", log=lines.append)
    assert torch.equal(extended.run.neighbors().ids, kept.ids)
    (tmp_path / "0.3" / "neighbors.safetensors").unlink()
    with pytest.raises(ValueError, match=r"language_smoothing: got 0\.3; expected 0 for"):
        af.extend(tmp_path / "0.3", new, output=tmp_path / "none", log=lines.append)
    off = {"output": tmp_path / "off", "log": lines.append, "language_smoothing": 0.0}
    assert not af.extend(tmp_path / "0.3", new, **off).run.has("neighbors.safetensors")


def test_without_language(tmp_path):
    clicks, _ = synthetic_catalog(num_users=60, num_items=48, seed=3)
    options = {"item_embedding": "id", "dim": 8, "language_smoothing": 0.2}
    with pytest.raises(ValueError, match=r"^embeddings: got None"):
        af.fit(clicks, None, None, tmp_path / "run", log=lambda line: None, **options)
    assert not (tmp_path / "run").exists()
