"""What models, losses and rankings use of item embeddings, whole or sharded over ranks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from torch import Tensor, nn

import alphafuse_ext.ops as ops
from alphafuse_ext.ops.arguments import Exclude, Only


class Catalog(Protocol):
    """Its methods are those of :class:`alphafuse_ext.ItemTable`; each may be a collective."""

    @property
    def num_embeddings(self) -> int: ...
    @property
    def padding_idx(self) -> int: ...
    @property
    def embedding_dim(self) -> int: ...

    def __call__(self, ids: Tensor) -> Tensor: ...
    def mean(self) -> Tensor: ...
    def auxiliary_loss(self, items: Tensor) -> Tensor | None: ...
    def score_candidates(
        self, queries: Tensor, candidates: Tensor, similarity: str = ...
    ) -> Tensor: ...
    def sampled_softmax(
        self,
        queries: Tensor,
        targets: Tensor,
        negatives: Tensor,
        similarity: str = ...,
        temperature: float | Tensor = ...,
        reduction: str = ...,
        *,
        log_q: Tensor | None = ...,
    ) -> Tensor: ...
    def cross_entropy(
        self,
        queries: Tensor,
        targets: Tensor,
        similarity: str = ...,
        temperature: float | Tensor = ...,
        reduction: str = ...,
    ) -> Tensor: ...
    def topk(
        self,
        queries: Tensor,
        k: int,
        similarity: str = ...,
        exclude: Exclude = ...,
        first_pass: str | None = ...,
        only: Only = ...,
        mixture: ops.Mixture | None = ...,
    ) -> ops.TopK: ...
    def target_ranks(
        self,
        queries: Tensor,
        targets: Tensor,
        similarity: str = ...,
        exclude: Exclude = ...,
        first_pass: str | None = ...,
        only: Only = ...,
        mixture: ops.Mixture | None = ...,
    ) -> Tensor: ...

    def parameters(self, recurse: bool = ...) -> Iterator[nn.Parameter]: ...
    def named_parameters(
        self, prefix: str = ..., recurse: bool = ..., remove_duplicate: bool = ...
    ) -> Iterator[tuple[str, nn.Parameter]]: ...
