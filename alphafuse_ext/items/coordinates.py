"""Coordinates of ID embeddings: one small linear map in front of unchanged ops.

The ops see *stored* rows ``r``. The embedding of an item is ``r @ M`` with a fixed map ``M``, shape
(stored dim, embedding_dim), and the score of a query ``q`` is ``q . (r M) = (q M^T) . r``. So a
lookup maps the rows it found, a score maps its queries, and nothing of the catalog's size is
materialized.

- ``"singular"``: ID embeddings ``(N, null_dim)`` in singular coordinates. No map.
- ``"original"``: the fused row is rotated back: ``M = U[:, :dim]^T``, shape (dim, d_l).
- ``"projected"``: ID embeddings ``(N, d_l)`` in original coordinates, projected onto the null space
  by ``U_null``. They are stored beside the semantic columns, and ``M`` keeps those and takes the
  others to the null columns, shape (semantic columns + d_l, dim).
- ``"soft"``: all directions are trained, those of higher variance more slowly. The embedding is
  ``s + g * e`` with fixed gains ``g``, one per direction. Stored are ``s / g`` and ``e``, added,
  and ``M = diag(g)``: the optimizer updates ``e`` equally in all directions.
- ``"learned"``: the same with gains that are trained. Stored are ``s`` and ``e`` side by side, and
  ``M = [I; diag(g)]``: scores cost twice as much. Stored is ``log g``.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from alphafuse_ext.checks import invalid
from alphafuse_ext.choices import COORDINATES
from alphafuse_ext.items.space import SemanticSpace
from alphafuse_ext.ops.arguments import FLOAT_TYPES, check_memory, clamped_norms

_GAINS = ("soft", "learned")


def check_coordinates(mode: str) -> None:
    """Raises ``ValueError`` unless it is one of :data:`COORDINATES`."""
    if mode not in COORDINATES:
        raise invalid("coordinates", repr(mode), " or ".join(map(repr, COORDINATES)))


class Coordinates(NamedTuple):
    """How stored rows become embeddings, and queries those of stored rows.

    Attributes:
        mode: one of :data:`COORDINATES`, or ``"soft"`` or ``"learned"``.
        matrix: ``M``, float32; ``None`` for ``"singular"`` alone. For ``"soft"`` the gains, shape
            (dim,), for ``"learned"`` their logarithms.
    """

    mode: str = "singular"
    matrix: Tensor | None = None

    @classmethod
    def of(
        cls, space: SemanticSpace, dim: int, null_dim: int, fusion: str, mode: str
    ) -> Coordinates:
        """The coordinates of a split space.

        Args:
            space: whose basis the map is made of.
            dim, null_dim, fusion: the split, as :meth:`SemanticSpace.split` has checked it.
            mode: one of :data:`COORDINATES`.
        """
        check_coordinates(mode)
        if mode == "singular":
            return cls()
        basis = torch.tensor(space.basis[:, :dim], dtype=torch.float32)
        if mode == "original":
            return cls(mode, basis.T.contiguous())
        semantic_dim = dim if fusion == "add" else dim - null_dim
        matrix = torch.zeros(semantic_dim + space.embedding_dim, dim)
        matrix[:semantic_dim, :semantic_dim] = torch.eye(semantic_dim)
        matrix[semantic_dim:, dim - null_dim :] = basis[:, dim - null_dim :]
        return cls(mode, matrix)

    def check(self) -> None:
        """Refuse an invalid map for this mode.

        Raises:
            TypeError: the map is not a tensor, or has an unsupported dtype.
            ValueError: an unknown mode, or a map of the wrong shape.
        """
        if self.mode not in _GAINS:
            check_coordinates(self.mode)
        name, matrix = "coordinates_map", self.matrix
        if matrix is None:
            if self.mode != "singular":
                raise invalid(name, None, f"the map of coordinates={self.mode!r}")
            return
        if not isinstance(matrix, Tensor) or matrix.dtype not in FLOAT_TYPES:
            given = matrix.dtype if isinstance(matrix, Tensor) else type(matrix).__name__
            raise invalid(name, given, "a float32 tensor or None", TypeError)
        if self.mode == "singular":
            raise invalid(name, "a map", "None with coordinates='singular'")
        shape = tuple(matrix.shape)
        if self.mode in _GAINS:
            if len(shape) != 1 or 0 in shape:
                allowed = f"shape (dim,) with coordinates={self.mode!r}"
                raise invalid(name, f"shape {shape}", allowed)
            if self.mode == "soft" and not (matrix.is_meta or bool((matrix > 0).all())):
                raise invalid(name, "a gain that is not positive", "positive gains")
            return
        if len(shape) != 2 or 0 in shape:
            raise invalid(name, f"shape {shape}", "shape (columns of a stored row, embedding_dim)")
        if (self.mode == "projected") != (shape[0] > shape[1]):
            relation = "more" if self.mode == "projected" else "no more"
            raise invalid(
                name,
                f"shape {shape} with coordinates={self.mode!r}",
                f"{relation} rows (columns of a stored row) than columns (embedding_dim)",
            )

    # --- the table in these coordinates

    def stored_fusion(self, fusion: str) -> str:
        """How the ops fuse: what is mapped by itself stands beside the semantic columns."""
        return "concat" if self.mode in ("projected", "learned") else fusion

    def stored_dim(self) -> int | None:
        """Number of columns of stored rows; ``None``: any."""
        if self.matrix is None:
            return None
        return len(self.matrix) * (2 if self.mode == "learned" else 1)

    def embedding_dim(self, stored_dim: int) -> int:
        """Dimension of embeddings whose stored rows have ``stored_dim`` columns."""
        return stored_dim if self.matrix is None else self.matrix.shape[-1]

    def null_dim(self, id_columns: int) -> int:
        """Number of embedding columns that the ``id_columns`` of a stored ID embedding affect."""
        if self.matrix is None or self.mode != "projected" or not id_columns:
            return id_columns
        return int(self.matrix[-id_columns:].any(dim=0).sum())

    # --- mapping rows and queries

    def embeddings(self, rows: Tensor) -> Tensor:
        """Embeddings of stored rows, in the rows' dtype; products are taken in float32."""
        if self.matrix is None:
            return rows
        with torch.autocast(rows.device.type, enabled=False):
            return self._mapped(rows.float(), self.matrix.float()).to(rows.dtype)

    @property
    def gains(self) -> Tensor | None:
        """Factor of each direction's ID embedding, shape (dim,), for soft and learned splits."""
        if self.matrix is None or self.mode not in _GAINS:
            return None
        return self.matrix if self.mode == "soft" else self.matrix.exp()

    def parts(self, semantic: Tensor | None, own: Tensor | None) -> list[Tensor | None]:
        """Stored semantic rows and ID embeddings, each as it is in an embedding of gains."""
        gains = self.gains
        if gains is None:
            return [semantic, own]
        own = None if own is None else own * gains
        if self.mode == "soft" and semantic is not None:
            semantic = semantic * gains
        return [semantic, own]

    def stored_semantic(self, rows: Tensor) -> Tensor:
        """Semantic rows as they are stored, from what :meth:`parts` gives of them."""
        if self.mode == "soft" and self.matrix is not None:
            return rows / self.matrix
        return rows

    def _mapped(self, rows: Tensor, matrix: Tensor) -> Tensor:
        """``rows @ M``."""
        if self.mode == "soft":
            return rows * matrix
        if self.mode == "learned":
            semantic, own = rows.chunk(2, -1)
            return torch.addcmul(semantic, own, matrix.exp())
        return rows @ matrix

    def _mapped_back(self, queries: Tensor, matrix: Tensor) -> Tensor:
        """``queries @ M.T``."""
        if self.mode == "soft":
            return queries * matrix
        if self.mode == "learned":
            return torch.cat([queries, queries * matrix.exp()], -1)
        return queries @ matrix.T

    def stored_queries(self, queries: Tensor, similarity: str) -> tuple[Tensor, Tensor | None]:
        """Queries for the stored rows.

        Args:
            queries: shape (..., embedding_dim).
            similarity: ``"dot"`` or ``"cosine"``.

        Returns:
            Queries of shape (..., stored dim), in float32 where there is a map, and what the scores
            are to be multiplied by, shape (..., 1), or ``None``. A cosine of the mapped query
            divides by its norm in place of the query's own; the factor, at most 1, makes up for
            that.

        Raises:
            NotImplementedError: cosine with coordinates other than ``"original"``, where stored
                rows and embeddings differ in norm.
            ValueError: queries of another width.
        """
        if self.matrix is None:
            return queries, None
        if similarity == "cosine" and self.mode != "original":
            raise invalid(
                "similarity",
                f"'cosine' with coordinates={self.mode!r}",
                "'dot': a stored row and its embedding differ in norm",
                NotImplementedError,
            )
        check_memory("coordinates_map", self.matrix)
        width = self.matrix.shape[-1]
        if queries.shape[-1:] != (width,):
            raise invalid("queries", f"shape {tuple(queries.shape)}", f"(..., {width})")
        with torch.autocast(queries.device.type, enabled=False):
            stored = self._mapped_back(queries.float(), self.matrix.float())
            if similarity != "cosine":
                return stored, None
            return stored, clamped_norms(stored) / clamped_norms(queries.float())

    def equal_queries(self, queries: Tensor, similarity: str) -> Tensor:
        """Queries for the stored rows whose scores need no further factor, for a loss over them.

        Raises:
            NotImplementedError: as :meth:`stored_queries`, and for cosine with a truncated map.
        """
        stored, factor = self.stored_queries(queries, similarity)
        if factor is not None and stored.shape[-1] < queries.shape[-1]:
            raise invalid(
                "similarity",
                f"'cosine' with coordinates={self.mode!r}, dim={stored.shape[-1]}, "
                f"d_l={queries.shape[-1]}",
                "dim = d_l, or similarity='dot': a truncated query has lost some of its norm",
                NotImplementedError,
            )
        return stored

    def scores(self, of_stored: Tensor, factor: Tensor | None, dtype: torch.dtype) -> Tensor:
        """Scores of the queries from those of :meth:`stored_queries`, in the queries' dtype."""
        if self.matrix is None:
            return of_stored
        return (of_stored if factor is None else of_stored * factor).to(dtype)
