"""SASRec: causal self-attention over a history of item embeddings.

Kang and McAuley, "Self-Attentive Sequential Recommendation", ICDM 2018. Blocks are pre-norm, as in
the implementations that followed it; ``norm="post"`` and ``embedding_norm=True`` make BERT's of
them, which RecBole has. Blocks of later models are options: see :mod:`alphafuse_ext.models.blocks`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from alphafuse_ext.checks import invalid
from alphafuse_ext.choices import (
    DEFAULT_NORM,
    LOSSES,
    NEGATIVE_SAMPLINGS,
    BlockKind,
    Loss,
    NegativeSampling,
    NegativesPer,
    Norm,
    check_logq,
    check_smoothing,
)
from alphafuse_ext.items.item_embeddings import ItemEmbeddings
from alphafuse_ext.items.neighbors import Neighbors
from alphafuse_ext.models.blocks import make_block
from alphafuse_ext.models.dropout import Dropout
from alphafuse_ext.models.losses import next_item_loss, similarity_of
from alphafuse_ext.models.model import SequenceModel
from alphafuse_ext.models.negatives import NegativeSampler
from alphafuse_ext.ops.arguments import check_similarity


class SASRec(SequenceModel):
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
        feed_forward: inner width of a block's feed-forward, in multiples of ``dim``; ``None``: 1 of
            ``"sasrec"``, 4 of the others.
        dropout: probability, applied to the input, the attention weights and both block outputs.
        norm: where layer norms are: ``"pre"``, on the way into attention and feed-forward, and one
            after the last block; ``"post"``, after what each of these adds; ``"query"``, see
            :class:`alphafuse_ext.models.blocks.Block`, and one after the last block. ``None``:
            ``"post"`` of ``"bsarec"``, which has no other, ``"pre"`` of the others; ``"ligr"`` has
            no other.
        embedding_norm: a layer norm of the input, item and position added; ``None``: of
            ``"bsarec"`` only.
        input_scale: multiplies the item embeddings that go in, not those that are scored;
            ``dim ** 0.5`` in SASRec's first code.
        position_std: standard deviation of the initial position embeddings.
        filter_cutoff, filter_share, causal_filter: of ``"bsarec"``, see
            :class:`alphafuse_ext.models.blocks.BSARecBlock`.
        zero_sink: a query also attends to one zero key and zero value for each position that the
            history lacks to ``history`` items, which dilutes attention in short histories.
        loss, negatives, negatives_per, temperature, logq, label_smoothing, language_smoothing: see
            :func:`alphafuse_ext.models.losses.next_item_loss`.
        negative_sampling: ``"uniform"``; or ``"popularity"`` or ``"mixed"``, see
            :class:`alphafuse_ext.models.negatives.NegativeSampler`.
        item_counts: for these two: training interactions of each item, ``(N,)``. A model that only
            ranks needs none.
        neighbors: with ``language_smoothing``; a model that only ranks needs none.
        ranking_similarity: ``"dot"`` or ``"cosine"``; ``None``: as the loss compares.
    """

    def __init__(
        self,
        table: ItemEmbeddings,
        history: int = 50,
        blocks: int = 1,
        heads: int = 1,
        block: BlockKind = "sasrec",
        feed_forward: int | None = None,
        dropout: float = 0.4,
        norm: Norm | None = None,
        embedding_norm: bool | None = None,
        input_scale: float = 1.0,
        position_std: float = 0.02,
        filter_cutoff: int = 5,
        filter_share: float = 0.7,
        causal_filter: bool = True,
        zero_sink: bool = True,
        loss: Loss = "cross_entropy",
        negatives: int = 256,
        negatives_per: NegativesPer = "sequence",
        negative_sampling: NegativeSampling = "uniform",
        logq: bool | None = None,
        temperature: float | None = None,
        label_smoothing: float = 0.0,
        language_smoothing: float = 0.0,
        ranking_similarity: str | None = None,
        item_counts: Tensor | None = None,
        neighbors: Neighbors | None = None,
    ) -> None:
        if ranking_similarity is not None:
            check_similarity(ranking_similarity, "ranking_similarity")
        super().__init__(table, history, ranking_similarity or similarity_of(loss))
        dim = self.width = self._width(table)
        self.heads = heads
        if loss not in LOSSES:
            raise invalid("loss", repr(loss), f"one of {', '.join(LOSSES)}")
        if history < 1:
            raise invalid("history", history, "an integer >= 1")
        if blocks < 1:
            raise invalid("blocks", blocks, "an integer >= 1")
        if heads < 1 or dim % heads:
            raise invalid("heads", heads, f"a divisor of the embedding dimension {dim}")
        if not 0 <= dropout < 1:
            raise invalid("dropout", dropout, "0 <= dropout < 1")
        if not input_scale > 0:
            raise invalid("input_scale", input_scale, "a number > 0")
        if not position_std >= 0:
            raise invalid("position_std", position_std, "a number >= 0")
        if negative_sampling not in NEGATIVE_SAMPLINGS:
            allowed = f"one of {', '.join(NEGATIVE_SAMPLINGS)}"
            raise invalid("negative_sampling", repr(negative_sampling), allowed)
        check_smoothing("label_smoothing", label_smoothing, loss)
        check_smoothing("language_smoothing", language_smoothing, loss)
        check_logq(logq, loss)
        self.zero_sink = zero_sink
        self.objective: dict[str, Any] = {
            "loss": loss,
            "negatives": negatives,
            "negatives_per": negatives_per,
            "temperature": temperature,
            "logq": logq,
            "label_smoothing": label_smoothing,
            "language_smoothing": language_smoothing,
        }
        self.neighbors = neighbors
        self.negative_sampling = negative_sampling
        self.negative_sampler: NegativeSampler | None = None
        if negative_sampling != "uniform" and item_counts is not None:
            self.negative_sampler = NegativeSampler(item_counts, negative_sampling)
        self.position = nn.Embedding(history, dim)
        nn.init.normal_(self.position.weight, std=position_std)
        self.input_scale = input_scale
        normed = block == "bsarec" if embedding_norm is None else embedding_norm
        self.embedding_norm = nn.LayerNorm(dim) if normed else nn.Identity()
        self.dropout = Dropout(dropout)
        self.blocks = nn.ModuleList(
            make_block(
                block,
                dim,
                heads,
                dropout,
                norm,
                feed_forward,
                history,
                filter_cutoff,
                filter_share,
                causal_filter,
            )
            for _ in range(blocks)
        )
        normed_last = (norm or DEFAULT_NORM[block]) == "post"
        self.norm = nn.Identity() if normed_last else nn.LayerNorm(dim)

    def _width(self, table: ItemEmbeddings) -> int:
        """Of the encoder."""
        return table.embedding_dim

    def forward(self, ids: Tensor) -> Tensor:
        """One query per position, each seeing only the items up to its own.

        Args:
            ids: ``(B, L)`` int64 with ``L <= history``, padded on the right.

        Returns:
            ``(B, L, dim)``; what stands at padded positions has no meaning.
        """
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

    def encode(self, ids: Tensor) -> Tensor:
        hidden = self(ids)
        last = (ids != self.table.padding_idx).sum(1) - 1
        return hidden[torch.arange(ids.shape[0], device=ids.device), last]

    def loss(self, ids: Tensor, targets: Tensor) -> Tensor:
        return self._prediction_loss(self(ids), targets)

    def _prediction_loss(self, hidden: Tensor, targets: Tensor) -> Tensor:
        if self.negative_sampling != "uniform" and self.negative_sampler is None:
            allowed = f"counts with negative_sampling={self.negative_sampling}, to train by"
            raise invalid("item_counts", None, allowed)
        return next_item_loss(
            self.table,
            hidden,
            targets,
            sampler=self.negative_sampler,
            neighbors=self.neighbors,
            **self.objective,
        )


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
