"""Other packages' ways to a case: what each needs, and its call, imported when it is made."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from optional import missing
from torch import Tensor

FAISS, CUVS = "FAISS", "cuVS"
TORCH, CUT, LIGER = "linear_cross_entropy", "Cut Cross-Entropy", "Liger"
PEERS = (TORCH, CUT, LIGER, FAISS, CUVS)
"""Cross entropy without the matrix of scores: PyTorch's, by chunks of queries, and Triton's."""

HALVES = (torch.bfloat16, torch.float16)
NEEDS: dict[str, tuple[str | None, str | None, tuple[torch.dtype, ...] | None]] = {
    TORCH: (None, None, None),
    CUT: ("cut_cross_entropy", "cuda", HALVES),
    LIGER: ("liger_kernel", "cuda", None),
    FAISS: ("faiss", "cpu", (torch.float32,)),
    CUVS: ("cuvs", "cuda", (torch.float32, torch.float16)),
}
"""Package, device and types; ``None``: no other package, any."""


def why_not(name: str, device: torch.device, dtype: torch.dtype) -> str | None:
    """Why it cannot compute a case, if so."""
    module, where, dtypes = NEEDS[name]
    if where is not None and device.type != where:
        return f"on {'the CPU' if where == 'cpu' else 'GPUs'} alone"
    if dtypes is not None and dtype not in dtypes:
        return f"not in {str(dtype).removeprefix('torch.')}"
    if name == TORCH and not hasattr(F, "linear_cross_entropy"):
        return f"torch {torch.__version__} has none"
    return missing(module) if module else None


def cross_entropy(targets: Tensor) -> dict[str, Callable[[Tensor, Tensor], Any]]:
    """The mean loss of queries and a table, by name."""

    def of_torch(queries: Tensor, table: Tensor) -> Tensor:
        options = torch.nn.LinearCrossEntropyOptions()  # not the matrix of scores
        return F.linear_cross_entropy(queries, table, targets, options=options)

    def cut(queries: Tensor, table: Tensor) -> Tensor:
        from cut_cross_entropy import linear_cross_entropy

        return linear_cross_entropy(queries, table, targets)

    def liger(queries: Tensor, table: Tensor) -> Tensor:
        from liger_kernel.transformers.fused_linear_cross_entropy import (
            LigerFusedLinearCrossEntropyLoss,
        )

        return LigerFusedLinearCrossEntropyLoss()(table, queries, targets)

    return {TORCH: of_torch, CUT: cut, LIGER: liger}
