"""The ops that ``scoring.py`` measures: each is one function from sizes to a :class:`Case`.

To add an op, write its function and give it a line in :data:`OPS`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from ops import peers
from torch import Tensor

from alphafuse_ext import ops

INT64 = 8


# --- tables ---------------------------------------------------------------------------------------


class Table(Protocol):
    """What a plain version of an op reads items from."""

    def weight(self) -> Tensor:
        """All rows, ``(N, dim)``."""

    def rows(self, ids: Tensor) -> Tensor:
        """The rows of ``ids``, ``(*ids.shape, dim)``."""


def fuse(semantic_rows: Tensor, id_embeddings: Tensor, fusion: str) -> Tensor:
    """One embedding from two, in plain PyTorch."""
    if fusion == "concat":
        return torch.cat([semantic_rows, id_embeddings], dim=-1)
    return semantic_rows + F.pad(
        id_embeddings, (semantic_rows.shape[-1] - id_embeddings.shape[-1], 0)
    )


class FusedOnEachCall:
    """Two tables that are fused whenever they are read, as plain PyTorch has to."""

    def __init__(
        self, semantic_rows: Tensor, id_embeddings: Tensor, fusion: str, sparse: bool
    ) -> None:
        self.semantic_rows = semantic_rows
        self.id_embeddings = id_embeddings
        self.fusion = fusion
        self.sparse = sparse

    def weight(self) -> Tensor:
        return fuse(self.semantic_rows, self.id_embeddings, self.fusion)

    def rows(self, ids: Tensor) -> Tensor:
        return fuse(
            F.embedding(ids, self.semantic_rows),
            F.embedding(ids, self.id_embeddings, sparse=self.sparse),
            self.fusion,
        )


class ReadyTable:
    """One table of fused rows, as an ``nn.Embedding`` without AlphaFuse would hold it."""

    def __init__(self, table: Tensor, sparse: bool) -> None:
        self.table = table
        self.sparse = sparse

    def weight(self) -> Tensor:
        return self.table

    def rows(self, ids: Tensor) -> Tensor:
        return F.embedding(ids, self.table, sparse=self.sparse)


@dataclass
class Catalog:
    """Random tables of ``num_items`` items, and the sizes that the ops take beside them.

    ``dtype`` is that of tables and queries, of all contenders.
    """

    num_items: int
    dim: int
    null_dim: int
    fusion: str
    device: torch.device
    generator: torch.Generator
    dtype: torch.dtype = torch.float32
    k: int = 20
    num_candidates: int = 64
    num_excluded: int = 50
    num_listed: int = 100
    semantic_rows: Tensor = field(init=False)
    id_embeddings: Tensor = field(init=False)
    table: Tensor = field(init=False)

    def __post_init__(self) -> None:
        semantic_dim = self.dim - self.null_dim if self.fusion == "concat" else self.dim
        self.semantic_rows = self.normal(self.num_items, semantic_dim)
        self.id_embeddings = self.normal(self.num_items, self.null_dim)
        self.table = fuse(self.semantic_rows, self.id_embeddings, self.fusion)

    @property
    def bytes_of_value(self) -> int:
        return self.dtype.itemsize

    def normal(self, *shape: int) -> Tensor:
        drawn = torch.randn(*shape, generator=self.generator, device=self.device)
        return drawn.to(self.dtype)

    def uniform(self, *shape: int) -> Tensor:
        return torch.rand(*shape, generator=self.generator, device=self.device)

    def queries(self, batch: int) -> Tensor:
        """Queries whose scores have a standard deviation of about 1."""
        return self.normal(batch, self.dim) * self.dim**-0.5

    def ids(self, *shape: int) -> Tensor:
        return torch.randint(self.num_items, shape, generator=self.generator, device=self.device)

    @property
    def id_bytes(self) -> int:
        return self.id_embeddings.nbytes

    @property
    def table_bytes(self) -> int:
        """What reading the whole catalog once has to read."""
        return self.semantic_rows.nbytes + self.id_embeddings.nbytes

    def touched_bytes(self, ids: Tensor, sparse: bool) -> tuple[float, float]:
        """What reading ``ids`` and their rows reads, and what their gradient writes, at least."""
        touched = ids.unique().numel()
        read = ids.nbytes + touched * self.table_bytes / self.num_items
        if sparse:
            return read, touched * (INT64 + self.null_dim * self.bytes_of_value)
        return read, self.id_bytes

    @functools.cached_property
    def compressed(self) -> ops.CompressedTables:
        """The tables in int8, for a first pass."""
        return ops.CompressedTables(self.semantic_rows, self.id_embeddings, self.fusion)

    @functools.cached_property
    def faiss_index(self) -> Any:
        """The ready table in FAISS."""
        import faiss

        faiss.omp_set_num_threads(torch.get_num_threads())
        index = faiss.IndexFlatIP(self.dim)
        index.add(self.table.numpy())
        return index

    @functools.cached_property
    def cuvs_index(self) -> Any:
        """The ready table in cuVS."""
        from cuvs.neighbors import brute_force

        return brute_force.build(self.table, metric="inner_product")

    def allowed(self, relative: float) -> float:
        """A relative error for comparisons: in half precision a few roundings of results."""
        return relative if self.dtype == torch.float32 else max(relative, 2e-2)


# --- cases ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Work:
    """The least that any implementation does, and what the plain one holds meanwhile.

    ``flops`` counts the products' multiply-adds as two; ``bytes`` what must be read and written,
    everything once. ``plain_bytes`` and ``our_bytes`` estimate peaks of memory, to decide what fits
    at all, with what a comparison holds beside them.
    """

    flops: float
    bytes: float
    plain_bytes: float
    our_bytes: float = 0.0


@dataclass(frozen=True)
class Case:
    """One op on one catalog with one batch.

    ``ours(queries, semantic_rows, id_embeddings)`` and ``plain(queries, table)`` compute the same.
    ``check(result, expected)`` raises :class:`Mismatch`. ``units`` is what throughput counts: rows
    read or scores defined. ``forward`` and ``backward`` (forward and backward together) are
    ``None`` where there is nothing to measure; ``grad_output`` is ``None`` for a scalar loss.
    ``first_pass``: ``ours`` takes one too. ``searches`` are other packages' searches, each with
    what makes its index, and ``on_ready_table`` their functions of queries and a ready table.
    """

    queries: Tensor | None
    ours: Callable[..., Any]
    plain: Callable[[Any, Table], Any]
    check: Callable[[Any, Any], None]
    units: float
    forward: Work | None
    backward: Work | None = None
    grad_output: Callable[[], Tensor] | None = None
    searches: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = field(default_factory=dict)
    on_ready_table: dict[str, Callable[[Tensor, Tensor], Any]] = field(default_factory=dict)
    first_pass: bool = False
    sparse: bool = False


class Mismatch(Exception):
    """Two contenders disagree; the message says about what, where and by how much."""


def check_close(
    what: str, result: Tensor, expected: Tensor, relative: float, of_median: float
) -> None:
    """Raises :class:`Mismatch` unless ``|error| <= relative * |expected| + of_median * median``.

    The median is that of what is not 0 in ``|expected|``: a few large values (a gradient's target
    rows) must not hide errors in all the others. Of a tensor over 64M values, evenly spaced rows
    are compared.
    """
    if result.shape != expected.shape:
        raise Mismatch(f"{what}: shape {tuple(result.shape)} against {tuple(expected.shape)}")
    result, expected = sampled_rows(result).float(), sampled_rows(expected).float()
    some = expected.flatten()[:: max(1, expected.numel() // 1_000_000)].abs()
    some = some[some > 0]
    median = float(some.median()) if some.numel() else 0.0
    error = (result - expected).abs_()
    wrong = ~(error <= relative * expected.abs() + of_median * median)  # a NaN is wrong
    if bool(wrong.any()):
        error = torch.where(wrong, error.nan_to_num(nan=torch.inf), error.new_zeros(()))
        at = int(error.argmax())
        raise Mismatch(
            f"{what}: {int(wrong.sum())} of {wrong.numel()} values differ; the worst: "
            f"{float(result.flatten()[at]):.7g} against {float(expected.flatten()[at]):.7g} "
            f"(allowed: {relative:g} of it and {of_median:g} of the median, {median:.3g})"
        )


def sampled_rows(values: Tensor, most: int = 1 << 26) -> Tensor:
    """Evenly spaced rows of a tensor that has more than ``most`` values."""
    if values.dim() < 2 or values.numel() <= most:
        return values
    return values[:: -(-values.numel() // most)]


def check_outputs(catalog: Catalog, result: Tensor, expected: Tensor) -> None:
    """A differentiable op's values."""
    check_close("values", result, expected, catalog.allowed(1e-5), catalog.allowed(1e-4))


