"""Items that training never saw, added afterwards: where their clicks rank.

    python bench/training/new_items.py DATA/amazon-beauty --output bench/results

A share of the items, and every click on them, is held out of training altogether; then they are
added (`Recommender.add_items`). Measured are the users whose last item is one of them: their whole
history before it, seen items excluded, the whole catalog ranked, by

- the recommender with the items added;
- one trained on all clicks but each user's last two, as leave-one-out has it;
- content alone: the cosine between an item's language embedding and that of the last item, or the
  mean of those of the history;
- chance.

Trained runs are kept under ``--runs`` and used again.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for what benchmarks share
import report
from measure import RESULTS, existing_folder, machine_facts, positive_float

import alphafuse_ext as af
from alphafuse_ext.data import Examples, Interactions, Sequences, read_interactions, read_items
from alphafuse_ext.evaluation.ranking import example_ranks, exclusion
from alphafuse_ext.metrics import ranking_metrics

SETTINGS: dict[str, Any] = {
    **{"dim": 128, "norm": "post", "dropout": 0.5, "space_split": "soft", "patience": 10},
    **{"epochs": 100, "threads": 1},
}
SHOWN = ("hr@10", "hr@20", "ndcg@10")

IntArray = npt.NDArray[np.int64]


def examples_of(clicks: Interactions, targets: IntArray, ids: IntArray) -> Examples:
    """The users whose last item is among ``targets``, with at least one before it.

    Args:
        clicks: all of them.
        targets: item ids.
        ids: what each item is called in the recommender that is measured.
    """
    users = np.flatnonzero(clicks.sequences.lengths >= 2)
    last = clicks.sequences.values[clicks.sequences.offsets[users + 1] - 1]
    users = users[np.isin(last, targets)]
    whole = clicks.sequences.select(users)
    histories = whole.first(whole.lengths - 1)
    renamed = Sequences(histories.offsets, ids[histories.values])
    ends = whole.offsets[1:] - 1
    return Examples(users, renamed, ids[whole.values[ends]], renamed)


def content_ranks(rows: npt.NDArray[Any], examples: Examples, last: int | None) -> IntArray:
    """Ranks by the cosine with the mean of the last items' language embeddings, or all items'."""
    embeddings = torch.tensor(np.asarray(rows, np.float32))
    norms = torch.linalg.vector_norm(embeddings, dim=1, keepdim=True).clamp(min=1e-8)
    histories = examples.histories if last is None else examples.histories.last(last)
    found = []
    for number in range(len(examples)):
        found.append((embeddings / norms)[torch.tensor(histories[number])].mean(0))
    seen = exclusion(examples.seen.select(np.arange(len(examples))), torch.device("cpu"))
    ranks = af.target_ranks(
        torch.stack(found),
        torch.tensor(examples.targets),
        embeddings,
        None,
        similarity="cosine",
        exclude=seen,
    ).numpy()
    ranks[examples.targets_seen()] = np.iinfo(np.int64).max
    return ranks


def trained(
    folder: Path, clicks: pd.DataFrame, items: pd.DataFrame, rows: npt.NDArray[Any]
) -> af.Recommender:
    """The run of a folder, trained where there is none."""
    if not (folder / "results.json").exists():
        af.fit(clicks, items, rows, folder, **SETTINGS)
    return af.Recommender.load(folder)


def main() -> None:
    """Train twice, add the items and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("dataset", type=existing_folder, help="a folder of shared/data")
    parser.add_argument("--share", type=positive_float, default=0.1, help="of items (default: 0.1)")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of items (default: 0)")
    parser.add_argument("--runs", type=Path, default=Path("runs/new-items"))
    parser.add_argument("--output", type=existing_folder, default=RESULTS)
    options = parser.parse_args()
    name = options.dataset.name
    files = [options.dataset / f"{name}.{kind}" for kind in ("inter", "item")]
    items = read_items(files[1])
    clicks = read_interactions(files[0], items)
    rows = np.load(options.dataset / "minilm-l6.npy")
    order = np.random.default_rng(options.seed).permutation(len(items))
    held = np.sort(order[: round(options.share * len(items))])
    kept = np.setdiff1d(np.arange(len(items)), held)

    frame = pd.DataFrame(
        {
            "user": np.repeat(np.arange(clicks.num_users), clicks.sequences.lengths),
            "item": clicks.sequences.values,
            "time": np.arange(len(clicks)),
        }
    )
    catalog = pd.DataFrame({"item": np.arange(len(items)), "text": items.texts})
    without = trained(
        options.runs / f"{name}-without-{options.share}-{options.seed}",
        frame[~frame["item"].isin(held)],
        catalog.iloc[kept],
        rows[kept],
    )
    added = without.add_items(catalog.iloc[held], rows[held])
    with_them = trained(options.runs / f"{name}-with", frame, catalog, rows)

    examples = examples_of(clicks, held, np.arange(len(items)))
    ranks = {
        "added after training": _ranks(added, clicks, held),
        "trained with them": _ranks(with_them, clicks, held),
        "content: last item": content_ranks(rows, examples, 1),
        "content: mean of the history": content_ranks(rows, examples, None),
    }
    figures = {label: _figures(found, len(items)) for label, found in ranks.items()}
    figures["chance"] = {
        "hr@10": 10 / len(items),
        "hr@20": 20 / len(items),
        "ndcg@10": float((1 / np.log2(np.arange(10) + 2)).sum() / len(items)),
        "median rank": 0.5,
    }
    facts = {
        **machine_facts(torch.device("cpu")),
        "items held out": f"{len(held)} of {len(items)}, drawn with seed {options.seed}",
        "clicks not trained on": int(np.isin(clicks.sequences.values, held).sum()),
        "examples": len(examples),
        "settings": ", ".join(f"{key}={value}" for key, value in SETTINGS.items()),
    }
    header = ["", "HR@10", "HR@20", "NDCG@10", "median rank, share of the catalog"]
    lines = [
        [label, *(f"{found[key]:.4f}" for key in (*SHOWN, "median rank"))]
        for label, found in figures.items()
    ]
    page = options.output / f"new-items-{name}.md"
    report.write_page(f"New items on {name}", facts, report.table(header, lines), page)


def _ranks(recommender: af.Recommender, clicks: Interactions, held: IntArray) -> IntArray:
    ids = recommender.interactions.item_index(np.arange(clicks.num_items))
    return example_ranks(recommender.model, examples_of(clicks, held, ids))


def _figures(ranks: IntArray, num_items: int) -> dict[str, float]:
    metrics = ranking_metrics(ranks)
    median = float(np.median(np.minimum(ranks, num_items))) / num_items
    return {**{name: metrics[name] for name in SHOWN}, "median rank": median}


if __name__ == "__main__":
    main()
