"""The ops on a fused table, one file each: schema, fake kernel, autograd, device dispatch."""

from alphafuse_ext.ops import reference
from alphafuse_ext.ops.arguments import Mixture
from alphafuse_ext.ops.compressed import CompressedTables
from alphafuse_ext.ops.cross_entropy import cross_entropy
from alphafuse_ext.ops.lookup import lookup
from alphafuse_ext.ops.sampled_softmax import sampled_softmax
from alphafuse_ext.ops.score_all import score_all
from alphafuse_ext.ops.score_candidates import score_candidates
from alphafuse_ext.ops.target_ranks import target_ranks
from alphafuse_ext.ops.topk import TopK, topk

__all__ = [
    "CompressedTables",
    "Mixture",
    "TopK",
    "cross_entropy",
    "lookup",
    "reference",
    "sampled_softmax",
    "score_all",
    "score_candidates",
    "target_ranks",
    "topk",
]


def __dir__() -> list[str]:
    return __all__
