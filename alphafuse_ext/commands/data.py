"""``alphafuse describe``: data before training."""

from __future__ import annotations

import argparse
from pathlib import Path

from alphafuse_ext.checks import invalid
from alphafuse_ext.commands.options import check_new_file
from alphafuse_ext.commands.reading import add_columns, add_sources, reading_options


def add_describe(describing: argparse.ArgumentParser) -> None:
    describing.set_defaults(command=_describe)
    add_sources(describing)
    add_columns(describing)
    describing.add_argument("--output", type=Path, help="a new HTML file, with pictures")


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
