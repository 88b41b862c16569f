"""The item table: frozen semantic rows and trainable ID embeddings, used as one embedding."""

from __future__ import annotations

import torch
from torch import Tensor

from alphafuse_ext import ops
from alphafuse_ext.items.computed_weight import ComputedWeight
from alphafuse_ext.items.making import MadeTables
from alphafuse_ext.ops.arguments import Exclude


class ItemTable(MadeTables):
    """Embeddings of a catalog of ``N`` items, where a model expects an ``nn.Embedding``.

    Row ``i`` is ``[semantic_rows[i], id_embeddings[i]]`` with ``fusion="concat"``; with ``"add"``
    the ID embedding is added to the last columns of the semantic row. The fused table is never
    built, except by :attr:`weight`: every method below reads the two tables directly, and is the
    function of the same name in :mod:`alphafuse_ext.ops` applied to them.

    Ids are ``0 .. N - 1``; ``N`` is the padding index: a zero row without a gradient.

    Most tables are made by :meth:`from_space`, :meth:`id_only`, :meth:`llm_init` or
    :meth:`frozen`.

    Args:
        semantic_rows: float32, bfloat16 or float16, shape (N, dim - null_dim) with ``"concat"``
            and (N, dim) with ``"add"``; a buffer, never trained. ``None``: an ID-only table.
        id_embeddings: float32, bfloat16 or float16, shape (N, null_dim); a parameter (the given
            one, if it is one). ``None``: a frozen table.
        fusion: ``"concat"`` or ``"add"``.
        sparse: gradients of ``id_embeddings`` from lookups and candidate scores are sparse
            tensors that hold the touched rows only, as ``torch.optim.SparseAdam`` takes them.
        coordinates: ``"singular"``, ``"original"`` or ``"projected"``, or, of a split with gains,
            ``"soft"`` or ``"learned"``; see :meth:`from_space`.
        coordinates_map: float32, the linear map from stored rows to embeddings, fixed but with
            ``"learned"``; ``None`` with ``"singular"`` coordinates. Of gains, shape (dim,), they
            themselves (``"soft"``: the semantic rows are stored divided by them) or their
            logarithms (``"learned"``).

    Attributes:
        semantic_rows, id_embeddings, coordinates_map: as given, or ``None``.
        fusion, coordinates: as given; fixed, as the tensors mean nothing without them.
        sparse: as given; may be changed.
        null_dim: columns of the embedding that the ID embeddings reach; 0 where there are none.

    Raises:
        TypeError: a table that is no tensor, or of another dtype.
        ValueError: both tables ``None``, shapes or devices that do not fit, NaN or infinities.

    Note:
        ``DistributedDataParallel`` sends all buffers, ``semantic_rows`` among them, to every
        process before each step unless it is given ``broadcast_buffers=False``.
    """

    # --- as an nn.Embedding

    @property
    def weight(self) -> Tensor:
        """All embeddings, shape (N, embedding_dim), differentiable.

        An ID-only table's is the parameter itself, as an ``nn.Embedding``'s. Any other is there to
        read, and refuses writes: see :class:`ComputedWeight`. Where two tables are fused it is
        built anew each time, ``N * embedding_dim`` numbers; no op needs it.
        """
        if self.coordinates_map is None and self.semantic_rows is None:
            return self._any_table
        if self.coordinates_map is None and self.id_embeddings is None:
            return ComputedWeight.of(self._any_table)
        ids = torch.arange(self.num_embeddings, device=self._any_table.device)
        return ComputedWeight.of(self(ids))

    def forward(self, ids: Tensor) -> Tensor:
        """Embeddings of items.

        Args:
            ids: int64 or int32, any shape; ``N`` gives a row of zeros.

        Returns:
            Shape ``(*ids.shape, embedding_dim)``, in the dtype of the ID embeddings (of the
            semantic rows where there are none).
        """
        rows = ops.lookup(ids, *self._tables, fusion=self._stored_fusion, sparse=self.sparse)
        return self._coordinates.embeddings(rows)

    def mean(self) -> Tensor:
        """The mean of all embeddings, shape (embedding_dim,), differentiable; reads them once."""
        semantic, own = (None if t is None else t.mean(0, keepdim=True) for t in self._tables)
        only = torch.zeros(1, dtype=torch.int64, device=self._any_table.device)
        row = ops.lookup(only, semantic, own, fusion=self._stored_fusion)
        return self._coordinates.embeddings(row)[0]

    # --- the ops

    def score_all(self, queries: Tensor, similarity: str = "dot") -> Tensor:
        """Scores of every item, shape (B, N), in the queries' dtype; see :func:`ops.score_all`.

        Args:
            queries: shape (B, embedding_dim).
            similarity: ``"dot"`` or ``"cosine"``.
        """
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
            Shape (B, K) or (B, L, K), float32 whatever the queries are: they go into a loss.
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

    def cross_entropy(
        self,
        queries: Tensor,
        targets: Tensor,
        similarity: str = "dot",
        temperature: float = 1.0,
        reduction: str = "mean",
    ) -> Tensor:
        """Softmax loss over the whole catalog; see :func:`ops.cross_entropy`.

        Args:
            queries: shape (..., embedding_dim), such as (B, L, embedding_dim).
            targets: ids, one for each query, shape (...); ``N`` is ignored.
            similarity: ``"dot"`` or ``"cosine"``.
            temperature: divides the scores.
            reduction: ``"mean"``, ``"sum"`` or ``"none"``.

        Raises:
            NotImplementedError: cosine with a clipped table in original coordinates.
        """
        stored = self._coordinates.equal_queries(queries, similarity)
        return ops.cross_entropy(
            stored,
            targets,
            *self._tables,
            fusion=self._stored_fusion,
            similarity=similarity,
            temperature=temperature,
            reduction=reduction,
        )

    def topk(
        self,
        queries: Tensor,
        k: int,
        similarity: str = "dot",
        exclude: Exclude = None,
        first_pass: str | None = None,
    ) -> ops.TopK:
        """The ``k`` best items of each query, exactly; see :func:`ops.topk`.

        Args:
            queries: shape (B, embedding_dim), or (embedding_dim,) for one.
            k: 1 .. N.
            similarity: ``"dot"`` or ``"cosine"``.
            exclude: ids never returned: padded (B, M) with -1, or ``(offsets (B + 1,), ids)``;
                for one query also (M,).
            first_pass: ``"int8"``: score the compressed copy first, see :meth:`compressed`. The
                result is the same, bit for bit. ``"auto"``: so, where it was measured to be faster
                for any number of queries: on the CPU, in evaluation mode, from 100,000 items on.
                Making the copy pays after some seven calls with one query.

        Returns:
            ``values``, the scores (float32), and ``indices``, the ids (int64), best first: both of
            shape (B, k), or (k,) for one query.
        """
        coordinates = self._coordinates
        stored, factor = coordinates.stored_queries(queries, similarity)
        values, ids = ops.topk(
            stored,
            k,
            *self._tables,
            fusion=self._stored_fusion,
            similarity=similarity,
            exclude=exclude,
            first_pass=self._first_pass(
                self._fastest_first_pass() if first_pass == "auto" else first_pass, similarity
            ),
        )
        return ops.TopK(coordinates.scores(values, factor, values.dtype), ids)

    def target_ranks(
        self,
        queries: Tensor,
        targets: Tensor,
        similarity: str = "dot",
        exclude: Exclude = None,
        first_pass: str | None = None,
    ) -> Tensor:
        """The exact place of each target among all items, 0 first; see :func:`ops.target_ranks`.

        Args:
            queries: shape (B, embedding_dim), or (embedding_dim,) for one.
            targets: ids, one for each query, shape (B,) or ().
            similarity: ``"dot"`` or ``"cosine"``.
            exclude: as for :meth:`topk`.
            first_pass: ``None`` or ``"int8"``, as for :meth:`topk`.

        Returns:
            int64, of the shape of ``targets``.
        """
        stored, _ = self._coordinates.stored_queries(queries, similarity)
        return ops.target_ranks(
            stored,
            targets,
            *self._tables,
            fusion=self._stored_fusion,
            similarity=similarity,
            exclude=exclude,
            first_pass=self._first_pass(first_pass, similarity),
        )
