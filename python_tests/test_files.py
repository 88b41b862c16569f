"""Files are whole or absent, and reading a broken one is one error that names it."""

import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from alphafuse_ext import files


def tensors():
    return {
        "a": torch.randn(7, 5),
        "half": torch.randn(3, 4).to(torch.bfloat16),
        "scalar": torch.tensor(3, dtype=torch.int64),
        "strided": torch.randn(6, 4).t(),
        "empty": torch.empty(0, 4),
    }


def assert_same(left, right):
    assert left.keys() == right.keys()
    for name in left:
        assert left[name].dtype == right[name].dtype
        assert torch.equal(left[name], right[name])


def test_tensors_come_back_bitwise(tmp_path):
    saved = tensors()
    files.save_tensors(tmp_path / "t.safetensors", saved)
    assert_same(files.load_tensors(tmp_path / "t.safetensors"), saved)


def test_tensors_that_share_memory_are_saved(tmp_path):
    whole = torch.randn(6, 3)
    saved = {"whole": whole, "again": whole, "rows": whole[2:4]}
    files.save_tensors(tmp_path / "t.safetensors", saved)
    assert_same(files.load_tensors(tmp_path / "t.safetensors"), saved)


def test_json_comes_back_and_takes_numpy_and_paths(tmp_path):
    path = tmp_path / "c.json"
    files.write_json(
        path, {"x": np.float32(0.5), "n": np.int64(3), "p": Path("a/b"), "l": [1, None]}
    )
    assert files.read_json(path) == {"x": 0.5, "n": 3, "p": str(Path("a/b")), "l": [1, None]}


@pytest.mark.parametrize("value", [{"loss": float("nan")}, {"x": object()}, {"t": torch.ones(2)}])
def test_what_json_cannot_hold_leaves_the_old_file(tmp_path, value):
    path = tmp_path / "c.json"
    files.write_json(path, {"old": 1})
    with pytest.raises((ValueError, TypeError)):
        files.write_json(path, value)
    assert files.read_json(path) == {"old": 1}
    assert os.listdir(tmp_path) == ["c.json"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(tmp_path, error):
    path = tmp_path / "file.txt"
    path.write_text("old")
    with pytest.raises(error), files.atomic_path(path) as temporary:  # noqa: PT012
        temporary.write_text("half of the n")
        assert temporary.parent == path.parent
        raise error
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file.txt"]


def test_files_have_the_rights_of_an_ordinary_one(tmp_path):
    (tmp_path / "ordinary").write_text("x")
    files.write_json(tmp_path / "c.json", {})
    files.save_tensors(tmp_path / "t.safetensors", tensors())
    files.save_bundle(tmp_path / "b", "thing", tensors(), {})
    assert len({path.stat().st_mode for path in tmp_path.iterdir()}) == 1


def test_a_missing_folder_is_the_file_systems_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="missing"):
        files.write_json(tmp_path / "missing" / "c.json", {})


@pytest.mark.parametrize("keep", [0, 4, 40, -1])
def test_truncated_tensors(tmp_path, keep):
    path = tmp_path / "t.safetensors"
    files.save_tensors(path, tensors())
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(files.UnreadableFileError, match=r"t\.safetensors"):
        files.load_tensors(path)


@pytest.mark.parametrize("text", ["", '{"a": 1', "\x00\x01", "not json"])
def test_truncated_json(tmp_path, text):
    path = tmp_path / "c.json"
    path.write_text(text)
    with pytest.raises(files.UnreadableFileError, match=r"c\.json"):
        files.read_json(path)


def test_json_that_is_not_text(tmp_path):
    path = tmp_path / "c.json"
    path.write_bytes(b"\xff\xfe\x80")
    with pytest.raises(files.UnreadableFileError, match=r"c\.json"):
        files.read_json(path)


def test_array_is_mapped_not_read(tmp_path):
    array = np.random.default_rng().standard_normal((50, 3)).astype(np.float16)
    np.save(tmp_path / "e.npy", array)
    mapped = files.open_array(tmp_path / "e.npy")
    assert isinstance(mapped, np.memmap)
    assert not mapped.flags.writeable
    np.testing.assert_array_equal(mapped, array)


