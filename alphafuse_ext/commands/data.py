"""``alphafuse prepare`` and ``describe``: data before training."""

from __future__ import annotations

import argparse
import typing
from pathlib import Path

from alphafuse_ext.checks import invalid
from alphafuse_ext.commands.options import check_new_file
from alphafuse_ext.commands.reading import add_columns, add_sources, reading_options

if typing.TYPE_CHECKING:
    from alphafuse_ext.data.prepare import Prepared

_PAGE = "report.html"


def add_prepare(preparing: argparse.ArgumentParser) -> None:
    from alphafuse_ext.data.prepare import REPEATS
    from alphafuse_ext.data.published import PUBLISHED

    releases = [f"  {name:<12} {published.about}" for name, published in PUBLISHED.items()]
    preparing.epilog = "\n".join([f"{preparing.epilog}\n", "releases:", *releases])
    preparing.set_defaults(command=_prepare)
    preparing.add_argument(
        "dataset", choices=tuple(PUBLISHED), help="data set and release, see below"
    )
    preparing.add_argument(
        "--interactions", type=Path, required=True, help="the file of reviews or ratings"
    )
    preparing.add_argument("--items", type=Path, help="the file of item texts")
    preparing.add_argument("--output", type=Path, required=True, help="the new folder")
    preparing.add_argument("--min-rating", type=float, help="drop ratings below this")
    preparing.add_argument(
        "--repeats",
        choices=REPEATS,
        default="all",
        help="which of a user's interactions with the same item to keep (default: all)",
    )
    preparing.add_argument(
        "--k-core",
        type=int,
        default=5,
        metavar="K",
        help="drop users and items with fewer interactions, repeatedly (default: 5)",
    )
    preparing.add_argument("--require-text", action="store_true", help="drop items without text")


def add_describe(describing: argparse.ArgumentParser) -> None:
    describing.set_defaults(command=_describe)
    add_sources(describing)
    add_columns(describing)
    describing.add_argument("--output", type=Path, help="a new HTML file, with pictures")


def _prepare(options: argparse.Namespace) -> None:
    from alphafuse_ext.data.prepare import prepare
    from alphafuse_ext.data.summary import as_text
    from alphafuse_ext.reports.data import write_data_report

    def add_page(folder: Path, prepared: Prepared) -> None:
        clicks, items, report = prepared
        page, summary = folder / _PAGE, report["summary"]
        write_data_report(page, options.dataset, clicks, items, summary, report["steps"])

    prepared = prepare(
        options.dataset,
        options.interactions,
        options.items,
        options.output,
        options.min_rating,
        options.repeats,
        options.k_core,
        options.require_text,
        log=print,
        finish=add_page,
    )
    print(as_text(prepared.report["summary"]))
    files = f"--interactions {options.output / 'interactions.parquet'}"
    print(f"report: {options.output / _PAGE}")
    print(f"next: alphafuse train {files} --items {options.output / 'items.parquet'}")


def _describe(options: argparse.Namespace) -> None:
    from alphafuse_ext.data import Dataset
    from alphafuse_ext.reports.data import write_data_report

    if options.interactions is None:
        raise invalid("--interactions", "none", "a file of interactions")
    if options.output is not None:
        check_new_file(options.output)
    data = Dataset.read(options.interactions, options.items, **reading_options(options))
    print(data.describe())
    if options.output is not None:
        name, clicks, items = options.interactions.name, data.interactions, data.items
        write_data_report(options.output, name, clicks, items, data.summary)
        print(f"report: {options.output}")
