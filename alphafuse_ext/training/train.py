"""Training: from files or data frames to a :class:`Recommender` and its run folder."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import Any

import torch

from alphafuse_ext.checks import invalid
from alphafuse_ext.config import Config
from alphafuse_ext.config.large import BFLOAT16_FROM, FULL_CATALOG_UP_TO, LARGE, in_words
from alphafuse_ext.config.loss import OF_NEGATIVES
from alphafuse_ext.config.model import NEIGHBORS_UP_TO
from alphafuse_ext.config.presets import describe_preset, with_preset
from alphafuse_ext.data import Dataset, Interactions, Source
from alphafuse_ext.data.dataset import OPTIONS
from alphafuse_ext.data.embeddings import EmbeddingSource
from alphafuse_ext.data.split import describe_split
from alphafuse_ext.distributed.merge import shard_bounds
from alphafuse_ext.distributed.process_group import ProcessGroup, broadcasting, size_of
from alphafuse_ext.evaluation.run_neighbors import RunNeighbors
from alphafuse_ext.items.language_neighbors import Neighbors
from alphafuse_ext.items.table import ItemTable
from alphafuse_ext.logs import Log, logged
from alphafuse_ext.ops import native
from alphafuse_ext.runs.assembly import (
    build_model,
    build_split,
    build_table,
    in_baskets,
    item_weights,
    with_given_split,
    with_sample_sizes,
)
from alphafuse_ext.runs.device import usable_device
from alphafuse_ext.runs.run_folder import ENCODER_FILE, NEIGHBORS_FILE, RunFolder, environment
from alphafuse_ext.serving.catalog import projection_of_start
from alphafuse_ext.serving.recommender import Recommender
from alphafuse_ext.training.trainer import Progress, check_process_group, check_weights
from alphafuse_ext.training.training_run import (
    TrainingRun,
    follow,
    preserve_rng_state,
    set_threads,
)


@preserve_rng_state()
def fit(
    interactions: Source | Dataset,
    items: Source | None = None,
    embeddings: EmbeddingSource | None = None,
    output: str | os.PathLike[str] | None = None,
    *,
    config: Config | None = None,
    preset: str | None = None,
    device: str | torch.device | None = None,
    log: Log | None = print,
    process_group: ProcessGroup | None = None,
    **options: Any,
) -> Recommender:
    """Train a sequential recommender and evaluate it once on the test split.

    Args:
        interactions: a :class:`alphafuse_ext.Dataset`; or what :meth:`Dataset.read` reads, with
            ``items`` and ``embeddings``.
        items, embeddings: as for :meth:`Dataset.read`; none beside a data set.
        output: the new run folder; default ``runs/<date-time>``.
        config: the settings; by default those of ``preset`` and ``options``.
        preset: name of published settings, see :mod:`alphafuse_ext.config.presets`.
        device: where the model trains. ``None``: on the GPU, where there is one that this build has
            kernels for; else, and always with a ``process_group``, on the CPU.
        log: called with each line of progress; ``None``: no output. The lines also go to Python's
            ``logging.getLogger("alphafuse_ext")``, at level INFO.
        process_group: of the processes that all call this and train together, see :func:`resume`.
        **options: fields of :class:`alphafuse_ext.Config`, which override the preset; and how data
            is read, ``text_columns`` for instance: the options of :meth:`Dataset.read`.

    Returns:
        The recommender of the best validation epoch; ``recommender.run.results()`` has its metrics.

    Raises:
        ValueError, TypeError, OSError: invalid data or settings, or settings beside a ``config``;
            no folder is created.
        KeyboardInterrupt: re-raised; :func:`resume` continues from the last checkpoint.

    Example:
        >>> recommender = fit(clicks, items, text_columns=["title"])
        >>> recommender.recommend(users=["A1YJEY40YUW4SE"], k=5)
    """
    log = logged(log)
    if process_group is not None and not process_group.first:
        return follow(process_group, device)
    with broadcasting(process_group) as send:
        reading = {name: options.pop(name) for name in OPTIONS if name in options}
        config = _config(config, preset, options)
        if preset is not None:
            log(describe_preset(preset, options))
        folder = RunFolder.check_new(output or Path("runs") / f"{datetime.now():%Y%m%d-%H%M%S.%f}")
        device = usable_device(device, log, process_group is None)
        check_process_group(process_group, config, device)
        set_threads(config)

        # Embeddings also for item_embedding=id: the catalog may come from them, and every item
        # embedding must have the same catalog to be comparable.
        data = Dataset.of(interactions, items, embeddings, log, **reading)
        config = with_given_split(config, data.interactions)
        config, data = in_baskets(config, data)
        removed: dict[str, int] = {}
        if config.k_core > 1:
            every, data = data.interactions, data.k_core(config.k_core)
            removed = _removed(every, data.interactions)
            counts = ", ".join(f"{value:,} {name}" for name, value in removed.items())
            log(f"{config.k_core}-core: removed {counts}")
        clicks, catalog = data.interactions, data.items
        split = build_split(config, clicks)
        config = with_sample_sizes(config, split)
        if not (split.train.lengths >= 2).any():
            raise invalid(
                "interactions",
                f"no user with two training interactions, protocol {split.name}",
                "users with two training interactions or more, after holding out",
            )
        if config.neighbors is None:
            off = _why_no_neighbors(clicks.num_items, len(split.validation))
            config = config.replace(neighbors=off is None)
            if off is not None:
                log(f"neighbors: off, {off}")
        language = None
        encoder_asked = (data.encoder, data.encoder_model) != ("auto", None)
        if config.needs_language or (encoder_asked and not config.trained):
            language = data.encoded(config.seed, log)
        elif data.language is not None and config.neighbors:
            language = data.language
            if config.trained:
                log("item embedding id: language embeddings are used for neighbors alone")
        elif data.language is not None or encoder_asked:
            log("item embedding id: language embeddings and encoder are not used")
        rows = None
        if language is not None and config.embeds_language:
            rows = language.rows
        if process_group is not None and process_group.shard_items:
            shard_bounds(clicks.num_items, process_group.size)  # that each has some
        whole = process_group is not None and not process_group.shard_items
        if whole and device.type != "cpu" and config.sparse is False:
            config = config.replace(sparse=False)  # also of a large catalog: NCCL sums none
        resolved = config.resolve(None if rows is None else rows.shape[1], clicks.num_items)
        if "loss" not in config.given and resolved.loss is not None:
            items_ranked = f"of a catalog of {clicks.num_items:,} items"
            log(f"loss: {resolved.loss}, {items_ranked} ({_why(config)})")
        chosen = {name: getattr(resolved, name) for name in LARGE if name not in config.given}
        chosen = {n: value for n, value in chosen.items() if value != getattr(config, n)}
        if chosen:
            log(in_words(chosen, clicks.num_items))
        if (resolved.negatives or 0) > clicks.num_items:
            drawn = f"negatives: {resolved.negatives:,}, drawn with replacement"
            log(f"{drawn} from a catalog of {clicks.num_items:,} items")
        config = _with_precision(resolved, clicks.num_items, device, log)

        beside = None
        if config.neighbors:
            if not len(split.validation):
                config.weights_of_neighbors.check_given(config)
            beside = RunNeighbors.fit(
                split.train,
                clicks.num_items,
                None if language is None else language.rows,
                catalog.texts,
                **({} if config.trained else {"last": config.history}),
            )
            log(f"neighbors: {', '.join(beside.made_of)}")
        neighbors = None
        if config.language_smoothing:
            assert language is not None, "read or encoded"
            neighbors = Neighbors.of(language.rows)
        torch.manual_seed(config.seed)
        item_counts = split.train_item_counts(clicks.num_items)
        table, space = build_table(config, clicks.num_items, rows, item_counts)
        projection = None
        if space is not None and isinstance(table, ItemTable):
            weights = item_weights(config, item_counts)
            projection = projection_of_start(config, space, table, weights).record()
        model = build_model(config, table, item_counts, neighbors)
        check_weights(model, config, split)
        if split.train_weights is not None and not config.trained:
            log("weights of interactions are not used: nothing is trained")
        source = {
            **data.source,
            "embeddings": None if language is None else language.record(),
            "preset": preset,
            "projection": projection,
        }
        report = {
            **split.report,
            **{f"{name}_removed": n for name, n in removed.items()},
            **{f"{name}_dropped": n for name, n in data.dropped.items()},
        }
        start = model.state_dict()
        with RunFolder.create(
            folder, config, report, clicks, catalog, source, start, size_of(process_group)
        ) as temporary:
            if neighbors is not None:
                neighbors.save(temporary / NEIGHBORS_FILE)
            if beside is not None:
                beside.save(temporary)
            if language is not None and language.tfidf is not None:
                language.tfidf.save(temporary / ENCODER_FILE)
            if space is not None:
                space.save(temporary / "space")
                space.plot(temporary / "spectrum.png", dim=config.dim, null_dim=table.null_dim)
        run = RunFolder(folder)
        send(run.path)
    for line in describe_split(split.report):
        log(line)
    log(f"run folder: {run.path}")
    with run.training():
        return TrainingRun(run, config, model, split, clicks, catalog, device).train(
            process_group, log
        )


@preserve_rng_state()
def resume(
    run: str | os.PathLike[str],
    device: str | torch.device | None = None,
    log: Log | None = print,
    *,
    epochs: int | None = None,
    patience: int | None = None,
    threads: int | None = None,
    process_group: ProcessGroup | None = None,
) -> Recommender:
    """Resume an interrupted run, with the same result as without the interruption.

    The result is bitwise the same with the same number of threads and processes, instruction set,
    torch version and kind of device; otherwise the log warns of the difference.

    Args:
        run: the run folder; training continues from its last checkpoint, at the end
            of an epoch or within one.
        device, log: as in :func:`fit`.
        epochs, patience, threads: override the run's own from here on.
        process_group: of the processes that all call this and train together, each on its device;
            there may be more or fewer than before, see
            :class:`alphafuse_ext.training.trainer.Trainer`. The first reads and writes the folder
            and logs; the others read it, so all need the same file system.

    Raises:
        ValueError: the run has finished already, or a number is out of range.
        OSError: the folder or a file in it cannot be read, or another process trains the run.
        RankError: another rank has ended or failed; the folder keeps the last checkpoint.
    """
    log = logged(log)
    if process_group is not None and not process_group.first:
        return follow(process_group, device)
    with ExitStack() as held:
        with broadcasting(process_group) as send:
            folder = RunFolder(run)
            held.enter_context(folder.training())
            if folder.has("results.json"):
                allowed = "a run that has not ended: this one has its results"
                raise invalid("resume", str(run), allowed)
            source = folder.source()
            if "changed_from" in source and not source["extended"]:
                found = f"{run}, a trained run that was changed and saved"
                raise invalid("resume", found, "a run that was interrupted, or extend")
            given = {"epochs": epochs, "patience": patience, "threads": threads}
            changed: dict[str, Any] = {
                name: value for name, value in given.items() if value is not None
            }
            config = folder.config().replace(**changed)
            device = usable_device(device, log, process_group is None)
            check_process_group(process_group, config, device)
            set_threads(config)
            now = environment(size_of(process_group))
            for difference in _differences(folder.environment(), now):
                log(f"warning: {difference}")
            folder.recover()
            ready = TrainingRun.read(folder, config, device)
            if changed:
                folder.update_config(config)
                said = ", ".join(f"{name} {value}" for name, value in changed.items())
                log(f"in place of the run's own settings: {said}")
            done = Progress() if ready.last is None else ready.last[0]
            within = f", step {done.step:,} of the next" if done.step else ""
            log(f"resume {folder.path} after epoch {done.epoch}{within}")
            send(folder.path)
        return ready.train(process_group, log)


def _differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """Differences from the environment in which the run began that may change results."""
    last_bits = "the result may differ in the last bits"
    before = then.get("ranks", 1)
    if before != now["ranks"]:
        drawn = "what is drawn at random, as dropout is, is drawn otherwise"
        yield f"processes {now['ranks']}, where the run began with {before}: {drawn}"
    for name, find in (
        ("threads", lambda facts: facts["threads"]),
        ("torch", lambda facts: facts["torch"]),
        ("instruction set", lambda facts: facts["native"]["isa"]),
        ("alphafuse_ext", lambda facts: facts["alphafuse_ext"]),
    ):
        if find(then) != find(now):
            yield f"{name} {find(now)}, where the run began with {find(then)}: {last_bits}"


def _removed(before: Interactions, after: Interactions) -> dict[str, int]:
    """How many users, items and interactions were removed."""
    return {
        "users": before.num_users - after.num_users,
        "items": before.num_items - after.num_items,
        "interactions": len(before) - len(after),
    }


def _config(config: Config | None, preset: str | None, options: dict[str, Any]) -> Config:
    """The settings of a run, given whole or one by one."""
    if config is None:
        return Config.from_dict(options if preset is None else with_preset(preset, options))
    if preset is not None:
        raise invalid("preset", repr(preset), "none beside a config")
    if options:
        raise invalid(", ".join(options), "settings beside a config", "config.replace of them")
    return config


def _with_precision(config: Config, num_items: int, device: torch.device, log: Log) -> Config:
    """bfloat16 where it is the default: where it was measured to be faster and as accurate."""
    if not config.trained or config.precision is not None:
        return config
    of_catalog = config.loss == "cross_entropy" and num_items >= BFLOAT16_FROM
    own = any(":" in str(part) for part in (config.model, config.item_embedding))
    has = device.type == "cpu" and native.cpu_multiplies_bfloat16()
    if own or not of_catalog or not has:
        return config.replace(precision="float32")
    log("precision: bf16, faster on this processor; ranking is exact (--precision float32)")
    return config.replace(precision="bf16")


def _why_no_neighbors(num_items: int, validated: int) -> str | None:
    """Why neighbors are not the default, and how they are had; ``None``: they are."""
    on = "neighbors=True (--neighbors)"
    if not validated:
        weights = "neighbors_weight and neighbors_language_weight"
        return f"as nothing is held out to choose their weights on; on with {on}, {weights}"
    if num_items > NEIGHBORS_UP_TO:
        return f"as the catalog has more than {NEIGHBORS_UP_TO:,} items; on with {on}"
    return None


def _why(config: Config) -> str:
    """Why this loss is the default."""
    if config.sparse:
        return "as sparse asks for a sampled one"
    if not OF_NEGATIVES.isdisjoint(config.given):
        return "as a setting of negatives is given"
    return f"the full catalog up to {FULL_CATALOG_UP_TO:,} items, sampled beyond"
