"""``score_candidates``: scores of a few given items, such as sampled negatives."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from alphafuse_ext.ops import gradients, native, reference
from alphafuse_ext.ops.arguments import (
    check_candidates,
    check_device,
    check_queries,
    lists_of,
    prepare_queries,
)
from alphafuse_ext.ops.declare import Op, refuse_second_derivatives
from alphafuse_ext.ops.graphs import outside_graphs
from alphafuse_ext.ops.precision import precision_of_lists
from alphafuse_ext.ops.tables import FusedTables


def score_candidates(
    queries: torch.Tensor,
    candidates: torch.Tensor,
    semantic_rows: torch.Tensor | None,
    id_embeddings: torch.Tensor | None,
    fusion: str = "concat",
    similarity: str = "dot",
    sparse: bool = False,
) -> torch.Tensor:
    """Scores of ``K`` candidates for each query.

    Args:
        queries: ``(B, dim)`` or ``(B, L, dim)``; float32, bfloat16 or float16.
        candidates: int64 or int32 ids, ``(K,)`` shared by all queries, ``(B, K)`` for each
            sequence, or ``(B, L, K)`` for each position (with queries ``(B, L, dim)``). The padding
            id ``N`` is never scored: -inf, without gradient.
        semantic_rows: frozen, ``(N, dim - null_dim)`` (concat) or ``(N, dim)`` (add), or ``None``.
        id_embeddings: ``(N, null_dim)``, or ``None``.
        fusion: ``"concat"`` or ``"add"``, see :func:`lookup`.
        similarity: ``"dot"`` or ``"cosine"``, see :func:`score_all`.
        sparse: the gradient of ``id_embeddings`` is a coalesced sparse tensor of the touched rows.
            It causes a graph break under ``torch.compile``.

    Returns:
        float32, ``(B, K)`` or ``(B, L, K)``: not rounded to the dtype of the queries,
        as inputs of a loss. Differentiable with respect to ``queries`` and ``id_embeddings``.

    Raises:
        ValueError, TypeError: an invalid argument; nothing was computed.
        IndexError: a candidate is outside ``0 .. N``.
    """
    tables = FusedTables.checked(semantic_rows, id_embeddings, fusion, similarity)
    check_queries(queries, tables.dim, ndims=(2, 3))
    batch_ndim = check_candidates("candidates", candidates, queries)
    check_device("queries", queries, semantic_rows, id_embeddings)
    check_device("candidates", candidates, semantic_rows, id_embeddings)
    tables.precision = precision_of_lists(queries, tables)
    op = _op_outside_graphs if sparse else _op

    lists, of_list = lists_of(queries, batch_ndim)
    scores = op(
        prepare_queries(queries, similarity).reshape(lists, of_list, tables.dim),
        candidates.long().reshape(lists, candidates.shape[-1]),
        tables,
        sparse,
    )
    return scores.reshape(*queries.shape[:-1], candidates.shape[-1])


def _result(queries: Tensor, candidates: Tensor, tables: FusedTables, sparse: bool) -> Tensor:
    return queries.new_empty((*queries.shape[:2], candidates.shape[1]))


def _score_candidates(
    queries: Tensor, candidates: Tensor, tables: FusedTables, sparse: bool
) -> Tensor:
    queries, candidates = queries.contiguous(), candidates.contiguous()
    native.check_ids("candidates", candidates, 0, tables.num_embeddings)
    out = _result(queries, candidates, tables, sparse)
    kernels, where = native.kernels(queries, tables.precision)
    kernels.score_candidates(tables.native(), queries, candidates, out, where)
    return out


def _definition(
    queries: Tensor, candidates: Tensor, tables: FusedTables, sparse: bool = False
) -> Tensor:
    rows = reference.rows_of(tables.scored_rows(), candidates)
    padding = (candidates == tables.num_embeddings)[:, None]
    return (queries @ rows.transpose(-1, -2)).masked_fill(padding, -torch.inf)


def _save(
    ctx: Any, output: Tensor, queries: Tensor, candidates: Tensor, tables: FusedTables, sparse: bool
) -> None:
    ctx.save_for_backward(output, queries, candidates, tables.semantic_rows, tables.id_embeddings)
    ctx.how, ctx.sparse = tables.how, sparse


def _backward(ctx: Any, grad: Tensor) -> dict[str, Tensor]:
    scores, queries, candidates, *pair = ctx.saved_tensors
    tables = FusedTables(*pair, *ctx.how)
    found = {}
    if ctx.needs["queries"]:
        found["queries"] = _grad_queries_op(grad, queries, candidates, tables)
    if ctx.needs["id_embeddings"]:
        if ctx.sparse:
            refuse_second_derivatives("with sparse gradients")
        of_ids = _sparse_gradient if ctx.sparse else _grad_ids_op
        found["id_embeddings"] = of_ids(grad, scores, queries, candidates, tables)
    return found


def _score_candidates_grad_queries(
    grad: Tensor, queries: Tensor, candidates: Tensor, tables: FusedTables
) -> Tensor:
    grad, candidates = grad.contiguous(), candidates.contiguous()
    out = queries.new_empty(queries.shape)
    kernels, where = native.kernels(queries, tables.precision)
    kernels.score_candidates_grad_queries(tables.native(), candidates, grad, out, where)
    return out


def _score_candidates_grad_ids(
    grad: Tensor, scores: Tensor, queries: Tensor, candidates: Tensor, tables: FusedTables
) -> Tensor:
    return _id_gradient(grad, scores, queries, candidates, tables, sparse=False)


def _sparse_gradient(
    grad: Tensor, scores: Tensor, queries: Tensor, candidates: Tensor, tables: FusedTables
) -> Tensor:
    return _id_gradient(grad, scores, queries, candidates, tables, sparse=True)


def _id_gradient(
    grad: Tensor,
    scores: Tensor,
    queries: Tensor,
    candidates: Tensor,
    tables: FusedTables,
    sparse: bool,
) -> Tensor:
    grad, scores = grad.contiguous(), scores.contiguous()
    queries, candidates = queries.contiguous(), candidates.contiguous()
    whole, queries = queries, gradients.zero_unused(queries, grad)
    if tables.cosine and queries is not whole:
        scores = torch.where(grad == 0, 0.0, scores)
    num_embeddings, null_dim = tables.one.shape
    groups = gradients.group_ids(candidates, num_embeddings, sparse)
    rows = gradients.empty_rows(groups, num_embeddings, null_dim, grad.device, sparse)
    kernels, where = native.kernels(queries, tables.precision)
    kernels.score_candidates_grad_ids(
        tables.native(), queries, candidates, scores, grad, groups, rows, where
    )
    return gradients.finish(rows, groups, num_embeddings, tables.one.dtype, sparse)


def _gradients(
    grad: Tensor, queries: Tensor, candidates: Tensor, tables: FusedTables, *needs: bool
) -> tuple[Tensor, Tensor]:
    return gradients.by_definition(
        lambda queries, tables: _definition(queries, candidates, tables),
        grad,
        queries,
        tables,
        *needs,
    )


_grad_queries_op = Op(
    _score_candidates_grad_queries,
    fake=lambda grad, queries, candidates, tables: queries.new_empty(queries.shape),
    definition=lambda *arguments: _gradients(*arguments, True, False)[0],
)
_grad_ids_op = Op(
    _score_candidates_grad_ids,
    fake=lambda grad, scores, queries, candidates, tables: tables.one.new_empty(tables.one.shape),
    definition=lambda grad, scores, *arguments: _gradients(grad, *arguments, False, True)[1],
)
_op = Op(_score_candidates, fake=_result, save=_save, backward=_backward, definition=_definition)
_op_outside_graphs = outside_graphs(_op)  # compiled graphs know no sparse tensors
