"""The results of ``scoring.py`` for people: a table for the terminal, and one in Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import report
from measure import format_bytes, format_seconds, significant
from scoring_picture import count, draw

UNCHECKED = "not checked: nothing to compare with"

LEGEND = (
    "Each contender: median time; ratio, times as fast as PyTorch; peak extra memory. Beside ours:",
    "rate, rows (lookup) or scores (others) a second; floors, its time over the row's floor.",
    "fwd: forward; f+b: forward and backward; batch: queries, or the ids of lookup.",
)


# --- tables ---------------------------------------------------------------------------------------


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
    ours = row["contenders"]["alphafuse_ext"]
    if ours["note"]:
        return ["", ""]
    return [rate(ours["units_per_second"]), f"{significant(ours['times_floor'], 2)}x"]


def table(rows: Sequence[dict[str, Any]], contenders: Sequence[str]) -> list[str]:
    """The lines of a Markdown table, aligned for a terminal too."""
    lines = []
    for row in rows:
        cells = [", ".join(contender_cell(row["contenders"].get(name))) for name in contenders]
        if not row["checked"]:
            cells[0] += f" ({UNCHECKED})"
        cells.insert(1, ", ".join(part for part in standing_cell(row) if part))
        lines.append([*row_label(row), *cells])
    header = ["op", "pass", "N", "batch", "floor", contenders[0], "", *contenders[1:]]
    return report.table(header, lines, left=2)


def print_row(row: dict[str, Any]) -> None:
    """Where a long run is, and how we stand: a line for each row as it comes."""
    cell = contender_cell(row["contenders"]["alphafuse_ext"])
    print(" ".join(row_label(row)), "|", ", ".join(cell), flush=True)


def print_table(results: dict[str, Any]) -> None:
    """All rows, for the terminal."""
    machine = results["machine"]
    print("", f"{machine['device']}, {machine['threads']} CPU threads", *LEGEND, "", sep="\n")
    print(*table(results["rows"], results["contenders"]), sep="\n")


def page(results: dict[str, Any]) -> str:
    """Machine, versions, command and table."""
    machine, before, after = results["machine"], results["rates"], results["rates_after"]
    rates = (
        f"{before['gflops']:.0f} and {after['gflops']:.0f} GFLOP/s (square float32 product), "
        f"{before['gb_per_second']:.1f} and {after['gb_per_second']:.1f} GB/s (reading)"
    )
    facts = {
        **machine,
        "minutes": f"{results['seconds'] / 60:.1f}",
        "sizes": results["sizes"],
        "the machine's own rates, before and after": rates,
    }
    body = [
        " ".join(LEGEND),
        "",
        "Results agreed with each other before they were timed. Peak extra memory is the most held "
        "during a call above what was held before it, results included (`measure.PeakMemory`).",
        "",
        *table(results["rows"], results["contenders"]),
    ]
    return report.page(f"Every op on {machine['device']}", results["command"], facts, body)


def write_results(stem: Path, results: dict[str, Any]) -> None:
    """Writes JSON, Markdown and the picture."""
    results = {"command": report.command(), **results}
    report.write(stem, results, page(results))
    draw(results, stem.with_suffix(".png"))
