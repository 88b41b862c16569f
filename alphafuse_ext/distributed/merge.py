"""Shards of a catalog, and merging the results of shards."""

from __future__ import annotations

import torch
from torch import Tensor

from alphafuse_ext.checks import invalid
from alphafuse_ext.ops.only import in_order
from alphafuse_ext.ops.topk import TopK


def shard_bounds(num_items: int, world_size: int) -> list[int]:
    """The first row of each rank, and finally ``num_items``.

    As in ``torch.chunk`` and DTensor's ``Shard(0)``: equal shards, except for a smaller last one.

    Args:
        num_items: of the catalog.
        world_size: number of ranks.

    Raises:
        ValueError: no rank, or a rank would have no items.
    """
    size = -(-num_items // max(1, world_size))
    if world_size < 1 or size * (world_size - 1) >= num_items:
        allowed = f"1 or more, each with some of {num_items} items: {size} but for the last"
        raise invalid("world_size", world_size, allowed)
    return [min(size * rank, num_items) for rank in range(world_size + 1)]


def merge_topk(values: Tensor, ids: Tensor, k: int) -> TopK:
    """Merge ``topk`` results of several shards, exactly as ``topk`` over the whole catalog.

    Args:
        values: float32, shape (P, B, K): of each shard, best first, shards in the order of their
            ids.
        ids: int64, of the same shape, of the whole catalog; -1 if a shard had fewer items.
        k: number of results, at most ``P * K``.

    Returns:
        ``values`` and ``indices``, shape (B, k), descending score, then ascending id, NaN last.

    Raises:
        ValueError: shapes that do not fit, or ``k`` out of range.
    """
    if values.ndim != 3 or values.shape != ids.shape:
        found = f"shapes {tuple(values.shape)} and {tuple(ids.shape)}"
        raise invalid("values, ids", found, "one shape (parts, B, K)")
    most = values.shape[0] * values.shape[2]
    if not 1 <= k <= most:
        raise invalid("k", k, f"1 <= k <= {most}")
    values, ids = (part.transpose(0, 1).flatten(1) for part in (values, ids))
    # A stable sort: shards are in the order of their ids, and so are ties.
    order = in_order(values, last=ids < 0)[:, :k]
    return TopK(values.gather(1, order), ids.gather(1, order))


def merge_log_sum_exp(maxima: Tensor, logs: Tensor) -> tuple[Tensor, Tensor]:
    """``(max, log(sum(exp(score - max))))`` over the whole catalog, from those of its shards.

    Args:
        maxima, logs: float32, shape (P, ...): of each shard.

    Returns:
        Both over the whole catalog, shape (...).
    """
    highest = maxima.amax(0)
    # Where all scores are -inf, or one is inf or NaN, a difference would be NaN by itself.
    shifts = torch.where(maxima == highest, 0.0, maxima - highest)
    return highest, (shifts + logs).logsumexp(0)
