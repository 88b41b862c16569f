"""Language embeddings from item texts, by a sentence encoder or by TF-IDF."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from alphafuse_ext.checks import invalid, listed
from alphafuse_ext.data.embeddings import LanguageEmbeddings
from alphafuse_ext.data.terms import is_unspaced
from alphafuse_ext.logs import Log, logged

if TYPE_CHECKING:
    from alphafuse_ext.data.tfidf import Tfidf

ENCODERS = ("auto", "sentence-transformers", "tfidf")
DEFAULT_MODEL = "sentence-transformers/all-MiniLM-L6-v2"


def encode_texts(
    texts: Sequence[str],
    encoder: str = "auto",
    encoder_model: str | os.PathLike[str] | None = None,
    dim: int = 384,
    seed: int = 0,
    log: Log | None = None,
    *,
    encoder_revision: str | None = None,
    fitted: Tfidf | None = None,
) -> LanguageEmbeddings:
    """Encode item texts.

    Args:
        texts: `N` strings; "" where an item has no text.
        encoder: "sentence-transformers"; "tfidf" (TF-IDF of words and word pairs, in scripts
            without spaces of one to three characters, reduced by a truncated SVD); or "auto": the
            first if it is installed and its model is available, else the second, with a log line.
        encoder_model: for sentence-transformers: the name or the local path of a model;
            default: all-MiniLM-L6-v2. A named model is never replaced by TF-IDF.
        dim: number of columns for TF-IDF (fewer if there are fewer texts or terms). Sentence
            encoders have their own.
        seed: of the truncated SVD.
        log: called with lines about the encoder used, and the number of items without text or, for
            TF-IDF, without a term shared with another item.
        encoder_revision: of a model that is fetched: a branch, a tag or a commit.
        fitted: with encoder="tfidf": use it instead of fitting.

    Returns:
        float32, shape `(N, d_l)`: unit rows, and a zero row for each item without text (for
        TF-IDF: without a word, or one that was `fitted`); `source` names encoder, model, its
        commit where it is known, and versions; `tfidf` is what was fitted.

    Raises:
        ValueError: unknown `encoder`, `dim` below 1, an `encoder_model` for TF-IDF, `fitted` for
            another, no text at all, or a model that cannot be loaded.
        TypeError: `texts` is not a list of strings.
        ImportError: sentence-transformers is requested and not installed.
    """
    log = logged(log)
    if encoder not in ENCODERS:
        raise invalid("encoder", repr(encoder), f"one of {ENCODERS}")
    if dim < 1:
        raise invalid("dim", dim, "dim >= 1")
    if encoder == "tfidf" and encoder_model is not None:
        raise invalid("encoder_model", encoder_model, "None with encoder='tfidf'")
    if fitted is not None and encoder != "tfidf":
        raise invalid("fitted", f"one, with encoder={encoder!r}", "None, or encoder='tfidf'")
    texts = listed("texts", texts, "strings")
    for number, text in enumerate(texts):
        if not isinstance(text, str):
            found = f"{text!r}, a {type(text).__name__}"
            raise invalid(f"texts[{number}]", found, "a string", TypeError)
    filled = np.array([bool(text.strip()) for text in texts], dtype=bool)
    if not filled.any() and fitted is None:
        raise invalid("texts", f"{len(texts)} texts, all of them empty", "at least one with words")
    written = [text for text, has_words in zip(texts, filled, strict=True) if has_words]

    tfidf = fitted
    if fitted is not None:
        rows, source, said = fitted.encode(written), {"encoder": "tfidf"}, "the TF-IDF of the run"
    elif encoder == "tfidf":
        tfidf, rows, source, said = _encode_tfidf(written, dim, seed, "asked for")
    else:
        try:
            sentence_encoder, where = _load_sentence_encoder(encoder_model, encoder_revision)
        except (ImportError, ValueError) as error:
            if encoder != "auto" or encoder_model is not None:
                raise
            tfidf, rows, source, said = _encode_tfidf(written, dim, seed, str(error))
        else:
            source = _describe_sentence_encoder(sentence_encoder, encoder_model)
            rows = np.asarray(sentence_encoder.encode(written, convert_to_numpy=True))
            said = f"sentence-transformers ({source['model']}), {where}"
    if log is not None:
        log(f"texts: {len(written):,} of {len(texts):,} encoded by {said}")
    embeddings = np.zeros((len(texts), rows.shape[1]), dtype=np.float32)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    embeddings[filled] = np.divide(rows, norms, out=np.zeros_like(rows), where=norms > 0)
    return LanguageEmbeddings(embeddings, {"from": "texts", **source}, tfidf=tfidf)


def _load_sentence_encoder(
    model: str | os.PathLike[str] | None, revision: str | None
) -> tuple[Any, str]:
    """The encoder, and where it came from: the disk, where it is, before the network is asked."""
    try:
        library = importlib.import_module("sentence_transformers")
    except ImportError as error:
        raise ImportError(f"sentence-transformers cannot be imported ({error})") from error
    name = str(model or DEFAULT_MODEL)
    given = {} if revision is None else {"revision": revision}
    # What a failed download or a damaged folder raises varies with the versions of three libraries.
    try:
        return library.SentenceTransformer(name, local_files_only=True, **given), "found on disk"
    except Exception as error:
        if os.path.exists(name):
            raise _not_loaded(name, f"{type(error).__name__}: {error}") from error
    hub = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    # The hub's own client tries again for minutes.
    if not _answers(hub):
        raise _not_loaded(name, f"not on disk; {hub} does not answer, or HF_HUB_OFFLINE is set")
    try:
        return library.SentenceTransformer(name, **given), "fetched"
    except Exception as error:
        raise _not_loaded(name, f"{type(error).__name__}: {error}") from error


def _not_loaded(name: str, why: str) -> ValueError:
    allowed = "a local path, or a model that is on disk or can be fetched"
    return invalid("encoder_model", f"{name}, which cannot be loaded ({why})", allowed)


_ANSWERS_WITHIN = 5.0


def _answers(url: str) -> bool:
    """Whether a server answers, with whatever, within seconds; by the environment's proxies."""
    import http.client
    import threading
    import urllib.error
    import urllib.request

    if os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"):
        return False
    found: list[bool] = []

    def ask() -> None:
        request = urllib.request.Request(url, method="HEAD")
        try:
            urllib.request.urlopen(request, timeout=_ANSWERS_WITHIN).close()
        except urllib.error.HTTPError:
            pass  # which is an answer
        except (OSError, ValueError, http.client.HTTPException):
            return
        found.append(True)

    asking = threading.Thread(target=ask, daemon=True)  # looking a name up knows no time limit
    asking.start()
    asking.join(_ANSWERS_WITHIN)
    return bool(found)


