"""Derivatives that no kernel has: second ones, forward mode and functorch's, in float64's eyes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from op_inputs import TableCase, assert_near
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode

import alphafuse_ext as af
from alphafuse_ext.items.adapted_table import AdaptedTable
from alphafuse_ext.items.adapters import make_adapter
from alphafuse_ext.items.table import ItemTable
from alphafuse_ext.ops import reference

pytestmark = pytest.mark.usefixtures("one_thread")

Function = Callable[[Tensor, Tensor], Tensor]

N, DIM = 261, 19
IDS = torch.tensor([4, 7, 7, N, 260])
QUERIES = (5, DIM)


def calls(module: ModuleType, semantic: Tensor | None, how: dict) -> dict[str, Function]:
    """Each op as a function of queries and ID embeddings; finite, and linear in neither."""
    similarity = how.get("similarity", "dot")
    fusion = {"fusion": how.get("fusion", "concat")}
    both = {"similarity": similarity, **fusion}
    return {
        "lookup": lambda q, e: module.lookup(IDS, semantic, e, **fusion).sin() * q,
        "score_all": lambda q, e: module.score_all(q, semantic, e, **both).sin(),
        "score_candidates": lambda q, e: (
            module.score_candidates(q, IDS, semantic, e, **both).clamp(min=-99).sin()
        ),
        "sampled_softmax": lambda q, e: module.sampled_softmax(
            q,
            *(IDS, IDS.flip(0)[:, None], semantic, e),
            temperature=0.5,
            reduction="none",
            log_q=torch.linspace(-3, -2, N),
            **both,
        ).sin(),
        "cross_entropy": lambda q, e: module.cross_entropy(
            q, IDS, semantic, e, temperature=0.5, **both
        ),
    }


OPS = sorted(calls(reference, None, {}))
CASES = {
    "concat": (TableCase(), {}),
    "concat-cosine": (TableCase(), {"similarity": "cosine"}),
    "add": (TableCase(fusion="add"), {"fusion": "add"}),
    "ids": (TableCase(semantic_dtype=None), {"similarity": "cosine"}),
}


class Watched(TorchDispatchMode):
    """Calls within it go to the custom ops."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


def inputs(case: str, name: str) -> tuple[Function, Function, Tensor, Tensor]:
    """An op, its definition in float64, queries of which one is zero, and ID embeddings."""
    tables, how = CASES[case]
    semantic, own = (None if table is None else table / 4 for table in tables.tables())
    assert own is not None
    queries = torch.randn(QUERIES) / 4
    queries[1] = 0
    wide = None if semantic is None else semantic.double()
    return calls(af, semantic, how)[name], calls(reference, wide, how)[name], queries, own


def derivatives(function: Function, queries: Tensor, own: Tensor) -> list[Tensor]:
    """The first of a loss, the second of a penalty of these, and the third."""
    q, e = queries.clone().requires_grad_(), own.clone().requires_grad_()
    weight = torch.linspace(-1, 1, 999, dtype=q.dtype)
    found: list[Tensor] = []
    value = function(q, e)
    for _ in range(3):
        factors = weight[: value.shape[-1]] if value.ndim else 1.0
        grads = torch.autograd.grad((value * factors).sum(), (q, e), create_graph=True)
        found.extend(grads)
        value = grads[0].sin().sum() + grads[1].cos().sum()
    return found


@pytest.mark.parametrize("way", [contextlib.nullcontext, Watched])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", OPS)
def test_gradients_of_gradients(name: str, case: str, way: Callable) -> None:
    op, definition, queries, own = inputs(case, name)
    with way():
        found = derivatives(op, queries, own)
    expected = derivatives(definition, queries.double(), own.double())
    for one, wanted in zip(found, expected, strict=True):
        assert one.dtype == torch.float32
        # What was rounded is differentiated again: a looser bound than that of an op.
        torch.testing.assert_close(
            one.double(), wanted, rtol=0, atol=5e-4 * max(1.0, wanted.abs().max().item())
        )
    assert any(one.abs().max() > 1e-3 for one in expected[2:])


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", OPS)
def test_forward_mode(name: str, case: str) -> None:
    op, definition, queries, own = inputs(case, name)
    steps = torch.randn_like(queries), torch.randn_like(own)
    wide = (queries.double(), own.double()), tuple(step.double() for step in steps)
    value, expected = torch.func.jvp(definition, *wide)
    found = [torch.func.jvp(op, (queries, own), steps)]
    with forward_ad.dual_level():
        duals = map(forward_ad.make_dual, (queries, own), steps)
        found.append(forward_ad.unpack_dual(op(*duals)))
    for primal, tangent in found:
        assert_near(primal, value)
        assert_near(tangent, expected)


