"""Ranking quality on real data: AlphaFuse beside ID-only and LLMInit, one trainer for all.

    python bench/accuracy.py amazon-beauty --data DATA --output bench/results

Every method has the same budget of trials: the settings in ``TRIALS``, one run each with seed 0, of
which validation NDCG@20 picks one; that one is then run with two more seeds. Test metrics are
those of the epoch that validation selected. A run that has finished in ``--runs`` is not repeated,
so an interrupted benchmark goes on where it stopped; ``--finished`` tabulates what there is.
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
    """Train, unless the run folder has its results already; returns ``results.json``.

    Where only ``finished`` runs are wanted, nothing is trained: ``None`` for the others.
    """
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
    dataset: Path, runs: Path, jobs: int, threads: int, seeds: int, finished: bool
) -> dict[str, Any]:
    """Trials, then the chosen settings with every seed; all trials must have finished."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context) as pool:

        def submit(job: Job) -> Any:
            return pool.submit(run, job, dataset, runs, threads, finished)

        trials = {
            method: [submit(Job(method, trial, 0)) for trial in range(len(TRIALS[method]))]
            for method in METHODS
        }
        chosen, tried, repeats = {}, {}, {}
        for method, futures in trials.items():
            tried[method] = [future.result() for future in futures]
            scores = [result["validation"][SELECT] for result in tried[method]]
            chosen[method] = scores.index(max(scores))
            print(f"{method}: validation {SELECT} {scores} -> trial {chosen[method]}", flush=True)
            repeats[method] = [submit(Job(method, chosen[method], s)) for s in range(1, seeds)]
        found = {
            method: [
                tried[method][chosen[method]],
                *(future.result() for future in repeats[method] if future.result()),
            ]
            for method in METHODS
        }
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
        f"Machine: {machine}",
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
    outcome = benchmark(
        dataset, runs, options.jobs, options.threads, options.seeds, options.finished
    )
    command = f"python bench/accuracy.py {options.dataset} --data DATA --jobs {options.jobs} " \
              f"--threads {options.threads}"  # fmt: skip
    machine = f"{_processor()}, {options.jobs} runs at a time with {options.threads} thread(s) each"
    text = table(dataset, outcome, command, machine)
    print(text)
    if options.output is not None:
        stem = options.output / f"accuracy-{options.dataset}"
        stem.with_suffix(".md").write_text(text)
        facts = {"command": command, "machine": machine, "commit": _commit(), **outcome}
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
