"""``cross_entropy``: softmax loss over the whole catalog, without the matrix of scores."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from alphafuse_ext.checks import integer, invalid
from alphafuse_ext.ops import gradients, native
from alphafuse_ext.ops.arguments import (
    check_device,
    check_integers,
    check_queries,
    check_targets,
    prepare_queries,
    without_ignored,
)
from alphafuse_ext.ops.declare import Op
from alphafuse_ext.ops.precision import precision_of
from alphafuse_ext.ops.tables import FusedTables

REDUCTIONS = ("mean", "sum", "none")


def cross_entropy(
    queries: torch.Tensor,
    targets: torch.Tensor,
    semantic_rows: torch.Tensor | None,
    id_embeddings: torch.Tensor | None,
    fusion: str = "concat",
    similarity: str = "dot",
    temperature: float | torch.Tensor = 1.0,
    reduction: str = "mean",
    *,
    ignore_index: int | None = None,
    weight: torch.Tensor | None = None,
) -> torch.Tensor:
    """``-log softmax(scores / temperature)[target]`` over all ``N`` items.

    Neither forward nor backward stores a ``(B, N)`` matrix or the fused table: tiles of scores are
    computed, and recomputed in the backward pass.

    Args:
        queries: ``(..., dim)``, such as ``(B, dim)`` or ``(B, L, dim)``; float32, bfloat16 or
            float16.
        targets: ``(...)``, int64 or int32 ids, one for each query. The padding id ``N`` is an
            ignored target: its loss is 0, without gradient, for any query, and ``"mean"``
            does not count it.
        semantic_rows: frozen, ``(N, dim - null_dim)`` (concat) or ``(N, dim)`` (add), or ``None``.
        id_embeddings: ``(N, null_dim)``, or ``None``.
        fusion: ``"concat"`` or ``"add"``, see :func:`lookup`.
        similarity: ``"dot"`` or ``"cosine"``, see :func:`score_all`.
        temperature: divides the scores; positive. A tensor of one element may be trained: the loss
            is differentiable with respect to it.
        reduction: ``"mean"`` over the targets that count (NaN if there are none, as in
            ``torch.nn.functional.cross_entropy``), ``"sum"`` or ``"none"``.
        ignore_index: another target to ignore, such as torch's -100; ``N`` is ignored all the same.
        weight: ``(N,)``, float, without a gradient: each loss is multiplied by the weight of its
            target, and ``"mean"`` divides by the sum of these weights, as in torch.

    Returns:
        float32, a scalar, or of the shape of ``targets`` for ``"none"``. Differentiable with
        respect to ``queries`` and ``id_embeddings``; the gradient of ``id_embeddings`` is dense, as
        all items take part in the softmax.

    Raises:
        ValueError, TypeError: an invalid argument; nothing was computed.
        IndexError: a target is outside ``0 .. N``.
    """
    tables = FusedTables.checked(semantic_rows, id_embeddings, fusion, similarity)
    check_queries(queries, tables.dim, ndims=None)
    check_targets(targets, queries.shape[:-1])
    check_device("queries", queries, semantic_rows, id_embeddings)
    tables.precision = precision_of(queries, tables)
    check_device("targets", targets, semantic_rows, id_embeddings)
    temperature = check_loss(temperature, reduction)
    if weight is not None:
        check_weight(weight, tables.num_embeddings)
        check_device("weight", weight, semantic_rows, id_embeddings)

    targets = ignoring(targets, ignore_index, tables.num_embeddings).long()
    queries = without_ignored(queries, targets, tables.num_embeddings)
    prepared = tempered(prepare_queries(queries, similarity), temperature).reshape(-1, tables.dim)
    losses, _ = _op(prepared, targets.reshape(-1), tables)
    return reduced(losses, targets, tables.num_embeddings, reduction, weight)


def check_loss(
    temperature: float | Tensor, reduction: str, shape: torch.Size | None = None
) -> float | Tensor:
    """Check these arguments of :func:`cross_entropy`; returns the temperature.

    Args:
        shape: of the targets, where each may have a temperature of its own.
    """
    if reduction not in REDUCTIONS:
        raise invalid("reduction", repr(reduction), "'mean', 'sum' or 'none'")
    allowed = "a finite number above 0"
    if not isinstance(temperature, Tensor):
        try:
            # `math.isfinite` does not take symbols of a compiled graph.
            if 0 < temperature < math.inf:
                return temperature
        except TypeError:
            raise invalid("temperature", repr(temperature), allowed, TypeError) from None
        raise invalid("temperature", temperature, allowed)
    of_each = shape is not None and temperature.shape == shape
    if (temperature.numel() != 1 and not of_each) or not temperature.is_floating_point():
        found = f"a tensor of {temperature.dtype}, shape {tuple(temperature.shape)}"
        of_targets = "" if shape is None else f" or of shape {tuple(shape)}"
        allowed = f"{allowed}, or a float tensor of one element{of_targets}"
        raise invalid("temperature", found, allowed)
    if of_each:
        native.refuse_unless(
            ((temperature > 0) & (temperature < math.inf)).all(),
            f"temperature: got a tensor with others; expected {allowed}",
        )
        return temperature.unsqueeze(-1)
    temperature = temperature.reshape(())
    fits = (temperature > 0) & (temperature < math.inf)
    native.refuse_unless(fits, f"temperature: got a tensor of another; expected {allowed}")
    return temperature


def check_weight(weight: Tensor, num_embeddings: int, name: str = "weight") -> None:
    """Checks a number for each item, such as the weights of targets, but for its device."""
    if not isinstance(weight, Tensor):
        raise invalid(name, type(weight).__name__, "a float tensor or None", TypeError)
    if not weight.is_floating_point():
        raise invalid(name, weight.dtype, "a float tensor", TypeError)
    if weight.shape != (num_embeddings,):
        allowed = f"({num_embeddings},), one for each item"
        raise invalid(name, f"shape {tuple(weight.shape)}", allowed)
    if weight.requires_grad:
        raise invalid(name, "a tensor that requires grad", "one without: call .detach() on it")


def ignoring(targets: Tensor, ignore_index: int | None, padding: int) -> Tensor:
    """The targets, with the padding in place of ``ignore_index``."""
    if ignore_index is None:
        return targets
    check_integers("targets", targets)
    ignored = targets == integer("ignore_index", ignore_index, "an integer or None")
    return targets.masked_fill(ignored, padding)


def tempered(queries: Tensor, temperature: float | Tensor) -> Tensor:
    """Queries whose scores are divided by the temperature."""
    # Comparing the temperature would recompile the graph for each value.
    if isinstance(temperature, Tensor) or torch.compiler.is_compiling() or temperature != 1.0:
        return queries / temperature
    return queries


def reduced(
    losses: Tensor, targets: Tensor, padding: int, reduction: str, weight: Tensor | None = None
) -> Tensor:
    """Losses ``(B,)`` as :func:`cross_entropy` returns them."""
    counted = targets != padding
    if weight is not None:
        of_targets = weight[targets.masked_fill(~counted, 0)].float()
        counted = of_targets.masked_fill(~counted, 0.0)
        losses = losses * counted.reshape(-1)
    if reduction == "none":
        return losses.view(targets.shape)
    if reduction == "sum":
        return losses.sum()
    return losses.sum() / counted.sum()


def _cross_entropy(queries: Tensor, targets: Tensor, tables: FusedTables) -> tuple[Tensor, Tensor]:
    """Losses ``(B,)``, and two numbers per query for the backward pass, ``(2, B)``.

    That is the largest score, and the log of the sum of ``exp(score - largest)``: kept separate,
    since their sum would lose precision for large scores.
    """
    queries, targets = queries.contiguous(), targets.contiguous()
    padding = tables.num_embeddings
    native.check_ids("targets", targets, 0, padding)
    _, softmax = _result(queries, targets, tables)
    scores = torch.empty_like(softmax[0])
    maxima, logs = softmax.unbind()
    kernels, where = native.kernels(queries, tables.precision)
    kernels.log_sum_exp(tables.native(), queries, maxima, logs, where)
    kernels.target_scores(tables.native(), queries, targets, scores, where)
    return torch.where(targets == padding, 0.0, (maxima - scores) + logs), softmax


def _result(queries: Tensor, targets: Tensor, tables: FusedTables) -> tuple[Tensor, Tensor]:
    return queries.new_empty(queries.shape[0]), queries.new_empty((2, queries.shape[0]))


def _definition(queries: Tensor, targets: Tensor, tables: FusedTables) -> tuple[Tensor, Tensor]:
    scores = queries @ tables.scored_rows().T
    padding = tables.num_embeddings
    ignored = targets == padding
    target = scores.gather(1, targets.masked_fill(ignored, 0)[:, None])[:, 0]
    losses = (scores.logsumexp(1) - target).masked_fill(ignored, 0.0)
    with torch.no_grad():
        maxima = scores.amax(1)
        return losses, torch.stack([maxima, (scores - maxima[:, None]).exp().sum(1).log()])


def _save(
    ctx: Any, output: tuple[Tensor, Tensor], queries: Tensor, targets: Tensor, tables: FusedTables
) -> None:
    _, softmax = output
    ctx.mark_non_differentiable(softmax)
    ctx.save_for_backward(softmax, queries, targets, tables.semantic_rows, tables.id_embeddings)
    ctx.how = tables.how


def _backward(ctx: Any, grad: Tensor, _: Any) -> dict[str, Tensor]:
    softmax, queries, targets, *pair = ctx.saved_tensors
    needs = ctx.needs["queries"], ctx.needs["id_embeddings"]
    grads = _backward_op(grad, softmax, queries, targets, FusedTables(*pair, *ctx.how), *needs)
    return dict(zip(("queries", "id_embeddings"), grads, strict=True))


def _cross_entropy_backward(
    grad: Tensor,
    softmax: Tensor,
    queries: Tensor,
    targets: Tensor,
    tables: FusedTables,
    need_queries: bool,
    need_ids: bool,
) -> tuple[Tensor, Tensor]:
    queries, targets = queries.contiguous(), targets.contiguous()
    maxima, logs = softmax.contiguous().unbind()
    weights = torch.where(targets == tables.num_embeddings, 0.0, grad).contiguous()
    queries = gradients.zero_unused(queries, weights)
    of_queries, of_ids = gradients.empty(queries, tables, need_queries, need_ids)
    kernels, where = native.kernels(queries, tables.precision)
    kernels.cross_entropy_backward(
        tables.native(), queries, targets, maxima, logs, weights, of_queries, of_ids, where
    )
    return gradients.of_catalog(queries, of_queries, of_ids, tables)


def _backward_definition(
    grad: Tensor, softmax: Tensor, queries: Tensor, targets: Tensor, *rest: Any
) -> tuple[Tensor, Tensor]:
    return gradients.by_definition(
        lambda queries, tables: _definition(queries, targets, tables)[0], grad, queries, *rest
    )


_backward_op = Op(
    _cross_entropy_backward,
    fake=lambda grad, softmax, queries, targets, *rest: gradients.fake_of_catalog(queries, *rest),
    definition=_backward_definition,
)
_op = Op(_cross_entropy, fake=_result, save=_save, backward=_backward, definition=_definition)
