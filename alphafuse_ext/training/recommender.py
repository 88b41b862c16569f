"""A trained model with its catalog and histories: what ranks, explains and is loaded from a run."""

from __future__ import annotations

import dataclasses
import os
import warnings
from collections.abc import Iterable, Iterator
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor

from alphafuse_ext import ops
from alphafuse_ext.checks import invalid, listed
from alphafuse_ext.data import (
    Examples,
    Interactions,
    Items,
    LanguageEmbeddings,
    Source,
    Split,
    read_embeddings,
)
from alphafuse_ext.data._columns import first_few
from alphafuse_ext.data.embeddings import EmbeddingSource
from alphafuse_ext.items.item_embeddings import ItemEmbeddings
from alphafuse_ext.items.projection import SemanticProjection
from alphafuse_ext.models import SequenceModel
from alphafuse_ext.ops.arguments import check_similarity
from alphafuse_ext.training.assembly import build_split, rebuild_model
from alphafuse_ext.training.catalog import (
    model_with_table,
    projection_of_run,
    read_new_items,
    table_with_embeddings,
    table_with_items,
    with_items,
)
from alphafuse_ext.training.config import Config
from alphafuse_ext.training.device import usable_device
from alphafuse_ext.training.evaluate import (
    Evaluation,
    TieRule,
    encode_histories,
    evaluate_model,
    exclusion,
)
from alphafuse_ext.training.groups import long_tail_report
from alphafuse_ext.training.queries import AllowedItems, Queries, read_only, read_queries
from alphafuse_ext.training.run import RunFolder


