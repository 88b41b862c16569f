"""RecBole: a model for `run_recbole`, and memory-efficient ranking for RecBole's models.

>>> import alphafuse_ext.integrations.recbole
>>> run_recbole("AlphaFuse", "ml-100k", config_dict={
...     "item_embeddings": "embeddings.parquet", "alphafuse": {"dim": 64, "norm": "post"},
...     "train_neg_sample_args": None})
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from recbole.data.interaction import Interaction
from recbole.model.abstract_recommender import SequentialRecommender
from recbole.utils import InputType
from torch import Tensor

import alphafuse_ext.ops as ops
from alphafuse_ext.checks import invalid
from alphafuse_ext.config import Config
from alphafuse_ext.data import Items, read_embeddings
from alphafuse_ext.items.language_neighbors import Neighbors
from alphafuse_ext.metrics import ranking_metrics
from alphafuse_ext.ops.arguments import Exclude
from alphafuse_ext.runs.assembly import build_model, build_table


class AlphaFuse(SequentialRecommender):
    """The model of :class:`alphafuse_ext.Config`, trained and evaluated by RecBole.

    Batches, learning rate, epochs and splits are RecBole's settings. In addition:

    * ``item_embeddings``: language embeddings by item token, of at least the dataset's items: see
      :func:`alphafuse_ext.data.read_embeddings`; none with ``item_embedding: id``;
    * ``alphafuse``: the fields of :class:`alphafuse_ext.Config` for the model.

    The loss is the mean over a batch of histories with one target each. Histories are truncated to
    ``MAX_ITEM_LIST_LENGTH``.
    """

    input_type = InputType.POINTWISE

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        settings = {"history": self.max_seq_length, **(config["alphafuse"] or {})}
        given = Config.from_dict(settings)
        if not given.trained:
            raise invalid("alphafuse", f"model={given.model}", "a model that is trained")
        tokens = dataset.field2id_token[self.ITEM_ID][1:].astype(object)  # 0 is padding
        rows = neighbors = None
        if given.needs_language:
            if config["item_embeddings"] is None:
                raise invalid("item_embeddings", None, "language embeddings by item token")
            rows = read_embeddings(config["item_embeddings"], Items(tokens, None, None)).rows
            neighbors = Neighbors.of(rows) if given.language_smoothing else None
            rows = None if given.item_embedding == "id" else rows
        resolved = given.resolve(None if rows is None else rows.shape[1], len(tokens))
        targets = torch.as_tensor(dataset.inter_feat[self.ITEM_ID])
        counts = torch.bincount(targets, minlength=self.n_items)[1:].numpy()
        table, _ = build_table(resolved, len(tokens), rows, counts)
        self.model = build_model(resolved, table, counts, neighbors)

    @property
    def table(self) -> Any:
        """The item embeddings; the item of RecBole's id ``i`` has row ``i - 1``."""
        return self.model.table

    def forward(self, item_seq: Tensor, item_seq_len: Tensor) -> Tensor:
        """Queries, ``(B, dim)``, after histories padded on the right with 0."""
        return self.model.encode(self._ids(item_seq))

    def calculate_loss(self, interaction: Interaction) -> Tensor:
        ids = self._ids(interaction[self.ITEM_SEQ])
        rows = torch.arange(len(ids), device=ids.device)
        targets = torch.full_like(ids, self.table.padding_idx)
        targets[rows, interaction[self.ITEM_SEQ_LEN] - 1] = interaction[self.POS_ITEM_ID] - 1
        loss = self.model.loss(ids, targets)
        extra = self.table.auxiliary_loss(interaction[self.POS_ITEM_ID] - 1)
        return (loss if extra is None else loss + extra) / len(ids)

    def predict(self, interaction: Interaction) -> Tensor:
        queries = self.forward(interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN])
        candidates = interaction[self.ITEM_ID][:, None] - 1
        similarity = self.model.similarity
        return self.table.score_candidates(queries, candidates, similarity=similarity).squeeze(1)

    def full_sort_predict(self, interaction: Interaction) -> Tensor:
        queries = self.forward(interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN])
        scores = self.table.score_all(queries, similarity=self.model.similarity)
        return torch.nn.functional.pad(scores, (1, 0), value=-torch.inf)

    def _ids(self, item_seq: Tensor) -> Tensor:
        """Our ids, as many columns as the longest history has: RecBole pads all to one length."""
        longest = int((item_seq != 0).sum(1).max())
        ids = item_seq[:, :longest] - 1
        return torch.where(ids < 0, self.table.padding_idx, ids)


# Where RecBole looks for a model of this name.
sys.modules["recbole.model.sequential_recommender.alphafuse"] = sys.modules[__name__]


