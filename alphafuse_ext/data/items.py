"""The catalog: item tokens, in the order of their ids, with texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from alphafuse_ext.checks import invalid
from alphafuse_ext.data._columns import (
    ITEM_COLUMN_RANKS,
    MISSING,
    Table,
    first_few,
    pick_column,
    pick_texts,
    plain,
    refuse_lists,
)
from alphafuse_ext.data._delimited import Layout
from alphafuse_ext.data._tables import Source, open_table
from alphafuse_ext.data.ids import (
    EVERY_ROW,
    MAY_BE_DROPPED,
    Codes,
    IdIndex,
    Ids,
    encode_ids,
    has_id,
)
from alphafuse_ext.data.item_columns import LONGEST, as_text, bounded, extended, written
from alphafuse_ext.data.sequences import IntArray
from alphafuse_ext.logs import Log, logged

_TITLE_COLUMNS = (
    *("title", "itemtitle", "producttitle", "movietitle", "booktitle"),
    *("lineitemname", "lineitemtitle", "name", "itemname", "productname"),
)
_TEXT_COLUMNS = (
    *_TITLE_COLUMNS,
    *("subtitle", "brand", "category", "categories", "genre", "genres", "class", "features"),
    *("description", "descriptions", "desc", "overview", "summary", "abstract"),
    *("text", "itemtext", "content"),
)

# Of the cells of one item, so many are the same where the column is the item's own: a title may
# have been changed.
_ALIKE = 0.9


@dataclass(frozen=True, eq=False)
class Items:
    """The catalog; an item's id is its position.

    Attributes:
        tokens: distinct ids, shape `(N,)`, in the source's type: see `alphafuse_ext.data.ids`.
        texts: for the text encoder, `N` strings, "" for an item without text; None if the source
            has no texts.
        titles: for display, `N` strings, "" for an item without title; None if the source has no
            titles.
        retired: bool, shape `(N,)`: items that keep their ids and are never recommended; None: no
            items.
        columns: of the source, to filter and count by: numbers, and strings as categories; None:
            it has none, see `alphafuse_ext.data.item_columns`.

    Raises:
        ValueError: a token given twice, or lists of different lengths.
        TypeError: a single string for texts or titles.
    """

    tokens: Ids
    texts: list[str] | None
    titles: list[str] | None
    retired: npt.NDArray[np.bool_] | None = None
    columns: pd.DataFrame | None = None

    def __post_init__(self) -> None:
        repeated = pd.Series(self.tokens).duplicated().to_numpy()
        if repeated.any():
            raise invalid(
                "tokens", f"given twice: {first_few(self.tokens[repeated])}", "every item once"
            )
        for name in ("texts", "titles"):
            given = getattr(self, name)
            if isinstance(given, str):
                raise invalid(name, repr(given), "a list of strings", TypeError)
            if given is not None and len(given) != len(self):
                raise invalid(name, f"{len(given)} strings", f"one for each of {len(self)} items")
        if self.retired is not None and np.shape(self.retired) != (len(self),):
            allowed = f"shape ({len(self)},), one for each item"
            raise invalid("retired", f"shape {np.shape(self.retired)}", allowed)
        if self.columns is not None and len(self.columns) != len(self):
            allowed = f"one for each of {len(self)} items"
            raise invalid("columns", f"{len(self.columns)} rows", allowed)

    def __len__(self) -> int:
        return len(self.tokens)

    def select(self, index: IntArray) -> Items:
        """The catalog of some items: ids, int64, shape `(n,)`, none twice."""
        lists = {
            name: None if values is None else [values[place] for place in index]
            for name, values in (("texts", self.texts), ("titles", self.titles))
        }
        retired = None if self.retired is None else self.retired[index]
        columns = None if self.columns is None else self.columns.iloc[index].reset_index(drop=True)
        return Items(self.tokens[index], retired=retired, columns=columns, **lists)

    def extended(self, others: Items) -> Items:
        """The catalog with others behind it, whose ids have the type of its own.

        What this one has no column of is left out, and what the others lack is "".

        Raises:
            TypeError: ids that cannot have that type.
            ValueError: an item that is there already.
        """
        own, new = self.tokens, others.tokens
        if own.dtype.kind != new.dtype.kind:
            if own.dtype != object or not all(isinstance(token, str) for token in own[:1]):
                found = f"ids such as {new[0]!r}"
                raise invalid(
                    "items", found, f"ids such as {own[0]!r}, as in the catalog", TypeError
                )
            new = np.array([str(token) for token in new], dtype=object)
        known = new[IdIndex(own).find("items", new) >= 0]
        if len(known):
            found = f"{len(known)} that the catalog has already: {first_few(known)}"
            raise invalid("items", found, "new items")
        lists = {
            name: None if had is None else [*had, *(added or [""] * len(others))]
            for name, had, added in (
                ("texts", self.texts, others.texts),
                ("titles", self.titles, others.titles),
            )
        }
        retired = None
        if self.retired is not None:
            retired = np.concatenate([self.retired, np.zeros(len(others), dtype=bool)])
        columns = self.columns
        if columns is not None:
            columns = extended(columns, others.columns, len(others))
        return Items(np.concatenate([own, new]), retired=retired, columns=columns, **lists)


def read_items(
    items: Source,
    item_column: str | None = None,
    text_columns: Sequence[str] | str | None = None,
    log: Log | None = None,
    layout: Layout | None = None,
    title_column: str | None = None,
    of_rows: bool = False,
    missing_ids: str | None = None,
) -> Items:
    """Read the catalog.

    Args:
        items: as in `read_interactions`, of RecBole a `.item` file. Every item keeps its place:
            the item of row `k` has id `k`.
        item_column: the column of item tokens; default: guessed by its name.
        text_columns: the columns of an item's text, joined by ". " without empty ones; an empty
            list: no texts. Default: all columns with a name such as title, brand, description or
            category_2 that hold more than numbers.
        log: called with lines about the columns read.
        layout: of a delimited text file, where it differs from the format's default.
        title_column: what items are called by where they are shown; default: the column with a name
            such as title or name, else the first text column.
        of_rows: an item may have several rows, such as lines of orders. Its cells are the first
            ones that are not empty; columns that are not alike in the rows of an item are not its.
        missing_ids: with `of_rows`, "drop" leaves out rows without an item.

    Raises:
        FileNotFoundError: the file does not exist.
        TypeError: `items` or the tokens are of the wrong type.
        ValueError: an unreadable file, no rows, a column that does not exist or cannot be
            guessed, a missing token, or one given twice.
    """
    log = logged(log)
    table = open_table("items", items, layout, log)
    guessing = text_columns is None
    tokens_from, texts_from, titles_from = _pick_columns(
        table, item_column, text_columns, title_column
    )
    strings = list(dict.fromkeys([*texts_from, *titles_from]))
    others = _short(table, [name for name in table.columns if name not in (tokens_from, *strings)])
    # Of a text file as strings: by types of pyarrow's guessing, some files could not be read.
    frame = table.load(
        [tokens_from], *((strings, others) if table.typed else (strings + others, []))
    )
    if of_rows and missing_ids == "drop":
        frame = frame[has_id(frame[tokens_from], table.typed)].reset_index(drop=True)
    if frame.empty:
        raise invalid("items", f"{table.name}, which has no rows", "at least one item")
    every_row = MAY_BE_DROPPED if of_rows else EVERY_ROW
    codes, distinct = encode_ids("item_column", frame[tokens_from], table.typed, log, every_row)
    if of_rows:
        rows = len(frame)
        named = [*([] if guessing else texts_from), *([] if title_column is None else titles_from)]
        cells_from = frame.drop(columns=tokens_from)
        frame = _one_row_each(cells_from, codes, len(distinct), named, strings)
        texts_from, titles_from, strings, others = (
            [name for name in names if name in frame]
            for names in (texts_from, titles_from, strings, others)
        )
        codes = np.arange(len(distinct), dtype=codes.dtype)
    cells = {name: [as_text(cell) for cell in frame[name]] for name in strings}
    columns = {name: cells[name] for name in texts_from}
    if guessing:
        columns = {name: cells for name, cells in columns.items() if not _only_numbers(cells)}
        if not columns and plain(tokens_from) in _TITLE_COLUMNS:  # a title for an id
            columns = {tokens_from: [str(token) for token in distinct[codes]]}
    if title_column is None:
        with_words = [name for name in titles_from if not _only_numbers(cells[name])]
        titles_from = [*with_words, *(name for name in columns if name != tokens_from)][:1]
    single = [name for name in strings if table.kinds[name] != "list" and name not in titles_from]
    kept = bounded(
        {name: frame[name] if table.typed else written(frame[name]) for name in single + others}
    )
    if log is not None:
        log(
            f"items: {len(codes):,}{f' on {rows:,} rows' if of_rows else ''} from {table.name}: "
            f"item column {tokens_from!r}{' (guessed)' if item_column is None else ''}, "
            f"text columns {', '.join(map(repr, columns)) or 'none'}"
            f"{' (guessed)' if guessing else ''}, "
            f"title column {', '.join(map(repr, titles_from)) or 'none'}"
            f"{' (guessed)' if title_column is None else ''}"
            + ("" if kept is None else f", to filter by {', '.join(map(repr, kept))}")
        )
    texts = [". ".join(filter(None, cells)) for cells in zip(*columns.values(), strict=True)]
    return Items(
        tokens=distinct[codes],
        texts=texts if columns else None,
        titles=next((cells[name] for name in titles_from), None),
        columns=kept,
    )


def _pick_columns(
    table: Table,
    item_column: str | None,
    text_columns: Sequence[str] | str | None,
    title_column: str | None,
) -> tuple[str, list[str], list[str]]:
    """The column of tokens, those of texts, and those that may be the title's, the best first."""
    tokens_from = pick_column(table, "item_column", item_column, *ITEM_COLUMN_RANKS)
    refuse_lists(table, "item_column", tokens_from)
    if text_columns is None:
        texts_from = [name for name in pick_texts(table, _TEXT_COLUMNS) if name != tokens_from]
    else:
        named = [text_columns] if isinstance(text_columns, str) else list(text_columns)
        texts_from = [pick_column(table, "text_columns", name, ()) for name in named]
        if tokens_from in texts_from or len(set(texts_from)) < len(texts_from):
            raise invalid(
                "text_columns", texts_from, f"distinct columns other than {tokens_from!r}"
            )
    if title_column is None:
        titles_from = [name for name in pick_texts(table, _TITLE_COLUMNS) if name != tokens_from]
    else:
        titles_from = [pick_column(table, "title_column", title_column, ())]
        if titles_from == [tokens_from]:
            allowed = f"another column than that of the ids, {tokens_from!r}"
            raise invalid("title_column", repr(title_column), allowed)
    return tokens_from, texts_from, titles_from


