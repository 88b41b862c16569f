"""The options with which a run read its files: recorded, and reused by later commands."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from alphafuse_ext.data import Layout, is_delimited
from alphafuse_ext.data._columns import Log

_COLUMNS = ("user_column", "item_column", "time_column", "text_columns")
_LAYOUTS = ("interactions_layout", "items_layout")
_READING = (*_COLUMNS, *_LAYOUTS, "ids_are_rows")


def record_of(**options: Any) -> dict[str, Any]:
    """The record of reading options, named as arguments of :func:`alphafuse_ext.fit`.

    Options that were not given are omitted.
    """
    record = {}
    for name in _READING:
        value = options[name]
        if isinstance(value, Layout):
            value = {
                field: list(part) if field == "header" else part
                for field, part in dataclasses.asdict(value).items()
                if part is not None
            }
        if value is not None and value is not False:
            record[name] = list(value) if isinstance(value, tuple) else value
    return record


def resolve_options(
    source: Mapping[str, Any],
    given: Mapping[str, Any],
    files: Mapping[str, Any],
    log: Log | None = None,
) -> dict[str, Any]:
    """Reading options: those given, and for all others those of the run.

    A layout applies to text files only, and ``ids_are_rows`` to rows without ids.

    Args:
        source: of the run, :meth:`RunFolder.source`.
        given: options by name; ``None``: not given. Only these are returned.
        files: what is read, by name: ``interactions``, ``items``, ``embeddings``.
        log: called with a line that lists the options taken from the run.
    """
    kept = source.get("reading", {})
    found, taken = dict(given), []
    for name, value in given.items():
        own = kept.get(name)
        if name == "ids_are_rows":
            if value is None:
                found[name] = bool(own) and _without_ids(files.get("embeddings"))
                taken += ["ids_are_rows"] if found[name] else []
        elif name in _LAYOUTS:
            if own is not None and is_delimited(files.get(name.removesuffix("_layout"))):
                layout = Layout() if value is None else value
                missing = {k: v for k, v in own.items() if getattr(layout, k) is None}
                found[name] = dataclasses.replace(layout, **missing)
                taken += [f"{key} {part!r}" for key, part in missing.items()]
        elif value is None and own is not None and _reads(name, files):
            found[name] = own
            taken.append(f"{name} {own!r}")
    if taken and log is not None:
        log(f"reading options of the run: {', '.join(dict.fromkeys(taken))}")
    return found


def _reads(column: str, files: Mapping[str, Any]) -> bool:
    """Whether one of the files may have such a column."""
    of = {"text_columns": ("items",), "item_column": ("interactions", "items", "embeddings")}
    return any(files.get(name) is not None for name in of.get(column, ("interactions",)))


def _without_ids(embeddings: Any) -> bool:
    if isinstance(embeddings, (str, os.PathLike)):
        return Path(embeddings).suffix.lower() == ".npy"
    return isinstance(embeddings, (np.ndarray, torch.Tensor))
