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


def recommend_in_parts(
    recommender: Recommender,
    output: str | os.PathLike[str],
    parts: int,
    rank: int = 0,
    ranks: int = 1,
    **options: Any,
) -> tuple[int, int]:
    """Rank every user into a folder of Parquet files, some of them by each of several processes.

    Processes need not know of each other. A part that is there already is passed over, so that the
    same call goes on after an interruption, with as many processes as it likes.

    Args:
        recommender: the same in each process.
        output: the folder, made where it is missing: ``part-00000.parquet`` and so on, and
            ``parts.json``, which says what they are of.
        parts: how many files; users are dealt out in order.
        rank, ranks: this process, ``0 <= rank < ranks``; it writes every ``ranks``-th part.
        **options: ``k``, ``keep_seen``, ``only`` and ``batch_size`` of
            :meth:`Recommender.recommend`.

    Returns:
        How many rows and users were written now.

    Raises:
        ValueError: numbers out of range, or a folder that holds parts of something else.
    """
    users = recommender.interactions.users
    if not 1 <= parts <= len(users):
        raise invalid("parts", parts, f"1 <= parts <= {len(users)}, the number of users")
    if not 0 <= rank < ranks:
        raise invalid("rank", rank, f"0 <= rank < {ranks}")
    folder = Path(output)
    if folder.exists() and not folder.is_dir():
        raise invalid("output", f"{output}, which is a file", "a folder", FileExistsError)
    of = {
        "run": str(recommender.run.path),
        "users": len(users),
        "items": len(recommender.items),
        "parts": parts,
        "options": {name: _plain(value) for name, value in options.items()},
    }
    folder.mkdir(parents=True, exist_ok=True)
    settings = folder / _SETTINGS
    # Looked for first: another process may be making the settings, which come before any part.
    others = [path for path in folder.iterdir() if path.name[0] != "." and path != settings]
    if settings.exists():
        if (found := dict(read_json(settings))) != of:
            allowed = f"a new folder, or one of {of}"
            raise invalid("output", f"{output}, whose parts are of {found}", allowed)
    elif others:
        found_there = f"{output}, which holds other files"
        raise invalid("output", found_there, "a new folder", FileExistsError)
    else:
        write_json(settings, of)
    edges = np.arange(parts + 1) * len(users) // parts
    rows = served = 0
    for part in range(rank, parts, ranks):
        path = folder / f"part-{part:05d}.parquet"
        if path.exists():
            continue
        some = users[edges[part] : edges[part + 1]].tolist()
        counts = write_frames(recommender.recommendations(some, **options), path)
        rows, served = rows + counts[0], served + counts[1]
    return rows, served


def _plain(value: Any) -> Any:
    """As JSON has it: item ids, whatever they are, as their text."""
    return [str(one) for one in value] if isinstance(value, (list, tuple, np.ndarray)) else value
