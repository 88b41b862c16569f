"""examples/published.py: the files of published data sets, written as they are distributed."""

import gzip
import json
import runpy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from alphafuse_ext.data import read_interactions, read_items
from alphafuse_ext.data.summary import summarize

EXAMPLE = Path(__file__).resolve().parent.parent / "examples" / "published.py"
published = SimpleNamespace(**runpy.run_path(str(EXAMPLE)))

USERS, ITEMS = ("ua", "ub", "uc"), ("i1", "i2", "i3", "i4")
DAY = 86_400
START = 1_400_000_000


def clicks(repeats=2):
    """Every user with every item, `repeats` times: user, item, rating, seconds."""
    rows = []
    for number in range(repeats):
        for u, user in enumerate(USERS):
            for i, item in enumerate(ITEMS):
                rows.append((user, item, 1 + (u + i) % 5, START + DAY * (10 * number + i + u)))
    return rows


def json_lines(path, records, opener=gzip.open, printed=json.dumps):
    with opener(path, "wt", encoding="utf-8") as file:
        file.writelines(printed(record) + "\n" for record in records)
    return path


AMAZON = [
    {"reviewerID": user, "asin": item, "overall": float(rating), "unixReviewTime": time}
    for user, item, rating, time in clicks()
]


def files(dataset, folder):
    """The two files of a data set, as its site has them."""
    if dataset == "amazon-2014":
        meta = [
            {
                "asin": item,
                "title": f"Soap &amp; {item}",
                "categories": [["Beauty", "Bath"], ["Beauty", "Skin"]],
                "description": "It's <b>soap</b>",
            }
            for item in ITEMS
        ]
        return (
            json_lines(folder / "reviews_Beauty_5.json.gz", AMAZON),
            json_lines(folder / "meta_Beauty.json.gz", meta, printed=repr),
        )
    if dataset == "amazon-2018":
        meta = [
            {
                "asin": item,
                "title": f"Soap & {item}",
                "category": ["Beauty", "Bath"],
                "feature": ["Small", "White"],
                "description": ["It is soap.", "Of a kind."],
            }
            for item in (*ITEMS, ITEMS[0])
        ]
        return (
            json_lines(folder / "Beauty_5.json", AMAZON, open),
            json_lines(folder / "meta_Beauty.json.gz", meta),
        )
    if dataset == "amazon-2023":
        reviews = [
            {
                "user_id": user,
                "asin": f"{item}-blue",
                "parent_asin": item,
                "rating": rating,
                "timestamp": time * 1000,
            }
            for user, item, rating, time in clicks()
        ]
        meta = [
            {
                "parent_asin": item,
                "title": f"Soap & {item}",
                "store": "Sud",
                "categories": [],
                "main_category": "Beauty",
                "features": [],
                "description": [],
            }
            for item in ITEMS
        ]
        return (
            json_lines(folder / "All_Beauty.jsonl", reviews, open),
            json_lines(folder / "meta_All_Beauty.jsonl.gz", meta),
        )
    if dataset == "movielens":
        ratings = "".join(
            f"{USERS.index(user) + 1}::{ITEMS.index(item) + 1}::{rating}::{time}\n"
            for user, item, rating, time in clicks()
        )
        movies = "".join(f"{i + 1}::Soap & i{i + 1} né (1995)::Comedy|Drama\n" for i in range(4))
        (folder / "ratings.dat").write_text(ratings)
        (folder / "movies.dat").write_bytes(movies.encode("latin-1"))
        return folder / "ratings.dat", folder / "movies.dat"
    if dataset == "steam":
        reviews = [
            {
                "username": user,
                "product_id": item,
                "date": str(np.datetime64(time, "s").astype("datetime64[D]")),
                "text": "it's good",
            }
            for user, item, _, time in clicks()
        ]
        games = [
            {"id": item, "app_name": f"Soap & {item}", "genres": ["Indie"], "tags": ["Fun"]}
            for item in ITEMS
        ]
        older = lambda record: repr(record).replace("'username'", "u'username'")  # noqa: E731
        return (
            json_lines(folder / "steam_reviews.json.gz", reviews, printed=older),
            json_lines(folder / "steam_games.json.gz", games, printed=repr),
        )
    reviews = [
        {
            "user_id": user,
            "business_id": item,
            "stars": rating,
            "date": str(np.datetime64(time, "s")).replace("T", " "),
        }
        for user, item, rating, time in clicks()
    ]
    places = [
        {"business_id": item, "name": f"Soap & {item}", "categories": "Bars, Food", "city": "Graz"}
        for item in ITEMS
    ]
    return (
        json_lines(folder / "review.json", reviews, open),
        json_lines(folder / "business.json", places, open),
    )


