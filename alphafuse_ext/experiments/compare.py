"""Comparison of methods: settings chosen on validation, test metrics over seeds."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace

from alphafuse_ext.experiments.data import prepare
from alphafuse_ext.experiments.jobs import Countdown, Job, Record, run_jobs, validation_of
from alphafuse_ext.experiments.report import Row, Trial, write_report
from alphafuse_ext.experiments.spec import Comparison, Method
from alphafuse_ext.logs import Log, logged
from alphafuse_ext.runs.device import usable_device


def compare(
    comparison: Comparison,
    output: str | os.PathLike[str],
    *,
    processes: int = 1,
    threads: int = 1,
    device: str | None = None,
    finished: bool = False,
    log: Log | None = print,
) -> list[Row]:
    """Run a comparison and write its tables.

    All combinations of a method's grid are trained with the first seed; the one with the best
    validation metric (``select``) is trained with the other seeds. Everything is checked before the
    first run. Finished runs are recorded in ``output/runs.json`` and not repeated; the same call
    resumes an interrupted comparison and retries failed runs. Tables are updated after each stage.

    Args:
        comparison: what to run.
        output: folder of record and tables; run folders are in its ``runs``.
        processes: number of parallel runs.
        threads: CPU threads of each run.
        device: of the runs, as for :func:`alphafuse_ext.fit`.
        finished: train nothing, only tabulate finished runs.
        log: called with each line of progress.

    Returns:
        The rows of the tables, by data set and method.

    Raises:
        ValueError, TypeError, OSError: invalid settings or data, before the first run.
    """
    log = logged(log)
    counts = {"processes": processes, "threads": threads}
    device = str(usable_device(device, log))
    with prepare(comparison, output, log, **counts) as (folder, known):
        trials = [
            (
                method,
                [
                    known[dataset.name].job(dataset.name, method.name, config)
                    for config in comparison.trials(dataset, method)
                ],
            )
            for dataset in comparison.datasets
            for method in comparison.methods
        ]
        record = Record(folder / "runs.json")

        countdown = Countdown(0, processes)

        def run(jobs: list[Job], later: int = 0) -> None:
            if not finished:
                missing = {job.name for job in jobs if record.results(job) is None}
                countdown.total = countdown.ended + len(missing) + later
                runs = folder / "runs"
                run_jobs(jobs, record, runs, processes, threads, device, log, countdown)

        def tabulate() -> list[Row]:
            rows = [_row(method, jobs, comparison.seeds, record) for method, jobs in trials]
            write_report(folder, comparison, rows)
            return rows

        def seeded(seed: int) -> list[Job]:
            chosen = [(jobs, chosen_trial(jobs, record)) for _, jobs in trials]
            return [_seeded(jobs[place], seed) for jobs, place in chosen if place is not None]

        first = [job for _, jobs in trials for job in jobs]
        later = 0
        for _, jobs in trials:
            chosen = chosen_trial(jobs, record)
            if chosen is None or any(record.results(job) is None for job in jobs):
                later += len(_seeds(jobs[0], comparison.seeds)) - 1  # of which trial is open yet
            else:
                others = _seeds(jobs[chosen], comparison.seeds)[1:]
                later += sum(record.results(job) is None for job in others)
        run(first, later)
        tabulate()
        # Every method's second seed, then the third.
        run([job for seed in comparison.seeds[1:] for job in seeded(seed)])
        return tabulate()


def chosen_trial(jobs: list[Job], record: Record) -> int | None:
    """The successful trial with the best validation metric."""
    scores = {
        place: validation_of(found)
        for place, job in enumerate(jobs)
        if (found := record.results(job)) is not None
    }
    return max(scores, key=scores.__getitem__) if scores else None


def _seeded(job: Job, seed: int) -> Job:
    """The same job with another seed; the job itself where nothing is trained."""
    return replace(job, config=job.config.replace(seed=seed)) if job.config.trained else job


def _seeds(job: Job, seeds: Sequence[int]) -> list[Job]:
    """A job with each of some seeds, each job once."""
    return list({one.name: one for one in (_seeded(job, seed) for seed in seeds)}.values())


def _row(method: Method, jobs: list[Job], seeds: Sequence[int], record: Record) -> Row:
    chosen = chosen_trial(jobs, record)
    trials = [
        Trial(settings, job.config, record.results(job))
        for settings, job in zip(method.grid(), jobs, strict=True)
    ]
    seeded = [] if chosen is None else _seeds(jobs[chosen], seeds)
    ended = [job for job in seeded if record.results(job) is not None]
    runs = [found for job in ended if (found := record.results(job)) is not None]
    tried = {job.name: record.failure(job) for job in (*jobs, *seeded)}
    failures = [error for error in tried.values() if error is not None]
    names = [job.name for job in ended]
    told = list(dict.fromkeys(failures))
    return Row(jobs[0].dataset, method.name, trials, chosen, runs, told, names)
