"""The pair of tables with fusion and similarity: one argument inside each op."""

from __future__ import annotations

import torch

import alphafuse_ext._core as _core
from alphafuse_ext.ops import reference
from alphafuse_ext.ops.arguments import check_memory, check_similarity, check_tables, normalized


class FusedTables:
    """The tables of a catalog as an argument of ops.

    Attributes:
        semantic_rows: ``(N, dim - null_dim)`` (concat) or ``(N, dim)`` (add), or ``None``.
        id_embeddings: ``(N, null_dim)``, or ``None``.
        fusion: ``"concat"`` or ``"add"``.
        cosine: scores divide by the norms of rows.
        precision: what products with them are computed in, as ``precision_of`` chose.
        num_embeddings: ``N``, the number of items; also the padding id.
        dim: columns of a fused row.
    """

    __slots__ = ("_native", "cosine", "dim", "fusion", "id_embeddings", "num_embeddings",
                 "precision", "semantic_rows")  # fmt: skip

    def __init__(
        self,
        semantic_rows: torch.Tensor | None,
        id_embeddings: torch.Tensor | None,
        fusion: str,
        cosine: bool = False,
        precision: str = "float32",
        native: _core.Tables | None = None,
    ) -> None:
        self.semantic_rows = semantic_rows
        self.id_embeddings = id_embeddings
        self.fusion = fusion
        self.cosine = cosine
        self.precision = precision
        self._native = native
        self.num_embeddings: int
        self.dim: int
        if native is not None:
            self.num_embeddings, self.dim = native.num_embeddings, native.dim
            return
        self.num_embeddings, self.dim = self.one.shape
        if semantic_rows is not None and id_embeddings is not None:
            id_columns = id_embeddings.shape[1] if fusion == "concat" else 0
            self.dim = semantic_rows.shape[1] + id_columns

    @classmethod
    def checked(
        cls,
        semantic_rows: torch.Tensor | None,
        id_embeddings: torch.Tensor | None,
        fusion: str,
        similarity: str = "dot",
    ) -> FusedTables:
        """The tables that a user gave.

        Raises:
            ValueError, TypeError: naming the argument.
        """
        native, tables = None, (semantic_rows, id_embeddings)
        if not torch.compiler.is_compiling():
            # The native core checks nearly the same, faster; but it reads no tensor without memory.
            try:
                native = _core.Tables(semantic_rows, id_embeddings, fusion, similarity)
            except (TypeError, ValueError, RuntimeError):
                native = None
        if native is None or (semantic_rows is not None and semantic_rows.requires_grad):
            check_tables(semantic_rows, id_embeddings, fusion)
            for name, table in zip(("semantic_rows", "id_embeddings"), tables, strict=True):
                if table is not None:
                    check_memory(name, table)
            check_similarity(similarity)
        cosine = similarity == "cosine"
        return cls(semantic_rows, id_embeddings, fusion, cosine, native=native)

    @property
    def pair(self) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """The two tables."""
        return self.semantic_rows, self.id_embeddings

    @property
    def similarity(self) -> str:
        """``"dot"`` or ``"cosine"``."""
        return "cosine" if self.cosine else "dot"

    @property
    def how(self) -> tuple[str, bool, str]:
        """The fields of :class:`FusedTables` other than the tables."""
        return self.fusion, self.cosine, self.precision

    @property
    def flat(self) -> tuple[torch.Tensor | None, torch.Tensor | None, str, bool, str]:
        """What :class:`FusedTables` is made of."""
        return self.semantic_rows, self.id_embeddings, *self.how

    @property
    def one(self) -> torch.Tensor:
        """A table that is there: the ID embeddings where there are any."""
        table = self.id_embeddings if self.id_embeddings is not None else self.semantic_rows
        assert table is not None
        return table

    def scored_rows(self) -> torch.Tensor:
        """The fused table ``(N, dim)`` in plain PyTorch, float32; divided by norms if cosine."""
        semantic, own = (None if table is None else table.float() for table in self.pair)
        rows = reference.fuse(semantic, own, self.fusion)
        return normalized(rows) if self.cosine else rows

    def detach(self) -> FusedTables:
        """For ops without a gradient."""
        if self.id_embeddings is None or not self.id_embeddings.requires_grad:
            return self
        detached = self.id_embeddings.detach()
        return FusedTables(self.semantic_rows, detached, *self.how, self._native)

    def native(self) -> _core.Tables:
        """As the native core reads them."""
        if self._native is None:
            self._native = _core.Tables(*self.pair, self.fusion, self.similarity)
        return self._native
