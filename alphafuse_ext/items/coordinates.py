"""Where ID embeddings live and join the semantic rows: one small map beside unchanged ops.

The ops see *stored* rows ``r``. The embedding of an item is ``r @ M`` with a fixed map ``M``, shape
(stored dim, embedding_dim), and the score of a query ``q`` is ``q . (r M) = (q M^T) . r``. So a
lookup maps the rows it found, a score maps its queries, and nothing of the catalog's size is built.

- ``"singular"``: ID embeddings ``(N, null_dim)`` in singular coordinates. No map.
- ``"original"``: the fused row is rotated back: ``M = U[:, :dim]^T``, shape (dim, d_l).
- ``"projected"``: ID embeddings ``(N, d_l)`` in original coordinates, projected onto the null space
  by ``U_null``. They are stored beside the semantic columns, and ``M`` keeps those and takes the
  others to the null columns, shape (semantic columns + d_l, dim).
"""

from __future__ import annotations

import torch
from torch import Tensor

from alphafuse_ext.checks import invalid
from alphafuse_ext.items.space import SemanticSpace
from alphafuse_ext.ops.arguments import LEAST_NORM

COORDINATES = ("singular", "original", "projected")


def make_coordinates_map(
    space: SemanticSpace, dim: int, null_dim: int, fusion: str, coordinates: str
) -> Tensor | None:
    """The map ``M`` of a split space.

    Args:
        space: whose basis it is made of.
        dim, null_dim, fusion: the split, as :meth:`SemanticSpace.split` has checked it.
        coordinates: one of :data:`COORDINATES`.

    Returns:
        float32, see the module; ``None`` for ``"singular"``.
    """
    if coordinates == "singular":
        return None
    basis = torch.tensor(space.basis[:, :dim], dtype=torch.float32)
    if coordinates == "original":
        return basis.T.contiguous()
    semantic_dim = dim if fusion == "add" else dim - null_dim
    mapping = torch.zeros(semantic_dim + space.embedding_dim, dim)
    mapping[:semantic_dim, :semantic_dim] = torch.eye(semantic_dim)
    mapping[semantic_dim:, dim - null_dim :] = basis[:, dim - null_dim :]
    return mapping


def coordinates_of(mapping: Tensor | None) -> str:
    """Which of :data:`COORDINATES` a map belongs to.

    ``"original"`` takes dim columns to ``d_l >= dim``; ``"projected"`` takes ``d_l`` columns to the
    fewer of the null space. So the shape tells.
    """
    if mapping is None:
        return "singular"
    stored_dim, embedding_dim = mapping.shape
    return "projected" if stored_dim > embedding_dim else "original"


def map_rows(rows: Tensor, mapping: Tensor | None) -> Tensor:
    """Embeddings of stored rows, in the rows' dtype; products are taken in float32."""
    if mapping is None:
        return rows
    with torch.autocast(rows.device.type, enabled=False):
        return (rows.float() @ mapping.float()).to(rows.dtype)


def map_queries(
    queries: Tensor, mapping: Tensor | None, similarity: str
) -> tuple[Tensor, Tensor | None]:
    """Queries for the stored rows.

    Args:
        queries: shape (..., embedding_dim).
        mapping: ``M``, or ``None``.
        similarity: ``"dot"`` or ``"cosine"``.

    Returns:
        Queries of shape (..., stored dim), in float32 where there is a map, and what the scores
        are to be multiplied by, shape (..., 1), or ``None``. A cosine of the mapped query divides
        by its norm in place of the query's own; the factor, at most 1, makes up for that.

    Raises:
        NotImplementedError: cosine with ``"projected"`` coordinates, where stored rows and
            embeddings differ in norm.
        ValueError: queries of another width.
    """
    if mapping is None:
        return queries, None
    if similarity == "cosine" and coordinates_of(mapping) == "projected":
        raise invalid(
            "similarity",
            "'cosine' with coordinates='projected'",
            "'dot': a stored row and its projected embedding differ in norm",
            NotImplementedError,
        )
    if queries.shape[-1:] != mapping.shape[1:]:
        raise invalid("queries", f"shape {tuple(queries.shape)}", f"(..., {mapping.shape[1]})")
    with torch.autocast(queries.device.type, enabled=False):
        stored = queries.float() @ mapping.float().T
        if similarity != "cosine":
            return stored, None
        return stored, _clamped_norms(stored) / _clamped_norms(queries.float())


def _clamped_norms(vectors: Tensor) -> Tensor:
    return torch.linalg.vector_norm(vectors, dim=-1, keepdim=True).clamp(min=LEAST_NORM)
