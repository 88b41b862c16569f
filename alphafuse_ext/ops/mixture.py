"""``mixture``: a ranking by the model's softmax mixed with probabilities of a few listed items.

``p(i) = (1 - w) softmax(scores / temperature)_i + w q_i``, as language models are mixed with a
datastore. Divided by what all items share, an item that is not listed keeps its score, and a listed
one has that score raised: by ``q_i`` in units of the softmax. So the order is that of scores,
float32 as ever, and only listed items change places: their raised scores are merged with the
ranking of the others, and no ``(B, N)`` array exists.
"""

from __future__ import annotations

import math
import numbers
from typing import Any, NamedTuple

import torch
from torch import Tensor

from alphafuse_ext.checks import invalid
from alphafuse_ext.ops import native
from alphafuse_ext.ops.arguments import (
    Mixture,
    check_integers,
    check_same_device,
    prepare_queries,
    split_lists,
)
from alphafuse_ext.ops.only import padded
from alphafuse_ext.ops.tables import FusedTables

_ROWS = 1 << 17
"""Queries with a listed item each that are scored at once."""


class MixtureArguments(NamedTuple):
    """A checked mixture, as ops take it."""

    offsets: Tensor | None
    ids: Tensor
    """int64."""
    probabilities: Tensor
    """Of the shape of ``ids``, float64."""
    weights: Tensor
    """``(B,)``, float64."""
    temperature: float


def split_mixture(mixture: Any, queries: Tensor) -> MixtureArguments:
    """A mixture as ops take it, of which :func:`listed` reads the values.

    Raises:
        ValueError, TypeError: of another kind, shape or dtype, or a number out of range.
    """
    if not isinstance(mixture, Mixture):
        raise invalid("mixture", type(mixture).__name__, "a Mixture", TypeError)
    ids, probabilities, weight, temperature, offsets = mixture
    single = queries.dim() == 1
    batch = 1 if single else queries.shape[0]
    check_integers("mixture.ids", ids)
    if offsets is not None:
        offsets, ids = split_lists("mixture", offsets, ids, batch, queries)
    elif ids.dim() == 1 and single:
        pass
    elif ids.dim() != 2 or ids.shape[0] != batch:
        allowed = "(M,)" if single else f"({batch}, M)"
        raise invalid("mixture.ids", f"shape {tuple(ids.shape)}", allowed)
    check_same_device("mixture.ids", ids, "queries", queries)
    floats = (torch.float32, torch.float64)
    if not isinstance(probabilities, Tensor) or probabilities.dtype not in floats:
        found = getattr(probabilities, "dtype", type(probabilities).__name__)
        raise invalid("mixture.probabilities", found, "a float32 or float64 tensor", TypeError)
    if probabilities.shape != ids.shape:
        found, allowed = f"shape {tuple(probabilities.shape)}", f"{tuple(ids.shape)}, as the ids"
        raise invalid("mixture.probabilities", found, allowed)
    check_same_device("mixture.probabilities", probabilities, "queries", queries)
    if single and offsets is None and ids.dim() == 1:
        ids, probabilities = ids[None], probabilities[None]
    if isinstance(temperature, bool) or not isinstance(temperature, numbers.Real):
        found = type(temperature).__name__
        raise invalid("mixture.temperature", found, "a finite number above 0", TypeError)
    if not 0 < float(temperature) < math.inf:
        raise invalid("mixture.temperature", temperature, "a finite number above 0")
    weights = _weights(weight, batch, queries)
    return MixtureArguments(
        offsets, ids.long(), probabilities.detach().double(), weights, float(temperature)
    )


