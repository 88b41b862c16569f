"""Spawned processes joined by gloo, for tests of collectives."""

from __future__ import annotations

import datetime
import importlib
import os
import traceback
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def _process(
    rank: int, ranks: int, module: str, checks: list[str], folder: str, seconds: int
) -> None:
    torch.set_num_threads(1)
    timeout = datetime.timedelta(seconds=seconds)
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", store, timeout, world_size=ranks, rank=rank)
    for check in checks:
        try:
            getattr(importlib.import_module(module), check)(rank, ranks, Path(folder))
        except BaseException:
            Path(folder, f"{check}-{rank}.failed").write_text(traceback.format_exc())
            os._exit(1)
    os._exit(0)  # a group that a rank died of would be waited for


def spawn(ranks: int, folder: Path, checks: list, seconds: int = 60) -> None:
    """Run checks one after another on ranks of their own, and show what failed there.

    Args:
        ranks: how many.
        folder: theirs to share.
        checks: functions ``check(rank, ranks, folder)`` of one module.
        seconds: the timeout of their group.
    """
    (module,) = {check.__module__ for check in checks}
    names = [check.__name__ for check in checks]
    try:
        mp.spawn(_process, (ranks, module, names, str(folder), seconds), nprocs=ranks)
    except (mp.ProcessExitedException, mp.ProcessRaisedException) as error:
        said = [path.read_text() for path in sorted(folder.glob("*.failed"))]
        pytest.fail("\n".join(said) or str(error), pytrace=False)
