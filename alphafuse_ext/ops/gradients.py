"""Shared code of backward passes: gradients over the whole catalog, and of gathered ID embeddings.

Rows that are gathered more than once are summed in a fixed order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

import alphafuse_ext._core as _core
from alphafuse_ext.ops import native
from alphafuse_ext.ops.tables import FusedTables


class DeviceGroups(NamedTuple):
    """What ``group_ids`` of the CPU makes, on a device: entries brought together by id."""

    rows: torch.Tensor
    """``(count,)``, ascending: the row of the gradient that each entry adds to. Those of the
    padding come last and are no row."""
    entries: torch.Tensor
    """``(count,)``: places in the list of ids, in its order within a row."""
    num_rows: int
    """Rows of the gradient: one for each item, or (sparse) for each id that is among the ids."""
    touched: torch.Tensor | None
    """``(num_rows,)``: the ids of the rows, if sparse."""

    @property
    def size(self) -> int:
        return self.num_rows

    def copy_ids(self, out: torch.Tensor) -> None:
        assert self.touched is not None
        out.copy_(self.touched)


Groups = _core.cpu.Grouping | DeviceGroups


def group_ids(ids: torch.Tensor, num_embeddings: int, sparse: bool) -> Groups:
    """Brings the entries of each id together; drops the padding.

    Args:
        ids: contiguous int64, any shape.
        num_embeddings: ``N``.
        sparse: gradients have a row for each group, not for each item.
    """
    kernels, where = native.kernels(ids)
    if kernels is _core.cpu:
        return kernels.group_ids(ids, num_embeddings, not sparse)
    in_order, entries = torch.empty_like(ids), torch.empty_like(ids)
    kernels.group_ids(ids, num_embeddings, in_order, entries, where)
    in_order, entries = in_order.flatten(), entries.flatten()
    if not sparse:
        return DeviceGroups(in_order, entries, num_embeddings, None)
    first = torch.ones_like(in_order, dtype=torch.bool)
    torch.ne(in_order[1:], in_order[:-1], out=first[1:])
    # The host waits for the device here, and only here: it has to know a sparse tensor's size.
    touched = in_order[first & (in_order < num_embeddings)]
    return DeviceGroups(first.cumsum(0) - 1, entries, touched.shape[0], touched)


def empty_rows(
    groups: Groups, num_embeddings: int, null_dim: int, device: torch.device, sparse: bool
) -> torch.Tensor:
    """Float32 memory for the gradient: a row for each group if sparse, else ``(N, ...)`` zeros."""
    if sparse:
        return torch.empty((groups.size, null_dim), dtype=torch.float32, device=device)
    return torch.zeros((num_embeddings, null_dim), dtype=torch.float32, device=device)


def touched_ids(groups: Groups, device: torch.device) -> torch.Tensor:
    """The ids of the groups, ascending: those of the rows of a sparse gradient."""
    touched = torch.empty(groups.size, dtype=torch.int64, device=device)
    groups.copy_ids(touched)
    return touched


def finish(
    rows: torch.Tensor, groups: Groups, num_embeddings: int, dtype: torch.dtype, sparse: bool
) -> torch.Tensor:
    """The gradient ``(N, null_dim)`` in the table's dtype, from the rows written."""
    if not sparse:
        return rows.to(dtype)
    return torch.sparse_coo_tensor(
        touched_ids(groups, rows.device)[None],
        rows.to(dtype),
        (num_embeddings, rows.shape[1]),
        is_coalesced=True,
        check_invariants=False,
    )


def zero_unused(queries: torch.Tensor, grad: torch.Tensor) -> torch.Tensor:
    """The queries, zeros in place of those that nothing depends on: 0 times NaN would be NaN.

    Args:
        queries: ``(..., dim)``.
        grad: of all that was computed of each query, ``(...)`` or ``(..., N)``.
    """
    # Hardly ever is there anything to replace, and on the CPU it costs nothing to know.
    if grad.numel() == 0 or (queries.device.type == "cpu" and bool(queries.isfinite().all())):
        return queries
    if grad.dim() == queries.dim():
        grad = torch.linalg.vector_norm(grad, torch.inf, dim=-1)
    return torch.where(grad.unsqueeze(-1) == 0, 0.0, queries)


def empty(
    queries: torch.Tensor, tables: FusedTables, need_queries: bool, need_ids: bool
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Float32 memory for the gradients of queries and ID embeddings, where they are needed."""
    of_queries = torch.empty_like(queries) if need_queries else None
    if not need_ids or tables.id_embeddings is None:
        return of_queries, None
    return of_queries, queries.new_empty(tables.id_embeddings.shape)


def of_catalog(
    queries: torch.Tensor,
    of_queries: torch.Tensor | None,
    of_ids: torch.Tensor | None,
    tables: FusedTables,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The gradients in the dtypes of what they belong to; no elements where not needed."""
    if of_ids is not None and tables.id_embeddings is not None:
        of_ids = of_ids.to(tables.id_embeddings.dtype)
    nothing = queries.new_empty(0)
    return (
        nothing if of_queries is None else of_queries,
        nothing if of_ids is None else of_ids,
    )


def by_definition(
    definition: Callable[[torch.Tensor, FusedTables], torch.Tensor],
    grad: torch.Tensor,
    queries: torch.Tensor,
    tables: FusedTables,
    need_queries: bool,
    need_ids: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """What :func:`of_catalog` returns, differentiable, from the definition of the scores."""

    def of_needed(*given: torch.Tensor) -> torch.Tensor:
        of = given[0] if need_queries else queries
        ids = given[-1] if need_ids else tables.id_embeddings
        return definition(of, FusedTables(tables.semantic_rows, ids, *tables.how))

    need_ids = need_ids and tables.id_embeddings is not None
    pair = ((queries, need_queries), (tables.id_embeddings, need_ids))
    needed = [one for one, wanted in pair if wanted]
    found = torch.func.vjp(of_needed, *needed)[1](grad)
    nothing = queries.new_empty(0)
    return found[0] if need_queries else nothing, found[-1] if need_ids else nothing


def fake_of_catalog(
    queries: torch.Tensor, tables: FusedTables, need_queries: bool, need_ids: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """What :func:`of_catalog` returns, for fake kernels."""
    of_queries = queries.new_empty(queries.shape if need_queries else (0,))
    if need_ids and tables.id_embeddings is not None:
        return of_queries, tables.id_embeddings.new_empty(tables.id_embeddings.shape)
    return of_queries, queries.new_empty(0)
