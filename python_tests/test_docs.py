"""The pages of docs/: every code block is run, in order, on small data; no link leads nowhere."""

from __future__ import annotations

import argparse
import ast
import contextlib
import importlib
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from alphafuse_ext.cli import main, parser
from alphafuse_ext.data import encode_texts, synthetic_catalog
from alphafuse_ext.experiments.spec import read_comparison

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.DOTALL | re.MULTILINE)

MODULES = ("data", "distributed", "models", "optim")

# Pages whose blocks start process after process.
SLOW = ("recipes/own-loop.md", "recipes/weekly.md")

# Of shell blocks, what installs: the README's commands, which continuous integration runs.
INSTALLS = ("git clone", "pip install")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """The files that the pages speak of, and the run `runs/first`."""
    folder = tmp_path_factory.mktemp("docs")
    clicks, items = synthetic_catalog(num_users=120, num_items=60, seed=0)
    items = items.rename(columns={"item_id": "old"})
    items.insert(0, "item_id", [f"i{number}" for number in range(len(items))])
    clicks["item_id"] = clicks["item_id"].map(
        dict(zip(items["old"], items["item_id"], strict=True))
    )
    users = clicks["user_id"].factorize()[0]
    clicks["user_id"] = [f"u{number}" for number in users]
    items = items.drop(columns="old")
    items["category"] = [("tools", "toys", "shoes")[number % 3] for number in range(len(items))]
    items["price"] = [10 + number for number in range(len(items))]
    rows = encode_texts(items["title"].tolist(), "tfidf", dim=40).rows.astype(np.float32)
    old, new = items[:50], items[50:]
    clicks[clicks["item_id"].isin(old["item_id"])].to_csv(folder / "clicks.csv", index=False)
    old.to_csv(folder / "items.csv", index=False)
    new.to_csv(folder / "new.csv", index=False)
    np.save(folder / "embeddings.npy", rows[:50])
    np.save(folder / "new.npy", rows[50:])
    np.save(
        folder / "other-encoder.npy", rows[:50] @ np.linalg.qr(np.ones((40, 40)) + np.eye(40))[0]
    )
    np.savez(folder / "embeddings.npz", ids=old["item_id"].to_numpy("U"), rows=rows[:50])
    later = clicks[clicks["item_id"].isin(new["item_id"])].copy()
    later["timestamp"] += clicks["timestamp"].max()
    later.to_csv(folder / "later.csv", index=False)
    last = clicks[clicks["item_id"].isin(old["item_id"])].groupby("user_id").nth(1).copy()
    last["timestamp"] += 3 * clicks["timestamp"].max()
    last.to_csv(folder / "last-days.csv", index=False)
    clicks[:200].assign(user_id="s" + clicks["user_id"][:200]).to_csv(
        folder / "new-users.csv", index=False
    )
    shutil.copy(ROOT / "examples" / "gru4rec.py", folder)
    (folder / "examples").symlink_to(ROOT / "examples")
    (folder / "bin").mkdir()  # what pages call, by this Python
    for name, module in (
        ("alphafuse", "-m alphafuse_ext"),
        ("torchrun", "-m torch.distributed.run"),
        ("python", ""),
    ):
        (folder / "bin" / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {module} "$@"\n')
        (folder / "bin" / name).chmod(0o755)
    (folder / "in-stock.txt").write_text("\n".join(old["item_id"][:30]))
    lines = [
        f"{u + 1}::{int(i[1:]) + 1}::4::{t}"
        for u, i, t in zip(users, clicks["item_id"], clicks["timestamp"], strict=True)
    ]
    for name, delimiter in (("ratings.dat", "::"), ("other.txt", "|")):
        (folder / name).write_text("\n".join(lines).replace("::", delimiter) + "\n")
    movies = [f"{n + 1}::{title}::Comedy|Drama" for n, title in enumerate(items["title"])]
    (folder / "movies.dat").write_text("\n".join(movies) + "\n")
    (folder / "recbole" / "small").mkdir(parents=True)
    atomic = pd.read_csv(folder / "clicks.csv")
    atomic.columns = ["user_id:token", "item_id:token", "timestamp:float"]
    atomic.to_csv(folder / "recbole" / "small" / "small.inter", sep="\t", index=False)
    if importlib.util.find_spec("sentence_transformers"):
        write_encoder(folder / "encoder", items["title"].tolist() + items["description"].tolist())
    command = "--interactions clicks.csv --items items.csv --embeddings embeddings.npy"
    small = "--epochs 1 --dim 16 --null-dim 8 --output runs/first"
    before = Path.cwd()
    os.chdir(folder)
    try:
        assert main(["train", *command.split(), *small.split()]) == 0
    finally:
        os.chdir(before)
    return folder


def write_encoder(folder: Path, texts: list[str]) -> None:
    """A text encoder as small as they come, untrained: nothing is fetched."""
    from transformers import BertConfig, BertModel, BertTokenizer

    folder.mkdir()
    words = sorted({word for text in texts for word in re.findall(r"\w+|[^\w\s]", text.lower())})
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    (folder / "vocab.txt").write_text("\n".join(dict.fromkeys([*special, "query", ":", *words])))
    BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = BertConfig(vocab_size=len(words) + 7, intermediate_size=32, **sizes)
    BertModel(config).save_pretrained(folder)


def read_toml(block: str) -> None:
    """Read a comparison of the file that the page shows."""
    Path("shop.toml").write_text(block)
    assert len(read_comparison("shop.toml").methods) == 2


def shell(block: str, folder: Path) -> None:
    """Run the commands; a run that a page's fixture made already is not made again."""
    with contextlib.ExitStack() as servers:
        commands(block, folder, servers)


def commands(block: str, folder: Path, servers: contextlib.ExitStack) -> None:
    """What ends with & answers at another port, until all are done."""
    path = f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
    here: dict = {"cwd": folder, "env": {**os.environ, "PATH": path}}
    port = ""
    for line in block.replace("\\\n", " ").splitlines():
        words = shlex.split(line.replace("localhost:8000", f"localhost:{port}"), comments=True)
        if not words or line.startswith(INSTALLS):
            continue
        if words[-1] == "&":
            words = [*words[:-1], "--port", "0"]
            server = subprocess.Popen(words, **here, stdout=subprocess.PIPE, text=True)
            servers.callback(server.wait, 60)
            servers.callback(server.terminate)
            assert server.stdout is not None
            port = server.stdout.readline().split(": ")[0].rpartition(":")[2]
            continue
        if "train" in words and "--output" in words:
            if (folder / words[words.index("--output") + 1]).exists():
                continue
            if "--epochs" not in words and "neighbors" not in words:  # which has none
                words += ["--epochs", "1"]
        if words[0] == "alphafuse":
            assert main(words[1:]) == 0, line
        else:
            assert words[0] in ("curl", "ln", "python", "sh", "torchrun"), line
            fails = ["--fail-with-body"] if words[0] == "curl" else []
            subprocess.run([words[0], *fails, *words[1:]], check=True, **here)


@pytest.mark.parametrize(
    "page", [pytest.param(page, marks=[pytest.mark.slow] * (page in SLOW)) for page in PAGES]
)
def test_every_code_block_runs(page, data, monkeypatch):
    monkeypatch.chdir(data)
    monkeypatch.setattr(sys, "argv", ["docs"])
    monkeypatch.setattr(sys, "path", [*sys.path, str(data)])  # as of a script or a notebook there
    frame = pd.read_csv("clicks.csv")
    frame["datetime"], frame["weight"] = pd.to_datetime(frame["timestamp"], unit="s"), 1
    names = {"interactions": frame}
    for language, block in BLOCK.findall((DOCS / page).read_text()):
        needs = re.match(r"# needs: (\w+)\n", block)
        file = re.match(r"# file: (\S+)\n", block)
        # A folder of data of that name, such as "recbole", is found as a package without an origin.
        if needs and getattr(importlib.util.find_spec(needs[1]), "origin", None) is None:
            print(f"NOT RUN, {needs[1]} is not installed (.ci/frameworks runs it): {block[:60]}")
        elif file:
            (data / file[1]).write_text(block)
        elif language == "sh":
            shell(block, data)
        elif language == "python":
            exec(compile(block, page, "exec"), names)
        else:
            assert language == "toml"
            read_toml(block)
    if "ray" in sys.modules:
        sys.modules["ray"].shutdown()


def test_links_are_valid():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)\)", (DOCS / page).read_text()):
            if not target.startswith(("https://", "http://", "../img", "img/")):
                assert ((DOCS / page).parent / target).is_file(), (page, target)


