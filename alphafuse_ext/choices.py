"""The allowed values of arguments.

Without PyTorch, so that the command line's help does not wait for it.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

FUSIONS = ("concat", "add")
SIMILARITIES = ("dot", "cosine")
COORDINATES = ("singular", "original", "projected")
INITS = (
    *("zeros", "normal", "uniform", "orthogonal", "xavier_uniform", "xavier_normal", "sparse"),
)
"""Names that :func:`~alphafuse_ext.items.initialization.init_id_embeddings` knows."""
SCHEDULES: tuple[str, ...] = ("linear", "cosine", "exp", "sqrt")
SAMPLERS: tuple[str, ...] = ("ddim", "ddpm")

TieRule: TypeAlias = Literal["id", "mean"]
TIE_RULES: tuple[TieRule, ...] = ("id", "mean")
COLUMNS = ("plain", "rectools")
"""Whose names the columns of recommendations have."""
EXPORT_FORMATS = ("safetensors", "faiss", "usearch", "onnx")
