"""A model of one's own: GRU4Rec, a recurrent network over the history.

    alphafuse train --model gru4rec:GRU4Rec --layers 2 --hidden 64 --output runs/gru

or, in Python, ``alphafuse_ext.fit(clicks, items, model=GRU4Rec, layers=2)``. Its item embeddings,
loss, negatives and optimizer are those of any run, and so are their flags. Commands that read the
run find this file by ``PYTHONPATH``.

Hidasi et al., "Session-based Recommendations with Recurrent Neural Networks", ICLR 2016.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from alphafuse_ext.models import NextItemModel


class GRU4Rec(NextItemModel):
    """A GRU over item embeddings, and a linear layer from its states to queries.

    Args:
        table: the item embeddings.
        layers: of the GRU.
        hidden: width of its states.
        dropout: probability, of what goes in.
        **others: of every model that ranks the next item: ``history``, ``loss`` and its settings.
    """

    def __init__(
        self,
        table: Any,
        layers: int = 1,
        hidden: int = 128,
        dropout: float = 0.2,
        **others: Any,
    ) -> None:
        super().__init__(table, **others)
        self.dropout = nn.Dropout(dropout)
        self.gru = nn.GRU(table.embedding_dim, hidden, layers, batch_first=True)
        self.output = nn.Linear(hidden, table.embedding_dim)

    def forward(self, ids: Tensor) -> Tensor:
        # Histories are padded on the right, so that no state before has seen the padding.
        states, _ = self.gru(self.dropout(self.table(ids)))
        return self.output(states)
