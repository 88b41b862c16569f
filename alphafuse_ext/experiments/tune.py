"""Hyperparameter search with Optuna: the same budget for each method."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any

import numpy as np

from alphafuse_ext.deprecation import digested_names, recorded_names
from alphafuse_ext.experiments.data import KnownData, prepare
from alphafuse_ext.experiments.jobs import (
    Countdown,
    Figures,
    Job,
    Record,
    run_job,
    validation_of,
    waiting,
)
from alphafuse_ext.experiments.report import settings_text, table
from alphafuse_ext.experiments.spec import Dataset, Method, Search
from alphafuse_ext.files import atomic_path, read_json_lines
from alphafuse_ext.logs import Log, logged
from alphafuse_ext.runs.device import usable_device

if TYPE_CHECKING:
    import optuna

STARTUP_TRIALS = 5
"""Number of random trials of a study, which are never pruned."""
WARMUP_EPOCHS = 5
"""Epochs of a trial in which it is not pruned."""


@dataclass(frozen=True)
class Tuned:
    """The result of a search for a method on a data set.

    Attributes:
        dataset, method: their names.
        settings: the best ones; ``None``: no successful trial.
        validation: their validation metric.
        ended, stopped, failed: numbers of trials.
    """

    dataset: str
    method: str
    settings: dict[str, Any] | None
    validation: float | None
    ended: int
    stopped: int
    failed: int


def tune(
    search: Search,
    output: str | os.PathLike[str],
    *,
    trials: int = 30,
    processes: int = 1,
    threads: int = 1,
    device: str | None = None,
    log: Log | None = print,
) -> list[Tuned]:
    """Search the settings of each method with the best validation metric (``select``).

    Trials are drawn by Optuna's tree-structured Parzen estimator. From the sixth on, a trial whose
    best value so far is below the median of the others at the same epoch is pruned. All methods
    have the same number of trials, including pruned and failed ones. Finished trials are recorded
    in ``output/tune.journal`` and ``output/runs.json``: the same call resumes an interrupted search
    and its interrupted trials.

    Writes ``tune.md``, and ``tuned.toml`` for ``alphafuse compare``, which finds the best trials on
    record if it has the same output.

    Args:
        search: data sets, and methods with their ranges.
        output: output folder.
        trials: number of trials for each method on each data set.
        processes: number of parallel runs.
        threads: CPU threads of each run.
        device: of the runs, as for :func:`alphafuse_ext.fit`.
        log: called with a line for each trial.

    Raises:
        ImportError: Optuna is not installed.
        ValueError, TypeError, OSError: invalid settings or data, before the first trial.
    """
    log = logged(log)
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    counts = {"trials": trials, "processes": processes, "threads": threads}
    found = []
    device = str(usable_device(device, log))
    with prepare(search, output, log, **counts) as (folder, known):
        for dataset in search.datasets:
            for method in search.methods:
                for config in search.corners(dataset, method):
                    known[dataset.name].job(dataset.name, method.name, config)
        record = Record(folder / "runs.json")
        countdown = Countdown(0, processes)
        searches = []
        for dataset in search.datasets:
            for method in search.methods:
                data = known[dataset.name]
                study = _study(folder, search, dataset, method, data.content)
                one = _Search(search, dataset, method, data, study, record, log, countdown)
                countdown.total += one.left(trials)
                searches.append(one)
        for one in searches:
            one.run(folder / "runs", trials, processes, threads, device)
            found.append(one.tuned())
            _write(folder, search, found)
    return found


@dataclass(frozen=True)
class _Search:
    """The search for one method on one data set."""

    search: Search
    dataset: Dataset
    method: Method
    known: KnownData
    study: optuna.Study
    record: Record
    log: Log
    countdown: Countdown

    def left(self, trials: int) -> int:
        """Number of trials left in the budget."""
        return max(0, trials - sum(self._counts()))

    def run(self, runs: Path, trials: int, processes: int, threads: int, device: str) -> None:
        """Run trials up to the budget."""
        import optuna

        states = optuna.trial.TrialState
        for trial in self.study.get_trials(deepcopy=False, states=(states.RUNNING,)):
            # Of a dead process: repeated with the same parameters, resuming its run folder.
            self.study.enqueue_trial(recorded_names(trial.params))
            self.study.tell(trial.number, state=states.FAIL)
            self.study.set_user_attr(f"cut off {trial.number}", True)
        runs.mkdir(parents=True, exist_ok=True)
        with waiting(processes) as (pool, ended):
            for done in [
                pool.submit(self._trial, runs, threads, device, ended)
                for _ in range(self.left(trials))
            ]:
                done.result()

    def _trial(self, runs: Path, threads: int, device: str, ended: Event) -> None:
        import optuna

        trial = self.study.ask()
        settings = self._draw(trial)
        trial.set_user_attr("settings", settings)
        try:
            config = self.search.config(self.dataset, self.method, settings)
            job = self.known.job(self.dataset.name, self.method.name, config)
        except (ValueError, TypeError) as error:  # two ranges that do not go together
            self._tell(trial, optuna.trial.TrialState.FAIL, None, f"failed: {error}")
            return
        figures = self.record.results(job)
        seconds = None
        if figures is None:
            watch = _Watch(trial, config.select)
            figures = run_job(job, runs, threads, device, ended, watch)
            if watch.stopped:
                shutil.rmtree(runs / job.name, ignore_errors=True)
                self._tell(trial, optuna.trial.TrialState.PRUNED, None, "stopped")
                return
            self.record.add(job, figures)
            seconds = figures.get("seconds")
        self._end(trial, job, figures, seconds)

    def _end(self, trial: optuna.Trial, job: Job, figures: Figures, seconds: float | None) -> None:
        import optuna

        if "error" in figures:
            self._tell(trial, optuna.trial.TrialState.FAIL, None, f"failed: {figures['error']}")
            return
        value = validation_of(figures)
        said = f"validation {job.config.select} {value:.4f}"
        self._tell(trial, optuna.trial.TrialState.COMPLETE, value, said, seconds)

    def _tell(
        self,
        trial: optuna.Trial,
        state: Any,
        value: float | None,
        said: str,
        seconds: float | None = None,
    ) -> None:
        self.study.tell(trial, value, state=state)
        where = f"{self.dataset.name}, {self.method.name}, trial {trial.number}"
        label = f"{where} ({settings_text(trial.user_attrs['settings'])})"
        self.log(self.countdown.line(label, said, seconds))

    def _draw(self, trial: optuna.Trial) -> dict[str, Any]:
        """Settings of a trial: fixed and sampled ones."""
        drawn: dict[str, Any] = {}
        for name, value in self.method.settings.items():
            if isinstance(value, list):
                # Optuna takes texts for categories of any kind.
                names = [json.dumps(one) for one in value]
                drawn[name] = json.loads(trial.suggest_categorical(name, names))
            elif isinstance(value, dict):
                log = value.get("log", False)
                step = value.get("step")
                if isinstance(value["low"], int) and isinstance(value["high"], int):
                    drawn[name] = trial.suggest_int(
                        name, value["low"], value["high"], step=step or 1, log=log
                    )
                else:
                    drawn[name] = trial.suggest_float(
                        name, value["low"], value["high"], step=step, log=log
                    )
            else:
                drawn[name] = value
        return drawn

    def _counts(self) -> tuple[int, int, int]:
        """Numbers of finished, pruned and failed trials, without interrupted ones."""
        import optuna

        states = optuna.trial.TrialState
        cut_off = self.study.user_attrs
        every = self.study.get_trials(deepcopy=False)
        counted = [trial for trial in every if f"cut off {trial.number}" not in cut_off]
        ended, stopped, failed = (
            sum(trial.state == state for trial in counted)
            for state in (states.COMPLETE, states.PRUNED, states.FAIL)
        )
        return ended, stopped, failed

    def tuned(self) -> Tuned:
        """The best result so far."""
        ended, stopped, failed = self._counts()
        settings = value = None
        if ended:
            settings = recorded_names(self.study.best_trial.user_attrs["settings"])
            value = self.study.best_value
        names = self.dataset.name, self.method.name
        return Tuned(*names, settings, value, ended, stopped, failed)


class _Watch:
    """Reports a run's epochs to its trial, and whether to prune it."""

    def __init__(self, trial: optuna.Trial, select: str) -> None:
        self.trial, self.select = trial, select
        self.seen, self.best, self.stopped = 0, 0.0, False

    def __call__(self, folder: Path) -> bool:
        for line in _epochs(folder)[self.seen :]:
            self.seen += 1
            self.best = max(self.best, line["validation"][self.select])
            self.trial.report(self.best, line["epoch"])
            if self.trial.should_prune():
                self.stopped = True
                break
        return self.stopped


