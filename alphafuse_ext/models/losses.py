"""Next-item losses over an item table, each a sum over the positions that have a target.

Sums, not means: batches hold sequences of similar length, so a mean per batch would let positions
of short histories weigh more. The trainer divides by one constant instead.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from alphafuse_ext.checks import invalid
from alphafuse_ext.choices import (
    LOSSES,
    NEGATIVES_PER,
    Loss,
    NegativesPer,
    check_logq,
    check_smoothing,
)
from alphafuse_ext.items.item_embeddings import ItemEmbeddings
from alphafuse_ext.items.neighbors import Neighbors
from alphafuse_ext.models.negatives import NegativeSampler


def similarity_of(loss: Loss) -> str:
    """How queries and items are compared in a loss, and so in ranking."""
    return "cosine" if loss == "infonce" else "dot"


def next_item_loss(
    table: ItemEmbeddings,
    hidden: Tensor,
    targets: Tensor,
    loss: Loss = "cross_entropy",
    negatives: int = 256,
    negatives_per: NegativesPer = "sequence",
    temperature: float | None = None,
    sampler: NegativeSampler | None = None,
    logq: bool | None = None,
    label_smoothing: float = 0.0,
    language_smoothing: float = 0.0,
    neighbors: Neighbors | None = None,
) -> Tensor:
    """Summed loss of predicting ``targets`` from ``hidden``.

    * ``cross_entropy``: softmax over the full catalog, inner products.
    * ``sampled_softmax``: softmax over the target and drawn negatives, inner products.
    * ``infonce``: the same with cosine similarity.
    * ``bce``: binary cross entropy of the target against each negative.

    A negative that equals the target of a row is masked in that row.

    Args:
        hidden: ``(B, L, dim)`` queries.
        targets: ``(B, L)`` int64; ``table.padding_idx`` where a position has no target.
        negatives: number drawn, with replacement, on the device of ``hidden``.
        negatives_per: drawn for each ``position``, each ``sequence``, or once for the ``batch``.
        temperature: scores are divided by it; ``None``: by 0.07 for ``infonce``, else by 1.
        sampler: draws the negatives; ``None``: uniformly.
        logq: of a sampled softmax: subtract from each score the logarithm of the probability that
            its item is drawn, the target's too (Bengio and Senecal, 2008), so that items drawn
            often are not pushed down for it. ``None``: so, where a ``sampler`` is given; for
            uniform negatives it changes nothing.
        label_smoothing: of ``cross_entropy``: the share of the target that is spread evenly over
            the catalog, as of ``torch.nn.functional.cross_entropy``.
        language_smoothing: of ``cross_entropy``: the share that goes to the target's ``neighbors``,
            by their weights; a target without any keeps it.

    Returns:
        A float32 scalar.
    """
    if loss not in LOSSES:
        raise invalid("loss", repr(loss), f"one of {', '.join(LOSSES)}")
    if negatives_per not in NEGATIVES_PER:
        raise invalid("negatives_per", repr(negatives_per), f"one of {', '.join(NEGATIVES_PER)}")
    if temperature is None:
        temperature = 0.07 if loss == "infonce" else 1.0
    if temperature <= 0:
        raise invalid("temperature", temperature, "a number > 0")
    check_smoothing("label_smoothing", label_smoothing, loss)
    check_smoothing("language_smoothing", language_smoothing, loss)
    check_logq(logq, loss)
    has_target = targets != table.padding_idx
    if loss == "cross_entropy":
        queries, wanted = hidden[has_target], targets[has_target]
        total = table.cross_entropy(queries, wanted, temperature=temperature, reduction="sum")
        if label_smoothing:
            # What it adds to a row is its share of (target's score - mean score).
            above = (queries.float() * (table(wanted).float() - table.mean().float())).sum()
            total = total + label_smoothing / temperature * above
        if language_smoothing:
            if neighbors is None:
                allowed = f"the items' with language_smoothing={language_smoothing:g}"
                raise invalid("neighbors", None, allowed)
            ids, weights = (part.to(wanted.device)[wanted] for part in neighbors)
            scores = table.score_candidates(queries, torch.cat([wanted[:, None], ids], 1))
            above = ((scores[:, :1] - scores[:, 1:]) * weights).sum()
            total = total + language_smoothing / temperature * above
        return total
    if negatives < 1:
        raise invalid("negatives", negatives, "an integer >= 1")
    shape: tuple[int, ...] = (negatives,)
    if negatives_per == "sequence":
        shape = (len(hidden), negatives)
    elif negatives_per == "position":
        shape = (int(has_target.sum()), negatives)
    if sampler is None:
        drawn = torch.randint(table.num_embeddings, shape, device=hidden.device)
    else:
        drawn = sampler.draw(shape, hidden.device)
    corrections = sampler if logq is not False and loss != "bce" else None
    positive, negative = _sampled_scores(
        table,
        hidden,
        targets,
        has_target,
        drawn,
        negatives_per,
        similarity_of(loss),
        temperature,
        corrections,
    )
    if loss == "bce":
        return F.softplus(-positive).sum() + F.softplus(negative).sum()
    return (torch.logsumexp(torch.cat([positive, negative], 1), 1) - positive[:, 0]).sum()


def _sampled_scores(
    table: ItemEmbeddings,
    hidden: Tensor,
    targets: Tensor,
    has_target: Tensor,
    drawn: Tensor,
    negatives_per: NegativesPer,
    similarity: str,
    temperature: float,
    corrections: NegativeSampler | None,
) -> tuple[Tensor, Tensor]:
    """Scores of the targets ``(P, 1)`` and the negatives ``(P, K)`` for the P rows with a target.

    Masked negatives score -inf: they add nothing to a log-sum-exp nor to a softplus.
    """
    queries, wanted = hidden[has_target], targets[has_target]
    positive = table.score_candidates(queries, wanted[:, None], similarity=similarity)
    if negatives_per == "sequence":
        # (B, L) rows share the candidates of their sequence; keep the rows that have a target.
        rows = hidden.masked_fill(~has_target[..., None], 0.0)  # what is there has no part
        negative = table.score_candidates(rows, drawn, similarity=similarity)[has_target]
        drawn = drawn[:, None, :].expand(-1, hidden.shape[1], -1)[has_target]
    else:
        negative = table.score_candidates(queries, drawn, similarity=similarity)
    positive, negative = positive / temperature, negative / temperature
    if corrections is not None:
        positive = positive - corrections.log_probability(wanted[:, None])
        negative = negative - corrections.log_probability(drawn)
    return positive, negative.masked_fill(drawn == wanted[:, None], float("-inf"))
