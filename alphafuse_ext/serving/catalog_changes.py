"""Methods of a recommender that return one with another catalog: add, retire, re-encode items.

They change neither the recommender they are called on nor its run folder.
"""

from __future__ import annotations

import dataclasses
import os
import warnings
from collections.abc import Iterable
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np

from alphafuse_ext.checks import invalid, listed
from alphafuse_ext.config import Config
from alphafuse_ext.data import (
    Interactions,
    Items,
    LanguageEmbeddings,
    Layout,
    Source,
    Split,
)
from alphafuse_ext.data._columns import first_few
from alphafuse_ext.data.embeddings import EmbeddingSource
from alphafuse_ext.data.reading import Reading
from alphafuse_ext.evaluation.run_neighbors import RunNeighbors
from alphafuse_ext.items.item_embeddings import ItemEmbeddings
from alphafuse_ext.items.projection import SemanticProjection
from alphafuse_ext.logs import Log, logged
from alphafuse_ext.models import SequenceModel
from alphafuse_ext.runs.run_folder import RunFolder, without_paths
from alphafuse_ext.serving.catalog import (
    check_takes_new_embeddings,
    check_takes_new_items,
    model_with_table,
    projection_of_run,
    read_new_items,
    table_with_embeddings,
    table_with_items,
    with_items,
)

if TYPE_CHECKING:
    import torch
    from typing_extensions import Self

    from alphafuse_ext.serving.recommender import Recommender


class Upgrade(NamedTuple):
    """What :meth:`Recommender.upgrade_embeddings` returns."""

    recommender: Recommender
    report: dict[str, Any]
    """``semantic_fit``: the share of the old semantic rows' squares that the new ones reach;
    ``id_kept``: that of the ID embeddings that was carried over; ``overlap@k``: of the k items
    recommended before, the mean share that is recommended after, over ``users``; ``before`` and
    ``after``: test metrics. The latter where there are users, and where the run held some out."""


