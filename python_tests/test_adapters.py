"""Other methods' item embeddings against their definitions, behind the item table's interface."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from alphafuse_ext import Config
from alphafuse_ext.config import layered
from alphafuse_ext.config.item_embedding import ADAPTERS
from alphafuse_ext.items.adapted_table import AdaptedTable, language_rows_for
from alphafuse_ext.items.adapters import make_adapter
from alphafuse_ext.runs.assembly import build_table

N, WIDTH, DIM = 43, 12, 8


@pytest.fixture
def language():
    rows = np.random.default_rng(0).normal(size=(N, WIDTH)) @ np.diag(np.linspace(3, 0.1, WIDTH))
    return (rows + 0.5).astype(np.float32)


def made(language, kind, **options) -> AdaptedTable:
    torch.manual_seed(1)
    given = layered({"init": "normal"}, {"item_embedding": kind, "dim": DIM, **options})
    config = Config(**given).resolve(WIDTH, N)
    table, space = build_table(config, N, language, None)
    assert isinstance(table, AdaptedTable)
    assert space is None
    for parameter in table.adapter.parameters():  # zeros would hide what they multiply
        torch.nn.init.normal_(parameter, std=0.3)
    return table.eval()


def mlp(layers, x):
    hidden = F.gelu(x @ layers[0].weight.T + layers[0].bias)
    return hidden @ layers[2].weight.T + layers[2].bias


@pytest.mark.parametrize("adapter_ids", [False, True])
@pytest.mark.parametrize("kind", ["morec", "whitenrec", "whitenrec+", "unisrec"])
def test_what_is_computed_of_language(language, kind, adapter_ids):
    table = made(language, kind, adapter_ids=adapter_ids)
    x, adapter = torch.tensor(language), table.adapter
    if kind == "unisrec":
        share = torch.softmax(x @ adapter.gate.weight.T, 1)
        experts = [(x - b) @ w for b, w in zip(adapter.shift, adapter.whiten, strict=True)]
        wanted = sum(share[:, [e]] * expert for e, expert in enumerate(experts))
        assert len(experts) == 8
    elif kind == "morec":
        wanted = mlp(adapter.layers, x)
    else:
        wanted = mlp(adapter.layers, whitened(x))
        if kind == "whitenrec+":
            of_slices = torch.cat([whitened(part) for part in x.chunk(4, 1)], 1)
            wanted = wanted + mlp(adapter.layers, of_slices)
    if adapter_ids:
        wanted = wanted + table.id_embeddings
    torch.testing.assert_close(table.weight, wanted, rtol=1e-3, atol=1e-4)


def whitened(x):
    """ZCA by the covariance's inverse square root."""
    centred = (x - x.mean(0)).double()
    values, vectors = torch.linalg.eigh(centred.T @ centred / len(x))
    return (centred @ vectors @ torch.diag(values**-0.5) @ vectors.T).float()


def test_unisrec_is_gated_with_noise_in_training(language):
    table = made(language, "unisrec").train()
    with torch.no_grad():
        first, second = table.weight, table.weight
    assert not torch.equal(first, second)


def test_a_gate_between_text_and_id(language):
    table = made(language, "gated")
    x, own, adapter = torch.tensor(language), table.id_embeddings, table.adapter
    text = mlp(adapter.text.layers, x)
    gate = torch.sigmoid(torch.cat([text, own], 1) @ adapter.gate.weight.T + adapter.gate.bias)
    wanted = gate * text + (1 - gate) * own
    torch.testing.assert_close(table.weight, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["rlmrec-contrastive", "rlmrec-generative"])
def test_rlmrec_aligns_ids_and_scores_by_them_alone(language, kind):
    options = {"alignment_weight": 0.3, "alignment_temperature": 0.5}
    table = made(language, kind, **options)
    assert torch.equal(table.weight, table.id_embeddings)
    items = torch.tensor([3, 1, 4, 1, 5, 9, 3])
    layers, used = table.adapter.layers, torch.tensor([1, 3, 4, 5, 9])

    def apply(x):
        hidden = F.leaky_relu(x @ layers[0].weight.T + layers[0].bias)
        return hidden @ layers[2].weight.T + layers[2].bias

    found, wanted = table.id_embeddings[used], torch.tensor(language)[used]
    if kind == "rlmrec-generative":
        found = apply(found)
    else:
        wanted = apply(wanted)
    cosines = F.cosine_similarity(found[:, None], wanted[None], dim=-1)
    mean = -torch.log_softmax(cosines / 0.5, 1).diagonal().mean()
    loss = table.auxiliary_loss(items)
    torch.testing.assert_close(loss, 0.3 * 7 * mean, rtol=1e-4, atol=1e-5)
    assert torch.autograd.grad(loss, table.id_embeddings)[0].abs().sum() > 0
    assert table.auxiliary_loss(items[:0]) is None
    assert made(language, "morec").auxiliary_loss(items) is None


