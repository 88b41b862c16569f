"""Ids: what goes in comes back, in type and value, and is found by what it says."""

import time
import uuid

import numpy as np
import pandas as pd
import pytest

import alphafuse_ext as af
from alphafuse_ext.data import read_embeddings, read_interactions, read_items, synthetic_catalog
from alphafuse_ext.data.ids import IdIndex, encode_ids

NUMBERS = [30, 10, 20, 10]
UUIDS = [uuid.UUID(int=number) for number in NUMBERS]
LARGE = 2**63 + 5


def encode(values, **options):
    codes, ids = encode_ids("column", pd.Series(values), **options)
    assert len(codes) == len(values)
    return codes, ids


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        (NUMBERS, np.int64),
        (np.array(NUMBERS, dtype=np.int32), np.int64),
        (np.array(NUMBERS, dtype=np.uint8), np.int64),
        (np.array([LARGE, 1, 2, 1], dtype=np.uint64), np.uint64),
        (pd.array(NUMBERS, dtype="Int64"), np.int64),
        (pd.Categorical(NUMBERS), np.int64),
        (pd.Series(NUMBERS, dtype=object), np.int64),
        (pd.Series([np.int16(number) for number in NUMBERS], dtype=object), np.int64),
        (pd.Series([LARGE, 1, 2, 1], dtype=object), np.uint64),
        (np.array(NUMBERS, dtype=np.float32), np.float64),
        (pd.Series([30, 10.0, 20, 10.0], dtype=object), np.float64),
        ([f"i{number}" for number in NUMBERS], object),
        (pd.Categorical([f"i{number}" for number in NUMBERS]), object),
        (["30", "010", "20", "010"], object),
        ([" a", "b ", "c", "b "], object),
        (UUIDS, object),
    ],
)
def test_typed_ids_stay_as_they_are(values, dtype):
    codes, ids = encode(values)
    assert ids.dtype == dtype
    assert codes.tolist() == [0, 1, 2, 1]
    assert ids[codes].tolist() == list(values)


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        (["3", "1", "-2", "1"], [3, 1, -2, 1]),
        (["3", " 1", "0", "1\u00a0"], [3, 1, 0, 1]),
        (["3.0", "1", "2.0", "1.0"], [3.0, 1.0, 2.0, 1.0]),
        (["3", "01", "2", "01"], ["3", "01", "2", "01"]),
        (["3", "1.5", "2", "1.5"], ["3", "1.5", "2", "1.5"]),
        (["3", "-0", "2", "-0"], ["3", "-0", "2", "-0"]),
        (["3.00", "1", "2", "1"], ["3.00", "1", "2", "1"]),
        (["3", "\u0661", "2", "\u0661"], ["3", "\u0661", "2", "\u0661"]),
        ([str(LARGE), "1", "2", "1"], [str(LARGE), "1", "2", "1"]),
        ([f"{2**53}.0", "1", f"{2**53 + 1}.0", "1"], [f"{2**53}.0", "1", f"{2**53 + 1}.0", "1"]),
        (["a", " b", "c ", "b"], ["a", "b", "c", "b"]),
    ],
)
def test_ids_of_a_text_file(written, meant):
    codes, ids = encode(written, typed=False)
    assert ids[codes].tolist() == meant
    assert {type(value) for value in ids.tolist()} == {type(meant[0])}
    assert codes.tolist() == [0, 1, 2, 1]


def test_converted_ids_are_logged():
    said = []
    encode([" i1", "i1", "i2", " i1"], typed=False, log=said.append)
    assert said == ["column: spaces around the id left out in 2 of 4 rows"]
    said.clear()
    codes, ids = encode([5, "5", "x", 6.0], log=said.append)
    assert (codes.tolist(), ids.tolist()) == ([0, 0, 1, 2], ["5", "x", "6"])
    assert said == ["column: values of types float and int and str are read as strings"]
    encode(["a", "b"], log=said.append)
    encode(["1", "b"], typed=False, log=said.append)
    assert len(said) == 1


@pytest.mark.parametrize("missing", [None, np.nan, pd.NA, pd.NaT])
@pytest.mark.parametrize("others", [["a", "b"], [1, 2], [1.0, 2.0], UUIDS[:2]])
def test_missing_ids(missing, others):
    values = pd.Series([others[0], missing, others[1], missing], dtype=object)
    with pytest.raises(ValueError, match="column: got no value in row 2 of 4 and 1 more"):
        encode(values)


@pytest.mark.parametrize("word", ["", "  ", "NaN", " NULL", "None", "NA"])
def test_missing_ids_of_a_text_file(word):
    with pytest.raises(ValueError, match="column: got no value in row 2 of 3; expected an id"):
        encode(["a", word, "b"], typed=False)


