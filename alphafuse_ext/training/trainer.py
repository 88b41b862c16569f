"""The training loop: epochs, validation, and when to stop."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
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
from alphafuse_ext.items.item_embeddings import ItemEmbeddings
from alphafuse_ext.metrics import ranking_metrics
from alphafuse_ext.models import NextItemModel, SequenceModel
from alphafuse_ext.models.moments import moments, restore_moments
from alphafuse_ext.optim import LazyAdam, RowWiseAdagrad
from alphafuse_ext.training.progress import duration
from alphafuse_ext.training.sharding import check_sharding, own_state, whole_state

_RANDOM = "/random/"
"""Before the rank and the device of a generator's state; no parameter has such a name."""

_STEPS_BETWEEN_CLOCKS = 32
"""Of several processes, which then agree whether a checkpoint is due."""


@dataclass
class Progress:
    """Progress of a run; saved with the checkpoint.

    Attributes:
        epoch: finished epochs.
        best_epoch: epochs done at the best validation, a fraction in the middle of one.
        best: its value.
        step: steps done of the epoch in progress.
        share: of its steps, the share done.
        validations: lines of :attr:`Trainer.epochs`; ``None`` in folders of earlier versions, as
            many as epochs.
        losses: since the last of them the summed training loss of each rank.
        targets: and the targets of all.
    """

    epoch: int = 0
    best_epoch: float = 0
    best: float | None = None
    step: int = 0
    share: float = 0.0
    validations: int | None = None
    losses: list[float] = field(default_factory=list)
    targets: int = 0

    @property
    def epochs_done(self) -> float:
        """An integer at the end of an epoch."""
        return self.epoch + self.share if self.step else self.epoch


