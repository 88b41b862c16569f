"""Evaluation protocols: what is trained on, and which targets are ranked after which histories."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from alphafuse_ext.checks import invalid
from alphafuse_ext.data.interactions import Interactions
from alphafuse_ext.data.sequences import IntArray, Sequences


@dataclass(frozen=True, eq=False)
class Examples:
    """Histories with one target each.

    Attributes:
        users: user ids, int64, shape `(E,)`.
        histories: what the model reads, `E` sequences of item ids, whole (a model that reads only
            the last items cuts them when it pads), never empty.
        targets: the item that came next, int64, shape `(E,)`.
        seen: the items left out of the ranking where seen items are, `E` sequences. A target
            that its user had before is among them.
    """

    users: IntArray
    histories: Sequences
    targets: IntArray
    seen: Sequences

    def __post_init__(self) -> None:
        counts = {len(self.users), len(self.histories), len(self.targets), len(self.seen)}
        if len(counts) > 1:
            raise invalid(
                "users, histories, targets, seen", f"lengths {sorted(counts)}", "one length"
            )
        if np.any(self.histories.lengths == 0):
            raise invalid("histories", "an empty history", "at least one item in each")

    def __len__(self) -> int:
        return len(self.targets)


@dataclass(frozen=True, eq=False)
class Split:
    """Training sequences, validation and test examples of one protocol.

    Attributes:
        name: of the protocol.
        train: one sequence of item ids per training user, never empty.
        train_users: their user ids, int64, shape `(len(train),)`.
        validation: what models are selected by.
        test: what is reported once.
        report: counts to show and to keep with a run: everything that is not split or not
            trained on is counted here.
    """

    name: str
    train: Sequences
    train_users: IntArray
    validation: Examples
    test: Examples
    report: dict[str, int | str]

    def train_item_counts(self, num_items: int) -> IntArray:
        """Training interactions of each item, int64, shape `(num_items,)`.

        Popularity and frequency weights come from these, never from what is to be predicted.
        """
        return _item_counts(self.train, num_items)


def leave_one_out(interactions: Interactions) -> Split:
    """Per user: the last item for test, the one before it for validation, the rest for training.

    The history of a test target includes the validation item. A user of fewer than three
    interactions cannot be split: all of them are training.

    Raises:
        ValueError: no user has three interactions.
    """
    sequences = interactions.sequences
    lengths = sequences.lengths
    long_enough = lengths >= 3
    users = np.flatnonzero(long_enough)
    if len(users) == 0:
        found = f"{len(lengths)} users of at most {lengths.max(initial=0)} interactions"
        raise invalid("interactions", found, "a user with at least 3")
    train_lengths = np.where(long_enough, lengths - 2, lengths)
    train_users = np.flatnonzero(train_lengths)
    train = sequences.first(train_lengths).select(train_users)

    whole = sequences.select(users)
    examples = []
    for place_from_end in (2, 1):
        histories = whole.first(whole.lengths - place_from_end)
        targets = whole.values[whole.offsets[1:] - place_from_end]
        examples.append(Examples(users, histories, targets, seen=histories))
    validation, test = examples

    untrained = _item_counts(train, interactions.num_items) == 0
    report: dict[str, int | str] = {
        "protocol": "leave-one-out",
        "users": interactions.num_users,
        "items": interactions.num_items,
        "interactions": len(interactions),
        "users_split": len(users),
        "users_too_short": int(np.sum(~long_enough)),
        "train_interactions": len(train.values),
        "train_sequences_of_one_item": int(np.sum(train.lengths == 1)),
        "items_without_training_interactions": int(np.sum(untrained)),
        "validation_targets_without_training_interactions": int(
            np.sum(untrained[validation.targets])
        ),
        "test_targets_without_training_interactions": int(np.sum(untrained[test.targets])),
        "test_targets_seen_before": _count_seen(test),
    }
    return Split("leave-one-out", train, train_users, validation, test, report)


def _item_counts(sequences: Sequences, num_items: int) -> IntArray:
    return np.bincount(sequences.values, minlength=num_items)


def _count_seen(examples: Examples) -> int:
    rows = np.repeat(np.arange(len(examples)), examples.seen.lengths)
    return len(np.unique(rows[examples.seen.values == examples.targets[rows]]))
