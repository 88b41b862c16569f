"""Functions that measure a run: its metrics, those of its lists, and those of baselines.

:class:`alphafuse_ext.Recommender` has them as methods.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from alphafuse_ext.checks import check_count, invalid
from alphafuse_ext.choices import TieRule
from alphafuse_ext.config import own
from alphafuse_ext.data import Examples, Split
from alphafuse_ext.data.sequences import evenly_spread
from alphafuse_ext.evaluation import baselines as other_baselines
from alphafuse_ext.evaluation.groups import long_tail_report
from alphafuse_ext.evaluation.ranking import (
    Evaluation,
    RankedItems,
    evaluate_model,
    evaluate_popularity,
    example_lists,
    sampled_candidates,
    sampled_ranks,
)
from alphafuse_ext.evaluation.run_neighbors import RunNeighbors
from alphafuse_ext.items.adapted_table import AdaptedTable
from alphafuse_ext.metrics import CUTOFFS, ranking_metrics
from alphafuse_ext.metrics import list_metrics as metrics_of_lists
from alphafuse_ext.models.popularity import Popularity
from alphafuse_ext.serving.served_run import ServedRun

_LISTS_MEASURED = 10_000
"""Examples whose lists are measured, an even sample of more."""

DEFAULT_METRIC_K = 10
"""Length of the lists that a metric of one's own is given."""


def evaluate(
    self: ServedRun,
    split: str = "test",
    keep_seen: bool | None = None,
    ties: TieRule = "id",
    neighbors: bool | None = None,
    cutoffs: Sequence[int] = CUTOFFS,
) -> dict[str, float]:
    """Metrics of the selected epoch, over the whole catalog.

    They describe the lists that :meth:`recommend` returns for the same histories: if seen items
    are excluded, a target in the history is a miss.

    Args:
        split: ``"test"`` or ``"validation"``.
        keep_seen: also rank the items of the history; default: as in training.
        ties: ``"id"``: items with equal scores are ordered by id, as in recommendations;
            ``"mean"``: metrics are means over all their orders.
        neighbors: as for :meth:`recommend`.
        cutoffs: the values of k.

    Returns:
        HR, NDCG and MRR, see :func:`~alphafuse_ext.metrics.ranking_metrics`;
        and those of :meth:`own_metrics`.

    Warns:
        UserWarning: caveats of the metrics, see :class:`Evaluation`.
    """
    how: dict[str, Any] = {"neighbors": neighbors, "cutoffs": cutoffs}
    evaluation = evaluate_in_detail(self, split, keep_seen, ties, **how)
    for line in evaluation.warnings():
        warnings.warn(line, stacklevel=2)
    return {**evaluation.metrics, **own_metrics(self, split, keep_seen, neighbors)}


def own_metrics(
    self: ServedRun,
    split: str = "test",
    keep_seen: bool | None = None,
    neighbors: bool | None = None,
) -> dict[str, float]:
    """Values of the setting ``metric``, see :mod:`alphafuse_ext.config.own`.

    Args:
        split, keep_seen, neighbors: as for :meth:`evaluate`.

    Returns:
        ``{"name@k": value}``; empty without such a metric.
    """
    config = self.config
    if config.metric is None:
        return {}
    k = config.metric_k or DEFAULT_METRIC_K
    examples = _examples(self.split, split)
    lists = example_lists(
        self.ranked_items,
        examples,
        k,
        exclude_seen=not self.keeps_seen(keep_seen),
        batch_size=config.evaluation_batch_size,
        neighbors=self.ranking_neighbors(neighbors),
    )
    counts = self.split.train_item_counts(self.interactions.num_items)
    function = own.find("metric", config.metric)
    found = function(lists, examples.targets, counts, **config.of("metric"))
    named = found if isinstance(found, Mapping) else {function.__name__: found}
    return {f"{name}@{k}": float(value) for name, value in named.items()}


def evaluate_in_detail(
    self: ServedRun,
    split: str = "test",
    keep_seen: bool | None = None,
    ties: TieRule = "id",
    progress: bool = True,
    neighbors: bool | None = None,
    cutoffs: Sequence[int] = CUTOFFS,
) -> Evaluation:
    """Like :meth:`evaluate`, with seen items both excluded and ranked, and with counts.

    Args:
        split, keep_seen, ties: as for :meth:`evaluate`.
        progress: show a progress bar in a terminal.
        neighbors: as for :meth:`recommend`.
        cutoffs: the values of k.
    """
    return evaluate_model(
        self.model,
        _examples(self.split, split),
        keep_seen=self.keeps_seen(keep_seen),
        ties=ties,
        batch_size=self.config.evaluation_batch_size,
        progress=progress,
        retired=self.retired,
        neighbors=self.ranking_neighbors(neighbors),
        cutoffs=cutoffs,
    )


def evaluate_sampled(
    self: ServedRun,
    candidates: int = 100,
    split: str = "test",
    keep_seen: bool | None = None,
    neighbors: bool | None = None,
    seed: int = 0,
    cutoffs: Sequence[int] = CUTOFFS,
) -> dict[str, dict[str, float]]:
    """Metrics where each target is ranked among some sampled items, as older papers did.

    Args:
        candidates: items for each example, drawn alike among those that its user has not seen.
        split, keep_seen, neighbors, cutoffs: as for :meth:`evaluate`.
        seed: of the draws.

    Returns:
        As :meth:`evaluate`, of ``"this run"`` and of ``"popularity"`` among the same items.

    Warns:
        UserWarning: that these metrics may order models otherwise than those of the whole
            catalog.
    """
    warnings.warn(
        f"the target is ranked among {candidates} sampled items: such metrics are far higher, "
        "and may order models otherwise than those over the whole catalog; use them for "
        "comparing with papers that sample, and for nothing else",
        stacklevel=2,
    )
    check_count("candidates", candidates)
    examples, num_items = _examples(self.split, split), self.interactions.num_items
    drawn = sampled_candidates(examples, num_items, candidates, seed, self.retired)
    popular = Popularity.of(self.split.train_item_counts(num_items)).eval()
    exclude_seen = not self.keeps_seen(keep_seen)
    batch_size = self.config.evaluation_batch_size
    of = {"this run": (self.model, self.ranking_neighbors(neighbors))}
    of["popularity"] = (popular, None)
    return {
        name: ranking_metrics(
            sampled_ranks(model, examples, drawn, exclude_seen, batch_size, self.retired, lists),
            cutoffs,
        )
        for name, (model, lists) in of.items()
    }


