"""Full-catalog ranking: exact ranks of held-out targets, and the metrics they give.

A target is found at k exactly where the k items that are recommended after its history hold it.
Where seen items are left out, a target that its user had before is therefore a miss.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from tqdm import tqdm

from alphafuse_ext.data import Examples, Sequences, length_batches
from alphafuse_ext.items.table import ItemTable
from alphafuse_ext.models import SASRec

CUTOFFS = (1, 5, 10, 20, 50)

# The rank of a target that no list can show. Beyond every cutoff, also those above the number of
# items.
UNREACHABLE = np.iinfo(np.int64).max

# What becomes of the items of a history in the ranking that follows it.
SeenItems: TypeAlias = Literal["excluded", "ranked"]

IntArray: TypeAlias = npt.NDArray[np.int64]
Encode: TypeAlias = Callable[[Sequences], Tensor]

# Above this share of targets among the seen items, whether those are ranked decides the metrics.
MANY_SEEN = 0.01


@dataclass(frozen=True)
class Evaluation:
    """Metrics of some examples, with the items of their histories excluded and ranked.

    Attributes:
        seen_items: the protocol that the run stands by: that of ``metrics``.
        examples: how many targets were ranked.
        targets_seen_before: targets that their users had before; misses where seen items are
            excluded.
        by_seen_items: metrics under either protocol, see :func:`ranking_metrics`.
    """

    seen_items: SeenItems
    examples: int
    targets_seen_before: int
    by_seen_items: dict[SeenItems, dict[str, float]]

    @property
    def metrics(self) -> dict[str, float]:
        """Those of the protocol ``seen_items``."""
        return self.by_seen_items[self.seen_items]

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        return {
            "examples": self.examples,
            "seen_items": self.seen_items,
            "targets_seen_before": self.targets_seen_before,
            "metrics": self.metrics,
            "metrics_by_seen_items": self.by_seen_items,
        }

    def warnings(self) -> list[str]:
        """What a reader of the metrics has to know, a line each."""
        if self.seen_items == "ranked":
            return []
        return seen_target_warnings(self.targets_seen_before, self.examples)


def seen_target_warnings(seen_before: int, examples: int) -> list[str]:
    """A line where many targets cannot be recommended because their users had them before."""
    if seen_before <= MANY_SEEN * examples:
        return []
    return [
        f"{seen_before} of {examples} targets ({seen_before / examples:.1%}) are items that their "
        "users had before: misses, since seen items are left out. Where users come back to items, "
        "--keep-seen (keep_seen=True) recommends and ranks them as well"
    ]


def ranking_metrics(ranks: npt.ArrayLike, cutoffs: Iterable[int] = CUTOFFS) -> dict[str, float]:
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


def evaluate_model(
    model: SASRec,
    examples: Examples,
    similarity: str = "dot",
    keep_seen: bool = False,
    batch_size: int = 512,
    progress: bool = False,
) -> Evaluation:
    """Metrics of a model over the whole catalog, seen items excluded and ranked.

    Args:
        examples: histories with one target each.
        similarity: ``"dot"`` or ``"cosine"``, as the model was trained.
        keep_seen: the protocol to stand by is the one that ranks seen items.
        batch_size: histories encoded at once; they are grouped by length.
        progress: show a progress bar on a terminal.
    """
    batches = _batches(examples, batch_size, progress)
    with _ranking(model) as encode:
        ranks = _ranks(model.table, encode, batches, examples, similarity, ("excluded", "ranked"))
    return _evaluation(ranks, examples, keep_seen)


def evaluate_popularity(
    item_counts: npt.NDArray[np.int64],
    examples: Examples,
    keep_seen: bool = False,
    batch_size: int = 512,
) -> Evaluation:
    """Metrics when every user is shown the items by training popularity: the baseline to beat.

    Popularity is a one-dimensional item embedding, so it takes the same op, ties included.

    Args:
        item_counts: ``(N,)`` occurrences in the training interactions.
        examples, keep_seen, batch_size: as for :func:`evaluate_model`.
    """
    table = ItemTable(None, torch.from_numpy(item_counts.astype(np.float32))[:, None])
    batches = _batches(examples, batch_size, progress=False)

    def encode(histories: Sequences) -> Tensor:
        return torch.ones(len(histories), 1)

    ranks = _ranks(table, encode, batches, examples, "dot", ("excluded", "ranked"))
    return _evaluation(ranks, examples, keep_seen)


def example_ranks(
    model: SASRec,
    examples: Examples,
    similarity: str = "dot",
    exclude_seen: bool = True,
    batch_size: int = 512,
    progress: bool = False,
) -> npt.NDArray[np.int64]:
    """Rank of every example's target among all items, through the exact op ``target_ranks``.

    Args:
        examples, similarity, batch_size, progress: as for :func:`evaluate_model`.
        exclude_seen: leave the items of the history out of the ranking.

    Returns:
        ``(E,)`` int64, 0 = first, in the order of ``examples``; ``UNREACHABLE`` where the target
        is itself left out.
    """
    seen_items: SeenItems = "excluded" if exclude_seen else "ranked"
    batches = _batches(examples, batch_size, progress)
    with _ranking(model) as encode:
        return _ranks(model.table, encode, batches, examples, similarity, (seen_items,))[seen_items]


def encode_histories(model: SASRec, histories: Sequences, device: torch.device) -> Tensor:
    """Queries ``(B, dim)`` after each of ``histories``."""
    ids = histories.pad(
        np.arange(len(histories)), length=model.history, padding=model.table.padding_idx
    )
    return model.encode(torch.from_numpy(ids).to(device))


def exclusion(seen: Sequences, device: torch.device) -> tuple[Tensor, Tensor]:
    """``seen`` as the argument ``exclude`` of the ops: offsets and ids, on ``device``."""
    # Copies: sequences are read-only, which torch does not know.
    offsets, ids = torch.tensor(seen.offsets), torch.tensor(seen.values)
    return offsets.to(device), ids.to(device)


def _batches(examples: Examples, batch_size: int, progress: bool) -> Iterable[IntArray]:
    batches = length_batches(examples.histories.lengths, batch_size, None)
    return tqdm(batches, "rank", leave=False, disable=None if progress else True)


@contextmanager
def _ranking(model: SASRec) -> Iterator[Encode]:
    """The model's encoder, without dropout and gradients; the model's mode is restored after."""
    device, was_training = next(model.parameters()).device, model.training
    model.eval()
    try:
        with torch.inference_mode():
            yield lambda histories: encode_histories(model, histories, device)
    finally:
        model.train(was_training)


def _ranks(
    table: ItemTable,
    encode: Encode,
    batches: Iterable[IntArray],
    examples: Examples,
    similarity: str,
    protocols: Sequence[SeenItems],
) -> dict[SeenItems, IntArray]:
    """:func:`example_ranks` under each of ``protocols``; every history is encoded once."""
    ranks = {protocol: np.empty(len(examples), dtype=np.int64) for protocol in protocols}
    for rows in batches:
        queries = encode(examples.histories.select(rows))
        targets = torch.tensor(examples.targets[rows]).to(queries.device)
        seen = exclusion(examples.seen.select(rows), queries.device)
        for protocol in protocols:
            exclude = seen if protocol == "excluded" else None
            found = table.target_ranks(queries, targets, similarity=similarity, exclude=exclude)
            ranks[protocol][rows] = found.cpu().numpy()
    if "excluded" in ranks:
        ranks["excluded"][examples.targets_seen()] = UNREACHABLE
    return ranks


def _evaluation(
    ranks: dict[SeenItems, IntArray], examples: Examples, keep_seen: bool
) -> Evaluation:
    return Evaluation(
        seen_items="ranked" if keep_seen else "excluded",
        examples=len(examples),
        targets_seen_before=int(examples.targets_seen().sum()),
        by_seen_items={protocol: ranking_metrics(found) for protocol, found in ranks.items()},
    )
