"""The names of the metrics that runs report."""

from __future__ import annotations

CUTOFFS = (1, 5, 10, 20, 50)
METRICS = tuple(f"{name}@{k}" for k in CUTOFFS for name in ("hr", "ndcg", "mrr"))
