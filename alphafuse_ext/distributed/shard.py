"""A rank's shard of an item table."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

import alphafuse_ext._core as _core
from alphafuse_ext._version import __version__
from alphafuse_ext.checks import invalid
from alphafuse_ext.distributed.merge import shard_bounds
from alphafuse_ext.distributed.process_group import ProcessGroup
from alphafuse_ext.items.table import ItemTable
from alphafuse_ext.ops import native
from alphafuse_ext.ops.precision import precision_of
from alphafuse_ext.ops.tables import FusedTables


class Shard(nn.Module):
    """Base class of :class:`ShardedItemTable`; see there for arguments and attributes."""

    def __init__(self, shard: ItemTable, num_items: int, group: Any = None) -> None:
        super().__init__()
        if shard.coordinates == "learned":
            allowed = "a hard split, or a soft one of fixed gains"
            raise invalid("shard", "a table of learned gains", allowed)
        self.group = group
        self.process_group = ProcessGroup(group)
        self.bounds = shard_bounds(num_items, self.process_group.size)
        self.shard = shard
        self.first_id = self.bounds[self.process_group.rank]
        self.num_embeddings = self.padding_idx = num_items
        self.embedding_dim, self.null_dim = shard.embedding_dim, shard.null_dim
        self._check_shards()

    def _check_shards(self) -> None:
        """Refuse, on all ranks, shards that are not of one table."""
        semantic, own = self.shard._tables
        facts = {
            "num_items": self.num_embeddings,
            "fusion": self.shard.fusion,
            "coordinates": self.shard.coordinates,
            "columns": [None if t is None else (t.shape[1], str(t.dtype)) for t in (semantic, own)],
            "alphafuse_ext": __version__,
            "torch": torch.__version__,
        }
        self.process_group.check_same(facts)
        wanted = [end - start for start, end in pairwise(self.bounds)]
        found = self.process_group.gather(self.shard.num_embeddings)
        if found != wanted:
            raise invalid("shard", f"{found} rows on the ranks", f"{wanted}")

    @property
    def device(self) -> torch.device:
        """The device of the shard."""
        return self.shard._any_table.device

    def parts_of(self, queries: Tensor, similarity: str, exact: bool = False) -> FusedTables:
        """The shard's tables, whose rows have the ids of the whole catalog, for some queries."""
        table = self.shard
        pair = table._tables
        FusedTables.checked(*pair, table._stored_fusion, similarity)
        part = _core.Tables(*pair, table._stored_fusion, similarity, self.first_id)
        cosine = similarity == "cosine"
        tables = FusedTables(*pair, table._stored_fusion, cosine, native=part)
        tables.precision = precision_of(queries, tables, exact=exact)
        return tables

    def to_local(self, ids: Tensor) -> Tensor:
        """Convert ids of the whole catalog to those of this shard; -1 for items of other shards."""
        here = (ids >= self.first_id) & (ids < self.bounds[self.process_group.rank + 1])
        return torch.where(here, ids - self.first_id, -1)

    def target_scores(self, tables: FusedTables, queries: Tensor, targets: Tensor) -> Tensor:
        """Of targets in this shard; 0 of all others."""
        scores = queries.new_zeros(len(queries))
        kernels, where = native.kernels(queries, tables.precision)
        kernels.target_scores(tables.native(), queries, targets, scores, where)
        return scores.where(self.to_local(targets) >= 0, 0.0)

    def extra_repr(self) -> str:
        rank, size = self.process_group.rank, self.process_group.size
        return f"rank {rank} of {size}, items {self.first_id} to {self.bounds[rank + 1] - 1}"
