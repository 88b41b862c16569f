"""``score_all`` against its definition."""

from __future__ import annotations

import pytest
import torch
from op_inputs import CASES, TableCase, assert_near, check_against_reference

import alphafuse_ext as af

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("similarity", ["dot", "cosine"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_values_and_gradients(
    case: TableCase, similarity: str, isa: str, device: torch.device
) -> None:
    semantic, embeddings = case.tables(device)
    check_against_reference(
        lambda module, q, s, e: module.score_all(q, s, e, case.fusion, similarity),
        torch.randn(53, case.dim, device=device),
        semantic,
        embeddings,
    )


@pytest.mark.parametrize("batch", [0, 1, 5, 47, 48, 49, 200])
def test_batches(batch: int, isa: str, threads: int) -> None:
    semantic, embeddings = TableCase(num_embeddings=700).tables()
    check_against_reference(
        lambda module, q, s, e: module.score_all(q, s, e, similarity="cosine"),
        torch.randn(batch, 19),
        semantic,
        embeddings,
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_queries(dtype: torch.dtype, device: torch.device) -> None:
    """The result has their dtype; sums are kept in float32."""
    semantic, embeddings = TableCase(dim=500, null_dim=100).tables(device)
    queries = torch.randn(6, 500, device=device).to(dtype)
    assert af.score_all(queries, semantic, embeddings).dtype == dtype
    check_against_reference(
        lambda module, q, s, e: module.score_all(q, s, e), queries, semantic, embeddings
    )


def test_equal_rows_score_bitwise_equal(isa: str, device: torch.device) -> None:
    """Wherever they stand in a tile, and whatever stands beside them."""
    row = torch.randn(1, 37, device=device)
    ids = torch.randn(1000, 5, device=device)
    ids[::3] = ids[0]
    for similarity in ("dot", "cosine"):
        for batch in (1, 7, 50):
            queries = torch.randn(batch, 42, device=device)
            scores = af.score_all(queries, row.expand(1000, -1), ids, similarity=similarity)
            assert torch.equal(scores[:, ::3], scores[:, :1].expand(-1, 334))
            alone = af.score_all(queries[:1], row, ids[:1], similarity=similarity)
            assert torch.equal(alone[0, 0], scores[0, 0])


def test_zero_rows_and_queries_with_cosine(isa: str, device: torch.device) -> None:
    embeddings = torch.randn(5, 4, device=device)
    embeddings[2] = 0
    queries = torch.randn(3, 4, device=device)
    queries[1] = 0
    embeddings.requires_grad_()
    queries.requires_grad_()
    scores = af.score_all(queries, None, embeddings, similarity="cosine")
    assert not scores[:, 2].any()
    assert not scores[1].any()
    scores.backward(torch.randn(3, 5, device=device))
    assert not embeddings.grad[2].any()
    assert not queries.grad[1].any()
    assert embeddings.grad[[0, 1, 3, 4]].abs().sum(1).all()


def test_norms_below_the_clamp(isa: str, device: torch.device) -> None:
    """A tiny row is divided by 1e-8, and that constant has no gradient."""
    embeddings = torch.randn(40, 6, device=device)
    embeddings[::2] *= 1e-10
    check_against_reference(
        lambda module, q, s, e: module.score_all(q, s, e, similarity="cosine") * 1e-6,
        torch.randn(3, 6, device=device),
        None,
        embeddings,
    )


def test_strided_inputs(device: torch.device) -> None:
    table = torch.randn(90, 60, device=device)
    check_against_reference(
        lambda module, q, s, e: module.score_all(q, s, e),
        torch.randn(19, 7, device=device).T,
        table[::2, 3:15],
        table[1::2, 40:47],
    )


def test_frozen_tables_and_frozen_queries(isa: str) -> None:
    """Only what asks for a gradient gets one, and it is the same."""
    semantic, embeddings = TableCase().tables()
    queries, upstream = torch.randn(9, 19), torch.randn(9, 261)
    grads = {}
    for needed in ("both", "queries", "ids"):
        q = queries.clone().requires_grad_(needed != "ids")
        e = embeddings.clone().requires_grad_(needed != "queries")
        af.score_all(q, semantic, e).backward(upstream)
        grads[needed] = (q.grad, e.grad)
    assert grads["queries"][1] is None
    assert grads["ids"][0] is None
    assert torch.equal(grads["queries"][0], grads["both"][0])
    assert torch.equal(grads["ids"][1], grads["both"][1])


def test_non_contiguous_upstream_gradient() -> None:
    semantic, embeddings = TableCase().tables()
    check_against_reference(
        lambda module, q, s, e: module.score_all(q, s, e).T * 2,
        torch.randn(9, 19),
        semantic,
        embeddings,
    )


S, E, Q = torch.randn(9, 4), torch.randn(9, 3), torch.randn(2, 7)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((Q[0], S, E), ValueError, r"queries: got shape \(7,\); expected \(B, 7\)"),
        ((Q[:, :6], S, E), ValueError, r"queries: got shape \(2, 6\); expected \(B, 7\)"),
        ((Q, S, E, "add"), ValueError, r"queries: got shape \(2, 7\); expected \(B, 4\)"),
        ((Q.double(), S, E), TypeError, "queries: got torch.float64"),
        ((Q.tolist(), S, E), TypeError, "queries: got list"),
        ((Q.to("meta"), S, E), ValueError, "queries: got device meta; expected cpu"),
        ((Q, S, E, "concat", "euclid"), ValueError, "similarity: got 'euclid'"),
        ((Q, None, None), ValueError, "semantic_rows, id_embeddings: got None"),
    ],
)
def test_bad_arguments(arguments: tuple, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        af.score_all(*arguments)


def test_wide_range_of_values(isa: str) -> None:
    """Infinities and NaN in a row stay in that row."""
    embeddings = torch.randn(300, 5)
    queries = torch.randn(2, 5)
    expected = queries.double() @ embeddings.double().T
    embeddings[17] = torch.nan
    embeddings[140, 2] = torch.inf
    scores = af.score_all(queries, None, embeddings)
    assert scores[:, 17].isnan().all()
    assert scores[:, 140].isinf().all()
    clean = torch.ones(300, dtype=torch.bool)
    clean[[17, 140]] = False
    assert_near(scores[:, clean], expected[:, clean])


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("similarity", ["dot", "cosine"])
def test_a_query_that_is_not_finite_has_no_finite_score(
    similarity: str, value: float, device: torch.device
) -> None:
    """Of a cosine as well, whose norm it is not taken for 0."""
    embeddings = torch.rand(300, 5, device=device) + 0.5
    queries = torch.randn(3, 5, device=device)
    queries[1, 2] = value
    scores = af.score_all(queries, None, embeddings, similarity=similarity)
    assert not scores[1].isfinite().any()
    assert scores[[0, 2]].isfinite().all()


@pytest.mark.parametrize("similarity", ["dot", "cosine"])
def test_a_query_that_nothing_depends_on_may_hold_anything(
    similarity: str, isa: str, device: torch.device
) -> None:
    """The table's gradient is bit for bit that beside a query of zeros."""
    semantic, embeddings = TableCase().tables(device)
    queries = torch.randn(20, 19, device=device)
    upstream = torch.randn(20, 261, device=device)
    upstream[::3] = 0
    grads = []
    for held in (0.0, torch.nan):
        queries[::3, 5:] = held
        e = embeddings.clone().requires_grad_()
        af.score_all(queries, semantic, e, similarity=similarity).backward(upstream)
        grads.append(e.grad)
    assert grads[0].any()
    assert torch.equal(*grads)