class Recommender:
    """Recommends items to users it was trained on, or to anyone with a history.

    Made by :func:`alphafuse_ext.fit` or :meth:`load`. It never changes: :meth:`add_items`,
    :meth:`retire_items` and :meth:`upgrade_embeddings` give another one, so that several threads
    may ask one recommender, and a server changes to the next by one assignment.

    Args:
        model: the trained model with its item table.
        config: the settings it was trained with.
        interactions: every user's whole history.
        items: the catalog, in the order of the item table.
        run: the folder it was trained in.
    """

    def __init__(
        self,
        model: SequenceModel,
        config: Config,
        interactions: Interactions,
        items: Items,
        run: RunFolder,
    ) -> None:
        self.model = model.eval()
        self.config = config
        self.interactions = interactions
        self.items = items
        self.run = run
        self._changes: list[str] = []
        self._fitted: SemanticProjection | None = None
        self._source: dict[str, Any] | None = None

    @classmethod
    def load(cls, run: str | os.PathLike[str], device: str | torch.device = "cpu") -> Recommender:
        """The selected epoch of a run, from its folder alone.

        Raises:
            OSError: no epoch of the run has finished yet, or a file of it cannot be read.
            ValueError: a device that this machine or this build has not.
        """
        device = usable_device(device)
        folder = RunFolder(run)
        config = folder.config()
        model = rebuild_model(config, folder.model("best")[0])
        return cls(model.to(device), config, folder.interactions(), folder.items(), folder)

    @cached_property
    def split(self) -> Split:
        """What the run trained on, and the examples that measure it."""
        return build_split(self.config, self.interactions)

    @cached_property
    def projection(self) -> SemanticProjection | None:
        """How language embeddings become semantic rows; ``None`` of a run without such rows."""
        return self._fitted or projection_of_run(self.run, self.config, self.split)

    def recommend(
        self,
        users: Iterable[Any] | None = None,
        histories: Iterable[Iterable[Any]] | Interactions | None = None,
        k: int = 10,
        keep_seen: bool | None = None,
        batch_size: int = 512,
        strict: bool = False,
        only: Iterable[Any] | None = None,
    ) -> pd.DataFrame:
        """The ``k`` best items, best first.

        Args:
            users: user ids; every user of the training data where neither this nor ``histories``
                is given.
            histories: instead of users: item ids, oldest first, for each query; or interactions of
                other users, see :func:`alphafuse_ext.data.read_interactions`.
            k: how many items.
            keep_seen: recommend items of the history as well; as in training where not given.
            batch_size: histories ranked at once.
            strict: refuse what the data lacks. Unless given, unknown users and items are left out
                and a history without a known item gets no recommendations.
            only: item ids to choose from, or a list of them for each user or history.

        Returns:
            One row per recommendation: ``user`` (its id, or the number of the history), ``rank``
            (from 1), ``item``, ``title`` where titles are known, ``score``. Users and items have
            the types of the data (see :mod:`alphafuse_ext.data.ids`), whatever they were asked for
            in. Fewer than ``k`` rows for a user who has seen nearly everything.

        Warns:
            UserWarning: what was left out, counted and by example.

        Raises:
            TypeError: a string where a list of ids is meant, or values that are no ids.
            ValueError: no users or histories, ``k`` or ``batch_size`` out of range, ``only``
                without an item that can be recommended; with ``strict``, unknown users or items,
                empty histories and retired items in ``only``.
        """
        frames = self.recommendations(users, histories, k, keep_seen, batch_size, strict, only)
        return pd.concat(frames, ignore_index=True)

    def recommendations(
        self,
        users: Iterable[Any] | None = None,
        histories: Iterable[Iterable[Any]] | Interactions | None = None,
        k: int = 10,
        keep_seen: bool | None = None,
        batch_size: int = 512,
        strict: bool = False,
        only: Iterable[Any] | None = None,
    ) -> Iterator[pd.DataFrame]:
        """What :meth:`recommend` gives, a frame for each batch, in memory for one batch.

        Arguments are checked, and what is left out is said, before the first frame. At least one
        frame, of no rows where there is nothing to recommend.

        Args:
            users, histories, k, keep_seen, batch_size, strict, only: as for :meth:`recommend`.
        """
        num_items = self.interactions.num_items
        _check_count("k", k, num_items, "the number of items")
        _check_count("batch_size", batch_size)
        _check_flag("strict", strict)
        keep_seen = self._keep_seen(keep_seen)
        queries = read_queries(self.interactions, users, histories, strict)
        allowed = read_only(self.interactions, self.items, only, queries.asked, strict)
        for line in (*queries.left_out, *allowed.left_out):
            warnings.warn(line, stacklevel=3)
        return self._ranked(queries, allowed, k, keep_seen, batch_size)

    def _ranked(
        self, queries: Queries, allowed: AllowedItems, k: int, keep_seen: bool, batch_size: int
    ) -> Iterator[pd.DataFrame]:
        ranked = self._live
        if allowed.shared is not None:
            ranked = self._only(allowed.shared)
        elif allowed.lists is not None:
            ranked = RankedItems(self.model.table)
        device = self._device
        for start in range(0, max(len(queries.histories), 1), batch_size):
            rows = np.arange(start, min(start + batch_size, len(queries.histories)))
            if not len(rows):  # a row that is taken out again leaves columns of the usual types
                users = self.interactions.users[:1]
                names = users if queries.names.dtype == users.dtype else queries.names[:1]
                names = names if len(names) else np.zeros(1, np.int64)
                first = np.zeros((1, 1), np.float32), np.zeros((1, 1), np.int64)
                yield self._frame(names, *first)[:0]
                return
            batch = queries.histories.select(rows)
            only = exclude = None
            if allowed.lists is not None:
                only = exclusion(allowed.lists.select(queries.places[rows]), device)
            if not keep_seen:
                offsets, seen = exclusion(batch, device)
                exclude = offsets, ranked.places_of(seen)
            with torch.inference_mode():
                scores, places = ranked.table.topk(
                    encode_histories(self.model, batch, device),
                    min(k, ranked.table.num_embeddings),
                    similarity=self.model.similarity,
                    exclude=exclude,
                    first_pass="auto",
                    only=only,
                )
                ids = ranked.ids_of(places)
            yield self._frame(queries.names[rows], scores.cpu().numpy(), ids.cpu().numpy())

    def recommend_to_items(
        self,
        items: Iterable[Any],
        k: int = 10,
        part: str = "fused",
        similarity: str = "cosine",
        strict: bool = False,
        only: Iterable[Any] | None = None,
    ) -> pd.DataFrame:
        """The ``k`` items most alike to each of some items, which are not among their own.

        Args:
            items: item ids, retired ones as well.
            k: how many items.
            part: by ``"fused"`` item embeddings, by their ``"semantic"`` part or their ``"id"``
                part alone.
            similarity: ``"cosine"`` or ``"dot"``.
            strict: refuse unknown items, and retired ones in ``only``, which are left out else.
            only: item ids to choose from, or a list of them for each item.

        Returns:
            One row per recommendation: ``target_item``, ``rank`` (from 1), ``item``, ``title``
            where titles are known, ``score``.

        Warns:
            UserWarning: what was left out.

        Raises:
            TypeError, ValueError: as :meth:`recommend`; a ``part`` that these embeddings have not.
        """
        _check_count("k", k, self.interactions.num_items, "the number of items")
        _check_flag("strict", strict)
        check_similarity(similarity)
        wanted = listed("items", items, "item ids")
        if not wanted:
            raise invalid("items", "no items", "at least one")
        find = self.interactions.item_index if strict else self.interactions.find_items
        found = find(wanted)
        places = np.flatnonzero(found >= 0)
        unknown = [wanted[place] for place in np.flatnonzero(found < 0)]
        allowed = read_only(self.interactions, self.items, only, len(wanted), strict)
        left_out = [f"unknown items are left out: {first_few(unknown)}"] if unknown else []
        for line in (*left_out, *allowed.left_out):
            warnings.warn(line, stacklevel=2)
        with torch.inference_mode():
            rows = self._part(part)
            ids = torch.from_numpy(found[places]).to(rows.device)
            chosen: Any = None
            if allowed.lists is not None:
                chosen = exclusion(allowed.lists.select(places), rows.device)
            elif allowed.shared is not None:
                chosen = torch.from_numpy(allowed.shared).to(rows.device)
            elif self.items.retired is not None:
                chosen = torch.from_numpy(np.flatnonzero(~self.items.retired)).to(rows.device)
            scores, best = ops.topk(
                rows[ids], k, None, rows, similarity=similarity, exclude=ids[:, None], only=chosen
            )
        frame = self._frame(
            self.items.tokens[found[places]], scores.cpu().numpy(), best.cpu().numpy()
        )
        return frame.rename(columns={"user": "target_item"})

    def _part(self, part: str) -> Tensor:
        """Embeddings of all items, or what they are made of, ``(N, any)``."""
        table = self.model.table
        if part not in ("fused", "semantic", "id"):
            raise invalid("part", repr(part), "'fused', 'semantic' or 'id'")
        if part == "fused":
            return table(torch.arange(table.num_embeddings, device=self._device)).float()
        rows = table.parts()[0 if part == "semantic" else 1]
        if rows is None:
            kind = self.config.item_embedding
            raise invalid("part", f"{part!r}, in a run of item_embedding={kind}", "'fused'")
        return rows.detach().float()

    # --- a catalog that changes

    def add_items(
        self,
        items: Source | None = None,
        embeddings: EmbeddingSource | None = None,
        *,
        item_column: str | None = None,
        text_columns: list[str] | None = None,
        ids_are_rows: bool = False,
        any_embeddings: bool = False,
    ) -> Recommender:
        """A recommender with new items, which it may recommend at once, without training.

        A new item gets its semantic row by the run's own projection, and an ID embedding of zero.

        Args:
            items: the new items, a file or a data frame as for :func:`alphafuse_ext.fit`.
            embeddings: their language embeddings, of the model that the run was trained with, as
                for :func:`alphafuse_ext.fit`; by item id they need no ``items``. Without them texts
                are encoded, where the run's were by sentence-transformers.
            item_column, text_columns, ids_are_rows: as for :func:`alphafuse_ext.fit`.
            any_embeddings: take embeddings that by the look of them are of another model.

        Returns:
            Another recommender; this one, and the run's folder, stay as they are. :meth:`save`
            writes it.

        Warns:
            UserWarning: items without text, which no one can tell apart.

        Raises:
            ValueError, TypeError: items that are there already, embeddings that do not fit, or a
                run without language embeddings.
            NotImplementedError: a run of WhitenRec.
        """
        new, language = read_new_items(
            self.items,
            items,
            embeddings,
            self.source()["embeddings"],
            item_column=item_column,
            text_columns=text_columns,
            ids_are_rows=ids_are_rows,
        )
        if language is None:  # refused below
            language = LanguageEmbeddings(np.zeros((len(new), 1), np.float32), {})
        empty = new.tokens[~np.asarray(language.rows).any(axis=1)]
        changed = self.with_new(new, language, any_embeddings)
        if len(empty):
            found = f"{len(empty)} of {len(new)} new items have no text and are all alike"
            warnings.warn(f"{found}: {first_few(empty)}", stacklevel=2)
        return changed

    def with_new(
        self, new: Items, language: LanguageEmbeddings, any_embeddings: bool = False
    ) -> Recommender:
        """What :meth:`add_items` returns, of items and embeddings that have been read."""
        catalog = self.items.extended(new)
        table = table_with_items(
            self.config, self.model.table, self.projection, language, any_embeddings
        )
        return self._changed(
            f"{len(new)} items added",
            model=model_with_table(self.config, self.model, table),
            items=catalog,
            interactions=with_items(self.interactions, catalog),
        )

    def retire_items(self, items: Iterable[Any]) -> Recommender:
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
        ids_are_rows: bool = False,
        k: int = 10,
    ) -> Upgrade:
        """A recommender on the language embeddings of another text encoder, without training.

        The space is fitted anew, turned so that the sequence encoder reads on what it was trained
        on, and ID embeddings are carried over by projecting between the null spaces: see
        :func:`alphafuse_ext.training.catalog.table_with_embeddings`.

        Args:
            embeddings: of every item, in the order of the catalog or by item id.
            item_column, ids_are_rows: as for :func:`alphafuse_ext.fit`.
            k: recommendations compared in the report.

        Returns:
            The recommender, and a report of how far recommendations moved.

        Raises:
            ValueError: an item without a row, or embeddings narrower than the semantic rows.
            NotImplementedError: a run whose item embeddings do not keep language and ID apart.
        """
        language = read_embeddings(embeddings, self.items, ids_are_rows, item_column)
        counts = self.split.train_item_counts(len(self.items))
        weights = counts if self.config.weights == "frequency" else None
        table, projection, report = table_with_embeddings(
            self.config, self.model.table, language, weights
        )
        changed = self._changed(
            "language embeddings replaced", model=model_with_table(self.config, self.model, table)
        )
        changed._fitted = projection
        changed._source = {**self.source(), "embeddings": language.record()}
        return Upgrade(changed, {**report, **_moved(self, changed, k)})

    def save(self, output: str | os.PathLike[str]) -> Recommender:
        """Write a run folder that :meth:`load` reads; the run's own stays as it is.

        Returns:
            The recommender of that folder.

        Raises:
            OSError: there is something at ``output`` already, or nothing can be written there.
        """
        with RunFolder.create(
            output,
            self.config,
            self.run.report(),
            self.interactions,
            self.items,
            self.changed_source(),
            self.model.state_dict(),
        ) as temporary:
            if self.projection is not None:
                self.projection.space.save(temporary / "space")
        return Recommender.load(output, self._device)

    def changed_source(self) -> dict[str, Any]:
        """What a folder of this recommender says it came from."""
        changes = {"changed_from": str(self.run.path), "changes": self._changes}
        projection = None if self.projection is None else self.projection.record()
        return {**self.source(), **changes, "projection": projection}

    def source(self) -> dict[str, Any]:
        """What the data and the embeddings came from; see :meth:`RunFolder.source`."""
        return self._source or self.run.source()

    def _changed(self, what: str, **parts: Any) -> Recommender:
        mine = {"model": self.model, "items": self.items, "interactions": self.interactions}
        changed = Recommender(config=self.config, run=self.run, **{**mine, **parts})
        changed._changes = [*self._changes, what]
        changed._fitted, changed._source = self.projection, self._source
        return changed

    @property
    def _device(self) -> torch.device:
        return next(self.model.parameters()).device

    @cached_property
    def _live(self) -> RankedItems:
        """What is ranked where nothing else is asked for: all items but retired ones."""
        retired = self.items.retired
        if retired is None or not retired.any():
            return RankedItems(self.model.table)
        return self._only(np.flatnonzero(~retired))

    def _only(self, ids: npt.NDArray[np.int64]) -> RankedItems:
        chosen = torch.from_numpy(ids).to(self._device)
        places = torch.full((len(self.items),), -1, device=self._device)
        places[chosen] = torch.arange(len(ids), device=self._device)
        return RankedItems(self.model.table.select(chosen).eval(), chosen, places)

    def evaluate(
        self, part: str = "test", keep_seen: bool | None = None, ties: TieRule = "id"
    ) -> dict[str, float]:
        """Metrics of the selected epoch, over the whole catalog.

        They are those of the lists that :meth:`recommend` gives after the same histories: where
        seen items are left out, a target that its user had before is a miss.

        Args:
            part: ``"test"`` or ``"validation"``.
            keep_seen: rank the items of the history as well; as in training where not given.
            ties: ``"id"``: items of the same score in order of their ids, as they are recommended;
                ``"mean"``: the metrics are means over all orders of these.

        Returns:
            HR, NDCG and MRR, see :func:`alphafuse_ext.training.evaluate.ranking_metrics`.

        Warns:
            UserWarning: what a reader of the metrics has to know, see :class:`Evaluation`.
        """
        evaluation = self.evaluation(part, keep_seen, ties)
        for line in evaluation.warnings():
            warnings.warn(line, stacklevel=2)
        return evaluation.metrics

    def evaluation(
        self, part: str = "test", keep_seen: bool | None = None, ties: TieRule = "id"
    ) -> Evaluation:
        """What :meth:`evaluate` gives, with seen items both excluded and ranked, and with counts.

        Args:
            part, keep_seen, ties: as for :meth:`evaluate`.
        """
        return evaluate_model(
            self.model,
            _examples(self.split, part),
            keep_seen=self._keep_seen(keep_seen),
            ties=ties,
            batch_size=self.config.evaluation_batch_size,
            progress=True,
            retired=None if self.items.retired is None else np.flatnonzero(self.items.retired),
        )

    def long_tail(self, evaluation: Evaluation, part: str = "test") -> dict[str, Any]:
        """An evaluation apart for head and tail, users and items.

        Args:
            evaluation: what :meth:`evaluation` gave for this part.
            part: ``"test"`` or ``"validation"``.

        Returns:
            See :func:`alphafuse_ext.training.groups.long_tail_report`.
        """
        counts = self.split.train_item_counts(self.interactions.num_items)
        return long_tail_report(_examples(self.split, part), counts, evaluation)

    def _keep_seen(self, given: bool | None) -> bool:
        if given is None:
            return self.config.keep_seen
        _check_flag("keep_seen", given)
        return given

    def _frame(self, names: np.ndarray, scores: np.ndarray, ids: np.ndarray) -> pd.DataFrame:
        found = ids >= 0
        row, column = np.nonzero(found)
        chosen = ids[found]
        frame = pd.DataFrame({"user": names[row], "rank": column + 1})
        frame["item"] = self.items.tokens[chosen]
        if self._titles is not None:
            frame["title"] = self._titles[chosen]
        frame["score"] = scores[found]
        return frame

    @cached_property
    def _titles(self) -> np.ndarray | None:
        titles = self.items.titles
        return None if titles is None else np.asarray(titles, dtype=object)


