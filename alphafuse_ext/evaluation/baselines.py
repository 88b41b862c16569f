"""Baselines beside popularity: what is popular of late, the history itself again, and neighbors."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from alphafuse_ext.choices import TieRule
from alphafuse_ext.data import Examples, Interactions, Split
from alphafuse_ext.data.split import comparable_times, count_up
from alphafuse_ext.evaluation.ranking import (
    UNREACHABLE,
    evaluate_model,
    evaluate_popularity,
    example_ranks,
)
from alphafuse_ext.evaluation.run_neighbors import ALIKE, TOGETHER, RunNeighbors
from alphafuse_ext.items.sparse_lists import SparseLists
from alphafuse_ext.metrics import CUTOFFS, ranking_metrics
from alphafuse_ext.models.popularity import Popularity

NOW, AGAIN = "popular now", "last again"
"""Their names in tables."""
SHARES = (0.01, 0.03, 0.1, 0.3)
"""Of the training interactions, the newest, of which the best on validation are counted."""


def recent_counts(interactions: Interactions, split: Split, share: float) -> npt.NDArray[np.int64]:
    """Of each item, the interactions among a share of the training ones, the newest; ``(N,)``.

    Those of the time at which the share begins all count.
    """
    lengths = interactions.sequences.lengths
    trained = count_up(lengths) < np.repeat(split.train_lengths, lengths)
    return newest_counts(interactions, np.asarray(interactions.timestamps), share, trained)


def newest_counts(
    interactions: Interactions,
    times: npt.NDArray[Any],
    share: float,
    among: npt.NDArray[np.bool_] | None = None,
) -> npt.NDArray[np.int64]:
    """:func:`recent_counts` of all interactions, or of some.

    Args:
        interactions, share: as there.
        times: of the interactions.
        among: which of them; ``None``: all.
    """
    items = interactions.sequences.values
    times, items = (times, items) if among is None else (times[among], items[among])
    count = max(1, round(share * len(times)))
    newest = times >= np.partition(times, -count)[-count]  # sorting all would take far longer
    return np.bincount(items[newest], minlength=interactions.num_items)


def again_ranks(examples: Examples) -> npt.NDArray[np.int64]:
    """Ranks of targets where every history is recommended again, its newest item first, ``(E,)``.

    What is not in it is not recommended.
    """
    ranks = np.full(len(examples), UNREACHABLE)
    for row in np.flatnonzero(examples.targets_seen()).tolist():
        newest = np.asarray(examples.histories[row])[::-1]
        before = newest[: np.argmax(newest == examples.targets[row])]
        ranks[row] = len(np.unique(before))
    return ranks


def baselines(
    interactions: Interactions,
    split: Split,
    examples: Examples,
    select: str,
    keep_seen: bool,
    ties: TieRule = "id",
    retired: npt.NDArray[np.int64] | None = None,
    cutoffs: Sequence[int] = CUTOFFS,
) -> dict[str, dict[str, Any]]:
    """Metrics of the baselines that have a meaning here, by name.

    Args:
        interactions: with times that are comparable between users, for what is popular now.
        split: of these; its validation chooses the share of the newest, by ``select``.
        examples: that are measured, of the split.
        select: a metric of :func:`alphafuse_ext.metrics.ranking_metrics`.
        keep_seen: seen items are ranked; else the last item is never recommended again.
        ties, retired, cutoffs: as for :func:`alphafuse_ext.evaluation.ranking.evaluate_model`.

    Returns:
        For each ``by_seen_items``, metrics; of what is popular now, ``share`` as well.
    """
    found: dict[str, dict[str, Any]] = {}
    if comparable_times(interactions) is not None and len(split.validation):
        counts = {share: recent_counts(interactions, split, share) for share in SHARES}

        def value(share: float) -> float:
            model = Popularity.of(counts[share])
            ranks = example_ranks(model, split.validation, exclude_seen=not keep_seen)
            return ranking_metrics(ranks)[select]

        share = max(SHARES, key=value)
        now = evaluate_popularity(
            counts[share], examples, keep_seen, ties, retired=retired, cutoffs=cutoffs
        )
        found[NOW] = {"share": share, "by_seen_items": now.by_seen_items}
    if keep_seen:
        found[AGAIN] = {
            "by_seen_items": {"ranked": ranking_metrics(again_ranks(examples), cutoffs)}
        }
    return found


_WEIGHT = 0.9
"""Of lists of neighbors, as of ``model="neighbors"``; popularity has the rest."""


def neighbor_baselines(
    lists: RunNeighbors,
    item_counts: npt.NDArray[np.int64],
    examples: Examples,
    keep_seen: bool,
    ties: TieRule = "id",
    retired: npt.NDArray[np.int64] | None = None,
    cutoffs: Sequence[int] = CUTOFFS,
) -> dict[str, dict[str, Any]]:
    """Metrics of item-to-item neighbors, those of either kind alone, popularity behind them.

    Args:
        lists: of the training interactions; of each kind what there is.
        item_counts: training interactions of each item.
        examples, keep_seen, ties, retired, cutoffs: as for :func:`baselines`.
    """
    model = Popularity.of(item_counts)
    own = lists.neighbors
    empty = SparseLists(
        np.zeros(own.num_items + 1, np.int64), np.zeros(0, np.int32), np.zeros(0, np.float32)
    )
    kinds = {TOGETHER: (lists, 0.0)}
    if own.language:
        alone = dataclasses.replace(own, together=empty)
        kinds[ALIKE] = dataclasses.replace(lists, neighbors=alone), 1.0
    found = {}
    for name, (kind, language_weight) in kinds.items():
        weighted = kind.weighted(_WEIGHT, language_weight, 1.0)
        ranked = evaluate_model(
            model,
            examples,
            keep_seen,
            ties,
            retired=retired,
            neighbors=weighted,
            cutoffs=cutoffs,
        )
        found[name] = {"by_seen_items": ranked.by_seen_items}
    return found
