"""Language embeddings from item texts, by a sentence encoder or by TF-IDF."""

from __future__ import annotations

import importlib
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.utils.extmath import randomized_svd

from alphafuse_ext.checks import invalid
from alphafuse_ext.data._tables import Log

ENCODERS = ("auto", "sentence-transformers", "tfidf")
DEFAULT_MODEL = "sentence-transformers/all-MiniLM-L6-v2"

# Rarer terms than these tell hardly anything about similarity, and cost memory.
_MAX_TERMS = 200_000


def encode_texts(
    texts: Sequence[str],
    encoder: str = "auto",
    model: str | os.PathLike[str] | None = None,
    dim: int = 384,
    seed: int = 0,
    log: Log | None = None,
) -> npt.NDArray[np.float32]:
    """Encode item texts.

    Args:
        texts: `N` strings; "" where an item has no text.
        encoder: "sentence-transformers"; "tfidf" (TF-IDF of words and word pairs, reduced by a
            truncated SVD); or "auto": the first where it is installed and its model is to be had,
            else the second, and `log` is told why.
        model: for sentence-transformers: the name or the local path of a model; all-MiniLM-L6-v2
            unless given. A model that was named is never replaced by TF-IDF.
        dim: number of columns for TF-IDF, fewer where there are fewer texts or terms. A sentence
            encoder has its own.
        seed: of the truncated SVD.
        log: told which encoder is used.

    Returns:
        float32, shape `(N, d_l)`: unit rows, and a zero row for each item without text (for
        TF-IDF: without a word).

    Raises:
        ValueError: unknown `encoder`, `dim` below 1, a `model` for TF-IDF, no text at all, or a
            model that cannot be loaded.
        ImportError: sentence-transformers asked for and not installed.
    """
    if encoder not in ENCODERS:
        raise invalid("encoder", repr(encoder), f"one of {ENCODERS}")
    if dim < 1:
        raise invalid("dim", dim, "dim >= 1")
    if encoder == "tfidf" and model is not None:
        raise invalid("model", model, "None with encoder='tfidf'")
    filled = np.array([bool(text.strip()) for text in texts], dtype=bool)
    if not filled.any():
        raise invalid("texts", f"{len(texts)} texts, all of them empty", "at least one with words")
    written = [text for text, has_words in zip(texts, filled, strict=True) if has_words]

    if encoder == "tfidf":
        rows = _encode_tfidf(written, dim, seed, "asked for", log)
    else:
        try:
            sentence_encoder = _load_sentence_encoder(model)
        except (ImportError, ValueError) as error:
            if encoder != "auto" or model is not None:
                raise
            rows = _encode_tfidf(written, dim, seed, str(error), log)
        else:
            if log is not None:
                name = model or DEFAULT_MODEL
                log(f"texts: {len(written):,} encoded by sentence-transformers ({name})")
            rows = np.asarray(sentence_encoder.encode(written, convert_to_numpy=True))
    embeddings = np.zeros((len(texts), rows.shape[1]), dtype=np.float32)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    embeddings[filled] = np.divide(rows, norms, out=np.zeros_like(rows), where=norms > 0)
    return embeddings


def _load_sentence_encoder(model: str | os.PathLike[str] | None) -> Any:
    try:
        library = importlib.import_module("sentence_transformers")
    except ImportError as error:
        raise ImportError(f"sentence-transformers cannot be imported ({error})") from error
    name = str(model or DEFAULT_MODEL)
    try:
        return library.SentenceTransformer(name)
    # What a failed download or a damaged folder raises varies with the versions of three libraries.
    except Exception as error:
        found = f"{name}, which cannot be loaded ({type(error).__name__}: {error})"
        raise invalid("model", found, "a local path, or a model that can be fetched") from error


def _encode_tfidf(
    texts: list[str], dim: int, seed: int, reason: str, log: Log | None
) -> npt.NDArray[np.float64]:
    vectorizer = TfidfVectorizer(
        ngram_range=(1, 2),
        sublinear_tf=True,
        max_features=_MAX_TERMS,
        # Scikit-learn's own pattern drops words of one character.
        token_pattern=r"(?u)\b\w+\b",
    )
    try:
        terms = vectorizer.fit_transform(texts)
    except ValueError as error:
        raise invalid("texts", f"{len(texts)} texts without a single word", "words") from error
    columns = min(dim, *terms.shape)
    # TruncatedSVD is this call behind a check that refuses a single term.
    u, s, _ = randomized_svd(terms, n_components=columns, random_state=seed)
    if log is not None:
        log(
            f"texts: {len(texts):,} encoded by TF-IDF of {terms.shape[1]:,} terms and a truncated "
            f"SVD to {columns} columns ({reason})"
        )
    return u * s
