"""Files are whole or absent, and reading a broken one is one error that names it."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

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
    files.save_tensors(tmp_path / "t", "thing", saved)
    assert_same(files.load_tensors(tmp_path / "t", "thing")[0], saved)


def test_tensors_that_share_memory_are_saved(tmp_path):
    whole = torch.randn(6, 3)
    saved = {"whole": whole, "again": whole, "rows": whole[2:4]}
    files.save_tensors(tmp_path / "t", "thing", saved)
    assert_same(files.load_tensors(tmp_path / "t", "thing")[0], saved)


def test_json_comes_back_and_takes_numpy_and_paths(tmp_path):
    path = tmp_path / "c.json"
    files.write_json(
        path, {"x": np.float32(0.5), "n": np.int64(3), "p": Path("a/b"), "l": [1, None]}
    )
    assert files.read_json(path) == {"x": 0.5, "n": 3, "p": str(Path("a/b")), "l": [1, None]}


def test_json_that_nests_too_deep(tmp_path):
    for read in (files.read_json, files.read_json_lines):
        (tmp_path / "deep.json").write_text("[" * 100_000)
        with pytest.raises(files.UnreadableFileError, match=r"deep\.json: .*recursion depth"):
            read(tmp_path / "deep.json")
    assert files.read_json_lines(tmp_path / "none.jsonl") == []
    (tmp_path / "lines.jsonl").write_text('{"a": 1}\n2\n')
    assert files.read_json_lines(tmp_path / "lines.jsonl") == [{"a": 1}, 2]


@pytest.mark.parametrize("links", [True, False])
def test_new_json_is_the_first_one_s(tmp_path, monkeypatch, links):
    def no_links(*_):
        raise PermissionError

    if not links:
        monkeypatch.setattr(os, "link", no_links)
    path = tmp_path / "c.json"
    files.write_json(path, {"first": 1}, new=True)
    with pytest.raises(FileExistsError):
        files.write_json(path, {"second": 1}, new=True)
    assert files.read_json(path) == {"first": 1}
    assert os.listdir(tmp_path) == ["c.json"]


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
    files.save_tensors(tmp_path / "t", "thing", tensors())
    assert len({path.stat().st_mode for path in tmp_path.iterdir()}) == 1


def test_a_missing_folder_is_the_file_systems_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="missing"):
        files.write_json(tmp_path / "missing" / "c.json", {})


@pytest.mark.parametrize("keep", [0, 4, 40, -1])
def test_truncated_tensors(tmp_path, keep):
    path = tmp_path / "t.safetensors"
    files.save_tensors(path, "thing", tensors())
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(files.UnreadableFileError, match=r"t\.safetensors"):
        files.load_tensors(path, "thing")


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


def load_thing(path):
    return files.load_tensors(path, "thing")


@pytest.mark.parametrize("read", [files.read_json, load_thing])
def test_a_missing_file_is_named(tmp_path, read):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        read(tmp_path / "nowhere.safetensors")


@pytest.mark.parametrize("read", [files.read_json, load_thing])
def test_a_folder_is_no_file(tmp_path, read):
    (tmp_path / "folder.safetensors").mkdir()
    with pytest.raises(files.UnreadableFileError, match="folder"):
        read(tmp_path / "folder.safetensors")


@pytest.mark.parametrize("name", ["t", "t.safetensors", "all-MiniLM-L6.v2", "new/t"])
def test_facts_come_back(tmp_path, name):
    saved, facts = tensors(), {"scale": 0.1, "epoch": 3, "names": ["a", "b"], "none": None}
    files.save_tensors(tmp_path / name, "thing", saved, facts)
    loaded, found = files.load_tensors(tmp_path / name, "thing")
    assert_same(loaded, saved)
    assert found == facts
    assert [p.suffix for p in (tmp_path / name).parent.iterdir()] == [".safetensors"]
    for record in (loaded, found):
        with pytest.raises(files.UnreadableFileError, match=r"safetensors: .*no 'missing'"):
            record["missing"]


HEADERS = [
    None, {}, {"format": "pt"}, {"alphafuse_ext": ""}, {"alphafuse_ext": "{"},
    {"alphafuse_ext": "[]"}, {"alphafuse_ext": '{"kind": "table"}'},
]  # fmt: skip


@pytest.mark.parametrize("header", HEADERS)
def test_a_header_of_another_program_or_kind(tmp_path, header):
    save_file({"a": torch.ones(2)}, tmp_path / "t.safetensors", header)
    with pytest.raises(files.UnreadableFileError, match=r"t\.safetensors"):
        files.load_tensors(tmp_path / "t", "thing")


def test_the_same_content_gives_the_same_bytes(tmp_path):
    saved, facts = tensors(), {name: len(name) for name in ("one", "two", "three", "four")}
    for name in ("t", "u"):
        files.save_tensors(tmp_path / name, "thing", saved, facts)
    assert (tmp_path / "t.safetensors").read_bytes() == (tmp_path / "u.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("facts", "error"), [({"x": float("inf")}, ValueError), ({"x": object()}, TypeError)]
)
def test_tensors_that_cannot_be_written_leave_the_old_ones(tmp_path, facts, error):
    saved = tensors()
    files.save_tensors(tmp_path / "t", "thing", saved, {"x": 1})
    with pytest.raises(error):
        files.save_tensors(tmp_path / "t", "thing", tensors(), facts)
    loaded, found = files.load_tensors(tmp_path / "t", "thing")
    assert_same(loaded, saved)
    assert found == {"x": 1}
    assert len(os.listdir(tmp_path)) == 1


def test_the_error_survives_pickling():
    error = pickle.loads(pickle.dumps(files.UnreadableFileError("a.npy", "too short")))
    assert str(error) == "a.npy: cannot be read: too short"


def test_json_is_written_for_people(tmp_path):
    files.write_json(tmp_path / "c.json", {"a": 1, "b": {"c": 2}})
    text = (tmp_path / "c.json").read_text()
    assert text.endswith("\n")
    assert len(text.splitlines()) > 3
    assert json.loads(text)["b"] == {"c": 2}


def in_a_process_of_its_own(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


DIES = """
import os, sys, signal
from pathlib import Path
from alphafuse_ext import files
path = Path(sys.argv[1])
with files.atomic_path(path) as temporary, files.atomic_path(path.with_name("other.html")):
    temporary.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_process_left_of_a_file_goes_with_the_next(tmp_path):
    """And nothing that belongs to another file, or that someone is writing."""
    path = tmp_path / "page.html"
    assert in_a_process_of_its_own(DIES, path).returncode == -9
    assert len(os.listdir(tmp_path)) == 2
    (tmp_path / ".page.html.notes.tmp").write_text("mine")
    with files.atomic_path(path) as first:
        assert len(os.listdir(tmp_path)) == 3
        with files.atomic_path(path) as second:
            second.write_text("second")
        first.write_text("first")
    assert path.read_text() == "first"
    with files.atomic_path(tmp_path / "other.html"):
        pass
    assert sorted(os.listdir(tmp_path)) == [".page.html.notes.tmp", "other.html", "page.html"]


