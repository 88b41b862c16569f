"""Next-item losses over an item table, each a sum over the positions that have a target.

Sums, not means: batches hold sequences of similar length, so a mean per batch would let positions
of short histories weigh more. The trainer divides by one constant instead.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from alphafuse_ext.checks import invalid
from alphafuse_ext.config import own
from alphafuse_ext.config.loss import BCE, LOSSES, CrossEntropy, Loss, SampledSoftmax
from alphafuse_ext.config.option import chosen
from alphafuse_ext.items.catalog import Catalog
from alphafuse_ext.items.language_neighbors import Neighbors
from alphafuse_ext.models.negatives import NegativeSampler
from alphafuse_ext.ops import native


def loss_settings(loss: str, given: dict[str, Any]) -> Loss:
    """The settings of a loss, checked.

    Args:
        loss: its name.
        given: by name; the others have their defaults.

    Raises:
        ValueError, TypeError: no such loss or setting, or a bad value.
    """
    kinds = LOSSES if ":" not in str(loss) else {loss: own.settings_of("loss", "loss", loss)}
    return chosen("loss", kinds, loss, given)  # type: ignore[return-value]


def next_item_loss(
    table: Catalog,
    hidden: Tensor,
    targets: Tensor,
    loss: str = "cross_entropy",
    sampler: NegativeSampler | None = None,
    neighbors: Neighbors | None = None,
    checked: Loss | None = None,
    weights: Tensor | None = None,
    **settings: Any,
) -> Tensor:
    """Summed loss of predicting ``targets`` from ``hidden``.

    * ``cross_entropy``: softmax over the full catalog, inner products.
    * ``sampled_softmax``: softmax over the target and drawn negatives, inner products.
    * ``infonce``: the same with cosine similarity.
    * ``bce``: binary cross entropy of the target against each negative.
    * ``package.module:name``: that function of ``(table, hidden, targets, **settings)``.

    A negative that equals the target of a row is masked in that row.

    Args:
        hidden: ``(B, L, dim)`` queries.
        targets: ``(B, L)`` int64; ``table.padding_idx`` where a position has no target.
        sampler: draws the negatives; ``None``: uniformly.
        neighbors: of each item, for ``language_smoothing``.
        checked: the settings as :func:`loss_settings` returns them, for a loss of many batches.
        weights: of the targets, ``(B, L)``; ``None``: all are 1. Not of a function of one's own.
        **settings: of the loss, with the defaults of :mod:`alphafuse_ext.config.loss`:

            * ``temperature``: scores are divided by it.
            * ``label_smoothing`` (``cross_entropy``): the share of the target that is spread evenly
              over the catalog, as of ``torch.nn.functional.cross_entropy``.
            * ``language_smoothing`` (``cross_entropy``): the share that goes to the target's
              ``neighbors``, by their weights; a target without any keeps it.
            * ``negatives`` (the others): number drawn, with replacement, on the device of
              ``hidden``.
            * ``negatives_per``: drawn for each ``position``, each ``sequence``, or once for the
              ``batch``; a ``sampler`` that draws in-batch draws its targets, each position's once
              for the ``batch``, all of them where there are no more than ``negatives``.
            * ``logq`` (sampled softmaxes): subtract from each score the logarithm of the
              probability that its item is drawn, the target's too (Bengio and Senecal, 2008), so
              that items drawn often are not pushed down for it. ``None``: so, where a ``sampler``
              is given; for uniform negatives it changes nothing.

    Returns:
        A float32 scalar.
    """
    given = loss_settings(loss, settings) if checked is None else checked
    if isinstance(given, CrossEntropy):
        return _cross_entropy(table, hidden, targets, given, neighbors, weights)
    if isinstance(given, BCE):
        return _sampled_loss(table, hidden, targets, given, sampler, weights)
    if weights is not None:
        raise invalid("weights", "some", f"none with loss={loss}, which takes none")
    function = own.find("loss", loss)
    return function(table, hidden, targets, **dataclasses.asdict(given))


def _positions(
    hidden: Tensor, targets: Tensor, weights: Tensor | None, padding: int, exactly: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Queries ``(P, dim)``, targets and weights of the positions that have a target.

    Off the CPU of all positions, unless it has to be exactly those: the ops leave the others out,
    and how many there are only the device knows, which to wait for would cost more.
    """
    if not exactly and not native.runs_on_cpu(hidden):
        own = None if weights is None else weights.flatten()
        return hidden.flatten(0, -2), targets.flatten(), own
    has_target = targets != padding
    own = None if weights is None else weights[has_target]
    return hidden[has_target], targets[has_target], own


