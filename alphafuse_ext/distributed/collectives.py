"""What ranks send each other: rows of any number, and numbers for each query."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from alphafuse_ext.distributed.process_group import ProcessGroup
from alphafuse_ext.ops.declare import refuse_second_derivatives

SHARDED = "through a sharded table"


class Gathered:
    """Rows of every rank, one behind another, of which a rank finds its own again.

    Args:
        rows: this rank's, shape (B, ...); the first dimension may differ between ranks.
        group: the ranks; all of them have to come here.
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
        """Where this rank's rows are among all."""
        start = sum(self.sizes[: self.rank])
        return slice(start, start + self.sizes[self.rank])

    def rows(self, rows: Tensor) -> Tensor:
        """All ranks' rows, ``(sum of B, ...)``, of as many as said at first."""
        longest = max(self.sizes)
        padded = rows.new_zeros((longest, *rows.shape[1:]))
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in range(self.world_size)]
        dist.all_gather(parts, padded, self.group)
        return torch.cat([part[:size] for part, size in zip(parts, self.sizes, strict=True)])

    def padded_rows(self, rows: Tensor, value: int) -> Tensor:
        """The same of rows ``(B, M)`` whose width differs, too; filled up with ``value``."""
        width = torch.tensor([rows.shape[1]], device=rows.device)
        dist.all_reduce(width, dist.ReduceOp.MAX, self.group)
        missing = int(width) - rows.shape[1]
        return self.rows(torch.nn.functional.pad(rows, (0, missing), value=value))


def stacked(tensor: Tensor, group: Any = None) -> Tensor:
    """What every rank has, of one shape: ``(W, ...)``."""
    parts = [torch.empty_like(tensor) for _ in range(dist.get_world_size(group))]
    dist.all_gather(parts, tensor.contiguous(), group)
    return torch.stack(parts)


class Exchange(torch.autograd.Function):
    """Rows to the ranks that asked for them; backward, their gradients to where they came from."""

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
    """The first ``sent[0]`` rows to rank 0 and so on; what came, in the order of ranks."""
    out = rows.new_empty((sum(received), *rows.shape[1:]))
    dist.all_to_all_single(out, rows.contiguous(), received, sent, group)
    return out


class Summed(torch.autograd.Function):
    """The sum over the ranks; backward, the mean over them of its gradients."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, process_group: ProcessGroup) -> Tensor:
        ctx.process_group = process_group
        return process_group.sum(tensor.clone())

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        refuse_second_derivatives(SHARDED)
        return ctx.process_group.sum(grad.clone()) / ctx.process_group.size, None


class Scaled(torch.autograd.Function):
    """A tensor as it is, whose gradient is multiplied by a number."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad * ctx.factor, None