def _weights(weight: Any, batch: int, queries: Tensor) -> Tensor:
    allowed = "0 <= weight < 1"
    if not isinstance(weight, Tensor):
        if isinstance(weight, bool) or not isinstance(weight, numbers.Real):
            allowed = f"a number, {allowed}, or a float tensor ({batch},)"
            raise invalid("mixture.weight", type(weight).__name__, allowed, TypeError)
        if not 0 <= float(weight) < 1:
            raise invalid("mixture.weight", weight, allowed)
        return torch.full((batch,), float(weight), dtype=torch.float64, device=queries.device)
    if not weight.is_floating_point():
        raise invalid("mixture.weight", weight.dtype, "a number or a float tensor", TypeError)
    if weight.dim() and tuple(weight.shape) != (batch,):
        found = f"shape {tuple(weight.shape)}"
        raise invalid("mixture.weight", found, f"() or ({batch},), one for each query")
    check_same_device("mixture.weight", weight, "queries", queries)
    weights = weight.detach().double().expand(batch).contiguous()
    fits = ((weights >= 0) & (weights < 1)).all()
    native.refuse_unless(fits, f"mixture.weight: got a tensor of another; expected {allowed}")
    return weights


class Listed(NamedTuple):
    """The lists of a batch, each ascending and filled up with the padding id ``N``."""

    ids: Tensor
    """``(B, M)``, int64."""
    probabilities: Tensor
    """``(B, M)``, float64; 0 of fillers."""


def listed(mixture: MixtureArguments, padding: int) -> Listed:
    """The lists, of what :func:`split_mixture` gives.

    Raises:
        ValueError: offsets that do not rise from 0 to the number of ids, an item twice in a list,
            or what is no probability.
        IndexError: an id outside ``-1 .. N``.
    """
    offsets, ids, probabilities, *_ = mixture
    native.check_ids("mixture.ids", ids.contiguous(), -1, padding)
    if offsets is not None:
        probabilities = padded("mixture", offsets, probabilities, 0.0)
        ids = padded("mixture", offsets, ids)
    filler = (ids == -1) | (ids == padding)
    ids, probabilities = ids.masked_fill(filler, padding), probabilities.masked_fill(filler, 0.0)
    fits = ((probabilities >= 0) & (probabilities <= 1)).all()
    native.refuse_unless(fits, "mixture.probabilities: got another number; expected 0 .. 1")
    if not native.runs_on_cpu(ids) or not bool((ids[:, 1:] >= ids[:, :-1]).all()):
        ids, order = ids.sort(1)
        probabilities = probabilities.gather(1, order)
    alone = ((ids[:, 1:] > ids[:, :-1]) | (ids[:, 1:] == padding)).all()
    native.refuse_unless(alone, "mixture.ids: got an item twice in a list; expected each once")
    return Listed(ids, probabilities)


class Softmax(NamedTuple):
    """What turns scores into log probabilities; float64, ``(B, 1)`` each."""

    log_sum: Tensor
    """``log(sum(exp(score / temperature)))`` over the whole catalog."""
    weights: Tensor
    """``w``."""
    temperature: float

    @classmethod
    def of(cls, maxima: Tensor, logs: Tensor, weights: Tensor, temperature: float) -> Softmax:
        """Of what the kernel ``log_sum_exp`` finds, ``(B,)`` each."""
        log_sum = maxima.double() + logs.double()
        return cls(log_sum[:, None], weights[:, None], temperature)

    def of_rows(self, rows: slice) -> Softmax:
        """Of some of the queries."""
        return Softmax(self.log_sum[rows], self.weights[rows], self.temperature)

    def raised(self, scores: Tensor, probabilities: Tensor) -> Tensor:
        """Scores ``(B, M)`` that items would have, were all of ``p`` the softmax's; float32.

        Never below ``scores``, and equal to them where the softmax is not a number, as with a
        score that is NaN or infinite.
        """
        own = scores.double() / self.temperature
        log_odds = self.weights.log() - (-self.weights).log1p()
        other = probabilities.log() + log_odds + self.log_sum
        most, least = torch.maximum(own, other), torch.minimum(own, other)
        found = (most + (least - most).exp().log1p()) * self.temperature
        found = torch.where(other == -torch.inf, scores, found.float())
        return torch.where(found > scores, found, scores)

    def log_probabilities(self, scores: Tensor) -> Tensor:
        """``log p``, float32, of items by their scores, ``(B, ...)``, where listed raised."""
        found = scores.double() / self.temperature - self.log_sum + (-self.weights).log1p()
        return found.float()


