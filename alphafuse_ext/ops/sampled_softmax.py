"""``sampled_softmax``: softmax loss over a target and negatives, without the matrix of scores."""

from __future__ import annotations

from typing import Any, Optional

import torch
from torch import Tensor

from alphafuse_ext.ops import gradients, native, reference
from alphafuse_ext.ops.arguments import (
    check_candidates,
    check_device,
    check_queries,
    check_targets,
    lists_of,
    prepare_queries,
    without_ignored,
)
from alphafuse_ext.ops.cross_entropy import check_loss, check_weight, ignoring, reduced, tempered
from alphafuse_ext.ops.declare import Op, refuse_second_derivatives
from alphafuse_ext.ops.graphs import outside_graphs
from alphafuse_ext.ops.precision import precision_of_lists
from alphafuse_ext.ops.tables import FusedTables


def sampled_softmax(
    queries: torch.Tensor,
    targets: torch.Tensor,
    negatives: torch.Tensor,
    semantic_rows: torch.Tensor | None,
    id_embeddings: torch.Tensor | None,
    fusion: str = "concat",
    similarity: str = "dot",
    temperature: float | torch.Tensor = 1.0,
    reduction: str = "mean",
    sparse: bool = False,
    *,
    log_q: torch.Tensor | None = None,
    ignore_index: int | None = None,
    weight: torch.Tensor | None = None,
) -> torch.Tensor:
    """``-log softmax(scores / temperature - log_q)[target]`` over the target and ``K`` negatives.

    Scores are computed in tiles and again in the backward pass: between the two passes three
    numbers are kept for each query, not its ``K`` scores.

    Args:
        queries: ``(B, dim)`` or ``(B, L, dim)``; float32, bfloat16 or float16.
        targets: ``(B,)`` or ``(B, L)``, int64 or int32 ids. The padding id ``N`` is an ignored
            target: its loss is 0, without gradient, for any query, and ``"mean"`` does not count
            it.
        negatives: int64 or int32 ids, ``(K,)`` shared by all queries, ``(B, K)`` for each sequence,
            or ``(B, L, K)`` for each position (with queries ``(B, L, dim)``). A negative that is
            the query's own target is left out, and so is the padding id ``N``; one that is drawn
            twice counts twice.
        semantic_rows: frozen, ``(N, dim - null_dim)`` (concat) or ``(N, dim)`` (add), or ``None``.
        id_embeddings: ``(N, null_dim)``, or ``None``.
        fusion: ``"concat"`` or ``"add"``, see :func:`lookup`.
        similarity: ``"dot"`` or ``"cosine"``, see :func:`score_all`.
        temperature: divides the scores, as in :func:`cross_entropy`; or a tensor of the shape of
            ``targets``, one for each query.
        reduction: ``"mean"`` over the targets that count, ``"sum"`` or ``"none"``, as in
            :func:`cross_entropy`.
        sparse: the gradient of ``id_embeddings`` is a coalesced sparse tensor of the touched rows,
            those of targets and negatives. It causes a graph break under ``torch.compile``.
        log_q: ``(N,)``, float, without a gradient: of each item the logarithm of the probability,
            or the frequency, with which it is drawn as a negative. It is subtracted from the scores
            of targets and negatives, so that items drawn often are not pushed down for it. ``None``
            for uniform negatives, where it would change nothing.
        ignore_index: another target to ignore, such as torch's -100; ``N`` is ignored all the same.
        weight: ``(N,)``, float, without a gradient: each loss is multiplied by the weight of its
            target, as in :func:`cross_entropy`.

    Returns:
        float32, a scalar, or of the shape of ``targets`` for ``"none"``; 0 for a target without
        negatives. Differentiable with respect to ``queries`` and ``id_embeddings``.

    Raises:
        ValueError, TypeError: an invalid argument; nothing was computed.
        IndexError: a target or a negative is outside ``0 .. N``.
    """
    tables = FusedTables.checked(semantic_rows, id_embeddings, fusion, similarity)
    check_queries(queries, tables.dim, ndims=(2, 3))
    check_targets(targets, queries.shape[:-1])
    batch_ndim = check_candidates("negatives", negatives, queries)
    for name, given in (("queries", queries), ("targets", targets), ("negatives", negatives)):
        check_device(name, given, semantic_rows, id_embeddings)
    temperature = check_loss(temperature, reduction, targets.shape)
    if log_q is not None:
        check_weight(log_q, tables.num_embeddings, "log_q")
        check_device("log_q", log_q, semantic_rows, id_embeddings)
        log_q = log_q.float()
    if weight is not None:
        check_weight(weight, tables.num_embeddings)
        check_device("weight", weight, semantic_rows, id_embeddings)
    tables.precision = precision_of_lists(queries, tables)
    op = _op_outside_graphs if sparse else _op

    targets = ignoring(targets, ignore_index, tables.num_embeddings).long()
    queries = without_ignored(queries, targets, tables.num_embeddings)
    prepared = tempered(prepare_queries(queries, similarity), temperature)
    lists, of_list = lists_of(queries, batch_ndim)
    losses, _ = op(
        prepared.reshape(lists, of_list, tables.dim),
        targets.reshape(lists, of_list),
        negatives.long().reshape(lists, negatives.shape[-1]),
        log_q,
        tables,
        sparse,
    )
    return reduced(losses.reshape(-1), targets, tables.num_embeddings, reduction, weight)


