"""Self-attention blocks: SASRec's, BSARec's with its frequency layer, and LiGR's with its gates."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alphafuse_ext.config import model as declared
from alphafuse_ext.models.dropout import Dropout


class Block(nn.Module):
    """Self-attention, then a point-wise feed-forward, each on a residual path, with its norm.

    Args:
        dim: width.
        heads: attention heads; divides ``dim``.
        dropout: probability, of attention weights, inside the feed-forward, and of what both add.
        norm: ``"pre"``, on the way into attention and feed-forward; ``"post"``, after what each
            of these adds; ``"query"``, of the queries on the way into attention, keys and values
            staying as they are, and of the sum, to which the feed-forward is added, as in FreeRec
            after SASRec's first code.
        feed_forward: inner width of the feed-forward, in multiples of ``dim``.
    """

    def __init__(
        self, dim: int, heads: int, dropout: float, norm: str = "pre", feed_forward: int = 1
    ) -> None:
        super().__init__()
        self.norm_at = norm
        self.heads = heads
        self.attention_dropout = dropout
        self.attention_norm = nn.LayerNorm(dim)
        self.query_key_value = nn.Linear(dim, 3 * dim)
        self.output = nn.Linear(dim, dim)
        self.feed_forward_norm = nn.LayerNorm(dim)
        self.feed_forward = self._make_feed_forward(dim, feed_forward * dim, dropout)
        self.dropout = Dropout(dropout)

    def _make_feed_forward(self, dim: int, inner: int, dropout: float) -> nn.Module:
        return nn.Sequential(
            nn.Linear(dim, inner), nn.GELU(), Dropout(dropout), nn.Linear(inner, dim)
        )

    def forward(self, x: Tensor, sink: Tensor | None, present: Tensor) -> Tensor:
        """The next block's input.

        Args:
            x: ``(B, L, dim)``, histories padded on the right.
            sink: additive attention mask ``(B, 1, L, L + 1)``, whose last column is that of a zero
                key; ``None``: causal attention alone.
            present: ``(B, L)`` bool, false at the padding.
        """
        if self.norm_at == "post":
            x = self.attention_norm(x + self.dropout(self._attend(x, sink)))
            return self.feed_forward_norm(x + self.dropout(self.feed_forward(x)))
        if self.norm_at == "query":
            attended = self._attend(x, sink, self.attention_norm(x))
            x = self.feed_forward_norm(x + attended)
            return x + self.dropout(self.feed_forward(x))
        x = x + self.dropout(self._attend(self.attention_norm(x), sink))
        return x + self.dropout(self.feed_forward(self.feed_forward_norm(x)))

    def _attend(self, x: Tensor, sink: Tensor | None, asking: Tensor | None = None) -> Tensor:
        """Attention over ``x``; its queries are those of ``asking``, where it is given."""
        batch, length, dim = x.shape
        split = self.query_key_value(x).view(batch, length, 3, self.heads, dim // self.heads)
        query, key, value = split.permute(2, 0, 3, 1, 4)
        if asking is not None:
            weight, bias = self.query_key_value.weight[:dim], self.query_key_value.bias[:dim]
            query = F.linear(asking, weight, bias).view(batch, length, self.heads, -1)
            query = query.transpose(1, 2)
        if sink is not None:
            key, value = F.pad(key, (0, 0, 0, 1)), F.pad(value, (0, 0, 0, 1))
        attended = F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=sink,
            dropout_p=self.attention_dropout if self.training else 0.0,
            is_causal=sink is None,
        )
        return self.output(attended.transpose(1, 2).reshape(batch, length, dim))


class BSARecBlock(Block):
    """Self-attention mixed with a frequency layer that weighs what varies fast by a learned factor.

    Shin et al., "An Attentive Inductive Bias for Sequential Recommendation beyond the
    Self-Attention", AAAI 2024. Along the history, a window of ``history`` positions,

        ``low`` = the ``cutoff // 2 + 1`` lowest frequencies of ``x``,
        ``f = norm(x + dropout(low + beta^2 (x - low)))``, ``a = norm(x + dropout(attention(x)))``,
        ``y = share f + (1 - share) a``, and the feed-forward follows, normed after it is added.

    Positions that a history lacks count as zeros; in the authors' code the first block finds their
    position embeddings there. As a product with a fixed circulant matrix, of which a history needs
    its own rows and columns only, the layer costs what attention does, whatever the window.

    Args:
        dim, heads, dropout, feed_forward: as for :class:`Block`.
        history: the window, in positions.
        cutoff: c of the paper.
        share: of the frequency layer, alpha of the paper.
        causal: leave out what comes after a position. The paper's layer sees all of the window,
            and can be trained on the last position of a history only.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        dropout: float,
        feed_forward: int = 4,
        history: int = 50,
        cutoff: int = 5,
        share: float = 0.7,
        causal: bool = False,
    ) -> None:
        super().__init__(dim, heads, dropout, "post", feed_forward)
        self.share = share
        self.filter_norm = nn.LayerNorm(dim)
        self.beta = nn.Parameter(torch.randn(dim))
        # What one item, and nothing else in the window, becomes: rows of the filter are its shifts.
        kept = torch.zeros(history // 2 + 1)
        kept[: cutoff // 2 + 1] = 1.0
        response = torch.fft.irfft(kept, n=history)
        place = torch.arange(history)
        low_pass = response[(place[:, None] - place) % history]
        self.low_pass: Tensor
        self.register_buffer("low_pass", low_pass.tril() if causal else low_pass, persistent=False)

    def forward(self, x: Tensor, sink: Tensor | None, present: Tensor) -> Tensor:
        length = x.shape[1]
        masked = x.masked_fill(~present[..., None], 0.0)
        low = self.low_pass[:length, :length].to(x.dtype) @ masked
        filtered = low + self.beta.square() * (x - low)
        filtered = self.filter_norm(x + self.dropout(filtered))
        attended = self.attention_norm(x + self.dropout(self._attend(x, sink)))
        x = self.share * filtered + (1 - self.share) * attended
        return self.feed_forward_norm(x + self.dropout(self.feed_forward(x)))


class LiGRBlock(Block):
    """A pre-norm block whose attention and feed-forward are gated by their input; SwiGLU inside.

    Borisyuk et al., "From Features to Transformers: Redefining Ranking for Scalable Impact", 2025,
    as eSASRec (RecSys 2025) has it: ``x + sigmoid(gate(x)) * dropout(layer(norm(x)))``, twice.

    Args:
        dim, heads, dropout, feed_forward: as for :class:`Block`.
    """

    def __init__(self, dim: int, heads: int, dropout: float, feed_forward: int = 4) -> None:
        super().__init__(dim, heads, dropout, "pre", feed_forward)
        self.attention_gate = nn.Linear(dim, dim)
        self.feed_forward_gate = nn.Linear(dim, dim)

    def _make_feed_forward(self, dim: int, inner: int, dropout: float) -> nn.Module:
        return SwiGLU(dim, inner, dropout)

    def forward(self, x: Tensor, sink: Tensor | None, present: Tensor) -> Tensor:
        added = self.dropout(self._attend(self.attention_norm(x), sink))
        x = x + self.attention_gate(x).sigmoid() * added
        added = self.dropout(self.feed_forward(self.feed_forward_norm(x)))
        return x + self.feed_forward_gate(x).sigmoid() * added


class SwiGLU(nn.Module):
    """``out(dropout(silu(gate(x)) * up(x)))``, without biases (Shazeer, 2020)."""

    def __init__(self, dim: int, inner: int, dropout: float) -> None:
        super().__init__()
        self.gate = nn.Linear(dim, inner, bias=False)
        self.up = nn.Linear(dim, inner, bias=False)
        self.out = nn.Linear(inner, dim, bias=False)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.dropout(F.silu(self.gate(x)) * self.up(x)))


def make_block(block: declared.Block, dim: int, heads: int, dropout: float, history: int) -> Block:
    """A block by its settings.

    Args:
        block: of :data:`alphafuse_ext.config.model.BLOCKS`.
        dim, heads, dropout, history: see the blocks.
    """
    if isinstance(block, declared.BSARecBlock):
        return BSARecBlock(
            *(dim, heads, dropout, block.feed_forward, history),
            block.filter_cutoff,
            block.filter_share,
            block.causal_filter is not False,
        )
    if isinstance(block, declared.LiGRBlock):
        return LiGRBlock(dim, heads, dropout, block.feed_forward)
    return Block(dim, heads, dropout, block.norm, block.feed_forward)
