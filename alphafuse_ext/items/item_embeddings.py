"""Item embeddings with the ops as methods, for models in place of an ``nn.Embedding``."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

import alphafuse_ext._core as _core
import alphafuse_ext.ops as ops
from alphafuse_ext.items.compressed_copies import CompressedCopies
from alphafuse_ext.items.coordinates import Coordinates
from alphafuse_ext.ops.arguments import Exclude, Only, check_targets, without_ignored
from alphafuse_ext.ops.cross_entropy import ignoring
from alphafuse_ext.ops.graphs import outside_graphs

if TYPE_CHECKING:
    from typing_extensions import Self

INT8_PAYS_FROM = 20_000
"""Catalog size from which ``topk`` with int8 is faster; ``target_ranks`` is not, since many items
have scores near the target's (bench/results/scoring-notes.md)."""
INT8_PAYS_FROM_FOR_FEW = 5_000
"""That for up to ``FEW_QUERIES``, which take as long as reading."""
FEW_QUERIES = 8
INT8_PAYS_UP_TO = 32
"""Largest number of queries for int8 where int8 products are no faster than float32, in
``NO_FASTER``, and the gain is in reading less memory."""
NO_FASTER = ("amx_emulated", "scalar", "avx2", "neon")


class ItemEmbeddings(nn.Module):
    """Base class of embeddings of a catalog of ``N`` items, with the ops as methods.

    Each op is the function of the same name in :mod:`alphafuse_ext.ops`, applied to the two tables
    of the subclass. Ids are ``0 .. N - 1``; ``N`` is the padding index: a zero row
    without a gradient.

    Attributes:
        sparse: gradients from lookups and candidate scores are sparse tensors of the touched rows,
            for ``alphafuse_ext.optim.LazyAdam``; may be changed. Those of ``score_all`` and
            ``cross_entropy`` are dense, with a warning.
    """

    null_dim: int
    """Number of columns that the ID embeddings affect; 0 without ID embeddings."""

    def __init__(self, sparse: bool = False, stored_fusion: str = "concat") -> None:
        super().__init__()
        self.sparse = bool(sparse)
        self._stored_fusion = stored_fusion
        self._compressed = CompressedCopies()

    # --- for subclasses to implement

    @property
    @abstractmethod
    def _tables(self) -> tuple[Tensor | None, Tensor | None]:
        """Semantic rows and ID embeddings, as the ops take them."""

    @property
    def _coordinates(self) -> Coordinates:
        """The map from stored rows to embeddings."""
        return Coordinates()

    def auxiliary_loss(self, items: Tensor) -> Tensor | None:
        """An auxiliary loss of these embeddings, summed over items; ``None``: there is none.

        Args:
            items: ids, without padding, one for each target of a batch.
        """
        return None

    def parts(self) -> tuple[Tensor | None, Tensor | None]:
        """Semantic part and ID part of the embeddings of all items."""
        with torch.no_grad():
            return self._tables

    @property
    def gains(self) -> Tensor | None:
        """Factor of the ID embedding of each direction; ``None``: no split with gains."""
        return None

    @abstractmethod
    def extended(self, rows: Tensor) -> ItemEmbeddings:
        """These embeddings with new items appended; ``rows`` depend on the subclass."""

    def select(self, ids: Tensor) -> SelectedItems:
        """Embeddings of some items, for ranking: item ``i`` of the result is item ``ids[i]`` here.

        Rows are copied: later changes of these embeddings do not affect the result.

        Args:
            ids: int64, shape (W,), ascending.
        """
        return SelectedItems(self, ids)

    # --- properties

    @property
    def num_embeddings(self) -> int:
        """Number of items ``N``, without the padding."""
        return self._any_table.shape[0]

    @property
    @abstractmethod
    def embedding_dim(self) -> int:
        """Dimension of embeddings and queries."""

    @property
    def padding_idx(self) -> int:
        """The padding id, ``N``."""
        return self.num_embeddings

    # --- as an nn.Embedding

    def forward(self, ids: Tensor) -> Tensor:
        """Embeddings of items.

        Args:
            ids: int64 or int32, any shape; ``N`` gives a row of zeros.

        Returns:
            Shape ``(*ids.shape, embedding_dim)``, in the dtype of the ID embeddings (of the
            semantic rows without ID embeddings).
        """
        rows = ops.lookup(ids, *self._tables, fusion=self._stored_fusion, sparse=self.sparse)
        return self._coordinates.embeddings(rows)

    def mean(self) -> Tensor:
        """The mean of all embeddings, shape (embedding_dim,), differentiable; reads them once."""
        semantic, own = (None if t is None else t.mean(0, keepdim=True) for t in self._tables)
        only = torch.zeros(1, dtype=torch.int64, device=self._any_table.device)
        row = ops.lookup(only, semantic, own, fusion=self._stored_fusion)
        return self._coordinates.embeddings(row)[0]

    def _warn_of_dense_gradients(self, method: str) -> None:
        """Where sparse ones are asked for, and a gradient may be."""
        if not (self.sparse and torch.is_grad_enabled()) or torch.compiler.is_compiling():
            return
        own = self._tables[1]
        if own is not None and own.requires_grad:
            warnings.warn(
                f"sparse: got True; the gradient of {method} is dense all the same, as every item "
                "has a part in it. score_candidates and lookups have sparse ones; with "
                "sparse=False, dense ones are what optimizers expect",
                stacklevel=3,
            )

    # --- the ops

    def score_all(self, queries: Tensor, similarity: str = "dot") -> Tensor:
        """Scores of every item, shape (B, N), in the queries' dtype; see :func:`ops.score_all`.

        Args:
            queries: shape (B, embedding_dim).
            similarity: ``"dot"`` or ``"cosine"``.
        """
        self._warn_of_dense_gradients("score_all")
        coordinates = self._coordinates
        stored, factor = coordinates.stored_queries(queries, similarity)
        scores = ops.score_all(
            stored, *self._tables, fusion=self._stored_fusion, similarity=similarity
        )
        return coordinates.scores(scores, factor, queries.dtype)

    def score_candidates(
        self, queries: Tensor, candidates: Tensor, similarity: str = "dot"
    ) -> Tensor:
        """Scores of given items; see :func:`ops.score_candidates`.

        Args:
            queries: shape (B, embedding_dim) or (B, L, embedding_dim).
            candidates: ids, shape (K,), (B, K) or (B, L, K).
            similarity: ``"dot"`` or ``"cosine"``.

        Returns:
            Shape (B, K) or (B, L, K), float32 for any queries, as inputs of a loss.
        """
        coordinates = self._coordinates
        stored, factor = coordinates.stored_queries(queries, similarity)
        scores = ops.score_candidates(
            stored,
            candidates,
            *self._tables,
            fusion=self._stored_fusion,
            similarity=similarity,
            sparse=self.sparse,
        )
        return coordinates.scores(scores, factor, scores.dtype)

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
        """Softmax loss over each target and given negatives; see :func:`ops.sampled_softmax`.

        Args:
            queries: shape (B, embedding_dim) or (B, L, embedding_dim).
            targets: ids, one for each query, shape (B,) or (B, L); ``N`` is ignored.
            negatives: ids, shape (K,), (B, K) or (B, L, K); a query's own target is left out.
            similarity: ``"dot"`` or ``"cosine"``.
            temperature: divides the scores; a tensor of one element may be trained.
            reduction: ``"mean"``, ``"sum"`` or ``"none"``.
            log_q: shape (N,), float: the logarithms of the probabilities with which items are drawn
                as negatives, subtracted from the scores.
            ignore_index: another target to ignore, such as torch's -100.
            weight: shape (N,), float: multiplies the losses of each target, as in torch.
        """
        targets = ignoring(targets, ignore_index, self.num_embeddings)
        coordinates = self._coordinates
        if coordinates.matrix is not None:  # which has a gradient of all queries, and norms of them
            check_targets(targets, queries.shape[:-1])
            queries = without_ignored(queries, targets, self.num_embeddings)
        stored, factor = coordinates.stored_queries(queries, similarity)
        if factor is not None:
            temperature = temperature / factor.squeeze(-1)
        return ops.sampled_softmax(
            stored,
            targets,
            negatives,
            *self._tables,
            fusion=self._stored_fusion,
            similarity=similarity,
            temperature=temperature,
            reduction=reduction,
            sparse=self.sparse,
            log_q=log_q,
            weight=weight,
        )

    def cross_entropy(
        self,
        queries: Tensor,
        targets: Tensor,
        similarity: str = "dot",
        temperature: float | Tensor = 1.0,
        reduction: str = "mean",
        *,
        ignore_index: int | None = None,
        weight: Tensor | None = None,
    ) -> Tensor:
        """Softmax loss over the whole catalog; see :func:`ops.cross_entropy`.

        Args:
            queries: shape (..., embedding_dim), such as (B, L, embedding_dim).
            targets: ids, one for each query, shape (...); ``N`` is ignored.
            similarity: ``"dot"`` or ``"cosine"``.
            temperature: divides the scores; a tensor of one element may be trained.
            reduction: ``"mean"``, ``"sum"`` or ``"none"``.
            ignore_index: another target to ignore, such as torch's -100.
            weight: shape (N,), float: multiplies the losses of each target, as in torch.

        Raises:
            NotImplementedError: cosine with a truncated table in original coordinates.
        """
        targets = ignoring(targets, ignore_index, self.num_embeddings)
        if self._coordinates.mode == "learned":  # gains have a gradient of all queries, too
            check_targets(targets, queries.shape[:-1])
            queries = without_ignored(queries, targets, self.num_embeddings)
        self._warn_of_dense_gradients("cross_entropy")
        stored = self._coordinates.equal_queries(queries, similarity)
        return ops.cross_entropy(
            stored,
            targets,
            *self._tables,
            fusion=self._stored_fusion,
            similarity=similarity,
            temperature=temperature,
            reduction=reduction,
            weight=weight,
        )

    def topk(
        self,
        queries: Tensor,
        k: int,
        similarity: str = "dot",
        exclude: Exclude = None,
        first_pass: str | None = None,
        only: Only = None,
        mixture: ops.Mixture | None = None,
    ) -> ops.TopK:
        """The exact ``k`` best items for each query; see :func:`ops.topk`.

        Args:
            queries: shape (B, embedding_dim), or (embedding_dim,) for a single query.
            k: 1 .. N.
            similarity: ``"dot"`` or ``"cosine"``.
            exclude: ids never returned: padded (B, M) with -1, or ``(offsets (B + 1,), ids)``;
                for a single query also (M,).
            first_pass: ``"int8"``: score the compressed copy first, see :meth:`compressed`. The
                result is bitwise the same. ``"auto"``: ``"int8"`` where it was measured to be
                faster: on the CPU, in evaluation mode, without ``only``, from 20,000 items on, for
                up to 8 queries from 5,000; and for up to 32 queries unless the CPU has AVX-512 or
                VNNI. Making the copy takes about as long as twenty calls with one query.
            only: ids to rank instead of all: ``(W,)``, or per query, padded ``(B, M)`` or
                ``(offsets, ids)``.
            mixture: probabilities of a few items for each query, with which the softmax of the
                scores is mixed, see :func:`ops.topk`; the values are then the logarithms of its.

        Returns:
            ``values``, the scores (float32), and ``indices``, the ids (int64), best first: both of
            shape (B, k), or (k,) for one query.
        """
        if first_pass == "auto":
            first_pass = None if only is not None else self._fastest_first_pass(queries)
        coordinates = self._coordinates
        stored, factor = coordinates.stored_queries(queries, similarity)
        if mixture is not None:  # whose values are no scores to be multiplied
            stored, factor = coordinates.equal_queries(queries, similarity), None
        values, ids = ops.topk(
            stored,
            k,
            *self._tables,
            fusion=self._stored_fusion,
            similarity=similarity,
            exclude=exclude,
            first_pass=self._first_pass(first_pass, similarity),
            only=only,
            mixture=mixture,
        )
        return ops.TopK(coordinates.scores(values, factor, values.dtype), ids)

    def target_ranks(
        self,
        queries: Tensor,
        targets: Tensor,
        similarity: str = "dot",
        exclude: Exclude = None,
        first_pass: str | None = None,
        only: Only = None,
        mixture: ops.Mixture | None = None,
    ) -> Tensor:
        """The exact rank of each target among all items, 0 = first; see :func:`ops.target_ranks`.

        Args:
            queries: shape (B, embedding_dim), or (embedding_dim,) for a single query.
            targets: ids, one for each query, shape (B,) or ().
            similarity: ``"dot"`` or ``"cosine"``.
            exclude: as for :meth:`topk`.
            first_pass: ``None`` or ``"int8"``, as for :meth:`topk`.
            only: as for :meth:`topk`; a target that is not among them has rank -1.
            mixture: as for :meth:`topk`.

        Returns:
            int64, of the shape of ``targets``.
        """
        stored, _ = self._coordinates.stored_queries(queries, similarity)
        if mixture is not None:
            stored = self._coordinates.equal_queries(queries, similarity)
        return ops.target_ranks(
            stored,
            targets,
            *self._tables,
            fusion=self._stored_fusion,
            similarity=similarity,
            exclude=exclude,
            first_pass=self._first_pass(first_pass, similarity),
            only=only,
            mixture=mixture,
        )

    # --- compressed copies

    @outside_graphs  # the core reads the tables, so a compiled graph breaks here
    def compressed(self, similarity: str = "dot") -> ops.CompressedTables:
        """The table's compressed copy, which the ops score first with ``first_pass="int8"``.

        It is created at first use and cached. The ID embeddings are compressed again after they
        have changed: when PyTorch counts a write to them, and, since fused optimizers write
        without being counted, at every call in training mode and at the first call after it.
        Uncounted writes in evaluation mode (through ``.data``) are not detected: call
        ``compressed().refresh(table.id_embeddings)`` after them.

        Args:
            similarity: ``"dot"`` or ``"cosine"``; one copy for each.
        """
        return self._compressed.of(
            *self._tables, self._stored_fusion, similarity, training=self.training
        )

    def train(self, mode: bool = True) -> Self:
        """Sets training or evaluation mode; :meth:`compressed` says what it changes."""
        if mode:
            self._compressed.invalidate()
        return super().train(mode)

    def _first_pass(self, name: str | None, similarity: str) -> ops.CompressedTables | str | None:
        return self.compressed(similarity) if name == "int8" else name

    def _fastest_first_pass(self, queries: Tensor) -> str | None:
        """Of ``topk``: a copy that is made once, where it is faster."""
        if self.training or self._any_table.device.type != "cpu" or torch.compiler.is_compiling():
            return None
        count = 1 if queries.ndim == 1 else len(queries)
        pays = count <= INT8_PAYS_UP_TO or _core.isa() not in NO_FASTER
        least = INT8_PAYS_FROM_FOR_FEW if count <= FEW_QUERIES else INT8_PAYS_FROM
        return "int8" if pays and self.num_embeddings >= least else None

    @property
    def _any_table(self) -> Tensor:
        semantic_rows, id_embeddings = self._tables
        table = semantic_rows if id_embeddings is None else id_embeddings
        assert table is not None
        return table


class SelectedItems(ItemEmbeddings):
    """What :meth:`ItemEmbeddings.select` gives."""

    semantic_rows: Tensor | None
    id_embeddings: Tensor | None
    matrix: Tensor | None

    def __init__(self, whole: ItemEmbeddings, ids: Tensor) -> None:
        super().__init__(stored_fusion=whole._stored_fusion)
        with torch.no_grad():
            pair = [None if table is None else table.detach()[ids] for table in whole._tables]
        self.register_buffer("semantic_rows", pair[0])
        self.register_buffer("id_embeddings", pair[1])
        mapping = whole._coordinates
        self.register_buffer("matrix", None if mapping.matrix is None else mapping.matrix.detach())
        self._mode, self._dim, self.null_dim = mapping.mode, whole.embedding_dim, whole.null_dim

    @property
    def _tables(self) -> tuple[Tensor | None, Tensor | None]:
        return self.semantic_rows, self.id_embeddings

    @property
    def _coordinates(self) -> Coordinates:
        return Coordinates(self._mode, self.matrix)

    @property
    def embedding_dim(self) -> int:
        return self._dim

    def extended(self, rows: Tensor) -> ItemEmbeddings:
        raise NotImplementedError("a selection of items is fixed: extend the whole catalog")
