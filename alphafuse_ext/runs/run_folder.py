"""Run folders: the results of a training run, and everything needed to serve it.

==================== ======================================================================
``config.json``       the :class:`Config`, the report and source of the data, and the environment
``interactions.parquet``, ``items.parquet``  the data as it was read
``space.safetensors``, ``spectrum.png``  the decomposition of the language embeddings
``encoder.safetensors``  the TF-IDF encoder, if it encoded the items' texts
``neighbors.safetensors``  neighbors of each item by language, with ``language_smoothing``
``item-neighbors.safetensors``, ``mixture.json``  item-to-item neighbors and their weights, with
                      ``neighbors``; ``item-neighbors-language.safetensors`` and ``-terms`` are
                      what those of new items are found by
``start.safetensors``  the model before the first epoch: semantic rows, the table's spec,
                      and initial parameters
``last.safetensors``  parameters of the last checkpoint, as a difference to the start: of the end
                      of an epoch, of a validation, or between
``best.safetensors``  the same of the selected validation; the same file if that is the last
``optimizer-N.safetensors``  optimizer states beside ``last``, after epoch N; within the next,
                      ``optimizer-N-STEP``, with the states of random numbers
``metrics.jsonl``     a line for each validation, by default one an epoch
``results.json``      test metrics, written when the run has finished
``curves.png``, TensorBoard events
``geometry.json``, ``geometry.png``  from ``alphafuse geometry``
``report.html``       an HTML report, from ``alphafuse train`` and ``report``
==================== ======================================================================

The folder is created atomically with everything up to ``start.safetensors``. After that each file
is written under a temporary name and renamed. A checkpoint is one once ``last.safetensors`` is
written: when a killed run is resumed, what was written after it is overwritten, and
``best.safetensors`` is restored by :meth:`RunFolder.recover`. What does not change, as frozen rows,
is in ``start.safetensors`` alone.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import torch
from pyarrow.parquet import read_schema
from torch import Tensor

from alphafuse_ext._version import __version__
from alphafuse_ext.build import build_info
from alphafuse_ext.checks import invalid
from alphafuse_ext.config import Config
from alphafuse_ext.data import Interactions, Items, Sequences
from alphafuse_ext.data.ids import storable, stored
from alphafuse_ext.evaluation.run_neighbors import RunNeighbors
from alphafuse_ext.files import (
    Record,
    UnreadableFileError,
    atomic_folder,
    atomic_path,
    check_schema,
    check_writable,
    link,
    load_tensors,
    lock_folder,
    read_json,
    read_json_lines,
    reading,
    remove_leftovers,
    save_tensors,
    write_json,
)
from alphafuse_ext.items.language_neighbors import Neighbors
from alphafuse_ext.runs.checkpoint import apply_changes, changes

if TYPE_CHECKING:
    from alphafuse_ext.data.tfidf import Tfidf

NEIGHBORS_FILE = "neighbors"
ENCODER_FILE = "encoder"

_COLUMN = "column:"
"""Before the names of the catalog's own columns in ``items.parquet``."""

FORMAT = 1
"""Format version of the folder: incremented when earlier versions cannot read it."""


