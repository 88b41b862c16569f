"""What every op checks before anything runs, and how it prepares queries."""

from __future__ import annotations

import functools
import operator
from collections.abc import Sequence
from typing import NamedTuple

import torch

from alphafuse_ext.checks import invalid
from alphafuse_ext.choices import FUSIONS, SIMILARITIES

FLOAT_TYPES = (torch.float32, torch.bfloat16, torch.float16)
LEAST_NORM = 1e-8
"""Norms are clamped here before they divide."""

Exclude = torch.Tensor | tuple[torch.Tensor, torch.Tensor] | None
"""Ids to leave out of a query's ranking: none, ``(B, M)`` padded with -1, or
``(offsets (B + 1,), ids)``."""

Only = torch.Tensor | tuple[torch.Tensor, torch.Tensor] | None
"""Ids to rank: all, ``(W,)`` for all queries, or for each ``(B, M)`` padded with -1, or
``(offsets (B + 1,), ids)``."""


class Mixture(NamedTuple):
    """Probabilities of a few items for each query, and how much they count beside the model's.

    Attributes:
        ids: int64 or int32, ``(B, M)`` filled up with -1; an item at most once in each list. With
            ``offsets``, and for one query ``(dim,)``, one dimension. The padding id ``N`` is
            ignored.
        probabilities: ``q``, float32 or float64, of the shape of ``ids``, each in 0 .. 1; of
            fillers anything. A list may sum up to less than 1.
        weight: ``w``, the interpolation weight of the lists, ``0 <= w < 1``: a number, or ``(B,)``,
            float, one for each query. With 0 the order is the model's.
        temperature: of the model's softmax, which is over the whole catalog, whatever ``exclude``
            and ``only`` say: the one that it was trained with.
        offsets: ``(B + 1,)``, int64 or int32, where lists lie end to end.
    """

    ids: torch.Tensor
    probabilities: torch.Tensor
    weight: float | torch.Tensor
    temperature: float = 1.0
    offsets: torch.Tensor | None = None


class TableShape(NamedTuple):
    """The sizes of a pair of tables."""

    num_embeddings: int
    dim: int
    null_dim: int


def check_tables(
    semantic_rows: torch.Tensor | None, id_embeddings: torch.Tensor | None, fusion: str
) -> TableShape:
    """Checks the two tables and how they fuse.

    Args:
        semantic_rows: ``(N, dim - null_dim)`` (concat) or ``(N, dim)`` (add), or ``None``.
        id_embeddings: ``(N, null_dim)``, or ``None``. Rows of both may be strided, since tables are
            read where they lie and never copied; their columns may not.
        fusion: ``"concat"`` or ``"add"``.

    Raises:
        ValueError, TypeError: naming the argument.
    """
    if fusion not in FUSIONS:
        raise invalid("fusion", repr(fusion), "'concat' or 'add'")
    if semantic_rows is None and id_embeddings is None:
        raise invalid(
            "semantic_rows, id_embeddings", "None for both", "a tensor for at least one of them"
        )
    for name, table in (("semantic_rows", semantic_rows), ("id_embeddings", id_embeddings)):
        if table is not None:
            _check_table(name, table)
    if semantic_rows is not None and semantic_rows.requires_grad:
        raise invalid(
            "semantic_rows", "a tensor that requires grad", "a frozen one: call .detach() on it"
        )
    if semantic_rows is None or id_embeddings is None:
        only = id_embeddings if semantic_rows is None else semantic_rows
        assert only is not None
        num_embeddings, dim = only.shape
        return TableShape(num_embeddings, dim, 0 if id_embeddings is None else dim)

    if semantic_rows.shape[0] != id_embeddings.shape[0]:
        raise invalid(
            "id_embeddings",
            f"{id_embeddings.shape[0]} rows",
            f"{semantic_rows.shape[0]}, as many as semantic_rows",
        )
    check_same_device("id_embeddings", id_embeddings, "semantic_rows", semantic_rows)
    num_embeddings, null_dim = id_embeddings.shape
    semantic_dim = semantic_rows.shape[1]
    if fusion == "concat":
        return TableShape(num_embeddings, semantic_dim + null_dim, null_dim)
    if null_dim > semantic_dim:
        raise invalid(
            "id_embeddings",
            f"{null_dim} columns",
            f"at most the {semantic_dim} of semantic_rows, to which 'add' adds them",
        )
    return TableShape(num_embeddings, semantic_dim, null_dim)


