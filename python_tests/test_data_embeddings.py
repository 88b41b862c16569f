"""Language embeddings: every format, and no row given to another item than its own."""

import hashlib
import json

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from conftest import fresh_generator
from safetensors.torch import save_file

from alphafuse_ext.data import Items, read_embeddings

IDS = ["i7", "i0", "i12", "i3", "i5", "i1", "i99", "i4", "i2"]


def catalog(tokens=tuple(IDS)):
    return Items(np.array(tokens, dtype=object), None, None)


def rows_of(dtype=np.float32, count=9):
    return np.random.default_rng(12).standard_normal((count, 5)).astype(dtype)


# Rows without ids -----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_npy_is_mapped(tmp_path, dtype):
    path = tmp_path / "e.npy"
    np.save(path, rows_of(dtype))
    read = read_embeddings(path, catalog())
    assert isinstance(read.rows, np.memmap)
    assert read.rows.dtype == dtype
    assert not read.rows.flags.writeable
    assert read.items is None
    assert np.array_equal(read.rows, rows_of(dtype))
    assert np.array_equal(read_embeddings(str(path), catalog()).rows, read.rows)
    # Also where ids that are row numbers stand in the order of the rows, with or without a catalog.
    numbers = catalog([str(number) for number in range(6)])
    for items, count in ((None, 9), (numbers, 6)):
        read = read_embeddings(path, items, ids_are_rows=True)
        assert isinstance(read.rows, np.memmap)
        assert np.array_equal(read.rows, rows_of(dtype)[:count])


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.bfloat16])
def test_tensors_and_safetensors(tmp_path, dtype):
    tensor = torch.from_numpy(rows_of()).to(dtype)
    save_file({"rows": tensor}, tmp_path / "e.safetensors")
    for source in (tensor, tensor.clone().float().requires_grad_(), tmp_path / "e.safetensors"):
        assert np.array_equal(read_embeddings(source, catalog()).rows, tensor.float().numpy())


def test_arrays_are_not_copied():
    array = rows_of()
    assert read_embeddings(array, catalog()).rows is array


def test_masked_entries_are_refused():
    rows = np.ma.masked_greater(rows_of(), rows_of().max() - 1e-6)
    for source in (rows, {f"i{number}": row for number, row in enumerate(rows)}):
        with pytest.raises(ValueError, match="embeddings: got a masked array, 1 of"):
            read_embeddings(source, catalog())


def test_rows_of_unknown_items_are_refused(tmp_path):
    np.save(tmp_path / "e.npy", rows_of())
    for source in (rows_of(), torch.from_numpy(rows_of()), tmp_path / "e.npy"):
        with pytest.raises(ValueError, match=r"embeddings: got .*whose its 9 rows are") as error:
            read_embeddings(source)
        for way in ("a catalog", "by item id", "ids_are_rows"):
            assert way in str(error.value)


def test_ids_that_are_row_numbers():
    said = []
    read = read_embeddings(rows_of(), ids_are_rows=True, log=said.append)
    assert read.items.tokens.tolist() == list(range(9))
    assert np.array_equal(read.rows, rows_of())
    assert "by row number; their items are the catalog" in said[-1]

    order = [8, 2, 5]
    items = catalog([str(number) for number in order])
    read = read_embeddings(rows_of(), items, ids_are_rows=True, log=said.append)
    assert np.array_equal(read.rows, rows_of()[order])
    assert read.items is None
    assert "6 of no item of the catalog, left out" in said[-1]


@pytest.mark.parametrize("wrong", ["9", "-1", "i3", "2.0", "02", "\uff12"])
def test_ids_that_are_no_row_numbers(wrong):
    with pytest.raises(
        ValueError, match=r"without a row for 1 of 3 items: '.*integers from 0 to 8"
    ):
        read_embeddings(rows_of(), catalog(["3", wrong, "4"]), ids_are_rows=True)


