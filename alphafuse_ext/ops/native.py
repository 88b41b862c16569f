"""The bridge from tensors to the native core: addresses, dtype codes, threads, streams.

Ops allocate their results here in Python; the native core knows nothing of PyTorch.
"""

from __future__ import annotations

from typing import NoReturn

import torch

import alphafuse_ext.build  # noqa: F401  (refuses a core that is missing or of another version)
from alphafuse_ext import _core

DTYPE_CODES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}


def tables(
    semantic_rows: torch.Tensor | None,
    id_embeddings: torch.Tensor | None,
    fusion: str,
    cosine: bool = False,
    first_id: int = 0,
) -> _core.Tables:
    """The two tables as the native core reads them. The caller keeps the tensors alive.

    They may be a part of a catalog that begins at ``first_id``.
    """
    return _core.Tables(
        *_table(semantic_rows),
        *_table(id_embeddings),
        rows=num_embeddings(semantic_rows, id_embeddings),
        first_id=first_id,
        add=fusion == "add",
        cosine=cosine,
    )


def _table(table: torch.Tensor | None) -> tuple[int, int, int, int]:
    if table is None:
        return 0, 0, 0, 0
    return table.data_ptr(), DTYPE_CODES[table.dtype], table.stride(0), table.shape[1]


def num_embeddings(semantic_rows: torch.Tensor | None, id_embeddings: torch.Tensor | None) -> int:
    """``N``, the number of items; also the padding id."""
    table = semantic_rows if semantic_rows is not None else id_embeddings
    assert table is not None
    return table.shape[0]


def fused_dim(
    semantic_rows: torch.Tensor | None, id_embeddings: torch.Tensor | None, fusion: str
) -> int:
    """Columns of a fused row; for fake kernels, which have no native tables."""
    if semantic_rows is None or id_embeddings is None or fusion == "add":
        table = semantic_rows if semantic_rows is not None else id_embeddings
        assert table is not None
        return table.shape[1]
    return semantic_rows.shape[1] + id_embeddings.shape[1]


def threads() -> int:
    """Threads the kernels may use: those of PyTorch."""
    return torch.get_num_threads()


def stream() -> int:
    """The current CUDA stream; call it under ``torch.cuda.device`` of the tensors' device."""
    return torch.cuda.current_stream().cuda_stream


def require_cuda_build() -> None:
    """Raises ``NotImplementedError`` if this build has no CUDA kernels at all."""
    if _core.cuda_version is None:
        raise NotImplementedError(
            "this build of alphafuse_ext has no CUDA kernels: nvcc was not found when it was "
            "installed; install it again where it is, or with ALPHAFUSE_CUDA=1 to see why not"
        )


def no_cuda_kernel(op: str) -> NoReturn:
    """Raises the error of an op that runs on the CPU only."""
    raise NotImplementedError(
        f"{op} has no CUDA kernel yet; move the queries and both tables to the CPU"
    )


def check_ids(argument: str, ids: torch.Tensor, padding: int) -> None:
    """Raises ``IndexError`` unless every id is in ``0 .. padding``. Contiguous int64, CPU."""
    _core.check_ids(argument, ids.data_ptr(), ids.numel(), 0, padding)


def empty_gradients(
    queries: torch.Tensor, id_embeddings: torch.Tensor | None, need_queries: bool, need_ids: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Float32 memory for the gradients of queries and ID embeddings; no elements if not needed.

    A tensor without elements has the address 0, which tells the native op to leave it out.
    """
    grad_queries = torch.empty_like(queries) if need_queries else queries.new_empty(0)
    if need_ids and id_embeddings is not None:
        return grad_queries, queries.new_empty(id_embeddings.shape)
    return grad_queries, queries.new_empty(0)


def finish_gradients(
    grad_queries: torch.Tensor, grad_ids: torch.Tensor, id_embeddings: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The gradients in the dtypes of what they belong to."""
    if id_embeddings is None or grad_ids.numel() == 0:
        return grad_queries, grad_ids
    return grad_queries, grad_ids.to(id_embeddings.dtype)


def fake_gradients(
    queries: torch.Tensor, id_embeddings: torch.Tensor | None, need_queries: bool, need_ids: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """What ``finish_gradients`` returns, for fake kernels."""
    grad_queries = queries.new_empty(queries.shape if need_queries else (0,))
    if need_ids and id_embeddings is not None:
        return grad_queries, id_embeddings.new_empty(id_embeddings.shape)
    return grad_queries, queries.new_empty(0)


def exclude(
    offsets: torch.Tensor | None, ids: torch.Tensor | None, batch: int, padding: int
) -> _core.Exclude:
    """The ids to leave out, sorted for each query, from what ``split_exclude`` returned."""
    if ids is None:
        return _core.Exclude()
    ids = ids.contiguous()
    if offsets is None:
        return _core.Exclude.from_padded(ids.data_ptr(), batch, ids.shape[1], padding)
    offsets = offsets.contiguous()
    return _core.Exclude.from_offsets(
        offsets.data_ptr(), batch, ids.data_ptr(), ids.numel(), padding
    )
