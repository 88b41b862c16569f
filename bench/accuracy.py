"""Ranking quality on real data: AlphaFuse beside ID-only and LLMInit, one trainer for all.

    python bench/accuracy.py amazon-beauty --data DATA --output bench/results

Every method has the same budget of trials: the settings in ``TRIALS``, one run each with seed 0, of
which validation NDCG@20 picks one; that one is then run with two more seeds. Test metrics are
those of the epoch that validation selected.

An interrupted benchmark goes on where it stopped, and ``--finished`` tabulates what there is: see
``training_runs.py``. For a fresh start, move the run folders and the table's JSON away.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import report
import torch
from measure import machine_facts
from training_runs import SHARED, Figures, Job, add_options, dataset_of, open_table, train

from alphafuse_ext.experiments.report import spread

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
SELECT = "ndcg@20"
REPORTED = ("ndcg@10", "hr@10", "ndcg@20", "hr@20", "mrr@10")


def trial_job(method: str, trial: int, seed: int, dataset: Path) -> Job:
    """The job of a trial with one seed."""
    options = {**SHARED, **METHODS[method], **TRIALS[method][trial], "seed": seed}
    return Job.of(f"{method} trial{trial}", options, dataset)


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
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context) as pool:

        def submit(job: Job) -> Any:
            if job.recorded(recorded):
                return None
            return pool.submit(train, job, dataset, runs, threads, finished)

        def collect(jobs: list[Job], futures: list[Any]) -> list[tuple[Job, Figures]]:
            for job, future in zip(jobs, futures, strict=True):
                if future is not None and future.result() is not None:
                    recorded[job.name] = future.result()
            return [(job, recorded[job.name]) for job in jobs if job.recorded(recorded)]

        trials = {
            method: [trial_job(method, trial, 0, dataset) for trial in range(len(settings))]
            for method, settings in TRIALS.items()
        }
        running = {method: [submit(job) for job in trials[method]] for method in METHODS}
        chosen, tried, repeats = {}, {}, {}
        for method in METHODS:
            tried[method] = collect(trials[method], running[method])
            if not tried[method]:
                raise SystemExit(f"{method}: no run with today's settings has finished")
            scores = [figures["validation"][SELECT] for _, figures in tried[method]]
            chosen[method] = trials[method].index(tried[method][scores.index(max(scores))][0])
            print(f"{method}: validation {SELECT} {scores} -> trial {chosen[method]}", flush=True)
            repeats[method] = [
                trial_job(method, chosen[method], seed, dataset) for seed in range(seeds)
            ]
            running[method] = [submit(job) for job in repeats[method]]
        found = {method: collect(repeats[method], running[method]) for method in METHODS}
    numbered = {
        method: [(trials[method].index(job), job, figures) for job, figures in tried[method]]
        for method in METHODS
    }
    return {"chosen": chosen, "trials": numbered, "results": found}


def page(dataset: Path, outcome: dict[str, Any], machine: dict[str, Any], jobs: int) -> str:
    """The outcome as Markdown."""
    results = {
        method: [figures for _, figures in found] for method, found in outcome["results"].items()
    }
    first = next(iter(results.values()))[0]
    rows = []
    for method, runs in results.items():
        rows.append([method, str(len(runs))])
        rows[-1] += [spread([figures["test"][name] for figures in runs]) for name in REPORTED]
        rows[-1].append(spread([figures["validation"]["ndcg@10"] for figures in runs]))
        rows[-1].append(", ".join(str(figures["best_epoch"]) for figures in runs))
        for key in ("seconds_per_epoch", "seconds_per_validation"):
            rows[-1].append(f"{statistics.median(figures[key] for figures in runs):.1f}")
        rows[-1].append(f"{runs[0]['trainable_parameters']:,}")
    popularity = [f"{first['popularity'][name]:.4f}" for name in REPORTED]
    rows.append(["popularity", "", *popularity, *[""] * 5])

    shared = ", ".join(f"`{key}={value}`" for key, value in SHARED.items())
    trials = []
    for method, tried in outcome["trials"].items():
        for trial, _, figures in tried:
            settings = {**METHODS[method], **TRIALS[method][trial]}
            text = ", ".join(f"`{key}={value}`" for key, value in settings.items())
            mark = "yes" if outcome["chosen"][method] == trial else ""
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


def main() -> None:
    """Run the benchmark and write its table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    add_options(parser, Path("runs/accuracy"))
    options = parser.parse_args()
    dataset = dataset_of(parser, options)
    runs = options.runs / options.dataset
    torch.set_num_threads(options.threads)
    stem, recorded = open_table(options.output, f"accuracy-{options.dataset}")
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
        for *_, job, _ in found
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
