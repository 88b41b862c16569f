"""Flags that several commands have."""

from __future__ import annotations

import argparse
import dataclasses
import os
import re
import typing
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import NoneType
from typing import Any

from alphafuse_ext.checks import invalid
from alphafuse_ext.deprecation import SETTINGS, current_names
from alphafuse_ext.training.config import Config


def flag(name: str) -> str:
    return "--" + name.replace("_", "-")


@contextmanager
def naming_flags(options: argparse.Namespace) -> Iterator[None]:
    """Errors of the body name the command's flags, where they name arguments of Python.

    Args:
        options: of the command, by the names of the arguments.
    """

    def named(match: re.Match[str]) -> str:
        names = match[0].split(", ")
        return ", ".join(map(flag, names)) if set(names) <= set(vars(options)) else match[0]

    try:
        yield
    except (ValueError, TypeError, OSError, NotImplementedError) as error:
        if len(error.args) == 1:
            said = re.sub(r"^\w+(, \w+)*(?=: got )", named, str(error))
            said = re.sub(
                r"\b(\w+)=True\b", lambda m: flag(m[1]) if m[1] in vars(options) else m[0], said
            )
            error.args = (said,)
        raise


def given_settings(options: argparse.Namespace) -> dict[str, Any]:
    """The fields of :class:`Config` that were given, by the flags of :func:`add_config`."""
    given = vars(options)
    names = [*(field.name for field in dataclasses.fields(Config)), *SETTINGS]
    return current_names({name: given[name] for name in names if name in given}, spelled=flag)


def add_config(train: argparse.ArgumentParser, left_out: Sequence[str] = ()) -> None:
    """A flag for every field of :class:`Config`; only those given reach the configuration.

    A flag's old name works as well, and is in no help.
    """
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
        groups[title].add_argument(flag(field.name), **options)
        for old, new in SETTINGS.items():
            if new == field.name:
                hidden = {**options, "help": argparse.SUPPRESS}
                groups[title].add_argument(flag(old), **hidden)


def add_run(command: argparse.ArgumentParser) -> None:
    """The run folder, which comes first."""
    command.add_argument("run", type=Path, help="run folder")


def add_device(command: argparse.ArgumentParser) -> None:
    command.add_argument("--device", default="cpu", help="cpu (default), cuda or cuda:<number>")


def add_any_embeddings(command: typing.Any) -> None:
    """To a parser or a group of its flags."""
    command.add_argument(
        "--any-embeddings",
        action="store_true",
        help="take embeddings of new items that by the look of them are of another model",
    )


def add_keep_seen(command: argparse.ArgumentParser, verb: str) -> None:
    command.add_argument(
        "--keep-seen",
        action=argparse.BooleanOptionalAction,
        default=None,
        help=f"{verb} the items of the history as well (default: as in training)",
    )


def check_new_file(path: Path) -> None:
    """Refuse a file to write where something is already, whatever it is, or nothing can be.

    Raises:
        FileExistsError, PermissionError: naming ``--output``.
    """
    from alphafuse_ext.files import check_writable  # which imports torch

    if os.path.lexists(path):
        raise invalid("--output", f"{path}, which exists", "a new file", FileExistsError)
    check_writable("--output", path)


def read_lines(argument: str, path: Path, what: str) -> list[str]:
    """The ids of a file that has one on each line."""
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        found = f"{path}, which cannot be read: {error}"
        raise invalid(argument, found, f"a UTF-8 text file, one {what} a line") from error
    named = [line for line in lines if line.strip()]
    if not named:
        raise invalid(argument, f"{path}, which names no {what}", f"one {what} a line")
    return named
