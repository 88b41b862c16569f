"""Every op against plain PyTorch, ``torch.compile`` and other packages, in one run.

    python bench/scoring.py            # the full grid; bench/results/scoring-*.md, by device
    python bench/scoring.py --quick    # a minute's look, nothing written
    python bench/scoring.py --dtype bfloat16    # tables and queries of all contenders

Contenders: ``alphafuse_ext``; the same with a first pass over tables compressed beforehand, whose
result is equal; ``PyTorch``, which fuses the two tables on each call; ``PyTorch,
ready table``, the same beside one table of fused rows (its gradient is that of the whole table);
``torch.compile`` of the former (mode default, dynamic=False, its compile time not counted); for
cross entropy PyTorch's ``linear_cross_entropy`` by chunks, Cut Cross-Entropy and Liger, and for
top-k FAISS IndexFlatIP and cuVS, as far as they are installed. Their results are compared before a
time is reported: a mismatch ends the run. They take turns, so that drift of the machine is shared,
and medians are reported.

The floor of a row is the larger of flops / (the machine's matrix-product rate) and bytes / (its
read bandwidth), both measured in the same run; exponentials, selection and random access are not
in it.
"""

from __future__ import annotations

import argparse
import gc
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import report
import torch
from measure import (
    GB,
    RESULTS,
    add_counts,
    add_device_option,
    all_threads,
    available_bytes,
    check_null_dim,
    choose_device,
    device_slug,
    machine_facts,
    machine_rates,
    positive_float,
    positive_int,
)
from ops.cases import OPS, WITHOUT_QUERIES, Case, Catalog, Mismatch
from ops.contenders import CONTENDERS, PLAIN, build_contenders, left_out
from ops.tables import page, print_row, print_tables
from ops.turns import Measurement, first_round, take_turns


@dataclass(frozen=True)
class Sizes:
    """A catalog, the batches of queries that its ops take, and the numbers of ids for lookup."""

    num_items: int
    batches: list[int]
    num_ids: list[int]


IDS_OF_QUERY = 50
"""Of one history."""

SMALL = [
    Sizes(num_items, [1, 64, 512], [IDS_OF_QUERY * batch for batch in (1, 64, 512)])
    for num_items in (5_000, 12_000, 20_000)
]
"""Catalogs of most people: the standard grid has them before the large ones."""


@dataclass
class Row:
    """One op, forward or forward and backward, on one catalog with one batch."""

    op: str
    backward: bool
    num_items: int
    batch: int
    flops: float
    bytes: float
    units: float
    floor_seconds: float
    checked: bool
    contenders: dict[str, Measurement]


# --- a row ----------------------------------------------------------------------------------------


def measure_row(
    op: str,
    case: Case,
    catalog: Catalog,
    batch: int,
    backward: bool,
    args: argparse.Namespace,
    rates: dict[str, float],
) -> Row:
    """One row of the table."""
    work = case.backward if backward else case.forward
    assert work is not None
    contenders = build_contenders(case, catalog, backward, args.left_out)
    try:
        found, compared = first_round(contenders, case, catalog, args.memory_budget * GB)
    except Mismatch as error:
        direction = "forward and backward" if backward else "forward"
        raise SystemExit(
            f"{op} ({direction}), N = {catalog.num_items}, batch = {batch}: results differ, "
            f"nothing more is measured. {error}"
        ) from None
    take_turns(contenders, found, catalog.device, args.repeats, args.row_seconds)
    floor = max(work.flops / (rates["gflops"] * 1e9), work.bytes / (rates["gb_per_second"] * 1e9))
    plain_seconds = found[PLAIN].seconds
    for result in found.values():
        if result.seconds is not None:
            result.units_per_second = case.units / result.seconds
            result.times_floor = result.seconds / floor
            result.ratio = None if plain_seconds is None else plain_seconds / result.seconds
    return Row(
        op,
        backward,
        catalog.num_items,
        batch,
        work.flops,
        work.bytes,
        case.units,
        floor,
        compared,
        {name: found[name] for name in CONTENDERS if name in found},
    )


def measure(args: argparse.Namespace, rates: dict[str, float]) -> list[Row]:
    """All rows, printed as they come."""
    rows = []
    for sizes in args.grid:
        catalog = Catalog(
            num_items=sizes.num_items,
            dim=args.dim,
            null_dim=args.null_dim,
            fusion=args.fusion,
            device=args.device,
            generator=torch.Generator(args.device).manual_seed(args.seed),
            dtype=getattr(torch, args.dtype),
            k=args.k,
            num_candidates=args.num_candidates,
            num_excluded=args.num_excluded,
        )
        for op in args.ops:
            for batch in sizes.num_ids if op in WITHOUT_QUERIES else sizes.batches:
                case = OPS[op](catalog, batch)
                for backward in (False, True):
                    if (case.backward if backward else case.forward) is None:
                        continue
                    rows.append(measure_row(op, case, catalog, batch, backward, args, rates))
                    print_row(asdict(rows[-1]))
                    gc.collect()
        del catalog, case
    return rows


