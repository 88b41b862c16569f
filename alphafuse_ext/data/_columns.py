"""Tables of named columns from any source, and column lookup by name."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy.typing as npt
import pandas as pd

from alphafuse_ext.checks import invalid

Names: TypeAlias = Sequence[str]

# The kind of a column, as far as the source declares it. "list": of ids or words, "numbers": of
# floats.
Kind: TypeAlias = Literal["unknown", "number", "time", "list", "numbers"]

# Missing values in text formats. A user or an item of such a name is far rarer than a missing one,
# and reading it as a name would silently merge unrelated rows.
MISSING = ["", "NA", "N/A", "n/a", "NaN", "nan", "<NA>", "NULL", "null", "None"]

PREVIEWED = 1000
# Names of columns in a message.
_SHOWN = 50

# `title_en` and `category_2` are texts as well, unless their last word says that they are codes.
_PREFIXES = ("title", "name", "category")
_OF_CODES = ("id", "ids", "code", "codes", "key")

# Compared as `find_column` compares; both interactions and catalogs have this column.
ITEM_COLUMNS = (
    *("itemid", "item", "iid", "asin", "parentasin", "productid", "product", "sku"),
    *("movieid", "movie", "bookid", "isbn", "songid", "trackid", "gameid", "articleid", "newsid"),
    *("businessid", "venueid"),
)
# The same, and what tells where none of them is there: what shops write on the lines of orders,
# codes before names.
ITEM_COLUMN_RANKS = (
    ITEM_COLUMNS,
    (
        *("lineitemsku", "itemsku", "productsku", "variantsku", "stockcode", "productcode"),
        *("itemcode", "articlecode", "articlenumber"),
    ),
    ("lineitemname", "productname", "itemname", "producttitle", "itemtitle"),
)


@dataclass(frozen=True)
class Table:
    """A source with known columns whose rows are not read yet.

    Attributes:
        name: in messages.
        columns: the columns' names, as strings; a RecBole file's without their types.
        kinds: of the columns.
        load: reads the columns named in three lists: tokens, texts and others. Where the format
            has no types, tokens and texts arrive as strings, the others as pandas infers them;
            `MISSING` is null, save in tokens and texts.
        preview: the first rows, at most 1,000, of the columns named, as texts.
        typed: whether the format has types; otherwise tokens are texts.
    """

    name: str
    columns: list[str]
    kinds: dict[str, Kind]
    load: Callable[[Names, Names, Names], pd.DataFrame]
    preview: Callable[[Names], pd.DataFrame]
    typed: bool = True


def find_column(
    table: Table, argument: str, given: str | None, *ranks: Sequence[str]
) -> str | None:
    """The column `given`, else the one whose name is in the first of `ranks` that has one, or None.

    Names are compared in lower case, letters and digits only: `User_ID` is `userid`.

    Raises:
        ValueError: `given` is no column, or several columns could be meant.
    """
    if given is not None:
        if str(given) not in table.columns:
            raise invalid(argument, repr(given), _one_of(table))
        return str(given)
    for candidates in ranks:
        fitting = [name for name in table.columns if plain(name) in candidates]
        if len(fitting) > 1:
            found = f"None, while each of {fitting} could be meant"
            raise invalid(argument, found, _one_of(table))
        if fitting:
            return fitting[0]
    return None


def pick_column(table: Table, argument: str, given: str | None, *ranks: Sequence[str]) -> str:
    """As `find_column`, but an error if there is none."""
    name = find_column(table, argument, given, *ranks)
    if name is None:
        found = "None, and no column has a name that tells"
        raise invalid(argument, found, _one_of(table))
    return name


def _one_of(table: Table) -> str:
    names = first_few(table.columns, _SHOWN) if len(table.columns) > _SHOWN else table.columns
    allowed = f"one of the columns {names} of {table.name}"
    if not table.typed and len(table.columns) == 1:
        return f"{allowed}, or another delimiter"
    if not table.typed and any(re.fullmatch(r"[-+.\d]+", name) for name in table.columns):
        return f"{allowed}, or a header for a file that does not begin with one"
    return allowed


def pick_texts(table: Table, candidates: Sequence[str]) -> list[str]:
    """All columns of text with a name among `candidates`, or one of their prefixes, in their order.

    `title_en` and `category_2` are behind `title` and `category`; `category_id` is none of them.
    """

    def place(name: str) -> tuple[int, bool] | None:
        if plain(name) in candidates:
            return candidates.index(plain(name)), False
        parts = words(name) or [""]
        if parts[0] in _PREFIXES and parts[0] in candidates and parts[-1] not in _OF_CODES:
            return candidates.index(parts[0]), True
        return None

    texts = [name for name in table.columns if table.kinds[name] in ("unknown", "list")]
    places = {name: found for name in texts if (found := place(name)) is not None}
    return sorted(places, key=places.__getitem__)


def refuse_lists(table: Table, argument: str, name: str | None) -> None:
    """Refuse a column with several values per row."""
    if name is not None and table.kinds[name] in ("list", "numbers"):
        found = f"{name!r}, which holds lists"
        raise invalid(argument, found, "a column of one value a row", TypeError)


def plain(name: str) -> str:
    """Normalize a name for comparison: `User_ID` is `userid`."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def words(name: str) -> list[str]:
    """The words of `reviewDate`, `review_date` or `Review date`, in lower case."""
    return [word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)]


def first_few(tokens: Sequence[Any] | npt.NDArray[Any], count: int = 5) -> str:
    """The first tokens and their number, for a message."""
    shown = ", ".join(repr(str(token)) for token in tokens[:count])
    return f"{shown}, ... ({len(tokens)} in all)" if len(tokens) > count else shown