def _describe_sentence_encoder(
    encoder: Any, model: str | os.PathLike[str] | None
) -> dict[str, Any]:
    name = str(model or DEFAULT_MODEL)
    if os.path.exists(name):
        name = os.path.abspath(name)
    versions = {}
    for library in ("sentence-transformers", "transformers"):
        try:
            versions[library] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:  # imported from a path
            versions[library] = "unknown"
    source = {"encoder": "sentence-transformers", "model": name, "versions": versions}
    commit = _commit_of(encoder)
    return source if commit is None else {**source, "revision": commit}


def _commit_of(encoder: Any) -> str | None:
    """Of the model on the hub that was loaded, where transformers knows it."""
    try:
        return getattr(encoder[0].auto_model.config, "_commit_hash", None)
    except (AttributeError, IndexError, KeyError, TypeError):  # no transformer at its beginning
        return None


def _encode_tfidf(
    texts: list[str], dim: int, seed: int, reason: str
) -> tuple[Tfidf, npt.NDArray[np.float64], dict[str, Any], str]:
    """The encoder, its rows, `source` and what to log."""
    import sklearn  # slow to import, as is the module below

    from alphafuse_ext.data.tfidf import Tfidf

    tfidf, rows, terms = Tfidf.from_texts(texts, dim, seed)
    kinds = "words and word pairs"
    unspaced = sum(map(is_unspaced, texts))
    if unspaced:
        kinds += f", and 1 to 3 characters in {unspaced:,} texts of scripts without spaces"
    shared = terms[:, np.asarray((terms != 0).sum(axis=0)).ravel() > 1].getnnz(axis=1) > 0
    said = (
        f"TF-IDF of {terms.shape[1]:,} terms ({kinds}) and a truncated SVD to {rows.shape[1]} "
        f"columns ({reason}); {int((~shared).sum()):,} share no term with another"
    )
    source = {"encoder": "tfidf", "terms": kinds, "versions": {"scikit-learn": sklearn.__version__}}
    return tfidf, rows, source, said
