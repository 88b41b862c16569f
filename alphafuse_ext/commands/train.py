"""``alphafuse train``: a new run, a resumed one, or one that continues another."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import typing
from pathlib import Path
from typing import Any

from alphafuse_ext.checks import invalid
from alphafuse_ext.commands.options import (
    add_any_embeddings,
    add_config,
    add_device,
    flag,
    given_settings,
    naming_flags,
)
from alphafuse_ext.commands.parser import Parser
from alphafuse_ext.commands.reading import (
    add_columns,
    add_ids_are_rows,
    add_sources,
    reading_options,
)
from alphafuse_ext.config import layered
from alphafuse_ext.config.presets import PRESETS
from alphafuse_ext.torchrun import RANK_TIMEOUT, FirstRankError, RankError, place_in_torchrun

if typing.TYPE_CHECKING:
    from alphafuse_ext.distributed.process_group import ProcessGroup
    from alphafuse_ext.serving.recommender import Recommender

# Settings for the small built-in catalog: training takes well under two minutes.
SYNTHETIC = {"dim": 64, "epochs": 30, "patience": 3, "dropout": 0.2}

_USED_MOST = (
    *("interactions", "items", "embeddings", "output", "resume", "preset", "item_embedding", "dim"),
    *("history", "dropout", "loss", "batch_size", "learning_rate", "epochs", "patience", "seed"),
)
GOES_ON_WITH = ("epochs", "patience", "threads")
"""Settings that a run may change when it is resumed."""


def add_train(train: Parser) -> None:
    train.set_defaults(
        command=lambda options: _train_in_torchrun(options, train), torchrun=True, together=True
    )
    data = train.add_argument_group("data")
    add_sources(data)
    data.add_argument(
        "--embeddings",
        type=Path,
        help=".npy (N, d_l) in the order of --items; or .parquet, .npz or .safetensors by item id",
    )
    add_ids_are_rows(data, "item ids are integers: the item with id k has row k of --embeddings")
    add_columns(data)
    data.add_argument(
        "--encoder",
        choices=("auto", "sentence-transformers", "tfidf"),
        default="auto",
        help="text encoder of the items, if no --embeddings are given (default: auto)",
    )
    data.add_argument("--encoder-model", help="name or local path for sentence-transformers")
    run = train.add_argument_group("run")
    run.add_argument("--output", type=Path, help="run folder to make (default: runs/<date-time>)")
    run.add_argument("--resume", type=Path, metavar="RUN", help="resume an interrupted run")
    run.add_argument(
        "--continue",
        dest="continued",
        type=Path,
        metavar="RUN",
        help="continue training a run with new --interactions (and new --items), as a new run",
    )
    add_any_embeddings(run)
    add_device(run)
    run.add_argument(
        "--rank-timeout",
        type=float,
        default=RANK_TIMEOUT,
        metavar="SECONDS",
        help="under torchrun: end the run if a rank does not answer for this long (default: "
        f"{RANK_TIMEOUT})",
    )
    run.add_argument(
        "--shard-items",
        action="store_true",
        help="under torchrun: shard the item table over the processes",
    )
    run.add_argument(
        "--preset",
        choices=tuple(PRESETS),
        help="settings of the AlphaFuse paper or of its public code; other flags override them",
    )
    add_config(train)
    train.show_first(_USED_MOST)


def _train_in_torchrun(options: argparse.Namespace, parser: Parser) -> None:
    """In this process alone, or as one of those started by torchrun."""
    from alphafuse_ext.distributed.process_group import torchrun_process_group
    from alphafuse_ext.runs.device import device_of_ranks, usable_device

    if place_in_torchrun()[1] == 1:
        if options.rank_timeout != RANK_TIMEOUT:
            raise invalid("--rank-timeout", options.rank_timeout, "none without torchrun")
        if options.shard_items:
            raise invalid("--shard-items", "one process", "several, started by torchrun")
        _train(options, parser, None)
        return
    if not options.rank_timeout > 0:
        raise invalid("--rank-timeout", options.rank_timeout, "seconds > 0")
    ranks_here = int(os.environ.get("LOCAL_WORLD_SIZE", place_in_torchrun()[1]))
    chosen = options.device or device_of_ranks(ranks_here)
    if chosen.startswith("cuda:"):
        allowed = "cuda under torchrun: each rank has a GPU of its own"
        raise invalid("--device", chosen, allowed)
    usable_device(chosen)
    under = torchrun_process_group(chosen, options.rank_timeout, options.shard_items)
    with under as (process_group, device):
        _train(argparse.Namespace(**{**vars(options), "device": device}), parser, process_group)


def _train(options: argparse.Namespace, parser: Parser, process_group: ProcessGroup | None) -> None:
    from alphafuse_ext.data import synthetic_catalog
    from alphafuse_ext.training.train import fit

    given = given_settings(options)
    if options.any_embeddings and options.continued is None:
        raise invalid("--any-embeddings", "no --continue", "new items of a run that is continued")
    if options.resume is not None:
        _resume(options, given, parser, process_group)
        return
    if options.continued is not None:
        _continue(options, given, parser, process_group)
        return
    interactions, items = options.interactions, options.items
    built_in = interactions is None
    if built_in:
        columns = ("user_column", "item_column", "time_column", "text_columns", "title_column")
        layout = ("delimiter", "quotes", "encoding", "interactions_header", "items_header")
        files = ("items", "embeddings", "ids_are_rows", "validation", "test")
        how = ("unknown_items", "missing_ids", "split_column", "time_format")
        orders = ("weight_column", "basket_column")
        for name in (*files, *how, *orders, *columns, *layout):
            if getattr(options, name) not in (None, False):
                found = f"a file of interactions with {flag(name)}"
                raise invalid("--interactions", "none", found)
        if process_group is None or process_group.first:
            print("no --interactions: training on the built-in synthetic catalog")
        given = layered({"seed": 0}, {} if options.preset else SYNTHETIC, given)
        interactions, items = synthetic_catalog(seed=given["seed"])
    if options.encoder != "auto":
        given["encoder"] = options.encoder
    if options.encoder_model is not None:
        given["encoder_model"] = options.encoder_model
    recommender = interruptible(
        lambda: fit(
            interactions,
            items,
            options.embeddings,
            options.output,
            preset=options.preset,
            device=options.device,
            process_group=process_group,
            **reading_options(options),
            **given,
        ),
        options.output,
    )
    if built_in and (process_group is None or process_group.first):
        _show_planted(recommender, given["seed"])
    show_trained(recommender, process_group)


def _resume(
    options: argparse.Namespace,
    given: dict[str, Any],
    parser: Parser,
    process_group: ProcessGroup | None,
) -> None:
    from alphafuse_ext.training.train import resume

    allowed = "none with --resume but " + ", ".join(map(flag, (*GOES_ON_WITH, "device")))
    _refuse_others(
        options,
        parser,
        (*GOES_ON_WITH, "resume", "device", "rank_timeout", "shard_items"),
        f"{allowed}: the run keeps its own",
    )
    show_trained(
        interruptible(
            lambda: resume(options.resume, options.device, process_group=process_group, **given),
            options.resume,
        ),
        process_group,
    )


def _refuse_others(
    options: argparse.Namespace,
    parser: Parser,
    names: typing.Sequence[str],
    allowed: str,
) -> None:
    """Refuse every flag that was given and is not among ``names``."""
    defaults = parser.parse_args([])
    for name, value in vars(options).items():
        known = name in (*names, "traceback", "command", "torchrun", "together")
        if not known and value != getattr(defaults, name, None):
            raise invalid(flag(name), value, allowed)


_CONTINUES_WITH = (
    *("interactions", "items", "embeddings", "output", "device", "ids_are_rows", "delimiter"),
    *("user_column", "item_column", "time_column", "text_columns", "title_column"),
    *("interactions_header", "items_header"),
    *("quotes", "encoding", "rank_timeout", "shard_items", "any_embeddings"),
    *("unknown_items", "missing_ids", "time_format", "weight_column", "basket_column"),
)


def _continue(
    options: argparse.Namespace,
    given: dict[str, Any],
    parser: Parser,
    process_group: ProcessGroup | None,
) -> None:
    from alphafuse_ext.training.extend import MAY_CHANGE, extend

    kept = (*_CONTINUES_WITH, *MAY_CHANGE, "continued")
    _refuse_others(options, parser, kept, "none with --continue: the run keeps its own")
    if options.interactions is None:
        raise invalid("--interactions", "none", "a file of new interactions, with --continue")
    with naming_flags(options):
        recommender = interruptible(
            lambda: extend(
                options.continued,
                options.interactions,
                options.items,
                options.embeddings,
                options.output,
                any_embeddings=options.any_embeddings,
                device=options.device,
                process_group=process_group,
                **reading_options(options),
                **given,
            ),
            options.output,
        )
    show_trained(recommender, process_group)


def interruptible(train: typing.Callable[[], Recommender], folder: Path | None) -> Recommender:
    """`folder`: the run's, where it was given."""
    try:
        return train()
    except (KeyboardInterrupt, RankError) as error:
        if not isinstance(error, FirstRankError):
            name = "RUN_FOLDER" if folder is None else shlex.quote(str(folder))
            print(
                "\nThe run folder has the last checkpoint; to resume: "
                f"alphafuse train --resume {name}",
                file=sys.stderr,
            )
        raise


def show_trained(recommender: Recommender, process_group: ProcessGroup | None = None) -> None:
    """Write the report of a run, and print what it recommends to some."""
    from alphafuse_ext.commands.showing import show_some
    from alphafuse_ext.reports.run import write_run_report

    if process_group is not None and not process_group.first:
        return
    print(f"report: {write_run_report(recommender)}")
    show_some(recommender)


def _show_planted(recommender: Recommender, seed: int) -> None:
    """The signals planted in the synthetic catalog, and whether recommendations show them."""
    import numpy as np

    from alphafuse_ext.data import planted_signals

    frame = recommender.recommend(k=10)
    clicks = recommender.interactions
    recommended = np.full((clicks.num_users, 10), -1)
    places = clicks.user_index(frame["user"]), frame["rank"] - 1
    recommended[places] = clicks.item_index(frame["item"])
    for signal in planted_signals(clicks.sequences, recommended, clicks.num_items, seed):
        print(f"planted: {signal}")