class Upgrade(NamedTuple):
    """What :meth:`Recommender.upgrade_embeddings` returns."""

    recommender: Recommender
    report: dict[str, Any]
    """``semantic_fit``: the share of the old semantic rows' squares that the new ones reach;
    ``id_kept``: that of the ID embeddings that was carried over; ``overlap@k``: of the k items
    recommended before, the mean share that is recommended after, over ``users``; ``before`` and
    ``after``: test metrics."""


class RankedItems(NamedTuple):
    """Items that a ranking is of: all of a catalog, or some, gathered once for many queries."""

    table: ItemEmbeddings
    ids: Tensor | None = None
    """Of the items in the table, ascending; ``None``: its own."""
    places: Tensor | None = None
    """In the table, of each id of the catalog; -1: it is not there."""

    def places_of(self, ids: Tensor) -> Tensor:
        return ids if self.places is None else self.places[ids]

    def ids_of(self, places: Tensor) -> Tensor:
        """Of places in the table; -1 of -1."""
        if self.ids is None:
            return places
        return torch.where(places < 0, places, self.ids[places.clamp(min=0)])


_USERS_COMPARED = 2000


def _moved(before: Recommender, after: Recommender, k: int) -> dict[str, Any]:
    """How far recommendations moved, for an even sample of users, and what it does to metrics."""
    users = before.interactions.users
    if len(users) > _USERS_COMPARED:
        users = users[np.linspace(0, len(users) - 1, _USERS_COMPARED).astype(np.int64)]
    k = min(k, before.interactions.num_items)
    pairs = [
        set(zip(frame["user"], frame["item"], strict=True))
        for frame in (one.recommend(users, k=k) for one in (before, after))
    ]
    return {
        f"overlap@{k}": len(pairs[0] & pairs[1]) / max(len(pairs[0]), 1),
        "users": len(users),
        "before": before.evaluation().metrics,
        "after": after.evaluation().metrics,
    }


def _examples(split: Split, part: str) -> Examples:
    if part not in ("validation", "test"):
        raise invalid("part", repr(part), "'validation' or 'test'")
    return split.test if part == "test" else split.validation


def _check_count(
    argument: str, given: Any, most: int | None = None, what: str | None = None
) -> None:
    allowed = f"{argument} >= 1" if most is None else f"1 <= {argument} <= {most}, {what}"
    if isinstance(given, bool) or not isinstance(given, (int, np.integer)):
        raise invalid(argument, repr(given), f"an integer, {allowed}", TypeError)
    if given < 1 or (most is not None and given > most):
        raise invalid(argument, given, allowed)


def _check_flag(argument: str, given: Any) -> None:
    if not isinstance(given, (bool, np.bool_)):
        raise invalid(argument, repr(given), "True or False", TypeError)
