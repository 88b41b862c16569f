"""Lists of recommendations for a batch: ranked by a model, with some of a kind, or popular ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from alphafuse_ext.data import Interactions, Sequences
from alphafuse_ext.data.split import comparable_times
from alphafuse_ext.evaluation.baselines import NOW, newest_counts
from alphafuse_ext.evaluation.ranking import RankedItems
from alphafuse_ext.evaluation.run_neighbors import RunNeighbors
from alphafuse_ext.models.popularity import Popularity
from alphafuse_ext.serving.queries import AtMost, IntArray

# Scores of lists that are ranked deeper than they are shown, at a time.
_AT_ONCE = 1 << 22


@dataclass(frozen=True, eq=False)
class Lists:
    """Lists, best first.

    Attributes:
        scores: float32, `(B, k)`.
        ids: int64, `(B, k)`; -1 behind the last item of a shorter list.
        origins: where each comes from, strings, `(B, k)`.
    """

    scores: npt.NDArray[np.float32]
    ids: IntArray
    origins: npt.NDArray[Any]

    @classmethod
    def empty(cls, count: int, k: int) -> Lists:
        shape = (count, k)
        scores = np.full(shape, -np.inf, dtype=np.float32)
        return cls(scores, np.full(shape, -1), np.full(shape, "", dtype=object))

    def put(self, row: int | IntArray, others: Lists, of: int | slice, places: Any) -> None:
        """Take over the places of others' lists that are given, in their order."""
        for name in ("scores", "ids", "origins"):
            given = getattr(others, name)[of][..., places]
            getattr(self, name)[row, : given.shape[-1]] = given


def ranked_lists(
    ranked: RankedItems,
    histories: Sequences,
    k: int,
    keep_seen: bool,
    own: Sequences | None = None,
    neighbors: RunNeighbors | None = None,
    at_most: AtMost | None = None,
    excluded: IntArray | None = None,
) -> Lists:
    """The best items after each history, see :meth:`RankedItems.best`.

    Args:
        ranked, histories, k, neighbors: as for that.
        keep_seen: rank the items of a history as well.
        own: rank these after each.
        at_most: how many of a kind. It is the same as if whole catalogs were ranked and cut down:
            lists are ranked as deep as they have to be.
        excluded: items that are left out of all.
    """
    if at_most is None:
        seen = None if keep_seen else histories
        if excluded is not None:
            had = [excluded[:0] if keep_seen else histories[n] for n in range(len(histories))]
            seen = Sequences.from_lists([np.concatenate([row, excluded]) for row in had])
        scores, best, mixture = ranked.best(histories, k, seen, own, neighbors)
        ids, origin = best.cpu().numpy(), ranked.model.origin
        origins = np.full(ids.shape, origin, dtype=object)
        if neighbors is not None:
            origins = neighbors.origins(histories, ids, scores, mixture, origin)
        return Lists(scores.cpu().numpy(), ids, origins)
    found, total = Lists.empty(len(histories), k), ranked.model.table.num_embeddings
    rows, depth = np.arange(len(histories)), min(4 * k, total)
    while len(rows):
        left = []
        for start in range(0, len(rows), max(1, _AT_ONCE // depth)):
            some = rows[start : start + max(1, _AT_ONCE // depth)]
            among = None if own is None else own.select(some)
            how = (keep_seen, among, neighbors, None, excluded)
            deep = ranked_lists(ranked, histories.select(some), depth, *how)
            for place, row in enumerate(some.tolist()):
                ids = deep.ids[place][deep.ids[place] >= 0]
                kept = at_most.first(ids, k)
                if len(kept) == k or len(ids) < depth or depth == total:
                    found.put(row, deep, place, kept)
                else:
                    left.append(row)
        rows, depth = np.array(left, dtype=np.int64), min(4 * depth, total)
    return found


@dataclass(frozen=True, eq=False)
class PopularItems:
    """What someone unknown gets: items by their newest interactions, then by all.

    Attributes:
        ids: of all items, the most popular first; empty where there are no interactions.
        counts: of the newest interactions, of each item.
        origin: what it is called in recommendations.
    """

    ids: IntArray
    counts: IntArray
    origin: str

    @classmethod
    def of(cls, interactions: Interactions, share: float) -> PopularItems:
        """Of a share of the interactions, the newest; of all where there are no times."""
        every, times = interactions.item_counts(), comparable_times(interactions)
        if times is None or not len(interactions):
            counts, origin = every, Popularity.origin
        else:
            counts, origin = newest_counts(interactions, times, share), NOW
        order = np.lexsort((-every, -counts))
        return cls(order if len(interactions) else order[:0], counts, origin)

    def lists(
        self,
        count: int,
        k: int,
        mask: npt.NDArray[np.bool_] | None,
        own: Sequences | None,
        at_most: AtMost | None,
    ) -> Lists:
        """The same list for each of some queries, or of each's own items.

        Args:
            count: how many.
            k: the length.
            mask: which items may be recommended; ``None``: all.
            own: those of each.
            at_most: how many of a kind.
        """
        found = Lists.empty(count, k)
        for row in range(count if own is not None else min(count, 1)):
            ids = self.ids
            if own is not None:
                ids = ids[np.isin(ids, own[row])]
            elif mask is not None:
                ids = ids[mask[ids]]
            ids = ids[:k] if at_most is None else ids[at_most.first(ids, k)]
            rows = slice(None) if own is None else slice(row, row + 1)
            found.ids[rows, : len(ids)] = ids
            found.scores[rows, : len(ids)] = self.counts[ids]
            found.origins[rows, : len(ids)] = self.origin
        return found
