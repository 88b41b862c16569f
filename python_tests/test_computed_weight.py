"""`table.weight`: a parameter where it can be, elsewhere a tensor that is read and not written."""

from __future__ import annotations

import copy
import io

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alphafuse_ext import ItemTable
from alphafuse_ext.items.computed_weight import ComputedWeight

N = 11


def fused() -> ItemTable:
    return ItemTable(torch.randn(N, 4), torch.randn(N, 2))


def frozen() -> ItemTable:
    return ItemTable(torch.randn(N, 6), None)


WRITES = {
    "nn.init.zeros_": lambda weight: nn.init.zeros_(weight),
    "nn.init.normal_": lambda weight: nn.init.normal_(weight, std=0.02),
    "nn.init.xavier_uniform_": lambda weight: nn.init.xavier_uniform_(weight),
    "nn.init.constant_": lambda weight: nn.init.constant_(weight, 1.0),
    "nn.init.orthogonal_": lambda weight: nn.init.orthogonal_(weight),
    "zero_": lambda weight: weight.zero_(),
    "data.normal_": lambda weight: weight.data.normal_(),
    "data[i].zero_": lambda weight: weight.data[3].zero_(),
    "data =": lambda weight: setattr(weight, "data", torch.zeros(N, 6)),
    "detach().mul_": lambda weight: weight.detach().mul_(2),
    "[i] =": lambda weight: weight.__setitem__(3, 0.0),
    "[i, :2] =": lambda weight: weight[3].__setitem__(slice(2), 0.0),
    "+=": lambda weight: weight.__iadd__(1.0),
    "*=": lambda weight: weight.__imul__(0.5),
    "out=": lambda weight: torch.zeros(N, 6, out=weight),
    "torch.fill_": lambda weight: torch.fill_(weight, 0.0),
    "view": lambda weight: weight.view(-1).fill_(0.0),
    "T": lambda weight: weight.T.copy_(torch.zeros(6, N)),
    "chunk": lambda weight: weight.chunk(2)[0].zero_(),
    "unbind": lambda weight: weight.unbind()[1].add_(1.0),
    "clamp_": lambda weight: weight.clamp_(0, 1),
    "requires_grad_": lambda weight: weight.requires_grad_(False),
}


@pytest.mark.parametrize("make", [fused, frozen])
@pytest.mark.parametrize("write", WRITES)
def test_a_write_is_refused_and_not_lost(make, write):
    table = make()
    before = table.weight.clone()
    with torch.no_grad(), pytest.raises(RuntimeError, match=r"table\.weight: got a write.*clone"):
        WRITES[write](table.weight)
    assert torch.equal(table.weight, before)


@pytest.mark.parametrize("write", sorted(set(WRITES) - {"requires_grad_", "data ="}))
def test_an_id_only_table_is_written_to_as_an_embedding_is(write):
    table, embedding = ItemTable.id_only(N, 6), nn.Embedding(N, 6)
    assert table.weight is table.id_embeddings
    with torch.no_grad():
        embedding.weight.copy_(table.weight)
        for module in (table, embedding):
            torch.manual_seed(3)
            WRITES[write](module.weight)
    assert torch.equal(table(torch.arange(N)), embedding.weight)


@pytest.mark.parametrize("make", [fused, frozen])
def test_what_is_computed_from_it_is_a_plain_tensor(make):
    weight = make().weight
    assert isinstance(weight, Tensor)
    queries = torch.randn(3, 6)
    for result in (
        weight.clone(), weight + 1, queries @ weight.T, weight.double(), weight.sum(),
        F.linear(queries, weight), torch.cat([weight, torch.zeros(1, 6)]),
        F.embedding(torch.tensor([1, 2]), weight), weight[torch.tensor([1, 2])],
        weight.max(dim=0).values, torch.stack([weight, weight]),
    ):  # fmt: skip
        assert type(result) is Tensor
        result.detach().zero_()
    for view in (weight.data, weight.detach(), weight[1:3], weight.T, weight.contiguous()):
        assert type(view) is ComputedWeight
    torch.zeros(N, 6).copy_(weight)
    other = torch.zeros(N + 1, 6)
    other[:N] = weight.detach()
    other.add_(1)


def test_gradients_pass_through_it():
    table, queries = fused(), torch.randn(3, 6)
    weight = table.weight
    loss = (queries @ weight.T).square().sum() + weight[2].sum()
    (expected,) = torch.autograd.grad(loss, weight, retain_graph=True)
    weight.retain_grad()
    loss.backward()
    assert torch.equal(weight.grad, expected)
    assert torch.equal(table.id_embeddings.grad, expected[:, 4:])


def test_copies_of_it_are_their_owners():
    weight = frozen().weight
    nn.init.zeros_(copy.deepcopy(weight))
    file = io.BytesIO()
    torch.save(weight, file)
    file.seek(0)
    read = torch.load(file, weights_only=True)
    assert torch.equal(read, weight)
    nn.init.zeros_(read)
    embedding = nn.Embedding.from_pretrained(fused().weight.clone(), freeze=False)
    nn.init.zeros_(embedding.weight)


@pytest.mark.parametrize("make", [fused, frozen])
def test_it_compiles(make):
    table, queries = make(), torch.randn(3, 6)

    def scores(queries: Tensor) -> Tensor:
        return queries @ table.weight.T

    compiled = torch.compile(scores, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(queries), scores(queries))
