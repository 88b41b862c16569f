"""Training anew on everything, as a finished run was trained: with no one held out."""

from __future__ import annotations

import dataclasses
import math
import os
from typing import Any

import numpy as np
import torch

from alphafuse_ext.checks import invalid
from alphafuse_ext.config import Config, layered
from alphafuse_ext.data import (
    Dataset,
    Interactions,
    Items,
    LanguageEmbeddings,
    Source,
    encode_texts,
    merge_interactions,
    origin,
)
from alphafuse_ext.data.embeddings import EmbeddingSource
from alphafuse_ext.data.reading import Reading
from alphafuse_ext.items.space import SemanticSpace
from alphafuse_ext.logs import Log, logged
from alphafuse_ext.runs.run_folder import RunFolder
from alphafuse_ext.serving.catalog import check_alike, read_new_items, with_items
from alphafuse_ext.serving.geometry import embeddings_of
from alphafuse_ext.serving.recommender import Recommender
from alphafuse_ext.training.train import fit


def refit(
    run: str | os.PathLike[str],
    interactions: Source | None = None,
    items: Source | None = None,
    embeddings: EmbeddingSource | None = None,
    output: str | os.PathLike[str] | None = None,
    *,
    any_embeddings: bool = False,
    device: str | torch.device | None = None,
    log: Log | None = print,
    **options: Any,
) -> Recommender:
    """Train on all interactions from scratch, with the settings of a finished run and for as many
    epochs as its validation chose; a new run, whose folder says so.

    Nothing is held out (``protocol="none"``), so nothing is measured. How much neighbors count is
    what the run chose. A run of this function can be refitted again.

    Args:
        run: the folder of a run that has ended; it stays as it is. Of one that was changed or
            continued from another the number of epochs is that other's.
        interactions: new ones, or all of them, beside those of the run, as for
            :func:`alphafuse_ext.extend`; ``None``: those of the run alone.
        items: new items, or the whole catalog; items of the run are skipped.
        embeddings: their language embeddings. Those of the run's own items are what its folder
            keeps; of a run that keeps none the file it was made from, or, where these are
            embeddings of the whole catalog, these.
        output: the new run folder; default ``runs/<date-time>``.
        any_embeddings: accept embeddings of new items that look like another model's.
        device, log: as for :func:`alphafuse_ext.fit`.
        **options: ``epochs`` and ``threads`` in place of the run's; and how files are read, fields
            of :class:`alphafuse_ext.data.Reading`, in place of what the run was read by.

    Raises:
        ValueError, TypeError, OSError: a run that has not ended, or whose number of epochs is not
            to be found; bad data or settings, before a folder is made.
    """
    log = logged(log)
    names = [field.name for field in dataclasses.fields(Reading)]
    given = Reading(**{name: options.pop(name) for name in names if name in options})
    for name in options:
        if name not in ("epochs", "threads"):
            raise invalid(name, options[name], "epochs or threads: the run has the others")
    if output is not None:
        RunFolder.check_new(output)
    before = Recommender.load(run, "cpu")
    config = _config(before, options)
    files = {"interactions": interactions, "items": items, "embeddings": embeddings}
    reading = given.completed(before.source(), files, log)
    new, of_new = _new(before, items, embeddings, reading, log)
    catalog = before.items if new is None else before.items.extended(new)
    dropped: dict[str, int] = {}
    known = _without_parts(with_items(before.interactions, catalog))
    if interactions is not None:
        found, dropped = reading.interactions(interactions, catalog, log)
        known = merge_interactions(known, _without_parts(found), log)
    language = _language(before, catalog, of_new, embeddings, reading, any_embeddings, log)
    source = {
        **{name: before.source()[name] for name in _KEPT if name in before.source()},
        **({} if interactions is None else {"interactions": origin(interactions)}),
        **({} if items is None else {"items": origin(items)}),
        "refitted_from": str(before.run.path),
        "reading": reading.record(),
    }
    log(f"refit of {before.run.path}: {_chosen(config, options)}, and its other settings")
    if config.learning_rate_schedule not in (None, "constant"):
        log(f"learning rate: {config.learning_rate_schedule}, down to zero over these epochs")
    data = Dataset(known, catalog, language, source=source, dropped=dropped)
    return fit(data, output=output, config=config, device=device, log=log)


_KEPT = ("interactions", "items", "validation", "test")
"""Of what the record of a run says that its data came from."""


