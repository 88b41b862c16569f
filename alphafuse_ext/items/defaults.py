"""Defaults of item tables: the settings that were best on validation data.

See ``bench/results/accuracy-notes.md``. They are shared by :class:`alphafuse_ext.ItemTable`,
:class:`alphafuse_ext.Config` and the command line.
"""

from __future__ import annotations

DIM = 128
FUSION = "add"
STANDARDIZE = True
SEMANTIC_RMS = 0.15
INIT = "xavier_normal"
SPACE_SPLIT_POWER = 0.5


def null_dim_of(dim: int, fusion: str, space_split: str) -> int:
    """The size of the null space: of a hard split 15/16 of ``dim`` with ``"add"``, half of it with
    ``"concat"``; of a soft one, 1."""
    if space_split != "hard":
        return 1
    return dim // 2 if fusion == "concat" else dim - dim // 16
