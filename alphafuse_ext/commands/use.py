"""``alphafuse recommend``, ``similar`` and ``export``: uses of a trained run."""

from __future__ import annotations

import argparse
import dataclasses
import re
import time
from pathlib import Path
from typing import Any

from alphafuse_ext.checks import invalid
from alphafuse_ext.choices import COLUMNS, EXPORT_FORMATS
from alphafuse_ext.commands.options import (
    add_device,
    add_keep_seen,
    add_neighbors,
    add_run,
    check_new_file,
    flag,
    naming_flags,
    read_lines,
)
from alphafuse_ext.commands.reading import add_columns, add_missing_ids, reading_options
from alphafuse_ext.torchrun import place_in_torchrun


def add_recommend(recommend: argparse.ArgumentParser) -> None:
    recommend.set_defaults(command=_recommend, torchrun=True)
    queries = recommend.add_mutually_exclusive_group()
    queries.add_argument(
        "--users", nargs="+", metavar="USER", help="user ids (default: every user, into --output)"
    )
    queries.add_argument("--users-file", type=Path, help="a text file of user ids, one per line")
    queries.add_argument(
        "--history",
        nargs="*",
        action="append",
        metavar="ITEM",
        help="item ids of a new user, oldest first, or none; repeatable",
    )
    recommend.add_argument("--k", "-k", type=int, default=10, help="number of items (default: 10)")
    queries.add_argument(
        "--histories",
        type=Path,
        help="a file of interactions, as for alphafuse train; its users may be new",
    )
    reading = recommend.add_argument_group(
        "reading of --histories", "By default as the run read its interactions."
    )
    add_columns(reading, ("histories",))
    add_missing_ids(reading)
    which = recommend.add_argument_group("which items")
    for name, what in (("only", "recommend only these item ids"), ("exclude", "none of these")):
        chosen = which.add_mutually_exclusive_group()
        chosen.add_argument(f"--{name}", nargs="+", metavar="ITEM", help=what)
        chosen.add_argument(
            f"--{name}-file", type=Path, help="the same from a text file, one per line"
        )
    which.add_argument(
        "--where",
        nargs="+",
        metavar="CONDITION",
        help="only items whose columns meet all conditions, such as category=shoes 'price<=50' "
        "'price>=10'; a column given twice with = may have either value",
    )
    which.add_argument(
        "--at-most", type=int, metavar="N", help="no more than so many items of one value of --by"
    )
    which.add_argument("--by", metavar="COLUMN", help="an item column, such as category")
    recommend.add_argument("--output", type=Path, help="a new .csv or .parquet file")
    recommend.add_argument(
        "--columns",
        choices=COLUMNS,
        default="plain",
        help="of --output: user, rank, item, title, score; or those of RecTools: user_id, item_id, "
        "score, rank, title (default: plain)",
    )
    recommend.add_argument(
        "--parts",
        type=int,
        help="write recommendations for every user to this many Parquet files in the folder "
        "--output; existing files are kept; under torchrun each process writes its share",
    )
    recommend.add_argument(
        "--strict",
        action="store_true",
        help="refuse unknown users and items (default: recommend what is popular to those users, "
        "skip the items, and warn)",
    )
    add_keep_seen(recommend, "recommend")
    add_neighbors(recommend)
    add_device(recommend)
    add_run(recommend)


def add_similar(similar: argparse.ArgumentParser) -> None:
    similar.set_defaults(command=_similar)
    similar.add_argument("--items", nargs="+", metavar="ITEM", required=True, help="item ids")
    similar.add_argument("--k", "-k", type=int, default=10, help="number of items (default: 10)")
    similar.add_argument(
        "--part",
        choices=("fused", "semantic", "id"),
        default="fused",
        help="compare fused item embeddings, or one part of them, by cosine (default: fused)",
    )
    add_device(similar)
    add_run(similar)


def add_export(exporting: argparse.ArgumentParser) -> None:
    exporting.set_defaults(command=_export)
    exporting.add_argument(
        "--to",
        nargs="+",
        choices=EXPORT_FORMATS,
        default=["safetensors"],
        help="(default: safetensors)",
    )
    exporting.add_argument("--output", type=Path, required=True, help="the new folder")
    add_run(exporting)


