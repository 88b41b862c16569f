"""The README's own examples, run as they stand."""

from __future__ import annotations

import importlib.util
import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from alphafuse_ext.cli import parser
from alphafuse_ext.data import encode_texts, synthetic_catalog

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()


def python_block(name: str) -> str:
    found = re.search(rf"<!-- python: {name} -->\n```python\n(.*?)```", README, re.DOTALL)
    assert found, f"README.md has no Python block called {name!r}"
    return found[1]


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_python_way(folder, monkeypatch):
    clicks, items = synthetic_catalog(num_users=120, num_items=60, seed=0)
    clicks["user_id"] = "u" + clicks["user_id"].astype(str).factorize()[0].astype(str)
    items["item_id"] = items["item_id"].astype(str)
    names = {token: f"i{number}" for number, token in enumerate(items["item_id"])}
    items["item_id"] = items["item_id"].map(names)
    clicks["item_id"] = clicks["item_id"].astype(str).map(names)
    embeddings = np.random.default_rng(0).normal(size=(60, 32)).astype(np.float32)
    exec(python_block("fit"), {"clicks": clicks, "items": items, "embeddings": embeddings})
    assert len(list((folder / "runs").iterdir())) == 1


def test_the_ops(folder):
    texts = synthetic_catalog(num_users=50, num_items=300, seed=0)[1]
    column = next(name for name in ("title", "text", "description") if name in texts)
    embeddings = encode_texts(texts[column].tolist(), "tfidf", dim=200).rows
    if embeddings.shape[1] < 128:
        embeddings = np.random.default_rng(0).normal(size=(300, 200)).astype(np.float32)
    np.save(folder / "embeddings.npy", embeddings)
    exec(python_block("ops"), {})


@pytest.mark.parametrize("name", ["train", "test"])
def test_the_shell_commands_are_one_line(name):
    path = ROOT / ".ci" / "readme_command.py"
    spec = importlib.util.spec_from_file_location("readme_command", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    command = module.command(name)
    assert command.count("\n") == 1
    assert "torch==" in command


def test_the_command_lines_parse():
    """Every `alphafuse` line of the README is one that the parser takes."""
    whole = README.replace("\\\n", " ")
    lines = re.findall(r"^alphafuse (.*)$", whole, re.MULTILINE)
    assert {line.split()[0] for line in lines} >= {"train", "evaluate", "recommend"}
    for line in lines:
        parser().parse_args(shlex.split(line, comments=True))