def _one_row_each(
    frame: pd.DataFrame, codes: Codes, count: int, named: Sequence[str], texts: Sequence[str]
) -> pd.DataFrame:
    """Of each item the first cells that are not empty, in the columns that are the item's own.

    Args:
        frame: rows of items.
        codes: of which item each is, in `[0, count)`.
        named: columns to keep in any case.
        texts: columns to keep where every item has one row, which says nothing of the others.
    """
    found = {}
    for name, column in frame.items():
        written = pd.Series([as_text(cell) for cell in column]).replace(MISSING, None)
        values, _ = pd.factorize(written)
        rows = np.flatnonzero(values >= 0)
        items, first = np.unique(codes[rows], return_index=True)
        own = np.full(count, -1)
        own[items] = rows[first]
        # Of the rows behind an item's first.
        others = len(rows) - len(items)
        alike = int((values[rows] == values[own[codes[rows]]]).sum()) - len(items)
        if name in named or (alike >= _ALIKE * others and (others or name in texts)):
            found[name] = column.reset_index(drop=True).reindex(own).reset_index(drop=True)
    return pd.DataFrame(found, index=range(count))


def _short(table: Table, names: list[str]) -> list[str]:
    """Columns of one value a row that, by their first rows, are no descriptions."""
    single = [name for name in names if name and table.kinds[name] not in ("list", "numbers")]
    preview = table.preview(single)
    return [name for name in single if all(len(as_text(cell)) <= LONGEST for cell in preview[name])]


def _only_numbers(cells: list[str]) -> bool:
    """Whether a column that is called "category", say, holds codes and no words."""
    filled = pd.Series([cell for cell in cells if cell], dtype=object)
    return len(filled) > 0 and bool(pd.to_numeric(filled, errors="coerce").notna().all())
