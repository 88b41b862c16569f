"""Full-catalog ranking: exact ranks of held-out targets, and the metrics they give."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from alphafuse_ext.data import Examples, Sequences, length_batches
from alphafuse_ext.models import SASRec
from alphafuse_ext.ops import target_ranks

CUTOFFS = (1, 5, 10, 20, 50)


def ranking_metrics(ranks: np.ndarray, cutoffs: Iterable[int] = CUTOFFS) -> dict[str, float]:
    """HR, NDCG and MRR of examples that each have one relevant item.

    With one relevant item HR@k equals Recall@k.

    Args:
        ranks: ``(E,)`` place of the target in the ranking, 0 = first.
        cutoffs: the values of k.

    Returns:
        ``{"hr@1": ..., "ndcg@1": ..., "mrr@1": ..., ...}``, means over the examples; NaN where
        there are none.
    """
    ranks = np.asarray(ranks, dtype=np.float64)
    metrics: dict[str, float] = {}
    for k in cutoffs:
        gains = {
            "hr": np.ones_like(ranks),
            "ndcg": 1 / np.log2(ranks + 2),
            "mrr": 1 / (ranks + 1),
        }
        for name, gain in gains.items():
            found = np.where(ranks < k, gain, 0.0)
            metrics[f"{name}@{k}"] = float(found.mean()) if len(ranks) else float("nan")
    return metrics


def example_ranks(
    model: SASRec,
    examples: Examples,
    similarity: str = "dot",
    exclude_seen: bool = True,
    batch_size: int = 512,
    progress: bool = False,
) -> np.ndarray:
    """Rank of every example's target among all items, through the exact op ``target_ranks``.

    Args:
        examples: histories with one target each.
        similarity: ``"dot"`` or ``"cosine"``, as the model was trained.
        exclude_seen: leave the items of the history out of the ranking (never the target).
        batch_size: histories encoded at once; they are grouped by length.
        progress: show a progress bar on a terminal.

    Returns:
        ``(E,)`` int64, 0 = first, in the order of ``examples``.
    """
    device = next(model.parameters()).device
    ranks = np.empty(len(examples.targets), dtype=np.int64)
    batches = length_batches(examples.histories.lengths, batch_size, None)
    was_training = model.training
    model.eval()
    with torch.inference_mode():
        for rows in tqdm(batches, "rank", leave=False, disable=None if progress else True):
            queries = encode_histories(model, examples.histories.select(rows), device)
            exclude = exclusion(examples.seen.select(rows), device) if exclude_seen else None
            targets = torch.tensor(examples.targets[rows]).to(device)
            found = model.table.target_ranks(
                queries, targets, similarity=similarity, exclude=exclude
            )
            ranks[rows] = found.cpu().numpy()
    model.train(was_training)
    return ranks


def encode_histories(model: SASRec, histories: Sequences, device: torch.device) -> Tensor:
    """Queries ``(B, dim)`` after each of ``histories``."""
    ids = histories.pad(
        np.arange(len(histories)), length=model.history, padding=model.table.padding_idx
    )
    return model.encode(torch.from_numpy(ids).to(device))


def popularity_ranks(
    item_counts: np.ndarray, examples: Examples, exclude_seen: bool = True
) -> np.ndarray:
    """Ranks when every user is shown the items by training popularity: the baseline to beat.

    Popularity is a one-dimensional item embedding, so it takes the same op, ties included.

    Args:
        item_counts: ``(N,)`` occurrences in the training interactions.

    Returns:
        ``(E,)`` int64, 0 = first.
    """
    seen = examples.seen.select(np.arange(len(examples)))
    return target_ranks(
        torch.ones(len(examples), 1),
        torch.tensor(examples.targets),
        torch.from_numpy(item_counts.astype(np.float32))[:, None],
        None,
        exclude=exclusion(seen, torch.device("cpu")) if exclude_seen else None,
    ).numpy()


def exclusion(seen: Sequences, device: torch.device) -> tuple[Tensor, Tensor]:
    """``seen`` as the argument ``exclude`` of the ops: offsets and ids, on ``device``."""
    # Copies: sequences are read-only, which torch does not know.
    offsets, ids = torch.tensor(seen.offsets), torch.tensor(seen.values)
    return offsets.to(device), ids.to(device)
