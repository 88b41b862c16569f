"""What a call costs beside its work: every op on three items of a tiny catalog, one thread.

    python bench/ops/overhead.py                          # this checkout against PyTorch
    python bench/ops/overhead.py --before ../other        # and against another, built in place

Each round is a fresh process for each checkout in turn; a figure is the median of the rounds, each
the median of many short loops.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for what benchmarks share
import report
from measure import (
    RESULTS,
    device_slug,
    existing_folder,
    format_seconds,
    machine_facts,
    positive_int,
    seconds,
)

import alphafuse_ext as af

CPU = torch.device("cpu")
ROOT = Path(__file__).resolve().parents[2]
LOOPS, CALLS = 15, 100

Call = Callable[[], Any]


def calls() -> dict[str, tuple[Call, Call]]:
    """For each op: a call of it, and what PyTorch's users would write for a ready table."""
    generator = torch.Generator().manual_seed(1)
    semantic = torch.randn(60, 4, generator=generator)
    embeddings = torch.randn(60, 4, generator=generator, requires_grad=True)
    ready = torch.randn(60, 8, generator=generator, requires_grad=True)
    queries = torch.randn(3, 8, generator=generator, requires_grad=True)
    ids = torch.tensor([3, 1, 40])
    candidates = torch.tensor([[1, 5], [3, 4], [9, 2]])
    tables = (semantic, embeddings)

    def place() -> torch.Tensor:
        scores = queries @ ready.T
        return (scores > scores.gather(1, ids[:, None])).sum(1)

    return {
        "lookup": (lambda: af.lookup(ids, *tables), lambda: F.embedding(ids, ready)),
        "score_all": (lambda: af.score_all(queries, *tables), lambda: queries @ ready.T),
        "score_candidates": (
            lambda: af.score_candidates(queries, candidates, *tables),
            lambda: torch.einsum("bd,bkd->bk", queries, F.embedding(candidates, ready)),
        ),
        "cross_entropy": (
            lambda: af.cross_entropy(queries, ids, *tables),
            lambda: F.cross_entropy(queries @ ready.T, ids),
        ),
        "topk": (
            lambda: af.topk(queries, 5, *tables),
            lambda: torch.topk(queries @ ready.T, 5),
        ),
        "target_ranks": (lambda: af.target_ranks(queries, ids, *tables), place),
    }


DIFFERENTIABLE = ("lookup", "score_all", "score_candidates", "cross_entropy")


def measure() -> dict[str, list[float]]:
    """Seconds a call, ours and PyTorch's, by op and way."""
    torch.set_num_threads(1)
    found = {}
    for name, pair in calls().items():

        def inference(call: Call) -> Call:
            def run() -> None:
                with torch.inference_mode():
                    call()

            return run

        def step(call: Call) -> Call:
            return lambda: call().sum().backward()

        found[f"{name}, inference"] = timed(*map(inference, pair))
        if name in DIFFERENTIABLE:
            found[f"{name}, forward"] = timed(*pair)
            found[f"{name}, forward + backward"] = timed(*map(step, pair))
    return found


def timed(*pair: Call) -> list[float]:
    """The median loop of each, taking turns."""
    samples: list[list[float]] = [[] for _ in pair]
    for _ in range(LOOPS):
        for call, kept in zip(pair, samples, strict=True):
            kept.append(seconds(call, CPU, CALLS))
    return [statistics.median(kept[2:]) for kept in samples]


def measure_checkout(folder: Path) -> dict[str, list[float]]:
    """:func:`measure` in a fresh process, with the package as it stands in a folder."""
    environment = os.environ | {"PYTHONPATH": str(folder)}
    command = [sys.executable, str(Path(__file__).resolve()), "--child"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment, cwd=folder)
    if done.returncode:
        raise SystemExit(f"{folder}: its process ended with status {done.returncode}")
    result: dict[str, list[float]] = json.loads(done.stdout)
    return result


def table(rounds: list[list[dict[str, list[float]]]]) -> list[str]:
    """The lines of a Markdown table; ``rounds[r][c]`` is checkout ``c`` in round ``r``."""
    before = len(rounds[0]) > 1
    header = ["", "PyTorch", *(["before"] if before else []), "now", "now / PyTorch"]
    rows = []
    for way in rounds[0][0]:
        plain = statistics.median(found[way][1] for checkouts in rounds for found in checkouts)
        ours = [
            statistics.median(checkouts[c][way][0] for checkouts in rounds)
            for c in reversed(range(len(rounds[0])))
        ]
        cells = [format_seconds(value) for value in (plain, *ours)]
        rows.append([way, *cells, f"{ours[-1] / plain:.2f}"])
    return report.table(header, rows)


def main(arguments: list[str] | None = None) -> None:
    """Measure, print, write."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(
        usage="%(prog)s [options]", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--before", type=Path, metavar="FOLDER",
                        help="another checkout, its core built in place")  # fmt: skip
    parser.add_argument("--repeats", type=positive_int, default=5, metavar="N",
                        help="rounds; %(default)s by default")  # fmt: skip
    parser.add_argument("--output", type=existing_folder, default=RESULTS, metavar="FOLDER",
                        help="where to write; bench/results by default")  # fmt: skip
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.child:
        print(json.dumps(measure()))
        return
    if args.before is not None and not (args.before / "alphafuse_ext").is_dir():
        parser.error(f"argument --before: got {args.before}; expected a checkout's folder")
    checkouts = [ROOT] if args.before is None else [ROOT, args.before.resolve()]
    rounds = [[measure_checkout(folder) for folder in checkouts] for _ in range(args.repeats)]
    lines = table(rounds)
    print(*lines, sep="\n")
    torch.set_num_threads(1)
    machine = machine_facts(CPU)
    if args.before is not None:
        head = ["git", "-C", str(args.before), "rev-parse", "--short=12", "HEAD"]
        machine["before"] = subprocess.run(head, capture_output=True, text=True).stdout.strip()
    body = [
        "A call on 3 ids or 3 queries, 60 items, dim 8 = 4 + 4, float32, one thread. PyTorch: "
        "`F.embedding`, `matmul`, `F.cross_entropy`, `torch.topk` on a ready table.",
        "",
        *lines,
    ]
    report.write(
        args.output / f"overhead-{device_slug(CPU)}.md",
        report.page("What a call costs beside its work", report.command(), machine, body),
    )


if __name__ == "__main__":
    main()
