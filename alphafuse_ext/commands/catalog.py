"""``alphafuse add-items``, ``retire-items``, ``restore-items``, ``upgrade-embeddings``.

A run whose catalog changes: each writes a folder of its own; the run's stays as it is.
"""

from __future__ import annotations

import argparse
import json
import sys
import typing
from pathlib import Path

from alphafuse_ext.checks import invalid
from alphafuse_ext.commands.options import (
    add_any_embeddings,
    add_device,
    add_run,
    naming_flags,
    read_lines,
)
from alphafuse_ext.commands.reading import add_columns, add_ids_are_rows, reading_options

if typing.TYPE_CHECKING:
    from alphafuse_ext.serving.recommender import Recommender


def add_add_items(adding: argparse.ArgumentParser) -> None:
    adding.set_defaults(command=_add_items)
    adding.add_argument("--items", type=Path, help="the new items, as for alphafuse train")
    add_columns(adding, ("items",))
    _add_embeddings(adding)
    add_any_embeddings(adding)
    _add_folders(adding)


def add_retire_items(retiring: argparse.ArgumentParser) -> None:
    retiring.set_defaults(command=lambda options: _change_items(options, "retire_items"))
    _add_item_ids(retiring)
    _add_folders(retiring)


def add_restore_items(restoring: argparse.ArgumentParser) -> None:
    restoring.set_defaults(command=lambda options: _change_items(options, "restore_items"))
    _add_item_ids(restoring)
    _add_folders(restoring)


def _add_item_ids(command: argparse.ArgumentParser) -> None:
    named = command.add_mutually_exclusive_group(required=True)
    named.add_argument("--items", nargs="+", metavar="ITEM", help="item ids")
    named.add_argument("--items-file", type=Path, help="a text file of item ids, one per line")


def add_upgrade_embeddings(upgrading: argparse.ArgumentParser) -> None:
    upgrading.set_defaults(command=_upgrade_embeddings)
    upgrading.add_argument(
        "--item-column", help="id column of --embeddings, if they are by item id (default: guessed)"
    )
    _add_embeddings(upgrading)
    _add_folders(upgrading)


def _add_embeddings(command: argparse.ArgumentParser) -> None:
    command.add_argument("--embeddings", type=Path, help="as for alphafuse train")
    add_ids_are_rows(command, "as for alphafuse train")


def _add_folders(command: argparse.ArgumentParser) -> None:
    add_run(command)
    add_device(command)
    command.add_argument("--output", type=Path, required=True, help="the new run folder")


def _add_items(options: argparse.Namespace) -> None:
    with naming_flags(options):
        changed = _loaded(options).add_items(
            options.items,
            options.embeddings,
            any_embeddings=options.any_embeddings,
            log=print,
            **reading_options(options, ("items",)),
        )
    _save(changed, options.output)


def _change_items(options: argparse.Namespace, method: str) -> None:
    items = options.items
    if options.items_file is not None:
        items = read_lines("--items-file", options.items_file, "item")
    with naming_flags(options):
        changed = getattr(_loaded(options), method)(items)
    _save(changed, options.output)


def _upgrade_embeddings(options: argparse.Namespace) -> None:
    if options.embeddings is None:
        raise invalid("--embeddings", "none", "a file, as for alphafuse train")
    with naming_flags(options):
        changed, report = _loaded(options).upgrade_embeddings(
            options.embeddings,
            item_column=options.item_column,
            ids_are_rows=options.ids_are_rows,
            log=lambda line: print(line, file=sys.stderr),  # the report is what it prints
        )
    print(json.dumps(report, indent=2))
    _save(changed, options.output)


def _loaded(options: argparse.Namespace) -> Recommender:
    from alphafuse_ext.runs.run_folder import RunFolder
    from alphafuse_ext.serving.recommender import Recommender

    RunFolder.check_new(options.output)
    return Recommender.load(options.run, options.device)


def _save(recommender: Recommender, output: Path) -> None:
    saved = recommender.save(output)
    print(
        f"{'; '.join(saved.source()['changes'])}: {saved.run.path}, of {len(saved.items):,} items"
    )
