"""An item table whose rows lie on several ranks, with the methods of one that does not."""

from __future__ import annotations

import hashlib
from itertools import pairwise
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from alphafuse_ext import _core, ops
from alphafuse_ext._version import __version__
from alphafuse_ext.checks import invalid
from alphafuse_ext.distributed.collectives import (
    Exchange,
    Gathered,
    Scaled,
    Summed,
    exchange,
    stacked,
)
from alphafuse_ext.distributed.merge import merge_log_sum_exp, shard_bounds
from alphafuse_ext.distributed.ranks import Ranks, collective
from alphafuse_ext.distributed.sharded_ranking import sharded_target_ranks, sharded_topk
from alphafuse_ext.files import PathLike
from alphafuse_ext.items.space import SemanticSpace
from alphafuse_ext.items.table import ItemTable
from alphafuse_ext.ops import native
from alphafuse_ext.ops.arguments import Exclude, check_queries, check_targets, prepare_queries
from alphafuse_ext.ops.cross_entropy import check_loss, reduced
from alphafuse_ext.ops.gradients import empty, of_catalog
from alphafuse_ext.ops.only import Only
from alphafuse_ext.ops.precision import precision_of
from alphafuse_ext.ops.tables import FusedTables


class ShardedItemTable(nn.Module):
    """Embeddings of a catalog of ``N`` items, each rank holding :func:`shard_bounds` of its rows.

    Every method is a collective: all ranks of the group call it, each with queries of its own, as
    many as it has, and gets the results of its own. What goes over the wire is queries, ids, rows
    that were asked for, and a few numbers or a list of ``k`` for each query; never ``(B, N)``
    scores. :meth:`topk` and :meth:`target_ranks` are bit for bit those of one process; losses and
    gradients are to rounding.

    The gradient of ``shard.id_embeddings`` is that of the mean over the ranks of their losses, as
    ``DistributedDataParallel`` has it for what each rank holds whole; every rank's optimizer steps
    on its own rows. Backward passes are collectives, too: all ranks run them, in the same order.

    Ids are ``0 .. N - 1`` of the whole catalog; ``N`` is the padding index.

    Args:
        shard: this rank's rows, in order. Gains that are learned are not supported.
        num_items: ``N``.
        group: the ranks; all of the default group unless given. Its backend is that of the
            tensors' device: gloo for the CPU, NCCL for CUDA. How long a rank waits for one that
            died is the ``timeout`` of ``init_process_group``.

    Attributes:
        shard: as given; its parameters are this rank's.
        first_id: of the shard.
        num_embeddings, padding_idx: ``N``.
        ranks: the processes.

    Raises:
        ValueError: on every rank, where shards do not make up the catalog, differ in kind, or
            belong to different versions of this package.
    """

    def __init__(self, shard: ItemTable, num_items: int, group: Any = None) -> None:
        super().__init__()
        if shard.coordinates == "learned":
            allowed = "a hard split, or a soft one of fixed gains"
            raise invalid("shard", "a table of learned gains", allowed)
        self.group = group
        self.ranks = Ranks(group)
        self.bounds = shard_bounds(num_items, self.ranks.size)
        self.shard = shard
        self.first_id = self.bounds[self.ranks.rank]
        self.num_embeddings = self.padding_idx = num_items
        self.embedding_dim, self.null_dim = shard.embedding_dim, shard.null_dim
        self._check_ranks()

    def _check_ranks(self) -> None:
        """Refuse, on every rank alike, shards that are not parts of one table."""
        semantic, own = self.shard._tables
        facts = {
            "num_items": self.num_embeddings,
            "fusion": self.shard.fusion,
            "coordinates": self.shard.coordinates,
            "columns": [None if t is None else (t.shape[1], str(t.dtype)) for t in (semantic, own)],
            "alphafuse_ext": __version__,
            "torch": torch.__version__,
        }
        self.ranks.check_same(facts)
        wanted = [end - start for start, end in pairwise(self.bounds)]
        found = self.ranks.gather(self.shard.num_embeddings)
        if found != wanted:
            raise invalid("shard", f"{found} rows on the ranks", f"{wanted}")

    @classmethod
    def from_table(cls, table: ItemTable, group: Any = None) -> ShardedItemTable:
        """This rank's rows of a table that every rank has: the same results as the table's own.

        Args:
            table: on the device of the shard; its rows are copied.
            group: as for the class.
        """
        rows = _own_rows(table.num_embeddings, group)
        semantic, own = (
            None if part is None else part.detach()[rows].clone() for part in table._tables
        )
        return cls._of_rows(table, semantic, own, group)

    @classmethod
    def _of_rows(
        cls, table: ItemTable, semantic: Tensor | None, own: Tensor | None, group: Any
    ) -> ShardedItemTable:
        mapping = table.coordinates_map
        copied = None if mapping is None else mapping.detach().clone()
        shard = ItemTable(semantic, own, table.fusion, table.sparse, table.coordinates, copied)
        return cls(shard, table.num_embeddings, group)

    @classmethod
    def load(cls, path: PathLike, group: Any = None) -> ShardedItemTable:
        """This rank's rows of a file that :meth:`ItemTable.save` wrote.

        Args:
            path: the file, which all ranks see. Semantic rows stay memory-mapped; ID embeddings,
                which are trained, are copied.
            group: as for the class.

        Raises:
            FileNotFoundError, UnreadableFileError: as :meth:`ItemTable.load`.
        """
        whole = ItemTable.load(path)
        rows = _own_rows(whole.num_embeddings, group)
        semantic, own = (None if part is None else part.detach()[rows] for part in whole._tables)
        return cls._of_rows(whole, semantic, None if own is None else own.clone(), group)

    @classmethod
    def from_space(
        cls,
        space: SemanticSpace,
        language_embeddings: Any,
        group: Any = None,
        **options: Any,
    ) -> ShardedItemTable:
        """A shard made from this rank's rows alone: no rank ever holds the whole table.

        Args:
            space: the decomposition, bit for bit the same on each rank, such as one loads it.
            language_embeddings: shape (N, d_l), a memory map where it is larger than memory; only
                this rank's rows are read.
            group: as for the class.
            **options: of :meth:`ItemTable.from_space`; a ``semantic_file`` for each rank. First ID
                embeddings are drawn by each rank for itself; ``generator`` should differ between
                ranks. ``"xavier_normal"`` and alike take the number of rows into account, and so
                that of the shard.
        """
        digest = hashlib.sha256(space.eigenvalues.tobytes() + space.basis.tobytes())
        Ranks(group).check_same({"space": digest.hexdigest()[:12]})
        num_items = len(language_embeddings)
        rows = language_embeddings[_own_rows(num_items, group)]
        return cls(ItemTable.from_space(space, rows, **options), num_items, group)

    @property
    def device(self) -> torch.device:
        """Where the shard is."""
        return self.shard._any_table.device

    # --- rows

    @collective
    def forward(self, ids: Tensor) -> Tensor:
        """Embeddings of items, asked of the ranks that hold them.

        Args:
            ids: int64 or int32, any shape; ``N`` gives a row of zeros.

        Returns:
            Shape ``(*ids.shape, embedding_dim)``.

        Raises:
            IndexError: an id outside ``0 .. N``, on its rank: the others wait until they time out.
        """
        places, rows = self._fetched(ids)
        return self.shard._coordinates.embeddings(ops.lookup(places, None, rows))

    def _fetched(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Where each id is among the rows that come with it, each once and as it is stored."""
        ids = ids.long().contiguous()
        native.check_ids("ids", ids, 0, self.num_embeddings)
        wanted, places = torch.unique(ids, return_inverse=True)
        wanted = wanted[: len(wanted) - int((wanted == self.num_embeddings).sum())]
        edges = torch.searchsorted(wanted, torch.tensor(self.bounds, device=ids.device))
        asked = edges.diff()
        answered = exchange(asked, [1] * self.ranks.size, [1] * self.ranks.size, self.group)
        sent, received = asked.tolist(), answered.tolist()
        here = exchange(wanted, sent, received, self.group) - self.first_id
        table = self.shard
        rows = ops.lookup(here, *table._tables, fusion=table._stored_fusion, sparse=table.sparse)
        if rows.requires_grad:
            rows = Scaled.apply(rows, 1 / self.ranks.size)
        return places, Exchange.apply(rows, received, sent, self.ranks)

    @collective
    def mean(self) -> Tensor:
        """The mean of all embeddings, shape (embedding_dim,), differentiable."""
        share = self.shard.num_embeddings / self.num_embeddings
        return Summed.apply(self.shard.mean() * share, self.ranks)

    @collective
    def gathered(self, rows: Tensor) -> Tensor:
        """What each rank has for its items, of all items on the first rank, on the CPU.

        Args:
            rows: shape (items of this rank, ...), such as a moment of an optimizer.

        Returns:
            Shape (N, ...); of other ranks than the first nothing, shape (0, ...).
        """
        longest = self.bounds[1]
        padded = rows.new_zeros(longest, *rows.shape[1:])
        padded[: len(rows)] = rows
        first = self.ranks.first
        parts = [torch.empty_like(padded) for _ in range(self.ranks.size)] if first else None
        dist.gather(padded, parts, dist.get_global_rank(self.ranks.group, 0), self.ranks.group)
        if parts is None:
            return rows.new_empty(0, *rows.shape[1:]).cpu()
        return torch.cat([part.cpu() for part in parts])[: self.num_embeddings]

    def auxiliary_loss(self, items: Tensor) -> None:
        """What these embeddings learn by beside predictions: nothing."""

    @collective
    def score_candidates(
        self, queries: Tensor, candidates: Tensor, similarity: str = "dot"
    ) -> Tensor:
        """Scores of given items, whose rows are asked for once each.

        Args:
            queries, candidates, similarity: as for :meth:`ItemTable.score_candidates`.
        """
        coordinates = self.shard._coordinates
        stored, factor = coordinates.stored_queries(queries, similarity)
        places, rows = self._fetched(candidates)
        if not len(rows):  # padding alone
            rows = rows.new_zeros(1, rows.shape[1])
            places = torch.ones_like(places)
        scores = ops.score_candidates(stored, places, None, rows, similarity=similarity)
        return coordinates.scores(scores, factor, scores.dtype)

    # --- the whole catalog

    @collective
    def cross_entropy(
        self,
        queries: Tensor,
        targets: Tensor,
        similarity: str = "dot",
        temperature: float = 1.0,
        reduction: str = "mean",
    ) -> Tensor:
        """Softmax loss of this rank's queries over the whole catalog.

        Args:
            queries, targets, similarity, temperature, reduction: as for
                :meth:`ItemTable.cross_entropy`; ``"mean"`` and ``"sum"`` are over this rank's.
        """
        stored = self.shard._coordinates.equal_queries(queries, similarity)
        tables = self.parts_of(stored, similarity)
        check_queries(stored, tables.dim, ranks=None)
        check_targets(targets, stored.shape[:-1])
        check_loss(temperature, reduction)
        targets = targets.long()
        native.check_ids("targets", targets.contiguous(), 0, self.num_embeddings)
        prepared = prepare_queries(stored, similarity).reshape(-1, tables.dim)
        if temperature != 1.0:
            prepared = prepared / temperature
        losses = _CrossEntropy.apply(
            prepared, tables.id_embeddings, targets.reshape(-1), tables, self
        )
        return reduced(losses, targets, self.num_embeddings, reduction)

    @collective
    @torch.no_grad()
    def topk(
        self,
        queries: Tensor,
        k: int,
        similarity: str = "dot",
        exclude: Exclude = None,
        first_pass: str | None = None,
        only: Only = None,
    ) -> ops.TopK:
        """The ``k`` best items of each of this rank's queries, exactly.

        Args:
            queries, similarity, exclude: as for :meth:`ItemTable.topk`; queries (B,
                embedding_dim).
            k: the same on each rank.
            first_pass: ``None`` or ``"int8"``, as for :meth:`ItemTable.topk`; of each rank's rows.
            only: as for :meth:`ItemTable.topk`; ids for all queries are the same on each rank, and
                lists for each query are given on every rank or on none.
        """
        if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= self.num_embeddings:
            allowed = f"1 <= k <= {self.num_embeddings}, the number of items"
            raise invalid("k", repr(k), allowed)
        stored, factor = self.shard._coordinates.stored_queries(queries, similarity)
        best = sharded_topk(self, stored, k, similarity, exclude, first_pass, only)
        scores = self.shard._coordinates.scores(best.values, factor, best.values.dtype)
        return ops.TopK(scores, best.indices)

    @collective
    @torch.no_grad()
    def target_ranks(
        self,
        queries: Tensor,
        targets: Tensor,
        similarity: str = "dot",
        exclude: Exclude = None,
        first_pass: str | None = None,
        only: Only = None,
    ) -> Tensor:
        """The exact place of each target of this rank's among all items, 0 first.

        Args:
            queries, targets, similarity, exclude: as for :meth:`ItemTable.target_ranks`; queries
                (B, embedding_dim).
            first_pass, only: as for :meth:`topk`; a target that is not among these has no rank: -1.
        """
        stored, _ = self.shard._coordinates.stored_queries(queries, similarity)
        check_targets(targets, stored.shape[:-1])
        targets = targets.long().contiguous()
        native.check_ids("targets", targets, 0, self.num_embeddings)
        return sharded_target_ranks(self, stored, targets, similarity, exclude, first_pass, only)

    # --- what these share

    def parts_of(self, queries: Tensor, similarity: str, exact: bool = False) -> FusedTables:
        """The shard's tables, whose rows have the ids of the whole catalog, for some queries."""
        table = self.shard
        pair = table._tables
        FusedTables.checked(*pair, table._stored_fusion, similarity)
        part = _core.Tables(*pair, table._stored_fusion, similarity, self.first_id)
        cosine = similarity == "cosine"
        tables = FusedTables(*pair, table._stored_fusion, cosine, native=part)
        tables.precision = precision_of(queries, tables, exact=exact)
        return tables

    def to_local(self, ids: Tensor) -> Tensor:
        """Ids of the whole catalog as those of this shard; -1 of all that are elsewhere."""
        here = (ids >= self.first_id) & (ids < self.bounds[self.ranks.rank + 1])
        return torch.where(here, ids - self.first_id, -1)

    def target_scores(self, tables: FusedTables, queries: Tensor, targets: Tensor) -> Tensor:
        """Of targets in this shard; 0 of all others."""
        scores = queries.new_zeros(len(queries))
        kernels, where = native.kernels(queries, tables.precision)
        kernels.target_scores(tables.native(), queries, targets, scores, where)
        return scores.where(self.to_local(targets) >= 0, 0.0)

    def extra_repr(self) -> str:
        return f"rank {self.ranks.rank} of {self.ranks.size}, items {self.first_id} to " + str(
            self.bounds[self.ranks.rank + 1] - 1
        )


class _CrossEntropy(torch.autograd.Function):
    """Losses of a rank's queries; the softmax's two numbers for each query go over the wire."""

    @staticmethod
    def forward(
        ctx: Any,
        queries: Tensor,
        id_embeddings: Tensor | None,
        targets: Tensor,
        tables: FusedTables,
        table: ShardedItemTable,
    ) -> Tensor:
        gathered = Gathered(queries, table.group)
        every, wanted = gathered.rows(queries.contiguous()), gathered.rows(targets.contiguous())
        found = every.new_empty((3, len(every)))
        maxima, logs, scores = found.unbind()
        kernels, where = native.kernels(every, tables.precision)
        kernels.log_sum_exp(tables.native(), every, maxima, logs, where)
        scores.copy_(table.target_scores(tables, every, wanted))
        parts = stacked(found, table.group)
        maxima, logs = merge_log_sum_exp(parts[:, 0], parts[:, 1])
        ctx.save_for_backward(every, wanted, maxima, logs)
        ctx.tables, ctx.table, ctx.gathered = tables, table, gathered
        losses = (maxima - parts[:, 2].sum(0)) + logs
        return torch.where(wanted == table.num_embeddings, 0.0, losses)[gathered.own]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        every, wanted, maxima, logs = ctx.saved_tensors
        table, gathered = ctx.table, ctx.gathered
        with table.ranks.together():
            grad = gathered.rows(grad)
        weights = torch.where(wanted == table.num_embeddings, 0.0, grad)
        # Every rank needs the queries' gradient, whether or not its own queries do.
        of_queries, of_ids = empty(every, ctx.tables, True, ctx.needs_input_grad[1])
        kernels, where = native.kernels(every, ctx.tables.precision)
        kernels.cross_entropy_backward(
            ctx.tables.native(),
            every,
            wanted,
            maxima,
            logs,
            weights.contiguous(),
            of_queries,
            of_ids,
            where,
        )
        grad_queries, grad_ids = of_catalog(every, of_queries, of_ids, ctx.tables)
        table.ranks.sum(grad_queries)
        own = grad_queries[gathered.own] if ctx.needs_input_grad[0] else None
        return own, grad_ids / table.ranks.size if of_ids is not None else None, None, None, None


def _own_rows(num_items: int, group: Any) -> slice:
    """Those of a catalog that this rank holds."""
    bounds, rank = shard_bounds(num_items, dist.get_world_size(group)), dist.get_rank(group)
    return slice(bounds[rank], bounds[rank + 1])