_MaybeTensor = Optional[Tensor]  # noqa: UP045 (as torch.library knows it)


def _sampled_softmax(
    queries: Tensor,
    targets: Tensor,
    negatives: Tensor,
    log_q: _MaybeTensor,
    tables: FusedTables,
    sparse: bool,
) -> tuple[Tensor, Tensor]:
    """Losses ``(lists, of a list)``, and three numbers per query for the backward pass.

    Those are, of the negatives, the largest score and the log of the sum of ``exp(score -
    largest)``, and the target's score, which nothing was subtracted from.
    """
    queries, targets, negatives = queries.contiguous(), targets.contiguous(), negatives.contiguous()
    padding = tables.num_embeddings
    native.check_ids("targets", targets, 0, padding)
    native.check_ids("negatives", negatives, 0, padding)
    _, softmax = _result(queries, targets, negatives, log_q, tables, sparse)
    maxima, logs, scores = softmax.unbind()
    kernels, where = native.kernels(queries, tables.precision)
    kernels.sampled_log_sum_exp(
        tables.native(), queries, targets, negatives, _shifts(log_q), maxima, logs, where
    )
    kernels.target_scores(
        tables.native(), queries.flatten(0, 1), targets.flatten(), scores.flatten(), where
    )
    above = _above(softmax, targets, log_q, padding)
    return torch.nn.functional.softplus(above).masked_fill_(targets == padding, 0.0), softmax


def _shifts(log_q: Tensor | None) -> Tensor | None:
    return None if log_q is None else log_q.contiguous()


def _above(softmax: Tensor, targets: Tensor, log_q: Tensor | None, padding: int) -> Tensor:
    """The log-sum-exp of a query's negatives less its target's score."""
    maxima, logs, scores = softmax.unbind()
    if log_q is not None:
        scores = scores - log_q[targets.masked_fill(targets == padding, 0)]
    return (maxima - scores) + logs


def _result(
    queries: Tensor,
    targets: Tensor,
    negatives: Tensor,
    log_q: Tensor | None,
    tables: FusedTables,
    sparse: bool,
) -> tuple[Tensor, Tensor]:
    return queries.new_empty(targets.shape), queries.new_empty((3, *targets.shape))


def _definition(
    queries: Tensor,
    targets: Tensor,
    negatives: Tensor,
    log_q: Tensor | None,
    tables: FusedTables,
    sparse: bool = False,
) -> tuple[Tensor, Tensor]:
    rows, padding = tables.scored_rows(), tables.num_embeddings
    target = (queries * reference.rows_of(rows, targets)).sum(-1)
    scores = queries @ reference.rows_of(rows, negatives).transpose(-1, -2)
    negatives = negatives[:, None]
    shifted = target
    if log_q is not None:
        shifts = torch.nn.functional.pad(log_q, (0, 1))
        shifted, scores = target - shifts[targets], scores - shifts[negatives]
    left_out = (negatives == padding) | (negatives == targets[..., None])
    scores = scores.masked_fill(left_out, -torch.inf)
    losses = torch.cat([shifted[..., None], scores], -1).logsumexp(-1) - shifted
    with torch.no_grad():
        maxima = torch.nn.functional.pad(scores, (0, 1), value=-torch.inf).amax(-1)
        from_maximum = scores - maxima.masked_fill(maxima.isinf(), 0.0)[..., None]
        softmax = torch.stack([maxima, from_maximum.exp().sum(-1).log(), target])
    return losses.masked_fill(targets == padding, 0.0), softmax


