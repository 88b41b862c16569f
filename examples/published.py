"""Published data sets as two files that ``alphafuse train`` reads.

    python examples/published.py amazon-2014 reviews_Beauty.json.gz meta_Beauty.json.gz beauty
    python examples/published.py movielens ml-1m/ratings.dat ml-1m/movies.dat movies

``beauty/interactions.parquet`` has users, items, ratings and times, ``beauty/items.parquet`` the
items' texts. ``--k-core 5`` of ``alphafuse train`` drops rare users and items, as the literature
does; other filters are a line of pandas in ``clicks_of``.
"""

from __future__ import annotations

import argparse
import ast
import gzip
import html
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from alphafuse_ext import Dataset

# For each of our columns, the fields that may hold it; of several, the first filled one.
CLICKS = {
    "amazon-2014": "user_id=reviewerID item_id=asin rating=overall timestamp=unixReviewTime",
    "amazon-2018": "user_id=reviewerID item_id=asin rating=overall timestamp=unixReviewTime",
    "amazon-2023": "user_id=user_id item_id=parent_asin rating=rating timestamp=timestamp",
    "steam": "user_id=username item_id=product_id timestamp=date",
    "yelp": "user_id=user_id item_id=business_id rating=stars timestamp=date",
}
ITEMS = {
    "amazon-2014": "item_id=asin title=title brand=brand categories=categories "
    "description=description",
    "amazon-2018": "item_id=asin title=title brand=brand categories=category/main_cat "
    "features=feature description=description",
    "amazon-2023": "item_id=parent_asin title=title brand=store "
    "categories=categories/main_category features=features description=description",
    "steam": "item_id=id title=app_name/title genres=genres categories=tags/specs "
    "brand=developer/publisher",
    "yelp": "item_id=business_id title=name categories=categories city=city state=state",
}
RATINGS = ["user_id", "item_id", "rating", "timestamp"]
# u.item of MovieLens 100K has a column of 0 and 1 for each.
GENRES = (
    *("unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime"),
    *("Documentary", "Drama", "Fantasy", "Film-Noir", "Horror", "Musical", "Mystery", "Romance"),
    *("Sci-Fi", "Thriller", "War", "Western"),
)


def clicks_of(name: str, path: Path) -> pd.DataFrame:
    """A row for each interaction; one without user, item or time is dropped and counted."""
    if name == "movielens":
        frame = _movielens(path, RATINGS, {"userId": "user_id", "movieId": "item_id"})
    elif path.suffix == ".csv":  # Amazon's ratings without reviews
        order = [1, 0, 2, 3] if name == "amazon-2018" else [0, 1, 2, 3]
        names = None if name == "amazon-2023" else [RATINGS[place] for place in order]
        ids = dict.fromkeys(("user_id", "item_id", "parent_asin"), str)
        frame = pd.read_csv(path, names=names, dtype=ids)
        frame = frame.rename(columns={"parent_asin": "item_id"})[RATINGS]
    else:
        frame = pd.DataFrame(_records(path, CLICKS[name]))
    whole = frame.dropna(subset=[column for column in RATINGS if column in frame])
    print(f"{path}: {len(frame):,} lines, {len(frame) - len(whole):,} without user, item or time")
    return whole


def items_of(name: str, path: Path) -> pd.DataFrame:
    """A row for each item, with its texts; an item that comes again is dropped and counted."""
    if name == "movielens":
        columns = ["item_id", "title", "genres"]
        if path.suffix == ".item":
            columns = ["item_id", "title", "released", "video", "url", *GENRES]
        frame = _movielens(path, columns, {"movieId": "item_id"})
        if path.suffix == ".item":
            ones = frame[list(GENRES)].eq(1).to_numpy()
            frame["genres"] = ["|".join(np.array(GENRES)[row]) for row in ones]
        frame = frame[["item_id", "title", "genres"]]
        frame["genres"] = frame["genres"].str.replace("|", ", ")
    else:
        frame = pd.DataFrame(_records(path, ITEMS[name]))
    once = frame.dropna(subset="item_id").drop_duplicates("item_id")
    print(
        f"{path}: {len(frame):,} lines, {len(frame) - len(once):,} without an item, or of one again"
    )
    texts = {column: once[column].map(_clean) for column in once if column != "item_id"}
    return once.assign(**texts)


def _movielens(path: Path, names: list[str], renamed: dict[str, str]) -> pd.DataFrame:
    if path.suffix == ".csv":
        return pd.read_csv(path).rename(columns=renamed)
    delimiter = {".dat": "::", ".data": "\t", ".item": "[|]"}[path.suffix]
    try:
        text = path.read_text("utf-8")
    except UnicodeDecodeError:  # of 100K and 1M
        text = path.read_text("latin-1")
    return pd.read_csv(io.StringIO(text), sep=delimiter, names=names, engine="python", quoting=3)


def _records(path: Path, fields: str) -> Iterator[dict[str, Any]]:
    """Some fields of a file of one object per line: JSON, or a Python dictionary in older files."""
    wanted = [field.split("=") for field in fields.split()]
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            try:
                record = json.loads(line) if line.startswith('{"') else ast.literal_eval(line)
            except (ValueError, SyntaxError) as error:
                raise ValueError(f"{path}, line {number}: {line[:60]!r}") from error
            values = {
                ours: [record.get(key) for key in theirs.split("/")] for ours, theirs in wanted
            }
            yield {ours: next(filter(None, found), None) for ours, found in values.items()}


def _clean(value: Any) -> str:
    """A text without markup; of a list, or of lists in a list, each text once."""
    return ", ".join(dict.fromkeys(filter(None, _texts(value))))


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, list):
        for part in value:
            yield from _texts(part)
    elif value is not None and value == value:
        yield " ".join(re.sub(r"<[^<>]*>", " ", html.unescape(str(value))).split())


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dataset", choices=[*CLICKS, "movielens"])
    parser.add_argument("interactions", type=Path, help="the file of reviews or ratings")
    parser.add_argument("items", type=Path, help="the file of item texts")
    parser.add_argument("output", type=Path, help="a new folder")
    options = parser.parse_args(arguments)

    clicks = clicks_of(options.dataset, options.interactions)
    items = items_of(options.dataset, options.items)
    print(Dataset.read(clicks, items, unknown_items="drop", log=None).describe())
    options.output.mkdir()
    clicks.to_parquet(options.output / "interactions.parquet", index=False)
    items.to_parquet(options.output / "items.parquet", index=False)


if __name__ == "__main__":
    main()
