"""Changing the catalog of a trained model: new items, and another text encoder.

Nothing is trained here, and runs are not modified: changes return new tables.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from alphafuse_ext.checks import invalid
from alphafuse_ext.config import Config
from alphafuse_ext.data import (
    Dataset,
    Interactions,
    Items,
    LanguageEmbeddings,
    Source,
    Split,
    encode_texts,
)
from alphafuse_ext.data.embeddings import EmbeddingSource
from alphafuse_ext.data.ids import IdIndex
from alphafuse_ext.data.reading import Reading
from alphafuse_ext.evaluation.run_neighbors import RunNeighbors
from alphafuse_ext.items.adapted_table import AdaptedTable, language_rows_for
from alphafuse_ext.items.item_embeddings import ItemEmbeddings
from alphafuse_ext.items.language_neighbors import Neighbors
from alphafuse_ext.items.likeness import check_model, check_norms
from alphafuse_ext.items.projection import SemanticProjection, aligned
from alphafuse_ext.items.space import SemanticSpace
from alphafuse_ext.items.table import ItemTable
from alphafuse_ext.logs import Log
from alphafuse_ext.models import SequenceModel
from alphafuse_ext.runs.assembly import build_model, item_weights
from alphafuse_ext.runs.run_folder import ENCODER_FILE, RunFolder

WITHOUT_LANGUAGE = ("id", "rlmrec-contrastive", "rlmrec-generative")
"""Item embeddings that are ID embeddings alone, whatever they learn by."""

_FITTED_TO_THE_CATALOG = ("whitenrec", "whitenrec+")


def projection_of_start(
    config: Config, space: SemanticSpace, table: ItemTable, weights: np.ndarray | None
) -> SemanticProjection:
    """The projection of the language embeddings to the rows of an untrained table."""
    semantic, own = table.parts()
    rows = own if semantic is None else semantic
    assert rows is not None, "of language embeddings"
    return SemanticProjection.of_rows(space, rows, config.standardize, weights)


def projection_of_run(
    run: RunFolder, config: Config, split: Callable[[], Split]
) -> SemanticProjection | None:
    """How a run's language embeddings became semantic rows; ``None``: it has no such rows.

    Args:
        run, config: the run.
        split: gives what it trained on, which a run without users cannot say; asked of old folders.
    """
    record = run.source().get("projection")
    if record is None and not run.has("space.safetensors"):
        return None
    space = SemanticSpace.load(run.path / "space")
    if record is not None:
        return SemanticProjection(space, **record)
    # A folder of a version that kept no record, and so none that has been changed.
    start = run.model("start")[0]
    own = {k.removeprefix("table."): v for k, v in start.items() if k.startswith("table.")}
    weights = item_weights(config, split().train_item_counts(len(run.items())))
    return projection_of_start(config, space, ItemTable.from_state(own), weights)


def read_new_items(
    catalog: Items,
    items: Source | Dataset | None,
    embeddings: EmbeddingSource | None,
    run: RunFolder,
    encoded: dict[str, Any] | None,
    reading: Reading,
    *,
    skip_known: bool = False,
    log: Log | None = None,
) -> tuple[Items, LanguageEmbeddings | None]:
    """New items and their language embeddings, in one order.

    Args:
        catalog: what is there already.
        items, embeddings: as for :func:`alphafuse_ext.fit`; one of them may be ``None``; or a data
            set for both.
        run: whose encoder encodes texts.
        encoded: the record of its language embeddings.
        reading: how they are read.
        skip_known: leave out items that the catalog has; without, they are refused.
        log: called with lines about how files are read.

    Returns:
        Their embeddings are ``None`` where there are none and no texts either.
    """
    new: Items | None
    if isinstance(items, Dataset):
        new, language = items.items, items.language
    elif items is None and embeddings is None:
        raise invalid("items, embeddings", "None for both", "one of them, or both")
    else:
        if embeddings is None and encoded is not None:
            _check_encodes(run, encoded)
        new, language = reading.catalog(items, embeddings, log)
    assert new is not None, "one of the two brings them"
    known = IdIndex(catalog.tokens).find("items", new.tokens) >= 0
    if skip_known:
        index = np.flatnonzero(~known)
        new = new.select(index)
        language = None if language is None else language.select(index)
    elif known.any():
        catalog.extended(new)  # which refuses them, before anything is encoded
    if language is None and encoded is not None and len(new):
        _check_encodes(run, encoded)
        language = _encode(new, run, encoded, log)
    return new, language


def _check_encodes(run: RunFolder, encoded: dict[str, Any]) -> None:
    """Refuse a run whose language embeddings are of no encoder, or of one that it has not kept."""
    allowed = "those of the new items, of the same model"
    if encoded["from"] != "texts":
        what = encoded["from"]
        found = f"None, of a run whose language embeddings are from {what}"
        raise invalid("embeddings", found, allowed)
    if encoded.get("model_was_local"):
        found = f"None, of a run whose encoder was a folder {encoded['model']!r} of another machine"
        raise invalid("embeddings", found, allowed)
    if encoded["encoder"] == "tfidf" and not run.has(f"{ENCODER_FILE}.safetensors"):
        found = "None, of a run of an earlier version, which has not kept its TF-IDF"
        raise invalid("embeddings", found, "a run that was trained by this version or later")


def _encode(
    items: Items, run: RunFolder, encoded: dict[str, Any], log: Log | None
) -> LanguageEmbeddings:
    """By the run's own encoder."""
    if items.texts is None:
        raise invalid("items", "no texts, and no embeddings", "one of them, of the new items")
    kept: dict[str, Any] = {
        "encoder_revision": encoded.get("revision"),
        "fitted": run.encoder(),
    }
    return encode_texts(items.texts, encoded["encoder"], encoded.get("model"), log=log, **kept)


