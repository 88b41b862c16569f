"""How much item-to-item neighbors count in ranking, beside a model or alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from alphafuse_ext.checks import invalid
from alphafuse_ext.config.loss import CrossEntropy, SampledSoftmax
from alphafuse_ext.config.option import Chosen, Settings, option, with_default

WEIGHTS = ("neighbors_weight", "neighbors_language_weight", "neighbors_temperature")
"""Settings that are chosen on validation where they are not given."""


@dataclass(frozen=True)
class ModelAlone(Settings):
    """Of ranking by the model's scores."""


@dataclass(frozen=True)
class Weighted(Settings):
    """Of ranking with lists of neighbors."""

    group: ClassVar[str] = "evaluation"

    neighbors_weight: float | None = option(
        None,
        "of the neighbors' probabilities, the model's having the rest (default: the best of "
        "0 to 0.5 on validation; of neighbors alone, which popularity stands behind, 0.9)",
        minimum=0,
        below=1,
    )
    neighbors_language_weight: float | None = option(
        None,
        "of neighbors by language, those by co-occurrence having 1 (default: the best of 0 to 2 "
        "on validation)",
        minimum=0,
    )

    def check(self, config: Chosen) -> None:
        super().check(config)
        if config.neighbors and config.protocol == "none":
            self.check_given(config)

    def check_given(self, config: Chosen) -> None:
        """Refuse weights that are open where nothing is held out to choose them on."""
        missing = [name for name in WEIGHTS if getattr(self, name, 0) is None]
        if softmax_temperature(config) is not None and "neighbors_temperature" in missing:
            missing.remove("neighbors_temperature")
        if missing:
            allowed = f"{' and '.join(missing)} beside it: no validation to choose them on"
            raise invalid("neighbors", True, allowed)


@dataclass(frozen=True)
class WithNeighbors(Weighted):
    """Of ranking by a model's softmax mixed with them."""

    neighbors_temperature: float | None = option(
        None,
        "divides the scores in the model's softmax (default: that of the loss; the best on "
        "validation where the loss is no softmax of the ranked scores)",
        above=0,
    )


@dataclass(frozen=True)
class NeighborsAlone(Weighted):
    """Of ranking by them, and what no list has by popularity."""

    neighbors_weight: float = with_default(Weighted, "neighbors_weight", 0.9)


def softmax_temperature(config: Chosen) -> float | None:
    """What divides the ranked scores in the softmax that the loss trains; ``None``: it is none."""
    if not config.component("model").trained:
        return 1.0  # of popularity
    loss = config._components.get("loss")  # DreamRec has none
    if not isinstance(loss, (CrossEntropy, SampledSoftmax)):
        return None
    compared = config.ranking_similarity or loss.similarity
    return loss.temperature if compared == loss.similarity else None


def inferred_neighbors(given: Mapping[str, Any]) -> bool | None:
    """That there are some where a weight of theirs is given; else ``None``: it is open yet."""
    return None if given.keys().isdisjoint(WEIGHTS) else True