def test_every_public_name_is_on_a_page():
    pages = "\n".join((DOCS / page).read_text() for page in PAGES)
    documented = re.findall(r"^::: (\S+)", pages, re.MULTILINE)
    assert len(documented) == len(set(documented))
    shown = {id(named(path)) for path in documented if ".integrations." not in path}
    for module in ("alphafuse_ext", *(f"alphafuse_ext.{name}" for name in MODULES)):
        for name in importlib.import_module(module).__all__:
            if name not in MODULES:  # with parts of their own
                assert id(named(f"{module}.{name}")) in shown, f"{module}.{name}"
    # Read, not imported: what they integrate with need not be installed.
    for source in (ROOT / "alphafuse_ext" / "integrations").glob("*.py"):
        for node in ast.parse(source.read_text()).body:
            if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and node.name[0] != "_":
                assert f"alphafuse_ext.integrations.{source.stem}.{node.name}" in documented


def named(path: str) -> object:
    """What a dotted path names: a module or what is in one."""
    try:
        return importlib.import_module(path)
    except ImportError:
        module, _, name = path.rpartition(".")
        return getattr(named(module), name)


def test_the_site_builds(tmp_path):
    """Without a warning, and with its pictures."""
    pytest.importorskip("mkdocs", reason="NO MKDOCS: pip install '.[docs]'")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    assert (tmp_path / "img" / "spectrum.png").stat().st_size > 1000
    assert "semantic_rows" in (tmp_path / "ops" / "topk.html").read_text()
    for page in tmp_path.rglob("*.html"):
        assert r"\|" not in page.read_text(), page  # GitHub's way to write | in a table
    shown = (tmp_path / "reference" / "commands.html").read_text()
    commands = parser()._subparsers._group_actions[0].choices
    assert len(commands) > 10
    for name, command in commands.items():
        _, _, part = shown.partition(f'<h2 id="{name}">')
        for action in command._actions:
            for flag in action.option_strings if action.dest != "help" else ():
                listed = f"<code>{flag}</code>" in part.partition("<h2 ")[0]
                assert listed == (action.help != argparse.SUPPRESS), (name, flag)  # an old name
