"""A model with a query at each position, trained to rank the item that comes next."""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor

from alphafuse_ext.checks import invalid
from alphafuse_ext.config import model as declared
from alphafuse_ext.config.protocol import Protocol
from alphafuse_ext.items.item_embeddings import ItemEmbeddings
from alphafuse_ext.items.language_neighbors import Neighbors
from alphafuse_ext.models.losses import loss_settings, next_item_loss
from alphafuse_ext.models.model import SequenceModel
from alphafuse_ext.models.negatives import NegativeSampler
from alphafuse_ext.ops.arguments import check_similarity


class NextItemModel(SequenceModel):
    """What is left to a model is :meth:`forward`.

    Args:
        table: item embeddings, ``dim = table.embedding_dim``.
        history: the longest history, in items.
        loss: a name of :data:`alphafuse_ext.config.loss.LOSSES`, or of one's own.
        ranking_similarity: ``"dot"`` or ``"cosine"``; ``None``: as the loss compares.
        item_counts: training interactions of each item, ``(N,)``, where negatives are not drawn
            uniformly. A model that only ranks needs none.
        neighbors: with ``language_smoothing``; a model that only ranks needs none.
        **of_loss: settings of the loss, see :func:`alphafuse_ext.models.losses.next_item_loss`,
            and ``negative_sampling``: ``"uniform"``; or ``"popularity"``, ``"mixed"`` or
            ``"in-batch"``, see
            :class:`alphafuse_ext.models.negatives.NegativeSampler`.
    """

    settings: ClassVar[type[declared.Model]] = declared.NextItem

    def __init__(
        self,
        table: ItemEmbeddings,
        history: int = Protocol.default_history,
        loss: str = "cross_entropy",
        ranking_similarity: str | None = None,
        item_counts: Tensor | None = None,
        neighbors: Neighbors | None = None,
        **of_loss: Any,
    ) -> None:
        if ranking_similarity is not None:
            check_similarity(ranking_similarity, "ranking_similarity")
        if history < 1:
            raise invalid("history", history, "an integer >= 1")
        chosen = loss_settings(loss, of_loss)
        super().__init__(table, history, ranking_similarity or chosen.similarity)
        self._checked = chosen
        self.objective = {"loss": loss, **dataclasses.asdict(chosen)}
        self.neighbors = neighbors
        self.negative_sampling = self.objective.pop("negative_sampling", "uniform")
        self.negative_sampler: NegativeSampler | None = None
        if self.negative_sampling != "uniform" and item_counts is not None:
            self.negative_sampler = NegativeSampler(item_counts, self.negative_sampling)

    @abstractmethod
    def forward(self, ids: Tensor) -> Tensor:
        """One query per position, each of the items up to its own.

        Args:
            ids: ``(B, L)`` int64 with ``L <= history``, padded on the right.

        Returns:
            ``(B, L, dim)``; what stands at padded positions has no meaning.
        """

    def encode(self, ids: Tensor) -> Tensor:
        hidden = self(ids)
        last = (ids != self.table.padding_idx).sum(1) - 1
        return hidden[torch.arange(ids.shape[0], device=ids.device), last]

    def loss(self, ids: Tensor, targets: Tensor) -> Tensor:
        return self.weighted_loss(ids, targets)

    def weighted_loss(self, ids: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
        """:meth:`loss`, each target's part of it times its weight, ``(B, L)``."""
        return self.prediction_loss(self(ids), targets, weights)

    def prediction_loss(
        self, hidden: Tensor, targets: Tensor, weights: Tensor | None = None
    ) -> Tensor:
        """That of queries, ``(B, L, dim)``."""
        if self.negative_sampling != "uniform" and self.negative_sampler is None:
            allowed = f"counts with negative_sampling={self.negative_sampling}, to train by"
            raise invalid("item_counts", None, allowed)
        return next_item_loss(
            self.table,
            hidden,
            targets,
            sampler=self.negative_sampler,
            neighbors=self.neighbors,
            loss=self.objective["loss"],
            checked=self._checked,
            weights=weights,
        )
