"""Files that run a command when they are unpickled, for tests that nothing is."""

from __future__ import annotations

import io
import pickle
from pathlib import Path

import numpy as np
import pandas as pd
import torch


class Planted:
    """Makes an empty file as soon as it is unpickled.

    Args:
        marker: that file.
    """

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


def _written(write) -> bytes:
    buffer = io.BytesIO()
    write(buffer)
    return buffer.getvalue()


def payloads(marker: Path) -> dict[str, bytes]:
    """Contents of files by their format, each with a :class:`Planted`."""
    planted = Planted(marker)
    objects = np.array([planted], dtype=object)
    return {
        "pickle": pickle.dumps(planted),
        "torch": _written(lambda file: torch.save(planted, file)),
        "torch, as before 1.6": _written(
            lambda file: torch.save(planted, file, _use_new_zipfile_serialization=False)
        ),
        "npy": _written(lambda file: np.save(file, objects, allow_pickle=True)),
        "npz": _written(lambda file: np.savez(file, ids=objects, rows=objects)),
        "pandas": _written(lambda file: pd.to_pickle(pd.Series([planted]), file)),
    }


def openers(content: bytes):
    """What unpickles it, of those that would."""
    yield lambda: pickle.loads(content)
    yield lambda: torch.load(io.BytesIO(content), weights_only=False)
    yield lambda: dict(np.load(io.BytesIO(content), allow_pickle=True))
    yield lambda: np.load(io.BytesIO(content), allow_pickle=True)
