"""Reading interactions: the same rows in every format, and each kind of bad input."""

import numpy as np
import pandas as pd
import pytest

from alphafuse_ext.data import read_interactions, read_items


@pytest.fixture
def frame():
    """Random interactions with many ties in time; tokens are numbers with gaps."""
    generator = np.random.default_rng(29)
    return pd.DataFrame(
        {
            "user_id": generator.integers(0, 30, 500) * 7,
            "item_id": generator.integers(0, 80, 500) + 1000,
            "timestamp": generator.integers(0, 40, 500),
        }
    )


def histories(interactions):
    """{user: items in order}, in tokens."""
    return {
        user: interactions.items[sequence].tolist()
        for user, sequence in zip(interactions.users, interactions.sequences, strict=True)
    }


def expected_histories(frame):
    """The same by plain Python; `sorted` is stable."""
    result = {}
    rows = list(zip(frame.user_id, frame.item_id, frame.timestamp, strict=True))
    for user, _, _ in rows:
        result.setdefault(user, None)
    for user in result:
        own = [row for row in rows if row[0] == user]
        result[user] = [item for _, item, _ in sorted(own, key=lambda row: row[2])]
    return result


def write(frame, path):
    if path.suffix == ".parquet":
        frame.to_parquet(path)
    elif path.suffix == ".inter":
        header = "user_id:token\titem_id:token\ttimestamp:float\n"
        path.write_text(header + frame.to_csv(sep="\t", header=False, index=False))
    else:
        frame.to_csv(path, sep="," if path.suffix == ".csv" else "\t", index=False)
    return path


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".inter", ".parquet", "frame"])
def test_every_format_gives_the_same(frame, tmp_path, suffix):
    source = frame if suffix == "frame" else write(frame, tmp_path / f"data{suffix}")
    interactions = read_interactions(source)
    assert histories(interactions) == expected_histories(frame)
    assert interactions.users.tolist() == frame.user_id.unique().tolist()
    assert interactions.items.tolist() == frame.item_id.unique().tolist()
    assert len(interactions) == 500
    assert (interactions.num_users, interactions.num_items) == (
        frame.user_id.nunique(),
        frame.item_id.nunique(),
    )
    counts = frame.item_id.value_counts()
    assert interactions.item_counts().tolist() == counts[interactions.items].tolist()
    offsets = interactions.sequences.offsets
    falls = np.flatnonzero(np.diff(interactions.timestamps) < 0) + 1
    assert set(falls) <= set(offsets)


def test_path_as_string_and_frame_left_alone(frame, tmp_path):
    before = frame.copy()
    read_interactions(frame)
    pd.testing.assert_frame_equal(frame, before)
    path = write(frame, tmp_path / "data.csv")
    assert histories(read_interactions(str(path))) == expected_histories(frame)


@pytest.mark.parametrize("kind", ["float", "iso", "iso-zone", "datetime", "date", "digits"])
def test_kinds_of_time(frame, tmp_path, kind):
    days = pd.to_datetime("2024-02-27") + pd.to_timedelta(frame.timestamp, unit="D")
    times = {
        "float": frame.timestamp + 0.5,
        "iso": days.dt.strftime("%Y-%m-%d"),
        "iso-zone": days.dt.strftime("%Y-%m-%dT%H:%M:%S+01:00"),
        "datetime": days,
        "date": days.dt.date,
        "digits": frame.timestamp.astype(str),
    }[kind]
    timed = frame.assign(timestamp=times)
    for source in (
        timed,
        write(timed, tmp_path / "data.csv"),
        write(timed, tmp_path / "t.parquet"),
    ):
        interactions = read_interactions(source)
        assert histories(interactions) == expected_histories(frame)
    if kind in ("iso", "datetime", "date"):
        first = pd.Timestamp(int(interactions.timestamps.min()))
        assert first == days.min()


