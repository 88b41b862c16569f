"""The one way in for data: interactions, items and language embeddings, read once."""

from __future__ import annotations

import dataclasses
import inspect
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from alphafuse_ext.checks import invalid
from alphafuse_ext.data._delimited import Layout
from alphafuse_ext.data._tables import Source, origin, same_source
from alphafuse_ext.data.embeddings import EmbeddingSource, LanguageEmbeddings
from alphafuse_ext.data.ids import Ids
from alphafuse_ext.data.interactions import Interactions
from alphafuse_ext.data.items import Items
from alphafuse_ext.data.reading import Reading
from alphafuse_ext.data.split import k_core
from alphafuse_ext.data.summary import as_text, summarize
from alphafuse_ext.data.text import encode_texts
from alphafuse_ext.logs import Log, logged

_IN_MEMORY = {"interactions": "Interactions", "items": "Items", "reading": {}}


@dataclass(frozen=True, eq=False, repr=False)
class Dataset:
    """Interactions with their catalog and its language embeddings, checked and in one order.

    :meth:`read` makes one of files and data frames; its length is the number of interactions.

    Attributes:
        interactions: every user's items in time order.
        items: the catalog, in the order of item ids, with texts and titles where there are any.
        language: the language embeddings that were given; ``None``: there are none, and texts are
            encoded where a method needs language.
        encoder, encoder_model: of the texts, see :func:`alphafuse_ext.data.encode_texts`.
        source: where it came from, and how it was read, as JSON values.
        dropped: how many ``interactions``, ``users`` and ``items`` were left out, as the catalog
            lacks the items.

    Raises:
        ValueError: a catalog or embeddings of other items than the interactions'.
    """

    interactions: Interactions
    items: Items
    language: LanguageEmbeddings | None = None
    encoder: str = "auto"
    encoder_model: str | os.PathLike[str] | None = None
    source: dict[str, Any] = field(default_factory=_IN_MEMORY.copy)
    dropped: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not np.array_equal(self.interactions.items, self.items.tokens):
            allowed = "the items of the interactions, in their order"
            raise invalid("items", "other items than those of the interactions", allowed)
        if self.language is not None and len(self.language.rows) != len(self.items):
            found = f"{len(self.language.rows)} rows"
            raise invalid("language", found, f"one for each of the {len(self.items)} items")

    @classmethod
    def read(
        cls,
        interactions: Source,
        items: Source | None = None,
        embeddings: EmbeddingSource | None = None,
        *,
        validation: Source | None = None,
        test: Source | None = None,
        split_column: str | None = None,
        user_column: str | None = None,
        item_column: str | None = None,
        time_column: str | None = None,
        time_format: str | None = None,
        weight_column: str | None = None,
        basket_column: str | None = None,
        text_columns: Sequence[str] | str | None = None,
        title_column: str | None = None,
        interactions_layout: Layout | None = None,
        items_layout: Layout | None = None,
        encoder: str = "auto",
        encoder_model: str | os.PathLike[str] | None = None,
        ids_are_rows: bool = False,
        unknown_items: str = "raise",
        missing_ids: str = "raise",
        log: Log | None = print,
    ) -> Dataset:
        """Read and check data; nothing is encoded, and nothing left out but what is asked for.

        Args:
            interactions: one row per user, item and (optionally) time: a RecBole ``.inter``, CSV,
                TSV, JSON lines or Parquet file, compressed or not, or a pandas or polars data frame
                (see :func:`alphafuse_ext.data.read_interactions`).
            items: the catalog in the order of the embeddings, with its texts: as ``interactions``,
                or a RecBole ``.item`` file. By default the items of the embeddings, or those that
                occur in the interactions. The same file or data frame as ``interactions``: those
                of its rows, with the columns that are alike in all rows of an item, such as the
                titles on the lines of orders.
            embeddings: ``(N, d_l)`` language embeddings, floating point: an array, a tensor or a
                ``.npy`` file, which is memory-mapped, in the order of ``items``; or a dict, a data
                frame or a Parquet, ``.npz`` or ``.safetensors`` file by item id, in any order (see
                :func:`alphafuse_ext.data.read_embeddings`). Without them item texts are encoded.
            validation, test: interactions that are held out, as files or data frames like
                ``interactions``, which are then those to train on: a split that is given.
            split_column: the same in one file: the column that says ``train``, ``validation`` or
                ``test`` of each row.
            user_column, item_column, time_column, text_columns: names; by default guessed and
                logged. ``time_column=""``: the rows are in time order.
            title_column: what items are called where they are shown; by default guessed: a column
                such as title or name, else the first text column.
            time_format: of dates that are not in ISO 8601, as in ``strptime``: ``"%d/%m/%Y"``.
            weight_column: numbers that say how much a row counts as a target of training, such as a
                quantity or a rating, 0 or more; by default all count alike.
            basket_column: which order of its user's a row is of; :func:`alphafuse_ext.fit` then
                takes an order for a basket, as with the setting ``baskets``. The rows of an order
                have its earliest time.
            interactions_layout, items_layout: delimiter, header, quotes and encoding of text files,
                where they differ from the format's defaults.
            encoder: for the item texts: ``"sentence-transformers"``, ``"tfidf"`` or ``"auto"``.
            encoder_model: name or local path for sentence-transformers.
            ids_are_rows: item ids are integers, and the item with id ``k`` has row ``k`` of the
                embeddings.
            unknown_items: what becomes of interactions with items that the catalog lacks:
                ``"raise"`` refuses them, ``"drop"`` leaves them out and counts them.
            missing_ids: the same for rows without a user or an item, such as orders of guests.
            log: called with lines about what was read, and how.

        Raises:
            ValueError, TypeError, OSError: data that cannot be read, or that does not match.

        Example:
            >>> data = Dataset.read("clicks.csv", "items.csv", text_columns=["title"])
            >>> print(data.describe())
            >>> recommender = fit(data, dim=64)
        """
        log = logged(log)
        if embeddings is not None:
            for name, given, default in (
                ("encoder", encoder, "auto"),
                ("encoder_model", encoder_model, None),
            ):
                if given != default:
                    raise invalid(name, repr(given), f"{default} where embeddings are given")
        elif ids_are_rows:
            raise invalid("ids_are_rows", True, "False, or embeddings")
        if items is None and text_columns is not None:
            raise invalid("text_columns", text_columns, "None, or items with these columns")
        if items is None and title_column is not None:
            raise invalid("title_column", repr(title_column), "None, or items with this column")
        if items is None and items_layout is not None:
            raise invalid("items_layout", items_layout, "None, or a file of items")
        if (validation is None) != (test is None):
            missing = "validation" if validation is None else "test"
            raise invalid(missing, None, "both validation and test, or neither")
        if validation is not None and split_column is not None:
            raise invalid("split_column", repr(split_column), "None beside validation and test")
        reading = Reading(
            user_column=user_column,
            item_column=item_column,
            time_column=time_column,
            text_columns=text_columns,
            title_column=title_column,
            interactions_layout=interactions_layout,
            items_layout=items_layout,
            ids_are_rows=ids_are_rows,
            unknown_items=None if unknown_items == "raise" else unknown_items,
            missing_ids=None if missing_ids == "raise" else missing_ids,
            split_column=split_column,
            time_format=time_format,
            weight_column=weight_column,
            basket_column=basket_column,
            items_of_rows=same_source(items, interactions) or None,
        )
        if items is None and embeddings is None and reading.unknown_items is not None:
            raise invalid("unknown_items", repr(unknown_items), "'raise', or items or embeddings")
        catalog, language = reading.catalog(items, embeddings, log)
        held_out = {} if validation is None else {"validation": validation, "test": test}
        files = (interactions, catalog, log, list(held_out.values()))
        read, dropped = reading.interactions(*files)
        source = {
            "interactions": origin(interactions),
            "items": None if items is None else origin(items),
            **{name: origin(one) for name, one in held_out.items()},
            "reading": reading.record(),
        }
        catalog = catalog or Items(read.items, None, None)
        return cls(read, catalog, language, encoder, encoder_model, source, dropped)

    @classmethod
    def of(
        cls,
        interactions: Source | Dataset,
        items: Source | None,
        embeddings: EmbeddingSource | None,
        log: Log | None,
        **options: Any,
    ) -> Dataset:
        """A data set that is given, or else :meth:`read`, with the arguments of that.

        Raises:
            ValueError: an argument beside a data set, which has been read.
        """
        if not isinstance(interactions, Dataset):
            return cls.read(interactions, items, embeddings, log=log, **options)
        for name, value in {"items": items, "embeddings": embeddings, **options}.items():
            if value is not None:
                what = value if isinstance(value, (str, bool, list)) else type(value).__name__
                raise invalid(name, what, "none beside a Dataset, which has been read")
        return interactions

    @property
    def users(self) -> Ids:
        """Ids of the users, shape ``(U,)``."""
        return self.interactions.users

    def __len__(self) -> int:
        return len(self.interactions)

    def __repr__(self) -> str:
        language = "none"
        if self.language is not None:
            language = f"{self.language.rows.shape[1]} dimensions"
        elif self.items.texts is not None:
            language = f"texts, encoder {self.encoder}"
        return (
            f"Dataset({len(self):,} interactions, {len(self.users):,} users, "
            f"{len(self.items):,} items, language: {language})"
        )

    @cached_property
    def summary(self) -> dict[str, Any]:
        """Statistics, see :func:`alphafuse_ext.data.summary.summarize`."""
        return summarize(self.interactions, self.items)

    def describe(self) -> str:
        """The statistics as lines to print, as ``alphafuse describe`` prints them."""
        return as_text(self.summary)

    def encoded(self, seed: int = 0, log: Log | None = None) -> LanguageEmbeddings:
        """The language embeddings, encoded from the texts where none were given.

        Args:
            seed: of the encoder.
            log: called with lines about it.

        Raises:
            ValueError: there are neither embeddings nor texts.
        """
        log = logged(log)
        if self.language is not None:
            return self.language
        if self.items.texts is None:
            allowed = (
                "language embeddings, or items with a text column to encode (the file of the "
                "interactions again, if it has titles), or item_embedding=id"
            )
            raise invalid("embeddings", None, allowed)
        encoder, model = self.encoder, self.encoder_model
        return encode_texts(self.items.texts, encoder, model, seed=seed, log=log)

    def k_core(self, k: int) -> Dataset:
        """Without users and items of fewer than ``k`` interactions, repeatedly.

        Raises:
            ValueError: a number below 1, or nothing is left.
        """
        interactions, kept = k_core(self.interactions, k)
        language = None if self.language is None else self.language.select(kept)
        items = self.items.select(kept)
        return dataclasses.replace(self, interactions=interactions, items=items, language=language)


OPTIONS = tuple(
    name
    for name, parameter in inspect.signature(Dataset.read).parameters.items()
    if parameter.kind is parameter.KEYWORD_ONLY and name != "log"
)
"""The options of :meth:`Dataset.read`, which :func:`alphafuse_ext.fit` takes as well."""
