"""Continued training: a run's model with new interactions, items and users, as a new run."""

from __future__ import annotations

import dataclasses
import os
from datetime import datetime
from pathlib import Path
from typing import Any

import torch

from alphafuse_ext.checks import invalid
from alphafuse_ext.config.neighbors import WEIGHTS
from alphafuse_ext.data import Dataset, LanguageEmbeddings, Source, merge_interactions, origin
from alphafuse_ext.data.embeddings import EmbeddingSource
from alphafuse_ext.data.reading import Reading
from alphafuse_ext.data.split import describe_split
from alphafuse_ext.distributed.process_group import ProcessGroup, broadcasting, size_of
from alphafuse_ext.items.adapted_table import language_rows_for
from alphafuse_ext.items.initialization import init_id_embeddings
from alphafuse_ext.logs import Log, logged
from alphafuse_ext.runs.assembly import build_split, build_table, with_sample_sizes
from alphafuse_ext.runs.device import usable_device
from alphafuse_ext.runs.run_folder import NEIGHBORS_FILE, RunFolder
from alphafuse_ext.serving.catalog import (
    WITHOUT_LANGUAGE,
    model_with_table,
    read_new_items,
)
from alphafuse_ext.serving.catalog_changes import with_new, with_table
from alphafuse_ext.serving.recommender import Recommender
from alphafuse_ext.training.trainer import check_process_group
from alphafuse_ext.training.training_run import (
    TrainingRun,
    follow,
    preserve_rng_state,
    set_threads,
)

MAY_CHANGE = (
    *("epochs", "patience", "threads", "seed", "batch_size", "learning_rate", "warmup"),
    *("learning_rate_schedule", "weight_decay", "dropout", "label_smoothing"),
    *("language_smoothing",),
    *("evaluation_batch_size", "keep_seen", "select", *WEIGHTS),
    *("validation_users", "test_users", "validate_every", "checkpoint_minutes"),
)
"""Settings that may differ from those of the extended run; all others shape its tensors."""