class RunFolder:
    """Reads and writes the files of a run; see the module's table.

    Args:
        path: an existing run folder; :meth:`create` makes a new one.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path).absolute()  # the caller may change its working folder
        if not (self.path / "config.json").is_file():
            raise invalid(
                "run", str(path), "a run folder, which holds a config.json", FileNotFoundError
            )

    @staticmethod
    def check_new(path: str | os.PathLike[str]) -> Path:
        """``path``, absolute; an error if it exists or cannot be created."""
        folder = Path(path).absolute()
        if os.path.lexists(folder):
            raise invalid(
                "output",
                f"{path}, which exists",
                "a folder that does not exist yet",
                FileExistsError,
            )
        check_writable("output", path)
        return folder

    @classmethod
    @contextmanager
    def create(
        cls,
        path: str | os.PathLike[str],
        config: Config,
        report: dict[str, Any],
        interactions: Interactions,
        items: Items,
        source: dict[str, Any],
        start: Mapping[str, Tensor],
        world_size: int = 1,
    ) -> Iterator[Path]:
        """Create the folder of a new run, atomically.

        Args:
            path: of the new folder.
            config: the resolved settings.
            report: counts of the data.
            interactions, items: the data.
            source: the origin of data and embeddings.
            start: the model's initial tensors.
            world_size: number of processes that train it.

        Yields:
            The folder under its temporary name, to add files to.

        Raises:
            FileExistsError: ``path`` exists.
        """
        with atomic_folder(cls.check_new(path)) as temporary:
            with atomic_path(temporary / "interactions.parquet") as file:
                pa.parquet.write_table(_interactions_table(interactions), file)
            _write_parquet(temporary / "items.parquet", _items_frame(items))
            save_tensors(temporary / "start", "start", start)
            write_json(
                temporary / "config.json",
                {
                    "format": FORMAT,
                    "config": config.to_dict(),
                    "data": report,
                    "source": source,
                    "environment": environment(world_size),
                },
            )
            yield temporary

    @contextmanager
    def training(self) -> Iterator[None]:
        """Lock the folder while a run writes to it.

        Raises:
            BlockingIOError: another process trains this run.
        """
        with lock_folder(self.path) as held:
            if not held:
                raise invalid(
                    "run",
                    f"{self.path}, which another process is training",
                    "a run that is not being trained",
                    BlockingIOError,
                )
            yield

    def config(self) -> Config:
        """The configuration of the run."""
        path = self.path / "config.json"
        described = self._description()["config"]
        with reading(path):
            return Config.from_record(described)

    def update_config(self, config: Config) -> None:
        """Replace the configuration, when a run is resumed with other settings."""
        write_json(self.path / "config.json", {**self._description(), "config": config.to_dict()})

    def source(self) -> dict[str, Any]:
        """The origin of the data, and of the embeddings (``None`` without embeddings)."""
        found = self._description()["source"]
        if not isinstance(found.get("embeddings") or {}, dict):
            raise UnreadableFileError(self.path / "config.json", "its 'embeddings' are no object")
        return found

    def environment(self) -> dict[str, Any]:
        """The :func:`environment` in which the run began."""
        return self._description()["environment"]

    def _description(self) -> Record[Any]:
        path = self.path / "config.json"
        described = read_json(path)
        if not isinstance(described, dict) or "format" not in described:
            raise UnreadableFileError(path, "it does not describe a run of this version or later")
        found = described["format"]
        if not isinstance(found, int) or found > FORMAT:
            raise UnreadableFileError(
                path, f"format {found}, of a later version; this one reads format {FORMAT}"
            )
        for name in ("config", "data", "source", "environment"):
            if not isinstance(described.get(name, {}), dict):
                raise UnreadableFileError(path, f"its {name!r} is no object")
        parts = {
            name: Record(path, part) if isinstance(part, dict) else part
            for name, part in described.items()
        }
        return Record(path, parts)

    def report(self) -> dict[str, Any]:
        """Counts of the data."""
        return self._description()["data"]

    def items(self) -> Items:
        """The catalog, in the order of the item table."""
        path = self.path / "items.parquet"
        frame = _read_parquet(path)
        with reading(path):
            texts = frame["text"].tolist() if "text" in frame else None
            titles = frame["title"].tolist() if "title" in frame else None
            retired = frame["retired"].to_numpy(bool) if "retired" in frame else None
            own = frame[[name for name in frame if name.startswith(_COLUMN)]]
            columns = own.rename(columns=lambda name: name.removeprefix(_COLUMN))
            columns = None if columns.empty else columns
            return Items(stored(frame["item"]), texts, titles, retired, columns)

    def interactions(self) -> Interactions:
        """Every user's whole sequence."""
        path = self.path / "interactions.parquet"
        items = self.items().tokens
        with reading(path):  # pyarrow's errors derive from OSError and ValueError
            check_schema(path, read_schema(path))
            table = pa.parquet.read_table(path)
            users = stored(table.select(["user"]).to_pandas()["user"])
            lists = {name: _lists(table[name]) for name in table.column_names if name != "user"}
            lengths, values = lists["items"]
            offsets = np.concatenate([[0], np.cumsum(lengths)])
            sequences = Sequences(offsets, values)
            columns = ("timestamps", "parts", "weights")
            beside = (lists[name][1] if name in lists else None for name in columns)
            return Interactions(users, items, sequences, *beside)

    def neighbors(self) -> Neighbors | None:
        """The neighbors of each item, if the run trains with them."""
        path = self.path / NEIGHBORS_FILE
        return Neighbors.load(path) if self.has(f"{NEIGHBORS_FILE}.safetensors") else None

    def item_neighbors(self) -> RunNeighbors | None:
        """The item-to-item neighbors that the run ranks with, if it does."""
        return RunNeighbors.load(self.path)

    def encoder(self) -> Tfidf | None:
        """The TF-IDF encoder of the items' texts, if the run was trained on TF-IDF.

        Folders of earlier versions have none.
        """
        from alphafuse_ext.data.tfidf import Tfidf  # scikit-learn is slow to import

        path = self.path / ENCODER_FILE
        return Tfidf.load(path) if self.has(f"{ENCODER_FILE}.safetensors") else None

    def share_encoder(self, folder: Path) -> None:
        """Link it into the folder of a derived run, if there is one."""
        name = f"{ENCODER_FILE}.safetensors"
        if self.has(name):
            link(self.path / name, folder / name)

    def digest(self) -> str:
        """Digest of settings and data, in hexadecimal, independent of the machine."""
        found = hashlib.sha256()
        for name in ("config.json", "interactions.parquet", "items.parquet"):
            with open(self.path / name, "rb") as file:
                while chunk := file.read(1 << 20):
                    found.update(chunk)
        return found.hexdigest()

    def save_checkpoint(
        self,
        progress: dict[str, Any],
        parameters: Mapping[str, Tensor],
        moments: Mapping[str, Tensor],
    ) -> None:
        """Save the state of training; if killed, the folder has this one or the one before.

        Args:
            progress: ``epoch``, ``best_epoch``, within an epoch ``step`` and ``share``, and other
                values that :meth:`model` returns.
            parameters: of the model.
            moments: optimizer states, and within an epoch those of random numbers.
        """
        save_tensors(self.path / _optimizer(progress), "optimizer", changes(moments, {}))
        found = changes(parameters, self._start)
        save_tensors(self.path / "last", "checkpoint", found, progress)
        self._follow_last(progress)

    def _follow_last(self, progress: Mapping[str, Any]) -> None:
        """Update the other files to the state of ``last.safetensors``."""
        if progress["best_epoch"] == progress["epoch"] + progress.get("share", 0):
            link(self.path / "last.safetensors", self.path / "best.safetensors")
        for path in self.path.glob("optimizer-*.safetensors"):
            if path.name != _optimizer(progress):
                path.unlink()

    def recover(self) -> None:
        """Remove leftovers of a killed process; the folder is locked by this process."""
        remove_leftovers(self.path)
        if self.has("last.safetensors"):
            self._follow_last(self.model("last")[1])

    def model(self, name: str) -> tuple[dict[str, Tensor], Record[Any]]:
        """Tensors of the whole model, and the saved progress.

        Args:
            name: ``"start"``, ``"last"`` or ``"best"``.

        Raises:
            FileNotFoundError: there is no checkpoint yet.
            UnreadableFileError: a file is damaged.
        """
        if name == "best" and not self.has("best.safetensors"):
            name = "last"  # killed in between: the first epoch, which is the best so far
            elsewhere = "changed_from" in self.source() or not self.config().trained
            if not self.has("last.safetensors") and elsewhere:
                name = "start"  # a model that was trained elsewhere, or not at all
        if name == "start":  # read again: training writes to it
            return load_tensors(self.path / "start", "start")
        if not self.has(f"{name}.safetensors"):
            raise invalid(
                "run",
                f"{self.path}, in which no epoch has finished",
                "a run with one finished epoch or more",
                FileNotFoundError,
            )
        found, progress = load_tensors(self.path / name, "checkpoint")
        with reading(self.path / f"{name}.safetensors"):
            return {**self._start, **apply_changes(found, self._start)}, progress

    def moments(self, progress: Mapping[str, Any]) -> dict[str, Tensor]:
        """What :meth:`save_checkpoint` was given as ``moments`` beside this progress."""
        path = self.path / _optimizer(progress)
        with reading(path):
            return apply_changes(load_tensors(path, "optimizer")[0], {})

    @cached_property
    def _start(self) -> Record[Tensor]:
        return load_tensors(self.path / "start", "start")[0]

    def has(self, name: str) -> bool:
        """Whether the folder has a file of that name."""
        return (self.path / name).is_file()

    def epochs(self) -> list[dict[str, Any]]:
        """The lines of ``metrics.jsonl``."""
        return read_json_lines(self.path / "metrics.jsonl")

    def write_epochs(self, epochs: list[dict[str, Any]]) -> None:
        """Replace ``metrics.jsonl``."""
        with atomic_path(self.path / "metrics.jsonl") as temporary:
            Path(temporary).write_text("".join(json.dumps(epoch) + "\n" for epoch in epochs))

    def results(self) -> dict[str, Any]:
        """The results of a finished run."""
        path = self.path / "results.json"
        found = read_json(path)
        return Record(path, found if isinstance(found, dict) else {})

    def write_results(self, results: dict[str, Any]) -> None:
        """Write ``results.json``: the run has finished."""
        write_json(self.path / "results.json", results)


