"""Interactions of users with items, in time order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from alphafuse_ext.checks import invalid
from alphafuse_ext.data._columns import (
    ITEM_COLUMN_RANKS,
    Names,
    Table,
    find_column,
    first_few,
    pick_column,
    refuse_lists,
)
from alphafuse_ext.data._delimited import Layout
from alphafuse_ext.data._histories import join_rows, pick_history, unfold
from alphafuse_ext.data._tables import Source, open_table
from alphafuse_ext.data._times import parse_times, pick_times
from alphafuse_ext.data.ids import MAY_BE_DROPPED, Codes, IdIndex, Ids, encode_ids, has_id
from alphafuse_ext.data.items import Items
from alphafuse_ext.data.sequences import IntArray, Sequences
from alphafuse_ext.logs import Log, logged

_USER_COLUMNS = (
    *("userid", "user", "uid", "username", "reviewerid", "reviewer", "customerid", "customer"),
    *("visitorid", "memberid", "accountid"),
)
# Where none of them is there.
_CUSTOMER_COLUMNS = (
    *("email", "emailaddress", "customeremail", "billingemail", "useremail", "buyeremail"),
    *("buyerid", "buyer", "clientid", "client", "shopperid", "shopper"),
)
PARTS = ("train", "validation", "test")
"""What a split parts interactions into."""
_PART_NAMES = {
    **dict.fromkeys(("train", "training"), 0),
    **dict.fromkeys(("validation", "valid", "val", "dev"), 1),
    "test": 2,
}
# Of so many items that occur more than once, one has two times, if they are times of interactions.
_REPEATED_ITEMS = 10
# Rows looked at together.
_BLOCK = 1 << 20


@dataclass(frozen=True, eq=False)
class Interactions:
    """Every user's items in time order.

    Attributes:
        users: user tokens, shape `(U,)`, in the source's type (see `alphafuse_ext.data.ids`); a
            user's id is its position.
        items: item tokens, shape `(N,)`, in the type of the catalog, or of the source where there
            was none; an item's id is its position.
        sequences: item ids in `[0, N)`, one sequence per user.
        timestamps: aligned with `sequences.values`, non-decreasing for each user; numbers as in the
            source (int64 or float64), dates as int64 nanoseconds since 1970 (UTC). None if the
            source has no times; sequences are then in its order.
        parts: the split that came with the source, aligned with `sequences.values`, int8: 0 for
            training, 1 for validation, 2 for test, non-decreasing for each user. None: it came
            with none.
        weights: of each interaction as a target of training, aligned with `sequences.values`,
            float32, 0 or more: a quantity, a rating. None: all count alike.

    Raises:
        ValueError: arrays that do not match, or parts that are not in the order of time.
    """

    users: Ids
    items: Ids
    sequences: Sequences
    timestamps: npt.NDArray[Any] | None = None
    parts: npt.NDArray[np.int8] | None = None
    weights: npt.NDArray[np.float32] | None = None

    def __post_init__(self) -> None:
        values = self.sequences.values
        if len(self.sequences) != len(self.users):
            raise invalid(
                "sequences", len(self.sequences), f"one for each of {len(self.users)} users"
            )
        if np.any((values < 0) | (values >= len(self.items))):
            raise invalid(
                "sequences",
                f"item ids {values.min()} to {values.max()}",
                f"0 to {len(self.items) - 1}",
            )
        if self.timestamps is not None and len(self.timestamps) != len(values):
            raise invalid(
                "timestamps", len(self.timestamps), f"one for each of {len(values)} items"
            )
        if self.weights is not None and len(self.weights) != len(values):
            raise invalid("weights", len(self.weights), f"one for each of {len(values)} items")
        if self.parts is not None:
            self._check_parts(self.parts)

    def _check_parts(self, parts: npt.NDArray[np.int8]) -> None:
        count = len(self.sequences.values)
        if len(parts) != count or not np.isin(parts, range(len(PARTS))).all():
            raise invalid("parts", f"{len(parts)} numbers", f"0, 1 or 2 for each of {count} items")
        users = np.repeat(np.arange(self.num_users), self.sequences.lengths)
        same_user = users[1:] == users[:-1]
        if np.any(same_user & (parts[1:] < parts[:-1])):
            raise invalid("parts", "parts that fall", "training, validation and test in that order")
        times = self.timestamps
        if times is not None and np.any(early := same_user & (times[1:] < times[:-1])):
            user = self.users[users[:-1][early][0]]
            raise invalid(
                "interactions",
                f"{int(early.sum()):,} validation or test interactions before one of an earlier "
                f"part, the first of the user {user}",
                "parts that follow each other in time for each user, or time_column=''",
            )

    @property
    def num_users(self) -> int:
        return len(self.users)

    @property
    def num_items(self) -> int:
        return len(self.items)

    def __len__(self) -> int:
        return len(self.sequences.values)

    def item_counts(self) -> IntArray:
        """Interactions of each item, int64, shape `(N,)`."""
        return np.bincount(self.sequences.values, minlength=self.num_items)

    def user_index(self, tokens: Iterable[Any]) -> IntArray:
        """User ids of tokens, int64; unknown ones raise a `ValueError` that lists the first."""
        return self._users.find("users", tokens, strict=True)

    def item_index(self, tokens: Iterable[Any]) -> IntArray:
        """Item ids of tokens, int64; unknown ones raise a `ValueError` that lists the first."""
        return self._items.find("items", tokens, strict=True)

    def within(self, items: Items) -> Interactions:
        """The same interactions by the ids of a catalog.

        Raises:
            ValueError: items that the catalog lacks.
        """
        codes = _catalog_ids(items, self.items, self.sequences.values)
        sequences = Sequences(self.sequences.offsets, codes)
        return replace(self, items=items.tokens, sequences=sequences)

    def where(self, kept: npt.NDArray[np.bool_]) -> Interactions:
        """Some of the interactions, and their users.

        Args:
            kept: which, shape `(len(self),)`.
        """
        rows = np.repeat(np.arange(self.num_users), self.sequences.lengths)[kept]
        users, counts = np.unique(rows, return_counts=True)
        offsets = np.concatenate([[0], np.cumsum(counts)])
        return Interactions(
            self.users[users],
            self.items,
            Sequences(offsets, self.sequences.values[kept]),
            None if self.timestamps is None else self.timestamps[kept],
            None if self.parts is None else self.parts[kept],
            None if self.weights is None else self.weights[kept],
        )

    def baskets(self) -> IntArray:
        """Of each interaction, the place in its user's sequence where its basket begins: the first
        at the same time; int64, aligned with `sequences.values`.

        Raises:
            ValueError: there are no times.
        """
        if self.timestamps is None:
            raise invalid("baskets", True, "False for interactions without times, which tell them")
        starts = np.repeat(self.sequences.starts, self.sequences.lengths)
        number = np.arange(len(self))
        new = starts == number
        new[1:] |= self.timestamps[1:] != self.timestamps[:-1]
        return np.maximum.accumulate(np.where(new, number, 0)) - starts

    def with_sorted_baskets(self) -> Interactions:
        """With the items of a basket in the order of their ids, so that theirs says nothing."""
        rows = np.repeat(np.arange(self.num_users), self.sequences.lengths)
        parts = np.zeros(len(self), np.int8) if self.parts is None else self.parts
        order = np.lexsort((self.sequences.values, parts, self.baskets(), rows))
        return replace(
            self,
            sequences=Sequences(self.sequences.offsets, self.sequences.values[order]),
            weights=None if self.weights is None else self.weights[order],
        )

    def find_users(self, tokens: Iterable[Any]) -> IntArray:
        """User ids of tokens, int64, -1 for an unknown one."""
        return self._users.find("users", tokens)

    def find_items(self, tokens: Iterable[Any]) -> IntArray:
        """Item ids of tokens, int64, -1 for an unknown one."""
        return self._items.find("items", tokens)

    # Hashing every token takes seconds in a large catalog: done once, at the first look-up.
    @cached_property
    def _users(self) -> IdIndex:
        return IdIndex(self.users)

    @cached_property
    def _items(self) -> IdIndex:
        return IdIndex(self.items)


def read_interactions(
    interactions: Source,
    items: Items | None = None,
    user_column: str | None = None,
    item_column: str | None = None,
    time_column: str | None = None,
    log: Log | None = None,
    layout: Layout | None = None,
    split_column: str | None = None,
    time_format: str | None = None,
    weight_column: str | None = None,
    basket_column: str | None = None,
    missing_ids: str | None = None,
) -> Interactions:
    """Read interactions and order them by time within each user.

    Equal times keep the order of the rows; where no row of any user is later than the one before
    it, and some are earlier, the rows are newest first, and equal times are reversed as well.
    Repeated interactions are kept.

    A row may hold a whole history instead of an item: a column of RecBole's type `token_seq`, or of
    lists, that is called `item_id_list` or alike. It is in the order of time, and an item column
    beside it holds the item that came next. Several rows of a user must be prefixes of one
    history.

    Args:
        interactions: a RecBole `.inter` file, `.csv`, `.tsv`, `.jsonl` (one object a line) or
            `.parquet`, each also as `.gz`, `.bz2`, `.zst` or `.xz`; a folder of `.parquet` files;
            any text file with a delimiter that `layout` names; a pandas or polars data frame, a
            pyarrow table, a Hugging Face `Dataset`, or anything else with Arrow columns.
        items: the catalog, including items without interactions; default: the items of
            `interactions` in order of first appearance.
        user_column: the column of user tokens; default: guessed by its name.
        item_column: the column of item tokens; default: guessed by its name.
        time_column: the column of times, as numbers in one unit, dates, or strings of either;
            default: the one with a usual name, or the only one of a date type; an error if another
            column looks like times. "" or no such column: the rows are in time order.
        log: called with lines about the columns read, and the counts.
        layout: of a delimited text file, where it differs from the format's default.
        split_column: the column that says which part of a given split a row is of: `train`,
            `validation` or `test`. Default: there is none.
        time_format: of dates that are not in ISO 8601, as in `strptime`: "%d/%m/%Y %H:%M".
        weight_column: the column of numbers that say how much a row counts as a target of training,
            such as a quantity or a rating; 0 or more. Default: all count alike.
        basket_column: the column that says which order of its user's a row is of. All of an order
            then have its earliest time, by which it is a basket. Default: baskets are told by equal
            times alone.
        missing_ids: "drop" leaves out rows without a user or an item, such as orders of guests, and
            logs how many. Default: they are refused.

    Raises:
        FileNotFoundError: the file does not exist.
        TypeError: `interactions`, tokens or times of the wrong type.
        ValueError: an unreadable file, no rows, a column that does not exist or cannot be
            guessed, a missing token or time, or items that `items` does not have.
    """
    log = logged(log)
    columns = (user_column, item_column, time_column, time_format)
    more = (weight_column, basket_column, missing_ids)
    return _read("interactions", interactions, items, *columns, split_column, log, layout, *more)[0]


def read_split(
    sources: Sequence[Source],
    user_column: str | None = None,
    item_column: str | None = None,
    time_column: str | None = None,
    log: Log | None = None,
    layout: Layout | None = None,
    time_format: str | None = None,
    weight_column: str | None = None,
    basket_column: str | None = None,
    missing_ids: str | None = None,
) -> Interactions:
    """Read the three parts of a given split, for training, validation and test.

    Args:
        sources: the three, each with a row for each interaction, as for `read_interactions`.
        user_column, item_column, time_column, log, layout: as for `read_interactions`.
        time_format, weight_column, basket_column, missing_ids: as for that.

    Returns:
        All interactions, with `parts`, of all items in order of first appearance.

    Raises:
        ValueError, TypeError, FileNotFoundError: what `read_interactions` refuses, histories in
            lists, ids of different types, times in some of the three only, or an interaction that
            comes before one of an earlier part of its user's.
    """
    log = logged(log)
    found = []
    for argument, source in zip(("interactions", *PARTS[1:]), sources, strict=True):
        columns = (user_column, item_column, time_column, time_format)
        more = (weight_column, basket_column, missing_ids)
        read, history = _read(argument, source, None, *columns, None, log, layout, *more)
        if history is not None:
            raise invalid(argument, f"histories in {history!r}", f"{_PLAIN_ROWS} of a given split")
        found.append(read)
    return _joined(found)


_PLAIN_ROWS = "a row for each interaction"


def _joined(found: Sequence[Interactions]) -> Interactions:
    """The parts of a split as one, by user, and by part and time within each."""
    with_times = [
        name for name, one in zip(PARTS, found, strict=True) if one.timestamps is not None
    ]
    if len(with_times) not in (0, len(found)):
        raise invalid("validation, test", f"times in {' and '.join(with_times)}", "in all or none")
    users, items = found[0].users, found[0].items
    for argument, one in zip(PARTS[1:], found[1:], strict=True):
        users = joined_ids(argument, users, one.users)
        items = joined_ids(argument, items, one.items, "items")
    user_codes = np.concatenate(
        [np.repeat(IdIndex(users).find("users", one.users), one.sequences.lengths) for one in found]
    )
    item_codes = np.concatenate(
        [IdIndex(items).find("items", one.items)[one.sequences.values] for one in found]
    )
    parts = np.repeat(np.arange(len(found), dtype=np.int8), [len(one) for one in found])
    order = np.argsort(user_codes, kind="stable")
    times = None
    if with_times:
        each = [one.timestamps for one in found if one.timestamps is not None]
        times = np.concatenate(each)[order]
        if any(one.dtype != times.dtype and np.abs(one).max() >= 2**53 for one in each):
            raise invalid("validation, test", "times of other types", "one type in all three")
    sequences = Sequences(_offsets(user_codes, len(users)), item_codes[order])
    given = [one.weights for one in found if one.weights is not None]
    weights = np.concatenate(given)[order] if given else None
    return Interactions(users, items, sequences, times, parts[order], weights)


def joined_ids(argument: str, known: Ids, new: Ids, what: str = "users") -> Ids:
    """Ids, and behind them those of others that are not among them, in their type.

    Raises:
        TypeError: ids that cannot have that type.
    """
    if known.dtype.kind != new.dtype.kind:
        if known.dtype.kind != "O" or not isinstance(known[0], str):
            found, allowed = (f"{what} such as {ids[:1].tolist()[0]!r}" for ids in (new, known))
            raise invalid(argument, found, allowed, TypeError)
        new = np.array([str(name) for name in new], dtype=object)
    return np.concatenate([known, new[IdIndex(known).find(argument, new) < 0]])


def _read(
    argument: str,
    source: Source,
    items: Items | None,
    user_column: str | None,
    item_column: str | None,
    time_column: str | None,
    time_format: str | None,
    split_column: str | None,
    log: Log | None,
    layout: Layout | None,
    weight_column: str | None = None,
    basket_column: str | None = None,
    missing_ids: str | None = None,
) -> tuple[Interactions, str | None]:
    """Read one source; and the column of histories, if it has one."""
    table = open_table(argument, source, layout, log)
    columns = _pick_columns(table, user_column, item_column, time_column, log)
    ids_from = [name for name in (columns.users, columns.items) if name is not None]
    texts_from = [name for name in (columns.history, columns.times) if name is not None]
    split_from = []
    if split_column is not None:
        split_from = [pick_column(table, "split_column", split_column, ())]
        if columns.history is not None:
            raise invalid("split_column", split_column, f"None, or {_PLAIN_ROWS}")
        if split_column in (*ids_from, *texts_from):
            raise invalid("split_column", split_column, "another column than those of the others")
    more_from = {}
    for name, wanted in (("weight_column", weight_column), ("basket_column", basket_column)):
        if wanted is not None:
            more_from[name] = pick_column(table, name, wanted, ())
            refuse_lists(table, name, wanted)
            if columns.history is not None:
                raise invalid(name, wanted, f"None, or {_PLAIN_ROWS}")
            if wanted in (*ids_from, *texts_from, *split_from):
                raise invalid(name, wanted, "another column than those of the others")
    if basket_column is not None and columns.times is None:
        raise invalid("basket_column", basket_column, "None, or a column of times beside it")
    if missing_ids == "drop" and columns.history is not None:
        raise invalid("missing_ids", repr(missing_ids), f"None, or {_PLAIN_ROWS}")
    column = _columns_of(table, ids_from, [*texts_from, *split_from, *more_from.values()])
    if missing_ids == "drop":
        column = _with_ids(argument, table, column, ids_from, log)
    of_users = column(columns.users)
    if len(of_users) == 0:
        raise invalid(argument, f"{table.name}, which has no rows", "at least one interaction")
    user_codes, users = encode_ids("user_column", of_users, table.typed, log, MAY_BE_DROPPED)
    del of_users
    targets = None if columns.items is None else column(columns.items)
    if columns.history is not None:
        targets, row_offsets = unfold(column(columns.history), targets)
    item_codes, tokens = encode_ids("item_column", targets, table.typed, log, MAY_BE_DROPPED)
    del targets
    if columns.times is None and time_format is not None:
        raise invalid("time_format", repr(time_format), "None, or a column of times")
    times = None
    if columns.times is not None:
        times = parse_times(column(columns.times), time_format)
    if times is not None and time_column is None:
        _refuse_times_of_items(columns.times, times, item_codes)
    parts = weights = None
    if basket_column is not None and times is not None:
        times = _times_of_baskets(user_codes, column(more_from["basket_column"]), times)
    if columns.history is None:
        order = _order(user_codes, times, log)
        if split_column is not None:
            parts = _parts_of(column(split_column))
            order = order[np.lexsort((parts[order], user_codes[order]))]  # which is stable
            parts = parts[order]
        offsets = _offsets(user_codes, len(users))
        del user_codes
        times = None if times is None else times[order]
        item_codes = item_codes[order]
        if weight_column is not None:
            weights = _weights_of(column(more_from["weight_column"]))[order]
        del order
        sequences = Sequences(offsets, item_codes)
        del item_codes
    else:
        sequences = join_rows(Sequences(row_offsets, item_codes), user_codes, users)
    read = Interactions(users, tokens, sequences, times, parts, weights)
    if items is not None:
        read = read.within(items)
    if log is not None:
        given = {"user": user_column, "item": item_column, "time": time_column}
        log(
            f"{argument}: {len(read):,} of {len(users):,} users with {read.num_items:,} items from "
            f"{table.name}: {columns.describe(given)}"
            + "".join(f", {name.replace('_', ' ')} {of!r}" for name, of in more_from.items())
        )
    return read, columns.history


def _columns_of(table: Table, ids: Names, texts: Names) -> Callable[[str], pd.Series]:
    """A function that hands out each column once, so that few are in memory at a time."""
    if not table.typed:  # a text has to be read as a whole
        return table.load(ids, texts, []).pop

    def read(name: str) -> pd.Series:
        frame = table.load([name], [], []) if name in ids else table.load([], [name], [])
        return frame.pop(name)

    return read


def _with_ids(
    argument: str, table: Table, column: Callable[[str], pd.Series], ids: Names, log: Log | None
) -> Callable[[str], pd.Series]:
    """A function that hands out the columns of the rows that have every id."""
    loaded = {name: column(name) for name in ids}
    kept = np.logical_and.reduce([has_id(of, table.typed) for of in loaded.values()])
    if len(kept) and not kept.any():
        allowed = "some that have both"
        raise invalid(argument, f"{len(kept):,} rows, each without a user or an item", allowed)
    if log is not None:
        missing = int(np.sum(~kept))
        log(f"{argument}: dropped {missing:,} of {len(kept):,} rows without a user or an item")

    def read(name: str) -> pd.Series:
        whole = loaded.pop(name) if name in loaded else column(name)
        return whole[kept].reset_index(drop=True)

    return read


def _offsets(user_codes: Codes | IntArray, num_users: int) -> IntArray:
    counts = np.zeros(num_users, dtype=np.int64)
    step = max(_BLOCK, len(user_codes) // 16 + 1)
    for start in range(0, len(user_codes), step):  # which are converted to int64
        counts += np.bincount(user_codes[start : start + step], minlength=num_users)
    return np.concatenate([[0], np.cumsum(counts)])


def _parts_of(column: pd.Series) -> npt.NDArray[np.int8]:
    """The part that each row is of."""
    codes, names = pd.factorize(column)
    numbers = [_PART_NAMES.get(str(name).strip().lower(), -1) for name in names]
    unknown = [name for name, number in zip(names, numbers, strict=True) if number < 0]
    if unknown or (codes < 0).any():
        found = f"a column with {first_few(unknown)}" if unknown else "a column with empty cells"
        raise invalid("split_column", found, f"one of {', '.join(PARTS)} in every row")
    return np.array(numbers, dtype=np.int8)[codes]


def _weights_of(column: pd.Series) -> npt.NDArray[np.float32]:
    """How much each row counts."""
    numbers = pd.to_numeric(column, errors="coerce").to_numpy(np.float64, na_value=np.nan)
    bad = ~(np.isfinite(numbers) & (numbers >= 0))
    if bad.any():
        first = first_few(column[bad].astype(str).tolist())
        found = f"{int(bad.sum()):,} rows with {first}"
        raise invalid("weight_column", found, "a finite number, 0 or more, in every row")
    return numbers.astype(np.float32)


def _times_of_baskets(
    user_codes: Codes, column: pd.Series, times: npt.NDArray[Any]
) -> npt.NDArray[Any]:
    """Times, in place of each the earliest of its user's order."""
    codes, _ = pd.factorize(column)
    if (codes < 0).any():
        found = f"a column with {int((codes < 0).sum()):,} empty cells"
        raise invalid("basket_column", found, "the order of every row")
    order = np.lexsort((times, codes, user_codes))  # an order's earliest row comes first
    users, baskets = user_codes[order], codes[order]
    new = np.ones(len(order), dtype=bool)
    new[1:] = (users[1:] != users[:-1]) | (baskets[1:] != baskets[:-1])
    first = np.maximum.accumulate(np.where(new, np.arange(len(order)), 0))
    found_times = np.empty_like(times)
    found_times[order] = times[order][first]
    return found_times


