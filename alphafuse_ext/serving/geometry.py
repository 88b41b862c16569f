"""How well a trained run preserves the geometry of the language embeddings."""

from __future__ import annotations

import os
from typing import Any

import torch

from alphafuse_ext.checks import invalid
from alphafuse_ext.data import LanguageEmbeddings, encode_texts, read_embeddings
from alphafuse_ext.data.embeddings import ROWS_BY_NUMBER, ROWS_IN_ORDER, EmbeddingSource
from alphafuse_ext.files import write_json
from alphafuse_ext.items.geometry import FloatArray, distance_survival, plot_maps
from alphafuse_ext.items.item_embeddings import ItemEmbeddings
from alphafuse_ext.serving.recommender import Recommender


def write_geometry(
    run: str | os.PathLike[str],
    embeddings: EmbeddingSource | None = None,
    ids_are_rows: bool = False,
    seed: int = 0,
) -> dict[str, Any]:
    """Write ``geometry.json`` and ``geometry.png`` into the folder of a run.

    Args:
        run: the folder of a run with one finished epoch or more.
        embeddings: the language embeddings of the run, as for :func:`alphafuse_ext.fit`; default:
            the run's own file, or the catalog's texts, encoded again.
        ids_are_rows: of ``embeddings``, as for :func:`alphafuse_ext.fit`.
        seed: of the sampled pairs and the map.

    Returns:
        The content of ``geometry.json``: ``rank_correlation`` of each part, see
        :func:`alphafuse_ext.items.geometry.distance_survival`; what ``embeddings`` were; ``seed``.

    Raises:
        ValueError: no embeddings to compare with, or others than the run was trained with; a run
            without item embeddings.
        OSError: the folder or the file of embeddings cannot be read.
    """
    recommender = Recommender.load(run, "cpu")
    if not recommender.config.trained:
        raise invalid("run", "a run without a model", "one that has item embeddings")
    trained_with = recommender.run.source()["embeddings"]
    if embeddings is not None:
        language = read_embeddings(embeddings, recommender.items, ids_are_rows)
    else:
        language = embeddings_of(recommender, trained_with)
    found = language.record()
    if trained_with is not None and found["sha256"] != trained_with["sha256"]:
        raise invalid(
            "embeddings", f"others ({found['from']}) than the run was trained with", "the same"
        )
    if trained_with is not None and embeddings is None:
        found = trained_with  # the same, and what encoded them in full
    parts = item_parts(recommender.model.whole_table)
    survival = distance_survival(language.rows, parts, seed=seed)
    folder = recommender.run.path
    counts = recommender.split.train_item_counts(recommender.interactions.num_items)
    shown = {"language embeddings": language.rows, **parts}
    plot_maps(shown, counts, "training clicks", survival, folder / "geometry.png", seed=seed)
    report = {"rank_correlation": survival, "embeddings": found, "seed": seed}
    write_json(folder / "geometry.json", report)
    return report


def item_parts(table: ItemEmbeddings) -> dict[str, FloatArray]:
    """The fused rows of a table and their parts, by name, ``(N, any)`` each."""
    with torch.inference_mode():
        device = next(iter(table.state_dict().values())).device
        ids = torch.arange(table.num_embeddings, device=device)
        parts = {"fused rows": table(ids).float().cpu().numpy()}
    for name, rows in zip(("semantic part", "ID part"), table.parts(), strict=True):
        if rows is not None:
            parts[name] = rows.detach().float().cpu().numpy()
    return parts


def embeddings_of(recommender: Recommender, record: dict[str, Any] | None) -> LanguageEmbeddings:
    """The language embeddings on the run's record, read or encoded again."""
    items = recommender.items
    if record is not None and record["from"] == "texts":
        assert items.texts is not None, "a run on texts keeps them"
        seed = recommender.config.seed
        kept: dict[str, Any] = {
            "encoder_revision": record.get("revision"),
            "fitted": recommender.run.encoder(),
        }
        return encode_texts(items.texts, record["encoder"], record.get("model"), seed=seed, **kept)
    if record is None or not os.path.exists(record["from"]):
        where = "none" if record is None else record["from"]
        found = f"none, and the run was made from {where}"
        raise invalid("embeddings", found, "the language embeddings of the run")
    if recommender.config.k_core > 1 and record["rows"] == ROWS_IN_ORDER:
        raise invalid(
            "embeddings",
            f"none, and the run was made from {record['from']}, in the order of the catalog before "
            f"k_core={recommender.config.k_core} took items out",
            "the same by item id: Parquet, .npz or .safetensors",
        )
    return read_embeddings(record["from"], items, record["rows"] == ROWS_BY_NUMBER)
