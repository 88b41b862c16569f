"""Sources that are no text files: folders, Arrow tables of several libraries, data frames."""

import decimal
import uuid

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from alphafuse_ext.data import interactions, read_embeddings, read_interactions, read_items
from alphafuse_ext.data.ids import encode_ids


@pytest.fixture
def frame():
    generator = np.random.default_rng(17)
    return pd.DataFrame(
        {
            "user_id": [f"u{number}" for number in generator.integers(0, 20, 300)],
            "item_id": generator.integers(0, 60, 300) + 1000,
            "timestamp": generator.permutation(300),
        }
    )


def assert_same(read, frame):
    expected = read_interactions(frame)
    assert read.users.dtype == expected.users.dtype
    assert read.items.dtype == expected.items.dtype
    assert {
        user: read.items[sequence].tolist()
        for user, sequence in zip(read.users, read.sequences, strict=True)
    } == {
        user: expected.items[sequence].tolist()
        for user, sequence in zip(expected.users, expected.sequences, strict=True)
    }


# Folders of Parquet files ---------------------------------------------------------------------


def test_a_folder_as_spark_writes_it(tmp_path, frame):
    folder = tmp_path / "clicks.parquet"
    folder.mkdir()
    for part in (0, 1, 2):
        name = f"part-{part:05}-c000.snappy.parquet"
        frame[part * 100 : part * 100 + 100].to_parquet(folder / name)
        (folder / f".{name}.crc").write_bytes(b"crc")
    (folder / "_SUCCESS").touch()
    (folder / "_temporary").mkdir()
    (folder / "_temporary" / "part-00009.parquet").write_bytes(b"unfinished")
    read = read_interactions(folder)
    assert_same(read, frame)
    assert read.users.tolist() == frame["user_id"].unique().tolist()  # parts in their order
    assert_same(read_interactions(str(folder)), frame)


def test_a_folder_with_partitions(tmp_path, frame):
    whole = frame.assign(day=frame["timestamp"] // 100)
    pq.write_to_dataset(pa.Table.from_pandas(whole), tmp_path / "clicks", partition_cols=["day"])
    assert_same(read_interactions(tmp_path / "clicks"), whole.sort_values("day", kind="stable"))
    by_day = read_interactions(tmp_path / "clicks", item_column="day")
    assert sorted(by_day.items.tolist()) == [0, 1, 2]


def test_folders_that_hold_no_table(tmp_path, frame):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"interactions: got .*folder without \.parquet files"):
        read_interactions(tmp_path / "empty")
    frame.to_parquet(tmp_path / "empty" / "a.parquet")
    (tmp_path / "empty" / "b.parquet").write_bytes(b"damaged")
    with pytest.raises(ValueError, match=r"interactions: got .*which is unreadable"):
        read_interactions(tmp_path / "empty")


# Tables of other libraries --------------------------------------------------------------------


def test_tables_of_pyarrow(frame):
    table = pa.Table.from_pandas(frame)
    for source in (table, table.to_batches()[0], table.to_reader(), Wrapped(table)):
        assert_same(read_interactions(source), frame)


class Wrapped:
    """An older frame of another library: it gives a pyarrow table and nothing else."""

    def __init__(self, table):
        self.table = table

    def to_arrow(self):
        return self.table


def test_frames_of_polars(frame):
    polars = pytest.importorskip("polars")
    source = polars.from_pandas(frame)
    assert_same(read_interactions(source), frame)
    assert_same(
        read_interactions(source.with_columns(polars.col("user_id").cast(polars.Categorical))),
        frame,
    )
    titles = polars.DataFrame(
        {"item_id": [1, 2], "title": ["hat", None], "genres": [["a", "b"], []]}
    )
    items = read_items(titles)
    assert items.texts == ["hat. a b", ""]
    with pytest.raises(TypeError, match="interactions: got a LazyFrame; expected a data frame"):
        read_interactions(source.lazy())


