"""Native results of two parts of a catalog combine into those of the whole.

It is what tiles within a thread and threads within a call rest on, and what lets a catalog be
spread over processes.
"""

from __future__ import annotations

import pytest
import torch

from alphafuse_ext import _core
from alphafuse_ext.ops import native, reference

pytestmark = pytest.mark.usefixtures("one_thread")

N, B, K = 700, 9, 25


@pytest.fixture
def queries() -> torch.Tensor:
    return torch.randint(-2, 3, (B, 6)).float()  # many ties


@pytest.fixture
def semantic() -> torch.Tensor:
    return torch.randint(-2, 3, (N, 6)).float()


@pytest.fixture
def parts(semantic: torch.Tensor) -> list[_core.Tables]:
    return parts_of(semantic)


def parts_of(semantic: torch.Tensor) -> list[_core.Tables]:
    cut = int(torch.randint(1, N, ()))
    return [
        _core.Tables(semantic[:cut], None),
        _core.Tables(semantic[cut:], None, first_id=cut),
    ]


def test_top_lists(
    queries: torch.Tensor, semantic: torch.Tensor, parts: list[_core.Tables], isa: str
) -> None:
    excluded = torch.randint(-1, N + 1, (B, 300))
    exclude = native.exclude(None, excluded, N)
    lists = []
    for part in parts:
        values, ids = torch.empty(B, K), torch.empty(B, K, dtype=torch.int64)
        _core.cpu.topk(part, queries, exclude, [], values, ids, 2)
        lists.append((values, ids))
    # The first part has the lower ids, so a stable sort by score is the order of the whole.
    values, places = torch.cat([v for v, _ in lists], 1).sort(descending=True, stable=True)
    ids = torch.cat([i for _, i in lists], 1).gather(1, places)
    expected = reference.topk(queries, K, semantic, None, exclude=excluded)
    assert torch.equal(values[:, :K], expected[0])
    assert torch.equal(ids[:, :K], expected[1])


def target_scores(
    queries: torch.Tensor, targets: torch.Tensor, parts: list[_core.Tables]
) -> torch.Tensor:
    scores = queries.new_empty(len(parts), B)
    kernels, where = native.kernels(queries)
    for part, out in zip(parts, scores, strict=True):
        kernels.target_scores(part, queries, targets, out, where)
    assert (scores.isinf().sum(0) == len(parts) - 1).all()
    return scores.amax(0)


def test_rank_counts(
    queries: torch.Tensor, semantic: torch.Tensor, parts: list[_core.Tables], isa: str
) -> None:
    targets = torch.randint(N, (B,))
    scores = target_scores(queries, targets, parts)
    excluded = torch.randint(-1, N + 1, (B, 300))
    exclude = native.exclude(None, excluded, N)
    ranks = torch.zeros(B, dtype=torch.int64)
    for part in parts:
        out = torch.empty_like(ranks)
        _core.cpu.target_ranks(part, queries, targets, scores, exclude, [], out, 2)
        ranks += out
    expected = reference.target_ranks(queries, targets, semantic, None, exclude=excluded)
    assert torch.equal(ranks, expected)


def test_softmax(
    queries: torch.Tensor, semantic: torch.Tensor, isa: str, device: torch.device
) -> None:
    queries, semantic = queries.to(device), semantic.to(device)
    parts = parts_of(semantic)
    targets = torch.randint(N, (B,), device=device)
    sums = queries.new_empty(len(parts), 2, B)
    kernels, where = native.kernels(queries)
    for part, (maxima, logs) in zip(parts, sums, strict=True):
        kernels.log_sum_exp(part, queries, maxima, logs, where)
    losses = sums.sum(1).logsumexp(0) - target_scores(queries, targets, parts)
    expected = reference.cross_entropy(
        queries.double(), targets, semantic.double(), None, reduction="none"
    )
    torch.testing.assert_close(losses.double(), expected, rtol=1e-5, atol=1e-5)
