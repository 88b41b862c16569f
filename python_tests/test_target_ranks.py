"""``target_ranks`` against its definition."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from op_inputs import CASES, TableCase
from test_topk import problems, small_integers

import alphafuse_ext as af
from alphafuse_ext import _core
from alphafuse_ext.ops import reference

pytestmark = pytest.mark.usefixtures("one_thread", "on_device")


def ranks_of_scores(
    scores: torch.Tensor, targets: torch.Tensor, exclude: torch.Tensor | None = None
) -> torch.Tensor:
    """The definition, applied to scores that are given."""
    table = scores.T.contiguous()
    queries = torch.eye(len(scores))
    return reference.target_ranks(queries, targets, table, None, exclude=exclude)


@pytest.mark.parametrize("similarity", ["dot", "cosine"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_ranks(case: TableCase, similarity: str, isa: str) -> None:
    """The places in the order of the native scores, which ``test_score_all`` compares."""
    semantic, embeddings = case.tables()
    queries = torch.randn(53, case.dim)
    targets = torch.randint(case.num_embeddings + 1, (53,))
    ranks = af.target_ranks(queries, targets, semantic, embeddings, case.fusion, similarity)
    scores = af.score_all(queries, semantic, embeddings, case.fusion, similarity)
    assert ranks.dtype == torch.int64
    assert torch.equal(ranks, ranks_of_scores(scores, targets))


@pytest.mark.parametrize("batch", [0, 1, 17, 49])
def test_sizes_and_exclusion(batch: int, isa: str, threads: int) -> None:
    """The target itself is among the excluded ids now and then."""
    semantic, embeddings = TableCase(num_embeddings=1000).tables()
    queries, targets = torch.randn(batch, 19), torch.randint(1001, (batch,))
    exclude = torch.randint(-1, 1001, (batch, 200))
    exclude[::2, 0] = targets[::2]
    scores = af.score_all(queries, semantic, embeddings)
    for excluded in (None, exclude):
        ranks = af.target_ranks(queries, targets, semantic, embeddings, exclude=excluded)
        assert torch.equal(ranks, ranks_of_scores(scores, targets, excluded))


def test_ties(isa: str, threads: int) -> None:
    semantic, embeddings = small_integers(700, 3), small_integers(700, 2)
    queries, targets = small_integers(50, 5), torch.randint(700, (50,))
    exclude = torch.randint(-1, 701, (50, 300))
    ranks = af.target_ranks(queries, targets, semantic, embeddings, exclude=exclude)
    expected = reference.target_ranks(queries, targets, semantic, embeddings, exclude=exclude)
    assert torch.equal(ranks, expected)


def test_every_item_has_its_own_place(isa: str, threads: int) -> None:
    """Equal rows included: the ranks of all items are a permutation."""
    row, ids = torch.randn(1, 11), torch.randn(400, 3)
    ids[torch.randint(400, (200,))] = ids[0].clone()
    queries = torch.randn(1, 14).expand(400, -1)
    for similarity in ("dot", "cosine"):
        ranks = af.target_ranks(
            queries, torch.arange(400), row.expand(400, -1), ids, similarity=similarity
        )
        assert torch.equal(ranks.sort().values, torch.arange(400))


def test_excluded_target_is_ranked_all_the_same(isa: str) -> None:
    embeddings = torch.tensor([3.0, 2.0, 2.0, 1.0, 5.0])[:, None]
    targets = torch.tensor([2, 2, 2])
    exclude = torch.tensor([[2, -1], [0, 2], [2, 2]])
    ranks = af.target_ranks(torch.ones(3, 1), targets, None, embeddings, exclude=exclude)
    assert ranks.tolist() == [3, 2, 3]


def test_nan_comes_last(isa: str) -> None:
    embeddings = torch.tensor([torch.nan, -torch.inf, 1.0, torch.nan, -torch.inf])[:, None]
    ranks = af.target_ranks(torch.ones(5, 1), torch.arange(5), None, embeddings)
    assert ranks.tolist() == [3, 1, 0, 4, 2]


def test_a_single_query() -> None:
    semantic, embeddings = TableCase().tables()
    query, target, exclude = torch.randn(19), torch.tensor(200), torch.arange(30)
    rank = af.target_ranks(query, target, semantic, embeddings, exclude=exclude)
    expected = af.target_ranks(
        query[None], target[None], semantic, embeddings, exclude=exclude[None]
    )
    assert rank.shape == ()
    assert rank == expected[0]


def test_int32_targets_and_strided_inputs() -> None:
    table = torch.randn(90, 60)
    targets = torch.randint(45, (14,), dtype=torch.int32)[::2]
    queries = torch.randn(19, 7).T
    semantic, embeddings = table[::2, 3:15], table[1::2, 40:47]
    ranks = af.target_ranks(queries, targets, semantic, embeddings)
    scores = af.score_all(queries, semantic, embeddings)
    assert torch.equal(ranks, ranks_of_scores(scores, targets.long()))


@given(problem=problems(), data=st.data())
@settings(max_examples=150, deadline=None)
def test_any_catalog(problem: tuple, data: st.DataObject) -> None:
    queries, embeddings, exclude, isa = problem
    target = st.integers(0, len(embeddings))
    drawn = data.draw(st.lists(target, min_size=len(queries), max_size=len(queries)))
    targets = torch.tensor(drawn, dtype=torch.int64)
    before = _core.isa()
    _core.set_isa(isa)
    try:
        ranks = af.target_ranks(queries, targets, None, embeddings, exclude=exclude)
    finally:
        _core.set_isa(before)
    expected = reference.target_ranks(
        queries.double(), targets, None, embeddings.double(), exclude=exclude
    )
    assert torch.equal(ranks, expected)


@pytest.mark.parametrize("bad", [-1, 262])
def test_target_out_of_range(bad: int) -> None:
    semantic, embeddings = TableCase().tables()
    with pytest.raises(IndexError, match=f"targets: got {bad} at position 1; expected 0 <= id"):
        af.target_ranks(torch.randn(2, 19), torch.tensor([0, bad]), semantic, embeddings)


S, E, Q, T = torch.randn(9, 4), torch.randn(9, 3), torch.randn(2, 7), torch.tensor([1, 2])


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((Q, T[:1], S, E), ValueError, r"targets: got shape \(1,\)"),
        ((Q, T.bool(), S, E), TypeError, "targets: got torch.bool"),
        ((Q[0], T, S, E), ValueError, r"targets: got shape \(2,\); expected \(\), one for each"),
        ((Q[None], T, S, E), ValueError, "queries: got shape"),
        ((Q, T, S, E, "mul"), ValueError, "fusion: got 'mul'"),
        ((Q, T, S, E, "concat", "l2"), ValueError, "similarity: got 'l2'"),
        ((Q, T, S, E, "concat", "dot", T), ValueError, "exclude: got shape"),
        ((Q, T, S, E, "concat", "dot", T[:, None] * 5), IndexError, "exclude: got 10"),
    ],
)
def test_bad_arguments(arguments: tuple, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        af.target_ranks(*arguments)
