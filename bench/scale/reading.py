"""A hundred million clicks, read: seconds and peak memory.

    python bench/scale/reading.py --folder DISK --output bench/results

Makes a folder of Parquet files, a log in the order of time, by a seed: users uniformly, ten clicks
each, items of a Zipf distribution. Once with integers for ids, once with strings. Each is read by
``read_interactions`` in a process of its own; its peak memory is above what it held before it read,
and a folder's pages do not count, as they are not mapped.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for what benchmarks share
import report
from measure import (
    PeakMemory,
    add_counts,
    all_threads,
    device_slug,
    existing_folder,
    machine_facts,
)

IDS = ("integers", "strings")
CLICKS_OF_A_USER = 10
ZIPF = 1.3
ROWS = 5_000_000  # of a file


def make_log(folder: Path, ids: str, clicks: int, items: int, seed: int) -> None:
    """Write the files of one log; a folder that is there is kept."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    if folder.exists():
        return
    draw = np.random.default_rng(seed)
    making = folder.with_name(f"{folder.name}.part")
    making.mkdir(parents=True, exist_ok=True)
    for part, begin in enumerate(range(0, clicks, ROWS)):
        count = min(ROWS, clicks - begin)
        users = draw.integers(0, max(1, clicks // CLICKS_OF_A_USER), count)
        names = {"user_id": users, "item_id": draw.zipf(ZIPF, count) % items}
        columns = {name: pa.array(numbers) for name, numbers in names.items()}
        if ids == "strings":
            for name, column in columns.items():
                columns[name] = pc.binary_join_element_wise(name[0], column.cast(pa.string()), "")
        times = 1_600_000_000 + begin + np.sort(draw.integers(0, count, count))
        table = pa.table({**columns, "timestamp": times})
        pq.write_table(table, making / f"part-{part:05}.parquet", row_group_size=1 << 20)
    os.replace(making, folder)


def read(folder: Path) -> dict[str, Any]:
    """Read a log; seconds, peak memory and counts."""
    import pyarrow.dataset  # noqa: F401  (what reading imports is not what it needs for a click)
    import torch

    from alphafuse_ext.data import read_interactions

    with PeakMemory(torch.device("cpu")) as peak:
        started = time.perf_counter()
        found = read_interactions(folder, log=None)
        seconds = time.perf_counter() - started
    counts = {"clicks": len(found), "users": found.num_users, "items": found.num_items}
    return {**counts, "seconds": seconds, "bytes": peak.extra_bytes}


def line(ids: str, found: dict[str, Any]) -> tuple[str, ...]:
    """A row of the table."""
    clicks, extra = found["clicks"], found["bytes"] or 0
    counts = (f"{found[name]:,}" for name in ("clicks", "users", "items"))
    rate = f"{clicks / found['seconds'] / 1e6:.1f} M/s"
    memory = (f"{extra / 1e9:.2f} GB", f"{extra / clicks:.0f}")
    return (ids, *counts, f"{found['seconds']:.1f} s", rate, *memory)


def main() -> None:
    """Make the logs, read each, write the page; or what one of its processes does."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add_counts(
        parser,
        ("--clicks", 100_000_000, "clicks"),
        ("--items", 500_000, "items, at most"),
        ("--threads", all_threads(), "CPU threads"),
    )
    parser.add_argument("--seed", type=int, default=0, help="of the logs; 0 by default")
    parser.add_argument("--folder", type=Path, default=Path("runs/logs"), help="for the logs")
    parser.add_argument(
        "--output", type=existing_folder, help="a folder for the page (default: print)"
    )
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(read(options.child)))
        return
    import torch

    rows = []
    for ids in IDS:
        folder = options.folder / f"{ids}-{options.clicks}-{options.items}-{options.seed}"
        make_log(folder, ids, options.clicks, options.items, options.seed)
        child = subprocess.run(
            [sys.executable, __file__, "--child", str(folder)],
            env={**os.environ, "OMP_NUM_THREADS": str(options.threads)},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        rows.append(line(ids, json.loads(child.stdout.splitlines()[-1])))
    device = torch.device("cpu")
    header = ("ids", "clicks", "users", "items", "seconds", "rate", "peak memory", "bytes a click")
    facts = {**machine_facts(device), "threads": options.threads}
    page = options.output and options.output / f"reading-{device_slug(device)}.md"
    report.write_page("A log of clicks, read", facts, report.table(header, rows), page)


if __name__ == "__main__":
    main()
