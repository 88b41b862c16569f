"""Ranking quality on real data: AlphaFuse beside ID-only and LLMInit, one trainer for all.

    python bench/accuracy.py amazon-beauty --data DATA --output bench/results

Every method has the same budget of trials: the settings in ``TRIALS``, one run each with seed 0, of
which validation NDCG@20 picks one; that one is then run with two more seeds. Test metrics are
those of the epoch that validation selected.

A run is not repeated if it has finished in ``--runs``, or if its figures stand in the JSON file
below ``--output``: an interrupted benchmark goes on where it stopped. Figures stand there with
their whole configuration, defaults filled in, and with the commit that made them; those of any
other configuration, or of none, stay in the file and are not used. ``--finished`` tabulates what
there is. For a fresh start, move both away.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import re
import statistics
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import report
import torch
from measure import commit, machine_facts, positive_int

import alphafuse_ext as af

# Shared by all methods; the rest are the defaults of alphafuse_ext.Config.
SHARED: dict[str, Any] = {"dim": 128, "epochs": 60, "patience": 5}

METHODS: dict[str, dict[str, Any]] = {
    "AlphaFuse, add": {"fusion": "add"},
    "LLMInit": {"item_embedding": "llminit"},
    "ID only": {"item_embedding": "id"},
    "AlphaFuse, concat": {"fusion": "concat"},  # last: it takes the most epochs
}

TRIALS: dict[str, list[dict[str, Any]]] = {
    "AlphaFuse, add": [
        {"null_dim": 120, "standardize": True, "semantic_rms": 0.15, "dropout": 0.4},
        {"null_dim": 120, "standardize": True, "semantic_rms": 0.1, "dropout": 0.5},
        {"null_dim": 96, "standardize": True, "semantic_rms": 0.15, "dropout": 0.4},
    ],
    "AlphaFuse, concat": [
        {"null_dim": 64, "standardize": True, "semantic_rms": 0.15, "dropout": 0.4},
        {"null_dim": 64, "standardize": True, "semantic_rms": 0.3, "dropout": 0.3},
        {"null_dim": 64, "standardize": False, "semantic_rms": 0.3, "dropout": 0.3},
    ],
    "LLMInit": [
        {"standardize": True, "semantic_rms": 0.15, "dropout": 0.4},
        {"standardize": True, "semantic_rms": 0.1, "dropout": 0.5},
        {"standardize": False, "semantic_rms": 0.15, "dropout": 0.4},
    ],
    "ID only": [
        {"dropout": 0.4},
        {"dropout": 0.5},
        {"dropout": 0.3},
    ],
}
EMBEDDINGS = "minilm-l6.npy"
SELECT = "ndcg@20"
REPORTED = ("ndcg@10", "hr@10", "ndcg@20", "hr@20", "mrr@10")


Figures = dict[str, Any]
"""Of one run: the ``results.json`` of its folder, with its configuration and commit."""


@dataclass(frozen=True)
class Job:
    """One training run.

    Attributes:
        method, trial: which of ``METHODS`` and of its ``TRIALS``.
        config: the whole configuration, defaults filled in.
    """

    method: str
    trial: int
    config: af.Config

    @classmethod
    def of(cls, method: str, trial: int, seed: int, embedding_dim: int) -> Job:
        """The job of a trial with one seed."""
        options = {**SHARED, **METHODS[method], **TRIALS[method][trial], "seed": seed}
        return cls(method, trial, af.Config.from_dict(options).resolve(embedding_dim))

    @property
    def name(self) -> str:
        """The run folder's name, another one for any other configuration."""
        method = re.sub(r"[^a-z]+", "-", self.method.lower())
        digest = hashlib.sha256(json.dumps(self.config.to_dict()).encode()).hexdigest()
        return f"{method}-trial{self.trial}-seed{self.config.seed}-{digest[:12]}"


