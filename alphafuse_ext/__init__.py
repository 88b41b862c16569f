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

from alphafuse_ext import models
from alphafuse_ext._version import __version__
from alphafuse_ext.build import build_info
from alphafuse_ext.files import UnreadableFileError
from alphafuse_ext.items.space import SemanticSpace
from alphafuse_ext.items.table import ItemTable
from alphafuse_ext.ops import (
    CompressedTables,
    cross_entropy,
    lookup,
    reference,
    score_all,
    score_candidates,
    target_ranks,
    topk,
)

if TYPE_CHECKING:
    from alphafuse_ext.training.config import Config
    from alphafuse_ext.training.extend import extend
    from alphafuse_ext.training.recommender import Recommender
    from alphafuse_ext.training.run import RunFolder
    from alphafuse_ext.training.train import fit, resume

_LAZY = {
    "Config": "training.config",
    "Recommender": "training.recommender",
    "RunFolder": "training.run",
    "extend": "training.extend",
    "fit": "training.train",
    "resume": "training.train",
}

__all__ = [
    "CompressedTables",
    "Config",
    "ItemTable",
    "Recommender",
    "RunFolder",
    "SemanticSpace",
    "UnreadableFileError",
    "__version__",
    "build_info",
    "cross_entropy",
    "extend",
    "fit",
    "lookup",
    "models",
    "reference",
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


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
