"""Training: from files or data frames to a :class:`Recommender` and its run folder."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from alphafuse_ext.checks import invalid
from alphafuse_ext.data import (
    Interactions,
    Items,
    LanguageEmbeddings,
    Layout,
    Source,
    Split,
    encode_texts,
    k_core,
    origin,
    read_embeddings,
    read_interactions,
    read_items,
)
from alphafuse_ext.items.item_embeddings import ItemEmbeddings
from alphafuse_ext.items.space import SemanticSpace
from alphafuse_ext.items.table import ItemTable
from alphafuse_ext.training.assembly import (
    build_model,
    build_split,
    build_table,
    item_weights,
    rebuild_model,
)
from alphafuse_ext.training.catalog import projection_of_start
from alphafuse_ext.training.config import Config
from alphafuse_ext.training.defaults import FULL_CATALOG_UP_TO
from alphafuse_ext.training.device import usable_device
from alphafuse_ext.training.evaluate import (
    Evaluation,
    evaluate_popularity,
    seen_target_warnings,
)
from alphafuse_ext.training.groups import long_tail_report
from alphafuse_ext.training.plots import plot_curves, plot_gains
from alphafuse_ext.training.presets import with_preset
from alphafuse_ext.training.recommender import Recommender
from alphafuse_ext.training.run import RunFolder, environment
from alphafuse_ext.training.trainer import Progress, Trainer

Log = Callable[[str], None]


@contextmanager
def undisturbed() -> Iterator[None]:
    """Gives back what a run takes of its caller: torch's random state and number of threads."""
    threads = torch.get_num_threads()
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(devices):
        try:
            yield
        finally:
            torch.set_num_threads(threads)


