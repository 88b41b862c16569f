"""Ranking quality on real data: AlphaFuse beside ID-only and LLMInit, one trainer for all.

    python bench/accuracy.py amazon-beauty --data DATA --output bench/results

Every method has the same budget of trials: the settings in ``TRIALS``, one run each with seed 0, of
which validation NDCG@20 picks one; that one is then run with two more seeds. Test metrics are
those of the epoch that validation selected. A run is not repeated if it has finished in ``--runs``
or if its figures stand in the JSON file below ``--output``, with the commit that made them: an
interrupted benchmark goes on where it stopped. ``--finished`` tabulates what there is. For a fresh
start, move both away.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import platform
import statistics
import subprocess
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
SELECT = "ndcg@20"
REPORTED = ("ndcg@10", "hr@10", "ndcg@20", "hr@20", "mrr@10")


@dataclass(frozen=True)
class Job:
    """One training run."""

    method: str
    trial: int
    seed: int

    @property
    def options(self) -> dict[str, Any]:
        """The settings of the run."""
        return {
            **SHARED, **METHODS[self.method], **TRIALS[self.method][self.trial], "seed": self.seed,
        }  # fmt: skip

    @property
    def name(self) -> str:
        """The run folder's name: it says all that sets the run apart."""
        return "_".join(f"{key}={value}" for key, value in self.options.items())


def run(job: Job, dataset: Path, runs: Path, threads: int, finished: bool) -> dict[str, Any] | None:
    """Train, unless the run folder has its results already; gives ``results.json`` and the commit.

    Where only ``finished`` runs are wanted, nothing is trained: ``None`` for the others.
    """
    results = _results(job, dataset, runs, threads, finished)
    return None if results is None else {"commit": _commit(), **results}


def _results(
    job: Job, dataset: Path, runs: Path, threads: int, finished: bool
) -> dict[str, Any] | None:
    import alphafuse_ext as af

    folder = runs / job.name
    log = runs / f"{job.name}.log"
    runs.mkdir(parents=True, exist_ok=True)

    def say(line: str) -> None:
        with log.open("a") as file:
            file.write(line + "\n")

    if (folder / "results.json").exists():
        return af.RunFolder(folder).results()
    if finished:
        return None
    if folder.exists():
        return af.resume(folder, log=say).run.results()
    recommender = af.fit(
        dataset / f"{dataset.name}.inter",
        dataset / f"{dataset.name}.item",
        dataset / "minilm-l6.npy",
        folder,
        log=say,
        threads=threads,
        **job.options,
    )
    return recommender.run.results()


