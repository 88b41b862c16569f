"""What an item's embedding is made of.

Defaults are what was best on validation data (``bench/results/accuracy-notes.md``), for all
settings together. The constructors of :class:`alphafuse_ext.ItemTable` have them from here too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from alphafuse_ext.checks import invalid
from alphafuse_ext.choices import COORDINATES, FUSIONS, INITS
from alphafuse_ext.config.large import BEYOND
from alphafuse_ext.config.option import Chosen, Settings, chosen, option

DEFAULT_DIM = 128
ADAGRAD_RATE = 20.0
"""Of row-wise Adagrad's learning rate to Adam's: its steps shrink from the first on."""


def default_null_dim(dim: int, fusion: str, space_split: str) -> int:
    """The size of the null space: of a hard split 15/16 of ``dim`` with ``"add"``, half of it with
    ``"concat"``; of a soft one, 1."""
    if space_split != "hard":
        return 1
    return dim // 2 if fusion == "concat" else dim - dim // 16


@dataclass(frozen=True)
class Items(Settings):
    """Of every item embedding."""

    group: ClassVar[str] = "item embedding"
    language: ClassVar[bool] = True
    """Whether it is made of language embeddings."""

    dim: int | None = option(
        None,
        "dimension of the item embedding (default: 128, or all that the language embeddings have)",
        minimum=1,
    )

    def resolve(
        self, config: Chosen, embedding_dim: int | None, num_items: int
    ) -> Mapping[str, Any]:
        dim, heads = self.dim, config.heads or 1
        if dim is None:
            dim = DEFAULT_DIM if embedding_dim is None else min(DEFAULT_DIM, embedding_dim)
            if heads > dim:
                where = "" if embedding_dim is None else f", as the language embeddings have {dim}"
                raise invalid("heads", heads, f"at most dim = {dim}{where}")
            dim -= dim % heads
        return {"dim": dim}


@dataclass(frozen=True)
class Initial(Settings):
    """Of ID embeddings that are drawn."""

    group: ClassVar[str] = "item embedding"

    init: str = option("xavier_normal", "initial ID embeddings", choices=tuple(INITS))
    init_scale: float = option(1.0, "multiplies the initial ID embeddings", minimum=0)


@dataclass(frozen=True)
class Rows(Settings):
    """Of ID embeddings that are the rows of a table."""

    group: ClassVar[str] = "item embedding"

    sparse: bool = option(
        False,
        "sparse gradients and lazy Adam for the ID embeddings: a step costs what it touches; "
        f"{BEYOND} the default with a sampled loss",
    )
    sparse_optimizer: str = option(
        "adam",
        "with sparse: lazy Adam, or row-wise Adagrad, which keeps one number a row",
        choices=("adam", "adagrad"),
    )
    sparse_learning_rate: float | None = option(
        None,
        "with sparse: of the ID embeddings, with the same schedule (default: learning_rate; for "
        f"adagrad, {ADAGRAD_RATE:g} times that)",
        above=0,
    )

    def check(self, config: Chosen) -> None:
        super().check(config)
        if not self.sparse:
            for name, default in (("sparse_optimizer", "adam"), ("sparse_learning_rate", None)):
                if (value := getattr(self, name)) != default:
                    raise invalid(name, value, "none without sparse")
            return
        if config.loss == "cross_entropy":
            raise invalid(
                "sparse",
                True,
                "a sampled loss: full-catalog cross entropy has a gradient for every item",
            )
        if config.optimizer != "adam":
            raise invalid("optimizer", config.optimizer, "adam with sparse, which is lazy Adam")
        if config.weight_decay:
            allowed = "0 with sparse: lazy Adam has no weight decay"
            raise invalid("weight_decay", config.weight_decay, allowed)

    def sparse_rate(self, learning_rate: float) -> float:
        """The learning rate of sparse ID embeddings, from that of everything else."""
        if self.sparse_learning_rate is not None:
            return self.sparse_learning_rate
        return learning_rate * (ADAGRAD_RATE if self.sparse_optimizer == "adagrad" else 1.0)


@dataclass(frozen=True)
class Language(Items):
    """Of what is made of language embeddings."""

    scale: float = option(1.0, "multiplies the language embeddings", above=0)


@dataclass(frozen=True)
class Weighted(Language):
    """Of what is made by mean and covariance of language embeddings."""

    weights: str = option(
        "uniform",
        "mean and covariance over items alike, or weighted by training frequency",
        choices=("uniform", "frequency"),
    )


@dataclass(frozen=True)
class Scaled(Weighted):
    """Of what is made of the principal directions of language embeddings."""

    semantic_rms: float = option(
        0.15,
        "root mean square of the semantic columns, by one scale factor; 0: leave them alone",
        minimum=0,
    )


@dataclass(frozen=True)
class Directions(Scaled):
    """Of rows in the coordinates of these directions."""

    truncate: bool = option(
        True, "keep the first dim directions of the language embeddings; else all of them"
    )
    standardize: bool = option(True, "whiten the semantic rows")

    def resolve(
        self, config: Chosen, embedding_dim: int | None, num_items: int
    ) -> Mapping[str, Any]:
        if self.truncate:
            return super().resolve(config, embedding_dim, num_items)
        assert embedding_dim is not None, "of language embeddings"
        if self.dim not in (None, embedding_dim):
            allowed = f"none with truncate=False, which keeps all {embedding_dim} directions"
            raise invalid("dim", self.dim, allowed)
        heads = config.heads or 1
        if embedding_dim % heads:
            allowed = f"a divisor of the {embedding_dim} dimensions of the language embeddings"
            raise invalid("heads", heads, allowed)
        return {"dim": embedding_dim}


@dataclass(frozen=True)
class SoftSplit(Settings):
    """Of a split that trains all directions."""

    group: ClassVar[str] = "item embedding"

    space_split_power: float = option(
        0.5,
        "p: direction j moves at (S_ref / S_j)^(p/2), S_ref the eigenvalue of the first direction "
        "of the null space, and at 1 within",
        minimum=0,
    )

    def check(self, config: Chosen) -> None:
        split = config.space_split
        check_space_split(split, self.space_split_power, config.fusion, config.coordinates)
        for setting, cosine in (("loss", "infonce"), ("ranking_similarity", "cosine")):
            if getattr(config, setting) == cosine:
                found, allowed = f"{split!r} with {setting}={cosine}", "'hard' with cosines"
                raise invalid("space_split", found, allowed)
        if config.sparse and split == "learned":
            allowed = "False with space_split=learned: every step moves the gains"
            raise invalid("sparse", True, allowed)


@dataclass(frozen=True)
class HardSplit(Settings):
    """Of a split that trains the null space alone."""


SPACE_SPLITS = {"hard": HardSplit, "soft": SoftSplit, "learned": SoftSplit}


def check_space_split(
    space_split: str, space_split_power: float, fusion: str, coordinates: str
) -> None:
    """Raises ``ValueError`` for a split that is none, or that nothing here can have."""
    of_soft = {} if space_split == "hard" else {"space_split_power": space_split_power}
    chosen("space_split", SPACE_SPLITS, space_split, of_soft)
    if space_split == "hard":
        return
    if fusion != "add":
        allowed = f"'add' with space_split={space_split}: all directions are both"
        raise invalid("fusion", repr(fusion), allowed)
    if coordinates != "singular":
        allowed = f"'singular' with space_split={space_split}: gains are of singular directions"
        raise invalid("coordinates", repr(coordinates), allowed)


@dataclass(frozen=True)
class AlphaFuse(Rows, Initial, Directions):
    """Of frozen semantic rows fused with ID embeddings in their null space."""

    null_dim: int | None = option(
        None,
        "dimension of the null space, which ID embeddings fill (default: add, 15/16 of dim; "
        "concat, half of it; dreamrec, a quarter; with a soft split, 1)",
    )
    null_threshold: float | None = option(
        None, "instead of null_dim: directions with an eigenvalue up to this"
    )
    space_split: str = option(
        "hard",
        "hard: the null space is trained, the rest frozen; soft: all directions are, the more "
        "slowly the more they carry; learned: by gains that are trained",
        kinds=SPACE_SPLITS,
    )
    fusion: str = option(
        "add",
        "concat: ID embeddings beside the row-space columns; add: onto the last null_dim columns",
        choices=FUSIONS,
    )
    coordinates: str = option(
        "singular", "where ID embeddings live and are injected", choices=COORDINATES
    )

    def check(self, config: Chosen) -> None:
        super().check(config)
        self._check_coordinates(config)
        if self.null_dim is not None and self.null_threshold is not None:
            raise invalid(
                "null_threshold",
                self.null_threshold,
                f"either null_threshold or null_dim (given: {self.null_dim}), not both",
            )
        if self.null_dim is None or self.dim is None:
            return
        largest = self.dim if self.fusion == "add" else self.dim - 1
        if not 1 <= self.null_dim <= largest:
            raise invalid(
                "null_dim",
                self.null_dim,
                f"1 <= null_dim <= {largest} with dim={self.dim} and fusion={self.fusion}",
            )

    def _check_coordinates(self, config: Chosen) -> None:
        if self.coordinates != "projected":
            return
        for setting, cosine, other in (
            ("loss", "infonce", "another loss: infonce compares by cosine"),
            ("ranking_similarity", "cosine", "another: with it, cosines would be compared"),
        ):
            if getattr(config, setting) == cosine:
                raise invalid(
                    "coordinates",
                    f"'projected' with {setting}={cosine}",
                    f"{other}, and a stored row and its projected embedding differ in norm",
                )

    def resolve(
        self, config: Chosen, embedding_dim: int | None, num_items: int
    ) -> Mapping[str, Any]:
        found = super().resolve(config, embedding_dim, num_items)
        if self.null_dim is not None or self.null_threshold is not None:
            return found
        null_dim = default_null_dim(found["dim"], self.fusion, self.space_split)
        share = config.component("model").null_share
        if share is not None and self.space_split == "hard":
            null_dim = max(1, int(found["dim"] * share))
        return {**found, "null_dim": null_dim}


@dataclass(frozen=True)
class IDs(Rows, Initial, Items):
    """Of ID embeddings alone."""

    language: ClassVar[bool] = False


@dataclass(frozen=True)
class LLMInit(Rows, Directions):
    """Of ID embeddings that begin at the semantic rows."""


@dataclass(frozen=True)
class Frozen(Directions):
    """Of semantic rows alone."""


@dataclass(frozen=True)
class WithIDs(Initial, Language):
    """Of an adapter that has ID embeddings always."""


@dataclass(frozen=True)
class WithoutIDs(Settings):
    """Of an adapter that has none."""


@dataclass(frozen=True)
class Adapter(Language):
    """Of an adapter of language embeddings to which ID embeddings may be added."""

    adapter_ids: bool = option(False, "add ID embeddings", kinds={False: WithoutIDs, True: Initial})


@dataclass(frozen=True)
class WhitenRec(Adapter, Weighted):
    """Of an adapter of whitened rows."""


@dataclass(frozen=True)
class WhitenRecPlus(WhitenRec):
    """Of an adapter of two views of them."""

    whitening_groups: int = option(
        4, "slices of columns whitened by themselves in the second view", minimum=1
    )


@dataclass(frozen=True)
class UniSRec(Adapter):
    """Of a mixture of whitenings that are trained."""

    experts: int = option(8, "whitenings that are mixed", minimum=1)


@dataclass(frozen=True)
class RLMRec(WithIDs):
    """Of ID embeddings that are aligned with language."""

    alignment_weight: float = option(0.01, "weight of the loss that aligns IDs", minimum=0)
    alignment_temperature: float = option(0.2, "divides its cosines", above=0)


@dataclass(frozen=True)
class TwoViews(Scaled):
    """Of LLM-ESR's halves: ID embeddings that begin at the first directions, and adapted rows."""

    def check(self, config: Chosen) -> None:
        super().check(config)
        if self.dim is not None and self.dim % 2:
            allowed = "an even number with item_embedding=llm-esr: two halves"
            raise invalid("dim", self.dim, allowed)


ADAPTERS: dict[str, type[Items]] = {
    "morec": Adapter,
    "whitenrec": WhitenRec,
    "whitenrec+": WhitenRecPlus,
    "unisrec": UniSRec,
    "gated": WithIDs,
    "rlmrec-contrastive": RLMRec,
    "rlmrec-generative": RLMRec,
    "llm-esr": TwoViews,
}
"""Those of :func:`alphafuse_ext.items.adapters.make_adapter`."""

ITEM_EMBEDDINGS: dict[str, type[Items]] = {
    "alphafuse": AlphaFuse,
    "id": IDs,
    "llminit": LLMInit,
    "frozen": Frozen,
    **ADAPTERS,
}


@dataclass(frozen=True)
class ItemEmbedding(Settings):
    """Which it is."""

    group: ClassVar[str] = "item embedding"
    of_training: ClassVar[bool] = True

    item_embedding: str = option(
        "alphafuse",
        "alphafuse: frozen semantic rows fused with ID embeddings; id: ID embeddings only; "
        "llminit: ID embeddings started at the semantic rows; frozen: semantic rows only; others: "
        "adapters of the language embeddings, by the method's name",
        kinds=ITEM_EMBEDDINGS,
        own="adapter",
    )
