"""How a catalog is dealt out, and how results of its parts become those of the whole."""

from __future__ import annotations

import torch
from torch import Tensor

from alphafuse_ext.checks import invalid
from alphafuse_ext.deprecation import renamed_arguments
from alphafuse_ext.ops.only import in_order
from alphafuse_ext.ops.topk import TopK


@renamed_arguments({"ranks": "world_size"})
def shard_bounds(num_items: int, world_size: int) -> list[int]:
    """Where each rank's rows begin, and at the end ``num_items``.

    As ``torch.chunk`` and DTensor's ``Shard(0)`` have it: equal parts, but for a smaller last one.

    Args:
        num_items: of the catalog.
        world_size: how many ranks share it.

    Raises:
        ValueError: no rank, or so many that one would have no item.
    """
    size = -(-num_items // max(1, world_size))
    if world_size < 1 or size * (world_size - 1) >= num_items:
        allowed = f"1 or more, each with some of {num_items} items: {size} but for the last"
        raise invalid("world_size", world_size, allowed)
    return [min(size * rank, num_items) for rank in range(world_size + 1)]


def merge_topk(values: Tensor, ids: Tensor, k: int) -> TopK:
    """The best of several parts' best, exactly as ``topk`` over the whole gives them.

    Args:
        values: float32, shape (P, B, K): of each part, best first, parts in the order of their ids.
        ids: int64, of the same shape, of the whole catalog; -1 where a part had fewer.
        k: how many to keep, at most ``P * K``.

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
    # A stable order: parts come in the order of their ids, and so do ties.
    order = in_order(values, last=ids < 0)[:, :k]
    return TopK(values.gather(1, order), ids.gather(1, order))


def merge_log_sum_exp(maxima: Tensor, logs: Tensor) -> tuple[Tensor, Tensor]:
    """``(max, log(sum(exp(score - max))))`` over the whole catalog, from those of its parts.

    Args:
        maxima, logs: float32, shape (P, ...): of each part.

    Returns:
        The same two of the whole, shape (...).
    """
    highest = maxima.amax(0)
    # Where all scores are -inf, or one is inf or NaN, a difference would be NaN by itself.
    shifts = torch.where(maxima == highest, 0.0, maxima - highest)
    return highest, (shifts + logs).logsumexp(0)
