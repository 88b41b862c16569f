"""Ragged sequences against plain lists, on fresh random ones."""

import numpy as np
import pytest

from alphafuse_ext.checks import listed
from alphafuse_ext.data import Sequences


@pytest.fixture
def lists():
    generator = np.random.default_rng(17)
    return [generator.integers(0, 50, n).tolist() for n in generator.integers(0, 9, 40)]


def as_lists(sequences):
    return [sequence.tolist() for sequence in sequences]


def test_round_trip(lists):
    sequences = Sequences.from_lists(lists)
    assert as_lists(sequences) == lists
    assert sequences.lengths.tolist() == [len(one) for one in lists]
    assert sequences.values.dtype == sequences.offsets.dtype == np.int64
    assert as_lists(Sequences(sequences.offsets, sequences.values)) == lists
    assert sequences[-1].tolist() == lists[-1]


def test_no_sequences_at_all():
    sequences = Sequences.from_lists([])
    assert len(sequences) == 0
    assert as_lists(sequences.last(3)) == []
    assert sequences.pad([], padding=7).shape == (0, 0)


def test_select_first_last(lists):
    sequences = Sequences.from_lists(lists)
    index = np.random.default_rng(3).integers(0, len(lists), 60)
    assert as_lists(sequences.select(index)) == [lists[i] for i in index]
    for n in (0, 1, 3, 100):
        assert as_lists(sequences.first(n)) == [one[:n] for one in lists]
        assert as_lists(sequences.last(n)) == [one[max(0, len(one) - n) :] for one in lists]
    each = np.arange(len(lists)) % 5
    assert as_lists(sequences.first(each)) == [
        one[:n] for one, n in zip(lists, each.tolist(), strict=True)
    ]


@pytest.mark.parametrize("length", [None, 1, 4, 50])
def test_pad_on_the_right_keeping_the_last(lists, length):
    sequences = Sequences.from_lists(lists)
    index = np.random.default_rng(5).permutation(len(lists))[:13]
    kept = [lists[i] if length is None else lists[i][-length:] for i in index]
    longest = max(map(len, kept))
    batch = sequences.pad(index, length, padding=50)
    assert batch.dtype == np.int64
    assert batch.tolist() == [one + [50] * (longest - len(one)) for one in kept]


def test_pad_empty_sequences_only():
    assert Sequences.from_lists([[], []]).pad([0, 1], 5, padding=0).shape == (2, 0)


def test_immutable_without_locking_the_callers_array():
    values = np.array([1, 2, 3])
    sequences = Sequences([0, 3], values)
    with pytest.raises(ValueError, match="read-only"):
        sequences[0][0] = 9
    with pytest.raises(ValueError, match="read-only"):
        sequences.offsets[0] = 1
    values[0] = 9


@pytest.mark.parametrize(
    ("offsets", "values", "error", "message"),
    [
        ([1, 2], [5, 5], ValueError, "offsets: got .* a first offset of 0"),
        ([], [], ValueError, "a first offset of 0"),
        ([0, 2, 1, 3], [5, 5, 5], ValueError, "offsets that never fall"),
        ([0, 2], [5, 5, 5], ValueError, r"a last offset of 2; expected len\(values\) = 3"),
        ([0, 1], [0.5], TypeError, "values: got dtype float64"),
        ([0, 1], [[5]], ValueError, "one dimension"),
    ],
)
def test_bad_parts(offsets, values, error, message):
    with pytest.raises(error, match=message):
        Sequences(offsets, values)


def test_bad_arguments():
    sequences = Sequences.from_lists([[1, 2], [3]])
    for index in ([2], [-1], [0, 7]):
        with pytest.raises(IndexError, match="0 <= index < 2"):
            sequences.select(index)
        with pytest.raises(IndexError, match="0 <= index < 2"):
            sequences.pad(index, padding=0)
    with pytest.raises(IndexError, match="i: got 2"):
        sequences[2]
    with pytest.raises(ValueError, match="length: got 0"):
        sequences.pad([0], 0, padding=0)
    with pytest.raises(ValueError, match="n: got -1"):
        sequences.last(-1)
    with pytest.raises(ValueError, match="n: got 3 numbers"):
        sequences.first([1, 1, 1])


def test_prefixes_share_the_values():
    sequences = Sequences.from_lists([[1, 2, 3], [], [4, 5]])
    prefixes = sequences.prefixes([0, 2, 0, 1], [2, 1, 0, 0])
    assert [prefixes[i].tolist() for i in range(4)] == [[1, 2], [4], [], []]
    assert np.shares_memory(prefixes.values, sequences.values)
    assert prefixes.lengths.tolist() == [2, 1, 0, 0]
    assert prefixes.pad([1, 0], padding=9).tolist() == [[4, 9], [1, 2]]
    assert prefixes.select([0, 1]).values.tolist() == [1, 2, 4]
    with pytest.raises(ValueError, match="a prefix longer than its sequence"):
        sequences.prefixes([2], [3])
    with pytest.raises(IndexError, match="index"):
        sequences.prefixes([3], [1])


def test_masked_entries_are_refused():
    masked = np.ma.masked_array([4, 5, 6], [False, True, False])
    with pytest.raises(ValueError, match="values: got a masked array, 1 of its entries masked"):
        Sequences(np.array([0, 3]), masked)
    with pytest.raises(ValueError, match=r"lists\[0\]: got a masked array"):
        Sequences.from_lists([masked])
    with pytest.raises(ValueError, match="user ids: got a masked array"):
        listed("user ids", masked, "ids")
    assert listed("user ids", np.ma.masked_array([4, 5]), "ids") == [4, 5]
