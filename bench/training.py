"""One SASRec training epoch on real data: this package beside the same model in plain PyTorch.

    python bench/training.py --data DATA                        # amazon-beauty, both losses
    python bench/training.py amazon-industrial --data DATA --loss sampled_softmax
    python bench/training.py --data DATA --steps 20 --output /tmp   # a short look

Contenders have equal initial weights, batches, negatives, dropout masks and the same encoder; they
differ in the item side, which is the lookup of the histories, the loss with its candidates, the
backward of both, and the optimizer step of the ID embeddings:

- ``alphafuse_ext``: ``ItemTable`` and ``next_item_loss``, as the package's trainer uses them.
- ``PyTorch``: a frozen table of semantic rows and an ``nn.Embedding``; both are gathered and fused
  for each use.
- ``PyTorch, fused once``: the same, but one table of fused rows is made at the beginning of each
  step and gathered from. On a small catalog the better way.

``dense`` and ``sparse`` say which gradient the ID embeddings have, and so which optimizer: fused
Adam, or SparseAdam, which leaves the moments of untouched rows alone (another algorithm).

Losses and gradients on one batch without dropout are compared before anything is timed, and so are
the ranks: a mismatch ends the run. The step is cut at the borders of item side and encoder
(``detach``), so that each part has a time of its own. Contenders take turns, a block of steps each.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import torch
import torch.nn.functional as F
from measure import (
    RESULTS,
    PeakMemory,
    all_threads,
    device_slug,
    format_bytes,
    format_seconds,
    in_words,
    machine_facts,
    positive_int,
    significant,
)
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile, record_function

from alphafuse_ext.data import (
    Interactions,
    Items,
    Split,
    leave_one_out,
    length_batches,
    read_embeddings,
    read_interactions,
    read_items,
)
from alphafuse_ext.files import atomic_path, write_json
from alphafuse_ext.items.table import ItemTable
from alphafuse_ext.models import SASRec
from alphafuse_ext.models.losses import next_item_loss
from alphafuse_ext.training.assembly import build_model, build_table
from alphafuse_ext.training.config import Config
from alphafuse_ext.training.evaluate import encode_histories, exclusion
from alphafuse_ext.training.run import RunFolder
from alphafuse_ext.training.trainer import Trainer, training_rows

CPU = torch.device("cpu")
OURS, PLAIN, ONCE = "alphafuse_ext", "PyTorch", "PyTorch, fused once"
LOSSES = ("sampled_softmax", "cross_entropy")
GOALS = {"item side": 3.0, "epoch": 2.0}

PARTS = {
    "item side": (
        "lookup",
        "loss",
        "loss backward",
        "lookup backward",
        "ID optimizer",
    ),
    "encoder": ("encoder forward", "encoder backward"),
    "other optimizer": ("encoder optimizer",),
    "data, negatives": ("batch", "negatives"),
}
STAGES = tuple(stage for stages in PARTS.values() for stage in stages)

Seconds = dict[str, float]


class Clock:
    """Seconds of named stages, added up; each stage is also a range of a profile."""

    def __init__(self, stages: tuple[str, ...] = STAGES) -> None:
        self.seconds: Seconds = dict.fromkeys(stages, 0.0)

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Add the seconds inside the ``with`` block to ``stage``."""
        with record_function(f"[{stage}]"):
            started = time.perf_counter()
            yield
            self.seconds[stage] += time.perf_counter() - started


# --- the item side --------------------------------------------------------------------------------


