"""Checkpoints of a model whose item table is sharded: written by all ranks, read by any number.

A folder has ``checkpoint.json`` with the shard bounds, and a safetensors file for each rank with
its rows of the tables and their optimizer states. The first rank's file also has all replicated
state. A rank that loads reads its rows from the files that have them.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from alphafuse_ext._version import __version__
from alphafuse_ext.checks import invalid
from alphafuse_ext.distributed.process_group import broadcasting
from alphafuse_ext.distributed.sharded_table import ShardedItemTable
from alphafuse_ext.files import (
    Record,
    UnreadableFileError,
    atomic_folder,
    check_writable,
    load_tensors,
    read_json,
    save_tensors,
    write_json,
)
from alphafuse_ext.models.moments import moments, restore_moments

_FACTS = "checkpoint.json"
_RANK = "rank-{}.safetensors"
_KIND = "rank of a checkpoint"
_MODEL, _OPTIMIZER = "model/", "optimizer/"


def save_checkpoint(
    folder: str | os.PathLike[str],
    model: nn.Module,
    optimizers: Iterable[torch.optim.Optimizer] = (),
    facts: Mapping[str, Any] | None = None,
) -> None:
    """Save a model, optimizers and metadata to a new folder, atomically; a collective.

    Args:
        folder: a new folder on a shared file system.
        model: a :class:`ShardedItemTable`, or a module that has one; all its other state, and that
            of the optimizers, is replicated.
        optimizers: of its parameters.
        facts: metadata as JSON, such as ``{"step": 1000}``; taken from the first rank.

    Raises:
        FileExistsError: ``folder`` exists; on other ranks ``FirstRankError``.
        ValueError: a model without a sharded table, or with several; state that only some ranks
            have, or of the wrong number of rows.
    """
    table = _table_of(model)
    process_group = table.process_group
    state = process_group.each(lambda: _state(model, table, optimizers))
    process_group.check_same({"state": sorted(state)})
    with ExitStack() as stack:
        if process_group.first:
            with broadcasting(process_group) as send:
                if Path(folder).exists():
                    allowed = "a folder that does not exist yet"
                    raise invalid("folder", f"{folder}, which exists", allowed, FileExistsError)
                check_writable("folder", folder)
                temporary = stack.enter_context(atomic_folder(folder))
                described = {**_kind(table), "bounds": table.bounds, "facts": dict(facts or {})}
                write_json(temporary / _FACTS, described)
                send(temporary)
        else:
            temporary = process_group.receive()
        own = {
            name: part.own for name, part in state.items() if part.sharded or process_group.first
        }
        process_group.each(
            lambda: save_tensors(temporary / _RANK.format(process_group.rank), _KIND, own)
        )
    process_group.each(lambda: None)  # until it has its name


def load_checkpoint(
    folder: str | os.PathLike[str],
    model: nn.Module,
    optimizers: Iterable[torch.optim.Optimizer] = (),
) -> dict[str, Any]:
    """Load a checkpoint of :func:`save_checkpoint`, on any number of ranks; a collective.

    Args:
        folder: of :func:`save_checkpoint`.
        model: built like the saved one; its parameters and buffers are written in place.
        optimizers: like the saved ones, or none to skip their state.

    Returns:
        ``facts``.

    Raises:
        FileNotFoundError, UnreadableFileError: the checkpoint is missing or incomplete.
        ValueError: it is of another catalog, kind of table or model. Nothing is changed then.
    """
    table = _table_of(model)
    optimizers = list(optimizers)
    state = _state(model, table, ())

    def find() -> tuple[dict[str, Any], dict[str, list[Tensor]]]:
        files = _Files(Path(folder), table)
        if differ := sorted({_state_name(name) for name in files.whole} ^ set(state)):
            found = f"{folder}, of another model, which differs in {', '.join(differ)}"
            raise invalid("folder", found, "one of a model like this")
        wanted = [name for name in files.whole if name in state or optimizers]
        pieces = {name: files.pieces(name, state[_state_name(name)].sharded) for name in wanted}
        for name, (own, sharded) in state.items():
            first = pieces[name][0]
            shape = (len(first), *own.shape[1:]) if sharded else tuple(own.shape)
            if (first.dtype, tuple(first.shape)) != (own.dtype, shape):
                found = f"{folder}, with {name} of {first.dtype}, shape {tuple(first.shape)}"
                raise invalid("folder", found, f"{own.dtype}, shape {shape}")
        return files.facts, pieces

    facts, found = table.process_group.each(find)
    kept = {}
    for name, pieces in found.items():
        own = state[_state_name(name)].own
        if name in state:
            places = [own] if len(pieces) == 1 else own.split([len(piece) for piece in pieces])
            for place, piece in zip(places, pieces, strict=True):
                place.copy_(piece)
        else:
            whole = pieces[0].clone() if len(pieces) == 1 else torch.cat(pieces)
            kept[name.removeprefix(_OPTIMIZER)] = whole.to(own.device)
    if optimizers:
        restore_moments(model, optimizers, kept)
    return facts


class _Files:
    """An open checkpoint; tensors are read lazily.

    Args:
        folder: the checkpoint.
        table: that it is read into.

    Attributes:
        facts: as given to :func:`save_checkpoint`.
        whole: the first rank's file, which has every name.
    """

    def __init__(self, folder: Path, table: ShardedItemTable) -> None:
        path = folder / _FACTS
        if not path.is_file():
            allowed = f"a checkpoint, which holds a {_FACTS}"
            raise invalid("folder", folder, allowed, FileNotFoundError)
        described = read_json(path)
        found = Record(path, described if isinstance(described, dict) else {})
        for name, value in _kind(table).items():
            if name != "alphafuse_ext" and found[name] != value:
                raise invalid("folder", f"{folder}, of {name} {found[name]}", f"{name} {value}")
        self.facts, self.bounds = found["facts"], found["bounds"]
        if not _are_bounds(self.bounds, table.num_embeddings):
            raise UnreadableFileError(path, f"its bounds are {self.bounds}")
        self.rows = table.first_id, table.first_id + table.shard.num_embeddings
        self.files = [
            load_tensors(folder / _RANK.format(rank), _KIND)[0]
            for rank in range(len(self.bounds) - 1)
        ]
        self.whole = self.files[0]

    def pieces(self, name: str, sharded: bool) -> list[Tensor]:
        """A tensor; of one that has a row for each item, this rank's, from each file with some."""
        whole = self.whole[name]
        if not sharded or whole.ndim == 0:  # a count of steps
            return [whole]
        pieces = []
        for file, (start, end) in zip(self.files, pairwise(self.bounds), strict=True):
            if (found := tuple(file[name].shape)) != (end - start, *whole.shape[1:]):
                raise UnreadableFileError(file.path, f"it has {name} of shape {found}")
            first, last = max(start, self.rows[0]), min(end, self.rows[1])
            if first < last:
                pieces.append(file[name][first - start : last - start])
        return pieces


