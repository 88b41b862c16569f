"""Which defaults learn most in a time: validation after equal seconds of the processor.

    python bench/scale/equal_seconds.py runs/large/SET --seconds 60
    python bench/scale/equal_seconds.py DATA/amazon-beauty --seconds 60

Of a set of ``large.py``, or of a data set with the files that ``bench/training`` reads. Each
setting trains on one thread for so many seconds of the process's own time, so that other work on
the machine counts little, and is then validated on the same users. Settings are those of
:data:`alphafuse_ext.config.large` and some beside them.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for what benchmarks share
import report
from measure import add_counts, existing_folder, machine_facts, positive_float

from alphafuse_ext.config import Config
from alphafuse_ext.data import Dataset
from alphafuse_ext.runs.assembly import build_model, build_split, build_table
from alphafuse_ext.training.trainer import Trainer

SHARED = {"loss": "sampled_softmax", "sparse": True, "negatives_per": "batch"}
PLAIN = {"loss": "sampled_softmax", "negatives": 256, "negatives_per": "sequence"}
SETTINGS: dict[str, dict] = {
    "full catalog, batch 128": {"loss": "cross_entropy", "batch_size": 128},
    "256 a sequence, dense, batch 128": {**PLAIN, "sparse": False, "batch_size": 128},
    "512 shared, batch 128": {**SHARED, "negatives": 512, "batch_size": 128},
    "1024 shared, batch 256": {**SHARED, "negatives": 1024, "batch_size": 256},
    "2048 shared, batch 256": {**SHARED, "negatives": 2048, "batch_size": 256},
    "2048 shared, batch 512": {**SHARED, "negatives": 2048, "batch_size": 512},
    "1024 shared, mixed, batch 256": {
        **{**SHARED, "negatives": 1024, "batch_size": 256},
        "negative_sampling": "mixed",
    },
}


def train(options: argparse.Namespace, data: Dataset, settings: dict) -> tuple[float, float, float]:
    """Validation NDCG@10 and HR@10, and the epochs that were trained in the seconds."""
    given = {"dim": options.dim, "history": options.history, "validation_users": options.users}
    config = Config(**given, epochs=10**6, validate_every=options.steps, **settings)
    split = build_split(config, data.interactions)
    language = data.encoded(0, lambda line: None)
    config = config.resolve(language.rows.shape[1], len(data.items))
    torch.manual_seed(0)
    counts = split.train_item_counts(len(data.items))
    table, _ = build_table(config, len(data.items), language.rows, counts)
    trainer = Trainer(build_model(config, table, counts), split, config)
    measured, trainer._validate = trainer._validate, lambda examples: {}  # type: ignore[method-assign]
    started = time.process_time()
    while time.process_time() - started < options.seconds:
        trainer.run_epoch()
    found = measured(split.validation)
    return found["ndcg@10"], found["hr@10"], trainer.progress.epochs_done


def main() -> None:
    """Train each setting, print or write the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add_counts(
        parser,
        ("--dim", 64, "columns of a fused row"),
        ("--history", 20, "longest history"),
        ("--steps", 10, "between looks at the clock"),
        ("--users", 2_000, "that are validated on"),
    )
    parser.add_argument("data", type=existing_folder)
    parser.add_argument("--seconds", type=positive_float, default=60.0)
    parser.add_argument("--only", nargs="*", help="parts of the names of settings")
    parser.add_argument(
        "--output", type=existing_folder, help="a folder for the page (default: print)"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    name = options.data.name
    files = ("clicks.parquet", "items.parquet", "embeddings.npy")
    if (options.data / f"{name}.inter").exists():
        files = (f"{name}.inter", f"{name}.item", "minilm-l6.npy")
    paths = [str(options.data / file) for file in files]
    data = Dataset.read(*paths, log=lambda line: None)
    rows = []
    for setting, values in SETTINGS.items():
        if options.only and not any(part in setting for part in options.only):
            continue
        ndcg, hits, epochs = train(options, data, values)
        rows.append((setting, f"{epochs:.2f}", f"{ndcg:.4f}", f"{hits:.4f}"))
        print(*rows[-1], flush=True)
    facts = {**machine_facts(torch.device("cpu")), "threads": 1}
    facts["set"] = f"{name}, {len(data.items):,} items, {len(data.interactions):,} clicks"
    body = report.table(("setting", "epochs", "NDCG@10", "HR@10"), rows)
    title = f"Validation after {options.seconds:g} seconds of the processor"
    page = options.output and options.output / f"equal-seconds-{name}.md"
    report.write_page(title, facts, body, page)


if __name__ == "__main__":
    main()
