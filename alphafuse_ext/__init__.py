"""Sequential recommenders on fused language and ID embeddings (AlphaFuse, SIGIR 2025).

The ops and modules are imported at once; the training side, which needs pandas, scikit-learn and
more, at its first use.
"""

from importlib import import_module
from pkgutil import extend_path
from typing import TYPE_CHECKING, Any

# `python -m alphafuse_ext` in a source checkout imports these sources, while the native core
# may lie with the installed package: look for submodules there as well.
__path__ = extend_path(__path__, __name__)

__version__ = "0.1.0"

from alphafuse_ext.build import build_info
from alphafuse_ext.files import UnreadableFileError
from alphafuse_ext.ops import (
    CompressedTables,
    cross_entropy,
    lookup,
    score_all,
    score_candidates,
    target_ranks,
    topk,
)
from alphafuse_ext.space import SemanticSpace
from alphafuse_ext.table import ItemTable

if TYPE_CHECKING:
    from alphafuse_ext.config import Config
    from alphafuse_ext.recommender import Recommender
    from alphafuse_ext.run import RunFolder
    from alphafuse_ext.train import fit, resume

_LAZY = {
    "Config": "config",
    "Recommender": "recommender",
    "RunFolder": "run",
    "fit": "train",
    "resume": "train",
}

__all__ = [
    "CompressedTables",
    "Config",
    "ItemTable",
    "Recommender",
    "RunFolder",
    "SemanticSpace",
    "UnreadableFileError",
    "build_info",
    "cross_entropy",
    "fit",
    "lookup",
    "resume",
    "score_all",
    "score_candidates",
    "target_ranks",
    "topk",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(f"alphafuse_ext.{_LAZY[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
