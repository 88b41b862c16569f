"""Every user ranked once, into Parquet, by the command: rate and peak memory.

    python bench/scale/offline_ranking.py --users 1000000 --items 1000000 --output bench/results

Catalog and histories are drawn at random, the model is as it was initialized: what it costs does
not depend on what it learned. The run folder is made once under ``--runs`` and used again.
Measured is the child process `alphafuse recommend RUN --k K --output FILE.parquet`: seconds and
peak memory are those of the whole process, from its start to its last byte.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for what benchmarks share
import report
from measure import (
    add_counts,
    all_threads,
    device_slug,
    existing_folder,
    in_own_process,
    machine_facts,
    run_process,
)

from alphafuse_ext.config import Config
from alphafuse_ext.data import Interactions, Items, Sequences
from alphafuse_ext.runs.assembly import build_model, build_split, build_table
from alphafuse_ext.runs.run_folder import RunFolder

WIDTH = 384  # of the language embeddings
HISTORY = 8  # items, on average


def make_run(folder: Path, users: int, items: int, dim: int) -> None:
    """A run folder of random data, with a model that nobody trained."""
    generator = np.random.default_rng(0)
    falling = (np.arange(1, WIDTH + 1) ** -0.5).astype(np.float32)
    rows = generator.standard_normal((items, WIDTH), dtype=np.float32) * falling
    lengths = generator.integers(4, 2 * HISTORY - 3, users)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    sequences = Sequences(offsets, generator.integers(0, items, offsets[-1]))
    tokens = np.arange(items)
    clicks = Interactions(np.arange(users), tokens, sequences)
    config = Config(dim=dim, null_dim=dim - 8, protocol="none", epochs=1, keep_seen=False)
    config = config.resolve(WIDTH, items)
    torch.manual_seed(0)
    table, _ = build_table(config, items, rows)
    model = build_model(config, table)
    source = {"changed_from": "bench/scale/offline_ranking.py", "changes": [], "extended": False}
    split = build_split(config, clicks)
    state = model.state_dict()
    catalog = Items(tokens, None, None)
    with RunFolder.create(folder, config, split.report, clicks, catalog, source, state):
        pass


def rank(run: Path, output: Path, k: int, threads: int) -> dict[str, Any]:
    """Rank all users of a run in a process of its own."""
    output.unlink(missing_ok=True)
    command = [sys.executable, "-m", "alphafuse_ext", "recommend", str(run)]
    command += ["--k", str(k), "--output", str(output)]
    found = run_process(command, threads)
    ranking = re.search(r"ranked for ([\d,]+) users in ([\d.e+]+) s", found["said"])
    assert ranking, found["said"]
    file = pq.ParquetFile(output)
    return {
        **found,
        "ranking_seconds": float(ranking[2]),
        "users": int(ranking[1].replace(",", "")),
        "rows": file.metadata.num_rows,
        "file_bytes": output.stat().st_size,
    }


def main() -> None:
    """Make the run, rank, write the page."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add_counts(
        parser,
        ("--users", 1_000_000, "users, all of whom are ranked for"),
        ("--items", 1_000_000, "items in the catalog"),
        ("--dim", 128, "columns of a fused row"),
        ("--k", 10, "length of the lists"),
        ("--threads", all_threads(), "CPU threads"),
    )
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where the run is kept")
    parser.add_argument(
        "--output", type=existing_folder, help="a folder for the page (default: print)"
    )
    options = parser.parse_args()
    run = options.runs / f"offline-{options.users}-{options.items}-{options.dim}"
    if not run.exists():
        in_own_process(make_run, run, options.users, options.items, options.dim)
    found = rank(run, options.runs / f"{run.name}.parquet", options.k, options.threads)
    table = sum(file.stat().st_size for file in run.glob("*.safetensors"))
    device = torch.device("cpu")
    facts = {
        **machine_facts(device),
        "threads": options.threads,
        "setting": f"dim {options.dim} of which {options.dim - 8} learned, k {options.k}, "
        f"histories of 4 to {2 * HISTORY - 4} items, seen items left out",
    }
    rate = found["users"] / found["ranking_seconds"]
    header = (
        "users",
        "items",
        "users a second",
        "ranking",
        "in all",
        "peak memory",
        "model",
        "file",
    )
    row = (
        f"{found['users']:,}",
        f"{options.items:,}",
        f"{rate:,.0f}",
        f"{found['ranking_seconds']:,.0f} s",
        f"{found['seconds']:,.0f} s",
        f"{found['peak_bytes'] / 1e9:.2f} GB",
        f"{table / 1e9:.2f} GB",
        f"{found['file_bytes'] / 1e9:.2f} GB",
    )
    lines = report.table(header, [row], left=0)
    lines += [
        "",
        f"A {options.items:,} by {options.users:,} matrix of float32 scores has "
        f"{4 * options.items * options.users / 1e9:,.0f} GB.",
    ]
    page = options.output and options.output / f"offline-ranking-{device_slug(device)}.md"
    report.write_page("Every user ranked once", facts, lines, page)


if __name__ == "__main__":
    main()
