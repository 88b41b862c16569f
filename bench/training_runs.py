"""Training runs that tables of accuracy are made of: each trained once, its figures on record.

A run is not repeated if it has finished in its folder, or if its figures stand in the table's JSON
file: an interrupted benchmark goes on where it stopped. Figures stand there with their whole
configuration, defaults filled in, and with the commit that made them; those of any other
configuration, or of none, stay in the file and are not used. Settings that came later are taken to
be at their defaults.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from measure import commit, positive_int

import alphafuse_ext as af

EMBEDDINGS = "minilm-l6.npy"

# What the tables share; the rest are the defaults of alphafuse_ext.Config.
SHARED: dict[str, Any] = {"dim": 128, "epochs": 60, "patience": 5, "loss": "sampled_softmax"}

Figures = dict[str, Any]
"""Of one run: the ``results.json`` of its folder, with its configuration and commit."""


@dataclass(frozen=True)
class Job:
    """One training run.

    Attributes:
        label: what it is called in a table.
        config: the whole configuration, defaults filled in.
    """

    label: str
    config: af.Config

    @classmethod
    def of(cls, label: str, options: dict[str, Any], dataset: Path) -> Job:
        """The job of some options of :class:`alphafuse_ext.Config` on the data of a folder."""
        num_items, embedding_dim = np.load(dataset / EMBEDDINGS, mmap_mode="r").shape
        return cls(label, af.Config.from_dict(options).resolve(embedding_dim, num_items))

    @property
    def name(self) -> str:
        """The run folder's name, another one for any other configuration."""
        label = re.sub(r"[^a-z0-9]+", "-", self.label.lower())
        return f"{label}-seed{self.config.seed}-{_digest(self.config)}"

    def recorded(self, record: dict[str, Figures]) -> bool:
        """Whether the record, figures by run name, holds this job's."""
        return record.get(self.name, {}).get("config") == self.config.to_dict()


def _digest(config: af.Config) -> str:
    return hashlib.sha256(json.dumps(config.to_dict()).encode()).hexdigest()[:12]


def with_later_settings(record: dict[str, Figures]) -> dict[str, Figures]:
    """A record, with settings that came after its runs at their defaults.

    A new setting's default is how things were without it; whoever changes a default, or gives a
    new setting another, makes runs under a new name, and these are not used any more.
    """
    found = {}
    for name, figures in record.items():
        if "config" in figures:
            try:
                config = af.Config.from_record(figures["config"])
            except (TypeError, ValueError):  # of a setting that is no more
                pass
            else:
                name = f"{name.rpartition('-')[0]}-{_digest(config)}"
                figures = {**figures, "config": config.to_dict()}
        found[name] = figures
    return found


def train(job: Job, dataset: Path, runs: Path, threads: int, finished: bool) -> Figures | None:
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


def open_table(output: Path | None, name: str) -> tuple[Path | None, dict[str, Figures]]:
    """Where a table is written, without suffix, and its figures by run name as they stand there.

    Args:
        output: the folder, which is made; ``None``: the table is not written.
        name: of the table.
    """
    if output is None:
        return None, {}
    output.mkdir(parents=True, exist_ok=True)
    stem = output / name
    file = stem.with_suffix(".json")
    runs = json.loads(file.read_text())["runs"] if file.exists() else {}
    return stem, with_later_settings(runs)


def add_options(parser: argparse.ArgumentParser, runs: Path) -> None:
    """The options that every table of runs has; ``runs`` is where its run folders go."""
    parser.add_argument("dataset", help="folder below --data: amazon-beauty, amazon-industrial")
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--runs", type=Path, default=runs, help="run folders")
    parser.add_argument("--output", type=Path, help="folder for the table and its figures as JSON")
    parser.add_argument("--jobs", type=positive_int, default=2, help="runs at a time")
    parser.add_argument("--threads", type=positive_int, default=1, help="threads of each")
    parser.add_argument("--seeds", type=positive_int, default=3)
    parser.add_argument(
        "--finished", action="store_true", help="train nothing: tabulate the runs that have ended"
    )
