"""Evaluation protocols and k-core filtering."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
from conftest import fresh_generator

from alphafuse_ext.config.protocol import PROTOCOLS
from alphafuse_ext.data import (
    Examples,
    Interactions,
    Items,
    Sequences,
    cold_start_users,
    k_core,
    leave_one_out,
    read_interactions,
    split_interactions,
    time_split,
)
from alphafuse_ext.data.split import describe_split

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
        "validation_examples": 3,
        "validation_targets_without_training_interactions": 0,
        "validation_targets_seen_before": 0,
        "test_examples": 3,
        "test_targets_without_training_interactions": 0,
        "test_targets_seen_before": 2,
    }
    # p q | p q | r | s | q r s t, and z never
    assert split.train_item_counts(6).tolist() == [2, 3, 2, 2, 1, 0]


def test_a_split_in_sentences(random_interactions):
    """Who is held out and what is never trained on; points in time as dates."""
    found = describe_split(
        {
            "protocol": "leave-one-out",
            **{"users": 12_000, "items": 900, "users_split": 11_999, "users_too_short": 1},
            **{"train_interactions": 50_000, "items_without_training_interactions": 7},
            **{"validation_examples": 11_999, "test_examples": 11_999},
            **{"test_targets_without_training_interactions": 3},
        }
    )
    assert found == [
        "split leave-one-out: 11,999 users, of each the last item for test and the one before for "
        "validation",
        "too short: 1 user with fewer than 3 items, trained on only",
        "trained on: 50,000 interactions, of 12,000 users and 900 items in all; 11,999 validation "
        "and 11,999 test examples",
        "cold: 7 items never trained on, targets of 0 validation and 3 test examples",
    ]
    day = 86_400 * 10**9
    times = (19_000 + np.arange(len(random_interactions))) * day
    dated = dataclasses.replace(random_interactions, timestamps=times)
    report = time_split(dated).report
    first = describe_split(report)[0]
    begin, end = (np.datetime64(report[f"{part}_from"], "ns") for part in ("validation", "test"))
    assert f"before {str(begin)[:10]} 00:00:00, validation up to {str(end)[:10]} 00" in first
    for protocol in ("leave-one-out", "cold-start-users", "none"):
        lines = describe_split(split_interactions(random_interactions, protocol).report)
        assert lines[0].startswith(f"split {protocol}: ")
        assert not any(sign in line for line in lines for sign in "_{}[]" if "seed" not in line)


def test_no_user_can_be_split():
    frame = pd.DataFrame({"user_id": list("aabb"), "item_id": list("pqpq")})
    with pytest.raises(ValueError, match="interactions: got 2 users of at most 2 interactions"):
        leave_one_out(read_interactions(frame))


def test_examples_refuse_empty_histories_and_odd_lengths():
    one = Sequences.from_lists([[1]])
    with pytest.raises(ValueError, match="histories: got an empty history"):
        Examples(np.array([0]), Sequences.from_lists([[]]), np.array([1]), one)
    with pytest.raises(ValueError, match=r"lengths \[1, 2\]"):
        Examples(np.array([0]), one, np.array([1, 2]), one)


@pytest.fixture
def random_interactions():
    """60 users of 1 to 9 interactions among 25 items, at random whole times, ties included."""
    random = fresh_generator()
    lengths = random.integers(1, 10, 60)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    times = [np.sort(random.integers(0, 300, length)) for length in lengths]
    return Interactions(
        users=np.array([f"u{u}" for u in range(60)], dtype=object),
        items=np.array([f"i{i}" for i in range(25)], dtype=object),
        sequences=Sequences(offsets, random.integers(0, 25, offsets[-1])),
        timestamps=np.concatenate(times),
    )


def as_rows(examples):
    """(user, history, seen, target) of each example, sorted."""
    return sorted(
        (int(user), examples.histories[e].tolist(), examples.seen[e].tolist(), int(target))
        for e, (user, target) in enumerate(zip(examples.users, examples.targets, strict=True))
    )


def test_cold_start_users(random_interactions):
    split = cold_start_users(random_interactions, 0.2, 0.1, seed=3)
    sequences = [s.tolist() for s in (random_interactions.sequences[u] for u in range(60))]
    held_out = {
        "validation": set(split.validation.users.tolist()),
        "test": set(split.test.users.tolist()),
    }
    assert not held_out["validation"] & held_out["test"]
    trained = [split.train[t].tolist() for t in range(len(split.train))]
    assert len(trained) == 60 - 12 - 6
    others = sorted(set(range(60)) - held_out["validation"] - held_out["test"])
    # A user of one item that is held out gives no example to be known by.
    assert [sequence for sequence in trained if len(sequence) > 1] == [
        sequences[user] for user in others if len(sequences[user]) > 1
    ]
    for part, examples in (("validation", split.validation), ("test", split.test)):
        assert as_rows(examples) == sorted(
            (user, sequences[user][:place], sequences[user][:place], sequences[user][place])
            for user in held_out[part]
            for place in range(1, len(sequences[user]))
        )
        assert split.report[f"{part}_examples"] == len(examples)
    assert (split.report["validation_users"], split.report["test_users"]) == (12, 6)
    again = cold_start_users(random_interactions, 0.2, 0.1, seed=3)
    assert as_rows(again.test) == as_rows(split.test)
    other = cold_start_users(random_interactions, 0.2, 0.1, seed=4)
    assert as_rows(other.test) != as_rows(split.test)


def test_time_split(random_interactions):
    split = time_split(random_interactions, 0.15, 0.1)
    begin, end = split.report["validation_from"], split.report["test_from"]
    in_order = np.sort(random_interactions.timestamps)
    assert begin == in_order[round(0.75 * len(in_order))]
    assert end == in_order[round(0.9 * len(in_order))]
    train, validation, test, without_history = [], [], [], 0
    place = 0
    for user in range(60):
        sequence = random_interactions.sequences[user].tolist()
        for i, item in enumerate(sequence):
            time = random_interactions.timestamps[place]
            place += 1
            if time < begin:
                train.append(item)
            elif i == 0:
                without_history += 1
            else:
                part = validation if time < end else test
                part.append((user, sequence[:i], sequence[:i], item))
    assert split.train.values.tolist() == train
    assert as_rows(split.validation) == sorted(validation)
    assert as_rows(split.test) == sorted(test)
    assert without_history == sum(
        split.report[f"{part}_interactions_without_history"] for part in ("validation", "test")
    )


@pytest.mark.parametrize("first", [0, 1])
def test_time_split_refuses_positions(random_interactions, first):
    lengths = random_interactions.sequences.lengths
    positions = np.concatenate([np.arange(length) + first for length in lengths])
    parts = (random_interactions.users, random_interactions.items, random_interactions.sequences)
    with pytest.raises(ValueError, match="times that only count each user's interactions"):
        time_split(Interactions(*parts, positions))
    with pytest.raises(ValueError, match="no time column"):
        time_split(Interactions(*parts))
    with pytest.raises(ValueError, match="times that the shares can be parted at"):
        time_split(Interactions(*parts, np.full(len(positions), 7)))


def test_k_core(random_interactions):
    left, item_ids = k_core(random_interactions, 4)
    rows = [
        (user, item, time)
        for user in range(60)
        for item, time in zip(
            random_interactions.sequences[user],
            np.split(random_interactions.timestamps, random_interactions.sequences.offsets)[
                user + 1
            ],
            strict=True,
        )
    ]
    while True:
        frame = pd.DataFrame(rows, columns=["user", "item", "time"])
        enough = (frame.groupby("user")["item"].transform("size") >= 4) & (
            frame.groupby("item")["user"].transform("size") >= 4
        )
        if enough.all():
            break
        rows = list(frame[enough].itertuples(index=False))
    assert left.items.tolist() == [f"i{i}" for i in sorted(set(frame["item"]))]
    assert random_interactions.items[item_ids].tolist() == left.items.tolist()
    assert np.repeat(left.users, left.sequences.lengths).tolist() == [
        f"u{u}" for u in frame["user"]
    ]
    assert left.items[left.sequences.values].tolist() == [f"i{i}" for i in frame["item"]]
    assert left.timestamps.tolist() == frame["time"].tolist()
    with pytest.raises(ValueError, match="which leaves no interactions"):
        k_core(random_interactions, 1000)
    with pytest.raises(ValueError, match="k_core: got 0"):
        k_core(random_interactions, 0)


def test_split_by_name(random_interactions):
    lengths = random_interactions.sequences.lengths
    last = np.concatenate([np.clip(np.arange(3 - n, 3), 0, 2) for n in lengths]).astype(np.int8)
    in_parts = dataclasses.replace(random_interactions, parts=last)
    for protocol in PROTOCOLS:
        split = split_interactions(
            in_parts if protocol == "given" else random_interactions, protocol
        )
        assert split.name == split.report["protocol"] == protocol
    with pytest.raises(ValueError, match="protocol: got 'random'"):
        split_interactions(random_interactions, "random")
    for shares in ((0, 0.1), (0.1, 1), (0.5, 0.5)):
        for protocol in ("cold-start-users", "time"):
            with pytest.raises(ValueError, match="_share"):
                split_interactions(random_interactions, protocol, *shares)


def test_shares_that_leave_nothing():
    frame = pd.DataFrame({"user_id": list("ab"), "item_id": list("pq")})
    with pytest.raises(ValueError, match="more users with at least two interactions"):
        cold_start_users(read_interactions(frame))
