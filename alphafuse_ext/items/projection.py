"""The projection of language embeddings to semantic rows, kept for new items."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

if TYPE_CHECKING:
    from alphafuse_ext.items.embedding_rows import Embeddings
    from alphafuse_ext.items.space import SemanticSpace


@dataclass(frozen=True, eq=False)
class SemanticProjection:
    """Language embeddings to semantic rows.

    Attributes:
        space: the decomposition.
        dim: columns of a semantic row.
        standardize: whether coordinates are whitened.
        factor: multiplies them, so that they have the ``semantic_rms`` that was asked for.
    """

    space: SemanticSpace
    dim: int
    standardize: bool
    factor: float

    @classmethod
    def of_rows(
        cls,
        space: SemanticSpace,
        semantic_rows: Tensor,
        standardize: bool,
        weights: NDArray[np.int64] | None = None,
    ) -> SemanticProjection:
        """The projection that gives these rows for the embeddings that ``space`` was fitted to.

        The variance of a fitted coordinate is its eigenvalue, 1 where whitened; by how much that of
        the rows differs is the factor squared.

        Args:
            space: the decomposition.
            semantic_rows: shape (N, dim), of the fitted items.
            standardize: whether they are whitened.
            weights: shape (N,), as given to :meth:`SemanticSpace.from_embeddings`.
        """
        dim = semantic_rows.shape[1]
        variances = space.eigenvalues[:dim].clip(min=0.0)
        if standardize:
            variances = (np.arange(dim) < space.matrix_rank).astype(np.float64)
        norms = torch.linalg.vector_norm(semantic_rows.detach().float(), dim=1)
        squares = norms.cpu().double().square().numpy()
        found = float(squares.sum() if weights is None else squares @ weights)
        expected = space.total_weight * float(variances.sum())
        return cls(space, dim, standardize, (found / expected) ** 0.5 if expected else 1.0)

    def record(self) -> dict[str, Any]:
        """The record that restores it, together with the space."""
        return {"dim": self.dim, "standardize": self.standardize, "factor": self.factor}

    def rows(self, language_embeddings: Embeddings) -> Tensor:
        """Semantic rows, float32, shape (M, dim); of zeros for an item without text.

        Raises:
            TypeError, ValueError: as :meth:`SemanticSpace.transform`.
        """
        rows = self.space.transform(language_embeddings, self.dim, self.standardize)
        rows *= self.factor
        return rows


def aligned(rows: Tensor, others: Tensor) -> Tensor:
    """The rotation ``R``, (dim, dim), that takes ``rows @ R`` nearest to ``others`` (Procrustes).

    Args:
        rows, others: of the same items, shape (N, dim); rows of zeros in either are ignored.
    """
    a, b = rows.double(), others.double()
    both = a.any(1) & b.any(1)
    left, _, right = torch.linalg.svd(a[both].T @ b[both])
    return (left @ right).float()