def _check_table(name: str, table: torch.Tensor) -> None:
    if not isinstance(table, torch.Tensor):
        raise invalid(name, type(table).__name__, "a tensor or None", TypeError)
    if table.dtype not in FLOAT_TYPES:
        raise invalid(name, table.dtype, "float32, bfloat16 or float16", TypeError)
    if table.dim() != 2 or table.shape[0] < 1 or table.shape[1] < 1:
        raise invalid(name, f"shape {tuple(table.shape)}", "(rows, columns), at least one of each")
    if table.shape[1] > 1 and table.stride(1) != 1:
        raise invalid(name, f"column stride {table.stride(1)}", "1: call .contiguous() on it, once")


def check_memory(name: str, tensor: torch.Tensor) -> None:
    """Raises ``ValueError`` for a tensor of the meta device that nothing traces."""
    if tensor.is_meta and type(tensor) in (torch.Tensor, torch.nn.Parameter):
        allowed = "a device with memory; shapes alone are computed of fake tensors"
        raise invalid(name, "device meta", allowed)


def check_same_device(
    name: str, tensor: torch.Tensor, other_name: str, other: torch.Tensor
) -> None:
    """Raises ``ValueError`` unless both tensors are on one device."""
    if tensor.device != other.device:
        raise invalid(name, f"device {tensor.device}", f"{other.device}, as {other_name}")


def check_device(
    name: str,
    tensor: torch.Tensor,
    semantic_rows: torch.Tensor | None,
    id_embeddings: torch.Tensor | None,
) -> None:
    """Raises ``ValueError`` unless the tensor is on the device of the tables."""
    if semantic_rows is not None:
        check_same_device(name, tensor, "semantic_rows", semantic_rows)
    elif id_embeddings is not None:
        check_same_device(name, tensor, "id_embeddings", id_embeddings)


def check_similarity(similarity: str, argument: str = "similarity") -> None:
    """Raises ``ValueError`` for a similarity that does not exist."""
    if similarity not in SIMILARITIES:
        raise invalid(argument, repr(similarity), "'dot' or 'cosine'")


def check_queries(queries: torch.Tensor, dim: int, ndims: tuple[int, ...] | None = (2,)) -> int:
    """Checks queries ``(..., dim)`` and returns how many dimensions they have.

    Args:
        ndims: the numbers of dimensions allowed; ``None``: any.
    """
    if not isinstance(queries, torch.Tensor):
        raise invalid("queries", type(queries).__name__, "a tensor", TypeError)
    if queries.dtype not in FLOAT_TYPES:
        raise invalid("queries", queries.dtype, "float32, bfloat16 or float16", TypeError)
    ndim = queries.dim()
    if ndim == 0 or (ndims is not None and ndim not in ndims) or queries.shape[-1] != dim:
        shapes = {1: f"({dim},)", 2: f"(B, {dim})", 3: f"(B, L, {dim})"}
        allowed = " or ".join(shapes[n] for n in ndims) if ndims else f"(..., {dim})"
        raise invalid("queries", f"shape {tuple(queries.shape)}", allowed)
    return ndim


def check_integers(name: str, tensor: torch.Tensor) -> None:
    """Checks that ids are an int64 or int32 tensor. Their range is checked by the native op."""
    if not isinstance(tensor, torch.Tensor):
        raise invalid(name, type(tensor).__name__, "an int64 or int32 tensor", TypeError)
    if tensor.dtype not in (torch.int64, torch.int32):
        raise invalid(name, tensor.dtype, "int64 or int32", TypeError)


def check_targets(targets: torch.Tensor, shape: torch.Size) -> None:
    """Checks targets, one id for each query: of the shape of the queries without ``dim``."""
    check_integers("targets", targets)
    if targets.shape != shape:
        raise invalid(
            "targets", f"shape {tuple(targets.shape)}", f"{tuple(shape)}, one for each query"
        )


def check_candidates(name: str, candidates: torch.Tensor, queries: torch.Tensor) -> int:
    """Checks candidates of queries ``(B, dim)`` or ``(B, L, dim)``; returns how many of the
    dimensions before ``dim`` they have: 0 where one list is for all queries."""
    check_integers(name, candidates)
    batch_shape = queries.shape[:-1]
    batch_ndim = candidates.dim() - 1
    if (
        batch_ndim < 0
        or batch_ndim > len(batch_shape)
        or candidates.shape[:-1] != batch_shape[:batch_ndim]
    ):
        allowed = ["(K,)"] + [
            f"({', '.join(str(size) for size in batch_shape[:n])}, K)"
            for n in range(1, len(batch_shape) + 1)
        ]
        raise invalid(name, f"shape {tuple(candidates.shape)}", " or ".join(allowed))
    return batch_ndim


