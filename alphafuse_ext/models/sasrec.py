"""SASRec: causal self-attention over a history of item embeddings.

Kang and McAuley, "Self-Attentive Sequential Recommendation", ICDM 2018. Blocks are pre-norm, as in
the implementations that followed it; ``norm="post"`` and ``embedding_norm=True`` make BERT's of
them, which RecBole has. Blocks of later models are options: see :mod:`alphafuse_ext.models.blocks`.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from alphafuse_ext.checks import invalid
from alphafuse_ext.config import model as declared
from alphafuse_ext.config.option import chosen
from alphafuse_ext.config.protocol import Protocol
from alphafuse_ext.items.item_embeddings import ItemEmbeddings
from alphafuse_ext.models.blocks import make_block
from alphafuse_ext.models.dropout import Dropout
from alphafuse_ext.models.next_item import NextItemModel


class SASRec(NextItemModel):
    """Encodes histories into queries that are scored against the item table.

    Histories are padded on the right with ``table.padding_idx``: causal attention then never sees
    padding, and no key mask is needed. Positions are counted from the end of the history, so the
    newest item always has position 0.

    Args:
        table: item embeddings, ``dim = table.embedding_dim``.
        history: the longest history, in items.
        blocks: number of self-attention blocks.
        heads: attention heads in each block; divides ``dim``.
        block: ``"sasrec"``, ``"bsarec"`` or ``"ligr"``.
        dropout: probability, applied to the input, the attention weights and both block outputs.
        input_scale: multiplies the item embeddings that go in, not those that are scored;
            ``dim ** 0.5`` in SASRec's first code.
        position_std: standard deviation of the initial position embeddings.
        zero_sink: a query also attends to one zero key and zero value for each position that the
            history lacks to ``history`` items, which dilutes attention in short histories.
        **others: settings of the block, with the defaults of
            :data:`alphafuse_ext.config.model.BLOCKS`, and arguments of :class:`NextItemModel`.

            * ``feed_forward``: inner width of a block's feed-forward, in multiples of ``dim``.
            * ``norm``: where layer norms are: ``"pre"``, on the way into attention and
              feed-forward, and one after the last block; ``"post"``, after what each of these adds;
              ``"query"``, see :class:`alphafuse_ext.models.blocks.Block`, and one after the last
              block.
            * ``embedding_norm``: a layer norm of the input, item and position added.
            * ``filter_cutoff``, ``filter_share``, ``causal_filter``: of ``"bsarec"``, see
              :class:`alphafuse_ext.models.blocks.BSARecBlock`.
    """

    settings: ClassVar[type[declared.Model]] = declared.SASRec

    def __init__(
        self,
        table: ItemEmbeddings,
        history: int = Protocol.default_history,
        blocks: int = declared.Encoder.blocks,
        heads: int = declared.Encoder.heads,
        block: str = declared.Encoder.block,
        dropout: float = declared.Encoder.dropout,
        input_scale: float = declared.Encoder.input_scale,
        position_std: float = declared.Encoder.position_std,
        zero_sink: bool = declared.Encoder.zero_sink,
        **others: Any,
    ) -> None:
        declared.Encoder(
            history=history,
            blocks=blocks,
            heads=heads,
            block=block,
            dropout=dropout,
            input_scale=input_scale,
            position_std=position_std,
            zero_sink=zero_sink,
        )  # which checks them
        of_blocks = {f.name for kind in declared.BLOCKS.values() for f in dataclasses.fields(kind)}
        of_block = {name: others.pop(name) for name in of_blocks & others.keys()}
        made_by = chosen("block", declared.BLOCKS, block, of_block)
        super().__init__(table, history, **others)
        dim = self.width = self._width(table)
        self.heads = heads
        if dim % heads:
            raise invalid("heads", heads, f"a divisor of the embedding dimension {dim}")
        self.zero_sink = zero_sink
        self.position = nn.Embedding(history, dim)
        nn.init.normal_(self.position.weight, std=position_std)
        self.input_scale = input_scale
        self.embedding_norm = nn.LayerNorm(dim) if made_by.embedding_norm else nn.Identity()
        self.dropout = Dropout(dropout)
        self.blocks = nn.ModuleList(
            make_block(made_by, dim, heads, dropout, history) for _ in range(blocks)
        )
        self.norm = nn.Identity() if made_by.norm == "post" else nn.LayerNorm(dim)

    def _width(self, table: ItemEmbeddings) -> int:
        """Of the encoder."""
        return table.embedding_dim

    def forward(self, ids: Tensor) -> Tensor:
        present, lengths = self._lengths(ids)
        return self._encoded(self._placed(self.table(ids), lengths), present, lengths)

    def _lengths(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Where histories have items, ``(B, L)`` bool, and how many, ``(B,)``."""
        if ids.ndim != 2 or ids.shape[1] > self.history:
            raise invalid("ids", tuple(ids.shape), f"shape (B, L) with L <= {self.history}")
        present = ids != self.table.padding_idx
        return present, present.sum(1)

    def _placed(self, items: Tensor, lengths: Tensor) -> Tensor:
        """The first block's input: items, ``(B, L, width)``, with their positions."""
        places = torch.arange(items.shape[1], device=items.device)
        from_end = lengths[:, None] - 1 - places
        if self.input_scale != 1:
            items = items * self.input_scale
        x = items + self.position(from_end.clamp(min=0))
        return self.dropout(self.embedding_norm(x))

    def _encoded(self, x: Tensor, present: Tensor, lengths: Tensor) -> Tensor:
        """The last block's output, normed."""
        sink = _sink_mask(lengths, x.shape[1], self.history, x.dtype) if self.zero_sink else None
        for block in self.blocks:
            x = block(x, sink, present)
        return self.norm(x)


def _sink_mask(lengths: Tensor, length: int, history: int, dtype: torch.dtype) -> Tensor:
    """Additive causal mask ``(B, 1, L, L + 1)``: the last column stands for every zero key at once.

    A zero key has logit 0, so ``m`` of them weigh ``m exp(0) = exp(log m)``.
    """
    causal = torch.full((length, length), float("-inf"), device=lengths.device).triu(1)
    missing = (history - lengths).to(causal.dtype).log()
    # Put together without writes into a part, whose size torch.export would fix.
    batch = lengths.shape[0]
    mask = torch.cat(
        [
            causal.expand(batch, 1, length, length),
            missing[:, None, None, None].expand(batch, 1, length, 1),
        ],
        dim=-1,
    )
    return mask.to(dtype)