@preserve_rng_state()
def extend(
    run: str | os.PathLike[str],
    interactions: Source | Dataset,
    items: Source | None = None,
    embeddings: EmbeddingSource | None = None,
    output: str | os.PathLike[str] | None = None,
    *,
    any_embeddings: bool = False,
    device: str | torch.device | None = None,
    log: Log | None = print,
    process_group: ProcessGroup | None = None,
    **options: Any,
) -> Recommender:
    """Continue training a run's model with new interactions, as a new run; the first is unchanged.

    The model starts at the run's selected epoch, with fresh optimizer states, epochs and patience.
    Validation and test targets are chosen from all interactions together, so those of the first
    run are now trained on.

    Args:
        run: the folder of a run, trained or changed and saved.
        interactions: new ones, as for :func:`alphafuse_ext.fit`, or all of them: with times, those
            that the run has already are not taken twice; without, all come after those. A
            :class:`alphafuse_ext.Dataset` brings items and embeddings as well.
        items: new items, or the whole catalog; items of the run are skipped.
        embeddings: their language embeddings, as for :meth:`Recommender.add_items`; also of all.
        output: the new run folder; default ``runs/<date-time>``.
        any_embeddings: as for :meth:`Recommender.add_items`.
        device, log, process_group: as for :func:`alphafuse_ext.fit`.
        **options: those fields of :class:`alphafuse_ext.Config` that :data:`MAY_CHANGE` names, in
            place of the run's; and how files are read, fields of
            :class:`alphafuse_ext.data.Reading` in place of what the run was read by.

    Returns:
        The recommender at its best validation epoch.

    Raises:
        ValueError, TypeError, OSError: bad data or settings, before the folder is made.
    """
    log = logged(log)
    if process_group is not None and not process_group.first:
        return follow(process_group, device)
    with broadcasting(process_group) as send:
        names = [field.name for field in dataclasses.fields(Reading)]
        given = Reading(**{name: options.pop(name) for name in names if name in options})
        for name in options:
            if name not in MAY_CHANGE:
                raise invalid(
                    name, options[name], f"one of {', '.join(MAY_CHANGE)}: see the run's own"
                )
        output = output or Path("runs") / datetime.now().strftime("%Y%m%d-%H%M%S")
        RunFolder.check_new(output)
        device = usable_device(device, log, process_group is None)
        before = Recommender.load(run, "cpu")
        config = before.config.replace(**options)
        check_process_group(process_group, config, device)
        grown, whence = before, origin(interactions)
        if isinstance(interactions, Dataset):
            data = Dataset.of(interactions, items, embeddings, log, **vars(given))
            grown = _with_new_items(before, data, data.language, given, any_embeddings, log)
            new, dropped = data.interactions.within(grown.items), data.dropped
            whence = data.source["interactions"]
        else:
            files = {"interactions": interactions, "items": items, "embeddings": embeddings}
            reading = given.completed(before.source(), files, log)
            if items is not None or embeddings is not None:
                grown = _with_new_items(before, items, embeddings, reading, any_embeddings, log)
            new, dropped = reading.interactions(interactions, grown.items, log)
        merged = merge_interactions(grown.interactions, new, log)
        if len(merged) == len(before.interactions):
            raise invalid("interactions", "none that the run has not", "new ones")
        if config.baskets:
            merged = merged.with_sorted_baskets()
        split = build_split(config, merged)
        config = with_sample_sizes(config, split)

        set_threads(config)
        torch.manual_seed(config.seed)
        counts = split.train_item_counts(merged.num_items)
        neighbors = None
        if config.language_smoothing:
            neighbors = before.run.neighbors()
            if neighbors is None:
                allowed = f"0 for {run}, which keeps no neighbors of its items"
                raise invalid("language_smoothing", config.language_smoothing, allowed)
            neighbors = neighbors.extended(merged.num_items)
        beside = grown.neighbors
        if beside is not None:
            if not len(split.validation):
                config.weights_of_neighbors.check_given(config)
            beside = beside.with_histories(split.train)
        table = grown.model.whole_table
        if not config.trained:
            table, _ = build_table(config, merged.num_items, None, counts)
        model = model_with_table(config, grown.model, table, counts, neighbors)
        source = {**grown.changed_source(), "interactions": whence, "extended": True}
        with RunFolder.create(
            output,
            config,
            {**split.report, **{f"{name}_dropped": n for name, n in dropped.items()}},
            merged,
            grown.items,
            source,
            model.state_dict(),
            size_of(process_group),
        ) as temporary:
            if neighbors is not None:
                neighbors.save(temporary / NEIGHBORS_FILE)
            if beside is not None:
                beside.save(temporary)
            if grown.projection is not None:
                grown.projection.space.save(temporary / "space")
            if grown.encodes_texts:
                before.run.share_encoder(temporary)
        folder = RunFolder(output)
        send(folder.path)
    for line in describe_split(split.report):
        log(line)
    log(f"{before.run.path}, extended: {folder.path}")
    with folder.training():
        return TrainingRun(folder, config, model, split, merged, grown.items, device).train(
            process_group, log
        )


def _with_new_items(
    recommender: Recommender,
    items: Source | Dataset | None,
    embeddings: EmbeddingSource | LanguageEmbeddings | None,
    reading: Reading,
    any_embeddings: bool,
    log: Log,
) -> Recommender:
    """With those of ``items`` that are new; of a run on item IDs alone, as it begins them."""
    config = recommender.config
    encoded = recommender.source()["embeddings"]
    by_language = recommender.neighbors is not None and recommender.neighbors.kept.rows is not None
    new, language = read_new_items(
        recommender.items,
        items,
        None if isinstance(embeddings, LanguageEmbeddings) else embeddings,
        recommender.run,
        None if config.item_embedding == "id" and not by_language else encoded,
        reading,
        skip_known=True,
        log=log,
    )
    log(f"items: {len(recommender.items):,} known, {len(new):,} new ones")
    if not len(new):
        return recommender
    if config.item_embedding not in WITHOUT_LANGUAGE:
        return with_new(recommender, new, language, any_embeddings or embeddings is None)
    if config.item_embedding == "id":
        assert config.dim is not None, "resolved"
        torch.manual_seed(config.seed)
        rows = init_id_embeddings(len(new), config.dim, config.init, config.init_scale)
    else:
        assert language is not None, "encoded, or refused"
        rows = language_rows_for(config.item_embedding, language.rows, config.scale)
    table = recommender.model.whole_table.extended(rows)
    return with_table(recommender, new, table, None if language is None else language.rows)
