"""Pictures of a run."""

from __future__ import annotations

import os
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from alphafuse_ext.files import atomic_path


def plot_curves(epochs: list[dict[str, Any]], metric: str, path: str | os.PathLike[str]) -> None:
    """Training loss and a validation metric over the epochs.

    Args:
        epochs: lines of ``metrics.jsonl``.
        metric: the validation metric to draw; its best epoch is marked.
        path: the PNG file to write.
    """
    numbers = [line["epoch"] for line in epochs]
    losses = [line["loss"] for line in epochs]
    values = [line["validation"][metric] for line in epochs]
    best = max(range(len(values)), key=values.__getitem__)
    figure = Figure(figsize=(7, 4), layout="constrained")
    left = figure.subplots()
    right = left.twinx()
    left.plot(numbers, losses, color="tab:gray", marker=".", label="training loss")
    right.plot(numbers, values, color="tab:blue", marker=".", label=f"validation {metric}")
    right.plot(
        numbers[best],
        values[best],
        "o",
        color="tab:orange",
        markersize=9,
        label=f"best: {values[best]:.4f}, epoch {numbers[best]}",
    )
    left.set_xlabel("epoch")
    left.set_ylabel("training loss")
    right.set_ylabel(f"validation {metric}")
    left.xaxis.set_major_locator(MaxNLocator(integer=True))
    left.spines.top.set_visible(False)
    right.spines.top.set_visible(False)
    handles = [*left.get_lines(), *right.get_lines()]
    right.legend(handles=handles, frameon=False, loc="lower right")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=150, format="png")
