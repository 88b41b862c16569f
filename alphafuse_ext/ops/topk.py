"""``topk``: the best items of the whole catalog for each query, exactly."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from alphafuse_ext.checks import integer, invalid
from alphafuse_ext.ops import native
from alphafuse_ext.ops.arguments import (
    Exclude,
    Mixture,
    check_device,
    check_queries,
    joined,
    prepare_queries,
    split_exclude,
)
from alphafuse_ext.ops.compressed import FirstPass, check_first_pass
from alphafuse_ext.ops.declare import Op
from alphafuse_ext.ops.mixture import (
    MixtureArguments,
    merged,
    mixed_scores,
    ranked_lists,
    split_mixture,
)
from alphafuse_ext.ops.only import (
    Only,
    allowed_ids,
    exclude_among,
    gather_rows,
    in_order,
    left_out,
    listed_scores,
    split_only,
)
from alphafuse_ext.ops.precision import precision_of
from alphafuse_ext.ops.tables import FusedTables

# The least two numbers of float32.
_LEAST = (torch.finfo(torch.float32).min, float.fromhex("-0x1.fffffcp127"))


class TopK(NamedTuple):
    """What :func:`topk` returns, named as ``torch.topk`` names it."""

    values: torch.Tensor
    """The scores, float32."""
    indices: torch.Tensor
    """The items' ids, int64."""


def topk(
    queries: torch.Tensor,
    k: int,
    semantic_rows: torch.Tensor | None,
    id_embeddings: torch.Tensor | None,
    fusion: str = "concat",
    similarity: str = "dot",
    exclude: Exclude = None,
    first_pass: FirstPass = None,
    only: Only = None,
    mixture: Mixture | None = None,
) -> TopK:
    """The ``k`` best items for each query, without a ``(B, N)`` score matrix.

    The order is descending score, then ascending id; NaN comes last. The result does not depend on
    the number of threads.

    Args:
        queries: ``(B, dim)``, or ``(dim,)`` for a single query; float32, bfloat16 or float16.
        k: ``1 .. N``.
        semantic_rows: ``(N, dim - null_dim)`` (concat) or ``(N, dim)`` (add), or ``None``.
        id_embeddings: ``(N, null_dim)``, or ``None``.
        fusion: ``"concat"`` or ``"add"``, see :func:`lookup`.
        similarity: ``"dot"`` or ``"cosine"``, see :func:`score_all`.
        exclude: ids to exclude for each query: ``(B, M)`` padded with -1, or a pair
            ``(offsets (B + 1,), ids)``, query ``b``'s being ``ids[offsets[b]:offsets[b + 1]]``. The
            padding id ``N`` is ignored; duplicates are allowed. For one query ``(dim,)``, ``(M,)``.
        first_pass: ``None``; or ``"int8"``: score a compressed copy of the tables first, and only
            the remaining candidates in float32. The result is bitwise the same. ``"int8"`` makes
            a new copy at each call; to save time pass a :class:`CompressedTables` (the methods of
            :class:`ItemTable` cache one).
        only: ids to rank instead of the whole catalog: ``(W,)`` for all queries, whose rows are
            gathered for the call; or for each query ``(B, M)`` padded with -1, or a pair
            ``(offsets, ids)``, whose ``(B, M)`` scores are sorted. Duplicates are allowed. Values
            are those that the items have among all; of lists on a GPU to rounding, elsewhere bit
            for bit. Without a first pass.
        mixture: probabilities of a few items for each query, which the softmax of the scores is
            mixed with: the order is that of ``(1 - w) softmax(scores) + w q``. Exact in that a
            listed item's place is decided by its score, raised by ``q`` in float64 and rounded to
            float32, and the others' by theirs. Costs a second pass, over the sum of the softmax.

    Returns:
        ``values``, the scores, float32, and ``indices``, the ids, int64, both ``(B, k)``, or
        ``(k,)`` for one query; with a mixture the values are log probabilities. If fewer than ``k``
        items are left, results are padded with -inf and -1. Neither is differentiable.

    Raises:
        ValueError, TypeError: an invalid argument; nothing was computed.
        IndexError: an id of ``exclude`` or ``only`` is outside ``-1 .. N``.
    """
    tables = FusedTables.checked(semantic_rows, id_embeddings, fusion, similarity)
    single = check_queries(queries, tables.dim, ndims=(1, 2)) == 1
    check_device("queries", queries, semantic_rows, id_embeddings)
    tables.precision = precision_of(queries, tables, exact=True)
    most = tables.num_embeddings
    if isinstance(k, bool) or not isinstance(k, (int, torch.SymInt)):  # torch 2.6 traces no union
        k = integer("k", k, f"an int, 1 <= k <= {most}")
    if not 1 <= k <= most:
        raise invalid("k", k, f"1 <= k <= {most}, the number of items")
    offsets, excluded = split_exclude(exclude, queries)
    compressed = check_first_pass(first_pass, semantic_rows, id_embeddings, fusion, similarity)
    tables, rows = tables.detach(), queries.detach()
    rows = rows[None] if single else rows
    copies = [] if compressed is None else compressed.tensors
    if only is not None and compressed is not None:
        raise invalid("first_pass", "a first pass together with only", "None with only")
    allowed = (None, None) if only is None else split_only(only, queries)
    if mixture is not None:
        mixed = split_mixture(mixture, queries)
        values, ids, counted = _mixture_op(
            rows, k, tables, offsets, excluded, copies, *allowed, *mixed
        )
        if compressed is not None:
            compressed.count(counted)
    elif only is not None:
        values, ids = _only_op(rows, k, tables, offsets, excluded, *allowed)
    else:
        prepared = prepare_queries(rows, similarity)
        values, ids, counted = _op(prepared, k, tables, offsets, excluded, copies)
        if compressed is not None:
            compressed.count(counted)
    return TopK(values[0], ids[0]) if single else TopK(values, ids)


