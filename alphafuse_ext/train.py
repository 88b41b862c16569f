"""Training: from files or data frames to a :class:`Recommender` and its run folder."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm

from alphafuse_ext.checks import invalid
from alphafuse_ext.config import Config
from alphafuse_ext.data import (
    Examples,
    Interactions,
    Items,
    Sequences,
    Split,
    encode_texts,
    leave_one_out,
    length_batches,
    read_embeddings,
    read_interactions,
    read_items,
)
from alphafuse_ext.evaluate import example_ranks, popularity_ranks, ranking_metrics
from alphafuse_ext.losses import next_item_loss
from alphafuse_ext.models import SASRec
from alphafuse_ext.plots import plot_curves
from alphafuse_ext.recommender import Recommender, build_model
from alphafuse_ext.run import RunFolder
from alphafuse_ext.space import SemanticSpace
from alphafuse_ext.table import ItemTable

Log = Callable[[str], None]


def fit(
    interactions: str | os.PathLike[str] | pd.DataFrame,
    items: str | os.PathLike[str] | pd.DataFrame | None = None,
    embeddings: Any = None,
    output: str | os.PathLike[str] | None = None,
    *,
    user_column: str | None = None,
    item_column: str | None = None,
    time_column: str | None = None,
    text_columns: list[str] | None = None,
    encoder: str = "auto",
    encoder_model: str | None = None,
    device: str | torch.device = "cpu",
    log: Log = print,
    **options: Any,
) -> Recommender:
    """Train a sequential recommender and measure it once on the test items.

    Args:
        interactions: a RecBole ``.inter``, CSV, TSV or Parquet file, or a data frame: one row per
            user, item and (optionally) time.
        items: a RecBole ``.item``, CSV, TSV or Parquet file, or a data frame: the catalog in the
            order of the embeddings, with its texts. Without it, the items that occur.
        embeddings: ``(N, d_l)`` language embeddings, floating: an array, a tensor or a ``.npy``
            file, which is memory-mapped. Without them the item texts are encoded.
        output: the run folder to make; ``runs/<date-time>`` where not given.
        user_column, item_column, time_column, text_columns: names; guessed and logged where not
            given.
        encoder: for the item texts: ``"sentence-transformers"``, ``"tfidf"`` or ``"auto"``.
        encoder_model: name or local path for sentence-transformers.
        device: where the model trains.
        log: takes the lines that a person follows the run by.
        **options: the fields of :class:`alphafuse_ext.Config`.

    Returns:
        The recommender at its best validation epoch; ``recommender.run.results()`` are its metrics.

    Raises:
        ValueError, TypeError, OSError: bad data or settings, before the folder is made.
        KeyboardInterrupt: passed on; :func:`resume` goes on from the last finished epoch.

    Example:
        >>> recommender = fit(clicks, items, text_columns=["title"])
        >>> recommender.recommend(users=["A1YJEY40YUW4SE"], k=5)
    """
    config = Config.from_dict(options)
    folder = RunFolder.check_new(output or Path("runs") / time.strftime("%Y%m%d-%H%M%S"))
    device = _usable(device)
    _set_threads(config)

    catalog = None
    if items is not None:
        catalog = read_items(items, item_column, text_columns, log=log)
    clicks = read_interactions(
        interactions, catalog, user_column, item_column, time_column, log=log
    )
    catalog = catalog or Items(clicks.items, None, None)
    language = None
    if config.item_embedding != "id":
        language = _language_embeddings(catalog, embeddings, encoder, encoder_model, config, log)
    elif embeddings is not None:
        log("item_embedding=id: the language embeddings are left unread")
    split = leave_one_out(clicks)
    config = config.resolve(None if language is None else language.shape[1])

    torch.manual_seed(config.seed)
    table, space = build_table(config, clicks.num_items, language, split, log)
    model = build_model(config, table).to(device)
    run = RunFolder.create(folder, config, dict(split.report), clicks, catalog)
    if space is not None:
        space.save(run.path / "space")
        space.plot(run.path / "spectrum.png", dim=config.dim, null_dim=table.null_dim)
    run.save("frozen", {name: tensor.cpu() for name, tensor in model.named_buffers()})
    log(_describe(split, table, run))
    return _train(Trainer(model, split, config, run, log), clicks, catalog, log)


def resume(
    run: str | os.PathLike[str], device: str | torch.device = "cpu", log: Log = print
) -> Recommender:
    """Go on with an interrupted run, to the same result as if it had not been interrupted.

    Args:
        run: the folder; its last finished epoch is where training goes on.
        device, log: as in :func:`fit`.

    Raises:
        ValueError: the run has ended already.
        OSError: the folder or a file in it cannot be read.
    """
    folder = RunFolder(run)
    if folder.has("results.json"):
        raise invalid("resume", str(run), "a run that has not ended: this one has its results")
    config = folder.config()
    device = _usable(device)
    _set_threads(config)
    clicks, catalog = folder.interactions(), folder.items()
    frozen, _ = folder.load("frozen")
    last, _ = folder.load("last")
    table = ItemTable(
        frozen.get("table.semantic_rows"),
        last.get("model.table.id_embeddings"),
        fusion=config.fusion,
        sparse=config.sparse,
        coordinates_map=frozen.get("table.coordinates_map"),
    )
    model = build_model(config, table).to(device)
    trainer = Trainer(model, leave_one_out(clicks), config, folder, log)
    log(f"resume {folder.path} after epoch {trainer.progress.epoch}")
    return _train(trainer, clicks, catalog, log)


def build_table(
    config: Config,
    num_items: int,
    language_embeddings: np.ndarray | None,
    split: Split,
    log: Log,
) -> tuple[ItemTable, SemanticSpace | None]:
    """The item table that ``config`` describes, and the decomposition behind it.

    Initial ID embeddings are drawn from torch's global generator.
    """
    assert config.dim is not None, "Config.resolve comes first"
    if language_embeddings is None:
        table = ItemTable.id_only(
            num_items,
            config.dim,
            init=config.init,
            init_scale=config.init_scale,
            sparse=config.sparse,
        )
        return table, None
    weights = split.train_item_counts(num_items) if config.weights == "frequency" else None
    space = SemanticSpace.fit(language_embeddings, scale=config.scale, weights=weights)
    rms = config.semantic_rms or None
    if config.item_embedding == "llminit":
        table = ItemTable.llm_init(
            space,
            language_embeddings,
            config.dim,
            standardize=config.standardize,
            semantic_rms=rms,
            sparse=config.sparse,
        )
    elif config.item_embedding == "frozen":
        table = ItemTable.frozen(
            space,
            language_embeddings,
            config.dim,
            standardize=config.standardize,
            semantic_rms=rms,
        )
    else:
        table = ItemTable.from_space(
            space,
            language_embeddings,
            dim=config.dim,
            null_dim=config.null_dim,
            null_threshold=config.null_threshold,
            fusion=config.fusion,
            standardize=config.standardize,
            coordinates=config.coordinates,
            semantic_rms=rms,
            init=config.init,
            init_scale=config.init_scale,
            sparse=config.sparse,
        )
    return table, space


@dataclass
class Progress:
    """Where a run stands; kept with the checkpoint."""

    epoch: int = 0
    best_epoch: int = 0
    best: float = -math.inf


class Trainer:
    """Epochs of training and validation, with a checkpoint after each.

    All randomness of an epoch follows from ``(seed, epoch)``, so a checkpoint needs no generator
    state and a resumed run repeats an uninterrupted one.

    Args:
        model: the encoder on its table, on its device. Where ``run`` holds a checkpoint, its
            parameters and the optimizers' state are read from there.
        split: training sequences and validation examples.
        config: settings.
        run: where checkpoints and metrics go.
        log: takes a line per epoch.
    """

    def __init__(
        self, model: SASRec, split: Split, config: Config, run: RunFolder, log: Log
    ) -> None:
        self.model, self.split, self.config, self.run, self.log = model, split, config, run, log
        self.device = next(model.parameters()).device
        self.rows = training_rows(split.train, config.history, config.targets)
        batches = math.ceil(len(self.rows) / config.batch_size)
        # A constant: see alphafuse_ext.losses.
        self.targets_per_batch = _num_targets(self.rows, config.targets) / batches
        self.optimizers = _optimizers(model, config)
        self.progress = Progress()
        if run.has("last.safetensors"):
            self._restore()
        else:
            self.run.save("best", self._parameters(), epoch=0)
            self._checkpoint()
        # An epoch that was cut off after its line was written is trained again.
        self.epochs = run.epochs()[: self.progress.epoch]

    @property
    def finished(self) -> bool:
        """Whether the epochs or the patience are used up."""
        waited = self.progress.epoch - self.progress.best_epoch
        return self.progress.epoch >= self.config.epochs or waited >= self.config.patience

    def run_epoch(self) -> dict[str, Any]:
        """Train, validate, write line and checkpoint; returns the line of ``metrics.jsonl``."""
        epoch = self.progress.epoch + 1
        started = time.perf_counter()
        loss = self._train_epoch(epoch)
        trained = time.perf_counter()
        metrics = self._validate(self.split.validation)
        line = {
            "epoch": epoch,
            "loss": loss,
            "validation": metrics,
            "train_seconds": trained - started,
            "validation_seconds": time.perf_counter() - trained,
        }
        self.epochs.append(line)
        self.run.write_epochs(self.epochs)
        value = metrics[self.config.select]
        self.progress.epoch = epoch
        if value > self.progress.best:
            self.progress.best, self.progress.best_epoch = value, epoch
            self.run.save("best", self._parameters(), epoch=epoch, validation=metrics)
        self._checkpoint()
        return line

    def _train_epoch(self, epoch: int) -> float:
        entropy = np.random.SeedSequence((self.config.seed, epoch))
        torch.manual_seed(int(entropy.generate_state(1)[0]))
        order = length_batches(
            self.rows.lengths, self.config.batch_size, np.random.default_rng(entropy)
        )
        self.model.train()
        total = 0.0
        for index in tqdm(order, f"epoch {epoch}", leave=False, disable=None):
            ids, targets = self._batch(index)
            loss = next_item_loss(
                self.model.table,
                self.model(ids),
                targets,
                self.config.loss,  # type: ignore[arg-type]  # Config has checked both
                self.config.negatives,
                self.config.negatives_per,  # type: ignore[arg-type]
                self.config.score_temperature,
            )
            for optimizer in self.optimizers:
                optimizer.zero_grad(set_to_none=True)
            (loss / self.targets_per_batch).backward()
            for optimizer in self.optimizers:
                optimizer.step()
            total += loss.item()
        if not math.isfinite(total):
            raise FloatingPointError(
                f"epoch {epoch}: the training loss is {total}; a lower learning_rate or "
                f"semantic_rms may help. {self.run.path} keeps the epoch before."
            )
        return total / _num_targets(self.rows, self.config.targets)

    def _batch(self, index: np.ndarray) -> tuple[Tensor, Tensor]:
        padding = self.model.table.padding_idx
        rows = torch.from_numpy(self.rows.pad(index, padding=padding)).to(self.device)
        ids, targets = rows[:, :-1], rows[:, 1:]
        # A row's newest item is a target only.
        ids = ids.masked_fill(targets == padding, padding)
        if self.config.targets == "last":
            lengths = torch.from_numpy(self.rows.lengths[index]).to(self.device)
            newest = torch.arange(targets.shape[1], device=self.device) == lengths[:, None] - 2
            targets = targets.masked_fill(~newest, padding)
        return ids, targets

    def _validate(self, examples: Examples) -> dict[str, float]:
        ranks = example_ranks(
            self.model,
            examples,
            self.config.similarity,
            exclude_seen=not self.config.keep_seen,
            batch_size=self.config.evaluation_batch_size,
            progress=True,
        )
        return ranking_metrics(ranks)

    def _parameters(self) -> dict[str, Tensor]:
        return {name: tensor.detach().cpu() for name, tensor in self.model.named_parameters()}

    def _checkpoint(self) -> None:
        tensors = {f"model.{name}": tensor for name, tensor in self._parameters().items()}
        for number, optimizer in enumerate(self.optimizers):
            for position, state in optimizer.state_dict()["state"].items():
                for name, value in state.items():
                    key = f"optimizer.{number}.{position}.{name}"
                    tensors[key] = torch.as_tensor(value).cpu()
        self.run.save("last", tensors, **vars(self.progress))

    def _restore(self) -> None:
        tensors, facts = self.run.load("last")
        self.progress = Progress(**facts)
        prefix = "model."
        parameters = {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}
        self.model.load_state_dict(parameters, strict=False)
        frozen, _ = self.run.load("frozen")
        self.model.load_state_dict(frozen, strict=False)
        for number, optimizer in enumerate(self.optimizers):
            state: dict[int, dict[str, Any]] = {}
            for key, value in tensors.items():
                if key.startswith(f"optimizer.{number}."):
                    _, _, position, name = key.split(".")
                    # SparseAdam counts its steps in a Python int, Adam in a tensor.
                    sparse = isinstance(optimizer, torch.optim.SparseAdam)
                    plain = name == "step" and sparse
                    state.setdefault(int(position), {})[name] = value.item() if plain else value
            optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


def training_rows(train: Sequences, history: int, targets: str) -> Sequences:
    """The rows that batches are made of: a history and, as the last item, its newest target.

    Args:
        train: training sequences; those with fewer than two items hold no target.
        history: longest history; a row has at most one item more.
        targets: ``"all"``: a row per sequence, its newest ``history + 1`` items; ``"last"``: a row
            per prefix.
    """
    usable = train.select(np.flatnonzero(train.lengths >= 2))
    if targets == "all":
        return usable.last(history + 1)
    return Sequences.from_lists(
        [
            sequence[max(0, end - history - 1) : end]
            for sequence in (usable[row] for row in range(len(usable)))
            for end in range(2, len(sequence) + 1)
        ]
    )


def _num_targets(rows: Sequences, targets: str) -> int:
    return len(rows) if targets == "last" else int(rows.lengths.sum()) - len(rows)


def _optimizers(model: SASRec, config: Config) -> list[torch.optim.Optimizer]:
    betas = (0.9, config.beta2)
    optimizers: list[torch.optim.Optimizer] = []
    dense = list(model.parameters())
    if config.sparse and model.table.id_embeddings is not None:
        dense = [p for p in dense if p is not model.table.id_embeddings]
        optimizers.append(
            torch.optim.SparseAdam([model.table.id_embeddings], config.learning_rate, betas)
        )
    optimizers.append(
        torch.optim.Adam(
            dense, config.learning_rate, betas, weight_decay=config.weight_decay, fused=True
        )
    )
    return optimizers


def _train(trainer: Trainer, clicks: Interactions, catalog: Items, log: Log) -> Recommender:
    from torch.utils.tensorboard import SummaryWriter  # slow to import, and only training needs it

    run, select = trainer.run, trainer.config.select
    log(f"{'epoch':>5} {'loss':>8} {select:>9} {'hr@10':>7} {'train s':>8} {'rank s':>7}")
    with SummaryWriter(str(run.path), purge_step=trainer.progress.epoch + 1) as board:
        try:
            while not trainer.finished:
                line = trainer.run_epoch()
                board.add_scalar("loss/train", line["loss"], line["epoch"])
                for name, value in line["validation"].items():
                    board.add_scalar(f"validation/{name}", value, line["epoch"])
                star = " *" if trainer.progress.best_epoch == line["epoch"] else ""
                log(
                    f"{line['epoch']:>5} {line['loss']:>8.4f} {line['validation'][select]:>9.4f} "
                    f"{line['validation']['hr@10']:>7.4f} {line['train_seconds']:>8.1f} "
                    f"{line['validation_seconds']:>7.1f}{star}"
                )
        finally:
            if trainer.epochs:
                plot_curves(trainer.epochs, select, run.path / "curves.png")
    model = Recommender.load(run.path, trainer.device).model
    recommender = Recommender(model, trainer.config, clicks, catalog, run)
    results = _results(trainer, recommender)
    run.write_results(results)
    log(results_table(results))
    return recommender


def _results(trainer: Trainer, recommender: Recommender) -> dict[str, Any]:
    """What ``results.json`` holds; the test examples are ranked here and nowhere before."""
    config, split, epochs = trainer.config, trainer.split, trainer.epochs
    counts = split.train_item_counts(recommender.interactions.num_items)
    popularity = popularity_ranks(counts, split.test, exclude_seen=not config.keep_seen)
    return {
        "protocol": split.name,
        "seen_items": "ranked" if config.keep_seen else "excluded",
        "examples": len(split.test),
        "best_epoch": trainer.progress.best_epoch,
        "epochs": trainer.progress.epoch,
        "validation": epochs[trainer.progress.best_epoch - 1]["validation"],
        "test": recommender.evaluate("test"),
        "popularity": ranking_metrics(popularity),
        "seconds_per_epoch": float(np.median([line["train_seconds"] for line in epochs])),
        "seconds_per_validation": float(np.median([line["validation_seconds"] for line in epochs])),
        "trainable_parameters": sum(p.numel() for p in trainer.model.parameters()),
    }


def results_table(results: dict[str, Any]) -> str:
    """Test metrics of a run beside those of popularity, for a terminal."""
    lines = [
        f"test: {results['protocol']}, {results['examples']} examples, whole catalog, seen items "
        f"{results['seen_items']}, epoch {results['best_epoch']} selected by validation",
        f"{'':>12}"
        + "".join(
            f"{name:>9}"
            for name in ("hr@5", "hr@10", "hr@20", "ndcg@5", "ndcg@10", "ndcg@20", "mrr@10")
        ),
    ]
    for label, metrics in (("this run", results["test"]), ("popularity", results["popularity"])):
        values = (
            metrics[name]
            for name in ("hr@5", "hr@10", "hr@20", "ndcg@5", "ndcg@10", "ndcg@20", "mrr@10")
        )
        lines.append(f"{label:>12}" + "".join(f"{value:>9.4f}" for value in values))
    return "\n".join(lines)


def _language_embeddings(
    items: Items,
    embeddings: Any,
    encoder: str,
    encoder_model: str | None,
    config: Config,
    log: Log,
) -> np.ndarray:
    if embeddings is not None:
        return read_embeddings(embeddings, len(items.tokens))
    if items.texts is None:
        raise invalid(
            "embeddings",
            None,
            "language embeddings, or items with a text column to encode, or item_embedding=id",
        )
    return encode_texts(items.texts, encoder, model=encoder_model, seed=config.seed, log=log)


def _describe(split: Split, table: ItemTable, run: RunFolder) -> str:
    counts = ", ".join(f"{name} {value}" for name, value in split.report.items())
    return f"{split.name}: {counts}\n{table}\nrun folder: {run.path}"


def _usable(device: str | torch.device) -> torch.device:
    device = torch.device(device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise invalid("device", str(device), "cpu: torch finds no CUDA device here")
    return device


def _set_threads(config: Config) -> None:
    if config.threads is not None:
        torch.set_num_threads(config.threads)
