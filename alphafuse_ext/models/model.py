"""What training, ranking and serving need of a model: a second one touches no file of theirs."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor, nn

from alphafuse_ext.config import model as declared
from alphafuse_ext.items.catalog import Catalog
from alphafuse_ext.items.item_embeddings import ItemEmbeddings


class SequenceModel(nn.Module, ABC):
    """A model that turns a history into a query, by which the item table is ranked.

    A run makes it as ``Model(table, **settings)``: its constructor's arguments, and those of a base
    to which it hands others on, are settings and flags (see :mod:`alphafuse_ext.config.own`).

    Histories are ``(B, L)`` int64 ids with ``L <= history``, oldest first, padded on the right with
    ``table.padding_idx``.

    Attributes:
        table: the item embeddings; its entries of the ``state_dict`` begin with ``table.``.
        history: the longest history, in items.
        similarity: ``"dot"`` or ``"cosine"``, how queries and items are compared.
    """

    settings: ClassVar[type[declared.Ranker]] = declared.Model
    origin: ClassVar[str] = "model"
    """What a recommendation comes from that no neighbors have the largest part in."""
    table: Catalog

    def __init__(self, table: ItemEmbeddings, history: int, similarity: str) -> None:
        super().__init__()
        self.table = table
        self.history = history
        self.similarity = similarity

    @property
    def whole_table(self) -> ItemEmbeddings:
        """``table`` of a model whose item embeddings are not sharded over ranks."""
        assert isinstance(self.table, ItemEmbeddings), "not sharded"
        return self.table

    @property
    def device(self) -> torch.device:
        """Where its tensors are."""
        return next(itertools.chain(self.parameters(), self.buffers())).device

    @abstractmethod
    def encode(self, ids: Tensor) -> Tensor:
        """The query after each history, ``(B, dim)``; every history has at least one item.

        In evaluation mode the same histories have the same queries, every time.
        """

    @abstractmethod
    def loss(self, ids: Tensor, targets: Tensor) -> Tensor:
        """The loss of predicting items from what came before them.

        Args:
            ids: ``(B, L)`` histories.
            targets: ``(B, L)`` int64: the item that follows each position;
                ``table.padding_idx`` where a position has no target.

        Returns:
            A float32 scalar, summed over the targets: see :mod:`alphafuse_ext.models.losses`.
        """
