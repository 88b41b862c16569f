"""``target_ranks``: the exact rank of each query's target among all items."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from alphafuse_ext.checks import invalid
from alphafuse_ext.ops import native
from alphafuse_ext.ops.arguments import (
    Exclude,
    Mixture,
    check_device,
    check_queries,
    check_targets,
    joined,
    prepare_queries,
    split_exclude,
)
from alphafuse_ext.ops.compressed import FirstPass, check_first_pass
from alphafuse_ext.ops.declare import Op
from alphafuse_ext.ops.mixture import (
    MixtureArguments,
    mixed_scores,
    ranked_lists,
    split_mixture,
)
from alphafuse_ext.ops.only import (
    Only,
    allowed_ids,
    exclude_among,
    gather_rows,
    left_out,
    listed_scores,
    named,
    split_only,
)
from alphafuse_ext.ops.precision import precision_of
from alphafuse_ext.ops.tables import FusedTables


def target_ranks(
    queries: torch.Tensor,
    targets: torch.Tensor,
    semantic_rows: torch.Tensor | None,
    id_embeddings: torch.Tensor | None,
    fusion: str = "concat",
    similarity: str = "dot",
    exclude: Exclude = None,
    first_pass: FirstPass = None,
    only: Only = None,
    mixture: Mixture | None = None,
) -> torch.Tensor:
    """The rank of each query's target, without a ``(B, N)`` score matrix.

    The order is that of :func:`topk`: descending score, then ascending id, NaN last. A target's
    score is bitwise the one it has among all items, so equal items tie.

    Args:
        queries: ``(B, dim)``, or ``(dim,)`` for one; float32, bfloat16 or float16.
        targets: ``(B,)``, or a scalar for one; int64 or int32 ids. The padding id ``N`` has
            rank -1.
        semantic_rows: ``(N, dim - null_dim)`` (concat) or ``(N, dim)`` (add), or ``None``.
        id_embeddings: ``(N, null_dim)``, or ``None``.
        fusion: ``"concat"`` or ``"add"``, see :func:`lookup`.
        similarity: ``"dot"`` or ``"cosine"``, see :func:`score_all`.
        exclude: ids to exclude for each query, in one of the two forms of :func:`topk`. An excluded
            target is ranked nevertheless.
        first_pass: ``None``; or ``"int8"``: score a compressed copy of the tables first, and only
            the remaining candidates in float32. The result is bitwise the same. ``"int8"`` makes
            a new copy at each call; to save time pass a :class:`CompressedTables` (the methods of
            :class:`ItemTable` cache one).
        only: ids to rank instead of the whole catalog, as for :func:`topk`. A target that is not
            among them has rank -1.
        mixture: as for :func:`topk`, whose order is then that of the mixed probabilities.

    Returns:
        int64 of the shape of ``targets``; 0 = first. Not differentiable.

    Raises:
        ValueError, TypeError: an invalid argument; nothing was computed.
        IndexError: a target is outside ``0 .. N``, or an id of ``exclude`` or ``only`` outside
            ``-1 .. N``.
    """
    tables = FusedTables.checked(semantic_rows, id_embeddings, fusion, similarity)
    single = check_queries(queries, tables.dim, ndims=(1, 2)) == 1
    check_targets(targets, queries.shape[:-1])
    check_device("queries", queries, semantic_rows, id_embeddings)
    tables.precision = precision_of(queries, tables, exact=True)
    check_device("targets", targets, semantic_rows, id_embeddings)
    offsets, excluded = split_exclude(exclude, queries)
    compressed = check_first_pass(first_pass, semantic_rows, id_embeddings, fusion, similarity)
    targets = targets.long().reshape(-1).contiguous()
    tables, rows = tables.detach(), queries.detach()
    rows = rows[None] if single else rows
    copies = [] if compressed is None else compressed.tensors
    if only is not None and compressed is not None:
        raise invalid("first_pass", "a first pass together with only", "None with only")
    allowed = (None, None) if only is None else split_only(only, queries)
    if mixture is not None:
        mixed = split_mixture(mixture, queries)
        ranks, counted = _mixture_op(
            rows, targets, tables, offsets, excluded, copies, *allowed, *mixed
        )
        if compressed is not None:
            compressed.count(counted)
    elif only is not None:
        ranks = _only_op(rows, targets, tables, offsets, excluded, *allowed)
    else:
        prepared = prepare_queries(rows, similarity)
        ranks, counted = _op(prepared, targets, tables, offsets, excluded, copies)
        if compressed is not None:
            compressed.count(counted)
    return ranks[0] if single else ranks


def _ranks_in_lists(
    queries: Tensor,
    targets: Tensor,
    lists: Tensor,
    tables: FusedTables,
    exclude: Exclude,
) -> Tensor:
    similarity = tables.similarity
    is_target = lists == targets[:, None]
    listed, scores = listed_scores(queries, lists, tables, similarity, exclude)
    listed = torch.where(is_target, lists, listed)
    if exclude is not None:  # which may have taken the targets' scores
        _, scores = listed_scores(queries, listed, tables, similarity, None)
    target = scores.where(is_target, 0).sum(1)
    ahead = ahead_in_lists(scores, target, listed, targets, tables.num_embeddings)
    found = is_target.any(1) & (targets != tables.num_embeddings)
    return torch.where(found, ahead, -1)


def ahead_in_lists(
    scores: Tensor, target_scores: Tensor, lists: Tensor, targets: Tensor, padding: int
) -> Tensor:
    """How many items of each list come before its target, ``(B,)``.

    Args:
        scores, lists: of the listed items, ``(B, M)``, where ``lists`` is not ``padding``.
        target_scores, targets: ``(B,)``; a target need not be listed.
    """
    score, target = target_scores[:, None], targets[:, None]
    ahead = (scores > score) | (score.isnan() & ~scores.isnan())
    first = (lists < target) & ((scores == score) | (score.isnan() & scores.isnan()))
    return ((ahead | first) & (lists != padding) & (lists != target)).sum(1)


def _target_ranks(
    queries: Tensor,
    targets: Tensor,
    tables: FusedTables,
    exclude_offsets: Tensor | None,
    exclude_ids: Tensor | None,
    compressed: list[Tensor],
) -> tuple[Tensor, Tensor]:
    padding = tables.num_embeddings
    native.check_ids("targets", targets.contiguous(), 0, padding)
    scores = _target_scores(queries, targets, tables)
    ranks, counted = _ahead(
        queries, targets, scores, tables, exclude_offsets, exclude_ids, compressed
    )
    return torch.where(targets == padding, -1, ranks), counted


def _target_scores(queries: Tensor, targets: Tensor, tables: FusedTables) -> Tensor:
    """Of prepared queries; bitwise those of a scan over all items."""
    queries, targets = queries.contiguous(), targets.contiguous()
    scores = queries.new_empty(queries.shape[0])
    kernels, where = native.kernels(queries, tables.precision)
    kernels.target_scores(tables.native(), queries, targets, scores, where)
    return scores


def _ahead(
    queries: Tensor,
    targets: Tensor,
    scores: Tensor,
    tables: FusedTables,
    exclude_offsets: Tensor | None,
    exclude_ids: Tensor | None,
    compressed: list[Tensor],
) -> tuple[Tensor, Tensor]:
    """How many items are ahead of targets of these scores, of prepared queries."""
    queries, targets = queries.contiguous(), targets.contiguous()
    exclude = native.exclude(exclude_offsets, exclude_ids, tables.num_embeddings)
    kernels, where = native.kernels(queries, tables.precision)
    ranks = torch.empty_like(targets)
    counted = kernels.target_ranks(
        tables.native(), queries, targets, scores, exclude, compressed, ranks, where
    )
    return ranks, torch.tensor(counted)


def _fake(queries: Tensor, targets: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return torch.empty_like(targets), torch.empty(2, dtype=torch.int64, device="cpu")


def _target_ranks_only(
    queries: Tensor,
    targets: Tensor,
    tables: FusedTables,
    exclude_offsets: Tensor | None,
    exclude_ids: Tensor | None,
    only_offsets: Tensor | None,
    only_ids: Tensor,
) -> Tensor:
    """Of queries as the user gave them. An op, as tracers know no ids to allow."""
    padding = tables.num_embeddings
    exclude = joined(exclude_offsets, exclude_ids)
    allowed = allowed_ids(only_offsets, only_ids, padding)
    native.check_ids("targets", targets, 0, padding)
    if allowed.lists is not None:
        return _ranks_in_lists(queries, targets, allowed.lists, tables, exclude)
    shared = allowed.shared
    assert shared is not None, "one of the two"
    excluded = exclude_among(exclude, queries, shared, padding)
    places = torch.searchsorted(shared, targets).clamp(max=len(shared) - 1)
    places = torch.where(shared[places] == targets, places, len(shared))
    prepared = prepare_queries(queries, tables.similarity)
    return _target_ranks(prepared, places, gather_rows(tables, shared), *excluded, [])[0]


def _target_ranks_mixture(
    queries: Tensor,
    targets: Tensor,
    tables: FusedTables,
    exclude_offsets: Tensor | None,
    exclude_ids: Tensor | None,
    compressed: list[Tensor],
    only_offsets: Tensor | None,
    only_ids: Tensor | None,
    mixture_offsets: Tensor | None,
    mixture_ids: Tensor,
    mixture_probabilities: Tensor,
    weights: Tensor,
    temperature: float,
) -> tuple[Tensor, Tensor]:
    """Of queries as the user gave them."""
    padding = tables.num_embeddings
    native.check_ids("targets", targets.contiguous(), 0, padding)
    mixture = MixtureArguments(
        mixture_offsets, mixture_ids, mixture_probabilities, weights, temperature
    )
    excluded, only = (exclude_offsets, exclude_ids), (only_offsets, only_ids)
    lists = ranked_lists(queries, tables, mixture, *excluded, *only)
    raised, prepared, others = lists.scores, lists.queries, lists.others[1]
    is_target = (lists.ids == targets[:, None]) & (lists.ids != padding)
    counted = torch.zeros(2).long()

    def own_or_raised(scores: Tensor) -> Tensor:
        """Of targets, by those that they have where they are not listed."""
        return torch.where(is_target.any(1), raised.where(is_target, 0.0).sum(1), scores)

    found = targets != padding
    if only_ids is None:
        scores = own_or_raised(_target_scores(prepared, targets, tables))
        ahead, counted = _ahead(prepared, targets, scores, tables, None, others, compressed)
    else:
        allowed = allowed_ids(only_offsets, only_ids, padding)
        if allowed.shared is not None:
            some = gather_rows(tables, allowed.shared)
            outside = exclude_among(others, queries, allowed.shared, padding)
            places = torch.searchsorted(allowed.shared, targets).clamp(max=len(allowed.shared) - 1)
            found &= allowed.shared[places] == targets
            places = torch.where(found, places, len(allowed.shared))
            scores = own_or_raised(_target_scores(prepared, places, some))
            ahead, _ = _ahead(prepared, places, scores, some, *outside, [])
        else:
            assert allowed.lists is not None, "one of the two"
            here = allowed.lists == targets[:, None]
            found &= here.any(1)
            _, scores = listed_scores(queries, allowed.lists, tables, tables.similarity, None)
            scores = own_or_raised(scores.where(here, 0.0).sum(1))
            rest, values = listed_scores(queries, allowed.lists, tables, tables.similarity, others)
            ahead = ahead_in_lists(values, scores, rest, targets, padding)
    ranked = lists.ids.masked_fill(lists.left_out, padding)
    ahead = ahead + ahead_in_lists(raised, scores, ranked, targets, padding)
    return torch.where(found, ahead, -1), counted


def _places(scores: Tensor, targets: Tensor, left_out: Tensor) -> Tensor:
    """The definition, of all scores."""
    padding = scores.shape[1]
    target = scores.gather(1, targets.clamp(max=padding - 1)[:, None])[:, 0]
    ids = torch.arange(padding, device=scores.device).expand_as(scores)
    ahead = ahead_in_lists(scores, target, ids.masked_fill(left_out, padding), targets, padding)
    return ahead.masked_fill(targets == padding, -1)


def _definition(
    queries: Tensor,
    targets: Tensor,
    tables: FusedTables,
    exclude_offsets: Tensor | None,
    exclude_ids: Tensor | None,
    compressed: list[Tensor],
) -> tuple[Tensor, Tensor]:
    excluded = left_out(queries, tables, exclude_offsets, exclude_ids)
    scores = queries @ tables.scored_rows().T
    return _places(scores, targets, excluded), torch.zeros(2, dtype=torch.int64)


def _definition_of_only(
    queries: Tensor,
    targets: Tensor,
    tables: FusedTables,
    exclude_offsets: Tensor | None,
    exclude_ids: Tensor | None,
    *only: Any,
) -> Tensor:
    count = tables.num_embeddings
    excluded = left_out(queries, tables, exclude_offsets, exclude_ids, only)
    scores = prepare_queries(queries, tables.similarity) @ tables.scored_rows().T
    return _ranked(_places(scores, targets, excluded), targets, only[0], only[1], count)


def _ranked(
    ranks: Tensor, targets: Tensor, only_offsets: Tensor | None, only_ids: Tensor, count: int
) -> Tensor:
    """The definition's, -1 of targets that are not allowed."""
    allowed = named(only_offsets, only_ids, targets.shape[0], count)
    ranked = allowed.gather(1, targets.clamp(max=count - 1)[:, None])[:, 0]
    return ranks.masked_fill(~ranked, -1)