# Rows by item id ------------------------------------------------------------------------------


def frame_of(ids, rows, name="asin"):
    return pd.DataFrame({name: ids, "price": 1.5, "embedding": list(rows), "tags": [["x"]] * 9})


def numbered_of(ids, rows):
    """Columns as a sort of their names has them: e0, e1, e10, e2, ..."""
    frame = pd.DataFrame({"item_id": ids, "title": "x"})
    names = sorted(f"e{number}" for number in range(rows.shape[1]))
    return frame.join(pd.DataFrame({name: rows[:, int(name[1:])] for name in names}))


def write_npz(path, ids, rows):
    np.savez(path, rows=rows, item=np.array(ids))


def write_vectors(path, ids, rows):
    save_file(dict(zip(ids, map(torch.from_numpy, rows), strict=True)), path)


KEYED = {
    "dict": lambda path, ids, rows: dict(zip(ids, rows, strict=True)),
    "dict of tensors": lambda path, ids, rows: dict(zip(ids, torch.tensor(rows), strict=True)),
    "dict of lists": lambda path, ids, rows: dict(zip(ids, rows.tolist(), strict=True)),
    "frame": lambda path, ids, rows: frame_of(ids, rows),
    "frame of lists": lambda path, ids, rows: frame_of(ids, rows.tolist()),
    "indexed frame": lambda path, ids, rows: frame_of(ids, rows).set_index("asin"),
    "matrix frame": lambda path, ids, rows: pd.DataFrame(rows, pd.Index(ids, name="item_id")),
    "numbered frame": lambda path, ids, rows: numbered_of(ids, rows),
    "e.parquet": lambda path, ids, rows: frame_of(ids, rows).to_parquet(path),
    "n.parquet": lambda path, ids, rows: numbered_of(ids, rows).to_parquet(path),
    "e.csv": lambda path, ids, rows: numbered_of(ids, rows).to_csv(path, index=False),
    "e.csv.gz": lambda path, ids, rows: numbered_of(ids, rows).to_csv(path, index=False),
    "e.JSONL": lambda path, ids, rows: frame_of(ids, rows).to_json(
        path, orient="records", lines=True, double_precision=15
    ),
    "arrow table": lambda path, ids, rows: pa.Table.from_pandas(frame_of(ids, rows.tolist())),
    "e.npz": write_npz,
    "e.safetensors": write_vectors,
}


@pytest.mark.parametrize("kind", KEYED)
def test_rows_go_to_their_items(tmp_path, kind):
    path, rows = tmp_path / kind, rows_of(count=9).repeat(3, axis=1)
    order = np.random.default_rng(4).permutation(9)
    shuffled = [IDS[place] for place in order]
    source = KEYED[kind](path, shuffled, rows[order])
    source = path if source is None else source
    read = read_embeddings(source, catalog())
    np.testing.assert_allclose(read.rows, rows, rtol=1e-6)
    assert read.items is None

    said = []
    own = read_embeddings(source, log=said.append)
    assert sorted(own.items.tokens) == sorted(IDS)
    for token, row in zip(own.items.tokens, own.rows, strict=True):
        np.testing.assert_allclose(row, rows[IDS.index(token)], rtol=1e-6)
    assert "; their items are the catalog" in said[-1]

    read = read_embeddings(source, catalog(IDS[:2]), log=said.append)
    np.testing.assert_allclose(read.rows, rows[:2], rtol=1e-6)
    assert "7 of no item of the catalog, left out" in said[-1]

    with pytest.raises(ValueError, match=r"without a row for 2 of 3 items: 'new', 'i77'; expected"):
        read_embeddings(source, catalog(["new", "i3", "i77"]))
    with pytest.raises(ValueError, match="ids_are_rows: got True beside"):
        read_embeddings(source, catalog(), ids_are_rows=True)


