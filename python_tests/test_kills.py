"""A run that is killed at any moment goes on, or begins again, to the same files bit for bit."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from killed_run import KINDS, begin_or_go_on
from safetensors.torch import load_file

from alphafuse_ext.runs.run_folder import RunFolder

pytestmark = pytest.mark.slow

KILLS = int(os.environ.get("ALPHAFUSE_KILLS", "6"))
"""Runs that are killed, up to three times each; a long night takes a few hundred."""

processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(["killed_run"])


def start(folder: Path, kind: str) -> Any:
    """A process that has begun to work on the run."""
    begun = processes.Event()
    process = processes.Process(target=begin_or_go_on, args=(folder, kind, begun))
    process.start()
    assert begun.wait(60)
    return process


def finish(folder: Path, kind: str) -> float:
    """Seconds of work until the run has ended."""
    process = start(folder, kind)
    began = time.perf_counter()
    process.join(60)
    assert process.exitcode == 0
    return time.perf_counter() - began


def outcome(folder: Path) -> dict[str, Any]:
    """All that a run computes, without what it timed."""
    run = RunFolder(folder)
    results = run.results()
    tensors = {path.name: load_file(path) for path in folder.glob("*.safetensors")}
    return {
        "tensors": {
            f"{file}/{name}": tensor
            for file, found in tensors.items()
            for name, tensor in found.items()
        },
        "epochs": [without_seconds(line) for line in run.epochs()],
        "results": without_seconds(results),
        "config": json.loads((folder / "config.json").read_text())["config"],
    }


def progress(folder: Path) -> str:
    if not folder.exists():
        return "before the folder was there"
    if (folder / "results.json").exists():
        return "after the end"
    return f"after validation {len(RunFolder(folder).epochs())}"


def without_seconds(facts: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in facts.items() if "seconds" not in name}


def test_killed_at_random_moments(tmp_path: Path) -> None:
    seed = random.SystemRandom().randrange(2**31)
    print(f"moments of seed {seed}")
    moments = random.Random(seed)
    seconds, wholes = {}, {}
    for kind in KINDS:
        seconds[kind] = finish(tmp_path / f"whole-{kind}", kind)
        wholes[kind] = outcome(tmp_path / f"whole-{kind}")
    found: dict[str, int] = {}
    for number in range(KILLS):
        kind = list(KINDS)[number % len(KINDS)]
        whole = wholes[kind]
        folder = tmp_path / f"killed-{number}"
        for _ in range(moments.randint(1, 3)):
            process = start(folder, kind)
            time.sleep(moments.uniform(0, seconds[kind]))
            process.kill()
            process.join()
            state = progress(folder)
            found[state] = found.get(state, 0) + 1
        finish(folder, kind)
        again = outcome(folder)
        tensors = again.pop("tensors")
        assert tensors.keys() == whole["tensors"].keys(), (seed, number)
        for name, tensor in tensors.items():
            assert torch.equal(tensor, whole["tensors"][name]), (seed, number, name)
        assert again == {name: whole[name] for name in again}, (seed, number)
        assert not [path for path in folder.iterdir() if path.name.startswith(".")]
    leftover = [path.name for path in tmp_path.iterdir() if path.name.startswith(".")]
    print(f"{KILLS} runs, killed {found}")
    assert leftover == []