def check_gradients(catalog: Catalog, result: list[Tensor], expected: list[Tensor]) -> None:
    """Gradients of queries, where there are any, and ID embeddings.

    A gradient of a ready table has more columns; its last ``null_dim`` are those of the ID
    embeddings.
    """

    def check(what: str, mine: Tensor, reference: Tensor) -> None:
        if catalog.dtype == torch.float32:
            check_close(what, mine, reference, 1e-4, 1e-3)
            return
        # In half precision PyTorch rounds the gradient of each score, of which these are sums.
        mine, reference = sampled_rows(mine).float(), sampled_rows(reference).float()
        error = float((mine - reference).norm() / reference.norm())
        if not error < 5e-2:
            raise Mismatch(f"{what}: differs by {error:.2g} of its norm (allowed: 0.05)")

    for mine, reference in zip(result[:-1], expected[:-1], strict=True):
        check("gradient of queries", mine, reference)
    mine, reference = (
        (grads[-1].to_dense() if grads[-1].is_sparse else grads[-1])[:, -catalog.null_dim :]
        for grads in (result, expected)
    )
    check("gradient of id_embeddings", mine, reference)


# --- the ops --------------------------------------------------------------------------------------


def lookup(catalog: Catalog, batch: int, sparse: bool = False) -> Case:
    """Fused rows of ``batch`` uniform ids."""
    ids = catalog.ids(batch)
    rows = batch * catalog.dim * catalog.bytes_of_value
    read, gradient = catalog.touched_bytes(ids, sparse)
    id_rows = batch * catalog.null_dim * catalog.bytes_of_value
    return Case(
        queries=None,
        ours=lambda _, semantic_rows, id_embeddings: ops.lookup(
            ids, semantic_rows, id_embeddings, fusion=catalog.fusion, sparse=sparse
        ),
        plain=lambda _, table: table.rows(ids),
        check=functools.partial(check_outputs, catalog),
        units=batch,
        forward=None if sparse else Work(0, read + rows, 2 * rows),
        backward=Work(0, read + rows + id_rows + gradient, 4 * rows + 2 * catalog.id_bytes),
        grad_output=lambda: catalog.normal(batch, catalog.dim),
        sparse=sparse,
    )


