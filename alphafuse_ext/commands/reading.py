"""Flags for the data files, their columns and their layout."""

from __future__ import annotations

import argparse
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from alphafuse_ext.checks import invalid
from alphafuse_ext.commands.options import flag

if typing.TYPE_CHECKING:
    from alphafuse_ext.data import Layout


def add_sources(data: typing.Any) -> None:
    """The files of interactions and items, to a parser or a group of its flags."""
    files = "CSV, TSV, JSON lines or Parquet, also compressed"
    data.add_argument("--interactions", type=Path, help=f"RecBole .inter, {files}")
    data.add_argument(
        "--items",
        type=Path,
        help=f"RecBole .item, {files}: the catalog; or the file of --interactions again, "
        "if its rows have titles",
    )
    data.add_argument(
        "--validation", type=Path, help="with --test: a given split, trained on --interactions"
    )
    data.add_argument("--test", type=Path, help="with --validation: as --interactions")
    data.add_argument(
        "--split-column", help="the same in one file: the column of train, validation or test"
    )
    add_left_out(data)


def add_left_out(data: typing.Any) -> None:
    """Which interactions may be left out."""
    _add_drop(data, "--unknown-items", "interactions with items that the catalog lacks")
    add_missing_ids(data)


def add_missing_ids(data: typing.Any) -> None:
    _add_drop(data, "--missing-ids", "rows without a user or an item, such as orders of guests")


def _add_drop(data: typing.Any, name: str, rows: str) -> None:
    text = f"{rows}: refuse them (default), or drop and count them"
    data.add_argument(name, choices=("raise", "drop"), help=text)


def add_columns(data: typing.Any, files: Sequence[str] = ("interactions", "items")) -> None:
    """Flags for columns and layout.

    Args:
        data: a parser or a group of its flags.
        files: the flags of the files, ``items`` the last if it is one of them.
    """
    users = files[0] != "items"
    for column, otherwise in (
        ("user", ""),
        ("item", ""),
        ("time", "; '' if rows are in time order"),
    ):
        if users or column == "item":
            text = f"name of the {column} column (default: guessed and printed{otherwise})"
            data.add_argument(f"--{column}-column", help=text)
    if users:
        text = "of dates that are not in ISO 8601, such as '%%d/%%m/%%Y %%H:%%M'"
        data.add_argument("--time-format", metavar="FORMAT", help=text)
        if "items" in files or files[0] == "interactions":
            add_order_columns(data)
    if "items" in files:
        data.add_argument("--text-columns", nargs="+", help="text columns of --items to encode")
        text = "column of --items that items are called by (default: title, name or the first text)"
        data.add_argument("--title-column", help=text)
    for name in files:
        data.add_argument(
            f"--{name}-header",
            nargs="+",
            metavar="NAME",
            help=f"column names of --{name}, for a text file without a header",
        )
    data.add_argument(
        "--delimiter",
        type=lambda written: written.replace(r"\t", "\t"),
        help=r"delimiter of text files, such as ';' or '\t'",
    )
    data.add_argument(
        "--quotes",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="whether values in text files may be quoted (default: yes, but in .inter and .item)",
    )
    data.add_argument("--encoding", help="encoding of text files, such as latin-1 (default: UTF-8)")


def add_order_columns(data: typing.Any) -> None:
    """Of orders: what they weigh, and what they hold together."""
    data.add_argument(
        "--weight-column",
        help="numbers that say how much a row counts as a target of training, such as a quantity "
        "or a rating (default: all alike)",
    )
    data.add_argument(
        "--basket-column",
        help="which order of its user's a row is of; implies --baskets (by equal times alone)",
    )


def add_ids_are_rows(data: typing.Any, text: str) -> None:
    data.add_argument(
        "--ids-are-rows", action=argparse.BooleanOptionalAction, default=None, help=text
    )


def reading_options(
    options: argparse.Namespace, files: Sequence[str] = ("interactions", "items")
) -> dict[str, Any]:
    """Arguments of :meth:`alphafuse_ext.Dataset.read`, by the flags of :func:`add_columns` and
    :func:`add_ids_are_rows`; those that were not given are left out."""
    names = (
        *("user_column", "item_column", "time_column", "text_columns", "title_column"),
        "ids_are_rows",
        *("unknown_items", "missing_ids", "validation", "test", "split_column", "time_format"),
        *("weight_column", "basket_column"),
    )
    given: dict[str, Any] = {name: getattr(options, name, None) for name in names}
    of = {"histories": "interactions"}
    for name, layout in zip(files, _layouts(options, files), strict=True):
        given[f"{of.get(name, name)}_layout"] = layout
    return {name: value for name, value in given.items() if value is not None}


def _layouts(options: argparse.Namespace, files: Sequence[str]) -> list[Layout | None]:
    """The layouts of the files; common options apply to those that are delimited text."""
    from alphafuse_ext.data import Layout, is_delimited

    common = {name: getattr(options, name) for name in ("delimiter", "quotes", "encoding")}
    said = [flag(name) for name, value in common.items() if value is not None]
    found: list[Layout | None] = []
    for name in files:
        source, header = getattr(options, name), getattr(options, f"{name}_header")
        layout = Layout(header=header, **(common if is_delimited(source) else {}))
        found.append(None if layout == Layout() else layout)
    if said and not any(found):
        raise invalid(said[0], "a value", "none, or a delimited text file to read")
    return found
