"""``cross_entropy``: softmax loss over the whole catalog, without an array of all scores."""

from __future__ import annotations

import math
from typing import Any

import torch

from alphafuse_ext.checks import invalid
from alphafuse_ext.ops import native
from alphafuse_ext.ops.arguments import (
    check_device,
    check_queries,
    check_similarity,
    check_tables,
    check_targets,
    prepare_queries,
)

REDUCTIONS = ("mean", "sum", "none")


def cross_entropy(
    queries: torch.Tensor,
    targets: torch.Tensor,
    semantic_rows: torch.Tensor | None,
    id_embeddings: torch.Tensor | None,
    fusion: str = "concat",
    similarity: str = "dot",
    temperature: float = 1.0,
    reduction: str = "mean",
) -> torch.Tensor:
    """``-log softmax(scores / temperature)[target]`` over all ``N`` items.

    Neither forward nor backward holds a ``(B, N)`` array or the fused table: tiles of scores are
    computed, and computed again backward.

    Args:
        queries: ``(B, dim)``; float32, bfloat16 or float16.
        targets: ``(B,)``, int64 or int32 ids. The padding id ``N`` is an ignored target: its loss
            is 0, without gradient, and ``"mean"`` does not count it.
        semantic_rows: frozen, ``(N, dim - null_dim)`` (concat) or ``(N, dim)`` (add), or ``None``.
        id_embeddings: ``(N, null_dim)``, or ``None``.
        fusion: ``"concat"`` or ``"add"``, see :func:`lookup`.
        similarity: ``"dot"`` or ``"cosine"``, see :func:`score_all`.
        temperature: divides the scores; positive.
        reduction: ``"mean"`` over the targets that count (NaN if there are none, as in
            ``torch.nn.functional.cross_entropy``), ``"sum"`` or ``"none"``.

    Returns:
        float32, a scalar, or ``(B,)`` for ``"none"``. Differentiable with respect to ``queries``
        and ``id_embeddings``; the gradient of ``id_embeddings`` is dense, as every item has a part
        in the softmax.

    Raises:
        ValueError, TypeError: an argument does not fit; nothing was computed.
        IndexError: a target is outside ``0 .. N``.
    """
    shape = check_tables(semantic_rows, id_embeddings, fusion)
    check_similarity(similarity)
    check_queries(queries, shape.dim)
    check_targets(targets, queries.shape[0])
    check_device("queries", queries, semantic_rows, id_embeddings)
    check_device("targets", targets, semantic_rows, id_embeddings)
    if not (math.isfinite(temperature) and temperature > 0):
        raise invalid("temperature", temperature, "a finite number above 0")
    if reduction not in REDUCTIONS:
        raise invalid("reduction", repr(reduction), "'mean', 'sum' or 'none'")

    targets = targets.long()
    losses, _ = _cross_entropy(
        prepare_queries(queries, similarity) / temperature,
        targets,
        semantic_rows,
        id_embeddings,
        fusion,
        similarity == "cosine",
    )
    if reduction == "none":
        return losses
    if reduction == "sum":
        return losses.sum()
    return losses.sum() / (targets != shape.num_embeddings).sum()


