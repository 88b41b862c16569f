"""A trained model with its catalog and histories: what ranks, explains and is loaded from a run."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import torch

from alphafuse_ext.checks import invalid
from alphafuse_ext.data import Interactions, Items, Sequences, leave_one_out
from alphafuse_ext.models import SASRec
from alphafuse_ext.training.assembly import rebuild_model
from alphafuse_ext.training.config import Config
from alphafuse_ext.training.evaluate import (
    Evaluation,
    TieRule,
    encode_histories,
    evaluate_model,
    exclusion,
)
from alphafuse_ext.training.run import RunFolder


class Recommender:
    """Recommends items to users it was trained on, or to anyone with a history.

    Made by :func:`alphafuse_ext.fit` or :meth:`load`.

    Args:
        model: the trained encoder with its item table.
        config: the settings it was trained with.
        interactions: every user's whole history.
        items: the catalog, in the order of the item table.
        run: the folder it was trained in.
    """

    def __init__(
        self,
        model: SASRec,
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
            OSError: the folder holds no checkpoint, or a file of it cannot be read.
        """
        folder = RunFolder(run)
        config = folder.config()
        frozen, _ = folder.load("frozen")
        parameters, _ = folder.load("best")
        model = rebuild_model(config, {**frozen, **parameters})
        return cls(model.to(device), config, folder.interactions(), folder.items(), folder)

    def recommend(
        self,
        users: Iterable[Any] | None = None,
        histories: Sequence[Sequence[Any]] | None = None,
        k: int = 10,
        keep_seen: bool | None = None,
        batch_size: int = 512,
    ) -> pd.DataFrame:
        """The ``k`` best items, best first.

        Args:
            users: user tokens; every user of the training data where neither this nor
                ``histories`` is given.
            histories: instead of users: item tokens, oldest first, for each query.
            k: how many items.
            keep_seen: recommend items of the history as well; as in training where not given.
            batch_size: histories ranked at once.

        Returns:
            One row per recommendation: ``user`` (the token, or the number of the history), ``rank``
            (from 1), ``item``, ``title`` where titles are known, ``score``. Users and items have
            the types of the data (see :mod:`alphafuse_ext.data.ids`), whatever they were asked for
            in. Fewer than ``k`` rows for a user who has seen nearly everything.

        Raises:
            ValueError: unknown users or items, an empty history, ``k`` out of range.
        """
        num_items = self.interactions.num_items
        if not 1 <= k <= num_items:
            raise invalid("k", k, f"1 <= k <= {num_items}, the number of items")
        names, sequences = self._queries(users, histories)
        keep_seen = self._keep_seen(keep_seen)
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
                    similarity=self.config.similarity,
                    exclude=exclude,
                )
                frames.append(self._frame(names[rows], scores.cpu().numpy(), ids.cpu().numpy()))
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
        if part not in ("validation", "test"):
            raise invalid("part", repr(part), "'validation' or 'test'")
        split = leave_one_out(self.interactions)
        return evaluate_model(
            self.model,
            split.test if part == "test" else split.validation,
            self.config.similarity,
            keep_seen=self._keep_seen(keep_seen),
            ties=ties,
            batch_size=self.config.evaluation_batch_size,
            progress=True,
        )

    def _keep_seen(self, given: bool | None) -> bool:
        return self.config.keep_seen if given is None else given

    def _queries(
        self, users: Iterable[Any] | None, histories: Sequence[Sequence[Any]] | None
    ) -> tuple[np.ndarray, Sequences]:
        if users is not None and histories is not None:
            raise invalid("histories", "both users and histories", "one of the two")
        if histories is None:
            everyone = np.arange(self.interactions.num_users)
            rows = everyone if users is None else self.interactions.user_index(users)
            if len(rows) == 0:
                raise invalid("users", "no users", "at least one")
            return self.interactions.users[rows], self.interactions.sequences.select(rows)
        if len(histories) == 0:
            raise invalid("histories", "no histories", "at least one")
        for number, history in enumerate(histories):
            if len(history) == 0:
                raise invalid(f"histories[{number}]", "an empty history", "at least one item")
        index = [self.interactions.item_index(history) for history in histories]
        return np.arange(len(histories)), Sequences.from_lists(index)

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