@undisturbed()
def fit(
    interactions: Source,
    items: Source | None = None,
    embeddings: Any = None,
    output: str | os.PathLike[str] | None = None,
    *,
    user_column: str | None = None,
    item_column: str | None = None,
    time_column: str | None = None,
    text_columns: list[str] | None = None,
    interactions_layout: Layout | None = None,
    items_layout: Layout | None = None,
    encoder: str = "auto",
    encoder_model: str | None = None,
    ids_are_rows: bool = False,
    preset: str | None = None,
    device: str | torch.device = "cpu",
    log: Log = print,
    **options: Any,
) -> Recommender:
    """Train a sequential recommender and measure it once on the test items.

    Args:
        interactions: one row per user, item and (optionally) time: a RecBole ``.inter``, CSV, TSV,
            JSON lines or Parquet file, compressed or not, or a data frame of pandas or polars (see
            :func:`alphafuse_ext.data.read_interactions`).
        items: as ``interactions``, of RecBole a ``.item`` file: the catalog in the order of the
            embeddings, with its texts. Without it, the items of the embeddings, or those that
            occur.
        embeddings: ``(N, d_l)`` language embeddings, floating: an array, a tensor or a ``.npy``
            file, which is memory-mapped, in the order of ``items``; or a dict, a data frame or a
            Parquet, ``.npz`` or ``.safetensors`` file by item id, in any order (see
            :func:`alphafuse_ext.data.read_embeddings`). Without them the item texts are encoded.
        output: the run folder to make; ``runs/<date-time>`` where not given.
        user_column, item_column, time_column, text_columns: names; guessed and logged where not
            given. ``time_column=""`` where the rows are in the order of time.
        interactions_layout, items_layout: of text files, where their names do not tell it:
            delimiter, header, quotes, encoding.
        encoder: for the item texts: ``"sentence-transformers"``, ``"tfidf"`` or ``"auto"``.
        encoder_model: name or local path for sentence-transformers.
        ids_are_rows: item ids are integers, and the item of id ``k`` has row ``k`` of the
            embeddings.
        preset: settings of others by name, see :mod:`alphafuse_ext.training.presets`.
        device: where the model trains.
        log: takes the lines that a person follows the run by.
        **options: the fields of :class:`alphafuse_ext.Config`, before those of the preset.

    Returns:
        The recommender at its best validation epoch; ``recommender.run.results()`` are its metrics.

    Raises:
        ValueError, TypeError, OSError: bad data or settings, before the folder is made.
        KeyboardInterrupt: passed on; :func:`resume` goes on from the last finished epoch.

    Example:
        >>> recommender = fit(clicks, items, text_columns=["title"])
        >>> recommender.recommend(users=["A1YJEY40YUW4SE"], k=5)
    """
    config = Config.from_dict(options if preset is None else with_preset(preset, options))
    if embeddings is not None:
        for name, given, default in (
            ("encoder", encoder, "auto"),
            ("encoder_model", encoder_model, None),
        ):
            if given != default:
                raise invalid(name, repr(given), f"{default} where embeddings are given")
    elif ids_are_rows:
        raise invalid("ids_are_rows", True, "False, or embeddings")
    if items is None and text_columns is not None:
        raise invalid("text_columns", text_columns, "None, or items with these columns")
    if items is None and items_layout is not None:
        raise invalid("items_layout", items_layout, "None, or a file of items")
    folder = RunFolder.check_new(output or Path("runs") / f"{datetime.now():%Y%m%d-%H%M%S.%f}")
    device = usable_device(device)
    _set_threads(config)

    catalog = None
    if items is not None:
        catalog = read_items(items, item_column, text_columns, log, items_layout)
    language = None
    if embeddings is not None:
        # Also for item_embedding=id: they may be what tells the catalog, which every item embedding
        # has to share to be compared.
        language = read_embeddings(embeddings, catalog, ids_are_rows, item_column, log=log)
        catalog = catalog or language.items
    clicks = read_interactions(
        interactions, catalog, user_column, item_column, time_column, log, interactions_layout
    )
    catalog = catalog or Items(clicks.items, None, None)
    removed: dict[str, int] = {}
    if config.k_core > 1:
        every = clicks
        clicks, kept = k_core(every, config.k_core)
        catalog = catalog.select(kept)
        language = None if language is None else language.select(kept)
        removed = _removed(every, clicks)
        counts = ", ".join(f"{value:,} {name}" for name, value in removed.items())
        log(f"{config.k_core}-core: removed {counts}")
    if config.item_embedding == "id":
        if (language, encoder, encoder_model) != (None, "auto", None):
            log("item_embedding=id: language embeddings and encoder are not used")
        language = None
    elif language is None:
        language = _encode(catalog, encoder, encoder_model, config, log)
    split = build_split(config, clicks)
    if not (split.train.lengths >= 2).any():
        raise invalid(
            "interactions",
            f"no user with two training interactions, protocol {split.name}",
            "users with an item to learn from and one to learn, beside what is held out",
        )
    rows = None if language is None else language.rows
    resolved = config.resolve(None if rows is None else rows.shape[1], clicks.num_items)
    if config.loss is None and resolved.loss is not None:
        log(f"loss: {resolved.loss}, of a catalog of {clicks.num_items:,} items ({_why(config)})")
    config = resolved

    torch.manual_seed(config.seed)
    item_counts = split.train_item_counts(clicks.num_items)
    table, space = build_table(config, clicks.num_items, rows, item_counts)
    projection = None
    if space is not None and isinstance(table, ItemTable):
        weights = item_weights(config, item_counts)
        projection = projection_of_start(config, space, table, weights).record()
    model = build_model(config, table, item_counts).to(device)
    source = {
        "interactions": origin(interactions),
        "items": None if items is None else origin(items),
        "embeddings": None if language is None else language.record(),
        "preset": preset,
        "projection": projection,
    }
    report = {**split.report, **{f"{name}_removed": n for name, n in removed.items()}}
    start = model.state_dict()
    with RunFolder.create(folder, config, report, clicks, catalog, source, start) as temporary:
        if space is not None:
            space.save(temporary / "space")
            space.plot(temporary / "spectrum.png", dim=config.dim, null_dim=table.null_dim)
    run = RunFolder(folder)
    log(_describe(split, table, run))
    if not config.keep_seen and len(split.test):
        seen_before = int(split.test.targets_seen().sum())
        for warning in seen_target_warnings(seen_before, len(split.test)):
            log(f"warning: {warning}")
    with run.training():
        return train_run(Trainer(model, split, config), run, clicks, catalog, log)


