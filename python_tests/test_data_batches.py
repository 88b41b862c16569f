"""Batches of similar length."""

import numpy as np
import pytest

from alphafuse_ext.data import NextItemRows, Sequences, length_batches

LENGTHS = np.random.default_rng(23).geometric(0.1, 3001)


@pytest.mark.parametrize("batch_size", [1, 7, 128, 5000])
@pytest.mark.parametrize("seed", [None, 4])
def test_every_row_once(batch_size, seed):
    generator = None if seed is None else np.random.default_rng(seed)
    batches = length_batches(LENGTHS, batch_size, generator)
    assert np.array_equal(np.sort(np.concatenate(batches)), np.arange(len(LENGTHS)))
    assert all(0 < len(batch) <= batch_size for batch in batches)
    assert len(batches) == -(-len(LENGTHS) // batch_size)
    assert all(batch.dtype == np.int64 for batch in batches)


def test_without_generator_sorted_and_ties_by_row():
    rows = np.concatenate(length_batches(LENGTHS, 64, None))
    assert rows.tolist() == sorted(range(len(LENGTHS)), key=lambda row: (LENGTHS[row], row))


def padded(batches):
    return sum(len(batch) * LENGTHS[batch].max() for batch in batches)


def test_little_padding():
    generator = np.random.default_rng(1)
    shuffled = np.array_split(generator.permutation(len(LENGTHS)), len(LENGTHS) // 32)
    assert padded(length_batches(LENGTHS, 32, generator)) < 1.2 * LENGTHS.sum()
    assert padded(shuffled) > 2 * LENGTHS.sum()


def test_seeded_and_different_in_every_epoch():
    def epochs(seed):
        generator = np.random.default_rng(seed)
        return [length_batches(LENGTHS, 32, generator, pool=320) for _ in range(2)]

    def compositions(batches):
        return {frozenset(batch.tolist()) for batch in batches}

    one, same, other = epochs(8), epochs(8), epochs(9)
    for first, second in zip(one[0] + one[1], same[0] + same[1], strict=True):
        assert np.array_equal(first, second)
    assert not compositions(one[0]) & compositions(one[1])
    assert not compositions(one[0]) & compositions(other[0])


def test_order_of_batches_is_shuffled():
    means = [LENGTHS[b].mean() for b in length_batches(LENGTHS, 32, np.random.default_rng(2))]
    assert abs(np.corrcoef(means, np.arange(len(means)))[0, 1]) < 0.5


def test_no_rows():
    assert length_batches(np.empty(0, dtype=np.int64), 4, np.random.default_rng(0)) == []
    assert length_batches([], 4, None) == []


def test_bad_arguments():
    with pytest.raises(ValueError, match="batch_size: got 0"):
        length_batches(LENGTHS, 0, None)
    for pool in (5, 0, 15):
        with pytest.raises(ValueError, match=f"pool: got {pool}; expected a multiple"):
            length_batches(LENGTHS, 10, None, pool=pool)
    with pytest.raises(ValueError, match="lengths"):
        length_batches(LENGTHS[None], 10, None)


def test_next_item_rows():
    train = Sequences.from_lists([np.arange(5), np.array([7]), np.array([8, 9])])
    every = NextItemRows(train, 3, "all")
    assert [row.tolist() for row in every.rows] == [[1, 2, 3, 4], [0, 1], [8, 9]]
    assert every.num_targets == 5
    assert every.targets_per_batch(2) == 2.5
    ids, targets = every.batch(np.array([2, 0]), padding=99)
    assert ids.tolist() == [[8, 99, 99], [1, 2, 3]]
    assert targets.tolist() == [[9, 99, 99], [2, 3, 4]]

    last = NextItemRows(train, 3, "last")
    assert [row.tolist() for row in last.rows] == [
        [1, 2, 3, 4], [0, 1, 2, 3], [0, 1, 2], [0, 1], [8, 9],
    ]  # fmt: skip
    assert last.num_targets == 5
    ids, targets = last.batch(np.array([2, 1]), padding=99)
    assert ids.tolist() == [[0, 1, 99], [0, 1, 2]]
    assert targets.tolist() == [[99, 2, 99], [99, 99, 3]]


@pytest.mark.parametrize("targets", ["all", "last"])
@pytest.mark.parametrize("history", [1, 2, 5, 100])
def test_every_item_but_the_oldest_is_a_target_once(targets, history):
    sequences = [np.arange(n) + 1000 * n for n in range(23)]
    train = Sequences.from_lists(sequences)
    rows = NextItemRows(train, history, targets)
    ids, wanted = rows.batch(np.arange(len(rows.rows)), padding=-1)
    assert ids.shape[1] <= history
    found = sorted(wanted[wanted >= 0].tolist())
    assert found == [item for sequence in sequences for item in sequence[1:]]
    assert rows.num_targets == len(found)
    place = wanted >= 0
    assert np.array_equal(ids[place], wanted[place] - 1)  # what came before it


# --- baskets and weights


def by_hand(train, baskets, history, last_only):
    """Every target with its history, which ends before the target's basket."""
    found = []
    starts = train.starts
    for user in range(len(train)):
        sequence = train[user]
        for place, begin in enumerate(baskets[starts[user] : starts[user] + len(sequence)]):
            if begin:
                found.append((user, place, tuple(sequence[:begin])))
    return found


@pytest.mark.parametrize("history", [2, 3, 50])
@pytest.mark.parametrize("targets", ["all", "last"])
def test_nothing_of_a_basket_is_in_the_history_of_the_rest(targets, history):
    generator = np.random.default_rng(history)
    sizes = [generator.integers(1, 5, generator.integers(1, 7)) for _ in range(30)]
    places = [np.repeat(np.concatenate([[0], np.cumsum(one)[:-1]]), one) for one in sizes]
    lengths = [len(one) for one in places]
    # Every item is unique, so that it names itself.
    train = Sequences.from_lists(np.split(np.arange(sum(lengths)), np.cumsum(lengths)[:-1]))
    baskets = np.concatenate(places)
    weights = generator.uniform(0, 3, len(baskets)).astype(np.float32)
    rows = NextItemRows(train, history, targets, baskets, weights)
    index = np.arange(len(rows.rows))
    ids, wanted = rows.batch(index, padding=-1)
    drawn = rows.batch_weights(index)
    assert drawn.shape == wanted.shape
    assert rows.num_targets == (wanted >= 0).sum()
    for row in index[::7]:
        assert rows.targets_of(np.array([row])) == (wanted[row] >= 0).sum()
        one = rows.batch(np.array([row]), padding=-1)
        assert np.array_equal(one[1][0], wanted[row][: one[1].shape[1]])
    found = []
    for row, place in zip(*np.nonzero(wanted >= 0), strict=True):
        before = ids[row, : place + 1]
        assert (before >= 0).all()
        found.append((wanted[row, place], tuple(before.tolist())))
        expected = weights[wanted[row, place]] / weights[baskets > 0].mean(dtype=np.float64)
        assert drawn[row, place] == pytest.approx(expected, rel=1e-6)
    assert (drawn[wanted < 0] == 0).all()
    expected = {
        train[user][place]: one for user, place, one in by_hand(train, baskets, history, targets)
    }
    assert sorted(target for target, _ in found) == sorted(expected)  # each once
    for target, before in found:
        whole = expected[target]
        assert whole[len(whole) - len(before) :] == before
        if targets == "last":
            assert len(before) == min(history, len(whole))


def test_baskets_of_one_are_no_baskets():
    generator = np.random.default_rng(3)
    train = Sequences.from_lists([generator.integers(9, size=n) for n in (1, 2, 9, 4)])
    places = np.concatenate([np.arange(n) for n in (1, 2, 9, 4)])
    for targets in ("all", "last"):
        one, other = (NextItemRows(train, 3, targets, baskets) for baskets in (None, places))
        first, second = (
            sorted(
                (*a.tolist(), *b.tolist())
                for a, b in zip(*rows.batch(np.arange(len(rows.rows)), 99), strict=True)
            )
            for rows in (one, other)
        )
        assert first == second
        assert one.num_targets == other.num_targets


def test_weights_of_no_target_are_refused():
    train = Sequences.from_lists([[1, 2, 3]])
    weights = np.array([1, 0, 0], np.float32)
    with pytest.raises(ValueError, match="weights: got 0 for every target"):
        NextItemRows(train, 3, "all", weights=weights)
    assert NextItemRows(train, 3, "all").batch_weights(np.array([0])) is None
