"""Losses against their definitions, written out on a materialised table in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from alphafuse_ext import ItemTable
from alphafuse_ext.models.losses import LOSSES, NEGATIVES_PER, next_item_loss

NUM_ITEMS, DIM, NULL_DIM = 23, 12, 5


@pytest.fixture
def setting():
    generator = torch.Generator().manual_seed(3)
    table = ItemTable(
        torch.randn(NUM_ITEMS, DIM - NULL_DIM, generator=generator),
        torch.randn(NUM_ITEMS, NULL_DIM, generator=generator),
    )
    hidden = torch.randn(4, 6, DIM, generator=generator, requires_grad=True)
    targets = torch.randint(NUM_ITEMS, (4, 6), generator=generator)
    targets[1, 3:] = NUM_ITEMS
    targets[2, 1:] = NUM_ITEMS
    return table, hidden, targets


def expected(table, hidden, targets, loss, drawn, temperature):
    """The sum over rows, one row at a time."""
    weight = table.weight.double()
    total = torch.zeros((), dtype=torch.float64)
    row = 0
    for b in range(len(hidden)):
        for t in range(hidden.shape[1]):
            target = int(targets[b, t])
            if target == table.padding_idx:
                continue
            query, items = hidden[b, t].double(), weight
            if loss == "infonce":
                query, items = F.normalize(query, dim=0), F.normalize(weight, dim=1)
            scores = items @ query / temperature
            if loss == "cross_entropy":
                total = total + torch.logsumexp(scores, 0) - scores[target]
                continue
            negatives = {1: drawn, 2: None}.get(drawn.ndim)
            if negatives is None:
                negatives = drawn[b] if len(drawn) == len(hidden) else drawn[row]
            negatives = negatives[negatives != target]
            if loss == "bce":
                total = total - F.logsigmoid(scores[target])
                total = total - F.logsigmoid(-scores[negatives]).sum()
            else:
                candidates = torch.cat([scores[target][None], scores[negatives]])
                total = total + torch.logsumexp(candidates, 0) - scores[target]
            row += 1
    return total


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("negatives_per", NEGATIVES_PER)
@pytest.mark.parametrize("temperature", [1.0, 0.3])
def test_value_and_gradients(setting, loss, negatives_per, temperature):
    table, hidden, targets = setting
    # More negatives than items: some equal their row's target and must be masked.
    count = 40
    rows = int((targets != NUM_ITEMS).sum())
    shape = {"batch": (count,), "sequence": (4, count), "position": (rows, count)}[negatives_per]
    torch.manual_seed(11)
    drawn = torch.randint(NUM_ITEMS, shape)
    torch.manual_seed(11)
    value = next_item_loss(table, hidden, targets, loss, count, negatives_per, temperature)
    wanted = expected(table, hidden, targets, loss, drawn, temperature)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value.double(), wanted, rtol=2e-5, atol=1e-4)
    inputs = (hidden, table.id_embeddings)
    found = torch.autograd.grad(value, inputs)
    for gradient, reference in zip(found, torch.autograd.grad(wanted, inputs), strict=True):
        torch.testing.assert_close(gradient, reference, rtol=2e-4, atol=2e-4)


def test_padded_positions_get_no_gradient(setting):
    table, hidden, targets = setting
    for loss in LOSSES:
        (gradient,) = torch.autograd.grad(next_item_loss(table, hidden, targets, loss), hidden)
        assert torch.all(gradient[targets == NUM_ITEMS] == 0), loss
        assert torch.all(gradient[targets != NUM_ITEMS].abs().sum(1) > 0), loss


@pytest.mark.parametrize(
    ("argument", "value"),
    [("loss", "hinge"), ("negatives", 0), ("negatives_per", "user"), ("temperature", 0.0)],
)
def test_bad_arguments_are_named(setting, argument, value):
    table, hidden, targets = setting
    options = {"loss": "bce", argument: value}
    with pytest.raises(ValueError, match=f"^{argument}: got"):
        next_item_loss(table, hidden, targets, **options)