def softmax_of(queries: Tensor, tables: FusedTables, mixture: MixtureArguments) -> Softmax:
    """Of prepared queries over a whole catalog."""
    return Softmax.of(
        *log_sum_exp(queries, tables, mixture.temperature), mixture.weights, mixture.temperature
    )


def log_sum_exp(queries: Tensor, tables: FusedTables, temperature: float) -> tuple[Tensor, Tensor]:
    """The largest of scores over a temperature, and the logarithm of the sum of ``exp(score -
    largest)``, over these tables, of prepared queries; float32, ``(B,)`` each."""
    queries = (queries if temperature == 1 else queries / temperature).contiguous()
    maxima, logs = queries.new_empty((2, queries.shape[0])).unbind()
    # Queries of a half type are not of it any more, once they are divided.
    precision = tables.precision if temperature == 1 else "float32"
    kernels, where = native.kernels(queries, precision)
    kernels.log_sum_exp(tables.native(), queries, maxima, logs, where)
    return maxima, logs


def raised_scores(queries: Tensor, lists: Listed, tables: FusedTables, softmax: Softmax) -> Tensor:
    """Scores of the listed items, ``(B, M)``; -inf of fillers. Of prepared queries."""
    return softmax.raised(_listed_scores(queries, lists.ids, tables), lists.probabilities)


