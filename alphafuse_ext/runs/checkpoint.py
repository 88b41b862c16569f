"""Checkpoints as differences to the start of a run, so that they stay small for large catalogs.

Lazy Adam changes the rows that an epoch touched; with sampled negatives and a catalog far larger
than the data most rows keep their first values, and moments of zero, to the end of the run. A
matrix of which few rows differ is kept as those rows and their numbers, everything else whole. A
changed row of the ID embeddings then costs an epoch ``12 * width + 24`` bytes (value, two moments,
three numbers), and a row that never changed nothing.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

_NUMBERS = "/rows"
_CHUNK = 1 << 16
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def changes(tensors: Mapping[str, Tensor], start: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The difference from which :func:`apply_changes` restores ``tensors``, bitwise.

    Args:
        tensors: by name, on any device.
        start: tensors of the same names, shapes and dtypes, on the CPU. A name that it lacks
            starts at zeros.

    Returns:
        On the CPU, by name: the tensor; or some of its rows, beside their numbers and, last, the
        number of all rows, int64, under the name with ``/rows`` appended.
    """
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu()
        if tensor.ndim == 2:
            rows = _changed_rows(tensor, start.get(name))
            row_bytes = tensor.shape[1] * tensor.element_size()
            if len(rows) * (row_bytes + rows.element_size()) < len(tensor) * row_bytes:
                found[name + _NUMBERS] = torch.cat([rows, torch.tensor([len(tensor)])])
                tensor = tensor[rows]
        found[name] = tensor
    return found


def apply_changes(found: Mapping[str, Tensor], start: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors that :func:`changes` was given.

    Args:
        found: what it returned.
        start: as given to it; left as it is.
    """
    tensors: dict[str, Tensor] = {}
    for name, tensor in found.items():
        if name.endswith(_NUMBERS):
            continue
        if (numbers := found.get(name + _NUMBERS)) is not None:
            rows, count = numbers[:-1], int(numbers[-1])
            whole = (
                start[name].clone() if name in start else tensor.new_zeros(count, tensor.shape[1])
            )
            whole[rows] = tensor
            tensor = whole
        tensors[name] = tensor
    return tensors


def _changed_rows(tensor: Tensor, start: Tensor | None) -> Tensor:
    """Numbers of the rows that differ in a bit: 0.0 and -0.0 do, a NaN and itself do not."""
    bits = _BITS[tensor.element_size()]
    now = tensor.contiguous().view(bits)
    then = None if start is None else start.contiguous().view(bits)
    # In chunks, so that no comparison of the table's size is held.
    chunks = [
        (now[first : first + _CHUNK] != (0 if then is None else then[first : first + _CHUNK]))
        .any(1)
        .nonzero()[:, 0]
        + first
        for first in range(0, len(now), _CHUNK)
    ]
    return torch.cat(chunks) if chunks else torch.empty(0, dtype=torch.int64)