def _epochs(run: RunFolder) -> float:
    """How many validation chose, of the run or of the one that it was changed or continued from."""
    source, first = run.source(), run
    changed = "changed_from" in source and not source["extended"]
    if not changed and not run.has("results.json"):
        raise invalid("run", f"{run.path}, which has not ended", "a run with its results")
    while before := first.source().get("changed_from"):
        try:
            first = RunFolder(before)
        except FileNotFoundError as error:
            found = f"none, and {before}, which {first.path} was made from, is gone"
            raise invalid("epochs", found, "a number") from error
    return float(first.results()["best_epoch"])


def _config(before: Recommender, options: dict[str, Any]) -> Config:
    """The settings of a run, to train on everything."""
    fixed: dict[str, Any] = {"protocol": "none", **options}
    if before.config.trained and "epochs" not in fixed:
        fixed["epochs"] = max(1, math.ceil(_epochs(before.run)))
    elif not before.config.trained and "epochs" in fixed:
        raise invalid("epochs", fixed["epochs"], "none of a run without a model")
    if before.neighbors is not None:
        weights = before.neighbors.weights()
        fixed |= {
            name: weights[name.removeprefix("neighbors_")]
            for name in ("neighbors_weight", "neighbors_language_weight", "neighbors_temperature")
            if hasattr(before.config.weights_of_neighbors, name)
        }
    of_all = dict.fromkeys(("validation_users", "test_users"), 0)  # there are none
    return Config.from_record(layered(before.config.to_dict(), of_all, fixed))


def _chosen(config: Config, options: dict[str, Any]) -> str:
    """In words, how long it trains."""
    if not config.trained:
        return "lists of neighbors alone"
    return (
        f"{config.epochs} epochs, as {'given' if 'epochs' in options else 'its validation chose'}"
    )


def _without_parts(interactions: Interactions) -> Interactions:
    """Without a split that came with them: all is trained on."""
    return dataclasses.replace(interactions, parts=None)


def _new(
    before: Recommender,
    items: Source | None,
    embeddings: EmbeddingSource | None,
    reading: Reading,
    log: Log,
) -> tuple[Items | None, LanguageEmbeddings | None]:
    """Items that the run has not, and their embeddings where some are given."""
    if items is None and embeddings is None:
        return None, None
    new, language = read_new_items(
        before.items, items, embeddings, before.run, None, reading, skip_known=True, log=log
    )
    log(f"items: {len(before.items):,} known, {len(new):,} new ones")
    return new, language


def _language(
    before: Recommender,
    catalog: Items,
    of_new: LanguageEmbeddings | None,
    embeddings: EmbeddingSource | None,
    reading: Reading,
    any_embeddings: bool,
    log: Log,
) -> LanguageEmbeddings | None:
    """Language embeddings of the whole catalog; ``None``: the run had none."""
    record = before.source()["embeddings"]
    if record is None or record["from"] == "texts":
        if embeddings is not None:
            whose = "has none" if record is None else "encodes texts"
            raise invalid("embeddings", "some", f"none for {before.run.path}, which {whose}")
        if record is None:
            return None
        assert catalog.texts is not None, "a run on texts keeps them"
        how = {"seed": before.config.seed, "encoder_revision": record.get("revision")}
        return encode_texts(catalog.texts, record["encoder"], record.get("model"), log=log, **how)
    rows = None if before.neighbors is None else before.neighbors.kept.rows
    if rows is None:
        rows = _rows_of_file(before, record)
    if rows is None and embeddings is not None:
        log(f"embeddings: {record['from']}, which the run was made from, is gone or another by now")
        return reading.embeddings(embeddings, catalog, log)  # which has to have them all
    if rows is None:
        found = f"none, and {record['from']}, which the run was made from, is gone or another"
        raise invalid("embeddings", found, "those of the whole catalog")
    if added := len(catalog) - len(before.items):
        if of_new is None:
            raise invalid("embeddings", None, f"those of the {added} new items, of the same model")
        space = SemanticSpace.from_embeddings(rows, progress=False)
        check_alike(space, of_new.rows, any_embeddings)
        rows = np.concatenate([rows, of_new.rows.astype(rows.dtype)])
    return LanguageEmbeddings(rows, {"from": record["from"], "rows": record.get("rows")})


def _rows_of_file(before: Recommender, record: dict[str, Any]) -> np.ndarray | None:
    """What the run was made from, if that is still there."""
    try:
        found = embeddings_of(before, record)
    except (ValueError, OSError):
        return None
    return found.rows if found.record()["sha256"] == record["sha256"] else None
