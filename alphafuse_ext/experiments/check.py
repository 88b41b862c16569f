"""Whether a new run may replace the one that is served: both on clicks that neither has seen."""

from __future__ import annotations

import dataclasses
import os
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import scipy.stats
import torch

from alphafuse_ext.checks import invalid
from alphafuse_ext.data import Examples, Interactions, Items, Sequences, Source, merge_interactions
from alphafuse_ext.data.ids import IdIndex
from alphafuse_ext.data.interactions import joined_ids
from alphafuse_ext.data.reading import Reading
from alphafuse_ext.data.sequences import evenly_spread
from alphafuse_ext.data.split import examples_with_history
from alphafuse_ext.evaluation.ranking import UNREACHABLE, evaluate_model
from alphafuse_ext.evaluation.tables import metrics_table
from alphafuse_ext.logs import Log, logged
from alphafuse_ext.metrics import ndcg_of_examples, ranking_metrics
from alphafuse_ext.serving.recommender import Recommender

TESTED = "ndcg@10"
"""What the two are compared by."""
_P = 0.05
_LISTS = 2000
"""Users whose lists are compared, an even sample of more."""


@dataclass(frozen=True)
class Check:
    """What :func:`check` found.

    Attributes:
        worse: the verdict.
        clicks, users: how many clicks were asked, and of how many users.
        metrics, metrics_against: of either run, see
            :func:`alphafuse_ext.metrics.ranking_metrics`.
        gain: relative, of mean NDCG@10.
        p: one-sided, of a paired t-test over users that the run is worse.
        lists: of users' lists ``compared``, how many ``changed``; ``in_common``, of ``k`` items on
            average; ``new_items``, how many the catalog has more, ``new_items_recommended``, and
            ``lists_with_new_items``.
    """

    worse: bool
    clicks: int
    users: int
    metrics: dict[str, float]
    metrics_against: dict[str, float]
    gain: float
    p: float
    lists: dict[str, float]


def check(
    run: str | os.PathLike[str],
    against: str | os.PathLike[str],
    interactions: Source,
    *,
    margin: float | None = None,
    k: int = 10,
    device: str | torch.device | None = None,
    log: Log | None = print,
    **options: Any,
) -> Check:
    """Compare a run with the one that it is to replace, on clicks that neither was trained on.

    Every click is a target, ranked after all that its user did before it: what either run knows,
    and earlier ones of these clicks. Both runs are asked the same. A target that a run's catalog
    lacks, and a history of which it knows no item, are a miss of that run.

    Args:
        run, against: the folders of the new run and of the old one.
        interactions: clicks, as for :func:`alphafuse_ext.fit`. With times, those that one of the
            runs has already are left out; without, all are taken to come after those.
        margin: the run is worse if its mean NDCG@10 is lower by more than this share. Default: if
            a one-sided paired t-test over users, of their mean NDCG@10, has p < 0.05.
        k: length of the lists that are compared.
        device: where the models rank, as for :func:`alphafuse_ext.fit`.
        log: called with each line of the report.
        **options: how the clicks are read, fields of :class:`alphafuse_ext.data.Reading`; those
            that are not given are as the new run was read.

    Raises:
        ValueError, TypeError, OSError: a run or clicks that cannot be read; none that is new to
            both runs; fewer than two users with a history.
    """
    log = logged(log)
    if margin is not None and not 0 <= margin < 1:
        raise invalid("margin", margin, "0 <= margin < 1, a share")
    new, old = Recommender.load(run, device), Recommender.load(against, device)
    given = Reading(**options).completed(new.source(), {"interactions": interactions}, log)
    given = dataclasses.replace(given, weight_column=None)  # targets are not weighed here
    catalog = Items(joined_ids("against", new.items.tokens, old.items.tokens, "items"), None, None)
    clicks, _ = given.interactions(interactions, catalog, log)
    known = _known(new, old, catalog)
    clicks = _unseen(clicks, known, log)
    whole = merge_interactions(known, clicks)
    baskets = whole.baskets() if new.config.baskets else None
    asked = examples_with_history(
        "click",
        whole.sequences,
        _is_of(clicks, whole, known),
        "users with a history before it",
        baskets,
    )
    if len(np.unique(asked.users)) < 2:
        raise invalid("interactions", "clicks of one user with a history", "of two users or more")
    keep_seen = new.config.keep_seen
    ranks = [_ranks(one, whole, catalog, asked, keep_seen) for one in (new, old)]
    gains = [ndcg_of_examples(one) for one in ranks]
    differences = pd.Series(gains[0] - gains[1]).groupby(asked.users).mean().to_numpy()
    p = 1.0
    if differences.any():
        p = float(scipy.stats.ttest_1samp(differences, 0.0, alternative="less").pvalue)
    metrics = [ranking_metrics(one) for one in ranks]
    ours, theirs = (one[TESTED] for one in metrics)
    gain = ours / theirs - 1 if theirs else (np.inf if ours else 0.0)
    worse = p < _P if margin is None else gain < -margin
    users = whole.users[np.unique(asked.users)]
    lists = _lists_changed(new, old, whole, users, k)
    found = Check(worse, len(asked), len(users), metrics[0], metrics[1], float(gain), p, lists)
    for line in _described(found, margin, k):
        log(line)
    return found


def _known(new: Recommender, old: Recommender, catalog: Items) -> Interactions:
    """What both runs know together, of all items of the two."""
    found = [
        dataclasses.replace(one.interactions, parts=None, weights=None).within(catalog)
        for one in (new, old)
    ]
    if any(one.timestamps is None for one in found):
        return found[0]  # the new run's, which has the old one's in it
    return merge_interactions(found[0], found[1])


