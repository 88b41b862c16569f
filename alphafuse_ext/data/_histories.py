"""Columns with a whole history per row, such as RecBole's `item_id_list:token_seq`."""

from __future__ import annotations

import numpy as np
import pandas as pd

from alphafuse_ext.checks import invalid
from alphafuse_ext.data._columns import ITEM_COLUMNS, Table, plain
from alphafuse_ext.data.ids import Codes, Ids
from alphafuse_ext.data.sequences import IntArray, Sequences, Slices
from alphafuse_ext.logs import Log

_ENDINGS = ("list", "seq", "sequence", "history")
# What is surely no single item, and with an "s" at its end may be.
_LISTS = (
    *(item + ending for item in ITEM_COLUMNS for ending in _ENDINGS),
    *("history", "clickhistory", "clickedhistory", "purchasehistory", "sequence"),
)
_PLURALS = (*(item + "s" for item in ITEM_COLUMNS),)


def pick_history(
    table: Table, user_column: str, item_column: str | None, log: Log | None
) -> str | None:
    """The column of histories, or None if each row has one item.

    Args:
        table: the source.
        user_column: the column of users.
        item_column: as given by the user; used if it has lists.
        log: called with a line about columns of lists that are ignored.

    Raises:
        ValueError: several such columns, or one that may hold items and cannot be read as such.
    """
    kinds = {name: kind for name, kind in table.kinds.items() if name != user_column}
    given = None if item_column is None else str(item_column)
    if given is not None and kinds.get(given) == "list":
        return given
    lists = [name for name, kind in kinds.items() if kind in ("list", "numbers")]
    named = (*_LISTS, *_PLURALS)
    histories = [name for name in lists if kinds[name] == "list" and plain(name) in named]
    doubtful = [
        *(histories if len(histories) > 1 else []),
        *(n for n, kind in kinds.items() if kind != "list" and plain(n) in _LISTS and n != given),
    ]
    if doubtful:
        found = f"{table.name} with the column {doubtful[0]!r}, by its name a list of items"
        allowed = (
            "one list of items, typed as in item_id_list:token_seq, or its name as item_column"
        )
        raise invalid("interactions", found, allowed)
    unread = [name for name in lists if name not in histories]
    if unread and log is not None:
        log(f"interactions: lists that are left unread: {unread}")
    return histories[0] if histories else None


def unfold(column: pd.Series, targets: pd.Series | None) -> tuple[pd.Series, IntArray]:
    """The concatenated items of all rows, and their offsets.

    Args:
        column: per row a list, or a string of items separated by spaces, or nothing; `(R,)`.
        targets: the next item of each row, `(R,)`; None: there are none.

    Returns:
        The items, `(I,)`, and offsets, int64, `(R + 1,)`.
    """
    rows = [
        cell.split()
        if isinstance(cell, str)
        else []
        if pd.api.types.is_scalar(cell)
        else list(cell)
        for cell in column
    ]
    if targets is not None:
        rows = [[*row, target] for row, target in zip(rows, targets, strict=True)]
    items = [item for row in rows for item in row]
    offsets = np.zeros(len(rows) + 1, dtype=np.int64)
    np.cumsum([len(row) for row in rows], out=offsets[1:])
    return pd.Series(items, dtype=None if items else object), offsets


def join_rows(rows: Sequences, user_codes: Codes, users: Ids) -> Sequences:
    """One sequence per user, from rows that are prefixes of it.

    Args:
        rows: `R` sequences; those of one user are the beginnings of the longest of them.
        user_codes: the user of each, shape `(R,)`.
        users: the users' ids, for messages.

    Raises:
        ValueError: two rows of a user that are not the beginning of one sequence.
    """
    # The last of equal keys is kept: the longest row of each user.
    longest = np.zeros(len(users), dtype=np.int64)
    by_length = np.argsort(rows.lengths, kind="stable")
    longest[user_codes[by_length]] = by_length
    beginnings = Slices(rows.values, rows.starts[longest[user_codes]], rows.lengths)
    expected = beginnings.select(np.arange(len(rows))).values
    different = np.flatnonzero(expected != rows.values)
    if len(different):
        row = int(np.searchsorted(rows.offsets, different[0], side="right")) - 1
        found = f"rows of the user {users[user_codes[row]]} that are not prefixes of one history"
        allowed = "for each user one row, or rows that are the beginnings of one history"
        raise invalid("interactions", f"{found}: row {row + 1}", allowed)
    return rows.select(longest)
