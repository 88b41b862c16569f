"""Inspection of a data set before any run, so that errors are found early."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from alphafuse_ext._version import __version__
from alphafuse_ext.checks import invalid
from alphafuse_ext.config import Config
from alphafuse_ext.data import Dataset as Data
from alphafuse_ext.data import encode_texts, read_embeddings
from alphafuse_ext.experiments.jobs import Job, state_of
from alphafuse_ext.experiments.spec import FILES, Comparison, Dataset, Search
from alphafuse_ext.files import check_writable, load_tensors, lock_folder, save_tensors
from alphafuse_ext.logs import Log

_MIB = 2**20
_KIND = "embeddings of texts"


@dataclass(frozen=True)
class KnownData:
    """Of a data set, what a run is given and what its settings are resolved by.

    Attributes:
        sources: arguments of :func:`alphafuse_ext.fit`; texts are encoded.
        num_items: N.
        embedding_dim: ``d_l``; ``None``: there are no embeddings, and no texts.
        content: see :func:`content_of`; of texts, also what encoded them.
        seen: as of a :class:`~alphafuse_ext.experiments.jobs.Job`.
        split: whether the data come with one.
    """

    sources: dict[str, Any]
    num_items: int
    embedding_dim: int | None
    content: str
    seen: dict[str, Any]
    split: bool = False

    def job(self, dataset: str, method: str, config: Config) -> Job:
        """A run on this data.

        Raises:
            ValueError: a setting that this data cannot have; it says of which method.
        """
        width = self.embedding_dim if config.embeds_language else None
        where = f"data.{dataset}, methods.{method}"
        if self.embedding_dim is None and config.needs_language:
            allowed = "embeddings, or items with a text column, for a method that reads language"
            raise invalid(where, "no language embeddings and no texts", allowed)
        try:
            if self.split and "protocol" not in config.given:
                config = config.replace(protocol="given")
            if self.sources.get("basket_column") and "baskets" not in config.given:
                config = config.replace(baskets=True)
            resolved = config.resolve(width, self.num_items)
            _check_split(resolved, width)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
        return Job(dataset, method, self.sources, resolved, self.content, self.seen)


def _check_split(config: Config, width: int | None) -> None:
    """Refuse, before a run does, a dimension that the language embeddings do not have."""
    reads = config.item_embedding in ("alphafuse", "llminit", "frozen")
    if reads and width is not None and config.dim is not None and config.dim > width:
        raise invalid("dim", config.dim, f"at most {width}, the language embeddings' dimension")


def inspect_data(
    dataset: Dataset, wanted: Comparison | Search, folder: Path, log: Log
) -> KnownData:
    """Read a data set once.

    Args:
        dataset: where it lies.
        wanted: what is to run; texts are encoded if any method reads language.
        folder: keeps what was encoded, once for all runs; it is held by this process.
        log: called with lines about the encoding.

    Raises:
        ValueError, TypeError, OSError: what :func:`alphafuse_ext.fit` would raise for it.
    """
    sources = dict(dataset.sources)
    seen = {name: state_of(sources[name]) for name in FILES if name in sources}
    data = Data.read(**sources, log=None)
    if data.dropped:
        counts = ", ".join(f"{count:,} {what}" for what, count in data.dropped.items())
        log(f"data.{dataset.name}: unknown items: dropped {counts}")
    split = data.interactions.parts is not None
    width = None if data.language is None else data.language.rows.shape[1]
    settings = [{**wanted.settings, **dataset.settings, **m.settings} for m in wanted.methods]
    reads_language = any(
        (one.get("item_embedding") != "id" and one.get("model") != "neighbors")
        or one.get("language_smoothing")
        for one in settings
    )
    texts = data.items.texts
    content = content_of(dataset.sources)
    if width is None and reads_language and texts is not None:
        encoder, model = sources.pop("encoder", "auto"), sources.pop("encoder_model", None)
        path, facts = _encoded(folder / "embeddings", texts, encoder, model, log)
        sources["embeddings"] = str(path)
        width = read_embeddings(path, data.items).rows.shape[1]
        content = _digest(content, facts)
    return KnownData(sources, len(data.items), width, content, seen, split)


def _encoded(
    folder: Path, texts: Sequence[str], encoder: str, model: str | None, log: Log
) -> tuple[Path, dict[str, Any]]:
    """A file of texts' embeddings, named by what they were made from and by, and what that was."""
    digest = hashlib.sha256()
    for text in texts:
        written = text.encode(errors="surrogatepass")
        digest.update(b"%d " % len(written) + written)
    if model is not None and os.path.exists(model):
        _add_files(digest, "model", Path(model))
    versions = _versions()
    by = {"encoder": encoder, "model": model, "versions": versions}
    made_of = {"texts": digest.hexdigest(), **by}
    path = folder / f"{_digest(made_of)}.safetensors"
    if path.exists():
        facts = dict(load_tensors(path, _KIND)[1])
        # Where the model was not to be had, it may be by now.
        in_its_place = facts["source"]["encoder"] == "tfidf" and encoder == "auto"
        if not (in_its_place and versions["sentence-transformers"]):
            log(f"texts: encoded before, in {path}")
            return path, facts
    found = encode_texts(texts, encoder, model, seed=0, log=log)
    facts = {"made_of": made_of, "source": found.source}
    save_tensors(path, _KIND, {"rows": torch.from_numpy(found.rows)}, facts)
    return path, facts


