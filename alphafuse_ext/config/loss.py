"""What a model that ranks the next item by its score is trained by."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from alphafuse_ext.config.large import BEYOND, SAMPLED
from alphafuse_ext.config.option import Settings, option, with_default


@dataclass(frozen=True)
class Loss(Settings):
    """Of every loss."""

    group: ClassVar[str] = "training"
    similarity: ClassVar[str] = "dot"
    """How queries and items are compared in it, and so in ranking."""


@dataclass(frozen=True)
class WithTemperature(Loss):
    """Of every loss of ours."""

    temperature: float = option(1.0, "divides the scores", above=0)


@dataclass(frozen=True)
class CrossEntropy(WithTemperature):
    """Of the softmax over the full catalog."""

    label_smoothing: float = option(
        0.0, "share of a target that is spread over the catalog", minimum=0, below=1
    )
    language_smoothing: float = option(
        0.0,
        "share of a target that goes to the ten items nearest by language embedding",
        minimum=0,
        below=1,
    )


@dataclass(frozen=True)
class BCE(WithTemperature):
    """Of a loss of drawn negatives."""

    negatives: int = option(
        256, f"sampled negatives; {BEYOND} {SAMPLED['negatives']} for a batch", minimum=1
    )
    negatives_per: str = option(
        "sequence",
        f"negatives are drawn once for each of these; {BEYOND} for a batch by default",
        choices=("position", "sequence", "batch"),
    )
    negative_sampling: str = option(
        "uniform",
        "negatives are drawn alike, in proportion to training interactions, half each, or from the "
        "targets of their batch",
        choices=("uniform", "popularity", "mixed", "in-batch"),
    )


@dataclass(frozen=True)
class SampledSoftmax(BCE):
    """Of a softmax over the target and drawn negatives."""

    logq: bool | None = option(
        None,
        "correct scores by the logarithm of the probability that an item is drawn (default: where "
        "negatives are not uniform)",
    )


@dataclass(frozen=True)
class InfoNCE(SampledSoftmax):
    """Of the same by cosines."""

    similarity: ClassVar[str] = "cosine"

    temperature: float = with_default(WithTemperature, "temperature", 0.07)


LOSSES: dict[str | None, type[Loss]] = {
    "cross_entropy": CrossEntropy,
    "sampled_softmax": SampledSoftmax,
    "infonce": InfoNCE,
    "bce": BCE,
    None: CrossEntropy,  # until the size of the catalog says which
}
OF_NEGATIVES = frozenset(field.name for field in dataclasses.fields(SampledSoftmax)) - frozenset(
    field.name for field in dataclasses.fields(WithTemperature)
)


def inferred_loss(given: Mapping[str, Any]) -> str | None:
    """Sampled softmax where a setting asks for a sampled loss; else ``None``: it is open yet."""
    sampled = given.get("sparse") or not OF_NEGATIVES.isdisjoint(given)
    return "sampled_softmax" if sampled else None
