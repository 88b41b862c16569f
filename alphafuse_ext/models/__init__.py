"""Sequence models that hold an :class:`alphafuse_ext.ItemTable`."""

from alphafuse_ext.models.dreamrec import DreamRec
from alphafuse_ext.models.llmesr import LLMESR
from alphafuse_ext.models.model import SequenceModel
from alphafuse_ext.models.next_item import NextItemModel
from alphafuse_ext.models.popularity import Popularity
from alphafuse_ext.models.sasrec import SASRec

# By the names of config.model.MODELS.
MODELS: dict[str, type[SequenceModel]] = {
    **{"sasrec": SASRec, "dreamrec": DreamRec, "llm-esr": LLMESR, "neighbors": Popularity},
}

__all__ = ["LLMESR", "MODELS", "DreamRec", "NextItemModel", "SASRec", "SequenceModel"]


def __dir__() -> list[str]:
    return __all__
