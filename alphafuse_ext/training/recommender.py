"""A trained model with its catalog and histories: what ranks, explains and is loaded from a run."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import torch

from alphafuse_ext.checks import invalid, listed
from alphafuse_ext.data import Examples, Interactions, Items, Sequences, Split
from alphafuse_ext.data._columns import first_few
from alphafuse_ext.models import SequenceModel
from alphafuse_ext.training.assembly import build_split, rebuild_model
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
from alphafuse_ext.training.run import RunFolder


class Recommender:
    """Recommends items to users it was trained on, or to anyone with a history.

    Made by :func:`alphafuse_ext.fit` or :meth:`load`.

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

    def recommend(
        self,
        users: Iterable[Any] | None = None,
        histories: Iterable[Iterable[Any]] | None = None,
        k: int = 10,
        keep_seen: bool | None = None,
        batch_size: int = 512,
        strict: bool = False,
    ) -> pd.DataFrame:
        """The ``k`` best items, best first.

        Args:
            users: user ids; every user of the training data where neither this nor ``histories``
                is given.
            histories: instead of users: item ids, oldest first, for each query.
            k: how many items.
            keep_seen: recommend items of the history as well; as in training where not given.
            batch_size: histories ranked at once.
            strict: refuse what the data lacks. Unless given, unknown users and items are left out
                and a history without a known item gets no recommendations.

        Returns:
            One row per recommendation: ``user`` (its id, or the number of the history), ``rank``
            (from 1), ``item``, ``title`` where titles are known, ``score``. Users and items have
            the types of the data (see :mod:`alphafuse_ext.data.ids`), whatever they were asked for
            in. Fewer than ``k`` rows for a user who has seen nearly everything.

        Warns:
            UserWarning: what was left out, counted and by example.

        Raises:
            TypeError: a string where a list of ids is meant, or values that are no ids.
            ValueError: no users or histories, ``k`` or ``batch_size`` out of range; with
                ``strict``, unknown users or items and empty histories.
        """
        num_items = self.interactions.num_items
        _check_count("k", k, num_items, "the number of items")
        _check_count("batch_size", batch_size)
        _check_flag("strict", strict)
        keep_seen = self._keep_seen(keep_seen)
        names, sequences, left_out = self._queries(users, histories, strict)
        for line in left_out:
            warnings.warn(line, stacklevel=2)
        device = next(self.model.parameters()).device
        frames = []
        with torch.inference_mode():
            for start in range(0, len(sequences), batch_size):
                rows = np.arange(start, min(start + batch_size, len(sequences)))
                batch = sequences.select(rows)
                exclude = None if keep_seen else exclusion(batch, device)
                scores, ids = self.model.table.topk(
                    encode_histories(self.model, batch, device),
                    k,
                    similarity=self.model.similarity,
                    exclude=exclude,
                    first_pass="auto",
                )
                frames.append(self._frame(names[rows], scores.cpu().numpy(), ids.cpu().numpy()))
        if not frames:  # a row that is taken out again leaves columns of the usual types
            name = self.interactions.users[:1] if histories is None else np.zeros(1, np.int64)
            first = np.zeros((1, 1), np.float32), np.zeros((1, 1), np.int64)
            frames.append(self._frame(name, *first)[:0])
        return pd.concat(frames, ignore_index=True)

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

    def _queries(
        self, users: Iterable[Any] | None, histories: Iterable[Any] | None, strict: bool
    ) -> tuple[np.ndarray, Sequences, list[str]]:
        """What the answers are named by, the items that they follow, and what was left out."""
        if users is not None and histories is not None:
            raise invalid("histories", "both users and histories", "one of the two")
        if histories is not None:
            return self._history_queries(listed("histories", histories, "histories"), strict)
        if users is None:
            return self.interactions.users, self.interactions.sequences, []
        wanted = listed("users", users, "user ids")
        if not wanted:
            raise invalid("users", "no users", "at least one")
        find = self.interactions.user_index if strict else self.interactions.find_users
        found = find(wanted)
        rows = found[found >= 0]
        unknown = [wanted[place] for place in np.flatnonzero(found < 0)]
        left_out = [f"unknown users are left out: {first_few(unknown)}"] if unknown else []
        return self.interactions.users[rows], self.interactions.sequences.select(rows), left_out

    def _history_queries(
        self, histories: list[Any], strict: bool
    ) -> tuple[np.ndarray, Sequences, list[str]]:
        if not histories:
            raise invalid("histories", "no histories", "at least one")
        wanted = [
            listed(f"histories[{number}]", history, "item ids")
            for number, history in enumerate(histories)
        ]
        if strict and not all(wanted):
            number = [len(history) for history in wanted].index(0)
            raise invalid(f"histories[{number}]", "an empty history", "at least one item")
        items = [item for history in wanted for item in history]
        find = self.interactions.item_index if strict else self.interactions.find_items
        found = find(items)
        known = found >= 0
        numbers = np.repeat(np.arange(len(wanted)), [len(history) for history in wanted])
        lengths = np.bincount(numbers[known], minlength=len(wanted))
        usable, empty = np.flatnonzero(lengths), np.flatnonzero(lengths == 0)
        left_out = []
        if not known.all():
            unknown = [items[place] for place in np.flatnonzero(~known)]
            count = f"{len(np.unique(numbers[~known]))} of {len(wanted)}"
            left_out.append(
                f"unknown items are left out of {count} histories: {first_few(unknown)}"
            )
        if len(empty):
            named = ", ".join(map(str, empty[:20])) + (", ..." if len(empty) > 20 else "")
            count = f"{len(empty)} of {len(wanted)}"
            left_out.append(f"no known item, so no recommendations, in {count} histories: {named}")
        offsets = np.concatenate([[0], np.cumsum(lengths[usable])])
        return usable, Sequences(offsets, found[known]), left_out

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
