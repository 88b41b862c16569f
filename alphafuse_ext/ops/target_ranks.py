"""``target_ranks``: the place of each query's target among all items, exactly."""

from __future__ import annotations

import torch

from alphafuse_ext.ops import native
from alphafuse_ext.ops.arguments import (
    Exclude,
    check_device,
    check_queries,
    check_similarity,
    check_tables,
    check_targets,
    prepare_queries,
    split_exclude,
)
from alphafuse_ext.ops.compressed import FirstPass, check_first_pass


def target_ranks(
    queries: torch.Tensor,
    targets: torch.Tensor,
    semantic_rows: torch.Tensor | None,
    id_embeddings: torch.Tensor | None,
    fusion: str = "concat",
    similarity: str = "dot",
    exclude: Exclude = None,
    first_pass: FirstPass = None,
) -> torch.Tensor:
    """How many items are ahead of each query's target, without a ``(B, N)`` array.

    The order is that of :func:`topk`: score downward, then id upward, NaN last. A target's score is
    bitwise the one it has among all items, so equal items tie.

    Args:
        queries: ``(B, dim)``; float32, bfloat16 or float16.
        targets: ``(B,)``, int64 or int32 ids. The padding id ``N`` has no rank: -1.
        semantic_rows: ``(N, dim - null_dim)`` (concat) or ``(N, dim)`` (add), or ``None``.
        id_embeddings: ``(N, null_dim)``, or ``None``.
        fusion: ``"concat"`` or ``"add"``, see :func:`lookup`.
        similarity: ``"dot"`` or ``"cosine"``, see :func:`score_all`.
        exclude: ids not to count for each query, in one of the two forms of :func:`topk`. A target
            that is among them is ranked all the same.

        first_pass: ``None``; or ``"int8"``: score a compressed copy of the tables first, and in
            float32 only what that leaves undecided. The result is the same, bit for bit. The name
            makes the copy anew on every call; a :class:`CompressedTables` that is kept (a method of
            an :class:`ItemTable` keeps its own) is what saves time.

    Returns:
        ``(B,)``, int64; 0 is the first place. Not differentiable.

    Raises:
        ValueError, TypeError: an argument does not fit; nothing was computed.
        IndexError: a target is outside ``0 .. N``, or an id of ``exclude`` outside ``-1 .. N``.
    """
    shape = check_tables(semantic_rows, id_embeddings, fusion)
    check_similarity(similarity)
    check_queries(queries, shape.dim)
    check_targets(targets, queries.shape[0])
    check_device("queries", queries, semantic_rows, id_embeddings)
    check_device("targets", targets, semantic_rows, id_embeddings)
    offsets, excluded = split_exclude(exclude, queries.shape[0], queries)
    compressed = check_first_pass(first_pass, semantic_rows, id_embeddings, fusion, similarity)
    ranks, counted = _target_ranks(
        prepare_queries(queries.detach(), similarity),
        targets.long(),
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
    return ranks


@torch.library.custom_op(
    "alphafuse::target_ranks",
    mutates_args=(),
    schema=(
        "(Tensor queries, Tensor targets, Tensor? semantic_rows, Tensor? id_embeddings,"
        " str fusion, bool cosine, Tensor? exclude_offsets, Tensor? exclude_ids,"
        " Tensor[] compressed) -> (Tensor, Tensor)"
    ),
)
def _target_ranks(
    queries: torch.Tensor,
    targets: torch.Tensor,
    semantic_rows: torch.Tensor | None,
    id_embeddings: torch.Tensor | None,
    fusion: str,
    cosine: bool,
    exclude_offsets: torch.Tensor | None,
    exclude_ids: torch.Tensor | None,
    compressed: list[torch.Tensor],
) -> tuple[torch.Tensor, torch.Tensor]:
    padding = native.num_embeddings(semantic_rows, id_embeddings)
    queries, targets = queries.contiguous(), targets.contiguous()
    native.check_ids("targets", targets, 0, padding)
    exclude = native.exclude(exclude_offsets, exclude_ids, padding)
    tables = native.tables(semantic_rows, id_embeddings, fusion, cosine)
    kernels, where = native.kernels(queries)
    scores, ranks = queries.new_empty(queries.shape[0]), torch.empty_like(targets)
    kernels.target_scores(tables, queries, targets, scores, where)
    counted = kernels.target_ranks(
        tables, queries, targets, scores, exclude, compressed, ranks, where
    )
    return torch.where(targets == padding, -1, ranks), torch.tensor(counted)


@_target_ranks.register_fake
def _target_ranks_fake(
    queries: torch.Tensor,
    targets: torch.Tensor,
    semantic_rows: torch.Tensor | None,
    id_embeddings: torch.Tensor | None,
    fusion: str,
    cosine: bool,
    exclude_offsets: torch.Tensor | None,
    exclude_ids: torch.Tensor | None,
    compressed: list[torch.Tensor],
) -> tuple[torch.Tensor, torch.Tensor]:
    return targets.new_empty(targets.shape), targets.new_empty(2)