def list_metrics(
    self: ServedRun,
    split: str = "test",
    k: int = 10,
    keep_seen: bool | None = None,
    neighbors: bool | None = None,
) -> dict[str, dict[str, float]]:
    """What is recommended, beside how accurate it is: coverage, popularity, diversity.

    Args:
        split, keep_seen, neighbors: as for :meth:`evaluate`.
        k: length of the lists; fewer where the catalog has fewer items.

    Returns:
        Of ``"this run"`` and of ``"popularity"`` what
        :func:`alphafuse_ext.metrics.list_metrics` has, and ``lists``, how many there are: an
        even sample of 10,000 examples where there are more. Diversity is by the language
        embeddings that the run folder keeps for neighbors, or by semantic rows; it is left out
        where there are neither.
    """
    check_count("k", k)
    examples, num_items = _examples(self.split, split), self.interactions.num_items
    if len(examples) > _LISTS_MEASURED:
        examples = examples.select(evenly_spread(len(examples), _LISTS_MEASURED))
    counts = self.split.train_item_counts(num_items)
    rows, how = _language_rows(self), (not self.keeps_seen(keep_seen),)
    popular = RankedItems.without(Popularity.of(counts).eval(), self.retired)
    of = {"this run": (self.ranked_items, self.ranking_neighbors(neighbors))}
    of["popularity"] = (popular, None)
    batch_size = self.config.evaluation_batch_size
    found = {}
    for name, (ranked, lists) in of.items():
        shown = example_lists(
            ranked, examples, min(k, num_items), *how, batch_size, neighbors=lists
        )
        values = metrics_of_lists(shown, counts, rows)
        known = {metric: value for metric, value in values.items() if not np.isnan(value)}
        found[name] = {**known, "lists": len(shown)}
    return found


def popularity(
    self: ServedRun,
    split: str = "test",
    keep_seen: bool | None = None,
    ties: TieRule = "id",
    cutoffs: Sequence[int] = CUTOFFS,
) -> Evaluation:
    """The popularity baseline: the most popular items for everyone.

    Args:
        split, keep_seen, ties, cutoffs: as for :meth:`evaluate`.
    """
    counts = self.split.train_item_counts(self.interactions.num_items)
    return evaluate_popularity(
        counts,
        _examples(self.split, split),
        self.keeps_seen(keep_seen),
        ties,
        retired=self.retired,
        cutoffs=cutoffs,
    )


def baselines(
    self: ServedRun,
    split: str = "test",
    keep_seen: bool | None = None,
    ties: TieRule = "id",
    cutoffs: Sequence[int] = CUTOFFS,
    lists: RunNeighbors | None = None,
) -> dict[str, dict[str, Any]]:
    """Baselines beside :meth:`popularity`, see :mod:`alphafuse_ext.evaluation.baselines`.

    Args:
        split, keep_seen, ties, cutoffs: as for :meth:`evaluate`.
        lists: neighbors, either kind of which is a baseline; default: those of the run, if it
            has any.
    """
    clicks, select = self.interactions, self.config.select
    examples = _examples(self.split, split)
    how = (self.keeps_seen(keep_seen), ties, self.retired, cutoffs)
    found = other_baselines.baselines(clicks, self.split, examples, select, *how)
    lists = lists or self.neighbors
    if lists is not None:
        counts = self.split.train_item_counts(clicks.num_items)
        found |= other_baselines.neighbor_baselines(lists, counts, examples, *how)
    return found


def long_tail(self: ServedRun, evaluation: Evaluation, split: str = "test") -> dict[str, Any]:
    """Metrics by group: head and tail users; head, tail and cold items.

    Args:
        evaluation: of :meth:`evaluate_in_detail` or :meth:`popularity` for this split.
        split: ``"test"`` or ``"validation"``.

    Returns:
        See :func:`alphafuse_ext.evaluation.groups.long_tail_report`.
    """
    counts = self.split.train_item_counts(self.interactions.num_items)
    return long_tail_report(_examples(self.split, split), counts, evaluation)


def _language_rows(run: ServedRun) -> npt.NDArray[Any] | None:
    """Language embeddings of all items, or what stands for them; ``None``: nothing does."""
    if run.neighbors is not None and run.neighbors.kept.rows is not None:
        return run.neighbors.kept.rows
    table = run.model.whole_table
    if isinstance(table, AdaptedTable):
        return table.language_rows.cpu().numpy()
    semantic = table.parts()[0] if run.config.trained else None
    return None if semantic is None else semantic.detach().float().cpu().numpy()


def _examples(data: Split, split: str) -> Examples:
    if split not in ("validation", "test"):
        raise invalid("split", repr(split), "'validation' or 'test'")
    found = data.test if split == "test" else data.validation
    if not len(found):
        raise invalid("split", f"{split!r}, of a run that held nothing out", "a run of a protocol")
    return found
