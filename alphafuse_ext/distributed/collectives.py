"""Collectives with autograd, for any number of rows per rank."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from alphafuse_ext.distributed.process_group import ProcessGroup
from alphafuse_ext.ops.declare import refuse_second_derivatives

SHARDED = "through a sharded table"


class Gathered:
    """Gathers the concatenated rows of all ranks, of which a rank can select its own.

    Args:
        rows: this rank's, shape (B, ...); the first dimension may differ between ranks.
        group: of all ranks; a collective.
    """

    def __init__(self, rows: Tensor, group: Any = None) -> None:
        self.group = group
        self.world_size, self.rank = dist.get_world_size(group), dist.get_rank(group)
        size = torch.tensor([len(rows)], device=rows.device)
        sizes = [torch.empty_like(size) for _ in range(self.world_size)]
        dist.all_gather(sizes, size, group)
        self.sizes = [int(one) for one in sizes]

    @property
    def own(self) -> slice:
        """The slice of this rank's rows."""
        start = sum(self.sizes[: self.rank])
        return slice(start, start + self.sizes[self.rank])

    def rows(self, rows: Tensor) -> Tensor:
        """All ranks' rows, ``(sum of B, ...)``, with the row counts of the constructor."""
        longest = max(self.sizes)
        padded = rows.new_zeros((longest, *rows.shape[1:]))
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in range(self.world_size)]
        dist.all_gather(parts, padded, self.group)
        return torch.cat([part[:size] for part, size in zip(parts, self.sizes, strict=True)])

    def padded_rows(self, rows: Tensor, value: float) -> Tensor:
        """The same for rows ``(B, M)`` of different widths, padded with ``value``."""
        width = torch.tensor([rows.shape[1]], device=rows.device)
        dist.all_reduce(width, dist.ReduceOp.MAX, self.group)
        missing = int(width) - rows.shape[1]
        return self.rows(torch.nn.functional.pad(rows, (0, missing), value=value))


def stacked(tensor: Tensor, group: Any = None) -> Tensor:
    """Tensors of all ranks, of equal shapes, stacked: ``(W, ...)``."""
    parts = [torch.empty_like(tensor) for _ in range(dist.get_world_size(group))]
    dist.all_gather(parts, tensor.contiguous(), group)
    return torch.stack(parts)


class Exchange(torch.autograd.Function):
    """Sends rows to the ranks that requested them; backward sends their gradients back."""

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, sent: list[int], received: list[int], process_group: ProcessGroup
    ) -> Tensor:
        ctx.sent, ctx.received, ctx.process_group = sent, received, process_group
        return exchange(rows, sent, received, process_group.group)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        refuse_second_derivatives(SHARDED)
        with ctx.process_group.together():
            return exchange(grad, ctx.received, ctx.sent, ctx.process_group.group), None, None, None


def exchange(rows: Tensor, sent: list[int], received: list[int], group: Any = None) -> Tensor:
    """All-to-all: sends the first ``sent[0]`` rows to rank 0 and so on; returns rows by rank."""
    out = rows.new_empty((sum(received), *rows.shape[1:]))
    dist.all_to_all_single(out, rows.contiguous(), received, sent, group)
    return out


class Summed(torch.autograd.Function):
    """Sum over the ranks; backward averages the gradients over them."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, process_group: ProcessGroup) -> Tensor:
        ctx.process_group = process_group
        return process_group.sum(tensor.clone())

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        refuse_second_derivatives(SHARDED)
        return ctx.process_group.sum(grad.clone()) / ctx.process_group.size, None


class Scaled(torch.autograd.Function):
    """The identity, whose gradient is multiplied by a number."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad * ctx.factor, None
