"""The synthetic catalog: both planted signals are there, and only one of them is in the text."""

import numpy as np
import pandas as pd
import pytest

from alphafuse_ext.data import (
    hidden_communities,
    leave_one_out,
    read_interactions,
    read_items,
    synthetic_catalog,
)


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
    assert np.array_equal(hidden_communities(60, 1), hidden_communities(60, 1))


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
    community = hidden_communities(seed=11)
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
    community = hidden_communities(seed=3)
    count = community.max() + 1
    words = described.title.str.split().explode()
    for word in words.value_counts().index[:30]:
        share = np.bincount(
            community[described.title.str.contains(word, regex=False)], minlength=count
        )
        expected = share.sum() / count
        # Pearson's statistic; by chance one word in seven thousand exceeds it (5 degrees).
        assert ((share - expected) ** 2 / expected).sum() < 25


def test_bad_arguments():
    with pytest.raises(ValueError, match="num_users: got 0"):
        synthetic_catalog(num_users=0)
    with pytest.raises(ValueError, match="num_items: got 47; expected num_items >= 48"):
        synthetic_catalog(num_items=47)
    with pytest.raises(ValueError, match="seed: got -1"):
        synthetic_catalog(seed=-1)