def without_paths(source: Mapping[str, Any]) -> dict[str, Any]:
    """The record of :meth:`RunFolder.source` with names instead of paths.

    For what is published: paths may contain user names, and are useless elsewhere.
    """
    found = dict(source)
    for name in ("interactions", "validation", "test", "items", "changed_from"):
        if isinstance(found.get(name), str):
            found[name] = Path(found[name]).name
    embeddings = found.get("embeddings")
    if embeddings is not None:
        embeddings = {**embeddings, "from": Path(embeddings["from"]).name}
        model = embeddings.get("model", "")
        if os.path.isabs(model):
            embeddings |= {"model": Path(model).name, "model_was_local": True}
        found["embeddings"] = embeddings
    return found


def _optimizer(progress: Mapping[str, Any]) -> str:
    step = progress.get("step", 0)
    return f"optimizer-{progress['epoch']}{f'-{step}' if step else ''}.safetensors"


def environment(world_size: int = 1) -> dict[str, Any]:
    """Versions and machine, on which results depend too; recorded in run folders.

    Args:
        world_size: number of processes that train together.
    """
    native = build_info()
    return {
        "alphafuse_ext": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "platform": platform.platform(),
        "threads": torch.get_num_threads(),
        "ranks": world_size,
        "native": native,
    }


