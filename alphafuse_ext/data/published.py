"""The file formats of published data sets."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from alphafuse_ext.checks import invalid
from alphafuse_ext.data._delimited import Layout
from alphafuse_ext.data._records import read_records
from alphafuse_ext.data._tables import open_table
from alphafuse_ext.data._text import COMPRESSIONS

Fields = tuple[str, ...]


@dataclass(frozen=True)
class Records:
    """A file of one object per line.

    Attributes:
        fields: for each of our columns, the fields that hold it; of several the first filled one.
    """

    fields: Mapping[str, Fields]


@dataclass(frozen=True)
class Rows:
    """A delimited text file.

    Attributes:
        columns: for each of our columns, its name in the file.
        layout: the delimiter, and the names of a file that does not begin with them.
        latin: whether the encoding is Latin-1 where it is not UTF-8.
        flags: columns of 0 and 1 that stand for a list of their names, as `genres`.
    """

    columns: Mapping[str, str]
    layout: Layout = field(default_factory=Layout)
    latin: bool = False
    flags: Fields = ()


@dataclass(frozen=True)
class Published:
    """How a data set is laid out.

    Attributes:
        about: which release is meant, and its files.
        interactions, items: the layout by the file's suffix; "" of all others.
    """

    about: str
    interactions: Mapping[str, Records | Rows]
    items: Mapping[str, Records | Rows]


def _ratings(*columns: str) -> Rows:
    return Rows({name: name for name in columns}, Layout(",", columns))


_AMAZON_REVIEWS = Records(
    {
        "user_id": ("reviewerID",),
        "item_id": ("asin",),
        "rating": ("overall",),
        "timestamp": ("unixReviewTime",),
    }
)
_GENRES = (
    *("unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime"),
    *("Documentary", "Drama", "Fantasy", "Film-Noir", "Horror", "Musical", "Mystery", "Romance"),
    *("Sci-Fi", "Thriller", "War", "Western"),
)
_MOVIELENS_RATINGS = ("user_id", "item_id", "rating", "timestamp")
_MOVIES = ("item_id", "title", "genres")
_MOVIELENS_HEADER = {
    "user_id": "userId",
    "item_id": "movieId",
    "rating": "rating",
    "timestamp": "timestamp",
}

PUBLISHED: dict[str, Published] = {
    "amazon-2014": Published(
        "Amazon reviews to 2014: reviews_<category>[_5].json.gz or ratings_<category>.csv, "
        "meta_<category>.json.gz",
        {
            "": _AMAZON_REVIEWS,
            ".csv": _ratings("user_id", "item_id", "rating", "timestamp"),
        },
        {
            "": Records(
                {
                    "item_id": ("asin",),
                    "title": ("title",),
                    "brand": ("brand",),
                    "categories": ("categories",),
                    "description": ("description",),
                }
            )
        },
    ),
    "amazon-2018": Published(
        "Amazon reviews to 2018: <category>[_5].json.gz or <category>.csv, meta_<category>.json.gz",
        {
            "": _AMAZON_REVIEWS,
            ".csv": _ratings("item_id", "user_id", "rating", "timestamp"),
        },
        {
            "": Records(
                {
                    "item_id": ("asin",),
                    "title": ("title",),
                    "brand": ("brand",),
                    "categories": ("category", "main_cat"),
                    "features": ("feature",),
                    "description": ("description",),
                }
            )
        },
    ),
    "amazon-2023": Published(
        "Amazon reviews to 2023: <category>.jsonl.gz or a benchmark <category>.csv, "
        "meta_<category>.jsonl.gz",
        {
            "": Records(
                {
                    "user_id": ("user_id",),
                    "item_id": ("parent_asin",),
                    "rating": ("rating",),
                    "timestamp": ("timestamp",),
                }
            ),
            ".csv": Rows(
                {
                    "user_id": "user_id",
                    "item_id": "parent_asin",
                    "rating": "rating",
                    "timestamp": "timestamp",
                }
            ),
        },
        {
            "": Records(
                {
                    "item_id": ("parent_asin",),
                    "title": ("title",),
                    "brand": ("store",),
                    "categories": ("categories", "main_category"),
                    "features": ("features",),
                    "description": ("description",),
                }
            )
        },
    ),
    "movielens": Published(
        "MovieLens: ratings.dat and movies.dat (1M, 10M), u.data and u.item (100K), or "
        "ratings.csv and movies.csv (20M, 25M, 32M, latest)",
        {
            ".dat": Rows(
                {name: name for name in _MOVIELENS_RATINGS}, Layout("::", _MOVIELENS_RATINGS)
            ),
            ".data": Rows(
                {name: name for name in _MOVIELENS_RATINGS}, Layout("\t", _MOVIELENS_RATINGS)
            ),
            ".csv": Rows(_MOVIELENS_HEADER),
        },
        {
            ".dat": Rows({name: name for name in _MOVIES}, Layout("::", _MOVIES), latin=True),
            ".item": Rows(
                {"item_id": "item_id", "title": "title"},
                Layout("|", ("item_id", "title", "released", "video", "url", *_GENRES), False),
                latin=True,
                flags=_GENRES,
            ),
            ".csv": Rows({"item_id": "movieId", "title": "title", "genres": "genres"}),
        },
    ),
    "steam": Published(
        "Steam: steam_reviews.json.gz, steam_games.json.gz",
        {
            "": Records(
                {
                    "user_id": ("username",),
                    "item_id": ("product_id",),
                    "timestamp": ("date",),
                }
            )
        },
        {
            "": Records(
                {
                    "item_id": ("id",),
                    "title": ("app_name", "title"),
                    "genres": ("genres",),
                    "categories": ("tags", "specs"),
                    "brand": ("developer", "publisher"),
                }
            )
        },
    ),
    "yelp": Published(
        "Yelp: yelp_academic_dataset_review.json, yelp_academic_dataset_business.json",
        {
            "": Records(
                {
                    "user_id": ("user_id",),
                    "item_id": ("business_id",),
                    "rating": ("stars",),
                    "timestamp": ("date",),
                }
            )
        },
        {
            "": Records(
                {
                    "item_id": ("business_id",),
                    "title": ("name",),
                    "categories": ("categories",),
                    "city": ("city",),
                    "state": ("state",),
                }
            )
        },
    ),
}
"""By the name that `alphafuse prepare` takes."""

_LISTED = ("categories", "genres")  # of short names, where other lists are of sentences
_TAG = re.compile(r"<[^<>]*>")
_SPACE = re.compile(r"\s+")


def read_ratings(dataset: str, path: Path) -> pd.DataFrame:
    """The interactions of a published data set, in the order of its file.

    Args:
        dataset: of `PUBLISHED`.
        path: the file of its reviews or ratings.

    Returns:
        `user_id`, `item_id`, `rating` where the data set has ratings, and `timestamp`; null where
        a line lacks one of them.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: an unreadable file.
    """
    layout = _layout("interactions", dataset, PUBLISHED[dataset].interactions, path)
    if isinstance(layout, Rows):
        return _read_rows("interactions", path, layout)
    codes: dict[str, dict[Any, int]] = {"user_id": {}, "item_id": {}}
    columns: dict[str, list[Any]] = {name: [] for name in layout.fields}
    for record in read_records("interactions", path):
        for name, fields in layout.fields.items():
            value = _first(record, fields)
            if name in codes and value is not None:  # one string for each user, not for each line
                value = codes[name].setdefault(value, len(codes[name]))
            columns[name].append(value)
    frame = pd.DataFrame(columns)
    if frame.drop(columns="timestamp").isna().all(axis=None) or frame.empty:
        wanted = ", ".join("/".join(fields) for fields in layout.fields.values())
        found = f"{path}, none of whose {len(frame)} lines has these fields"
        raise invalid("interactions", found, f"{wanted}, as {PUBLISHED[dataset].about}")
    for name, known in codes.items():
        tokens = np.array([str(value) for value in known], dtype=object)
        given = frame[name].notna()
        column = np.full(len(frame), None, dtype=object)
        column[given] = tokens[frame.loc[given, name].to_numpy(np.int64)]
        frame[name] = column
    return frame


def read_texts(dataset: str, path: Path, wanted: pd.Index) -> tuple[pd.DataFrame, int]:
    """The texts of some items of a published data set, in columns for `read_items`.

    Args:
        dataset: of `PUBLISHED`.
        path: the file of its items.
        wanted: item ids, distinct strings.

    Returns:
        A column of strings for each text, indexed by item id, without items that the file lacks;
        and how many items of the file come up again, which are left out.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: an unreadable file.
    """
    layout = _layout("items", dataset, PUBLISHED[dataset].items, path)
    repeated = 0
    found: dict[str, dict[str, str]] = {}
    known = set(wanted)
    for token, texts in _item_texts(path, layout):
        if token in found:
            repeated += 1
        elif token in known:
            found[token] = texts
    frame = pd.DataFrame.from_dict(found, orient="index")
    frame.index.name = "item_id"
    return frame, repeated


def _item_texts(path: Path, layout: Records | Rows) -> Iterator[tuple[str, dict[str, str]]]:
    if isinstance(layout, Records):
        fields = dict(layout.fields)
        ids_from = fields.pop("item_id")
        for record in read_records("items", path):
            token = _first(record, ids_from)
            if token is not None:
                texts = {name: clean(_first(record, it), name) for name, it in fields.items()}
                yield str(token), texts
        return
    frame = _read_rows("items", path, layout)
    if layout.flags:
        marked = frame[list(layout.flags)].to_numpy(float) > 0
        names = np.array(layout.flags)
        frame["genres"] = [", ".join(names[row]) for row in marked]
    for row in frame.itertuples(index=False):
        texts = {
            name: clean(getattr(row, name), name)
            for name in ("title", "genres")
            if hasattr(row, name)
        }
        yield str(row.item_id), texts


def clean(value: Any, column: str) -> str:
    """A text without markup: a string, or a list of these, of which some are lists themselves.

    Args:
        value: what the file holds.
        column: names in a list of `categories` or `genres` are set apart by commas, and each
            stands once.
    """
    if isinstance(value, (list, tuple)):
        parts = [clean(part, column) for part in value]
        if column in _LISTED:
            names = [name for part in parts for name in part.split(", ")]
            return ", ".join(dict.fromkeys(filter(None, names)))
        return " ".join(filter(None, parts))
    if value is None or value != value:
        return ""
    text = str(value).replace("|", ", ") if column == "genres" else str(value)
    return _SPACE.sub(" ", _TAG.sub(" ", html.unescape(text))).strip()


def _first(record: Mapping[str, Any], fields: Fields) -> Any:
    return next((record[name] for name in fields if record.get(name) not in (None, "", [])), None)


def _layout(
    argument: str, dataset: str, layouts: Mapping[str, Records | Rows], path: Path
) -> Records | Rows:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in COMPRESSIONS:
        suffixes.pop()
    suffix = suffixes[-1] if suffixes else ""
    layout = layouts.get(suffix, layouts.get(""))
    if layout is None:
        raise invalid(argument, path, f"a file {', '.join(layouts)}, as {PUBLISHED[dataset].about}")
    return layout


def _read_rows(argument: str, path: Path, rows: Rows) -> pd.DataFrame:
    layout = rows.layout
    if rows.latin and path.is_file() and path.suffix.lower() not in COMPRESSIONS:
        try:
            path.read_bytes().decode()
        except UnicodeDecodeError:
            layout = Layout(layout.delimiter, layout.header, layout.quotes, "latin-1")
    table = open_table(argument, path, None if layout == Layout() else layout)
    missing = [name for name in rows.columns.values() if name not in table.columns]
    if missing:
        found = f"{path} with columns {', '.join(table.columns)}"
        raise invalid(argument, found, f"columns {', '.join(rows.columns.values())}")
    ids = [rows.columns[name] for name in ("user_id", "item_id") if name in rows.columns]
    texts = [rows.columns[name] for name in ("title", "genres") if name in rows.columns]
    others = [rows.columns[name] for name in ("rating", "timestamp") if name in rows.columns]
    frame = table.load(ids, texts, [*others, *rows.flags])
    return frame.rename(columns={theirs: ours for ours, theirs in rows.columns.items()})