class ItemSide(Protocol):
    """What contenders differ in."""

    id_embeddings: nn.Parameter

    def lookup(self, ids: Tensor) -> Tensor:
        """Fused rows ``(B, L, dim)`` of ``ids``; called first in a step."""

    def loss(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Summed loss of ``hidden`` ``(B, L, dim)``; draws the negatives, if it needs them."""

    def finish_backward(self) -> None:
        """What backward has left over: called last, when all gradients but this one are there."""


class Ours:
    """The package's table and loss."""

    def __init__(self, table: ItemTable, config: Config) -> None:
        assert table.id_embeddings is not None
        self.table, self.config = table, config
        self.id_embeddings = table.id_embeddings

    def lookup(self, ids: Tensor) -> Tensor:
        return self.table(ids)

    def loss(self, hidden: Tensor, targets: Tensor) -> Tensor:
        return next_item_loss(
            self.table,
            hidden,
            targets,
            self.config.loss,  # type: ignore[arg-type]  # Config has checked both
            self.config.negatives,
            self.config.negatives_per,  # type: ignore[arg-type]
            self.config.score_temperature,
        )

    def finish_backward(self) -> None:
        pass


class Plain:
    """The same in plain PyTorch: item ``N`` is the padding, a row of zeros in both tables.

    Args:
        table: whose values are copied.
        config: of the run.
        fuse_once: make one table of fused rows in each step, and gather from that.
    """

    def __init__(self, table: ItemTable, config: Config, fuse_once: bool) -> None:
        assert table.semantic_rows is not None
        assert table.id_embeddings is not None
        self.num_items, self.fusion, self.config = table.num_embeddings, table.fusion, config
        self.semantic_rows = F.pad(table.semantic_rows, (0, 0, 0, 1))
        self.embedding = nn.Embedding.from_pretrained(
            F.pad(table.id_embeddings.detach(), (0, 0, 0, 1)),
            freeze=False,
            padding_idx=self.num_items,
            sparse=config.sparse,
        )
        self.id_embeddings = self.embedding.weight
        self.fuse_once = fuse_once
        self.fused: Tensor | None = None
        self.fused_leaf: Tensor | None = None

    def lookup(self, ids: Tensor) -> Tensor:
        if self.fuse_once:
            self.fused = self._fuse(self.semantic_rows, self.id_embeddings)
            self.fused_leaf = self.fused.detach().requires_grad_()
        return self._items(ids)

    def loss(self, hidden: Tensor, targets: Tensor) -> Tensor:
        if self.config.loss == "cross_entropy":
            has_target = targets != self.num_items
            logits = hidden[has_target] @ self._catalog().T
            return F.cross_entropy(logits, targets[has_target], reduction="sum")
        drawn = torch.randint(self.num_items, (len(hidden), self.config.negatives))
        positive = (hidden * self._items(targets)).sum(-1, keepdim=True)
        # Batches hold rows of similar length: to compute a few padded positions too is quicker
        # than to pick the others out of the scores, which copies them forward and backward.
        negative = torch.einsum("bld,bkd->blk", hidden, self._items(drawn))
        negative = negative.masked_fill(drawn[:, None] == targets[..., None], float("-inf"))
        scores = torch.cat([positive, negative], 2).flatten(0, 1)
        wanted = torch.where(targets == self.num_items, -100, 0).flatten()
        return F.cross_entropy(scores, wanted, ignore_index=-100, reduction="sum")

    def finish_backward(self) -> None:
        if self.fused is not None:
            assert self.fused_leaf is not None
            self.fused.backward(self.fused_leaf.grad)
            self.fused = self.fused_leaf = None

    def _fuse(self, semantic: Tensor, ids: Tensor) -> Tensor:
        if self.fusion == "concat":
            return torch.cat([semantic, ids], -1)
        untouched = semantic.shape[-1] - ids.shape[-1]
        # Quicker, backward too, than semantic + F.pad(ids, (untouched, 0)).
        return torch.cat([semantic[..., :untouched], semantic[..., untouched:] + ids], -1)

    def _items(self, ids: Tensor) -> Tensor:
        if self.fused_leaf is not None:
            return F.embedding(ids, self.fused_leaf, padding_idx=self.num_items)
        return self._fuse(F.embedding(ids, self.semantic_rows), self.embedding(ids))

    def _catalog(self) -> Tensor:
        table = self.fused_leaf
        if table is None:
            table = self._fuse(self.semantic_rows, self.id_embeddings)
        return table[: self.num_items]


# --- a contender ----------------------------------------------------------------------------------


class GivenRows(nn.Module):
    """Stands in for the table of an encoder: hands it the rows that were looked up before."""

    def __init__(self, table: ItemTable) -> None:
        super().__init__()
        self.padding_idx, self.embedding_dim = table.padding_idx, table.embedding_dim
        self.rows = torch.empty(0)

    def forward(self, ids: Tensor) -> Tensor:
        return self.rows


class Contender:
    """A model with its optimizers, trained step by step.

    Args:
        name: in the results.
        item_side: one of the above.
        model: whose encoder is copied.
        config: of the run.
        batches: ``batches(i)`` gives ids and targets of batch ``i``.
        targets_per_batch: what the summed loss is divided by.
    """

    def __init__(
        self,
        name: str,
        item_side: ItemSide,
        model: SASRec,
        config: Config,
        batches: Callable[[int], tuple[Tensor, Tensor]],
        targets_per_batch: float,
    ) -> None:
        self.name, self.item_side, self.config = name, item_side, config
        self.batches, self.targets_per_batch = batches, targets_per_batch
        self.given = GivenRows(model.table)
        # To the encoder this is a table: it has all that SASRec asks of one.
        self.encoder = build_model(config, cast(ItemTable, self.given))
        weights = model.state_dict()
        self.encoder.load_state_dict({k: weights[k] for k in self.encoder.state_dict()})
        rate, betas = config.learning_rate, (0.9, config.beta2)
        ids = [item_side.id_embeddings]
        self.id_optimizer: torch.optim.Optimizer = (
            torch.optim.SparseAdam(ids, rate, betas)
            if config.sparse
            else torch.optim.Adam(ids, rate, betas, fused=True)
        )
        self.encoder_optimizer = torch.optim.Adam(
            self.encoder.parameters(), rate, betas, fused=True
        )

    def forward(self, batch: int, clock: Clock) -> tuple[Tensor, Tensor, Tensor]:
        """Rows, hidden states and targets of a batch; the graph is cut between the first two."""
        with clock("batch"):
            ids, targets = self.batches(batch)
        with clock("lookup"):
            rows = self.item_side.lookup(ids)
        with clock("encoder forward"):
            self.given.rows = rows.detach().requires_grad_()
            hidden = self.encoder(ids)
        return rows, hidden, targets

    def loss_and_backward(self, hidden: Tensor, targets: Tensor, clock: Clock) -> tuple[float, Any]:
        """The loss, and its gradient of ``hidden``; that of the table is accumulated."""
        queries = hidden.detach().requires_grad_()
        drawing = 0.0
        if self.config.loss != "cross_entropy":
            # The loss draws its negatives. Drawn once before from the same state of the
            # generator, they have a time of their own, which is taken off the loss below.
            state, before = torch.get_rng_state(), clock.seconds["negatives"]
            with clock("negatives"):
                torch.randint(self.given.padding_idx, (len(hidden), self.config.negatives))
            torch.set_rng_state(state)
            drawing = clock.seconds["negatives"] - before
        with clock("loss"):
            loss = self.item_side.loss(queries, targets) / self.targets_per_batch
        clock.seconds["loss"] -= drawing
        with clock("loss backward"):
            loss.backward()
        return loss.item(), queries.grad

    def gradients(self, batch: int, clock: Clock) -> float:
        """Forward and backward; returns the loss, leaves gradients in ``.grad``."""
        rows, hidden, targets = self.forward(batch, clock)
        loss, gradient = self.loss_and_backward(hidden, targets, clock)
        with clock("encoder backward"):
            hidden.backward(gradient)
        with clock("lookup backward"):
            rows.backward(self.given.rows.grad)
            self.item_side.finish_backward()
        self.given.rows = torch.empty(0)
        return loss

    def step(self, batch: int) -> tuple[float, Seconds]:
        """A whole training step: the loss, and the seconds of each stage."""
        clock = Clock()
        torch.manual_seed(batch)  # dropout and negatives: the same for all contenders
        loss = self.gradients(batch, clock)
        for stage, optimizer in (
            ("ID optimizer", self.id_optimizer),
            ("encoder optimizer", self.encoder_optimizer),
        ):
            with clock(stage):
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
        return loss, clock.seconds

    def peak_bytes(self, batch: int) -> dict[str, int | None]:
        """Peak extra memory of a whole step, and of the loss and its backward alone."""
        with PeakMemory(CPU) as whole:
            self.step(batch)
        torch.manual_seed(batch)
        _, hidden, targets = self.forward(batch, Clock())
        with PeakMemory(CPU) as loss:
            self.loss_and_backward(hidden, targets, Clock())
        self.id_optimizer.zero_grad(set_to_none=True)
        return {"step": whole.extra_bytes, "loss": loss.extra_bytes}


def check_agreement(contenders: list[Contender], batch: int) -> None:
    """Compare loss and gradients of all contenders on a batch, without dropout.

    Raises:
        SystemExit: they differ.
    """
    found: dict[str, dict[str, Tensor]] = {}
    for contender in contenders:
        contender.encoder.eval()
        torch.manual_seed(batch)
        loss = contender.gradients(batch, Clock())
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
            if not error <= (1e-5 if what == "loss" else 1e-4):
                raise SystemExit(
                    f"{name} against {reference}: {what} differs by {error:.1e} of its largest "
                    "entry; nothing is timed"
                )


# --- a setting: one loss, all contenders ----------------------------------------------------------


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
        return self.trainer._batch(np.arange(self.limits[batch], self.limits[batch + 1]))

    @property
    def longest(self) -> int:
        """The batch with the most positions, padding included."""
        return max(range(len(self)), key=lambda batch: self(batch)[0].numel())


def make_batches(
    config: Config,
    model: SASRec,
    split: Split,
    clicks: Interactions,
    catalog: Items,
    steps: int | None,
    folder: Path,
) -> Batches:
    """``steps`` batches of an epoch, of short and long rows as they occur; ``None``: all."""
    rows = training_rows(split.train, config.history, config.targets)
    started = time.perf_counter()
    order = length_batches(rows.lengths, config.batch_size, np.random.default_rng(config.seed))
    ordering = time.perf_counter() - started
    kept = order
    if steps is not None and steps < len(order):
        by_length = np.argsort([rows.lengths[batch].max() for batch in order], kind="stable")
        evenly = (np.arange(steps) + 0.5) * len(order) / steps
        kept = [order[i] for i in sorted(by_length[evenly.astype(int)])]
    part = dataclasses.replace(split, train=rows.select(np.concatenate(kept)))
    run = RunFolder.create(folder, config, dict(split.report), clicks, catalog, {})
    limits = np.cumsum([0, *(len(batch) for batch in kept)])
    return Batches(Trainer(model, part, config, run), limits, len(order), ordering)


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
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        for batch in range(steps):
            contender.step(batch)
    return profiler.key_averages().table(
        sort_by="self_cpu_time_total", row_limit=rows, max_name_column_width=44
    )


def measure_setting(
    config: Config,
    split: Split,
    clicks: Interactions,
    catalog: Items,
    language: np.ndarray,
    args: argparse.Namespace,
) -> dict[str, Any]:
    """All figures of one loss."""
    torch.manual_seed(config.seed)
    table, _ = build_table(config, clicks.num_items, language, split)
    model = build_model(config, table)
    with tempfile.TemporaryDirectory() as temporary:
        batches = make_batches(
            config, model, split, clicks, catalog, args.steps, Path(temporary) / "run"
        )
        contenders = build_contenders(config, model, batches)
        check_agreement(contenders, batches.longest)
        print(f"{config.loss}: losses and gradients agree; {len(batches)} batches", flush=True)
        found = take_turns(contenders, len(batches), args.block, args.rounds)
        results = {name: summarize(rounds, batches) for name, rounds in found.items()}
        for contender in contenders:
            results[contender.name]["peak_bytes"] = contender.peak_bytes(batches.longest)
        profiled = min(len(batches), 20)
        ranking = measure_ranking(contenders[0], table, split, config, args)
        trainer_line = batches.trainer.run_epoch()
        return {
            "config": config.to_dict(),
            "batches": len(batches),
            "batches_in_epoch": batches.in_epoch,
            "contenders": results,
            "ratios": ratios(results),
            "trainer": {
                "epoch_seconds": trainer_line["train_seconds"] * batches.in_epoch / len(batches),
                "validation_seconds": trainer_line["validation_seconds"],
            },
            "ranking": ranking,
            "profiled_steps": profiled,
            "profile": profile_steps(contenders[0], profiled, args.profile_rows),
        }


def build_contenders(config: Config, model: SASRec, batches: Batches) -> list[Contender]:
    """Ours first. Cross entropy has a gradient for every item, so no sparse ones."""
    table = model.table
    assert table.id_embeddings is not None
    per_batch = batches.trainer.targets_per_batch

    def contender(kind: str, sparse: bool) -> Contender:
        own = dataclasses.replace(config, sparse=sparse)
        item_side: ItemSide
        if kind == OURS:
            assert table.id_embeddings is not None
            copy = ItemTable(
                table.semantic_rows, table.id_embeddings.detach().clone(), table.fusion, sparse
            )
            item_side = Ours(copy, own)
        else:
            item_side = Plain(table, own, fuse_once=kind == ONCE)
        name = f"{kind}, {'sparse' if sparse else 'dense'}"
        return Contender(name, item_side, model, own, batches, per_batch)

    kinds = [(OURS, False), (PLAIN, False), (ONCE, False)]
    if config.loss != "cross_entropy":
        kinds += [(OURS, True), (PLAIN, True)]
    return [contender(kind, sparse) for kind, sparse in kinds]


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


# --- ranking --------------------------------------------------------------------------------------


def plain_ranks(
    queries: Tensor, targets: Tensor, table: Tensor, seen: tuple[Tensor, Tensor]
) -> Tensor:
    """Places of the targets ``(B,)`` in the scores ``(B, N)``; unlike ours it ignores ties."""
    scores = queries @ table.T
    wanted = scores.gather(1, targets[:, None])
    offsets, ids = seen
    rows = torch.repeat_interleave(torch.arange(len(queries)), offsets.diff())
    scores[rows, ids] = float("-inf")
    return (scores > wanted).sum(1)


def measure_ranking(
    contender: Contender, table: ItemTable, split: Split, config: Config, args: argparse.Namespace
) -> dict[str, Any]:
    """Validation ranks with the weights that training has left: ours beside plain PyTorch.

    Returns seconds for all validation examples, as far as they were measured scaled up.
    """
    ours = cast(Ours, contender.item_side).table
    examples = split.validation
    order = length_batches(examples.histories.lengths, config.evaluation_batch_size, None)
    kept = order[:: max(1, len(order) // args.steps)] if args.steps else order
    encoder = contender.encoder.eval()
    clock = Clock(("encoder", "seen items", OURS, PLAIN))
    different = largest = 0
    with torch.inference_mode():
        with clock(PLAIN):
            plain = Plain(ours, config, fuse_once=False)._catalog()
        fusing = clock.seconds[PLAIN]
        for turn, rows in enumerate(kept):
            with clock("encoder"):
                histories = examples.histories.select(rows)
                ids = histories.pad(
                    np.arange(len(rows)), length=config.history, padding=ours.padding_idx
                )
                contender.given.rows = ours(torch.from_numpy(ids))
                queries = encode_histories(encoder, histories, CPU)
                targets = torch.from_numpy(examples.targets[rows])
            with clock("seen items"):
                seen = exclusion(examples.seen.select(rows), CPU)
            ranks: dict[str, Tensor] = {}
            for name in (OURS, PLAIN) if turn % 2 else (PLAIN, OURS):
                with clock(name):
                    ranks[name] = (
                        ours.target_ranks(queries, targets, exclude=seen)
                        if name == OURS
                        else plain_ranks(queries, targets, plain, seen)
                    )
            difference = (ranks[OURS] - ranks[PLAIN]).abs()
            different += int((difference > 0).sum())
            largest = max(largest, int(difference.max()))
            # Float32 sums in another order may swap neighbours.
            if largest > 3:
                raise SystemExit(f"ranks differ by up to {largest} places")
    encoder.train()
    ranked = sum(map(len, kept))
    if different > 0.05 * ranked:
        raise SystemExit(f"{different} of {ranked} ranks differ")
    scale = len(examples) / ranked
    seconds = {name: scale * value for name, value in clock.seconds.items()}
    seconds[PLAIN] = fusing + scale * (clock.seconds[PLAIN] - fusing)
    return {
        "examples": len(examples),
        "ranked": ranked,
        "ranks_that_differ": different,
        "largest_difference": largest,
        "seconds": seconds,
        "ratio": seconds[PLAIN] / seconds[OURS],
    }


# --- output ---------------------------------------------------------------------------------------


def table_of(header: list[str], rows: list[list[str]]) -> list[str]:
    """The lines of a Markdown table, aligned for a terminal too."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    marks = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]

    def line(cells: list[str]) -> str:
        first, *others = zip(cells, widths, strict=True)
        aligned = [first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)]
        return f"| {' | '.join(aligned)} |"

    return [line(header), line(marks), *map(line, rows)]


def setting_lines(setting: dict[str, Any]) -> list[str]:
    """Markdown of one loss, without its profile."""
    results, config = setting["contenders"], setting["config"]
    measured = (
        "all batches"
        if setting["batches"] == setting["batches_in_epoch"]
        else f"{setting['batches']} of {setting['batches_in_epoch']} batches, scaled up"
    )
    negatives = (
        f", {config['negatives']} negatives per {config['negatives_per']}"
        if config["loss"] != "cross_entropy"
        else ", whole catalog"
    )

    def peak(value: int | None) -> str:
        return "not measured" if value is None else format_bytes(value)

    def cells(result: dict[str, Any]) -> list[str]:
        seconds = [*result["parts"].values(), result["epoch_seconds"]]
        return [
            *(format_seconds(value) for value in seconds),
            format_seconds(result["median_step_seconds"]),
            peak(result["peak_bytes"]["step"]),
            peak(result["peak_bytes"]["loss"]),
            f"{result['mean_loss_of_last_round']:.5f}",
        ]

    header = ["", *PARTS, "epoch", "median step", "peak, step", "peak, loss", "loss"]
    lines = [f"## {config['loss']}{negatives}", "", f"Seconds of an epoch ({measured}).", ""]
    lines += table_of(header, [[name, *cells(result)] for name, result in results.items()])
    lines += ["", "Stages:", ""]
    lines += table_of(
        ["", *STAGES],
        [[n, *(format_seconds(r["stages"][s]) for s in STAGES)] for n, r in results.items()],
    )
    lines += ["", "Times as fast as plain PyTorch (the quicker of its contenders):", ""]
    goals = [f"{part} (goal {goal:g})" for part, goal in GOALS.items()]
    lines += table_of(
        ["", *goals],
        [[k, *(f"{v[part]:.2f}" for part in GOALS)] for k, v in setting["ratios"].items()],
    )
    trainer, ranking = setting["trainer"], setting["ranking"]
    seconds = ranking["seconds"]
    lines += [
        "",
        "The package's own trainer, whose step is not cut in stages (dense gradient), over the "
        f"same rows: {format_seconds(trainer['epoch_seconds'])} an epoch, "
        f"{format_seconds(trainer['validation_seconds'])} its validation.",
        "",
        f"Ranking {ranking['examples']} validation examples ({ranking['ranked']} ranked): "
        f"`target_ranks` {format_seconds(seconds[OURS])}, PyTorch {format_seconds(seconds[PLAIN])}"
        f" (product, comparison, count): {significant(ranking['ratio'])} times as fast. Beside "
        f"it, alike for both: encoder {format_seconds(seconds['encoder'])}, lists of seen items "
        f"{format_seconds(seconds['seen items'])}. {ranking['ranks_that_differ']} ranks differ, "
        f"by at most {ranking['largest_difference']} (float32 rounding).",
        "",
    ]
    return lines


def markdown(results: dict[str, Any]) -> str:
    """The results as a Markdown file."""
    machine = results["machine"]
    lines = [
        f"# SASRec training on {results['dataset']}, {machine['device']}",
        "",
        f"`{results['command']}`",
        "",
        f"- setting: {in_words(results['setting'])}",
        *(f"- {name}: {in_words(value)}" for name, value in machine.items()),
        "",
        "Item side: lookup of the histories, candidates and loss, backward of both, optimizer step "
        "of the ID embeddings. Dense: fused Adam; sparse: SparseAdam. Losses and gradients agreed "
        "before they were timed. Peak extra memory of the batch with the most positions: of a "
        "whole step, and of the loss and its backward alone (`measure.PeakMemory`); loss: the mean "
        "over the batches of the last round.",
        "",
    ]
    for setting in results["settings"]:
        lines += setting_lines(setting)
    for setting in results["settings"]:
        lines += [
            f"## Profile: alphafuse_ext, dense, {setting['config']['loss']}",
            "",
            f"{setting['profiled_steps']} steps, operators by their own time; `[...]` are the "
            "stages, whose own time is what no operator below accounts for.",
            "",
            "```",
            *(line.rstrip() for line in setting["profile"].strip().splitlines()),
            "```",
            "",
        ]
    return "\n".join(lines[:-1]) + "\n"


# --- the command line -----------------------------------------------------------------------------


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The arguments, checked; a bad one ends the program with one line that names it."""
    parser = argparse.ArgumentParser(
        usage="%(prog)s [DATASET] --data DATA [options]",
        description=(__doc__ or "").split("\n")[0],
    )
    add = parser.add_argument
    add("dataset", nargs="?", default="amazon-beauty", metavar="DATASET",
        help="folder below --data: amazon-beauty (default), amazon-industrial")  # fmt: skip
    add("--data", type=Path, required=True, help="folder of the data sets")
    add("--loss", nargs="+", choices=LOSSES, default=list(LOSSES), help="both by default")
    add("--fusion", choices=("concat", "add"), default="add", help="add by default")
    for name, default, help_text in (
        ("--dim", 256, "columns of a fused row"),
        ("--negatives", 256, "negatives of a sequence (sampled_softmax)"),
        ("--batch-size", 128, "sequences in a batch"),
        ("--block", 5, "steps of a contender before the next takes its turn"),
        ("--rounds", 1, "times that each contender trains on the batches"),
        ("--profile-rows", 30, "operators in the profile"),
        ("--threads", all_threads(), "CPU threads"),
    ):
        add(name, type=positive_int, default=default, metavar="N",
            help=f"{help_text}; %(default)s by default")  # fmt: skip
    add("--null-dim", type=positive_int, metavar="N",
        help="columns of an ID embedding; by default alphafuse_ext.Config's")  # fmt: skip
    add("--steps", type=positive_int, metavar="N",
        help="batches for each contender; a whole epoch by default")  # fmt: skip
    add("--seed", type=int, default=0, help="of weights and batches; %(default)s by default")
    add("--output", type=Path, metavar="FOLDER",
        help="where to write; bench/results by default for whole epochs of all losses")  # fmt: skip
    args = parser.parse_args(arguments)
    if not (args.data / args.dataset).is_dir():
        parser.error(
            f"argument DATASET: got {args.data / args.dataset}, which is no folder; expected one "
            "below --data"
        )
    if args.output is None and args.steps is None and args.loss == list(LOSSES):
        args.output = RESULTS
    if args.output is not None and not args.output.is_dir():
        parser.error(f"argument --output: got {args.output}; expected a folder that exists")
    try:
        args.configs = [
            Config(
                dim=args.dim,
                null_dim=args.null_dim,
                fusion=args.fusion,
                negatives=args.negatives,
                batch_size=args.batch_size,
                seed=args.seed,
                loss=loss,
            )
            for loss in args.loss
        ]
    except ValueError as error:
        parser.error(str(error))
    return args


def main(arguments: list[str] | None = None) -> None:
    """Measure, print, and write what the arguments ask for."""
    args = parse_arguments(arguments)
    load_before = os.getloadavg()[0]  # over a minute; other work would show
    torch.set_num_threads(args.threads)
    torch.set_float32_matmul_precision("highest")
    folder = args.data / args.dataset
    catalog = read_items(folder / f"{args.dataset}.item")
    clicks = read_interactions(folder / f"{args.dataset}.inter", catalog)
    language = read_embeddings(folder / "minilm-l6.npy", catalog).rows
    split = leave_one_out(clicks)
    settings = []
    for config in args.configs:
        resolved = config.resolve(language.shape[1])
        settings.append(measure_setting(resolved, split, clicks, catalog, language, args))
        print("", *setting_lines(settings[-1]), sep="\n", flush=True)
    machine = machine_facts(CPU)
    machine["load_average"] = f"{load_before:.2f} before, {os.getloadavg()[0]:.2f} after"
    setting = {
        "dim": args.dim,
        "null_dim": settings[0]["config"]["null_dim"],
        "fusion": args.fusion,
        "blocks": settings[0]["config"]["blocks"],
        "history": settings[0]["config"]["history"],
        "dropout": settings[0]["config"]["dropout"],
        "zero_sink": settings[0]["config"]["zero_sink"],
        "batch_size": args.batch_size,
        "items": clicks.num_items,
        "block": args.block,
        "rounds": args.rounds,
        "seed": args.seed,
    }
    results = {
        "command": shlex.join(["python", *sys.argv]),
        "dataset": args.dataset,
        "machine": machine,
        "setting": setting,
        "settings": settings,
    }
    if args.output is None:
        for measured in settings:
            print(measured["profile"])
        return
    stem = args.output / f"training-{device_slug(CPU)}"
    write_json(stem.with_suffix(".json"), results)
    with atomic_path(stem.with_suffix(".md")) as temporary:
        temporary.write_text(markdown(results))
    print(f"wrote {stem.with_suffix('.md')} and .json")


if __name__ == "__main__":
    main()
