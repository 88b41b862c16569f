"""prepare: the files of published data sets, written as they are distributed."""

import bz2
import gzip
import json
import lzma

import numpy as np
import pandas as pd
import pytest

from alphafuse_ext.cli import main
from alphafuse_ext.data import read_interactions, read_items
from alphafuse_ext.data.prepare import prepare
from alphafuse_ext.data.published import PUBLISHED, clean

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
            json_lines(folder / "meta_Beauty.json.xz", meta, lzma.open),
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
            json_lines(folder / "All_Beauty.jsonl.bz2", reviews, bz2.open),
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


@pytest.mark.parametrize("dataset", PUBLISHED)
def test_every_data_set_becomes_the_same_interactions(dataset, tmp_path):
    """Two files to train on: rows in the order of time, a text for every item."""
    interactions, items = files(dataset, tmp_path)
    prepared = prepare(dataset, interactions, items, tmp_path / "out", core=2)
    catalog = read_items(tmp_path / "out" / "items.parquet")
    read = read_interactions(tmp_path / "out" / "interactions.parquet", catalog)

    names = {str(i + 1): item for i, item in enumerate(ITEMS)} if dataset == "movielens" else {}
    for user in range(3):
        found = [names.get(token, token) for token in read.items[read.sequences[user]]]
        assert found == [*ITEMS, *ITEMS]
    assert len(read) == len(prepared.interactions) == len(clicks())
    frame = pd.read_parquet(tmp_path / "out" / "interactions.parquet")
    assert frame["timestamp"].is_monotonic_increasing
    assert all(title.startswith("Soap & i") for title in catalog.titles)
    assert all("<" not in text and "&amp;" not in text for text in catalog.texts)
    report = json.loads((tmp_path / "out" / "prepared.json").read_text())
    assert report["steps"][0]["interactions"] == len(clicks())
    assert report["summary"]["first_time"].startswith("2014-05-13")


def test_texts_are_assembled(tmp_path):
    """Lists, nested lists and markup become what an encoder reads, each name once."""
    interactions, items = files("amazon-2014", tmp_path)
    prepared = prepare("amazon-2014", interactions, items, tmp_path / "out")
    assert prepared.items.texts[0] == "Soap & i1. Beauty, Bath, Skin. It's soap"
    assert clean(["a", ["b", "a"]], "categories") == "a, b"
    assert clean("Comedy|Drama", "genres") == "Comedy, Drama"
    assert clean(None, "title") == clean(float("nan"), "title") == ""


def test_ratings_alone(tmp_path):
    """Amazon's files of ratings name no columns, and order them by release."""
    for dataset, order in (("amazon-2014", (0, 1, 2, 3)), ("amazon-2018", (1, 0, 2, 3))):
        path = tmp_path / f"{dataset}.csv"
        lines = (",".join(str(row[place]) for place in order) for row in clicks())
        path.write_text("\n".join(lines) + "\n")
        prepared = prepare(dataset, path, None, tmp_path / dataset)
        assert prepared.interactions.users.tolist() == list(USERS)
        assert sorted(prepared.items.tokens) == list(ITEMS)
        assert prepared.items.texts is None


def test_movielens_100k_flags_are_genres(tmp_path):
    """u.item has a column of 0 and 1 for each genre, in Latin-1."""
    ratings = "".join(f"{u}\t{i}\t3\t{START + u + i}\n" for u in (1, 2) for i in (1, 2))
    (tmp_path / "u.data").write_text(ratings)
    flags = {1: {3, 5}, 2: {18}}
    rows = []
    for item, ones in flags.items():
        marks = "|".join("1" if place in ones else "0" for place in range(19))
        rows.append(f"{item}|Café {item} (1995)|01-Jan-1995||http://x|{marks}")
    (tmp_path / "u.item").write_bytes("\n".join(rows).encode("latin-1"))
    prepared = prepare(
        "movielens", tmp_path / "u.data", tmp_path / "u.item", tmp_path / "out", core=1
    )
    assert prepared.items.texts == [
        "Café 1 (1995). Animation, Comedy",
        "Café 2 (1995). Western",
    ]


