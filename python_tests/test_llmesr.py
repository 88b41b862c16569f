"""LLM-ESR's two views and its distillation, against plain code."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from alphafuse_ext import Config, ItemTable
from alphafuse_ext.models import LLMESR
from alphafuse_ext.runs.assembly import build_model, build_table

N, WIDTH, DIM = 43, 12, 16


@pytest.fixture
def language():
    return np.random.default_rng(0).normal(size=(N, WIDTH)).astype(np.float32)


def made(language, **options) -> LLMESR:
    torch.manual_seed(1)
    given = {"model": "llm-esr", "item_embedding": "llm-esr", "dim": DIM, "history": 6, **options}
    config = Config.from_dict(given).resolve(WIDTH, N)
    table, _ = build_table(config, N, language, None)
    model = build_model(config, table)
    assert isinstance(model, LLMESR)
    return model.eval()


def padded(*histories):
    length = max(map(len, histories))
    return torch.tensor([h + [N] * (length - len(h)) for h in histories])


def test_ids_are_initialized_with_the_first_principal_components(language):
    model = made(language, semantic_rms=0.2)
    own = model.table.id_embeddings.detach().numpy()
    centred = language - language.mean(0)
    left, values, _ = np.linalg.svd(centred, full_matrices=False)
    wanted = left[:, : DIM // 2] * values[: DIM // 2]
    wanted *= 0.2 / np.sqrt((wanted**2).mean())
    np.testing.assert_allclose(np.abs(own), np.abs(wanted), rtol=1e-2, atol=1e-3)
    layers = model.table.adapter.layers
    torch.testing.assert_close(
        model.table.weight[:, DIM // 2 :], layers[1](layers[0](torch.tensor(language)))
    )


def test_each_view_asks_the_other_and_one_encoder_reads_both(language):
    model = made(language, zero_sink=False)
    ids = padded([3, 1, 4, 1])
    own, text = model.table(ids).chunk(2, -1)
    place = model.position.weight[:4].flip(0)  # the newest has position 0
    own, text = own + place, text + place

    def asks(layer, query, other):
        weights, bias = layer.in_proj_weight.chunk(3), layer.in_proj_bias.chunk(3)
        q, k, v = (
            x @ w.T + b for x, w, b in zip((query, other, other), weights, bias, strict=True)
        )
        scores = q @ k.transpose(1, 2) / (DIM // 2) ** 0.5
        later = torch.ones(4, 4, dtype=torch.bool).triu(1)
        return layer.out_proj(scores.masked_fill(later, -torch.inf).softmax(-1) @ v)

    views = asks(model.to_id, text, own), asks(model.to_language, own, text)
    present = torch.ones(1, 4, dtype=torch.bool)
    wanted = [model.norm(model.blocks[0](view, None, present)) for view in views]
    torch.testing.assert_close(model(ids), torch.cat(wanted, -1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("block", ["sasrec", "bsarec", "ligr"])
def test_a_query_depends_on_its_own_history_alone(language, block):
    model = made(language, block=block, heads=2)
    histories = [[3, 1, 4, 1, 5], [9, 2], [6]]
    together = model.encode(padded(*histories))
    assert together.shape == (3, DIM)
    for row, history in enumerate(histories):
        alone = model.encode(padded(history))[0]
        torch.testing.assert_close(together[row], alone, rtol=1e-4, atol=1e-5)


def test_similar_histories_are_drawn_together(language):
    model = made(language, distillation_weight=0.5, similar_users=2)
    ids = padded([3, 1, 4], [5, 9], [2], [6, 5, 3, 5])
    targets = torch.where(ids == N, N, (ids + 1) % N)
    plain = made(language, distillation_weight=0.0).loss(ids, targets)
    users = torch.stack(
        [F.normalize(torch.tensor(language)[row[row != N]].mean(0), dim=0) for row in ids]
    )
    last = model.encode(ids)
    difference = 0.0
    for user in range(4):
        others = sorted(set(range(4)) - {user}, key=lambda v: -float(users[user] @ users[v]))[:2]
        difference = difference + (last[user] - last[others].detach().mean(0)).square().mean() / 4
    found = model.loss(ids, targets)
    wanted = plain + 0.5 * int((targets != N).sum()) * difference
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    one = ids[:1], targets[:1]
    torch.testing.assert_close(model.loss(*one), made(language).loss(*one))


def test_another_table_is_refused():
    with pytest.raises(ValueError, match=r"^table: got ItemTable; expected one with two views"):
        LLMESR(ItemTable.id_only(20, 8))


@pytest.mark.parametrize(
    ("argument", "value"), [("distillation_weight", -0.1), ("similar_users", 0)]
)
def test_bad_settings_are_named(language, argument, value):
    table = made(language).table
    with pytest.raises(ValueError, match=f"^{argument}: got"):
        LLMESR(table, **{argument: value})
