"""A catalog over several processes, by `torch.distributed`: each rank holds some of its rows.

    >>> torch.distributed.init_process_group("gloo")                  # or "nccl"
    >>> table = ShardedItemTable.from_space(space, language_embeddings, dim=128, null_dim=64)
    >>> loss = table.cross_entropy(queries, targets)                  # of this rank's own queries

The merges are for people with an engine of their own: every op gives, for a part of a catalog, what
they put together.
"""

from alphafuse_ext.distributed.merge import merge_log_sum_exp, merge_topk, shard_bounds
from alphafuse_ext.distributed.sharded_table import ShardedItemTable

__all__ = ["ShardedItemTable", "merge_log_sum_exp", "merge_topk", "shard_bounds"]