def _recommend(options: argparse.Namespace) -> None:
    import pandas as pd

    from alphafuse_ext.commands.showing import show
    from alphafuse_ext.data.reading import Reading
    from alphafuse_ext.runs.run_folder import RunFolder
    from alphafuse_ext.serving.offline import write_frames
    from alphafuse_ext.serving.recommender import Recommender

    if options.parts is not None:
        _write_recommendations(options)
        return
    if place_in_torchrun()[1] > 1:
        raise invalid("--parts", "none, under torchrun", "how many files its processes write")
    if options.output is not None:
        _check_output(options.output)
    users, histories = options.users, options.history
    if options.users_file is not None:
        users = read_lines("--users-file", options.users_file, "user")
    which = _which_items(options)
    if options.output is None and (options.histories or (users is None and histories is None)):
        allowed = "--users, --users-file, --history, or --output for every user or --histories"
        raise invalid("--users", "none", allowed)
    if options.output is None and options.columns != "plain":
        raise invalid("--columns", options.columns, "plain without --output")
    given = reading_options(options, ("histories",))
    columns = ("user_column", "item_column", "time_column", "time_format", "histories_header")
    for asked in (*columns, "missing_ids"):
        if options.histories is None and getattr(options, asked) is not None:
            raise invalid(flag(asked), getattr(options, asked), "none without --histories")
    if options.histories is not None:
        source, files = RunFolder(options.run).source(), {"interactions": options.histories}
        reading = Reading(**given).completed(source, files, print)
        # A history has no weights, which the run may have been trained with.
        reading = dataclasses.replace(reading, weight_column=None, basket_column=None)
        histories, _ = reading.interactions(options.histories, log=print)
    recommender = Recommender.load(options.run, options.device)
    started = time.perf_counter()
    with naming_flags(options):
        frames = recommender.recommend_in_batches(
            users,
            histories,
            options.k,
            options.keep_seen,
            strict=options.strict,
            columns=options.columns,
            neighbors=options.neighbors,
            **which,
        )
    if options.output is not None:
        rows, served = write_frames(frames, options.output, new=True)
    else:
        frame = pd.concat(frames, ignore_index=True)
        rows, served = len(frame), frame["user"].nunique()
    seconds = time.perf_counter() - started
    if options.output is None:
        show(recommender, frame, histories)
    if served:
        what = "users" if histories is None else "histories"
        print(
            f"ranked for {served:,} {what} in {seconds:.3g} s, {1e3 * seconds / served:.3g} ms each"
        )
    if options.output is not None:
        print(f"{rows:,} recommendations in {options.output}")


def _which_items(options: argparse.Namespace) -> dict[str, Any]:
    """The arguments of :meth:`Recommender.recommend` that choose items."""
    chosen = {"at_most": options.at_most, "by": options.by}
    for name in ("only", "exclude"):
        path = getattr(options, f"{name}_file")
        given = getattr(options, name)
        chosen[name] = given if path is None else read_lines(f"--{name}-file", path, "item")
    return {**chosen, "where": None if options.where is None else _conditions(options.where)}


def _conditions(written: list[str]) -> dict[str, Any]:
    """``where`` of :meth:`Recommender.recommend`."""
    found: dict[str, Any] = {}
    for condition in written:
        parts = re.fullmatch(r"(.+?)(<=|>=|=)(.*)", condition)
        if parts is None:
            raise invalid("--where", repr(condition), "COLUMN=VALUE, COLUMN<=VALUE, COLUMN>=VALUE")
        column, sign, value = (part.strip() for part in parts.groups())
        bound = {"<=": "max", ">=": "min"}.get(sign)
        before = found.setdefault(column, [] if bound is None else {})
        if isinstance(before, dict) != (bound is not None) or bound in before:
            raise invalid("--where", written, "values of a column, or one range")
        if bound is None:
            before.append(value)
        else:
            before[bound] = value
    return found


def _write_recommendations(options: argparse.Namespace) -> None:
    from alphafuse_ext.serving.offline import write_recommendations
    from alphafuse_ext.serving.recommender import Recommender

    for asked in ("users", "users_file", "history", "histories"):
        given = getattr(options, asked)
        if given is not None:
            raise invalid(flag(asked), given, "none with --parts: every user is ranked")
    if options.output is None:
        raise invalid("--output", "none", "a folder, with --parts")
    which = _which_items(options)
    rank, world_size = place_in_torchrun()
    recommender = Recommender.load(options.run, options.device)
    started = time.perf_counter()
    with naming_flags(options):
        rows, served = write_recommendations(
            recommender,
            options.output,
            options.parts,
            rank,
            world_size,
            k=options.k,
            keep_seen=options.keep_seen,
            strict=options.strict,
            columns=options.columns,
            neighbors=options.neighbors,
            **which,
        )
    seconds = time.perf_counter() - started
    print(
        f"rank {rank} of {world_size}: {rows} recommendations for {served} users in {seconds:.3g} s"
    )


def _similar(options: argparse.Namespace) -> None:
    from alphafuse_ext.commands.showing import name
    from alphafuse_ext.serving.recommender import Recommender

    recommender = Recommender.load(options.run, options.device)
    frame = recommender.recommend_to_items(options.items, options.k, options.part)
    titles = recommender.items.titles
    for asked, rows in frame.groupby("target_item", sort=False):
        place = recommender.interactions.item_index([asked])[0]
        print(f"\n{name(asked, titles[place] if titles is not None else '')}")
        for best in rows.itertuples():
            title = getattr(best, "title", "")
            print(f"  {best.rank:>3}. {best.score:>7.3f}  {name(best.item, title)}")


def _export(options: argparse.Namespace) -> None:
    from alphafuse_ext.serving.recommender import Recommender

    folder = Recommender.load(options.run, "cpu").export(options.output, options.to)
    print("\n".join(str(path) for path in sorted(folder.iterdir())))


def _check_output(output: Path) -> None:
    if output.suffix not in (".csv", ".parquet"):
        raise invalid("--output", output, "a file that ends in .csv or .parquet")
    if not output.parent.is_dir():
        raise invalid("--output", output, "a file in a folder that exists")
    check_new_file(output)
