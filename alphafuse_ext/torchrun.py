"""What torchrun says of this process, and the errors of processes that it started.

Without PyTorch, for commands that run in one process.
"""

from __future__ import annotations

import os

RANK_TIMEOUT = 600
"""Seconds that ``torchrun -m alphafuse_ext train`` waits for a rank, unless told."""


class RankError(RuntimeError):
    """Other ranks have ended, do not answer, or cannot do what this one can."""


class FirstRankError(RankError):
    """The first rank has failed, at what it does for all, and has said by what."""


def place_in_torchrun() -> tuple[int, int]:
    """This process's rank and how many ``torchrun`` has started; 0 of 1 without it."""
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
