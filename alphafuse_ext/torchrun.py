"""This process's place in torchrun, and the errors of processes that train together.

Without PyTorch, for commands that run in one process.
"""

from __future__ import annotations

import os

RANK_TIMEOUT = 600
"""Seconds that ``torchrun -m alphafuse_ext train`` waits for a rank by default."""


class RankError(RuntimeError):
    """Another rank has failed or does not answer."""


class FirstRankError(RankError):
    """Rank 0 has failed, and has reported the error itself."""


def place_in_torchrun() -> tuple[int, int]:
    """Rank and world size under ``torchrun``; 0 and 1 without it."""
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
