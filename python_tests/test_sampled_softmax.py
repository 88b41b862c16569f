"""``sampled_softmax`` against its definition."""

from __future__ import annotations

import math

import pytest
import torch
from op_inputs import CASES, TableCase, assert_near, check_against_reference, wide

import alphafuse_ext as af
from alphafuse_ext.ops import reference

pytestmark = pytest.mark.usefixtures("one_thread")

# Shapes of the queries before `dim`, and of the negatives.
SHAPES = [
    ((6,), (5,)),
    ((6,), (6, 5)),
    ((3, 4), (5,)),
    ((3, 4), (3, 5)),
    ((3, 4), (3, 4, 5)),
    ((70,), (300,)),
    ((2, 60), (2, 140)),
    ((1100,), (140,)),
    ((1,), (1, 1)),
    ((0,), (5,)),
    ((0,), (0, 5)),
    ((3, 0), (3, 5)),
    ((3, 4), (0,)),
    ((3, 4), (3, 4, 0)),
]


def inputs(
    case: TableCase, leading: tuple[int, ...], shape: tuple[int, ...], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Queries, targets and negatives: ignored targets, padding, duplicates, and hits."""
    count = case.num_embeddings
    targets = torch.randint(count + 1, leading, device=device)
    negatives = torch.randint(count + 1, shape, device=device)
    if targets.numel() and negatives.numel():
        negatives[..., 0] = targets.flatten()[0] if len(shape) == 1 else negatives[..., 0]
        if negatives.dim() == targets.dim() + 1:
            negatives[..., 0] = targets
        negatives[..., -1] = count if negatives.shape[-1] > 2 else negatives[..., -1]
    return torch.randn(*leading, case.dim, device=device), targets, negatives


def log_probabilities(count: int, device: torch.device) -> torch.Tensor:
    return torch.rand(count, device=device).add(0.1).log()


@pytest.mark.parametrize("similarity", ["dot", "cosine"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_values_and_gradients(
    case: TableCase, similarity: str, isa: str, device: torch.device
) -> None:
    semantic, embeddings = case.tables(device)
    for leading, shape in (((4, 3), (4, 3, 9)), ((40,), (9,))):
        queries, targets, negatives = inputs(case, leading, shape, device)
        log_q = log_probabilities(case.num_embeddings, device)
        check_against_reference(
            lambda module, q, s, e, given=(targets, negatives), log_q=log_q: module.sampled_softmax(
                q,
                *(ids.to(q.device) for ids in given),
                *(s, e, case.fusion, similarity, 0.7, "none"),
                log_q=log_q,
            ),
            queries,
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
    queries, targets, negatives = inputs(TableCase(), leading, shape, device)
    check_against_reference(
        lambda module, q, s, e: module.sampled_softmax(
            q, targets, negatives, s, e, similarity=similarity, reduction="none"
        ),
        queries,
        semantic,
        embeddings,
    )


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_reductions_weights_and_ignored_targets(reduction: str, device: torch.device) -> None:
    semantic, embeddings = TableCase().tables(device)
    queries, targets, negatives = inputs(TableCase(), (4, 9), (20,), device)
    targets[1, 2] = -100
    weight = torch.rand(261, device=device)
    check_against_reference(
        lambda module, q, s, e: module.sampled_softmax(
            *(q, targets, negatives, s, e),
            reduction=reduction,
            ignore_index=-100,
            weight=weight,
        ),
        queries,
        semantic,
        embeddings,
    )


def test_temperatures(device: torch.device) -> None:
    """One, which may be trained, or one for each query."""
    semantic, embeddings = TableCase().tables(device)
    queries, targets, negatives = inputs(TableCase(), (9,), (20,), device)
    temperature = torch.tensor(0.7, requires_grad=True, device=device)
    exact = temperature.detach().double().cpu().requires_grad_()
    given = targets, negatives, semantic, embeddings
    af.sampled_softmax(queries, *given, temperature=temperature).backward()
    reference.sampled_softmax(
        wide(queries), targets, negatives, wide(semantic), wide(embeddings), temperature=exact
    ).backward()
    assert_near(temperature.grad, exact.grad, addend=1.0)
    each = torch.linspace(0.2, 2.0, 9, device=device)
    losses = af.sampled_softmax(queries, *given, temperature=each, reduction="none")
    for b in range(9):
        one = af.sampled_softmax(
            *(queries[b : b + 1], targets[b : b + 1], negatives, semantic, embeddings),
            temperature=float(each[b]),
            reduction="none",
        )
        torch.testing.assert_close(losses[b : b + 1], one)


@pytest.mark.parametrize("similarity", ["dot", "cosine"])
@pytest.mark.parametrize(("leading", "shape"), [((8, 5), (8, 20)), ((200,), (50,))])
def test_sparse_gradient(
    leading: tuple[int, ...],
    shape: tuple[int, ...],
    similarity: str,
    isa: str,
    device: torch.device,
) -> None:
    """The dense gradient without its rows of untouched items; never the padding."""
    case = TableCase(num_embeddings=4000)
    semantic, embeddings = case.tables(device)
    queries, targets, negatives = inputs(case, leading, shape, device)
    grads = []
    for sparse in (False, True):
        table = embeddings.clone().requires_grad_()
        af.sampled_softmax(
            queries, targets, negatives, semantic, table, similarity=similarity, sparse=sparse
        ).backward()
        grads.append(table.grad)
    dense, sparse_grad = grads
    ids = torch.cat([targets.flatten(), negatives.flatten()])
    assert torch.equal(sparse_grad._indices()[0], ids[ids < 4000].unique())
    assert torch.equal(sparse_grad.to_dense(), dense)


def test_own_targets_and_padding_are_no_negatives(isa: str, device: torch.device) -> None:
    """A loss of nothing is 0, without gradient; duplicates count twice."""
    semantic, embeddings = TableCase().tables(device)
    queries = torch.randn(3, 19, device=device)
    targets = torch.tensor([4, 9, 4], device=device)
    for leading, copies in (((3,), 1), ((30,), 10)):
        q = queries.repeat(copies, 1).requires_grad_()
        e = embeddings.clone().requires_grad_()
        wanted = targets.repeat(copies)
        negatives = torch.tensor([4, 261, 4], device=device)
        losses = af.sampled_softmax(q, wanted, negatives, semantic, e, reduction="none")
        assert losses.shape == (math.prod(leading),)
        assert not losses[wanted == 4].any()
        assert (losses[wanted == 9] > 0).all()
        losses[wanted == 4].sum().backward()
        assert not q.grad.any()
        assert not e.grad.any()
        scores = reference.score_all(wide(queries), wide(semantic), wide(embeddings))[1]
        twice = (2 * scores[4].exp() + scores[9].exp()).log() - scores[9]
        assert_near(losses[1].detach(), twice)


@pytest.mark.parametrize("similarity", ["dot", "cosine"])
@pytest.mark.parametrize("shape", [(40,), (6, 40), (6, 30, 40)])
def test_queries_that_nothing_depends_on_may_be_nan(
    shape: tuple[int, ...], similarity: str, isa: str, device: torch.device
) -> None:
    """Of ignored targets, and of losses that are not used: bit for bit as beside zeros."""
    semantic, embeddings = TableCase().tables(device)
    negatives = torch.randint(261, shape, device=device)
    targets = torch.randint(261, (6, 30), device=device)
    targets[::2, 1] = 261
    upstream = torch.randn(6, 30, device=device)
    upstream[1::2, 2] = 0
    queries = torch.randn(6, 30, 19, device=device)
    grads = []
    for held in (0.0, torch.nan):
        queries[::2, 1, 5:] = held
        queries[1::2, 2, 3:] = held
        e = embeddings.clone().requires_grad_()
        q = queries.clone().requires_grad_()
        losses = af.sampled_softmax(
            q, targets, negatives, semantic, e, similarity=similarity, reduction="none"
        )
        losses.backward(upstream)
        assert not losses[::2, 1].any()
        assert not q.grad[::2, 1].any()
        grads.append(e.grad)
    assert grads[0].any()
    assert torch.equal(*grads)


def test_large_scores_keep_their_precision(isa: str, device: torch.device) -> None:
    """The loss of a target far above its negatives is tiny, not rounded to 0."""
    table = torch.tensor([[1.0], [0.0]], device=device)
    targets, negatives = torch.tensor([0], device=device), torch.tensor([1], device=device)
    for score in (10.0, 30.0):
        query = torch.full((1, 1), score, device=device)
        loss = af.sampled_softmax(query, targets, negatives, None, table)
        assert float(loss) == pytest.approx(math.log1p(math.exp(-score)), rel=1e-5)
        loss = af.sampled_softmax(query, negatives, targets, None, table)
        assert float(loss) == pytest.approx(score + math.log1p(math.exp(-score)), rel=1e-6)


@pytest.mark.parametrize(
    ("leading", "shape"),
    [((11, 13), (11, 200)), ((11, 40), (11, 200)), ((1100,), (300,)), ((150,), (150, 9))],
    ids=["few queries a list", "lists", "one list", "own lists"],
)
def test_same_results_bit_by_bit(leading: tuple[int, ...], shape: tuple[int, ...]) -> None:
    """Every sum is one thread's, in one order, so nothing depends on the threads."""
    semantic, embeddings = TableCase().tables()
    _, targets, negatives = inputs(TableCase(), leading, shape, torch.device("cpu"))
    results = []
    before = torch.get_num_threads()
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        table = embeddings.clone().requires_grad_()
        queries = torch.linspace(-1, 1, math.prod(leading) * 19).view(*leading, 19)
        queries.requires_grad_()
        loss = af.sampled_softmax(
            queries, targets, negatives, semantic, table, similarity="cosine", temperature=0.1
        )
        results.append((loss.detach(), *torch.autograd.grad(loss, (queries, table))))
    torch.set_num_threads(before)
    for found in results[1:]:
        for one, first in zip(found, results[0], strict=True):
            assert torch.equal(one, first)


@pytest.mark.parametrize("sparse", [False, True])
def test_no_scores_are_kept_for_the_backward_pass(sparse: bool) -> None:
    semantic, embeddings = TableCase().tables()
    queries, targets, negatives = inputs(TableCase(), (40,), (200,), torch.device("cpu"))
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        af.sampled_softmax(
            *(queries.requires_grad_(), targets, negatives, semantic),
            embeddings.requires_grad_(),
            sparse=sparse,
        )
    given = {t.data_ptr() for t in (queries, targets, negatives, semantic, embeddings)}
    assert kept
    assert max(t.numel() for t in kept if t.data_ptr() not in given) <= 40 * 19


@pytest.mark.parametrize(("argument", "bad"), [("targets", 262), ("negatives", -1)])
def test_ids_out_of_range(argument: str, bad: int) -> None:
    semantic, embeddings = TableCase().tables()
    ids = {"targets": torch.tensor([0, 1]), "negatives": torch.tensor([0, 3])}
    ids[argument][1] = bad
    with pytest.raises(IndexError, match=f"{argument}: got {bad} at position 1; expected 0 <= id"):
        af.sampled_softmax(torch.randn(2, 19), *ids.values(), semantic, embeddings)


S, E, Q = torch.randn(9, 4), torch.randn(9, 3), torch.randn(2, 5, 7)
T, N = torch.ones(2, 5, dtype=torch.int64), torch.ones(2, 5, 6, dtype=torch.int64)


@pytest.mark.parametrize(
    ("arguments", "keywords", "error", "message"),
    [
        ((Q, T.float(), N), {}, TypeError, "targets: got torch.float32"),
        ((Q, T[0], N), {}, ValueError, r"targets: got shape \(5,\); expected \(2, 5\)"),
        ((Q, T, N.float()), {}, TypeError, "negatives: got torch.float32"),
        ((Q, T, N[0, 0, 0]), {}, ValueError, r"negatives: got shape \(\)"),
        ((Q, T, N[:1]), {}, ValueError, r"negatives: got shape \(1, 5, 6\); .* or \(2, 5, K\)"),
        (
            (Q[None], T, N),
            {},
            ValueError,
            r"queries: got shape .*; expected \(B, 7\) or \(B, L, 7\)",
        ),
        ((Q, T, N), {"temperature": 0}, ValueError, "temperature: got 0"),
        ((Q, T, N), {"temperature": torch.ones(5)}, ValueError, r"or of shape \(2, 5\)"),
        ((Q, T, N), {"temperature": torch.zeros(2, 5)}, ValueError, "temperature: got a tensor w"),
        ((Q, T, N), {"reduction": "max"}, ValueError, "reduction: got 'max'"),
        ((Q, T, N), {"log_q": torch.ones(8)}, ValueError, r"log_q: got shape \(8,\)"),
        ((Q, T, N), {"log_q": [1.0]}, TypeError, "log_q: got list"),
        ((Q, T, N), {"weight": torch.ones(9).long()}, TypeError, "weight: got torch.int64"),
        ((Q, T, N.to("meta")), {}, ValueError, "negatives: got device meta"),
    ],
)
def test_bad_arguments(
    arguments: tuple, keywords: dict, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        af.sampled_softmax(*arguments, S, E, **keywords)