def test_datasets_of_hugging_face(frame):
    """Also where rows are some of those of the table below; of several splits, one by its name."""
    datasets = pytest.importorskip("datasets")
    source = datasets.Dataset.from_pandas(frame, preserve_index=False)
    assert_same(read_interactions(source), frame)
    assert_same(read_interactions(source.with_format("torch")), frame)
    order = np.random.default_rng(0).permutation(len(frame))
    assert_same(read_interactions(source.select(order)), frame.iloc[order])
    items = datasets.Dataset.from_dict(
        {"item_id": [1, 2], "title": ["hat", "cap"], "row": [[0.5, 1.0], [2.0, 3.0]]}
    )
    assert read_items(items).titles == ["hat", "cap"]
    rows = read_embeddings(items.select_columns(["item_id", "row"]), read_items(items)).rows
    assert rows.tolist() == [[0.5, 1.0], [2.0, 3.0]]
    with pytest.raises(TypeError, match="one of its splits"):
        read_interactions(datasets.DatasetDict({"train": source}))


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int8(), pa.string())]
)
def test_kinds_of_strings(frame, kind):
    table = pa.Table.from_pandas(frame)
    users = table["user_id"].cast(pa.string()).cast(kind)
    assert_same(read_interactions(table.set_column(0, "user_id", users)), frame)


def test_integers_that_a_database_wrote_as_decimals(tmp_path, frame):
    items = pa.array([decimal.Decimal(item) for item in frame["item_id"]], pa.decimal128(38, 0))
    times = pa.array(
        [decimal.Decimal(time) / 4 for time in frame["timestamp"]], pa.decimal128(18, 2)
    )
    table = pa.table({"user_id": frame["user_id"], "item_id": items, "timestamp": times})
    pq.write_table(table, tmp_path / "data.parquet")
    assert_same(read_interactions(tmp_path / "data.parquet"), frame)


@pytest.mark.parametrize(
    "source", [pd.Series(["a"], name="user_id"), {"user_id": ["a"]}, 7, None, [1]]
)
def test_what_is_no_table(source):
    with pytest.raises(TypeError, match=f"interactions: got a {type(source).__name__}; expected"):
        read_interactions(source)


# Data frames ----------------------------------------------------------------------------------


def test_columns_of_several_levels(frame):
    several = frame.groupby(["user_id", "item_id"]).agg({"timestamp": ["max", "min"]}).reset_index()
    with pytest.raises(ValueError, match=r"got a DataFrame with a column named \('user_id', ''\)"):
        read_interactions(several)


def test_columns_with_numbers_for_names(frame):
    numbered = frame.set_axis([0, 1, 2], axis=1)
    for given in ((0, 1, 2), ("0", "1", "2")):
        assert_same(read_interactions(numbered, None, *given), frame)
    assert numbered.columns.tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match="user_column: got 5; expected one of the columns"):
        read_interactions(numbered, user_column=5)


def test_uuids_in_a_parquet_file(tmp_path, frame):
    named = frame.assign(user_id=[uuid.UUID(int=int(user[1:])) for user in frame["user_id"]])
    kind = pa.uuid() if hasattr(pa, "uuid") else None
    if kind is None:
        pytest.skip("this pyarrow has no UUIDs")
    users = pa.array([user.bytes for user in named["user_id"]], pa.binary(16)).cast(kind)
    table = pa.table(
        {"user_id": users, "item_id": frame["item_id"], "timestamp": frame["timestamp"]}
    )
    pq.write_table(table, tmp_path / "data.parquet")
    assert_same(read_interactions(tmp_path / "data.parquet"), named)


def test_columns_are_read_one_by_one_and_strings_once(tmp_path, monkeypatch):
    """A hundred million rows fit, as neither all columns nor a string for each row are held."""
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(
        {
            "user": [f"u{number}" for number in rng.integers(0, 50, 3000)],
            "item": [f"i{number}" for number in rng.integers(0, 40, 3000)],
            "timestamp": rng.permutation(3000),
        }
    )
    path = tmp_path / "clicks.parquet"
    frame.to_parquet(path, row_group_size=500)
    read, encoded = [], []
    parquet = pq.ParquetFile

    class Recorded(parquet):
        def read(self, columns):
            read.append(columns)
            return super().read(columns)

    def encode(argument, column, *options):
        encoded.append(column.dtype)
        return encode_ids(argument, column, *options)

    monkeypatch.setattr(pq, "ParquetFile", Recorded)
    monkeypatch.setattr(interactions, "encode_ids", encode)
    found = read_interactions(path)
    assert read == [["user"], ["item"], ["timestamp"]]
    assert encoded == ["category", "category"]
    expected = read_interactions(frame)
    assert found.users.tolist() == expected.users.tolist()
    assert found.items.tolist() == expected.items.tolist()
    assert found.sequences.values.tolist() == expected.sequences.values.tolist()
