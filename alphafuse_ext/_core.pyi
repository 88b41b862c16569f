# The native core (csrc/bindings.cpp). Arrays are passed as addresses, dtypes as the codes of
# ops/native.py, 0 for an array that is not there.

version: str
compiler: str
sanitizers: str
cuda_version: str | None
cuda_architectures: str

def built_isas() -> list[str]: ...
def supported_isas() -> list[str]: ...
def isa() -> str: ...
def set_isa(name: str, /) -> None: ...

class Tables:
    rows: int
    dim: int
    null_offset: int
    def __init__(
        self,
        semantic: int,
        semantic_dtype: int,
        semantic_stride: int,
        semantic_cols: int,
        id: int,
        id_dtype: int,
        id_stride: int,
        id_cols: int,
        rows: int,
        first_id: int,
        add: bool,
        cosine: bool,
    ) -> None: ...

class Exclude:
    def __init__(self) -> None: ...
    @staticmethod
    def from_padded(ids: int, batch: int, width: int, num_embeddings: int, /) -> Exclude: ...
    @staticmethod
    def from_offsets(
        offsets: int, batch: int, ids: int, count: int, num_embeddings: int, /
    ) -> Exclude: ...

class Compressed:
    def __init__(
        self,
        semantic_codes: int,
        semantic_bounds: int,
        id_codes: int,
        id_bounds: int,
        inverse_norms: int,
        rows: int,
        /,
    ) -> None: ...

class Grouping:
    count: int
    def __init__(self, ids: int, count: int, first_id: int, rows: int, /) -> None: ...
    def copy_ids(self, out: int, /) -> None: ...

def padded_rows(rows: int, /) -> int: ...
def compress(
    data: int,
    dtype: int,
    stride: int,
    cols: int,
    rows: int,
    codes: int,
    bounds: int,
    threads: int,
    /,
) -> None: ...
def inverse_row_norms(tables: Tables, out: int, threads: int, /) -> None: ...
def check_ids(argument: str, ids: int, count: int, least: int, greatest: int, /) -> None: ...
def lookup(tables: Tables, ids: int, count: int, out: int, dtype: int, threads: int, /) -> None: ...
def lookup_backward(
    grad: int,
    dtype: int,
    dim: int,
    cols: int,
    groups: Grouping,
    dense: bool,
    out: int,
    threads: int,
    /,
) -> None: ...
def score_all(tables: Tables, queries: int, batch: int, out: int, threads: int, /) -> None: ...
def score_all_backward(
    tables: Tables,
    queries: int,
    batch: int,
    grad: int,
    grad_queries: int,
    grad_ids: int,
    threads: int,
    /,
) -> None: ...
def score_candidates(
    tables: Tables,
    queries: int,
    groups: int,
    rows: int,
    candidates: int,
    k: int,
    out: int,
    threads: int,
    /,
) -> None: ...
def score_candidates_grad_queries(
    tables: Tables,
    groups: int,
    rows: int,
    candidates: int,
    k: int,
    grad: int,
    grad_queries: int,
    threads: int,
    /,
) -> None: ...
def score_candidates_grad_ids(
    tables: Tables,
    queries: int,
    rows: int,
    k: int,
    scores: int,
    grad: int,
    groups: Grouping,
    dense: bool,
    out: int,
    threads: int,
    /,
) -> None: ...
def target_scores(
    tables: Tables, queries: int, batch: int, targets: int, out: int, threads: int, /
) -> None: ...
def log_sum_exp(
    tables: Tables, queries: int, batch: int, maxima: int, logs: int, threads: int, /
) -> None: ...
def cross_entropy_backward(
    tables: Tables,
    queries: int,
    batch: int,
    targets: int,
    maxima: int,
    logs: int,
    weights: int,
    grad_queries: int,
    grad_ids: int,
    threads: int,
    /,
) -> None: ...
def topk(
    tables: Tables,
    queries: int,
    batch: int,
    k: int,
    exclude: Exclude,
    compressed: Compressed | None,
    values: int,
    ids: int,
    threads: int,
    /,
) -> tuple[int, int]: ...
def target_ranks(
    tables: Tables,
    queries: int,
    batch: int,
    targets: int,
    scores: int,
    exclude: Exclude,
    compressed: Compressed | None,
    out: int,
    threads: int,
    /,
) -> tuple[int, int]: ...

# Only where cuda_version is not None.
def cuda_lookup(
    tables: Tables, ids: int, count: int, out: int, dtype: int, stream: int, /
) -> None: ...
def cuda_lookup_backward(
    grad: int,
    dtype: int,
    dim: int,
    cols: int,
    ids: int,
    offsets: int,
    entries: int,
    count: int,
    dense: bool,
    out: int,
    stream: int,
    /,
) -> None: ...
def cuda_score_all(
    tables: Tables, queries: int, batch: int, inverse_norms: int, out: int, stream: int, /
) -> None: ...
def cuda_score_all_backward(
    tables: Tables,
    queries: int,
    batch: int,
    inverse_norms: int,
    grad: int,
    grad_queries: int,
    grad_ids: int,
    stream: int,
    /,
) -> None: ...
