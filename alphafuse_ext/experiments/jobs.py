"""Training runs in separate processes, recorded when they end."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event, Lock
from typing import Any

import numpy as np
import numpy.typing as npt

from alphafuse_ext.config import Config
from alphafuse_ext.files import atomic_path, read_json, write_json
from alphafuse_ext.logs import Log
from alphafuse_ext.training.progress import duration

Figures = dict[str, Any]
"""Of a run: ``dataset``, ``method``, ``content`` and ``config`` of its :class:`Job`, and the output
of its process (see :mod:`alphafuse_ext.experiments.worker`); or ``error`` instead."""

RANKS = ".ranks.parquet"
"""Behind the name of a run: users, targets and exact ranks of its test examples."""
_SHOWN_RANKS = 255
"""Ranks of targets are stored in a byte; this value stands for all larger ranks."""
_LONGEST_LABEL = 120
"""Maximum length of the label in a run folder's name; file systems allow 255 characters."""
_WATCHED_EVERY = 1.0
_PATIENCE = 10.0
"""Seconds between polls, and until a terminated process is killed."""
_WORKER = ("-m", "alphafuse_ext.experiments.worker")


@dataclass(frozen=True)
class Job:
    """One training run.

    Attributes:
        dataset, method: what it belongs to.
        sources: arguments of :func:`alphafuse_ext.fit` that name the data.
        config: resolved.
        content: a digest of what the data holds, wherever it lies.
        seen: of the files among the sources that this is a digest of, :func:`state_of` each.
    """

    dataset: str
    method: str
    sources: dict[str, Any]
    config: Config
    content: str
    seen: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Name of its folder and record, unique for configuration and data."""
        described = [self.content, {**self.config.to_dict(), "threads": None}]
        digest = hashlib.sha256(json.dumps(described).encode()).hexdigest()[:12]
        label = re.sub(r"[^a-z0-9]+", "-", f"{self.dataset} {self.method}".lower()).strip("-")
        return f"{label[:_LONGEST_LABEL]}-seed{self.config.seed}-{digest}"


def state_of(path: str | os.PathLike[str]) -> list[tuple[str, int, int]]:
    """Size and modification time of a file, or of all files of a folder."""
    whole = Path(path)
    found = []
    for file in sorted(whole.rglob("*")) if whole.is_dir() else [whole]:
        if file.is_file():
            facts = file.stat()
            found.append((str(file), facts.st_size, facts.st_mtime_ns))
    return found


class Record:
    """Results of finished runs by name, in one JSON file.

    Settings that did not exist when a run was recorded have their defaults; changing a default
    changes the names of runs. Results that this version cannot read stay in the file.

    Args:
        path: the file; made with the first run.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        found = read_json(path)["runs"] if path.exists() else {}
        self.runs: dict[str, Figures] = dict(_with_later_settings(*one) for one in found.items())

    def results(self, job: Job) -> Figures | None:
        """The results of a successful job."""
        found = self.runs.get(job.name)
        return None if found is None or "error" in found else found

    def failure(self, job: Job) -> str | None:
        """Why a job failed when it was last tried."""
        return self.runs.get(job.name, {}).get("error")

    def add(self, job: Job, figures: Figures) -> None:
        """Add results, and write the file."""
        self.runs[job.name] = figures
        # One line per run, for readable diffs under version control.
        lines = [
            f"{json.dumps(name)}: {json.dumps(run, allow_nan=False)}"
            for name, run in sorted(self.runs.items())
        ]
        with atomic_path(self.path) as temporary:
            Path(temporary).write_text('{"runs": {\n' + ",\n".join(lines) + "\n}}\n")


def _with_later_settings(name: str, figures: Figures) -> tuple[str, Figures]:
    try:
        config = Config.from_record(figures["config"])
    except (KeyError, TypeError, ValueError):  # of a setting that is no more
        return name, figures
    job = Job(figures["dataset"], figures["method"], {}, config, figures["content"])
    return job.name, {**figures, "config": config.to_dict()}


class Countdown:
    """Progress lines with the number of finished runs, and an estimate of the time left.

    Args:
        total: runs to come, as far as is known; may be set anew.
        processes: runs at a time.
    """

    def __init__(self, total: int, processes: int) -> None:
        self.total, self.ended = total, 0
        self._processes = processes
        self._seconds: list[float] = []
        self._lock = Lock()

    def line(self, label: str, said: str, seconds: float | None) -> str:
        """Of a run that has ended.

        Args:
            label: which it is.
            said: what it found.
            seconds: what it took; ``None``: not known, as of one that failed.
        """
        with self._lock:
            self.ended += 1
            left = self.total - self.ended
            if seconds is not None:
                self._seconds.append(seconds)
            parts = [f"run {self.ended} of {self.total}, {label}: {said}"]
            if seconds is not None:
                parts.append(duration(seconds))
            if left and self._seconds:
                each = sum(self._seconds) / len(self._seconds)
                parts.append(f"about {duration(each * -(-left // self._processes))} left")
            return "; ".join(parts)