@pytest.mark.parametrize(
    ("values", "found"),
    [
        ([0.5, 1.0], r"0\.5"),
        ([2.0**53 + 2, 1.0], "the float"),
        ([1.0, np.inf], "inf"),
        (pd.Series([1, np.inf], dtype=object), "inf"),
        (pd.Series([2**64, 1], dtype=object), str(2**64)),
        (pd.Series([-1, LARGE], dtype=object), str(LARGE)),
        ([True, False], "booleans"),
        (pd.Series([True, "a"], dtype=object), "True, a bool"),
        ([b"a", b"b"], "b'a', a bytes"),
        ([("a",), "b"], r"\('a',\), a tuple"),
        ([["a"], ["b"]], "cannot be compared"),
        (pd.to_datetime(["2024-01-01", "2024-01-02"]), "dates or times"),
        (pd.to_datetime(["2024-01-01"], utc=True), "dates or times"),
        (pd.to_timedelta([1, 2], unit="D"), "dates or times"),
        (pd.Series([pd.Timestamp("2024-01-01").date()]), "a date"),
        (pd.period_range("2024-01", periods=2, freq="M"), "a Period"),
    ],
)
def test_what_is_no_id(values, found):
    with pytest.raises(TypeError, match=rf"column: got .*{found}.*; expected"):
        encode(values)


@pytest.mark.parametrize(("kind", "bits"), [(np.float16, 11), (np.float32, 24), (np.float64, 53)])
def test_floats_that_may_be_several_ids(kind, bits):
    """`bits` of a whole number is what the type has: beyond, 2^24 + 1 had become 2^24."""
    known = [1, 2**bits - 1]
    codes, ids = encode(np.array(known, dtype=kind))
    assert codes.tolist() == [0, 1]
    assert ids.tolist() == known
    found = rf"got the float {2.0**bits} \(float\d\d\); expected .*below 2\^{bits}"
    shared = np.array([1, 2**bits + 1]).astype(kind)
    for values in (shared, pd.Series(list(shared), dtype=object), [*shared, "a"]):
        with pytest.raises(TypeError, match=f"column: {found}"):
            encode(pd.Series(values))
    if kind is not np.float16:
        with pytest.raises(TypeError, match=f"column: {found}"):
            encode(pd.array(shared, dtype=f"Float{8 * shared.itemsize}"))
    index = IdIndex(np.array([1, 2**bits, 2**bits + 1]))
    for wanted in (shared, pd.Series(shared), list(shared)):
        with pytest.raises(TypeError, match=f"users: {found}"):
            index.find("users", wanted)
    assert index.find("users", np.array([1, 3], dtype=kind)).tolist() == [0, -1]
    assert index.find("users", np.array([], dtype=kind)).tolist() == []


def test_long_ids_that_a_spreadsheet_cut_off():
    with pytest.raises(ValueError, match=r"column: got '1.23457E\+12', by fewer digits"):
        encode(["5", "1.23457E+12"], typed=False)
    # Written in full, in a source with types, of few digits, or beside what is no number.
    for values, typed in (
        (["5", "1.234567890123E+12"], False),
        (["5", "1.23457E+12"], True),
        (["5", "1E5"], False),
        (["B5", "1.23457E+12"], False),
    ):
        assert encode(values, typed=typed)[1].tolist() == values


def test_ids_that_differ_only_in_spaces():
    for values in (["i1", " i1"], ["i1\t", "x", "i1"], pd.Categorical(["i1", "i1 "])):
        with pytest.raises(ValueError, match=r"column: got 'i1.*' beside 'i1'|column: got ' i1'"):
            encode(values)


# Looking up -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "known",
    [
        np.array([7, 1, 3]),
        np.array([7.0, 1.0, 3.0]),
        np.array([7, 1, LARGE], dtype=np.uint64),
        np.array(["7", "1", "3"], dtype=object),
    ],
)
def test_numbers_are_found_in_any_type(known):
    index = IdIndex(known)
    for one in (1, 1.0, "1", np.int8(1), np.float32(1)):
        assert index.find("users", [one]).tolist() == [1]
    assert index.find("users", np.array([1.0, 7.0])).tolist() == [1, 0]
    assert index.find("users", pd.Series(["1", 7, 9], dtype=object)).tolist() == [1, 0, -1]
    assert index.find("users", (number for number in (7, 1))).tolist() == [0, 1]
    assert index.find("users", known).tolist() == [0, 1, 2]
    assert index.find("users", known.tolist()).tolist() == [0, 1, 2]
    for other in (2, 1.5, -1, "01", "", " 1", "i1", 2.0**70, 10**30, UUIDS[0]):
        assert index.find("users", [other]).tolist() == [-1]
    assert index.find("users", []).tolist() == []


def test_written_floats_are_found_among_floats_only():
    assert IdIndex(np.array([7.0, 1.0])).find("users", ["1.0"]).tolist() == [1]
    assert IdIndex(np.array([7, 1])).find("users", ["1.0"]).tolist() == [-1]
    assert IdIndex(np.array(["7", "1"], dtype=object)).find("users", ["1.0"]).tolist() == [-1]


