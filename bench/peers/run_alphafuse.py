"""This package's SASRec for ``sasrec.py``."""

from __future__ import annotations

import dataclasses
import sys
import tempfile
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for what benchmarks share
from peers import child

import alphafuse_ext as af
from alphafuse_ext.runs.assembly import rebuild_model

LOSSES = {"softmax": "cross_entropy", "sampled": "sampled_softmax"}


def main() -> None:
    """Train, rank, report."""
    wanted = child.settings(__doc__)
    torch.set_num_threads(wanted["threads"])
    folder = Path(wanted["data"]) / wanted["dataset"]
    stem = folder / folder.name
    config = af.Config(
        item_embedding=wanted["item_embedding"],
        dim=wanted["dim"],
        history=wanted["history"],
        dropout=wanted["dropout"],
        loss=LOSSES[wanted["loss"]],
        negatives=wanted["negatives"] if wanted["loss"] == "sampled" else None,
        batch_size=wanted["batch_size"],
        learning_rate=wanted["learning_rate"],
        epochs=wanted["epochs"],
        patience=wanted["epochs"],
        seed=wanted["seed"],
        threads=wanted["threads"],
    )
    with tempfile.TemporaryDirectory() as scratch:
        trained = af.fit(
            f"{stem}.inter",
            f"{stem}.item",
            folder / "minilm-l6.npy",
            Path(scratch) / "run",
            log=lambda line: None,
            **config.to_dict(),
        )
        run, clicks = trained.run, trained.interactions
        seconds = [line["train_seconds"] for line in run.epochs()]
        # The last epoch, as the others have it: not the one that validation selects.
        model = rebuild_model(trained.config, run.model("last")[0])
        read = clicks.sequences.first(clicks.sequences.lengths - 1)
        before = dataclasses.replace(clicks, sequences=read, timestamps=None)
        recommender = af.Recommender(model, trained.config, before, trained.items, run)
        started = time.perf_counter()
        frame = recommender.recommend(k=10)
        ranking_seconds = time.perf_counter() - started
    lists = frame.groupby("user", sort=False)["item"].agg(list).to_dict()
    version = f"alphafuse_ext {af.__version__}"
    notes = "batches by length; ranking: `recommend`"
    child.report(wanted["output"], seconds, ranking_seconds, lists, version, notes)


if __name__ == "__main__":
    main()