def _are_bounds(bounds: Any, num_items: int) -> bool:
    return (
        isinstance(bounds, list)
        and all(type(bound) is int for bound in bounds)
        and bounds[:1] == [0]
        and bounds[-1] == num_items
        and all(start < end for start, end in pairwise(bounds))
    )


def _state_name(name: str) -> str:
    """The name of the parameter that a moment is of; of a parameter or a buffer, its own."""
    if name.startswith(_OPTIMIZER):
        return _MODEL + name.removeprefix(_OPTIMIZER).rpartition(".")[0]
    return name


def _table_of(model: nn.Module) -> ShardedItemTable:
    found = [module for module in model.modules() if isinstance(module, ShardedItemTable)]
    if len(found) != 1:
        allowed = "a model with one ShardedItemTable"
        raise invalid("model", f"{type(model).__name__}, with {len(found)}", allowed)
    return found[0]


def _kind(table: ShardedItemTable) -> dict[str, Any]:
    """What a checkpoint's table must share with the one that it is read into."""
    return {
        "alphafuse_ext": __version__,
        "num_items": table.num_embeddings,
        "fusion": table.shard.fusion,
        "coordinates": table.shard.coordinates,
        "embedding_dim": table.embedding_dim,
        "null_dim": table.null_dim,
    }


class _Part(NamedTuple):
    own: Tensor
    """What this rank has of it."""
    sharded: bool
    """Whether these are rows of its items; all ranks have everything else alike."""


def _state(
    model: nn.Module, table: ShardedItemTable, optimizers: Iterable[torch.optim.Optimizer]
) -> dict[str, _Part]:
    """Parameters, buffers and moments by name."""
    own = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    rows = [part for part in table.shard._tables if part is not None]
    sharded = {name: any(tensor is part for part in rows) for name, tensor in own.items()}
    state = {_MODEL + name: _Part(tensor.detach(), sharded[name]) for name, tensor in own.items()}
    for name, value in moments(model, optimizers).items():
        of_rows = sharded[name.rpartition(".")[0]] and value.ndim > 0  # not a count of steps
        if of_rows and len(value) != table.shard.num_embeddings:
            found = f"{name} of shape {tuple(value.shape)}"
            raise invalid("optimizers", found, "state of rows with a row for each")
        state[_OPTIMIZER + name] = _Part(value, of_rows)
    return state
