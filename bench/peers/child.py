"""What the scripts of ``sasrec.py`` share, each of which runs in its package's own environment.

Standard library alone: those environments do not have this package.
"""

from __future__ import annotations

import argparse
import json
import resource
from collections.abc import Hashable, Iterable, Mapping
from pathlib import Path
from typing import Any

from optional import need


def settings(description: str | None, *modules: str) -> dict[str, Any]:
    """What ``sasrec.py`` asks for: JSON, the only argument.

    Args:
        description: of the script, for ``--help``.
        modules: what its environment must have.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("settings", type=json.loads, help="JSON, which sasrec.py writes")
    found: dict[str, Any] = parser.parse_args().settings
    need(*modules)
    return found


def items_of(data: str, dataset: str) -> dict[str, list[str]]:
    """Every user's items in order, all as text; the last is the target."""
    lines = (Path(data) / dataset / f"{dataset}.inter").read_text().splitlines()[1:]
    rows = [line.split("\t") for line in lines]
    rows.sort(key=lambda row: float(row[2]))  # stable: of equal times in the file's order
    found: dict[str, list[str]] = {}
    for user, item, _ in rows:
        found.setdefault(user, []).append(item)
    return found


def histories(data: str, dataset: str) -> dict[str, list[str]]:
    """What comes before the target, see :func:`items_of`."""
    return {user: items[:-1] for user, items in items_of(data, dataset).items()}


def report(
    output: str,
    epoch_seconds: Iterable[float],
    ranking_seconds: float,
    lists: Mapping[Hashable, Iterable[Hashable]],
    package: str,
    notes: str,
) -> None:
    """Writes what was measured.

    Args:
        output: the file.
        epoch_seconds: of training, without validation.
        ranking_seconds: of ranking the whole catalog for all users.
        lists: the ten best unseen items of each user, best first.
        package: name and version.
        notes: settings that are its own.
    """
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts KiB
    result = {
        "package": package,
        "notes": notes,
        "epoch_seconds": list(epoch_seconds),
        "ranking_seconds": ranking_seconds,
        "peak_bytes": peak,
        "lists": {str(user): [str(item) for item in items] for user, items in lists.items()},
    }
    Path(output).write_text(json.dumps(result))
