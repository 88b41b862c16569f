"""Who trains in ``epoch.py``: the package's item side and PyTorch's, around the same encoder."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol, cast

import torch
import torch.nn.functional as F
from measure import PeakMemory
from torch import Tensor, nn
from torch.profiler import record_function

from alphafuse_ext.config import Config
from alphafuse_ext.items.table import ItemTable
from alphafuse_ext.models import SASRec
from alphafuse_ext.models.losses import next_item_loss
from alphafuse_ext.optim import LazyAdam
from alphafuse_ext.runs.assembly import build_model

OURS, PLAIN, ONCE = "alphafuse_ext", "PyTorch", "PyTorch, fused once"

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
    """Seconds of named stages, added up; each stage is also a range of a profile.

    A GPU is waited for at both ends of a stage, so that the stage has all of its own work and no
    other's; a step that nobody looks at is faster by what overlaps.
    """

    def __init__(self, device: torch.device, stages: tuple[str, ...] = STAGES) -> None:
        self.device = device
        self.seconds: Seconds = dict.fromkeys(stages, 0.0)

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Add the seconds inside the ``with`` block to ``stage``."""
        with record_function(f"[{stage}]"):
            self._wait()
            started = time.perf_counter()
            yield
            self._wait()
            self.seconds[stage] += time.perf_counter() - started

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


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


def negatives_of(config: Config) -> int:
    """Negatives of a sequence; 1 with a loss that draws none."""
    return config.negatives or 1


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
            self.table, hidden, targets, self.config.loss, **self.config.of("loss")
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
        shape = len(hidden), negatives_of(self.config)
        drawn = torch.randint(self.num_items, shape, device=hidden.device)
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
        assert isinstance(model.table, ItemTable)
        self.given = GivenRows(model.table)
        # To the encoder this is a table: it has all that SASRec asks of one.
        self.device = item_side.id_embeddings.device
        self.encoder = build_model(config, cast(ItemTable, self.given)).to(self.device)
        weights = model.state_dict()
        self.encoder.load_state_dict({k: weights[k] for k in self.encoder.state_dict()})
        rate, betas = config.learning_rate, (0.9, config.beta2)
        ids = [item_side.id_embeddings]
        lazy = LazyAdam if isinstance(item_side, Ours) else torch.optim.SparseAdam
        self.id_optimizer: torch.optim.Optimizer = (
            lazy(ids, rate, betas)
            if config.sparse
            else torch.optim.Adam(ids, rate, betas, fused=True)
        )
        self.encoder_optimizer = torch.optim.Adam(
            self.encoder.parameters(), rate, betas, fused=True
        )

    def autocast(self) -> torch.autocast:
        """What forward passes are in: with ``precision=bf16`` in bfloat16, as the trainer's."""
        return torch.autocast(
            self.device.type, torch.bfloat16, enabled=self.config.precision == "bf16"
        )

    def forward(self, batch: int, clock: Clock) -> tuple[Tensor, Tensor, Tensor]:
        """Rows, hidden states and targets of a batch; the graph is cut between the first two."""
        with clock("batch"):
            ids, targets = self.batches(batch)
        with clock("lookup"), self.autocast():
            rows = self.item_side.lookup(ids)
        with clock("encoder forward"), self.autocast():
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
            before = clock.seconds["negatives"]
            shape = len(hidden), negatives_of(self.config)
            gpus = [self.device] if self.device.type == "cuda" else []
            with torch.random.fork_rng(gpus), clock("negatives"):
                torch.randint(self.given.padding_idx, shape, device=self.device)
            drawing = clock.seconds["negatives"] - before
        with clock("loss"), self.autocast():
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
        clock = Clock(self.device)
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
        with PeakMemory(self.device) as whole:
            self.step(batch)
        torch.manual_seed(batch)
        _, hidden, targets = self.forward(batch, Clock(self.device))
        with PeakMemory(self.device) as loss:
            self.loss_and_backward(hidden, targets, Clock(self.device))
        self.id_optimizer.zero_grad(set_to_none=True)
        return {"step": whole.extra_bytes, "loss": loss.extra_bytes}


def build_contenders(
    config: Config,
    model: SASRec,
    batches: Callable[[int], tuple[Tensor, Tensor]],
    targets_per_batch: float,
) -> list[Contender]:
    """Ours first. Cross entropy has a gradient for every item, so no sparse ones."""
    table = model.table
    assert isinstance(table, ItemTable)
    assert table.id_embeddings is not None

    def contender(kind: str, sparse: bool) -> Contender:
        own = config.replace(sparse=sparse)
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
        return Contender(name, item_side, model, own, batches, targets_per_batch)

    kinds = [(OURS, False), (PLAIN, False), (ONCE, False)]
    if config.loss != "cross_entropy":
        kinds += [(OURS, True), (PLAIN, True)]
    return [contender(kind, sparse) for kind, sparse in kinds]
