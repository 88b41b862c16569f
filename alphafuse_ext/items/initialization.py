"""Initialization of the ID embeddings."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import nn

from alphafuse_ext.checks import invalid
from alphafuse_ext.choices import INITS
from alphafuse_ext.config.item_embedding import Initial

_Init = Callable[[torch.Tensor, torch.Generator | None], object]


def _sparse(weight: torch.Tensor, generator: torch.Generator | None) -> None:
    """As ``nn.init.sparse_(weight, 0.01, std=1)``, whose row choice has no generator."""
    weight.normal_(generator=generator)
    num_items = weight.shape[0]
    num_zeros = math.ceil(0.01 * num_items)
    for column in weight.unbind(1):
        column[torch.randperm(num_items, generator=generator)[:num_zeros]] = 0.0


_INITS: dict[str, _Init] = {
    "zeros": lambda weight, generator: weight.zero_(),
    "normal": lambda weight, generator: weight.normal_(generator=generator),
    "uniform": lambda weight, generator: weight.uniform_(generator=generator),
    "orthogonal": lambda weight, generator: nn.init.orthogonal_(weight, generator=generator),
    "xavier_uniform": lambda weight, generator: nn.init.xavier_uniform_(
        weight, generator=generator
    ),
    "xavier_normal": lambda weight, generator: nn.init.xavier_normal_(weight, generator=generator),
    "sparse": _sparse,
}


def init_id_embeddings(
    num_items: int,
    null_dim: int,
    init: str = Initial.init,
    scale: float = 1.0,
    generator: torch.Generator | None = None,
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """Create ID embeddings.

    Args:
        num_items: ``N``.
        null_dim: ``d_n``, their width.
        init: one of

            - ``"zeros"``;
            - ``"normal"``: mean 0, standard deviation 1;
            - ``"uniform"``: between 0 and 1;
            - ``"orthogonal"``: orthonormal columns (rows, where columns outnumber items);
            - ``"xavier_uniform"``: between ``-a`` and ``a``, ``a = sqrt(6 / (N + d_n))``;
            - ``"xavier_normal"``: mean 0, standard deviation ``sqrt(2 / (N + d_n))``;
            - ``"sparse"``: normal(0, 1), but 1% of each column (rounded up) is zero, as the public
              AlphaFuse code has it.

        scale: factor applied to every value.
        generator: source of randomness, on the CPU; torch's default one where ``None``.
        dtype: float32, bfloat16 or float16; drawn in float32 and rounded once.

    Returns:
        Shape (num_items, null_dim), on the CPU.

    Raises:
        ValueError: a size below 1, an unknown ``init``, or a ``scale`` that is not finite.
    """
    if init not in _INITS:
        raise invalid("init", repr(init), " or ".join(map(repr, INITS)))
    for argument, size in (("num_items", num_items), ("null_dim", null_dim)):
        if size < 1:
            raise invalid(argument, size, f"{argument} >= 1")
    if not math.isfinite(scale):
        raise invalid("init_scale", scale, "a finite number")
    weight = torch.empty(num_items, null_dim)
    with torch.no_grad():
        _INITS[init](weight, generator)
        weight *= scale
    return weight.to(dtype)
