"""``only``: ranking of some items, such as those in stock, instead of the whole catalog.

Items shared by all queries are gathered into smaller tables for the same kernels; lists per query
are scored as candidates. Scores are bitwise those of the whole catalog, except for lists on a GPU,
which are equal up to rounding.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from alphafuse_ext.checks import invalid
from alphafuse_ext.ops import native
from alphafuse_ext.ops.arguments import (
    Exclude,
    Only,
    check_integers,
    check_same_device,
    split_exclude,
    split_lists,
)
from alphafuse_ext.ops.score_candidates import score_candidates
from alphafuse_ext.ops.tables import FusedTables


class Allowed(NamedTuple):
    """What ``only`` allows: ids without duplicates, ascending."""

    shared: Tensor | None
    """``(W,)`` with W >= 1, of all queries; ``None``: lists of their own."""
    lists: Tensor | None
    """``(B, M)``, padded with the padding id, which sorts last."""


def split_only(only: Only, queries: Tensor) -> tuple[Tensor | None, Tensor]:
    """``only`` as (offsets or ``None``, ids), int64, of which :func:`allowed_ids` reads the values.

    Raises:
        ValueError, TypeError: of another shape or dtype.
    """
    single = queries.dim() == 1
    batch = 1 if single else queries.shape[0]
    if isinstance(only, Tensor):
        check_integers("only", only)
        check_same_device("only", only, "queries", queries)
        if only.dim() not in (1, 2) or (only.dim() == 2 and (single or only.shape[0] != batch)):
            allowed = "(W,)" if single else f"(W,) or ({batch}, M)"
            raise invalid("only", f"shape {tuple(only.shape)}", allowed)
        return None, only.long()
    if isinstance(only, tuple | list) and len(only) == 2:
        return split_lists("only", *only, batch, queries)
    allowed = "a tensor (W,) or (B, M), or a pair (offsets, ids)"
    raise invalid("only", type(only).__name__, allowed, TypeError)


def allowed_ids(offsets: Tensor | None, ids: Tensor, padding: int) -> Allowed:
    """What is allowed, of what :func:`split_only` gives.

    Raises:
        ValueError: offsets that do not rise from 0 to the number of ids, or no item at all.
        IndexError: an id outside ``-1 .. N``.
    """
    if offsets is not None:
        ids = padded("only", offsets, ids)
    ids = ids.contiguous()
    native.check_ids("only", ids, -1, padding)
    ids = torch.where(ids == -1, padding, ids)
    if ids.dim() == 1:
        ids = ids.unique()  # sorts
        ids = ids[ids < padding]
        if len(ids) == 0:
            raise invalid("only", "no item", "at least one, for all queries")
        return Allowed(ids, None)
    ids = ids.sort(1).values
    repeated = torch.zeros_like(ids, dtype=torch.bool)
    repeated[:, 1:] = ids[:, 1:] == ids[:, :-1]
    return Allowed(None, ids.masked_fill(repeated, padding).sort(1).values)


def padded(argument: str, offsets: Tensor, ids: Tensor, filler: float = -1) -> Tensor:
    """Lists of ids as one ``(B, M)``, padded with -1; their offsets are checked."""
    native.check_offsets(argument, offsets, len(ids))
    counts = offsets.diff()
    places = torch.arange(int(counts.max()) if len(counts) else 0, device=ids.device)
    filled = places < counts[:, None]
    padded = ids.new_full(filled.shape, filler)
    padded[filled] = ids
    return padded


def named(offsets: Tensor | None, ids: Tensor, batch: int, num_embeddings: int) -> Tensor:
    """Which items lists name, a mask ``(B, N)``, in plain PyTorch; ids for all are one list.

    Args:
        offsets, ids: what :func:`split_only` or :func:`split_exclude` gives.
    """
    rows = num_embeddings + 1  # the last for what names no item
    ids = ids.masked_fill(ids < 0, num_embeddings)
    if offsets is None:
        places = ids.expand(batch, ids.shape[-1])
        mask = torch.zeros((batch, rows), dtype=torch.bool, device=ids.device)
    else:
        behind = torch.arange(ids.shape[0], device=ids.device) >= offsets[1:, None]
        places = (behind.sum(0) * rows + ids)[None]
        mask = torch.zeros((1, batch * rows), dtype=torch.bool, device=ids.device)
    mask = mask.scatter(1, places, torch.ones_like(places, dtype=torch.bool))
    return mask.view(batch, rows)[:, :num_embeddings]


def left_out(
    queries: Tensor,
    tables: FusedTables,
    exclude_offsets: Tensor | None,
    exclude_ids: Tensor | None,
    only: tuple[Tensor | None, Tensor] | None = None,
) -> Tensor:
    """A mask ``(B, N)`` of what a query does not rank, in plain PyTorch."""
    batch, count = queries.shape[0], tables.num_embeddings
    if exclude_ids is None:
        mask = torch.zeros((batch, count), dtype=torch.bool, device=queries.device)
    else:
        mask = named(exclude_offsets, exclude_ids, batch, count)
    return mask if only is None else mask | ~named(*only, batch, count)


def gather_rows(tables: FusedTables, ids: Tensor) -> FusedTables:
    """The rows of some items alone: ``(W,)``, ascending."""
    pair = [
        None if table is None else table.detach()[ids]
        for table in (tables.semantic_rows, tables.id_embeddings)
    ]
    return FusedTables(pair[0], pair[1], *tables.how)


def exclude_among(
    exclude: Exclude, queries: Tensor, ids: Tensor, padding: int
) -> tuple[Tensor | None, Tensor | None]:
    """What :func:`split_exclude` gives, in places among ``ids``; -1 for what is not among them."""
    offsets, excluded = split_exclude(exclude, queries)
    if excluded is None:
        return None, None
    native.check_ids("exclude", excluded.contiguous(), -1, padding)
    places = torch.searchsorted(ids, excluded)
    found = ids[places.clamp(max=len(ids) - 1)] == excluded
    return offsets, torch.where(found, places, -1)


def in_order(scores: Tensor, last: Tensor) -> Tensor:
    """Places of ``(B, M)`` scores downward, of equals in their order, NaN behind; ``last``: at the
    very end."""
    by_score = scores.nan_to_num(-torch.inf, torch.inf, -torch.inf)
    order = by_score.argsort(dim=1, descending=True, stable=True)
    behind = scores.isnan().to(torch.int8) + 2 * last
    return order.gather(1, behind.gather(1, order).argsort(dim=1, stable=True))


def listed_scores(
    queries: Tensor, lists: Tensor, tables: FusedTables, similarity: str, exclude: Exclude
) -> tuple[Tensor, Tensor]:
    """The lists without what is excluded, ``(B, M)``, and the scores, -inf where there is no id."""
    padding = tables.num_embeddings
    rows = queries.detach().reshape(-1, tables.dim)
    offsets, excluded = split_exclude(exclude, queries)
    if excluded is not None:
        excluded = excluded.contiguous()
        native.check_ids("exclude", excluded, -1, padding)
        if offsets is not None:
            native.check_offsets("exclude", offsets, len(excluded))
        numbers = torch.arange(len(rows), device=lists.device)
        of_rows = (
            numbers[:, None].expand_as(excluded)
            if offsets is None
            else torch.repeat_interleave(numbers, offsets.diff())
        )
        # One number for each pair of a query and an id; -1 comes to lie where no id does.
        keys = of_rows * (padding + 2) + excluded + 1
        left_out = torch.isin(numbers[:, None] * (padding + 2) + lists + 1, keys)
        lists = lists.masked_fill(left_out, padding)
    scores = score_candidates(
        rows, lists, tables.semantic_rows, tables.id_embeddings, tables.fusion, similarity
    )
    return lists, scores