DATASETS = ("amazon-2014", "amazon-2018", "amazon-2023", "movielens", "steam", "yelp")


@pytest.mark.parametrize("dataset", DATASETS)
def test_every_data_set_becomes_the_same_interactions(dataset, tmp_path, capsys):
    """Two files to train on, and a text for every item."""
    interactions, items = files(dataset, tmp_path)
    published.main([dataset, str(interactions), str(items), str(tmp_path / "out")])
    catalog = read_items(tmp_path / "out" / "items.parquet")
    read = read_interactions(tmp_path / "out" / "interactions.parquet", catalog)

    assert len(read) == len(clicks())
    for user in range(3):
        found = [str(token).removeprefix("i") for token in read.items[read.sequences[user]]]
        assert found == [*"12341234"]
    assert summarize(read)["first_time"].startswith("2014-05-13")
    assert all(title.startswith("Soap & i") for title in catalog.titles)
    assert all("<" not in text and "&amp;" not in text for text in catalog.texts)
    said = capsys.readouterr().out
    assert "24 lines, 0 without user, item or time" in said
    again = int(dataset == "amazon-2018")
    assert f"{4 + again} lines, {again} without an item, or of one again" in said


def test_texts_are_assembled(tmp_path):
    """Lists, nested lists and markup become what an encoder reads, each name once."""
    _, items = files("amazon-2014", tmp_path)
    catalog = read_items(published.items_of("amazon-2014", items))
    assert catalog.texts[0] == "Soap & i1. Beauty, Bath, Skin. It's soap"


def test_ratings_alone(tmp_path):
    """Amazon's files of ratings name no columns, and order them by release."""
    for dataset, order in (("amazon-2014", (0, 1, 2, 3)), ("amazon-2018", (1, 0, 2, 3))):
        path = tmp_path / f"{dataset}.csv"
        lines = (",".join(str(row[place]) for place in order) for row in clicks())
        path.write_text("\n".join(lines) + "\n")
        read = read_interactions(published.clicks_of(dataset, path))
        assert read.users.tolist() == list(USERS)
        assert sorted(read.items) == list(ITEMS)


def test_movielens_100k_flags_are_genres(tmp_path):
    """u.item has a column of 0 and 1 for each genre, in Latin-1."""
    flags = {1: {3, 5}, 2: {18}}
    rows = []
    for item, ones in flags.items():
        marks = "|".join("1" if place in ones else "0" for place in range(19))
        rows.append(f"{item}|Café {item} (1995)|01-Jan-1995||http://x|{marks}")
    (tmp_path / "u.item").write_bytes("\n".join(rows).encode("latin-1"))
    catalog = read_items(published.items_of("movielens", tmp_path / "u.item"))
    assert catalog.texts == ["Café 1 (1995). Animation, Comedy", "Café 2 (1995). Western"]
    (tmp_path / "u.data").write_text(f"1\t2\t3\t{START}\n")
    assert len(published.clicks_of("movielens", tmp_path / "u.data")) == 1


def test_lines_that_are_no_interactions_are_counted_or_named(tmp_path, capsys):
    lacking = {"reviewerID": "ua", "asin": None, "overall": 5.0, "unixReviewTime": START}
    path = json_lines(tmp_path / "a.json.gz", [*AMAZON, lacking])
    assert len(published.clicks_of("amazon-2018", path)) == len(AMAZON)
    assert "25 lines, 1 without user, item or time" in capsys.readouterr().out
    broken = tmp_path / "broken.json"
    broken.write_text(json.dumps(AMAZON[0]) + "\nreviewerID: ua\n")
    with pytest.raises(ValueError, match="line 2"):
        published.clicks_of("amazon-2018", broken)
