"""Checkpoints of a model whose item table is sharded: written by all ranks, read by any number.

By `torch.distributed.checkpoint`: each rank writes its rows of the tables and their moments, and
one what all have alike; rows are found by their place in the catalog when they are read.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard

from alphafuse_ext._version import __version__
from alphafuse_ext.checks import invalid
from alphafuse_ext.distributed.ranks import leading
from alphafuse_ext.distributed.sharded_table import ShardedItemTable
from alphafuse_ext.files import atomic_folder, check_writable, read_json, write_json
from alphafuse_ext.models.moments import moments, restore_moments

_FACTS = "checkpoint.json"
_MODEL, _OPTIMIZER = "model/", "optimizer/"


def save_checkpoint(
    folder: str | os.PathLike[str],
    model: nn.Module,
    optimizers: Iterable[torch.optim.Optimizer] = (),
    facts: Mapping[str, Any] | None = None,
) -> None:
    """Write a model, optimizers and facts into a new folder, which appears whole; a collective.

    Args:
        folder: on a file system that all ranks see; nothing may be there yet.
        model: a :class:`ShardedItemTable`, or what has one; all else of it, and of the optimizers'
            state, is the same on each rank.
        optimizers: of its parameters, each rank's own for the rows that it holds.
        facts: what else belongs to it, as JSON, such as ``{"step": 1000}``; the first rank's count.

    Raises:
        FileExistsError: there is something at ``folder``; on other ranks ``FirstRankError``.
        ValueError: a model without a sharded table, or with several.
    """
    table = _table_of(model)
    ranks, state = table.ranks, _state(model, table, optimizers)
    with ExitStack() as stack:
        if ranks.first:
            with leading(ranks) as tell:
                if Path(folder).exists():
                    allowed = "a folder that does not exist yet"
                    raise invalid("folder", f"{folder}, which exists", allowed, FileExistsError)
                check_writable("folder", folder)
                temporary = stack.enter_context(atomic_folder(folder))
                write_json(temporary / _FACTS, {**_kind(table), "facts": dict(facts or {})})
                tell(temporary)
        else:
            temporary = ranks.hear()
        dcp.save(state, checkpoint_id=temporary, process_group=table.group)
    ranks.each(lambda: None)  # until it has its name


def load_checkpoint(
    folder: str | os.PathLike[str],
    model: nn.Module,
    optimizers: Iterable[torch.optim.Optimizer] = (),
) -> dict[str, Any]:
    """Read what :func:`save_checkpoint` wrote, on as many ranks as there are now; a collective.

    Args:
        folder: as given there.
        model: built as that one was; its parameters and buffers are written to, in place.
        optimizers: as given there, or none: what the folder has of them is not read then.

    Returns:
        The facts.

    Raises:
        FileNotFoundError, UnreadableFileError: there is no such checkpoint.
        ValueError: it is of another catalog, kind of table or model.
    """
    table = _table_of(model)
    optimizers = list(optimizers)

    def read() -> dict[str, Any]:
        if not Path(folder, _FACTS).is_file():
            allowed = f"a checkpoint, which holds a {_FACTS}"
            raise invalid("folder", folder, allowed, FileNotFoundError)
        found, wanted = read_json(Path(folder, _FACTS)), _kind(table)
        for name, value in wanted.items():
            if name != "alphafuse_ext" and found[name] != value:
                raise invalid("folder", f"{folder}, of {name} {found[name]}", f"{name} {value}")
        return found["facts"]

    facts = table.ranks.each(read)
    known = dcp.FileSystemReader(folder).read_metadata().state_dict_metadata
    state = _state(model, table, ())
    differ = sorted({name for name in known if name.startswith(_MODEL)} ^ set(state))
    if differ:
        found = f"{folder}, of another model, which differs in {', '.join(differ)}"
        raise invalid("folder", found, "one of a model like this")
    found_moments: dict[str, Tensor] = {}
    parameters = dict(model.named_parameters())
    for name, described in known.items():
        if optimizers and name.startswith(_OPTIMIZER):
            key = name.removeprefix(_OPTIMIZER)
            parameter = parameters[key.rpartition(".")[0]]
            assert isinstance(described, TensorStorageMetadata), "all that is written is tensors"
            size, sharded = list(described.size), _is_sharded(parameter, table)
            if size and sharded:
                size[0] = len(parameter)
            kept = torch.empty(size, dtype=described.properties.dtype, device=parameter.device)
            found_moments[key] = kept
            state[name] = _placed(kept, table, sharded)
    dcp.load(state, checkpoint_id=folder, process_group=table.group)
    if optimizers:
        restore_moments(model, optimizers, found_moments)
    return facts


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


def _state(
    model: nn.Module, table: ShardedItemTable, optimizers: Iterable[torch.optim.Optimizer]
) -> dict[str, Any]:
    """By name: tensors that all ranks have alike, and those of which each has its rows."""
    own = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    state = {
        _MODEL + name: _placed(tensor.detach(), table, _is_sharded(tensor, table))
        for name, tensor in own.items()
    }
    for name, value in moments(model, optimizers).items():
        sharded = _is_sharded(own[name.rpartition(".")[0]], table)
        state[_OPTIMIZER + name] = _placed(value, table, sharded)
    return state


def _is_sharded(tensor: Tensor, table: ShardedItemTable) -> bool:
    return any(tensor is part for part in table.shard._tables)


def _placed(tensor: Tensor, table: ShardedItemTable, sharded: bool) -> Tensor:
    """With its place in the catalog, where it is this rank's rows; not a count of steps."""
    if not sharded or tensor.ndim == 0:
        return tensor
    shape = torch.Size((table.num_embeddings, *tensor.shape[1:]))
    mesh = DeviceMesh.from_group(table.ranks.group, tensor.device.type)
    stride = torch.empty(shape, device="meta").stride()
    return DTensor.from_local(tensor, mesh, [Shard(0)], run_check=False, shape=shape, stride=stride)
