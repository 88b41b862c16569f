"""The recommender: a trained model with its catalog and histories, as loaded from a run."""

from __future__ import annotations

import dataclasses
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor

import alphafuse_ext.ops as ops
from alphafuse_ext.checks import check_count, check_flag, invalid, listed
from alphafuse_ext.choices import COLUMNS
from alphafuse_ext.data import (
    Interactions,
    Sequences,
)
from alphafuse_ext.data._columns import first_few
from alphafuse_ext.data.embeddings import EmbeddingSource
from alphafuse_ext.data.sequences import evenly_spread
from alphafuse_ext.evaluation.baselines import NOW
from alphafuse_ext.evaluation.ranking import (
    RankedItems,
    exclusion,
)
from alphafuse_ext.evaluation.run_neighbors import RunNeighbors
from alphafuse_ext.logs import Log
from alphafuse_ext.ops.arguments import check_similarity
from alphafuse_ext.serving import catalog_changes, evaluation
from alphafuse_ext.serving.export import export
from alphafuse_ext.serving.lists import Lists, PopularItems, ranked_lists
from alphafuse_ext.serving.queries import AllowedItems, AtMost, Queries, read_allowed, read_queries
from alphafuse_ext.serving.served_run import ServedRun

_LISTS_FIRST = 1 - 1e-6
"""A weight of neighbors by which what is in no list comes after all that is."""

POPULAR_SHARE = 0.1
"""Of all interactions, the newest, by which someone unknown is recommended items, unless validation
has chosen another for the baseline of that name."""


class Upgrade(NamedTuple):
    """What :meth:`Recommender.upgrade_embeddings` returns."""

    recommender: Recommender
    report: dict[str, Any]
    """``semantic_fit``: the share of the old semantic rows' squares that the new ones reach;
    ``id_kept``: that of the ID embeddings that was carried over; ``overlap@k``: of the k items
    recommended before, the mean share that is recommended after, over ``users``; ``before`` and
    ``after``: test metrics. The latter where there are users, and where the run held some out."""


