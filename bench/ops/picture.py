"""The results of ``scoring.py`` as a picture."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator
from matplotlib.transforms import blended_transform_factory
from measure import format_bytes

from alphafuse_ext.files import atomic_path

STYLES = {
    "alphafuse_ext": ("o", "#d62728"),
    "alphafuse_ext, int8 first": ("P", "#9467bd"),
    "PyTorch": ("|", "#333333"),
    "PyTorch, ready table": ("s", "#9a9a9a"),
    "torch.compile": ("^", "#1f77b4"),
    "FAISS": ("D", "#2ca02c"),
}
FLOOR = (4, "#e8a33d")  # 4 is matplotlib's caret to the left: nothing is faster than this
BAND = "#f4f4f6"


def count(value: int) -> str:
    """``100k``, ``1M``, ``256``."""
    for unit, factor in (("M", 1_000_000), ("k", 1000)):
        if value >= factor and value % (factor // 10) == 0:
            return f"{value / factor:g}{unit}"
    return str(value)


def draw(results: dict[str, Any], path: Path) -> None:
    """A line of dots for each row: how fast against PyTorch, and peak extra memory."""
    order = list(dict.fromkeys(row["op"] for row in results["rows"]))
    rows = sorted(
        results["rows"],
        key=lambda row: (order.index(row["op"]), row["backward"], row["num_items"], row["batch"]),
    )
    # Going down: each op has a line for its name, one for each of its rows, and a gap.
    line, places, groups = 0.0, [], []
    for op, members in groupby(rows, key=lambda row: row["op"]):
        count_of_op = len(list(members))
        groups.append((op, line, line + count_of_op))
        places += [line + 1 + i for i in range(count_of_op)]
        line += count_of_op + 1.5
    figure = Figure(figsize=(13, 1.6 + 0.19 * line), layout="constrained")
    speed, memory = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))

    for axes in (speed, memory):
        for _, top, bottom in groups:
            axes.axhspan(top - 0.5, bottom + 0.5, color=BAND, zorder=0)
        axes.set_xscale("log")
        axes.grid(axis="x", color="white", linewidth=1.2, zorder=1)
        axes.tick_params(which="both", length=0)
        axes.spines[:].set_visible(False)
    speed.axvline(1, color=STYLES["PyTorch"][1], linewidth=1, zorder=2)

    for place, row in zip(places, rows, strict=True):
        measured = {name: m for name, m in row["contenders"].items() if not m["note"]}
        if "PyTorch" in measured:
            best = measured["PyTorch"]["seconds"] / row["floor_seconds"]
            speed.plot(best, place, marker=FLOOR[0], color=FLOOR[1], markersize=5, zorder=2)
        for name, m in measured.items():
            marker, color = STYLES[name]
            style: dict[str, Any] = {
                "marker": marker,
                "color": color,
                "linestyle": "none",
                "markeredgewidth": 1.6 if name == "PyTorch" else 0.5,
                "markersize": 6 if name == "alphafuse_ext" else 4.5,
                "alpha": 0.9,
                "zorder": 5 if name == "alphafuse_ext" else 4,
            }
            if m["ratio"] is not None and name != "PyTorch":
                speed.plot(m["ratio"], place, **style)
            if m["peak_bytes"] is not None:
                # A page or two is what the counter can see.
                memory.plot(max(m["peak_bytes"], 1e4) / 1e6, place, **style)

    speed.set_yticks(
        places,
        [
            f"{'fwd + bwd' if row['backward'] else 'forward'}   {count(row['num_items']):>4} x "
            f"{count(row['batch']):>4}"
            for row in rows
        ],
        fontfamily="monospace",
        fontsize=7.5,
    )
    speed.set_ylim(line - 1, -0.5)
    left = blended_transform_factory(speed.transAxes, speed.transData)
    for op, top, _ in groups:
        speed.text(
            0.008,
            top + 0.1,
            op,
            transform=left,
            fontsize=9,
            fontweight="bold",
            va="center",
            color="#444444",
            zorder=3,
        )
    for axes, label in (
        (speed, lambda value: f"{value:g}x"),
        (memory, lambda value: format_bytes(value * 1e6, digits=1)),
    ):
        low, high = axes.get_xlim()
        # Over a narrow range powers of ten alone would be too few.
        axes.xaxis.set_major_locator(LogLocator(subs=(1,) if high / low > 300 else (1, 2, 5)))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(lambda value, _, label=label: label(value))
    speed.set_title("times as fast as PyTorch (right is faster)", fontsize=10, loc="left")
    memory.set_title("peak extra memory (left is less)", fontsize=10, loc="left")

    handles = [
        speed.plot([], [], marker=marker, color=color, linestyle="none", label=name)[0]
        for name, (marker, color) in (*STYLES.items(), ("the machine's floor", FLOOR))
    ]
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=len(handles),
        frameon=False,
        fontsize=9,
        handletextpad=0.2,
    )
    machine, rates = results["machine"], results["rates"]
    figure.suptitle(
        f"{machine['device']}, {machine['threads']} CPU threads, {rates['gflops']:.0f} GFLOP/s, "
        f"{rates['gb_per_second']:.0f} GB/s;  float32, dim {results['sizes']['dim']}, "
        f"null_dim {results['sizes']['null_dim']};  rows are items x batch",
        fontsize=11,
        x=0.01,
        ha="left",
    )
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=130, format="png")
