"""Semantic rows in a file: the same table, in no process's own memory."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import alphafuse_ext as af
from alphafuse_ext.files import load_tensors, new_tensor_file, save_tensors
from alphafuse_ext.items import semantic_rows


def embeddings(num_items: int, width: int = 24) -> np.ndarray:
    rows = np.random.default_rng(0).standard_normal((num_items, width)).astype(np.float32)
    rows[3] = 0
    return rows


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "options",
    [
        {"fusion": "concat", "standardize": False, "semantic_rms": None},
        {},
        {"space_split": "soft"},
        {"space_split": "learned"},
        {"coordinates": "original", "dim": 24},
    ],
)
def test_the_same_table(options, dtype, tmp_path, monkeypatch):
    monkeypatch.setattr(semantic_rows, "_CHUNK", 7)
    rows = embeddings(50)
    space = af.SemanticSpace.from_embeddings(rows)
    options = {"dim": 12, "null_dim": 5, "semantic_dtype": dtype, "init": "zeros", **options}
    expected = af.ItemTable.from_space(space, rows, **options)
    found = af.ItemTable.from_space(
        space, rows, **options, semantic_file=tmp_path / "rows", chunk_rows=9
    )
    assert found.semantic_rows.dtype == dtype
    assert torch.equal(found.semantic_rows, expected.semantic_rows)
    ids = torch.arange(50)
    assert torch.equal(found(ids), expected(ids))
    assert os.listdir(tmp_path) == ["rows.safetensors"]
    # It trains, and what is written to its rows in memory does not reach the file.
    found.cross_entropy(torch.randn(4, found.embedding_dim), torch.arange(4)).backward()
    with torch.no_grad():
        found.semantic_rows.zero_()
    kept = load_tensors(tmp_path / "rows", "semantic rows")[0]["semantic_rows"]
    assert torch.equal(kept, expected.semantic_rows)


def test_frozen_rows(tmp_path):
    rows = embeddings(50)
    space = af.SemanticSpace.from_embeddings(rows)
    found = af.ItemTable.frozen(space, rows, 8, semantic_file=tmp_path / "rows.safetensors")
    assert torch.equal(found.semantic_rows, af.ItemTable.frozen(space, rows, 8).semantic_rows)


def test_nothing_is_left_of_a_failure(tmp_path):
    rows = embeddings(50)
    space = af.SemanticSpace.from_embeddings(rows)
    rows[40, 2] = np.nan
    with pytest.raises(ValueError, match="row 40"):
        af.ItemTable.from_space(space, rows, dim=8, null_dim=4, semantic_file=tmp_path / "rows")
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="semantic_rms"):
        af.ItemTable.frozen(space, rows, 8, semantic_rms=-1, semantic_file=tmp_path / "rows")
    with pytest.raises(ValueError, match="dim"):
        af.ItemTable.frozen(space, rows, 99, semantic_file=tmp_path / "rows")
    assert not list(tmp_path.iterdir())


def test_a_filled_file_is_what_saving_writes(tmp_path):
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        values = torch.randn(6, 5).to(dtype)
        save_tensors(tmp_path / "saved", "kind", {"name": values})
        with new_tensor_file(tmp_path / "filled", "kind", "name", (6, 5), dtype) as out:
            assert not out.any()
            out.copy_(values)
        for file in ("saved", "filled"):
            assert torch.equal(load_tensors(tmp_path / file, "kind")[0]["name"], values)


MAPS = """
import re, sys
import torch
import alphafuse_ext as af
table = af.ItemTable.load(sys.argv[1])
assert table.semantic_rows.isfinite().all()
print("ready", flush=True)
sys.stdin.readline()
maps = open("/proc/self/smaps").read()
mine = maps[maps.index(sys.argv[1]):]
for name in ("Shared_Clean", "Private_Dirty"):
    print(re.search(rf"{name}:\\s+(\\d+) kB", mine)[1], flush=True)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="NO /proc/self/smaps HERE")
def test_processes_share_the_rows(tmp_path):
    """Each has read them all, and neither has a copy of its own."""
    rows = embeddings(40_000)
    space = af.SemanticSpace.from_embeddings(rows)
    af.ItemTable.frozen(space, rows, 24).save(tmp_path / "table")
    command = [sys.executable, "-c", MAPS, str(tmp_path / "table.safetensors")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen(command, **pipes) for _ in range(2)]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    first = processes[0].communicate("\n", timeout=60)[0].split()
    processes[1].communicate("\n", timeout=60)
    shared, own = map(int, first)
    assert shared * 1024 > 0.9 * rows.nbytes
    assert own <= 8  # pages
