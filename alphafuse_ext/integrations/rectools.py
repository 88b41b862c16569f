"""RecTools: a model for its `fit`, `recommend` and `cross_validate`, and an item net of its SASRec.

>>> from alphafuse_ext.integrations.rectools import AlphaFuseModel
>>> model = AlphaFuseModel("embeddings.parquet", epochs=20, norm="post").fit(dataset)
>>> model.recommend(users, dataset, k=10, filter_viewed=True)
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from rectools import Columns
from rectools.dataset import Dataset
from rectools.dataset.dataset import DatasetSchema
from rectools.models.base import InternalRecoTriplet, ModelBase, ModelConfig
from rectools.models.nn.item_net import ItemNetBase
from rectools.types import InternalIdsArray
from torch import Tensor

from alphafuse_ext.checks import invalid
from alphafuse_ext.config import Config, layered
from alphafuse_ext.data import Interactions, Items, Sequences, read_embeddings
from alphafuse_ext.data.ids import Ids
from alphafuse_ext.deprecation import recorded_names
from alphafuse_ext.items.initialization import init_id_embeddings
from alphafuse_ext.items.space import SemanticSpace
from alphafuse_ext.items.table import ItemTable
from alphafuse_ext.serving.recommender import Recommender
from alphafuse_ext.training.train import fit


class AlphaFuseModelConfig(ModelConfig):
    """The config of :class:`AlphaFuseModel`."""

    embeddings: Any = None
    output: str | None = None
    device: str | None = None
    settings: dict[str, Any] = {}  # noqa: RUF012 - pydantic copies it


class AlphaFuseModel(ModelBase[AlphaFuseModelConfig]):
    """A recommender of this package as a RecTools model.

    It trains on all interactions of the dataset for ``epochs`` epochs, since RecTools itself holds
    out test data. ``protocol="leave-one-out"`` holds out the last two items of each user and uses
    the first of them for early stopping.

    Args:
        embeddings: language embeddings by external item id, of at least the dataset's items: see
            :func:`alphafuse_ext.data.read_embeddings`. ``None`` with ``item_embedding="id"``.
        output: the new run folder; ``None``: not kept.
        device: of the model, as for :func:`alphafuse_ext.fit`.
        verbose: above 0: print the log of :func:`alphafuse_ext.fit`.
        **settings: fields of :class:`alphafuse_ext.Config`; ``epochs`` is 30 by default.

    Attributes:
        recommender: the :class:`alphafuse_ext.Recommender`, once fitted.

    Raises:
        TypeError, ValueError: unknown or contradictory settings.
    """

    config_class = AlphaFuseModelConfig

    def __init__(
        self,
        embeddings: Any = None,
        output: str | Path | None = None,
        device: str | None = None,
        verbose: int = 0,
        **settings: Any,
    ) -> None:
        super().__init__(verbose=verbose)
        self.embeddings = embeddings
        self.output = None if output is None else str(output)
        self.device = device
        self.settings = layered({"protocol": "none", "epochs": 30}, settings)
        Config.from_dict(self.settings)
        self.recommender: Recommender | None = None

    def _get_config(self) -> AlphaFuseModelConfig:
        return AlphaFuseModelConfig(
            cls=type(self),
            embeddings=self.embeddings,
            output=self.output,
            device=self.device,
            settings=self.settings,
            verbose=self.verbose,
        )

    @classmethod
    def _from_config(cls, config: AlphaFuseModelConfig) -> AlphaFuseModel:
        return cls(
            config.embeddings,
            config.output,
            config.device,
            config.verbose,
            **recorded_names(config.settings),
        )

    def _fit(self, dataset: Dataset) -> None:
        items = pd.DataFrame({"item_id": _hot_items(dataset)})
        with tempfile.TemporaryDirectory() as scratch:
            self.recommender = fit(
                dataset.get_raw_interactions(),
                items,
                self.embeddings,
                self.output or Path(scratch) / "run",
                user_column=Columns.User,
                item_column=Columns.Item,
                time_column=Columns.Datetime,
                text_columns=[],
                device=self.device,
                log=print if self.verbose > 0 else None,
                **self.settings,
            )

    def _recommend_u2i(
        self,
        user_ids: InternalIdsArray,
        dataset: Dataset,
        k: int,
        filter_viewed: bool,
        sorted_item_ids_to_recommend: InternalIdsArray | None,
    ) -> InternalRecoTriplet:
        recommender = self._fitted
        frame = recommender.recommend(
            histories=_histories(dataset, np.asarray(user_ids)),
            k=min(k, len(recommender.items)),
            keep_seen=not filter_viewed,
            only=_external(dataset, sorted_item_ids_to_recommend),
        )
        items = dataset.item_id_map.convert_to_internal(frame["item"])
        return frame["user"].to_numpy(), items, frame["score"].to_numpy()

    def _recommend_i2i(
        self,
        target_ids: InternalIdsArray,
        dataset: Dataset,
        k: int,
        sorted_item_ids_to_recommend: InternalIdsArray | None,
    ) -> InternalRecoTriplet:
        """By cosine of the fused embeddings; RecTools removes the item itself on request."""
        recommender = self._fitted
        frame = recommender.recommend_to_items(
            dataset.item_id_map.convert_to_external(target_ids),
            k=min(k, len(recommender.items)),
            only=_external(dataset, sorted_item_ids_to_recommend),
        )
        targets = dataset.item_id_map.convert_to_internal(frame["target_item"])
        items = dataset.item_id_map.convert_to_internal(frame["item"])
        found = pd.DataFrame({"target": targets, "item": items, "score": frame["score"]})
        own = np.asarray(target_ids)
        if sorted_item_ids_to_recommend is not None:
            own = own[np.isin(own, sorted_item_ids_to_recommend)]
        itself = pd.DataFrame({"target": own, "item": own, "score": np.float32(1)})
        found = pd.concat([itself, found]).groupby("target", sort=False).head(k)
        order = pd.Series(np.arange(len(target_ids)), index=target_ids)
        found = found.iloc[np.argsort(order[found["target"]].to_numpy(), kind="stable")]
        return found["target"].to_numpy(), found["item"].to_numpy(), found["score"].to_numpy()

    @property
    def _fitted(self) -> Recommender:
        assert self.recommender is not None, "RecTools asks fitted models only"
        return self.recommender


class AlphaFuseItemNet(ItemNetBase):
    """Fused item embeddings as an item net of RecTools' transformers.

        >>> SASRecModel(
        ...     item_net_block_types=(AlphaFuseItemNet,),
        ...     item_net_constructor_kwargs={"embeddings": "embeddings.parquet", "null_dim": 64},
        ... )

    RecTools needs the table of all embeddings, which is computed at every step.

    Args:
        table: of the items, without RecTools' special tokens such as padding.
        num_tokens: number of special tokens before the items.
    """

    def __init__(self, table: ItemTable, num_tokens: int) -> None:
        super().__init__()
        self.table = table
        self.num_tokens = num_tokens

    @classmethod
    def from_dataset(
        cls,
        dataset: Dataset,
        n_factors: int,
        dropout_rate: float = 0.0,
        embeddings: Any = None,
        num_tokens: int = 1,
        **options: Any,
    ) -> AlphaFuseItemNet:
        """The item net for a dataset processed by a RecTools transformer.

        Args:
            dataset: its first ``num_tokens`` items are special tokens.
            n_factors: the embedding dimension.
            dropout_rate: unused: RecTools applies dropout to the inputs of its encoder.
            embeddings: language embeddings by external item id.
            num_tokens: 1 for SASRec, 2 for BERT4Rec.
            **options: as for :meth:`alphafuse_ext.ItemTable.from_space`.

        Raises:
            TypeError, ValueError: no embeddings, or what :func:`read_embeddings` refuses.
        """
        if embeddings is None:
            allowed = "language embeddings by item id, in item_net_constructor_kwargs"
            raise invalid("embeddings", None, allowed)
        tokens = _plain(dataset.item_id_map.external_ids[num_tokens:])
        language = read_embeddings(embeddings, Items(tokens, None, None)).rows
        space = SemanticSpace.from_embeddings(language, progress=False)
        table = ItemTable.from_space(space, language, n_factors, progress=False, **options)
        return cls(table, num_tokens)

    @classmethod
    def from_dataset_schema(
        cls,
        dataset_schema: DatasetSchema,
        n_factors: int,
        dropout_rate: float = 0.0,
        null_dim: int | None = None,
        num_tokens: int = 1,
        fusion: str = "add",
        **options: Any,
    ) -> AlphaFuseItemNet:
        """The item net of the same shape, for loading a checkpoint; requires ``null_dim``."""
        coordinates = options.get("coordinates", "singular")
        if (
            null_dim is None
            or coordinates != "singular"
            or options.get("space_split", "hard") != "hard"
        ):
            found = f"null_dim={null_dim}, {options}"
            raise invalid("options", found, "null_dim, a hard split and singular coordinates")
        rows = dataset_schema.items.n_hot - num_tokens
        semantic = torch.zeros(rows, n_factors if fusion == "add" else n_factors - null_dim)
        own = init_id_embeddings(rows, null_dim, "zeros")
        return cls(ItemTable(semantic, own, fusion=fusion), num_tokens)

    def forward(self, items: Tensor) -> Tensor:
        """Embeddings of internal ids, any shape; zeros of tokens."""
        ids = items - self.num_tokens
        return self.table(torch.where(ids < 0, self.table.padding_idx, ids))

    def get_all_embeddings(self) -> Tensor:
        """Of all tokens and items, ``(num_tokens + N, dim)``."""
        return self(torch.arange(self.num_tokens + self.table.num_embeddings, device=self.device))

    @property
    def out_dim(self) -> int:
        """The embedding dimension."""
        return self.table.embedding_dim


def _hot_items(dataset: Dataset) -> Ids:
    return _plain(dataset.item_id_map.external_ids[: dataset.n_hot_items])


def _plain(tokens: Any) -> Ids:
    """Ids in the type that all of them have: RecTools' own tokens make objects of numbers."""
    return pd.Series(list(tokens)).infer_objects().to_numpy()


def _external(dataset: Dataset, items: InternalIdsArray | None) -> Any:
    """External ids of those items that the model knows."""
    if items is None:
        return None
    return dataset.item_id_map.convert_to_external(items[items < dataset.n_hot_items])


def _histories(dataset: Dataset, users: InternalIdsArray) -> Interactions:
    """What the dataset has of some users, whose internal ids are their names."""
    frame = dataset.interactions.df
    frame = frame[frame[Columns.User].isin(users)].sort_values(Columns.Datetime, kind="stable")
    groups: Mapping[Any, Any] = frame.groupby(Columns.User)[Columns.Item].apply(np.asarray)
    sequences = Sequences.from_lists([groups[user] for user in users])
    items = dataset.item_id_map.external_ids[: dataset.n_hot_items]
    return Interactions(users, _plain(items), sequences)