def _save(
    ctx: Any,
    output: tuple[Tensor, Tensor],
    queries: Tensor,
    targets: Tensor,
    negatives: Tensor,
    log_q: Tensor | None,
    tables: FusedTables,
    sparse: bool,
) -> None:
    _, softmax = output
    ctx.mark_non_differentiable(softmax)
    ctx.save_for_backward(softmax, queries, targets, negatives, log_q, *tables.pair)
    ctx.how, ctx.sparse = tables.how, sparse


def _backward(ctx: Any, grad: Tensor, _: Any) -> dict[str, Tensor]:
    softmax, queries, targets, negatives, log_q, *pair = ctx.saved_tensors
    given = softmax, queries, targets, negatives, log_q, FusedTables(*pair, *ctx.how)
    needs = ctx.needs["queries"], ctx.needs["id_embeddings"]
    if ctx.sparse and needs[1]:
        refuse_second_derivatives("with sparse gradients")
        grads = _gradients(grad, *given, *needs, sparse=True)
    else:
        grads = _backward_op(grad, *given, *needs)
    return dict(zip(("queries", "id_embeddings"), grads, strict=True))


def _sampled_softmax_backward(
    grad: Tensor,
    softmax: Tensor,
    queries: Tensor,
    targets: Tensor,
    negatives: Tensor,
    log_q: _MaybeTensor,
    tables: FusedTables,
    need_queries: bool,
    need_ids: bool,
) -> tuple[Tensor, Tensor]:
    given = grad, softmax, queries, targets, negatives, log_q, tables
    return _gradients(*given, need_queries, need_ids, sparse=False)


def _gradients(
    grad: Tensor,
    softmax: Tensor,
    queries: Tensor,
    targets: Tensor,
    negatives: Tensor,
    log_q: Tensor | None,
    tables: FusedTables,
    need_queries: bool,
    need_ids: bool,
    sparse: bool,
) -> tuple[Tensor, Tensor]:
    queries, softmax = queries.contiguous(), softmax.contiguous()
    num_embeddings, null_dim = tables.one.shape
    maxima, logs, scores = softmax.unbind()
    # The negatives' share of the softmax, by which it is to fall and the target's to rise.
    weights = grad * _above(softmax, targets, log_q, num_embeddings).sigmoid()
    unused = (targets == num_embeddings) | (grad == 0)
    weights = weights.masked_fill(unused, 0.0).contiguous()
    used = gradients.zero_unused(queries, weights)
    if used is not queries:
        queries, scores = used, torch.where(weights == 0, 0.0, scores)
    need_ids = need_ids and tables.id_embeddings is not None
    ids = torch.cat([targets.flatten(), negatives.flatten()])
    groups = gradients.group_ids(ids, num_embeddings, sparse)
    of_queries = torch.empty_like(queries) if need_queries else None
    rows = None
    if need_ids:
        rows = gradients.empty_rows(groups, num_embeddings, null_dim, grad.device, sparse)
    kernels, where = native.kernels(queries, tables.precision)
    kernels.sampled_softmax_backward(
        *(tables.native(), queries, ids, _shifts(log_q), scores, maxima, logs, weights, groups),
        *(of_queries, rows, where),
    )
    nothing = queries.new_empty(0)
    of_ids = nothing
    if rows is not None:
        of_ids = gradients.finish(rows, groups, num_embeddings, tables.one.dtype, sparse)
    return nothing if of_queries is None else of_queries, of_ids


def _backward_definition(
    grad: Tensor,
    softmax: Tensor,
    queries: Tensor,
    targets: Tensor,
    negatives: Tensor,
    log_q: Tensor | None,
    *rest: Any,
) -> tuple[Tensor, Tensor]:
    return gradients.by_definition(
        lambda queries, tables: _definition(queries, targets, negatives, log_q, tables)[0],
        grad,
        queries,
        *rest,
    )


_backward_op = Op(
    _sampled_softmax_backward,
    fake=lambda grad, softmax, queries, targets, negatives, log_q, *rest: gradients.fake_of_catalog(
        queries, *rest
    ),
    definition=_backward_definition,
)
_op = Op(_sampled_softmax, fake=_result, save=_save, backward=_backward, definition=_definition)
_op_outside_graphs = outside_graphs(_op)  # compiled graphs know no sparse tensors