@undisturbed()
def resume(
    run: str | os.PathLike[str],
    device: str | torch.device = "cpu",
    log: Log = print,
    *,
    epochs: int | None = None,
    patience: int | None = None,
    threads: int | None = None,
) -> Recommender:
    """Go on with an interrupted run, to the same result as if it had not been interrupted.

    That is bit for bit with the same number of threads, instruction set, torch and kind of device;
    where one of them is another, the log says so.

    Args:
        run: the folder; its last finished epoch is where training goes on.
        device, log: as in :func:`fit`.
        epochs, patience, threads: in place of the run's own, from here on.

    Raises:
        ValueError: the run has ended already, or a number out of range.
        OSError: the folder or a file in it cannot be read, or another process trains the run.
    """
    folder = RunFolder(run)
    with folder.training():
        if folder.has("results.json"):
            raise invalid("resume", str(run), "a run that has not ended: this one has its results")
        source = folder.source()
        if "changed_from" in source and not source["extended"]:
            found = f"{run}, a trained run that was changed and saved"
            raise invalid("resume", found, "a run that was interrupted, or extend")
        given = {"epochs": epochs, "patience": patience, "threads": threads}
        changed: dict[str, Any] = {
            name: value for name, value in given.items() if value is not None
        }
        config = dataclasses.replace(folder.config(), **changed)
        device = usable_device(device)
        _set_threads(config)
        for difference in _differences(folder.environment(), environment()):
            log(f"warning: {difference}: the result may differ in the last bits")
        clicks, catalog = folder.interactions(), folder.items()
        folder.recover()
        begun = folder.has("last.safetensors")
        tensors, progress = folder.model("last" if begun else "start")
        split = build_split(config, clicks)
        item_counts = split.train_item_counts(clicks.num_items)
        model = rebuild_model(config, tensors, item_counts).to(device)
        trainer = Trainer(model, split, config)
        if begun:
            epoch = progress["epoch"]
            # An epoch that was cut off after its line was written is trained again.
            lines = folder.epochs()[:epoch]
            trainer.restore(Progress(**progress), lines, folder.moments(epoch))
        if changed:
            folder.update_config(config)
            log(", ".join(f"{name} {value}" for name, value in changed.items()))
        log(f"resume {folder.path} after epoch {trainer.progress.epoch}")
        return train_run(trainer, folder, clicks, catalog, log)


def _differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """What decides the last bits of a result and is not what it was when the run began."""
    for name, find in (
        ("threads", lambda facts: facts["threads"]),
        ("torch", lambda facts: facts["torch"]),
        ("instruction set", lambda facts: facts["native"]["isa"]),
        ("alphafuse_ext", lambda facts: facts["alphafuse_ext"]),
    ):
        if find(then) != find(now):
            yield f"{name} {find(now)}, where the run began with {find(then)}"


def train_run(
    trainer: Trainer, run: RunFolder, clicks: Interactions, catalog: Items, log: Log
) -> Recommender:
    """Train to the end, epoch by epoch into the run's folder, and measure the selected one."""
    from torch.utils.tensorboard import SummaryWriter  # slow to import, and only training needs it

    select = trainer.config.select
    log(f"{'epoch':>5} {'loss':>8} {select:>9} {'hr@10':>7} {'train s':>8} {'rank s':>7}")
    with SummaryWriter(str(run.path), purge_step=trainer.progress.epoch + 1) as board:
        try:
            while not trainer.finished:
                line = trainer.run_epoch()
                run.write_epochs(trainer.epochs)
                run.save_checkpoint(vars(trainer.progress), trainer.parameters(), trainer.moments())
                board.add_scalar("loss/train", line["loss"], line["epoch"])
                for name, value in line["validation"].items():
                    board.add_scalar(f"validation/{name}", value, line["epoch"])
                star = " *" if trainer.progress.best_epoch == line["epoch"] else ""
                metrics = (line["validation"].get(name, math.nan) for name in (select, "hr@10"))
                log(
                    f"{line['epoch']:>5} {line['loss']:>8.4f} "
                    + "{:>9.4f} {:>7.4f} ".format(*metrics)
                    + f"{line['train_seconds']:>8.1f} {line['validation_seconds']:>7.1f}{star}"
                )
        finally:
            if trainer.epochs:
                plot_curves(trainer.epochs, select, run.path / "curves.png")
    model = Recommender.load(run.path, trainer.device).model
    recommender = Recommender(model, trainer.config, clicks, catalog, run)
    measured = len(trainer.split.test) > 0
    results = _results(trainer)
    if measured:
        test = recommender.evaluation("test")  # ranked here and nowhere before
        results |= _test_results(trainer, test)
    if model.table.gains is not None:
        results["gains"] = _draw_gains(model.table, trainer.config, run)
    run.write_results(results)
    if not measured:
        log("nothing was held out, and nothing is measured")
        return recommender
    log(results_table(results))
    for warning in test.warnings():
        log(f"warning: {warning}")
    return recommender


