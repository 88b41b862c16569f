"""The item table: frozen semantic rows and trainable ID embeddings, used as one embedding."""

from __future__ import annotations

import torch
from torch import Tensor

from alphafuse_ext.items.computed_weight import ComputedWeight
from alphafuse_ext.items.constructors import TableConstructors


class ItemTable(TableConstructors):
    """Embeddings of a catalog of ``N`` items, a replacement for ``nn.Embedding``.

    Row ``i`` is ``[semantic_rows[i], id_embeddings[i]]`` with ``fusion="concat"``; with ``"add"``
    the ID embedding is added to the last columns of the semantic row. The fused table is only
    materialized by :attr:`weight`: all methods below read the two tables directly. They are the
    functions of the same name in :mod:`alphafuse_ext.ops` applied to them.

    Ids are ``0 .. N - 1``; ``N`` is the padding index: a zero row without a gradient.

    Most tables are created by :meth:`from_space`, :meth:`id_only`, :meth:`from_embedding`,
    :meth:`llm_init` or :meth:`frozen`.

    Args:
        semantic_rows: float32, bfloat16 or float16, shape (N, dim - null_dim) with ``"concat"``
            and (N, dim) with ``"add"``; a buffer, never trained. ``None``: an ID-only table.
        id_embeddings: float32, bfloat16 or float16, shape (N, null_dim); a parameter (used as it
            is if it is an ``nn.Parameter``). ``None``: a frozen table.
        fusion: ``"concat"`` or ``"add"``.
        sparse: gradients of ``id_embeddings`` from lookups and candidate scores are sparse
            tensors of the touched rows, for ``torch.optim.SparseAdam``; those of ``score_all``
            and ``cross_entropy`` are dense, with a warning.
        coordinates: ``"singular"``, ``"original"`` or ``"projected"``, or, for a split with gains,
            ``"soft"`` or ``"learned"``; see :meth:`from_space`.
        coordinates_map: float32, the linear map from stored rows to embeddings; trained only with
            ``"learned"``; ``None`` with ``"singular"``. With ``"soft"`` the gains, shape (dim,)
            (the semantic rows are stored divided by them), with ``"learned"`` their logarithms.

    Attributes:
        semantic_rows, id_embeddings, coordinates_map: as given, or ``None``.
        fusion, coordinates: as given; read-only, as they define the meaning of the tensors.
        sparse: as given; may be changed.
        null_dim: number of columns that the ID embeddings affect; 0 without ID embeddings.

    Raises:
        TypeError: a table is not a tensor, or of another dtype.
        ValueError: both tables are ``None``, shapes or devices do not match, NaN or infinities.

    Note:
        ``DistributedDataParallel`` broadcasts all buffers, including ``semantic_rows``, before each
        step unless it is given ``broadcast_buffers=False``.
    """

    # --- as an nn.Embedding

    @property
    def weight(self) -> Tensor:
        """All embeddings, shape (N, embedding_dim), differentiable.

        For an ID-only table this is the parameter itself, as in ``nn.Embedding``. Otherwise it is
        read-only, see :class:`ComputedWeight`. For two tables it is computed at each access,
        ``N * embedding_dim`` numbers; no op needs it.
        """
        if self.coordinates_map is None and self.semantic_rows is None:
            return self._any_table
        if self.coordinates_map is None and self.id_embeddings is None:
            return ComputedWeight.of(self._any_table)
        ids = torch.arange(self.num_embeddings, device=self._any_table.device)
        return ComputedWeight.of(self(ids))