def score_candidates(catalog: Catalog, batch: int, sparse: bool = False) -> Case:
    """Scores of ``num_candidates`` items for each query."""
    queries = catalog.queries(batch)
    candidates = catalog.ids(batch, catalog.num_candidates)
    scores = candidates.numel()
    touched, gradient = catalog.touched_bytes(candidates, sparse)
    read = queries.nbytes + touched
    rows = scores * catalog.dim * catalog.bytes_of_value
    return Case(
        queries=queries,
        ours=lambda queries, semantic_rows, id_embeddings: ops.score_candidates(
            queries, candidates, semantic_rows, id_embeddings, fusion=catalog.fusion, sparse=sparse
        ),
        plain=lambda queries, table: torch.einsum("bd,bkd->bk", queries, table.rows(candidates)),
        check=functools.partial(check_outputs, catalog),
        units=scores,
        forward=None
        if sparse
        else Work(2 * scores * catalog.dim, read + catalog.bytes_of_value * scores, 3 * rows),
        backward=Work(
            2 * scores * (2 * catalog.dim + catalog.null_dim),
            read + catalog.bytes_of_value * scores * 2 + queries.nbytes + gradient,
            5 * rows + 2 * catalog.id_bytes,
        ),
        grad_output=lambda: catalog.normal(batch, catalog.num_candidates),
        sparse=sparse,
    )


