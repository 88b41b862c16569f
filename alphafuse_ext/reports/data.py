"""The report of a data set: statistics and distributions."""

from __future__ import annotations

import os
import re
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter

from alphafuse_ext.data import Interactions, Items
from alphafuse_ext.data.summary import as_dates, described
from alphafuse_ext.reports.page import (
    Picture,
    Section,
    Table,
    drawn,
    named,
    percent,
    write_page,
)

_HEADS = (0.01, 0.05, 0.2)
"""Shares of the items, the best-selling, whose share of the interactions is told."""
_RARE = 5
"""Interactions below which an item is of the long tail."""
_BEST = 10
_LONGEST_BAR = 40


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
    table = named([(name, value) for name, value in described(summary) if value is not None])
    examples = [(text[:300],) for text in items.texts or () if text][:5]
    texts = Table(("as an encoder reads them",), examples)
    return [
        Section("Data", [table, *_pictures(interactions)]),
        Section("Best-sellers and the long tail", _popularity(interactions, items)),
        Section(
            "Categories and prices",
            _of_columns(interactions.item_counts(), items.columns),
        ),
        Section("Item texts", [texts] if examples else []),
    ]


def _popularity(interactions: Interactions, items: Items) -> list[str | Table]:
    """Who sells, and how much of all."""
    counts = interactions.item_counts()
    order = np.argsort(-counts, kind="stable")
    ranked, total = counts[order], len(interactions)
    shares = []
    for head in _HEADS:
        number = max(1, round(head * len(ranked)))
        sold = percent(ranked[:number].sum() / total)
        shares.append((f"the best-selling {percent(head)} of items, {number:,}", sold))
    rare = int((counts < _RARE).sum())
    shares.append(
        (
            f"the long tail: {rare:,} items ({percent(rare / len(counts))}) with fewer than "
            f"{_RARE} interactions",
            percent(counts[counts < _RARE].sum() / total),
        )
    )
    best = [
        (title_of(items, item), int(counts[item]), percent(counts[item] / total))
        for item in order[:_BEST]
        if counts[item]
    ]
    return [
        Table(("", "of all interactions"), shares),
        Table(("best-sellers", "interactions", "of all"), best),
    ]


_CATEGORIES = re.compile("categor|genre|brand|department|class|colou?r|type", re.IGNORECASE)
_PRICES = re.compile("price|preis|prix|cost", re.IGNORECASE)
_SHOWN_VALUES = 8
_SHOWN_COLUMNS = 3


def _of_columns(counts: np.ndarray, columns: pd.DataFrame | None) -> list[str | Table]:
    """Categories by what they sell, and prices of the catalog and of what is sold.

    Args:
        counts: interactions of each item.
        columns: of the catalog: numbers, and strings as categories; ``None``: it has none.
    """
    parts: list[str | Table] = []
    if columns is None or not counts.sum():
        return parts
    for name in columns:
        column = columns[name]
        if pd.api.types.is_numeric_dtype(column.dtype) and _PRICES.search(str(name)):
            known = column.notna().to_numpy()
            if not known.any():
                continue
            prices, sold = column[known].to_numpy(np.float64), counts[known]
            rows = [("of the catalog", *_quantiles(prices, np.ones(len(prices))))]
            if sold.sum():
                rows.append(("of interactions", *_quantiles(prices, sold)))
            parts.append(
                Table((str(name), "a tenth below", "median", "mean", "a tenth above"), rows)
            )
    named = [
        name
        for name in columns
        if isinstance(columns[name].dtype, pd.CategoricalDtype) and _CATEGORIES.search(str(name))
    ]
    for name in named[:_SHOWN_COLUMNS]:
        column = columns[name].astype(object).where(columns[name].notna(), "(none)")
        table = pd.DataFrame({"value": column, "sold": counts, "items": 1})
        sums = table.groupby("value")[["items", "sold"]].sum()
        sums = sums.sort_values(["sold", "items"], ascending=False, kind="stable")
        if len(sums) < 2:
            continue
        shown = sums if len(sums) <= _SHOWN_VALUES + 1 else sums[:_SHOWN_VALUES]
        lines = [
            (str(value), *row) for value, row in zip(shown.index, shown.to_numpy(), strict=True)
        ]
        if len(shown) < len(sums):
            rest = sums[len(shown) :]
            lines.append((f"{len(rest):,} others", *rest.sum().to_numpy()))
        total = int(counts.sum())
        cells = [(value, int(items), percent(sold / total)) for value, items, sold in lines]
        parts.append(Table((str(name), "items", "of all interactions"), cells))
    return parts


def _quantiles(values: np.ndarray, counts: np.ndarray) -> tuple[float, ...]:
    """A tenth, the median, the mean and nine tenths of values that occur so often."""
    order = np.argsort(values)
    below = np.cumsum(counts[order])
    places = np.searchsorted(below, below[-1] * np.array([0.1, 0.5, 0.9]))
    low, middle, high = (float(values[order][place]) for place in places)
    return low, middle, float(np.average(values, weights=counts)), high


def title_of(items: Items, item: int) -> str:
    """What an item is called on a page: id and title."""
    title = "" if items.titles is None else items.titles[item]
    return f"{items.tokens[item]}  {title}"[:120].rstrip()


def _pictures(interactions: Interactions) -> list[Picture]:
    lengths, counts = interactions.sequences.lengths, interactions.item_counts()
    figure = Figure(figsize=(9, 3), layout="constrained")
    left, right = figure.subplots(1, 2)
    # A bar for each whole number, the last for that and all longer ones.
    last = int(min(lengths.max(), _LONGEST_BAR))
    users = np.bincount(np.minimum(lengths, last), minlength=last + 1)
    left.bar(np.arange(1, last + 1), users[1:], width=0.9, color="tab:blue")
    more = " (the last bar: and more)" if lengths.max() > last else ""
    left.set_xlabel(f"items in a history{more}")
    left.set_ylabel("users")
    left.xaxis.set_major_locator(MaxNLocator(integer=True))
    popular = np.sort(counts)[::-1]
    right.plot(np.arange(1, len(popular) + 1), np.maximum(popular, 0.5), color="tab:blue")
    right.set_xscale("log")
    right.set_yscale("log")
    for axis in (right.xaxis, right.yaxis):  # numbers as people write them
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        axis.set_minor_formatter(NullFormatter())
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
        axes.set_xlabel("UTC")
        pictures.append(drawn(figure, "Interactions over time (UTC)."))
    return pictures


def _plain(*axes: Axes) -> None:
    for one in axes:
        one.spines[["top", "right"]].set_visible(False)
