"""The synthetic catalog: both planted signals are there, and only one of them is in the text."""

import itertools

import numpy as np
import pandas as pd
import pytest
from conftest import fresh_generator

from alphafuse_ext.data import (
    leave_one_out,
    planted_signals,
    read_interactions,
    read_items,
    synthetic_catalog,
)
from alphafuse_ext.data.synthetic import _CATEGORIES, _draw_catalog

USES = [use for _, use in _CATEGORIES]


def test_frames():
    interactions, items = synthetic_catalog(num_users=300, num_items=200, seed=5)
    assert interactions.columns.tolist() == ["user_id", "item_id", "timestamp"]
    assert items.columns.tolist() == ["item_id", "title", "description"]
    assert len(items) == 200
    assert items.title.is_unique
    assert interactions.user_id.nunique() == 300
    assert interactions.timestamp.is_monotonic_increasing
    assert not interactions.duplicated(["user_id", "item_id"]).any()
    assert 7 < len(interactions) / 300 < 13
    catalog = read_items(items)
    assert read_interactions(interactions, catalog).num_items == 200


def test_seeded():
    for one, same, other in zip(
        synthetic_catalog(50, 60, seed=1),
        synthetic_catalog(50, 60, seed=1),
        synthetic_catalog(50, 60, seed=2),
        strict=True,
    ):
        pd.testing.assert_frame_equal(one, same)
        assert not one.equals(other)


def communities(num_items=1500, seed=0):
    """The planted community of each item; it is in neither of the two frames."""
    return _draw_catalog(num_items, seed).communities


def hits_at_10(split, num_items, labels):
    """HR@10 of popularity times first-order transitions between each set of labels, by counting.

    Everything is counted in training sequences; the score of an item after the last one is
    p(item) times, for each set, p(label | last label) / p(label).
    """
    popularity = split.train_item_counts(num_items) + 0.1
    scores = np.log(popularity)[None].repeat(len(split.test), axis=0)
    sequences, histories = split.train, split.test.histories
    is_last = np.zeros(len(sequences.values), dtype=bool)
    is_last[sequences.offsets[1:] - 1] = True
    now = np.flatnonzero(~is_last)
    last = histories.values[histories.starts + histories.lengths - 1]
    for label in labels:
        seen = label[sequences.values]
        transitions = np.full((label.max() + 1,) * 2, 0.1)
        np.add.at(transitions, (seen[now], seen[now + 1]), 1)
        lift = transitions / transitions.sum(axis=0)
        scores += np.log(lift)[label[last]][:, label]
    for row, items in enumerate(split.test.seen):
        scores[row, items] = -np.inf
    best = np.argpartition(-scores, 10, axis=1)[:, :10]
    return (best == split.test.targets[:, None]).any(axis=1).mean()


def test_both_signals_and_better_together():
    frame, described = synthetic_catalog(seed=11)
    items = read_items(described)
    split = leave_one_out(read_interactions(frame, items))
    # What the text tells: the use that a description ends with names the category.
    category = pd.factorize(described.description.str.split(", for ").str[-1])[0]
    community = communities(seed=11)
    popular, semantic, collaborative, both = (
        hits_at_10(split, len(items), labels)
        for labels in ([], [category], [community], [category, community])
    )
    print(f"HR@10: {popular:.3f}, {semantic:.3f}, {collaborative:.3f}, both {both:.3f}")
    assert semantic > 2 * popular
    assert collaborative > 1.5 * popular
    assert both > 2 * max(semantic, collaborative)


def test_community_is_not_in_the_text():
    described = synthetic_catalog(seed=3)[1]
    community = communities(seed=3)
    count = community.max() + 1
    words = described.title.str.split().explode()
    for word in words.value_counts().index[:30]:
        share = np.bincount(
            community[described.title.str.contains(word, regex=False)], minlength=count
        )
        expected = share.sum() / count
        # Pearson's statistic; by chance one word in seven thousand exceeds it (5 degrees).
        assert ((share - expected) ** 2 / expected).sum() < 25


def test_planted_signals():
    frame, described = synthetic_catalog(num_users=400, num_items=300, seed=8)
    items = read_items(described)
    histories = read_interactions(frame, items).sequences
    community = communities(300, 8)
    category = described.description.str.split(", for ").str[-1].str.rstrip(".").to_numpy()
    related = dict(zip(USES, USES[1:] + USES[:1], strict=True))

    def measured(recommended):
        """The same shares, user by user."""
        shares = [[], [], []]
        for user, row in enumerate(recommended):
            history, last = histories[user], histories[user][-1]
            steps = (
                itertools.pairwise(history),
                ((last, item) for item in row),
                ((last, item) for item in range(300)),
            )
            for found, pairs in zip(shares, steps, strict=True):
                found += [
                    (
                        community[one] == community[other],
                        category[other] in (category[one], related[category[one]]),
                    )
                    for one, other in pairs
                    if other >= 0
                ]
        return [np.mean(found, axis=0) for found in shares]

    def check(recommended, found):
        signals = planted_signals(histories, recommended, 300, 8)
        for signal, *expected in zip(signals, *measured(recommended), strict=True):
            shares = (signal.in_histories, signal.in_recommendations, signal.by_chance)
            np.testing.assert_allclose(shares, expected)
        assert [signal.found for signal in signals] == found
        assert ["not found" in str(signal) for signal in signals] == [not f for f in found]

    generator = fresh_generator()
    anything = generator.integers(0, 300, (400, 5))
    anything[generator.random(anything.shape) < 0.3] = -1
    check(anything, [False, False])
    last = histories.last(1).values
    same_community = [generator.choice(np.flatnonzero(community == community[i]), 5) for i in last]
    check(np.array(same_community), [True, False])
    check(last[:, None], [True, True])


def test_bad_arguments():
    with pytest.raises(ValueError, match="num_users: got 0"):
        synthetic_catalog(num_users=0)
    with pytest.raises(ValueError, match="num_items: got 47; expected num_items >= 48"):
        synthetic_catalog(num_items=47)
    with pytest.raises(ValueError, match="seed: got -1"):
        synthetic_catalog(seed=-1)
