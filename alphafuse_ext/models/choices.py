"""What can be chosen among: names alone, for whoever checks settings."""

from __future__ import annotations

from typing import Literal, TypeAlias

MODELS: tuple[str, ...] = ("sasrec",)
Loss: TypeAlias = Literal["cross_entropy", "sampled_softmax", "infonce", "bce"]
LOSSES: tuple[Loss, ...] = ("cross_entropy", "sampled_softmax", "infonce", "bce")
NegativesPer: TypeAlias = Literal["position", "sequence", "batch"]
NEGATIVES_PER: tuple[NegativesPer, ...] = ("position", "sequence", "batch")