@dataclass(frozen=True)
class _Columns:
    """The columns to read: each row has an item, a history of items, or both, the item last."""

    users: str
    items: str | None
    history: str | None
    times: str | None

    def describe(self, given: dict[str, str | None]) -> str:
        """Which columns were taken, and which of them were not `given`."""
        parts = [
            f"{role} column {name!r}{' (guessed)' if given[role] is None else ''}"
            for role, name in (("user", self.users), ("item", self.items), ("time", self.times))
            if name is not None
        ]
        if self.history is not None:
            parts.append(f"histories, oldest item first, in column {self.history!r}")
        elif self.times is None:
            parts.append("no time column: the order of the rows is taken for that of time")
        return ", ".join(parts)


def _pick_columns(
    table: Table,
    user_column: str | None,
    item_column: str | None,
    time_column: str | None,
    log: Log | None,
) -> _Columns:
    users = pick_column(table, "user_column", user_column, _USER_COLUMNS, _CUSTOMER_COLUMNS)
    history = pick_history(table, users, item_column, log)
    items = times = None
    if history is None:
        items = pick_column(table, "item_column", item_column, *ITEM_COLUMN_RANKS)
        times = pick_times(table, time_column, [users, items], log)
    else:
        if str(item_column) != history:
            items = find_column(table, "item_column", item_column, *ITEM_COLUMN_RANKS)
        if time_column:
            found = f"{time_column!r} beside the histories of {history!r}"
            raise invalid("time_column", found, "None: a history is in the order of time")
    for argument, name in (("user_column", users), ("item_column", items), ("time_column", times)):
        refuse_lists(table, argument, name)
    used = [name for name in (users, items, history, times) if name is not None]
    if len(set(used)) < len(used):
        raise invalid("user_column, item_column, time_column", used, "different columns")
    return _Columns(users, items, history, times)