def _keys(interactions: Interactions) -> pd.MultiIndex:
    """User, item and, where there are times, time of each."""
    users = np.repeat(interactions.users, interactions.sequences.lengths)
    arrays = [users.astype(str), interactions.sequences.values]
    times = interactions.timestamps
    return pd.MultiIndex.from_arrays(arrays if times is None else [*arrays, times])


def _unseen(clicks: Interactions, known: Interactions, log: Log) -> Interactions:
    """Without clicks that the runs have already."""
    if clicks.timestamps is None or known.timestamps is None:
        return clicks  # merging refuses times in one of the two
    seen = _keys(clicks).isin(_keys(known))
    if seen.all():
        found = f"{len(clicks):,} clicks that one of the runs has already"
        raise invalid("interactions", found, "some that came after what both were trained on")
    if seen.any():
        log(f"interactions: {seen.sum():,} that one of the runs has already are left out")
    return clicks.where(~seen)


def _is_of(clicks: Interactions, whole: Interactions, known: Interactions) -> npt.NDArray[np.bool_]:
    """Which of all interactions are the clicks."""
    if whole.timestamps is not None:
        return np.asarray(~_keys(whole).isin(_keys(known)))
    counts = np.zeros(whole.num_users, dtype=np.int64)
    counts[whole.user_index(clicks.users)] = clicks.sequences.lengths
    lengths = whole.sequences.lengths
    places = np.arange(len(whole)) - np.repeat(whole.sequences.starts, lengths)
    return places >= np.repeat(lengths - counts, lengths)


def _ranks(
    recommender: Recommender,
    whole: Interactions,
    catalog: Items,
    asked: Examples,
    keep_seen: bool,
) -> npt.NDArray[np.int64]:
    """Ranks of the targets by a run, whose catalog may have fewer items."""
    own = IdIndex(recommender.items.tokens).find("items", catalog.tokens)
    values, offsets = own[whole.sequences.values], whole.sequences.offsets
    before = np.concatenate([[0], np.cumsum(values >= 0)])  # known ones ahead of each
    sequences = Sequences(before[offsets], values[values >= 0])
    starts = offsets[asked.users]
    lengths = before[starts + asked.histories.lengths] - before[starts]
    targets = own[asked.targets]
    rows = np.flatnonzero((lengths > 0) & (targets >= 0))
    histories = sequences.prefixes(asked.users[rows], lengths[rows])
    examples = Examples(asked.users[rows], histories, targets[rows], histories)
    retired = recommender.items.retired
    ranks = np.full(len(asked), UNREACHABLE)
    if len(rows):
        evaluation = evaluate_model(
            recommender.model,
            examples,
            keep_seen,
            batch_size=recommender.config.evaluation_batch_size,
            retired=None if retired is None else np.flatnonzero(retired),
            neighbors=recommender.ranking_neighbors(None),
        )
        ranks[rows] = evaluation.ranks_by_seen_items[evaluation.seen_items]
    return ranks


def _lists_changed(
    new: Recommender, old: Recommender, whole: Interactions, users: npt.NDArray[Any], k: int
) -> dict[str, float]:
    """How the lists differ that users get now."""
    users = users[evenly_spread(len(users), _LISTS)]
    chosen = np.zeros(whole.num_users, dtype=bool)
    chosen[whole.user_index(users)] = True
    histories = whole.where(np.repeat(chosen, whole.sequences.lengths))
    shown: list[dict[Any, set[Any]]] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of items that one of the two lacks, which is counted here
        for one in (new, old):
            frame = one.recommend(histories=histories, k=min(k, len(one.items)), keep_seen=None)
            shown.append({user: set(rows) for user, rows in frame.groupby("user")["item"]})
    pairs = [[one.get(user, set()) for one in shown] for user in users.tolist()]
    added = set(new.items.tokens.tolist()) - set(old.items.tokens.tolist())
    return {
        "compared": len(pairs),
        "changed": sum(now != then for now, then in pairs),
        "in_common": float(np.mean([len(now & then) for now, then in pairs])),
        "new_items": len(added),
        "new_items_recommended": len(set().union(*(now for now, _ in pairs)) & added),
        "lists_with_new_items": sum(bool(now & added) for now, _ in pairs),
    }


def _described(found: Check, margin: float | None, k: int) -> list[str]:
    title = f"{found.clicks:,} clicks of {found.users:,} users, after all that came before each"
    rule = (
        f"p = {found.p:.3f} of a one-sided paired t-test over users (below {_P:g}: worse)"
        if margin is None
        else f"worse: lower by more than {margin:.1%}"
    )
    lists = found.lists
    said = (
        f"lists of {k}: {lists['changed']:,} of {lists['compared']:,} differ, "
        f"{lists['in_common']:.1f} items in common on average; "
    )
    said += (
        f"{lists['new_items_recommended']:,} of {lists['new_items']:,} new items are in "
        f"{lists['lists_with_new_items']:,} lists"
        if lists["new_items"]
        else "no new items"
    )
    rows = {"this run": found.metrics, "against": found.metrics_against}
    return [
        metrics_table({title: rows}),
        f"{TESTED} {found.metrics[TESTED]:.4f} against {found.metrics_against[TESTED]:.4f}: "
        f"{found.gain:+.1%}; {rule}",
        said,
        f"verdict: {'worse' if found.worse else 'not worse'}",
    ]
