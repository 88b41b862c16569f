"""Everything that decides a run, in one flat record for command line, Python and run folder."""

from __future__ import annotations

import dataclasses
import functools
import typing
from dataclasses import dataclass
from typing import Any

from alphafuse_ext.checks import invalid
from alphafuse_ext.choices import (
    BLOCKS,
    COORDINATES,
    DEFAULT_FEED_FORWARD,
    DEFAULT_NORM,
    DEFAULT_SHARE,
    INITS,
    LOSSES,
    MODELS,
    NEGATIVE_SAMPLINGS,
    NEGATIVES_PER,
    NORMS,
    PROTOCOLS,
    SAMPLERS,
    SCHEDULES,
    SIMILARITIES,
    SPACE_SPLITS,
    check_smoothing,
)
from alphafuse_ext.deprecation import (
    SETTINGS,
    current_names,
    recorded_names,
    renamed_arguments,
    renamed_attribute,
)
from alphafuse_ext.items import defaults as of_tables
from alphafuse_ext.training.config_checks import check_config
from alphafuse_ext.training.defaults import (
    BEFORE_THERE_WAS_A_CHOICE,
    COLD_START_HISTORY,
    DEFAULT_HISTORY,
    FULL_CATALOG_UP_TO,
    ITEM_EMBEDDINGS,
    LEARNING_RATE_SCHEDULES,
    OF_ADAPTERS,
    OF_FILTER,
    OF_LLMESR,
    OF_NEGATIVES,
    OPTIMIZERS,
    WEIGHT_DECAY_ON,
)
from alphafuse_ext.training.metrics import METRICS


def _option(default: Any, group: str, help: str, choices: tuple[str, ...] | None = None) -> Any:
    """A field whose metadata the command line turns into a flag."""
    return dataclasses.field(
        default=default, metadata={"group": group, "help": help, "choices": choices}
    )


