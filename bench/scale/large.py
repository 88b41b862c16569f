"""Millions of users on one machine: from files to recommendations, by the defaults.

    python bench/scale/large.py --folder DISK --output bench/results

Makes a set by a seed: items of a Zipf distribution in groups, users who stay in a group for some
clicks and go on to the one after it, language embeddings that tell the groups. So there is
something to learn, from clicks and from language. Measured, each a process of its own, in seconds
and peak memory of the process:

- reading the files;
- ``alphafuse train``, an epoch by the defaults, and what of it are training and validation;
- ``alphafuse recommend`` for all users, to Parquet;
- the same shapes in plain PyTorch, ``nn.Embedding(sparse=True)`` and ``torch.optim.SparseAdam``:
  ``--steps`` steps, from which its epoch is computed.

``--parts read train`` measures these alone. RecTools is measured in ``bench/peers``, at sizes that
it can pad; it is not run here.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for what benchmarks share
import report
from measure import (
    add_counts,
    all_threads,
    device_slug,
    existing_folder,
    in_own_process,
    machine_facts,
    run_process,
)

ZIPF = 1.3
IN_A_GROUP = 500  # items, about
OWN = 0.8  # share of a user's clicks in the group where they are
ONWARD = 0.1  # how often a user goes on to the next group
FILES = ("clicks.parquet", "items.parquet", "embeddings.npy")


def make_set(folder: Path, users: int, items: int, clicks: int, width: int, seed: int) -> None:
    """Write interactions, items and their language embeddings; what is there already is kept."""
    import pandas as pd

    if all((folder / name).exists() for name in FILES):
        return
    folder.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(seed)
    groups = max(2, items // IN_A_GROUP)
    group = np.sort(draw.integers(0, groups, items))  # of an item; ids are shuffled below
    weights = np.arange(1, items + 1, dtype=np.float64) ** -ZIPF
    ends = np.concatenate([[0.0], np.cumsum(draw.permutation(weights))])
    first = np.searchsorted(group, np.arange(groups + 1))
    lengths = 3 + draw.poisson(max(0.0, clicks / users - 3), users)
    user = np.repeat(np.arange(users), lengths)
    onward = np.cumsum(draw.random(len(user)) < ONWARD)
    starts = np.cumsum(lengths) - lengths
    place = (draw.integers(0, groups, users) - onward[starts])[user] + onward
    place %= groups
    own = draw.random(len(user)) < OWN
    own &= first[place] < first[place + 1]
    low = np.where(own, ends[first[place]], 0.0)
    high = np.where(own, ends[first[place + 1]], ends[-1])
    item = np.searchsorted(ends, low + draw.random(len(user)) * (high - low), side="right") - 1
    names = draw.permutation(items)
    frame = pd.DataFrame({"user_id": user, "item_id": names[np.minimum(item, items - 1)]})
    frame["timestamp"] = np.arange(len(user)) - starts[user]
    frame.to_parquet(folder / FILES[0], index=False)
    pd.DataFrame({"item_id": np.arange(items)}).to_parquet(folder / FILES[1], index=False)
    rows = np.lib.format.open_memmap(folder / FILES[2], "w+", np.float32, (items, width))
    centers = draw.standard_normal((groups, width), dtype=np.float32)
    falling = (np.arange(1, width + 1) ** -0.5).astype(np.float32)
    of = np.empty(items, np.int64)
    of[names] = group
    for begin in range(0, items, 1 << 16):
        part = of[begin : begin + (1 << 16)]
        noise = draw.standard_normal((len(part), width), dtype=np.float32)
        rows[begin : begin + len(part)] = (centers[part] + noise) * falling
    rows.flush()


# --- in processes of their own --------------------------------------------------------------------


def read(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Interactions, items and embeddings, as training reads them."""
    from alphafuse_ext.data import Dataset

    del options
    data = Dataset.read(*(str(folder / name) for name in FILES), log=lambda line: None)
    return {"clicks": len(data.interactions), "users": data.interactions.num_users}


