"""Baselines beside popularity, against their definitions."""

from __future__ import annotations

import numpy as np
import pytest

from alphafuse_ext.data import Examples, Interactions, Sequences, split_interactions
from alphafuse_ext.evaluation.baselines import SHARES, again_ranks, baselines, recent_counts
from alphafuse_ext.evaluation.ranking import UNREACHABLE, evaluate_popularity
from alphafuse_ext.evaluation.tables import metrics_table
from alphafuse_ext.metrics import ranking_metrics


@pytest.fixture
def clicks():
    """Users of 2 to 9 clicks among 30 items, of which the popular ones change with time."""
    generator = np.random.default_rng(4)
    lengths = generator.integers(2, 10, 300)
    times = [np.sort(generator.integers(0, 3_000, length)) for length in lengths]
    items = [(10 * (own // 1_000) + generator.geometric(0.3, len(own))) % 30 for own in times]
    return Interactions(
        np.arange(300), np.arange(30), Sequences.from_lists(items), np.concatenate(times)
    )


@pytest.mark.parametrize("protocol", ["leave-one-out", "cold-start-users", "time"])
def test_recent_counts_are_of_the_newest_training_interactions(clicks, protocol):
    split = split_interactions(clicks, protocol)
    assert np.array_equal(recent_counts(clicks, split, 1.0), split.train_item_counts(30))
    trained = []
    for user, length in enumerate(split.train_lengths):
        start = clicks.sequences.starts[user]
        times = clicks.timestamps[start : start + length]
        trained += zip(times, clicks.sequences[user][:length], strict=True)
    times = sorted(time for time, _ in trained)
    first = times[-round(0.1 * len(times))]
    newest = [item for time, item in trained if time >= first]
    assert np.array_equal(recent_counts(clicks, split, 0.1), np.bincount(newest, minlength=30))


def test_a_history_is_recommended_again_from_its_end():
    histories = Sequences.from_lists([[4, 5, 4, 6], [4, 5, 4, 6], [1, 1, 2, 2], [7]])
    cases = Examples(np.arange(4), histories, np.array([4, 5, 1, 3]), histories)
    assert again_ranks(cases).tolist() == [1, 2, 1, UNREACHABLE]


@pytest.mark.parametrize("keep_seen", [False, True])
def test_baselines_of_a_split(clicks, keep_seen):
    split = split_interactions(clicks, "time")
    found = baselines(clicks, split, split.test, "ndcg@20", keep_seen)
    assert list(found) == (["popular now", "last again"] if keep_seen else ["popular now"])
    now = found["popular now"]
    seen = "ranked" if keep_seen else "excluded"

    def measured(share, part):
        counts = recent_counts(clicks, split, share)
        return evaluate_popularity(counts, part).by_seen_items

    scores = [measured(share, split.validation)[seen]["ndcg@20"] for share in SHARES]
    assert now["share"] == SHARES[int(np.argmax(scores))]
    assert now["by_seen_items"] == measured(now["share"], split.test)
    whole = evaluate_popularity(split.train_item_counts(30), split.test).by_seen_items
    assert now["by_seen_items"][seen]["ndcg@20"] > whole[seen]["ndcg@20"]
    if keep_seen:
        assert found["last again"]["by_seen_items"] == {
            "ranked": ranking_metrics(again_ranks(split.test))
        }


def test_without_times_nothing_is_popular_now(clicks):
    places = np.concatenate([np.arange(length) for length in clicks.sequences.lengths])
    for times in (None, places):
        same = Interactions(clicks.users, clicks.items, clicks.sequences, times)
        split = split_interactions(same)
        assert baselines(same, split, split.test, "ndcg@20", keep_seen=False) == {}


def test_the_legend_is_of_the_rows_that_a_table_has():
    metrics = ranking_metrics(np.array([0, 3]))
    alone = metrics_table({"test": {"this run": metrics, "popularity": metrics}, "empty": {}})
    assert "popularity: everyone" in alone
    assert "popular now" not in alone
    assert "last again" not in alone
    both = metrics_table({"test": {"last again": metrics}, "other": {"popular now": metrics}})
    assert "last again: the history" in both
    assert "popular now: " in both
    assert "popularity: " not in both