@torch.library.custom_op(
    "alphafuse::cross_entropy",
    mutates_args=(),
    schema=(
        "(Tensor queries, Tensor targets, Tensor? semantic_rows, Tensor? id_embeddings,"
        " str fusion, bool cosine) -> (Tensor, Tensor)"
    ),
)
def _cross_entropy(
    queries: torch.Tensor,
    targets: torch.Tensor,
    semantic_rows: torch.Tensor | None,
    id_embeddings: torch.Tensor | None,
    fusion: str,
    cosine: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Losses ``(B,)``, and what backward needs of each query's softmax, ``(2, B)``.

    That is the largest score, and the log of the sum of ``exp(score - largest)``: kept apart, since
    their sum would lose what large scores leave no digits for.
    """
    padding = native.num_embeddings(semantic_rows, id_embeddings)
    queries, targets = queries.contiguous(), targets.contiguous()
    native.check_ids("targets", targets, 0, padding)
    tables = native.tables(semantic_rows, id_embeddings, fusion, cosine)
    batch = queries.shape[0]
    softmax, scores = queries.new_empty((2, batch)), queries.new_empty(batch)
    maxima, logs = softmax
    kernels, where = native.kernels(queries)
    kernels.log_sum_exp(tables, queries, maxima, logs, where)
    kernels.target_scores(tables, queries, targets, scores, where)
    return torch.where(targets == padding, 0.0, (maxima - scores) + logs), softmax


@_cross_entropy.register_fake
def _cross_entropy_fake(
    queries: torch.Tensor,
    targets: torch.Tensor,
    semantic_rows: torch.Tensor | None,
    id_embeddings: torch.Tensor | None,
    fusion: str,
    cosine: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    return queries.new_empty(queries.shape[0]), queries.new_empty((2, queries.shape[0]))


@torch.library.custom_op(
    "alphafuse::cross_entropy_backward",
    mutates_args=(),
    schema=(
        "(Tensor grad, Tensor softmax, Tensor queries, Tensor targets, Tensor? semantic_rows,"
        " Tensor? id_embeddings, str fusion, bool cosine, bool need_queries, bool need_ids)"
        " -> (Tensor, Tensor)"
    ),
)
def _cross_entropy_backward(
    grad: torch.Tensor,
    softmax: torch.Tensor,
    queries: torch.Tensor,
    targets: torch.Tensor,
    semantic_rows: torch.Tensor | None,
    id_embeddings: torch.Tensor | None,
    fusion: str,
    cosine: bool,
    need_queries: bool,
    need_ids: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    queries, targets = queries.contiguous(), targets.contiguous()
    maxima, logs = softmax.contiguous()
    padding = native.num_embeddings(semantic_rows, id_embeddings)
    weights = torch.where(targets == padding, 0.0, grad).contiguous()
    grad_queries, grad_ids = native.empty_gradients(queries, id_embeddings, need_queries, need_ids)
    tables = native.tables(semantic_rows, id_embeddings, fusion, cosine)
    kernels, where = native.kernels(queries)
    softmax_and_weights = (maxima, logs, weights)
    kernels.cross_entropy_backward(
        tables, queries, targets, *softmax_and_weights, grad_queries, grad_ids, where
    )
    return native.finish_gradients(queries, grad_queries, grad_ids, id_embeddings)


@_cross_entropy_backward.register_fake
def _cross_entropy_backward_fake(
    grad: torch.Tensor,
    softmax: torch.Tensor,
    queries: torch.Tensor,
    targets: torch.Tensor,
    semantic_rows: torch.Tensor | None,
    id_embeddings: torch.Tensor | None,
    fusion: str,
    cosine: bool,
    need_queries: bool,
    need_ids: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    return native.fake_gradients(queries, id_embeddings, need_queries, need_ids)


def _setup_context(
    ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, torch.Tensor]
) -> None:
    queries, targets, semantic_rows, id_embeddings, ctx.fusion, ctx.cosine = inputs
    _, softmax = output
    ctx.mark_non_differentiable(softmax)
    ctx.save_for_backward(softmax, queries, targets, semantic_rows, id_embeddings)


def _backward(ctx: Any, grad: torch.Tensor, _: Any) -> tuple[torch.Tensor | None, ...]:
    need_queries, _, _, need_ids, _, _ = ctx.needs_input_grad
    grad_queries, grad_ids = _cross_entropy_backward(
        grad, *ctx.saved_tensors, ctx.fusion, ctx.cosine, need_queries, need_ids
    )
    return (
        grad_queries if need_queries else None,
        None,
        None,
        grad_ids if need_ids else None,
        None,
        None,
    )


_cross_entropy.register_autograd(_backward, setup_context=_setup_context)
