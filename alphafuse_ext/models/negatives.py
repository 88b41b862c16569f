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
            in Recommendations", 2020), so that items without interactions are seen as well;
            ``"in-batch"``: from the targets of the batch, which come about in proportion to the
            counts, and whose rows a step reads and updates in any case.

    Raises:
        ValueError: an unknown ``sampling``, or counts that leave nothing to draw.
    """

    def __init__(self, item_counts: Tensor, sampling: str) -> None:
        if sampling not in ("popularity", "mixed", "in-batch"):
            raise invalid("sampling", repr(sampling), "'popularity', 'mixed' or 'in-batch'")
        self.in_batch = sampling == "in-batch"
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
        return self.log_probabilities(ids.device)[ids]

    def log_probabilities(self, device: torch.device) -> Tensor:
        """Of each item, ``(N,)``."""
        self._move(device)
        return self._log_probability

    def draw(
        self, shape: tuple[int, ...], device: torch.device, targets: Tensor | None = None
    ) -> Tensor:
        """Ids, int64, by torch's global generator of the device.

        Args:
            shape: of the result.
            device: where they are to be.
            targets: of the batch, ``(P,)``, there; only in-batch. Then a single list is drawn
                without replacement and has at most ``P`` ids.

        Raises:
            ValueError: in-batch, without targets.
        """
        if self.in_batch:
            if targets is None:
                raise invalid("targets", None, "those of the batch, with in-batch sampling")
            count = len(targets)
            if len(shape) == 1 or not count:
                return targets[torch.randperm(count, device=device)[: shape[0]]]
            return targets[torch.randint(count, shape, device=device)]
        self._move(device)
        places = torch.rand(shape, dtype=torch.float64, device=device)
        return torch.searchsorted(self._ends, places, right=True)

    def _move(self, device: torch.device) -> None:
        self._ends, self._log_probability = (
            self._ends.to(device),
            self._log_probability.to(device),
        )
