"""Columns of lists: a history in each row is used or refused, never passed over in silence."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from alphafuse_ext.data import read_interactions, read_items


def histories(read):
    return {
        user: read.items[sequence].tolist()
        for user, sequence in zip(read.users, read.sequences, strict=True)
    }


def write(path, header, *rows):
    lines = ["\t".join(str(value) for value in row) for row in rows]
    path.write_text("\n".join(["\t".join(header), *lines]) + "\n")
    return path


USER, LIST, ITEM = "user_id:token", "item_id_list:token_seq", "item_id:token"


def test_history_and_target(tmp_path):
    path = write(
        tmp_path / "data.inter", (USER, LIST, ITEM), ("b", "3 1 2", 4), ("a", "2", 1), ("c", "", 3)
    )
    said = []
    read = read_interactions(path, log=said.append)
    assert histories(read) == {"b": [3, 1, 2, 4], "a": [2, 1], "c": [3]}
    assert read.items.tolist() == [3, 1, 2, 4]
    assert read.timestamps is None
    assert "item column 'item_id' (guessed), histories, oldest item first, in column" in said[-1]


def test_history_alone(tmp_path):
    path = write(tmp_path / "data.inter", (USER, LIST), ("b", "x y"), ("a", "y"), ("c", ""))
    assert histories(read_interactions(path)) == {"b": ["x", "y"], "a": ["y"], "c": []}
    other = write(tmp_path / "other.inter", (USER, "things:token_seq"), ("b", "x y"), ("a", "y"))
    read = read_interactions(other, item_column="things")
    assert histories(read) == {"b": ["x", "y"], "a": ["y"]}


def test_rows_of_growing_histories(tmp_path):
    rows = [("a", "1", 2), ("b", "5", 6), ("a", "1 2 3", 1), ("a", "1 2", 3), ("b", "5", 6)]
    path = write(tmp_path / "data.inter", (USER, LIST, ITEM), *rows)
    assert histories(read_interactions(path)) == {"a": [1, 2, 3, 1], "b": [5, 6]}


def test_rows_that_do_not_go_on(tmp_path):
    rows = [("a", "1 2", 3), ("b", "5", 6), ("b", "6", 7)]
    path = write(tmp_path / "data.inter", (USER, LIST, ITEM), *rows)
    with pytest.raises(ValueError, match=r"interactions: got rows of the user b .*: row [23]; exp"):
        read_interactions(path)


def test_random_histories_are_those_of_rows(tmp_path):
    generator = np.random.default_rng(8)
    clicks = pd.DataFrame(
        {"user_id": generator.integers(0, 25, 400), "item_id": generator.integers(0, 50, 400)}
    )
    rows = []
    for user, own in clicks.groupby("user_id"):
        items = own["item_id"].tolist()
        rows += [(user, " ".join(map(str, items[:k])), items[k]) for k in range(1, len(items))]
    rows = [rows[k] for k in generator.permutation(len(rows))]
    path = write(tmp_path / "data.inter", (USER, LIST, ITEM), *rows)
    assert histories(read_interactions(path)) == histories(read_interactions(clicks))


@pytest.mark.parametrize("source", ["frame", "tuples", ".parquet", ".jsonl", "arrow"])
def test_lists_of_sources_with_types(tmp_path, source):
    lists = [["p", "q"], ["q"], [], None]
    if source == "tuples":
        lists = [None if one is None else tuple(one) for one in lists]
    frame = pd.DataFrame({"user": [1, 2, 3, 4], "item_ids": lists, "item": ["r", "p", "q", "p"]})
    path = tmp_path / f"data{source}"
    if source == ".parquet":
        frame.to_parquet(path)
    elif source == ".jsonl":
        frame.to_json(path, orient="records", lines=True)
    given = {"frame": frame, "tuples": frame, "arrow": pa.Table.from_pandas(frame)}
    read = read_interactions(given.get(source, path))
    assert histories(read) == {1: ["p", "q", "r"], 2: ["q", "p"], 3: ["q"], 4: ["p"]}


def test_lists_of_numbers_and_a_catalog(tmp_path):
    frame = pd.DataFrame({"user": ["a", "b"], "item_history": [[3, 1], [2]], "item": [2, 3]})
    catalog = read_items(pd.DataFrame({"item": ["1", "2", "3"]}))
    assert histories(read_interactions(frame)) == {"a": [3, 1, 2], "b": [2, 3]}
    assert histories(read_interactions(frame, catalog)) == {"a": ["3", "1", "2"], "b": ["2", "3"]}
    frame.loc[1, "item"] = 7
    with pytest.raises(ValueError, match="1 interactions with items that the catalog lacks: '7'"):
        read_interactions(frame, catalog)


def test_ignored_lists_are_logged(tmp_path):
    header = (USER, ITEM, "genres:token_seq", "timestamp_list:float_seq")
    path = write(tmp_path / "data.inter", header, ("a", 1, "x y", "1 2"), ("a", 2, "z", "3"))
    said = []
    assert histories(read_interactions(path, log=said.append)) == {"a": [1, 2]}
    assert said[0] == "interactions: lists that are left unread: ['genres', 'timestamp_list']"


@pytest.mark.parametrize(
    ("header", "values", "found"),
    [
        ((USER, ITEM, "item_id_list:float_seq"), ("a", 1, "1 2"), "'item_id_list', by its name"),
        ((USER, LIST, "item_seq:token_seq", ITEM), ("a", "1", "2", 3), "'item_id_list', by"),
        (("user_id", "item_id", "item_id_list"), ("a", 1, "1 2"), "'item_id_list', by its name"),
    ],
)
def test_lists_that_could_be_of_items_are_refused(tmp_path, header, values, found):
    for suffix in (".inter", ".tsv"):
        path = write(tmp_path / f"data{suffix}", header, values)
        with pytest.raises(ValueError, match=f"interactions: got .*the column {found}"):
            read_interactions(path)


def test_lists_where_there_has_to_be_one_value(tmp_path):
    for types, argument in (
        (("user_id:token_seq", ITEM, "time:float"), "user_column"),
        ((USER, "item_id:token_seq", "time:float"), "item_column"),
        ((USER, ITEM, "time:float_seq"), "time_column"),
    ):
        path = write(tmp_path / "data.inter", types, ("a", 1, 2))
        with pytest.raises(TypeError, match=f"{argument}: got .*, which holds lists"):
            read_interactions(path)
    path = write(tmp_path / "data.item", ("item_id:token_seq", "title:token_seq"), ("a b", "c"))
    with pytest.raises(TypeError, match="item_column: got 'item_id', which holds lists"):
        read_items(path)


def test_times_beside_histories(tmp_path):
    path = write(tmp_path / "data.inter", (USER, LIST, ITEM, "time:float"), ("a", "1", 2, 5))
    assert histories(read_interactions(path)) == {"a": [1, 2]}
    with pytest.raises(
        ValueError, match="time_column: got 'time' beside the histories of 'item_id"
    ):
        read_interactions(path, time_column="time")


def test_missing_items_of_histories():
    frame = pd.DataFrame({"user": [1, 2], "item_ids": [["p", None], ["q"]], "item": ["r", "p"]})
    with pytest.raises(ValueError, match="item_column: got no value in row 2 of 5"):
        read_interactions(frame)
