"""``lookup``: fused rows of given ids, as ``torch.nn.functional.embedding`` gives plain ones."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import alphafuse_ext._core as _core
from alphafuse_ext.ops import gradients, native, reference
from alphafuse_ext.ops.arguments import check_device, check_integers
from alphafuse_ext.ops.declare import Op, differentiates_otherwise, refuse_second_derivatives
from alphafuse_ext.ops.graphs import is_traced, outside_graphs
from alphafuse_ext.ops.tables import FusedTables


def lookup(
    ids: torch.Tensor,
    semantic_rows: torch.Tensor | None,
    id_embeddings: torch.Tensor | None,
    fusion: str = "concat",
    sparse: bool = False,
) -> torch.Tensor:
    """Fused rows of the items ``ids``.

    Args:
        ids: int64 or int32, any shape; ``0 .. N-1``, or ``N``, the padding, a row of zeros without
            gradient.
        semantic_rows: frozen, ``(N, dim - null_dim)`` (concat) or ``(N, dim)`` (add), or ``None``.
        id_embeddings: ``(N, null_dim)``, or ``None``. Either table may be float32, bfloat16 or
            float16 and have strided rows.
        fusion: ``"concat"`` puts the ID embedding after the semantic columns; ``"add"`` adds it to
            the last ``null_dim`` of them.
        sparse: the gradient of ``id_embeddings`` is a coalesced sparse tensor of the touched rows.
            It causes a graph break under ``torch.compile``.

    Returns:
        ``(*ids.shape, dim)``, of the dtype of ``id_embeddings`` (of ``semantic_rows`` if there are
        none). Differentiable with respect to ``id_embeddings``.

    Raises:
        ValueError, TypeError: an invalid argument; nothing was computed.
        IndexError: an id is outside ``0 .. N``.
    """
    rows = _at_once(ids, semantic_rows, id_embeddings, fusion)
    if rows is not None:
        return rows
    tables = FusedTables.checked(semantic_rows, id_embeddings, fusion)
    check_integers("ids", ids)
    check_device("ids", ids, semantic_rows, id_embeddings)
    op = _lookup_outside_graphs if sparse else _op
    return op(ids.long(), tables, sparse)


def _at_once(
    ids: Tensor, semantic_rows: Tensor | None, id_embeddings: Tensor | None, fusion: str
) -> Tensor | None:
    """The rows, where they alone are asked for and nothing is at fault: the core sees to all in one
    call, for the steps of an op take longer than the rows of a few ids."""
    if torch.compiler.is_compiling():
        return None
    for table in (semantic_rows, id_embeddings):
        if table is None:
            continue
        if not isinstance(table, Tensor) or (table.requires_grad and torch.is_grad_enabled()):
            return None
    if semantic_rows is not None and semantic_rows.requires_grad:
        return None
    if (
        not isinstance(ids, Tensor)
        or ids.dtype is not torch.int64
        or not native.runs_on_cpu(ids)
        or is_traced((ids, semantic_rows, id_embeddings))
        or differentiates_otherwise()
    ):
        return None
    threads = torch.get_num_threads()
    return _core.cpu.rows_of(semantic_rows, id_embeddings, fusion, ids, threads)


def _result(ids: Tensor, tables: FusedTables, sparse: bool) -> Tensor:
    return tables.one.new_empty((*ids.shape, tables.dim))


def _lookup(ids: Tensor, tables: FusedTables, sparse: bool) -> Tensor:
    ids = ids.contiguous()
    native.check_ids("ids", ids, 0, tables.num_embeddings)
    out = _result(ids, tables, sparse)
    kernels, where = native.kernels(ids)
    kernels.lookup(tables.native(), ids, out, where)
    return out


def _definition(ids: Tensor, tables: FusedTables, sparse: bool) -> Tensor:
    dtype = tables.one.dtype
    semantic, own = (None if table is None else table.to(dtype) for table in tables.pair)
    return reference.rows_of(reference.fuse(semantic, own, tables.fusion), ids)


def _save(ctx: Any, output: Tensor, ids: Tensor, tables: FusedTables, sparse: bool) -> None:
    # The gradient needs the shape of id_embeddings, not their values: they are not saved, and may
    # be stepped in place before backward runs, as the weight of an nn.Embedding may.
    table = tables.id_embeddings
    ctx.table = None if table is None else (*table.shape, table.dtype)
    ctx.sparse = sparse
    ctx.save_for_backward(ids)


def _backward(ctx: Any, grad: Tensor) -> dict[str, Tensor]:
    if not ctx.needs["id_embeddings"]:
        return {}
    if ctx.sparse:
        refuse_second_derivatives("with sparse gradients")
    of_ids = _sparse_gradient if ctx.sparse else _backward_op
    return {"id_embeddings": of_ids(grad, *ctx.saved_tensors, *ctx.table)}


def _lookup_backward(
    grad: Tensor, ids: Tensor, num_embeddings: int, null_dim: int, dtype: torch.dtype
) -> Tensor:
    return _id_gradient(grad, ids, num_embeddings, null_dim, dtype, sparse=False)


def _sparse_gradient(
    grad: Tensor, ids: Tensor, num_embeddings: int, null_dim: int, dtype: torch.dtype
) -> Tensor:
    return _id_gradient(grad, ids, num_embeddings, null_dim, dtype, sparse=True)


def _id_gradient(
    grad: Tensor, ids: Tensor, num_embeddings: int, null_dim: int, dtype: torch.dtype, sparse: bool
) -> Tensor:
    grad, ids = grad.contiguous(), ids.contiguous()
    groups = gradients.group_ids(ids, num_embeddings, sparse)
    rows = gradients.empty_rows(groups, num_embeddings, null_dim, grad.device, sparse)
    kernels, where = native.kernels(ids)
    kernels.lookup_backward(grad, groups, rows, where)
    return gradients.finish(rows, groups, num_embeddings, dtype, sparse)


def _backward_definition(
    grad: Tensor, ids: Tensor, num_embeddings: int, null_dim: int, dtype: torch.dtype
) -> Tensor:
    rows = grad[..., -null_dim:].float().reshape(-1, null_dim)
    table = rows.new_zeros((num_embeddings + 1, null_dim))
    return table.index_add(0, ids.reshape(-1), rows)[:num_embeddings].to(dtype)


_backward_op = Op(
    _lookup_backward,
    fake=lambda grad, ids, rows, cols, dtype: grad.new_empty((rows, cols), dtype=dtype),
    definition=_backward_definition,
)
_op = Op(_lookup, fake=_result, save=_save, backward=_backward, definition=_definition)
_lookup_outside_graphs = outside_graphs(_op)  # compiled graphs know no sparse tensors