def padded_topk(values: Tensor, ids: Tensor, k: int) -> TopK:
    """Lists of fewer than ``k`` items to ``k`` places, by -inf and -1."""
    missing = k - values.shape[1]
    pad = torch.nn.functional.pad
    return TopK(pad(values, (0, missing), value=-torch.inf), pad(ids, (0, missing), value=-1))


def topk_of_lists(
    queries: Tensor, k: int, lists: Tensor, tables: FusedTables, similarity: str, exclude: Exclude
) -> TopK:
    """Of the items that each query's list names, ``(B, M)`` as :func:`allowed_ids` has it."""
    lists, scores = listed_scores(queries, lists, tables, similarity, exclude)
    order = in_order(scores, last=lists == tables.num_embeddings)[:, :k]
    ids, values = lists.gather(1, order), scores.gather(1, order)
    return padded_topk(values, ids.masked_fill(ids == tables.num_embeddings, -1), k)


def _topk(
    queries: Tensor,
    k: int,
    tables: FusedTables,
    exclude_offsets: Tensor | None,
    exclude_ids: Tensor | None,
    compressed: list[Tensor],
) -> tuple[Tensor, Tensor, Tensor]:
    queries = queries.contiguous()
    exclude = native.exclude(exclude_offsets, exclude_ids, tables.num_embeddings)
    values = queries.new_empty((queries.shape[0], k))
    ids = torch.empty_like(values, dtype=torch.int64)
    kernels, where = native.kernels(queries, tables.precision)
    counted = kernels.topk(tables.native(), queries, exclude, compressed, values, ids, where)
    return values, ids, torch.tensor(counted)


def _topk_only(
    queries: Tensor,
    k: int,
    tables: FusedTables,
    exclude_offsets: Tensor | None,
    exclude_ids: Tensor | None,
    only_offsets: Tensor | None,
    only_ids: Tensor,
) -> tuple[Tensor, Tensor]:
    """Of queries as the user gave them. An op, as tracers know no ids to allow."""
    padding, similarity = tables.num_embeddings, tables.similarity
    exclude = joined(exclude_offsets, exclude_ids)
    allowed = allowed_ids(only_offsets, only_ids, padding)
    if allowed.lists is not None:
        values, ids = topk_of_lists(queries, k, allowed.lists, tables, similarity, exclude)
        return values, ids
    shared = allowed.shared
    assert shared is not None, "one of the two"
    excluded = exclude_among(exclude, queries, shared, padding)
    values, ids, _ = _topk(
        prepare_queries(queries, similarity),
        min(k, len(shared)),
        gather_rows(tables, shared),
        *excluded,
        [],
    )
    ids = torch.where(ids < 0, ids, shared[ids.clamp(min=0)])
    values, ids = padded_topk(values, ids, k)
    return values, ids


