"""Gradients of gathered ID embeddings: rows touched more than once are summed in a fixed order."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from alphafuse_ext import _core


@dataclass(frozen=True)
class CudaGroups:
    """What ``_core.Grouping`` is on the CPU: entries brought together by id, in tensors."""

    ids: torch.Tensor
    """``(count,)``, ascending."""
    offsets: torch.Tensor
    """``(count + 1,)``: group ``g`` has the entries ``entries[offsets[g]:offsets[g + 1]]``."""
    entries: torch.Tensor
    """Places in the list of ids, in its order within a group."""
    count: int


Groups = _core.Grouping | CudaGroups


def group_ids(ids: torch.Tensor, num_embeddings: int) -> Groups:
    """Brings the entries of each id together; drops the padding.

    Args:
        ids: contiguous int64, any shape.
        num_embeddings: ``N``.
    """
    if not ids.is_cuda:
        return _core.Grouping(ids.data_ptr(), ids.numel(), 0, num_embeddings)
    in_order, entries = ids.flatten().sort(stable=True)
    real = int((in_order < num_embeddings).sum())
    unique, counts = in_order[:real].unique_consecutive(return_counts=True)
    offsets = torch.nn.functional.pad(counts.cumsum(0), (1, 0))
    return CudaGroups(unique, offsets, entries[:real].contiguous(), unique.numel())


def empty_rows(
    groups: Groups, num_embeddings: int, null_dim: int, device: torch.device, sparse: bool
) -> torch.Tensor:
    """Float32 memory for the gradient: a row for each group if sparse, else ``(N, ...)`` zeros."""
    if sparse:
        return torch.empty((groups.count, null_dim), dtype=torch.float32, device=device)
    return torch.zeros((num_embeddings, null_dim), dtype=torch.float32, device=device)


def finish(
    rows: torch.Tensor, groups: Groups, num_embeddings: int, dtype: torch.dtype, sparse: bool
) -> torch.Tensor:
    """The gradient ``(N, null_dim)`` in the table's dtype, from the rows written."""
    if not sparse:
        return rows.to(dtype)
    if isinstance(groups, CudaGroups):
        touched = groups.ids
    else:
        touched = torch.empty(groups.count, dtype=torch.int64)
        groups.copy_ids(touched.data_ptr())
    return torch.sparse_coo_tensor(
        touched[None],
        rows.to(dtype),
        (num_embeddings, rows.shape[1]),
        is_coalesced=True,
        check_invariants=False,
    )
