"""Training a run to its end, in one process or several."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

import alphafuse_ext._core as _core
from alphafuse_ext._version import __version__
from alphafuse_ext.config import Config
from alphafuse_ext.config import model as declared
from alphafuse_ext.data import Interactions, Items, Split
from alphafuse_ext.distributed.process_group import ProcessGroup
from alphafuse_ext.evaluation.mixture_choice import choose_weights, described
from alphafuse_ext.evaluation.ranking import Evaluation, seen_target_warnings
from alphafuse_ext.evaluation.run_neighbors import RunNeighbors
from alphafuse_ext.evaluation.tables import lists_table, own_metrics_line, results_table
from alphafuse_ext.files import reading
from alphafuse_ext.items.item_embeddings import ItemEmbeddings
from alphafuse_ext.items.space import SemanticSpace
from alphafuse_ext.logs import Log
from alphafuse_ext.models import SequenceModel
from alphafuse_ext.runs.assembly import build_split, rebuild_model
from alphafuse_ext.runs.device import usable_device
from alphafuse_ext.runs.run_folder import RunFolder
from alphafuse_ext.serving.recommender import Recommender
from alphafuse_ext.training.progress import epoch_line, explained, shows_bars
from alphafuse_ext.training.sharding import shard_items
from alphafuse_ext.training.trainer import Progress, Trainer


@contextmanager
def preserve_rng_state() -> Iterator[None]:
    """Restore torch's random state and number of threads at exit."""
    threads = torch.get_num_threads()
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(devices):
        try:
            yield
        finally:
            torch.set_num_threads(threads)