def test_without_times_the_order_of_rows(frame):
    said = []
    interactions = read_interactions(frame.drop(columns="timestamp"), log=said.append)
    assert interactions.timestamps is None
    assert histories(interactions) == expected_histories(frame.assign(timestamp=0))
    assert "no time column: the order of the rows" in said[0]


def test_columns_guessed_and_reported(frame):
    said = []
    odd = frame.rename(columns={"user_id": "reviewerID", "item_id": "asin", "timestamp": "Date"})
    interactions = read_interactions(odd.assign(rating=5), log=said.append)
    assert histories(interactions) == expected_histories(frame)
    for word in ("'reviewerID' (guessed)", "'asin' (guessed)", "'Date' (guessed)"):
        assert word in said[0]


def test_columns_given(frame):
    said = []
    odd = frame.assign(user=1, item=2)
    interactions = read_interactions(
        odd, None, "user_id", "item_id", time_column="timestamp", log=said.append
    )
    assert histories(interactions) == expected_histories(frame)
    assert "guessed" not in said[0]


def test_catalog_gives_the_ids(frame):
    catalog = pd.DataFrame({"item_id": np.random.default_rng(2).permutation(np.arange(990, 1090))})
    interactions = read_interactions(frame, read_items(catalog))
    assert interactions.items.tolist() == catalog.item_id.tolist()
    assert histories(interactions) == expected_histories(frame)
    assert (interactions.item_counts() == 0).sum() == 100 - frame.item_id.nunique()


def test_ids_of_tokens(frame):
    interactions = read_interactions(frame)
    some = np.random.default_rng(4).permutation(interactions.num_items)[:9]
    assert interactions.item_index(interactions.items[some]).tolist() == some.tolist()
    assert interactions.item_index([str(token) for token in interactions.items[some]]).tolist() == (
        some.tolist()
    )
    assert interactions.user_index(interactions.users[[3, 0, 3]]).tolist() == [3, 0, 3]
    assert interactions.user_index([]).tolist() == []
    with pytest.raises(ValueError, match=r"users: got unknown 'x0', .*\(8 in all\)"):
        interactions.user_index([f"x{i}" for i in range(8)])
    with pytest.raises(ValueError, match="items: got unknown '5'"):
        interactions.item_index([interactions.items[0], 5])
    with pytest.raises(TypeError, match="users: got 'abc'"):
        interactions.user_index("abc")


# Bad input ------------------------------------------------------------------------------------


def test_bad_sources(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"interactions: got .*none\.csv, which does not exist"
    ):
        read_interactions(tmp_path / "none.csv")
    for name in ("data.txt", "folder.csv"):
        (tmp_path / "data.txt").write_text("user_id,item_id\na,p\n")
        (tmp_path / "folder.csv").mkdir(exist_ok=True)
        with pytest.raises(ValueError, match=r"interactions: got .* expected a data frame, a file"):
            read_interactions(tmp_path / name)
    with pytest.raises(TypeError, match="interactions: got a list"):
        read_interactions([("a", "p")])


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".inter", ".parquet"])
def test_empty_files(tmp_path, frame, suffix):
    path = tmp_path / f"data{suffix}"
    path.touch()
    with pytest.raises(ValueError, match="which is empty"):
        read_interactions(path)
    write(frame.iloc[:0], path)
    with pytest.raises(ValueError, match="which has no rows; expected at least one interaction"):
        read_interactions(path)


@pytest.mark.parametrize("kept", [0.3, 0.98])
def test_truncated_parquet(tmp_path, frame, kept):
    path = write(frame, tmp_path / "data.parquet")
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole))])
    with pytest.raises(ValueError, match=r"interactions: got .*which is unreadable"):
        read_interactions(path)


def test_damaged_parquet_pages(tmp_path, frame):
    path = write(frame, tmp_path / "data.parquet")
    damaged = bytearray(path.read_bytes())
    damaged[4:400] = bytes(396)
    path.write_bytes(bytes(damaged))
    with pytest.raises(ValueError, match=r"interactions: got .*which is unreadable"):
        read_interactions(path)