def score_all(catalog: Catalog, batch: int) -> Case:
    """All scores, ``(batch, N)``."""
    queries = catalog.queries(batch)
    scores = batch * catalog.num_items
    read = catalog.table_bytes + queries.nbytes
    table = catalog.table.nbytes
    return Case(
        queries=queries,
        ours=lambda queries, semantic_rows, id_embeddings: ops.score_all(
            queries, semantic_rows, id_embeddings, fusion=catalog.fusion
        ),
        plain=lambda queries, table: queries @ table.weight().T,
        check=functools.partial(check_outputs, catalog),
        units=scores,
        forward=Work(
            2 * scores * catalog.dim,
            read + catalog.bytes_of_value * scores,
            table + 2 * catalog.bytes_of_value * scores,
            2 * catalog.bytes_of_value * scores,
        ),
        backward=Work(
            2 * scores * (2 * catalog.dim + catalog.null_dim),
            read + 2 * catalog.bytes_of_value * scores + queries.nbytes + catalog.id_bytes,
            2 * table + 3 * catalog.bytes_of_value * scores,
            3 * catalog.bytes_of_value * scores,
        ),
        # An outer product is dense, and takes no minutes to draw.
        grad_output=lambda: (
            catalog.uniform(batch, 1).to(catalog.dtype)
            * catalog.uniform(1, catalog.num_items).to(catalog.dtype)
        ),
    )


def cross_entropy(catalog: Catalog, batch: int) -> Case:
    """The mean of the full-catalog softmax loss."""
    queries, targets = catalog.queries(batch), catalog.ids(batch)
    scores = batch * catalog.num_items
    read = catalog.table_bytes + queries.nbytes + INT64 * batch
    table = catalog.table.nbytes
    return Case(
        queries=queries,
        ours=lambda queries, semantic_rows, id_embeddings: ops.cross_entropy(
            queries, targets, semantic_rows, id_embeddings, fusion=catalog.fusion
        ),
        plain=lambda queries, table: F.cross_entropy(queries @ table.weight().T, targets),
        check=lambda result, expected: check_close(
            "loss", result, expected, catalog.allowed(1e-5), 0
        ),
        units=scores,
        forward=Work(2 * scores * catalog.dim, read, table + 2 * catalog.bytes_of_value * scores),
        # Scores could be kept from the forward pass, so the least does not compute them twice.
        backward=Work(
            2 * scores * (2 * catalog.dim + catalog.null_dim),
            read + queries.nbytes + catalog.id_bytes,
            table + 3 * catalog.bytes_of_value * scores,
        ),
        on_ready_table=peers.cross_entropy(targets),
    )


