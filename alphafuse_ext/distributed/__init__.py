"""Several processes with `torch.distributed`: item tables sharded over ranks.

    >>> torch.distributed.init_process_group("gloo")                  # or "nccl"
    >>> table = ShardedItemTable.from_space(space, language_embeddings, dim=128)
    >>> loss = table.cross_entropy(queries, targets)                  # of this rank's own queries

:class:`ProcessGroup` is for processes that train a replicated model together.

The merge functions are for your own engine: they combine results of an op over catalog shards.
"""

from alphafuse_ext.distributed.checkpoint import load_checkpoint, save_checkpoint
from alphafuse_ext.distributed.merge import merge_log_sum_exp, merge_topk, shard_bounds
from alphafuse_ext.distributed.process_group import ProcessGroup, RankError
from alphafuse_ext.distributed.sharded_table import ShardedItemTable

__all__ = [
    "ProcessGroup",
    "RankError",
    "ShardedItemTable",
    "load_checkpoint",
    "merge_log_sum_exp",
    "merge_topk",
    "save_checkpoint",
    "shard_bounds",
]


def __dir__() -> list[str]:
    return __all__
