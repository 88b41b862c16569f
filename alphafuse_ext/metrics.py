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


def _integers(argument: str, values: npt.ArrayLike) -> npt.NDArray[np.int64]:
    import numpy as np

    refuse_masked(argument, values)
    array = np.asarray(values)
    if array.ndim != 1 or (array.size and not np.issubdtype(array.dtype, np.integer)):
        found = f"{array.dtype} of shape {array.shape}" if array.ndim else repr(values)
        raise invalid(argument, found, "integers in one dimension", TypeError)
    return array.astype(np.int64)
