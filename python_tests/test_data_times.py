"""Times: units, dates, formats and ranges, and which column they are taken from."""

import datetime
import decimal
import re

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from alphafuse_ext.data import read_interactions
from alphafuse_ext.data._times import parse_times


def nanoseconds(*written):
    return [pd.Timestamp(one).value for one in written]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([3, 1, 2], [3, 1, 2]),
        (np.array([3, 1], dtype=np.uint64), [3, 1]),
        ([1.5, -0.25], [1.5, -0.25]),
        (np.array([1.5, 2.0], dtype=np.float32), [1.5, 2.0]),
        (pd.array([3, 1], dtype="Int64"), [3, 1]),
        (["3", " 1 ", "-2"], [3, 1, -2]),
        (["3.5", "1", "1e3"], [3.5, 1.0, 1000.0]),
        (["1577836800123456789", "1"], [1577836800123456789, 1]),
        (pd.Series([1577836800123456789, "1"], dtype=object), [1577836800123456789, 1]),
        (pd.Series([decimal.Decimal("1.5"), decimal.Decimal(2)]), [1.5, 2.0]),
        (pd.Categorical(["5", "4"]), [5, 4]),
    ],
)
def test_numbers(values, expected):
    times = parse_times(pd.Series(values))
    assert times.tolist() == expected
    assert times.dtype == (np.float64 if isinstance(expected[0], float) else np.int64)


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_datetimes_of_every_unit(unit):
    written = "2024-02-29 12:30:45", "1969-12-31 00:00:00"
    dates = pd.Series(pd.to_datetime(written)).dt.as_unit(unit)
    expected = nanoseconds(*written)
    assert parse_times(dates).tolist() == expected
    abroad = dates.dt.tz_localize("Europe/Vienna")
    assert (np.array(expected) - parse_times(abroad)).tolist() == [3600 * 10**9] * 2


def test_objects():
    days = pd.Series([datetime.date(2024, 2, 29), datetime.date(1969, 12, 31)])
    assert parse_times(days).tolist() == nanoseconds("2024-02-29", "1969-12-31")
    moments = pd.Series([datetime.datetime(2024, 2, 29), pd.Timestamp("2024-03-01")], dtype=object)
    assert parse_times(moments).tolist() == nanoseconds("2024-02-29", "2024-03-01")
    months = pd.Series(pd.period_range("2024-02", periods=2, freq="M"))
    assert parse_times(months).tolist() == nanoseconds("2024-02-01", "2024-03-01")
    mixed = pd.Series([datetime.date(2024, 2, 29), "2024-03-01"], dtype=object)
    assert parse_times(mixed).tolist() == nanoseconds("2024-02-29", "2024-03-01")


@pytest.mark.parametrize(
    "written",
    [
        "%Y-%m-%d",
        " %Y/%m/%d",
        "%Y-%m-%dT%H:%M",
        "%Y-%m-%dT%H:%M:%S.%fZ",
        "%Y%m%d",
    ],
)
def test_dates_in_iso_8601(written):
    days = pd.Series(pd.date_range("2023-01-01", periods=500, freq="D"))[::-1]
    if written == "%Y%m%d":  # a number, as it stands there
        assert parse_times(days.dt.strftime(written))[0] == 20240514
    else:
        assert parse_times(days.dt.strftime(written)).tolist() == [day.value for day in days]


@pytest.mark.parametrize(
    "written",
    [
        *("%Y%m%d", "%d.%m.%Y", "%m/%d/%Y %I:%M:%S %p", "%d/%b/%Y:%H:%M:%S +0000"),
        *(
            "%Y-%m-%d %H:%M:%S UTC",
            "%a, %d %b %Y %H:%M:%S GMT",
            "%m %d, %Y",
            "%a %b %d %H:%M:%S %z %Y",
        ),
    ],
)
def test_dates_in_a_format_that_is_named(written):
    days = pd.Series(pd.date_range("2023-01-01", periods=500, freq="D", tz="UTC"))[::-1]
    strings = days.dt.strftime(written)
    expected = [day.value for day in days]
    assert parse_times(strings, time_format=written).tolist() == expected
    if written == "%Y%m%d":  # as a text file has them, and as a frame
        assert parse_times(strings.astype(int), time_format=written).tolist() == expected
    else:
        with pytest.raises(ValueError, match=r"in row 1 of 500 .*time_format says"):
            parse_times(strings)