def _listed_scores(queries: Tensor, lists: Tensor, tables: FusedTables) -> Tensor:
    """Bitwise those that a scan over all items finds, on every device."""
    queries, lists = queries.contiguous(), lists.contiguous()
    kernels, where = native.kernels(queries, tables.precision)
    if native.runs_on_cpu(queries):
        scores = queries.new_empty((lists.shape[0], 1, lists.shape[1]))
        kernels.score_candidates(tables.native(), queries[:, None], lists, scores, where)
        return scores[:, 0]
    # A GPU sums candidates in another order, and in float32 whatever the tables are.
    columns = lists.split(max(1, _ROWS // max(1, lists.shape[0])), 1)
    parts = []
    for ids in columns:
        scores = queries.new_empty(ids.numel())
        repeated = queries.repeat_interleave(ids.shape[1], 0)
        kernels.target_scores(
            tables.native(), repeated, ids.reshape(-1).contiguous(), scores, where
        )
        parts.append(scores.view(ids.shape))
    return torch.cat(parts, 1)


class RankedLists(NamedTuple):
    """The lists of a batch, as they are ranked beside all other items."""

    ids: Tensor
    """``(B, M)``, ascending; the padding id fills up."""
    scores: Tensor
    """``(B, M)``, raised."""
    left_out: Tensor
    """``(B, M)`` bool: fillers, and what is excluded or not allowed."""
    queries: Tensor
    """Prepared."""
    others: tuple[None, Tensor]
    """What to leave out of the ranking of other items, as ``split_exclude`` gives it."""
    softmax: Softmax


def ranked_lists(
    queries: Tensor,
    tables: FusedTables,
    mixture: MixtureArguments,
    exclude_offsets: Tensor | None,
    exclude_ids: Tensor | None,
    only_offsets: Tensor | None,
    only_ids: Tensor | None,
) -> RankedLists:
    """What a ranking by a mixture begins with, of queries as the user gave them."""
    padding = tables.num_embeddings
    lists = listed(mixture, padding)
    prepared = prepare_queries(queries, tables.similarity)
    softmax = softmax_of(prepared, tables, mixture)
    raised = raised_scores(prepared, lists, tables, softmax)
    left_out = is_among("exclude", lists.ids, exclude_offsets, exclude_ids, padding)
    left_out |= lists.ids == padding
    if only_ids is not None:
        left_out |= ~is_among("only", lists.ids, only_offsets, only_ids, padding)
    others = None, with_listed(exclude_offsets, exclude_ids, lists.ids)
    return RankedLists(lists.ids, raised, left_out, prepared, others, softmax)


def with_listed(offsets: Tensor | None, ids: Tensor | None, lists: Tensor) -> Tensor:
    """What to leave out of the ranking of the others, ``(B, M)``: what is excluded, and listed.

    Args:
        offsets, ids: what ``split_exclude`` gives.
    """
    if ids is None:
        return lists
    left_out = ids if offsets is None else padded("exclude", offsets, ids)
    return torch.cat([left_out, lists], 1)


def is_among(
    argument: str, lists: Tensor, offsets: Tensor | None, ids: Tensor | None, padding: int
) -> Tensor:
    """Which of ``(B, M)`` ids are among others, for all ``(W,)`` or for each query.

    Args:
        argument: the name of the others.
        offsets, ids: what ``split_exclude`` and ``split_only`` give; ``None``: no others.
    """
    if ids is None:
        return torch.zeros_like(lists, dtype=torch.bool)
    native.check_ids(argument, ids.contiguous(), -1, padding)
    if offsets is not None:
        ids = padded(argument, offsets, ids)
    if not ids.shape[-1]:
        return torch.zeros_like(lists, dtype=torch.bool)
    ids = ids.sort(-1).values
    places = torch.searchsorted(ids, lists).clamp(max=ids.shape[-1] - 1)
    found = ids[places] if ids.dim() == 1 else ids.gather(1, places)
    return found == lists


def merged(
    values: Tensor, ids: Tensor, listed_values: Tensor, listed_ids: Tensor, k: int
) -> tuple[Tensor, Tensor]:
    """The ``k`` best of both, in order, filled up with -inf and -1.

    Args:
        values, ids: of items that are not listed, ``(B, K)``, -1 where there are none.
        listed_values, listed_ids: of others, ``(B, M)``, -1 where there are none.
        k: at most ``K + M``.
    """
    values, ids = torch.cat([values, listed_values], 1), torch.cat([ids, listed_ids], 1)
    order = _keys(values, ids).topk(k, 1).indices
    values, ids = values.gather(1, order), ids.gather(1, order)
    return values.masked_fill(ids < 0, -torch.inf), ids


def _keys(values: Tensor, ids: Tensor) -> Tensor:
    """Integers in the order of scores downward, then ids upward, NaN last, and then no item."""
    bits = (values + 0.0).contiguous().view(torch.int32)  # no -0.0
    bits = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).long()
    bits = torch.where(values.isnan(), -(2**31), bits)
    return torch.where(ids < 0, -(2**63), bits * 2**32 + (2**32 - 1 - ids))


def mixed_scores(scores: Tensor, mixture: MixtureArguments, padding: int) -> tuple[Tensor, Softmax]:
    """All scores ``(B, N)``, those of listed items raised: the definition, in plain PyTorch."""
    offsets, ids, probabilities, weights, temperature = mixture
    batch, rows = scores.shape[0], padding + 1  # the last for what names no item
    ids = ids.masked_fill(ids < 0, padding)
    if offsets is None:
        places, numbers, shape = ids, probabilities, (batch, rows)
    else:
        behind = torch.arange(ids.shape[0], device=ids.device) >= offsets[1:, None]
        places = (behind.sum(0) * rows + ids)[None]
        numbers, shape = probabilities[None], (1, batch * rows)
    dense = torch.zeros(shape, dtype=torch.float64, device=scores.device)
    dense = dense.scatter(1, places, numbers).view(batch, rows)[:, :padding]
    tempered = scores / temperature
    maxima = tempered.amax(1)
    logs = (tempered - maxima[:, None]).exp().sum(1).log()
    softmax = Softmax.of(maxima, logs, weights, temperature)
    return softmax.raised(scores, dense), softmax