class CatalogChanges:
    """Base class of :class:`alphafuse_ext.Recommender`."""

    model: SequenceModel
    config: Config
    interactions: Interactions
    items: Items
    run: RunFolder
    neighbors: RunNeighbors | None

    _changes: tuple[str, ...] = ()
    _fitted: SemanticProjection | None = None
    _source: dict[str, Any] | None = None

    if TYPE_CHECKING:

        @property
        def split(self) -> Split: ...

        def __init__(
            self,
            model: SequenceModel,
            config: Config,
            interactions: Interactions,
            items: Items,
            run: RunFolder,
            neighbors: RunNeighbors | None = None,
        ) -> None: ...

        @classmethod
        def load(cls, run: str | os.PathLike[str], device: str | torch.device = "cpu") -> Self: ...

    @cached_property
    def projection(self) -> SemanticProjection | None:
        """How language embeddings become semantic rows; ``None`` of a run without such rows."""
        return self._fitted or projection_of_run(self.run, self.config, lambda: self.split)

    def add_items(
        self,
        items: Source | None = None,
        embeddings: EmbeddingSource | None = None,
        *,
        item_column: str | None = None,
        text_columns: list[str] | None = None,
        items_layout: Layout | None = None,
        ids_are_rows: bool | None = None,
        any_embeddings: bool = False,
        log: Log | None = None,
    ) -> Self:
        """A recommender with new items, which can be recommended at once, without training.

        A new item gets its semantic row by the run's own projection, and an ID embedding of zero.

        Args:
            items: the new items, a file or a data frame as for :func:`alphafuse_ext.fit`.
            embeddings: their language embeddings, of the model that the run was trained with, as
                for :func:`alphafuse_ext.fit`; by item id they need no ``items``. Without them texts
                are encoded, by the encoder of the run, where it was trained on texts.
            item_column, text_columns, items_layout, ids_are_rows: as for
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
        check_takes_new_items(self.config)
        given = Reading(
            item_column=item_column,
            text_columns=text_columns,
            items_layout=items_layout,
            ids_are_rows=ids_are_rows,
        )
        source, files = self.source(), {"items": items, "embeddings": embeddings}
        reading = given.completed(source, files, log)
        new, language = read_new_items(
            self.items, items, embeddings, self.run, source["embeddings"], reading, log=log
        )
        assert language is not None, "encoded, or refused"
        empty = new.tokens[~np.asarray(language.rows).any(axis=1)]
        # Embeddings made by the run's own encoder need no check.
        changed = self.with_new(new, language, any_embeddings or embeddings is None)
        if len(empty):
            what = "no text" if language.tfidf is None else "no text that the run's TF-IDF knows"
            found = f"{len(empty)} of {len(new)} new items have {what} and are all alike"
            warnings.warn(f"{found}: {first_few(empty)}", stacklevel=2)
        return changed

    def with_new(
        self, new: Items, language: LanguageEmbeddings, any_embeddings: bool = False
    ) -> Self:
        """What :meth:`add_items` returns, of items and embeddings that have been read."""
        table = table_with_items(
            self.config, self.model.table, self.projection, language, any_embeddings
        )
        return self.with_table(new, table, language.rows)

    def with_table(self, new: Items, table: ItemEmbeddings, rows: np.ndarray | None = None) -> Self:
        """A recommender with new items, whose embeddings are the table's last rows.

        Args:
            new: the items.
            table: of all items.
            rows: their language embeddings, where neighbors are found by them.
        """
        catalog, neighbors = self.items.extended(new), self.neighbors
        if neighbors is not None:
            neighbors = neighbors.with_items(rows, catalog.texts, len(new))
        return self._changed(
            f"{len(new)} items added",
            model=model_with_table(self.config, self.model, table),
            items=catalog,
            interactions=with_items(self.interactions, catalog),
            neighbors=neighbors,
        )

    def retire_items(self, items: Iterable[Any]) -> Self:
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
        return self._changed(f"{len(set(places.tolist()))} items retired", items=catalog)

    def upgrade_embeddings(
        self,
        embeddings: EmbeddingSource,
        *,
        item_column: str | None = None,
        ids_are_rows: bool | None = None,
        k: int = 10,
        log: Log | None = None,
    ) -> Upgrade:
        """A recommender with the language embeddings of another text encoder, without training.

        The space is fitted again and rotated to match the one the sequence encoder was trained on,
        and ID embeddings are projected onto the new null space: see
        :func:`alphafuse_ext.serving.catalog.table_with_embeddings`.

        Args:
            embeddings: of every item, in the order of the catalog or by item id.
            item_column, ids_are_rows: as for :func:`alphafuse_ext.fit`; defaults are
                those of the run.
            k: recommendations compared in the report.
            log: called with lines about how files are read.

        Returns:
            The recommender, and a report of how far recommendations moved.

        Raises:
            ValueError: an item without a row, or embeddings narrower than the semantic rows.
            NotImplementedError: a run whose item embeddings do not keep language and ID apart.
        """
        log = logged(log)
        check_takes_new_embeddings(self.config)
        given = Reading(item_column=item_column, ids_are_rows=ids_are_rows)
        reading = given.completed(self.source(), {"embeddings": embeddings}, log)
        language = reading.embeddings(embeddings, self.items, log)
        weights = None
        if self.config.weights == "frequency":
            weights = self.split.train_item_counts(len(self.items))
        table, projection, report = table_with_embeddings(
            self.config, self.model.table, language, weights
        )
        changed = self._changed(
            "language embeddings replaced",
            model=model_with_table(self.config, self.model, table),
            neighbors=None if self.neighbors is None else self.neighbors.with_rows(language.rows),
        )
        changed._fitted = projection
        changed._source = {**self.source(), "embeddings": language.record()}
        before, after = cast("Recommender", self), cast("Recommender", changed)
        return Upgrade(after, {**report, **_moved(before, after, k)})

    def with_interactions(self, interactions: Interactions) -> Self:
        """The same model, which knows other users and histories, or none.

        Args:
            interactions: of the same items in the same order.
        """
        if not np.array_equal(interactions.items, self.items.tokens):
            raise invalid("interactions", "other items", "the recommender's own, in its order")
        return self._changed("interactions", interactions=interactions)

    def save(self, output: str | os.PathLike[str], keep_paths: bool = True) -> Self:
        """Write a run folder that :meth:`load` reads; the run's own stays as it is.

        Args:
            output: the folder to make.
            keep_paths: record where the run's files lay; ``False``: their names alone, for a folder
                that leaves this machine.

        Returns:
            The recommender of that folder.

        Raises:
            OSError: there is something at ``output`` already, or nothing can be written there.
        """
        source = self.changed_source()
        with RunFolder.create(
            output,
            self.config,
            self.run.report(),
            self.interactions,
            self.items,
            source if keep_paths else without_paths(source),
            self.model.state_dict(),
        ) as temporary:
            if self.neighbors is not None:
                self.neighbors.save(temporary)
            if self.projection is not None:
                self.projection.space.save(temporary / "space")
            if self.encodes_texts:
                self.run.share_encoder(temporary)
        return type(self).load(output, next(self.model.parameters()).device)

    def changed_source(self) -> dict[str, Any]:
        """What a folder of this recommender says it came from."""
        return {
            **self.source(),
            "changed_from": str(self.run.path),
            "changes": list(self._changes),
            "extended": False,
            "projection": None if self.projection is None else self.projection.record(),
        }

    def source(self) -> dict[str, Any]:
        """What the data and the embeddings came from; see :meth:`RunFolder.source`."""
        return self._source or self.run.source()

    @property
    def encodes_texts(self) -> bool:
        """Whether its language embeddings are of an encoder that it may encode new texts by."""
        record = self.source()["embeddings"]
        return record is not None and record["from"] == "texts"

    def _changed(self, what: str, **parts: Any) -> Self:
        mine = {name: getattr(self, name) for name in _PARTS}
        changed = type(self)(config=self.config, run=self.run, **{**mine, **parts})
        changed._changes = (*self._changes, what)
        changed._fitted, changed._source = self.projection, self._source
        return changed


_PARTS = ("model", "items", "interactions", "neighbors")
_USERS_COMPARED = 2000


def _moved(before: Recommender, after: Recommender, k: int) -> dict[str, Any]:
    """How far recommendations moved, for an even sample of users, and what it does to metrics."""
    users = before.interactions.users
    if not len(users):
        return {"users": 0}
    if len(users) > _USERS_COMPARED:
        users = users[np.linspace(0, len(users) - 1, _USERS_COMPARED).astype(np.int64)]
    k = min(k, before.interactions.num_items)
    pairs = [
        set(zip(frame["user"], frame["item"], strict=True))
        for frame in (one.recommend(users, k=k) for one in (before, after))
    ]
    moved = {
        f"overlap@{k}": len(pairs[0] & pairs[1]) / max(len(pairs[0]), 1),
        "users": len(users),
    }
    if before.config.protocol == "none":
        return moved
    measured = {
        "before": before.evaluate_in_detail().metrics,
        "after": after.evaluate_in_detail().metrics,
    }
    return {**moved, **measured}
