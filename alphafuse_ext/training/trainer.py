"""The training loop: epochs, validation, and when to stop."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from alphafuse_ext.data import Examples, NextItemRows, Split
from alphafuse_ext.models import SequenceModel
from alphafuse_ext.training.config import Config
from alphafuse_ext.training.evaluate import example_ranks, ranking_metrics


@dataclass
class Progress:
    """Where a run stands; kept with the checkpoint."""

    epoch: int = 0
    best_epoch: int = 0
    best: float | None = None


class Trainer:
    """Epochs of training and validation.

    All randomness of an epoch follows from ``(seed, epoch)``, so a checkpoint needs no generator
    state and a resumed run repeats an uninterrupted one.

    Args:
        model: with its table, on its device.
        split: training sequences and validation examples.
        config: settings.

    Attributes:
        rows: what batches are made of.
        progress: where the run stands.
        epochs: a line for each finished epoch, see :meth:`run_epoch`.
    """

    def __init__(self, model: SequenceModel, split: Split, config: Config) -> None:
        self.model, self.split, self.config = model, split, config
        self.device = next(model.parameters()).device
        self.rows = NextItemRows(split.train, model.history, config.targets)
        # A constant: see alphafuse_ext.models.losses.
        self.targets_per_batch = self.rows.targets_per_batch(config.batch_size)
        self.optimizers = _optimizers(model, config)
        self.progress = Progress()
        self.epochs: list[dict[str, Any]] = []

    @property
    def finished(self) -> bool:
        """Whether the epochs or the patience are used up."""
        waited = self.progress.epoch - self.progress.best_epoch
        return self.progress.epoch >= self.config.epochs or waited >= self.config.patience

    def run_epoch(self) -> dict[str, Any]:
        """Train and validate once; returns the epoch's line, which :attr:`epochs` then ends with.

        Raises:
            FloatingPointError: the loss is no longer finite.
        """
        epoch = self.progress.epoch + 1
        started = time.perf_counter()
        loss = self._train_epoch(epoch)
        trained = time.perf_counter()
        metrics = self._validate(self.split.validation) if len(self.split.validation) else {}
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

    def parameters(self) -> dict[str, Tensor]:
        """The model's parameters by name."""
        return {name: tensor.detach() for name, tensor in self.model.named_parameters()}

    def moments(self) -> dict[str, Tensor]:
        """State of the optimizers: a parameter's name, a dot and a name of the optimizer's own."""
        return {
            f"{name}.{key}": torch.as_tensor(value)
            for name, parameter in self.model.named_parameters()
            for optimizer in self.optimizers
            for key, value in optimizer.state.get(parameter, {}).items()
        }

    def restore(
        self, progress: Progress, epochs: list[dict[str, Any]], moments: Mapping[str, Tensor]
    ) -> None:
        """Go on from a checkpoint of another trainer; the model has its parameters already.

        Args:
            progress, epochs: its :attr:`progress` and :attr:`epochs`.
            moments: its :meth:`moments`.
        """
        self.progress, self.epochs = progress, epochs
        parameters = dict(self.model.named_parameters())
        state: dict[Tensor, dict[str, Any]] = {}
        for name, value in moments.items():
            parameter, _, key = name.rpartition(".")
            state.setdefault(parameters[parameter], {})[key] = value
        for optimizer in self.optimizers:
            places = [p for group in optimizer.param_groups for p in group["params"]]
            found = {place: state[p] for place, p in enumerate(places) if p in state}
            if isinstance(optimizer, torch.optim.SparseAdam):  # counts in a Python int
                found = {place: {**s, "step": s["step"].item()} for place, s in found.items()}
            optimizer.load_state_dict({**optimizer.state_dict(), "state": found})

    def _train_epoch(self, epoch: int) -> float:
        entropy = np.random.SeedSequence((self.config.seed, epoch))
        torch.manual_seed(int(entropy.generate_state(1)[0]))
        order = self.rows.batches(self.config.batch_size, np.random.default_rng(entropy))
        self.model.train()
        bf16, total = self.config.precision == "bf16", 0.0
        for batch, index in enumerate(tqdm(order, f"epoch {epoch}", leave=False, disable=None)):
            self._set_learning_rate(epoch - 1 + batch / len(order))
            with torch.autocast(self.device.type, torch.bfloat16, enabled=bf16):
                ids, targets = self.batch(index)
                loss = self.model.loss(ids, targets)
                table = self.model.table
                extra = table.auxiliary_loss(targets[targets != table.padding_idx])
                if extra is not None:
                    loss = loss + extra
            for optimizer in self.optimizers:
                optimizer.zero_grad(set_to_none=True)
            (loss / self.targets_per_batch).backward()
            for optimizer in self.optimizers:
                optimizer.step()
            total += loss.item()
        if not math.isfinite(total):
            raise FloatingPointError(
                f"epoch {epoch}: the training loss is {total}; a lower learning_rate or "
                "semantic_rms may help. The run folder keeps the epoch before."
            )
        return total / self.rows.num_targets

    def _set_learning_rate(self, epochs_done: float) -> None:
        rate = self.config.learning_rate * rate_factor(self.config, epochs_done)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate

    def batch(self, index: np.ndarray) -> tuple[Tensor, Tensor]:
        """Histories and targets of some of :attr:`rows`, on the model's device."""
        ids, targets = self.rows.batch(index, self.model.table.padding_idx)
        return torch.from_numpy(ids).to(self.device), torch.from_numpy(targets).to(self.device)

    def _validate(self, examples: Examples) -> dict[str, float]:
        ranks = example_ranks(
            self.model,
            examples,
            exclude_seen=not self.config.keep_seen,
            batch_size=self.config.evaluation_batch_size,
            progress=True,
        )
        return ranking_metrics(ranks)


def rate_factor(config: Config, epochs_done: float) -> float:
    """What the learning rate is multiplied by: up over the warm-up, then as the schedule says."""
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
        optimizers.append(torch.optim.SparseAdam(items, config.learning_rate, betas))
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
    return optimizers
