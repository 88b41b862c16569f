"""What turns a history into a query."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from alphafuse_ext.checks import invalid
from alphafuse_ext.choices import SAMPLERS, SCHEDULES, SIMILARITIES
from alphafuse_ext.config.large import FULL_CATALOG_UP_TO, large_defaults
from alphafuse_ext.config.loss import LOSSES, inferred_loss
from alphafuse_ext.config.neighbors import (
    ModelAlone,
    NeighborsAlone,
    WithNeighbors,
    inferred_neighbors,
)
from alphafuse_ext.config.option import SEEDS_BELOW, Chosen, Settings, option, with_default

NEIGHBORS_UP_TO = 50_000
"""Items, up to which neighbors are the default: by language they compare all items with all."""


@dataclass(frozen=True)
class Ranker(Settings):
    """Of whatever ranks by a history."""

    group: ClassVar[str] = "model"
    trained: ClassVar[bool] = True
    """Whether there is something to train: without, a run has no settings of training and of item
    embeddings."""

    history: int | None = option(
        None, "longest history, in items (default: 50; cold-start-users, 10)", minimum=1
    )

    def resolve(
        self, config: Chosen, embedding_dim: int | None, num_items: int
    ) -> Mapping[str, Any]:
        if self.history is not None:
            return {}
        return {"history": config.component("protocol").default_history}


@dataclass(frozen=True)
class Model(Ranker):
    """Of every model."""

    null_share: ClassVar[float | None] = None
    """Of ``dim``, the null space of a hard split where its size is not given; ``None``: the item
    embedding's own default."""

    neighbors: bool | None = option(
        None,
        "rank by the model's softmax mixed with item-to-item neighbors, by co-occurrence and by "
        f"language (default: of a catalog of up to {NEIGHBORS_UP_TO:,} items, where something is "
        "held out to choose their weights on)",
        kinds={False: ModelAlone, True: WithNeighbors, None: WithNeighbors},
        infer=inferred_neighbors,
        group="evaluation",
    )

    def resolve(
        self, config: Chosen, embedding_dim: int | None, num_items: int
    ) -> Mapping[str, Any]:
        found = dict(super().resolve(config, embedding_dim, num_items))
        if self.neighbors is None:
            found["neighbors"] = num_items <= NEIGHBORS_UP_TO and config.protocol != "none"
        return found


@dataclass(frozen=True)
class NextItem(Model):
    """Of a model that is trained to rank the next item by its score."""

    loss: str | None = option(
        None,
        "training loss (default: cross_entropy, over the full catalog, where it has up to "
        f"{FULL_CATALOG_UP_TO:,} items; sampled_softmax beyond, with sparse, or where a setting of "
        "negatives is given)",
        kinds=LOSSES,
        infer=inferred_loss,
        own="loss",
        group="training",
    )
    ranking_similarity: str | None = option(
        None,
        "how queries and items are compared in ranking (default: as the loss does)",
        choices=SIMILARITIES,
        group="evaluation",
    )

    def resolve(
        self, config: Chosen, embedding_dim: int | None, num_items: int
    ) -> Mapping[str, Any]:
        found = dict(super().resolve(config, embedding_dim, num_items))
        if self.loss is None:
            full = num_items <= FULL_CATALOG_UP_TO
            found["loss"] = "cross_entropy" if full else "sampled_softmax"
        return found | large_defaults(config, found.get("loss", self.loss), num_items)


@dataclass(frozen=True)
class Block(Settings):
    """Of a block: self-attention and feed-forward."""

    group: ClassVar[str] = "model"

    norm: str = option(
        "pre",
        "layer norms on the way into attention and feed-forward, after each is added, or of "
        "attention's queries and its sum, as in SASRec's first code",
        choices=("pre", "post", "query"),
    )
    feed_forward: int = option(
        1, "inner width of a block's feed-forward, in multiples of dim", minimum=1
    )
    embedding_norm: bool = option(False, "a layer norm of the input, item and position")


@dataclass(frozen=True)
class LiGRBlock(Block):
    """Of a block with gates."""

    norm: str = with_default(Block, "norm", "pre", choices=("pre",))
    feed_forward: int = with_default(Block, "feed_forward", 4)


@dataclass(frozen=True)
class BSARecBlock(Block):
    """Of a block with a frequency layer."""

    norm: str = with_default(Block, "norm", "post", choices=("post",))
    feed_forward: int = with_default(Block, "feed_forward", 4)
    embedding_norm: bool = with_default(Block, "embedding_norm", True)
    filter_cutoff: int = option(5, "c, of which c // 2 + 1 frequencies pass as slow", minimum=1)
    filter_share: float = option(
        0.7, "alpha, the share of the frequency layer", minimum=0, maximum=1
    )
    causal_filter: bool | None = option(
        None,
        "the frequency layer sees no later position (default: with targets=all, which would tell "
        "it its targets)",
    )

    def check(self, config: Chosen) -> None:
        if self.causal_filter is False and config.targets == "all":
            allowed = "True with targets=all: a position would see the target that it has to find"
            raise invalid("causal_filter", False, allowed)

    def resolve(
        self, config: Chosen, embedding_dim: int | None, num_items: int
    ) -> Mapping[str, Any]:
        return {} if self.causal_filter is not None else {"causal_filter": config.targets == "all"}


