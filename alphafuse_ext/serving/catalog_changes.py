"""Functions that give a run another catalog: add, retire, restore, re-encode items.

The first argument is not changed, nor is its run folder; :class:`alphafuse_ext.Recommender` has
them as methods.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterable
from typing import Any, TypeVar

import numpy as np
import torch

from alphafuse_ext.checks import invalid, listed
from alphafuse_ext.data import (
    Items,
    LanguageEmbeddings,
    Layout,
    Source,
)
from alphafuse_ext.data._columns import first_few
from alphafuse_ext.data.embeddings import EmbeddingSource
from alphafuse_ext.data.reading import Reading
from alphafuse_ext.items.item_embeddings import ItemEmbeddings
from alphafuse_ext.logs import Log, logged
from alphafuse_ext.serving.catalog import (
    check_takes_new_embeddings,
    check_takes_new_items,
    model_with_table,
    read_new_items,
    table_with_embeddings,
    table_with_items,
    with_items,
)
from alphafuse_ext.serving.served_run import ServedRun

R = TypeVar("R", bound=ServedRun)


def add_items(
    self: R,
    items: Source | None = None,
    embeddings: EmbeddingSource | None = None,
    *,
    item_column: str | None = None,
    text_columns: list[str] | None = None,
    title_column: str | None = None,
    items_layout: Layout | None = None,
    ids_are_rows: bool | None = None,
    any_embeddings: bool = False,
    log: Log | None = None,
) -> R:
    """A recommender with new items, which can be recommended at once, without training.

    A new item gets its semantic row by the run's own projection, and an ID embedding of zero.

    Args:
        items: the new items, a file or a data frame as for :func:`alphafuse_ext.fit`.
        embeddings: their language embeddings, of the model that the run was trained with, as
            for :func:`alphafuse_ext.fit`; by item id they need no ``items``. Without them texts
            are encoded, by the encoder of the run, where it was trained on texts.
        item_column, text_columns, title_column, items_layout, ids_are_rows: as for
            :func:`alphafuse_ext.fit`; defaults are those of the run.
        any_embeddings: accept embeddings that look like another model's.
        log: called with lines about how files are read.

    Returns:
        Another recommender; this one, and the run's folder, stay as they are. :meth:`save`
        writes it.

    Warns:
        UserWarning: items without text, or without a word that the run's TF-IDF knows, which
            have no language embedding.

    Raises:
        ValueError, TypeError: items that are there already, embeddings that do not fit, or a
            run without language embeddings.
        NotImplementedError: a run of WhitenRec.
    """
    log = logged(log)
    check_takes_new_items(self.config, self.neighbors)
    given = Reading(
        item_column=item_column,
        text_columns=text_columns,
        title_column=title_column,
        items_layout=items_layout,
        ids_are_rows=ids_are_rows,
    )
    source, files = self.source(), {"items": items, "embeddings": embeddings}
    reading = given.completed(source, files, log)
    new, language = read_new_items(
        self.items, items, embeddings, self.run, source["embeddings"], reading, log=log
    )
    # Embeddings made by the run's own encoder need no check.
    changed = with_new(self, new, language, any_embeddings or embeddings is None)
    if language is None:
        return changed
    empty = new.tokens[~np.asarray(language.rows).any(axis=1)]
    if len(empty):
        what = "no text" if language.tfidf is None else "no text that the run's TF-IDF knows"
        found = f"{len(empty)} of {len(new)} new items have {what} and are all alike"
        warnings.warn(f"{found}: {first_few(empty)}", stacklevel=2)
    return changed


def with_new(
    self: R, new: Items, language: LanguageEmbeddings | None, any_embeddings: bool = False
) -> R:
    """What :meth:`add_items` returns, of items and embeddings that have been read."""
    table, rows = self.model.whole_table, None if language is None else language.rows
    if not self.config.trained:
        return with_table(self, new, table.extended(torch.zeros(len(new), 1)), rows)
    assert language is not None, "encoded, or refused"
    table = table_with_items(self.config, table, self.projection, language, any_embeddings)
    return with_table(self, new, table, rows)


def with_table(self: R, new: Items, table: ItemEmbeddings, rows: np.ndarray | None = None) -> R:
    """A recommender with new items, whose embeddings are the table's last rows.

    Args:
        new: the items.
        table: of all items.
        rows: their language embeddings, where neighbors are found by them.
    """
    catalog, neighbors = self.items.extended(new), self.neighbors
    if neighbors is not None:
        neighbors = neighbors.with_items(rows, catalog.texts, len(new))
    return self.changed(
        f"{len(new)} items added",
        model=model_with_table(self.config, self.model, table),
        items=catalog,
        interactions=with_items(self.interactions, catalog),
        neighbors=neighbors,
    )


def retire_items(self: R, items: Iterable[Any]) -> R:
    """A recommender that never recommends some items. They keep their ids, and stay in
    histories.

    Args:
        items: item ids.

    Returns:
        Another recommender; this one stays as it is.

    Raises:
        ValueError: no or unknown items, or no item that would be left.
    """
    wanted = listed("items", items, "item ids")
    if not wanted:
        raise invalid("items", "no items", "at least one")
    places = self.interactions.item_index(wanted)
    before = self.items.retired
    retired = np.zeros(len(self.items), dtype=bool) if before is None else before.copy()
    retired[places] = True
    if retired.all():
        raise invalid("items", f"all {len(retired)} items", "fewer, so that some are left")
    catalog = dataclasses.replace(self.items, retired=retired)
    return self.changed(f"{len(set(places.tolist()))} items retired", items=catalog)


def restore_items(self: R, items: Iterable[Any]) -> R:
    """A recommender that recommends retired items again: what :meth:`retire_items` did, undone.

    Args:
        items: item ids; those that are not retired stay as they are.

    Returns:
        Another recommender; this one stays as it is.

    Raises:
        ValueError: no or unknown items.
    """
    wanted = listed("items", items, "item ids")
    if not wanted:
        raise invalid("items", "no items", "at least one")
    places = np.unique(self.interactions.item_index(wanted))
    before = self.items.retired
    retired = np.zeros(len(self.items), dtype=bool) if before is None else before.copy()
    count = int(retired[places].sum())
    retired[places] = False
    catalog = dataclasses.replace(self.items, retired=retired if retired.any() else None)
    return self.changed(f"{count} items restored", items=catalog)


def with_embeddings(
    self: R,
    embeddings: EmbeddingSource,
    item_column: str | None,
    ids_are_rows: bool | None,
    log: Log | None,
) -> tuple[R, dict[str, float]]:
    """What :meth:`Recommender.upgrade_embeddings` returns, and its report of the embeddings."""
    log = logged(log)
    check_takes_new_embeddings(self.config)
    given = Reading(item_column=item_column, ids_are_rows=ids_are_rows)
    reading = given.completed(self.source(), {"embeddings": embeddings}, log)
    language = reading.embeddings(embeddings, self.items, log)
    weights = None
    if self.config.weights == "frequency":
        weights = self.split.train_item_counts(len(self.items))
    table, projection, report = table_with_embeddings(
        self.config, self.model.whole_table, language, weights
    )
    source = {**self.source(), "embeddings": language.record()}
    changed = self.changed(
        "language embeddings replaced",
        projection,
        source,
        model=model_with_table(self.config, self.model, table),
        neighbors=None if self.neighbors is None else self.neighbors.with_rows(language.rows),
    )
    return changed, report
