"""Validation ranks in ``epoch.py``: the package's ``target_ranks`` beside plain PyTorch."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from training.contenders import OURS, PLAIN, Clock, Contender, Ours, Plain

from alphafuse_ext.config import Config
from alphafuse_ext.data import Split, length_batches
from alphafuse_ext.evaluation.ranking import encode_histories, exclusion


def plain_ranks(
    queries: Tensor, targets: Tensor, table: Tensor, seen: tuple[Tensor, Tensor]
) -> Tensor:
    """Places of the targets ``(B,)`` in the scores ``(B, N)``; unlike ours it ignores ties."""
    scores = queries @ table.T
    wanted = scores.gather(1, targets[:, None])
    offsets, ids = seen
    rows = torch.arange(len(queries), device=ids.device).repeat_interleave(offsets.diff())
    scores[rows, ids] = float("-inf")
    return (scores > wanted).sum(1)


def measure_ranking(
    contender: Contender, split: Split, config: Config, steps: int | None
) -> dict[str, Any]:
    """Validation ranks with the weights that training has left: ours beside plain PyTorch.

    Returns seconds for all validation examples, scaled up from ``steps`` of their batches.
    """
    ours = cast(Ours, contender.item_side).table
    examples = split.validation
    order = length_batches(examples.histories.lengths, config.evaluation_batch_size, None)
    kept = order[:: max(1, len(order) // steps)] if steps else order
    encoder = contender.encoder.eval()
    device = contender.device
    clock = Clock(device, ("encoder", "seen items", OURS, PLAIN))
    different = largest = 0
    with torch.inference_mode():
        with clock(PLAIN):
            plain = Plain(ours, config, fuse_once=False)._catalog()
        fusing = clock.seconds[PLAIN]
        for turn, rows in enumerate(kept):
            with clock("encoder"):
                histories = examples.histories.select(rows)
                ids = histories.pad(
                    np.arange(len(rows)), length=config.history, padding=ours.padding_idx
                )
                contender.given.rows = ours(torch.from_numpy(ids).to(device))
                queries = encode_histories(encoder, histories, device)
                targets = torch.from_numpy(examples.targets[rows]).to(device)
            with clock("seen items"):
                seen = exclusion(examples.seen.select(rows), device)
            ranks: dict[str, Tensor] = {}
            for name in (OURS, PLAIN) if turn % 2 else (PLAIN, OURS):
                with clock(name):
                    ranks[name] = (
                        ours.target_ranks(queries, targets, exclude=seen)
                        if name == OURS
                        else plain_ranks(queries, targets, plain, seen)
                    )
            difference = (ranks[OURS] - ranks[PLAIN]).abs()
            different += int((difference > 0).sum())
            largest = max(largest, int(difference.max()))
            # Float32 sums in another order may swap neighbours.
            if largest > 3:
                raise SystemExit(f"ranks differ by up to {largest} places")
    encoder.train()
    ranked = sum(map(len, kept))
    if different > 0.05 * ranked:
        raise SystemExit(f"{different} of {ranked} ranks differ")
    scale = len(examples) / ranked
    seconds = {name: scale * value for name, value in clock.seconds.items()}
    seconds[PLAIN] = fusing + scale * (clock.seconds[PLAIN] - fusing)
    return {
        "examples": len(examples),
        "ranked": ranked,
        "ranks_that_differ": different,
        "largest_difference": largest,
        "seconds": seconds,
        "ratio": seconds[PLAIN] / seconds[OURS],
    }