def run_jobs(
    jobs: Iterable[Job],
    record: Record,
    runs: Path,
    processes: int,
    threads: int,
    device: str,
    log: Log,
    countdown: Countdown | None = None,
) -> None:
    """Train jobs that are not recorded, and record them; a failed job is recorded with its error.

    Interrupted runs are resumed, and failed ones retried.

    Args:
        jobs: in the order in which they start; one that is named twice runs once.
        record: of what has ended.
        runs: folder of the run folders.
        processes: runs at a time.
        threads: of each.
        device: of the runs.
        log: takes a line for each run that ends.
        countdown: of these runs and others that come after; ``None``: of these alone.
    """
    missing = {job.name: job for job in jobs if record.results(job) is None}
    if countdown is None:
        countdown = Countdown(len(missing), processes)
    runs.mkdir(parents=True, exist_ok=True)
    with waiting(processes) as (pool, ended):
        running: dict[Future[Figures], Job] = {
            pool.submit(run_job, job, runs, threads, device, ended): job for job in missing.values()
        }
        for done in as_completed(running):
            job, figures = running[done], done.result()
            record.add(job, figures)
            log(countdown.line(job.name, _found(job, figures), figures.get("seconds")))


@contextmanager
def waiting(processes: int) -> Iterator[tuple[ThreadPoolExecutor, Event]]:
    """Threads that wait for runs, one for each at a time.

    Yields:
        The threads; and what is set where the body raises, Ctrl-C included: runs that have been
        given it end then, and no other begins.
    """
    ended = Event()
    with ThreadPoolExecutor(processes) as pool:
        try:
            yield pool, ended
        except BaseException:
            ended.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def validation_of(figures: Figures) -> float:
    """The validation metric that selected the epoch, and chooses among trials."""
    return figures["results"]["validation"][figures["config"]["select"]]


def _found(job: Job, figures: Figures) -> str:
    if "error" in figures:
        return f"failed: {figures['error']}"
    epoch = figures["results"]["best_epoch"]
    return f"validation {job.config.select} {validation_of(figures):.4f} at epoch {epoch:g}"


class EndedError(RuntimeError):
    """A run was terminated before it had results."""


def run_job(
    job: Job,
    runs: Path,
    threads: int,
    device: str,
    ended: Event,
    watch: Callable[[Path], bool] | None = None,
) -> Figures:
    """Train in a separate process, with its own memory.

    The process ends when this process ends.

    Args:
        job: what to train.
        runs: folder of its run folder.
        threads: of the process.
        device: where it trains.
        ended: ends the run once it is set.
        watch: called with the run folder about every second; true ends the run, too.

    Raises:
        EndedError: ``ended`` was set.
    """
    labels: Figures = {"dataset": job.dataset, "method": job.method, "content": job.content}
    labels["config"] = job.config.to_dict()
    changed = [name for name, seen in job.seen.items() if state_of(job.sources[name]) != seen]
    if changed:
        said = "written to since they were looked at, as the same command does again"
        return {**labels, "error": f"{', '.join(changed)}: {said}"}
    folder = runs / job.name
    order, figures = folder.with_suffix(".job.json"), folder.with_suffix(".figures.json")
    figures.unlink(missing_ok=True)
    write_json(
        order,
        {
            "folder": str(folder),
            "sources": job.sources,
            "config": {**job.config.to_dict(), "threads": threads},
            "device": device,
            "figures": str(figures),
            "ranks": f"{folder}{RANKS}",
        },
    )
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, *_WORKER, str(order)]
    try:
        if ended.is_set():
            raise EndedError(job.name)
        with (
            open(f"{folder}.log", "a") as log,
            subprocess.Popen(
                command,
                stdin=subprocess.PIPE,  # at whose end it ends
                stdout=log,
                stderr=log,
                env=environment,
                start_new_session=True,  # so that Ctrl-C is for this process alone to act on
            ) as process,
        ):
            status = _wait(process, folder, ended, watch)
        if ended.is_set():
            raise EndedError(job.name)
        if status == 0 and figures.exists():
            return {**labels, **read_json(figures)}
        if status < 0:
            return {**labels, "error": f"killed by signal {-status}, for want of memory?"}
        return {**labels, "error": _last_line(Path(f"{folder}.log"))}
    finally:
        for path in (order, figures):
            path.unlink(missing_ok=True)


def _wait(
    process: subprocess.Popen[bytes],
    folder: Path,
    ended: Event,
    watch: Callable[[Path], bool] | None,
) -> int:
    """The status that a process ends with; it does not outlive whoever waits for it."""
    try:
        while True:
            try:
                return process.wait(_WATCHED_EVERY)
            except subprocess.TimeoutExpired:
                if ended.is_set() or (watch is not None and watch(folder)):
                    break
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(_PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
    return process.wait()


def _last_line(log: Path) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing"


def packed_ranks(ranks: npt.NDArray[np.int64]) -> str:
    """Ranks of targets as text, exact below 255."""
    bytes_ = np.minimum(ranks, _SHOWN_RANKS).astype(np.uint8).tobytes()
    return base64.b64encode(zlib.compress(bytes_, 9)).decode()


def unpacked_ranks(text: str) -> npt.NDArray[np.int64]:
    """The ranks of :func:`packed_ranks`; 255 stands for all larger ones."""
    return np.frombuffer(zlib.decompress(base64.b64decode(text)), np.uint8).astype(np.int64)


def seconds_to_best(epochs: Iterable[Mapping[str, Any]], best_epoch: float) -> float:
    """Training and validation up to the selected epoch."""
    return sum(
        line["train_seconds"] + line["validation_seconds"]
        for line in epochs
        if line["epoch"] <= best_epoch
    )
