"""Reference implementation of all ops in plain PyTorch, which the native ops are tested against.

Arguments and results are those of ``alphafuse_ext.ops``, except that the dtype of the inputs is
kept, so that float64 inputs give float64 results and gradients by autograd.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from alphafuse_ext.ops.arguments import Exclude, normalized

if TYPE_CHECKING:
    from alphafuse_ext.ops.arguments import Mixture, Only


def fuse(
    semantic_rows: torch.Tensor | None, id_embeddings: torch.Tensor | None, fusion: str = "concat"
) -> torch.Tensor:
    """The fused table ``(N, dim)``."""
    if semantic_rows is None:
        assert id_embeddings is not None
        return id_embeddings
    if id_embeddings is None:
        return semantic_rows
    if fusion == "concat":
        return torch.cat([semantic_rows, id_embeddings], dim=1)
    offset = semantic_rows.shape[1] - id_embeddings.shape[1]
    return semantic_rows + torch.nn.functional.pad(id_embeddings, (offset, 0))


def rows_of(table: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Rows of a table ``(N, dim)``; zeros for the padding id."""
    return torch.nn.functional.embedding(ids, torch.nn.functional.pad(table, (0, 0, 0, 1)))


def lookup(
    ids: torch.Tensor,
    semantic_rows: torch.Tensor | None,
    id_embeddings: torch.Tensor | None,
    fusion: str = "concat",
) -> torch.Tensor:
    """Fused rows of ``ids``; zeros for the padding id."""
    return rows_of(fuse(semantic_rows, id_embeddings, fusion), ids)


def score_all(
    queries: torch.Tensor,
    semantic_rows: torch.Tensor | None,
    id_embeddings: torch.Tensor | None,
    fusion: str = "concat",
    similarity: str = "dot",
) -> torch.Tensor:
    """Scores ``(B, N)``."""
    table = fuse(semantic_rows, id_embeddings, fusion)
    if similarity == "cosine":
        queries, table = normalized(queries), normalized(table)
    return queries @ table.T


def score_candidates(
    queries: torch.Tensor,
    candidates: torch.Tensor,
    semantic_rows: torch.Tensor | None,
    id_embeddings: torch.Tensor | None,
    fusion: str = "concat",
    similarity: str = "dot",
) -> torch.Tensor:
    """Scores ``(B, K)`` or ``(B, L, K)``; -inf for the padding id."""
    rows = lookup(candidates, semantic_rows, id_embeddings, fusion)
    if similarity == "cosine":
        queries, rows = normalized(queries), normalized(rows)
    while rows.dim() < queries.dim() + 1:  # shared candidates: one more axis of queries
        rows = rows.unsqueeze(-3)
    padding = candidates == fuse(semantic_rows, id_embeddings, fusion).shape[0]
    while padding.dim() < queries.dim():
        padding = padding.unsqueeze(-2)
    return (rows @ queries.unsqueeze(-1)).squeeze(-1).masked_fill(padding, -torch.inf)


def cross_entropy(
    queries: torch.Tensor,
    targets: torch.Tensor,
    semantic_rows: torch.Tensor | None,
    id_embeddings: torch.Tensor | None,
    fusion: str = "concat",
    similarity: str = "dot",
    temperature: float = 1.0,
    reduction: str = "mean",
    *,
    ignore_index: int | None = None,
    weight: torch.Tensor | None = None,
) -> torch.Tensor:
    """The softmax loss, ignoring the padding id and ``ignore_index``."""
    rows = queries.flatten(0, -2)
    scores = score_all(rows, semantic_rows, id_embeddings, fusion, similarity) / temperature
    padding = scores.shape[1]
    if ignore_index is not None:
        targets = targets.masked_fill(targets == ignore_index, padding)
    weight = None if weight is None else weight.to(scores)
    losses = torch.nn.functional.cross_entropy(
        scores, targets.flatten(), weight, ignore_index=padding, reduction=reduction
    )
    return losses.view(targets.shape) if reduction == "none" else losses


def sampled_softmax(
    queries: torch.Tensor,
    targets: torch.Tensor,
    negatives: torch.Tensor,
    semantic_rows: torch.Tensor | None,
    id_embeddings: torch.Tensor | None,
    fusion: str = "concat",
    similarity: str = "dot",
    temperature: float = 1.0,
    reduction: str = "mean",
    *,
    log_q: torch.Tensor | None = None,
    ignore_index: int | None = None,
    weight: torch.Tensor | None = None,
) -> torch.Tensor:
    """The softmax loss over each target and its negatives."""
    padding = fuse(semantic_rows, id_embeddings, fusion).shape[0]
    if ignore_index is not None:
        targets = targets.masked_fill(targets == ignore_index, padding)
    ignored = targets == padding
    pair = semantic_rows, id_embeddings
    target = score_candidates(queries, targets[..., None], *pair, fusion, similarity)
    scores = score_candidates(queries, negatives, *pair, fusion, similarity)
    while negatives.dim() < queries.dim():
        negatives = negatives.unsqueeze(-2)
    left_out = (negatives == targets[..., None]) | (negatives == padding)
    target = target.masked_fill(ignored[..., None], 0.0) / temperature
    scores = scores.masked_fill(left_out, 0.0) / temperature
    if log_q is not None:
        shifts = torch.nn.functional.pad(log_q.to(scores), (0, 1))
        target, scores = target - shifts[targets][..., None], scores - shifts[negatives]
    scores = scores.masked_fill(left_out, -torch.inf)
    losses = torch.cat([target, scores], -1).logsumexp(-1) - target.squeeze(-1)
    of_targets = (~ignored).to(losses)
    if weight is not None:
        of_targets = of_targets * weight.to(losses)[targets.masked_fill(ignored, 0)]
    losses = (losses * of_targets).masked_fill(ignored, 0.0)
    if reduction == "none":
        return losses
    return losses.sum() if reduction == "sum" else losses.sum() / of_targets.sum()


