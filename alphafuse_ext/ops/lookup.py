"""``lookup``: fused rows of given ids, as ``torch.nn.functional.embedding`` gives plain ones."""

from __future__ import annotations

from typing import Any

import torch

from alphafuse_ext.ops import gradients, native
from alphafuse_ext.ops.arguments import check_device, check_integers, check_tables


def lookup(
    ids: torch.Tensor,
    semantic_rows: torch.Tensor | None,
    id_embeddings: torch.Tensor | None,
    fusion: str = "concat",
    sparse: bool = False,
) -> torch.Tensor:
    """Fused rows of the items ``ids``.

    Args:
        ids: int64 or int32, any shape; ``0 .. N-1``, or ``N``, the padding, whose row is zero and
            gets no gradient.
        semantic_rows: frozen, ``(N, dim - null_dim)`` (concat) or ``(N, dim)`` (add), or ``None``.
        id_embeddings: ``(N, null_dim)``, or ``None``. Either table may be float32, bfloat16 or
            float16 and have strided rows.
        fusion: ``"concat"`` puts the ID embedding after the semantic columns; ``"add"`` adds it to
            the last ``null_dim`` of them.
        sparse: make the gradient of ``id_embeddings`` a coalesced sparse tensor that holds the
            touched rows only. ``torch.compile`` leaves its graph for it.

    Returns:
        ``(*ids.shape, dim)``, of the dtype of ``id_embeddings`` (of ``semantic_rows`` if there are
        none). Differentiable with respect to ``id_embeddings``.

    Raises:
        ValueError, TypeError: an argument does not fit; nothing was computed.
        IndexError: an id is outside ``0 .. N``.
    """
    check_tables(semantic_rows, id_embeddings, fusion)
    check_integers("ids", ids)
    check_device("ids", ids, semantic_rows, id_embeddings)
    op = _lookup_outside_graphs if sparse else _lookup
    return op(ids.long(), semantic_rows, id_embeddings, fusion, sparse)


def _result(
    ids: torch.Tensor,
    semantic_rows: torch.Tensor | None,
    id_embeddings: torch.Tensor | None,
    fusion: str,
) -> torch.Tensor:
    table = id_embeddings if id_embeddings is not None else semantic_rows
    assert table is not None
    dim = native.fused_dim(semantic_rows, id_embeddings, fusion)
    return table.new_empty((*ids.shape, dim))


@torch.library.custom_op(
    "alphafuse::lookup",
    mutates_args=(),
    schema=(
        "(Tensor ids, Tensor? semantic_rows, Tensor? id_embeddings, str fusion, bool sparse)"
        " -> Tensor"
    ),
)
def _lookup(
    ids: torch.Tensor,
    semantic_rows: torch.Tensor | None,
    id_embeddings: torch.Tensor | None,
    fusion: str,
    sparse: bool,
) -> torch.Tensor:
    ids = ids.contiguous()
    native.check_ids("ids", ids, 0, native.num_embeddings(semantic_rows, id_embeddings))
    out = _result(ids, semantic_rows, id_embeddings, fusion)
    kernels, where = native.kernels(ids)
    kernels.lookup(native.tables(semantic_rows, id_embeddings, fusion), ids, out, where)
    return out


@_lookup.register_fake
def _lookup_fake(
    ids: torch.Tensor,
    semantic_rows: torch.Tensor | None,
    id_embeddings: torch.Tensor | None,
    fusion: str,
    sparse: bool,
) -> torch.Tensor:
    return _result(ids, semantic_rows, id_embeddings, fusion)


@torch.library.custom_op(
    "alphafuse::lookup_backward",
    mutates_args=(),
    schema=(
        "(Tensor grad, Tensor ids, SymInt num_embeddings, SymInt null_dim, ScalarType dtype)"
        " -> Tensor"
    ),
)
def _lookup_backward(
    grad: torch.Tensor, ids: torch.Tensor, num_embeddings: int, null_dim: int, dtype: torch.dtype
) -> torch.Tensor:
    return _id_gradient(grad, ids, num_embeddings, null_dim, dtype, sparse=False)


@_lookup_backward.register_fake
def _lookup_backward_fake(
    grad: torch.Tensor, ids: torch.Tensor, num_embeddings: int, null_dim: int, dtype: torch.dtype
) -> torch.Tensor:
    return grad.new_empty((num_embeddings, null_dim), dtype=dtype)


def _id_gradient(
    grad: torch.Tensor,
    ids: torch.Tensor,
    num_embeddings: int,
    null_dim: int,
    dtype: torch.dtype,
    sparse: bool,
) -> torch.Tensor:
    grad, ids = grad.contiguous(), ids.contiguous()
    groups = gradients.group_ids(ids, num_embeddings, sparse)
    rows = gradients.empty_rows(groups, num_embeddings, null_dim, grad.device, sparse)
    kernels, where = native.kernels(ids)
    kernels.lookup_backward(grad, groups, rows, where)
    return gradients.finish(rows, groups, num_embeddings, dtype, sparse)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    ids, _, id_embeddings, _, ctx.sparse = inputs
    # The gradient needs the shape of id_embeddings, not their values: they are not saved, and may
    # be stepped in place before backward runs, as the weight of an nn.Embedding may.
    ctx.table = None if id_embeddings is None else (*id_embeddings.shape, id_embeddings.dtype)
    ctx.save_for_backward(ids)


def _backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    if not ctx.needs_input_grad[2]:
        return None, None, None, None, None
    (ids,) = ctx.saved_tensors
    num_embeddings, null_dim, dtype = ctx.table
    if ctx.sparse:
        grad_ids = _id_gradient(grad, ids, num_embeddings, null_dim, dtype, sparse=True)
    else:
        grad_ids = _lookup_backward(grad, ids, num_embeddings, null_dim, dtype)
    return None, None, grad_ids, None, None


_lookup.register_autograd(_backward, setup_context=_setup_context)
_lookup_outside_graphs = torch.compiler.disable(_lookup)  # compiled graphs know no sparse tensors
