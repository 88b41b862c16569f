"""The results of ``scoring.py`` for people: tables for the terminal, and one in Markdown."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any

import report
from measure import format_bytes, format_seconds, significant
from ops.cases import WITHOUT_QUERIES
from ops.contenders import COMPILED, IN_TWO_PASSES, OURS, PLAIN, READY
from ops.peers import CUT, TORCH

UNCHECKED = "not checked: nothing to compare with"

LEGEND = (
    "Each contender: median time; ratio, times as fast as PyTorch; peak extra memory. Beside ours:",
    "rate, rows (lookup) or scores (others) a second; floors, its time over the row's floor.",
    "fwd: forward; f+b: forward and backward; batch: queries, or the ids of lookup.",
)


# --- tables ---------------------------------------------------------------------------------------


def count(value: int) -> str:
    """``100k``, ``1M``, ``256``."""
    for unit, factor in (("M", 1_000_000), ("k", 1000)):
        if value >= factor and value % (factor // 10) == 0:
            return f"{value / factor:g}{unit}"
    return str(value)


def rate(value: float) -> str:
    """``1.23 G/s``."""
    for unit, factor in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= factor:
            return f"{significant(value / factor)} {unit}/s"
    return f"{significant(value)} /s"


def row_label(row: dict[str, Any]) -> list[str]:
    """What is measured: op, pass, N, batch, floor."""
    return [
        row["op"],
        "f+b" if row["backward"] else "fwd",
        count(row["num_items"]),
        count(row["batch"]),
        format_seconds(row["floor_seconds"]),
    ]


def contender_cell(measurement: dict[str, Any] | None) -> list[str]:
    """Time, ratio, memory; or the one note that says why there are none."""
    if measurement is None:
        return [""]
    if measurement["note"]:
        return [measurement["note"]]
    ratio, peak = measurement["ratio"], measurement["peak_bytes"]
    return [
        format_seconds(measurement["seconds"]),
        "-" if ratio is None else f"{significant(ratio, 2)}x",
        "-" if peak is None else format_bytes(peak),
    ]


def standing_cell(row: dict[str, Any]) -> list[str]:
    """Ours: throughput, and how far from the floor."""
    ours = row["contenders"][OURS]
    if ours["note"]:
        return ["", ""]
    return [rate(ours["units_per_second"]), f"{significant(ours['times_floor'], 2)}x"]


def table(rows: Sequence[dict[str, Any]], contenders: Sequence[str]) -> list[str]:
    """The lines of a page's table."""
    lines = []
    for row in rows:
        cells = [", ".join(contender_cell(row["contenders"].get(name))) for name in contenders]
        if not row["checked"]:
            cells[0] += f" ({UNCHECKED})"
        cells.insert(1, ", ".join(part for part in standing_cell(row) if part))
        lines.append([*row_label(row), *cells])
    header = ["op", "pass", "N", "batch", "floor", contenders[0], "", *contenders[1:]]
    return report.table(header, lines, left=2)


def what(row: dict[str, Any]) -> str:
    """Op and pass, in words."""
    return f"{row['op']}, {'forward and backward' if row['backward'] else 'forward'}"


def print_row(row: dict[str, Any]) -> None:
    """Where a long run is, and how we stand: a line for each row as it comes."""
    ours, plain = (
        one["note"] or format_seconds(one["seconds"])
        for one in (row["contenders"][name] for name in (OURS, PLAIN))
    )
    sizes = f"{count(row['num_items'])} items, batch {count(row['batch'])}"
    print(f"{what(row)}, {sizes}: {ours}; {PLAIN}: {plain}", flush=True)


SHORT = {OURS: "ours", IN_TWO_PASSES: "int8 first", READY: "ready", COMPILED: "compiled"}
SHORT |= {TORCH: "linear", CUT: "cut"}
"""Contenders over a column of a terminal."""

TERMINAL_LEGEND = (
    "Times are medians of one call. Ours: alphafuse_ext; int8 first: with a first pass over tables",
    "compressed beforehand; PyTorch: fuses the two tables on each call; ready: one table of fused",
    "rows; compiled: torch.compile of PyTorch; linear, cut: linear_cross_entropy and Cut",
    "Cross-Entropy. Of ours, extra memory: the most held during a call above what was held before;",
    "floors: times the least that the call could take on this machine.",
)


def terminal_tables(results: dict[str, Any]) -> list[str]:
    """A table for each op and pass, with the times of all contenders, for a terminal."""
    lines = []
    for _, group in groupby(sorted(results["rows"], key=_place(results["rows"])), what):
        rows = list(group)
        names = [
            name for name in results["contenders"] if any(name in row["contenders"] for row in rows)
        ]
        cells, notes = [], []
        for row in rows:
            sizes = [count(row["num_items"]), count(row["batch"])]
            found = {name: row["contenders"].get(name) for name in names}
            notes += [
                f"  {', '.join(sizes)}: {name}: {one['note']}"
                for name, one in found.items()
                if one is not None and one["note"]
            ]
            if not row["checked"]:
                notes.append(f"  {', '.join(sizes)}: {UNCHECKED}")
            times = [
                "" if one is None else "-" if one["note"] else format_seconds(one["seconds"])
                for one in found.values()
            ]
            ours = row["contenders"][OURS]
            peak, floors = ours["peak_bytes"], ours["times_floor"]
            cells.append(
                [
                    *(*sizes, *times),
                    "-" if peak is None else format_bytes(peak),
                    "-" if floors is None else significant(floors, 2),
                ]
            )
        header = [
            "items",
            "ids" if rows[0]["op"] in WITHOUT_QUERIES else "queries",
            *(SHORT.get(name, name) for name in names),
        ]
        lines += ["", what(rows[0])]
        lines += report.plain([*header, "extra memory", "floors"], cells, left=0)
        lines += notes
    return lines


def _place(rows: list[dict[str, Any]]) -> Callable[[dict[str, Any]], tuple[int, bool]]:
    """By op, in the order they were measured in, then by pass."""
    ops = list(dict.fromkeys(row["op"] for row in rows))
    return lambda row: (ops.index(row["op"]), row["backward"])


def print_tables(results: dict[str, Any]) -> None:
    """All rows, for the terminal."""
    print("", *TERMINAL_LEGEND, *terminal_tables(results), sep="\n")


def page(results: dict[str, Any]) -> str:
    """Machine, versions, command and table."""
    machine, before, after = results["machine"], results["rates"], results["rates_after"]
    dtype = results["sizes"]["dtype"]
    rates = (
        f"{before['gflops']:.0f} and {after['gflops']:.0f} GFLOP/s (square {dtype} product), "
        f"{before['gb_per_second']:.1f} and {after['gb_per_second']:.1f} GB/s (reading)"
    )
    facts = {
        **machine,
        "minutes": f"{results['seconds'] / 60:.1f}",
        "sizes": results["sizes"],
        "the machine's own rates, before and after": rates,
        **({"left out": results["left_out"]} if results["left_out"] else {}),
    }
    body = [
        " ".join(LEGEND),
        "",
        "Results agreed with each other before they were timed. Peak extra memory is the most held "
        "during a call above what was held before it, results included (`measure.PeakMemory`).",
        "",
        *table(results["rows"], results["contenders"]),
    ]
    kind = "" if dtype == "float32" else f" in {dtype}"
    return report.page(f"Every op{kind} on {machine['device']}", results["command"], facts, body)
