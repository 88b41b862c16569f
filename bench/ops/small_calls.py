"""Calls of less than a few milliseconds, alone and in turn with PyTorch's own.

    python bench/ops/small_calls.py

In turn, what counts is whose threads hold the cores; alone, what a call takes before and after its
work. Prints tables of microseconds: medians of calls on all cores, beside what PyTorch does on a
ready table of fused rows. To compare with another checkout, built in place, run both by turns with
``PYTHONPATH`` set to each.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for what benchmarks share
import report
from measure import all_threads, commit, device_name

import alphafuse_ext as af

Call = Callable[[], Any]
SECONDS = 0.25  # of calls, for a median
DIM, NULL_DIM = 128, 120


def microseconds(call: Call) -> float:
    """The median of calls one after another."""
    for _ in range(5):
        call()
    times = []
    end = time.perf_counter() + SECONDS
    while time.perf_counter() < end:
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return 1e6 * statistics.median(times)


def in_turn() -> list[str]:
    """A lookup and a ``topk``, each followed by a product of two matrices."""
    semantic, embeddings = torch.randn(20_000, 64), torch.randn(20_000, 64)
    ids, queries = torch.randint(20_000, (3200,)), torch.randn(64, 128)
    matrix = torch.randn(400, 400)

    def lookup() -> None:
        af.lookup(ids, semantic, embeddings)

    def topk() -> None:
        af.topk(queries, 20, semantic, embeddings)

    def product() -> None:
        matrix @ matrix

    def all_four() -> None:
        for call in (lookup, product, topk, product):
            call()

    rows = [
        [name, f"{microseconds(call):.0f}"]
        for name, call in (
            ("lookup, product, topk, product in turn", all_four),
            ("lookup of 3,200 ids alone", lookup),
            ("topk of 64 queries alone", topk),
            ("product of 400 x 400 alone", product),
        )
    ]
    return report.table(["calls", "us"], rows)


def calls(num_items: int, batch: int) -> dict[str, tuple[Call, Call]]:
    """For each op: a call of it, and PyTorch's on a ready table."""
    semantic, embeddings = torch.randn(num_items, DIM), 0.1 * torch.randn(num_items, NULL_DIM)
    trained = embeddings.clone().requires_grad_()
    ready, ready_trained = torch.randn(num_items, DIM), torch.randn(num_items, DIM).requires_grad_()
    queries = torch.randn(batch, DIM)
    trained_queries = queries.clone().requires_grad_()
    targets = torch.randint(num_items, (batch,))
    histories = torch.randint(num_items, (50 * batch,))
    candidates = torch.randint(num_items, (batch, 128))
    tables, trained_tables = (semantic, embeddings, "add"), (semantic, trained, "add")
    return {
        "score_all": (lambda: af.score_all(queries, *tables), lambda: queries @ ready.T),
        "topk, k 20": (
            lambda: af.topk(queries, 20, *tables),
            lambda: (queries @ ready.T).topk(20),
        ),
        "cross_entropy, f+b": (
            lambda: af.cross_entropy(trained_queries, targets, *trained_tables).backward(),
            lambda: F.cross_entropy(trained_queries @ ready_trained.T, targets).backward(),
        ),
        "lookup, 50 ids each": (
            lambda: af.lookup(histories, *tables),
            lambda: F.embedding(histories, ready),
        ),
        "lookup, f+b": (
            lambda: af.lookup(histories, *trained_tables).sum().backward(),
            lambda: F.embedding(histories, ready_trained).sum().backward(),
        ),
        "score_candidates, 128 each": (
            lambda: af.score_candidates(queries, candidates, *tables),
            lambda: torch.einsum("bd,bkd->bk", queries, F.embedding(candidates, ready)),
        ),
    }


def main() -> None:
    """Print both tables."""
    argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0]).parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(all_threads())
    print(Path(af.__file__).parent, commit(), device_name(torch.device("cpu")), "", sep="\n")
    print(*in_turn(), "", sep="\n")
    rows = []
    for num_items in (2000, 5000, 20_000):
        for batch in (1, 8, 64):
            for name, (ours, plain) in calls(num_items, batch).items():
                own, other = microseconds(ours), microseconds(plain)
                row = [f"{num_items:,}", str(batch), name, f"{own:.0f}", f"{other:.0f}"]
                rows.append([*row, f"{other / own:.2f}"])
    print(
        *report.table(["items", "batch", "op", "us", "ready table, us", "times as fast"], rows),
        sep="\n",
    )


if __name__ == "__main__":
    main()
