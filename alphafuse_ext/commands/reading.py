"""Flags that say which files hold the data, and how they are laid out."""

from __future__ import annotations

import argparse
import typing
from collections.abc import Sequence
from pathlib import Path

from alphafuse_ext.checks import invalid
from alphafuse_ext.commands.options import flag

if typing.TYPE_CHECKING:
    from alphafuse_ext.data import Layout


def add_sources(data: typing.Any) -> None:
    """The files of interactions and items, to a parser or a group of its flags."""
    files = "CSV, TSV, JSON lines or Parquet, also compressed"
    data.add_argument("--interactions", type=Path, help=f"RecBole .inter, {files}")
    data.add_argument("--items", type=Path, help=f"RecBole .item, {files}: the catalog")


def add_columns(data: typing.Any, files: Sequence[str] = ("interactions", "items")) -> None:
    """Their columns and layout.

    Args:
        data: a parser or a group of its flags.
        files: the flags of the files, ``items`` the last if it is one of them.
    """
    users = files[0] != "items"
    for column, otherwise in (("user", ""), ("item", ""), ("time", "; '' for rows in its order")):
        if users or column == "item":
            text = f"its name (default: guessed and printed{otherwise})"
            data.add_argument(f"--{column}-column", help=text)
    if "items" in files:
        data.add_argument("--text-columns", nargs="+", help="the columns of --items to encode")
    for name in files:
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


def add_ids_are_rows(data: typing.Any, text: str) -> None:
    data.add_argument(
        "--ids-are-rows", action=argparse.BooleanOptionalAction, default=None, help=text
    )


def layouts(
    options: argparse.Namespace, files: Sequence[str] = ("interactions", "items")
) -> list[Layout | None]:
    """The layouts of the files; what is said of all is of those that are delimited text."""
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