def _refuse_times_of_items(name: str | None, times: npt.NDArray[Any], item_codes: Codes) -> None:
    """Refuse times that were guessed and are an item's own, such as the date it was released."""
    counts = np.bincount(item_codes)
    own = np.empty(len(counts), dtype=times.dtype)
    own[item_codes] = times
    varies = np.bincount(item_codes[times != own[item_codes]], minlength=len(counts)) > 0
    repeated = counts > 1
    if repeated.sum() >= _REPEATED_ITEMS and not varies[repeated].any() and len(np.unique(own)) > 1:
        found = f"None, while {name!r}, which could be meant, has one value for each item"
        raise invalid("time_column", found, "its name, or '' where the rows are in order")


def _order(user_codes: Codes, times: npt.NDArray[Any] | None, log: Log | None) -> IntArray:
    """The rows by user, and by time within each."""
    if times is None or not np.any(times[1:] < times[:-1]):
        return np.argsort(user_codes, kind="stable")
    rows = np.argsort(user_codes, kind="stable")
    earlier, same, later = _steps(user_codes, times, rows)
    if not earlier:
        return rows
    newest_first = same > 0 and not later
    if newest_first and log is not None:
        log(f"interactions: rows are newest first, {same:,} at a time as the next among them")
    del rows
    # Sorts must be stable: equal times keep the order of the rows.
    rows = np.argsort(times[::-1] if newest_first else times, kind="stable")
    if newest_first:
        rows = len(times) - 1 - rows
    return rows[np.argsort(user_codes[rows], kind="stable")]