def full_sort_topk(
    uid_series: Any,
    model: Any,
    test_data: Any,
    k: int,
    device: torch.device | str | None = None,
    batch_size: int = 512,
    exclude_seen: bool = False,
) -> tuple[Tensor, Tensor]:
    """``recbole.utils.case_study.full_sort_topk`` without the matrix of scores.

    Args:
        uid_series: internal user ids.
        model: a sequential model that scores by inner products of its queries with
            ``item_embedding``, as SASRec, GRU4Rec, BERT4Rec's kin and many others do, or
            :class:`AlphaFuse`.
        test_data: the loader of test examples, a row for each user.
        k: number of items.
        device: to which the model is moved; default: the CPU.
        batch_size: users per batch.
        exclude_seen: exclude the items of a user's history, which RecBole ranks.

    Returns:
        Scores, float32, and internal item ids, int64, both ``(len(uid_series), k)``, ties by id.
        Without ``exclude_seen`` the same as RecBole's, up to rounding.

    Raises:
        TypeError: a model that scores differently.
        ValueError: a user without a row.
    """
    scores, items = [], []
    asked = uid_series, model, test_data, device, batch_size, exclude_seen
    for queries, ranked, exclude, _ in _ranked(*asked):
        best = ranked.topk(queries, k, exclude=exclude)
        scores.append(best[0])
        items.append(best[1] + 1)
    return torch.cat(scores), torch.cat(items)


def full_sort_metrics(
    model: Any,
    test_data: Any,
    device: torch.device | str | None = None,
    batch_size: int = 512,
    exclude_seen: bool = False,
) -> dict[str, float]:
    """Metrics over all test examples and the whole catalog, without the matrix of scores.

    Args:
        model, test_data, device, batch_size, exclude_seen: as for :func:`full_sort_topk`.

    Returns:
        See :func:`alphafuse_ext.metrics.ranking_metrics`.
    """
    ranks = []
    asked = None, model, test_data, device, batch_size, exclude_seen
    for queries, ranked, exclude, targets in _ranked(*asked):
        ranks.append(ranked.target_ranks(queries, targets - 1, exclude=exclude).cpu().numpy())
    return ranking_metrics(np.concatenate(ranks))


class _Ranked:
    """Items to rank, without the row of padding; ids count from 0."""

    def __init__(self, model: Any) -> None:
        self.table: Any = getattr(model, "table", None)
        if self.table is not None:
            self.options = {"similarity": model.model.similarity}
            return
        embedding = getattr(model, "item_embedding", None)
        if isinstance(embedding, torch.nn.Embedding) and len(embedding.weight) >= model.n_items:
            self.rows = embedding.weight.detach()[1 : model.n_items]
            return
        allowed = "a sequential model whose items are scored by its item_embedding"
        raise invalid("model", type(model).__name__, allowed, TypeError)

    def topk(self, queries: Tensor, k: int, **options: Any) -> tuple[Tensor, Tensor]:
        if self.table is not None:
            return self.table.topk(queries, k, **self.options, **options)
        return ops.topk(queries, k, None, self.rows, **options)

    def target_ranks(self, queries: Tensor, targets: Tensor, **options: Any) -> Tensor:
        if self.table is not None:
            return self.table.target_ranks(queries, targets, **self.options, **options)
        return ops.target_ranks(queries, targets, None, self.rows, **options)


@torch.no_grad()
def _ranked(
    users: Any, model: Any, test_data: Any, device: Any, batch_size: int, exclude_seen: bool
) -> Iterator[tuple[Tensor, _Ranked, Exclude, Tensor]]:
    """Queries, what they rank, what they leave out and targets, a batch at a time."""
    model.eval().to(device or "cpu")
    ranked = _Ranked(model)
    rows = test_data.dataset.inter_feat
    places = torch.arange(len(rows))
    if users is not None:
        column = rows[test_data.dataset.uid_field]
        order = torch.argsort(column, stable=True)
        wanted = torch.as_tensor(np.asarray(users))
        found = torch.searchsorted(column[order], wanted).clamp(max=len(rows) - 1)
        places = order[found]
        unknown = wanted[column[places] != wanted]
        if len(unknown):
            allowed = "users with a test example"
            raise invalid("uid_series", f"{len(unknown)} without, such as {unknown[0]}", allowed)
    for start in range(0, len(places), batch_size):
        batch = test_data.dataset[places[start : start + batch_size]].to(device or "cpu")
        history = batch[model.ITEM_SEQ]
        queries = model(history, batch[model.ITEM_SEQ_LEN])
        if not isinstance(queries, Tensor) or queries.ndim != 2:
            allowed = "a model whose forward gives one query for each history"
            raise invalid("model", type(model).__name__, allowed, TypeError)
        if start == 0:
            _check_scores(model, ranked, batch, queries)
        exclude = _shifted(history) if exclude_seen else None
        yield queries.float(), ranked, exclude, batch[model.ITEM_ID]


def _check_scores(model: Any, ranked: _Ranked, batch: Interaction, queries: Tensor) -> None:
    """Refuse a model whose scores of a batch's first history are others than ours."""
    if ranked.table is not None:
        return
    theirs = model.full_sort_predict(batch[:1]).view(-1)[1 : model.n_items]
    ours = (queries[:1].float() @ ranked.rows.T).view(-1)
    if not torch.allclose(theirs, ours, rtol=1e-3, atol=1e-4 * float(theirs.abs().max())):
        allowed = "a sequential model that scores by inner products with its item_embedding"
        raise invalid("model", type(model).__name__, allowed, TypeError)


def _shifted(history: Tensor) -> tuple[Tensor, Tensor]:
    """Histories padded with 0 as the argument ``exclude`` of the ops."""
    present = history != 0
    offsets = torch.nn.functional.pad(present.sum(1).cumsum(0), (1, 0))
    return offsets, history[present] - 1
