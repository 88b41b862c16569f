"""Compressed copies of the tables, for a first pass of ``topk`` and ``target_ranks``."""

from __future__ import annotations

from typing import Any

import torch

import alphafuse_ext._core as _core
from alphafuse_ext.checks import invalid
from alphafuse_ext.ops import native
from alphafuse_ext.ops.arguments import check_similarity, check_tables
from alphafuse_ext.ops.graphs import outside_graphs
from alphafuse_ext.ops.tables import FusedTables

FIRST_PASSES = ("int8",)


class CompressedTables:
    """Both tables in 8 bits per element, with a bound on the error of each row.

    ``topk`` and ``target_ranks`` take it as ``first_pass``: they score the copy, a quarter of
    the bytes, discard items by the bounds, and score the rest in float32. Results are bitwise the
    same as without it, as long as the tables have not changed: call :meth:`refresh` after a change
    of the ID embeddings.

    Memory: ``N * (dim + 24)`` bytes, the columns of either table rounded up to a multiple of 4.

    Args:
        semantic_rows: ``(N, dim - null_dim)`` (concat) or ``(N, dim)`` (add), or ``None``; CPU.
        id_embeddings: ``(N, null_dim)``, or ``None``.
        fusion: ``"concat"`` or ``"add"``, see :func:`alphafuse_ext.lookup`.
        similarity: ``"dot"`` or ``"cosine"``: as in the calls that use it.

    Attributes:
        tiles: tiles of scores (some items by a few queries) that have had a first pass so far.
        redone: those scored in float32 after all, as too many scores survived.

    Raises:
        ValueError, TypeError: an invalid argument; nothing was computed.
        NotImplementedError: the tables are on a GPU.
    """

    def __init__(
        self,
        semantic_rows: torch.Tensor | None,
        id_embeddings: torch.Tensor | None,
        fusion: str = "concat",
        similarity: str = "dot",
    ) -> None:
        shape = check_tables(semantic_rows, id_embeddings, fusion)
        check_similarity(similarity)
        self.shape, self.fusion, self.similarity = shape, fusion, similarity
        self._counted = torch.zeros(2, dtype=torch.int64)
        self._semantic_rows = None if semantic_rows is None else semantic_rows.detach()
        self._semantic = _compress(self._semantic_rows)
        self.refresh(id_embeddings)

    def refresh(self, id_embeddings: torch.Tensor | None) -> None:
        """Compress changed ID embeddings again; the copy of the semantic rows is kept.

        Args:
            id_embeddings: of the shape given at first, or ``None`` if there were none.
        """
        id_embeddings = None if id_embeddings is None else id_embeddings.detach()
        given = check_tables(self._semantic_rows, id_embeddings, self.fusion)
        if given != self.shape:
            raise invalid("id_embeddings", f"tables of {given}", f"of {self.shape}, as at first")
        self._id = _compress(id_embeddings)
        self._inverse_norms = []
        if self.similarity == "cosine":
            norms = torch.zeros(_core.padded_rows(self.shape.num_embeddings))
            tables = FusedTables(self._semantic_rows, id_embeddings, self.fusion).native()
            kernels, where = native.kernels(norms)
            kernels.inverse_row_norms(tables, norms[: self.shape.num_embeddings], where)
            self._inverse_norms = [norms]

    @property
    def tiles(self) -> int:
        return int(self._counted[0])

    @property
    def redone(self) -> int:
        return int(self._counted[1])

    def count(self, counted: torch.Tensor) -> None:
        """Adds what an op counted: ``(2,)``, int64, tiles and how many of them were redone."""
        self._counted += counted

    @property
    def tensors(self) -> list[torch.Tensor]:
        """What the kernels take: codes and bounds of each table, inverse norms if cosine."""
        return [*self._semantic, *self._id, *self._inverse_norms]


FirstPass = CompressedTables | str | None


def check_first_pass(
    first_pass: FirstPass,
    semantic_rows: torch.Tensor | None,
    id_embeddings: torch.Tensor | None,
    fusion: str,
    similarity: str,
) -> CompressedTables | None:
    """The compressed copy to use, made here if it is only named.

    Raises:
        ValueError, TypeError: it is neither a name nor a copy, or a copy of other tables.
    """
    if first_pass is None:
        return None
    allowed = "None, 'int8' or CompressedTables of the same tables, fusion and similarity"
    if isinstance(first_pass, str):
        if first_pass not in FIRST_PASSES:
            raise invalid("first_pass", repr(first_pass), allowed)
        return _copy(semantic_rows, id_embeddings, fusion, similarity)
    if not isinstance(first_pass, CompressedTables):
        raise invalid("first_pass", type(first_pass).__name__, allowed, TypeError)
    given = (first_pass.shape, first_pass.fusion, first_pass.similarity)
    if given != (check_tables(semantic_rows, id_embeddings, fusion), fusion, similarity):
        raise invalid("first_pass", "a copy of {}, {!r}, {!r}".format(*given), allowed)
    return first_pass


@outside_graphs  # the core reads the tables; a compiled graph is left for it
def _copy(*arguments: Any) -> CompressedTables:
    return CompressedTables(*arguments)


def _compress(table: torch.Tensor | None) -> list[torch.Tensor]:
    """Codes, and scales, residuals and norms ``(3, padded rows)``; see csrc/compressed.h."""
    if table is None:
        return []
    if table.is_cuda:
        raise NotImplementedError("first_pass has no CUDA kernel yet; move the tables to the CPU")
    rows, cols = table.shape
    padded = _core.padded_rows(rows)
    codes = torch.empty(padded * (-(-cols // 4) * 4), dtype=torch.int8)
    bounds = torch.empty((3, padded))
    kernels, where = native.kernels(codes)
    kernels.compress(FusedTables(table, None, "concat").native(), codes, bounds, where)
    return [codes, bounds]
