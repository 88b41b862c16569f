"""Leave-one-out."""

import numpy as np
import pandas as pd
import pytest

from alphafuse_ext.data import Examples, Items, Sequences, leave_one_out, read_interactions

HISTORIES = {"a": "pqrs", "b": "pq", "c": "rpp", "d": "s", "e": "qrstpq"}


@pytest.fixture
def interactions():
    rows = [(user, item) for user, items in HISTORIES.items() for item in items]
    items = Items(np.array(list("pqrstz"), dtype=object), None, None)
    return read_interactions(pd.DataFrame(rows, columns=["user_id", "item_id"]), items)


def words(interactions, sequences):
    return ["".join(interactions.items[sequence]) for sequence in sequences]


def test_leave_one_out(interactions):
    split = leave_one_out(interactions)
    assert words(interactions, split.train) == ["pq", "pq", "r", "s", "qrst"]
    assert interactions.users[split.train_users].tolist() == list("abcde")
    for examples, histories, targets in (
        (split.validation, ["pq", "r", "qrst"], "rpp"),
        (split.test, ["pqr", "rp", "qrstp"], "spq"),
    ):
        assert interactions.users[examples.users].tolist() == list("ace")
        assert words(interactions, examples.histories) == histories
        assert words(interactions, examples.seen) == histories
        assert "".join(interactions.items[examples.targets]) == targets


def test_report_counts_what_is_left_out(interactions):
    split = leave_one_out(interactions)
    assert split.report == {
        "protocol": "leave-one-out",
        "users": 5,
        "items": 6,
        "interactions": 16,
        "users_split": 3,
        "users_too_short": 2,
        "train_interactions": 10,
        "train_sequences_of_one_item": 2,
        "items_without_training_interactions": 1,
        "validation_targets_without_training_interactions": 0,
        "test_targets_without_training_interactions": 0,
        "test_targets_seen_before": 2,
    }
    # p q | p q | r | s | q r s t, and z never
    assert split.train_item_counts(6).tolist() == [2, 3, 2, 2, 1, 0]


def test_nobody_can_be_split():
    frame = pd.DataFrame({"user_id": list("aabb"), "item_id": list("pqpq")})
    with pytest.raises(ValueError, match="interactions: got 2 users of at most 2 interactions"):
        leave_one_out(read_interactions(frame))


def test_examples_refuse_empty_histories_and_odd_lengths():
    one = Sequences.from_lists([[1]])
    with pytest.raises(ValueError, match="histories: got an empty history"):
        Examples(np.array([0]), Sequences.from_lists([[]]), np.array([1]), one)
    with pytest.raises(ValueError, match=r"lengths \[1, 2\]"):
        Examples(np.array([0]), one, np.array([1, 2]), one)
