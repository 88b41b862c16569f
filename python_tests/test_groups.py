"""Head and tail groups."""

import numpy as np
import pytest
from conftest import fresh_generator

from alphafuse_ext.data import Examples, Sequences
from alphafuse_ext.evaluation.groups import group_metrics, long_tail_groups
from alphafuse_ext.metrics import ranking_metrics


def examples(lengths, targets):
    histories = Sequences.from_lists([np.zeros(length, dtype=np.int64) for length in lengths])
    return Examples(np.arange(len(targets)), histories, np.array(targets), histories)


def test_groups_by_length_and_popularity():
    counts = np.array([9, 5, 5, 3, 2, 0, 1, 1, 1, 1, 1])  # ten items seen: a head of two, with ties
    groups, heads = long_tail_groups(examples([9, 2, 3, 3, 1], [0, 2, 3, 5, 10]), counts)
    assert heads == {"head_user_length": 9, "head_item_count": 5}
    assert {name: np.flatnonzero(mask).tolist() for name, mask in groups.items()} == {
        "head users": [0],
        "tail users": [1, 2, 3, 4],
        "head items": [0, 1],
        "tail items": [2, 4],
        "cold items": [3],
    }


def test_groups_do_not_depend_on_the_order_of_ids():
    random = fresh_generator()
    lengths, targets = random.integers(1, 5, 200), random.integers(0, 50, 200)
    counts = random.integers(0, 4, 50)
    groups, _ = long_tail_groups(examples(lengths, targets), counts)
    shuffle = random.permutation(50)
    shuffled = np.empty_like(counts)
    shuffled[shuffle] = counts
    again, _ = long_tail_groups(examples(lengths, shuffle[targets]), shuffled)
    assert {name: mask.tolist() for name, mask in groups.items()} == {
        name: mask.tolist() for name, mask in again.items()
    }
    users = groups["head users"].astype(int) + groups["tail users"]
    items = sum(groups[name].astype(int) for name in ("head items", "tail items", "cold items"))
    assert (users == 1).all()
    assert (items == 1).all()


def test_metrics_of_groups():
    ranks = np.array([0, 3, 12, 0])
    groups = {"first two": np.array([True, True, False, False]), "nobody": np.zeros(4, dtype=bool)}
    metrics = group_metrics(ranks, groups)
    assert metrics["first two"] == {"examples": 2, **ranking_metrics(ranks[:2])}
    assert metrics["nobody"] == {"examples": 0}


def test_bad_share():
    with pytest.raises(ValueError, match="head_share: got 1"):
        long_tail_groups(examples([1], [0]), np.array([1]), head_share=1)
