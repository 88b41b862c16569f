"""Studies on real data, several seeds each: norms, cold start, the long tail, ablations.

    python bench/studies.py norms amazon-industrial --data DATA --output bench/results
    python bench/studies.py cold-start amazon-beauty --data DATA --output bench/results
    python bench/studies.py long-tail amazon-beauty --data DATA --output bench/results
    python bench/studies.py dreamrec amazon-industrial --data DATA --output bench/results
    python bench/studies.py ablations amazon-industrial --data DATA --output bench/results

Settings are those that were chosen on validation under the sampled softmax
(``results/accuracy-notes.md``), and are not tuned again. The table is written anew after every run;
rows that miss seeds are named. An interrupted study goes on where it stopped, and ``--finished``
tabulates what there is: see ``training_runs.py``.
"""

from __future__ import annotations

import argparse
import multiprocessing
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import report
import torch
from measure import data_folder, machine_facts
from training_runs import SHARED, Figures, Job, add_options, open_table, train

from alphafuse_ext.experiments.report import GROUPS, spread

Options = dict[str, Any]

REPORTED = ("ndcg@10", "hr@10", "ndcg@20", "hr@20")


@dataclass(frozen=True)
class Study:
    """Rows of settings under one protocol.

    Attributes:
        title: what is shown.
        rows: options of :class:`alphafuse_ext.Config`, by label.
        shared: options of every row.
        groups: whether to show the groups of a long-tail study.
    """

    title: str
    rows: dict[str, Options]
    shared: Options = field(default_factory=dict)
    groups: bool = False


TWO: dict[str, Options] = {
    "AlphaFuse": {"dropout": 0.4},
    "ID only": {"item_embedding": "id", "dropout": 0.5},
}

NORMS: dict[str, Options] = {
    "pre": {},
    "pre, of the input too": {"embedding_norm": True},
    "post": {"norm": "post"},
    "post, of the input too": {"norm": "post", "embedding_norm": True},
}

STUDIES = {
    "norms": Study(
        "layer norms under full-catalog cross entropy",
        {
            f"{kind}, {label}": {**options, **norms}
            for kind, options in TWO.items()
            for label, norms in NORMS.items()
        },
        {**SHARED, "loss": "cross_entropy"},
    ),
    "cold-start": Study(
        "users nobody has trained on", TWO, {**SHARED, "protocol": "cold-start-users"}
    ),
    "long-tail": Study("head and tail apart", TWO, SHARED, groups=True),
    "dreamrec": Study(
        "DreamRec",
        {
            "AlphaFuse, null space 16 of 64": {"null_dim": 16, "init": "zeros"},
            "frozen, whitened": {"item_embedding": "frozen"},
            "ID only": {"item_embedding": "id"},
        },
        {
            "model": "dreamrec",
            "dim": 64,
            "timesteps": 200,
            "stride": 10,
            "guidance": 2.0,
            "dropout": 0.2,
            "epochs": 80,
            "patience": 15,
        },
    ),
    "ablations": Study(
        "one setting at a time",
        {
            "as it is: add, null space 120 of 128, whitened, rms 0.15": {},
            "not whitened": {"standardize": False},
            "whitened, values left alone": {"semantic_rms": 0.0},
            "not clipped: 384 directions, null space 376": {
                "dim": None,
                "truncate": False,
                "null_dim": 376,
            },
            "concat, 64 + 64": {"fusion": "concat", "null_dim": 64},
            "concat, 120 + 8": {"fusion": "concat", "null_dim": 8},
            "null space 64 of 128": {"null_dim": 64},
            "null space 128 of 128": {"null_dim": 128},
            "null space by threshold: eigenvalues up to 0.003": {"null_threshold": 0.003},
            "mean and covariance by training frequency": {"weights": "frequency"},
            "ID embeddings injected in original coordinates": {"coordinates": "original"},
            "ID embeddings of d_l, projected": {"coordinates": "projected"},
            "from zeros": {"init": "zeros"},
            "from normal(0, 1)": {"init": "normal"},
            "from uniform(0, 1)": {"init": "uniform"},
            "from orthogonal": {"init": "orthogonal"},
            "from Xavier uniform": {"init": "xavier_uniform"},
            "from normal(0, 1), 1% zero": {"init": "sparse"},
            "ID only": {"item_embedding": "id", "dropout": 0.3},
        },
        SHARED,
    ),
}


def jobs_of(study: Study, dataset: Path, seeds: int) -> list[list[Job]]:
    """The jobs of each row, one a seed."""
    return [
        [Job.of(label, {**study.shared, **row, "seed": seed}, dataset) for seed in range(seeds)]
        for label, row in study.rows.items()
    ]


