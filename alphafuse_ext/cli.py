"""The command line: its parser, and how commands end."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import textwrap
import threading
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib import import_module
from types import FrameType
from typing import Any

from alphafuse_ext import __version__
from alphafuse_ext.checks import invalid
from alphafuse_ext.commands import COMMANDS
from alphafuse_ext.commands.parser import Parser
from alphafuse_ext.torchrun import FirstRankError, RankError, place_in_torchrun

_EXPECTED = (
    *(ValueError, TypeError, IndexError, OSError, ImportError, FloatingPointError),
    *(NotImplementedError, MemoryError),
)
"""Exceptions raised for bad input, or for lack of memory."""


class Terminated(BaseException):
    """Raised by a signal that ends a command; partial files are removed.

    Args:
        number: of the signal.
    """

    def __init__(self, number: int) -> None:
        self.number = number


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: what follows the program's name; default: ``sys.argv[1:]``.

    Returns:
        The exit status: 0; 2 for bad input, with one line on standard error; 1 where another of
        torchrun's processes has failed, or a run of a comparison or search, or where a check finds
        a run worse; 70 for a fault of this package, with a traceback; 130 when interrupted, 141 if
        standard output is closed, and 143 when terminated.
    """
    try:
        status = _run(arguments)
    except BrokenPipeError:
        _print_no_more()
        return 128 + signal.SIGPIPE
    except SystemExit as end:  # of argparse, which prints help
        end.code = _flushed(end.code)
        raise
    return _flushed(status)


def _flushed(status: Any) -> Any:
    """The exit status, or another where what was printed has not arrived."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()  # here, and not when the interpreter ends
    except BrokenPipeError:
        _print_no_more()
        return 128 + signal.SIGPIPE
    except OSError as error:
        _print_no_more()
        return status or _failed(f"standard output: {error}")
    return status


def _run(arguments: Sequence[str] | None) -> int:
    try:
        arguments = sys.argv[1:] if arguments is None else arguments
        command = next((word for word in arguments if not word.startswith("-")), "")
        options = parser(command).parse_args(arguments)
    except KeyboardInterrupt:  # while a command is imported
        return 128 + signal.SIGINT
    except (OSError, ImportError) as error:  # torch asks for a folder for temporary files
        return _failed(error)
    try:
        with _signals(options), warnings.catch_warnings():
            warnings.showwarning = _show_warning  # type: ignore[assignment]
            if place_in_torchrun()[1] > 1 and not getattr(options, "torchrun", False):
                allowed = "train or recommend --parts, which share out their work"
                raise invalid("torchrun", "a command for one process", allowed)
            status: int | None = options.command(options)
    except BrokenPipeError:
        raise
    except _EXPECTED as error:
        if options.traceback:
            raise
        return _failed(error)
    except FirstRankError:  # which has reported its error
        return 1
    except RankError as error:
        if options.traceback:
            raise
        _failed(error)
        return 1
    except KeyboardInterrupt:
        print("alphafuse: interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
    except Terminated as end:
        print(f"alphafuse: ended by {signal.Signals(end.number).name}", file=sys.stderr)
        return 128 + end.number
    except Exception as error:
        if "torch" in sys.modules and isinstance(error, sys.modules["torch"].OutOfMemoryError):
            return _failed(error)
        traceback.print_exc()
        _failed("unexpected error, a bug in alphafuse; please report it with the lines above")
        return 70
    return status or 0


def _failed(error: BaseException | str) -> int:
    """Say why on one line."""
    said = " ".join(str(error).split("\n")) or type(error).__name__
    print(f"alphafuse: error: {said}", file=sys.stderr)
    return 2


def _print_no_more() -> None:
    """Discard remaining output, or the interpreter fails when it flushes at exit."""
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


@contextmanager
def _signals(options: argparse.Namespace) -> Iterator[None]:
    """SIGTERM and SIGHUP as exceptions: files that are not whole are cleared away, runs ended.

    Not in processes that work together: one that waits in a collective handles no signal, and
    runs remove leftovers when they are resumed.
    """
    before = {}
    alone = not getattr(options, "together", False) and place_in_torchrun()[1] == 1
    if alone and threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is signal.SIG_DFL:
                before[number] = signal.signal(number, _terminate)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _terminate(number: int, _: FrameType | None) -> None:
    raise Terminated(number)


def _show_warning(message: Warning | str, *_: object) -> None:
    print(f"alphafuse: warning: {message}", file=sys.stderr)


def parser(command: str | None = None) -> Parser:
    """The parser of all commands.

    Args:
        command: the one whose options it has, so that no other is imported; ``None``: all.
    """
    whole = Parser(
        prog="alphafuse",
        description="Train and serve sequential recommenders on fused language and ID embeddings.",
        epilog="options of a command: alphafuse COMMAND --help",
    )
    whole.add_argument("--version", action="version", version=f"alphafuse_ext {__version__}")
    whole.add_argument("--traceback", action="store_true", help="show where an error came from")
    commands = whole.add_subparsers(required=True, metavar="COMMAND")
    for name, one in COMMANDS.items():
        about = f"{one.help[0].upper()}{one.help[1:]}. {one.more}"
        of_command = commands.add_parser(
            name,
            help=one.help,
            description="\n".join(textwrap.wrap(about, 90)),
            epilog=f"example:\n  {one.example}",
        )
        if command in (None, name):
            module = import_module(f"alphafuse_ext.commands.{one.module}")
            getattr(module, f"add_{name.replace('-', '_')}")(of_command)
    return whole
