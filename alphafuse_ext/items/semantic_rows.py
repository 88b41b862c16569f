"""Semantic rows of an item table, made of language embeddings chunk by chunk."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryFile
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from alphafuse_ext.checks import invalid
from alphafuse_ext.files import PathLike, load_tensors, new_tensor_file
from alphafuse_ext.items.embedding_rows import EmbeddingRows, Embeddings
from alphafuse_ext.items.space import SemanticSpace
from alphafuse_ext.ops.arguments import FLOAT_TYPES

# The kind of semantic files, and how many rows are converted at once.
_FILE = "semantic rows"
_CHUNK = 1 << 18

Sum: TypeAlias = Callable[[Tensor], Tensor]


def check_semantic_dtype(dtype: torch.dtype) -> None:
    """Raises ``TypeError`` for a dtype that semantic rows are not kept in."""
    if dtype not in FLOAT_TYPES:
        raise invalid("semantic_dtype", dtype, "float32, bfloat16 or float16", TypeError)


def semantic_rows_of(
    space: SemanticSpace,
    language_embeddings: Embeddings,
    dim: int | None,
    standardize: bool,
    semantic_rms: float | None,
    chunk_rows: int | None,
    progress: bool | None,
    gains: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
    file: PathLike | None = None,
    sum_: Sum | None = None,
) -> Tensor:
    """Singular coordinates, scaled to the given root mean square.

    Args:
        gains: divide each coordinate by its own, after that.
        dtype: of the result.
        file: where to keep it, as a memory map, in place of memory.
        sum_: of what is counted here, over the shards of a catalog; ``None``: this is all of it.
    """

    def fill(out: Tensor | None) -> Tensor:
        rows = space.transform(
            language_embeddings, dim, standardize, out, chunk_rows=chunk_rows, progress=progress
        )
        if semantic_rms is not None:
            rows *= _factor(rows, semantic_rms, sum_)
        if gains is not None:
            rows /= gains
        return rows

    if semantic_rms is not None and not 0.0 < semantic_rms < float("inf"):
        raise invalid("semantic_rms", semantic_rms, "a positive finite number, or None")
    if file is None:
        return fill(None).to(dtype)
    shape = EmbeddingRows(language_embeddings).num_rows, space.check_dim(dim)
    with new_tensor_file(file, _FILE, "semantic_rows", shape, dtype) as kept:
        if dtype == torch.float32:
            fill(kept)
        else:
            with TemporaryFile(dir=Path(file).parent) as scratch:
                scratch.truncate(4 * shape[0] * shape[1])
                rows = fill(torch.from_numpy(np.memmap(scratch, np.float32, "r+", 0, shape)))
                for start in range(0, shape[0], _CHUNK):
                    kept[start : start + _CHUNK] = rows[start : start + _CHUNK]
    return load_tensors(file, _FILE)[0]["semantic_rows"]


def _factor(rows: Tensor, semantic_rms: float, sum_: Sum | None) -> float:
    """The factor that scales the root mean square over rows with text to ``semantic_rms``."""
    norms = torch.linalg.vector_norm(rows, dim=1).double()
    found = torch.stack([norms.square().sum(), (norms > 0).sum()])
    squares, with_text = (found if sum_ is None else sum_(found)).tolist()
    if with_text == 0:
        raise invalid(
            "language_embeddings",
            "rows that are all alike: no factor gives their coordinates, all zero, a semantic_rms",
            "rows that differ from item to item, or semantic_rms=None",
        )
    return semantic_rms / math.sqrt(squares / (with_text * rows.shape[1]))
