"""Training sets of fewer and fewer users, for a comparison that asks who needs language most.

    python bench/experiments/user_shares.py DATA/amazon-beauty/amazon-beauty.inter --output shares

A tenth of the users are for validation and a fifth for test, the same for every share; nobody is
trained on them. Of the others, each ``train-PERCENT.csv`` holds that share; a smaller share is
part of each larger one. Items that a share never has are cold: training does not know them, and
they are ranked like any other.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd

from alphafuse_ext.data import Interactions, read_interactions
from alphafuse_ext.files import atomic_path

PERCENTS = (5, 10, 20, 50, 100)


def shares(clicks: Interactions, seed: int) -> dict[str, pd.DataFrame]:
    """The rows of each file by its name; ``time`` is the place in the user's history."""
    sequences = clicks.sequences
    users = np.repeat(np.arange(len(sequences)), sequences.lengths)
    frame = pd.DataFrame(
        {
            "user": clicks.users[users],
            "item": clicks.items[sequences.values],
            "time": np.arange(len(users)) - sequences.starts[users],
        }
    )
    drawn = np.random.default_rng(seed).permutation(len(sequences))
    tenth = len(drawn) // 10
    validation, test, train = np.split(drawn, [tenth, 3 * tenth])
    parts = {"validation": validation, "test": test}
    parts |= {f"train-{percent}": train[: len(train) * percent // 100] for percent in PERCENTS}
    return {name: frame[np.isin(users, part)] for name, part in parts.items()}


def main() -> None:
    """Write the files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("interactions", type=Path, help="as for alphafuse train")
    parser.add_argument("--output", type=Path, required=True, help="folder, which is made")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    for name, rows in shares(read_interactions(options.interactions), options.seed).items():
        with atomic_path(options.output / f"{name}.csv") as temporary:
            rows.to_csv(temporary, index=False)
        print(
            f"{options.output / name}.csv: {rows['user'].nunique():,} users, {len(rows):,} clicks"
        )


if __name__ == "__main__":
    main()
