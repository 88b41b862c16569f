"""Language embeddings from item texts, by a sentence encoder or by TF-IDF."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import sklearn
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.utils.extmath import randomized_svd

from alphafuse_ext.checks import invalid, listed
from alphafuse_ext.data._columns import Log
from alphafuse_ext.data.embeddings import LanguageEmbeddings
from alphafuse_ext.data.terms import is_unspaced, terms_of

ENCODERS = ("auto", "sentence-transformers", "tfidf")
DEFAULT_MODEL = "sentence-transformers/all-MiniLM-L6-v2"

# Rarer terms than these tell hardly anything about similarity, and cost memory.
_MAX_TERMS = 200_000


def encode_texts(
    texts: Sequence[str],
    encoder: str = "auto",
    encoder_model: str | os.PathLike[str] | None = None,
    dim: int = 384,
    seed: int = 0,
    log: Log | None = None,
) -> LanguageEmbeddings:
    """Encode item texts.

    Args:
        texts: `N` strings; "" where an item has no text.
        encoder: "sentence-transformers"; "tfidf" (TF-IDF of words and word pairs, in scripts
            without spaces of one to three characters, reduced by a truncated SVD); or "auto": the
            first where it is installed and its model is to be had, else the second, and `log` is
            told why.
        encoder_model: for sentence-transformers: the name or the local path of a model;
            all-MiniLM-L6-v2 unless given. A model that was named is never replaced by TF-IDF.
        dim: number of columns for TF-IDF, fewer where there are fewer texts or terms. A sentence
            encoder has its own.
        seed: of the truncated SVD.
        log: told which encoder is used, and how many items have no text or, for TF-IDF, none that
            tells anything about another.

    Returns:
        float32, shape `(N, d_l)`: unit rows, and a zero row for each item without text (for
        TF-IDF: without a word); `source` names encoder, model and versions.

    Raises:
        ValueError: unknown `encoder`, `dim` below 1, an `encoder_model` for TF-IDF, no text at
            all, or a model that cannot be loaded.
        TypeError: `texts` is no list of strings.
        ImportError: sentence-transformers asked for and not installed.
    """
    if encoder not in ENCODERS:
        raise invalid("encoder", repr(encoder), f"one of {ENCODERS}")
    if dim < 1:
        raise invalid("dim", dim, "dim >= 1")
    if encoder == "tfidf" and encoder_model is not None:
        raise invalid("encoder_model", encoder_model, "None with encoder='tfidf'")
    texts = listed("texts", texts, "strings")
    for number, text in enumerate(texts):
        if not isinstance(text, str):
            found = f"{text!r}, a {type(text).__name__}"
            raise invalid(f"texts[{number}]", found, "a string", TypeError)
    filled = np.array([bool(text.strip()) for text in texts], dtype=bool)
    if not filled.any():
        raise invalid("texts", f"{len(texts)} texts, all of them empty", "at least one with words")
    written = [text for text, has_words in zip(texts, filled, strict=True) if has_words]

    if encoder == "tfidf":
        rows, source, said = _encode_tfidf(written, dim, seed, "asked for")
    else:
        try:
            sentence_encoder = _load_sentence_encoder(encoder_model)
        except (ImportError, ValueError) as error:
            if encoder != "auto" or encoder_model is not None:
                raise
            rows, source, said = _encode_tfidf(written, dim, seed, str(error))
        else:
            source = _describe_sentence_encoder(encoder_model)
            rows = np.asarray(sentence_encoder.encode(written, convert_to_numpy=True))
            said = f"sentence-transformers ({source['model']})"
    if log is not None:
        log(f"texts: {len(written):,} of {len(texts):,} encoded by {said}")
    embeddings = np.zeros((len(texts), rows.shape[1]), dtype=np.float32)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    embeddings[filled] = np.divide(rows, norms, out=np.zeros_like(rows), where=norms > 0)
    return LanguageEmbeddings(embeddings, {"from": "texts", **source})


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
        allowed = "a local path, or a model that can be fetched"
        raise invalid("encoder_model", found, allowed) from error


def _describe_sentence_encoder(model: str | os.PathLike[str] | None) -> dict[str, Any]:
    name = str(model or DEFAULT_MODEL)
    if os.path.exists(name):
        name = os.path.abspath(name)
    versions = {}
    for library in ("sentence-transformers", "transformers"):
        try:
            versions[library] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:  # imported from a path
            versions[library] = "unknown"
    return {"encoder": "sentence-transformers", "model": name, "versions": versions}


def _encode_tfidf(
    texts: list[str], dim: int, seed: int, reason: str
) -> tuple[npt.NDArray[np.float64], dict[str, Any], str]:
    """Rows, `source` and what to log."""
    vectorizer = TfidfVectorizer(analyzer=terms_of, sublinear_tf=True, max_features=_MAX_TERMS)
    try:
        terms = vectorizer.fit_transform(texts)
    except ValueError as error:
        raise invalid("texts", f"{len(texts)} texts without a single word", "words") from error
    columns = min(dim, *terms.shape)
    # TruncatedSVD is this call behind a check that refuses a single term.
    u, s, _ = randomized_svd(terms, n_components=columns, random_state=seed)

    kinds = "words and word pairs"
    unspaced = sum(map(is_unspaced, texts))
    if unspaced:
        kinds += f", and 1 to 3 characters in {unspaced:,} texts of scripts without spaces"
    shared = terms[:, np.asarray((terms != 0).sum(axis=0)).ravel() > 1].getnnz(axis=1) > 0
    said = (
        f"TF-IDF of {terms.shape[1]:,} terms ({kinds}) and a truncated SVD to {columns} columns "
        f"({reason}); {int((~shared).sum()):,} share no term with another"
    )
    source = {"encoder": "tfidf", "terms": kinds, "versions": {"scikit-learn": sklearn.__version__}}
    return u * s, source, said
