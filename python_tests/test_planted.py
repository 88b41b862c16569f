"""A file from elsewhere runs nothing, whatever reads it: each is planted in the place of each."""

from __future__ import annotations

import contextlib
import gzip
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from planted import openers, payloads

import alphafuse_ext as af
from alphafuse_ext.cli import main
from alphafuse_ext.data import read_embeddings, read_interactions, read_items, synthetic_catalog
from alphafuse_ext.items.language_neighbors import Neighbors

pytestmark = pytest.mark.slow

FORMATS = sorted(payloads(Path()))


def quiet(_: str) -> None:
    pass


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A data set, a run with all that a run folder may hold, and other files of the package."""
    folder = tmp_path_factory.mktemp("files")
    clicks, items = synthetic_catalog(num_users=60, num_items=50, seed=1)
    clicks.to_csv(folder / "clicks.csv", index=False)
    items.to_csv(folder / "items.csv", index=False)
    rows = np.random.default_rng(0).normal(size=(len(items), 12)).astype(np.float32)
    np.save(folder / "rows.npy", rows)
    small = {"dim": 8, "epochs": 1, "history": 6, "language_smoothing": 0.1}
    af.fit(clicks, items, rows, folder / "run", log=quiet, **small)
    space = af.SemanticSpace.from_embeddings(rows, progress=False)
    space.save(folder / "space")
    af.ItemTable.from_space(space, rows, 8, null_dim=4, progress=False).save(folder / "table")
    Neighbors.of(rows).save(folder / "neighbors")
    return folder


@pytest.fixture
def marker(tmp_path):
    """What a planted file makes, which nothing may."""
    yield tmp_path / "marker"
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize("format", FORMATS)
def test_what_is_planted_does_run_something(format, tmp_path):
    """Where it is unpickled: the tests that plant it could fail."""
    for opener in openers(payloads(tmp_path / "marker")[format]):
        with contextlib.suppress(Exception):
            opener()
    assert (tmp_path / "marker").exists()


@pytest.mark.parametrize("format", FORMATS)
def test_in_a_run_folder(files, format, marker, tmp_path, capsys):
    content = payloads(marker)[format]
    shutil.copytree(files / "run", tmp_path / "run")
    names = sorted(path.name for path in (files / "run").iterdir() if path.is_file())
    assert {"config.json", "items.parquet", "best.safetensors", "metrics.jsonl"} <= {*names}
    run = str(tmp_path / "run")
    for name in names:
        (tmp_path / "run" / name).write_bytes(content)
        for command in (
            ["recommend", run, "--k", "3", "--output", str(tmp_path / "found.parquet")],
            ["evaluate", run],
            ["train", "--resume", run],
            ["report", run, "--output", str(tmp_path / "page.html")],
        ):
            assert main(command) in (0, 2), (name, command)
        opened = af.RunFolder(run)
        for read in (
            *(opened.items, opened.interactions, opened.neighbors, opened.results, opened.epochs),
            lambda opened=opened: opened.model("start"),
            lambda opened=opened: opened.model("last"),
            lambda opened=opened: opened.moments({"epoch": 1}),
        ):
            with contextlib.suppress(ValueError, OSError):
                read()
        shutil.copy(files / "run" / name, tmp_path / "run" / name)
    assert main(["evaluate", run]) == 0  # all of it is back in its place
    capsys.readouterr()


@pytest.mark.parametrize("format", FORMATS)
def test_in_data(files, format, marker, tmp_path, capsys):
    """Under every name that says how a file is read."""
    content = payloads(marker)[format]
    items = read_items(files / "items.csv", log=quiet)
    for suffix in (
        *("csv", "tsv", "inter", "item", "txt", "json", "jsonl", "ndjson", "parquet", "dat"),
        *("npy", "npz", "safetensors", "csv.gz", "pkl", "pt", "joblib", "h5", "feather", "arrow"),
    ):
        path = tmp_path / f"file.{suffix}"
        path.write_bytes(gzip.compress(content) if suffix.endswith("gz") else content)
        for read in (
            lambda path=path: read_interactions(path, log=quiet),
            lambda path=path: read_items(path, log=quiet),
            lambda path=path: read_embeddings(path, items, log=quiet),
        ):
            with pytest.raises((ValueError, TypeError, OSError)):
                read()
    path = str(tmp_path / "file.parquet")
    run, output = str(files / "run"), ["--output", str(tmp_path / "out")]
    clicks = ["--interactions", str(files / "clicks.csv")]
    for command in (
        ["train", "--interactions", path, *output],
        ["train", *clicks, "--items", path, *output],
        ["train", *clicks, "--embeddings", path, *output],
        ["describe", "--interactions", path],
        ["recommend", run, "--histories", path, *output],
        ["recommend", run, "--users-file", path, *output],
        ["recommend", run, "--only-file", path, *output],
        ["add-items", run, "--items", path, *output],
        ["retire-items", run, "--items-file", path, *output],
        ["upgrade-embeddings", run, "--embeddings", path, *output],
        ["train", "--continue", run, "--interactions", path, *output],
        ["compare", "--interactions", path, "--methods", "id", *output],
        ["compare", path, *output],
        ["tune", path, *output],
    ):
        assert main(command) == 2, command
        assert not (tmp_path / "out").exists(), command
    capsys.readouterr()


@pytest.mark.parametrize("format", FORMATS)
def test_in_other_files(files, format, marker, tmp_path):
    for name, load in (
        ("space", af.SemanticSpace.load),
        ("table", af.ItemTable.load),
        ("neighbors", Neighbors.load),
    ):
        path = tmp_path / f"{name}.safetensors"
        path.write_bytes(payloads(marker)[format])
        with pytest.raises(af.UnreadableFileError):
            load(path)


SEARCH = """
seeds = [3]
[settings]
dim = 8
epochs = 1
[data.shop]
interactions = "clicks.csv"
items = "items.csv"
[methods.AlphaFuse]
dropout = [0.1]
"""


@pytest.fixture(scope="module")
def compared(files):
    """The folder of a search and of a comparison that have ended."""
    pytest.importorskip("optuna")
    (files / "search.toml").write_text(SEARCH)
    output = ["--output", str(files / "compared")]
    assert main(["tune", str(files / "search.toml"), "--trials", "1", *output]) == 0
    assert main(["compare", str(files / "search.toml"), *output]) == 0
    return files / "compared"


@pytest.mark.slow
@pytest.mark.parametrize("format", FORMATS)
def test_in_the_folder_of_a_comparison(files, compared, format, marker, tmp_path, capsys):
    content = payloads(marker)[format]
    folder = tmp_path / "compared"
    shutil.copytree(compared, folder)
    tables = [path for path in compared.rglob("*") if path.is_file() and "runs" not in path.parts]
    names = sorted(str(path.relative_to(compared)) for path in tables)
    assert {"runs.json", "tune.journal", "tuned.toml", "compare.md"} <= {*names}
    for name in names:
        (folder / name).write_bytes(content)
        output = ["--output", str(folder)]
        for command in (
            ["compare", str(folder / "tuned.toml"), "--finished", *output],
            ["compare", str(files / "search.toml"), "--finished", *output],
            ["tune", str(files / "search.toml"), "--trials", "1", *output],
        ):
            assert main(command) in (0, 2), (name, command)
        shutil.copy(compared / name, folder / name)
    capsys.readouterr()


@pytest.mark.parametrize("format", FORMATS)
def test_in_a_repository_of_the_hub(files, format, marker, tmp_path):
    pytest.importorskip("huggingface_hub")
    from alphafuse_ext.integrations.hub import HubRecommender

    HubRecommender(af.Recommender.load(files / "run")).save_pretrained(tmp_path / "repo")
    content = payloads(marker)[format]
    for name in ("pytorch_model.bin", "model.safetensors", "config.json", "run/config.json"):
        path = tmp_path / "repo" / name
        before = path.read_bytes() if path.exists() else None
        path.write_bytes(content)
        with contextlib.suppress(ValueError, TypeError, OSError):
            HubRecommender.from_pretrained(tmp_path / "repo")
        path.unlink()
        if before is not None:
            path.write_bytes(before)


class Planted(pa.ExtensionArray):
    """Values that are made by the code of a package."""

    made = 0

    def to_pylist(self, **_):
        type(self).made += 1
        return ["a", "b"]

    def to_numpy(self, **_):
        type(self).made += 1
        return np.array(["a", "b"], dtype=object)

    def __arrow_array__(self, type=None):
        Planted.made += 1
        return self.storage


class Registered(pa.ExtensionType):
    """A type of a package that unpickles, as Ray's `ray.data.arrow_pickled_object` does."""

    def __init__(self) -> None:
        super().__init__(pa.large_binary(), "planted.pickled")

    def __arrow_ext_serialize__(self) -> bytes:
        return b""

    @classmethod
    def __arrow_ext_deserialize__(cls, storage_type, serialized):
        return cls()

    def __arrow_ext_class__(self):
        return Planted

    def to_pandas_dtype(self):
        Planted.made += 1
        return np.dtype(object)


