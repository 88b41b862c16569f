"""Which items stand against a target in a sampled loss, when they are not drawn uniformly."""

from __future__ import annotations

import torch
from torch import Tensor

from alphafuse_ext.checks import invalid


class NegativeSampler:
    """Draws items, with replacement, by how often they occur in training.

    It is no part of a model's state: it follows from the counts, and only training needs it.

    Args:
        item_counts: training interactions of each item, shape ``(N,)``, not negative.
        sampling: ``"popularity"``: in proportion to the counts; ``"mixed"``: half of them so, half
            uniformly (Yang et al., "Mixed Negative Sampling for Learning Two-tower Neural Networks
            in Recommendations", 2020), so that items without interactions are seen as well.

    Raises:
        ValueError: an unknown ``sampling``, or counts that leave nothing to draw.
    """

    def __init__(self, item_counts: Tensor, sampling: str) -> None:
        if sampling not in ("popularity", "mixed"):
            raise invalid("sampling", repr(sampling), "'popularity' or 'mixed'")
        counts = item_counts.double()
        if counts.ndim != 1 or not (counts >= 0).all() or not 0 < counts.sum() < float("inf"):
            raise invalid(
                "item_counts",
                f"shape {tuple(counts.shape)}, sum {counts.sum().item():g}",
                "shape (N,), finite, none negative, not all zero",
            )
        probability = counts / counts.sum()
        if sampling == "mixed":
            probability = (probability + 1 / len(counts)) / 2
        self._log_probability = probability.log().float()
        # In float64: float32 has 2**24 places in the unit interval, which large catalogs fill.
        self._ends = probability.cumsum(0)
        # Of the last item that is drawn at all: what the sum lost by rounding is its too.
        self._ends[probability.nonzero()[-1, 0] :] = float("inf")

    def log_probability(self, ids: Tensor) -> Tensor:
        """Of items to be drawn: float32 in the shape of ``ids``, ``-inf`` for those never drawn."""
        self._move(ids.device)
        return self._log_probability[ids]

    def draw(self, shape: tuple[int, ...], device: torch.device) -> Tensor:
        """Ids, int64, of any shape, by torch's global generator of the device."""
        self._move(device)
        places = torch.rand(shape, dtype=torch.float64, device=device)
        return torch.searchsorted(self._ends, places, right=True)

    def _move(self, device: torch.device) -> None:
        self._ends, self._log_probability = (
            self._ends.to(device),
            self._log_probability.to(device),
        )
