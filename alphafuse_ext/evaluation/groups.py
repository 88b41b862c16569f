"""Metrics by group: head and tail users; head, tail and cold items."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from alphafuse_ext.checks import invalid
from alphafuse_ext.data import Examples
from alphafuse_ext.evaluation.ranking import Evaluation
from alphafuse_ext.metrics import CUTOFFS, ranking_metrics

HEAD_SHARE = 0.2
"""Pareto's rule: the head is the first fifth."""

Mask = npt.NDArray[np.bool_]


def long_tail_groups(
    examples: Examples, train_item_counts: npt.NDArray[np.int64], head_share: float = HEAD_SHARE
) -> tuple[dict[str, Mask], dict[str, int]]:
    """The groups of a long-tail study, as masks over the examples.

    * ``head users``: examples with the longest histories, a fifth of them; ``tail users``: others.
    * ``head items``: targets among the most popular fifth of the items in training; ``tail items``:
      targets among the other items in training; ``cold items``: targets not in training.

    Ties with the last of a head belong to the head, so groups do not depend on the order of ids; a
    head may therefore be larger than its share.

    Args:
        examples: the evaluated examples.
        train_item_counts: training interactions of each item, int64, shape ``(N,)``.
        head_share: above 0, below 1.

    Returns:
        The masks, each of shape ``(E,)``, by name; and the smallest values of the heads:
        ``head_user_length`` (history length) and ``head_item_count`` (training interactions).

    Raises:
        ValueError: ``head_share`` out of range.
    """
    if not 0 < head_share < 1:
        raise invalid("head_share", head_share, "0 < head_share < 1")
    lengths = examples.histories.lengths
    popularity = train_item_counts[examples.targets]
    min_length = _min_of_head(lengths, head_share)
    min_count = _min_of_head(train_item_counts[train_item_counts > 0], head_share)
    long, popular, cold = lengths >= min_length, popularity >= min_count, popularity == 0
    groups = {
        "head users": long,
        "tail users": ~long,
        "head items": popular & ~cold,
        "tail items": ~popular & ~cold,
        "cold items": cold,
    }
    return groups, {"head_user_length": min_length, "head_item_count": min_count}


def _min_of_head(values: npt.NDArray[np.int64], head_share: float) -> int:
    """The smallest value of a head: that of rank ``head_share * len(values)``; 1 of nothing."""
    if len(values) == 0:
        return 1
    place = max(1, round(head_share * len(values)))
    return int(np.partition(values, len(values) - place)[len(values) - place])


def group_metrics(
    ranks: npt.NDArray[np.int64], groups: Mapping[str, Mask], cutoffs: Sequence[int] = CUTOFFS
) -> dict[str, dict[str, float | int]]:
    """Metrics and size of each group.

    Args:
        ranks: ``(E,)``, 0 = first.
        groups: masks of shape ``(E,)``, by name.
        cutoffs: of the metrics.

    Returns:
        By name: ``examples``, the count, and the metrics of :func:`ranking_metrics`, unless the
        group is empty.
    """
    metrics: dict[str, dict[str, float | int]] = {}
    for name, mask in groups.items():
        count = int(mask.sum())
        found = ranking_metrics(ranks[mask], cutoffs) if count else {}
        metrics[name] = {"examples": count, **found}
    return metrics


def long_tail_report(
    examples: Examples, train_item_counts: npt.NDArray[np.int64], evaluation: Evaluation
) -> dict[str, Any]:
    """Metrics by the groups of :func:`long_tail_groups`, as plain values for JSON.

    Returns:
        The smallest values of the heads, and ``metrics_by_seen_items``: :func:`group_metrics` with
        seen items excluded and ranked.
    """
    groups, limits = long_tail_groups(examples, train_item_counts)
    ranks = evaluation.ranks_by_seen_items
    metrics = {
        protocol: group_metrics(found, groups, evaluation.cutoffs)
        for protocol, found in ranks.items()
    }
    return {**limits, "metrics_by_seen_items": metrics}