def run(job: Job, dataset: Path, runs: Path, threads: int, finished: bool) -> Figures | None:
    """Train, unless the run folder has its results already.

    Where only ``finished`` runs are wanted, nothing is trained: ``None`` for the others.
    """
    folder = runs / job.name
    log = runs / f"{job.name}.log"
    runs.mkdir(parents=True, exist_ok=True)

    def say(line: str) -> None:
        with log.open("a") as file:
            file.write(line + "\n")

    if (folder / "results.json").exists():
        results = af.RunFolder(folder).results()
    elif finished:
        return None
    elif folder.exists():
        results = af.resume(folder, log=say).run.results()
    else:
        options = {**job.config.to_dict(), "threads": threads}
        af.fit(
            dataset / f"{dataset.name}.inter",
            dataset / f"{dataset.name}.item",
            dataset / EMBEDDINGS,
            folder,
            log=say,
            **options,
        )
        results = af.RunFolder(folder).results()
    return {"config": job.config.to_dict(), "commit": commit(), **results}


def usable(recorded: dict[str, Figures], job: Job) -> bool:
    """Whether the figures of a job stand in the record."""
    return recorded.get(job.name, {}).get("config") == job.config.to_dict()


def benchmark(
    dataset: Path,
    runs: Path,
    recorded: dict[str, Figures],
    jobs: int,
    threads: int,
    seeds: int,
    finished: bool,
) -> dict[str, Any]:
    """Trials, then the chosen settings with every seed.

    ``recorded`` maps a run's name to its figures; those found are added to it.

    Raises:
        SystemExit: only finished runs are wanted, and a method has none.
    """
    embedding_dim = np.load(dataset / EMBEDDINGS, mmap_mode="r").shape[1]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context) as pool:

        def submit(job: Job) -> Any:
            if usable(recorded, job):
                return None
            return pool.submit(run, job, dataset, runs, threads, finished)

        def collect(jobs: list[Job], futures: list[Any]) -> list[tuple[Job, Figures]]:
            for job, future in zip(jobs, futures, strict=True):
                if future is not None and future.result() is not None:
                    recorded[job.name] = future.result()
            return [(job, recorded[job.name]) for job in jobs if usable(recorded, job)]

        trials = {
            method: [Job.of(method, trial, 0, embedding_dim) for trial in range(len(settings))]
            for method, settings in TRIALS.items()
        }
        running = {method: [submit(job) for job in trials[method]] for method in METHODS}
        chosen, tried, repeats = {}, {}, {}
        for method in METHODS:
            tried[method] = collect(trials[method], running[method])
            if not tried[method]:
                raise SystemExit(f"{method}: no run with today's settings has finished")
            scores = [figures["validation"][SELECT] for _, figures in tried[method]]
            chosen[method] = tried[method][scores.index(max(scores))][0].trial
            print(f"{method}: validation {SELECT} {scores} -> trial {chosen[method]}", flush=True)
            repeats[method] = [
                Job.of(method, chosen[method], seed, embedding_dim) for seed in range(seeds)
            ]
            running[method] = [submit(job) for job in repeats[method]]
        found = {method: collect(repeats[method], running[method]) for method in METHODS}
    return {"chosen": chosen, "trials": tried, "results": found}