def _cross_entropy(
    table: Catalog,
    hidden: Tensor,
    targets: Tensor,
    given: CrossEntropy,
    neighbors: Neighbors | None,
    weights: Tensor | None,
) -> Tensor:
    smoothed = bool(given.label_smoothing or given.language_smoothing)
    queries, wanted, own = _positions(hidden, targets, weights, table.padding_idx, smoothed)
    reduction = "sum" if own is None else "none"
    total = table.cross_entropy(queries, wanted, temperature=given.temperature, reduction=reduction)
    if own is not None:
        total = (total * own).sum()
    if given.label_smoothing:
        # What it adds to a row is its share of (target's score - mean score).
        each = queries.float() * (table(wanted).float() - table.mean().float())
        above = (each if own is None else each * own[:, None]).sum()
        total = total + given.label_smoothing / given.temperature * above
    if given.language_smoothing:
        if neighbors is None:
            allowed = f"the items' with language_smoothing={given.language_smoothing:g}"
            raise invalid("neighbors", None, allowed)
        ids, shares = (part.to(wanted.device)[wanted] for part in neighbors)
        scores = table.score_candidates(queries, torch.cat([wanted[:, None], ids], 1))
        each = (scores[:, :1] - scores[:, 1:]) * shares
        above = (each if own is None else each * own[:, None]).sum()
        total = total + given.language_smoothing / given.temperature * above
    return total


def _sampled_loss(
    table: Catalog,
    hidden: Tensor,
    targets: Tensor,
    given: BCE,
    sampler: NegativeSampler | None,
    weights: Tensor | None,
) -> Tensor:
    in_batch = sampler is not None and sampler.in_batch
    exactly = not isinstance(given, SampledSoftmax) or given.negatives_per == "position" or in_batch
    queries, wanted, own = _positions(hidden, targets, weights, table.padding_idx, exactly)
    shape: tuple[int, ...] = (given.negatives,)
    if given.negatives_per == "sequence":
        shape = (len(hidden), given.negatives)
    elif given.negatives_per == "position":
        shape = (len(wanted), given.negatives)
    if sampler is None:
        drawn = torch.randint(table.num_embeddings, shape, device=hidden.device)
    else:
        drawn = sampler.draw(shape, hidden.device, wanted)
    per_sequence = given.negatives_per == "sequence"
    if isinstance(given, SampledSoftmax):
        log_q = None
        if sampler is not None and given.logq is not False:
            log_q = sampler.log_probabilities(hidden.device)
        losses = table.sampled_softmax(
            *((hidden, targets) if per_sequence else (queries, wanted)),
            drawn,
            given.similarity,
            given.temperature,
            "sum" if weights is None else "none",
            log_q=log_q,
        )
        if weights is None or own is None:
            return losses
        return (losses * (weights if per_sequence else own)).sum()
    positive = table.score_candidates(queries, wanted[:, None], similarity=given.similarity)
    if per_sequence:
        has_target = targets != table.padding_idx
        # (B, L) rows share the candidates of their sequence; keep the rows that have a target.
        rows = hidden.masked_fill(~has_target[..., None], 0.0)  # what is there has no part
        negative = table.score_candidates(rows, drawn, similarity=given.similarity)[has_target]
        drawn = drawn[:, None, :].expand(-1, hidden.shape[1], -1)[has_target]
    else:
        negative = table.score_candidates(queries, drawn, similarity=given.similarity)
    # A masked negative adds nothing to a softplus.
    negative = negative.masked_fill(drawn == wanted[:, None], float("-inf"))
    positive, negative = positive / given.temperature, negative / given.temperature
    of_positive, of_negatives = F.softplus(-positive), F.softplus(negative)
    if own is not None:
        of_positive, of_negatives = of_positive * own[:, None], of_negatives * own[:, None]
    return of_positive.sum() + of_negatives.sum()
