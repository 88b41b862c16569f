"""Random inputs for the tests of the ops, and the comparison with the reference in float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

import torch

from alphafuse_ext import ops
from alphafuse_ext.ops import reference

Tensors = tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]
"""Queries, semantic rows, ID embeddings."""

TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}
"""Relative to the largest value; for sums kept in float32 and then rounded to the dtype."""


@dataclass(frozen=True)
class TableCase:
    """A kind of table."""

    dim: int = 19
    null_dim: int = 7
    fusion: str = "concat"
    semantic_dtype: torch.dtype | None = torch.float32
    id_dtype: torch.dtype | None = torch.float32
    num_embeddings: int = 261
    """More than two tiles, and not a multiple of any vector's width."""

    def __str__(self) -> str:
        names = [
            "none" if dtype is None else str(dtype).removeprefix("torch.")
            for dtype in (self.semantic_dtype, self.id_dtype)
        ]
        return f"{self.fusion}-{self.dim}-{self.null_dim}-{'-'.join(names)}-{self.num_embeddings}"

    def tables(
        self, device: torch.device | None = None
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Random semantic rows and ID embeddings; one row is zero, two pairs of rows are equal."""
        semantic_dim = self.dim if self.fusion == "add" else self.dim - self.null_dim
        if self.id_dtype is None:
            semantic_dim = self.dim
        semantic = _table(self.num_embeddings, semantic_dim, self.semantic_dtype, device)
        null_dim = self.dim if self.semantic_dtype is None else self.null_dim
        return semantic, _table(self.num_embeddings, null_dim, self.id_dtype, device)


def _table(
    rows: int, cols: int, dtype: torch.dtype | None, device: torch.device | None
) -> torch.Tensor | None:
    if dtype is None:
        return None
    table = torch.randn(rows, cols, device=device).to(dtype)
    if rows > 200:
        table[3] = 0
        table[200] = table[5]
        table[131] = table[7]
    return table


CASES = [
    *(TableCase(dim=dim, null_dim=n) for dim in (2, 3, 100, 129) for n in {1, dim - 1}),
    *(
        TableCase(dim=dim, null_dim=n, fusion="add")
        for dim in (2, 3, 100, 129)
        for n in {1, dim - 1, dim}
    ),
    *(
        TableCase(fusion=fusion, semantic_dtype=semantic, id_dtype=ids)
        for fusion in ("concat", "add")
        for semantic in TOLERANCE
        for ids in TOLERANCE
    ),
    *(TableCase(semantic_dtype=None, id_dtype=dtype) for dtype in TOLERANCE),
    *(TableCase(semantic_dtype=dtype, id_dtype=None) for dtype in TOLERANCE),
    *(TableCase(num_embeddings=n) for n in (1, 2, 127, 128, 129)),
]


def wide(tensor: torch.Tensor | None) -> torch.Tensor | None:
    """A float64 copy on the CPU, which may have a gradient of its own."""
    return None if tensor is None else tensor.detach().double().cpu()


def assert_near(
    actual: torch.Tensor,
    expected: torch.Tensor,
    dtype: torch.dtype = torch.float32,
    addend: float = 1e-3,
) -> None:
    """Checks values against float64 ones, relative to the largest of these.

    Args:
        addend: size of what is added up, if that is larger: a sum is rounded like its addends, and
            a single one, or a few, may come out near zero.
    """
    finite = expected[expected.isfinite()]
    scale = max(addend, finite.abs().max().item() if finite.numel() else 0.0)
    torch.testing.assert_close(
        actual.double().cpu(), expected, rtol=0, atol=TOLERANCE[dtype] * scale, equal_nan=True
    )


def check_against_reference(
    call: Callable[
        [ModuleType, torch.Tensor, torch.Tensor | None, torch.Tensor | None], torch.Tensor
    ],
    queries: torch.Tensor,
    semantic_rows: torch.Tensor | None,
    id_embeddings: torch.Tensor | None,
) -> None:
    """Compares an op's result and gradients with those of the reference in float64.

    Args:
        call: ``call(module, queries, semantic_rows, id_embeddings)`` calls the op of ``module``.
    """
    results = []
    grad: torch.Tensor | None = None
    for module, q, s, e in (
        (ops, queries.detach(), semantic_rows, id_embeddings),
        (reference, wide(queries), wide(semantic_rows), wide(id_embeddings)),
    ):
        assert q is not None
        q = q.requires_grad_()
        e = None if e is None else e.detach().requires_grad_()
        result = call(module, q, s, e)
        if grad is None:
            grad = torch.randn(result.shape).masked_fill(result.detach().cpu().isinf(), 0)
            grad = grad.to(result.dtype)
        if result.requires_grad:
            result.backward(grad.to(result.dtype).to(result.device))
        results.append((result.detach(), q.grad, None if e is None else e.grad))

    (result, q_grad, e_grad), (expected, q_expected, e_expected) = results
    addend = queries.abs().median().item() if queries.numel() else 1e-3
    assert_near(result, expected, result.dtype, addend)
    for name, actual, wanted, dtype in (
        ("queries", q_grad, q_expected, queries.dtype),
        ("id_embeddings", e_grad, e_expected, None if e_grad is None else e_grad.dtype),
    ):
        if wanted is None:
            assert actual is None or not actual.any(), name
        else:
            assert actual is not None, name
            assert_near(actual.to_dense(), wanted, dtype or torch.float32)