# --- the command line -----------------------------------------------------------------------------


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The arguments, checked; a bad one ends the program with one line that names it."""
    parser = argparse.ArgumentParser(
        usage="%(prog)s [options]", description=(__doc__ or "").split("\n")[0]
    )
    add = parser.add_argument
    add("--quick", action="store_true", help="small sizes, about a minute, nothing is written")
    add("--ops", nargs="+", choices=OPS, default=list(OPS), metavar="OP",
        help=f"which of: {', '.join(OPS)}")  # fmt: skip
    add("--num-items", nargs="+", type=positive_int, metavar="N",
        help="5000 12000 20000 100000 1000000 by default")  # fmt: skip
    add("--batch", nargs="+", type=positive_int, metavar="B",
        help="1 64 512 by default for small catalogs, 1 256 1024 for large ones")  # fmt: skip
    add_counts(
        parser,
        ("--dim", 128, "columns of a fused row"),
        ("--null-dim", 64, "columns of an ID embedding"),
        ("--k", 20, "length of the top-k lists"),
        ("--num-ids", 200_000, "ids that lookup reads of a large catalog"),
        ("--num-candidates", 64, "candidates of a query"),
        ("--num-excluded", 50, "items left out for a query"),
        ("--threads", all_threads(), "CPU threads"),
    )
    add("--repeats", type=positive_int, metavar="N",
        help="rounds at least; 3 by default, 2 or 1 where one takes long")  # fmt: skip
    add("--fusion", choices=("concat", "add"), default="concat", help="concat by default")
    add("--dtype", choices=("float32", "bfloat16"), default="float32",
        help="of tables and queries; float32 by default")  # fmt: skip
    add_device_option(parser)
    add("--row-seconds", type=positive_float, default=1.0, metavar="S",
        help="more rounds until a row has taken this long; %(default)s by default")  # fmt: skip
    add("--memory-budget", type=positive_float, metavar="GB",
        help="what a contender may take; 80%% of the free memory by default")  # fmt: skip
    add("--seed", type=int, default=0, help="of tables, queries and ids; %(default)s by default")
    add("--output", type=Path, metavar="FOLDER",
        help="where to write; bench/results by default, for a run of the full grid")  # fmt: skip
    args = parser.parse_args(arguments)

    full = not (args.quick or args.num_items or args.batch or args.ops != list(OPS))
    if args.quick:
        args.num_ids = min(args.num_ids, 20_000)
        args.row_seconds = min(args.row_seconds, 0.3)
    small = SMALL if args.num_items is None and args.batch is None and not args.quick else []
    args.num_items = args.num_items or ([20_000] if args.quick else [100_000, 1_000_000])
    args.batch = args.batch or ([1, 64] if args.quick else [1, 256, 1024])
    args.grid = [*small, *(Sizes(n, args.batch, [args.num_ids]) for n in args.num_items)]
    check_null_dim(parser, args)
    least = min(sizes.num_items for sizes in args.grid)
    if args.k + args.num_excluded > least:
        parser.error(
            f"argument --k: got {args.k}; expected, with --num-excluded, at most {least}, the "
            "items of the smallest catalog"
        )
    if args.output is None and full:
        args.output = RESULTS
    if args.output is not None:
        try:
            args.output.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            parser.error(f"argument --output: got {args.output}; {error.strerror}")
    return args


def main(arguments: list[str] | None = None) -> None:
    """Measure, print, and write what the arguments ask for."""
    args = parse_arguments(arguments)
    args.device = choose_device(args.device)
    if args.memory_budget is None:
        args.memory_budget = 0.8 * available_bytes(args.device) / GB
    dtype = getattr(torch, args.dtype)
    args.left_out = left_out(args.device, dtype)
    for name, why in args.left_out.items():
        print(*report.wrapped(f"left out: {name}: {why}"), sep="\n", flush=True)
    torch.set_num_threads(args.threads)
    torch.set_float32_matmul_precision("highest")  # no TF32: contenders compute the same
    started = time.perf_counter()
    before = machine_rates(args.device, dtype)
    rows = measure(args, before)
    after = machine_rates(args.device, dtype)
    elapsed = time.perf_counter() - started
    sizes = (
        *("dtype", "dim", "null_dim", "fusion", "k", "num_ids", "num_candidates", "num_excluded"),
        *("repeats", "row_seconds", "memory_budget", "seed"),
    )
    results = {
        "command": report.command(),
        "machine": machine_facts(args.device),
        "rates": before,
        "rates_after": after,
        "contenders": [name for name in CONTENDERS if name not in args.left_out],
        "left_out": args.left_out,
        "sizes": {name: getattr(args, name) for name in sizes},
        "seconds": elapsed,
        "rows": [asdict(row) for row in rows],
    }
    print_tables(results)
    print(f"\n{len(rows)} rows in {elapsed / 60:.1f} min; results agreed before they were timed")
    if args.output is not None:
        kind = "" if args.dtype == "float32" else f"-{args.dtype}"
        report.write(args.output / f"scoring-{device_slug(args.device)}{kind}.md", page(results))


if __name__ == "__main__":
    main()
