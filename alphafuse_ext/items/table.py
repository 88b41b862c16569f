"""The item table: frozen semantic rows and trainable ID embeddings, used as one embedding."""

from __future__ import annotations

import torch
from torch import Tensor

from alphafuse_ext.items.computed_weight import ComputedWeight
from alphafuse_ext.items.constructors import TableConstructors


class ItemTable(TableConstructors):
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
            tensors that hold the touched rows only, as ``torch.optim.SparseAdam`` takes them;
            those of ``score_all`` and ``cross_entropy`` are dense, and warned of.
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