def _steps(user_codes: Codes, times: npt.NDArray[Any], rows: IntArray) -> tuple[int, int, int]:
    """How often a user's next row is earlier than the one before, at the same time, and later."""
    earlier = same = later = 0
    for start in range(0, len(rows), _BLOCK):  # whole columns would be copied otherwise
        block = rows[start : start + _BLOCK + 1]
        users, found = user_codes[block], times[block]
        same_user = users[1:] == users[:-1]
        before, after = found[:-1][same_user], found[1:][same_user]
        earlier += int(np.sum(after < before))
        same += int(np.sum(after == before))
        later += int(np.sum(after > before))
    return earlier, same, later


def drop_unknown(
    interactions: Interactions, items: Items, log: Log | None = None
) -> tuple[Interactions, dict[str, int]]:
    """Interactions by the ids of a catalog, without those with items that it lacks.

    Args:
        interactions: of any items.
        items: the catalog.
        log: called with a line of counts.

    Returns:
        The interactions, without users that have none left; and how many `interactions`, `users`
        and `items` were dropped.

    Raises:
        ValueError: none is left.
    """
    known = IdIndex(items.tokens).find("interactions", interactions.items) >= 0
    if not known[interactions.sequences.values].any():
        found = f"{len(interactions):,} interactions, none with an item of the catalog"
        raise invalid("interactions", found, "some with items that it has")
    kept = interactions
    if not known.all():
        kept = interactions.where(known[interactions.sequences.values])
        # What is left has ids within the known items.
        renumbered = np.cumsum(known) - 1
        sequences = Sequences(kept.sequences.offsets, renumbered[kept.sequences.values])
        kept = replace(kept, items=interactions.items[known], sequences=sequences)
    dropped = {
        "interactions": len(interactions) - len(kept),
        "users": interactions.num_users - kept.num_users,
        "items": int(np.sum(~known)),
    }
    if log is not None:
        log(
            f"unknown items: dropped {dropped['interactions']:,} interactions with "
            f"{dropped['items']:,} items that the catalog lacks"
            + (f": {first_few(interactions.items[~known])}" if dropped["items"] else "")
            + (f"; {dropped['users']:,} users have none left" if dropped["users"] else "")
        )
    return kept.within(items), dropped


def _catalog_ids(items: Items, tokens: Ids, codes: IntArray) -> IntArray:
    """Renumber item codes, which count `tokens`, as ids of the catalog."""
    ids = IdIndex(items.tokens).find("interactions", tokens)
    unknown = ids < 0
    if unknown.any():
        rows = int(unknown[codes].sum())
        raise invalid(
            "interactions",
            f"{rows} interactions with items that the catalog lacks: {first_few(tokens[unknown])}",
            f"items among the {len(items)} of the catalog, or unknown_items=drop "
            "(--unknown-items drop), which counts and leaves them out",
        )
    return ids[codes]