def test_last_line_cut_short(tmp_path, frame):
    path = write(frame, tmp_path / "data.csv")
    path.write_text(path.read_text().rstrip().rpartition(",")[0])
    with pytest.raises(ValueError, match="line 501 splits into 2; expected 3 values"):
        read_interactions(path)


def test_missing_and_ambiguous_columns(frame):
    listed = r"\['user_id', 'item_id', 'timestamp'\]"
    for argument in ("user_column", "item_column", "time_column"):
        with pytest.raises(ValueError, match=f"{argument}: got 'age'; expected one of .*{listed}"):
            read_interactions(frame, **{argument: "age"})
    for column, argument in (("user_id", "user_column"), ("item_id", "item_column")):
        with pytest.raises(ValueError, match=f"{argument}: got None, and no column .*'timestamp'"):
            read_interactions(frame.drop(columns=column))
    for column, twin in (("user_id", "userId"), ("item_id", "asin"), ("timestamp", "date")):
        both = frame.assign(**{twin: frame[column]})
        with pytest.raises(ValueError, match=f"while each of .*{column}.*{twin}.* could be meant"):
            read_interactions(both)
    with pytest.raises(ValueError, match="different columns"):
        read_interactions(frame, user_column="item_id")
    with pytest.raises(ValueError, match=r"columns named twice: \['item_id'\]"):
        read_interactions(pd.concat([frame, frame[["item_id"]]], axis=1))


def test_column_named_twice_in_a_file(tmp_path):
    path = tmp_path / "data.csv"
    path.write_text("user_id,item_id,item_id\na,p,q\n")
    with pytest.raises(ValueError, match=r"columns named twice: \['item_id'\]"):
        read_interactions(path)


@pytest.mark.parametrize("column", ["user_id", "item_id", "timestamp"])
@pytest.mark.parametrize("suffix", [".csv", ".inter", ".parquet", "frame"])
def test_missing_values_name_their_row(tmp_path, frame, column, suffix):
    broken = frame.astype({column: "Int64"})
    broken.loc[[41, 300], column] = pd.NA
    source = broken if suffix == "frame" else write(broken, tmp_path / f"data{suffix}")
    with pytest.raises(ValueError, match=r"_column: got .* in row 42 of 500"):
        read_interactions(source)


@pytest.mark.parametrize("token", ["NaN", "NULL", "None", "NA"])
def test_words_for_missing(tmp_path, token):
    path = tmp_path / "data.csv"
    path.write_text(f"user_id,item_id\na,p\n{token},q\n")
    with pytest.raises(ValueError, match="user_column: got no value in row 2 of 2"):
        read_interactions(path)


@pytest.mark.parametrize("tokens", [[0.5, 1.0], [True, False], [b"a", b"b"], [("a",), "b"]])
def test_tokens_of_the_wrong_type(tokens):
    with pytest.raises(TypeError, match=r"user_column: got .* expected"):
        read_interactions(pd.DataFrame({"user_id": tokens, "item_id": ["p", "q"]}))


@pytest.mark.parametrize("times", [["2024-01-01", "soon"], ["5", "2024-01-01"], [1.0, np.inf]])
def test_times_that_are_none(times):
    rows = pd.DataFrame({"user_id": ["a", "b"], "item_id": ["p", "q"], "time": times})
    with pytest.raises(ValueError, match=r"time_column: got .* in row 2 of 2"):
        read_interactions(rows)


def test_booleans_are_no_times():
    rows = pd.DataFrame({"user_id": ["a", "b"], "item_id": ["p", "q"], "time": [True, False]})
    with pytest.raises(TypeError, match="time_column: got booleans"):
        read_interactions(rows)


def test_unknown_items(frame):
    catalog = read_items(pd.DataFrame({"item_id": np.arange(1000, 1070)}))
    count = int((frame.item_id >= 1070).sum())
    first = frame.item_id[frame.item_id >= 1070].iloc[0]
    with pytest.raises(ValueError, match=f"got {count} interactions with items .*lacks: '{first}'"):
        read_interactions(frame, catalog)
