"""Methods against each other: settings chosen on validation, test metrics over seeds."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from alphafuse_ext.checks import invalid
from alphafuse_ext.data import encode_texts, read_embeddings, read_interactions, read_items
from alphafuse_ext.experiments.jobs import Figures, Job, Record, run_jobs
from alphafuse_ext.experiments.report import Row, Trial, write_report
from alphafuse_ext.experiments.spec import Comparison, Dataset, Method
from alphafuse_ext.files import atomic_path

Log = Callable[[str], None]


@dataclass(frozen=True)
class _Known:
    """Of a data set, what settings are resolved by."""

    sources: dict[str, Any]
    num_items: int
    embedding_dim: int | None


def compare(
    comparison: Comparison,
    output: str | os.PathLike[str],
    *,
    processes: int = 1,
    threads: int = 1,
    finished: bool = False,
    log: Log = print,
) -> list[Row]:
    """Run a comparison, and write its tables.

    The first seed tries every combination of a method's grid; that of the best validation metric
    (``select``) is trained with the other seeds. Everything is checked before the first run starts.
    What has ended is in ``output/runs.json`` and is not run again; an interrupted comparison goes
    on, and a run that failed is tried again. The tables are written anew after each stage, and hold
    what there is.

    Args:
        comparison: what to run.
        output: folder of the record and tables; its ``runs`` of run folders.
        processes: runs at a time.
        threads: of each.
        finished: train nothing: tabulate what is on record.
        log: takes the lines that a person follows it by.

    Returns:
        The rows of the tables, by data set and method.

    Raises:
        ValueError, TypeError, OSError: something that makes no sense, before anything is run.
    """
    for name, value in (("processes", processes), ("threads", threads)):
        if value < 1:
            raise invalid(name, value, "an integer >= 1")
    folder = Path(output).absolute()
    _check_folder(folder)
    known = {one.name: _look_at(one, comparison, folder, log) for one in comparison.datasets}
    trials = [
        (dataset, method, _jobs(comparison, dataset, method, known[dataset.name]))
        for dataset in comparison.datasets
        for method in comparison.methods
    ]
    folder.mkdir(parents=True, exist_ok=True)
    record = Record(folder / "runs.json")

    def run(jobs: list[Job]) -> None:
        if not finished:
            run_jobs(jobs, record, folder / "runs", processes, threads, log)

    def tabulate() -> list[Row]:
        rows = [
            _row(comparison, dataset, method, jobs, known[dataset.name], record)
            for dataset, method, jobs in trials
        ]
        write_report(folder, comparison, rows)
        return rows

    run([job for _, _, jobs in trials for job in jobs])
    tabulate()
    seeded = [
        job
        for seed in comparison.seeds[1:]  # every method's second seed, then the third
        for dataset, method, jobs in trials
        if (chosen := chosen_trial(jobs, record)) is not None
        for job in _seeded(comparison, dataset, method, known[dataset.name], chosen, [seed])
    ]
    run(seeded)
    return tabulate()


def chosen_trial(jobs: list[Job], record: Record) -> int | None:
    """The trial of the best validation metric among those that ended well."""
    scores = {}
    for place, job in enumerate(jobs):
        found = record.results(job)
        if found is not None:
            scores[place] = found["results"]["validation"][job.config.select]
    return max(scores, key=scores.__getitem__) if scores else None


def _jobs(comparison: Comparison, dataset: Dataset, method: Method, known: _Known) -> list[Job]:
    """A job for each trial of a method."""
    jobs = []
    for config in comparison.trials(dataset, method):
        width = None if config.item_embedding == "id" else known.embedding_dim
        where = f"data.{dataset.name}, methods.{method.name}"
        if width is None and config.item_embedding != "id":
            allowed = "embeddings, or items with a text column, for a method that reads language"
            raise invalid(where, "no language embeddings and no texts", allowed)
        try:
            resolved = config.resolve(width, known.num_items)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
        jobs.append(Job(dataset.name, method.name, known.sources, resolved))
    return jobs


def _seeded(
    comparison: Comparison,
    dataset: Dataset,
    method: Method,
    known: _Known,
    chosen: int,
    seeds: list[int],
) -> list[Job]:
    """The chosen trial with other seeds."""
    return [
        _jobs(replace(comparison, seeds=(seed,)), dataset, method, known)[chosen] for seed in seeds
    ]


def _row(
    comparison: Comparison,
    dataset: Dataset,
    method: Method,
    jobs: list[Job],
    known: _Known,
    record: Record,
) -> Row:
    chosen = chosen_trial(jobs, record)
    trials = [
        Trial(settings, job.config, record.results(job))
        for settings, job in zip(method.grid(), jobs, strict=True)
    ]
    failures = [error for job in jobs if (error := record.failure(job)) is not None]
    runs: list[Figures] = []
    if chosen is not None:
        for job in _seeded(comparison, dataset, method, known, chosen, list(comparison.seeds)):
            found = record.results(job)
            if found is not None:
                runs.append(found)
            elif (error := record.failure(job)) is not None:
                failures.append(error)
    return Row(dataset.name, method.name, trials, chosen, runs, list(dict.fromkeys(failures)))


def _check_folder(folder: Path) -> None:
    above = next(parent for parent in (folder, *folder.parents) if parent.exists())
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        raise invalid("output", folder, f"a place to write: {above} is none", PermissionError)


def _look_at(dataset: Dataset, comparison: Comparison, folder: Path, log: Log) -> _Known:
    """Read a data set once, so that what is wrong with it is said before anything runs.

    Texts are encoded here, once for all runs.
    """
    sources = dict(dataset.sources)
    item_column = sources.get("item_column")
    catalog = None
    if "items" in sources:
        catalog = read_items(
            sources["items"], item_column, sources.get("text_columns"), log=_silent
        )
    width = None
    if "embeddings" in sources:
        language = read_embeddings(
            sources["embeddings"],
            catalog,
            sources.get("ids_are_rows", False),
            item_column,
            log=_silent,
        )
        catalog, width = catalog or language.items, language.rows.shape[1]
    clicks = read_interactions(
        sources["interactions"],
        catalog,
        sources.get("user_column"),
        item_column,
        sources.get("time_column"),
        log=_silent,
    )
    wanted = any(
        {**comparison.settings, **dataset.settings, **method.settings}.get("item_embedding") != "id"
        for method in comparison.methods
    )
    if width is None and wanted and catalog is not None and catalog.texts is not None:
        path = folder / "embeddings" / f"{dataset.name}.npy"
        if not path.exists():
            encoder = sources.get("encoder", "auto")
            encoded = encode_texts(
                catalog.texts, encoder, sources.get("encoder_model"), seed=0, log=log
            )
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_path(path) as temporary, open(temporary, "wb") as file:
                np.save(file, encoded.rows)
        for name in ("encoder", "encoder_model"):
            sources.pop(name, None)
        sources["embeddings"] = str(path)
        width = np.load(path, mmap_mode="r").shape[1]
    return _Known(sources, clicks.num_items, width)


def _silent(_: str) -> None:
    pass