def in_order(scores: torch.Tensor) -> torch.Tensor:
    """Ids ``(B, N)`` by descending score, then ascending id, NaN last."""
    # A stable sort keeps ids in order among equal scores; the second one separates NaN from -inf.
    by_score = scores.nan_to_num(-torch.inf, torch.inf, -torch.inf)
    ids = by_score.argsort(dim=1, descending=True, stable=True)
    return ids.gather(1, scores.gather(1, ids).isnan().to(torch.int8).argsort(dim=1, stable=True))


def excluded(exclude: Exclude, batch: int, num_embeddings: int) -> torch.Tensor:
    """A mask ``(B, N)`` of the ids to leave out, from either form of ``exclude``."""
    mask = torch.zeros(batch, num_embeddings, dtype=torch.bool)
    if exclude is None:
        return mask
    for b in range(batch):
        if isinstance(exclude, torch.Tensor):
            ids = exclude[b]
        else:
            offsets, values = exclude
            ids = values[int(offsets[b]) : int(offsets[b + 1])]
        mask[b, ids[(ids >= 0) & (ids < num_embeddings)].long()] = True
    return mask


def left_out_of(only: Only, exclude: Exclude, batch: int, num_embeddings: int) -> torch.Tensor:
    """A mask ``(B, N)`` of what is excluded, or not among ``only``."""
    mask = excluded(exclude, batch, num_embeddings)
    if isinstance(only, torch.Tensor) and only.dim() == 1:
        only = only.expand(batch, -1)
    return mask if only is None else mask | ~excluded(only, batch, num_embeddings)


def log_probabilities(scores: torch.Tensor, mixture: Mixture) -> torch.Tensor:
    """``log((1 - w) softmax(scores / temperature) + w q)``, ``(B, N)``."""
    ids, probabilities, weight, temperature, offsets = mixture
    listed = torch.zeros_like(scores)
    for b in range(scores.shape[0]):
        where = b if offsets is None else slice(int(offsets[b]), int(offsets[b + 1]))
        own, numbers = ids[where], probabilities[where]
        known = (own >= 0) & (own < scores.shape[1])
        listed[b, own[known].long()] = numbers[known].to(scores.dtype)
    w = torch.as_tensor(weight).to(scores.dtype).expand(scores.shape[0])[:, None]
    own = (scores / temperature).log_softmax(1) + (1 - w).log()
    return torch.logaddexp(own, w.log() + listed.log())


def _of_one(exclude: Exclude) -> Exclude:
    if isinstance(exclude, torch.Tensor) and exclude.dim() == 1:
        return exclude[None]
    return exclude


def _mixture_of_one(mixture: Mixture | None) -> Mixture | None:
    if mixture is None or mixture.ids.dim() != 1 or mixture.offsets is not None:
        return mixture
    return mixture._replace(ids=mixture.ids[None], probabilities=mixture.probabilities[None])


def topk(
    queries: torch.Tensor,
    k: int,
    semantic_rows: torch.Tensor | None,
    id_embeddings: torch.Tensor | None,
    fusion: str = "concat",
    similarity: str = "dot",
    exclude: Exclude = None,
    only: Only = None,
    mixture: Mixture | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Values and ids ``(B, k)``, padded with -inf and -1; ``(k,)`` for one query ``(dim,)``."""
    if queries.dim() == 1:
        one = (queries[None], k, semantic_rows, id_embeddings, fusion, similarity)
        values, ids = topk(*one, _of_one(exclude), _of_one(only), _mixture_of_one(mixture))
        return values[0], ids[0]
    scores = score_all(queries, semantic_rows, id_embeddings, fusion, similarity)
    if mixture is not None:
        scores = log_probabilities(scores, mixture)
    left_out = left_out_of(only, exclude, *scores.shape)
    values = torch.full((scores.shape[0], k), -torch.inf, dtype=scores.dtype)
    ids = torch.full((scores.shape[0], k), -1)
    for b, order in enumerate(in_order(scores)):
        order = order[~left_out[b, order]][:k]
        values[b, : len(order)], ids[b, : len(order)] = scores[b, order], order
    return values, ids


def target_ranks(
    queries: torch.Tensor,
    targets: torch.Tensor,
    semantic_rows: torch.Tensor | None,
    id_embeddings: torch.Tensor | None,
    fusion: str = "concat",
    similarity: str = "dot",
    exclude: Exclude = None,
    only: Only = None,
    mixture: Mixture | None = None,
) -> torch.Tensor:
    """The target's rank, int64; -1 for the padding id, or if it is not ranked."""
    if queries.dim() == 1:
        one = (queries[None], targets[None], semantic_rows, id_embeddings, fusion, similarity)
        lists = _of_one(exclude), _of_one(only), _mixture_of_one(mixture)
        return target_ranks(*one, *lists)[0]
    scores = score_all(queries, semantic_rows, id_embeddings, fusion, similarity)
    if mixture is not None:
        scores = log_probabilities(scores, mixture)
    left_out = left_out_of(only, exclude, *scores.shape)
    no_rank = left_out_of(only, None, *scores.shape)
    ranks = torch.full_like(targets, -1)
    for b, order in enumerate(in_order(scores)):
        target = int(targets[b])
        if target < scores.shape[1] and not no_rank[b, target]:
            order = order[~left_out[b, order] | (order == target)]
            ranks[b] = (order == target).nonzero().item()
    return ranks
