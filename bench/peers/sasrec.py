"""SASRec of RecTools and of RecBole beside this package's: same data, same sizes, same epochs.

    python bench/peers/sasrec.py amazon-industrial --data DATA --environments FOLDER

Each runs in an environment of its own, which is made in ``--environments`` the first time, alone on
the machine and in a process of its own: seconds of an epoch (without validation), of ranking the
catalog for all users, the process's peak memory, and the metrics of the lists after the last epoch,
from the same code for all. All leave seen items out, learn from all but the last two items of a
user and recommend after all but the last. Item IDs alone, but for the row that says otherwise.

Rows are written when they are finished and kept in that folder: an interrupted run resumes there.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import venv
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for what benchmarks share
import report
from measure import (
    RESULTS,
    all_threads,
    commit,
    data_folder,
    device_name,
    existing_folder,
    format_bytes,
    format_seconds,
    positive_int,
)
from peers import child

from alphafuse_ext.files import read_json, write_json

HERE = Path(__file__).resolve().parent
TORCH = f"torch=={torch.__version__.split('+')[0]}"

REQUIREMENTS = {
    "rectools": [TORCH, "rectools[torch]==0.19.0"],
    # RecBole 1.2.1 asks for any NumPy and pandas, and does not start with those of today.
    "recbole": [TORCH, "recbole==1.2.1", "numpy<2", "pandas<2.3", "scipy<1.13"],
}
"""Of each environment; what is not here runs in this one."""


@dataclass(frozen=True)
class Contender:
    """A script, and what it is asked for beside what all are."""

    script: str
    label: str
    options: dict[str, Any] = field(default_factory=dict)


FULL, SAMPLED = {"loss": "softmax"}, {"loss": "sampled"}
IDS = {"item_embedding": "id"}
BY_TORCH, BY_IMPLICIT = {"torch_ranking": True}, {"torch_ranking": False}
CONTENDERS = (
    Contender("alphafuse", "alphafuse_ext, softmax", {**FULL, **IDS}),
    Contender("alphafuse", "alphafuse_ext, sampled softmax", {**SAMPLED, **IDS}),
    Contender(
        "alphafuse", "alphafuse_ext, softmax, AlphaFuse", {**FULL, "item_embedding": "alphafuse"}
    ),
    Contender("rectools", "RecTools, softmax", {**FULL, **BY_TORCH}),
    Contender("rectools", "RecTools, softmax, ranking by implicit", {**FULL, **BY_IMPLICIT}),
    Contender("rectools", "RecTools, sampled softmax", {**SAMPLED, **BY_TORCH}),
    Contender("recbole", "RecBole, softmax", FULL),
)


def interpreter(script: str, environments: Path) -> str:
    """The Python of a contender, its environment made if it is not there."""
    if script not in REQUIREMENTS:
        return sys.executable
    folder = environments / script
    python = folder / "bin" / "python"
    ready = folder / "ready"
    if not ready.exists():
        venv.create(folder, with_pip=True, clear=True)
        install = [str(python), "-m", "pip", "install", "--quiet", *REQUIREMENTS[script]]
        subprocess.run(install, check=True)
        ready.touch()
    return str(python)


def run(contender: Contender, shared: dict[str, Any], environments: Path) -> dict[str, Any]:
    """One contender's figures.

    Raises:
        subprocess.CalledProcessError: it failed; its own words were printed.
    """
    with tempfile.TemporaryDirectory() as scratch:
        output = Path(scratch) / "result.json"
        wanted = {**shared, **contender.options, "output": str(output)}
        script = HERE / f"run_{contender.script}.py"
        command = [interpreter(contender.script, environments), str(script), json.dumps(wanted)]
        environment = {**os.environ, "OMP_NUM_THREADS": str(shared["threads"])}
        subprocess.run(command, check=True, cwd=scratch, env=environment)
        result: dict[str, Any] = json.loads(output.read_text())
    lists, targets = result.pop("lists"), last_items(shared["data"], shared["dataset"])
    places = [
        lists[user].index(target) if target in lists.get(user, ()) else None
        for user, target in targets.items()
    ]
    hits = [place for place in places if place is not None]
    result["users"] = len(places)
    result["recall@10"] = len(hits) / len(places)
    result["ndcg@10"] = sum(1 / math.log2(place + 2) for place in hits) / len(places)
    result["label"], result["threads"] = contender.label, shared["threads"]
    result["commit"] = commit()
    return result


def last_items(data: str, dataset: str) -> dict[str, str]:
    """The target of each user."""
    return {user: items[-1] for user, items in child.items_of(data, dataset).items()}


def page(results: dict[str, Any]) -> str:
    """The figures as Markdown."""
    rows = []
    for row in results["rows"]:
        seconds = row["epoch_seconds"]
        rows.append(
            [
                row["label"],
                str(row["threads"]),
                format_seconds(statistics.median(seconds)),
                format_seconds(row["ranking_seconds"]),
                format_bytes(row["peak_bytes"]),
                f"{row['ndcg@10']:.4f}",
                f"{row['recall@10']:.4f}",
            ]
        )
    header = ["SASRec", "threads", "epoch", "ranking", "peak memory", "NDCG@10", "Recall@10"]
    packages = {row["package"]: None for row in results["rows"]}
    commits = {row["commit"]: None for row in results["rows"] if "alphafuse" in row["label"]}
    notes = {f"{row['package']}: {row['notes']}": None for row in results["rows"]}
    facts = {
        "machine": results["machine"],
        "commit of our rows": ", ".join(commits),
        "torch": TORCH,
        "packages": ", ".join(packages),
        "sizes": results["sizes"],
    }
    body = [
        "epoch: median of its epochs, training alone; ranking: all users, whole catalog, k 10; "
        "peak memory: of the process, its libraries included; metrics: after the last epoch, one "
        "seed, seen items excluded.",
        "",
        *report.table(header, rows),
        "",
        *(f"- {note}" for note in notes),
    ]
    return report.page(
        f"SASRec of three packages on {results['dataset']}", results["command"], facts, body
    )


def main() -> None:
    """Run what has not run, and write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("dataset", help="folder below --data: amazon-beauty, amazon-industrial")
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--environments", type=Path, required=True, help="the peers' environments")
    parser.add_argument("--threads", nargs="+", type=positive_int, default=[1, all_threads()])
    parser.add_argument("--epochs", type=positive_int, default=5)
    parser.add_argument(
        "--only", metavar="TEXT", default="", help="contenders with this in the name"
    )
    parser.add_argument(
        "--output", type=existing_folder, default=RESULTS, help="folder of the table"
    )
    options = parser.parse_args()
    data_folder(parser, options)
    sizes = {
        "epochs": options.epochs,
        "dim": 128,
        "history": 50,
        "dropout": 0.2,
        "negatives": 256,
        "batch_size": 128,
        "learning_rate": 1e-3,
        "seed": 0,
    }
    options.environments.mkdir(parents=True, exist_ok=True)
    record = options.environments / f"{options.dataset}.json"
    results: dict[str, Any] = {"sizes": sizes, "rows": []}
    if record.exists():
        kept = read_json(record)
        if kept["sizes"] == sizes and kept["machine"] == device_name(torch.device("cpu")):
            results = kept
    results |= {
        "dataset": options.dataset,
        "machine": device_name(torch.device("cpu")),
        "command": report.command(),
    }
    for threads in options.threads:
        for contender in CONTENDERS:
            done = {(row["label"], row["threads"]) for row in results["rows"]}
            if (contender.label, threads) in done or options.only not in contender.label:
                continue
            where = {"data": str(options.data.resolve()), "dataset": options.dataset}
            shared = {**sizes, **where, "threads": threads}
            results["rows"].append(run(contender, shared, options.environments.resolve()))
            write_json(record, results)
            report.write(options.output / f"peers-{options.dataset}.md", page(results))


if __name__ == "__main__":
    main()
