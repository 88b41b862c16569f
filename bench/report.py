"""What every benchmark here writes: figures as JSON, and a page with tables for people."""

from __future__ import annotations

import shlex
import sys
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from measure import in_words

from alphafuse_ext.files import atomic_path, write_json


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
    """A Markdown page: the command, a line for each fact of machine and setting, the results."""
    lines = [f"# {title}", "", f"`{ran}`", ""]
    lines += [f"- {name}: {in_words(value)}" for name, value in facts.items()]
    return "\n".join([*lines, "", *body]) + "\n"


def write(stem: Path, results: Mapping[str, Any], text: str) -> None:
    """Write `stem.json` and `stem.md`, each whole or not at all, and say so."""
    write_json(stem.with_suffix(".json"), results)
    with atomic_path(stem.with_suffix(".md")) as temporary:
        temporary.write_text(text)
    print(f"wrote {stem.with_suffix('.md')} and .json")


def tell(
    title: str,
    facts: Mapping[str, Any],
    body: Sequence[str],
    stem: Path | None,
    results: Mapping[str, Any],
) -> None:
    """Print a page; :func:`write` it and its figures, where ``stem`` says where."""
    text = page(title, command(), facts, body)
    print(text)
    if stem is not None:
        write(stem, {"facts": facts, **results}, text)
