"""The training loop: epochs, validation, and when to stop."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from alphafuse_ext.checks import invalid
from alphafuse_ext.config import Config
from alphafuse_ext.data import Examples, NextItemRows, Split
from alphafuse_ext.distributed.process_group import ProcessGroup
from alphafuse_ext.distributed.sharded_table import ShardedItemTable
from alphafuse_ext.evaluation.ranking import example_ranks
from alphafuse_ext.metrics import ranking_metrics
from alphafuse_ext.models import SequenceModel
from alphafuse_ext.models.moments import moments, restore_moments
from alphafuse_ext.optim import LazyAdam, RowWiseAdagrad
from alphafuse_ext.training.progress import duration
from alphafuse_ext.training.sharding import check_sharding, own_state, whole_state


@dataclass
class Progress:
    """Progress of a run; saved with the checkpoint."""

    epoch: int = 0
    best_epoch: int = 0
    best: float | None = None


class Trainer:
    """Epochs of training and validation.

    All randomness of an epoch is seeded by ``(seed, epoch)``, so a checkpoint needs no generator
    state and a resumed run equals an uninterrupted one.

    Processes that train together share out each batch, in the order of its rows' lengths, and
    likewise the validation examples. Where nothing is random (no dropout, the loss over the full
    catalog) a step is that of one process with the whole batch, to rounding. Each rank draws
    dropout masks and negatives for its own rows, and a loss over other rows of the batch (RLMRec's
    contrast, LLM-ESR's similar users) is over those of the rank.

    Args:
        model: with its table, on its device; the same on all ranks, except for a sharded table
            (see :mod:`alphafuse_ext.training.sharding`).
        split: training sequences and validation examples.
        config: settings; ``batch_size`` is that of a step, over all ranks.
        process_group: the processes that train together; methods that train are collectives then.
        bars: show progress bars in a terminal.

    Attributes:
        rows: what batches are made of.
        progress: of the run.
        epochs: a line for each finished epoch, see :meth:`run_epoch`.
    """

    def __init__(
        self,
        model: SequenceModel,
        split: Split,
        config: Config,
        process_group: ProcessGroup | None = None,
        bars: bool = False,
    ) -> None:
        self.model, self.split, self.config = model, split, config
        self.process_group = process_group
        self.bars = bars
        self.device = next(model.parameters()).device
        self.rows = NextItemRows(split.train, model.history, config.targets)
        sharded = isinstance(model.table, ShardedItemTable)
        self._loss: nn.Module = _Loss(model)
        if process_group is not None:
            check_process_group(process_group, config, self.device)
            left_over = len(self.rows.rows) % config.batch_size
            own = [f"model.table.{name}" for name, _ in model.table.named_parameters() if sharded]
            some_unused = 0 < left_over < process_group.size
            self._loss = process_group.parallel(self._loss, self.device, some_unused, own)
        # A constant: see alphafuse_ext.models.losses.
        self.targets_per_batch = self.rows.targets_per_batch(config.batch_size)
        self.optimizers = _optimizers(model, config)
        self.progress = Progress()
        self.epochs: list[dict[str, Any]] = []

    @property
    def finished(self) -> bool:
        """Whether all epochs are done or the patience is exhausted."""
        waited = self.progress.epoch - self.progress.best_epoch
        return self.progress.epoch >= self.config.epochs or waited >= self.config.patience

    @property
    def seconds_left(self) -> float:
        """Estimated time of the remaining epochs."""
        if not self.epochs or self.finished:
            return 0.0
        taken = [line["train_seconds"] + line["validation_seconds"] for line in self.epochs]
        return (self.config.epochs - self.progress.epoch) * sum(taken) / len(taken)

    def run_epoch(self) -> dict[str, Any]:
        """Train and validate one epoch; returns its line, which is appended to :attr:`epochs`.

        Raises:
            FloatingPointError: the loss, the model or a moment of its optimizers is no longer
                finite; the epoch does not count then.
        """
        epoch = self.progress.epoch + 1
        started = time.perf_counter()
        loss = self._train_epoch(epoch)
        # The loss is computed before each step, so it does not check the last step.
        if (fault := self._not_finite()) is not None:
            raise self._diverged(epoch, fault)
        trained = time.perf_counter()
        try:
            metrics = self._validate(self.split.validation) if len(self.split.validation) else {}
        except FloatingPointError as error:
            raise self._diverged(epoch, str(error).partition(":")[0]) from error
        line = {
            "epoch": epoch,
            "loss": loss,
            "validation": metrics,
            "train_seconds": trained - started,
            "validation_seconds": time.perf_counter() - trained,
        }
        self.epochs.append(line)
        value = metrics.get(self.config.select)  # without validation the last epoch is the best
        self.progress.epoch = epoch
        if value is None or self.progress.best is None or value > self.progress.best:
            self.progress.best, self.progress.best_epoch = value, epoch
        return line

    def state(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The state of the whole model for a checkpoint, on the first rank; a collective.

        Returns:
            The parameters by name; the state of the optimizers, see
            :func:`alphafuse_ext.models.moments.moments`.
        """
        parameters = {name: tensor.detach() for name, tensor in self.model.named_parameters()}
        kept = moments(self.model, self.optimizers)
        return whole_state(self.model, parameters), whole_state(self.model, kept)

    def restore(
        self, progress: Progress, epochs: list[dict[str, Any]], found: Mapping[str, Tensor]
    ) -> None:
        """Restore the state of another trainer; the model has its parameters already.

        Args:
            progress, epochs: its :attr:`progress` and :attr:`epochs`.
            found: the second of its :meth:`state`.
        """
        self.progress, self.epochs = progress, epochs
        restore_moments(self.model, self.optimizers, own_state(self.model, found))
        if (fault := self._not_finite()) is not None:
            raise self._diverged(progress.epoch, fault)

    def _train_epoch(self, epoch: int) -> float:
        process_group, seed = self.process_group, (self.config.seed, epoch)
        entropy = np.random.SeedSequence(seed)
        own = (
            entropy
            if process_group is None or process_group.first
            else np.random.SeedSequence((*seed, process_group.rank))
        )
        torch.manual_seed(int(own.generate_state(1)[0]))
        order = self.rows.batches(self.config.batch_size, np.random.default_rng(entropy))
        # Backward passes average over the ranks, but the sum is wanted.
        divisor = self.targets_per_batch / (1 if process_group is None else process_group.size)
        self.model.train()
        bf16, total = self.config.precision == "bf16", 0.0
        said = f"epoch {epoch} of {self.config.epochs}"
        if self.epochs:
            said += f", {duration(self.seconds_left)} left at most"
        with nullcontext() if process_group is None else process_group.together():
            for batch, index in enumerate(
                tqdm(order, said, leave=False, disable=None if self.bars else True)
            ):
                self._set_learning_rate(epoch - 1 + batch / len(order))
                with torch.autocast(self.device.type, torch.bfloat16, enabled=bf16):
                    loss = self._loss(*self._own_batch(index))
                for optimizer in self.optimizers:
                    optimizer.zero_grad(set_to_none=True)
                (loss / divisor).backward()
                for optimizer in self.optimizers:
                    optimizer.step()
                total += loss.item()
        if process_group is not None:
            total = float(process_group.sum(torch.tensor(total, dtype=torch.float64)))
        if not math.isfinite(total):
            raise self._diverged(epoch, f"the training loss is {total}")
        return total / self.rows.num_targets

    def _not_finite(self) -> str | None:
        """The first tensor of model and optimizers with a NaN or an infinity; a collective.

        An infinite second moment would silently freeze its parameter.
        """
        tensors = {**self.model.state_dict(), **moments(self.model, self.optimizers)}
        names = (name for name, tensor in tensors.items() if not _finite(tensor))
        found = next((f"{name} is not finite" for name in names), None)
        if self.process_group is None:
            return found
        return next((one for one in self.process_group.gather(found) if one is not None), None)

    def _diverged(self, epoch: int, found: str) -> FloatingPointError:
        return FloatingPointError(
            f"epoch {epoch}: {found} at learning_rate {self.config.learning_rate:g}; a lower one, "
            "or a lower semantic_rms, may help. The run folder keeps the epoch before."
        )

    def _set_learning_rate(self, epochs_done: float) -> None:
        factor = rate_factor(self.config, epochs_done)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * factor

    def _own_batch(self, index: np.ndarray) -> tuple[Tensor, Tensor]:
        """This rank's share of a batch; a rank without one takes a row without targets."""
        if self.process_group is None:
            return self.batch(index)
        own = index[self.process_group.rank :: self.process_group.size]
        ids, targets = self.batch(own if len(own) else index[:1])
        if not len(own):
            targets = torch.full_like(targets, self.model.table.padding_idx)
        return ids, targets

    def batch(self, index: np.ndarray) -> tuple[Tensor, Tensor]:
        """Histories and targets of some of :attr:`rows`, on the model's device."""
        ids, targets = self.rows.batch(index, self.model.table.padding_idx)
        return torch.from_numpy(ids).to(self.device), torch.from_numpy(targets).to(self.device)

    def _validate(self, examples: Examples) -> dict[str, float]:
        process_group, chosen = self.process_group, np.arange(len(examples))
        places = np.zeros(len(examples), dtype=np.int64)
        if process_group is not None:
            by_length = np.argsort(examples.histories.lengths, kind="stable")
            # As many on each rank, so that all come to as many collectives: some have one twice.
            missing = -len(by_length) % process_group.size
            by_length = np.concatenate([by_length, np.repeat(by_length[-1], missing)])
            chosen = by_length[process_group.rank :: process_group.size]
            examples = examples.select(chosen)
        places[chosen] = example_ranks(
            self.model,
            examples,
            exclude_seen=not self.config.keep_seen,
            batch_size=self.config.evaluation_batch_size,
            progress=self.bars,
        )
        if process_group is not None:
            process_group.maximum(torch.from_numpy(places))
        return ranking_metrics(places)


class _Loss(nn.Module):
    """The loss of a step: the model's, plus the table's auxiliary loss."""

    def __init__(self, model: SequenceModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor, targets: Tensor) -> Tensor:
        loss, table = self.model.loss(ids, targets), self.model.table
        wanted = targets[targets != table.padding_idx]
        extra = table.auxiliary_loss(wanted) if len(wanted) else None
        return loss if extra is None else loss + extra


def _finite(tensor: Tensor) -> bool:
    if not tensor.is_floating_point() or tensor.numel() == 0:
        return True
    # One pass without a temporary of the tensor's size: NaN and infinities show in the extremes.
    return bool(torch.isfinite(torch.stack(torch.aminmax(tensor.detach()))).all())


def check_process_group(
    process_group: ProcessGroup | None, config: Config, device: torch.device
) -> None:
    """Raises ``ValueError`` where ``process_group`` cannot train by ``config`` on such devices."""
    if process_group is None:
        return
    if process_group.size > config.batch_size:
        allowed = f"at most {config.batch_size}, the batch size, which they share out"
        raise invalid("process_group", process_group.size, allowed)
    if process_group.shard_items:
        check_sharding(config)
    elif config.sparse and device.type != "cpu":
        raise invalid("sparse", True, "False with several ranks on GPUs: NCCL sums no sparse ones")


def rate_factor(config: Config, epochs_done: float) -> float:
    """Factor of the learning rate: linear over the warm-up, then by the schedule."""
    if epochs_done < config.warmup:
        return epochs_done / config.warmup
    share = (epochs_done - config.warmup) / (config.epochs - config.warmup)
    if config.learning_rate_schedule == "linear":
        return 1 - share
    if config.learning_rate_schedule == "cosine":
        return (1 + math.cos(math.pi * share)) / 2
    return 1.0


def _optimizers(model: SequenceModel, config: Config) -> list[torch.optim.Optimizer]:
    betas = (0.9, config.beta2)
    optimizers: list[torch.optim.Optimizer] = []
    items = list(model.table.parameters())
    if config.sparse and items:
        rate = config.component("item_embedding").sparse_rate(config.learning_rate)
        if config.sparse_optimizer == "adagrad":
            optimizers.append(RowWiseAdagrad(items, rate))
        else:
            optimizers.append(LazyAdam(items, rate, betas))
        items = []
    known = {id(parameter) for parameter in model.table.parameters()}
    groups: dict[str, dict[str, Any]] = {
        "encoder": {"params": [p for p in model.parameters() if id(p) not in known]},
        "item-embeddings": {"params": items},
    }
    for name, group in groups.items():
        decays = config.weight_decay_on in ("all", name)
        group["weight_decay"] = config.weight_decay if decays else 0.0
    kind = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
    used = [group for group in groups.values() if group["params"]]
    optimizers.append(kind(used, config.learning_rate, betas, fused=True))
    for optimizer in optimizers:
        for options in optimizer.param_groups:
            options["initial_lr"] = options["lr"]
    return optimizers