def _interactions_table(interactions: Interactions) -> pa.Table:
    """A row for each user, with lists by offsets: no object for each of millions of users."""
    frame = pd.DataFrame({"user": storable(interactions.users)})
    table = pa.Table.from_pandas(frame, preserve_index=False)
    columns = {
        "items": interactions.sequences.values,
        "timestamps": interactions.timestamps,
        "parts": interactions.parts,
        "weights": interactions.weights,
    }
    for name, values in columns.items():
        if values is not None:
            lists = pa.LargeListArray.from_arrays(interactions.sequences.offsets, values)
            table = table.append_column(name, lists)
    return table


def _lists(column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """Lengths of a column's lists, and all their values."""
    lists = column.combine_chunks()
    values = lists.flatten()
    if lists.null_count or values.null_count:
        raise ValueError("a list has missing values")
    return lists.value_lengths().to_numpy(), values.to_numpy(zero_copy_only=False)


def _items_frame(items: Items) -> pd.DataFrame:
    frame = pd.DataFrame({"item": storable(items.tokens)})
    if items.titles is not None:
        frame["title"] = items.titles
    if items.texts is not None:
        frame["text"] = items.texts
    if items.retired is not None:
        frame["retired"] = items.retired
    if items.columns is not None:
        frame = pd.concat([frame, items.columns.add_prefix(_COLUMN)], axis=1)
    return frame


def _write_parquet(path: Path, frame: pd.DataFrame) -> None:
    with atomic_path(path) as temporary:
        frame.to_parquet(temporary, index=False)


def _read_parquet(path: Path) -> pd.DataFrame:
    with reading(path):  # pyarrow's errors derive from OSError and ValueError
        check_schema(path, read_schema(path))
        return pd.read_parquet(path)
