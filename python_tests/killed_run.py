"""A small run for processes that are killed, in a module that forks well; see test_kills.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.utils.tensorboard  # imported before the fork: it takes longer than the run

import alphafuse_ext as af
import alphafuse_ext.training.train
from alphafuse_ext.data import synthetic_catalog

OPTIONS: dict[str, Any] = {
    "neighbors": False,
    "dim": 8,
    "epochs": 12,
    "patience": 12,
    "negatives": 8,
    "history": 5,
    "loss": "sampled_softmax",
    "threads": 1,
}


KINDS: dict[str, dict[str, Any]] = {
    "dense": {},
    "sparse": {"sparse": True},
    # A checkpoint at every step, as its minutes are none.
    "long": {"sparse": True, "batch_size": 8, "validate_every": 3, "checkpoint_minutes": 1e-9},
}


def begin_or_go_on(folder: Path, kind: str, begun: Any = None) -> None:
    """What a user does after a crash: resume the run if its folder is there, else begin it."""
    if begun is not None:
        begun.set()
    if not folder.exists():
        clicks, items = synthetic_catalog(num_users=60, num_items=48, seed=5)
        rows = np.random.default_rng(0).standard_normal((len(items), 8)).astype(np.float32)
        af.fit(clicks, items, rows, folder, log=_quiet, **{**OPTIONS, **KINDS[kind]})
    elif not (folder / "results.json").exists():
        af.resume(folder, log=_quiet)


def _quiet(line: str) -> None:
    del line


torch.set_num_threads(1)