@pytest.mark.parametrize(
    ("written", "fitting"),
    [
        (["2/4/2011 6:43", "12/31/2010 8:26"], "time_format='%m/%d/%Y %H:%M'"),
        (["2/4/2011", "1/2/2011"], "time_format='%d/%m/%Y' or time_format='%m/%d/%Y'"),
        (["31.12.2023", "1.1.2024"], "time_format='%d.%m.%Y'"),
        (["31.12.2023", "soon enough"], None),
        (["a long while ago", "31.12.2023"], None),
    ],
)
def test_a_format_that_reads_all_dates_is_named(written, fitting):
    with pytest.raises(ValueError, match=r"^time_column: got") as error:
        parse_times(pd.Series(written))
    said = str(error.value).partition("as time_format says")[2]
    assert said == ("" if fitting is None else f"; all are dates by {fitting}")
    for named in re.findall("'(.*?)'", said):
        assert len(parse_times(pd.Series(written), named)) == len(written)


def test_formats_of_dates_that_do_not_fit(tmp_path):
    with pytest.raises(ValueError, match=r"time_column: got soon in row 2 of 2; .*time_format"):
        parse_times(pd.Series(["27 Feb 2024", "soon"]), time_format="%d %b %Y")
    with pytest.raises(ValueError, match="time_format: got 'd/m'; expected a format such as"):
        parse_times(pd.Series(["27/2"]), time_format="d/m")
    dates = pd.Series(pd.to_datetime(["2024-02-27"]))
    with pytest.raises(ValueError, match="time_format: got '%Y' for a column of dates"):
        parse_times(dates, time_format="%Y")
    rows = pd.DataFrame({"user": [1, 1], "item": [1, 2]})
    with pytest.raises(ValueError, match="time_format: got '%Y'; expected None, or a column of"):
        read_interactions(rows, time_format="%Y")
    rows["when"] = ["02/03/2024", "31/01/2024"]
    rows.to_csv(tmp_path / "clicks.csv", index=False)
    for source in (rows, tmp_path / "clicks.csv"):
        read = read_interactions(source, time_column="when", time_format="%d/%m/%Y")
        assert read.items[read.sequences[0]].tolist() == [2, 1]


@pytest.mark.parametrize(
    "values",
    [
        ["2024-01-01", "9999-12-31"],
        ["2024-01-01", "0001-01-01"],
        ["2024-01-01", "0000-00-00"],
        ["2024-01-01", "1677-01-01"],
        pd.Series([datetime.date(2024, 1, 1), datetime.date(9999, 12, 31)]),
        pd.Series([datetime.datetime(2024, 1, 1), datetime.datetime(2300, 1, 1)]),
        pd.Series(np.array(["2024-01-01", "2262-04-12"], dtype="datetime64[s]")),
        pd.Series(np.array(["2024-01-01", "-9999-04-12"], dtype="datetime64[ms]")),
        pd.Series(np.array(["2024-01-01", "NaT"], dtype="datetime64[ns]")),
        pd.Series([1, 2**63], dtype=np.uint64),
        pd.array([1, None], dtype="Int64"),
        [1.0, np.inf],
        ["1", ""],
        ["1", "NULL"],
        ["1", "nan"],
        ["1", "2024-01-01"],
        ["2024-01-01", "10:30"],
        ["2024-02-27", "soon"],
        [datetime.date(2024, 1, 1), None],
    ],
)
def test_what_is_no_time_is_named_by_its_row(values):
    with pytest.raises(
        ValueError, match=r"time_column: got .* in row 2 of 2; expected a number, a"
    ):
        parse_times(pd.Series(values))


@pytest.mark.parametrize(
    ("values", "found"),
    [
        ([True, False], "booleans"),
        (pd.to_timedelta([1, 2], unit="D"), "durations"),
        ([1j, 2j], "complex numbers"),
    ],
)
def test_types_that_are_no_times(values, found):
    with pytest.raises(TypeError, match=f"time_column: got {found}"):
        parse_times(pd.Series(values))


# Units ----------------------------------------------------------------------------------------

SECONDS = 1_500_000_000


def test_numbers_of_any_size_have_no_unit():
    for values in (np.arange(0, 5 * 10**12, 10**9), np.arange(1000), 10 ** np.arange(18)):
        assert parse_times(pd.Series(values)).tolist() == values.tolist()


# Which column ---------------------------------------------------------------------------------


