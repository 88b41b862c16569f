"""A step of the optimizers of touched rows, beside PyTorch's, on the same gradients.

    python bench/ops/optim.py
    python bench/ops/optim.py --rows 2000000 --columns 128 --touched 100000

Of gradients as sparse tables have them after a backward pass: a row for each id, in order, which
autograd no longer marks as coalesced; marked ones; and those of ``nn.Embedding(sparse=True)``, with
a row for each of twice as many ids. Contenders take turns, each on a table of its own; a figure is
the least of many short rounds, which other processes disturb least. The floor is the bytes of
gradient, parameter and state that any step reads and writes, over the bandwidth of the best copy of
the same rounds.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for what benchmarks share
import report
from measure import (
    RESULTS,
    add_counts,
    all_threads,
    device_slug,
    existing_folder,
    format_seconds,
    machine_facts,
    seconds,
)

from alphafuse_ext.optim import LazyAdam, RowWiseAdagrad

CPU = torch.device("cpu")
DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16}
WAYS = ("in order", "marked", "repeated")
RATE = 1e-3
Batches = list[tuple[Tensor, Tensor]]
"""Of each gradient: ids and values."""


class Contender(NamedTuple):
    name: str
    make: Callable[[list[Tensor]], torch.optim.Optimizer]
    state_bytes: Callable[[int], int] | None
    """Read and written of a touched row of so many columns; of ours alone."""


CONTENDERS = (
    Contender("SparseAdam", lambda p: torch.optim.SparseAdam(p, RATE), None),
    Contender("LazyAdam", lambda p: LazyAdam(p, RATE), lambda columns: 16 * columns),
    Contender("Adagrad", lambda p: torch.optim.Adagrad(p, RATE, eps=1e-10), None),
    Contender("RowWiseAdagrad", lambda p: RowWiseAdagrad(p, RATE), lambda _: 8),
)


class Table:
    """A contender's parameter and its optimizer."""

    def __init__(self, contender: Contender, start: Tensor) -> None:
        self.parameter = start.clone().requires_grad_()
        self.optimizer = contender.make([self.parameter])

    def step(self, ids: Tensor, values: Tensor, way: str) -> float:
        """Seconds of a step; the gradient is there before."""
        self.parameter.grad = torch.sparse_coo_tensor(
            ids[None],
            values,
            self.parameter.shape,
            is_coalesced=way == "marked",
            check_invariants=False,
        )
        return seconds(self.optimizer.step, CPU)


def batches(rows: int, columns: int, touched: int, dtype: torch.dtype, way: str) -> Batches:
    """Some gradients of ``touched`` rows each."""
    generator = torch.Generator().manual_seed(1)
    found = []
    for _ in range(4):
        ids = torch.randperm(rows, generator=generator)[:touched].sort().values
        if way == "repeated":  # each once, and as many again
            again = ids[torch.randint(touched, (touched,), generator=generator)]
            ids = torch.cat([ids, again])[torch.randperm(2 * touched, generator=generator)]
        found.append((ids, torch.randn(len(ids), columns, generator=generator).to(dtype)))
    return found


def check(start: Tensor, made: Batches, way: str) -> None:
    """Adam's parameters agree with PyTorch's, in float32."""
    tables = [Table(contender, start) for contender in CONTENDERS[:2]]
    for table in tables:
        for ids, values in made:
            table.step(ids, values, way)
    theirs, ours = (table.parameter.detach() for table in tables)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


def measure(args: argparse.Namespace) -> list[list[str]]:
    """The rows of the table."""
    generator = torch.Generator().manual_seed(0)
    whole = torch.randn(args.rows, args.columns, generator=generator)
    found = []
    for threads in sorted({1, all_threads()}):
        torch.set_num_threads(threads)
        for name, dtype in DTYPES.items():
            start = whole.to(dtype)
            for way in WAYS:
                made = batches(args.rows, args.columns, args.touched, dtype, way)
                if dtype is torch.float32:
                    check(start, made, way)
                found.append([str(threads), name, way, *timed(start, made, way, args)])
    return found


def timed(start: Tensor, made: Batches, way: str, args: argparse.Namespace) -> list[str]:
    """The cells of a row: the least time of each contender, ratios, distance to the floor."""
    tables = [Table(contender, start) for contender in CONTENDERS]
    samples: list[list[float]] = [[] for _ in tables]
    source = torch.zeros(16_000_000)  # 64 MB: more than a cache
    target, rates = torch.zeros_like(source), []
    for number in range(args.rounds + 2):
        ids, values = made[number % len(made)]
        for table, kept in zip(tables, samples, strict=True):
            kept.append(table.step(ids, values, way))
        rates.append(2 * source.nbytes / seconds(lambda: target.copy_(source), CPU))
    best = [min(kept[2:]) for kept in samples]  # after a warm-up
    rate = max(rates[2:])
    cells = []
    for theirs, ours in ((0, 1), (2, 3)):
        of_state = CONTENDERS[ours].state_bytes
        assert of_state is not None, "of ours"
        gradient = made[0][1].nbytes
        row = 2 * args.columns * start.element_size() + of_state(args.columns)
        floor = (gradient + args.touched * row) / rate
        cells += [format_seconds(best[one]) for one in (theirs, ours)]
        cells += [f"{best[theirs] / best[ours]:.1f}x", f"{best[ours] / floor:.1f}x"]
    return cells


def main(arguments: list[str] | None = None) -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(
        usage="%(prog)s [options]", description=(__doc__ or "").split("\n")[0]
    )
    add_counts(
        parser,
        ("--rows", 500_000, "of the table"),
        ("--columns", 60, "of the table"),
        ("--touched", 33_000, "rows of a gradient"),
        ("--rounds", 40, "of which a figure is the least"),
    )
    parser.add_argument("--output", type=existing_folder, default=RESULTS, metavar="FOLDER",
                        help="where to write; bench/results by default")  # fmt: skip
    args = parser.parse_args(arguments)
    if args.touched > args.rows:
        parser.error(f"argument --touched: got {args.touched}; expected at most --rows")
    header: list[Any] = ["threads", "dtype", "gradient"]
    for contender in CONTENDERS:
        header += [contender.name, *(["ratio", "floors"] if contender.state_bytes else [])]
    rows = measure(args)
    body = [
        f"A step on {args.touched:,} rows of {args.rows:,} x {args.columns}. Gradients: a row for "
        "each id in order, as sparse tables make them; the same, marked as coalesced; two rows for "
        "an id on average, out of order, as nn.Embedding makes them. Ratio: PyTorch's time "
        "over ours. Floors: our time over that of the bytes that any step moves, at the bandwidth "
        f"of the best copy. Times are the least of {args.rounds} rounds.",
        "",
        *report.table(header, rows, left=3),
    ]
    load = (
        f"{os.getloadavg()[1]:.0f}, of five minutes: what other processes took shows in all times"
    )
    facts = {**machine_facts(CPU), "threads": "as in the table", "load": load}
    path = args.output / f"optim-{device_slug(CPU)}.md"
    report.write_page("Optimizers of touched rows", facts, body, path)


if __name__ == "__main__":
    main()
