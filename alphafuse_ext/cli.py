"""The command line: ``alphafuse train``, ``evaluate``, ``recommend``, ``compare`` and others."""

from __future__ import annotations

import argparse
import dataclasses
import json
import shlex
import sys
import time
import typing
import warnings
from collections.abc import Sequence
from pathlib import Path
from types import NoneType
from typing import Any

import numpy as np
import pandas as pd

from alphafuse_ext import __version__
from alphafuse_ext.checks import invalid
from alphafuse_ext.data import Layout, is_delimited, planted_signals, synthetic_catalog
from alphafuse_ext.experiments.compare import compare
from alphafuse_ext.experiments.spec import (
    DEFAULT_SEEDS,
    SOURCES,
    comparison_of,
    read_comparison,
    read_search,
)
from alphafuse_ext.experiments.tune import tune
from alphafuse_ext.files import atomic_path
from alphafuse_ext.training.config import Config
from alphafuse_ext.training.evaluate import TIE_RULES
from alphafuse_ext.training.geometry import write_geometry
from alphafuse_ext.training.presets import PRESETS
from alphafuse_ext.training.recommender import Recommender
from alphafuse_ext.training.run import environment
from alphafuse_ext.training.train import fit, resume

# The built-in catalog is small: settings under which it trains in well under two minutes.
SYNTHETIC = {"dim": 64, "epochs": 30, "patience": 3, "dropout": 0.2}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: what follows the program's name; ``sys.argv[1:]`` where not given.

    Returns:
        The exit status: 0; 2 for bad input, with one line on standard error; 130 when interrupted.
    """
    options = _parser().parse_args(arguments)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning  # type: ignore[assignment]
            options.command(options)
    except (ValueError, TypeError, IndexError, OSError, ImportError, FloatingPointError) as error:
        if options.traceback:
            raise
        print(f"alphafuse: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("alphafuse: interrupted", file=sys.stderr)
        return 130
    return 0


def _show_warning(message: Warning | str, *_: object) -> None:
    print(f"alphafuse: warning: {message}", file=sys.stderr)


def _train(options: argparse.Namespace) -> None:
    given = _given_settings(options)
    if options.resume is not None:
        _resume(options, given)
        return
    interactions, items = options.interactions, options.items
    built_in = interactions is None
    if built_in:
        columns = ("user_column", "item_column", "time_column", "text_columns")
        layout = ("delimiter", "quotes", "encoding", "interactions_header", "items_header")
        for name in ("items", "embeddings", "ids_are_rows", *columns, *layout):
            if getattr(options, name) not in (None, False):
                found = f"a file of interactions beside {_flag(name)}"
                raise invalid("--interactions", "none", found)
        print("no --interactions: training on the built-in synthetic catalog")
        given = {"seed": 0, **({} if options.preset else SYNTHETIC), **given}
        interactions, items = synthetic_catalog(seed=given["seed"])
    interactions_layout, items_layout = _layouts(options)
    recommender = _interruptible(
        lambda: fit(
            interactions,
            items,
            options.embeddings,
            options.output,
            user_column=options.user_column,
            item_column=options.item_column,
            time_column=options.time_column,
            text_columns=options.text_columns,
            interactions_layout=interactions_layout,
            items_layout=items_layout,
            encoder=options.encoder,
            encoder_model=options.encoder_model,
            ids_are_rows=options.ids_are_rows,
            preset=options.preset,
            device=options.device,
            **given,
        )
    )
    if built_in:
        _show_planted(recommender, given["seed"])
    _show_some(recommender)


GOES_ON_WITH = ("epochs", "patience", "threads")
"""Settings that a run may change when it is resumed."""


def _resume(options: argparse.Namespace, given: dict[str, Any]) -> None:
    train = _parser().parse_args(["train"])
    for name, value in vars(options).items():
        kept = (*GOES_ON_WITH, "resume", "device", "traceback", "command")
        if name not in kept and value != getattr(train, name, None):
            allowed = "none with --resume but " + ", ".join(map(_flag, (*GOES_ON_WITH, "device")))
            raise invalid(_flag(name), value, f"{allowed}: the run keeps its own")
    _show_some(_interruptible(lambda: resume(options.resume, options.device, **given)))


def _layouts(options: argparse.Namespace) -> tuple[Layout | None, Layout | None]:
    """The layouts of the two files; what is said of both is of those that are delimited text."""
    common = {name: getattr(options, name) for name in ("delimiter", "quotes", "encoding")}
    said = [_flag(name) for name, value in common.items() if value is not None]
    layouts = []
    for name in ("interactions", "items"):
        source, header = getattr(options, name), getattr(options, f"{name}_header")
        layout = Layout(header=header, **(common if is_delimited(source) else {}))
        layouts.append(None if layout == Layout() else layout)
    if said and layouts == [None, None]:
        raise invalid(said[0], "a value", "none, or a delimited text file to read")
    return layouts[0], layouts[1]


def _interruptible(train: typing.Callable[[], Recommender]) -> Recommender:
    try:
        return train()
    except KeyboardInterrupt:
        print(
            "\nThe run folder keeps the last finished epoch; to go on: "
            "alphafuse train --resume RUN_FOLDER",
            file=sys.stderr,
        )
        raise


def _evaluate(options: argparse.Namespace) -> None:
    recommender = Recommender.load(options.run, options.device)
    evaluation = recommender.evaluation(options.part, options.keep_seen, options.ties)
    for line in evaluation.warnings():
        warnings.warn(line, stacklevel=1)
    protocol = recommender.config.protocol
    report = {"protocol": protocol, "part": options.part, **evaluation.to_dict()}
    if options.groups:
        report["groups"] = recommender.long_tail(evaluation, options.part)
    print(json.dumps(report, indent=2))


def _recommend(options: argparse.Namespace) -> None:
    if options.output is not None:
        _check_output(options.output)
    users, histories = options.users, options.history
    if options.users_file is not None:
        users = _read_users(options.users_file)
    if options.output is None and users is None and histories is None:
        allowed = "--users, --users-file, --history, or --output for every user"
        raise invalid("--users", "none", allowed)
    recommender = Recommender.load(options.run, options.device)
    started = time.perf_counter()
    frame = recommender.recommend(
        users, histories, options.k, options.keep_seen, strict=options.strict
    )
    seconds, served = time.perf_counter() - started, frame["user"].nunique()
    if options.output is None:
        _show(recommender, frame, histories)
    if served:
        print(f"ranked for {served} in {seconds:.3g} s, {1e3 * seconds / served:.3g} ms each")
    if options.output is None:
        return
    with atomic_path(options.output) as temporary:
        if options.output.suffix == ".csv":
            frame.to_csv(temporary, index=False)
        else:
            frame.to_parquet(temporary, index=False)
    print(f"{len(frame)} recommendations in {options.output}")


def _compare(options: argparse.Namespace) -> None:
    settings = _given_settings(options)
    sources = {name: getattr(options, name) for name in SOURCES}
    if options.comparison is not None:
        for name, value in {**sources, "methods": options.methods, **settings}.items():
            if value not in (None, False):
                allowed = "none beside a file, which says what is compared"
                raise invalid(_flag(name), value, allowed)
        comparison = read_comparison(options.comparison, options.seeds)
    elif options.interactions is None or not options.methods:
        allowed = "a file, or --interactions and --methods"
        raise invalid("what to compare", "nothing", allowed)
    else:
        seeds = options.seeds or list(DEFAULT_SEEDS)
        comparison = comparison_of(sources, options.methods, seeds, settings)
    compare(
        comparison,
        options.output,
        processes=options.processes,
        threads=options.threads_of_each,
        device=options.device,
        finished=options.finished,
    )
    print((options.output / "compare.md").read_text())
    print(f"tables, figures of all runs and a picture: {options.output.absolute()}")


def _tune(options: argparse.Namespace) -> None:
    tune(
        read_search(options.search),
        options.output,
        trials=options.trials,
        processes=options.processes,
        threads=options.threads,
        device=options.device,
    )
    print((options.output / "tune.md").read_text())
    print(f"to compare what was found: alphafuse compare {options.output / 'tuned.toml'}")


def _geometry(options: argparse.Namespace) -> None:
    report = write_geometry(options.run, options.embeddings, options.ids_are_rows, options.seed)
    print("rank correlation of the items' distances with those of their language embeddings:")
    for name, value in report["rank_correlation"].items():
        print(f"{name:>15} {value:6.3f}")
    print(f"and a map: {Path(options.run).absolute() / 'geometry.png'}")


def _info(options: argparse.Namespace) -> None:
    import torch

    facts = environment()
    facts["cuda devices"] = [
        torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())
    ]
    print(json.dumps(facts, indent=2))


def _read_users(path: Path) -> list[str]:
    """The users of a file that has one on each line."""
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        found = f"{path}, which cannot be read: {error}"
        raise invalid("--users-file", found, "a UTF-8 text file, one user a line") from error
    users = [line for line in lines if line.strip()]
    if not users:
        raise invalid("--users-file", f"{path}, which names no user", "one user a line")
    return users


def _check_output(output: Path) -> None:
    if output.suffix not in (".csv", ".parquet"):
        raise invalid("--output", output, "a file that ends in .csv or .parquet")
    if output.exists():
        raise invalid("--output", f"{output}, which exists", "a new file")
    if not output.parent.is_dir():
        raise invalid("--output", output, "a file in a folder that exists")


def _show_planted(recommender: Recommender, seed: int) -> None:
    """What the synthetic catalog had planted, and whether the recommendations have it."""
    frame = recommender.recommend(k=10)
    clicks = recommender.interactions
    recommended = np.full((clicks.num_users, 10), -1)
    places = clicks.user_index(frame["user"]), frame["rank"] - 1
    recommended[places] = clicks.item_index(frame["item"])
    for signal in planted_signals(clicks.sequences, recommended, clicks.num_items, seed):
        print(f"planted: {signal}")


def _show_some(recommender: Recommender) -> None:
    """Recommendations for three users with histories of middling length."""
    lengths = pd.Series(recommender.interactions.sequences.lengths)
    middling = (lengths - lengths.median()).abs().sort_values(kind="stable").index[:3]
    users = recommender.interactions.users[middling].tolist()
    _show(recommender, recommender.recommend(users, k=5))
    run, user = shlex.quote(str(recommender.run.path)), shlex.quote(str(users[0]))
    print(f"\nmore: alphafuse recommend {run} --users {user}; alphafuse evaluate {run}")


def _show(
    recommender: Recommender, frame: pd.DataFrame, histories: list[list[str]] | None = None
) -> None:
    """Print recommendations, each query's below the newest items of its history."""
    items, clicks = recommender.items, recommender.interactions
    titles = frame["title"] if "title" in frame else [""] * len(frame)
    names = [_name(*one) for one in zip(frame["item"], titles, strict=True)]
    for asked, rows in frame.assign(name=names).groupby("user", sort=False):
        if histories is None:
            history = clicks.sequences[clicks.user_index([asked])[0]]
        else:
            history = clicks.find_items(histories[typing.cast(int, asked)])
        print(f"\n{'user' if histories is None else 'history'} {asked}")
        for item in history[history >= 0][-5:]:
            title = items.titles[item] if items.titles is not None else ""
            print(f"      had  {_name(items.tokens[item], title)}")
        for best in rows.itertuples():
            print(f"  {best.rank:>3}. {best.score:>7.3f}  {best.name}")