@pytest.fixture
def newest_first():
    """Each user's items, newest first, with a column of seconds."""
    generator = np.random.default_rng(3)
    frame = pd.DataFrame(
        {
            "user_id": generator.integers(0, 9, 300),
            "item_id": generator.integers(0, 40, 300),
            "moment": SECONDS - 1000 * np.arange(300),
        }
    )
    return frame


def in_order(frame):
    """The histories that the times of `newest_first` say."""
    return {
        user: rows["item_id"].tolist()[::-1] for user, rows in frame.groupby("user_id", sort=False)
    }


def histories(read):
    return {
        user: read.items[sequence].tolist()
        for user, sequence in zip(read.users, read.sequences, strict=True)
    }


@pytest.mark.parametrize(
    "name",
    [
        *("review_date", "t_dat", "UTC time", "utc_time", "purchase_date", "eventTimestamp", "ts"),
        *("created_at", "order-date", "unixReviewTime", "rating_timestamp", "Check-in Time"),
    ],
)
@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_usual_names(tmp_path, newest_first, name, suffix):
    frame = newest_first.rename(columns={"moment": name})
    path = tmp_path / f"clicks{suffix}"
    frame.to_csv(path, index=False) if suffix == ".csv" else frame.to_parquet(path)
    said = []
    read = read_interactions(path, log=said.append)
    assert histories(read) == in_order(newest_first)
    assert f"time column {name!r} (guessed)" in said[-1]


@pytest.mark.parametrize("kind", ["datetime64[ns]", "datetime64[s]", "date"])
def test_the_only_column_of_dates_is_used(tmp_path, newest_first, kind):
    moments = pd.to_datetime("2000-01-01") + pd.to_timedelta(np.arange(300)[::-1], unit="D")
    moments = moments.date if kind == "date" else moments.astype(kind)
    frame = newest_first.drop(columns="moment").assign(when=moments)
    frame.to_parquet(tmp_path / "clicks.parquet")
    for source in (frame, tmp_path / "clicks.parquet"):
        said = []
        read = read_interactions(source, log=said.append)
        assert histories(read) == in_order(newest_first)
        assert "time_column: 'when' is the only column of dates" in said
        assert "time column 'when' (guessed)" in said[-1]


@pytest.mark.parametrize("kind", ["date32[pyarrow]", "timestamp[us, UTC][pyarrow]"])
def test_dates_of_arrow_in_a_frame(newest_first, kind):
    days = pd.date_range("2000-01-01", periods=300, tz="UTC" if "UTC" in kind else None)[::-1]
    days = pd.Series(days.date if "date32" in kind else days).astype(kind)
    read = read_interactions(newest_first.drop(columns="moment").assign(when=days))
    assert histories(read) == in_order(newest_first)


@pytest.mark.parametrize("name", ["timestamp", "when", None])
def test_dates_that_are_the_index(newest_first, name):
    days = pd.date_range("2000-01-01", periods=300, name=name)[::-1]
    frame = newest_first.drop(columns="moment").set_index(days)
    assert histories(read_interactions(frame)) == in_order(newest_first)
    # Users and items that are in the index as well.
    frame = frame.set_index(["user_id", "item_id"], append=True)
    if name is not None:
        assert histories(read_interactions(frame)) == in_order(newest_first)


def doubtful_columns(frame):
    moments = pd.to_datetime(frame["moment"], unit="s")
    return {
        "moment": frame["moment"],
        "x": frame["moment"] * 1000,
        "n": moments.dt.strftime("%Y-%m-%d"),
        "seen": moments.dt.strftime("%b %d, %Y"),
        "dwell_time": np.arange(300),
        "releaseDate": ["soon"] * 300,
    }


@pytest.mark.parametrize("name", ["moment", "x", "n", "seen", "dwell_time", "releaseDate"])
@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet", "frame"])
def test_columns_that_could_be_times_are_asked_about(tmp_path, newest_first, name, suffix):
    values = doubtful_columns(newest_first)[name]
    frame = newest_first.drop(columns="moment").assign(rating=4.5, **{name: values})
    source = frame if suffix == "frame" else tmp_path / f"clicks{suffix}"
    if suffix == ".parquet":
        frame.to_parquet(source)
    elif suffix == ".jsonl":
        frame.to_json(source, orient="records", lines=True)
    elif suffix != "frame":
        frame.to_csv(source, sep="," if suffix == ".csv" else "\t", index=False)
    with pytest.raises(ValueError, match=f"time_column: got None, while '{name}' could be meant"):
        read_interactions(source)
    said = []
    read = read_interactions(source, time_column="", log=said.append)
    assert histories(read) == {user: items[::-1] for user, items in in_order(frame).items()}
    assert "no time column: the order of the rows is taken for that of time" in said[-1]
    if name in ("moment", "x"):
        assert histories(read_interactions(source, time_column=name)) == in_order(frame)