@dataclass(frozen=True)
class TrainingRun:
    """A run with everything needed to train it.

    Attributes:
        run, config, model, split, clicks, catalog: the run folder and its content; the
            model is on the CPU, not sharded.
        device: where it is trained.
        last: the arguments of ``Trainer.restore``, if there is a checkpoint.
    """

    run: RunFolder
    config: Config
    model: SequenceModel
    split: Split
    clicks: Interactions
    catalog: Items
    device: torch.device
    last: tuple[Progress, list[dict[str, Any]], Mapping[str, Tensor]] | None = None

    @classmethod
    def read(cls, run: RunFolder, config: Config, device: torch.device) -> TrainingRun:
        """Read a run folder, at its last checkpoint."""
        clicks, catalog = run.interactions(), run.items()
        begun = run.has("last.safetensors")
        tensors, progress = run.model("last" if begun else "start")
        split = build_split(config, clicks)
        item_counts = split.train_item_counts(clicks.num_items)
        neighbors, last = run.neighbors(), None
        with reading(run.path):
            model = rebuild_model(config, tensors, item_counts, neighbors)
            if begun:
                found = Progress(**progress)
                # What was interrupted after its line was written is trained again.
                lines = found.epoch if found.validations is None else found.validations
                last = found, run.epochs()[:lines], run.moments(progress)
        return cls(run, config, model, split, clicks, catalog, device, last)

    def train(self, process_group: ProcessGroup | None, log: Log) -> Recommender:
        """Train to the end; called on all ranks.

        Args:
            process_group: of several processes; ``None``: a single process.
            log: called with each line of progress.
        """
        if not self.config.trained:
            return self._without_training(log)
        if process_group is None:
            trainer = self._trainer(None, shows_bars(log))
            return self._train(trainer, log)
        if process_group.first:
            process_group.each(lambda: None)
        versions = {"alphafuse_ext": __version__, "torch": torch.__version__}
        run = {"run": self.run.digest(), "shard_items": process_group.shard_items}
        process_group.check_same({**versions, **run})
        known = self
        if (
            process_group.first and self.last is None
        ):  # rows that all ranks of a machine map together
            known = self.read(self.run, self.config, self.device)
        trainer = known._trainer(process_group, shows_bars(log))
        recommender: Recommender | None = None
        if process_group.first:
            recommender = self._train(trainer, log)
        while not trainer.finished:
            trainer.run_epoch(trainer.state)
            trainer.state()
        process_group.each(lambda: None)  # the first has measured the result
        return recommender or Recommender.load(self.run.path, trainer.device)

    def _trainer(self, process_group: ProcessGroup | None, bars: bool) -> Trainer:
        if process_group is not None and process_group.shard_items:
            shard_items(self.model, process_group)
        trainer = Trainer(self.model.to(self.device), self.split, self.config, process_group, bars)
        if self.last is not None:
            trainer.restore(*self.last)
        return trainer

    def _train(self, trainer: Trainer, log: Log) -> Recommender:
        """Train to the end, save checkpoints to the run folder, evaluate the selected epoch."""
        # Slow to import; only training needs it.
        from torch.utils.tensorboard import SummaryWriter
        from torch.utils.tensorboard.summary import hparams

        from alphafuse_ext.training.plots import plot_curves

        run, select = self.run, trainer.config.select
        said = self._said_before(log)

        def save() -> None:
            run.save_checkpoint(vars(trainer.progress), *trainer.state())

        with SummaryWriter(str(run.path), purge_step=len(trainer.epochs) + 1) as board:
            try:
                while not trainer.finished:
                    line = trainer.run_epoch(save)
                    run.write_epochs(trainer.epochs)
                    save()
                    number = len(trainer.epochs)  # of the epoch, where one is validated at its end
                    board.add_scalar("loss/train", line["loss"], number)
                    for name, value in line["validation"].items():
                        board.add_scalar(f"validation/{name}", value, number)
                    rate = trainer.optimizers[0].param_groups[0]["lr"]
                    board.add_scalar("learning_rate", rate, number)
                    for part in ("train", "validation"):
                        board.add_scalar(f"seconds/{part}", line[f"{part}_seconds"], number)
                    best = trainer.progress.best_epoch
                    log(epoch_line(trainer.config, line, best, trainer.seconds_left))
            finally:
                if trainer.epochs:
                    plot_curves(trainer.epochs, select, run.path / "curves.png")
        loaded = Recommender.load(run.path, trainer.device)
        recommender = self._measured(loaded, _results(trainer, loaded.model), said, log)
        measured = run.results().get("test", {})
        found = {f"test/{name}": value for name, value in measured.items()}
        with SummaryWriter(str(run.path)) as board:
            for name, value in found.items():
                board.add_scalar(name, value, len(trainer.epochs))
            # Not by add_hparams, which makes a folder of its own that is named by the clock.
            for summary in hparams(trainer.config.to_dict(), found):
                board.file_writer.add_summary(summary)
        return recommender

    def _without_training(self, log: Log) -> Recommender:
        """Of lists of neighbors alone."""
        said = self._said_before(log)
        results = {
            **{"protocol": self.split.name, "samples": self.split.samples},
            **{"best_epoch": 0, "epochs": 0, "validation": {}},
            **{"seconds_per_epoch": 0.0, "seconds_per_validation": 0.0},
            "trainable_parameters": 0,
        }
        return self._measured(Recommender.load(self.run.path, self.device), results, said, log)

    def _said_before(self, log: Log) -> list[str]:
        """Log what there is to say before the first epoch; returns the warnings among it."""
        said = _seen_before(self.config, self.split)
        for sentence in (*said, *explained(self.config, len(self.split.validation) > 0)):
            log(sentence)
        return said

    def _measured(
        self, loaded: Recommender, results: dict[str, Any], said: list[str], log: Log
    ) -> Recommender:
        """Choose how much neighbors count, evaluate on the test split, and write the results.

        Args:
            loaded: of the selected epoch.
            results: of training.
            said: warnings that have been logged.
            log: called with what was found.
        """
        run, config, bars = self.run, self.config, shows_bars(log)
        model, neighbors = loaded.model, loaded.neighbors
        if neighbors is not None:
            examples = self.split.validation
            chosen = choose_weights(neighbors, model, config, examples, bars)
            neighbors, results["neighbors"] = chosen
            neighbors.save_weights(run.path)
            results["validation"] = results["neighbors"].get("validation", {})
            alone = "the model" if config.trained else "popularity"
            log(described(results["neighbors"], alone))
        recommender = Recommender(model, config, self.clicks, self.catalog, run, neighbors)
        measured = len(self.split.test) > 0
        if measured:
            # Ranked here and nowhere before.
            test = recommender.evaluate_in_detail("test", progress=bars)
            results |= _test_results(recommender, test)
            if neighbors is not None and config.trained:
                of_model = recommender.evaluate_in_detail("test", progress=bars, neighbors=False)
                results["model_alone"] = {
                    "test": of_model.metrics,
                    "test_by_seen_items": of_model.by_seen_items,
                    "test_groups": recommender.long_tail(of_model),
                }
        if model.whole_table.gains is not None:
            results["gains"] = _draw_gains(model.whole_table, config, run)
        run.write_results(results)
        if not measured:
            log("nothing was held out, and nothing is measured")
            return recommender
        log(results_table(results))
        log(lists_table(results["lists"]))
        if found := results["own_metrics"]:
            log(own_metrics_line(found))
        for warning in test.warnings():
            if f"warning: {warning}" not in said:
                log(f"warning: {warning}")
        return recommender


