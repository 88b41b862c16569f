"""Queries of a recommender: users or histories, and the items that may be recommended."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from alphafuse_ext.checks import integer, invalid, listed
from alphafuse_ext.data import Interactions, Items, Sequences
from alphafuse_ext.data._columns import first_few
from alphafuse_ext.data.ids import asked_ids
from alphafuse_ext.data.item_columns import matching, named_column

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Queries:
    """Histories to rank after.

    Attributes:
        names: of the results: user ids, or numbers of histories.
        histories: item ids; an empty one of someone unknown.
        left_out: lines about unknown users, and unknown items, which are skipped.
    """

    names: npt.NDArray[Any]
    histories: Sequences
    left_out: list[str] = field(default_factory=list)


def read_queries(
    interactions: Interactions,
    users: Iterable[Any] | None,
    histories: Iterable[Any] | Interactions | None,
    strict: bool,
) -> Queries:
    """Queries of users, of histories, or of every user where neither is given.

    Histories may be those of other users, as :func:`read_interactions` gives them.

    Raises:
        TypeError, ValueError: see :meth:`Recommender.recommend`.
    """
    if users is not None and histories is not None:
        raise invalid("histories", "both users and histories", "one of the two")
    if isinstance(histories, Interactions):
        return _from_new_users(interactions, histories, strict)
    if histories is not None:
        return _from_histories(interactions, listed("histories", histories, "histories"), strict)
    if users is None:
        return Queries(interactions.users, interactions.sequences)
    wanted = listed("users", users, "user ids")
    if not wanted:
        raise invalid("users", "no users", "at least one")
    find = interactions.user_index if strict else interactions.find_users
    found = find(wanted)
    unknown = [wanted[place] for place in np.flatnonzero(found < 0)]
    instead = _instead(interactions)
    left_out = [f"unknown users get {instead}: {first_few(unknown)}"] if unknown else []
    names = asked_ids(interactions.users, found, wanted)
    return Queries(names, _of_each(interactions.sequences, found), left_out)


def _instead(interactions: Interactions) -> str:
    """What someone unknown gets."""
    return "what is popular" if len(interactions) else "nothing, as no interactions are known"


def _of_each(sequences: Sequences, rows: IntArray) -> Sequences:
    """The sequences at some places; an empty one for -1."""
    known = sequences.select(rows[rows >= 0])
    lengths = np.zeros(len(rows), dtype=np.int64)
    lengths[rows >= 0] = known.lengths
    return Sequences(np.concatenate([[0], np.cumsum(lengths)]), known.values)


def _from_histories(interactions: Interactions, histories: list[Any], strict: bool) -> Queries:
    if not histories:
        raise invalid("histories", "no histories", "at least one")
    wanted = [
        listed(f"histories[{number}]", history, "item ids")
        for number, history in enumerate(histories)
    ]
    if strict and not all(wanted):
        number = [len(history) for history in wanted].index(0)
        raise invalid(f"histories[{number}]", "an empty history", "at least one item")
    items = [item for history in wanted for item in history]
    find = interactions.item_index if strict else interactions.find_items
    found = find(items)
    lengths = np.array([len(history) for history in wanted])
    known = _known_of_each(found, lengths)
    empty = np.flatnonzero((known.lengths == 0) & (lengths > 0))
    left_out = []
    if (found < 0).any():
        unknown = [items[place] for place in np.flatnonzero(found < 0)]
        count = f"{(known.lengths < lengths).sum()} of {len(wanted)}"
        left_out.append(f"unknown items are left out of {count} histories: {first_few(unknown)}")
    if len(empty):
        named = ", ".join(map(str, empty[:20])) + (", ..." if len(empty) > 20 else "")
        count = f"{len(empty)} of {len(wanted)}"
        instead = _instead(interactions)
        left_out.append(f"{count} histories have no known item and get {instead}: {named}")
    return Queries(np.arange(len(wanted)), known, left_out)


def _from_new_users(interactions: Interactions, others: Interactions, strict: bool) -> Queries:
    find = interactions.item_index if strict else interactions.find_items
    of_items = find(others.items)
    lengths = others.sequences.lengths
    known = _known_of_each(of_items[others.sequences.values], lengths)
    empty = np.flatnonzero(known.lengths == 0)
    left_out = []
    if (of_items < 0).any():
        unknown = others.items[of_items < 0]
        count = f"{(known.lengths < lengths).sum()} of {others.num_users}"
        left_out.append(f"unknown items are left out of {count} histories: {first_few(unknown)}")
    if len(empty):
        names, count = first_few(others.users[empty]), f"{len(empty)} of {others.num_users}"
        instead = _instead(interactions)
        left_out.append(f"{count} users have no known item and get {instead}: {names}")
    return Queries(others.users, known, left_out)


def _known_of_each(found: IntArray, lengths: IntArray) -> Sequences:
    """Sequences of some lengths, stored end to end, without what is -1 in them."""
    numbers = np.repeat(np.arange(len(lengths)), lengths)
    kept = np.bincount(numbers[found >= 0], minlength=len(lengths))
    return Sequences(np.concatenate([[0], np.cumsum(kept)]), found[found >= 0])


@dataclass(frozen=True, eq=False)
class AllowedItems:
    """Item ids that may be recommended.

    Attributes:
        shared: of all queries, ascending; ``None``: the whole catalog, or lists of their own.
        lists: one for each query that was asked.
        left_out: lines about items that cannot be recommended or are unknown.
        excluded: without the other two, a few that are not recommended.
    """

    shared: IntArray | None = None
    lists: Sequences | None = None
    left_out: list[str] = field(default_factory=list)
    excluded: IntArray | None = None

    def digest(self) -> str | None:
        """SHA-256 of what all queries share, in hexadecimal; ``None``: all items."""
        if self.excluded is not None:
            return hashlib.sha256(b"excluded" + self.excluded.tobytes()).hexdigest()
        return None if self.shared is None else hashlib.sha256(self.shared.tobytes()).hexdigest()

    def of_few(self, count: int) -> AllowedItems:
        """The same for that many queries; for a few, a list of each: a table of what all share
        would take longer to gather."""
        if self.shared is None or count > _FEW_QUERIES:
            return self
        offsets = np.arange(count + 1) * len(self.shared)
        return AllowedItems(None, Sequences(offsets, np.tile(self.shared, count)), self.left_out)


_FEW_QUERIES, _FEW_EXCLUDED = 4, 1000


def read_allowed(
    interactions: Interactions,
    items: Items,
    asked: int,
    strict: bool,
    only: Iterable[Any] | None = None,
    exclude: Iterable[Any] | None = None,
    where: Mapping[str, Any] | None = None,
) -> AllowedItems:
    """The items that ``only`` names, for all queries or one list for each, or all; without retired
    ones, those of ``exclude``, and what does not fit ``where``.

    Raises:
        TypeError: no list, or values that are no ids.
        ValueError: lists of another number than the queries; no item is left for all queries; with
            ``strict``, an unknown or a retired item; see :func:`matching`.
    """
    named = AllowedItems() if only is None else _read_only(interactions, items, only, asked, strict)
    if exclude is None and where is None:
        return named
    lines, allowed = list(named.left_out), np.ones(len(items), dtype=bool)
    excluded = np.zeros(0, dtype=np.int64)
    if items.retired is not None:
        allowed &= ~items.retired
    if where is not None:
        fits, absent = matching(items.columns, where)
        if absent and strict:
            raise invalid("where", f"{absent[0]}, which no item has", "values that items have")
        allowed &= fits
        lines += [f"where: no item has {value}" for value in absent]
    if exclude is not None:
        wanted = listed("exclude", exclude, "item ids")
        found = (interactions.item_index if strict else interactions.find_items)(wanted)
        unknown = [wanted[place] for place in np.flatnonzero(found < 0)]
        lines += [f"exclude: unknown items: {first_few(unknown)}"] if unknown else []
        excluded = np.unique(found[found >= 0])
        allowed[excluded] = False
    if named.lists is not None:
        values = named.lists.values
        kept = _known_of_each(np.where(allowed[values], values, -1), named.lists.lengths)
        return AllowedItems(None, kept, lines)
    if named.shared is not None:
        allowed &= np.isin(np.arange(len(items)), named.shared)
    if not allowed.any():
        given = {"only": only, "exclude": exclude, "where": where}
        argument = ", ".join(name for name, value in given.items() if value is not None)
        raise invalid(argument, "no item that is left", "at least one, for all queries")
    if only is None and where is None and len(excluded) <= _FEW_EXCLUDED:
        return AllowedItems(None, None, lines, excluded)
    return AllowedItems(np.flatnonzero(allowed), None, lines)


def _read_only(
    interactions: Interactions, items: Items, only: Iterable[Any], asked: int, strict: bool
) -> AllowedItems:
    wanted = listed("only", only, "item ids")
    if wanted and all(_is_list(one) for one in wanted):
        if len(wanted) != asked:
            allowed = f"item ids for all queries, or a list for each of the {asked}"
            raise invalid("only", f"{len(wanted)} lists", allowed)
        members = [listed(f"only[{n}]", one, "item ids") for n, one in enumerate(wanted)]
        found, left_out = _known(
            "only", [i for m in members for i in m], interactions, items, strict
        )
        lengths = np.array([len(one) for one in members])
        return AllowedItems(None, _known_of_each(found, lengths), left_out)
    found, left_out = _known("only", wanted, interactions, items, strict)
    shared = np.unique(found[found >= 0])
    if len(shared) == 0:
        raise invalid("only", "no item that can be recommended", "at least one, for all queries")
    return AllowedItems(shared, None, left_out)


@dataclass(frozen=True, eq=False)
class AtMost:
    """How many items of one value of a column a list may have.

    Attributes:
        count: the most.
        values: numbers of the items' values, int64, shape `(N,)`; -1 of an item without one, of
            which there may be any number.
    """

    count: int
    values: IntArray

    @classmethod
    def read(cls, items: Items, at_most: int | None, by: str | None) -> AtMost | None:
        """Of two arguments of :meth:`Recommender.recommend`."""
        if at_most is None and by is None:
            return None
        if at_most is None:
            raise invalid("at_most", None, "a number of items, with by")
        if integer("at_most", at_most, "an integer >= 1") < 1:
            raise invalid("at_most", at_most, "at_most >= 1")
        if by is None:
            raise invalid("by", None, "an item column, with at_most")
        column = named_column("by", items.columns, by)
        return cls(int(at_most), pd.factorize(column)[0].astype(np.int64))

    def first(self, ids: IntArray, k: int) -> IntArray:
        """Of items in their order, the places of the first ``k`` that may stay."""
        values = self.values[ids]
        order = np.argsort(values, kind="stable")
        ordered = values[order]
        before = np.arange(len(ids)) - np.searchsorted(ordered, ordered)
        kept = np.zeros(len(ids), dtype=bool)
        kept[order] = (before < self.count) | (ordered < 0)
        return np.flatnonzero(kept)[:k]


def listed_for_all(only: Iterable[Any]) -> list[Any]:
    """What ``only`` names, where users are asked for some at a time.

    Raises:
        TypeError: no list.
        ValueError: a list for each user.
    """
    wanted = listed("only", only, "item ids")
    if any(_is_list(one) for one in wanted):
        raise invalid("only", "a list for each user", "item ids for all users")
    return wanted


def _is_list(value: Any) -> bool:
    return isinstance(value, Iterable) and not isinstance(value, (str, bytes))


def _known(
    argument: str, wanted: list[Any], interactions: Interactions, items: Items, strict: bool
) -> tuple[IntArray, list[str]]:
    """Ids of tokens, -1 for those that cannot be recommended, and lines about these."""
    found = (interactions.item_index if strict else interactions.find_items)(wanted)
    left_out = []
    unknown = [wanted[place] for place in np.flatnonzero(found < 0)]
    if unknown:
        left_out.append(f"{argument}: unknown items are left out: {first_few(unknown)}")
    if items.retired is not None:
        gone = (found >= 0) & items.retired[found]
        names = [wanted[place] for place in np.flatnonzero(gone)]
        if names and strict:
            raise invalid(argument, f"retired {first_few(names)}", "items that are not retired")
        if names:
            left_out.append(f"{argument}: retired items are left out: {first_few(names)}")
        found = np.where(gone, -1, found)
    return found, left_out
