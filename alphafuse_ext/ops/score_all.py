"""``score_all``: every item's score for every query."""

from __future__ import annotations

from typing import Any

import torch

from alphafuse_ext.ops import native
from alphafuse_ext.ops.arguments import (
    check_device,
    check_queries,
    check_similarity,
    check_tables,
    prepare_queries,
)


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
            row of zeros scores 0 and has a gradient of zero.

    Returns:
        ``(B, N)`` in the dtype of ``queries``, accumulated in float32. Differentiable with respect
        to ``queries`` and ``id_embeddings``.

    Raises:
        ValueError, TypeError: an argument does not fit; nothing was computed.
    """
    shape = check_tables(semantic_rows, id_embeddings, fusion)
    check_similarity(similarity)
    check_queries(queries, shape.dim)
    check_device("queries", queries, semantic_rows, id_embeddings)
    scores = _score_all(
        prepare_queries(queries, similarity),
        semantic_rows,
        id_embeddings,
        fusion,
        similarity == "cosine",
    )
    return scores.to(queries.dtype)


@torch.library.custom_op(
    "alphafuse::score_all",
    mutates_args=(),
    schema=(
        "(Tensor queries, Tensor? semantic_rows, Tensor? id_embeddings, str fusion, bool cosine)"
        " -> Tensor"
    ),
)
def _score_all(
    queries: torch.Tensor,
    semantic_rows: torch.Tensor | None,
    id_embeddings: torch.Tensor | None,
    fusion: str,
    cosine: bool,
) -> torch.Tensor:
    queries = queries.contiguous()
    out = _score_all_fake(queries, semantic_rows, id_embeddings, fusion, cosine)
    tables = native.tables(semantic_rows, id_embeddings, fusion, cosine)
    kernels, where = native.kernels(queries)
    kernels.score_all(tables, queries, out, where)
    return out


@_score_all.register_fake
def _score_all_fake(
    queries: torch.Tensor,
    semantic_rows: torch.Tensor | None,
    id_embeddings: torch.Tensor | None,
    fusion: str,
    cosine: bool,
) -> torch.Tensor:
    return queries.new_empty(
        (queries.shape[0], native.num_embeddings(semantic_rows, id_embeddings))
    )


@torch.library.custom_op(
    "alphafuse::score_all_backward",
    mutates_args=(),
    schema=(
        "(Tensor grad, Tensor queries, Tensor? semantic_rows, Tensor? id_embeddings, str fusion,"
        " bool cosine, bool need_queries, bool need_ids) -> (Tensor, Tensor)"
    ),
)
def _score_all_backward(
    grad: torch.Tensor,
    queries: torch.Tensor,
    semantic_rows: torch.Tensor | None,
    id_embeddings: torch.Tensor | None,
    fusion: str,
    cosine: bool,
    need_queries: bool,
    need_ids: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    grad, queries = grad.contiguous(), queries.contiguous()
    grad_queries, grad_ids = native.empty_gradients(queries, id_embeddings, need_queries, need_ids)
    tables = native.tables(semantic_rows, id_embeddings, fusion, cosine)
    kernels, where = native.kernels(queries)
    kernels.score_all_backward(tables, queries, grad, grad_queries, grad_ids, where)
    return native.finish_gradients(queries, grad_queries, grad_ids, id_embeddings)


@_score_all_backward.register_fake
def _score_all_backward_fake(
    grad: torch.Tensor,
    queries: torch.Tensor,
    semantic_rows: torch.Tensor | None,
    id_embeddings: torch.Tensor | None,
    fusion: str,
    cosine: bool,
    need_queries: bool,
    need_ids: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    return native.fake_gradients(queries, id_embeddings, need_queries, need_ids)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    queries, semantic_rows, id_embeddings, ctx.fusion, ctx.cosine = inputs
    ctx.save_for_backward(queries, semantic_rows, id_embeddings)


def _backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    need_queries, _, need_ids, _, _ = ctx.needs_input_grad
    grad_queries, grad_ids = _score_all_backward(
        grad, *ctx.saved_tensors, ctx.fusion, ctx.cosine, need_queries, need_ids
    )
    return (
        grad_queries if need_queries else None,
        None,
        grad_ids if need_ids else None,
        None,
        None,
    )


_score_all.register_autograd(_backward, setup_context=_setup_context)