@pytest.fixture
def registered():
    Planted.made = 0
    pa.register_extension_type(Registered())
    yield
    pa.unregister_extension_type("planted.pickled")


def within(kind: str) -> pa.Array:
    """A column of the type, or of a type that is made of it."""
    plain = pa.array([b"1", b"2"], type=pa.large_binary())
    column = pa.ExtensionArray.from_storage(Registered(), plain)
    offsets = pa.array([0, 1, 2], type=pa.int32())
    return {
        "alone": lambda: column,
        "list": lambda: pa.ListArray.from_arrays(offsets, column),
        "struct": lambda: pa.StructArray.from_arrays([column], ["part"]),
        "map": lambda: pa.MapArray.from_arrays(offsets, pa.array(["x", "y"]), column),
        "list of structs": lambda: pa.ListArray.from_arrays(
            offsets, pa.StructArray.from_arrays([column], ["part"])
        ),
    }[kind]()


@pytest.mark.parametrize("kind", ["alone", "list", "struct", "map", "list of structs"])
def test_in_a_column_of_a_type_that_a_package_registered(files, registered, kind, tmp_path):
    columns = {"user_id": ["a", "b"], "item_id": within(kind), "title": ["one", "two"]}
    pq.write_table(pa.table(columns), tmp_path / "file.parquet")
    (tmp_path / "folder").mkdir()
    for name in ("one", "two"):
        shutil.copy(tmp_path / "file.parquet", tmp_path / "folder" / f"{name}.parquet")
    shutil.copytree(files / "run", tmp_path / "run")
    shutil.copy(tmp_path / "file.parquet", tmp_path / "run" / "items.parquet")
    said = "its column item_id is of type planted.pickled"
    for path in (tmp_path / "file.parquet", tmp_path / "folder"):
        for read in (read_interactions, read_items, read_embeddings):
            with pytest.raises(ValueError, match=f"which is unreadable: {said}"):
                read(path)
    with pytest.raises(af.UnreadableFileError, match=rf"items.parquet: cannot be read: {said}"):
        af.Recommender.load(tmp_path / "run")
    assert Planted.made == 0


def test_types_of_arrow_and_pandas_are_read(tmp_path):
    columns = {
        "item_id": pa.DictionaryArray.from_arrays(pa.array([0, 1]), pa.array(["a", "b"])),
        "title": ["one", "two"],
        "at": pa.array([0, 1], type=pa.timestamp("ns", tz="UTC")),
        "vector": pa.array([[1.0, 0.0]] * 2),
        "place": pa.array([{"x": 1}, {"x": 2}]),
    }
    table = pa.table(columns)
    period = pa.field("period", pa.int64())
    named = {
        b"ARROW:extension:name": b"pandas.period",
        b"ARROW:extension:metadata": b'{"freq": "D"}',
    }
    table = table.append_column(period.with_metadata(named), pa.array([1, 2]))
    pq.write_table(table, tmp_path / "items.parquet")
    assert read_items(tmp_path / "items.parquet").tokens.tolist() == ["a", "b"]