def test_uuids_are_found_by_their_strings():
    index = IdIndex(np.array(UUIDS[:3], dtype=object))
    assert index.find("users", [UUIDS[2], str(UUIDS[0])]).tolist() == [2, 0]


@pytest.mark.parametrize("kind", [np.int64, np.uint64, np.float64, str])
def test_look_ups_cost_what_is_looked_up(kind):
    """Many look-ups take less than the one that has to hash every id."""
    ids = np.random.default_rng(0).permutation(500_000).astype(kind)
    index = IdIndex(ids.astype(object) if kind is str else ids)
    seconds = []
    for count in (1, 10):
        started = time.perf_counter()
        for _ in range(count):
            assert index.find("items", [ids[7], ids[8]]).tolist() == [7, 8]
        seconds.append(time.perf_counter() - started)
    assert seconds[1] < seconds[0]


@pytest.mark.parametrize("wanted", ["12", b"1", [None], [np.nan], [True], [b"1"], [["1"]]])
def test_look_ups_of_what_is_no_id(wanted):
    for known in (np.array([1, 2]), np.array(["1", "2"], dtype=object)):
        with pytest.raises(TypeError, match="users: got"):
            IdIndex(known).find("users", wanted)


def test_unknown_ids():
    index = IdIndex(np.array([1, 2]))
    with pytest.raises(ValueError, match=r"users: got unknown '9', 'x'; expected ids among the 2"):
        index.find("users", [1, 9, "x"], strict=True)
    assert index.find("users", [2, 1], strict=True).tolist() == [1, 0]


# Through the readers and a run ----------------------------------------------------------------


def test_sources_of_different_types_meet(tmp_path):
    """A catalog of strings, interactions of integers, embeddings of floats."""
    catalog = tmp_path / "items.csv"
    catalog.write_text("item_id,title\n10,hat\nA2,pan\n 30,cup\n")
    items = read_items(catalog)
    assert items.tokens.tolist() == ["10", "A2", "30"]
    clicks = pd.DataFrame({"user_id": [1, 1], "item_id": [30, 10]})
    interactions = read_interactions(clicks, items)
    assert interactions.sequences[0].tolist() == [2, 0]
    rows = np.eye(3, dtype=np.float32)
    by_id = {10.0: rows[0], "A2": rows[1], 30: rows[2]}
    assert np.array_equal(read_embeddings(by_id, items).rows, rows)


def test_written_floats_are_the_integers_of_a_frame(tmp_path):
    path = tmp_path / "clicks.csv"
    path.write_text("user_id,item_id\n1.0,5.0\n1.0,6\n")
    interactions = read_interactions(path)
    assert interactions.users.tolist() == [1.0]
    assert interactions.items.tolist() == [5.0, 6.0]
    for user in (1, 1.0, "1", "1.0"):
        assert interactions.user_index([user]).tolist() == [0]
    assert interactions.item_index([6, "5"]).tolist() == [1, 0]


def numbered(names):
    """The integers in names such as `user00012`."""
    return names.str.extract(r"(\d+)")[0].astype(int)


TYPES = {
    "int64": lambda number: number,
    "int32": lambda number: number.astype(np.int32),
    "float": lambda number: number.astype(float),
    "Int64": lambda number: number.astype("Int64"),
    "string": lambda number: "i" + number.astype(str),
    "category": lambda number: ("i" + number.astype(str)).astype("category"),
    "uuid": lambda number: number.map(lambda one: uuid.UUID(int=one)),
    "csv": lambda number: number,
}


@pytest.mark.parametrize("kind", TYPES)
def test_recommendations_merge_with_the_data(tmp_path, kind):
    clicks, items = synthetic_catalog(num_users=60, num_items=48, seed=1)
    clicks["user_id"] = TYPES[kind](numbered(clicks["user_id"]))
    clicks["item_id"] = TYPES[kind](numbered(clicks["item_id"]))
    items["item_id"] = TYPES[kind](numbered(items["item_id"]))
    sources = clicks, items
    if kind == "csv":
        sources = tmp_path / "clicks.csv", tmp_path / "items.csv"
        clicks.to_csv(sources[0], index=False)
        items.to_csv(sources[1], index=False)
    trained = af.fit(
        *sources,
        output=tmp_path / "run",
        encoder="tfidf",
        dim=8,
        epochs=1,
        negatives=4,
        history=4,
        log=lambda _: None,
    )
    loaded = af.Recommender.load(tmp_path / "run")
    for recommender in (trained, loaded):
        some = clicks["user_id"].unique()[:3]
        best = recommender.recommend(users=some, k=2)
        assert best["user"].tolist() == [user for user in some for _ in range(2)]
        merged = best.merge(items, left_on="item", right_on="item_id")
        assert len(merged) == 6
        assert (merged["title_x"] == merged["title_y"]).all()
        seen = best.merge(clicks, left_on="user", right_on="user_id")
        assert len(seen) == 2 * clicks["user_id"].isin(some).sum()
    pd.testing.assert_frame_equal(trained.recommend(k=2), loaded.recommend(k=2))
