"""``alphafuse evaluate``, ``recommend`` and ``similar``: what a trained run answers."""

from __future__ import annotations

import argparse
import json
import time
import typing
import warnings
from pathlib import Path

from alphafuse_ext.checks import invalid
from alphafuse_ext.commands.options import add_device, add_keep_seen, add_run
from alphafuse_ext.commands.showing import show
from alphafuse_ext.files import atomic_path
from alphafuse_ext.training.evaluate import TIE_RULES
from alphafuse_ext.training.recommender import Recommender


def add(commands: typing.Any) -> None:
    """Add the commands to a parser's subparsers."""
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
    add_keep_seen(evaluate, "rank")
    add_device(evaluate)
    add_run(evaluate)

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
    add_keep_seen(recommend, "recommend")
    add_device(recommend)
    add_run(recommend)


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
        show(recommender, frame, histories)
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
