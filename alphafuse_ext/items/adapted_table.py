"""Item embeddings that an adapter computes, behind the interface of an item table."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

import alphafuse_ext.ops as ops
from alphafuse_ext.checks import invalid
from alphafuse_ext.items.adapters import AlignedIDs
from alphafuse_ext.items.embedding_rows import EmbeddingRows, Embeddings
from alphafuse_ext.items.item_embeddings import ItemEmbeddings
from alphafuse_ext.items.space import SemanticSpace
from alphafuse_ext.ops.cross_entropy import check_weight, ignoring
from alphafuse_ext.ops.declare import differentiates_otherwise

if TYPE_CHECKING:
    from typing_extensions import Self


class AdaptedTable(ItemEmbeddings):
    """Embeddings of ``N`` items, computed from frozen language rows by a trained adapter.

    The rows ``(N, dim)`` exist, unlike the fused rows of an :class:`alphafuse_ext.ItemTable`: an
    evaluation computes them once, when it first needs them, and keeps them; in training,
    ``cross_entropy`` and whatever else is about the whole catalog compute them at each call, with
    the adapter's pass over the catalog back and forth, while lookups and candidates compute those
    of the items that occur.

    Args:
        language_rows: float32, shape (N, any); a buffer, never trained.
        adapter: see :mod:`alphafuse_ext.items.adapters`.
        id_embeddings: float32, shape (N, dim), for the adapter, or of the width that it takes;
            ``None``: none.
        dim: width of an embedding.

    Note:
        A write to a parameter in evaluation mode has no effect until ``train()`` is called.
    """

    language_rows: Tensor
    id_embeddings: nn.Parameter | None

    def __init__(
        self,
        language_rows: Tensor,
        adapter: nn.Module,
        id_embeddings: Tensor | None,
        dim: int,
    ) -> None:
        super().__init__()
        self.register_buffer("language_rows", language_rows.detach().float().contiguous())
        self.adapter = adapter
        own = None if id_embeddings is None else nn.Parameter(id_embeddings)
        self.register_parameter("id_embeddings", own)
        self._dim = dim
        self._kept: Tensor | None = None
        self.null_dim = 0 if own is None else own.shape[1]

    @property
    def num_embeddings(self) -> int:
        return len(self.language_rows)

    @property
    def embedding_dim(self) -> int:
        return self._dim

    @property
    def _any_table(self) -> Tensor:
        return self.language_rows

    @property
    def _tables(self) -> tuple[Tensor | None, Tensor | None]:
        if self._computes:
            return None, self._adapt(self.language_rows, self.id_embeddings)
        if self._kept is None:
            self._kept = self._adapt(self.language_rows, self.id_embeddings).contiguous()
        return None, self._kept

    @property
    def weight(self) -> Tensor:
        """All embeddings, shape (N, embedding_dim), differentiable; in training computed anew."""
        rows = self._tables[1]
        assert rows is not None
        return rows

    def extended(self, rows: Tensor) -> AdaptedTable:
        """This table with new items appended, whose ID embeddings are zero.

        Args:
            rows: language rows of the new items, as this one has them, float, shape (M, any).
        """
        if rows.ndim != 2 or rows.shape[1] != self.language_rows.shape[1]:
            allowed = f"shape (M, {self.language_rows.shape[1]})"
            raise invalid("rows", f"shape {tuple(rows.shape)}", allowed)
        own = None if self.id_embeddings is None else self.id_embeddings.detach()
        if own is not None:
            own = torch.cat([own, own.new_zeros(len(rows), own.shape[1])])
        rows = torch.cat([self.language_rows, rows.to(self.language_rows)])
        return AdaptedTable(rows, copy.deepcopy(self.adapter), own, self._dim)

    def parts(self) -> tuple[Tensor | None, Tensor | None]:
        return None, self.id_embeddings

    def forward(self, ids: Tensor) -> Tensor:
        if not self._computes:
            return super().forward(ids)
        rows, places, _ = self._of(ids)
        return ops.lookup(places, None, rows)

    def score_candidates(
        self, queries: Tensor, candidates: Tensor, similarity: str = "dot"
    ) -> Tensor:
        if not self._computes:
            return super().score_candidates(queries, candidates, similarity)
        rows, places, _ = self._of(candidates)
        return ops.score_candidates(queries, places, None, rows, similarity=similarity)

    def sampled_softmax(
        self,
        queries: Tensor,
        targets: Tensor,
        negatives: Tensor,
        similarity: str = "dot",
        temperature: float | Tensor = 1.0,
        reduction: str = "mean",
        *,
        log_q: Tensor | None = None,
        ignore_index: int | None = None,
        weight: Tensor | None = None,
    ) -> Tensor:
        targets = ignoring(targets, ignore_index, self.num_embeddings)
        how = similarity, temperature, reduction
        if not self._computes:
            return super().sampled_softmax(
                queries, targets, negatives, *how, log_q=log_q, weight=weight
            )
        for name, given in (("log_q", log_q), ("weight", weight)):
            if given is not None:
                check_weight(given, self.num_embeddings, name)
        rows, places, used = self._of(torch.cat([targets.flatten(), negatives.flatten()]))
        of_targets, of_negatives = places.split([targets.numel(), negatives.numel()])
        return ops.sampled_softmax(
            queries,
            of_targets.view_as(targets),
            of_negatives.view_as(negatives),
            None,
            rows,
            "concat",
            *how,
            log_q=None if log_q is None else log_q[used],
            weight=None if weight is None else weight[used],
        )

    def _adapt(self, language: Tensor, own: Tensor | None) -> Tensor:
        # Embeddings are float32 under autocast, as parameters would be.
        with torch.autocast(language.device.type, enabled=False):
            return self.adapter(language, own)

    @property
    def _computes(self) -> bool:
        """Whether rows are computed for each call, and not once for an evaluation."""
        return self.training or torch.is_grad_enabled() or differentiates_otherwise()

    def _of(self, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Rows of the items that occur, at least one, where each id's is, and the items of the
        rows; padding after all."""
        count = self.num_embeddings
        if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) <= count:
            found = f"ids from {int(ids.min())} to {int(ids.max())}"
            raise invalid("ids", found, f"0 <= id <= {count}, the padding", IndexError)
        known = ids.clamp(max=count - 1)
        used, places = known.unique(return_inverse=True)
        if not len(used):
            used = known.new_zeros(1)
        own = None if self.id_embeddings is None else self.id_embeddings[used]
        rows = self._adapt(self.language_rows[used], own)
        return rows, places.masked_fill(ids == count, len(used)), used

    def auxiliary_loss(self, items: Tensor) -> Tensor | None:
        if not isinstance(self.adapter, AlignedIDs) or not len(items):
            return None
        assert self.id_embeddings is not None
        used = items.unique()
        with torch.autocast(items.device.type, enabled=False):
            mean = self.adapter.loss(self.language_rows[used], self.id_embeddings[used])
        return mean * len(items)

    # --- the cache of an evaluation

    def train(self, mode: bool = True) -> Self:
        self._kept = None
        return super().train(mode)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self._kept = None
        return super()._apply(fn, recurse)

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], *arguments: Any) -> None:
        self._kept = None
        super()._load_from_state_dict(state_dict, *arguments)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_kept": None}  # type: ignore[misc]

    def extra_repr(self) -> str:
        own = self.id_embeddings is not None
        return f"{self.num_embeddings}, {self.embedding_dim}, ids={own}"


