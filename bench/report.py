"""Pages with tables, the output of all benchmarks."""

from __future__ import annotations

import shlex
import sys
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from measure import in_words

from alphafuse_ext.files import atomic_path


def command() -> str:
    """The command line that runs, as one would repeat it."""
    return shlex.join(["python", *sys.argv])


def table(header: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> list[str]:
    """The lines of a Markdown table: ``left`` columns of words, then numbers."""
    # Where one is written: a process that only measures does without what pictures need.
    from alphafuse_ext.experiments import report

    return report.table(header, rows, left)


def plain(header: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> list[str]:
    """The same for a terminal alone, with nothing between the columns."""
    from alphafuse_ext.experiments import report

    return ["  ".join(cells).rstrip() for cells in report.aligned(header, rows, left)]


def wrapped(text: str) -> list[str]:
    """The lines of a paragraph, for a terminal."""
    return textwrap.wrap(text, 100)


def page(title: str, ran: str, facts: Mapping[str, Any], body: Sequence[str]) -> str:
    """A Markdown page: commit and date, the command, a line for each other fact, the results."""
    when = ", ".join(str(facts[name]) for name in ("commit", "date") if name in facts)
    lines = [
        f"# {title}",
        "",
        *([f"Measured at commit {when}.", ""] if when else []),
        f"`{ran}`",
        "",
    ]
    lines += [
        f"- {name}: {in_words(value)}"
        for name, value in facts.items()
        if name not in ("commit", "date")
    ]
    return "\n".join([*lines, "", *body]) + "\n"


def write(path: Path, text: str) -> None:
    """Write a page atomically, and print its path."""
    with atomic_path(path) as temporary:
        temporary.write_text(text)
    print(f"wrote {path}")


def write_page(
    title: str, facts: Mapping[str, Any], body: Sequence[str], path: Path | None
) -> None:
    """Print a page; :func:`write` it, where ``path`` says where."""
    text = page(title, command(), facts, body)
    print(text)
    if path is not None:
        write(path, text)
