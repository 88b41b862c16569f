"""Queries of a recommender: users or histories, and the allowed items."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from alphafuse_ext.checks import invalid, listed
from alphafuse_ext.data import Interactions, Items, Sequences
from alphafuse_ext.data._columns import first_few

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Queries:
    """Histories to rank after.

    Attributes:
        names: of the results: user ids, or numbers of histories.
        histories: item ids, each with at least one item.
        places: index of each among all queries asked for, shape `(B,)`.
        asked: number of queries asked for.
        left_out: lines about skipped users and items.
    """

    names: npt.NDArray[Any]
    histories: Sequences
    places: IntArray
    asked: int
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
        everyone = np.arange(interactions.num_users)
        return Queries(interactions.users, interactions.sequences, everyone, len(everyone))
    wanted = listed("users", users, "user ids")
    if not wanted:
        raise invalid("users", "no users", "at least one")
    find = interactions.user_index if strict else interactions.find_users
    found = find(wanted)
    places = np.flatnonzero(found >= 0)
    rows = found[places]
    unknown = [wanted[place] for place in np.flatnonzero(found < 0)]
    left_out = [f"unknown users are left out: {first_few(unknown)}"] if unknown else []
    chosen = interactions.sequences.select(rows)
    return Queries(interactions.users[rows], chosen, places, len(wanted), left_out)


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
    usable, empty = np.flatnonzero(known.lengths), np.flatnonzero(known.lengths == 0)
    left_out = []
    if (found < 0).any():
        unknown = [items[place] for place in np.flatnonzero(found < 0)]
        count = f"{(known.lengths < lengths).sum()} of {len(wanted)}"
        left_out.append(f"unknown items are left out of {count} histories: {first_few(unknown)}")
    if len(empty):
        named = ", ".join(map(str, empty[:20])) + (", ..." if len(empty) > 20 else "")
        count = f"{len(empty)} of {len(wanted)}"
        left_out.append(f"no known item, so no recommendations, in {count} histories: {named}")
    return Queries(usable, known.select(usable), usable, len(wanted), left_out)


def _from_new_users(interactions: Interactions, others: Interactions, strict: bool) -> Queries:
    find = interactions.item_index if strict else interactions.find_items
    of_items = find(others.items)
    lengths = others.sequences.lengths
    known = _known_of_each(of_items[others.sequences.values], lengths)
    usable, empty = np.flatnonzero(known.lengths), np.flatnonzero(known.lengths == 0)
    left_out = []
    if (of_items < 0).any():
        unknown = others.items[of_items < 0]
        count = f"{(known.lengths < lengths).sum()} of {others.num_users}"
        left_out.append(f"unknown items are left out of {count} histories: {first_few(unknown)}")
    if len(empty):
        names, count = first_few(others.users[empty]), f"{len(empty)} of {others.num_users}"
        left_out.append(f"no known item, so no recommendations, for {count} users: {names}")
    return Queries(others.users[usable], known.select(usable), usable, others.num_users, left_out)


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
        left_out: lines about skipped users and items.
    """

    shared: IntArray | None = None
    lists: Sequences | None = None
    left_out: list[str] = field(default_factory=list)


def read_only(
    interactions: Interactions, items: Items, only: Iterable[Any] | None, asked: int, strict: bool
) -> AllowedItems:
    """The items that ``only`` names, for all queries or one list for each, retired ones left out.

    Raises:
        TypeError: no list, or values that are no ids.
        ValueError: lists of another number than the queries; no item is left for all queries; with
            ``strict``, an unknown or a retired item.
    """
    if only is None:
        return AllowedItems()
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