def topk(catalog: Catalog, batch: int, excluding: bool = False) -> Case:
    """The ``k`` best items of each query, without ``num_excluded`` of them if ``excluding``."""
    queries = catalog.queries(batch)
    exclude = catalog.ids(batch, catalog.num_excluded) if excluding else None
    scores = batch * catalog.num_items

    def plain(queries: Tensor, table: Table) -> Any:
        scores = queries @ table.weight().T
        if exclude is not None:
            scores = scores.scatter_(1, exclude, -torch.inf)
        values, ids = torch.topk(scores, catalog.k)
        return values, ids

    def by_search(search: Callable[[int], tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        # No exclusion for each query: search deeper, then drop what is excluded.
        k = min(catalog.k + (0 if exclude is None else exclude.shape[1]), catalog.num_items)
        values, ids = search(k)
        if exclude is None:
            return values, ids
        dropped = (ids[:, :, None] == exclude[:, None, :]).any(-1).to(torch.uint8)
        kept = dropped.argsort(dim=1, stable=True)[:, : catalog.k]
        return values.gather(1, kept), ids.gather(1, kept)

    def faiss(k: int) -> tuple[Tensor, Tensor]:
        values, ids = catalog.faiss_index.search(queries.numpy(), k)
        return torch.from_numpy(values), torch.from_numpy(ids)

    def cuvs(k: int) -> tuple[Tensor, Tensor]:
        from cuvs.neighbors import brute_force

        found = brute_force.search(catalog.cuvs_index, queries, k)
        values, ids = (torch.as_tensor(part, device=catalog.device) for part in found)
        return values, ids.long()

    def check(result: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor]) -> None:
        allowed = catalog.allowed(1e-5), catalog.allowed(1e-5)
        check_close("values", result[0], expected[0], *allowed)
        # Items of equal value may trade places; each must score what is claimed, and stand once.
        for values, ids in (result, expected):
            rows = catalog.table[ids]
            scores = torch.einsum("bd,bkd->bk", queries.float(), rows.float())
            check_close("values of ids", values, scores, *allowed)
            ordered = ids.sort(dim=1).values
            if bool((ordered[:, 1:] == ordered[:, :-1]).any()):
                raise Mismatch("ids: an item stands twice in one list")
            if exclude is not None and bool((ids[:, :, None] == exclude[:, None, :]).any()):
                raise Mismatch("ids: an excluded item is in a list")

    return Case(
        queries=queries,
        ours=lambda queries, semantic_rows, id_embeddings, first_pass=None: ops.topk(
            queries,
            catalog.k,
            semantic_rows,
            id_embeddings,
            fusion=catalog.fusion,
            exclude=exclude,
            first_pass=first_pass,
        ),
        plain=plain,
        check=check,
        units=scores,
        forward=Work(
            2 * scores * catalog.dim,
            catalog.table_bytes
            + queries.nbytes
            + batch * catalog.k * (catalog.bytes_of_value + INT64)
            + (0 if exclude is None else exclude.nbytes),
            catalog.table.nbytes + 1.1 * catalog.bytes_of_value * scores,
        ),
        searches={
            peers.FAISS: (lambda: by_search(faiss), lambda: catalog.faiss_index),
            peers.CUVS: (lambda: by_search(cuvs), lambda: catalog.cuvs_index),
        },
        first_pass=True,
    )


def topk_mixture(catalog: Catalog, batch: int) -> Case:
    """The ``k`` best items of a softmax mixed with probabilities of ``num_listed`` items."""
    queries, weight = catalog.queries(batch), 0.2
    listed = catalog.ids(batch, min(catalog.num_listed, catalog.num_items)).sort(1).values
    listed[:, 1:] = listed[:, 1:].masked_fill(listed[:, 1:] == listed[:, :-1], -1)
    probabilities = catalog.uniform(*listed.shape).masked_fill(listed < 0, 0.0) / listed.shape[1]
    mixture = ops.Mixture(listed, probabilities, weight)
    scores = batch * catalog.num_items

    def mixed(scores: Tensor, rows: slice) -> Tensor:
        found = (1 - weight) * scores.softmax(1)
        ids = listed[rows].clamp(min=0)
        own = (weight * probabilities[rows]).to(found.dtype)
        return found.scatter_add_(1, ids, own).log()

    def plain(queries: Tensor, table: Table) -> Any:
        values, ids = torch.topk(mixed(queries @ table.weight().T, slice(None)), catalog.k)
        return values, ids

    def check(result: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor]) -> None:
        allowed = catalog.allowed(1e-5), catalog.allowed(1e-4)
        check_close("values", result[0], expected[0], *allowed)
        # Items of nearly equal probability may trade places; each has what is claimed.
        for start in range(0, batch, 64):
            some = slice(start, start + 64)
            dense = mixed(queries[some].float() @ catalog.table.float().T, some)
            for values, ids in (result, expected):
                own = dense.gather(1, ids[some])
                check_close("values of ids", values[some], own, *allowed)

    return Case(
        queries=queries,
        ours=lambda queries, semantic_rows, id_embeddings, first_pass=None: ops.topk(
            queries,
            catalog.k,
            semantic_rows,
            id_embeddings,
            fusion=catalog.fusion,
            first_pass=first_pass,
            mixture=mixture,
        ),
        plain=plain,
        check=check,
        units=scores,
        forward=Work(
            2 * scores * catalog.dim,
            catalog.table_bytes
            + queries.nbytes
            + batch * catalog.k * (catalog.bytes_of_value + INT64)
            + listed.nbytes
            + probabilities.nbytes,
            catalog.table.nbytes + 3 * catalog.bytes_of_value * scores,
        ),
        first_pass=True,
    )


