"""A synthetic catalog with users: the default data of the command line.

Two signals are planted, each of which predicts the next item, and together better:

- a semantic one: what an item is shows in its text (category, style), users move from a category
  to a related one and have favourite styles;
- a collaborative one: every item belongs to a hidden community, drawn without regard to its text,
  and a user's next item is mostly from the same community. Only the ID embeddings
  can learn it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from alphafuse_ext.checks import invalid
from alphafuse_ext.data.sequences import IntArray, Sequences

# Neighbours in the list are related: a user moves to the next category.
_CATEGORIES = (
    ("tent", "two nights out in the hills"),
    ("sleeping bag", "cold nights and early starts"),
    ("camping stove", "cooking far from any kitchen"),
    ("enamel mug", "soup by the fire"),
    ("coffee maker", "slow mornings and strong espresso"),
    ("teapot", "long afternoons with friends"),
    ("cookie jar", "small hands and high shelves"),
    ("cookbook", "dinners worth repeating"),
    ("reading lamp", "the last chapter before sleep"),
    ("bookshelf", "novels, atlases and souvenirs"),
    ("desk organizer", "a table with room to think"),
    ("fountain pen", "letters, lists and first drafts"),
    ("sketchbook", "drawings made on the way"),
    ("watercolour set", "skies, lakes and mistakes"),
    ("picture frame", "the one that came out well"),
    ("tripod", "stars and long exposures"),
    ("camera bag", "two lenses and lunch"),
    ("binoculars", "herons across the bay"),
    ("rain jacket", "wet streets and windy ridges"),
    ("hiking boot", "stony paths and muddy tracks"),
    ("bicycle helmet", "the ride to work"),
    ("bicycle pump", "flat tyres in the dark"),
    ("repair kit", "loose screws and torn seams"),
    ("headlamp", "huts reached after sunset"),
)
_STYLES = (
    *("compact", "classic", "lightweight", "rugged", "minimalist"),
    *("colourful", "vintage", "premium", "foldable", "quiet"),
)
_BRANDS = (
    *("Alder & Finch", "Borealis", "Cobblestone", "Driftwood", "Emberly", "Fernhill"),
    *("Granite Peak", "Harbourline", "Islay", "Juniper", "Kestrel", "Lumen"),
    *("Marlowe", "Northwind", "Oakfield"),
)
_MATERIALS = ("aluminium", "bamboo", "canvas", "recycled plastic", "steel", "waxed cotton")

_MAX_COMMUNITIES = 6
_MIN_ITEMS = 2 * len(_CATEGORIES)

_SAME_CATEGORY = 0.45
_RELATED_CATEGORY = 0.40
_SAME_COMMUNITY = 0.80
_FAVOURITE_STYLES = 2
_FAVOURITE_WEIGHT = 4.0
_MEAN_LENGTH = 11
_MIN_LENGTH = 5
_MAX_LENGTH = 40


@dataclass(frozen=True, eq=False)
class _Catalog:
    """What the items are: indices into the lists above, int64, and weights, each `(N,)`."""

    categories: IntArray
    styles: IntArray
    brands: IntArray
    materials: IntArray
    communities: IntArray
    popularity: npt.NDArray[np.float64]


def synthetic_catalog(
    num_users: int = 3000, num_items: int = 1500, seed: int = 0
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Draw a catalog and its users' histories; the same arguments give the same frames.

    Args:
        num_users: at least 1; histories are 5 to 40 items long, 11 on average, without repeats
            (and shorter where a catalog is too small to offer anything new).
        num_items: at least 48.
        seed: at least 0.

    Returns:
        Interactions with columns `user_id`, `item_id`, `timestamp` (seconds), in order of time;
        and items with columns `item_id`, `title`, `description`.

    Raises:
        ValueError: too few users or items, or a negative seed.
    """
    if num_users < 1:
        raise invalid("num_users", num_users, "num_users >= 1")
    catalog = _draw_catalog(num_items, seed)
    generator = np.random.default_rng([seed, 1])
    histories = _draw_histories(catalog, num_users, generator)
    users, steps = np.nonzero(histories >= 0)

    # Visits days apart, so that the log of all users is a mixture of their histories.
    start = 1_700_000_000 + generator.integers(0, 180 * 86_400, num_users)
    gaps = 1 + generator.exponential(4 * 86_400, histories.shape).astype(np.int64)
    interactions = pd.DataFrame(
        {
            "user_id": [f"user{user:05d}" for user in users],
            "item_id": _item_tokens(num_items)[histories[users, steps]],
            "timestamp": (start[:, None] + np.cumsum(gaps, axis=1))[users, steps],
        }
    ).sort_values("timestamp", kind="stable", ignore_index=True)
    return interactions, _describe(catalog)


