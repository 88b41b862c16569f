"""Cached int8 copies of a table, for a first pass."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

import alphafuse_ext.ops as ops


class CompressedCopies:
    """One copy of a pair of tables for each similarity, made at its first use and kept up to date.

    The semantic rows never change. ID embeddings do, by writes that PyTorch counts and, in training
    mode, by fused optimizers, which it does not count.
    """

    def __init__(self) -> None:
        self._kept: dict[str, _CachedCopy] = {}

    def of(
        self,
        semantic_rows: Tensor | None,
        id_embeddings: Tensor | None,
        fusion: str,
        similarity: str,
        training: bool,
    ) -> ops.CompressedTables:
        """The copy of these tables as they are now.

        Args:
            semantic_rows, id_embeddings, fusion, similarity: as for ``ops.CompressedTables``.
            training: writes that are not counted may happen until the next call.
        """
        semantic, embeddings = _TensorVersion.of(semantic_rows), _TensorVersion.of(id_embeddings)
        kept = self._kept.get(similarity)
        if kept is None or not _TensorVersion.same(semantic, kept.semantic):
            copy = ops.CompressedTables(semantic_rows, id_embeddings, fusion, similarity)
        else:
            copy = kept.copy
            if training or not _TensorVersion.same(embeddings, kept.embeddings):
                copy.refresh(id_embeddings)
        # What was made in training mode may be out of date at the next call, whatever is counted.
        self._kept[similarity] = _CachedCopy(copy, semantic, None if training else embeddings)
        return copy

    def invalidate(self) -> None:
        """ID embeddings may be written to uncounted from now on: refresh at the next use."""
        for similarity, kept in self._kept.items():
            self._kept[similarity] = kept._replace(embeddings=None)

    def __getstate__(self) -> dict[str, object]:
        # A pickle or a deep copy of a table has no use for copies of this one's tensors.
        return {"_kept": {}}


class _CachedCopy(NamedTuple):
    copy: ops.CompressedTables
    semantic: _TensorVersion | None
    embeddings: _TensorVersion | None


class _TensorVersion(NamedTuple):
    """A tensor as it was: kept, so that no other takes its place in memory, and its version."""

    tensor: Tensor
    version: int

    @classmethod
    def of(cls, tensor: Tensor | None) -> _TensorVersion | None:
        return None if tensor is None else cls(tensor.detach(), tensor._version)

    @staticmethod
    def same(now: _TensorVersion | None, then: _TensorVersion | None) -> bool:
        if now is None or then is None:
            return now is then
        return (
            now.tensor.data_ptr() == then.tensor.data_ptr()
            and now.tensor.shape == then.tensor.shape
            and now.tensor.dtype == then.tensor.dtype
            and now.version == then.version
        )