def target_ranks(catalog: Catalog, batch: int) -> Case:
    """The place of each query's target among all items."""
    queries, targets = catalog.queries(batch), catalog.ids(batch)
    scores = batch * catalog.num_items
    item_ids = torch.arange(catalog.num_items, device=catalog.device)

    def plain(queries: Tensor, table: Table) -> Tensor:
        scores = queries @ table.weight().T
        target_scores = scores.gather(1, targets[:, None])
        before = (scores == target_scores) & (item_ids < targets[:, None])
        return ((scores > target_scores) | before).sum(1)

    @functools.cache
    def bounds() -> tuple[Tensor, Tensor]:
        """The least and the largest rank that rounding allows: 1e-5 for scores of about 1."""
        least, largest = [], []
        error = catalog.allowed(1e-5)
        for some_queries, some_targets in zip(queries.split(64), targets.split(64), strict=True):
            scores = some_queries.float() @ catalog.table.float().T
            target_scores = scores.gather(1, some_targets[:, None])
            least.append((scores > target_scores + error).sum(1))
            largest.append((scores >= target_scores - error).sum(1) - 1)
        return torch.cat(least), torch.cat(largest)

    def check(result: Tensor, expected: Tensor) -> None:
        least, largest = bounds()
        for ranks in (result, expected):
            wrong = (ranks < least) | (ranks > largest)
            if bool(wrong.any()):
                at = int(wrong.nonzero()[0])
                raise Mismatch(
                    f"ranks: {int(wrong.sum())} of {batch} differ; the first is {int(ranks[at])}, "
                    f"expected {int(least[at])} to {int(largest[at])}"
                )

    return Case(
        queries=queries,
        ours=lambda queries, semantic_rows, id_embeddings, first_pass=None: ops.target_ranks(
            queries,
            targets,
            semantic_rows,
            id_embeddings,
            fusion=catalog.fusion,
            first_pass=first_pass,
        ),
        plain=plain,
        check=check,
        units=scores,
        forward=Work(
            2 * scores * catalog.dim,
            catalog.table_bytes + queries.nbytes + 2 * INT64 * batch,
            catalog.table.nbytes + 3 * catalog.bytes_of_value * scores,
        ),
        first_pass=True,
    )


def sampled_softmax(catalog: Catalog, batch: int) -> Case:
    """The loss against ``num_candidates`` negatives for all queries."""
    queries, targets = catalog.queries(batch), catalog.ids(batch)
    negatives = catalog.ids(catalog.num_candidates)
    used = torch.cat([targets, negatives])
    scores = batch * len(negatives)
    touched, gradient = catalog.touched_bytes(used, False)
    read = queries.nbytes + touched

    def plain(queries: Tensor, table: Table) -> Tensor:
        rows = table.rows(used)
        positive = (queries * rows[:batch]).sum(-1, keepdim=True)
        negative = queries @ rows[batch:].T
        negative = negative.masked_fill(negatives == targets[:, None], -torch.inf)
        return (torch.cat([positive, negative], 1).logsumexp(1) - positive[:, 0]).mean()

    return Case(
        queries=queries,
        ours=lambda queries, semantic_rows, id_embeddings: ops.sampled_softmax(
            *(queries, targets, negatives, semantic_rows, id_embeddings),
            fusion=catalog.fusion,
        ),
        plain=plain,
        check=functools.partial(check_outputs, catalog),
        units=scores,
        forward=Work(2 * scores * catalog.dim, read, 3 * catalog.bytes_of_value * scores),
        backward=Work(
            2 * scores * (2 * catalog.dim + catalog.null_dim),
            read + queries.nbytes + gradient,
            5 * catalog.bytes_of_value * scores + 2 * catalog.id_bytes,
        ),
        grad_output=None,
    )


OPS: dict[str, Callable[[Catalog, int], Case]] = {
    "lookup": lookup,
    "lookup_sparse": functools.partial(lookup, sparse=True),
    "score_candidates": score_candidates,
    "score_candidates_sparse": functools.partial(score_candidates, sparse=True),
    "sampled_softmax": sampled_softmax,
    "score_all": score_all,
    "cross_entropy": cross_entropy,
    "topk": topk,
    "topk_exclude": functools.partial(topk, excluding=True),
    "topk_mixture": topk_mixture,
    "target_ranks": target_ranks,
}
"""``_sparse``: the gradient of the ID embeddings holds touched rows only. ``_exclude``: items seen
are left out. ``_mixture``: with probabilities of listed items."""

WITHOUT_QUERIES = ("lookup", "lookup_sparse")
"""Their ``batch`` is a number of ids."""
