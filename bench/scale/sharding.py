"""What a sharded catalog costs: measured here in N, B and ranks, and computed for eight H100s.

    python bench/scale/sharding.py --output bench/results

Measured: what a training step does with the items (full-catalog cross entropy of B queries,
backward, Adam; or 256 drawn negatives for each query, forward and backward) and rankings of B
queries on a ``ShardedItemTable``, by real processes with gloo and one thread each; queries are
shared out over the ranks. The encoder is left out: it does not depend on N. Computed: FLOPs and
bytes of the same, and seconds by rates. Those of this machine are measured first, on one process;
what they predict stands beside what was measured, so that the formulas can be believed or not.
Those of an H100 are its maker's, as no GPU was there: what they give is a floor, not a forecast.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for what benchmarks share
import report
from measure import GB, device_slug, existing_folder, machine_facts

import alphafuse_ext as af
from alphafuse_ext.distributed import ShardedItemTable, shard_bounds

DIM, NULL_DIM, K, NEGATIVES = 128, 64, 20, 256
REPEATS = 7


class Setting(NamedTuple):
    """A catalog of N items, B queries of all ranks together, and how many ranks there are."""

    N: int = 100_000
    B: int = 256
    ranks: int = 1


CURVES = {
    "N": (25_000, 50_000, 100_000, 200_000, 400_000),
    "B": (32, 64, 128, 256, 512),
    "ranks": (1, 2, 4),
}


# --- what is computed -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Work:
    """Of one rank: what it multiplies, what it moves in memory, what it sends."""

    flops: float
    memory_bytes: float
    wire_bytes: float
    messages: int

    def seconds(self, rates: Rates) -> float:
        """Product and memory overlap, and the slower decides; the wire comes on top."""
        wire = self.wire_bytes / rates.wire + self.messages * rates.message
        return max(self.flops / rates.flops, self.memory_bytes / rates.memory) + wire


@dataclass(frozen=True)
class Rates:
    """FLOP/s, bytes/s in memory, bytes/s over the wire, seconds of a message of no length."""

    flops: float
    memory: float
    wire: float
    message: float


def gathering(rows: float, columns: int, ranks: int) -> float:
    """Bytes that a rank takes in when all get the rows of all, ``rows`` in sum, float32."""
    return 4 * rows * columns * (ranks - 1) / ranks


def forward(num_items: int, batch: int, ranks: int) -> Work:
    """Of the loss: all queries to all, against each rank's rows; three numbers for each query."""
    own = num_items / ranks
    wire = gathering(batch, DIM, ranks) + gathering(3 * batch * ranks, 1, ranks)
    return Work(2 * batch * own * DIM, 4 * own * DIM, wire, 5 if ranks > 1 else 0)


def backward(num_items: int, batch: int, ranks: int) -> Work:
    """Scores again, gradients of the queries and of the ID columns, which are written; queries'
    gradients are summed over the ranks."""
    own = num_items / ranks
    flops = 2 * batch * own * (DIM + DIM + NULL_DIM)
    wire = 2 * gathering(batch, DIM, ranks) + gathering(batch, 1, ranks)
    return Work(flops, 4 * own * (DIM + NULL_DIM), wire, 2 if ranks > 1 else 0)


def adam(num_items: int, batch: int, ranks: int) -> Work:
    """An ID embedding, its gradient and two moments are read, and all but the gradient written."""
    del batch
    return Work(0, 7 * 4 * num_items / ranks * NULL_DIM, 0, 0)


def sampled(num_items: int, batch: int, ranks: int) -> Work:
    """Candidates of a rank's queries: rows come from all ranks, and their gradients go back."""
    del num_items
    rows = batch / ranks * (NEGATIVES + 1)
    there = (ranks - 1) / ranks * rows
    wire = there * (8 + 4 * DIM + 4 * DIM)
    return Work(6 * rows * DIM, 4 * rows * 4 * DIM, wire, 5 if ranks > 1 else 0)


def ranking(num_items: int, batch: int, ranks: int) -> Work:
    """``topk``: queries to all, and a list of ``K`` ids and scores of each rank for each query."""
    own = num_items / ranks
    wire = gathering(batch, DIM, ranks) + 3 * gathering(batch * K * ranks, 1, ranks)
    return Work(2 * batch * own * DIM, 4 * own * DIM, wire, 5 if ranks > 1 else 0)