def benchmark(
    dataset: Path,
    runs: Path,
    recorded: dict[str, Any],
    jobs: int,
    threads: int,
    seeds: int,
    finished: bool,
) -> dict[str, Any]:
    """Trials, then the chosen settings with every seed; all trials must have finished.

    ``recorded`` maps a run's name to its results; those found are added to it.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context) as pool:

        def submit(job: Job) -> Any:
            if job.name in recorded:
                return None
            return pool.submit(run, job, dataset, runs, threads, finished)

        def collect(jobs: list[Job], futures: list[Any]) -> list[dict[str, Any]]:
            for job, future in zip(jobs, futures, strict=True):
                if future is not None and future.result() is not None:
                    recorded[job.name] = future.result()
            return [recorded[job.name] for job in jobs if job.name in recorded]

        trials = {m: [Job(m, trial, 0) for trial in range(len(TRIALS[m]))] for m in METHODS}
        running = {m: [submit(job) for job in trials[m]] for m in METHODS}
        chosen, tried, repeats = {}, {}, {}
        for method, jobs_ in trials.items():
            tried[method] = collect(jobs_, running[method])
            scores = [result["validation"][SELECT] for result in tried[method]]
            chosen[method] = scores.index(max(scores))
            print(f"{method}: validation {SELECT} {scores} -> trial {chosen[method]}", flush=True)
            repeats[method] = [Job(method, chosen[method], seed) for seed in range(seeds)]
            running[method] = [submit(job) for job in repeats[method]]
        found = {method: collect(repeats[method], running[method]) for method in METHODS}
    return {"chosen": chosen, "trials": tried, "results": found}


def table(dataset: Path, outcome: dict[str, Any], command: str, machine: str) -> str:
    """The outcome as Markdown."""
    popularity = next(iter(outcome["results"].values()))[0]["popularity"]
    examples = next(iter(outcome["results"].values()))[0]["examples"]
    lines = [
        f"# {dataset.name}: leave-one-out, whole catalog, seen items excluded",
        "",
        f"Test metrics of {examples} users at the epoch that validation {SELECT} selected, mean ± "
        "standard deviation over the seeds. HR equals Recall: one target each.",
        "",
        f"Command: `{command}`",
        "",
        f"Machine: {machine}. Runs share it with each other and with other work: their seconds do "
        "not measure speed.",
        "",
        "| item embedding | seeds | "
        + " | ".join(m.upper() for m in REPORTED)
        + " | validation NDCG@10 | best epoch | s / epoch | s / validation |"
        + " trainable parameters |",
        "|---" * (len(REPORTED) + 7) + "|",
    ]
    for method, results in outcome["results"].items():
        cells = [_spread([r["test"][name] for r in results]) for name in REPORTED]
        cells.append(_spread([r["validation"]["ndcg@10"] for r in results]))
        cells.append(", ".join(str(r["best_epoch"]) for r in results))
        for key in ("seconds_per_epoch", "seconds_per_validation"):
            cells.append(f"{statistics.median(r[key] for r in results):.1f}")
        cells.append(f"{results[0]['trainable_parameters']:,}")
        lines.append(f"| {method} | {len(results)} | " + " | ".join(cells) + " |")
    cells = [f"{popularity[name]:.4f}" for name in REPORTED] + [""] * 5
    lines.append("| popularity | | " + " | ".join(cells) + " |")
    shared = ", ".join(f"`{key}={value}`" for key, value in SHARED.items())
    lines += ["", f"Trials, one seed each; shared: {shared}, else the defaults:", "",
              "| item embedding | settings | validation NDCG@20 | test NDCG@10 | chosen |",
              "|---|---|---|---|---|"]  # fmt: skip
    for method, trials in outcome["trials"].items():
        for number, result in enumerate(trials):
            settings = {**METHODS[method], **TRIALS[method][number]}
            text = ", ".join(f"`{key}={value}`" for key, value in settings.items())
            mark = "yes" if outcome["chosen"][method] == number else ""
            lines.append(
                f"| {method} | {text} | {result['validation'][SELECT]:.4f} | "
                f"{result['test']['ndcg@10']:.4f} | {mark} |"
            )
    return "\n".join(lines) + "\n"


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
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time")
    parser.add_argument("--threads", type=int, default=1, help="threads of each")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--finished", action="store_true", help="train nothing: tabulate the runs that have ended"
    )
    options = parser.parse_args()
    dataset = options.data / options.dataset
    if not dataset.is_dir():
        parser.error(f"dataset: got {dataset}, which is no folder; expected one below --data")
    runs = options.runs / options.dataset
    if options.output is not None:
        options.output.mkdir(parents=True, exist_ok=True)
    stem = None if options.output is None else options.output / f"accuracy-{options.dataset}"
    recorded: dict[str, Any] = {}
    if stem is not None and stem.with_suffix(".json").exists():
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
    command = f"python bench/accuracy.py {options.dataset} --data DATA --jobs {options.jobs} " \
              f"--threads {options.threads}"  # fmt: skip
    machine = f"{_processor()}, {options.jobs} runs at a time with {options.threads} thread(s) each"
    text = table(dataset, outcome, command, machine)
    print(text)
    if stem is not None:
        stem.with_suffix(".md").write_text(text)
        facts = {"command": command, "machine": machine, "runs": recorded}
        stem.with_suffix(".json").write_text(json.dumps(facts, indent=1) + "\n")


def _processor() -> str:
    if Path("/proc/cpuinfo").exists():
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":")[1].strip()
    return platform.processor() or platform.machine()


def _commit() -> str:
    done = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


if __name__ == "__main__":
    main()
