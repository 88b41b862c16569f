"""Models with a sharded item table, and their state as that of a replicated model."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from alphafuse_ext.checks import invalid
from alphafuse_ext.config import Config
from alphafuse_ext.distributed.process_group import ProcessGroup
from alphafuse_ext.distributed.sharded_table import ShardedItemTable
from alphafuse_ext.items.table import ItemTable
from alphafuse_ext.models import SequenceModel

_WHOLE, _OWN = "table.", "table.shard."

SHARDED = ("alphafuse", "id", "llminit", "frozen")
"""Item embeddings that are rows; others are computed from all rows by modules of their own."""


def check_sharding(config: Config) -> None:
    """Raises ``ValueError`` if the table of ``config`` cannot be sharded."""
    if config.item_embedding not in SHARDED:
        allowed = f"one of {', '.join(SHARDED)} with shard_items"
        raise invalid("item_embedding", repr(config.item_embedding), allowed)
    if config.space_split == "learned":
        raise invalid("space_split", "'learned'", "'hard' or 'soft' with shard_items")


def shard_items(model: SequenceModel, process_group: ProcessGroup) -> None:
    """Replace a model's item table by this rank's shard; the model is the same on all ranks."""
    assert isinstance(model.table, ItemTable), "check_sharding comes first"
    model.table = ShardedItemTable.from_table(model.table, process_group.group)


def whole_state(model: SequenceModel, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Gather parameters or moments of the whole model on the first rank.

    A collective if the model is sharded; other ranks get an empty dict.
    """
    table = model.table
    if not isinstance(table, ShardedItemTable):
        return dict(own)
    state = {}
    for name, tensor in own.items():
        if name.startswith(_OWN) and tensor.ndim:
            tensor = table.gathered(tensor)
        state[name.replace(_OWN, _WHOLE, 1)] = tensor
    return state if table.process_group.first else {}


def own_state(model: SequenceModel, whole: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """This rank's parameters or moments, from those of the whole model."""
    table = model.table
    if not isinstance(table, ShardedItemTable):
        return dict(whole)
    rows = slice(table.first_id, table.first_id + table.shard.num_embeddings)
    return {
        name.replace(_WHOLE, _OWN, 1): tensor[rows].clone()
        if name.startswith(_WHOLE) and tensor.ndim
        else tensor
        for name, tensor in whole.items()
    }
