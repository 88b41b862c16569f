"""The report of a data set: statistics and distributions."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.figure import Figure

from alphafuse_ext.data import Interactions, Items
from alphafuse_ext.data.summary import as_dates, described
from alphafuse_ext.reports.page import Picture, Section, Table, drawn, named, write_page


def write_data_report(
    path: str | os.PathLike[str],
    title: str,
    interactions: Interactions,
    items: Items,
    summary: dict[str, Any],
) -> None:
    """Write the report of a data set.

    Args:
        path: the HTML file to write or to replace.
        title: of the page.
        interactions, items: the data.
        summary: of :func:`alphafuse_ext.data.summary.summarize`.
    """
    write_page(path, title, [], data_sections(interactions, items, summary))


def data_sections(
    interactions: Interactions, items: Items, summary: dict[str, Any]
) -> list[Section]:
    """What a page says of the data; the arguments are those of :func:`write_data_report`."""
    table = named(described(summary))
    examples = [(text[:300],) for text in items.texts or () if text][:5]
    texts = Table(("as an encoder reads them",), examples)
    return [
        Section("Data", [table, *_pictures(interactions)]),
        Section("Item texts", [texts] if examples else []),
    ]


def _pictures(interactions: Interactions) -> list[Picture]:
    lengths, counts = interactions.sequences.lengths, interactions.item_counts()
    figure = Figure(figsize=(9, 3), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.hist(lengths, _bins(lengths), color="tab:blue")
    left.set_xscale("log")
    left.set_xlabel("items in a history")
    left.set_ylabel("users")
    popular = np.sort(counts)[::-1]
    right.plot(np.arange(1, len(popular) + 1), np.maximum(popular, 0.5), color="tab:blue")
    right.set_xscale("log")
    right.set_yscale("log")
    right.set_xlabel("items, the most popular first")
    right.set_ylabel("interactions")
    _plain(left, right)
    pictures = [drawn(figure, "Lengths of histories, and interactions of each item.")]
    dates = None if interactions.timestamps is None else as_dates(interactions.timestamps)
    if dates is not None and dates.min() < dates.max():
        figure = Figure(figsize=(9, 2.5), layout="constrained")
        axes = figure.subplots()
        axes.hist(dates.astype("datetime64[s]").astype(object), 60, color="tab:blue")
        locator = AutoDateLocator()
        axes.xaxis.set_major_locator(locator)
        axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))
        axes.set_ylabel("interactions")
        _plain(axes)
        pictures.append(drawn(figure, "Interactions over time."))
    return pictures


def _bins(lengths: np.ndarray) -> np.ndarray:
    """Edges between whole numbers, ever further apart."""
    edges = np.unique(np.geomspace(1, max(lengths.max(), 2) + 1, 40).round())
    return edges - 0.5


def _plain(*axes: Axes) -> None:
    for one in axes:
        one.spines[["top", "right"]].set_visible(False)