@dataclass(frozen=True)
class Config:
    """The settings of a run; every field is a flag of ``alphafuse train`` under the same name.

    Defaults are what was best on validation data (``bench/results/accuracy-notes.md``), for all
    settings together; those of the item embedding are also :meth:`ItemTable.from_space`'s.

    Raises:
        ValueError: a value is out of its range, or two settings contradict each other.
    """

    protocol: str = _option(
        "leave-one-out",
        "protocol",
        "leave-one-out: a user's last item is the test target, the one before it the validation "
        "target; cold-start-users: users apart, every prefix of theirs an example; time: all that "
        "comes after a point in time; none: all is trained on, for as many epochs as are given",
        PROTOCOLS,
    )
    validation_share: float | None = _option(
        None,
        "protocol",
        f"of the users (cold-start-users) or interactions (time) (default: {DEFAULT_SHARE})",
    )
    test_share: float | None = _option(
        None, "protocol", f"as validation_share (default: {DEFAULT_SHARE})"
    )
    split_seed: int | None = _option(
        None, "protocol", "cold-start-users: deals users out, whatever seed is (default: 0)"
    )
    k_core: int = _option(
        1,
        "protocol",
        "leave out users and items of fewer interactions, over and over until none is left",
    )

    item_embedding: str = _option(
        "alphafuse",
        "item embedding",
        "alphafuse: frozen semantic rows fused with ID embeddings; id: ID embeddings only; "
        "llminit: ID embeddings started at the semantic rows; frozen: semantic rows only; others: "
        "adapters of the language embeddings, by the method's name (see README)",
        ITEM_EMBEDDINGS,
    )
    adapter_ids: bool = _option(
        False, "item embedding", "morec, whitenrec, whitenrec+, unisrec: add ID embeddings"
    )
    experts: int | None = _option(
        None, "item embedding", "unisrec: whitenings that are mixed (default: 8)"
    )
    whitening_groups: int | None = _option(
        None,
        "item embedding",
        "whitenrec+: slices of columns whitened by themselves in the second view (default: 4)",
    )
    alignment_weight: float | None = _option(
        None, "item embedding", "rlmrec: weight of the loss that aligns IDs (default: 0.01)"
    )
    alignment_temperature: float | None = _option(
        None, "item embedding", "rlmrec: divides its cosines (default: 0.2)"
    )
    dim: int | None = _option(
        None,
        "item embedding",
        "dimension of the item embedding (default: 128, or all that the language embeddings have)",
    )
    truncate: bool = _option(
        True,
        "item embedding",
        "keep the first dim directions of the language embeddings; else all of them",
    )
    null_dim: int | None = _option(
        None,
        "item embedding",
        "dimension of the null space, which ID embeddings fill (default: add, 15/16 of dim; "
        "concat, half of it; dreamrec, a quarter; with a soft split, 1)",
    )
    null_threshold: float | None = _option(
        None, "item embedding", "instead of null_dim: directions with an eigenvalue up to this"
    )
    space_split: str = _option(
        "hard",
        "item embedding",
        "hard: the null space is trained, the rest frozen; soft: all directions are, the more "
        "slowly the more they carry; learned: by gains that are trained",
        SPACE_SPLITS,
    )
    space_split_power: float | None = _option(
        None,
        "item embedding",
        "p of a soft split: direction j moves at (S_ref / S_j)^(p/2), S_ref the eigenvalue of the "
        "first direction of the null space, and at 1 within (default: 0.5)",
    )
    fusion: str = _option(
        of_tables.FUSION,
        "item embedding",
        "concat: ID embeddings beside the row-space columns; add: onto the last null_dim columns",
        ("concat", "add"),
    )
    standardize: bool = _option(of_tables.STANDARDIZE, "item embedding", "whiten the semantic rows")
    scale: float = _option(1.0, "item embedding", "multiplies the language embeddings")
    weights: str = _option(
        "uniform",
        "item embedding",
        "mean and covariance over items alike, or weighted by training frequency",
        ("uniform", "frequency"),
    )
    semantic_rms: float | None = _option(
        of_tables.SEMANTIC_RMS,
        "item embedding",
        "root mean square of the semantic columns, by one scale factor; 0: leave them alone",
    )
    coordinates: str = _option(
        "singular",
        "item embedding",
        "where ID embeddings live and are injected",
        COORDINATES,
    )
    init: str = _option(of_tables.INIT, "item embedding", "initial ID embeddings", tuple(INITS))
    init_scale: float = _option(1.0, "item embedding", "multiplies the initial ID embeddings")
    sparse: bool = _option(
        False,
        "item embedding",
        "sparse gradients and lazy Adam for the ID embeddings: a step costs what it touches",
    )

    model: str = _option("sasrec", "model", "what turns a history into a query", MODELS)
    history: int | None = _option(
        None,
        "model",
        f"longest history, in items (default: {DEFAULT_HISTORY}; cold-start-users, "
        f"{COLD_START_HISTORY})",
    )
    blocks: int = _option(1, "model", "self-attention blocks")
    heads: int = _option(1, "model", "attention heads in each block")
    block: str = _option(
        "sasrec",
        "model",
        "sasrec: self-attention and feed-forward; bsarec: with a frequency layer beside attention; "
        "ligr: with gates and SwiGLU, as in eSASRec",
        BLOCKS,
    )
    feed_forward: int | None = _option(
        None,
        "model",
        "inner width of a block's feed-forward, in multiples of dim (default: 1; bsarec, ligr, 4)",
    )
    dropout: float = _option(0.4, "model", "dropout probability")
    norm: str | None = _option(
        None,
        "model",
        "layer norms on the way into attention and feed-forward, after each is added, or of "
        "attention's queries and its sum, as in SASRec's first code (default: pre; bsarec, post)",
        NORMS,
    )
    embedding_norm: bool | None = _option(
        None, "model", "a layer norm of the input, item and position (default: of bsarec only)"
    )
    input_scale: float = _option(
        1.0, "model", "multiplies the item embeddings that go in, not those that are scored"
    )
    position_std: float = _option(
        0.02, "model", "standard deviation of the initial position embeddings"
    )
    filter_cutoff: int | None = _option(
        None, "model", "bsarec: c, of which c // 2 + 1 frequencies pass as slow (default: 5)"
    )
    filter_share: float | None = _option(
        None, "model", "bsarec: alpha, the share of the frequency layer (default: 0.7)"
    )
    causal_filter: bool | None = _option(
        None,
        "model",
        "bsarec: the frequency layer sees no later position (default: with targets=all, which "
        "would tell it its targets)",
    )
    zero_sink: bool = _option(
        True, "model", "attend to a zero key for every position that a history lacks"
    )

    timesteps: int | None = _option(
        None, "diffusion", "dreamrec: steps from data to noise (default: 2000)"
    )
    stride: int | None = _option(
        None,
        "diffusion",
        "dreamrec: of the steps that are sampled; divides timesteps (default: 100)",
    )
    noise_schedule: str | None = _option(
        None, "diffusion", f"dreamrec: {', '.join(SCHEDULES)} (default: linear)", SCHEDULES
    )
    guidance: float | None = _option(
        None, "diffusion", "dreamrec: weight of the history beyond 1 (default: 5)"
    )
    condition_dropout: float | None = _option(
        None, "diffusion", "dreamrec: how often training leaves the history out (default: 0.1)"
    )
    sampler: str | None = _option(
        None,
        "diffusion",
        "dreamrec: ddim, or ddpm, which takes every step (default: ddim)",
        SAMPLERS,
    )
    sampling_seed: int | None = _option(
        None, "diffusion", "dreamrec: of the noise that sampling begins with (default: 0)"
    )

    distillation_weight: float | None = _option(
        None, "model", "llm-esr: weight of what draws similar histories together (default: 0.1)"
    )
    similar_users: int | None = _option(
        None, "model", "llm-esr: histories of the batch that one is drawn to (default: 10)"
    )

    loss: str | None = _option(
        None,
        "training",
        "training loss (default: cross_entropy, over the full catalog, where it has up to "
        f"{FULL_CATALOG_UP_TO:,} items; sampled_softmax beyond, with sparse, or where a setting of "
        "negatives is given)",
        LOSSES,
    )
    negatives: int | None = _option(
        None, "training", "sampled negatives, of the other losses (default: 256)"
    )
    negatives_per: str | None = _option(
        None,
        "training",
        "negatives are drawn once for each of these (default: sequence)",
        NEGATIVES_PER,
    )
    negative_sampling: str | None = _option(
        None,
        "training",
        "negatives are drawn alike, in proportion to training interactions, or half each "
        "(default: uniform)",
        NEGATIVE_SAMPLINGS,
    )
    logq: bool | None = _option(
        None,
        "training",
        "sampled softmaxes: correct scores by the logarithm of the probability that an item is "
        "drawn (default: where negatives are not uniform)",
    )
    label_smoothing: float = _option(
        0.0, "training", "cross_entropy: share of a target that is spread over the catalog"
    )
    language_smoothing: float = _option(
        0.0,
        "training",
        "cross_entropy: share of a target that goes to the ten items nearest by language embedding",
    )
    temperature: float | None = _option(
        None, "training", "divides the scores (default: 0.07 for infonce, else 1)"
    )
    targets: str = _option(
        "all",
        "training",
        "all: a target at every position; last: each prefix an example, its last position a target",
        ("all", "last"),
    )
    precision: str = _option(
        "float32",
        "training",
        "bf16: the model trains under autocast to bfloat16, parameters stay float32; ranking is "
        "float32 always",
        ("float32", "bf16"),
    )
    batch_size: int = _option(128, "training", "sequences in a batch")
    learning_rate: float = _option(1e-3, "training", "Adam's learning rate")
    learning_rate_schedule: str = _option(
        "constant",
        "training",
        "after the warm-up: as it is, or down to zero at the last of the epochs",
        LEARNING_RATE_SCHEDULES,
    )
    warmup: float = _option(
        0.0, "training", "epochs in which the learning rate rises from zero, linearly"
    )
    optimizer: str = _option(
        "adam", "training", "weight decay in the gradient, or beside it", OPTIMIZERS
    )
    beta2: float = _option(0.98, "training", "Adam's second moment decay")
    weight_decay: float = _option(0.0, "training", "Adam's L2 penalty, or AdamW's decay")
    weight_decay_on: str = _option(
        "all", "training", "which parameters weight decay is for", WEIGHT_DECAY_ON
    )
    epochs: int = _option(200, "training", "most epochs to train")
    patience: int = _option(
        10, "training", "stop after this many epochs without a better validation metric"
    )
    select: str = _option(
        "ndcg@20", "training", "validation metric that selects the epoch", METRICS
    )
    ranking_similarity: str | None = _option(
        None,
        "evaluation",
        "how queries and items are compared in ranking (default: as the loss does)",
        SIMILARITIES,
    )
    keep_seen: bool = _option(
        False, "evaluation", "rank and recommend the items of a user's history as well"
    )
    evaluation_batch_size: int = _option(512, "evaluation", "histories ranked at once")
    seed: int = _option(0, "training", "seeds initial values, batches, negatives and dropout")
    threads: int | None = _option(
        None, "training", "CPU threads (default: torch's own choice, recorded in the run)"
    )

    clip = renamed_attribute("Config.clip", "truncate")
    split = renamed_attribute("Config.split", "space_split")
    split_power = renamed_attribute("Config.split_power", "space_split_power")

    def __post_init__(self) -> None:
        check_config(self, _types())

    @property
    def names_negatives(self) -> bool:
        """Whether a setting says something of negatives, and so asks for a sampled loss."""
        given = any(getattr(self, name) is not None for name in OF_NEGATIVES)
        return given or self.logq is not None

    def resolve(self, embedding_dim: int | None, num_items: int) -> Config:
        """This configuration with the defaults that depend on the data filled in.

        Args:
            embedding_dim: ``d_l``, the dimension of the language embeddings; ``None`` without any.
            num_items: ``N``, the size of the catalog.

        Raises:
            ValueError: a setting that the data cannot have.
        """
        dim = self.dim
        if not self.truncate:
            assert embedding_dim is not None, "refused with item_embedding=id"
            if dim not in (None, embedding_dim):
                allowed = f"none with truncate=False, which keeps all {embedding_dim} directions"
                raise invalid("dim", dim, allowed)
            dim = embedding_dim
            if dim % self.heads:
                allowed = f"a divisor of the {dim} dimensions of the language embeddings"
                raise invalid("heads", self.heads, allowed)
        elif dim is None:
            dim = of_tables.DIM if embedding_dim is None else min(of_tables.DIM, embedding_dim)
            if self.heads > dim:
                where = "" if embedding_dim is None else f", as the language embeddings have {dim}"
                raise invalid("heads", self.heads, f"at most dim = {dim}{where}")
            dim -= dim % self.heads
        null_dim = self.null_dim
        if self.item_embedding != "alphafuse" or self.null_threshold is not None:
            pass
        elif null_dim is None:
            null_dim = of_tables.null_dim_of(dim, self.fusion, self.space_split)
            # DreamRec's targets give way where they are learned.
            if self.model == "dreamrec" and self.space_split == "hard":
                null_dim = max(1, dim // 4)
        history = self.history
        if history is None:
            cold = self.protocol == "cold-start-users"
            history = COLD_START_HISTORY if cold else DEFAULT_HISTORY
        found: dict[str, Any] = {"dim": dim, "null_dim": null_dim, "history": history}
        if self.space_split != "hard" and self.space_split_power is None:
            found["space_split_power"] = of_tables.SPACE_SPLIT_POWER
        for name, (owner, value) in OF_ADAPTERS.items():
            if self.item_embedding.startswith(owner) and getattr(self, name) is None:
                found[name] = value
        if self.model == "llm-esr":
            found |= {k: v for k, v in OF_LLMESR.items() if getattr(self, k) is None}
        return dataclasses.replace(
            self, **found, **self._resolved_block(), **self._resolved_loss(num_items)
        )

    def _resolved_block(self) -> dict[str, Any]:
        kind = self.block
        defaults: dict[str, Any] = {
            "norm": DEFAULT_NORM[kind],  # type: ignore[index]  # one of its choices
            "feed_forward": DEFAULT_FEED_FORWARD[kind],  # type: ignore[index]
            "embedding_norm": kind == "bsarec",
        }
        if kind == "bsarec":
            defaults |= {**OF_FILTER, "causal_filter": self.targets == "all"}
        return {name: value for name, value in defaults.items() if getattr(self, name) is None}

    def _resolved_loss(self, num_items: int) -> dict[str, Any]:
        if self.model == "dreamrec":
            return {}
        loss = self.loss
        if loss is None:
            sampled = self.sparse or self.names_negatives or num_items > FULL_CATALOG_UP_TO
            loss = "sampled_softmax" if sampled else "cross_entropy"
            check_smoothing("label_smoothing", self.label_smoothing, loss)
            check_smoothing("language_smoothing", self.language_smoothing, loss)
        if loss == "cross_entropy":
            return {"loss": loss}
        given = {name: getattr(self, name) for name in OF_NEGATIVES}
        return {"loss": loss, **{n: OF_NEGATIVES[n] if v is None else v for n, v in given.items()}}

    @property
    def needs_language(self) -> bool:
        """Whether a run takes language embeddings."""
        return self.item_embedding != "id" or self.language_smoothing > 0

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Config:
        """From :meth:`to_dict`'s result; unknown names are refused, old ones warned of."""
        values = current_names(values)
        known = {field.name for field in dataclasses.fields(cls)}
        for name in values:
            if name not in known:
                raise invalid(
                    name,
                    repr(values[name]),
                    f"one of the options {', '.join(sorted(known))}",
                    TypeError,
                )
        return cls(**values)

    @classmethod
    def from_record(cls, values: dict[str, Any]) -> Config:
        """From what an earlier version recorded of a run.

        Settings that came later have their defaults; ``loss`` and those of negatives once had
        values where there was no use for them.
        """
        values = {**BEFORE_THERE_WAS_A_CHOICE, **recorded_names(values)}
        of_no_use: tuple[str, ...] = ()
        if values.get("model") == "dreamrec":
            of_no_use = ("loss", *OF_NEGATIVES)
        elif values.get("loss") == "cross_entropy":
            of_no_use = tuple(OF_NEGATIVES)
        return cls.from_dict({n: v for n, v in values.items() if n not in of_no_use})


Config.__init__ = renamed_arguments(SETTINGS)(Config.__init__)  # type: ignore[method-assign]


@functools.cache
def _types() -> dict[str, Any]:
    """Of the fields; to find them takes longer than to check them."""
    return typing.get_type_hints(Config)
