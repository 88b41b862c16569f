"""RecBole's `full_sort_topk` beside ours, for its own SASRec: seconds, memory, equal lists.

    VENV/bin/python bench/peers/recbole_ranking.py --items 100000 --users 5000 --batch 100

Runs where RecBole is installed (`pip install '.[recbole]'`). The data are drawn at random, each
item once at least; the model is as it was initialized: neither matters to the cost. Each contender
is a process of its own, which makes the same data and model; its seconds are those of the calls
alone, its memory what the calls added to the highest that the process had reached.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for what benchmarks share
import report
from measure import add_counts, existing_folder, machine_facts
from optional import need

CONTENDERS = ("RecBole", "alphafuse_ext")
K = 10


def write_data(folder: Path, users: int, items: int) -> None:
    """An atomic file in which every item occurs, and every user has five items or more."""
    generator = np.random.default_rng(0)
    length = max(5, -(-items // users))
    clicks = np.concatenate(
        [generator.permutation(items), generator.integers(0, items, users * length)]
    )[: users * length]
    frame = pd.DataFrame(
        {
            "user_id:token": np.repeat(np.arange(users), length),
            "item_id:token": clicks,
            "timestamp:float": np.tile(np.arange(length), users),
        }
    )
    (folder / "random").mkdir()
    frame.to_csv(folder / "random" / "random.inter", sep="\t", index=False)


def measure(contender: str, folder: Path, batch: int, threads: int) -> dict[str, Any]:
    """Rank every user with one of the two."""
    from recbole.config import Config
    from recbole.data import create_dataset, data_preparation
    from recbole.utils import get_model, init_seed
    from recbole.utils.case_study import full_sort_topk as their_topk

    from alphafuse_ext.integrations.recbole import full_sort_topk

    sys.argv = sys.argv[:1]  # RecBole reads it too
    torch.set_num_threads(threads)
    options = {
        "data_path": str(folder),
        "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
        "MAX_ITEM_LIST_LENGTH": 20,
        "train_neg_sample_args": None,
        "eval_args": {"split": {"LS": "valid_and_test"}, "order": "TO", "mode": "full"},
        "use_gpu": False,
        "state": "ERROR",
    }
    config = Config(model="SASRec", dataset="random", config_dict=options)
    init_seed(0, True)
    train, _, test = data_preparation(config, create_dataset(config))
    model = get_model("SASRec")(config, train.dataset).eval()
    users = np.unique(test.dataset.inter_feat["user_id"].numpy())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    if contender == "RecBole":
        with torch.no_grad():
            parts = [
                their_topk(users[start : start + batch], model, test, K)[1]
                for start in range(0, len(users), batch)
            ]
        found = torch.cat(parts)
    else:
        found = full_sort_topk(users, model, test, K, batch_size=batch)[1]
    seconds = time.perf_counter() - started
    added = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return {
        "users": len(users),
        "items": model.n_items - 1,
        "seconds": seconds,
        "added_bytes": added * 1024,
        "lists": found.tolist(),
    }


def main() -> None:
    """Run both by turns, check that lists are equal, write the page."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add_counts(
        parser,
        ("--items", 100_000, "items in the catalog"),
        ("--users", 5_000, "users, all of whom are ranked for"),
        ("--batch", 100, "users of one call"),
        ("--threads", 2, "CPU threads"),
        ("--rounds", 3, "times that each of the two runs"),
    )
    parser.add_argument(
        "--output", type=existing_folder, help="a folder for the page (default: print)"
    )
    parser.add_argument("--measure", choices=CONTENDERS, help=argparse.SUPPRESS)
    parser.add_argument("--data", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    need("recbole")
    if options.measure:
        measured = measure(options.measure, options.data, options.batch, options.threads)
        (options.data / "found.json").write_text(json.dumps(measured))
        return
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in CONTENDERS}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_data(folder, options.users, options.items)
        flags = ["--batch", str(options.batch), "--threads", str(options.threads)]
        for _ in range(options.rounds):
            for name in CONTENDERS:
                command = [sys.executable, __file__, "--measure", name, "--data", scratch, *flags]
                subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
                results[name].append(json.loads((folder / "found.json").read_text()))
    theirs, ours = ([one.pop("lists") for one in found] for found in results.values())
    same = float((np.array(theirs[0]) == np.array(ours[0])).mean())
    rows = []
    for name, found in results.items():
        seconds = float(np.median([one["seconds"] for one in found]))
        added = float(np.median([one["added_bytes"] for one in found]))
        rate = found[0]["users"] / seconds
        rows.append((name, f"{seconds:.2f} s", f"{rate:,.0f}", f"{added / 1e6:,.0f} MB"))
    facts = {
        **machine_facts(torch.device("cpu")),
        "threads": options.threads,
        "ranked": f"{results['RecBole'][0]['users']:,} users x {results['RecBole'][0]['items']:,} "
        f"items, {options.batch} at once, k {K}, medians of {options.rounds} by turns",
        "equal places of the lists": f"{same:.4%}",
    }
    header = ("", "seconds", "users/s", "memory added")
    title = "RecBole's SASRec, ranked by RecBole and here"
    page = options.output and options.output / "recbole-ranking.md"
    report.write_page(title, facts, report.table(header, rows), page)


if __name__ == "__main__":
    main()