def page(
    title: str, study: Study, rows: list[list[Figures]], seeds: int, machine: dict[str, Any]
) -> str:
    """The finished runs, by row, as Markdown."""
    first = next(runs[0] for runs in rows if runs)
    cells, missing = [], []
    for label, runs in zip(study.rows, rows, strict=True):
        if len(runs) < seeds:
            missing.append(f"{label}: {seeds - len(runs)}")
        if runs:
            cells.append([label, str(len(runs)), *metric_cells(runs)])
    popularity = [first["popularity_by_seen_items"][kind] for kind in ("excluded", "ranked")]
    cells.append(["popularity", "", *(f"{popularity[0][name]:.4f}" for name in REPORTED)])
    cells[-1] += [f"{popularity[1]['ndcg@10']:.4f}", "", ""]
    header = ["", "seeds", *(name.upper() for name in REPORTED), "NDCG@10, seen items ranked"]
    header += ["validation NDCG@20", "best epoch"]
    settings = {"the defaults": "those of `alphafuse_ext.Config`", **study.shared}
    body = [
        f"{first['protocol']}, {first['examples']} examples, the whole catalog ranked, seen items "
        "excluded but where it says ranked. Mean ± standard deviation over the seeds of training; "
        "the epoch was selected by validation NDCG@20. HR equals Recall: one target each.",
        "",
        *report.table(header, cells),
        "",
        *([f"**Seeds that miss**: {'; '.join(missing)}.", ""] if missing else []),
        *(group_tables(study, rows) if study.groups else []),
        "Settings of all rows, beside " + ", ".join(f"{k} {v}" for k, v in settings.items()) + ".",
        "Of each row: "
        + "; ".join(
            f"{label}: {', '.join(f'`{k}={v}`' for k, v in row.items()) or 'nothing more'}"
            for label, row in study.rows.items()
        )
        + ".",
    ]
    return report.page(title, report.command(), machine, body)


def metric_cells(runs: list[Figures]) -> list[str]:
    """The cells of a row of runs."""
    excluded = [run["test_by_seen_items"]["excluded"] for run in runs]
    ranked = [run["test_by_seen_items"]["ranked"] for run in runs]
    return [
        *(spread([metrics[name] for metrics in excluded]) for name in REPORTED),
        spread([metrics["ndcg@10"] for metrics in ranked]),
        spread([run["validation"]["ndcg@20"] for run in runs]),
        ", ".join(str(run["best_epoch"]) for run in runs),
    ]


def group_tables(study: Study, rows: list[list[Figures]]) -> list[str]:
    """NDCG@10 and HR@10 of each group, seen items excluded, and the first row's gain."""
    first = next(runs[0] for runs in rows if runs)
    counts = first["test_groups"]["metrics_by_seen_items"]["excluded"]
    lines = []
    for metric in ("ndcg@10", "hr@10"):
        cells, means = [], []
        for label, runs in zip(study.rows, rows, strict=True):
            if not runs:
                continue
            values = {
                group: [
                    run["test_groups"]["metrics_by_seen_items"]["excluded"][group][metric]
                    for run in runs
                ]
                for group in GROUPS
                if counts[group]["examples"]
            }
            cells.append([label, *(spread(found) for found in values.values())])
            means.append({group: sum(found) / len(found) for group, found in values.items()})
        if len(means) > 1:
            ratios = [means[0][g] / means[-1][g] if means[-1][g] else None for g in means[0]]
            shown = ["" if ratio is None else f"{ratio - 1:+.0%}" for ratio in ratios]
            cells.append([f"gain of {next(iter(study.rows))}", *shown])
        header = [f"{g} ({counts[g]['examples']:,})" for g in GROUPS if counts[g]["examples"]]
        lines += [*report.table([metric.upper(), *header], cells), ""]
    limits = first["test_groups"]
    lines += [
        f"Head users have {limits['head_user_length']} items of history or more, head items "
        f"{limits['head_item_count']} training interactions or more, cold items none; in brackets "
        "the examples of each.",
        "",
    ]
    return lines


def main() -> None:
    """Run a study and write its table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("study", choices=STUDIES)
    add_options(parser, Path("runs/studies"))
    options = parser.parse_args()
    dataset, study = data_folder(parser, options), STUDIES[options.study]
    torch.set_num_threads(options.threads)
    stem, record = open_table(options.output, f"{options.study}-{dataset.name}")
    machine = machine_facts(torch.device("cpu"))
    table = jobs_of(study, dataset, options.seeds)

    def write() -> str:
        rows = [[record[job.name] for job in row if job.recorded(record)] for row in table]
        title = f"{dataset.name}: {study.title}"
        text = page(title, study, rows, options.seeds, machine)
        if stem is not None:
            facts = {"command": report.command(), "machine": machine, "runs": record}
            report.write(stem, facts, text)
        return text

    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.jobs, mp_context=context) as pool:
        running = {
            pool.submit(
                train, job, dataset, options.runs / dataset.name, options.threads, options.finished
            ): job
            for column in zip(*table, strict=True)  # every row's first seed, then the second
            for job in column
            if not job.recorded(record)
        }
        for done in as_completed(running):
            figures = done.result()
            if figures is not None:
                record[running[done].name] = figures
                write()
    if not any(job.recorded(record) for row in table for job in row):
        raise SystemExit("no run with today's settings has finished")
    print(write())


if __name__ == "__main__":
    main()
