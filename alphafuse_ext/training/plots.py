"""Plots of a run."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from alphafuse_ext.files import atomic_path


def plot_curves(epochs: list[dict[str, Any]], metric: str, path: str | os.PathLike[str]) -> None:
    """Training loss and a validation metric, where there is validation, over the epochs.

    Args:
        epochs: lines of ``metrics.jsonl``.
        metric: the validation metric to draw; its best epoch is marked.
        path: of the PNG file.
    """
    numbers = [line["epoch"] for line in epochs]
    losses = [line["loss"] for line in epochs]
    values = [line["validation"][metric] for line in epochs if line["validation"]]
    figure = Figure(figsize=(7, 4), layout="constrained")
    left = figure.subplots()
    left.plot(numbers, losses, color="tab:gray", marker=".", label="training loss")
    left.set_xlabel("epoch")
    left.set_ylabel("training loss")
    left.xaxis.set_major_locator(MaxNLocator(integer=True))
    left.spines[["top", "right"]].set_visible(False)
    handles = [*left.get_lines()]
    if values:
        best = max(range(len(values)), key=values.__getitem__)
        right = left.twinx()
        right.plot(numbers, values, color="tab:blue", marker=".", label=f"validation {metric}")
        right.plot(
            numbers[best],
            values[best],
            "o",
            color="tab:orange",
            markersize=9,
            label=f"best: {values[best]:.4f}, epoch {numbers[best]:g}",
        )
        right.set_ylabel(f"validation {metric}")
        right.spines.top.set_visible(False)
        handles += right.get_lines()
    # Above the axes: within them it would lie on a curve.
    figure.legend(handles=handles, frameon=False, loc="outside upper center", ncols=3)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=150, format="png")


def plot_gains(
    eigenvalues: np.ndarray,
    gains: np.ndarray,
    first: np.ndarray,
    path: str | os.PathLike[str],
) -> None:
    """The gain of each direction of a soft split against its eigenvalue.

    Args:
        eigenvalues: of the directions kept, ``(dim,)``; those that are not positive are left out.
        gains: as they are, ``(dim,)``.
        first: initial gains; drawn if they differ.
        path: of the PNG file.
    """
    seen = eigenvalues > 0
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    if not np.allclose(gains, first, rtol=1e-4):
        axes.plot(eigenvalues[seen], first[seen], color="tab:gray", label="at first")
    axes.plot(eigenvalues[seen], gains[seen], "o", markersize=4, label="of a direction")
    axes.set_xscale("log")
    axes.set_ylim(bottom=0)
    axes.set_xlabel("eigenvalue (variance of the language embeddings along the direction)")
    axes.set_ylabel("gain of the ID embedding")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(frameon=False, loc="outside upper center", ncols=2)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=150, format="png")
