"""How well trained item embeddings preserve the geometry of the language embeddings."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from scipy.stats import spearmanr

from alphafuse_ext.checks import invalid
from alphafuse_ext.files import atomic_path

FloatArray = npt.NDArray[np.floating]


def distance_survival(
    language_embeddings: FloatArray,
    parts: Mapping[str, FloatArray],
    pairs: int = 200_000,
    seed: int = 0,
) -> dict[str, float]:
    """Spearman correlation of distances between items with those of their language embeddings.

    Spearman's coefficient of Euclidean distances over random pairs of different items: 1 if the
    order of distances is preserved, about 0 if it is random.

    Args:
        language_embeddings: ``(N, d_l)``, a memory map if need be: only sampled rows are read.
        parts: item embeddings or columns of theirs, ``(N, any)``, by name.
        pairs: how many pairs are drawn.
        seed: of the drawing.

    Returns:
        The coefficient by name; NaN for a part whose rows are all alike.

    Raises:
        ValueError: fewer than three items, no pairs, or a part with another number of rows.
    """
    num_items = len(language_embeddings)
    if num_items < 3:
        raise invalid("language_embeddings", f"{num_items} rows", "three or more")
    if pairs < 3:
        raise invalid("pairs", pairs, "pairs >= 3")
    for name, rows in parts.items():
        if len(rows) != num_items:
            raise invalid(f"parts[{name!r}]", f"{len(rows)} rows", f"{num_items}, one an item")
    random = np.random.default_rng(seed)
    first = random.integers(0, num_items, pairs)
    second = (first + random.integers(1, num_items, pairs)) % num_items
    expected = _distances(language_embeddings, first, second)
    survival = {}
    for name, rows in parts.items():
        found = _distances(rows, first, second)
        varies = found.max() > found.min() and expected.max() > expected.min()
        survival[name] = float(spearmanr(expected, found).statistic) if varies else float("nan")
    return survival


def _distances(
    rows: FloatArray, first: npt.NDArray[np.int64], second: npt.NDArray[np.int64]
) -> npt.NDArray[np.float64]:
    """Distance of each pair, a chunk of pairs at a time."""
    distances = np.empty(len(first))
    for start in range(0, len(first), 16384):
        chunk = slice(start, start + 16384)
        difference = np.asarray(rows[first[chunk]], np.float64) - rows[second[chunk]]
        distances[chunk] = np.linalg.norm(difference, axis=1)
    return distances


def plot_maps(
    parts: Mapping[str, FloatArray],
    colors: npt.NDArray[Any],
    color_label: str,
    survival: Mapping[str, float],
    path: str | os.PathLike[str],
    points: int = 2_000,
    seed: int = 0,
) -> None:
    """A map of the items in two dimensions for each part, by t-SNE, side by side.

    Args:
        parts: ``(N, any)`` each, by name.
        colors: ``(N,)``, a number for each item, drawn on a logarithmic scale of one plus it.
        color_label: what they are.
        survival: from :func:`distance_survival`, for the titles.
        path: of the PNG file.
        points: items drawn, at most; the same ones in every map.
        seed: of the choice of items and of t-SNE.
    """
    from sklearn.manifold import TSNE  # slow to import

    random = np.random.default_rng(seed)
    num_items = len(colors)
    chosen = np.sort(random.permutation(num_items)[:points])
    figure = Figure(figsize=(4.2 * len(parts), 4.4), layout="constrained")
    for axes, (name, rows) in zip(
        np.atleast_1d(figure.subplots(1, len(parts))), parts.items(), strict=True
    ):
        perplexity = min(30.0, (len(chosen) - 1) / 3)
        places = TSNE(init="pca", perplexity=perplexity, random_state=seed).fit_transform(
            np.asarray(rows[chosen], np.float32)
        )
        drawn = axes.scatter(*places.T, c=np.log10(1 + colors[chosen]), s=4, cmap="viridis")
        if axes is figure.axes[-1]:  # one scale for all, since all show the same items
            bar = figure.colorbar(drawn, ax=axes, shrink=0.8)
            bar.set_label(f"log10(1 + {color_label})", parse_math=False)
        title = name if name not in survival else f"{name}: {survival[name]:.2f}"
        axes.set_title(title, parse_math=False)
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
    figure.suptitle("rank correlation of distances with those of the language embeddings")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=150, format="png")