def check_takes_new_items(config: Config, neighbors: RunNeighbors | None = None) -> None:
    """Refuse a run whose items have no embeddings without clicks.

    Args:
        config: of the run.
        neighbors: of the run, where it has no model.

    Raises:
        ValueError: neither its item embeddings nor its neighbors are made of language.
        NotImplementedError: its language rows were whitened by the catalog as it was.
    """
    kind = config.item_embedding
    found = f"new items, in a run of item_embedding={kind}"
    allowed = "are of language: nothing else places an item without clicks"
    if kind in WITHOUT_LANGUAGE:
        raise invalid("items", found, f"a run whose item embeddings {allowed}")
    if not config.trained and neighbors is not None and not neighbors.neighbors.language:
        found = "new items, in a run of neighbors by co-occurrence alone"
        raise invalid("items", found, f"a run whose neighbors {allowed}")
    if kind in _FITTED_TO_THE_CATALOG:
        allowed = "another: its whitening is not kept"
        raise invalid("items", found, allowed, NotImplementedError)


def check_takes_new_embeddings(config: Config) -> None:
    """Refuse a run under whose model language embeddings cannot be replaced.

    Raises:
        NotImplementedError: its item embeddings do not keep language and ID apart.
    """
    kind = config.item_embedding
    if kind not in ("alphafuse", "frozen"):
        found = f"a run of item_embedding={kind}" if config.trained else "a run without a model"
        allowed = "alphafuse or frozen: others mix the two, or have one of them only"
        raise invalid("run", found, allowed, NotImplementedError)
    if config.coordinates == "projected":
        found = "a run of coordinates=projected"
        raise invalid("run", found, "singular or original coordinates", NotImplementedError)


def table_with_items(
    config: Config,
    table: ItemEmbeddings,
    projection: SemanticProjection | None,
    language: LanguageEmbeddings,
    any_embeddings: bool = False,
) -> ItemEmbeddings:
    """A table with new items appended: semantic rows, and zero ID embeddings.

    Args:
        config: of the run.
        table: of the trained model.
        projection: how its semantic rows were made.
        language: of the new items.
        any_embeddings: do not check whether they are of the run's model.

    Raises:
        ValueError, NotImplementedError: embeddings of another width, or that look like another
            model's; as :func:`check_takes_new_items`.
    """
    check_takes_new_items(config)
    if isinstance(table, AdaptedTable):
        given = language_rows_for(config.item_embedding, language.rows, config.scale)
        if given.shape[1] != table.language_rows.shape[1]:
            found = f"{language.rows.shape[1]} columns"
            allowed = f"{table.language_rows.shape[1]} columns, as the run's language embeddings"
            raise invalid("embeddings", found, allowed)
        space = SemanticSpace.from_embeddings(table.language_rows, progress=False)
        check_alike(space, given.numpy(), any_embeddings)
        return table.extended(given)
    assert projection is not None, "of a table with language embeddings"
    rows = projection.rows(language.rows)
    check_alike(projection.space, language.rows, any_embeddings)
    return table.extended(rows)


