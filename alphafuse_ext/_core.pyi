# The native core (csrc/bindings.cpp). Kernels, with their arguments, are those of csrc/kernels.def;
# python_tests/test_core.py compares.

from typing import Any

from torch import Tensor

version: str
compiler: str
sanitizers: str
cuda_version: str | None
cuda_architectures: str
devices: list[str]

def built_isas() -> list[str]: ...
def supported_isas() -> list[str]: ...
def isa() -> str: ...
def set_isa(name: str, /) -> None: ...
def set_work_of_thread(multiply_adds: int, /) -> None: ...
def padded_rows(rows: int, /) -> int: ...

class Tables:
    semantic_rows: Tensor | None
    id_embeddings: Tensor | None
    fusion: str
    similarity: str
    num_embeddings: int
    dim: int
    null_dim: int
    def __init__(
        self,
        semantic_rows: Tensor | None,
        id_embeddings: Tensor | None,
        fusion: str = "concat",
        similarity: str = "dot",
        first_id: int = 0,
    ) -> None: ...

class cpu:
    class Grouping:
        size: int
        def copy_ids(self, out: Tensor, /) -> None: ...

    class Exclude: ...

    @staticmethod
    def check_ids(argument: str, ids: Tensor, min_id: int, max_id: int, /) -> None: ...
    @staticmethod
    def group_ids(ids: Tensor, rows: int, dense: bool, /) -> Grouping: ...
    @staticmethod
    def exclude_padded(ids: Tensor, num_embeddings: int, /) -> Exclude: ...
    @staticmethod
    def exclude_offsets(offsets: Tensor, ids: Tensor, num_embeddings: int, /) -> Exclude: ...
    @staticmethod
    def rows_of(
        semantic_rows: Tensor | None,
        id_embeddings: Tensor | None,
        fusion: str,
        ids: Tensor,
        threads: int,
        /,
    ) -> Tensor | None: ...
    def __getattr__(self, kernel: str) -> Any: ...