def lists_of(queries: torch.Tensor, batch_ndim: int) -> tuple[int, int]:
    """How many lists of candidates there are, and queries of each, as the native ops see them.

    Args:
        queries: ``(B, dim)`` or ``(B, L, dim)``.
        batch_ndim: what :func:`check_candidates` returned.
    """
    shape = queries.shape[:-1]
    return _product(shape[:batch_ndim]), _product(shape[batch_ndim:])


def _product(sizes: Sequence[int]) -> int:
    """Of sizes: ``torch.Size.numel`` is a constant to what ``torch.jit.trace`` records."""
    return functools.reduce(operator.mul, sizes, 1)


def split_exclude(
    exclude: Exclude, queries: torch.Tensor
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """The two forms of ``exclude`` as (offsets or ``None``, ids or ``None``), int64, checked.

    What the offsets are is checked where they are read: ``native.check_offsets``.
    """
    if exclude is None:
        return None, None
    single = queries.dim() == 1
    batch = 1 if single else queries.shape[0]
    if isinstance(exclude, torch.Tensor):
        check_integers("exclude", exclude)
        if single and exclude.dim() == 1:
            exclude = exclude[None]
        if exclude.dim() != 2 or exclude.shape[0] != batch:
            allowed = "(M,)" if single else f"({batch}, M)"
            raise invalid("exclude", f"shape {tuple(exclude.shape)}", allowed)
        check_same_device("exclude", exclude, "queries", queries)
        return None, exclude.long()
    if not isinstance(exclude, tuple | list) or len(exclude) != 2:
        raise invalid(
            "exclude", type(exclude).__name__, "a tensor (B, M) or a pair (offsets, ids)", TypeError
        )
    return split_lists("exclude", *exclude, batch, queries)


def joined(offsets: torch.Tensor | None, ids: torch.Tensor | None) -> Exclude:
    """What :func:`split_exclude` has split."""
    return ids if offsets is None or ids is None else (offsets, ids)


def split_lists(
    argument: str, offsets: torch.Tensor, ids: torch.Tensor, batch: int, queries: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Offsets and ids of an argument that gives them as a pair, int64, checked as above."""
    check_integers(f"{argument} offsets", offsets)
    check_integers(f"{argument} ids", ids)
    if offsets.dim() != 1 or offsets.shape[0] != batch + 1:
        raise invalid(f"{argument} offsets", f"shape {tuple(offsets.shape)}", f"({batch + 1},)")
    if ids.dim() != 1:
        raise invalid(f"{argument} ids", f"shape {tuple(ids.shape)}", "one dimension")
    check_same_device(f"{argument} offsets", offsets, "queries", queries)
    check_same_device(f"{argument} ids", ids, "queries", queries)
    return offsets.long(), ids.long()


def without_ignored(queries: torch.Tensor, targets: torch.Tensor, padding: int) -> torch.Tensor:
    """The queries, zeros in place of those whose target is the padding.

    Differentiable. What is ignored may be anything: 0 times NaN would be NaN in a gradient.
    """
    return queries.masked_fill((targets == padding).unsqueeze(-1), 0.0)


def prepare_queries(queries: torch.Tensor, similarity: str) -> torch.Tensor:
    """Queries as the native ops take them: float32, divided by their norm if cosine.

    Differentiable. A query of zeros has no direction: it stays zero and its gradient is zero.
    """
    queries = queries.float()
    if similarity == "dot":
        return queries
    return normalized(queries)


def normalized(rows: torch.Tensor) -> torch.Tensor:
    """Rows divided by their norm, clamped at 1e-8; a row of zeros stays so, with zero gradient."""
    return (rows / clamped_norms(rows)).masked_fill((rows == 0).all(-1, keepdim=True), 0.0)


def clamped_norms(rows: torch.Tensor) -> torch.Tensor:
    """Norms ``(..., 1)``, at least 1e-8; by squares, as ``vector_norm`` of zeros has a second
    derivative of NaN."""
    return rows.square().sum(-1, keepdim=True).clamp_min(LEAST_NORM**2).sqrt()