def counting(num_items: int, batch: int, ranks: int) -> Work:
    """``target_ranks``: the same, with a score and a count for each query."""
    own = num_items / ranks
    wire = gathering(batch, DIM, ranks) + 6 * gathering(batch, 1, ranks)
    return Work(2 * batch * own * DIM, 4 * own * DIM, wire, 7 if ranks > 1 else 0)


STAGES: dict[str, Callable[[int, int, int], Work]] = {
    "loss": forward,
    "backward": backward,
    "Adam": adam,
    "sampled": sampled,
    "topk": ranking,
    "target_ranks": counting,
}


EXACT = ("topk", "target_ranks")
"""They are exact, and multiply in float32."""


# --- what is measured -----------------------------------------------------------------------------


def process(rank: int, ranks: int, num_items: int, batch: int, folder: str) -> None:
    """One rank: median seconds of each stage, and of the wire alone, into a file."""
    torch.set_num_threads(1)
    timeout = datetime.timedelta(seconds=120)
    dist.init_process_group("gloo", f"file://{folder}/store", timeout, ranks, rank)
    bounds = shard_bounds(num_items, ranks)
    own = bounds[rank + 1] - bounds[rank]
    shard = af.ItemTable(torch.randn(own, DIM - NULL_DIM) * 0.1, torch.randn(own, NULL_DIM) * 0.1)
    table = ShardedItemTable(shard, num_items)
    optimizer = torch.optim.Adam(table.parameters(), fused=True)
    mine = batch // ranks
    queries = torch.randn(mine, DIM, requires_grad=True)
    targets = torch.randint(num_items, (mine,))
    exclude = torch.randint(num_items, (mine, 20))
    found: dict[str, list[float]] = {}

    def timed(name: str, call: Callable[[], Any]) -> Any:
        dist.barrier()
        began = time.perf_counter()
        result = call()
        dist.barrier()
        found.setdefault(name, []).append(time.perf_counter() - began)
        return result

    candidates = torch.randint(num_items, (mine, NEGATIVES + 1))
    some, none = torch.empty(1 << 20), torch.empty(1)
    parts = [torch.empty_like(some) for _ in range(ranks)]

    def sampled_step() -> None:
        scores = table.score_candidates(queries, candidates)
        (scores.logsumexp(1) - scores[:, 0]).sum().backward()

    for _ in range(REPEATS + 2):
        optimizer.zero_grad()
        loss = timed("loss", lambda: table.cross_entropy(queries, targets))
        timed("backward", loss.backward)
        timed("Adam", optimizer.step)
        optimizer.zero_grad()
        shard.sparse = True
        timed("sampled", sampled_step)
        shard.sparse = False
        timed("topk", lambda: table.topk(queries, K, exclude=exclude))
        timed("target_ranks", lambda: table.target_ranks(queries, targets, exclude=exclude))
        timed("gather 4 MiB", lambda: dist.all_gather(parts, some))
        timed("message", lambda: dist.all_reduce(none))
        timed("nothing", lambda: None)
    if rank == 0:
        medians = {name: statistics.median(times[2:]) for name, times in found.items()}
        Path(folder, "found.json").write_text(json.dumps(medians))
    dist.barrier()
    dist.destroy_process_group()


def measured(setting: Setting) -> dict[str, float]:
    """Median seconds of each stage."""
    num_items, batch, ranks = setting
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(process, (ranks, num_items, batch, folder), nprocs=ranks)
        return json.loads(Path(folder, "found.json").read_text())


def rates_of(base: dict[str, float], two: dict[str, float]) -> dict[str, Rates]:
    """Of each stage on one process, and of the wire between two."""
    message = max(0.0, two["message"] - two["nothing"])
    wire = gathering(2 * (1 << 20), 1, 2) / (two["gather 4 MiB"] - two["nothing"])
    rates = {}
    for name, work_of in STAGES.items():
        work = work_of(*Setting())
        seconds = base[name] - base["nothing"]
        flops = work.flops / seconds if work.flops else float("inf")
        memory = float("inf") if work.flops else work.memory_bytes / seconds
        rates[name] = Rates(flops, memory, wire, message)
    return rates


# --- eight H100s ----------------------------------------------------------------------------------