def test_what_is_left_out_is_said(tmp_path):
    """Ratings, repeats, lacking fields, lacking texts and rare items, each in its step."""
    rows = [*AMAZON, {"reviewerID": "ua", "asin": None, "overall": 5.0, "unixReviewTime": START}]
    rows += [{"reviewerID": "ud", "asin": "i1", "overall": 5.0, "unixReviewTime": START}]
    meta = [{"asin": item, "title": f"Soap {item}"} for item in ITEMS[:3]]
    said = []
    prepared = prepare(
        "amazon-2018",
        json_lines(tmp_path / "a.json.gz", rows),
        json_lines(tmp_path / "meta.json.gz", meta),
        tmp_path / "out",
        min_rating=2,
        repeats="last",
        core=2,
        require_text=True,
        log=said.append,
    )
    steps = {step["step"]: step["interactions"] for step in prepared.report["steps"]}
    assert list(steps) == [
        "in the file",
        "with user, item and time",
        "rated 2 or more",
        "the last of each user and item",
        "2 or more of each user and item",
        "of items with a text",
    ]
    # ua rated i1 with 1; of the others each pair stays once; i4 has no text.
    assert [*steps.values()] == [26, 25, 21, 11, 10, 8]
    assert len(said) == len(steps)
    assert prepared.interactions.num_users == 3
    assert prepared.interactions.timestamps.min() >= START + 10 * DAY


def bad(tmp_path):
    interactions, items = files("amazon-2018", tmp_path)
    broken = tmp_path / "broken.json"
    broken.write_text(json.dumps(AMAZON[0]) + "\nreviewerID: ua\n")
    other = json_lines(tmp_path / "other.json.gz", [{"user": "a", "item": "b"}])
    cut = tmp_path / "cut.json.gz"
    cut.write_bytes(json_lines(tmp_path / "whole.json.gz", AMAZON).read_bytes()[:-20])
    others = json_lines(tmp_path / "others.json.gz", [{"asin": "x", "title": "y"}])
    return {
        "unknown": (("amazon", interactions, items), "dataset"),
        "no file": (("amazon-2018", tmp_path / "none.json", items), "interactions"),
        "no items": (("amazon-2018", interactions, tmp_path / "none.json"), "items"),
        "broken": (("amazon-2018", broken, items), "line 2"),
        "other": (("amazon-2018", other, items), "reviewerID"),
        "cut": (("amazon-2018", cut, items), "damaged"),
        "others": (("amazon-2018", interactions, others), "none of 4 items"),
        "repeats": (("amazon-2018", interactions, items, "once"), "repeats"),
    }


@pytest.mark.parametrize(
    "case",
    ["unknown", "no file", "no items", "broken", "other", "cut", "others", "repeats"],
)
def test_bad_input_is_named_and_nothing_written(case, tmp_path):
    given, named = bad(tmp_path)[case]
    with pytest.raises((ValueError, OSError), match=named):
        prepare(*given[:3], tmp_path / "out", repeats=given[3] if len(given) > 3 else "all")
    assert not (tmp_path / "out").exists()


def test_ratings_where_there_are_none(tmp_path):
    interactions, items = files("steam", tmp_path)
    with pytest.raises(ValueError, match="min_rating"):
        prepare("steam", interactions, items, tmp_path / "out", min_rating=4)
    with pytest.raises(ValueError, match="leaves no interactions"):
        prepare("steam", interactions, items, tmp_path / "out", core=50)
    with pytest.raises(FileExistsError, match="output"):
        prepare("steam", interactions, items, tmp_path)


def test_from_the_shell_to_a_model(tmp_path, capsys):
    """What `prepare` prints as the next command trains."""
    interactions, items = files("yelp", tmp_path)
    arguments = ["--interactions", str(interactions), "--items", str(items)]
    out = str(tmp_path / "out")
    assert main(["prepare", "yelp", *arguments, "--output", out, "--k-core", "2"]) == 0
    printed = capsys.readouterr().out
    assert "density" in printed
    assert (tmp_path / "out" / "report.html").is_file()
    command = printed.split("next: alphafuse ")[1].split()
    small = ["--epochs", "1", "--dim", "4", "--null-dim", "2", "--output", str(tmp_path / "run")]
    assert main([*command, *small]) == 0
    assert (tmp_path / "run" / "report.html").is_file()
    assert main(["prepare", "yelp", *arguments, "--output", out]) == 2
    assert "output" in capsys.readouterr().err


def test_a_folder_that_is_prepared_is_whole(tmp_path, monkeypatch):
    """Interrupted at its very end, on its report, it is none, and the same command makes it."""
    from alphafuse_ext.reports import data

    interactions, items = files("steam", tmp_path)
    command = ["prepare", "steam", "--interactions", str(interactions), "--items", str(items)]
    command += ["--output", str(tmp_path / "out"), "--k-core", "2"]

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(data, "write_data_report", interrupted)
        assert main(command) == 130
    assert not [path for path in tmp_path.iterdir() if "out" in path.name]
    assert main(command) == 0
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"interactions.parquet", "items.parquet", "prepared.json", "report.html"}
