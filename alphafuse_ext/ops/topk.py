"""``topk``: the best items of the whole catalog for each query, exactly."""

from __future__ import annotations

import torch

from alphafuse_ext.checks import invalid
from alphafuse_ext.ops import native
from alphafuse_ext.ops.arguments import (
    Exclude,
    check_device,
    check_queries,
    check_similarity,
    check_tables,
    prepare_queries,
    split_exclude,
)
from alphafuse_ext.ops.compressed import FirstPass, check_first_pass


def topk(
    queries: torch.Tensor,
    k: int,
    semantic_rows: torch.Tensor | None,
    id_embeddings: torch.Tensor | None,
    fusion: str = "concat",
    similarity: str = "dot",
    exclude: Exclude = None,
    first_pass: FirstPass = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The ``k`` best items for each query, without a ``(B, N)`` array.

    The order is score downward, then id upward; NaN comes last. The result does not depend on the
    number of threads.

    Args:
        queries: ``(B, dim)``; float32, bfloat16 or float16.
        k: ``1 .. N``.
        semantic_rows: ``(N, dim - null_dim)`` (concat) or ``(N, dim)`` (add), or ``None``.
        id_embeddings: ``(N, null_dim)``, or ``None``.
        fusion: ``"concat"`` or ``"add"``, see :func:`lookup`.
        similarity: ``"dot"`` or ``"cosine"``, see :func:`score_all`.
        exclude: ids to leave out for each query: ``(B, M)`` filled up with -1, or a pair
            ``(offsets (B + 1,), ids)``, query ``b``'s being ``ids[offsets[b]:offsets[b + 1]]``. The
            padding id ``N`` is ignored; duplicates do no harm.
        first_pass: ``None``; or ``"int8"``: score a compressed copy of the tables first, and in
            float32 only what that leaves undecided. The result is the same, bit for bit. The name
            makes the copy anew on every call; a :class:`CompressedTables` that is kept (a method of
            an :class:`ItemTable` keeps its own) is what saves time.

    Returns:
        ``values``, float32, and ``ids``, int64, both ``(B, k)``. Where fewer than ``k`` items are
        left, the places are filled with -inf and -1. Neither is differentiable.

    Raises:
        ValueError, TypeError: an argument does not fit; nothing was computed.
        IndexError: an id of ``exclude`` is outside ``-1 .. N``.
    """
    shape = check_tables(semantic_rows, id_embeddings, fusion)
    check_similarity(similarity)
    check_queries(queries, shape.dim)
    check_device("queries", queries, semantic_rows, id_embeddings)
    if isinstance(k, bool) or not isinstance(k, int | torch.SymInt):
        raise invalid("k", f"{k!r}", f"an int, 1 <= k <= {shape.num_embeddings}", TypeError)
    if not 1 <= k <= shape.num_embeddings:
        raise invalid("k", k, f"1 <= k <= {shape.num_embeddings}, the number of items")
    offsets, excluded = split_exclude(exclude, queries.shape[0], queries)
    compressed = check_first_pass(first_pass, semantic_rows, id_embeddings, fusion, similarity)
    values, ids, counted = _topk(
        prepare_queries(queries.detach(), similarity),
        k,
        semantic_rows,
        None if id_embeddings is None else id_embeddings.detach(),
        fusion,
        similarity == "cosine",
        offsets,
        excluded,
        [] if compressed is None else compressed.tensors,
    )
    if compressed is not None:
        compressed.count(counted)
    return values, ids


@torch.library.custom_op(
    "alphafuse::topk",
    mutates_args=(),
    schema=(
        "(Tensor queries, SymInt k, Tensor? semantic_rows, Tensor? id_embeddings, str fusion,"
        " bool cosine, Tensor? exclude_offsets, Tensor? exclude_ids,"
        " Tensor[] compressed) -> (Tensor, Tensor, Tensor)"
    ),
)
def _topk(
    queries: torch.Tensor,
    k: int,
    semantic_rows: torch.Tensor | None,
    id_embeddings: torch.Tensor | None,
    fusion: str,
    cosine: bool,
    exclude_offsets: torch.Tensor | None,
    exclude_ids: torch.Tensor | None,
    compressed: list[torch.Tensor],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    queries = queries.contiguous()
    num_embeddings = native.num_embeddings(semantic_rows, id_embeddings)
    exclude = native.exclude(exclude_offsets, exclude_ids, num_embeddings)
    values = queries.new_empty((queries.shape[0], k))
    ids = torch.empty_like(values, dtype=torch.int64)
    tables = native.tables(semantic_rows, id_embeddings, fusion, cosine)
    kernels, where = native.kernels(queries)
    counted = kernels.topk(tables, queries, exclude, compressed, values, ids, where)
    return values, ids, torch.tensor(counted)


@_topk.register_fake
def _topk_fake(
    queries: torch.Tensor,
    k: int,
    semantic_rows: torch.Tensor | None,
    id_embeddings: torch.Tensor | None,
    fusion: str,
    cosine: bool,
    exclude_offsets: torch.Tensor | None,
    exclude_ids: torch.Tensor | None,
    compressed: list[torch.Tensor],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    shape = (queries.shape[0], k)
    ids = queries.new_empty(shape, dtype=torch.int64)
    return queries.new_empty(shape), ids, ids.new_empty(2)