def follow(process_group: ProcessGroup, device: str | torch.device | None) -> Recommender:
    """Train on a rank other than the first, with the run of the first rank."""
    path = process_group.receive()

    def read() -> TrainingRun:
        folder = RunFolder(path)
        config = folder.config()
        set_threads(config)
        return TrainingRun.read(folder, config, usable_device(device or "cpu"))

    return process_group.each(read).train(process_group, _silent)


def _silent(line: str) -> None:
    """A log that discards its lines."""


def _seen_before(config: Config, split: Split) -> list[str]:
    """A warning, before training, if many targets are seen items."""
    if config.keep_seen or not len(split.test):
        return []
    found = seen_target_warnings(int(split.test.targets_seen().sum()), len(split.test))
    return [f"warning: {line}" for line in found]


def _results(trainer: Trainer, model: SequenceModel) -> dict[str, Any]:
    """The training results of ``results.json``."""
    lines, progress = trainer.epochs, trainer.progress
    begun = [0, *(line["epoch"] for line in lines)]
    per_epoch = [
        line["train_seconds"] / (line["epoch"] - before)
        for line, before in zip(lines, begun, strict=False)
    ]
    best = next(line for line in lines if line["epoch"] == progress.best_epoch)
    return {
        "protocol": trainer.split.name,
        "samples": trainer.split.samples,
        "best_epoch": progress.best_epoch,
        "epochs": progress.epochs_done,
        "validation": best["validation"],
        "seconds_per_epoch": float(np.median(per_epoch)),
        "seconds_per_validation": float(np.median([line["validation_seconds"] for line in lines])),
        "trainable_parameters": sum(p.numel() for p in model.parameters()),
        "instruction_set": _core.isa(),
        "precision": trainer.config.precision,
    }


def _test_results(recommender: Recommender, test: Evaluation) -> dict[str, Any]:
    """The test results of ``results.json``."""
    popularity = recommender.popularity("test")
    return {
        "seen_items": test.seen_items,
        "examples": test.examples,
        "targets_seen_before": test.targets_seen_before,
        "ties": dataclasses.asdict(test.ties),
        "popularity_ties": dataclasses.asdict(popularity.ties),
        "test": test.metrics,
        "own_metrics": recommender.own_metrics("test"),
        "popularity": popularity.metrics,
        "test_by_seen_items": test.by_seen_items,
        "popularity_by_seen_items": popularity.by_seen_items,
        "test_groups": recommender.long_tail(test),
        "popularity_groups": recommender.long_tail(popularity),
        "baselines": recommender.baselines("test", lists=_lists(recommender)),
        "lists": recommender.list_metrics("test"),
    }


def _lists(recommender: Recommender) -> RunNeighbors | None:
    """Neighbors as a baseline, of a run without; ``None``: it has some, or its catalog is large."""
    num_items = recommender.interactions.num_items
    if recommender.neighbors is not None or num_items > declared.NEIGHBORS_UP_TO:
        return None
    return RunNeighbors.fit(recommender.split.train, num_items, None, recommender.items.texts)


def _draw_gains(table: ItemEmbeddings, config: Config, run: RunFolder) -> list[float]:
    """The gains of a soft split; also plotted to the run folder."""
    from alphafuse_ext.training.plots import plot_gains

    assert table.gains is not None
    assert config.space_split_power is not None, "resolved"
    space, gains = SemanticSpace.load(run.path / "space"), table.gains.detach().cpu().numpy()
    dim, null_dim = space.split(
        len(gains), config.null_dim, config.null_threshold, fusion=config.fusion
    )
    first = space.gains(dim, null_dim, config.space_split_power)
    plot_gains(space.eigenvalues[:dim], gains, first, run.path / "gains.png")
    return [float(gain) for gain in gains]


def set_threads(config: Config) -> None:
    """Set the number of threads; :func:`preserve_rng_state` restores it."""
    if config.threads is not None:
        torch.set_num_threads(config.threads)
