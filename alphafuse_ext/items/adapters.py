"""Trained adapters: item embeddings from language embeddings, as in other methods.

Each is a module that is called as ``adapter(language, own)``: frozen language rows ``(..., d_l)``
and ID embeddings ``(..., dim)`` of the same items, the latter ``None`` where a method has none; it
gives embeddings ``(..., dim)``. :class:`~alphafuse_ext.items.adapted_table.AdaptedTable` holds one.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alphafuse_ext.config import own
from alphafuse_ext.config.item_embedding import RLMRec, UniSRec


class MLPAdapter(nn.Module):
    """``linear(gelu(linear(x)))``, summed over views, plus the ID embedding where there is one.

    MoRec: Yuan et al., "Where to Go Next for Recommender Systems? ID- vs. Modality-based
    Recommender Models Revisited", SIGIR 2023, with a frozen encoder. WhitenRec: Zhang et al., "Are
    ID Embeddings Necessary? Whitening Pre-trained Text Embeddings for Effective Sequential
    Recommendation", ICDE 2024: the same on whitened rows, and WhitenRec+ on two views of them.

    Args:
        width: ``d_l`` of a view.
        dim: width of an embedding.
        views: how many rows of ``width`` stand side by side.
    """

    def __init__(self, width: int, dim: int, views: int = 1) -> None:
        super().__init__()
        self.views = views
        self.layers = nn.Sequential(nn.Linear(width, dim), nn.GELU(), nn.Linear(dim, dim))

    def forward(self, language: Tensor, own: Tensor | None) -> Tensor:
        rows = self.layers(language.unflatten(-1, (self.views, -1))).sum(-2)
        return rows if own is None else rows + own


class MixtureAdapter(nn.Module):
    """A mixture of parametric whitenings, ``sum_e p_e (x - b_e) W_e``, gated with noise.

    UniSRec: Hou et al., "Towards Universal Sequence Representation Learning for Recommender
    Systems", KDD 2022. Dropout of the input is drawn once for all experts, not once for each.

    Args:
        width: ``d_l``.
        dim: width of an embedding.
        experts: number of whitenings.
        dropout: probability, of the input.
    """

    def __init__(self, width: int, dim: int, experts: int = 8, dropout: float = 0.2) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.shift = nn.Parameter(torch.zeros(experts, width))
        self.whiten = nn.Parameter(torch.randn(experts, width, dim) * 0.02)
        self.gate = nn.Linear(width, experts, bias=False)
        self.noise = nn.Linear(width, experts, bias=False)
        for layer in (self.gate, self.noise):
            nn.init.zeros_(layer.weight)

    def forward(self, language: Tensor, own: Tensor | None) -> Tensor:
        logits = self.gate(language)
        if self.training:
            spread = F.softplus(self.noise(language)) + 0.01
            logits = logits + torch.randn_like(logits) * spread
        share = logits.softmax(-1)
        # (x - b_e) W_e = x W_e - b_e W_e: no copy of x for each expert.
        of_input = torch.einsum("...w,ewd->...ed", self.dropout(language), self.whiten)
        of_shift = torch.einsum("ew,ewd->ed", self.shift, self.whiten)
        rows = (share[..., None] * (of_input - of_shift)).sum(-2)
        return rows if own is None else rows + own


class GatedAdapter(nn.Module):
    """``g * a + (1 - g) * e``: a gate for each item and dimension between adapted text and ID.

    The adapter ``a`` is MoRec's; ``g = sigmoid(linear([a, e]))``.

    Args:
        width: ``d_l``.
        dim: width of an embedding.
    """

    def __init__(self, width: int, dim: int) -> None:
        super().__init__()
        self.text = MLPAdapter(width, dim)
        self.gate = nn.Linear(2 * dim, dim)

    def forward(self, language: Tensor, own: Tensor | None) -> Tensor:
        assert own is not None, "of an adapter that has them always"
        text = self.text(language, None)
        gate = self.gate(torch.cat([text, own], -1)).sigmoid()
        return torch.lerp(own, text, gate)


class AlignedIDs(nn.Module):
    """ID embeddings, and a loss that aligns them with the language embeddings.

    RLMRec: Ren et al., "Representation Learning with Large Language Models for Recommendation",
    WWW 2024. ``contrastive``: the ID embedding finds the adapted language row of its item among
    those of the batch; ``generative``: what is reconstructed of it finds the language row itself.
    Theirs aligns users as well, and masks a graph, which sequences have not.

    Args:
        width: ``d_l``.
        dim: width of an embedding.
        generative: which of the two.
        weight: of the loss, relative to the prediction loss.
        temperature: divides the cosines.
    """

    def __init__(
        self, width: int, dim: int, generative: bool, weight: float, temperature: float
    ) -> None:
        super().__init__()
        self.generative, self.weight, self.temperature = generative, weight, temperature
        first, last = (dim, width) if generative else (width, dim)
        inner = (width + dim) // 2
        self.layers = nn.Sequential(nn.Linear(first, inner), nn.LeakyReLU(), nn.Linear(inner, last))

    def forward(self, language: Tensor, own: Tensor | None) -> Tensor:
        assert own is not None, "of an adapter that has them always"
        return own

    def loss(self, language: Tensor, own: Tensor) -> Tensor:
        """The mean over items, times the weight.

        Args:
            language, own: of items that are all different.
        """
        found, wanted = (
            (self.layers(own), language) if self.generative else (own, self.layers(language))
        )
        cosines = F.normalize(found, dim=-1) @ F.normalize(wanted, dim=-1).T
        places = torch.arange(len(own), device=own.device)
        return self.weight * F.cross_entropy(cosines / self.temperature, places)


class DualAdapter(nn.Module):
    """ID embedding and adapted language embedding side by side, each half as wide.

    The two views of LLM-ESR (see :mod:`alphafuse_ext.models.llmesr`), whose ID embeddings are
    initialized with the first principal components of the language embeddings.

    Args:
        width: ``d_l``.
        dim: width of an embedding, both halves; even.
    """

    def __init__(self, width: int, dim: int) -> None:
        super().__init__()
        inner = (width + dim // 2) // 2
        self.layers = nn.Sequential(nn.Linear(width, inner), nn.Linear(inner, dim // 2))

    def forward(self, language: Tensor, own: Tensor | None) -> Tensor:
        assert own is not None, "of an adapter that has them always"
        return torch.cat([own, self.layers(language)], -1)


def make_adapter(kind: str, width: int, dim: int, **settings: Any) -> nn.Module:
    """An adapter by its name.

    Args:
        kind: one of :data:`alphafuse_ext.config.item_embedding.ADAPTERS`, or one of one's own, see
            :mod:`alphafuse_ext.config.own`.
        width: columns of a language row; both views of ``"whitenrec+"``.
        dim: width of an embedding.
        **settings: of the item embedding, of which an adapter takes its own.
    """
    if ":" in kind:
        taken = own.arguments("item_embedding", kind)
        return own.find("item_embedding", kind)(
            width, dim, **{name: value for name, value in settings.items() if name in taken}
        )
    if kind == "unisrec":
        return MixtureAdapter(width, dim, settings.get("experts", UniSRec.experts))
    if kind == "gated":
        return GatedAdapter(width, dim)
    if kind == "llm-esr":
        return DualAdapter(width, dim)
    if kind.startswith("rlmrec-"):
        weight = settings.get("alignment_weight", RLMRec.alignment_weight)
        temperature = settings.get("alignment_temperature", RLMRec.alignment_temperature)
        return AlignedIDs(width, dim, kind == "rlmrec-generative", weight, temperature)
    views = 2 if kind == "whitenrec+" else 1
    return MLPAdapter(width // views, dim, views)
