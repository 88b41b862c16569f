"""Softmax over a sharded catalog: each rank sums over its shard for all queries."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from alphafuse_ext.distributed.collectives import SHARDED, Gathered, stacked
from alphafuse_ext.distributed.merge import merge_log_sum_exp
from alphafuse_ext.distributed.shard import Shard
from alphafuse_ext.ops import native
from alphafuse_ext.ops.declare import refuse_second_derivatives
from alphafuse_ext.ops.gradients import empty, of_catalog, zero_unused
from alphafuse_ext.ops.tables import FusedTables


class ShardedCrossEntropy(torch.autograd.Function):
    """Losses of a rank's queries; two numbers of the softmax per query are communicated."""

    @staticmethod
    def forward(
        ctx: Any,
        queries: Tensor,
        id_embeddings: Tensor | None,
        targets: Tensor,
        tables: FusedTables,
        table: Shard,
    ) -> Tensor:
        gathered = Gathered(queries, table.group)
        every, wanted = gathered.rows(queries.contiguous()), gathered.rows(targets.contiguous())
        found = every.new_empty((3, len(every)))
        maxima, logs, scores = found.unbind()
        kernels, where = native.kernels(every, tables.precision)
        kernels.log_sum_exp(tables.native(), every, maxima, logs, where)
        scores.copy_(table.target_scores(tables, every, wanted))
        parts = stacked(found, table.group)
        maxima, logs = merge_log_sum_exp(parts[:, 0], parts[:, 1])
        ctx.save_for_backward(every, wanted, maxima, logs)
        ctx.tables, ctx.table, ctx.gathered = tables, table, gathered
        losses = (maxima - parts[:, 2].sum(0)) + logs
        return torch.where(wanted == table.num_embeddings, 0.0, losses)[gathered.own]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivatives(SHARDED)
        every, wanted, maxima, logs = ctx.saved_tensors
        table, gathered = ctx.table, ctx.gathered
        with table.process_group.together():
            grad = gathered.rows(grad)
        weights = torch.where(wanted == table.num_embeddings, 0.0, grad)
        every = zero_unused(every, weights)
        # Every rank needs the queries' gradient, whether or not its own queries do.
        of_queries, of_ids = empty(every, ctx.tables, True, ctx.needs_input_grad[1])
        kernels, where = native.kernels(every, ctx.tables.precision)
        kernels.cross_entropy_backward(
            ctx.tables.native(),
            every,
            wanted,
            maxima,
            logs,
            weights.contiguous(),
            of_queries,
            of_ids,
            where,
        )
        grad_queries, grad_ids = of_catalog(every, of_queries, of_ids, ctx.tables)
        table.process_group.sum(grad_queries)
        own = grad_queries[gathered.own] if ctx.needs_input_grad[0] else None
        return (
            own,
            grad_ids / table.process_group.size if of_ids is not None else None,
            None,
            None,
            None,
        )
