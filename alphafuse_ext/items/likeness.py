"""Check whether embeddings come from the model that a semantic space was fitted to.

A row's distance is its squared whitened distance from the fitted mean, divided by what a row of the
same norm has in a direction drawn at random: about 1 for the rows of another model, whose
directions are unrelated to the space, and smaller for the same model, depending on how much the
variance differs between directions.

Variances are estimated separately for at most half as many directions as fitted rows, and jointly
for all others: along directions that are barely spanned by the fitted rows, a new row has up to
hundreds of times their variance.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from alphafuse_ext.checks import invalid

if TYPE_CHECKING:
    from alphafuse_ext.items.space import SemanticSpace

SWITCH = "any_embeddings=True"
"""The option that turns :func:`check_model` off, for messages."""

_ROWS_LOOKED_AT = 2000
_NARROWEST = 30.0
"""Lower bound of a direction's variance relative to the mean, or the few smallest dominate."""

_UNIT_NORM = 0.01
_OTHER_NORM = 0.1
_FAR_NORM = 10.0


def check_norms(argument: str, space: SemanticSpace, rows: NDArray[np.floating]) -> None:
    """Raises ``ValueError`` for rows of a scale that no item of the fitted model has.

    Args:
        argument: theirs in messages.
        space: fitted to the model's embeddings.
        rows: shape (M, d_l); rows of zeros, items without text, are ignored.
    """
    found, expected = _norm(_sample(rows)), _fitted_norm(space)
    if found and not expected / _FAR_NORM <= found <= expected * _FAR_NORM:
        raise invalid(
            argument,
            f"rows of norm {found:.3g}, the median, where the run's have {expected:.3g}",
            "embeddings scaled as the run's are",
        )


def check_model(argument: str, space: SemanticSpace, rows: NDArray[np.floating]) -> None:
    """Raises ``ValueError`` for embeddings that another model seems to have made.

    Args:
        argument, space, rows: as for :func:`check_norms`.
    """
    rows = _sample(rows)
    if not len(rows) or not space.matrix_rank:
        return
    off = f"or {SWITCH}, to take them as they are"
    found, expected = _norm(rows), _fitted_norm(space)
    # A mean square of 1 is that of rows normalized to 1, as most encoders give them.
    if abs(expected - 1.0) < _UNIT_NORM and abs(found - 1.0) > _OTHER_NORM:
        raise invalid(
            argument,
            f"rows of norm {found:.3g}, the median, where all of the run's have norm 1: of another "
            "model, or scaled otherwise",
            f"those of the model that the run was trained with, of norm 1; {off}",
        )
    distances = distances_of(space, rows)
    distance, bound = float(np.quantile(distances, 0.25)), bound_of(space, len(rows))
    if distance > bound:
        raise invalid(
            argument,
            f"embeddings {distance:.2f} times as far from the mean of the run's, in their own "
            "spread, as rows in directions drawn at random: of another model, or scaled otherwise",
            "those of the model that the run was trained with, for so few rows up to "
            f"{bound:.2f} times as far; {off}"
            if len(rows) < 4
            else f"those of the model that the run was trained with, up to {bound:.2f} times as "
            f"far; {off}",
        )


def distances_of(space: SemanticSpace, rows: NDArray[np.floating]) -> NDArray[np.float64]:
    """The distance of each row, as the module defines it: float64, shape (M,).

    Args:
        space: fitted to the model's embeddings.
        rows: shape (M, d_l), none of zeros.
    """
    variances = _variances(space)[1]
    coordinates = space.transform(rows, progress=False).double().numpy()
    return (coordinates**2 / variances).mean(axis=1) / _at_random(space, variances)


def bound_of(space: SemanticSpace, num_rows: int) -> float:
    """Largest lower quartile of distances that passes as the same model.

    Between what was measured for held-out rows, single and unusual ones among them, and for those
    of other models, of MiniLM on titles and descriptions of two catalogs and of a synthetic encoder
    of 1,536 columns: the fewer rows there were to fit and the fewer there are now, the nearer to 1.
    If variances differ too little to distinguish models, it is above 1.

    Args:
        space: fitted to the model's embeddings.
        num_rows: how many new rows there are.
    """
    directions, variances = _variances(space)
    share = directions / space.embedding_dim
    narrow = min(1.0, space.embedding_dim / _fitted_rows(space))
    usual = (1.0 + 2.5 * narrow) / _at_random(space, variances)
    return max(0.89 + 0.16 / num_rows - 0.38 * share**2, (1.2 + 0.4 / num_rows) * usual)


def _sample(rows: NDArray[np.floating]) -> NDArray[np.float64]:
    """Some of the rows that are not zero, evenly spread; in float64."""
    places = np.linspace(0, len(rows) - 1, min(len(rows), _ROWS_LOOKED_AT)).astype(np.int64)
    chosen = np.asarray(rows[places], dtype=np.float64)
    return chosen[chosen.any(axis=1)]


def _norm(rows: NDArray[np.float64]) -> float:
    return float(np.median(np.linalg.norm(rows, axis=1))) if len(rows) else 0.0


def _mean_square(space: SemanticSpace) -> float:
    """Of the fitted rows' norms, scaled."""
    return float(space.eigenvalues.clip(min=0.0).sum() + (space.mean**2).sum())


def _fitted_norm(space: SemanticSpace) -> float:
    return _mean_square(space) ** 0.5 / space.scale


def _fitted_rows(space: SemanticSpace) -> float:
    """Estimated number of distinct fitted rows."""
    rows = space.effective_items
    # Repeated rows span far fewer directions than columns.
    rank = space.matrix_rank
    return min(rows, rank + 1) if rank < 0.9 * space.embedding_dim else rows


def _variances(space: SemanticSpace) -> tuple[int, NDArray[np.float64]]:
    """How many directions have a variance of their own, and the variances of all."""
    variances = space.eigenvalues.clip(min=0.0)
    own = max(1, min(len(variances), int(_fitted_rows(space) / 2)))
    if own < len(variances):
        variances[own:] = variances[own:].mean()
    return own, variances.clip(min=variances.mean() / _NARROWEST)


def _at_random(space: SemanticSpace, variances: NDArray[np.float64]) -> float:
    """The mean squared whitened distance of a row in a random direction."""
    each = _mean_square(space) / space.embedding_dim
    mean = space.mean @ space.basis
    return float(((each + mean**2) / variances).mean())