BLOCKS = {"sasrec": Block, "bsarec": BSARecBlock, "ligr": LiGRBlock}


@dataclass(frozen=True)
class Encoder(Model):
    """Of self-attention over a history."""

    blocks: int = option(1, "self-attention blocks", minimum=1)
    heads: int = option(1, "attention heads in each block", minimum=1)
    block: str = option(
        "sasrec",
        "sasrec: self-attention and feed-forward; bsarec: with a frequency layer beside attention; "
        "ligr: with gates and SwiGLU, as in eSASRec",
        kinds=BLOCKS,
    )
    dropout: float = option(0.4, "dropout probability", minimum=0, below=1)
    input_scale: float = option(
        1.0, "multiplies the item embeddings that go in, not those that are scored", above=0
    )
    position_std: float = option(
        0.02, "standard deviation of the initial position embeddings", minimum=0
    )
    zero_sink: bool = option(True, "attend to a zero key for every position that a history lacks")

    def check(self, config: Chosen) -> None:
        super().check(config)
        if config.dim is not None and config.dim % self.heads:
            raise invalid("heads", self.heads, f"a divisor of dim = {config.dim}")


@dataclass(frozen=True)
class SASRec(Encoder, NextItem):
    """Of an encoder that is trained to rank the next item."""


@dataclass(frozen=True)
class LLMESR(SASRec):
    """Of one that encodes ID embeddings and language apart."""

    distillation_weight: float = option(
        0.1, "weight of what draws similar histories together", minimum=0
    )
    similar_users: int = option(10, "histories of the batch that one is drawn to", minimum=1)

    def check(self, config: Chosen) -> None:
        super().check(config)
        if config.item_embedding != "llm-esr":
            allowed = "llm-esr with model=llm-esr, which encodes its two halves apart"
            raise invalid("item_embedding", config.item_embedding, allowed)
        if config.dim is not None and config.dim // 2 % self.heads:
            raise invalid("heads", self.heads, f"a divisor of half of dim = {config.dim}")


@dataclass(frozen=True)
class DreamRec(Encoder):
    """Of a diffusion model that an encoder guides."""

    null_share: ClassVar[float | None] = 0.25  # its targets give way where they are learned

    timesteps: int = option(2000, "steps from data to noise", minimum=1, group="diffusion")
    stride: int = option(
        100, "of the steps that are sampled; divides timesteps", minimum=1, group="diffusion"
    )
    noise_schedule: str = option(
        "linear", "how noise grows with the steps", choices=SCHEDULES, group="diffusion"
    )
    guidance: float = option(5.0, "weight of the history beyond 1", minimum=0, group="diffusion")
    condition_dropout: float = option(
        0.1, "how often training leaves the history out", minimum=0, below=1, group="diffusion"
    )
    sampler: str = option(
        "ddim", "ddim, or ddpm, which takes every step", choices=SAMPLERS, group="diffusion"
    )
    sampling_seed: int = option(
        0, "of the noise that sampling begins with", minimum=0, below=SEEDS_BELOW, group="diffusion"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.timesteps % self.stride:
            raise invalid("stride", self.stride, f"a divisor of timesteps = {self.timesteps}")
        if self.sampler == "ddpm" and self.stride != 1:
            raise invalid("stride", self.stride, "1 with sampler=ddpm, which takes every step")
        if self.guidance and not self.condition_dropout:
            raise invalid(
                "guidance",
                self.guidance,
                "0 with condition_dropout=0: the null condition, which guidance needs, is learned "
                "where the condition is dropped",
            )

    def check(self, config: Chosen) -> None:
        super().check(config)
        if config.item_embedding == "id" and config.init == "zeros":
            raise invalid(
                "init",
                "'zeros' with model=dreamrec and item_embedding=id",
                "another: a diffusion of zeros learns to say zero",
            )


@dataclass(frozen=True)
class Neighbors(NeighborsAlone, Ranker):
    """Of lists of neighbors without a model."""

    group: ClassVar[str] = "model"
    trained: ClassVar[bool] = False
    neighbors: ClassVar[bool] = True


MODELS: dict[str, type[Ranker]] = {
    **{"sasrec": SASRec, "dreamrec": DreamRec, "llm-esr": LLMESR, "neighbors": Neighbors},
}


@dataclass(frozen=True)
class Sequence(Settings):
    """Which it is."""

    group: ClassVar[str] = "model"

    model: str = option(
        "sasrec",
        "what turns a history into a query; neighbors: no model, but item-to-item neighbors alone, "
        "without any training",
        kinds=MODELS,
        own="model",
    )
