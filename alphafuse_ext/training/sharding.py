"""A model whose item table is shared out over ranks, and its state as that of a whole one."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from alphafuse_ext.checks import invalid
from alphafuse_ext.distributed.process_group import ProcessGroup
from alphafuse_ext.distributed.sharded_table import ShardedItemTable
from alphafuse_ext.items.table import ItemTable
from alphafuse_ext.models import SequenceModel
from alphafuse_ext.training.config import Config

_WHOLE, _OWN = "table.", "table.shard."

SHARDED = ("alphafuse", "id", "llminit", "frozen")
"""Item embeddings that are rows; others are computed from all rows by modules of their own."""


def check_sharding(config: Config) -> None:
    """Raises ``ValueError`` where a table by ``config`` cannot be shared out."""
    if config.item_embedding not in SHARDED:
        allowed = f"one of {', '.join(SHARDED)} with shard_items"
        raise invalid("item_embedding", repr(config.item_embedding), allowed)
    if config.space_split == "learned":
        raise invalid("space_split", "'learned'", "'hard' or 'soft' with shard_items")


def shard_items(model: SequenceModel, process_group: ProcessGroup) -> None:
    """Leave of a model's item table this rank's rows; the same model on each rank."""
    assert isinstance(model.table, ItemTable), "check_sharding comes first"
    model.table = ShardedItemTable.from_table(model.table, process_group.group)  # type: ignore[assignment]


def whole_state(model: SequenceModel, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A rank's parameters or moments by name as those of a whole model, on the first rank.

    A collective where the model is sharded; other ranks are given nothing.
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
    """Of a whole model's parameters or moments those of this rank's."""
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
