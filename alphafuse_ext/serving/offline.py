"""Offline recommendations for all users: into one file, or part files by several processes."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from tqdm import tqdm

from alphafuse_ext.checks import invalid, listed
from alphafuse_ext.data.ids import Ids
from alphafuse_ext.deprecation import digested_names
from alphafuse_ext.files import atomic_path, read_json, write_json
from alphafuse_ext.serving.queries import AtMost, listed_for_all, read_allowed
from alphafuse_ext.serving.recommender import Recommender, check_columns

_SETTINGS = "parts.json"
_VALUES = ("parts", "k", "keep_seen", "batch_size", "columns", "at_most", "by")
"""Keys of parts.json besides digests."""


def write_frames(
    frames: Iterator[pd.DataFrame], output: Path, new: bool = False
) -> tuple[int, int]:
    """Write frames to one ``.csv`` or ``.parquet`` file, one at a time; the file appears
    atomically.

    Args:
        new: never replace an existing file.

    Returns:
        The number of rows and users.
    """
    rows = served = 0
    with atomic_path(output, new) as temporary, ExitStack() as open_files:
        writer: Any = None
        bar = tqdm(desc="recommend", unit=" users", disable=None, leave=False)
        for frame in frames:
            users = frame.iloc[:, 0].nunique()
            rows, served = rows + len(frame), served + users
            bar.update(users)
            if output.suffix == ".csv":
                frame.to_csv(temporary, index=False, header=writer is None, mode="a")
                writer = temporary
                continue
            table = pa.Table.from_pandas(frame, preserve_index=False)
            if writer is None:
                writer = open_files.enter_context(pq.ParquetWriter(temporary, table.schema))
            writer.write_table(table.cast(writer.schema))
        bar.close()
    return rows, served


def digests(recommender: Recommender, neighbors: bool | None = None) -> dict[str, str]:
    """SHA-256, in hexadecimal, of everything that determines the recommendations.

    The device, the run's path and the version of this package are not included.

    Args:
        neighbors: as for :meth:`Recommender.recommend`.

    Returns:
        ``model``: settings, tensors, and the neighbors that are ranked with; ``catalog``: items,
        titles, retired items; ``histories``: users and their interactions.
    """
    model, items, clicks = recommender.model, recommender.items, recommender.interactions
    found = {name: hashlib.sha256() for name in ("model", "catalog", "histories")}
    kinds = [type(model).__qualname__, type(model.table).__qualname__, model.similarity]
    settings = [kinds, model.history, digested_names(recommender.config.to_dict())]
    found["model"].update(json.dumps(settings, sort_keys=True).encode())
    for name, tensor in sorted(model.state_dict().items()):
        found["model"].update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        found["model"].update(memoryview(flat.view(torch.uint8).numpy()))
    if (beside := recommender.ranking_neighbors(neighbors)) is not None:
        beside.add_to(found["model"])
    _add_ids(found["catalog"], items.tokens)
    titles = items.titles
    _add_ids(found["catalog"], np.array([] if titles is None else titles, dtype=object))
    retired = np.zeros(len(items), bool) if items.retired is None else items.retired
    found["catalog"].update(np.asarray(retired, bool).tobytes())
    _add_ids(found["histories"], clicks.users)
    for numbers in (clicks.sequences.offsets, clicks.sequences.values):
        _add_ids(found["histories"], np.asarray(numbers, np.int64))
    return {name: value.hexdigest() for name, value in found.items()}


def _add_ids(digest: Any, ids: Ids) -> None:
    """Add values, their type and number; strings with their lengths, so that they are delimited."""
    digest.update(f"{ids.dtype} {len(ids)} ".encode())
    if ids.dtype != object:
        digest.update(np.ascontiguousarray(ids))
        return
    for value in ids:
        text = str(value).encode(errors="surrogatepass")
        digest.update(b"%s %d " % (type(value).__name__.encode(), len(text)) + text)


class Parts:
    """A folder of Parquet part files with recommendations for all users.

    Several processes may write to it independently.

    Args:
        recommender: the same in each process.
        output: the folder, created if missing, with ``part-00000.parquet`` and so on, and
            ``parts.json`` with the arguments and :func:`digests`.
        count: number of part files; users are divided in order.
        k, keep_seen, batch_size, strict, only, columns: as for :meth:`Recommender.recommend`;
            ``only`` is the same for all users.
        neighbors, exclude, where, at_most, by: as for that.

    Raises:
        ValueError, TypeError: a number out of range, a list in ``only`` for each user, or a folder
            with part files of another model, catalog or arguments.
        FileExistsError: ``output`` is a file, or a folder of other files.
    """

    def __init__(
        self,
        recommender: Recommender,
        output: str | os.PathLike[str],
        count: int,
        *,
        k: int = 10,
        keep_seen: bool | None = None,
        batch_size: int = 512,
        strict: bool = False,
        only: Iterable[Any] | None = None,
        columns: str = "plain",
        neighbors: bool | None = None,
        exclude: Iterable[Any] | None = None,
        where: Mapping[str, Any] | None = None,
        at_most: int | None = None,
        by: str | None = None,
    ) -> None:
        self.recommender, self.folder = recommender, Path(output)
        self.users = recommender.interactions.users
        if not 1 <= count <= len(self.users):
            raise invalid("parts", count, f"1 <= parts <= {len(self.users)}, the number of users")
        self._edges = np.arange(count + 1) * len(self.users) // count
        if self.folder.exists() and not self.folder.is_dir():
            raise invalid("output", f"{output}, which is a file", "a folder", FileExistsError)
        check_columns(columns)
        keep_seen = recommender.check_options(k, keep_seen, batch_size, strict)
        chosen = None if only is None else listed_for_all(only)
        left_out = None if exclude is None else listed("exclude", exclude, "item ids")
        self.options: dict[str, Any] = {
            "k": k,
            "keep_seen": keep_seen,
            "batch_size": batch_size,
            "strict": strict,
            "only": chosen,
            "columns": columns,
            "neighbors": neighbors,
            "exclude": left_out,
            "where": where,
            "at_most": at_most,
            "by": by,
        }
        items = recommender.items
        given = (chosen, left_out, where)
        allowed = read_allowed(recommender.interactions, items, 1, strict, *given)
        limit = AtMost.read(items, at_most, by)
        values = (count, k, keep_seen, batch_size, columns, at_most, by)
        of = {
            **dict(zip(_VALUES, values, strict=True)),
            "only": allowed.digest(),
            "kinds": None if limit is None else hashlib.sha256(limit.values.tobytes()).hexdigest(),
            **digests(recommender, neighbors),
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        self._claim(of)

    def _claim(self, of: dict[str, Any]) -> None:
        """Record the settings in the folder, or refuse a folder with other settings."""
        settings = self.folder / _SETTINGS
        # Listed first: another process may be writing the settings, which precede all part files.
        others = [p for p in self.folder.iterdir() if p.name[0] != "." and p != settings]
        if not settings.exists():
            if others:
                found_there = f"{self.folder}, which holds other files"
                raise invalid("output", found_there, "a new folder", FileExistsError)
            with suppress(FileExistsError):  # another process was first
                write_json(settings, of, new=True)
        found = read_json(settings)
        if isinstance(found, dict):  # those of earlier versions have these
            found = {"columns": "plain", "at_most": None, "by": None, "kinds": None, **found}
        if not isinstance(found, dict) or not of.keys() <= found.keys():
            said = f"{self.folder}, whose {_SETTINGS} does not say what model its parts are of"
            raise invalid("output", said, "a new folder")
        if differing := [name for name in of if found[name] != of[name]]:
            said = ", ".join(
                f"{name} {found[name]}" if name in _VALUES else f"other {name}"
                for name in differing
            )
            raise invalid("output", f"{self.folder}, whose parts are of {said}", "a new folder")

    def missing(self) -> list[int]:
        """Numbers of the missing part files."""
        return [part for part in range(len(self._edges) - 1) if not self._path(part).exists()]

    def write(self, part: int) -> tuple[int, int]:
        """Write the part file of some users, atomically.

        Returns:
            The number of rows and users written: 0 if the file exists already.
        """
        if self._path(part).exists():
            return 0, 0
        some = self.users[self._edges[part] : self._edges[part + 1]].tolist()
        frames = self.recommender.recommend_in_batches(some, **self.options)
        return write_frames(frames, self._path(part))

    def _path(self, part: int) -> Path:
        return self.folder / f"part-{part:05d}.parquet"


def write_recommendations(
    recommender: Recommender,
    output: str | os.PathLike[str],
    parts: int,
    rank: int = 0,
    world_size: int = 1,
    **options: Any,
) -> tuple[int, int]:
    """Write recommendations for all users to part files, shared among several processes.

    Existing part files are skipped: the same call resumes after an interruption, with any number
    of processes.

    Args:
        recommender, output, options: as for :class:`Parts`.
        parts: number of files.
        rank, world_size: this process, ``0 <= rank < world_size``, and how many there are; it
            writes every ``world_size``-th part.

    Returns:
        The number of rows and users written by this call.

    Raises:
        ValueError, FileExistsError: as :class:`Parts`; a rank out of range.
    """
    if not 0 <= rank < world_size:
        raise invalid("rank", rank, f"0 <= rank < {world_size}")
    folder = Parts(recommender, output, parts, **options)
    written = [folder.write(part) for part in range(rank, parts, world_size)]
    return sum(rows for rows, _ in written), sum(users for _, users in written)