@dataclass(frozen=True)
class PlantedSignal:
    """How often a step, from a user's last item to the next, keeps what was planted.

    Attributes:
        name: what the two items have in common.
        in_histories: share of the steps that users took.
        in_recommendations: share of the steps from the last item to each recommended one.
        by_chance: share of the steps from the last item to every item of the catalog.
    """

    name: str
    in_histories: float
    in_recommendations: float
    by_chance: float

    @property
    def found(self) -> bool:
        """Whether recommendations are nearer to what users do than to chance, or beyond."""
        return self.in_recommendations > (self.in_histories + self.by_chance) / 2

    def __str__(self) -> str:
        return (
            f"{self.in_histories:.0%} of users' steps keep {self.name}; "
            f"of those to recommended items {self.in_recommendations:.0%} do, by chance "
            f"{self.by_chance:.0%}: {'found' if self.found else 'not found'}"
        )


def planted_signals(
    histories: Sequences, recommended: IntArray, num_items: int = 1500, seed: int = 0
) -> tuple[PlantedSignal, PlantedSignal]:
    """What of the planted signals is in recommendations: the hidden community, and the category.

    Args:
        histories: of users of :func:`synthetic_catalog`, item ids in the order of its items.
        recommended: item ids for each of these users, shape `(users, k)`, -1 where there are fewer.
        num_items, seed: as given to :func:`synthetic_catalog`.
    """
    catalog = _draw_catalog(num_items, seed)

    def same_community(before: IntArray, after: IntArray) -> npt.NDArray[np.bool_]:
        return catalog.communities[before] == catalog.communities[after]

    def related_category(before: IntArray, after: IntArray) -> npt.NDArray[np.bool_]:
        moved = (catalog.categories[after] - catalog.categories[before]) % len(_CATEGORIES)
        return moved <= 1

    last = histories.last(1).values
    users, _ = np.nonzero(recommended >= 0)
    is_first = np.zeros(len(histories.values), dtype=bool)
    is_first[histories.offsets[:-1]] = True
    after = np.flatnonzero(~is_first)
    signals = [
        PlantedSignal(
            name,
            in_histories=float(keeps(histories.values[after - 1], histories.values[after]).mean()),
            in_recommendations=float(keeps(last[users], recommended[recommended >= 0]).mean()),
            by_chance=float(keeps(last[:, None], np.arange(num_items)).mean()),
        )
        for name, keeps in (
            ("to the hidden community, which no text tells", same_community),
            ("to the category or its neighbour, which texts tell", related_category),
        )
    ]
    return signals[0], signals[1]


