"""Memory and time of one full-catalog cross-entropy training step, ours and plain PyTorch's.

    python bench/ops/step_memory.py                     # N = 1,000,000, batch 256
    python bench/ops/step_memory.py --num-items 100000 --batch 1024 --output /tmp

Each contender has a fresh process for itself: it draws the tables, runs the step (forward and
backward: the loss, the gradient of the queries and of the ID embeddings) several times, and reports
the highest peak above what it held before the first, and the median time. The losses must agree.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for what benchmarks share
import report
from measure import (
    RESULTS,
    PeakMemory,
    add_counts,
    add_device_option,
    all_threads,
    check_null_dim,
    choose_device,
    device_slug,
    existing_folder,
    format_bytes,
    format_seconds,
    machine_facts,
    seconds,
)
from ops.cases import Catalog, cross_entropy
from ops.contenders import OURS, PLAIN, READY, build_contenders

CONTENDERS = (OURS, PLAIN, READY)


def measure_step(args: argparse.Namespace) -> dict[str, Any]:
    """Runs the step of ``args.contender`` in this process."""
    torch.set_num_threads(args.threads)
    catalog = Catalog(
        num_items=args.num_items,
        dim=args.dim,
        null_dim=args.null_dim,
        fusion=args.fusion,
        device=args.device,
        generator=torch.Generator(args.device).manual_seed(args.seed),
    )
    case = cross_entropy(catalog, args.batch)
    contenders = build_contenders(case, catalog, backward=True)
    step = next(contender.run for contender in contenders if contender.name == args.contender)
    losses: list[float] = []
    times: list[float] = []
    with PeakMemory(args.device) as peak:
        for _ in range(args.repeats):
            times.append(seconds(lambda: losses.append(float(step()[0])), args.device))
    return {
        "contender": args.contender,
        "loss": losses[0],
        "peak_bytes": peak.extra_bytes,
        "seconds": statistics.median(times),
        "samples": times,
    }


def measure_in_fresh_process(name: str, options: list[str]) -> dict[str, Any]:
    """:func:`measure_step` in a process of its own."""
    command = [sys.executable, str(Path(__file__).resolve()), *options, "--contender", name]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"{name}: its process ended with status {done.returncode}")
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def table(results: list[dict[str, Any]]) -> list[str]:
    """The lines of a Markdown table, aligned for a terminal too."""
    plain = next(result for result in results if result["contender"] == PLAIN)
    rows = []
    for result in results:
        peak, share = "not measured", ""
        if result["peak_bytes"] is not None:
            peak = format_bytes(result["peak_bytes"])
            share = f"{result['peak_bytes'] / plain['peak_bytes']:.1%}"
        step, ratio = format_seconds(result["seconds"]), result["seconds"] / plain["seconds"]
        rows.append(
            [result["contender"], peak, share, step, f"{ratio:.1%}", f"{result['loss']:.5f}"]
        )
    header = ["", "peak extra memory", "of PyTorch", "a step", "of PyTorch", "loss"]
    return report.table(header, rows)


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """The arguments, checked."""
    parser = argparse.ArgumentParser(
        usage="%(prog)s [options]", description=(__doc__ or "").split("\n")[0]
    )
    add_counts(
        parser,
        ("--num-items", 1_000_000, "items in the catalog"),
        ("--batch", 256, "queries of a step"),
        ("--dim", 128, "columns of a fused row"),
        ("--null-dim", 64, "columns of an ID embedding"),
        ("--repeats", 3, "steps"),
        ("--threads", all_threads(), "CPU threads"),
    )
    parser.add_argument("--fusion", choices=("concat", "add"), default="concat",
                        help="concat by default")  # fmt: skip
    add_device_option(parser)
    parser.add_argument("--seed", type=int, default=0, help="%(default)s by default")
    parser.add_argument("--output", type=existing_folder, default=RESULTS, metavar="FOLDER",
                        help="where to write; bench/results by default")  # fmt: skip
    # What the parent process asks of a child.
    parser.add_argument("--contender", choices=CONTENDERS, help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    check_null_dim(parser, args)
    return args


def main(arguments: list[str] | None = None) -> None:
    """Measure each contender in its own process, print, write."""
    arguments = sys.argv[1:] if arguments is None else arguments
    args = parse_arguments(arguments)
    if args.contender is not None:
        print(json.dumps(measure_step(args)))
        return
    args.device = choose_device(args.device)
    arguments = [*arguments, "--device", str(args.device)]
    results = [measure_in_fresh_process(name, arguments) for name in CONTENDERS]
    expected = next(result["loss"] for result in results if result["contender"] == PLAIN)
    for result in results:
        if not abs(result["loss"] - expected) <= 1e-5 * abs(expected):
            raise SystemExit(
                f"{result['contender']}: its loss is {result['loss']}, that of {PLAIN} {expected}"
            )
    torch.set_num_threads(args.threads)
    sizes = {
        name: getattr(args, name)
        for name in ("num_items", "batch", "dim", "null_dim", "fusion", "repeats", "seed")
    }
    machine = machine_facts(args.device)
    lines = table(results)
    print(*lines, sep="\n")
    body = [
        "Forward and backward, float32. Peak extra memory: the most held during a step above what "
        "was held before the first, gradients included, in a process of its own "
        "(`measure.PeakMemory`).",
        "",
        *lines,
    ]
    title = f"One full-catalog cross-entropy training step on {machine['device']}"
    report.write(
        args.output / f"step-memory-{device_slug(args.device)}.md",
        report.page(title, report.command(), {"sizes": sizes, **machine}, body),
    )


if __name__ == "__main__":
    main()
