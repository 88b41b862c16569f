"""The command line: its parser, and how commands end."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Sequence

from alphafuse_ext import __version__
from alphafuse_ext.checks import invalid
from alphafuse_ext.commands import catalog, data, experiments, inspect, serve, train
from alphafuse_ext.torchrun import FirstRankError, RankError, place_in_torchrun


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: what follows the program's name; ``sys.argv[1:]`` where not given.

    Returns:
        The exit status: 0; 2 for bad input, with one line on standard error; 1 where another of
        torchrun's processes has failed, or a run of a comparison or search; 130 when interrupted.
    """
    options = parser().parse_args(arguments)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning  # type: ignore[assignment]
            if place_in_torchrun()[1] > 1 and not getattr(options, "ranks", False):
                allowed = "train or recommend --parts, which share out their work"
                raise invalid("torchrun", "a command for one process", allowed)
            status: int | None = options.command(options)
    except (ValueError, TypeError, IndexError, OSError, ImportError, FloatingPointError) as error:
        if options.traceback:
            raise
        print(f"alphafuse: error: {error}", file=sys.stderr)
        return 2
    except FirstRankError:  # which has said what it failed by
        return 1
    except RankError as error:
        if options.traceback:
            raise
        print(f"alphafuse: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("alphafuse: interrupted", file=sys.stderr)
        return 130
    return status or 0


def _show_warning(message: Warning | str, *_: object) -> None:
    print(f"alphafuse: warning: {message}", file=sys.stderr)


def parser() -> argparse.ArgumentParser:
    """All commands with their flags."""
    whole = argparse.ArgumentParser(
        prog="alphafuse",
        description="Sequential recommenders on fused language and ID embeddings.",
    )
    whole.add_argument("--version", action="version", version=f"alphafuse_ext {__version__}")
    whole.add_argument("--traceback", action="store_true", help="show where an error came from")
    commands = whole.add_subparsers(required=True, metavar="COMMAND")
    for group in (train, data, serve, catalog, experiments, inspect):
        group.add(commands)
    return whole
