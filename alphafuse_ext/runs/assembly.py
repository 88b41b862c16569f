"""Build split, item table and model from a configuration, for new and loaded runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from alphafuse_ext.checks import invalid
from alphafuse_ext.config import Config, own
from alphafuse_ext.config.item_embedding import ADAPTERS
from alphafuse_ext.config.neighbors import WEIGHTS
from alphafuse_ext.config.training import (
    TEST_SAMPLE,
    TESTED_UP_TO,
    VALIDATED_UP_TO,
    VALIDATION_SAMPLE,
)
from alphafuse_ext.data import Dataset, Interactions, Split, split_interactions
from alphafuse_ext.data._columns import first_few
from alphafuse_ext.data.split import with_samples
from alphafuse_ext.items.adapted_table import AdaptedTable, language_rows_for
from alphafuse_ext.items.adapters import make_adapter
from alphafuse_ext.items.initialization import init_id_embeddings
from alphafuse_ext.items.item_embeddings import ItemEmbeddings
from alphafuse_ext.items.language_neighbors import Neighbors
from alphafuse_ext.items.space import SemanticSpace
from alphafuse_ext.items.table import ItemTable
from alphafuse_ext.models import MODELS, SequenceModel
from alphafuse_ext.models.popularity import popularity_table


def with_given_split(config: Config, interactions: Interactions) -> Config:
    """The settings, whose protocol is by default the split that interactions come with."""
    if interactions.parts is None or "protocol" in config.given:
        return config
    return config.replace(protocol="given")


def in_baskets(config: Config, data: Dataset) -> tuple[Config, Dataset]:
    """The settings, with baskets where the data name a column of them; and the data, whose baskets
    are in one order."""
    if data.source.get("reading", {}).get("basket_column") and "baskets" not in config.given:
        config = config.replace(baskets=True)
    if not config.baskets:
        return config, data
    return config, dataclasses.replace(data, interactions=data.interactions.with_sorted_baskets())


def build_split(config: Config, interactions: Interactions) -> Split:
    """What ``config`` trains on and ranks, samples of users included."""
    of_protocol = config.of("protocol")
    if "split_seed" in of_protocol:
        of_protocol["seed"] = of_protocol.pop("split_seed")
    of_protocol["baskets"] = config.baskets
    split = split_interactions(interactions, config.protocol, **of_protocol)
    validation_users, test_users = config.validation_users, config.test_users
    if validation_users is None:
        many = len(np.unique(split.validation.users)) > VALIDATED_UP_TO
        validation_users = VALIDATION_SAMPLE if many else 0
    if test_users is None:
        users = len(np.unique(split.test.users))
        many = users > TEST_SAMPLE and users * interactions.num_items > TESTED_UP_TO
        test_users = TEST_SAMPLE if many else 0
    return with_samples(split, validation_users, test_users, config.seed)


def with_sample_sizes(config: Config, split: Split) -> Config:
    """The settings with the sizes of the samples of users that :func:`build_split` chose."""
    found = {
        name: split.report.get(f"{part}_sample_users", 0)
        for part in ("validation", "test")
        if getattr(config, name := f"{part}_users") is None
    }
    return config.replace(**found)


def item_weights(config: Config, item_counts: np.ndarray | None) -> np.ndarray | None:
    """What each item counts in mean and covariance of the language embeddings; ``None``: alike."""
    return item_counts if config.weights == "frequency" else None


def build_table(
    config: Config,
    num_items: int,
    language_embeddings: np.ndarray | None,
    item_counts: np.ndarray | None = None,
) -> tuple[ItemEmbeddings, SemanticSpace | None]:
    """The item embeddings that ``config`` describes, and the decomposition behind them, if any.

    Initial ID embeddings are drawn from torch's global generator.

    Args:
        config: settings, resolved.
        num_items: of the catalog.
        language_embeddings: ``(N, d_l)``; ``None`` where item embeddings are not made of them.
        item_counts: training interactions of each item, which some settings weigh by.
    """
    if not config.trained:
        assert item_counts is not None, "by which items are ranked that no list has"
        return popularity_table(torch.from_numpy(item_counts)), None
    assert config.dim is not None, "Config.resolve comes first"
    if language_embeddings is None:
        table = ItemTable.id_only(
            num_items,
            config.dim,
            init=config.init,
            init_scale=config.init_scale,
            sparse=config.sparse,
        )
        return table, None
    weights = item_weights(config, item_counts)
    if adapts(config):
        rows = language_rows_for(
            config.item_embedding,
            language_embeddings,
            config.scale,
            weights,
            config.whitening_groups or 1,
        )
        return _adapted_table(config, rows, weights), None
    space = SemanticSpace.from_embeddings(language_embeddings, scale=config.scale, weights=weights)
    if space.matrix_rank == 0:
        raise invalid("embeddings", "rows that are all alike", "rows that differ between items")
    rms = config.semantic_rms or None
    if config.item_embedding == "llminit":
        table = ItemTable.llm_init(
            space,
            language_embeddings,
            config.dim,
            standardize=config.standardize,
            semantic_rms=rms,
            sparse=config.sparse,
        )
    elif config.item_embedding == "frozen":
        table = ItemTable.frozen(
            space,
            language_embeddings,
            config.dim,
            standardize=config.standardize,
            semantic_rms=rms,
        )
    else:
        table = ItemTable.from_space(
            space,
            language_embeddings,
            dim=config.dim,
            null_dim=config.null_dim,
            null_threshold=config.null_threshold,
            fusion=config.fusion,
            standardize=config.standardize,
            coordinates=config.coordinates,
            space_split=config.space_split,
            space_split_power=config.space_split_power or 0.0,
            semantic_rms=rms,
            init=config.init,
            init_scale=config.init_scale,
            sparse=config.sparse,
        )
    return table, space


def _adapted_table(
    config: Config, language_rows: Tensor, weights: np.ndarray | None = None
) -> AdaptedTable:
    assert config.dim is not None, "Config.resolve comes first"
    adapter = make_adapter(
        config.item_embedding, language_rows.shape[1], **config.of("item_embedding")
    )
    own = None
    if config.item_embedding == "llm-esr":
        space = SemanticSpace.from_embeddings(language_rows, weights=weights, progress=False)
        width = config.dim // 2
        own = space.transform(language_rows, min(width, space.embedding_dim), progress=False)
        own = torch.nn.functional.pad(own, (0, width - own.shape[1]))
        if config.semantic_rms:
            own *= config.semantic_rms / own.square().mean().sqrt().clamp(min=1e-12)
    elif config.init is not None:
        own = init_id_embeddings(len(language_rows), config.dim, config.init, config.init_scale)
    return AdaptedTable(language_rows, adapter, own, config.dim)


def adapts(config: Config) -> bool:
    """Whether an adapter makes the item embeddings."""
    kind = config.item_embedding
    return config.trained and (kind in ADAPTERS or ":" in kind)


def build_model(
    config: Config,
    table: ItemEmbeddings,
    item_counts: np.ndarray | None = None,
    neighbors: Neighbors | None = None,
) -> SequenceModel:
    """The model that ``config`` describes, on ``table``.

    Args:
        config: settings.
        table: item embeddings.
        item_counts: training interactions of each item, which some settings train by.
        neighbors: of each item, which ``language_smoothing`` trains by.
    """
    name = config.model
    kind = own.find("model", name) if ":" in name else MODELS[name]
    of_ranking = ("neighbors", *WEIGHTS)
    given = {key: value for key, value in config.of("model").items() if key not in of_ranking}
    if item_counts is not None and config.negative_sampling not in (None, "uniform"):
        given["item_counts"] = torch.from_numpy(item_counts)
    if neighbors is not None and config.language_smoothing:
        given["neighbors"] = neighbors
    # What is None there is the model's own default.
    return kind(table, **{name: value for name, value in given.items() if value is not None})


def rebuild_model(
    config: Config,
    tensors: Mapping[str, Tensor],
    item_counts: np.ndarray | None = None,
    neighbors: Neighbors | None = None,
) -> SequenceModel:
    """The model with the tensors that a run folder holds.

    Args:
        config: of the run.
        tensors: all entries of the model's ``state_dict``, by name.
        item_counts, neighbors: as for :func:`build_model`.

    Raises:
        ValueError, LookupError: they are not those of such a model.
    """
    prefix = "table."
    own = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
    table: ItemEmbeddings
    if adapts(config):
        table = _adapted_table(config, own["language_rows"])
    else:
        table = ItemTable.from_state(own, config.sparse)
    model = build_model(config, table, item_counts, neighbors)
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if found != expected:
        differ = sorted({name for name, _ in found.items() ^ expected.items()})
        raise invalid("tensors", f"others of {first_few(differ)}", "those of the settings' model")
    model.load_state_dict(dict(tensors))
    return model
