"""The folder of a run: what a training run leaves behind, and all that serving it needs.

==================== ======================================================================
``config.json``       the :class:`Config`, the data's report, its source and the environment
``interactions.parquet``, ``items.parquet``  the data as it was read
``frozen.safetensors``  semantic rows and what the tensors mean, written once
``last.safetensors``  parameters and optimizer state after the last finished epoch
``best.safetensors``  parameters of the selected epoch
``metrics.jsonl``     a line for each epoch
``results.json``      test metrics, written when the run has ended
``spectrum.png``, ``curves.png``, TensorBoard events
==================== ======================================================================

Every file is written under a temporary name and renamed, so an interrupted run never leaves half a
file; ``metrics.jsonl`` is cut back to the checkpoint on resumption.
"""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from alphafuse_ext._version import __version__
from alphafuse_ext.build import build_info
from alphafuse_ext.checks import invalid
from alphafuse_ext.data import Interactions, Items, Sequences
from alphafuse_ext.data.ids import storable, stored
from alphafuse_ext.files import (
    UnreadableFileError,
    atomic_path,
    load_tensors,
    read_json,
    save_tensors,
    write_json,
)
from alphafuse_ext.training.config import Config


class RunFolder:
    """Reads and writes the files of one run; see the module's table.

    Args:
        path: an existing run folder; :meth:`create` makes a new one.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        if not (self.path / "config.json").is_file():
            raise invalid(
                "run", str(path), "a run folder, which holds a config.json", FileNotFoundError
            )

    @staticmethod
    def check_new(path: str | os.PathLike[str]) -> Path:
        """``path``, unless something is there already."""
        if Path(path).exists():
            raise invalid(
                "output",
                f"{path}, which exists",
                "a folder that does not exist yet",
                FileExistsError,
            )
        return Path(path)

    @classmethod
    def create(
        cls,
        path: str | os.PathLike[str],
        config: Config,
        report: dict[str, Any],
        interactions: Interactions,
        items: Items,
        source: dict[str, Any],
    ) -> RunFolder:
        """Make the folder with its configuration, its data and what they came from."""
        folder = cls.check_new(path)
        folder.mkdir(parents=True)
        _write_parquet(folder / "interactions.parquet", _interactions_frame(interactions))
        _write_parquet(folder / "items.parquet", _items_frame(items))
        write_json(
            folder / "config.json",
            {
                "config": config.to_dict(),
                "data": report,
                "source": source,
                "environment": environment(),
            },
        )
        return cls(folder)

    def config(self) -> Config:
        """The configuration of the run."""
        return Config.from_dict(read_json(self.path / "config.json")["config"])

    def report(self) -> dict[str, Any]:
        """What was counted in the data when the run began."""
        return read_json(self.path / "config.json")["data"]

    def items(self) -> Items:
        """The catalog, in the order of the item table."""
        frame = _read_parquet(self.path / "items.parquet")
        texts = frame["text"].tolist() if "text" in frame else None
        titles = frame["title"].tolist() if "title" in frame else None
        return Items(stored(frame["item"]), texts, titles)

    def interactions(self) -> Interactions:
        """Every user's whole sequence."""
        frame = _read_parquet(self.path / "interactions.parquet")
        sequences = Sequences.from_lists([np.asarray(ids, np.int64) for ids in frame["items"]])
        return Interactions(stored(frame["user"]), self.items().tokens, sequences)

    def save(self, name: str, tensors: dict[str, Tensor], **facts: Any) -> None:
        """Write ``name.safetensors``; ``facts`` go into its header."""
        save_tensors(self.path / name, name, tensors, facts)

    def load(self, name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and facts of ``name.safetensors``."""
        return load_tensors(self.path / name, name)

    def has(self, name: str) -> bool:
        """Whether the folder holds a file of that name."""
        return (self.path / name).is_file()

    def epochs(self) -> list[dict[str, Any]]:
        """The lines of ``metrics.jsonl``."""
        path = self.path / "metrics.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def write_epochs(self, epochs: list[dict[str, Any]]) -> None:
        """Replace ``metrics.jsonl``."""
        with atomic_path(self.path / "metrics.jsonl") as temporary:
            Path(temporary).write_text("".join(json.dumps(epoch) + "\n" for epoch in epochs))

    def results(self) -> dict[str, Any]:
        """What the run ended with."""
        return read_json(self.path / "results.json")

    def write_results(self, results: dict[str, Any]) -> None:
        """Write ``results.json``: the run has ended."""
        write_json(self.path / "results.json", results)


def environment() -> dict[str, Any]:
    """What results depend on beside data and settings, recorded in every run folder."""
    native = build_info()
    return {
        "alphafuse_ext": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "platform": platform.platform(),
        "threads": torch.get_num_threads(),
        "native": native,
    }


def _interactions_frame(interactions: Interactions) -> pd.DataFrame:
    sequences = [interactions.sequences[user] for user in range(interactions.num_users)]
    return pd.DataFrame({"user": storable(interactions.users), "items": sequences})


def _items_frame(items: Items) -> pd.DataFrame:
    frame = pd.DataFrame({"item": storable(items.tokens)})
    if items.titles is not None:
        frame["title"] = items.titles
    if items.texts is not None:
        frame["text"] = items.texts
    return frame


def _write_parquet(path: Path, frame: pd.DataFrame) -> None:
    with atomic_path(path) as temporary:
        frame.to_parquet(temporary, index=False)


def _read_parquet(path: Path) -> pd.DataFrame:
    try:
        return pd.read_parquet(path)
    except (OSError, ValueError) as error:  # pyarrow's errors derive from these two
        raise UnreadableFileError(path, error) from error
