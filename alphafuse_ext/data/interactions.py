"""Who interacted with what, in order."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from alphafuse_ext.checks import invalid
from alphafuse_ext.data._columns import ITEM_COLUMNS, Log, find_column, first_few, pick_column
from alphafuse_ext.data._delimited import Layout
from alphafuse_ext.data._tables import Source, open_table
from alphafuse_ext.data.ids import IdIndex, Ids, encode_ids
from alphafuse_ext.data.items import Items
from alphafuse_ext.data.sequences import IntArray, Sequences

_USER_COLUMNS = (
    *("userid", "user", "uid", "username", "reviewerid", "reviewer", "customerid", "customer"),
    *("visitorid", "memberid", "accountid"),
)
_TIME_COLUMNS = (
    *("timestamp", "time", "datetime", "date", "ts", "unixtime", "unixreviewtime", "reviewtime"),
    *("eventtime", "createdat"),
)


@dataclass(frozen=True, eq=False)
class Interactions:
    """Every user's items in order of time.

    Attributes:
        users: user tokens, shape `(U,)`, in the source's type (see `alphafuse_ext.data.ids`); a
            user's id is its position.
        items: item tokens, shape `(N,)`, in the type of the catalog, or of the source where there
            was none; an item's id is its position.
        sequences: item ids in `[0, N)`, one sequence per user.
        timestamps: aligned with `sequences.values`, never falling within a user; numbers as the
            source has them (int64 or float64), dates as int64 nanoseconds since 1970 (UTC). None
            where the source has no times, and sequences are in its order.

    Raises:
        ValueError: parts that do not fit together.
    """

    users: Ids
    items: Ids
    sequences: Sequences
    timestamps: npt.NDArray[Any] | None = None

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
) -> Interactions:
    """Read interactions and order them by time within each user.

    Ties keep the order of the source. Repeated interactions are kept.

    Args:
        interactions: a RecBole `.inter` file, `.csv`, `.tsv`, `.jsonl` (one object a line) or
            `.parquet`, each also as `.gz`, `.bz2`, `.zst` or `.xz`; a folder of `.parquet` files;
            any text file with a delimiter that `layout` names; a frame of pandas or polars, a table
            of pyarrow, or what else gives Arrow columns.
        items: the catalog that item ids refer to, items without interactions included; unless
            given, the items of `interactions` in order of first appearance.
        user_column: the column of user tokens; guessed by its name unless given.
        item_column: the column of item tokens; guessed by its name unless given.
        time_column: the column of times, as numbers, ISO 8601 strings or datetimes; guessed
            unless given; where there is none, the order of the source is taken for that of time.
        log: told which columns are read, and the counts.
        layout: of a delimited text file, where its name does not tell.

    Raises:
        FileNotFoundError: there is no such file.
        TypeError: `interactions`, tokens or times of the wrong type.
        ValueError: an unreadable file, no rows, a column that does not exist or cannot be
            guessed, a missing token or time, or items that `items` does not have.
    """
    table = open_table("interactions", interactions, layout, log)
    users_from = pick_column(table, "user_column", user_column, _USER_COLUMNS)
    items_from = pick_column(table, "item_column", item_column, ITEM_COLUMNS)
    times_from = find_column(table, "time_column", time_column, _TIME_COLUMNS)
    used = [name for name in (users_from, items_from, times_from) if name is not None]
    if len(set(used)) < len(used):
        raise invalid("user_column, item_column, time_column", used, "different columns")

    frame = table.load([users_from, items_from], used[2:], [])
    if frame.empty:
        raise invalid(
            "interactions", f"{table.name}, which has no rows", "at least one interaction"
        )
    user_codes, users = encode_ids("user_column", frame[users_from], table.typed, log)
    item_codes, tokens = encode_ids("item_column", frame[items_from], table.typed, log)
    times = None if times_from is None else _parse_times(frame[times_from])
    if items is not None:
        item_codes = _catalog_ids(items, tokens, item_codes)
        tokens = items.tokens

    # Sorting must be stable: equal times keep the order of the source.
    keys = (user_codes,) if times is None else (times, user_codes)
    order = np.lexsort(keys)
    offsets = np.zeros(len(users) + 1, dtype=np.int64)
    np.cumsum(np.bincount(user_codes, minlength=len(users)), out=offsets[1:])
    interactions = Interactions(
        users=users,
        items=tokens,
        sequences=Sequences(offsets, item_codes[order]),
        timestamps=None if times is None else times[order],
    )
    if log is not None:
        described = [
            f"{role} column {name!r}{' (guessed)' if given is None else ''}"
            for role, name, given in (
                ("user", users_from, user_column),
                ("item", items_from, item_column),
                ("time", times_from, time_column),
            )
            if name is not None
        ]
        if times_from is None:
            described.append("no time column: the order of the rows is taken for that of time")
        log(
            f"interactions: {len(interactions):,} of {len(users):,} users with {len(tokens):,} "
            f"items from {table.name}: {', '.join(described)}"
        )
    return interactions


def _catalog_ids(items: Items, tokens: Ids, codes: IntArray) -> IntArray:
    """Renumber item codes, which count `tokens`, as ids of the catalog."""
    ids = IdIndex(items.tokens).find("interactions", tokens)
    unknown = ids < 0
    if unknown.any():
        rows = int(unknown[codes].sum())
        raise invalid(
            "interactions",
            f"{rows} interactions with items that the catalog lacks: {first_few(tokens[unknown])}",
            f"items among the {len(items)} of the catalog",
        )
    return ids[codes]


def _parse_times(column: pd.Series) -> npt.NDArray[Any]:
    """Times as int64 or float64, shape `(R,)`; datetimes as nanoseconds since 1970 (UTC)."""
    allowed = "a number, an ISO 8601 string or a datetime in every row"
    if pd.api.types.is_bool_dtype(column.dtype):
        raise invalid("time_column", "booleans", allowed, TypeError)
    if pd.api.types.is_numeric_dtype(column.dtype):
        parsed = column
    else:
        parsed = column
        if not pd.api.types.is_datetime64_any_dtype(column.dtype):
            parsed = pd.to_numeric(column, errors="coerce")
        # What is no number is a date; a column with both kinds is refused below.
        if parsed is column or parsed.isna().all():
            parsed = pd.to_datetime(column, errors="coerce", utc=True, format="ISO8601")
    wrong = parsed.isna().to_numpy()
    if not wrong.any() and pd.api.types.is_float_dtype(parsed.dtype):
        wrong = ~np.isfinite(parsed.to_numpy())
    if wrong.any():
        row = int(wrong.argmax())
        found = f"{column.iloc[row]} in row {row + 1} of {len(column)}"
        raise invalid("time_column", found, allowed)
    if isinstance(parsed.dtype, pd.DatetimeTZDtype):
        return parsed.dt.tz_convert(None).to_numpy("datetime64[ns]").astype(np.int64)
    is_float = pd.api.types.is_float_dtype(parsed.dtype)
    return parsed.to_numpy(np.float64 if is_float else np.int64)
