"""How a model is trained and measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from alphafuse_ext.checks import invalid
from alphafuse_ext.config.large import BATCH_SIZE, BEYOND, BFLOAT16_FROM
from alphafuse_ext.config.option import SEEDS_BELOW, Chosen, Settings, option
from alphafuse_ext.metrics import METRICS

VALIDATED_UP_TO = 50_000
"""Users, up to which all are validated on where no number is given."""
VALIDATION_SAMPLE = 10_000
"""Users that are validated on where there are more."""
TESTED_UP_TO = 10**11
"""Users times items, up to which all users are tested on where no number is given."""
TEST_SAMPLE = 50_000
"""Users that are tested on where there are more: all may take longer than an epoch."""


@dataclass(frozen=True)
class Optimizer(Settings):
    """Of the optimizer."""

    group: ClassVar[str] = "training"
    of_training: ClassVar[bool] = True

    optimizer: str = option(
        "adam", "weight decay in the gradient, or beside it", choices=("adam", "adamw")
    )
    learning_rate: float = option(1e-3, "Adam's learning rate", above=0)
    learning_rate_schedule: str = option(
        "constant",
        "after the warm-up: as it is, or down to zero at the last of the epochs",
        choices=("constant", "linear", "cosine"),
    )
    warmup: float = option(
        0.0, "epochs in which the learning rate rises from zero, linearly", minimum=0
    )
    beta2: float = option(0.98, "Adam's second moment decay", minimum=0, below=1)
    weight_decay: float = option(0.0, "Adam's L2 penalty, or AdamW's decay", minimum=0)
    weight_decay_on: str = option(
        "all",
        "which parameters weight decay is for",
        choices=("all", "encoder", "item-embeddings"),
    )

    def check(self, config: Chosen) -> None:
        if self.weight_decay_on != "all" and not self.weight_decay:
            allowed = "all where weight_decay is 0: there is none"
            raise invalid("weight_decay_on", self.weight_decay_on, allowed)
        if self.weight_decay_on == "item-embeddings" and config.item_embedding == "frozen":
            allowed = "all or encoder with item_embedding=frozen: its rows are not trained"
            raise invalid("weight_decay_on", self.weight_decay_on, allowed)
        if self.warmup >= config.epochs:
            raise invalid("warmup", self.warmup, f"fewer than epochs = {config.epochs}")


@dataclass(frozen=True)
class Training(Settings):
    """Of the loop."""

    group: ClassVar[str] = "training"
    of_training: ClassVar[bool] = True

    targets: str = option(
        "all",
        "all: a target at every position; last: each prefix an example, its last position a target",
        choices=("all", "last"),
    )
    precision: str | None = option(
        None,
        "bf16: the model trains under autocast to bfloat16, parameters stay float32; ranking is "
        "float32 always (default: bf16 on a processor with AVX-512 BF16, with "
        f"the loss over a full catalog of {BFLOAT16_FROM:,} items or more; else float32)",
        choices=("float32", "bf16"),
    )
    batch_size: int = option(
        128,
        f"sequences in a batch; {BEYOND} {BATCH_SIZE} by default, with a sampled loss",
        minimum=1,
    )
    epochs: int = option(200, "most epochs to train", minimum=1)
    validate_every: int | None = option(
        None, "steps between validations (default: an epoch), which it begins anew", minimum=1
    )
    checkpoint_minutes: float = option(
        10.0,
        "save within an epoch once so many minutes have passed, beside each validation",
        above=0,
    )
    patience: int = option(
        10, "stop after this many validations without a better metric", minimum=1
    )

    def check(self, config: Chosen) -> None:
        if config.protocol == "none" and "epochs" not in config.given:
            allowed = (
                "a number with protocol=none, where no validation ends training: alphafuse refit "
                "takes the one that a run's validation chose"
            )
            raise invalid("epochs", "none", allowed)


@dataclass(frozen=True)
class Run(Settings):
    """Of every run, whether it trains or not."""

    group: ClassVar[str] = "training"

    select: str = option("ndcg@20", "validation metric that selects the epoch", choices=METRICS)
    seed: int = option(
        0, "seeds initial values, batches, negatives and dropout", minimum=0, below=SEEDS_BELOW
    )
    threads: int | None = option(
        None, "CPU threads (default: torch's own choice, recorded in the run)", minimum=1
    )


@dataclass(frozen=True)
class Metric(Settings):
    """Of a metric of one's own, or none."""

    group: ClassVar[str] = "evaluation"


@dataclass(frozen=True)
class Ranking(Settings):
    """Of ranking, to measure and to recommend."""

    group: ClassVar[str] = "evaluation"

    keep_seen: bool = option(False, "rank and recommend the items of a user's history as well")
    validation_users: int | None = option(
        None,
        "validate on a sample of so many users, drawn by seed; 0: all (default: all up to "
        f"{VALIDATED_UP_TO:,}, a sample of {VALIDATION_SAMPLE:,} beyond)",
        minimum=0,
    )
    test_users: int | None = option(
        None,
        "test on a sample of so many users, drawn by seed; 0: all (default: all, a sample of "
        f"{TEST_SAMPLE:,} where users times items are more than {TESTED_UP_TO:.0e})",
        minimum=0,
    )
    evaluation_batch_size: int = option(512, "histories ranked at once", minimum=1)
    metric: str | None = option(
        None,
        "a metric of your own beside the others, package.module:function",
        kinds={None: Metric},
        own="metric",
    )
    metric_k: int | None = option(
        None, "length of the lists that metric is given (default: 10)", minimum=1
    )

    def check(self, config: Chosen) -> None:
        for name in ("validation_users", "test_users"):
            if getattr(self, name) and config.protocol == "none":
                allowed = "none with protocol=none: nothing is held out"
                raise invalid(name, getattr(self, name), allowed)
        if self.metric is None and self.metric_k is not None:
            raise invalid("metric_k", self.metric_k, "none without metric")