H100 = {
    # Dense peaks of the SXM5 part: float32 outside of the tensor cores, bfloat16 inside; HBM3;
    # NVLink 4 one way; a message of NCCL's, assumed.
    "float32": Rates(67e12, 3.35e12, 450e9, 20e-6),
    "bfloat16 products": Rates(989e12, 3.35e12, 450e9, 20e-6),
}


def computed(num_items: int, batch: int, ranks: int) -> list[tuple[str, ...]]:
    """A line for each stage: work of a rank, and the least seconds that its maker's rates allow."""
    rows = []
    for name, work_of in STAGES.items():
        work = work_of(num_items, batch, ranks)
        floors = [f"{1e3 * work.seconds(rates):,.2f} ms" for rates in H100.values()]
        if name in EXACT:
            floors[1] = "-"
        rows.append(
            (
                f"{num_items:,}",
                name,
                f"{work.flops / 1e12:,.2f}",
                f"{work.memory_bytes / GB:,.2f}",
                f"{work.wire_bytes / 1e6:,.1f}",
                *floors,
            )
        )
    return rows


def held(num_items: int, ranks: int) -> dict[str, float]:
    """Bytes of a rank's rows: frozen ones, ID embeddings, gradient and moments."""
    own = num_items / ranks
    return {
        "semantic rows": 4 * own * (DIM - NULL_DIM),
        "ID embeddings": 4 * own * NULL_DIM,
        "their gradient": 4 * own * NULL_DIM,
        "their moments": 8 * own * NULL_DIM,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output", type=existing_folder, help="folder of results")
    options = parser.parse_args()
    torch.set_num_threads(1)
    base = measured(Setting())
    rates = rates_of(base, measured(Setting(ranks=2)))
    fixed = ", ".join(f"{name} {value:,}" for name, value in Setting()._asdict().items())
    lines = ["## Measured here, beside what the formulas give", ""]
    lines += [f"Milliseconds, measured / computed; {fixed} but for the one that varies.", ""]
    for varied, values in CURVES.items():
        rows = []
        for value in values:
            setting = Setting()._replace(**{varied: value})
            found = measured(setting)
            predicted = {
                name: work_of(*setting).seconds(rates[name]) for name, work_of in STAGES.items()
            }
            cells = [
                f"{1e3 * (found[name] - found['nothing']):,.1f} / {1e3 * predicted[name]:,.1f}"
                for name in STAGES
            ]
            rows.append((f"{value:,}", *cells))
        lines += [*report.table((varied, *STAGES), rows, left=0), ""]
    one = rates["loss"]
    products = ", ".join(
        f"{name} {rate.flops / 1e9:,.0f} GFLOP/s"
        for name, rate in rates.items()
        if rate.flops != float("inf")
    )
    lines += [
        f"Rates of one process: {products}, Adam {rates['Adam'].memory / GB:.1f} GB/s; between "
        f"two, gloo {one.wire / GB:.2f} GB/s and {1e6 * one.message:,.0f} us a message. Four ranks "
        "share two cores here, so that their products take as long as those of two: what is "
        "computed has a core for each.",
        "",
        "## Computed, for eight H100s",
        "",
        f"dim {DIM}, of which {NULL_DIM} learned; 8 ranks with 512 queries each (B 4,096), k {K}. "
        "FLOPs and bytes of one rank; the last two columns are the least that the maker's peaks "
        "allow, products overlapping with memory and not with the wire. **Nothing of this has been "
        "measured on a GPU.** float32: all products outside of the tensor cores.",
        "",
    ]
    header = ("items", "stage", "TFLOP", "GB in memory", "MB on the wire", *H100)
    table = list(itertools.chain.from_iterable(computed(n, 4096, 8) for n in (10**7, 10**8)))
    lines += [*report.table(header, table, left=2), ""]
    rows = []
    for num_items in (10**7, 10**8):
        parts = held(num_items, 8).values()
        rows.append((f"{num_items:,}", *(f"{p / GB:.2f} GB" for p in (*parts, sum(parts)))))
    lines += ["What a rank holds, of 80 GB:", ""]
    lines += report.table(("items", *held(1, 1), "in all"), rows)
    device = torch.device("cpu")
    facts = {**machine_facts(device), "setting": "one thread a rank; medians of 7"}
    page = options.output and options.output / f"sharding-{device_slug(device)}.md"
    title = "A sharded catalog: cost in N, B and ranks"
    report.write_page(title, facts, lines, page)


if __name__ == "__main__":
    main()
