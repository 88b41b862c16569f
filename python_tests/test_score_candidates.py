"""``score_candidates`` against its definition."""

from __future__ import annotations

import math

import pytest
import torch
from op_inputs import CASES, TableCase, assert_near, check_against_reference

import alphafuse_ext as af
from alphafuse_ext.ops import reference

pytestmark = pytest.mark.usefixtures("one_thread")

# Shapes of the queries before `dim`, and of the candidates.
SHAPES = [
    ((6,), (5,)),
    ((6,), (6, 5)),
    ((3, 4), (5,)),
    ((3, 4), (3, 5)),
    ((3, 4), (3, 4, 5)),
    ((70,), (300,)),
    ((2, 60), (2, 140)),
    ((1100,), (140,)),
    ((2, 550), (2, 40)),
    ((1,), (1, 1)),
    ((0,), (5,)),
    ((0,), (0, 5)),
    ((0, 4), (5,)),
    ((3, 0), (3, 5)),
    ((3, 4), (0,)),
    ((3, 4), (3, 4, 0)),
]


@pytest.mark.parametrize("similarity", ["dot", "cosine"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_values_and_gradients(
    case: TableCase, similarity: str, isa: str, device: torch.device
) -> None:
    semantic, embeddings = case.tables(device)
    candidates = torch.randint(case.num_embeddings + 1, (4, 3, 9), device=device)
    check_against_reference(
        lambda module, q, s, e: module.score_candidates(
            q, candidates.to(q.device), s, e, case.fusion, similarity
        ),
        torch.randn(4, 3, case.dim, device=device),
        semantic,
        embeddings,
    )


@pytest.mark.parametrize("similarity", ["dot", "cosine"])
@pytest.mark.parametrize(("leading", "shape"), SHAPES)
def test_shapes(
    leading: tuple[int, ...],
    shape: tuple[int, ...],
    similarity: str,
    isa: str,
    threads: int,
    device: torch.device,
) -> None:
    semantic, embeddings = TableCase().tables(device)
    candidates = torch.randint(262, shape, device=device)
    check_against_reference(
        lambda module, q, s, e: module.score_candidates(
            q, candidates.to(q.device), s, e, similarity=similarity
        ),
        torch.randn(*leading, 19, device=device),
        semantic,
        embeddings,
    )


@pytest.mark.parametrize("similarity", ["dot", "cosine"])
def test_sparse_gradient(similarity: str, isa: str, device: torch.device) -> None:
    """The dense gradient without its rows of untouched items; never the padding."""
    semantic, embeddings = TableCase(num_embeddings=4000).tables(device)
    candidates = torch.randint(4001, (8, 5, 20), device=device)
    candidates[0, 0] = 4000
    candidates[1, 1] = 17
    queries, upstream = torch.randn(8, 5, 19, device=device), torch.randn(8, 5, 20, device=device)
    grads = []
    for sparse in (False, True):
        table = embeddings.clone().requires_grad_()
        scores = af.score_candidates(
            queries, candidates, semantic, table, similarity=similarity, sparse=sparse
        )
        scores.backward(upstream)
        grads.append(table.grad)
    dense, sparse_grad = grads
    touched = candidates[candidates < 4000].unique()
    assert torch.equal(sparse_grad._indices()[0], touched)
    assert torch.equal(sparse_grad.to_dense(), dense)


def test_half_precision(isa: str, device: torch.device) -> None:
    """Scores of half-precision queries are float32: what a temperature divides is not rounded."""
    semantic, embeddings = TableCase().tables(device)
    queries = torch.randn(4, 19, device=device).bfloat16()
    candidates = torch.randint(261, (4, 6), device=device)
    assert af.score_candidates(queries, candidates, semantic, embeddings).dtype == torch.float32
    check_against_reference(
        lambda module, q, s, e: module.score_candidates(q, candidates.to(q.device), s, e),
        queries,
        semantic,
        embeddings,
    )


def test_bitwise_the_scores_of_the_catalog(isa: str) -> None:
    semantic, embeddings = TableCase().tables()
    queries = torch.randn(9, 19)
    candidates = torch.randint(261, (9, 40))
    for similarity in ("dot", "cosine"):
        everything = af.score_all(queries, semantic, embeddings, similarity=similarity)
        scores = af.score_candidates(
            queries, candidates, semantic, embeddings, similarity=similarity
        )
        assert torch.equal(scores, everything.gather(1, candidates))


def test_padding_is_never_scored(isa: str, device: torch.device) -> None:
    """Not even an infinite gradient comes through it."""
    semantic, embeddings = TableCase().tables(device)
    embeddings.requires_grad_()
    queries = torch.randn(2, 19, requires_grad=True, device=device)
    candidates = torch.tensor([[261, 4], [261, 261]], device=device)
    for similarity in ("dot", "cosine"):
        scores = af.score_candidates(
            queries, candidates, semantic, embeddings, similarity=similarity
        )
        assert torch.equal(scores.isinf(), candidates == 261)
        upstream = torch.tensor([[torch.nan, 1.0], [torch.inf, torch.nan]], device=device)
        q_grad, e_grad = torch.autograd.grad(scores, (queries, embeddings), upstream)
        assert q_grad.isfinite().all()
        assert not q_grad[1].any()
        assert e_grad.isfinite().all()
        assert e_grad.any(dim=1).nonzero().flatten().tolist() == [4]


@pytest.mark.parametrize("similarity", ["dot", "cosine"])
@pytest.mark.parametrize("shape", [(40,), (6, 40), (6, 3, 40)])
def test_scores_that_nothing_depends_on_may_be_nan(
    shape: tuple[int, ...], similarity: str, isa: str, device: torch.device
) -> None:
    """Not a gradient comes through them: bit for bit that beside a query of zeros."""
    semantic, embeddings = TableCase().tables(device)
    length = 30 if len(shape) < 3 else 3
    candidates = torch.randint(261, shape, device=device)
    upstream = torch.randn(6, length, 40, device=device)
    upstream[::2, 1] = 0
    queries = torch.randn(6, length, 19, device=device)
    grads = []
    for held in (0.0, torch.nan):
        queries[::2, 1, 5:] = held
        e = embeddings.clone().requires_grad_()
        af.score_candidates(queries, candidates, semantic, e, similarity=similarity).backward(
            upstream
        )
        grads.append(e.grad)
    assert grads[0].any()
    assert torch.equal(*grads)


def test_sampled_softmax(isa: str, device: torch.device) -> None:
    """A loss over the scores, as a model uses them, with -inf among them."""
    semantic, embeddings = TableCase().tables(device)
    candidates = torch.randint(262, (6, 30), device=device)
    candidates[:, 0] = torch.randint(261, (6,), device=device)

    def loss(scores: torch.Tensor) -> torch.Tensor:
        return -scores.log_softmax(-1)[:, 0].mean()

    queries = torch.randn(6, 19, requires_grad=True, device=device)
    exact = queries.detach().double().requires_grad_()
    loss(af.score_candidates(queries, candidates, semantic, embeddings)).backward()
    loss(
        reference.score_candidates(exact, candidates, semantic.double(), embeddings.double())
    ).backward()
    assert_near(queries.grad, exact.grad)


def test_int32_and_strided_candidates(device: torch.device) -> None:
    semantic, embeddings = TableCase().tables(device)
    candidates = torch.randint(261, (7, 5), dtype=torch.int32, device=device).T
    queries = torch.randn(19, 5, device=device).T
    expected = reference.score_candidates(queries, candidates, semantic, embeddings)
    torch.testing.assert_close(
        af.score_candidates(queries, candidates, semantic, embeddings), expected
    )


@pytest.mark.parametrize(
    ("leading", "shape"),
    [((11, 13), (11, 200)), ((11, 40), (11, 200)), ((1100,), (300,))],
    ids=["few queries a list", "lists", "one list"],
)
def test_same_gradients_bit_by_bit(leading: tuple[int, ...], shape: tuple[int, ...]) -> None:
    """Every sum is one thread's, in one order, so gradients do not depend on the threads."""
    semantic, embeddings = TableCase().tables()
    candidates, upstream = torch.randint(262, shape), torch.randn(*leading, shape[-1])
    grads = []
    before = torch.get_num_threads()
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        table = embeddings.clone().requires_grad_()
        queries = torch.linspace(-1, 1, math.prod(leading) * 19).view(*leading, 19)
        queries.requires_grad_()
        scores = af.score_candidates(queries, candidates, semantic, table, similarity="cosine")
        grads.append(torch.autograd.grad(scores, (queries, table), upstream))
    torch.set_num_threads(before)
    for q_grad, e_grad in grads:
        assert torch.equal(q_grad, grads[0][0])
        assert torch.equal(e_grad, grads[0][1])


@pytest.mark.parametrize("bad", [-1, 262])
def test_candidate_out_of_range(bad: int) -> None:
    semantic, embeddings = TableCase().tables()
    with pytest.raises(IndexError, match=f"candidates: got {bad} at position 1; expected 0 <= id"):
        af.score_candidates(torch.randn(2, 19), torch.tensor([0, bad]), semantic, embeddings)


S, E, Q = torch.randn(9, 4), torch.randn(9, 3), torch.randn(2, 5, 7)
C = torch.ones(2, 5, 6, dtype=torch.int64)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((Q, C.float(), S, E), TypeError, "candidates: got torch.float32"),
        ((Q, [1], S, E), TypeError, "candidates: got list"),
        ((Q, C[0, 0, 0], S, E), ValueError, r"candidates: got shape \(\)"),
        ((Q, C[:1], S, E), ValueError, r"got shape \(1, 5, 6\); .* or \(2, 5, K\)"),
        ((Q, C[:, :4], S, E), ValueError, r"got shape \(2, 4, 6\)"),
        ((Q[:, 0], C, S, E), ValueError, r"got shape \(2, 5, 6\); expected \(K,\) or \(2, K\)"),
        (
            (Q[None], C, S, E),
            ValueError,
            r"queries: got shape .*; expected \(B, 7\) or \(B, L, 7\)",
        ),
        ((Q[..., 1:], C, S, E), ValueError, r"queries: got shape \(2, 5, 6\)"),
        ((Q, C.to("meta"), S, E), ValueError, "candidates: got device meta"),
        ((Q, C, S, E, "concat", 1), ValueError, "similarity: got 1"),
    ],
)
def test_bad_arguments(arguments: tuple, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        af.score_candidates(*arguments)
