"""``cross_entropy`` in bfloat16 on the CPU: time of forward and backward, and how far it is off.

    python bench/ops/bf16.py
    python bench/ops/bf16.py --rounds 3

Beside our float32, and PyTorch all in bfloat16 on a table that is fused and rounded beforehand.
They take turns, each on equal inputs, on one thread, by the processor's time, which other processes
disturb less than the clock. A floor is the time of the multiply-adds of any implementation that
keeps no scores, at the rate of PyTorch's square product of the same type. Errors are against
float64, relative: the root of the mean square of the differences over that of what is expected.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for what benchmarks share
import report
from measure import (
    RESULTS,
    add_counts,
    device_slug,
    existing_folder,
    format_seconds,
    machine_facts,
)

import alphafuse_ext as af
from alphafuse_ext.ops import native

CPU = torch.device("cpu")
DIM, NULL_DIM = 128, 120
SIZES = ((12_101, 1024), (12_101, 4096), (100_000, 1024))
MULTIPLY_ADDS = 3 * DIM + NULL_DIM
"""Of a query with an item: its score, again backward, and the two gradients."""


class Case:
    """A catalog with ``add`` fusion, and queries whose scores are those of a trained model."""

    def __init__(self, num_items: int, batch: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.semantic = torch.randn(num_items, DIM, generator=generator)
        self.ids = torch.randn(num_items, NULL_DIM, generator=generator).requires_grad_()
        self.queries = (0.3 * torch.randn(batch, DIM, generator=generator)).requires_grad_()
        self.targets = torch.randint(num_items, (batch,), generator=generator)

    def fused(self) -> Tensor:
        """``(N, dim)``, a ready table."""
        return self.semantic + F.pad(self.ids.detach(), (DIM - NULL_DIM, 0))

    def ours(self, bf16: bool) -> list[Tensor]:
        """Loss and gradients."""
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = af.cross_entropy(self.queries, self.targets, self.semantic, self.ids, "add")
        return [loss.detach(), *torch.autograd.grad(loss, (self.queries, self.ids))]

    def of_table(self, table: Tensor) -> list[Tensor]:
        """The same by PyTorch, in the type of the table."""
        table = table.detach().requires_grad_()
        queries = self.queries.detach().to(table.dtype).requires_grad_()
        loss = F.cross_entropy(queries @ table.T, self.targets)
        grads = torch.autograd.grad(loss, (queries, table))
        return [loss.detach(), grads[0], grads[1][:, DIM - NULL_DIM :]]


def seconds(call: Callable[[], object]) -> float:
    """Of the processor."""
    started = time.process_time()
    call()
    return time.process_time() - started


def rate(dtype: torch.dtype) -> float:
    """Multiply-adds a second of PyTorch's square product; the best of some."""
    a, b = (torch.randn(2048, 2048).to(dtype) for _ in range(2))
    return float(2048**3 / min(seconds(lambda: a @ b) for _ in range(5)))


def timed(num_items: int, batch: int, rounds: int) -> list[str]:
    """The cells of a row."""
    case = Case(num_items, batch)
    ready = case.fused().bfloat16()
    calls: list[Callable[[], object]] = [
        lambda: case.ours(False),
        lambda: case.ours(True),
        lambda: case.of_table(ready),
    ]
    samples: list[list[float]] = [[] for _ in calls]
    rates: list[list[float]] = [[], []]
    for number in range(rounds + 1):
        for call, kept in zip(calls, samples, strict=True):
            kept.append(seconds(call))
        for dtype, found in zip((torch.float32, torch.bfloat16), rates, strict=True):
            if number:
                found.append(rate(dtype))
    exact, ours, theirs = (statistics.median(kept[1:]) for kept in samples)
    work = num_items * batch * MULTIPLY_ADDS
    floors = [
        spent / (work / max(found)) for spent, found in zip((exact, ours), rates, strict=True)
    ]
    return [
        f"{num_items:,}",
        f"{batch:,}",
        *(format_seconds(spent) for spent in (exact, ours, theirs)),
        f"{exact / ours:.2f}x",
        f"{theirs / ours:.2f}x",
        *(f"{floor:.2f}x" for floor in floors),
    ]


def errors(num_items: int, batch: int) -> list[list[str]]:
    """Rows of how far loss and gradients are off."""
    case = Case(num_items, batch)
    exact = case.of_table(case.fused().double())
    rows = []
    for name, found in (
        ("float32", case.ours(False)),
        ("bf16", case.ours(True)),
        ("PyTorch, all bf16", case.of_table(case.fused().bfloat16())),
    ):
        off = [
            float((a.double() - b).square().mean().sqrt() / b.square().mean().sqrt())
            for a, b in zip(found, exact, strict=True)
        ]
        rows.append([name, *(f"{value:.1e}" for value in off)])
    return rows


def main(arguments: list[str] | None = None) -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(
        usage="%(prog)s [options]", description=(__doc__ or "").split("\n")[0]
    )
    add_counts(parser, ("--rounds", 9, "of which a time is the median"))
    parser.add_argument("--output", type=existing_folder, default=RESULTS, metavar="FOLDER",
                        help="where to write; bench/results by default")  # fmt: skip
    args = parser.parse_args(arguments)
    if not native.cpu_multiplies_bfloat16():
        parser.error(f"this processor has none of {', '.join(native.BFLOAT16_ISAS)}")
    torch.set_num_threads(1)
    rows = [timed(*size, args.rounds) for size in SIZES]
    body = [
        f"Forward and backward of `cross_entropy`, dim {DIM}, null space {NULL_DIM}, `add`. "
        "PyTorch: all in bfloat16, on a ready table of that type. Medians of "
        f"{args.rounds} rounds in turn, by the processor's time. Floors: our time over that of the "
        "multiply-adds alone, at the best rate of PyTorch's square product in that type.",
        "",
        *report.table(
            ["items", "queries", "float32", "bf16", "PyTorch, all bf16", "float32 / bf16",
             "PyTorch / bf16", "floors, float32", "floors, bf16"],
            rows, left=0,
        ),
        "",
        f"Relative errors against float64, {SIZES[0][0]:,} items, {SIZES[0][1]:,} queries:",
        "",
        *report.table(
            ["", "loss", "gradient of queries", "gradient of ID embeddings"], errors(*SIZES[0])
        ),
    ]  # fmt: skip
    load = f"{os.getloadavg()[1]:.0f}, of five minutes, other processes included"
    report.write_page(
        "Products in bfloat16 on the CPU",
        {**machine_facts(CPU), "load": load},
        body,
        args.output / f"bf16-{device_slug(CPU)}.md",
    )


if __name__ == "__main__":
    main()