def _epochs(folder: Path) -> list[dict[str, Any]]:
    return read_json_lines(folder / "metrics.jsonl")


def _study(
    folder: Path, search: Search, dataset: Dataset, method: Method, content: str
) -> optuna.Study:
    """The study whose trials ran on this data, with these settings and ranges."""
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    settings = {**search.settings, **dataset.settings, **method.settings}
    of = [content, search.seed, digested_names(settings)]
    digest = hashlib.sha256(json.dumps(of, sort_keys=True).encode()).hexdigest()[:16]
    study = optuna.create_study(
        study_name=f"{dataset.name}, {method.name}, {digest}",
        storage=JournalStorage(JournalFileBackend(str(folder / "tune.journal"))),
        pruner=optuna.pruners.MedianPruner(STARTUP_TRIALS, WARMUP_EPOCHS),
        direction="maximize",
        load_if_exists=True,
    )
    # A resumed search samples other points than it began with.
    drawn = [search.seed, len(study.get_trials(deepcopy=False))]
    entropy = int(np.random.SeedSequence(drawn).generate_state(1)[0])
    study.sampler = optuna.samplers.TPESampler(seed=entropy, n_startup_trials=STARTUP_TRIALS)
    return study


def _write(folder: Path, search: Search, found: list[Tuned]) -> None:
    """Write the table, and the comparison of what was found."""
    header = ["data", "method", "ended", "stopped", "failed", "validation", "best settings"]
    cells = [
        [
            *(one.dataset, one.method, str(one.ended), str(one.stopped), str(one.failed)),
            "" if one.validation is None else f"{one.validation:.4f}",
            "" if one.settings is None else settings_text(one.settings),
        ]
        for one in found
    ]
    shared = f"Settings of all: {settings_text(search.settings)}." if search.settings else ""
    page = ["# Search", "", *([shared, ""] if shared else []), *table(header, cells)]
    for name, text in (
        ("tune.md", "\n".join(page) + "\n"),
        ("tuned.toml", "\n".join(_toml(search, found)) + "\n"),
    ):
        with atomic_path(folder / name) as temporary:
            Path(temporary).write_text(text, encoding="utf-8")


def _toml(search: Search, found: list[Tuned]) -> Iterator[str]:
    """A comparison of the best settings; on several data sets a method is one for each of them."""
    yield f"seeds = {json.dumps([search.seed + place for place in range(3)])}"
    if search.settings:
        yield "\n[settings]"
        yield from _lines(search.settings)
    for dataset in search.datasets:
        yield f"\n[data.{_key(dataset.name)}]"
        yield from _lines(dataset.sources)
        if dataset.settings:
            yield f"\n[data.{_key(dataset.name)}.settings]"
            yield from _lines(dataset.settings)
    for one in found:
        if one.settings is not None:
            several = len(search.datasets) > 1
            name = f"{one.method}, tuned on {one.dataset}" if several else one.method
            yield f"\n[methods.{_key(name)}]"
            yield from _lines(one.settings)


def _key(name: str) -> str:
    return json.dumps(name, ensure_ascii=False)


def _lines(values: dict[str, Any]) -> Iterator[str]:
    """TOML of plain values: its numbers, texts, booleans and lists are JSON's."""
    for name, value in values.items():
        yield f"{name} = {json.dumps(value, ensure_ascii=False)}"