def test_columns_that_are_no_times_are_passed_over(newest_first):
    frame = newest_first.drop(columns="moment").assign(
        rating=4.5,
        price=np.arange(300) + 0.5,
        order_id=newest_first["moment"],
        review="liked it on 2024-01-01",
        year=2024,
        verified=True,
        note=None,
    )
    assert read_interactions(frame).timestamps is None


def test_several_columns_of_dates(newest_first):
    dates = pd.date_range("2024-01-01", periods=300)
    frame = newest_first.drop(columns="moment").assign(a=dates, b=dates)
    with pytest.raises(ValueError, match="time_column: got None, while 'a', 'b' could be meant"):
        read_interactions(frame)
    frame = newest_first.assign(timestamp=newest_first["moment"], b=dates)
    assert histories(read_interactions(frame)) == in_order(frame)


def test_dates_of_the_items_are_no_times(newest_first):
    released = SECONDS + 1000 * newest_first["item_id"]
    frame = newest_first.drop(columns="moment").assign(release=pd.to_datetime(released, unit="s"))
    with pytest.raises(ValueError, match="time_column: got None, while 'release', which could be"):
        read_interactions(frame)
    assert read_interactions(frame, time_column="release").timestamps is not None
    assert read_interactions(frame.assign(release=frame["release"].iloc[0])).timestamps is not None


def test_equal_times_of_rows_that_are_newest_first(newest_first):
    days = newest_first.assign(moment=newest_first["moment"] // 86_400)
    said = []
    read = read_interactions(days, time_column="moment", log=said.append)
    assert histories(read) == in_order(newest_first)
    assert "interactions: rows are newest first" in said[0]
    # One row that is not: equal times keep the order of the rows.
    other = pd.concat([days, days.iloc[[0]].assign(moment=10**6)])
    kept = histories(read_interactions(other, time_column="moment"))
    for user, rows in other.groupby("user_id"):
        by_time = rows.sort_values("moment", kind="stable")["item_id"].tolist()
        assert kept[user] == by_time


# Times that their type can no longer tell apart --------------------------------------------------

CLOCK = 1_700_000_000 + 37 * np.arange(10)


@pytest.mark.parametrize(
    ("times", "found"),
    [
        (CLOCK.astype(np.float32), r"float32 times up to .*one in 128.*below 16,777,216"),
        (pd.array(CLOCK.astype(np.float32), "Float32"), "float32 times"),
        (pd.Series(list(CLOCK.astype(np.float32)), dtype=object), "float32 times"),
        (np.array([1, 2048], dtype=np.float16), r"float16 times up to 2048.*one in 2"),
        (CLOCK * 1e9 + 1, r"float64 times up to .*one in 256"),
        (np.arange(9) * 2**30 - 2**31, None),
        (["1.70E+09", "1.70E+09", "1700000001"], r"1\.70E\+09 in row 1"),
        (["1.7e9", "1700000001", "1700000002"], None),
        (["1700000000.12345678", "1700000000.22345678"], None),
        (["1700000000.500000000", "1700000000.5"], None),
        ((CLOCK % 2**24).astype(np.float32), None),
        (CLOCK * 1e6, None),
    ],
)
def test_times_beyond_the_precision_of_their_type(times, found):
    if found is None:
        assert len(parse_times(pd.Series(times))) == len(times)
        return
    with pytest.raises(ValueError, match=f"time_column: got .*{found}"):
        parse_times(pd.Series(times))


@pytest.mark.parametrize("kind", [pd.DataFrame, pa.table, "polars", "parquet"])
def test_single_precision_from_any_source(kind, tmp_path):
    columns = {"user": ["u"] * 10, "item": list("abcdefghij"), "time": CLOCK.astype(np.float32)}
    if kind == "parquet":
        source = tmp_path / "clicks.parquet"
        pd.DataFrame(columns).to_parquet(source)
    elif kind == "polars":
        source = pytest.importorskip("polars").DataFrame(columns)
    else:
        source = kind(columns)
    with pytest.raises(ValueError, match="time_column: got float32 times"):
        read_interactions(source)
