"""``score_all``: every item's score for every query."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from alphafuse_ext.ops import gradients, native
from alphafuse_ext.ops.arguments import check_device, check_queries, prepare_queries
from alphafuse_ext.ops.declare import Op
from alphafuse_ext.ops.precision import precision_of
from alphafuse_ext.ops.tables import FusedTables


def score_all(
    queries: torch.Tensor,
    semantic_rows: torch.Tensor | None,
    id_embeddings: torch.Tensor | None,
    fusion: str = "concat",
    similarity: str = "dot",
) -> torch.Tensor:
    """Scores of all ``N`` items for each query.

    Args:
        queries: ``(B, dim)``; float32, bfloat16 or float16.
        semantic_rows: frozen, ``(N, dim - null_dim)`` (concat) or ``(N, dim)`` (add), or ``None``.
        id_embeddings: ``(N, null_dim)``, or ``None``.
        fusion: ``"concat"`` or ``"add"``, see :func:`lookup`.
        similarity: ``"dot"``, or ``"cosine"``, which divides by both norms, each clamped at 1e-8; a
            row of zeros has score 0 and gradient 0.

    Returns:
        ``(B, N)`` in the dtype of ``queries``, accumulated in float32. Differentiable with respect
        to ``queries`` and ``id_embeddings``.

    Raises:
        ValueError, TypeError: an invalid argument; nothing was computed.
    """
    tables = FusedTables.checked(semantic_rows, id_embeddings, fusion, similarity)
    check_queries(queries, tables.dim)
    check_device("queries", queries, semantic_rows, id_embeddings)
    tables.precision = precision_of(queries, tables)
    return _op(prepare_queries(queries, similarity), tables, queries.dtype)


def _result(queries: Tensor, tables: FusedTables, dtype: torch.dtype) -> Tensor:
    return queries.new_empty((queries.shape[0], tables.num_embeddings), dtype=dtype)


def _score_all(queries: Tensor, tables: FusedTables, dtype: torch.dtype) -> Tensor:
    queries = queries.contiguous()
    out = _result(queries, tables, dtype)
    kernels, where = native.kernels(queries, tables.precision)
    kernels.score_all(tables.native(), queries, out, where)
    return out


def _scores(queries: Tensor, tables: FusedTables) -> Tensor:
    return queries @ tables.scored_rows().T


def _definition(queries: Tensor, tables: FusedTables, dtype: torch.dtype) -> Tensor:
    return _scores(queries, tables).to(dtype)


def _save(
    ctx: Any, output: Tensor, queries: Tensor, tables: FusedTables, dtype: torch.dtype
) -> None:
    ctx.save_for_backward(queries, tables.semantic_rows, tables.id_embeddings)
    ctx.how = tables.how


def _backward(ctx: Any, grad: Tensor) -> dict[str, Tensor]:
    queries, *pair = ctx.saved_tensors
    needs = ctx.needs["queries"], ctx.needs["id_embeddings"]
    grads = _backward_op(grad, queries, FusedTables(*pair, *ctx.how), *needs)
    return dict(zip(("queries", "id_embeddings"), grads, strict=True))


def _score_all_backward(
    grad: Tensor, queries: Tensor, tables: FusedTables, need_queries: bool, need_ids: bool
) -> tuple[Tensor, Tensor]:
    grad, queries = grad.contiguous(), queries.contiguous()
    queries = gradients.zero_unused(queries, grad)
    of_queries, of_ids = gradients.empty(queries, tables, need_queries, need_ids)
    kernels, where = native.kernels(queries, tables.precision)
    kernels.score_all_backward(tables.native(), queries, grad, of_queries, of_ids, where)
    return gradients.of_catalog(queries, of_queries, of_ids, tables)


_backward_op = Op(
    _score_all_backward,
    fake=lambda grad, *arguments: gradients.fake_of_catalog(*arguments),
    definition=lambda grad, *arguments: gradients.by_definition(_scores, grad.float(), *arguments),
)
_op = Op(_score_all, fake=_result, save=_save, backward=_backward, definition=_definition)
