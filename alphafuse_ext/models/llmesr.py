"""LLM-ESR: two views of a history, of ID embeddings and of adapted language, through one encoder.

Liu et al., "LLM-ESR: Large Language Models Enhancement for Long-tailed Sequential Recommendation",
NeurIPS 2024.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alphafuse_ext.checks import invalid
from alphafuse_ext.config import model as declared
from alphafuse_ext.items.adapted_table import AdaptedTable
from alphafuse_ext.items.adapters import DualAdapter
from alphafuse_ext.items.item_embeddings import ItemEmbeddings
from alphafuse_ext.models.sasrec import SASRec


class LLMESR(SASRec):
    """Encodes ID and language halves of an embedding apart, after each has attended to the other.

    A query is both encoded halves side by side. Beside the loss of predictions, that of
    :class:`SASRec`, the query at the end of each history is drawn to the mean of those of the
    ``similar_users`` histories of its batch whose mean language row is closest by cosine, which
    hold still. The paper finds similar users among all, by embeddings that a language model makes
    of a text about each.

    Args:
        table: with ``item_embedding="llm-esr"``: ID and adapted language embeddings, side by side.
        distillation_weight: of the mean squared difference; alpha of the paper.
        similar_users: how many of the batch; N of the paper.
        **others: those of :class:`SASRec`; ``heads`` divides half of ``dim``.
    """

    settings: ClassVar[type[declared.Model]] = declared.LLMESR

    def __init__(
        self,
        table: ItemEmbeddings,
        distillation_weight: float = declared.LLMESR.distillation_weight,
        similar_users: int = declared.LLMESR.similar_users,
        **others: Any,
    ) -> None:
        if not isinstance(table, AdaptedTable) or not isinstance(table.adapter, DualAdapter):
            raise invalid("table", type(table).__name__, "one with two views, llm-esr's")
        declared.LLMESR(
            distillation_weight=distillation_weight, similar_users=similar_users
        )  # which checks them
        super().__init__(table, **others)
        self.distillation_weight, self.similar_users = distillation_weight, similar_users
        self.to_id, self.to_language = (
            nn.MultiheadAttention(self.width, self.heads, batch_first=True) for _ in range(2)
        )

    def _width(self, table: ItemEmbeddings) -> int:
        return table.embedding_dim // 2

    def forward(self, ids: Tensor) -> Tensor:
        present, lengths = self._lengths(ids)
        own, language = (self._placed(view, lengths) for view in self.table(ids).chunk(2, -1))
        later = nn.Transformer.generate_square_subsequent_mask(
            ids.shape[1], device=ids.device, dtype=torch.float32
        ).bool()
        # Each view asks the other: the language of ``to_id`` is its query, ID its keys and values.
        asked_id = self.to_id(language, own, own, attn_mask=later, need_weights=False)[0]
        asked_language = self.to_language(
            own, language, language, attn_mask=later, need_weights=False
        )[0]
        encoded = (self._encoded(x, present, lengths) for x in (asked_id, asked_language))
        return torch.cat(list(encoded), -1)

    def weighted_loss(self, ids: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
        hidden = self(ids)
        predicted = self.prediction_loss(hidden, targets, weights)
        if not self.distillation_weight or len(ids) < 2:
            return predicted
        present, lengths = self._lengths(ids)
        last = hidden[torch.arange(len(ids), device=ids.device), lengths - 1]
        close = self._similar(ids, present)
        teacher = last.detach()[close].mean(1)
        difference = (last - teacher).square().mean()
        # As much for a batch as the paper's mean for each of its targets.
        count = (targets != self.table.padding_idx).sum()
        return predicted + self.distillation_weight * count * difference

    def _similar(self, ids: Tensor, present: Tensor) -> Tensor:
        """The histories closest to each, ``(B, similar_users)`` or fewer; not itself."""
        table = self.table
        assert isinstance(table, AdaptedTable)
        with torch.no_grad():
            known = ids.clamp(max=table.num_embeddings - 1)
            rows = table.language_rows[known] * present[..., None]
            users = F.normalize(rows.sum(1), dim=-1)
            cosines = (users @ users.T).fill_diagonal_(-2.0)
            return cosines.topk(min(self.similar_users, len(ids) - 1), dim=1).indices
