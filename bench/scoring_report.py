"""The results of ``scoring.py`` for people: a table for the terminal, and one in Markdown."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from measure import device_name, format_bytes, format_seconds, in_words, significant
from scoring_picture import count, draw

from alphafuse_ext.files import atomic_path, write_json

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


LABEL_WIDTHS = (23, 4, -5, -5, -6)
STANDING_WIDTHS = (-5, -6)
CELL_WIDTHS = (-7, -6, -6)


def _aligned(values: Sequence[str], widths: Sequence[int]) -> str:
    """Fields of these widths; a negative one is aligned to the right, a lone value spans all."""
    if len(values) < len(widths):
        total = sum(abs(width) + 1 for width in widths) - 1
        return values[0][:total].ljust(total)
    return " ".join(
        value.ljust(width) if width > 0 else value.rjust(-width)
        for value, width in zip(values, widths, strict=True)
    )


def _line(label: Sequence[str], standing: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    first, *others = (_aligned(cell, CELL_WIDTHS) for cell in cells)
    columns = [_aligned(label, LABEL_WIDTHS), first, _aligned(standing, STANDING_WIDTHS), *others]
    return "  ".join(columns).rstrip()


def _tight(cell: Sequence[str]) -> list[str]:
    """``12.3ms`` for ``12.3 ms``, ``512M`` for ``512 MB``; a note as it is."""
    if len(cell) == 1:
        return list(cell)
    return [part.replace(" ", "").removesuffix("/s").removesuffix("B") for part in cell]


def print_header(contenders: Sequence[str], device: torch.device) -> None:
    """The head of the terminal's table."""
    print(f"{device_name(device)}, {torch.get_num_threads()} CPU threads", *LEGEND, "", sep="\n")
    print(_line([""], [""], [[name] for name in contenders]))
    print(
        _line(
            ["op", "pass", "N", "batch", "floor"],
            ["rate", "floors"],
            [["time", "ratio", "mem"]] * len(contenders),
        ),
        flush=True,
    )


def print_row(row: dict[str, Any], contenders: Sequence[str]) -> None:
    """A line of the terminal's table."""
    cells = [_tight(contender_cell(row["contenders"].get(name))) for name in contenders]
    line = _line(_tight(row_label(row)), _tight(standing_cell(row)), cells)
    print(line + ("" if row["checked"] else f"  ({UNCHECKED})"), flush=True)


def markdown(results: dict[str, Any]) -> str:
    """Machine, versions, command and table."""
    machine, before, after = results["machine"], results["rates"], results["rates_after"]
    names = results["contenders"]
    lines = [
        f"# Every op on {machine['device']}",
        "",
        f"`{results['command']}`, {results['seconds'] / 60:.1f} minutes.",
        "",
        *(f"- {name}: {in_words(value)}" for name, value in machine.items()),
        f"- sizes: {in_words(results['sizes'])}",
        "- the machine's own rates, before and after: "
        f"{before['gflops']:.0f} and {after['gflops']:.0f} GFLOP/s (square float32 product), "
        f"{before['gb_per_second']:.1f} and {after['gb_per_second']:.1f} GB/s (reading)",
        "",
        " ".join(LEGEND),
        "",
        "Results agreed with each other before they were timed. Peak extra memory is the most held "
        "during a call above what was held before it, results included (`measure.PeakMemory`).",
        "",
        "| op | pass | N | batch | floor | " + " | ".join([names[0], "", *names[1:]]) + " |",
        "| --- | --- | ---: | ---: | ---: |" + " ---: |" * (len(names) + 1),
    ]
    for row in results["rows"]:
        cells = [", ".join(contender_cell(row["contenders"].get(name))) for name in names]
        if not row["checked"]:
            cells[0] += f" ({UNCHECKED})"
        cells.insert(1, ", ".join(part for part in standing_cell(row) if part))
        lines.append("| " + " | ".join([*row_label(row), *cells]) + " |")
    return "\n".join(lines) + "\n"


def write_results(stem: Path, results: dict[str, Any]) -> list[Path]:
    """Writes JSON, Markdown and the picture; returns their paths."""
    results = {"command": shlex.join(["python", *sys.argv]), **results}
    paths = [stem.with_name(f"{stem.name}.{kind}") for kind in ("json", "md", "png")]
    write_json(paths[0], results)
    with atomic_path(paths[1]) as temporary:
        temporary.write_text(markdown(results))
    draw(results, paths[2])
    return paths