class Trainer:
    """Epochs of training and validation.

    All randomness of an epoch is seeded by ``(seed, epoch)``; a checkpoint within an epoch has the
    states of torch's generators as well. So a resumed run equals an uninterrupted one.

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
        epochs: a line for each validation, see :meth:`run_epoch`.
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
        self.device = model.device
        beside = (split.train_baskets, split.train_weights)
        self.rows = NextItemRows(split.train, model.history, config.targets, *beside)
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
        self._order: list[np.ndarray] | None = None
        self._random: list[dict[str, Tensor]] = []

    @property
    def finished(self) -> bool:
        """Whether all epochs are done or the patience is exhausted."""
        progress = self.progress
        waited = sum(line["epoch"] > progress.best_epoch for line in self.epochs)
        return progress.epoch >= self.config.epochs or waited >= self.config.patience

    @property
    def seconds_left(self) -> float:
        """Estimated time of the remaining epochs."""
        if not self.epochs or self.finished:
            return 0.0
        taken = [line["train_seconds"] + line["validation_seconds"] for line in self.epochs]
        done = self.epochs[-1]["epoch"]
        return (self.config.epochs - done) * sum(taken) / done

    def run_epoch(self, checkpoint: Callable[[], object] | None = None) -> dict[str, Any]:
        """Train up to the next validation, by default a whole epoch, and validate.

        Args:
            checkpoint: called between two steps where a checkpoint is due; a collective, as
                :meth:`state` is.

        Returns:
            The line of the validation, which is appended to :attr:`epochs`: ``epoch``, the epochs
            done (a fraction within one), ``loss``, the mean over the targets since the line
            before, ``validation`` and seconds.

        Raises:
            FloatingPointError: the loss, the model or a moment of its optimizers is no longer
                finite; what was trained does not count then.
        """
        before = dataclasses.replace(self.progress)
        try:
            return self._run_part(checkpoint)
        except FloatingPointError:
            self.progress = before
            raise

    def _run_part(self, checkpoint: Callable[[], object] | None) -> dict[str, Any]:
        started, epoch = time.perf_counter(), self.progress.epoch + 1
        loss = self._train_part(checkpoint)
        # The loss is computed before each step, so it does not check the last step.
        self._check_finite(epoch)
        trained = time.perf_counter()
        try:
            metrics = self._validate(self.split.validation) if len(self.split.validation) else {}
        except FloatingPointError as error:
            raise self._diverged(epoch, str(error).partition(":")[0]) from error
        done = self.progress.epochs_done
        line: dict[str, Any] = {
            "epoch": done,
            "loss": loss,
            "validation": metrics,
            "train_seconds": trained - started,
            "validation_seconds": time.perf_counter() - trained,
        }
        self.epochs.append(line)
        self.progress.validations = len(self.epochs)
        value = metrics.get(self.config.select)  # without validation the last epoch is the best
        if value is None or self.progress.best is None or value > self.progress.best:
            self.progress.best, self.progress.best_epoch = value, done
        return line

    def state(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The state of the whole model for a checkpoint, on the first rank; a collective.

        Returns:
            The parameters by name; the state of the optimizers, see
            :func:`alphafuse_ext.models.moments.moments`, and within an epoch that of the random
            numbers of each rank.
        """
        parameters = {name: tensor.detach() for name, tensor in self.model.named_parameters()}
        kept = whole_state(self.model, moments(self.model, self.optimizers))
        first = self.process_group is None or self.process_group.first
        if self.progress.step and first:
            kept |= {
                f"{_RANDOM}{rank}/{device}": state
                for rank, states in enumerate(self._random)
                for device, state in states.items()
            }
        return whole_state(self.model, parameters), kept

    def restore(
        self, progress: Progress, epochs: list[dict[str, Any]], found: Mapping[str, Tensor]
    ) -> None:
        """Restore the state of another trainer; the model has its parameters already.

        Args:
            progress, epochs: its :attr:`progress` and :attr:`epochs`.
            found: the second of its :meth:`state`.
        """
        self.progress, self.epochs, self._order = progress, epochs, None
        states: dict[int, dict[str, Tensor]] = {}
        for name in [name for name in found if name.startswith(_RANDOM)]:
            rank, _, device = name.removeprefix(_RANDOM).partition("/")
            states.setdefault(int(rank), {})[device] = found[name]
        self._random = [states[rank] for rank in sorted(states)]
        kept = {name: tensor for name, tensor in found.items() if not name.startswith(_RANDOM)}
        restore_moments(self.model, self.optimizers, own_state(self.model, kept))
        self._check_finite(progress.epoch)

    def _train_part(self, checkpoint: Callable[[], object] | None) -> float:
        """Train up to the next validation; the mean loss of the targets since the last."""
        process_group, progress, config = self.process_group, self.progress, self.config
        epoch, rank = progress.epoch + 1, 0 if process_group is None else process_group.rank
        size = 1 if process_group is None else process_group.size
        order = self._begin(epoch)
        # Backward passes average over the ranks, but the sum is wanted.
        divisor = self.targets_per_batch / size
        until = len(order)
        if (every := config.validate_every) is not None:
            until = min(until, (progress.step // every + 1) * every)
        self.model.train()
        bf16 = config.precision == "bf16"
        before = progress.losses[rank] if len(progress.losses) == size else 0.0
        if len(progress.losses) != size and rank == 0:  # of another number of ranks
            before = sum(progress.losses)
        # Added up where the losses are: to ask a GPU for each would wait for it in each step.
        summed = torch.tensor(before, dtype=torch.float64, device=self.device)
        said = f"epoch {epoch} of {config.epochs}"
        if self.epochs:
            said += f", {duration(self.seconds_left)} left at most"
        saved = time.monotonic()
        bar = tqdm(
            range(progress.step, until), said, leave=False, disable=None if self.bars else True
        )
        with nullcontext() if process_group is None else process_group.together():
            for batch in bar:
                index = order[batch]
                self._set_learning_rate(epoch - 1 + batch / len(order))
                with torch.autocast(self.device.type, torch.bfloat16, enabled=bf16):
                    loss = self._loss(*self._own_batch(index))
                for optimizer in self.optimizers:
                    optimizer.zero_grad(set_to_none=True)
                (loss / divisor).backward()
                for optimizer in self.optimizers:
                    optimizer.step()
                summed += loss.detach()
                progress.targets += self.rows.targets_of(index)
                done = batch + 1
                if checkpoint is None or done == until or not self._due(saved, done):
                    continue
                self._pause(done, len(order), summed.item())
                self._check_finite(epoch)
                checkpoint()
                saved = time.monotonic()
        if until < len(order):
            self._pause(until, len(order), 0.0)
        total = summed.item()
        if process_group is not None:
            total = float(process_group.sum(torch.tensor(total, dtype=torch.float64)))
        if not math.isfinite(total):
            raise self._diverged(epoch, f"the training loss is {total}")
        mean, progress.targets, progress.losses = total / progress.targets, 0, []
        if until == len(order):
            progress.epoch, progress.step, progress.share = epoch, 0, 0.0
            self._order = None
        return mean

    def _begin(self, epoch: int) -> list[np.ndarray]:
        """Batches of an epoch; torch's random numbers become those of its next step."""
        rank = 0 if self.process_group is None else self.process_group.rank
        seed = (self.config.seed, epoch)
        if self._order is None:
            self._order = self.rows.batches(self.config.batch_size, np.random.default_rng(seed))
        step = self.progress.step
        own = (*seed, *((step,) if step else ()), *((rank,) if rank else ()))
        torch.manual_seed(int(np.random.SeedSequence(own).generate_state(1)[0]))
        if step and rank < len(self._random):  # else of a rank that there was not before
            state = self._random[rank]
            torch.set_rng_state(state["cpu"])
            if "cuda" in state and self.device.type == "cuda":
                torch.cuda.set_rng_state(state["cuda"], self.device)
        return self._order

    def _due(self, saved: float, step: int) -> bool:
        """Whether to save before the next step; a collective, by the first rank's clock."""
        late = time.monotonic() - saved >= 60 * self.config.checkpoint_minutes
        if self.process_group is None:
            return late
        if step % _STEPS_BETWEEN_CLOCKS:
            return False
        found = torch.tensor(int(late and self.process_group.first))
        return bool(self.process_group.maximum(found))

    def _pause(self, step: int, steps: int, loss: float) -> None:
        """Note, in the middle of an epoch, all that going on from here needs; a collective."""
        random = {"cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            random["cuda"] = torch.cuda.get_rng_state(self.device)
        found = [(random, loss)]
        if self.process_group is not None:
            found = self.process_group.gather(found[0])
        self._random = [state for state, _ in found]
        self.progress.losses = [part for _, part in found]
        self.progress.step, self.progress.share = step, step / steps

    def _check_finite(self, epoch: int) -> None:
        """Raise where model or optimizers have a NaN or an infinity; a collective.

        An infinite second moment would silently freeze its parameter.
        """
        tensors = {**self.model.state_dict(), **moments(self.model, self.optimizers)}
        names = (name for name, tensor in tensors.items() if not _finite(tensor))
        found = next((f"{name} is not finite" for name in names), None)
        if self.process_group is not None:
            every = self.process_group.gather(found)
            found = next((one for one in every if one is not None), None)
        if found is not None:
            raise self._diverged(epoch, found)

    def _diverged(self, epoch: int, found: str) -> FloatingPointError:
        return FloatingPointError(
            f"epoch {epoch}: {found} at learning_rate {self.config.learning_rate:g}; a lower one, "
            "or a lower semantic_rms, may help. The run folder keeps the checkpoint before."
        )

    def _set_learning_rate(self, epochs_done: float) -> None:
        factor = rate_factor(self.config, epochs_done)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * factor

    def _own_batch(self, index: np.ndarray) -> tuple[Tensor, ...]:
        """This rank's share of a batch; a rank without one takes a row without targets."""
        if self.process_group is None:
            return self.batch(index)
        own = index[self.process_group.rank :: self.process_group.size]
        ids, targets, *weights = self.batch(own if len(own) else index[:1])
        if not len(own):
            targets = torch.full_like(targets, self.model.table.padding_idx)
        return ids, targets, *weights

    def batch(self, index: np.ndarray) -> tuple[Tensor, ...]:
        """Histories and targets of some of :attr:`rows`, and the targets' weights where they have
        any, on the model's device."""
        arrays = (*self.rows.batch(index, self.model.table.padding_idx),)
        weights = self.rows.batch_weights(index)
        every = arrays if weights is None else (*arrays, weights)
        return tuple(self._moved(array) for array in every)

    def _moved(self, values: np.ndarray) -> Tensor:
        """On the model's device; the host does not wait for a GPU to have it."""
        given = torch.from_numpy(values)
        if self.device.type != "cuda":
            return given.to(self.device)
        return given.pin_memory().to(self.device, non_blocking=True)

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


_NONE = (ItemEmbeddings.auxiliary_loss, ShardedItemTable.auxiliary_loss)
"""Of tables without an auxiliary loss."""


class _Loss(nn.Module):
    """The loss of a step: the model's, plus the table's auxiliary loss."""

    def __init__(self, model: SequenceModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
        model, table = self.model, self.model.table
        if weights is None:
            loss = model.loss(ids, targets)
        else:
            assert isinstance(model, NextItemModel), "or refused"
            loss = model.weighted_loss(ids, targets, weights)
        if type(table).auxiliary_loss in _NONE:  # then nobody waits to learn how many targets
            return loss
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
    if not config.trained:
        allowed = "none with model=neighbors, which is not trained"
        raise invalid("process_group", process_group.size, allowed)
    if process_group.size > config.batch_size:
        allowed = f"at most {config.batch_size}, the batch size, which they share out"
        raise invalid("process_group", process_group.size, allowed)
    if process_group.shard_items:
        check_sharding(config)
    elif config.sparse and device.type != "cpu":
        raise invalid("sparse", True, "False with several ranks on GPUs: NCCL sums no sparse ones")


def check_weights(model: SequenceModel, config: Config, split: Split) -> None:
    """Raises ``ValueError`` where interactions have weights that nothing would be trained by."""
    if split.train_weights is None or not config.trained:
        return
    ours = isinstance(model, NextItemModel) and type(model).loss is NextItemModel.loss
    if not ours or ":" in str(config.loss):
        found = "weights of interactions"
        allowed = "none, or a model and a loss of this package that trains by them, as sasrec"
        raise invalid("weight_column", found, allowed)


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