class Recommender(ServedRun):
    """Recommends items to users it was trained on, or to anyone with a history.

    Created by :func:`alphafuse_ext.fit` or :meth:`load`. It is immutable: :meth:`add_items`,
    :meth:`retire_items`, :meth:`restore_items` and :meth:`upgrade_embeddings` return a new one.
    Threads may share a recommender, and a server switches to a new one by one assignment.

    Args:
        model: the trained model with its item table.
        config: the settings it was trained with.
        interactions: every user's whole history.
        items: the catalog, in the order of the item table.
        run: its run folder.
        neighbors: item-to-item neighbors that it ranks with, weighted.
    """

    add_items = catalog_changes.add_items
    retire_items = catalog_changes.retire_items
    restore_items = catalog_changes.restore_items
    evaluate = evaluation.evaluate
    evaluate_in_detail = evaluation.evaluate_in_detail
    evaluate_sampled = evaluation.evaluate_sampled
    own_metrics = evaluation.own_metrics
    list_metrics = evaluation.list_metrics
    popularity = evaluation.popularity
    baselines = evaluation.baselines
    long_tail = evaluation.long_tail

    def recommend(
        self,
        users: Iterable[Any] | None = None,
        histories: Iterable[Iterable[Any]] | Interactions | None = None,
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
    ) -> pd.DataFrame:
        """The ``k`` best items, best first.

        Someone unknown, by a user id that the run has not seen, or a history that is empty or has
        no known item, gets what is popular of late.

        Args:
            users: user ids; every user of the training data where neither this nor ``histories``
                is given.
            histories: instead of users: item ids, oldest first, for each query; or interactions of
                other users, see :func:`alphafuse_ext.data.read_interactions`.
            k: number of items.
            keep_seen: also recommend items of the history; default: as in training.
            batch_size: histories per batch.
            strict: refuse unknown users and items. By default unknown items are skipped with a
                warning.
            only: recommend only these item ids; or a list of them for each user or history.
            columns: ``"rectools"``: with the columns of RecTools' models and metrics, ``user_id``,
                ``item_id``, ``score`` and ``rank``; others come last.
            neighbors: ``False``: rank by the model alone; default: with the neighbors of the run,
                if it has them.
            exclude: item ids that are not recommended.
            where: recommend only items with these values in the columns of the catalog: by column a
                value, a list of values of which an item has one, or ``{"min": ..., "max": ...}``,
                or one of the two. All of them have to be met.
            at_most, by: no more than so many items of one value of this item column. The best that
                fit, in their order: lists are ranked as deep as it takes.

        Returns:
            One row per recommendation: ``user`` (its id, or the number of the history), ``rank``
            (from 1), ``item``, ``title`` where titles are known, ``score``. Users and items have
            the types of the data (see :mod:`alphafuse_ext.data.ids`). A user who has seen nearly
            all items has fewer than ``k`` rows. With neighbors, ``score`` is the logarithm of the
            mixed probability, and ``from`` what has the largest part in it: ``"model"``, ``"bought
            together"`` or ``"alike by text"``; ``"popular"`` in place of the first without a model.
            Where someone is unknown there is ``from`` as well, theirs is ``"popular now"``, and
            ``score`` the number of interactions among the newest: of the share that validation
            chose for the baseline of that name, else a tenth; ``"popular"`` without times, of all.

        Warns:
            UserWarning: who is unknown and what was skipped, with count and examples.

        Raises:
            TypeError: a string where a list of ids is meant, or values that are no ids.
            ValueError: no users or histories, ``k`` or ``batch_size`` out of range, unknown
                ``columns``, item columns that the run has not kept or values that they cannot have,
                no item left by ``only``, ``exclude`` and ``where``; with ``strict``, unknown users
                or items, empty histories and retired items in ``only``.
        """
        frames = self.recommend_in_batches(
            *(users, histories, k, keep_seen, batch_size, strict, only, columns, neighbors),
            *(exclude, where, at_most, by),
        )
        return pd.concat(frames, ignore_index=True)

    def recommend_in_batches(
        self,
        users: Iterable[Any] | None = None,
        histories: Iterable[Iterable[Any]] | Interactions | None = None,
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
    ) -> Iterator[pd.DataFrame]:
        """Like :meth:`recommend`, one data frame per batch, in the memory of one batch.

        Arguments are checked and warnings raised before the first frame. There is at least one
        frame; it has no rows if there is nothing to recommend.

        Args:
            users, histories, k, keep_seen, batch_size, strict: as for :meth:`recommend`.
            only, columns, neighbors, exclude, where, at_most, by: as for that.
        """
        frames, lines = self.prepared(
            *(users, histories, k, keep_seen, batch_size, strict, only, columns, neighbors),
            *(exclude, where, at_most, by),
        )
        for line in lines:
            warnings.warn(line, stacklevel=3)
        return frames

    def prepared(
        self,
        users: Iterable[Any] | None,
        histories: Iterable[Iterable[Any]] | Interactions | None,
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
    ) -> tuple[Iterator[pd.DataFrame], list[str]]:
        """What :meth:`recommend_in_batches` returns, and the lines that it warns of."""
        check_columns(columns)
        beside = self.ranking_neighbors(neighbors)
        keep_seen = self.check_options(k, keep_seen, batch_size, strict)
        limit = AtMost.read(self.items, at_most, by)
        queries = read_queries(self.interactions, users, histories, strict)
        count = len(queries.histories)
        allowed = read_allowed(self.interactions, self.items, count, strict, only, exclude, where)
        frames = self._ranked(queries, allowed, k, keep_seen, batch_size, beside, limit)
        lines = [*queries.left_out, *allowed.left_out]
        return (_with_columns(frame, columns) for frame in frames), lines

    def check_options(self, k: int, keep_seen: bool | None, batch_size: int, strict: bool) -> bool:
        """Check these arguments of :meth:`recommend`; returns ``keep_seen``, resolved."""
        check_count("k", k, self.interactions.num_items, "the number of items")
        check_count("batch_size", batch_size)
        check_flag("strict", strict)
        return self.keeps_seen(keep_seen)

    def _ranked(
        self,
        queries: Queries,
        allowed: AllowedItems,
        k: int,
        keep_seen: bool,
        batch_size: int,
        neighbors: RunNeighbors | None,
        limit: AtMost | None = None,
    ) -> Iterator[pd.DataFrame]:
        count = len(queries.histories)
        allowed = allowed.of_few(count)
        ranked = (
            self.ranked_items if allowed.shared is None else RankedItems(self.model, allowed.shared)
        )
        mask, without = ranked.mask, allowed.excluded
        if without is not None:
            mask = np.ones(len(self.items), bool) if mask is None else mask.copy()
            mask[without] = False
        said = neighbors is not None or not queries.histories.lengths.all()
        for start in range(0, max(count, 1), batch_size):
            rows = np.arange(start, min(start + batch_size, count))
            if not len(rows):  # a row that is taken out again leaves columns of the usual types
                one = Lists.empty(1, 1)
                one.ids[:] = 0
                users = self.interactions.users[:1]
                yield self._frame(users if len(users) else np.zeros(1, np.int64), one, said)[:0]
                return
            batch = queries.histories.select(rows)
            own = None if allowed.lists is None else allowed.lists.select(rows)
            known, unknown = np.flatnonzero(batch.lengths), np.flatnonzero(batch.lengths == 0)
            found = Lists.empty(len(rows), k)
            if len(known):
                of_known = None if own is None else own.select(known)
                some = batch.select(known)
                how = (keep_seen, of_known, neighbors, limit, without)
                best = ranked_lists(ranked, some, k, *how)
                found.put(known, best, slice(None), slice(None))
            if len(unknown):
                of_unknown = None if own is None else own.select(unknown)
                best = self._popular.lists(len(unknown), k, mask, of_unknown, limit)
                found.put(unknown, best, slice(None), slice(None))
            yield self._frame(queries.names[rows], found, said)

    @cached_property
    def _popular(self) -> PopularItems:
        share = POPULAR_SHARE
        if self.run.has("results.json"):
            share = self.run.results().get("baselines", {}).get(NOW, {}).get("share", share)
        return PopularItems.of(self.interactions, share)

    def recommend_to_items(
        self,
        items: Iterable[Any],
        k: int = 10,
        part: str = "fused",
        similarity: str = "cosine",
        strict: bool = False,
        only: Iterable[Any] | None = None,
        columns: str = "plain",
    ) -> pd.DataFrame:
        """The ``k`` most similar items of each given item, itself excluded.

        Args:
            items: item ids; they may be retired.
            k: number of items.
            part: ``"fused"`` item embeddings, or their ``"semantic"`` or ``"id"`` part alone.
            similarity: ``"cosine"`` or ``"dot"``.
            strict: refuse unknown items, and retired ones in ``only``; by default they are skipped.
            only: return only these item ids; or a list of them for each item.
            columns: ``"rectools"``: with RecTools' columns, as for :meth:`recommend`; the first is
                ``target_item_id``.

        Returns:
            One row per recommendation: ``target_item``, ``rank`` (from 1), ``item``, ``title``
            where titles are known, ``score``. Of a run without a model, what the item's lists have,
            with ``score`` and ``from`` as :meth:`recommend` has them.

        Warns:
            UserWarning: what was skipped.

        Raises:
            TypeError, ValueError: as :meth:`recommend`; a ``part`` that these embeddings do not
                have.
        """
        check_count("k", k, self.interactions.num_items, "the number of items")
        check_flag("strict", strict)
        check_similarity(similarity)
        check_columns(columns)
        wanted = listed("items", items, "item ids")
        if not wanted:
            raise invalid("items", "no items", "at least one")
        find = self.interactions.item_index if strict else self.interactions.find_items
        found = find(wanted)
        places = np.flatnonzero(found >= 0)
        unknown = [wanted[place] for place in np.flatnonzero(found < 0)]
        allowed = read_allowed(self.interactions, self.items, len(wanted), strict, only)
        left_out = [f"unknown items are left out: {first_few(unknown)}"] if unknown else []
        for line in (*left_out, *allowed.left_out):
            warnings.warn(line, stacklevel=2)
        if not self.config.trained:
            if allowed.lists is not None:
                allowed = AllowedItems(None, allowed.lists.select(places))
            frame = self._in_lists_of(found[places], allowed, k, part, similarity)
            return _with_columns(frame, columns)
        with torch.inference_mode():
            rows = self._part(part)
            ids = torch.from_numpy(found[places]).to(rows.device)
            chosen: Any = None
            if allowed.lists is not None:
                chosen = exclusion(allowed.lists.select(places), rows.device)
            elif allowed.shared is not None:
                chosen = torch.from_numpy(allowed.shared).to(rows.device)
            else:
                chosen = self.ranked_items.chosen
            scores, best = ops.topk(
                rows[ids], k, None, rows, similarity=similarity, exclude=ids[:, None], only=chosen
            )
        nowhere = np.full(best.shape, "", dtype=object)
        lists = Lists(scores.cpu().numpy(), best.cpu().numpy(), nowhere)
        frame = self._frame(self.items.tokens[found[places]], lists, said=False)
        return _with_columns(frame.rename(columns={"user": "target_item"}), columns)

    def _in_lists_of(
        self,
        ids: npt.NDArray[np.int64],
        allowed: AllowedItems,
        k: int,
        part: str,
        similarity: str,
    ) -> pd.DataFrame:
        """What :meth:`recommend_to_items` finds where there are neighbors alone: of each item, as a
        history of its own, what its lists have."""
        for name, given, only in (("part", part, "fused"), ("similarity", similarity, "cosine")):
            if given != only:
                expected = f"{only!r} without a model: of each item there are lists alone"
                raise invalid(name, repr(given), expected)
        queries = Queries(self.items.tokens[ids], Sequences(np.arange(len(ids) + 1), ids))
        beside = self.ranking_neighbors(None)
        assert beside is not None, "a run without a model"
        lists = dataclasses.replace(beside, weight=_LISTS_FIRST)
        frames = self._ranked(queries, allowed, k, False, self.config.evaluation_batch_size, lists)
        frame = pd.concat(frames, ignore_index=True)
        frame = frame[frame["from"] != self.model.origin]
        return frame.reset_index(drop=True).rename(columns={"user": "target_item"})

    def _part(self, part: str) -> Tensor:
        """Embeddings of all items, or what they are made of, ``(N, any)``."""
        table = self.model.whole_table
        if part not in ("fused", "semantic", "id"):
            raise invalid("part", repr(part), "'fused', 'semantic' or 'id'")
        if part == "fused":
            return table(torch.arange(table.num_embeddings, device=self._device)).float()
        rows = table.parts()[0 if part == "semantic" else 1]
        if rows is None:
            kind = self.config.item_embedding
            raise invalid("part", f"{part!r}, in a run of item_embedding={kind}", "'fused'")
        return rows.detach().float()

    @property
    def _device(self) -> torch.device:
        return self.model.device

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
        changed, report = catalog_changes.with_embeddings(
            self, embeddings, item_column, ids_are_rows, log
        )
        return Upgrade(changed, {**report, **_moved(self, changed, k)})

    def export(self, output: str | os.PathLike[str], to: Sequence[str] = ("safetensors",)) -> Path:
        """Export item embeddings and encoder to a folder, for an index or another runtime.

        Args:
            output: the new folder.
            to: of ``"safetensors"``, ``"faiss"``, ``"usearch"`` and ``"onnx"``; see
                :mod:`alphafuse_ext.serving.export`.
        """
        return export(self, output, to)

    def _frame(self, names: np.ndarray, lists: Lists, said: bool) -> pd.DataFrame:
        """The rows of lists; ``said``: with where they come from."""
        found = lists.ids >= 0
        row, column = np.nonzero(found)
        chosen = lists.ids[found]
        frame = pd.DataFrame({"user": names[row], "rank": column + 1})
        frame["item"] = self.items.tokens[chosen]
        if self._titles is not None:
            frame["title"] = self._titles[chosen]
        frame["score"] = lists.scores[found]
        if said:
            frame["from"] = lists.origins[found]
        return frame

    @cached_property
    def _titles(self) -> np.ndarray | None:
        titles = self.items.titles
        return None if titles is None else np.asarray(titles, dtype=object)


def check_columns(columns: str) -> None:
    """Raises ``ValueError`` for ``columns`` that :meth:`Recommender.recommend` does not have."""
    if columns not in COLUMNS:
        raise invalid("columns", repr(columns), " or ".join(map(repr, COLUMNS)))


def _with_columns(frame: pd.DataFrame, columns: str) -> pd.DataFrame:
    """Recommendations, the first column of which is whose they are, with these columns."""
    if columns == "plain":
        return frame
    owner = str(frame.columns[0])
    behind = [name for name in ("title", "from") if name in frame]
    order = [owner, "item", "score", "rank", *behind]
    return frame[order].rename(columns={owner: f"{owner}_id", "item": "item_id"})


_USERS_COMPARED = 2000


def _moved(before: Recommender, after: Recommender, k: int) -> dict[str, Any]:
    """How far recommendations moved, for an even sample of users, and what it does to metrics."""
    users = before.interactions.users
    if not len(users):
        return {"users": 0}
    users = users[evenly_spread(len(users), _USERS_COMPARED)]
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
