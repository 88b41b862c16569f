"""What comes next by items' neighbors: item-to-item co-occurrence, and language for what has not
been taken often, or at all."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

import alphafuse_ext.ops as ops
from alphafuse_ext.checks import check_count, check_share, integer, invalid
from alphafuse_ext.files import PathLike, load_tensors, reading, save_tensors
from alphafuse_ext.items.cooccurrence import Cooccurrence, Histories
from alphafuse_ext.items.language_neighbors import Language, LanguageLists
from alphafuse_ext.items.sparse_lists import (
    SparseLists,
    check_ids,
    csr,
    joined,
    lists_of,
    unsorted,
)

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

MOST = 200
"""Neighbors of a history that are kept."""

_QUERIES = 500
"""Histories at a time."""

_KIND = "item neighbors"
_FACTS = ("num_items", "decay", "language_decay", "language_weight", "last")


@dataclass(frozen=True, eq=False)
class NextItems(SparseLists):
    """What :meth:`ItemNeighbors.probabilities` finds; ``values`` are the probabilities.

    Attributes:
        mass: float32, shape (rows, 2): what the co-occurrence lists and the language lists summed
            up to before they were divided by their sum; both 0 of a history without neighbors.
    """

    mass: npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class ItemNeighbors:
    """Item-to-item neighbors: probabilities of what comes next, without a model.

    For a history, ``knn = mean of K[item] + language_weight * mean of L[item]``, divided by its sum
    over all items. The means are over the items of the history, weighted by ``decay ** age`` and by
    ``language_decay ** age``; ages count back from the last item, 0. ``K`` are the lists of items
    taken together (:class:`Cooccurrence`), ``L`` those of the nearest by language
    (:class:`Language`). On its own a strong baseline; beside a model, see ``mixture`` of
    :func:`alphafuse_ext.topk`.

    Attributes:
        num_items: N.
        together: of each item what is taken together with it, ``K``.
        language: the nearest by each of the embeddings.
        cooccurrence: how ``together`` was made.
        decay: of an item's weight with each step back in a history, in (0, 1].
        language_decay: the same for language.
        language_weight: of the language lists, beside those of ``together``; at least 0.
        last: how many items of a history count, from its end.
    """

    num_items: int
    together: SparseLists
    language: tuple[LanguageLists, ...] = ()
    cooccurrence: Cooccurrence = field(default_factory=Cooccurrence)
    decay: float = 0.85
    language_decay: float = 0.7
    language_weight: float = 1.0
    last: int = 50

    def __post_init__(self) -> None:
        check_share("decay", self.decay)
        check_share("language_decay", self.language_decay)
        _check_weight(self.language_weight)
        check_count("last", self.last)

    @classmethod
    def from_histories(
        cls,
        histories: Histories,
        num_items: int,
        language: Sequence[Language] = (),
        cooccurrence: Cooccurrence | None = None,
        **options: Any,
    ) -> ItemNeighbors:
        """From training interactions and embeddings of texts.

        Args:
            histories: item ids in order of time, one history for each training user, such as
                ``split.train``.
            num_items: N.
            language: embeddings of all N items.
            cooccurrence: how pairs are counted; as :class:`Cooccurrence` has it unless given.
            **options: ``decay``, ``language_decay``, ``language_weight``, ``last``.

        Raises:
            ValueError, TypeError: an option out of range, or embeddings of another number of items.
            IndexError: an id outside ``0 .. N - 1``.
        """
        how = cooccurrence or Cooccurrence()
        num_items = integer("num_items", num_items)
        if isinstance(language, Language):
            raise invalid("language", "one", "a list of Language", TypeError)
        together = how.lists(histories, num_items)
        neighbors = cls(num_items, together, (), how, **options)
        found = []
        for place, one in enumerate(language):
            name = f"language[{place}]"
            lists = LanguageLists.of(one, name)
            if len(lists.cosines) != num_items:
                found_rows = f"{len(lists.cosines)} rows"
                raise invalid(f"{name}.rows", found_rows, f"{num_items}, one for each item")
            found.append(lists)
        return dataclasses.replace(neighbors, language=tuple(found))

    def with_histories(self, histories: Histories) -> ItemNeighbors:
        """With other, or more, interactions: as :meth:`from_histories` has it of these at once.

        Args:
            histories: all of them, not the new ones alone.
        """
        together = self.cooccurrence.lists(histories, self.num_items)
        return dataclasses.replace(self, together=together)

    def with_items(self, language: Sequence[Any]) -> ItemNeighbors:
        """With new items behind, which have language neighbors at once, and are some of old items'.

        As :meth:`from_histories` has it of all items at once, but for the means about which cosines
        are taken: these stay.

        Args:
            language: the rows of each embedding, of all items; old ones as they were. A sparse
                matrix has the columns it had.
        """
        if not self.language or len(language) != len(self.language):
            allowed = f"{len(self.language)}, as many as there were, and at least one"
            raise invalid("language", f"{len(language)} embeddings", allowed)
        pairs = zip(self.language, language, strict=True)
        found = tuple(one.extended(rows, f"language[{i}]") for i, (one, rows) in enumerate(pairs))
        totals = {len(lists.cosines) for lists in found}
        if len(totals) > 1:
            raise invalid("language", f"embeddings of {sorted(totals)} items", "one number of them")
        total = totals.pop()
        together = self.together.extended(total)
        return dataclasses.replace(self, num_items=total, together=together, language=found)

    # --- files

    def save(self, path: PathLike) -> None:
        """Write ``path.safetensors``: the lists as tensors, the rest as JSON in its header."""
        tensors = _tensors("together", self.together)
        languages = []
        for place, one in enumerate(self.language):
            tensors |= _tensors(f"language.{place}", one.cosines)
            if one.mean is not None:
                tensors[f"language.{place}.mean"] = one.mean
            languages.append({"share": one.share, "power": one.power, "neighbors": one.neighbors})
        facts = {name: getattr(self, name) for name in _FACTS}
        how = dataclasses.asdict(self.cooccurrence)
        facts |= {"cooccurrence": how, "language": languages}
        save_tensors(path, _KIND, tensors, facts)

    @classmethod
    def load(cls, path: PathLike) -> ItemNeighbors:
        """Read what :meth:`save` wrote, memory-mapped.

        Raises:
            FileNotFoundError, UnreadableFileError: there is none, or it is damaged.
        """
        tensors, facts = load_tensors(path, _KIND)
        with reading(path):
            count = facts["num_items"]
            languages = []
            for place, how in enumerate(facts["language"]):
                cosines = _read_lists(tensors, f"language.{place}", count)
                mean = tensors.get(f"language.{place}.mean")
                languages.append(LanguageLists(cosines, mean=mean, **how))
            return cls(
                together=_read_lists(tensors, "together", count),
                language=tuple(languages),
                cooccurrence=Cooccurrence(**facts["cooccurrence"]),
                **{name: facts[name] for name in _FACTS},
            )

    # --- what comes next

    def probabilities(
        self,
        histories: Histories,
        *,
        exclude: Histories | None = None,
        most: int | None = MOST,
        language_weight: float | None = None,
    ) -> NextItems:
        """What comes next after each history, by its neighbors.

        Args:
            histories: item ids in order of time, B of them; an empty one has no neighbors.
            exclude: B lists of ids that are left out, such as ``histories`` themselves or
                ``examples.seen``; the probabilities of the others stay as they are.
            most: the longest list, of the highest probabilities; ``None``: any length.
            language_weight: in place of the attribute.

        Returns:
            Ids and probabilities, at most 1 in sum: what is left out is missing from it.

        Raises:
            ValueError: a number out of range, or as many exclusions as there are no histories.
            IndexError: an id outside ``0 .. N - 1``.
        """
        weight = self.language_weight if language_weight is None else language_weight
        _check_weight(weight)
        if most is not None and integer("most", most) < 1:
            raise invalid("most", most, "None or most >= 1")
        if exclude is not None and len(exclude) != len(histories):
            found = f"{len(exclude)} lists"
            raise invalid("exclude", found, f"{len(histories)}, one for each history")
        parts, masses = [], []
        for start in range(0, max(1, len(histories)), _QUERIES):
            some = np.arange(start, min(start + _QUERIES, len(histories)))
            kinds = self._histories(histories.select(some), weight)
            mass = np.stack([h @ sums for h, sums in zip(kinds, self._sums, strict=True)], 1)
            total = _stacked(kinds) @ self._lists
            scales = mass.sum(1)
            scales = np.divide(1.0, scales, out=np.zeros_like(scales), where=scales > 0)
            total.data *= np.repeat(scales.astype(np.float32), np.diff(total.indptr))
            left_out = None if exclude is None else exclude.select(some)
            if most is not None:  # and those that are left out: what is short is quickly sorted
                enough = most + (0 if left_out is None else left_out.lengths)
                total = unsorted(total).best(enough).matrix(self.num_items)
            total.sort_indices()
            if left_out is not None:
                self._leave_out(total, left_out)
            lists = lists_of(total)
            parts.append(lists if most is None else lists.best(most))
            masses.append(mass.astype(np.float32))
        lists = joined(parts)
        return NextItems(
            lists.offsets, lists.ids.astype(np.int64), lists.values, np.concatenate(masses)
        )

    def mixture(
        self,
        histories: Histories,
        weight: float | Tensor,
        *,
        temperature: float = 1.0,
        device: torch.device | str | None = None,
        **options: Any,
    ) -> ops.Mixture:
        """:meth:`probabilities` as ``mixture`` of :func:`alphafuse_ext.topk` and ``target_ranks``.

        Args:
            histories: B of them, one for each query.
            weight: of these probabilities, beside those of the model: ``0 <= weight < 1``, a
                number or (B,).
            temperature: of the model's softmax.
            device: of the queries.
            **options: of :meth:`probabilities`.
        """
        found = self.probabilities(histories, **options)
        arrays = (found.ids, found.values, found.offsets)
        ids, values, offsets = (torch.from_numpy(array).to(device) for array in arrays)
        return ops.Mixture(ids, values, weight, temperature, offsets)

    def language_share(
        self, histories: Histories, ids: npt.ArrayLike, language_weight: float | None = None
    ) -> npt.NDArray[np.float32]:
        """How much of items' probabilities is by language, and not by what was taken together.

        Args:
            histories: B of them.
            ids: shape (B, k); -1 for none.
            language_weight: as for :meth:`probabilities`.

        Returns:
            float32, shape (B, k), in 0 .. 1; NaN of items that are no neighbors.
        """
        ids = np.asarray(ids)
        if ids.ndim != 2 or len(ids) != len(histories):
            raise invalid("ids", f"shape {ids.shape}", f"({len(histories)}, k)")
        check_ids("ids", ids[ids >= 0], self.num_items)
        weight = self.language_weight if language_weight is None else language_weight
        _check_weight(weight)
        shares = np.full(ids.shape, np.nan, np.float32)
        for start in range(0, len(ids), _QUERIES):
            some = np.arange(start, min(start + _QUERIES, len(ids)))
            there = ids[some] >= 0
            rows, columns = np.nonzero(there)
            if not len(rows):  # which SciPy would index to a matrix
                continue
            kinds = self._histories(histories.select(some), weight)
            whole = _stacked(kinds) @ self._lists
            language = kinds[1] @ self._lists[self.num_items :]
            where = rows, ids[some][there]
            total, language = (np.asarray(one[where]).ravel() for one in (whole, language))
            found = np.divide(language, total, out=np.full_like(total, np.nan), where=total > 0)
            shares[some[rows], columns] = found
        return shares

    def matrices(self) -> tuple[csr_matrix, csr_matrix]:
        """The lists of items taken together and those by language, summed up; shapes (N, N)."""
        return self._lists[: self.num_items], self._lists[self.num_items :]

    def _histories(self, histories: Any, weight: float) -> tuple[csr_matrix, csr_matrix]:
        """The weight of each item of each history, for the two kinds of lists."""
        recent = histories.last(self.last)
        check_ids("histories", np.asarray(recent.values), self.num_items)
        language = self._history(recent, self.language_decay) * np.float32(weight)
        return self._history(recent, self.decay), language

    def _history(self, histories: Any, decay: float) -> csr_matrix:
        """The weight of each item of each history."""
        offsets = np.asarray(histories.offsets)
        ages = np.repeat(offsets[1:], histories.lengths) - 1 - np.arange(offsets[-1])
        weights = decay ** ages.astype(np.float64)
        rows = np.repeat(np.arange(len(histories)), histories.lengths)
        weights /= np.bincount(rows, weights, minlength=len(histories))[rows]
        matrix = csr(weights.astype(np.float32), histories.values, offsets, self.num_items)
        matrix.has_sorted_indices = matrix.has_canonical_format = False
        return matrix

    def _leave_out(self, total: csr_matrix, exclude: Any) -> None:
        """Zeros in place of what is left out, of a matrix in order."""
        check_ids("exclude", np.asarray(exclude.values), self.num_items)
        rows = np.repeat(np.arange(total.shape[0]), np.diff(total.indptr))
        keys = rows * self.num_items + total.indices
        wanted = np.repeat(np.arange(len(exclude)), exclude.lengths) * self.num_items
        wanted += exclude.values
        if len(keys):
            places = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
            total.data[places[keys[places] == wanted]] = 0.0

    @cached_property
    def _lists(self) -> csr_matrix:
        """Those of items taken together, and below them those by language, summed up."""
        from scipy.sparse import vstack

        language: Any = csr(
            np.empty(0, np.float32),
            np.empty(0, np.int32),
            np.zeros(self.num_items + 1, np.int64),
            self.num_items,
        )
        for one in self.language:
            language = language + one.weights().matrix(self.num_items)
        return vstack([self.together.matrix(self.num_items), language], format="csr")

    @cached_property
    def _sums(self) -> npt.NDArray[np.float32]:
        """Of each list, shape (2, num_items)."""
        return np.asarray(self._lists.sum(1)).reshape(2, self.num_items)


def _check_weight(weight: float) -> None:
    if not 0 <= weight < math.inf:
        raise invalid("language_weight", weight, "a finite number, 0 or more")


def _stacked(kinds: tuple[csr_matrix, csr_matrix]) -> csr_matrix:
    """Two matrices side by side."""
    from scipy.sparse import hstack

    return hstack(kinds, format="csr")


def _tensors(name: str, lists: SparseLists) -> dict[str, Tensor]:
    return {
        f"{name}.offsets": torch.tensor(lists.offsets),
        f"{name}.ids": torch.tensor(lists.ids.astype(np.int32, copy=False)),
        f"{name}.values": torch.tensor(lists.values),
    }


def _read_lists(tensors: Any, name: str, count: int) -> SparseLists:
    """Of a file that may hold anything."""
    offsets, ids, values = (tensors[f"{name}.{part}"] for part in ("offsets", "ids", "values"))
    kinds = (offsets.dtype, ids.dtype, values.dtype)
    if kinds != (torch.int64, torch.int32, torch.float32) or offsets.shape != (count + 1,):
        raise ValueError(f"{name}: offsets {tuple(offsets.shape)} of {count} items, types {kinds}")
    lists = SparseLists(offsets.numpy(), ids.numpy(), values.numpy())
    rise = lists.offsets[0] == 0 and (np.diff(lists.offsets) >= 0).all()
    if not rise or not (lists.offsets[-1],) == lists.ids.shape == lists.values.shape:
        raise ValueError(f"{name}: lists that do not lie end to end")
    if lists.ids.size and not 0 <= lists.ids.min() <= lists.ids.max() < count:
        raise ValueError(f"{name}: ids outside 0 .. {count - 1}")
    if not (lists.values > 0).all():
        raise ValueError(f"{name}: values that are not above 0")
    return lists