@pytest.mark.parametrize("name", OPS)
def test_functorch(name: str) -> None:
    """Forward over reverse, reverse over reverse, and a gradient for each query."""
    op, definition, queries, own = inputs("concat-cosine", name)

    def results(function: Function, q: Tensor, e: Tensor) -> list[Tensor]:
        def loss(q: Tensor, e: Tensor) -> Tensor:
            return function(q, e).cos().sum()

        def of_one(row: Tensor) -> Tensor:
            return loss(q.index_copy(0, torch.tensor([2]), row[None]), e)

        return [
            torch.func.hessian(loss)(q, e),
            torch.func.jacrev(torch.func.grad(loss))(q, e),
            torch.func.grad(loss, argnums=1)(q, e),
            torch.vmap(torch.func.grad(of_one))(q),
        ]

    expected = results(definition, queries.double(), own.double())
    for one, wanted in zip(results(op, queries, own), expected, strict=True):
        assert_near(one, wanted, addend=1.0)


@pytest.mark.parametrize("name", OPS)
def test_in_a_compiled_graph(name: str) -> None:
    """Functorch's are compiled; a graph has no second derivative, and PyTorch says so."""
    op, _, queries, own = inputs("concat", name)

    def loss(q: Tensor, e: Tensor) -> Tensor:
        return op(q, e).sum()

    def penalty(q: Tensor, e: Tensor) -> Tensor:
        return torch.func.grad(lambda q: torch.func.grad(loss)(q, e).norm())(q)

    compiled = torch.compile(penalty, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(queries, own), penalty(queries, own))
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    q = queries.requires_grad_()
    (grad,) = torch.autograd.grad(compiled(q, own), q, create_graph=True)
    with pytest.raises(RuntimeError, match="double backward"):
        grad.sum().backward()


@pytest.mark.parametrize("name", ["lookup", "score_candidates"])
def test_sparse_gradients_have_none(name: str) -> None:
    semantic, own = TableCase().tables()
    own.requires_grad_()
    if name == "lookup":
        result = af.lookup(IDS, semantic, own, sparse=True)
    else:
        result = af.score_candidates(torch.randn(QUERIES), IDS[:3], semantic, own, sparse=True)
    with pytest.raises(NotImplementedError, match="create_graph: got True, with sparse gradients"):
        torch.autograd.grad(result.sum(), own, create_graph=True)


def item_tables() -> dict[str, ItemTable | AdaptedTable]:
    rows, own = torch.randn(30, 8), torch.randn(30, 8)
    gains, basis = torch.rand(8) + 0.5, torch.linalg.qr(torch.randn(8, 8))[0]
    return {
        "concat": ItemTable(rows[:, :5], own[:, :3]),
        "soft": ItemTable(rows, own, "add", coordinates="soft", coordinates_map=gains),
        "learned": ItemTable(rows, own, "add", coordinates="learned", coordinates_map=gains.log()),
        "original": ItemTable(rows, own, "add", coordinates="original", coordinates_map=basis),
        "adapted": AdaptedTable(rows, make_adapter("morec", 8, 8), own, 8),
    }


@pytest.mark.parametrize("kind", item_tables())
def test_a_gradient_penalty_through_an_item_table(kind: str) -> None:
    """Of queries made of a lookup; against the same with ``table.weight``."""
    table = item_tables()[kind]
    ids, targets = torch.tensor([[3, 1], [4, 29], [5, 5]]), torch.tensor([2, 29, 30])
    candidates = torch.tensor([7, 8, 2])

    def plain(queries: Tensor) -> Tensor:
        loss = torch.nn.functional.cross_entropy(queries @ table.weight.T, targets, ignore_index=30)
        return loss + (queries @ table.weight[candidates].T).sin().sum()

    def ours(queries: Tensor) -> Tensor:
        scores = table.score_candidates(queries, candidates)
        return table.cross_entropy(queries, targets) + scores.sin().sum()

    found = []
    for loss, rows in ((ours, table), (plain, lambda ids: table.weight[ids])):
        hidden = rows(ids).mean(1)
        (grad,) = torch.autograd.grad(loss(hidden), hidden, create_graph=True)
        found.append(torch.autograd.grad(grad.square().sum(), tuple(table.parameters())))
    for one, wanted in zip(*found, strict=True):
        assert wanted.any()
        torch.testing.assert_close(one, wanted, rtol=1e-3, atol=1e-4)
    table.eval()
    step = torch.randn(3, 8)
    queries = torch.randn(3, 8)
    with torch.no_grad():
        tangents = [torch.func.jvp(loss, (queries,), (step,))[1] for loss in (ours, plain)]
    torch.testing.assert_close(*tangents, rtol=1e-3, atol=1e-4)