def pytorch(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Steps of SASRec with a sparse ``nn.Embedding``, and how many an epoch has."""
    import torch
    import torch.nn.functional as F
    from torch import nn

    from alphafuse_ext.config import Config
    from alphafuse_ext.data import NextItemRows, leave_one_out, read_interactions, read_items

    items = read_items(str(folder / FILES[1]))
    split = leave_one_out(read_interactions(str(folder / FILES[0]), items))
    count = len(items)
    config = Config(dim=options.dim, history=options.history).resolve(None, count)
    if config.negatives is None:  # of a catalog that is ranked whole in training
        config = Config(dim=options.dim, history=options.history, negatives=256)
        config = config.resolve(None, count)
    rows = NextItemRows(split.train, options.history, "all")
    order = rows.batches(config.batch_size, np.random.default_rng(0))
    torch.manual_seed(0)
    table = nn.Embedding(count, options.dim, sparse=True)
    nn.init.normal_(table.weight, std=0.02)
    layer = nn.TransformerEncoderLayer(options.dim, 1, options.dim, 0.4, batch_first=True)
    positions = nn.Parameter(torch.zeros(options.history, options.dim))
    optimizers = [
        torch.optim.SparseAdam(table.parameters(), 1e-3),
        torch.optim.Adam([positions, *layer.parameters()], 1e-3),
    ]
    seconds = []
    for index in order[: options.steps + 2]:
        started = time.perf_counter()
        ids, targets = (torch.from_numpy(part) for part in rows.batch(index, count))
        length = ids.shape[1]
        mask = nn.Transformer.generate_square_subsequent_mask(length)
        inside = ids != count
        hidden = table(ids.masked_fill(~inside, 0)) * inside[..., None] + positions[:length]
        hidden = layer(hidden, mask, is_causal=True)
        wanted = targets != count
        queries, targets = hidden[wanted], targets[wanted]
        drawn = torch.randint(count, (config.negatives,))
        negative = queries @ table(drawn).T
        negative = negative.masked_fill(drawn == targets[:, None], -torch.inf)
        positive = (queries * table(targets)).sum(1, keepdim=True)
        scores = torch.cat([positive, negative], 1)
        loss = F.cross_entropy(scores, torch.zeros(len(scores), dtype=torch.int64))
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        seconds.append(time.perf_counter() - started)
    step = float(np.median(seconds[2:] or seconds))
    return {"step_seconds": step, "steps": len(order), "epoch_seconds": step * len(order)}


CHILDREN = {"read": read, "pytorch": pytorch}
PARTS = (*CHILDREN, "train", "recommend")


# --- measuring ------------------------------------------------------------------------------------


def measure(folder: Path, options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Everything that the page shows, by name."""
    found: dict[str, dict[str, Any]] = {}
    counts = [f"--{name}={getattr(options, name)}" for name in ("dim", "history", "steps")]
    for name in CHILDREN:
        if name not in options.parts:
            continue
        child = [sys.executable, __file__, "--child", name, "--folder", str(folder), *counts]
        found[name] = run_process(child, options.threads)
        found[name] |= json.loads(found[name]["said"].splitlines()[-1])
    if "train" not in options.parts:
        return found
    runs = folder / f"run-{os.getpid()}"
    alphafuse = [sys.executable, "-m", "alphafuse_ext"]
    command = [*alphafuse, "train", "--output", str(runs)]
    for name, file in zip(("interactions", "items", "embeddings"), FILES, strict=True):
        command += [f"--{name}", str(folder / file)]
    command += [
        f"--dim={options.dim}",
        f"--history={options.history}",
        f"--epochs={options.epochs}",
    ]
    found["train"] = run_process([*command, *options.settings], options.threads)
    found["train"] |= json.loads((runs / "results.json").read_text())
    if "recommend" not in options.parts:
        return found
    output = folder / "recommendations.parquet"
    output.unlink(missing_ok=True)
    command = [*alphafuse, "recommend", str(runs), "--k", "10", "--output", str(output)]
    found["recommend"] = run_process(command, options.threads)
    ranking = re.search(r"ranked for ([\d,]+) users", found["recommend"]["said"])
    found["recommend"]["users"] = int(ranking[1].replace(",", "")) if ranking else 0
    return found


def lines_of(found: dict[str, dict[str, Any]]) -> list[str]:
    """The tables of the page."""

    def row(name: str, seconds: float, peak: float | None) -> tuple[str, str, str]:
        return name, f"{seconds:,.1f} s", "" if peak is None else f"{peak / 1e9:.2f} GB"

    rows, after = [], []
    if read := found.get("read"):
        rows.append(row(f"reading {read['clicks']:,} clicks", *_of(read)))
    if train := found.get("train"):
        rows += [
            row("an epoch of training", train["seconds_per_epoch"], None),
            row("a validation", train["seconds_per_validation"], None),
            row(f"`alphafuse train`, {train['epochs']:g} epochs", *_of(train)),
        ]
        sample = train.get("samples", {})
        counts = (
            f"{part} on {one['users']:,} of {one['of']:,} users" for part, one in sample.items()
        )
        after = [
            "",
            f"Ranked in training: {', '.join(counts) or 'all users'}. Validation NDCG@10 "
            f"{train['validation'].get('ndcg@10', 0):.4f}, test {train['test']['ndcg@10']:.4f}, "
            f"popularity's {train['popularity']['ndcg@10']:.4f}. RecTools was not run.",
            "",
            *["```", *_settled(train["said"]), "```"],
        ]
    if train and (ranked := found.get("recommend")):
        rows += [
            row(f"`alphafuse recommend`, {ranked['users']:,} users", *_of(ranked)),
            row(
                "from the command to recommendations",
                train["seconds"] + ranked["seconds"],
                max(train["peak_bytes"], ranked["peak_bytes"]),
            ),
        ]
    if plain := found.get("pytorch"):
        rows.append(
            row(
                f"PyTorch's epoch, computed from steps of {1e3 * plain['step_seconds']:.1f} ms",
                plain["epoch_seconds"],
                plain["peak_bytes"],
            )
        )
    return [*report.table(("", "seconds", "peak memory"), rows), *after]


def _of(one: dict[str, Any]) -> tuple[float, float]:
    return one["seconds"], one["peak_bytes"]


def _settled(said: str) -> list[str]:
    """What the run says of defaults and samples."""
    words = ("loss: ", "large catalog", "validation: ", "test: ", "memory")
    return [line for line in said.splitlines() if line.startswith(words)]


def main() -> None:
    """Make the set, measure, write the page; or what one of its processes does."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add_counts(
        parser,
        ("--users", 1_000_000, "users"),
        ("--items", 500_000, "items in the catalog"),
        ("--clicks", 10_000_000, "clicks, about"),
        ("--width", 384, "columns of the language embeddings"),
        ("--dim", 64, "columns of a fused row"),
        ("--history", 20, "longest history"),
        ("--epochs", 1, "epochs to train"),
        ("--steps", 30, "steps of plain PyTorch"),
        ("--threads", all_threads(), "CPU threads"),
    )
    parser.add_argument("--seed", type=int, default=0, help="of the set; 0 by default")
    parser.add_argument("--folder", type=Path, default=Path("runs/large"), help="for set and runs")
    parser.add_argument("--settings", nargs="*", default=[], help="flags for alphafuse train")
    parser.add_argument(
        "--parts", nargs="+", choices=PARTS, default=PARTS, help="what to measure (default: all)"
    )
    parser.add_argument(
        "--output", type=existing_folder, help="a folder for the page (default: print)"
    )
    parser.add_argument("--child", choices=CHILDREN, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if "recommend" in options.parts and "train" not in options.parts:
        parser.error("--parts: recommend needs train, whose run it uses")
    if options.child:
        print(json.dumps(CHILDREN[options.child](options.folder, options)))
        return
    import torch

    size = options.users, options.items, options.clicks
    folder = options.folder / "-".join(map(str, (*size, options.width, options.seed)))
    in_own_process(make_set, folder, *size, options.width, options.seed)
    found = measure(folder, options)
    device = torch.device("cpu")
    facts = {
        **machine_facts(device),
        "threads": options.threads,
        "set": f"{options.users:,} users, {options.items:,} items, about {options.clicks:,} "
        f"clicks, embeddings of {options.width} columns, Zipf {ZIPF}, seed {options.seed}",
        "setting": f"dim {options.dim}, history {options.history}, else the defaults"
        + ("" if not options.settings else f" but {' '.join(options.settings)}"),
    }
    # The set of the default size has the plain name.
    other = "" if options.clicks == parser.get_default("clicks") else f"-{options.clicks}-clicks"
    page = options.output and options.output / f"large-{device_slug(device)}{other}.md"
    report.write_page("Millions of users on one machine", facts, lines_of(found), page)


if __name__ == "__main__":
    main()
