"""Item-to-item neighbors of a run, with whose probabilities its model's softmax is mixed."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

import alphafuse_ext.ops as ops
from alphafuse_ext.checks import invalid
from alphafuse_ext.data import Sequences
from alphafuse_ext.files import link, load_tensors, read_json, reading, save_tensors, write_json
from alphafuse_ext.items.cooccurrence import Cooccurrence, Histories
from alphafuse_ext.items.language_neighbors import Language
from alphafuse_ext.items.neighbors import MOST, ItemNeighbors
from alphafuse_ext.items.sparse_lists import SparseLists

if TYPE_CHECKING:
    from alphafuse_ext.data.tfidf import TermWeights

LISTS_FILE = "item-neighbors"
ROWS_FILE = "item-neighbors-language"
TERMS_FILE = "item-neighbors-terms"
MIXTURE_FILE = "mixture.json"

EMBEDDINGS: dict[str, Any] = {"share": 0.4, "power": 6.0}
TERMS: dict[str, Any] = {"share": 0.6, "power": 2.0}
"""Shares and powers of the two kinds of language lists; one alone has share 1."""

TOGETHER, ALIKE = "bought together", "alike by text"
"""Which of the lists a recommendation comes from."""

_ROWS_KIND = "language embeddings"


@dataclass(frozen=True, eq=False)
class LanguageKept:
    """What neighbors by language are found by, kept for items that come later.

    Attributes:
        rows: language embeddings, shape (N, d_l); ``None``: there are no lists of them.
        terms: TF-IDF of the items' texts; ``None``: there are no lists of it.
    """

    rows: npt.NDArray[Any] | None = None
    terms: TermWeights | None = None

    @classmethod
    def load(cls, folder: Path) -> LanguageKept:
        rows = terms = None
        if (folder / f"{ROWS_FILE}.safetensors").is_file():
            with reading(folder / f"{ROWS_FILE}.safetensors"):
                rows = load_tensors(folder / ROWS_FILE, _ROWS_KIND)[0]["rows"].numpy()
        if (folder / f"{TERMS_FILE}.safetensors").is_file():
            from alphafuse_ext.data.tfidf import TermWeights  # scikit-learn is slow to import

            terms = TermWeights.load(folder / TERMS_FILE)
        return cls(rows, terms)

    def save(self, folder: Path) -> None:
        if self.rows is not None:
            rows = self.rows.astype(np.float32) if self.rows.itemsize > 4 else np.array(self.rows)
            save_tensors(folder / ROWS_FILE, _ROWS_KIND, {"rows": torch.from_numpy(rows)})
        if self.terms is not None:
            self.terms.save(folder / TERMS_FILE)


@dataclass(frozen=True, eq=False)
class RunNeighbors:
    """Neighbors of a run, and how much they count beside its model.

    ``p(item | history) = (1 - weight) softmax(score / temperature) + weight knn(item | history)``,
    see :class:`alphafuse_ext.ItemNeighbors` and :class:`alphafuse_ext.Mixture`.

    Attributes:
        neighbors: the lists; its ``language_weight`` is that of the run.
        language: what those by language were found by, or the run folder that keeps it.
        weight, temperature: ``None`` as long as they are not chosen.
    """

    neighbors: ItemNeighbors
    language: LanguageKept | Path
    weight: float | None = None
    temperature: float | None = None

    @classmethod
    def fit(
        cls,
        histories: Histories,
        num_items: int,
        rows: npt.NDArray[Any] | None,
        texts: list[str] | None,
        **options: Any,
    ) -> RunNeighbors:
        """Lists of training interactions, of language embeddings and of texts, where there are any.

        Args:
            histories: of the training users.
            num_items: N.
            rows: shape (N, d_l).
            texts: N.
            **options: of :class:`alphafuse_ext.ItemNeighbors`.
        """
        terms = term_rows = None
        if texts is not None and any(texts):
            from alphafuse_ext.data.tfidf import TermWeights  # scikit-learn is slow to import

            try:
                terms, term_rows = TermWeights.from_texts(list(texts))
            except ValueError:  # no term that two texts have: by it nothing is alike
                terms = None
        given = [(rows, EMBEDDINGS), (term_rows, TERMS)]
        found = [(some, how) for some, how in given if some is not None]
        language = [
            Language(some, **(how if len(found) > 1 else {**how, "share": 1.0}))
            for some, how in found
        ]
        lists = ItemNeighbors.from_histories(
            histories, num_items, language, Cooccurrence(), **options
        )
        return cls(lists, LanguageKept(rows, terms))

    @cached_property
    def kept(self) -> LanguageKept:
        """What language lists were found by, read where it is needed."""
        return (
            LanguageKept.load(self.language) if isinstance(self.language, Path) else self.language
        )

    @property
    def made_of(self) -> list[str]:
        """What the lists come from, in words."""
        names = ["co-occurrence"]
        kinds = self.neighbors.language
        names += ["language embeddings"] * any(kind.mean is not None for kind in kinds)
        return names + ["TF-IDF of the texts"] * any(kind.mean is None for kind in kinds)

    # --- another catalog, other interactions

    def with_histories(self, histories: Histories) -> RunNeighbors:
        """Counted anew, of all training interactions; weights are open again."""
        lists = self.neighbors.with_histories(histories)
        return dataclasses.replace(self, neighbors=lists, weight=None, temperature=None)

    def with_items(
        self, rows: npt.NDArray[Any] | None, texts: list[str] | None, count: int
    ) -> RunNeighbors:
        """With new items behind, which have language neighbors at once.

        Args:
            rows: language embeddings of the new ones.
            texts: of all items.
            count: how many are new.
        """
        total = self.neighbors.num_items + count
        kept, every, language = self.kept, None, []
        if kept.rows is not None:
            if rows is None:
                allowed = "those of the new items: by them the run's neighbors are found"
                raise invalid("embeddings", None, allowed)
            if rows.shape[1] != kept.rows.shape[1]:
                allowed = f"{kept.rows.shape[1]}, as those of the run"
                raise invalid("embeddings", f"{rows.shape[1]} columns", allowed)
            every = np.concatenate([kept.rows, rows.astype(kept.rows.dtype)])
            language.append(every)
        if kept.terms is not None:
            language.append(kept.terms.rows(list(texts or [""] * total)))
        if language:
            lists = self.neighbors.with_items(language)
        else:
            together = self.neighbors.together.extended(total)
            lists = dataclasses.replace(self.neighbors, num_items=total, together=together)
        return dataclasses.replace(
            self, neighbors=lists, language=dataclasses.replace(kept, rows=every)
        )

    def with_rows(self, rows: npt.NDArray[Any]) -> RunNeighbors:
        """With other language embeddings of the same items."""
        kept, old = self.kept, self.neighbors
        how = EMBEDDINGS if kept.terms is not None else {**EMBEDDINGS, "share": 1.0}
        nobody = Sequences([0], np.zeros(0, np.int64))
        fresh = ItemNeighbors.from_histories(nobody, old.num_items, [Language(rows, **how)])
        others = old.language if kept.rows is None else old.language[1:]
        others = tuple(dataclasses.replace(one, share=TERMS["share"]) for one in others)
        lists = dataclasses.replace(old, language=(*fresh.language, *others))
        return dataclasses.replace(
            self, neighbors=lists, language=dataclasses.replace(kept, rows=rows)
        )

    def weighted(self, weight: float, language_weight: float, temperature: float) -> RunNeighbors:
        """The same lists with weights."""
        lists = dataclasses.replace(self.neighbors, language_weight=language_weight)
        return dataclasses.replace(self, neighbors=lists, weight=weight, temperature=temperature)

    # --- files

    def save(self, folder: Path) -> None:
        """Write them into a run folder."""
        self.neighbors.save(folder / LISTS_FILE)
        if isinstance(self.language, Path):
            for name in (ROWS_FILE, TERMS_FILE):
                if (self.language / f"{name}.safetensors").is_file():
                    link(self.language / f"{name}.safetensors", folder / f"{name}.safetensors")
        else:
            self.language.save(folder)
        if self.weight is not None:
            self.save_weights(folder)

    def save_weights(self, folder: Path) -> None:
        """Write those alone."""
        write_json(folder / MIXTURE_FILE, self.weights())

    def weights(self) -> dict[str, float | None]:
        """As plain values, for JSON."""
        return {
            "weight": self.weight,
            "language_weight": self.neighbors.language_weight,
            "temperature": self.temperature,
        }

    @classmethod
    def load(cls, folder: Path) -> RunNeighbors | None:
        """Those of a run folder; ``None``: it has none.

        Raises:
            UnreadableFileError: a file is damaged.
        """
        if not (folder / f"{LISTS_FILE}.safetensors").is_file():
            return None
        found = cls(ItemNeighbors.load(folder / LISTS_FILE), folder)
        path = folder / MIXTURE_FILE
        if not path.is_file():
            return found
        with reading(path):
            weights = {name: float(value) for name, value in read_json(path).items()}
            if not 0 <= weights["weight"] < 1 or not weights["temperature"] > 0:
                raise ValueError(f"weights {weights}")
            return found.weighted(**weights)

    def add_to(self, digest: hashlib._Hash) -> None:
        """Everything that determines a ranking."""
        lists = self.neighbors
        facts = [self.weights(), lists.decay, lists.language_decay, lists.last]
        facts += [[kind.share, kind.power] for kind in lists.language]
        digest.update(json.dumps(facts).encode())
        for some in (lists.together, *(kind.cosines for kind in lists.language)):
            for array in (some.offsets, some.ids, some.values):
                digest.update(np.ascontiguousarray(array).data)

    # --- ranking

    def mixture(
        self,
        histories: Any,
        device: torch.device,
        exclude: Any = None,
        allowed: npt.NDArray[np.bool_] | Sequences | None = None,
    ) -> ops.Mixture:
        """What :func:`alphafuse_ext.topk` and ``target_ranks`` take, for each history.

        Args:
            histories: B.
            device: of the queries.
            exclude: B lists of ids that are not ranked.
            allowed: bool (N,), or B lists: the items that are ranked; ``None``: all.
        """
        assert self.weight is not None, "chosen"
        assert self.temperature is not None, "chosen with it"
        found: SparseLists = self.neighbors.probabilities(
            histories, exclude=exclude, most=MOST if allowed is None else None
        )
        if allowed is not None:
            found = _among(found, allowed, self.neighbors.num_items).best(MOST)
        # Of one neighbor alone the sum may be above 1 by rounding.
        arrays = found.ids.astype(np.int64), np.minimum(found.values, 1), found.offsets
        ids, values, offsets = (torch.from_numpy(array).to(device) for array in arrays)
        return ops.Mixture(ids, values, self.weight, self.temperature, offsets)

    def origins(
        self,
        histories: Any,
        ids: npt.NDArray[np.int64],
        values: Tensor,
        mixture: ops.Mixture | None,
        of_model: str,
    ) -> npt.NDArray[Any]:
        """Where recommendations come from: what has the largest part in their probability.

        Args:
            histories: B.
            ids: shape (B, k); -1 for none.
            values: their log probabilities.
            mixture: of the histories.
            of_model: what the others come from.

        Returns:
            Strings, shape (B, k): of the model, or of the lists, by the larger part of these.
        """
        total = self.neighbors.num_items
        assert mixture is not None, "ranked with"
        assert mixture.offsets is not None, "lists end to end"
        assert self.weight is not None, "chosen"
        offsets, listed = mixture.offsets.cpu().numpy(), mixture.ids.cpu().numpy()
        keys = np.repeat(np.arange(len(ids)), np.diff(offsets)) * total + listed
        wanted = np.arange(len(ids))[:, None] * total + ids
        places = np.searchsorted(keys, wanted).clip(max=max(len(keys) - 1, 0))
        found = (ids >= 0) & (keys[places] == wanted if len(keys) else False)
        probabilities = np.zeros(ids.shape)
        probabilities[found] = mixture.probabilities.cpu().numpy()[places[found]]
        whole = values.double().exp().cpu().numpy()
        of_lists = found & (self.weight * probabilities > whole / 2)
        names = np.full(ids.shape, of_model, dtype=object)
        if of_lists.any():
            shares = self.neighbors.language_share(histories, np.where(of_lists, ids, -1))
            names[of_lists] = np.where(shares[of_lists] > 0.5, ALIKE, TOGETHER)
        return names


def _among(
    lists: SparseLists, allowed: npt.NDArray[np.bool_] | Sequences, num_items: int
) -> SparseLists:
    """Those of listed items that are allowed."""
    rows = lists.rows
    if isinstance(allowed, np.ndarray):
        kept = allowed[lists.ids]
    else:
        own = np.repeat(np.arange(len(allowed)), allowed.lengths) * num_items + allowed.values
        kept = np.isin(rows * num_items + lists.ids, own)
    counts = np.bincount(rows[kept], minlength=len(lists))
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    return SparseLists(offsets, lists.ids[kept], lists.values[kept])