FULL = """
import resource, sys
import torch
from alphafuse_ext import files

def mapped(path):
    with files.new_tensor_file(path, "thing", "a", (1 << 20,), torch.float32) as a:
        a += 1

def foreign(path):
    with files.atomic_folder(path) as folder, open(folder / "x", "wb") as file:
        file.write(bytes(1 << 20))

resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))
for write in (
    lambda path: files.save_tensors(path, "thing", {"a": torch.ones(1 << 20)}),
    mapped,
    lambda path: files.write_json(path, ["long"] * (1 << 16)),
    foreign,
):
    try:
        write(sys.argv[1])
    except OSError as error:
        print(error)
"""


def test_a_full_disk_is_an_os_error_that_names_the_file(tmp_path):
    """Also of tensors: safetensors has an error of its own, and of memory maps a signal."""
    path = tmp_path / "t.safetensors"
    done = in_a_process_of_its_own(FULL, path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"[Errno 27] File too large: '{path}'\n" * 4
    assert os.listdir(tmp_path) == []


def test_a_pipe_or_a_device_is_never_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "stdout").symlink_to("/proc/self/fd/1")
    (tmp_path / "null").symlink_to("/dev/null")
    before = {path.name: path.lstat().st_mode for path in tmp_path.iterdir()}
    for name in before:
        with pytest.raises(FileExistsError, match=f"{name}, which is none"):
            files.write_json(tmp_path / name, {})
    assert {path.name: path.lstat().st_mode for path in tmp_path.iterdir()} == before


def test_all_that_a_folder_holds_is_on_the_disk_before_its_name(tmp_path, monkeypatch):
    """Whoever wrote it: exporters of others flush nothing."""
    flushed, fsync = set(), os.fsync

    def seen(descriptor):
        flushed.add(os.fstat(descriptor).st_ino)
        fsync(descriptor)

    def rename(source, target):
        assert {path.stat().st_ino for path in (source, *Path(source).rglob("*"))} <= flushed
        os_rename(source, target)

    os_rename = os.rename
    monkeypatch.setattr(os, "fsync", seen)
    monkeypatch.setattr(os, "rename", rename)
    with files.atomic_folder(tmp_path / "made") as folder:
        (folder / "a").write_text("a")
        (folder / "inner").mkdir()
        (folder / "inner" / "b").write_text("b")
    assert (tmp_path / "made" / "inner" / "b").read_text() == "b"
