"""Methods against each other: settings chosen on validation, test metrics over seeds."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from alphafuse_ext.checks import invalid
from alphafuse_ext.experiments.data import KnownData, check_output, held, look_at
from alphafuse_ext.experiments.jobs import Figures, Job, Record, run_jobs
from alphafuse_ext.experiments.report import Row, Trial, write_report
from alphafuse_ext.experiments.spec import Comparison, Dataset, Method
from alphafuse_ext.training.device import usable_device

Log = Callable[[str], None]


def compare(
    comparison: Comparison,
    output: str | os.PathLike[str],
    *,
    processes: int = 1,
    threads: int = 1,
    device: str = "cpu",
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
        device: where they train.
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
    usable_device(device)
    folder = Path(output).absolute()
    check_output(folder)
    known = {one.name: look_at(one, comparison, folder, log) for one in comparison.datasets}
    trials = [
        (dataset, method, _jobs(comparison, dataset, method, known[dataset.name]))
        for dataset in comparison.datasets
        for method in comparison.methods
    ]
    with held(folder):
        record = Record(folder / "runs.json")

        def run(jobs: list[Job]) -> None:
            if not finished:
                run_jobs(jobs, record, folder / "runs", processes, threads, device, log)

        def tabulate() -> list[Row]:
            rows = [
                _row(comparison, dataset, method, jobs, known[dataset.name], record)
                for dataset, method, jobs in trials
            ]
            write_report(folder, comparison, rows)
            return rows

        run([job for _, _, jobs in trials for job in jobs])
        tabulate()
        run(
            [
                job
                for seed in comparison.seeds[1:]  # every method's second seed, then the third
                for dataset, method, jobs in trials
                if (chosen := chosen_trial(jobs, record)) is not None
                for job in _seeded(comparison, dataset, method, known[dataset.name], chosen, [seed])
            ]
        )
        return tabulate()


def chosen_trial(jobs: list[Job], record: Record) -> int | None:
    """The trial of the best validation metric among those that ended well."""
    scores = {}
    for place, job in enumerate(jobs):
        found = record.results(job)
        if found is not None:
            scores[place] = found["results"]["validation"][job.config.select]
    return max(scores, key=scores.__getitem__) if scores else None


def _jobs(comparison: Comparison, dataset: Dataset, method: Method, known: KnownData) -> list[Job]:
    """A job for each trial of a method."""
    return [
        known.job(dataset.name, method.name, config)
        for config in comparison.trials(dataset, method)
    ]


def _seeded(
    comparison: Comparison,
    dataset: Dataset,
    method: Method,
    known: KnownData,
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
    known: KnownData,
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