def _results(trainer: Trainer) -> dict[str, Any]:
    """What ``results.json`` holds of training."""
    epochs = trainer.epochs
    return {
        "protocol": trainer.split.name,
        "best_epoch": trainer.progress.best_epoch,
        "epochs": trainer.progress.epoch,
        "validation": epochs[trainer.progress.best_epoch - 1]["validation"],
        "seconds_per_epoch": float(np.median([line["train_seconds"] for line in epochs])),
        "seconds_per_validation": float(np.median([line["validation_seconds"] for line in epochs])),
        "trainable_parameters": sum(p.numel() for p in trainer.model.parameters()),
    }


def _test_results(trainer: Trainer, test: Evaluation) -> dict[str, Any]:
    """What it holds beside, where something was held out."""
    config, split = trainer.config, trainer.split
    counts = split.train_item_counts(trainer.model.table.num_embeddings)
    popularity = evaluate_popularity(counts, split.test, config.keep_seen)
    return {
        "seen_items": test.seen_items,
        "examples": test.examples,
        "targets_seen_before": test.targets_seen_before,
        "ties": dataclasses.asdict(test.ties),
        "popularity_ties": dataclasses.asdict(popularity.ties),
        "test": test.metrics,
        "popularity": popularity.metrics,
        "test_by_seen_items": test.by_seen_items,
        "popularity_by_seen_items": popularity.by_seen_items,
        "test_groups": long_tail_report(split.test, counts, test),
        "popularity_groups": long_tail_report(split.test, counts, popularity),
    }


def _draw_gains(table: ItemEmbeddings, config: Config, run: RunFolder) -> list[float]:
    """The gains of a soft split, with their picture in the run folder."""
    assert table.gains is not None
    assert config.split_power is not None, "resolved"
    space, gains = SemanticSpace.load(run.path / "space"), table.gains.detach().cpu().numpy()
    dim, null_dim = space.split(
        len(gains), config.null_dim, config.null_threshold, fusion=config.fusion
    )
    first = space.gains(dim, null_dim, config.split_power)
    plot_gains(space.eigenvalues[:dim], gains, first, run.path / "gains.png")
    return [float(gain) for gain in gains]


def results_table(results: dict[str, Any]) -> str:
    """Test metrics of a run beside those of popularity, for a terminal."""
    shown = ("hr@5", "hr@10", "hr@20", "ndcg@5", "ndcg@10", "ndcg@20", "mrr@10")
    lines = [
        f"test: {results['protocol']}, {results['examples']} examples, whole catalog, epoch "
        f"{results['best_epoch']} selected by validation with seen items {results['seen_items']}",
        f"{'':>31}" + "".join(f"{name:>9}" for name in shown),
    ]
    for seen_items in sorted(results["test_by_seen_items"], key=results["seen_items"].__ne__):
        for label, key in (("this run", "test"), ("popularity", "popularity")):
            metrics = results[f"{key}_by_seen_items"][seen_items]
            values = "".join(f"{metrics[name]:>9.4f}" for name in shown)
            lines.append(f"{label:>10}, seen items {seen_items:<8}" + values)
    return "\n".join(lines)


def _removed(before: Interactions, after: Interactions) -> dict[str, int]:
    """How many users, items and interactions there are no more."""
    return {
        "users": before.num_users - after.num_users,
        "items": before.num_items - after.num_items,
        "interactions": len(before) - len(after),
    }


def _encode(
    items: Items, encoder: str, encoder_model: str | None, config: Config, log: Log
) -> LanguageEmbeddings:
    if items.texts is None:
        raise invalid(
            "embeddings",
            None,
            "language embeddings, or items with a text column to encode, or item_embedding=id",
        )
    return encode_texts(items.texts, encoder, encoder_model, seed=config.seed, log=log)


def _why(config: Config) -> str:
    """Why the loss is what it is, where none was named."""
    if config.sparse:
        return "as sparse asks for a sampled one"
    if config.names_negatives:
        return "as a setting of negatives is given"
    return f"the full catalog up to {FULL_CATALOG_UP_TO:,} items, sampled beyond"


def _describe(split: Split, table: ItemEmbeddings, run: RunFolder) -> str:
    counts = ", ".join(f"{name} {value}" for name, value in split.report.items())
    return f"{split.name}: {counts}\n{table}\nrun folder: {run.path}"


def _set_threads(config: Config) -> None:
    if config.threads is not None:
        torch.set_num_threads(config.threads)
