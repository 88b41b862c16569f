"""Items that are taken together: pairs of a history counted, near ones more."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from tqdm.auto import tqdm

from alphafuse_ext.checks import check_count, check_share, integer, invalid
from alphafuse_ext.items.sparse_lists import (
    ENTRIES,
    LONG,
    IntArray,
    SparseLists,
    check_ids,
    joined,
    lists_of,
    offsets_of,
    shares,
    summed,
)

DIRECTIONS = ("both", "after")


class Histories(Protocol):
    """What :class:`alphafuse_ext.data.Sequences` and ``Slices`` are: runs of item ids."""

    @property
    def lengths(self) -> IntArray: ...

    def __len__(self) -> int: ...

    def select(self, index: npt.ArrayLike) -> Any: ...

    def last(self, n: int) -> Any: ...


@dataclass(frozen=True)
class Cooccurrence:
    """How lists of what is taken together are made.

    ``K[i, j] = C[i, j] / sqrt((r_i + shrinkage) (c_j + shrinkage))``, where ``C`` adds up, over all
    pairs of different items in a history, ``decay ** (steps - 1)``, and ``r`` and ``c`` are the
    sums of its rows and columns.

    Attributes:
        window: the most steps between two items.
        decay: of a pair's weight with each step, in (0, 1].
        shrinkage: what is added to the sums, so that a few pairs prove little; at least 0.
        direction: ``"both"``: what was taken before and after an item; ``"after"``: after it alone.
        max_neighbors: the longest list, of the largest ``K``; ``None``: any length.
    """

    window: int = 8
    decay: float = 0.7
    shrinkage: float = 8.0
    direction: str = "both"
    max_neighbors: int | None = 1000

    def __post_init__(self) -> None:
        check_count("window", self.window)
        check_share("decay", self.decay)
        if not 0 <= self.shrinkage < math.inf:
            raise invalid("shrinkage", self.shrinkage, "a finite number, 0 or more")
        if self.direction not in DIRECTIONS:
            raise invalid("direction", repr(self.direction), " or ".join(map(repr, DIRECTIONS)))
        if self.max_neighbors is not None and integer("max_neighbors", self.max_neighbors) < 1:
            raise invalid("max_neighbors", self.max_neighbors, "None or max_neighbors >= 1")

    def lists(self, histories: Histories, num_items: int) -> SparseLists:
        """Of each item, what was taken together with it.

        Items are taken up block by block: beside the histories and the lists there are four numbers
        for each interaction and some hundred MB.

        Args:
            histories: item ids in order of time, one history for each training user.
            num_items: N.
        """
        whole = histories.select(np.arange(len(histories)))
        values = np.asarray(whole.values)
        check_ids("histories", values, num_items)
        of_history = np.repeat(np.arange(len(whole), dtype=np.int32), whole.lengths)
        backward = range(-self.window, 0) if self.direction == "both" else ()
        steps = [*backward, *range(1, self.window + 1)]
        counts = np.bincount(values, minlength=num_items)
        order = np.argsort(values, kind="stable")
        firsts = offsets_of(counts)

        def pairs(where: IntArray) -> Iterator[tuple[IntArray, IntArray, float]]:
            """By the number of steps from some places: which of these, the item there, a weight."""
            for step in steps:
                there = where + step
                inside = (there >= 0) & (there < len(values))
                own, there = where[inside], there[inside]
                others = values[there]
                meet = (of_history[own] == of_history[there]) & (values[own] != others)
                yield own[meet], others[meet], self.decay ** (abs(step) - 1)

        sums = np.zeros((2, num_items))
        for start in range(0, len(values), ENTRIES):
            for own, others, weight in pairs(np.arange(start, min(start + ENTRIES, len(values)))):
                sums[0] += weight * np.bincount(values[own], minlength=num_items)
                sums[1] += weight * np.bincount(others, minlength=num_items)
        # An item without a pair has no entry that this divides.
        scales = 1 / np.sqrt(np.where(sums > 0, sums + self.shrinkage, 1.0))

        found = []
        blocks = list(shares(np.arange(num_items), counts * len(steps), ENTRIES))
        bar = tqdm(blocks, "pairs", leave=False, disable=None if num_items > LONG else True)
        for items in bar:
            first, end = items[0], items[-1] + 1
            triples = [
                (values[own] - first, others, np.full(len(own), weight))
                for own, others, weight in pairs(order[firsts[first] : firsts[end]])
            ]
            rows, columns, weights = (np.concatenate(parts) for parts in zip(*triples, strict=True))
            block = summed(rows, columns, weights, (len(items), num_items))
            block.data *= np.repeat(scales[0, first:end], np.diff(block.indptr))
            block.data *= scales[1, block.indices]
            lists = lists_of(block)
            lists = SparseLists(lists.offsets, lists.ids.astype(np.int32), lists.values)
            found.append(lists if self.max_neighbors is None else lists.best(self.max_neighbors))
        return joined(found)
