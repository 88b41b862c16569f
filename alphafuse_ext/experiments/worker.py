"""The process of one run: ``python -m alphafuse_ext.experiments.worker JOB.json``."""

from __future__ import annotations

import os
import resource
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pandas as pd

from alphafuse_ext.config import Config
from alphafuse_ext.data.ids import storable
from alphafuse_ext.experiments.jobs import packed_ranks, seconds_to_best
from alphafuse_ext.files import atomic_path, read_json, write_json
from alphafuse_ext.runs.run_folder import RunFolder
from alphafuse_ext.serving.recommender import Recommender
from alphafuse_ext.training.train import fit, resume

_KEPT = (
    *("test", "validation", "best_epoch", "epochs", "examples", "seen_items", "protocol"),
    "samples",
    *("popularity", "baselines", "test_by_seen_items", "gains", "neighbors", "model_alone"),
    "lists",
    *("seconds_per_epoch", "seconds_per_validation", "trainable_parameters", "precision"),
)


def main(path: str) -> None:
    """Train or resume a run, and write its results to the job's file."""
    job: dict[str, Any] = read_json(Path(path))
    folder, config = Path(job["folder"]), Config.from_dict(job["config"])
    started = time.perf_counter()
    try:
        if not folder.exists():
            fit(**job["sources"], output=folder, device=job["device"], config=config)
        elif not RunFolder(folder).has("results.json"):
            resume(folder, job["device"], threads=config.threads)
    except (ValueError, TypeError, IndexError, OSError, ImportError, FloatingPointError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        raise SystemExit(2) from error
    recommender = Recommender.load(folder, job["device"])
    run, evaluation = recommender.run, recommender.evaluate_in_detail("test")
    results = run.results()
    kept = {name: results[name] for name in _KEPT if name in results}
    kept["test_groups"] = _of_protocol(results["test_groups"], results["seen_items"])
    ranks = evaluation.ranks_by_seen_items[evaluation.seen_items]
    examples, clicks = recommender.split.test, recommender.interactions
    frame = pd.DataFrame({"user": storable(clicks.users[examples.users])})
    frame["item"], frame["rank"] = storable(clicks.items[examples.targets]), ranks
    with atomic_path(Path(job["ranks"])) as temporary:
        frame.to_parquet(temporary, index=False)
    write_json(
        Path(job["figures"]),
        {
            "results": kept,
            "ranks": packed_ranks(ranks),
            "curve": [[line["epoch"], line["validation"][config.select]] for line in run.epochs()],
            "seconds": time.perf_counter() - started,
            "seconds_to_best": seconds_to_best(run.epochs(), results["best_epoch"]),
            "peak_memory_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
            "environment": run.environment(),
        },
    )


def _of_protocol(groups: dict[str, Any], seen_items: str) -> dict[str, Any]:
    """Metrics by group under the run's own protocol alone."""
    metrics = groups["metrics_by_seen_items"]
    return {**groups, "metrics_by_seen_items": {seen_items: metrics[seen_items]}}


def _end_with_parent() -> None:
    """End when the other end of standard input is gone, as it is once the parent has ended."""
    while os.read(0, 1):
        pass
    os._exit(1)


if __name__ == "__main__":
    threading.Thread(target=_end_with_parent, daemon=True).start()
    main(sys.argv[1])
