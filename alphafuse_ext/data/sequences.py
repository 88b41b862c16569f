"""Ragged integer sequences: slices of one array, or concatenated (CSR)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from alphafuse_ext.checks import invalid, refuse_masked

IntArray: TypeAlias = npt.NDArray[np.int64]


def _as_int64(argument: str, array: npt.ArrayLike) -> IntArray:
    """A one-dimensional int64 array of `array`; anything but integers is refused."""
    refuse_masked(argument, array)
    given = np.asarray(array)
    if given.ndim != 1:
        raise invalid(argument, f"an array of shape {given.shape}", "one dimension")
    if given.size == 0:
        return np.empty(0, dtype=np.int64)
    if not np.issubdtype(given.dtype, np.integer):
        raise invalid(argument, f"dtype {given.dtype}", "an integer dtype", TypeError)
    return np.ascontiguousarray(given, dtype=np.int64)


def count_up(counts: IntArray) -> IntArray:
    """0, 1, 2, ... below each of `counts`, one after another."""
    return np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)


def evenly_spread(count: int, most: int) -> IntArray:
    """Up to `most` of the places 0 to `count - 1`, evenly spread; all where there are no more."""
    return np.linspace(0, count - 1, min(count, most)).astype(np.int64)


class Slices:
    """`S` immutable int64 sequences, each a run of one array that they may share.

    Sequence `i` is `values[starts[i] : starts[i] + lengths[i]]`, so that all prefixes of a history
    take no more memory than the history.

    Args:
        values: integers, one dimension.
        starts: integers, shape `(S,)`.
        lengths: integers, at least 0, shape `(S,)`.

    Attributes:
        values: int64, read-only.
        starts: int64, shape `(S,)`, read-only.
        lengths: int64, shape `(S,)`, read-only.

    Raises:
        ValueError: a run that is not within `values`.
        TypeError: an array that does not hold integers.
    """

    __slots__ = ("lengths", "starts", "values")

    values: IntArray
    starts: IntArray
    lengths: IntArray

    def __init__(
        self, values: npt.ArrayLike, starts: npt.ArrayLike, lengths: npt.ArrayLike
    ) -> None:
        # Views, so that locking them does not lock the caller's own arrays.
        self.values = _as_int64("values", values).view()
        self.starts = _as_int64("starts", starts).view()
        self.lengths = _as_int64("lengths", lengths).view()
        if len(self.starts) != len(self.lengths):
            raise invalid("lengths", f"{len(self.lengths)} numbers", f"{len(self.starts)}")
        ends = self.starts + self.lengths
        if np.any(self.starts < 0) or np.any(self.lengths < 0) or np.any(ends > len(self.values)):
            raise invalid("starts, lengths", "a run outside", f"runs of {len(self.values)} values")
        for array in (self.values, self.starts, self.lengths):
            array.setflags(write=False)

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, i: int) -> IntArray:
        """Sequence `i` as a read-only view; negative `i` counts from the end."""
        if not -len(self) <= i < len(self):
            raise invalid("i", i, f"{-len(self)} <= i < {len(self)}", IndexError)
        start = self.starts[i]
        return self.values[start : start + self.lengths[i]]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self)} sequences, {int(self.lengths.sum())} values)"

    def select(self, index: npt.ArrayLike) -> Sequences:
        """The sequences at `index`, in that order; they may repeat.

        Args:
            index: integers in `[0, S)`, shape `(b,)`.

        Raises:
            IndexError: an index out of range.
        """
        index = self._checked(index)
        return self._gather(self.starts[index], self.lengths[index])

    def first(self, n: int | npt.ArrayLike) -> Sequences:
        """The first `n` values of each sequence, all of a shorter one.

        Args:
            n: at least 0; one number, or one for each sequence, shape `(S,)`.
        """
        return self._gather(self.starts, np.minimum(self.lengths, self._counts(n)))

    def last(self, n: int | npt.ArrayLike) -> Sequences:
        """The last `n` values of each sequence, all of a shorter one.

        Args:
            n: at least 0; one number, or one for each sequence, shape `(S,)`.
        """
        lengths = np.minimum(self.lengths, self._counts(n))
        return self._gather(self.starts + self.lengths - lengths, lengths)

    def pad(self, index: npt.ArrayLike, length: int | None = None, *, padding: int) -> IntArray:
        """The sequences at `index` as one right-padded batch.

        Args:
            index: integers in `[0, S)`, shape `(b,)`.
            length: keep only the last `length` values of longer sequences; at least 1.
            padding: what fills the places after a sequence's end.

        Returns:
            int64, shape `(b, L)`, with `L` the length of the longest sequence kept
            (0 where the batch is empty or holds empty sequences only).

        Raises:
            IndexError: an index out of range.
            ValueError: `length` below 1.
        """
        index = self._checked(index)
        if length is not None and length < 1:
            raise invalid("length", length, "None or length >= 1")
        kept = self.lengths[index]
        if length is not None:
            kept = np.minimum(kept, length)
        batch = np.full((len(index), int(kept.max(initial=0))), padding, dtype=np.int64)
        occupied = np.arange(batch.shape[1]) < kept[:, None]
        # A boolean mask is filled row by row, which is the order `_gather` stores values in.
        ends = self.starts[index] + self.lengths[index]
        batch[occupied] = self._gather(ends - kept, kept).values
        return batch

    def prefixes(self, rows: npt.ArrayLike, lengths: npt.ArrayLike) -> Slices:
        """The first `lengths[j]` values of sequence `rows[j]`, sharing the values.

        Args:
            rows: integers in `[0, S)`, shape `(E,)`.
            lengths: integers from 0 to that sequence's own length, shape `(E,)`.

        Raises:
            IndexError: a row out of range.
            ValueError: a length that is longer than its sequence.
        """
        rows, lengths = self._checked(rows), _as_int64("lengths", lengths)
        if np.any(lengths > self.lengths[rows]):
            raise invalid("lengths", "a prefix longer than its sequence", "at most its length")
        return Slices(self.values, self.starts[rows], lengths)

    def _checked(self, index: npt.ArrayLike) -> IntArray:
        rows = _as_int64("index", index)
        outside = (rows < 0) | (rows >= len(self))
        if outside.any():
            raise invalid(
                "index", rows[outside][:5].tolist(), f"0 <= index < {len(self)}", IndexError
            )
        return rows

    def _counts(self, n: int | npt.ArrayLike) -> IntArray:
        counts = _as_int64("n", np.atleast_1d(np.asarray(n)))
        if len(counts) not in (1, len(self)):
            raise invalid("n", f"{len(counts)} numbers", f"one, or one for each of {len(self)}")
        if np.any(counts < 0):
            raise invalid("n", int(counts.min()), "n >= 0")
        return counts

    def _gather(self, starts: IntArray, lengths: IntArray) -> Sequences:
        """The runs `values[starts[j] : starts[j] + lengths[j]]`, without a Python loop."""
        offsets = np.zeros(len(lengths) + 1, dtype=np.int64)
        np.cumsum(lengths, out=offsets[1:])
        positions = np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], lengths)
        return Sequences(offsets, self.values[positions])


class Sequences(Slices):
    """`S` immutable int64 sequences of any lengths, stored end to end.

    Sequence `i` is `values[offsets[i] : offsets[i + 1]]`.

    Args:
        offsets: integers, shape `(S + 1,)`, from 0 to `len(values)`, never falling.
        values: integers, shape `(offsets[-1],)`.

    Attributes:
        offsets: int64, shape `(S + 1,)`, read-only.

    Raises:
        ValueError: the offsets do not describe `values`.
        TypeError: either array does not hold integers.
    """

    __slots__ = ("offsets",)

    offsets: IntArray

    def __init__(self, offsets: npt.ArrayLike, values: npt.ArrayLike) -> None:
        self.offsets = _as_int64("offsets", offsets).view()
        values = _as_int64("values", values)
        if len(self.offsets) == 0 or self.offsets[0] != 0:
            raise invalid("offsets", self.offsets[:1].tolist(), "a first offset of 0")
        if np.any(self.offsets[1:] < self.offsets[:-1]):
            raise invalid("offsets", "offsets that fall", "offsets that never fall")
        if self.offsets[-1] != len(values):
            raise invalid(
                "offsets", f"a last offset of {self.offsets[-1]}", f"len(values) = {len(values)}"
            )
        self.offsets.setflags(write=False)
        super().__init__(values, self.offsets[:-1], np.diff(self.offsets))

    @classmethod
    def from_lists(cls, lists: Iterable[npt.ArrayLike]) -> Sequences:
        """The sequences of a list of integer arrays or lists, empty ones included."""
        arrays = [_as_int64(f"lists[{i}]", one) for i, one in enumerate(lists)]
        offsets = np.zeros(len(arrays) + 1, dtype=np.int64)
        np.cumsum([len(one) for one in arrays], out=offsets[1:])
        return cls(offsets, np.concatenate(arrays) if arrays else np.empty(0, dtype=np.int64))