def _topk_mixture(
    queries: Tensor,
    k: int,
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
) -> tuple[Tensor, Tensor, Tensor]:
    """Of queries as the user gave them."""
    mixture = MixtureArguments(
        mixture_offsets, mixture_ids, mixture_probabilities, weights, temperature
    )
    excluded, only = (exclude_offsets, exclude_ids), (only_offsets, only_ids)
    lists = ranked_lists(queries, tables, mixture, *excluded, *only)
    if only_ids is None:
        values, ids, counted = _topk(lists.queries, k, tables, *lists.others, compressed)
    else:
        values, ids = _topk_only(queries, k, tables, *lists.others, only_offsets, only_ids)
        counted = torch.zeros(2, dtype=torch.int64)
    ranked = lists.ids.masked_fill(lists.left_out, -1)
    values, ids = merged(values, ids, lists.scores, ranked, k)
    values = lists.softmax.log_probabilities(values).masked_fill(ids < 0, -torch.inf)
    return values, ids, counted


def _fake_only(queries: Tensor, k: int, *rest: Any) -> tuple[Tensor, Tensor]:
    values = queries.new_empty((queries.shape[0], k), dtype=torch.float32)
    return values, torch.empty_like(values, dtype=torch.int64)


def _fake(queries: Tensor, k: int, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    return *_fake_only(queries, k), torch.empty(2, dtype=torch.int64, device="cpu")


def _best(scores: Tensor, k: int, left_out: Tensor) -> tuple[Tensor, Tensor]:
    """The definition, of all scores; of equals, ONNX's TopK takes the lower id first."""
    # Below all scores NaN, and below that what is left out.
    keys = scores.clamp(min=_LEAST[1]).masked_fill(scores.isnan(), _LEAST[0])
    ids = keys.masked_fill(left_out, -torch.inf).topk(k, dim=1).indices
    missing = left_out.gather(1, ids)
    values = scores.gather(1, ids).masked_fill(missing, -torch.inf)
    return values, ids.masked_fill(missing, -1)


def _definition(
    queries: Tensor,
    k: int,
    tables: FusedTables,
    exclude_offsets: Tensor | None,
    exclude_ids: Tensor | None,
    compressed: list[Tensor],
) -> tuple[Tensor, Tensor, Tensor]:
    excluded = left_out(queries, tables, exclude_offsets, exclude_ids)
    return *_best(queries @ tables.scored_rows().T, k, excluded), torch.zeros(2, dtype=torch.int64)


def _definition_of_only(
    queries: Tensor,
    k: int,
    tables: FusedTables,
    exclude_offsets: Tensor | None,
    exclude_ids: Tensor | None,
    *only: Any,
) -> tuple[Tensor, Tensor]:
    excluded = left_out(queries, tables, exclude_offsets, exclude_ids, only)
    scores = prepare_queries(queries, tables.similarity) @ tables.scored_rows().T
    return _best(scores, k, excluded)


def _definition_of_mixture(
    queries: Tensor,
    k: int,
    tables: FusedTables,
    exclude_offsets: Tensor | None,
    exclude_ids: Tensor | None,
    compressed: list[Tensor],
    only_offsets: Tensor | None,
    only_ids: Tensor | None,
    *mixture: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    only = None if only_ids is None else (only_offsets, only_ids)
    excluded = left_out(queries, tables, exclude_offsets, exclude_ids, only)
    scores = prepare_queries(queries, tables.similarity) @ tables.scored_rows().T
    scores, softmax = mixed_scores(scores, MixtureArguments(*mixture), tables.num_embeddings)
    values, ids = _best(scores, k, excluded)
    values = softmax.log_probabilities(values).masked_fill(ids < 0, -torch.inf)
    return values, ids, torch.zeros(2, dtype=torch.int64)


_op = Op(_topk, fake=_fake, definition=_definition, differentiable=False)
_only_op = Op(_topk_only, fake=_fake_only, definition=_definition_of_only, differentiable=False)
_mixture_op = Op(_topk_mixture, fake=_fake, definition=_definition_of_mixture, differentiable=False)