def language_rows_for(
    kind: str,
    language_embeddings: Embeddings,
    scale: float = 1.0,
    weights: np.ndarray | None = None,
    groups: int = 4,
) -> Tensor:
    """The rows that an adapter of :data:`~alphafuse_ext.items.adapters.ADAPTED` reads.

    ``"whitenrec"`` whitens them (ZCA: in the original coordinates); ``"whitenrec+"`` has that and,
    beside it, each of ``groups`` equal slices of columns whitened by itself. Others read them as
    they are.

    Args:
        kind: the adapter's name.
        language_embeddings: shape (N, d_l), as for :meth:`SemanticSpace.from_embeddings`.
        scale: multiplies them.
        weights: of items in mean and covariance, as for :meth:`SemanticSpace.from_embeddings`.
        groups: divides ``d_l``.

    Returns:
        float32, shape (N, d_l) or, of ``"whitenrec+"``, (N, 2 d_l).
    """
    rows = EmbeddingRows(language_embeddings)
    every = torch.empty(rows.num_rows, rows.width)
    for where, chunk in rows.chunks("reading", None):
        every[where] = torch.from_numpy(chunk)
    if kind == "whitenrec":
        return _zca(every, scale, weights)
    if kind != "whitenrec+":
        return every * scale
    if groups < 1 or rows.width % groups:
        allowed = f"a divisor of the {rows.width} columns of the language embeddings"
        raise invalid("whitening_groups", groups, allowed)
    slices = every.chunk(groups, 1)
    views = [_zca(every, scale, weights)]
    return torch.cat([*views, *(_zca(part, scale, weights) for part in slices)], 1)


def _zca(rows: Tensor, scale: float, weights: np.ndarray | None) -> Tensor:
    rows = rows.contiguous()
    space = SemanticSpace.from_embeddings(rows, scale=scale, weights=weights, progress=False)
    whitened = space.transform(rows, whiten=True, progress=False)
    return whitened @ torch.tensor(space.basis.T, dtype=torch.float32)
