"""Sequential recommenders on fused language and ID embeddings (AlphaFuse, SIGIR 2025).

Each name is imported at its first use, so that what needs no PyTorch does not wait for it. Custom
ops (``torch.ops.alphafuse``) are there after ``import alphafuse_ext.ops``.
"""

from importlib import import_module
from pkgutil import extend_path
from typing import TYPE_CHECKING, Any

# `python -m alphafuse_ext` in a source checkout imports these sources, while the native core
# may lie with the installed package: look for submodules there as well.
__path__ = extend_path(__path__, __name__)

from alphafuse_ext._version import __version__

if TYPE_CHECKING:
    from alphafuse_ext import data, distributed, models, optim
    from alphafuse_ext.build import build_info
    from alphafuse_ext.config import Config
    from alphafuse_ext.data import Dataset
    from alphafuse_ext.files import UnreadableFileError
    from alphafuse_ext.items.neighbors import ItemNeighbors
    from alphafuse_ext.items.space import SemanticSpace
    from alphafuse_ext.items.table import ItemTable
    from alphafuse_ext.ops import reference
    from alphafuse_ext.ops.arguments import Mixture
    from alphafuse_ext.ops.compressed import CompressedTables
    from alphafuse_ext.ops.cross_entropy import cross_entropy
    from alphafuse_ext.ops.lookup import lookup
    from alphafuse_ext.ops.sampled_softmax import sampled_softmax
    from alphafuse_ext.ops.score_all import score_all
    from alphafuse_ext.ops.score_candidates import score_candidates
    from alphafuse_ext.ops.target_ranks import target_ranks
    from alphafuse_ext.ops.topk import topk
    from alphafuse_ext.runs.run_folder import RunFolder
    from alphafuse_ext.serving.recommender import Recommender
    from alphafuse_ext.training.extend import extend
    from alphafuse_ext.training.refit import refit
    from alphafuse_ext.training.train import fit, resume

_MODULES = {
    "CompressedTables": "ops.compressed",
    "Config": "config",
    "Dataset": "data",
    "ItemNeighbors": "items.neighbors",
    "ItemTable": "items.table",
    "Mixture": "ops.arguments",
    "Recommender": "serving.recommender",
    "RunFolder": "runs.run_folder",
    "SemanticSpace": "items.space",
    "UnreadableFileError": "files",
    "build_info": "build",
    "cross_entropy": "ops",
    "extend": "training.extend",
    "fit": "training.train",
    "lookup": "ops",
    "reference": "ops",
    "refit": "training.refit",
    "resume": "training.train",
    "sampled_softmax": "ops",
    "score_all": "ops",
    "score_candidates": "ops",
    "target_ranks": "ops",
    "topk": "ops",
}
"""Which module has a name."""
_PACKAGES = ("data", "distributed", "models", "optim")
"""Public names that are packages or modules of their own."""

__all__ = [
    "CompressedTables",
    "Config",
    "Dataset",
    "ItemNeighbors",
    "ItemTable",
    "Mixture",
    "Recommender",
    "RunFolder",
    "SemanticSpace",
    "UnreadableFileError",
    "__version__",
    "build_info",
    "cross_entropy",
    "data",
    "distributed",
    "extend",
    "fit",
    "lookup",
    "models",
    "optim",
    "reference",
    "refit",
    "resume",
    "sampled_softmax",
    "score_all",
    "score_candidates",
    "target_ranks",
    "topk",
]


def __getattr__(name: str) -> Any:
    if name in _PACKAGES:
        return import_module(f"alphafuse_ext.{name}")
    if name in _MODULES:
        value = getattr(import_module(f"alphafuse_ext.{_MODULES[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
