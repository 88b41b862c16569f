"""Flags that several commands have."""

from __future__ import annotations

import argparse
import itertools
import os
import re
import sys
import typing
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from alphafuse_ext.checks import invalid
from alphafuse_ext.commands.parser import Parser
from alphafuse_ext.config.config import Owner, every_setting, own_settings
from alphafuse_ext.config.option import kind_of, types_of

_NAMED = 4
"""Components that a flag's help names."""


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
    """The settings that were given, by the flags of :func:`add_config`."""
    given = vars(options)
    names = [*every_setting(), *given.get("own_settings", ())]
    return {name: given[name] for name in names if name in given}


def add_config(command: Parser, left_out: Sequence[str] = ()) -> None:
    """A flag for every setting of :class:`Config`; only those given reach the configuration.

    A flag's old name works as well, and is in no help. A component of one's own, ``--model
    package.module:name``, brings flags for its settings.
    """
    groups: dict[str, Any] = {}
    for name, owners in every_setting().items():
        if name not in left_out:
            _add_setting(command, groups, name, owners)
    hooks = {
        name: owners for name, owners in every_setting().items() if owners[0].field.metadata["own"]
    }

    def add_own(arguments: Sequence[str]) -> None:
        chosen = own_components(arguments, {flag(name): name for name in hooks})
        if chosen and os.getcwd() not in sys.path:
            sys.path.append(os.getcwd())  # where whoever names it here keeps it
        found = {owner.field.name: [owner] for owner in own_settings(chosen)}
        added = [name for name in found if name not in every_setting()]
        for name in added:
            _add_setting(command, groups, name, found[name])
        command.set_defaults(own_settings=added)

    command.before_parsing(add_own)


def own_components(arguments: Sequence[str], flags: Mapping[str, str]) -> dict[str, str]:
    """Of a command line, by setting, the components that are given as ``package.module:name``.

    Args:
        arguments: the words.
        flags: settings by their flags.
    """
    words = [word for one in arguments for word in (one.split("=", 1) if "=" in one else [one])]
    return {
        flags[word]: value
        for word, value in itertools.pairwise(words)
        if word in flags and ":" in value
    }


def _add_setting(
    command: argparse.ArgumentParser, groups: dict[str, Any], name: str, owners: Sequence[Owner]
) -> None:
    field = owners[0].field
    title = field.metadata["group"] or owners[0].settings.group
    if title not in groups:
        groups[title] = command.add_argument_group(title)
    choices = dict.fromkeys(c for owner in owners for c in owner.field.metadata["choices"] or ())
    kind = kind_of(types_of(owners[0].settings)[name])
    options: dict[str, Any] = {"default": argparse.SUPPRESS, "help": _help(name, owners)}
    if kind is bool:
        options["action"] = argparse.BooleanOptionalAction
    elif choices:
        options["choices"] = tuple(choices)
    else:
        options |= {"type": kind, "metavar": kind.__name__.upper()}
    action = groups[title].add_argument(flag(name), **options)
    action.takes_names = field.metadata["own"] is not None


def _help(name: str, owners: Sequence[Owner]) -> str:
    """What a setting is, whose it is where not everyone's, and its default or defaults."""
    text = owners[0].field.metadata["help"]
    if owners[0].field.metadata["own"] and owners[0].field.metadata["choices"]:
        text += "; or your own, package.module:name"
    slots = {owner.choices[-1][0] for owner in owners if owner.choices}
    defaults: dict[Any, list[str]] = {}
    for owner in owners:
        of = str(owner.choices[-1][1]) if owner.choices else ""
        defaults.setdefault(owner.field.default, []).append(of)
    if len(slots) == 1 and (slot := slots.pop()) in every_setting():
        whose = list(dict.fromkeys(str(owner.choices[-1][1]) for owner in owners))
        every = [str(kind) for kind in every_setting()[slot][0].field.metadata["kinds"] if kind]
        if ":" not in whose[0] and set(whose) != set(every) and len(whose) <= _NAMED:
            text = f"{', '.join(whose)}: {text}"
    if None in defaults:
        return text
    first, *others = defaults.items()
    said = [str(first[0]), *(f"{', '.join(dict.fromkeys(of))}, {value}" for value, of in others)]
    return f"{text} (default: {'; '.join(said)})"


def add_run(command: argparse.ArgumentParser) -> None:
    """The run folder, which comes first."""
    command.add_argument("run", type=Path, help="run folder")


def add_device(command: typing.Any) -> None:
    command.add_argument("--device", help="cpu, cuda or cuda:<number>; default: the GPU, if any")


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


def add_neighbors(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--neighbors",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="rank with the run's item-to-item neighbors, or by the model alone (default: with "
        "them where the run was trained with --neighbors)",
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