@pytest.mark.parametrize("kind", ADAPTERS)
def test_every_method_is_that_of_the_computed_table(language, kind):
    """Values and gradients, in training and in evaluation."""
    table = made(language, kind)
    if kind == "unisrec":  # whose training draws
        table.adapter.dropout.p = 0.0
        table.adapter.noise.weight.data.fill_(0.0)
        torch.nn.init.constant_(table.adapter.gate.weight, 0.0)
    queries = torch.randn(5, DIM)
    targets = torch.tensor([0, 7, N - 1, N, 7])
    ids = torch.tensor([[0, 3, N], [N - 1, 3, N]])
    candidates = torch.randint(N, (5, 6))
    for training in (True, False):
        table.train(training)
        if training and kind == "unisrec":
            continue  # the noise of the gate: its own test
        weight = table.weight
        padded = torch.cat([weight, weight.new_zeros(1, DIM)])
        scores = queries @ weight.T
        weights = torch.linspace(0.5, 2.0, N)
        pairs = [
            (table(ids), padded[ids]),
            (table.score_all(queries), scores),
            (table.score_candidates(queries, candidates), scores.gather(1, candidates)),
            (table.mean(), weight.mean(0)),
            (
                table.cross_entropy(queries, targets),
                F.cross_entropy(scores, targets, ignore_index=N),
            ),
            (
                table.sampled_softmax(queries, targets, torch.arange(N), weight=weights),
                F.cross_entropy(scores, targets, weights, ignore_index=N),
            ),
            (
                table.sampled_softmax(queries, targets, torch.arange(N), log_q=weights),
                F.cross_entropy(scores - weights, targets, ignore_index=N),
            ),
        ]
        for found, wanted in pairs:
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
            used = [p for p in table.parameters() if p.requires_grad]
            ours, theirs = (
                torch.autograd.grad(one.sum(), used, retain_graph=True, allow_unused=True)
                for one in (found, wanted)
            )
            for left, right in zip(ours, theirs, strict=True):
                zero = torch.zeros(()) if right is None else torch.zeros_like(right)
                torch.testing.assert_close(
                    zero if left is None else left,
                    zero if right is None else right,
                    rtol=1e-3,
                    atol=1e-4,
                )
        with torch.no_grad():
            values, best = table.topk(queries, 4)
            torch.testing.assert_close(values, scores.topk(4).values, rtol=1e-4, atol=1e-5)
            assert (table.target_ranks(queries, best[:, 2]) == 2).all()


def test_an_evaluation_computes_the_table_once(language):
    table = made(language, "morec")
    calls = []
    table.adapter.register_forward_hook(lambda *_: calls.append(1))
    queries = torch.randn(2, DIM)
    with torch.inference_mode():
        table.topk(queries, 3)
        table.target_ranks(queries, torch.tensor([1, 2]))
        before = table(torch.tensor([1]))
    assert len(calls) == 1
    state = {name: value * 2 for name, value in table.state_dict().items()}
    for change in (
        lambda: table.train().eval(),
        lambda: table.load_state_dict(state),
        lambda: table.to(torch.float32),
    ):
        change()
        with torch.no_grad():
            after = table(torch.tensor([1]))
    assert len(calls) == 4
    assert not torch.allclose(before, after)


@pytest.mark.parametrize("kind", ADAPTERS)
def test_copies_and_states(language, kind):
    table = made(language, kind)
    with torch.no_grad():
        kept = table.score_all(torch.ones(1, DIM))
    for other in (copy.deepcopy(table), pickle.loads(pickle.dumps(table))):
        assert other._kept is None
        with torch.no_grad():
            assert torch.equal(other.score_all(torch.ones(1, DIM)), kept)
    without = ("morec", "whitenrec", "whitenrec+", "unisrec")
    assert (table.id_embeddings is None) == (kind in without)


def test_ids_that_are_none(language):
    table = made(language, "morec").train()
    for bad in (-1, N + 1):
        with pytest.raises(IndexError, match=r"^ids: got ids from .*; expected 0 <= id <= 43"):
            table(torch.tensor([0, bad]))
    assert table(torch.tensor([], dtype=torch.int64)).shape == (0, DIM)
    assert torch.equal(table(torch.tensor([N, N])), torch.zeros(2, DIM))


def test_slices_that_do_not_divide_the_columns(language):
    with pytest.raises(ValueError, match=r"^whitening_groups: got 5; expected a divisor of the 12"):
        language_rows_for("whitenrec+", language, groups=5)


def test_scale_and_names(language):
    torch.testing.assert_close(
        language_rows_for("morec", language, 3.0), torch.tensor(language) * 3
    )
    assert {type(make_adapter(kind, 2 * WIDTH, DIM)).__name__ for kind in ADAPTERS} == {
        *("MLPAdapter", "MixtureAdapter", "GatedAdapter", "AlignedIDs", "DualAdapter"),
    }
