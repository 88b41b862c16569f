"""Reading the frozen language embeddings of a catalog."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open

from alphafuse_ext.checks import invalid

_FORMATS = "an array, a tensor, or a file .npy or .safetensors"


def read_embeddings(
    embeddings: str | os.PathLike[str] | npt.NDArray[Any] | torch.Tensor, num_items: int
) -> npt.NDArray[Any]:
    """The language embeddings of `num_items` items; row `k` belongs to item id `k`.

    Values are not looked at here, so that an array larger than memory stays on disk:
    `SemanticSpace.fit` refuses NaN and infinities.

    Args:
        embeddings: shape `(N, d_l)`, float16, float32 or float64 (tensors also bfloat16): an
            array, a tensor, a `.npy` file, or a `.safetensors` file with a single tensor.
        num_items: `N`.

    Returns:
        Shape `(N, d_l)`; a read-only memory map for a `.npy` file; bfloat16 widened to float32.

    Raises:
        FileNotFoundError: there is no such file.
        TypeError: neither path nor array, or values that are no floating-point numbers.
        ValueError: an unreadable or truncated file, or a shape other than `(num_items, d_l)`.
    """
    if isinstance(embeddings, (str, os.PathLike)):
        name = os.fspath(embeddings)
        array = _read_file(Path(name))
    elif isinstance(embeddings, (np.ndarray, torch.Tensor)):
        name = type(embeddings).__name__
        array = embeddings
    else:
        raise invalid("embeddings", type(embeddings).__name__, _FORMATS, TypeError)

    if isinstance(array, torch.Tensor):
        array = array.detach().cpu()
        if array.dtype == torch.bfloat16:
            array = array.float()
        array = array.numpy()
    if array.dtype not in (np.float16, np.float32, np.float64):
        found = f"{name} of dtype {array.dtype}"
        raise invalid("embeddings", found, "float16, float32 or float64", TypeError)
    if array.ndim != 2 or array.shape[1] == 0:
        raise invalid("embeddings", f"{name} of shape {array.shape}", "shape (items, d_l)")
    if len(array) != num_items:
        found = f"{name} with {len(array)} rows"
        raise invalid("embeddings", found, f"one row for each of the {num_items} items")
    return array


def _read_file(path: Path) -> npt.NDArray[Any] | torch.Tensor:
    if not path.exists():
        raise invalid("embeddings", f"{path}, which does not exist", _FORMATS, FileNotFoundError)
    if path.suffix not in {".npy", ".safetensors"} or not path.is_file():
        raise invalid("embeddings", path, _FORMATS)
    try:
        if path.suffix == ".npy":
            return np.load(path, mmap_mode="r", allow_pickle=False)
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
            if len(names) == 1:
                return file.get_tensor(names[0])
    except (ValueError, OSError, EOFError, SafetensorError) as error:
        found = f"{path}, which is unreadable or truncated: {error}"
        raise invalid("embeddings", found, f"a whole {path.suffix} file") from error
    raise invalid("embeddings", f"{path} with {len(names)} tensors {names[:5]}", "one tensor")
