"""The plot of a spectrum: row space, null space, and truncated directions."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from alphafuse_ext.files import PathLike, atomic_path

_ROW, _NULL, _TRUNCATED = "#2b5c8a", "#d9742b", "#a3a8ad"
_INK, _FAINT = "#22272e", "#d8dce0"


def plot_spectrum(
    eigenvalues: NDArray[np.float64],
    dim: int,
    null_dim: int,
    rank: int,
    null_threshold: float | None = None,
    title: str | None = None,
    path: PathLike | None = None,
    ax: Axes | None = None,
) -> Figure:
    """Draw eigenvalues on a logarithmic axis, coloured by the part of the space they belong to.

    Args:
        eigenvalues: descending, shape (d_l,).
        dim: directions kept.
        null_dim: how many of them, the last, are null space; 0 marks none.
        rank: directions that carry something; the others, zero up to rounding, lie below the axis.
        null_threshold: drawn as a horizontal line.
        title: of the plot.
        path: also save the plot there, atomically.
        ax: draw into these axes instead of a new figure.

    Returns:
        The figure drawn into.
    """
    if ax is None:
        figure = Figure(figsize=(8.0, 4.5), dpi=150, layout="constrained")
        FigureCanvasAgg(figure)
        ax = figure.add_subplot()
    else:
        figure = ax.figure if isinstance(ax.figure, Figure) else ax.figure.figure
    width = len(eigenvalues)
    seen = eigenvalues[:rank] if rank else np.ones(1)
    floor = 10.0 ** (np.floor(np.log10(seen[-1])) - 0.15)
    ceiling = 10.0 ** (np.log10(seen[0] / floor) * 0.12) * seen[0]
    total = float(np.clip(eigenvalues, 0.0, None).sum()) or 1.0

    row_dim = dim - null_dim
    parts = [
        ("row space: language" if null_dim else "kept", 0, row_dim, _ROW),
        ("null space: IDs", row_dim, dim, _NULL),
        ("truncated", dim, width, _TRUNCATED),
    ]
    places = np.arange(width + 1) + 0.5
    heights = np.clip(eigenvalues, floor, None)
    for name, start, stop, colour in parts:
        if start == stop:
            continue
        share = float(np.clip(eigenvalues[start:stop], 0.0, None).sum()) / total
        count = stop - start
        ax.stairs(
            heights[start:stop],
            places[start : stop + 1],
            baseline=floor,
            fill=True,
            color=colour,
            linewidth=0,
            label=f"{name}, {count} direction{'s' * (count != 1)}, {share:.1%} of the variance",
        )
    for edge in {row_dim, dim} - {0, width}:
        ax.vlines(edge + 0.5, floor, heights[edge - 1], color="white", linewidth=1.6)
    if null_threshold is not None and null_threshold > 0:
        ax.axhline(
            null_threshold,
            color=_INK,
            linewidth=1.0,
            linestyle=(0, (4, 3)),
            label=f"null_threshold = {null_threshold:g}",
        )
    if rank < width:
        ax.axvspan(
            rank + 0.5,
            width + 0.5,
            facecolor="none",
            edgecolor=_FAINT,
            hatch="///",
            linewidth=0,
            label=f"no variance, {width - rank} direction{'s' * (width - rank != 1)}",
        )

    ax.set_yscale("log")
    ax.set_xlim(0.5, width + 0.5)
    ax.set_ylim(floor, ceiling)
    ax.set_xlabel("direction, by descending variance")
    ax.set_ylabel("eigenvalue (variance)")
    if title is not None:
        ax.set_title(title, loc="left", color=_INK, fontweight="bold", parse_math=False)
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set_color(_INK)
    ax.tick_params(colors=_INK, which="both")
    ax.grid(axis="y", color=_FAINT, linewidth=0.6)
    ax.set_axisbelow(True)
    ax.legend(loc="upper right", frameon=True, framealpha=0.95, edgecolor="none", labelcolor=_INK)
    if path is not None:
        with atomic_path(path) as temporary:
            figure.savefig(temporary)
    return figure