def _versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {"alphafuse_ext": __version__}
    for library in ("sentence-transformers", "transformers", "scikit-learn"):
        try:
            found[library] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            found[library] = None
    return found


def _digest(*facts: Any) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def content_of(sources: Mapping[str, Any]) -> str:
    """A digest of what sources hold and how they are read: the same wherever the files lie."""
    digest = hashlib.sha256()
    for name, value in sorted(sources.items()):
        if name in FILES:
            _add_files(digest, name, Path(value))
        else:
            digest.update(json.dumps([name, value]).encode())
    return digest.hexdigest()[:16]


def _add_files(digest: Any, name: str, path: Path) -> None:
    """The content of a file, or of a folder's files with their names in it."""
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if file.is_file():
            within = str(file.relative_to(path)) if path.is_dir() else ""
            digest.update(json.dumps([name, within, file.stat().st_size]).encode())
            with open(file, "rb") as opened:
                while chunk := opened.read(_MIB):
                    digest.update(chunk)


@contextmanager
def prepare(
    wanted: Comparison | Search,
    output: str | os.PathLike[str],
    log: Log,
    **counts: int,
) -> Iterator[tuple[Path, dict[str, KnownData]]]:
    """What comparisons and searches begin with: their folder, which is held, and data by name.

    Args:
        wanted: what is to run.
        output: the folder.
        log: as for :func:`inspect_data`.
        **counts: arguments that have to be at least 1, by name.

    Raises:
        ValueError, TypeError, OSError: invalid settings or data.
        BlockingIOError: another process puts runs on record there.
    """
    for name, value in counts.items():
        if value < 1:
            raise invalid(name, value, "an integer >= 1")
    folder = Path(output).absolute()
    check_writable("output", folder)
    with _held(folder):
        yield folder, {one.name: inspect_data(one, wanted, folder, log) for one in wanted.datasets}


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    """The folder, made; and gone again where nothing was put into it."""
    folder.mkdir(parents=True, exist_ok=True)
    with lock_folder(folder) as alone:
        if not alone:
            found = f"{folder}, where another process compares or tunes"
            allowed = "a folder of its own; --processes runs several at a time"
            raise invalid("output", found, allowed, BlockingIOError)
        try:
            yield
        finally:
            with suppress(OSError):
                folder.rmdir()
