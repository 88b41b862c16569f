"""The precision of matrix products: on tensor cores, and on the CPU where it has bfloat16."""

from __future__ import annotations

import torch

from alphafuse_ext.ops import native
from alphafuse_ext.ops.graphs import constant_in_graphs
from alphafuse_ext.ops.tables import FusedTables

HALF_TYPES = (torch.bfloat16, torch.float16)


def precision_of(queries: torch.Tensor, tables: FusedTables, exact: bool = False) -> str:
    """The precision of an op's products; accumulation is always in float32.

    The type of queries and tables, if it is one half type. Or else, where the result need not be
    exact, autocast's type, or TF32 if PyTorch allows it to matrix products
    (``torch.set_float32_matmul_precision``, ``torch.backends.cuda.matmul.fp32_precision``). Or else
    float32. On the CPU it is bfloat16, by the same rule, where its kernels have instructions for it
    (``native.cpu_multiplies_bfloat16``) and the result need not be exact, and else float32.

    Args:
        queries: as the user gave them, neither converted nor scaled.
        exact: nothing may be rounded that is not rounded already: for what decides an order.

    Returns:
        ``"float32"``, ``"bfloat16"``, ``"float16"`` or ``"tf32"``, a name in
        ``native.PRECISION_CODES``.
    """
    on_cpu = native.runs_on_cpu(queries)
    if on_cpu and (exact or not native.cpu_multiplies_bfloat16()):
        return "float32"
    wanted = _wanted(queries, tables, exact)
    return "float32" if on_cpu and wanted != "bfloat16" else wanted


def _wanted(queries: torch.Tensor, tables: FusedTables, exact: bool) -> str:
    pair = (tables.semantic_rows, tables.id_embeddings)
    types = {queries.dtype, *(table.dtype for table in pair if table is not None)}
    # Queries of a cosine are divided by their norms, in float32.
    if not tables.cosine and len(types) == 1 and queries.dtype in HALF_TYPES:
        return _name(queries.dtype)
    if exact:
        return "float32"
    device = queries.device.type
    if torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) in HALF_TYPES:
        return _name(torch.get_autocast_dtype(device))
    return "tf32" if _allows_tf32() else "float32"


def precision_of_lists(queries: torch.Tensor, tables: FusedTables) -> str:
    """As :func:`precision_of`, of products with lists of candidates: float32 on a GPU."""
    return precision_of(queries, tables) if native.runs_on_cpu(queries) else "float32"


@constant_in_graphs
def _allows_tf32() -> bool:
    """As it is now; a compiled graph keeps what was allowed when it was compiled."""
    # The setting of torch 2.9 and later follows the older one; where it was set itself, to ask for
    # the older one raises.
    newer = getattr(torch.backends.cuda.matmul, "fp32_precision", None)
    if newer is not None:
        return bool(newer == "tf32")
    return torch.get_float32_matmul_precision() != "highest"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
