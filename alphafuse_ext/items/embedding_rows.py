"""Language embeddings as an array, a tensor or a memory map, read chunk by chunk."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm.auto import tqdm

from alphafuse_ext.checks import invalid, refuse_masked

Embeddings: TypeAlias = np.ndarray | torch.Tensor
"""Rows of float16, float32 or float64 (a tensor also of bfloat16), shape (N, d_l)."""

_CHUNK_BYTES = 64 << 20
_LONG_INPUT_BYTES = 1 << 30


class EmbeddingRows:
    """Language embeddings in float64 chunks, checked as they are read.

    Args:
        embeddings: shape (N, d_l). A memory map (``numpy.load(path, mmap_mode="r")``) may be far
            larger than memory: only one chunk of it is ever copied.
        chunk_rows: rows to a chunk; default: 64 MiB of float64.
        argument: name of ``embeddings`` in error messages.

    Raises:
        TypeError: neither an array nor a tensor, or not of a floating-point type.
        ValueError: not of shape (N, d_l) with N and d_l at least 1, with masked entries, or a
            ``chunk_rows`` below 1.
    """

    def __init__(
        self,
        embeddings: Embeddings,
        chunk_rows: int | None = None,
        argument: str = "language_embeddings",
    ) -> None:
        refuse_masked(argument, embeddings)
        if isinstance(embeddings, np.ndarray):
            floating = embeddings.dtype.kind == "f" and embeddings.dtype.itemsize <= 8
        elif isinstance(embeddings, torch.Tensor):
            floating = embeddings.dtype.is_floating_point and embeddings.dtype.itemsize >= 2
            embeddings = embeddings.detach()
        else:
            raise invalid(
                argument, type(embeddings).__name__, "a NumPy array or a torch tensor", TypeError
            )
        if not floating:
            raise invalid(
                argument,
                f"dtype {embeddings.dtype}",
                "float16, bfloat16, float32, float64",
                TypeError,
            )
        if embeddings.ndim != 2 or 0 in embeddings.shape:
            raise invalid(
                argument,
                f"shape {tuple(embeddings.shape)}",
                "shape (N, d_l) with at least one item and one dimension",
            )
        if chunk_rows is not None and chunk_rows < 1:
            raise invalid("chunk_rows", chunk_rows, "chunk_rows >= 1")
        self._embeddings = embeddings
        self._argument = argument
        self.num_rows, self.width = (int(size) for size in embeddings.shape)
        self.chunk_rows = chunk_rows or max(1, _CHUNK_BYTES // (8 * self.width))

    def chunks(
        self, task: str, progress: bool | None = None
    ) -> Iterator[tuple[slice, NDArray[np.float64]]]:
        """Read all rows once, in order.

        Args:
            task: title of the progress bar.
            progress: show a progress bar; default: if the input is long (1 GiB of float64).

        Yields:
            The range of rows, and a float64 copy of them that the caller may change.

        Raises:
            ValueError: a NaN or an infinity; the message names the first such row.
        """
        if progress is None:
            progress = 8 * self.num_rows * self.width >= _LONG_INPUT_BYTES
        with tqdm(
            total=self.num_rows, desc=task, unit=" items", unit_scale=True, disable=not progress
        ) as bar:
            for start in range(0, self.num_rows, self.chunk_rows):
                where = slice(start, min(start + self.chunk_rows, self.num_rows))
                rows = self._float64(self._embeddings[where])
                self._check_finite(rows, start)
                yield where, rows
                bar.update(where.stop - where.start)

    @staticmethod
    def _float64(rows: Embeddings) -> NDArray[np.float64]:
        if isinstance(rows, torch.Tensor):
            copy = torch.empty(rows.shape, dtype=torch.float64)
            return copy.copy_(rows).numpy()
        return np.array(rows, dtype=np.float64, order="C")

    def _check_finite(self, rows: NDArray[np.float64], start: int) -> None:
        finite = np.isfinite(rows)
        if not finite.all():
            row, column = (int(index[0]) for index in np.nonzero(~finite))
            raise invalid(
                self._argument,
                f"{rows[row, column]} in row {start + row}, column {column}",
                "finite numbers only",
            )