def _name(token: object, title: str) -> str:
    return f"{token}  {title}"[:100].rstrip()


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="alphafuse",
        description="Sequential recommenders on fused language and ID embeddings.",
    )
    parser.add_argument("--version", action="version", version=f"alphafuse_ext {__version__}")
    parser.add_argument("--traceback", action="store_true", help="show where an error came from")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    train = commands.add_parser(
        "train",
        help="train on interactions and item embeddings or texts; without data, on a synthetic one",
    )
    train.set_defaults(command=_train)
    data = train.add_argument_group("data")
    files = "CSV, TSV, JSON lines or Parquet, also compressed"
    data.add_argument("--interactions", type=Path, help=f"RecBole .inter, {files}")
    data.add_argument("--items", type=Path, help=f"RecBole .item, {files}: the catalog")
    data.add_argument(
        "--embeddings",
        type=Path,
        help=".npy (N, d_l) in the order of --items; or .parquet, .npz or .safetensors by item id",
    )
    data.add_argument(
        "--ids-are-rows",
        action="store_true",
        help="item ids are integers, and the item of id k has row k of --embeddings",
    )
    for column, otherwise in (("user", ""), ("item", ""), ("time", "; '' for rows in its order")):
        text = f"its name (default: guessed and printed{otherwise})"
        data.add_argument(f"--{column}-column", help=text)
    data.add_argument("--text-columns", nargs="+", help="the columns of --items to encode")
    for name in ("interactions", "items"):
        data.add_argument(
            f"--{name}-header",
            nargs="+",
            metavar="NAME",
            help=f"the columns of --{name}, a text file that does not begin with their names",
        )
    data.add_argument(
        "--delimiter",
        type=lambda written: written.replace(r"\t", "\t"),
        help=r"between the values of a text file, such as ';', '::' or '\t'",
    )
    data.add_argument(
        "--quotes",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="whether values of a text file may stand in quotation marks (default: by its format)",
    )
    data.add_argument("--encoding", help="of a text file, such as latin-1 (default: UTF-8)")
    data.add_argument(
        "--encoder",
        choices=("auto", "sentence-transformers", "tfidf"),
        default="auto",
        help="encodes item texts where no --embeddings are given (default: auto)",
    )
    data.add_argument("--encoder-model", help="name or local path for sentence-transformers")
    run = train.add_argument_group("run")
    run.add_argument("--output", type=Path, help="run folder to make (default: runs/<date-time>)")
    run.add_argument("--resume", type=Path, metavar="RUN", help="go on with an interrupted run")
    run.add_argument("--device", default="cpu", help="cpu (default), cuda or cuda:<number>")
    run.add_argument(
        "--preset",
        choices=tuple(PRESETS),
        help="settings of the AlphaFuse paper or of its public code; flags beside it come first",
    )
    _add_config(train)

    evaluate = commands.add_parser("evaluate", help="metrics of a run, over the whole catalog")
    evaluate.set_defaults(command=_evaluate)
    evaluate.add_argument("--part", choices=("validation", "test"), default="test")
    evaluate.add_argument(
        "--ties",
        choices=TIE_RULES,
        default="id",
        help="items of the same score: by id, as they are recommended (default), or the mean over "
        "all their orders",
    )
    evaluate.add_argument(
        "--groups",
        action="store_true",
        help="also by group: head and tail users (length of history), head, tail and cold items "
        "(interactions in training)",
    )

    recommend = commands.add_parser("recommend", help="top items for users or histories")
    recommend.set_defaults(command=_recommend)
    queries = recommend.add_mutually_exclusive_group()
    queries.add_argument(
        "--users", nargs="+", metavar="USER", help="user ids (default: every user, into --output)"
    )
    queries.add_argument("--users-file", type=Path, help="a text file of user ids, one a line")
    queries.add_argument(
        "--history",
        nargs="+",
        action="append",
        metavar="ITEM",
        help="item ids, oldest first, for someone new; repeatable",
    )
    recommend.add_argument("--k", "-k", type=int, default=10, help="items for each (default: 10)")
    recommend.add_argument("--output", type=Path, help="a .csv or .parquet file to write")
    recommend.add_argument(
        "--strict",
        action="store_true",
        help="refuse unknown users and items (default: leave them out and say so)",
    )

    comparing = commands.add_parser(
        "compare",
        help="methods x data sets x seeds, with tables; settings chosen on validation",
        description="What has ended is not run again: the same command goes on.",
    )
    comparing.set_defaults(command=_compare)
    comparing.add_argument(
        "comparison", nargs="?", type=Path, help="a TOML file that says what is compared"
    )
    comparing.add_argument("--output", type=Path, required=True, help="folder of all that is made")
    comparing.add_argument("--seeds", type=int, nargs="+", help="(default: the file's, or 0 1 2)")
    comparing.add_argument("--processes", type=int, default=1, help="runs at a time")
    comparing.add_argument(
        "--threads", type=int, default=1, dest="threads_of_each", help="CPU threads of each"
    )
    comparing.add_argument(
        "--finished", action="store_true", help="train nothing: tabulate what has ended"
    )
    without = comparing.add_argument_group("without a file")
    without.add_argument(
        "--methods", nargs="+", metavar="NAME", help="values of --item-embedding, such as id"
    )
    for name in ("interactions", "items", "embeddings"):
        without.add_argument(f"--{name}", type=Path, help="as of alphafuse train")
    for name in ("user-column", "item-column", "time-column", "encoder", "encoder-model"):
        without.add_argument(f"--{name}")
    without.add_argument("--text-columns", nargs="+")
    without.add_argument("--ids-are-rows", action="store_true")
    _add_config(comparing, left_out=("item_embedding", "seed", "threads"))

    tuning = commands.add_parser(
        "tune",
        help="search methods' settings by validation, with Optuna; the same budget for each",
        description="What has ended is not run again: the same command goes on.",
    )
    tuning.set_defaults(command=_tune)
    tuning.add_argument(
        "search", type=Path, help="a TOML file, as of compare, in which settings may be ranges"
    )
    tuning.add_argument("--output", type=Path, required=True, help="folder of all that is made")
    tuning.add_argument("--trials", type=int, default=30, help="of each method on each data set")
    tuning.add_argument("--processes", type=int, default=1, help="runs at a time")
    tuning.add_argument("--threads", type=int, default=1, help="CPU threads of each")

    geometry = commands.add_parser(
        "geometry", help="what a run keeps of the distances among language embeddings, and a map"
    )
    geometry.set_defaults(command=_geometry)
    geometry.add_argument(
        "--embeddings",
        type=Path,
        help="the run's language embeddings (default: the file, or the texts, it was made from)",
    )
    geometry.add_argument("--ids-are-rows", action="store_true", help="as for train")
    geometry.add_argument("--seed", type=int, default=0, help="of sampled pairs (default: 0)")

    for command in (evaluate, recommend, geometry):
        command.add_argument("run", type=Path, help="run folder")
    for command, verb in ((evaluate, "rank"), (recommend, "recommend")):
        command.add_argument(
            "--keep-seen",
            action=argparse.BooleanOptionalAction,
            default=None,
            help=f"{verb} the items of the history as well (default: as in training)",
        )
    for command in (evaluate, recommend, comparing, tuning):
        command.add_argument("--device", default="cpu", help="cpu (default), cuda or cuda:<number>")

    info = commands.add_parser("info", help="version, what was built, instruction set, devices")
    info.set_defaults(command=_info)
    return parser