def check_alike(space: SemanticSpace, rows: np.ndarray, any_embeddings: bool) -> None:
    """Refuse embeddings of another scale and, by default, of another model."""
    check_norms("embeddings", space, rows)
    if not any_embeddings:
        check_model("embeddings", space, rows)


def model_with_table(
    config: Config,
    model: SequenceModel,
    table: ItemEmbeddings,
    item_counts: np.ndarray | None = None,
    neighbors: Neighbors | None = None,
) -> SequenceModel:
    """A copy of a model on another table, in evaluation mode, where the model is."""
    device = model.device
    changed = build_model(config, table, item_counts, neighbors)
    changed.load_state_dict(
        {
            **changed.state_dict(),
            **{k: v for k, v in model.state_dict().items() if not k.startswith("table.")},
        }
    )
    return changed.to(device).eval()


def table_with_embeddings(
    config: Config,
    table: ItemEmbeddings,
    language: LanguageEmbeddings,
    weights: np.ndarray | None,
) -> tuple[ItemTable, SemanticProjection, dict[str, float]]:
    """A table on the language embeddings of another model, under an unchanged sequence encoder.

    The space is fitted again. New semantic rows are rotated to match the old ones (Procrustes, over
    all items), since the sequence encoder was trained on those coordinates; ID embeddings are
    rotated back and projected onto the new null space. With ``"concat"`` the rotation is of the
    semantic columns alone, and ID embeddings stay as they are.

    Returns:
        The table, how its semantic rows were made, and ``semantic_fit``, the share of the old
        semantic rows' squares that new ones reach, and ``id_kept``, that of the ID embeddings.

    Raises:
        NotImplementedError: item embeddings in which language and ID are not apart.
        ValueError: language embeddings narrower than the semantic rows, or as :func:`fit`.
    """
    check_takes_new_embeddings(config)
    assert isinstance(table, ItemTable), "of alphafuse or frozen"
    semantic, own = (None if part is None else part.detach() for part in table.parts())
    assert semantic is not None, "of alphafuse or frozen"
    dim = semantic.shape[1]
    space = SemanticSpace.from_embeddings(language.rows, scale=config.scale, weights=weights)
    if space.embedding_dim < dim:
        found = f"{space.embedding_dim} columns"
        raise invalid("embeddings", found, f"{dim} or more, as the run's semantic rows have")
    unscaled = SemanticProjection(space, dim, config.standardize, 1.0).rows(language.rows)
    factor = (_mean_square(semantic) / _mean_square(unscaled)) ** 0.5
    projection = SemanticProjection(space, dim, config.standardize, factor)
    rows = unscaled.to(semantic.device) * factor
    rotation = aligned(rows, semantic)
    left = (rows @ rotation - semantic).square().sum() / semantic.square().sum()
    report = {"semantic_fit": 1.0 - float(left), "id_kept": 1.0}
    if own is not None and table.fusion == "concat":
        rotation = torch.block_diag(rotation, torch.eye(own.shape[1], device=rotation.device))
    elif own is not None:
        columns = own.shape[1]
        turned = own @ rotation[-columns:, -columns:].T
        report["id_kept"] = float(turned.square().sum() / own.square().sum().clamp(min=1e-30))
        own = turned
    old_map = table.coordinates_map if table.coordinates == "original" else None
    mapping = rotation if old_map is None else rotation @ old_map
    changed = ItemTable(rows, own, table.fusion, table.sparse, "original", mapping.contiguous())
    return changed, projection, report


def _mean_square(rows: Tensor) -> float:
    """Over items with text."""
    with_text = rows[rows.any(1)]
    return float(with_text.double().square().mean())


def with_items(interactions: Interactions, items: Items) -> Interactions:
    """The same interactions, with a larger catalog."""
    return dataclasses.replace(interactions, items=items.tokens)
