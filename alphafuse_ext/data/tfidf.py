"""TF-IDF of a catalog's texts, reduced by a truncated SVD, which encodes the texts of new items."""

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
    def fit(
        cls, texts: list[str], dim: int, seed: int
    ) -> tuple[Self, npt.NDArray[np.float64], csr_matrix]:
        """The encoder, the fitted texts' rows, and the weights of their terms.

        Args:
            texts: strings, at least one of them with a word.
            dim: columns, fewer where there are fewer texts or terms.
            seed: of the SVD.
        """
        vectorizer = TfidfVectorizer(analyzer=terms_of, sublinear_tf=True, max_features=_MAX_TERMS)
        try:
            weights = vectorizer.fit_transform(texts)
        except ValueError as error:
            found = f"{len(texts)} texts without a single word"
            raise invalid("texts", found, "words") from error
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
        vectorizer = TfidfVectorizer(analyzer=terms_of, sublinear_tf=True, vocabulary=self.terms)
        vectorizer.idf_ = self.idf
        return self._rows(vectorizer.transform(texts))

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