def _draw_catalog(num_items: int, seed: int) -> _Catalog:
    if num_items < _MIN_ITEMS:
        raise invalid("num_items", num_items, f"num_items >= {_MIN_ITEMS}")
    if seed < 0:
        raise invalid("seed", seed, "seed >= 0")
    generator = np.random.default_rng([seed, 0])
    # Assigned round-robin: each pair of a category and a community has its share of items, so
    # that the two are independent.
    num_communities = min(_MAX_COMMUNITIES, num_items // len(_CATEGORIES))
    place = generator.permutation(num_items)
    return _Catalog(
        categories=place % len(_CATEGORIES),
        communities=place // len(_CATEGORIES) % num_communities,
        styles=generator.integers(0, len(_STYLES), num_items),
        brands=generator.integers(0, len(_BRANDS), num_items),
        materials=generator.integers(0, len(_MATERIALS), num_items),
        popularity=1.0 / np.sqrt(1.0 + generator.permutation(num_items)),
    )


def _draw_histories(catalog: _Catalog, num_users: int, generator: np.random.Generator) -> IntArray:
    """Item ids, int64, shape `(num_users, L)`, -1 after the end of a history."""
    num_categories = len(_CATEGORIES)
    num_communities = int(catalog.communities.max()) + 1
    cells = _cells(catalog.categories * num_communities + catalog.communities)

    lengths = _MIN_LENGTH + generator.geometric(1 / (_MEAN_LENGTH - _MIN_LENGTH + 1), num_users) - 1
    lengths = np.minimum(lengths, _MAX_LENGTH)
    taste = np.ones((num_users, len(_STYLES)))
    favourites = generator.random(taste.shape).argsort(axis=1)[:, :_FAVOURITE_STYLES]
    np.put_along_axis(taste, favourites, _FAVOURITE_WEIGHT, axis=1)

    category = generator.integers(0, num_categories, num_users)
    community = generator.integers(0, num_communities, num_users)
    histories = np.full((num_users, int(lengths.max())), -1, dtype=np.int64)
    for step in range(histories.shape[1]):
        if step > 0:
            move = generator.random(num_users)
            category = np.select(
                [move < _SAME_CATEGORY, move < _SAME_CATEGORY + _RELATED_CATEGORY],
                [category, (category + 1) % num_categories],
                generator.integers(0, num_categories, num_users),
            )
            community = np.where(
                generator.random(num_users) < _SAME_COMMUNITY,
                community,
                generator.integers(0, num_communities, num_users),
            )
        candidates = cells[category * num_communities + community]
        weights = catalog.popularity[candidates] * np.take_along_axis(
            taste, catalog.styles[candidates], axis=1
        )
        had = (candidates[:, :, None] == histories[:, None, :step]).any(axis=2)
        weights[(candidates < 0) | had] = 0.0
        cumulative = np.cumsum(weights, axis=1)
        total = cumulative[:, -1]
        drawn = (cumulative <= generator.random(num_users)[:, None] * total[:, None]).sum(axis=1)
        # Nothing new where the user is: the history goes on at the next step.
        active = (step < lengths) & (total > 0)
        rows = np.flatnonzero(active)
        histories[rows, step] = candidates[rows, drawn[rows]]
    return histories


def _cells(cell_of: IntArray) -> IntArray:
    """The items of each cell, int64, shape `(cells, largest)`, -1 after the last."""
    order = np.argsort(cell_of, kind="stable")
    sizes = np.bincount(cell_of)
    cells = np.full((len(sizes), int(sizes.max())), -1, dtype=np.int64)
    cells[np.arange(cells.shape[1]) < sizes[:, None]] = order
    return cells


def _item_tokens(num_items: int) -> npt.NDArray[np.object_]:
    return np.array([f"item{item:05d}" for item in range(num_items)], dtype=object)


def _describe(catalog: _Catalog) -> pd.DataFrame:
    """Titles and descriptions, which show everything about an item but its community."""
    titles: list[str] = []
    descriptions: list[str] = []
    editions: dict[str, int] = {}
    for category, style, brand, material in zip(
        catalog.categories, catalog.styles, catalog.brands, catalog.materials, strict=True
    ):
        noun, use = _CATEGORIES[category]
        title = f"{_BRANDS[brand]} {_STYLES[style]} {noun}"
        editions[title] = editions.get(title, 0) + 1
        edition = editions[title]
        titles.append(title if edition == 1 else f"{title}, edition {edition}")
        descriptions.append(
            f"A {_STYLES[style]} {noun} of {_MATERIALS[material]} by {_BRANDS[brand]}, for {use}."
        )
    tokens = _item_tokens(len(titles))
    return pd.DataFrame({"item_id": tokens, "title": titles, "description": descriptions})
