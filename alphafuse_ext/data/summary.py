"""Statistics of a data set: sizes, lengths, popularity, repeats, times, texts."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from alphafuse_ext.data.interactions import PARTS, Interactions
from alphafuse_ext.data.items import Items

# Plain numbers in these ranges are taken for seconds and milliseconds from 1990 to 2100.
_SECONDS = (631_152_000, 4_102_444_800)


def summarize(interactions: Interactions, items: Items | None = None) -> dict[str, Any]:
    """Statistics of a data set before training.

    Args:
        interactions: every user's items in order.
        items: their catalog, for its texts.

    Returns:
        Numbers and strings, as JSON has them: `users`, `items`, `interactions`; `density`, the
        share of user-item pairs that occur; `history_length` and `interactions_of_an_item`, each
        with `least`, `median`, `mean`, `p90` and `most`; `items_without_interactions`;
        `share_of_top_1_percent` of items, of interactions; `repeats` and `immediate_repeats`,
        interactions with an item that its user had before, or had last; of a given split
        `train_interactions`, `validation_interactions` and `test_interactions`; `equal_times`,
        interactions at the time of the one before; `first_time` and `last_time`, dates where they
        seem to be; `weight`, as `history_length`, where there are any; `texts`, items with one, and
        `median_text_length` in characters;
        `titles_given_twice`.
    """
    sequences, counts = interactions.sequences, interactions.item_counts()
    users = np.repeat(np.arange(len(sequences)), sequences.lengths)
    pairs = users * np.int64(interactions.num_items) + sequences.values
    distinct = len(np.unique(pairs))
    within = users[1:] == users[:-1]
    popular = np.sort(counts)[::-1]
    facts: dict[str, Any] = {
        "users": interactions.num_users,
        "items": interactions.num_items,
        "interactions": len(interactions),
        "density": distinct / (interactions.num_users * interactions.num_items),
        "history_length": _spread(sequences.lengths),
        "interactions_of_an_item": _spread(counts),
        "items_without_interactions": int(np.sum(counts == 0)),
        "share_of_top_1_percent": popular[: -(-len(popular) // 100)].sum() / len(interactions),
        "repeats": len(interactions) - distinct,
        "immediate_repeats": int(np.sum(within & (sequences.values[1:] == sequences.values[:-1]))),
    }
    if interactions.parts is not None:
        held = np.bincount(interactions.parts, minlength=len(PARTS)).tolist()
        facts |= {f"{part}_interactions": count for part, count in zip(PARTS, held, strict=True)}
    times = interactions.timestamps
    if times is not None:
        dates = as_dates(times)
        facts["equal_times"] = int(np.sum(within & (times[1:] == times[:-1])))
        for name, value in (("first_time", times.min()), ("last_time", times.max())):
            facts[name] = value.item() if dates is None else str(as_dates(np.array([value]))[0])  # type: ignore[index]
    if interactions.weights is not None:
        facts["weight"] = _spread(interactions.weights)
    if items is not None and items.texts is not None:
        lengths = np.array([len(text) for text in items.texts if text])
        facts["texts"] = len(lengths)
        facts["median_text_length"] = float(np.median(lengths)) if len(lengths) else 0.0
    if items is not None and items.titles is not None:
        titles = pd.Series([title for title in items.titles if title], dtype=object)
        facts["titles_given_twice"] = int(titles.duplicated().sum())
    return facts


def described(summary: dict[str, Any]) -> list[tuple[str, Any]]:
    """The numbers of a summary under names to read."""
    lines: list[tuple[str, Any]] = []
    for name, value in summary.items():
        if isinstance(value, dict):
            value = ", ".join(f"{what} {number:,.4g}" for what, number in value.items())
        elif name in _SHARES:
            value = f"{100 * value:.3g}%"
        elif name in _OF_INTERACTIONS:
            value = f"{value:,} ({100 * value / summary['interactions']:.3g}% of interactions)"
        elif name.endswith("_time") and isinstance(value, str):
            value += " UTC"
        lines.append((name.replace("_", " "), value))
    return lines


_SHARES = ("density", "share_of_top_1_percent")
_OF_INTERACTIONS = ("repeats", "immediate_repeats", "equal_times")


def as_text(summary: dict[str, Any]) -> str:
    """A summary as lines to print."""
    return "\n".join(
        f"{name:>26}  {value:,.6g}" if isinstance(value, float) else f"{name:>26}  {value}"
        for name, value in described(summary)
    )


def as_dates(times: npt.NDArray[Any]) -> npt.NDArray[np.datetime64] | None:
    """Times to the second if they are in the range of clock times; None if they are mere positions.

    Args:
        times: as `Interactions` has them: seconds, milliseconds or nanoseconds since 1970 are
            distinguished by their size.
    """
    for unit, scale in (("s", 1), ("ms", 10**3), ("us", 10**6), ("ns", 10**9)):
        if times.min() >= _SECONDS[0] * scale and times.max() <= _SECONDS[1] * scale:
            return times.astype(np.int64).astype(f"datetime64[{unit}]").astype("datetime64[s]")
    return None


def _spread(counts: npt.NDArray[Any]) -> dict[str, float]:
    return {
        "least": counts.min().item(),
        "median": float(np.median(counts)),
        "mean": float(counts.mean()),
        "p90": float(np.quantile(counts, 0.9)),
        "most": counts.max().item(),
    }