def test_integer_ids(tmp_path):
    rows, ids = rows_of(), [30, 2, 7, 11, 5, 1, 0, 4, 9]
    items = catalog([str(token) for token in sorted(ids)])
    wanted = rows[np.argsort(ids)]
    np.savez(tmp_path / "e.npz", embeddings=rows, ids=ids)
    save_file(
        {"embeddings": torch.from_numpy(rows), "ids": torch.tensor(ids)}, tmp_path / "e.safetensors"
    )
    frame_of(ids, rows).to_parquet(tmp_path / "e.parquet")
    sources = (dict(zip(ids, rows, strict=True)), frame_of(ids, rows))
    files = [tmp_path / f"e{suffix}" for suffix in (".npz", ".safetensors", ".parquet")]
    for source in (*sources, *files):
        assert np.array_equal(read_embeddings(source, items).rows, wanted)


def test_the_column_of_ids():
    named = frame_of(IDS, rows_of(), name="code")
    with pytest.raises(ValueError, match=r"columns 'code', .*expected a column of item ids"):
        read_embeddings(named, catalog())
    assert np.array_equal(read_embeddings(named, catalog(), item_column="code").rows, rows_of())
    # The name that the clicks have need not be that of the embeddings.
    frame = frame_of(IDS, rows_of())
    assert np.array_equal(read_embeddings(frame, catalog(), item_column="code").rows, rows_of())


def test_bad_keyed_embeddings():
    def refused(source, match, kind=ValueError):
        with pytest.raises(kind, match=f"^embeddings: got .*{match}"):
            read_embeddings(source, catalog())

    rows = rows_of()
    refused({}, "dict, which is empty")
    refused({"i7": rows[0], 7: rows[1], "7": rows[2]}, "given twice: '7'")
    refused(frame_of([*IDS[:8], "i7"], rows), "given twice: 'i7'")
    refused(frame_of([*IDS[:8], None], rows), "no value in row 9")
    refused(frame_of(IDS, [*rows[:4], rows[4][:3], *rows[5:]]), r"shape \(3,\) for item 'i5'")
    refused(frame_of(IDS, [*rows[:4], None, *rows[5:]]), "None for item 'i5'")
    refused({"i7": rows}, r"shape \(9, 5\) for item 'i7'")
    refused({"i7": 1.0}, "1.0 for item 'i7'")
    refused({"i7": [1, 2]}, "dtype int64", TypeError)
    two = frame_of(IDS, rows).assign(other=list(rows))
    refused(two, "expected one column of vectors, or one numbered column")
    refused(two.drop(columns=["other", "embedding"]), "expected one column of vectors")
    # A gap in the numbers, or two series of them: some columns are no part of the vector.
    numbered = numbered_of(IDS, rows)
    refused(numbered.drop(columns="e2"), "expected one column of vectors")
    refused(numbered.assign(f0=1.0), "expected one column of vectors")
    refused(numbered.assign(vector=list(rows)), "expected one column of vectors")


# Damaged and foreign files --------------------------------------------------------------------


def test_bad_embeddings(tmp_path):
    with pytest.raises(ValueError, match="with 9 rows; expected one row for each of the 3 items"):
        read_embeddings(rows_of(), catalog(IDS[:3]))
    for shape in ((45,), (0, 5), (9, 0), (1, 9, 5)):
        with pytest.raises(ValueError, match=r"of shape \("):
            read_embeddings(np.ones(shape), catalog())
    with pytest.raises(TypeError, match="of dtype int64"):
        read_embeddings(np.ones((9, 5), dtype=np.int64), catalog())
    with pytest.raises(TypeError, match="embeddings: got list"):
        read_embeddings([[1.0]], catalog())
    with pytest.raises(FileNotFoundError, match="which does not exist"):
        read_embeddings(tmp_path / "none.npy", catalog())
    (tmp_path / "e.pkl").touch()
    with pytest.raises(ValueError, match=r"embeddings: got .*\.pkl; expected"):
        read_embeddings(tmp_path / "e.pkl", catalog())


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".safetensors"])
@pytest.mark.parametrize("kept", [0, 3, 40, 0.5, -1])
def test_truncated_files(tmp_path, suffix, kept):
    path = tmp_path / f"e{suffix}"
    if suffix == ".npy":
        np.save(path, rows_of())
    elif suffix == ".npz":
        np.savez_compressed(path, ids=np.array(IDS), rows=rows_of())
    else:
        save_file({"rows": torch.from_numpy(rows_of())}, path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole)) if isinstance(kept, float) else kept])
    with pytest.raises(ValueError, match="which is unreadable or truncated"):
        read_embeddings(path, catalog())


