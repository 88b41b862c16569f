"""``score_candidates``: scores of a few given items, such as sampled negatives."""

from __future__ import annotations

from typing import Any

import torch

from alphafuse_ext.checks import invalid
from alphafuse_ext.ops import gradients, native
from alphafuse_ext.ops.arguments import (
    check_device,
    check_integers,
    check_queries,
    check_similarity,
    check_tables,
    prepare_queries,
)


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
        sparse: make the gradient of ``id_embeddings`` a coalesced sparse tensor that holds the
            touched rows only. ``torch.compile`` leaves its graph for it.

    Returns:
        ``(B, K)`` or ``(B, L, K)`` in the dtype of ``queries``, accumulated in float32.
        Differentiable with respect to ``queries`` and ``id_embeddings``.

    Raises:
        ValueError, TypeError: an argument does not fit; nothing was computed.
        IndexError: a candidate is outside ``0 .. N``.
    """
    shape = check_tables(semantic_rows, id_embeddings, fusion)
    check_similarity(similarity)
    check_queries(queries, shape.dim, ranks=(2, 3))
    check_integers("candidates", candidates)
    leading = queries.shape[:-1]
    rank = candidates.dim() - 1
    if rank < 0 or rank > len(leading) or candidates.shape[:-1] != leading[:rank]:
        allowed = ["(K,)"] + [
            f"({', '.join(str(size) for size in leading[:n])}, K)"
            for n in range(1, len(leading) + 1)
        ]
        raise invalid("candidates", f"shape {tuple(candidates.shape)}", " or ".join(allowed))
    check_device("queries", queries, semantic_rows, id_embeddings)
    check_device("candidates", candidates, semantic_rows, id_embeddings)
    op = _score_candidates_outside_graphs if sparse else _score_candidates

    # The native view: `groups` lists of candidates, each scored against `rows` queries.
    groups = leading[:rank].numel()
    rows = leading[rank:].numel()
    scores = op(
        prepare_queries(queries, similarity).reshape(groups, rows, shape.dim),
        candidates.long().reshape(groups, candidates.shape[-1]),
        semantic_rows,
        id_embeddings,
        fusion,
        similarity == "cosine",
        sparse,
    )
    return scores.reshape(*leading, candidates.shape[-1]).to(queries.dtype)


@torch.library.custom_op(
    "alphafuse::score_candidates",
    mutates_args=(),
    schema=(
        "(Tensor queries, Tensor candidates, Tensor? semantic_rows, Tensor? id_embeddings,"
        " str fusion, bool cosine, bool sparse) -> Tensor"
    ),
)
def _score_candidates(
    queries: torch.Tensor,
    candidates: torch.Tensor,
    semantic_rows: torch.Tensor | None,
    id_embeddings: torch.Tensor | None,
    fusion: str,
    cosine: bool,
    sparse: bool,
) -> torch.Tensor:
    queries, candidates = queries.contiguous(), candidates.contiguous()
    padding = native.num_embeddings(semantic_rows, id_embeddings)
    native.check_ids("candidates", candidates, 0, padding)
    groups, rows, _ = queries.shape
    k = candidates.shape[1]
    out = queries.new_empty((groups, rows, k))
    tables = native.tables(semantic_rows, id_embeddings, fusion, cosine)
    kernels, where = native.kernels(queries)
    kernels.score_candidates(tables, queries, candidates, out, where)
    return out


@_score_candidates.register_fake
def _score_candidates_fake(
    queries: torch.Tensor,
    candidates: torch.Tensor,
    semantic_rows: torch.Tensor | None,
    id_embeddings: torch.Tensor | None,
    fusion: str,
    cosine: bool,
    sparse: bool,
) -> torch.Tensor:
    return queries.new_empty((*queries.shape[:2], candidates.shape[1]))


@torch.library.custom_op(
    "alphafuse::score_candidates_grad_queries",
    mutates_args=(),
    schema=(
        "(Tensor grad, Tensor queries, Tensor candidates, Tensor? semantic_rows,"
        " Tensor? id_embeddings, str fusion, bool cosine) -> Tensor"
    ),
)
def _grad_queries(
    grad: torch.Tensor,
    queries: torch.Tensor,
    candidates: torch.Tensor,
    semantic_rows: torch.Tensor | None,
    id_embeddings: torch.Tensor | None,
    fusion: str,
    cosine: bool,
) -> torch.Tensor:
    grad, candidates = grad.contiguous(), candidates.contiguous()
    out = queries.new_empty(queries.shape)
    tables = native.tables(semantic_rows, id_embeddings, fusion, cosine)
    kernels, where = native.kernels(queries)
    kernels.score_candidates_grad_queries(tables, candidates, grad, out, where)
    return out


@_grad_queries.register_fake
def _grad_queries_fake(
    grad: torch.Tensor,
    queries: torch.Tensor,
    candidates: torch.Tensor,
    semantic_rows: torch.Tensor | None,
    id_embeddings: torch.Tensor | None,
    fusion: str,
    cosine: bool,
) -> torch.Tensor:
    return queries.new_empty(queries.shape)


@torch.library.custom_op(
    "alphafuse::score_candidates_grad_ids",
    mutates_args=(),
    schema=(
        "(Tensor grad, Tensor scores, Tensor queries, Tensor candidates, Tensor? semantic_rows,"
        " Tensor id_embeddings, str fusion, bool cosine) -> Tensor"
    ),
)
def _grad_ids(
    grad: torch.Tensor,
    scores: torch.Tensor,
    queries: torch.Tensor,
    candidates: torch.Tensor,
    semantic_rows: torch.Tensor | None,
    id_embeddings: torch.Tensor,
    fusion: str,
    cosine: bool,
) -> torch.Tensor:
    return _id_gradient(
        grad, scores, queries, candidates, semantic_rows, id_embeddings, fusion, cosine, False
    )


@_grad_ids.register_fake
def _grad_ids_fake(
    grad: torch.Tensor,
    scores: torch.Tensor,
    queries: torch.Tensor,
    candidates: torch.Tensor,
    semantic_rows: torch.Tensor | None,
    id_embeddings: torch.Tensor,
    fusion: str,
    cosine: bool,
) -> torch.Tensor:
    return id_embeddings.new_empty(id_embeddings.shape)


def _id_gradient(
    grad: torch.Tensor,
    scores: torch.Tensor,
    queries: torch.Tensor,
    candidates: torch.Tensor,
    semantic_rows: torch.Tensor | None,
    id_embeddings: torch.Tensor,
    fusion: str,
    cosine: bool,
    sparse: bool,
) -> torch.Tensor:
    grad, scores = grad.contiguous(), scores.contiguous()
    queries, candidates = queries.contiguous(), candidates.contiguous()
    num_embeddings, null_dim = id_embeddings.shape
    groups = gradients.group_ids(candidates, num_embeddings, sparse)
    rows = gradients.empty_rows(groups, num_embeddings, null_dim, grad.device, sparse)
    tables = native.tables(semantic_rows, id_embeddings, fusion, cosine)
    kernels, where = native.kernels(queries)
    kernels.score_candidates_grad_ids(
        tables, queries, candidates, scores, grad, groups, rows, where
    )
    return gradients.finish(rows, groups, num_embeddings, id_embeddings.dtype, sparse)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    queries, candidates, semantic_rows, id_embeddings, ctx.fusion, ctx.cosine, ctx.sparse = inputs
    ctx.save_for_backward(output, queries, candidates, semantic_rows, id_embeddings)


def _backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    need_queries, _, _, need_ids, _, _, _ = ctx.needs_input_grad
    scores, queries, candidates, semantic_rows, id_embeddings = ctx.saved_tensors
    inputs = (queries, candidates, semantic_rows, id_embeddings, ctx.fusion, ctx.cosine)
    grad_queries = grad_ids = None
    if need_queries:
        grad_queries = _grad_queries(grad, *inputs)
    if need_ids and ctx.sparse:
        grad_ids = _id_gradient(grad, scores, *inputs, sparse=True)
    elif need_ids:
        grad_ids = _grad_ids(grad, scores, *inputs)
    return grad_queries, None, None, grad_ids, None, None, None


_score_candidates.register_autograd(_backward, setup_context=_setup_context)
# Compiled graphs know no sparse tensors.
_score_candidates_outside_graphs = torch.compiler.disable(_score_candidates)