def _given_settings(options: argparse.Namespace) -> dict[str, Any]:
    """The fields of :class:`Config` that were given, by the flags of :func:`_add_config`."""
    given = vars(options)
    return {f.name: given[f.name] for f in dataclasses.fields(Config) if f.name in given}


def _add_config(train: argparse.ArgumentParser, left_out: Sequence[str] = ()) -> None:
    """A flag for every field of :class:`Config`; only those given reach the configuration."""
    types = typing.get_type_hints(Config)
    groups: dict[str, Any] = {}
    for field in dataclasses.fields(Config):
        if field.name in left_out:
            continue
        title, choices = field.metadata["group"], field.metadata["choices"]
        if title not in groups:
            groups[title] = train.add_argument_group(title)
        text = field.metadata["help"]
        if field.default is not None:
            text += f" (default: {field.default})"
        # "int | None" is a flag that takes an int and may be left out.
        kind = next(
            t for t in (*typing.get_args(types[field.name]), types[field.name]) if t is not NoneType
        )
        options: dict[str, Any] = {"default": argparse.SUPPRESS, "help": text}
        if kind is bool:
            options["action"] = argparse.BooleanOptionalAction
        elif choices:
            options["choices"] = choices
        else:
            options |= {"type": kind, "metavar": kind.__name__.upper()}
        groups[title].add_argument(_flag(field.name), **options)
