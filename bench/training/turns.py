"""Batches of an epoch, on which the contenders of ``epoch.py`` are compared, then take turns."""

from __future__ import annotations

import dataclasses
import statistics
import time
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from training.contenders import OURS, PARTS, PLAIN, STAGES, Clock, Contender, Seconds

from alphafuse_ext.config import Config
from alphafuse_ext.data import NextItemRows, Split, length_batches
from alphafuse_ext.models import SASRec
from alphafuse_ext.training.trainer import Trainer

GOALS = {"item side": 3.0, "epoch": 2.0}
"""Times as fast as plain PyTorch that a training epoch and its parts are to be."""


@dataclasses.dataclass
class Batches:
    """The batches of an epoch, or some of them, as the package's trainer makes them.

    Attributes:
        trainer: of the package, for as many rows as the batches hold, in their order.
        limits: ``(count + 1,)``: batch ``i`` is the rows ``limits[i]:limits[i + 1]``.
        in_epoch: batches of a whole epoch.
        ordering_seconds: to shuffle and cut a whole epoch.
    """

    trainer: Trainer
    limits: np.ndarray
    in_epoch: int
    ordering_seconds: float

    def __len__(self) -> int:
        return len(self.limits) - 1

    def __call__(self, batch: int) -> tuple[Tensor, Tensor]:
        ids, targets = self.trainer.batch(np.arange(self.limits[batch], self.limits[batch + 1]))
        return ids, targets

    @property
    def longest(self) -> int:
        """The batch with the most positions, padding included."""
        return max(range(len(self)), key=lambda batch: self(batch)[0].numel())


def make_batches(config: Config, model: SASRec, split: Split, steps: int | None) -> Batches:
    """``steps`` batches of an epoch, of short and long rows as they occur; ``None``: all."""
    rows = NextItemRows(split.train, model.history, config.targets).rows
    started = time.perf_counter()
    order = length_batches(rows.lengths, config.batch_size, np.random.default_rng(config.seed))
    ordering = time.perf_counter() - started
    kept = order
    if steps is not None and steps < len(order):
        by_length = np.argsort([rows.lengths[batch].max() for batch in order], kind="stable")
        evenly = (np.arange(steps) + 0.5) * len(order) / steps
        kept = [order[i] for i in sorted(by_length[evenly.astype(int)])]
    part = dataclasses.replace(split, train=rows.select(np.concatenate(kept)))
    limits = np.cumsum([0, *(len(batch) for batch in kept)])
    return Batches(Trainer(model, part, config), limits, len(order), ordering)


def check_agreement(contenders: list[Contender], batch: int) -> None:
    """Compare loss and gradients of all contenders on a batch, without dropout.

    Raises:
        SystemExit: they differ.
    """
    found: dict[str, dict[str, Tensor]] = {}
    for contender in contenders:
        contender.encoder.eval()
        torch.manual_seed(batch)
        loss = contender.gradients(batch, Clock(contender.device))
        gradient = contender.item_side.id_embeddings.grad
        assert gradient is not None
        found[contender.name] = {
            "loss": torch.tensor(loss),
            "gradient of the ID embeddings": gradient.to_dense()[: contender.given.padding_idx],
        }
        for name, parameter in contender.encoder.named_parameters():
            assert parameter.grad is not None
            found[contender.name][f"gradient of {name}"] = parameter.grad.clone()
        for optimizer in (contender.id_optimizer, contender.encoder_optimizer):
            optimizer.zero_grad(set_to_none=True)
        contender.encoder.train()
    reference = next(contender.name for contender in contenders if contender.name.startswith(PLAIN))
    for name, values in found.items():
        for what, value in values.items():
            expected = found[reference][what]
            # Sums in another order: errors are small beside the largest entry, not beside each.
            error = (value - expected).abs().max().item() / expected.abs().max().item()
            allowed = 1e-5 if what == "loss" else 1e-4
            if contenders[0].config.precision == "bf16":  # each rounds at other places
                allowed = 5e-2
            if not error <= allowed:
                raise SystemExit(
                    f"{name} against {reference}: {what} differs by {error:.1e} of its largest "
                    "entry; nothing is timed"
                )


def take_turns(
    contenders: list[Contender], steps: int, block: int, rounds: int
) -> dict[str, list[list[tuple[float, Seconds]]]]:
    """Every contender trains on every batch, ``block`` steps at a time: A B C A B C ...

    Who begins changes from block to block. Returns what ``step`` gave: ``[name][round][batch]``.
    """
    found: dict[str, list[list[tuple[float, Seconds]]]] = {c.name: [] for c in contenders}
    for contender in contenders:  # a first step sets up optimizer state and thread pools
        contender.step(0)
    turn = 0
    for _ in range(rounds):
        for results in found.values():
            results.append([])
        for start in range(0, steps, block):
            for place in range(len(contenders)):
                contender = contenders[(turn + place) % len(contenders)]
                found[contender.name][-1] += map(
                    contender.step, range(start, min(start + block, steps))
                )
            turn += 1
    return found


def summarize(rounds: list[list[tuple[float, Seconds]]], batches: Batches) -> dict[str, Any]:
    """Seconds of an epoch: of each batch the median over the rounds, of these the sum.

    An epoch that was measured in part is scaled up by the number of its batches, among which all
    lengths of rows have their share.
    """
    times = np.array([[[s[stage] for stage in STAGES] for _, s in steps] for steps in rounds])
    scale = batches.in_epoch / len(batches)
    stages = dict(zip(STAGES, scale * np.median(times, 0).sum(0), strict=True))
    stages["batch"] += batches.ordering_seconds
    parts = {part: sum(stages[stage] for stage in names) for part, names in PARTS.items()}
    return {
        "epoch_seconds": sum(parts.values()),
        "parts": parts,
        "stages": stages,
        "median_step_seconds": float(np.median(times.sum(2))),
        "mean_loss_of_last_round": statistics.fmean(loss for loss, _ in rounds[-1]),
        "step_seconds": times.sum(2).tolist(),
    }


def profile_steps(contender: Contender, steps: int, rows: int) -> str:
    """``torch.profiler``'s table of whole steps, batches included; ``[...]`` are the stages."""
    activities = [ProfilerActivity.CPU]
    if contender.device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities) as profiler:
        for batch in range(steps):
            contender.step(batch)
    return profiler.key_averages().table(
        sort_by=f"self_{contender.device.type}_time_total", row_limit=rows, max_name_column_width=44
    )


def ratios(results: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Seconds of plain PyTorch over ours: with the same optimizer, and the best of each."""

    def compare(ours: list[str], plain: list[str]) -> dict[str, float]:
        def least(names: list[str], part: str) -> float:
            parts = [{**results[n]["parts"], "epoch": results[n]["epoch_seconds"]} for n in names]
            return min(values[part] for values in parts)

        return {part: least(plain, part) / least(ours, part) for part in GOALS}

    found = {}
    for kind in ("dense", "sparse"):
        names = [name for name in results if name.endswith(kind)]
        ours = [name for name in names if name.startswith(OURS)]
        if ours:
            found[kind] = compare(ours, [name for name in names if name not in ours])
    all_ours = [name for name in results if name.startswith(OURS)]
    found["best"] = compare(all_ours, [name for name in results if name not in all_ours])
    return found