def _definition_of_mixture(
    queries: Tensor,
    targets: Tensor,
    tables: FusedTables,
    exclude_offsets: Tensor | None,
    exclude_ids: Tensor | None,
    compressed: list[Tensor],
    only_offsets: Tensor | None,
    only_ids: Tensor | None,
    *mixture: Any,
) -> tuple[Tensor, Tensor]:
    only = None if only_ids is None else (only_offsets, only_ids)
    excluded = left_out(queries, tables, exclude_offsets, exclude_ids, only)
    scores = prepare_queries(queries, tables.similarity) @ tables.scored_rows().T
    scores, _ = mixed_scores(scores, MixtureArguments(*mixture), tables.num_embeddings)
    ranks = _places(scores, targets, excluded)
    if only_ids is not None:
        ranks = _ranked(ranks, targets, only_offsets, only_ids, tables.num_embeddings)
    return ranks, torch.zeros(2, dtype=torch.int64)


_op = Op(_target_ranks, fake=_fake, definition=_definition, differentiable=False)
_only_op = Op(
    _target_ranks_only,
    fake=lambda queries, targets, *rest: torch.empty_like(targets),
    definition=_definition_of_only,
    differentiable=False,
)
_mixture_op = Op(
    _target_ranks_mixture, fake=_fake, definition=_definition_of_mixture, differentiable=False
)
