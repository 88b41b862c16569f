"""``topk`` by way of int8, for each instruction set that this processor has.

    python bench/ops/first_pass.py [ITEMS [QUERIES...]]    # a million items; 1, 8, 64, 256 queries

Contenders take turns in one process; a figure is the median of its calls: float32 alone, int8 over
a copy made beforehand, and PyTorch's ``(queries @ table.T).topk`` on a ready table, in float32 and
in bfloat16. What reading the copy alone takes is measured as sums of its tensors, on all cores.
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

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for what benchmarks share
import report
from measure import all_threads, commit, device_name, positive_int

import alphafuse_ext as af
from alphafuse_ext import _core

DIM, NULL_DIM, K = 128, 64, 10
SECONDS = 1.5  # of calls for a median, at least five


def medians(calls: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """Milliseconds of each call, all taking turns."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    while any(sum(one) < SECONDS or len(one) < 5 for one in times.values()):
        for name, call in calls.items():
            started = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - started)
    return {name: 1e3 * statistics.median(one) for name, one in times.items()}


def with_isa(isa: str, call: Callable[[], Any]) -> Callable[[], Any]:
    def run() -> Any:
        _core.set_isa(isa)
        return call()

    return run


def contenders(
    queries: torch.Tensor, tables: tuple[torch.Tensor, torch.Tensor], copy: af.CompressedTables
) -> dict[str, Callable[[], Any]]:
    """Calls of all, for these queries."""
    ready = torch.cat(tables, 1)
    halves = queries.bfloat16(), ready.bfloat16()
    isas = [isa for isa in _core.supported_isas() if isa not in ("amx_emulated", "scalar")]

    def ours() -> Any:
        return af.topk(queries, K, *tables)

    def int8() -> Any:
        return af.topk(queries, K, *tables, first_pass=copy)

    return {
        "float32": with_isa(isas[-1], ours),
        **{f"int8, {isa}": with_isa(isa, int8) for isa in isas},
        "PyTorch": lambda: (queries @ ready.T).topk(K),
        "PyTorch, bfloat16": lambda: (halves[0] @ halves[1].T).topk(K),
    }


def main() -> None:
    """Print a table, a row for each batch, and what reading the copy takes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("items", type=positive_int, nargs="?", default=1_000_000,
                        help="of the catalog; %(default)s by default")  # fmt: skip
    parser.add_argument("queries", type=positive_int, nargs="*", default=[1, 8, 64, 256],
                        help="of a call, for each row; %(default)s by default")  # fmt: skip
    args = parser.parse_args()
    num_items, batches = args.items, args.queries
    torch.set_num_threads(all_threads())
    generator = torch.Generator().manual_seed(0)
    semantic = torch.randn(num_items, DIM - NULL_DIM, generator=generator)
    embeddings = torch.randn(num_items, NULL_DIM, generator=generator)
    copy = af.CompressedTables(semantic, embeddings)
    print(device_name(torch.device("cpu")), commit(), f"{num_items:,} items, dim {DIM}, k {K}", "")

    of_floats = [one.view(torch.float32) for one in copy.tensors]  # which are summed fastest
    total = sum(one.nbytes for one in of_floats)
    read = medians({"read": lambda: [one.sum() for one in of_floats]})["read"]
    print(
        f"reading the copy, {total / 1e6:.0f} MB: {read:.2f} ms, {total / read / 1e6:.1f} GB/s", ""
    )

    rows: list[list[str]] = []
    for batch in batches:
        queries = torch.randn(batch, DIM, generator=generator)
        found = medians(contenders(queries, (semantic, embeddings), copy))
        rows.append([str(batch), *(f"{value:.2f}" for value in found.values())])
    print(*report.table(["queries, ms", *found], rows), sep="\n")


if __name__ == "__main__":
    main()
