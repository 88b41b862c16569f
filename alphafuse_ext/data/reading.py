"""How files are read: said once, recorded with a run, and reused by later commands."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from alphafuse_ext.checks import invalid
from alphafuse_ext.data._delimited import Layout
from alphafuse_ext.data._tables import Source, is_delimited, same_source
from alphafuse_ext.data.embeddings import EmbeddingSource, LanguageEmbeddings, read_embeddings
from alphafuse_ext.data.interactions import (
    Interactions,
    drop_unknown,
    read_interactions,
    read_split,
)
from alphafuse_ext.data.items import Items, read_items
from alphafuse_ext.logs import Log

_RAISE_OR_DROP = ("raise", "drop")


@dataclass(frozen=True)
class Reading:
    """How interactions, items and embeddings are read.

    The attributes are arguments of :meth:`alphafuse_ext.Dataset.read`, and ``None`` where nothing
    was said; and ``items_of_rows``: items are read from the rows of interactions, an item from
    several.
    """

    user_column: str | None = None
    item_column: str | None = None
    time_column: str | None = None
    text_columns: Sequence[str] | str | None = None
    title_column: str | None = None
    interactions_layout: Layout | None = None
    items_layout: Layout | None = None
    ids_are_rows: bool | None = None
    unknown_items: str | None = None
    missing_ids: str | None = None
    split_column: str | None = None
    time_format: str | None = None
    weight_column: str | None = None
    basket_column: str | None = None
    items_of_rows: bool | None = None

    def __post_init__(self) -> None:
        for name in ("unknown_items", "missing_ids"):
            if (value := getattr(self, name)) not in (None, *_RAISE_OR_DROP):
                raise invalid(name, repr(value), f"one of {', '.join(_RAISE_OR_DROP)}")

    def catalog(
        self, items: Source | None, embeddings: EmbeddingSource | None, log: Log | None = None
    ) -> tuple[Items | None, LanguageEmbeddings | None]:
        """Read items and embeddings, in one order; ``None``: there are none.

        Where there are embeddings by item id and no items, theirs are the catalog.
        """
        catalog = language = None
        if items is not None:
            how = (self.text_columns, log, self.items_layout, self.title_column)
            rows = (bool(self.items_of_rows), self.missing_ids)
            catalog = read_items(items, self.item_column, *how, *rows)
        if embeddings is not None:
            language = self.embeddings(embeddings, catalog, log)
            catalog = catalog or language.items
        return catalog, language

    def embeddings(
        self, embeddings: EmbeddingSource, items: Items | None, log: Log | None = None
    ) -> LanguageEmbeddings:
        """Read embeddings, in the order of a catalog."""
        return read_embeddings(embeddings, items, bool(self.ids_are_rows), self.item_column, log)

    def interactions(
        self,
        interactions: Source,
        items: Items | None = None,
        log: Log | None = None,
        held_out: Sequence[Source] = (),
    ) -> tuple[Interactions, dict[str, int]]:
        """Read interactions, of a catalog; and count what was dropped, see :func:`drop_unknown`.

        Args:
            interactions, items, log: see :func:`read_interactions`.
            held_out: those of validation and of test, see :func:`read_split`.
        """
        columns = (self.user_column, self.item_column, self.time_column)
        layout = self.interactions_layout
        more = (self.weight_column, self.basket_column, self.missing_ids)
        drop = self.unknown_items == "drop"
        if held_out:
            sources = (interactions, *held_out)
            read = read_split(sources, *columns, log, layout, self.time_format, *more)
            read = read if items is None or drop else read.within(items)
        else:
            of = None if drop else items
            read = read_interactions(
                interactions, of, *columns, log, layout, self.split_column, self.time_format, *more
            )
        return (read, {}) if items is None or not drop else drop_unknown(read, items, log)

    def record(self) -> dict[str, Any]:
        """What was said, as JSON values by name."""
        record = {}
        for name, value in vars(self).items():
            if isinstance(value, Layout):
                value = {
                    field: list(part) if field == "header" else part
                    for field, part in dataclasses.asdict(value).items()
                    if part is not None
                }
            if value is not None and value is not False:
                record[name] = list(value) if isinstance(value, tuple) else value
        return record

    def completed(
        self, source: Mapping[str, Any], files: Mapping[str, Any], log: Log | None = None
    ) -> Reading:
        """With what a run was read by, where nothing is said here.

        A layout applies to text files only, and ``ids_are_rows`` to rows without ids. What becomes
        of unknown items, and whether there is a split, is said anew each time; and the format of
        times where their column is not named.

        Args:
            source: of the run, :meth:`RunFolder.source`.
            files: what is read, by name: ``interactions``, ``items``, ``embeddings``.
            log: called with a line that lists the options taken from the run.
        """
        kept = source.get("reading", {})
        found: dict[str, Any] = {}
        taken = []
        for name, value in vars(self).items():
            own = kept.get(name)
            if name == "items_of_rows" and same_source(
                files.get("items"), files.get("interactions")
            ):
                found[name] = True
            elif name == "ids_are_rows":
                if value is None and own and _without_ids(files.get("embeddings")):
                    found[name] = True
                    taken.append("ids_are_rows")
            elif name.endswith("_layout"):
                if own is not None and is_delimited(files.get(name.removesuffix("_layout"))):
                    layout = Layout() if value is None else value
                    missing = {k: v for k, v in own.items() if getattr(layout, k) is None}
                    found[name] = dataclasses.replace(layout, **missing)
                    taken += [f"{key} {part!r}" for key, part in missing.items()]
            elif name in ("unknown_items", "split_column"):
                continue
            elif name == "time_format" and not found.get("time_column", self.time_column):
                continue  # of a column that may not be there
            elif value is None and own is not None and _reads(name, files):
                found[name] = own
                taken.append(f"{name} {own!r}")
        if taken and log is not None:
            log(f"reading options of the run: {', '.join(dict.fromkeys(taken))}")
        return dataclasses.replace(self, **found)


def _reads(column: str, files: Mapping[str, Any]) -> bool:
    """Whether one of the files may have such a column."""
    of = {
        "text_columns": ("items",),
        "title_column": ("items",),
        "items_of_rows": ("items",),
        "item_column": ("interactions", "items", "embeddings"),
    }
    return any(files.get(name) is not None for name in of.get(column, ("interactions",)))


def _without_ids(embeddings: Any) -> bool:
    if isinstance(embeddings, (str, os.PathLike)):
        return Path(embeddings).suffix.lower() == ".npy"
    return isinstance(embeddings, (np.ndarray, torch.Tensor))
