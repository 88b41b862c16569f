"""Recommendations for everyone, into files: one file, or parts that several processes share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from alphafuse_ext.checks import invalid
from alphafuse_ext.files import atomic_path, read_json, write_json
from alphafuse_ext.training.recommender import Recommender

_SETTINGS = "parts.json"


def write_frames(frames: Iterator[pd.DataFrame], output: Path) -> tuple[int, int]:
    """Frames into one file, ``.csv`` or ``.parquet``, each as it comes; the file appears whole.

    Returns:
        How many rows and users that are.
    """
    rows = served = 0
    with atomic_path(output) as temporary, ExitStack() as open_files:
        writer: Any = None
        bar = tqdm(desc="recommend", unit=" users", disable=None, leave=False)
        for frame in frames:
            users = frame["user"].nunique()
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


class Parts:
    """A folder of Parquet files that every user's recommendations go into, some users in each.

    Processes that write to it need not know of each other.

    Args:
        recommender: the same in each process.
        output: the folder, made where it is missing: ``part-00000.parquet`` and so on, and
            ``parts.json``, which says what they are of.
        count: how many files; users are dealt out in order.
        **options: ``k``, ``keep_seen``, ``only`` and ``batch_size`` of
            :meth:`Recommender.recommend`.

    Raises:
        ValueError: a count out of range, or a folder that holds parts of something else.
        FileExistsError: ``output`` is a file, or a folder of other files.
    """

    def __init__(
        self, recommender: Recommender, output: str | os.PathLike[str], count: int, **options: Any
    ) -> None:
        self.recommender, self.folder, self.options = recommender, Path(output), options
        self.users = recommender.interactions.users
        if not 1 <= count <= len(self.users):
            raise invalid("parts", count, f"1 <= parts <= {len(self.users)}, the number of users")
        self._edges = np.arange(count + 1) * len(self.users) // count
        if self.folder.exists() and not self.folder.is_dir():
            raise invalid("output", f"{output}, which is a file", "a folder", FileExistsError)
        of = {
            "run": str(recommender.run.path),
            "users": len(self.users),
            "items": len(recommender.items),
            "parts": count,
            "options": {name: _plain(value) for name, value in options.items()},
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        settings = self.folder / _SETTINGS
        # Looked for first: another process may be making the settings, which come before any part.
        others = [p for p in self.folder.iterdir() if p.name[0] != "." and p != settings]
        if settings.exists():
            if (found := dict(read_json(settings))) != of:
                allowed = f"a new folder, or one of {of}"
                raise invalid("output", f"{output}, whose parts are of {found}", allowed)
        elif others:
            found_there = f"{output}, which holds other files"
            raise invalid("output", found_there, "a new folder", FileExistsError)
        else:
            write_json(settings, of)

    def missing(self) -> list[int]:
        """Numbers of the parts that are not there."""
        return [part for part in range(len(self._edges) - 1) if not self._path(part).exists()]

    def write(self, part: int) -> tuple[int, int]:
        """Rank the users of one part; the file appears whole.

        Returns:
            How many rows and users were written: none where the part is there already.
        """
        if self._path(part).exists():
            return 0, 0
        some = self.users[self._edges[part] : self._edges[part + 1]].tolist()
        frames = self.recommender.recommendations(some, **self.options)
        return write_frames(frames, self._path(part))

    def _path(self, part: int) -> Path:
        return self.folder / f"part-{part:05d}.parquet"


def recommend_in_parts(
    recommender: Recommender,
    output: str | os.PathLike[str],
    parts: int,
    rank: int = 0,
    ranks: int = 1,
    **options: Any,
) -> tuple[int, int]:
    """Rank every user into a folder of Parquet files, some of them by each of several processes.

    A part that is there already is passed over, so that the same call goes on after an
    interruption, with as many processes as it likes.

    Args:
        recommender, output, options: as for :class:`Parts`.
        parts: how many files.
        rank, ranks: this process, ``0 <= rank < ranks``; it writes every ``ranks``-th part.

    Returns:
        How many rows and users were written now.

    Raises:
        ValueError, FileExistsError: as :class:`Parts`; a rank out of range.
    """
    if not 0 <= rank < ranks:
        raise invalid("rank", rank, f"0 <= rank < {ranks}")
    folder = Parts(recommender, output, parts, **options)
    written = [folder.write(part) for part in range(rank, parts, ranks)]
    return sum(rows for rows, _ in written), sum(users for _, users in written)


def _plain(value: Any) -> Any:
    """As JSON has it: item ids, whatever they are, as their text."""
    return [str(one) for one in value] if isinstance(value, (list, tuple, np.ndarray)) else value
