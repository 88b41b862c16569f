"""What stands behind item-to-item neighbors where there is no model: popularity."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from alphafuse_ext.config import model as declared
from alphafuse_ext.config.protocol import Protocol
from alphafuse_ext.items.item_embeddings import ItemEmbeddings
from alphafuse_ext.items.table import ItemTable
from alphafuse_ext.models.model import SequenceModel

if TYPE_CHECKING:
    from typing_extensions import Self


class Popularity(SequenceModel):
    """Every history has the same query, by which the softmax is items' share of training.

    Of ``model="neighbors"``: the lists have nine tenths of the probability. There are no
    parameters.

    Args:
        table: of :func:`popularity_table`.
        history: the longest history, in items, that neighbors are asked for.
    """

    settings: ClassVar[type[declared.Ranker]] = declared.Neighbors
    origin = "popular"

    def __init__(self, table: ItemEmbeddings, history: int = Protocol.default_history) -> None:
        super().__init__(table, history, "dot")

    @classmethod
    def of(cls, item_counts: npt.NDArray[np.int64]) -> Self:
        """The model of items' training interactions, ``(N,)``."""
        return cls(popularity_table(torch.from_numpy(item_counts)))

    def encode(self, ids: Tensor) -> Tensor:
        return torch.ones(len(ids), 1, device=ids.device)

    def loss(self, ids: Tensor, targets: Tensor) -> Tensor:
        raise NotImplementedError("there is nothing to train")


def popularity_table(item_counts: Tensor) -> ItemTable:
    """Rows of one frozen number: ``log(1 + count)``, 0 of a new item.

    Args:
        item_counts: training interactions of each item, ``(N,)``.
    """
    return ItemTable(item_counts.float().log1p()[:, None], None)
