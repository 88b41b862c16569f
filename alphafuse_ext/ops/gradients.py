"""Gradients of gathered ID embeddings: rows touched more than once are summed in a fixed order."""

from __future__ import annotations

from typing import NamedTuple

import torch

from alphafuse_ext import _core
from alphafuse_ext.ops import native


class DeviceGroups(NamedTuple):
    """What ``group_ids`` of the CPU makes, in tensors: entries brought together by id."""

    ids: torch.Tensor
    """``(count,)``, ascending."""
    offsets: torch.Tensor
    """``(count + 1,)``: group ``g`` has the entries ``entries[offsets[g]:offsets[g + 1]]``."""
    entries: torch.Tensor
    """Places in the list of ids, in its order within a group."""
    num_embeddings: int
    dense: bool
    """A gradient has a row for each item, not for each group."""

    @property
    def size(self) -> int:
        return self.ids.shape[0]

    def copy_ids(self, out: torch.Tensor) -> None:
        out.copy_(self.ids)


Groups = _core.cpu.Grouping | DeviceGroups


def group_ids(ids: torch.Tensor, num_embeddings: int, sparse: bool) -> Groups:
    """Brings the entries of each id together; drops the padding.

    Args:
        ids: contiguous int64, any shape.
        num_embeddings: ``N``.
        sparse: gradients have a row for each group, not for each item.
    """
    kernels, _ = native.kernels(ids)
    if kernels is _core.cpu:
        return kernels.group_ids(ids, num_embeddings, not sparse)
    in_order, entries = ids.flatten().sort(stable=True)
    real = int((in_order < num_embeddings).sum())
    unique, counts = in_order[:real].unique_consecutive(return_counts=True)
    offsets = torch.nn.functional.pad(counts.cumsum(0), (1, 0))
    return DeviceGroups(unique, offsets, entries[:real].contiguous(), num_embeddings, not sparse)


def empty_rows(
    groups: Groups, num_embeddings: int, null_dim: int, device: torch.device, sparse: bool
) -> torch.Tensor:
    """Float32 memory for the gradient: a row for each group if sparse, else ``(N, ...)`` zeros."""
    if sparse:
        return torch.empty((groups.size, null_dim), dtype=torch.float32, device=device)
    return torch.zeros((num_embeddings, null_dim), dtype=torch.float32, device=device)


def finish(
    rows: torch.Tensor, groups: Groups, num_embeddings: int, dtype: torch.dtype, sparse: bool
) -> torch.Tensor:
    """The gradient ``(N, null_dim)`` in the table's dtype, from the rows written."""
    if not sparse:
        return rows.to(dtype)
    touched = torch.empty(groups.size, dtype=torch.int64, device=rows.device)
    groups.copy_ids(touched)
    return torch.sparse_coo_tensor(
        touched[None],
        rows.to(dtype),
        (num_embeddings, rows.shape[1]),
        is_coalesced=True,
        check_invariants=False,
    )
