"""TF-IDF of a catalog's texts, as it is or reduced by a truncated SVD; encodes new texts, too."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.sparse import csr_matrix
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.utils.extmath import randomized_svd

from alphafuse_ext.checks import invalid
from alphafuse_ext.data.terms import terms_of
from alphafuse_ext.files import PathLike, load_tensors, reading, save_tensors

if TYPE_CHECKING:
    from typing_extensions import Self

# Rarer terms hardly contribute to similarity, and cost memory.
_MAX_TERMS = 200_000

# Beside the largest singular value: what is below is rounding, and no direction.
_NO_DIRECTION = 1e-6

_KIND = "Tfidf"
_TERMS_KIND = "TermWeights"


def _fit(texts: list[str], min_texts: int) -> tuple[TfidfVectorizer, csr_matrix]:
    """Terms that at least so many texts have, and their weights."""
    options = {"sublinear_tf": True, "max_features": _MAX_TERMS, "min_df": min_texts}
    vectorizer = TfidfVectorizer(analyzer=terms_of, **options)
    try:
        return vectorizer, vectorizer.fit_transform(texts)
    except ValueError as error:
        found = f"{len(texts)} texts without a single word"
        if min_texts > 1:
            found += f" that {min_texts} of them have"
        raise invalid("texts", found, "words") from error


def _weights(terms: list[str], idf: npt.NDArray[np.float64], texts: list[str]) -> csr_matrix:
    """Weights of known terms in any texts."""
    vectorizer = TfidfVectorizer(analyzer=terms_of, sublinear_tf=True, vocabulary=terms)
    vectorizer.idf_ = idf
    return vectorizer.transform(texts)


@dataclass(frozen=True, eq=False)
class TermWeights:
    """TF-IDF of words and word pairs as it is, sparse: for exact cosines of texts.

    Attributes:
        terms: in the order of the columns.
        idf: float64, shape `(terms,)`.
    """

    terms: list[str]
    idf: npt.NDArray[np.float64]

    @classmethod
    def from_texts(cls, texts: list[str], min_texts: int = 2) -> tuple[Self, csr_matrix]:
        """The weights of terms, and the rows of the fitted texts, as :meth:`rows` gives them.

        Args:
            texts: strings, of items without text empty ones.
            min_texts: leave out terms that fewer texts have, which say nothing of two texts.

        Raises:
            ValueError: no such term.
        """
        vectorizer, weights = _fit(texts, min_texts)
        terms = vectorizer.get_feature_names_out().tolist()
        return cls(terms, vectorizer.idf_), weights.astype(np.float32)

    def rows(self, texts: list[str]) -> csr_matrix:
        """Rows of any texts, float32, of norm 1 or of zeros, shape `(texts, terms)`."""
        return _weights(self.terms, self.idf, texts).astype(np.float32)

    def save(self, path: PathLike) -> None:
        """Write `path.safetensors` atomically."""
        save_tensors(path, _TERMS_KIND, {"idf": torch.tensor(self.idf)}, {"terms": self.terms})

    @classmethod
    def load(cls, path: PathLike) -> Self:
        """Load a file of :meth:`save`.

        Raises:
            FileNotFoundError: there is no such file.
            UnreadableFileError: it is damaged, or holds something else.
        """
        tensors, facts = load_tensors(path, _TERMS_KIND)
        with reading(path):
            terms, idf = list(facts["terms"]), tensors["idf"].numpy()
            if idf.shape != (len(terms),):
                raise ValueError(f"{len(terms)} terms, idf {idf.shape}")
        return cls(terms, idf)


@dataclass(frozen=True, eq=False)
class Tfidf:
    """What was fitted to texts: terms, their weights, and directions.

    Directions are sums of texts, ``texts.T @ loadings``: ``(terms, columns)`` numbers would be a
    hundred times as many as those of the texts. Where there are more texts than terms, they are
    kept as they are, and ``texts`` is ``None``.

    Attributes:
        terms: in the order of the columns of `texts`.
        idf: float64, shape `(terms,)`.
        texts: the weights of terms in the fitted texts, `(fitted texts, terms)`, sparse.
        loadings: float32, shape `(fitted texts, columns)`, or `(terms, columns)`.
    """

    terms: list[str]
    idf: npt.NDArray[np.float64]
    texts: csr_matrix | None
    loadings: npt.NDArray[np.float32]

    @classmethod
    def from_texts(
        cls, texts: list[str], dim: int, seed: int
    ) -> tuple[Self, npt.NDArray[np.float64], csr_matrix]:
        """The encoder, the fitted texts' rows, and the weights of their terms.

        Args:
            texts: strings, at least one of them with a word.
            dim: columns, fewer where there are fewer texts or terms.
            seed: of the SVD.
        """
        vectorizer, weights = _fit(texts, 1)
        columns = min(dim, *weights.shape)
        # TruncatedSVD is this call behind a check that refuses a single term.
        u, s, vt = randomized_svd(weights, n_components=columns, random_state=seed)
        kept = s > _NO_DIRECTION * s[0]
        by_text = weights.shape[0] <= weights.shape[1]
        loadings = vt.T * kept
        if by_text:
            loadings = u * np.divide(1.0, s, out=np.zeros_like(s), where=kept)
        fitted = cls(
            vectorizer.get_feature_names_out().tolist(),
            vectorizer.idf_,
            weights.tocsr() if by_text else None,
            loadings.astype(np.float32),
        )
        return fitted, fitted._rows(weights), weights

    def encode(self, texts: list[str]) -> npt.NDArray[np.float64]:
        """Rows of any texts, not normalized, `(n, columns)`: zeros without a known term."""
        return self._rows(_weights(self.terms, self.idf, texts))

    def _rows(self, weights: csr_matrix) -> npt.NDArray[np.float64]:
        if self.texts is not None:
            weights = weights @ self.texts.T
        return np.asarray(weights @ self.loadings.astype(np.float64))

    def save(self, path: PathLike) -> None:
        """Write `path.safetensors` atomically."""
        arrays: dict[str, Any] = {"idf": self.idf, "loadings": self.loadings}
        if self.texts is not None:
            arrays |= {
                "texts.weights": self.texts.data,
                "texts.terms": self.texts.indices.astype(np.int32),
                "texts.ends": self.texts.indptr[1:].astype(np.int64),
            }
        tensors = {name: torch.tensor(array) for name, array in arrays.items()}
        save_tensors(path, _KIND, tensors, {"terms": self.terms})

    @classmethod
    def load(cls, path: PathLike) -> Self:
        """Load a file of :meth:`save`.

        Raises:
            FileNotFoundError: the file does not exist.
            UnreadableFileError: it is damaged, or is not a valid encoder.
        """
        tensors, facts = load_tensors(path, _KIND)
        with reading(path):
            terms, idf = list(facts["terms"]), tensors["idf"].numpy()
            loadings, texts = tensors["loadings"].numpy(), None
            if "texts.weights" in tensors:
                parts = (tensors[f"texts.{name}"].numpy() for name in ("weights", "terms"))
                starts = np.concatenate([[0], tensors["texts.ends"].numpy()])
                texts = csr_matrix((*parts, starts), shape=(len(starts) - 1, len(terms)))
            rows = len(terms) if texts is None else texts.shape[0]
            if idf.shape != (len(terms),) or loadings.ndim != 2 or len(loadings) != rows:
                raise ValueError(f"{len(terms)} terms, idf {idf.shape}, loadings {loadings.shape}")
        return cls(terms, idf, texts, loadings)
