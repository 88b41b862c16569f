"""``alphafuse compare`` and ``tune``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from alphafuse_ext.checks import invalid
from alphafuse_ext.commands.options import add_config, add_device, flag, given_settings
from alphafuse_ext.commands.parser import Parser
from alphafuse_ext.commands.reading import add_left_out


def add_compare(comparing: Parser) -> None:
    comparing.set_defaults(command=_compare)
    comparing.add_argument(
        "comparison", nargs="?", type=Path, help="a TOML file of data sets, methods and settings"
    )
    comparing.add_argument("--output", type=Path, required=True, help="output folder")
    comparing.add_argument("--seeds", type=int, nargs="+", help="(default: the file's, or 0 1 2)")
    comparing.add_argument("--processes", type=int, default=1, help="number of parallel runs")
    comparing.add_argument(
        "--threads", type=int, default=1, dest="threads_of_each", help="CPU threads of each run"
    )
    comparing.add_argument(
        "--finished", action="store_true", help="train nothing: only tabulate finished runs"
    )
    without = comparing.add_argument_group("without a file")
    without.add_argument(
        "--methods",
        nargs="+",
        metavar="NAME",
        help="values of --item-embedding, or neighbors, for example alphafuse id neighbors",
    )
    for name in ("interactions", "items", "embeddings", "validation", "test"):
        without.add_argument(f"--{name}", type=Path, help="as for alphafuse train")
    columns = (
        *("user-column", "item-column", "time-column", "time-format", "split-column"),
        *("weight-column", "basket-column"),
    )
    for name in (*columns, "encoder", "encoder-model"):
        without.add_argument(f"--{name}")
    add_left_out(without)
    without.add_argument("--text-columns", nargs="+")
    without.add_argument("--title-column")
    without.add_argument("--ids-are-rows", action="store_true")
    add_device(comparing)
    comparing.show_first([action.dest for action in comparing._actions])
    add_config(comparing, left_out=("item_embedding", "seed", "threads"))


def add_tune(tuning: Parser) -> None:
    tuning.set_defaults(command=_tune)
    tuning.add_argument(
        "search", type=Path, help="a TOML file as for compare, in which settings may be ranges"
    )
    tuning.add_argument("--output", type=Path, required=True, help="output folder")
    tuning.add_argument(
        "--trials", type=int, default=30, help="number of trials for each method on each data set"
    )
    tuning.add_argument("--processes", type=int, default=1, help="number of parallel runs")
    tuning.add_argument("--threads", type=int, default=1, help="CPU threads of each run")
    add_device(tuning)


def _compare(options: argparse.Namespace) -> int:
    from alphafuse_ext.experiments.compare import compare
    from alphafuse_ext.experiments.spec import (
        DEFAULT_SEEDS,
        SOURCES,
        comparison_of,
        read_comparison,
    )

    settings = given_settings(options)
    sources = {name: getattr(options, name) for name in SOURCES}
    if options.comparison is not None:
        for name, value in {**sources, "methods": options.methods, **settings}.items():
            if value not in (None, False):
                allowed = "none together with a TOML file"
                raise invalid(flag(name), value, allowed)
        comparison = read_comparison(options.comparison, options.seeds)
    elif options.interactions is None or not options.methods:
        allowed = "a file, or --interactions and --methods"
        raise invalid("what to compare", "nothing", allowed)
    else:
        seeds = options.seeds or list(DEFAULT_SEEDS)
        comparison = comparison_of(sources, options.methods, seeds, settings)
    rows = compare(
        comparison,
        options.output,
        processes=options.processes,
        threads=options.threads_of_each,
        device=options.device,
        finished=options.finished,
    )
    print((options.output / "compare.md").read_text(encoding="utf-8"))
    print(f"tables, figures of all runs and a picture: {options.output.absolute()}")
    failed = sum(len(row.failures) for row in rows)
    if failed and not options.finished:
        said = "the same command retries them"
        print(f"alphafuse: error: runs that failed: {failed}; {said}", file=sys.stderr)
        return 1
    return 0


def _tune(options: argparse.Namespace) -> int:
    from alphafuse_ext.experiments.spec import read_search
    from alphafuse_ext.experiments.tune import tune

    search = read_search(options.search)
    found = tune(
        search,
        options.output,
        trials=options.trials,
        processes=options.processes,
        threads=options.threads,
        device=options.device,
    )
    print((options.output / "tune.md").read_text(encoding="utf-8"))
    without = [f"{one.method} on {one.dataset}" for one in found if one.settings is None]
    if without:
        said = f"no successful trial of {', '.join(without)}"
        print(f"alphafuse: error: {said}", file=sys.stderr)
        return 1
    print(f"to compare the best settings: alphafuse compare {options.output / 'tuned.toml'}")
    return 0
