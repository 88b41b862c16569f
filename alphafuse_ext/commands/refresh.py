"""``alphafuse refit`` and ``check``: a run on all data, and whether it may replace another."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from alphafuse_ext.commands.options import (
    add_any_embeddings,
    add_device,
    add_run,
    naming_flags,
)
from alphafuse_ext.commands.reading import (
    add_columns,
    add_ids_are_rows,
    add_left_out,
    reading_options,
)


def add_refit(refitting: argparse.ArgumentParser) -> None:
    refitting.set_defaults(command=_refit)
    refitting.add_argument(
        "--interactions", type=Path, help="new ones, or all of them, as for alphafuse train"
    )
    refitting.add_argument("--items", type=Path, help="new items, or the whole catalog")
    refitting.add_argument("--embeddings", type=Path, help="those of new items, or of all")
    refitting.add_argument("--output", type=Path, help="run folder (default: runs/<date-time>)")
    refitting.add_argument(
        "--epochs", type=int, help="in place of those that the run's validation chose"
    )
    refitting.add_argument("--threads", type=int, help="CPU threads (default: as the run)")
    add_left_out(refitting)
    add_columns(refitting)
    add_ids_are_rows(refitting, "as for alphafuse train")
    add_any_embeddings(refitting)
    add_device(refitting)
    add_run(refitting)


def add_check(checking: argparse.ArgumentParser) -> None:
    checking.set_defaults(command=_check)
    checking.add_argument("--against", type=Path, required=True, help="the run to replace")
    checking.add_argument(
        "--interactions",
        type=Path,
        required=True,
        help="clicks that neither run was trained on, as for alphafuse train",
    )
    checking.add_argument(
        "--margin",
        type=float,
        help="worse is a relative loss of NDCG@10 above this, such as 0.02 (default: a paired "
        "t-test over users with p < 0.05)",
    )
    checking.add_argument("--k", "-k", type=int, default=10, help="length of the lists compared")
    add_left_out(checking)
    add_columns(checking, ("interactions",))
    add_device(checking)
    add_run(checking)


def _refit(options: argparse.Namespace) -> None:
    from alphafuse_ext.commands.train import interruptible, show_trained
    from alphafuse_ext.training.refit import refit

    given = {name: getattr(options, name) for name in ("epochs", "threads")}
    with naming_flags(options):
        recommender = interruptible(
            lambda: refit(
                options.run,
                options.interactions,
                options.items,
                options.embeddings,
                options.output,
                any_embeddings=options.any_embeddings,
                device=options.device,
                **reading_options(options),
                **{name: value for name, value in given.items() if value is not None},
            ),
            options.output,
        )
    show_trained(recommender)


def _check(options: argparse.Namespace) -> int:
    from alphafuse_ext.experiments.check import check

    with naming_flags(options):
        found = check(
            options.run,
            options.against,
            options.interactions,
            margin=options.margin,
            k=options.k,
            device=options.device,
            **reading_options(options, ("interactions",)),
        )
    if found.worse:
        print(f"alphafuse: error: {options.run} is worse than {options.against}", file=sys.stderr)
    return int(found.worse)