def test_flipped_bytes_of_an_archive(tmp_path):
    path = tmp_path / "e.npz"
    np.savez_compressed(path, ids=np.array(IDS), rows=rows_of())
    whole = path.read_bytes()
    generator = fresh_generator()
    for _ in range(100):
        damaged = bytearray(whole)
        damaged[generator.integers(len(whole))] ^= int(generator.integers(1, 256))
        path.write_bytes(damaged)
        try:
            read = read_embeddings(path, catalog()).rows
        except (ValueError, TypeError) as error:
            read = str(error)
        # Read whole where the byte was of a date or the like.
        assert (
            read.startswith("embeddings: got")
            if isinstance(read, str)
            else (np.array_equal(read, rows_of()))
        )


def test_pickles_are_refused(tmp_path):
    np.save(tmp_path / "e.npy", np.array([[object()]]), allow_pickle=True)
    np.savez(tmp_path / "e.npz", ids=np.array(IDS, dtype=object), rows=rows_of())
    for name in ("e.npy", "e.npz"):
        with pytest.raises(ValueError, match="which is unreadable"):
            read_embeddings(tmp_path / name, catalog(["a"]))


def test_arrays_that_do_not_belong_together(tmp_path):
    save_file({"a": torch.ones(9, 5), "b": torch.ones(9, 5)}, tmp_path / "e.safetensors")
    with pytest.raises(ValueError, match=r"with arrays 'a \(9, 5\)', 'b \(9, 5\)'; expected"):
        read_embeddings(tmp_path / "e.safetensors", catalog())
    np.savez(tmp_path / "e.npz", ids=np.array(IDS[:8]), rows=rows_of())
    with pytest.raises(ValueError, match="with 8 ids, 9 rows"):
        read_embeddings(tmp_path / "e.npz", catalog())


# What a run records ---------------------------------------------------------------------------


def test_the_record(tmp_path, monkeypatch):
    rows = rows_of(np.float16)
    np.save(tmp_path / "e.npy", rows)
    monkeypatch.chdir(tmp_path)
    record = read_embeddings("e.npy", catalog()).record()
    assert json.loads(json.dumps(record)) == {
        "from": str(tmp_path / "e.npy"),
        "rows": "in the order of the catalog",
        "shape": [9, 5],
        "dtype": "float16",
        "sha256": hashlib.sha256(rows.tobytes()).hexdigest(),
    }
    by_id = read_embeddings(dict(zip(IDS[::-1], rows[::-1], strict=True)), catalog()).record()
    assert by_id["from"] == "dict"
    assert by_id["sha256"] == record["sha256"]
    rows[8, 4] += 1
    assert read_embeddings(rows, catalog()).record()["sha256"] != record["sha256"]


def test_the_digest_of_many_rows(monkeypatch):
    rows = np.random.default_rng(3).standard_normal((1000, 7))[:, ::-1]
    whole = read_embeddings(rows, ids_are_rows=True).record()
    monkeypatch.setattr("alphafuse_ext.data.embeddings._DIGEST_BYTES", 3 * 7 * 8 + 1)
    assert read_embeddings(rows, ids_are_rows=True).record() == whole
    assert whole["sha256"] == hashlib.sha256(rows.tobytes()).hexdigest()
