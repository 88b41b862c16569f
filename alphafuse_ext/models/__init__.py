"""Sequence encoders that hold an :class:`alphafuse_ext.ItemTable`."""

from alphafuse_ext.models.sasrec import SASRec

__all__ = ["SASRec"]
