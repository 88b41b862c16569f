"""The metrics of runs: their names, which settings choose among, and their formulas."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from alphafuse_ext.checks import invalid, refuse_masked

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

CUTOFFS = (1, 5, 10, 20, 50)
METRICS = tuple(f"{name}@{k}" for k in CUTOFFS for name in ("hr", "ndcg", "mrr"))


def ranking_metrics(
    ranks: npt.ArrayLike, cutoffs: Iterable[int] = CUTOFFS, tied: npt.ArrayLike | None = None
) -> dict[str, float]:
    """HR, NDCG and MRR of examples that each have one relevant item.

    With one relevant item HR@k equals Recall@k.

    Args:
        ranks: integers ``(E,)``, rank of each target, 0 = first.
        cutoffs: the values of k, integers from 1.
        tied: integers ``(E,)``, how many other items share the target's score; ``ranks`` is then
            the number of items with a higher score. Metrics are means over all orders of ties: the
            ranks ``ranks`` to ``ranks + tied`` are equally likely.

    Returns:
        ``{"hr@1": ..., "ndcg@1": ..., "mrr@1": ..., ...}``, means over the examples; NaN if there
        are none.

    Raises:
        TypeError: ranks, ties or cutoffs that are not integers, or not a list of them.
        ValueError: a cutoff below 1.
    """
    import numpy as np  # not for the names above

    ranks = _integers("ranks", ranks)
    others = np.zeros_like(ranks) if tied is None else _integers("tied", tied)
    metrics: dict[str, float] = {}
    for k in _integers("cutoffs", list(cutoffs) if isinstance(cutoffs, Iterable) else cutoffs):
        if k < 1:
            raise invalid("cutoffs", k, "integers >= 1")
        places = np.arange(k)
        gains = {"hr": np.ones(k), "ndcg": 1 / np.log2(places + 2), "mrr": 1 / (places + 1)}
        first = np.minimum(ranks, k)
        after = np.minimum(first + others + 1, k)
        for name, gain in gains.items():
            sums = np.concatenate([[0.0], np.cumsum(gain)])
            means = (sums[after] - sums[first]) / (others + 1)
            metrics[f"{name}@{k}"] = float(means.mean()) if len(ranks) else float("nan")
    return metrics


def ndcg_of_examples(ranks: npt.NDArray[np.int64], k: int = 10) -> npt.NDArray[np.float64]:
    """NDCG@k of each example, for tests over examples; ranks in any shape, 0 = first."""
    import numpy as np

    return np.where(ranks < k, 1 / np.log2(ranks + 2.0), 0.0)


def list_metrics(
    lists: npt.ArrayLike,
    item_counts: npt.ArrayLike,
    embeddings: npt.NDArray[np.floating] | None = None,
) -> dict[str, float]:
    """What recommended lists are like beside how accurate they are.

    Args:
        lists: item ids, integers ``(E, k)``, -1 where a list is shorter.
        item_counts: training interactions of each item, integers ``(N,)``.
        embeddings: of the items' language, ``(N, any)``; a row of zeros is an item without text,
            which no other is compared with.

    Returns:
        Named ``"coverage@k"`` and so on:

        * ``coverage``: share of the catalog that is in a list;
        * ``gini``: Gini coefficient of how often each item of the catalog is recommended: 0, all
          alike, to 1, one alone;
        * ``popularity``: mean training interactions of what is recommended;
        * ``novelty``: mean of ``-log2((count + 1) / (all + N))`` of what is recommended, in bits;
        * ``diversity``, with ``embeddings``: 1 minus the cosine of two items of a list, the mean
          over its pairs, and over the lists that have one.

        NaN where nothing is recommended.
    """
    import numpy as np

    found = np.asarray(lists, dtype=np.int64)
    counts = _integers("item_counts", item_counts)
    if found.ndim != 2 or (found.size and not -1 <= found.min() <= found.max() < len(counts)):
        raise invalid("lists", f"shape {found.shape}", f"(E, k) ids below {len(counts)}, or -1")
    shown = found[found >= 0]
    times = np.sort(np.bincount(shown, minlength=len(counts)))
    places = 2 * np.arange(1, len(times) + 1) - len(times) - 1
    share = (counts + 1) / (counts.sum() + len(counts))
    nothing = float("nan")
    values = {
        "coverage": float((times > 0).mean()),
        "gini": float(places @ times / (len(times) * len(shown))) if len(shown) else nothing,
        "popularity": float(counts[shown].mean()) if len(shown) else nothing,
        "novelty": float(-np.log2(share[shown]).mean()) if len(shown) else nothing,
    }
    if embeddings is not None:
        values["diversity"] = _diversity(found, embeddings)
    return {f"{name}@{found.shape[1]}": value for name, value in values.items()}


def _diversity(lists: npt.NDArray[np.int64], embeddings: npt.NDArray[np.floating]) -> float:
    """Of the sum of a list's unit rows, the squared length is the sum of all its cosines."""
    import numpy as np

    total, pairs = 0.0, 0
    for start in range(0, len(lists), 1024):
        some = lists[start : start + 1024]
        rows = np.asarray(embeddings[some.clip(min=0)], dtype=np.float64)
        norms = np.linalg.norm(rows, axis=2)
        there = (some >= 0) & (norms > 0)
        rows = rows / np.where(there, norms, 1)[..., None] * there[..., None]
        count = there.sum(1)
        several = count > 1
        cosines = (rows.sum(1) ** 2).sum(1) - count
        total += float((1 - cosines[several] / (count * (count - 1))[several]).sum())
        pairs += int(several.sum())
    return total / pairs if pairs else float("nan")


def _integers(argument: str, values: npt.ArrayLike) -> npt.NDArray[np.int64]:
    import numpy as np

    refuse_masked(argument, values)
    array = np.asarray(values)
    if array.ndim != 1 or (array.size and not np.issubdtype(array.dtype, np.integer)):
        found = f"{array.dtype} of shape {array.shape}" if array.ndim else repr(values)
        raise invalid(argument, found, "integers in one dimension", TypeError)
    return array.astype(np.int64)
