"""A catalog larger than memory: its decomposition and its semantic rows, from and to the disk.

    python bench/scale/decomposition.py --gigabytes 50 --folder /some/disk --output bench/results

Writes language embeddings of random items as a ``.npy`` file, unless it is there already, and in a
process of its own, which maps it, runs ``SemanticSpace.from_embeddings`` and ``ItemTable.frozen``
with a ``semantic_file``. Memory is that of the process's own (``RssAnon``), sampled every 20 ms:
pages of the maps are the system's, which drops them when it wants to. What is read is more
than there is memory, so that it comes from the disk.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for what benchmarks share
import report
from measure import GB, add_counts, device_slug, existing_folder, machine_facts, positive_float

import alphafuse_ext as af

BLOCK = 1 << 18  # rows drawn, which are then written again and again, each time scaled


def write_embeddings(path: Path, num_items: int, width: int) -> None:
    """float32, of a spectrum that falls; no two blocks alike."""
    generator = np.random.default_rng(0)
    falling = (np.arange(1, width + 1) ** -0.5).astype(np.float32)
    block = generator.standard_normal((BLOCK, width), dtype=np.float32) * falling
    temporary = path.with_suffix(".unfinished")
    out = np.lib.format.open_memmap(temporary, "w+", np.float32, (num_items, width))
    for start in range(0, num_items, BLOCK):
        rows = out[start : start + BLOCK]
        np.multiply(block[: len(rows)], 1 + start / num_items, out=rows)
    out.flush()
    temporary.rename(path)


def anonymous_bytes() -> int:
    found = re.search(r"^RssAnon:\s*(\d+) kB", Path("/proc/self/status").read_text(), re.M)
    assert found
    return int(found[1]) * 1024


class Sampled:
    """The most memory of its own that this process has while the body runs, and its seconds."""

    def __enter__(self) -> Sampled:
        self.peak, self.running = 0, True
        self.thread = threading.Thread(target=self._sample)
        self.thread.start()
        self.began = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = time.perf_counter() - self.began
        self.running = False
        self.thread.join()

    def _sample(self) -> None:
        while self.running:
            self.peak = max(self.peak, anonymous_bytes())
            time.sleep(0.02)


def measure(path: Path, dim: int) -> dict[str, Any]:
    """What the child process does; see the module."""
    rows = np.load(path, mmap_mode="r")
    before = anonymous_bytes()
    with Sampled() as reading:
        for start in range(0, len(rows), BLOCK):
            rows[start : start + BLOCK].max()
    with Sampled() as fitting:
        space = af.SemanticSpace.from_embeddings(rows, progress=False)
    kept = path.with_name("semantic-rows.safetensors")
    with Sampled() as projecting:
        table = af.ItemTable.frozen(
            space,
            rows,
            dim,
            standardize=False,
            semantic_rms=None,
            semantic_file=kept,
            progress=False,
        )
    some = np.linspace(0, len(rows) - 1, 1000).astype(np.int64)
    expected = space.transform(rows[some], dim)
    assert table.semantic_rows is not None
    assert torch.equal(table.semantic_rows[torch.from_numpy(some)], expected)
    named = {"reading once": reading, "fit": fitting, "rows into a file": projecting}
    stages = {name: {"seconds": one.seconds, "peak": one.peak} for name, one in named.items()}
    size = kept.stat().st_size
    kept.unlink()
    return {"before": before, "file": size, "rank": space.matrix_rank, "stages": stages}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--gigabytes", type=positive_float, default=50.0, help="of embeddings")
    add_counts(parser, ("--width", 384, "d_l"), ("--dim", 64, "columns of a semantic row"))
    parser.add_argument(
        "--folder", type=existing_folder, default=Path("."), help="where the file is made"
    )
    parser.add_argument("--keep", action="store_true", help="do not remove it at the end")
    parser.add_argument("--output", type=existing_folder, help="folder of results")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure is not None:
        print(json.dumps(measure(options.measure, options.dim)))
        return
    num_items = int(options.gigabytes * GB / (4 * options.width))
    path = options.folder / f"embeddings-{num_items}-{options.width}.npy"
    if not path.exists():
        write_embeddings(path, num_items, options.width)
    command = [sys.executable, __file__, "--measure", str(path), "--dim", str(options.dim)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found = json.loads(done.stdout)
    size = path.stat().st_size
    if not options.keep:
        path.unlink()
    rows = [
        (
            name,
            f"{one['seconds']:,.0f}",
            f"{size / GB / one['seconds']:.2f}",
            f"{(one['peak'] - found['before']) / GB:.2f} GB",
        )
        for name, one in found["stages"].items()
    ]
    device = torch.device("cpu")
    facts = {
        **machine_facts(device),
        "setting": f"{num_items:,} items, {options.width} columns of float32: {size / GB:.1f} GB, "
        f"memory-mapped; rows of {options.dim} columns into a file of {found['file'] / GB:.1f} GB",
    }
    lines = report.table(("", "seconds", "GB/s of embeddings", "memory of its own"), rows)
    lines += ["", "1,000 rows of the file are those of `project`, bit for bit."]
    title = f"{size / GB:.0f} GB of language embeddings in bounded memory"
    page = options.output and options.output / f"decomposition-{device_slug(device)}.md"
    report.write_page(title, facts, lines, page)


if __name__ == "__main__":
    main()