@pytest.mark.parametrize("keep", [0, 5, 60, -1])
def test_truncated_array(tmp_path, keep):
    path = tmp_path / "e.npy"
    np.save(path, np.ones((50, 3)))
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(files.UnreadableFileError, match=r"e\.npy"):
        files.open_array(path)


def test_arrays_of_another_kind(tmp_path):
    np.save(tmp_path / "pickled.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(files.UnreadableFileError, match=r"pickled\.npy"):
        files.open_array(tmp_path / "pickled.npy")
    np.savez(tmp_path / "several.npz", a=np.ones(2))
    with pytest.raises(files.UnreadableFileError, match="archive"):
        files.open_array(tmp_path / "several.npz")


@pytest.mark.parametrize("read", [files.read_json, files.load_tensors, files.open_array])
def test_a_missing_file_is_named(tmp_path, read):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.x"):
        read(tmp_path / "nowhere.x")


@pytest.mark.parametrize("read", [files.read_json, files.load_tensors, files.open_array])
def test_a_folder_is_no_file(tmp_path, read):
    with pytest.raises(files.UnreadableFileError, match=tmp_path.name):
        read(tmp_path)


@pytest.mark.parametrize("name", ["b", "b.json", "b.safetensors", "all-MiniLM-L6.v2", "new/b"])
def test_bundle_comes_back(tmp_path, name):
    saved = tensors()
    files.save_bundle(tmp_path / name, "thing", saved, {"scale": 40.0})
    loaded, description = files.load_bundle(tmp_path / name, "thing")
    assert_same(loaded, saved)
    assert description == {"scale": 40.0}
    assert sorted(p.suffix for p in (tmp_path / name).parent.iterdir()) == [".json", ".safetensors"]


def test_bundle_of_another_kind_or_half_of_another_save(tmp_path):
    files.save_bundle(tmp_path / "b", "thing", tensors(), {})
    with pytest.raises(files.UnreadableFileError, match="does not describe a table"):
        files.load_bundle(tmp_path / "b", "table")
    files.save_bundle(tmp_path / "other", "thing", tensors(), {})
    os.replace(tmp_path / "other.safetensors", tmp_path / "b.safetensors")
    with pytest.raises(files.UnreadableFileError, match=r"b\.safetensors"):
        files.load_bundle(tmp_path / "b", "thing")


def test_bundle_with_one_flipped_bit(tmp_path):
    files.save_bundle(tmp_path / "b", "thing", tensors(), {})
    content = bytearray((tmp_path / "b.safetensors").read_bytes())
    content[-1] ^= 1
    (tmp_path / "b.safetensors").write_bytes(content)
    with pytest.raises(files.UnreadableFileError, match="damaged"):
        files.load_bundle(tmp_path / "b", "thing")


def test_a_bundle_that_cannot_be_written_leaves_the_old_one(tmp_path):
    saved = tensors()
    files.save_bundle(tmp_path / "b", "thing", saved, {"x": 1})
    with pytest.raises(ValueError, match="not written"):
        files.save_bundle(tmp_path / "b", "thing", tensors(), {"x": float("inf")})
    loaded, description = files.load_bundle(tmp_path / "b", "thing")
    assert_same(loaded, saved)
    assert description == {"x": 1}
    assert len(os.listdir(tmp_path)) == 2


def test_the_error_survives_pickling():
    error = pickle.loads(pickle.dumps(files.UnreadableFileError("a.npy", "too short")))
    assert str(error) == "a.npy: cannot be read: too short"


def test_json_is_written_for_people(tmp_path):
    files.write_json(tmp_path / "c.json", {"a": 1, "b": {"c": 2}})
    text = (tmp_path / "c.json").read_text()
    assert text.endswith("\n")
    assert len(text.splitlines()) > 3
    assert json.loads(text)["b"] == {"c": 2}