def page(dataset: Path, outcome: dict[str, Any], machine: dict[str, Any], jobs: int) -> str:
    """The outcome as Markdown."""
    results = {
        method: [figures for _, figures in found] for method, found in outcome["results"].items()
    }
    first = next(iter(results.values()))[0]
    rows = []
    for method, runs in results.items():
        rows.append([method, str(len(runs))])
        rows[-1] += [_spread([figures["test"][name] for figures in runs]) for name in REPORTED]
        rows[-1].append(_spread([figures["validation"]["ndcg@10"] for figures in runs]))
        rows[-1].append(", ".join(str(figures["best_epoch"]) for figures in runs))
        for key in ("seconds_per_epoch", "seconds_per_validation"):
            rows[-1].append(f"{statistics.median(figures[key] for figures in runs):.1f}")
        rows[-1].append(f"{runs[0]['trainable_parameters']:,}")
    popularity = [f"{first['popularity'][name]:.4f}" for name in REPORTED]
    rows.append(["popularity", "", *popularity, *[""] * 5])

    shared = ", ".join(f"`{key}={value}`" for key, value in SHARED.items())
    trials = []
    for method, tried in outcome["trials"].items():
        for job, figures in tried:
            settings = {**METHODS[method], **TRIALS[method][job.trial]}
            text = ", ".join(f"`{key}={value}`" for key, value in settings.items())
            mark = "yes" if outcome["chosen"][method] == job.trial else ""
            scores = figures["validation"][SELECT], figures["test"]["ndcg@10"]
            trials.append([method, text, *(f"{score:.4f}" for score in scores), mark])
    measured = ["item embedding", "seeds", *(name.upper() for name in REPORTED)]
    measured += ["validation NDCG@10", "best epoch", "s / epoch", "s / validation"]
    body = [
        f"Test metrics of {first['examples']} users at the epoch that validation {SELECT} "
        "selected, mean ± standard deviation over the seeds. HR equals Recall: one target each. "
        f"{jobs} runs at a time share the machine: their seconds do not measure speed.",
        "",
        *report.table([*measured, "trainable parameters"], rows),
        "",
        f"Trials, one seed each; shared: {shared}, else the defaults:",
        "",
        *report.table(
            ["item embedding", "settings", "validation NDCG@20", "test NDCG@10", "chosen"],
            trials,
            left=2,
        ),
    ]
    title = f"{dataset.name}: leave-one-out, whole catalog, seen items excluded"
    return report.page(title, report.command(), machine, body)


def _spread(values: list[float]) -> str:
    if len(values) == 1:
        return f"{values[0]:.4f}"
    return f"{statistics.mean(values):.4f} ± {statistics.stdev(values):.4f}"


def main() -> None:
    """Run the benchmark and write its table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("dataset", help="folder below --data: amazon-beauty, amazon-industrial")
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--runs", type=Path, default=Path("runs/accuracy"), help="run folders")
    parser.add_argument("--output", type=Path, help="folder for the table and its figures as JSON")
    parser.add_argument("--jobs", type=positive_int, default=2, help="runs at a time")
    parser.add_argument("--threads", type=positive_int, default=1, help="threads of each")
    parser.add_argument("--seeds", type=positive_int, default=3)
    parser.add_argument(
        "--finished", action="store_true", help="train nothing: tabulate the runs that have ended"
    )
    options = parser.parse_args()
    dataset = options.data / options.dataset
    if not dataset.is_dir():
        parser.error(f"dataset: got {dataset}, which is no folder; expected one below --data")
    runs = options.runs / options.dataset
    torch.set_num_threads(options.threads)
    recorded: dict[str, Figures] = {}
    stem = None
    if options.output is not None:
        options.output.mkdir(parents=True, exist_ok=True)
        stem = options.output / f"accuracy-{options.dataset}"
        if stem.with_suffix(".json").exists():
            recorded = json.loads(stem.with_suffix(".json").read_text())["runs"]
    outcome = benchmark(
        dataset,
        runs,
        recorded,
        options.jobs,
        options.threads,
        options.seeds,
        options.finished,
    )
    used = {
        job.name
        for part in (outcome["trials"], outcome["results"])
        for found in part.values()
        for job, _ in found
    }
    if unused := len(recorded.keys() - used):
        print(f"{unused} runs on record are of other configurations: kept, not used")
    machine = machine_facts(torch.device("cpu"))
    text = page(dataset, outcome, machine, options.jobs)
    print(text)
    if stem is not None:
        facts = {"command": report.command(), "machine": machine, "runs": recorded}
        report.write(stem, facts, text)


if __name__ == "__main__":
    main()
