"""An item table sharded over ranks, with the methods of :class:`alphafuse_ext.ItemTable`."""

from __future__ import annotations

import hashlib
import math
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

import alphafuse_ext.ops as ops
from alphafuse_ext.checks import integer, invalid
from alphafuse_ext.config.item_embedding import Initial
from alphafuse_ext.distributed.collectives import (
    Exchange,
    Scaled,
    Summed,
    exchange,
)
from alphafuse_ext.distributed.merge import shard_bounds
from alphafuse_ext.distributed.process_group import ProcessGroup, collective
from alphafuse_ext.distributed.shard import Shard
from alphafuse_ext.distributed.sharded_loss import ShardedCrossEntropy
from alphafuse_ext.distributed.sharded_ranking import sharded_target_ranks, sharded_topk
from alphafuse_ext.files import PathLike
from alphafuse_ext.items.space import SemanticSpace
from alphafuse_ext.items.table import ItemTable
from alphafuse_ext.ops import native
from alphafuse_ext.ops.arguments import (
    Exclude,
    Only,
    check_device,
    check_queries,
    check_targets,
    prepare_queries,
    without_ignored,
)
from alphafuse_ext.ops.cross_entropy import check_loss, check_weight, ignoring, reduced, tempered


class ShardedItemTable(Shard):
    """Embeddings of a catalog of ``N`` items, each rank holding :func:`shard_bounds` of its rows.

    Every method is a collective: all ranks of the group call it, each with any number of its own
    queries, and get their results. Communicated are queries, ids, requested rows, and a few numbers
    or ``k`` results per query; never ``(B, N)`` scores. :meth:`topk` and :meth:`target_ranks` are
    bitwise the same as in one process; losses and gradients are the same up to rounding.

    The gradient of ``shard.id_embeddings`` is that of the mean of the ranks' losses, as
    ``DistributedDataParallel`` computes it for replicated parameters; each rank's optimizer updates
    its own rows. Backward passes are collectives too: all ranks run them, in the same order.

    Ids are ``0 .. N - 1`` of the whole catalog; ``N`` is the padding index.

    Args:
        shard: this rank's rows, in order. Learned gains are not supported.
        num_items: ``N``.
        group: default: the default group. Its backend must support the tensors' device: gloo for
            the CPU, NCCL for CUDA. If a rank dies, the others wait for the ``timeout`` of
            ``init_process_group``.

    Attributes:
        shard: as given; its parameters are this rank's.
        first_id: of the shard.
        num_embeddings, padding_idx: ``N``.
        process_group: the processes.

    Raises:
        ValueError: on all ranks, if shards do not make up the catalog, or differ in kind or in the
            version of this package.
    """

    @classmethod
    def from_table(cls, table: ItemTable, group: Any = None) -> ShardedItemTable:
        """This rank's rows of a replicated table; results are the same as the table's.

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
        """This rank's rows of a file of :meth:`ItemTable.save`.

        Args:
            path: the file, readable by all ranks. Semantic rows stay memory-mapped; ID embeddings
                are copied.
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
        """A table built from this rank's rows only: no rank holds the whole table.

        Args:
            space: the decomposition, bitwise the same on each rank, for example loaded from a file.
            language_embeddings: shape (N, d_l), such as a memory map; only this rank's rows are
                read.
            group: as for the class.
            **options: of :meth:`ItemTable.from_space`; a ``semantic_file`` for each rank. Each rank
                initializes its own ID embeddings; ``generator`` should differ between
                ranks. ``semantic_rms`` and the spread of ``"xavier_normal"`` and
                ``"xavier_uniform"`` are those of the whole catalog; ``"orthogonal"`` is within
                each shard.
        """
        digest = hashlib.sha256(space.eigenvalues.tobytes() + space.basis.tobytes())
        process_group = ProcessGroup(group)
        process_group.check_same({"space": digest.hexdigest()[:12]})
        num_items = len(language_embeddings)
        rows = language_embeddings[_own_rows(num_items, group)]

        def total(found: Tensor) -> Tensor:
            return torch.stack(process_group.gather(found)).sum(0)

        table = ItemTable.from_space(space, rows, **options, _sum=total)
        init = options.get("init", Initial.init)
        if table.id_embeddings is not None and init.startswith("xavier"):
            own, columns = table.id_embeddings, table.id_embeddings.shape[1]
            with torch.no_grad():
                own.mul_(math.sqrt((len(own) + columns) / (num_items + columns)))
        return cls(table, num_items, group)

    # --- rows

    @collective
    def forward(self, ids: Tensor) -> Tensor:
        """Embeddings of items, fetched from the ranks that hold them.

        Args:
            ids: int64 or int32, any shape; ``N`` gives a row of zeros.

        Returns:
            Shape ``(*ids.shape, embedding_dim)``.

        Raises:
            IndexError: an id outside ``0 .. N``, on this rank; the others wait until they time out.
        """
        places, rows, _ = self._fetched(ids)
        return self.shard._coordinates.embeddings(ops.lookup(places, None, rows))

    def _fetched(self, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Where each id is among the rows that come with it, each once and as it is stored; and
        the ids of these."""
        ids = ids.long().contiguous()
        native.check_ids("ids", ids, 0, self.num_embeddings)
        wanted, places = torch.unique(ids, return_inverse=True)
        wanted = wanted[: len(wanted) - int((wanted == self.num_embeddings).sum())]
        edges = torch.searchsorted(wanted, torch.tensor(self.bounds, device=ids.device))
        asked = edges.diff()
        answered = exchange(
            asked, [1] * self.process_group.size, [1] * self.process_group.size, self.group
        )
        sent, received = asked.tolist(), answered.tolist()
        here = exchange(wanted, sent, received, self.group) - self.first_id
        table = self.shard
        rows = ops.lookup(here, *table._tables, fusion=table._stored_fusion, sparse=table.sparse)
        if rows.requires_grad:
            rows = Scaled.apply(rows, 1 / self.process_group.size)
        return places, Exchange.apply(rows, received, sent, self.process_group), wanted

    def _fetched_some(self, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The same, with a row at least, for an op that takes no table without rows."""
        places, rows, wanted = self._fetched(ids)
        if not len(rows):  # padding alone
            rows, wanted = rows.new_zeros(1, rows.shape[1]), wanted.new_zeros(1)
            places = torch.ones_like(places)
        return places, rows, wanted

    @collective
    def mean(self) -> Tensor:
        """The mean of all embeddings, shape (embedding_dim,), differentiable."""
        share = self.shard.num_embeddings / self.num_embeddings
        return Summed.apply(self.shard.mean() * share, self.process_group)

    @collective
    def gathered(self, rows: Tensor) -> Tensor:
        """Gather the rows of all ranks on the first rank, on the CPU.

        Args:
            rows: shape (items of this rank, ...), such as a moment of an optimizer.

        Returns:
            Shape (N, ...) on the first rank; (0, ...) on others.
        """
        longest = self.bounds[1]
        padded = rows.new_zeros(longest, *rows.shape[1:])
        padded[: len(rows)] = rows
        first = self.process_group.first
        parts = (
            [torch.empty_like(padded) for _ in range(self.process_group.size)] if first else None
        )
        dist.gather(
            padded,
            parts,
            dist.get_global_rank(self.process_group.group, 0),
            self.process_group.group,
        )
        if parts is None:
            return rows.new_empty(0, *rows.shape[1:]).cpu()
        return torch.cat([part.cpu() for part in parts])[: self.num_embeddings]

    def auxiliary_loss(self, items: Tensor) -> None:
        """There is no auxiliary loss."""

    @collective
    def score_candidates(
        self, queries: Tensor, candidates: Tensor, similarity: str = "dot"
    ) -> Tensor:
        """Scores of given items; each item's row is fetched once.

        Args:
            queries, candidates, similarity: as for :meth:`ItemTable.score_candidates`.
        """
        coordinates = self.shard._coordinates
        stored, factor = coordinates.stored_queries(queries, similarity)
        places, rows, _ = self._fetched_some(candidates)
        scores = ops.score_candidates(stored, places, None, rows, similarity=similarity)
        return coordinates.scores(scores, factor, scores.dtype)

    @collective
    def sampled_softmax(
        self,
        queries: Tensor,
        targets: Tensor,
        negatives: Tensor,
        similarity: str = "dot",
        temperature: float | Tensor = 1.0,
        reduction: str = "mean",
        *,
        log_q: Tensor | None = None,
        ignore_index: int | None = None,
        weight: Tensor | None = None,
    ) -> Tensor:
        """Softmax loss over each target and given negatives; each item's row is fetched once.

        Args:
            queries, targets, negatives, similarity, temperature, ignore_index: as for
                :meth:`ItemTable.sampled_softmax`.
            reduction: likewise; ``"mean"`` and ``"sum"`` are over this rank's targets.
            log_q, weight: likewise, of the whole catalog.
        """
        targets = ignoring(targets, ignore_index, self.num_embeddings)
        check_targets(targets, queries.shape[:-1])
        for name, given in (("log_q", log_q), ("weight", weight)):
            if given is not None:
                check_weight(given, self.num_embeddings, name)
        queries = without_ignored(queries, targets, self.num_embeddings)
        stored, factor = self.shard._coordinates.stored_queries(queries, similarity)
        if factor is not None:
            temperature = temperature / factor.squeeze(-1)
        places, rows, wanted = self._fetched_some(
            torch.cat([targets.flatten(), negatives.flatten()])
        )
        of_targets, of_negatives = places.split([targets.numel(), negatives.numel()])
        return ops.sampled_softmax(
            stored,
            of_targets.view_as(targets),
            of_negatives.view_as(negatives),
            None,
            rows,
            "concat",
            similarity,
            temperature,
            reduction,
            log_q=None if log_q is None else log_q[wanted],
            weight=None if weight is None else weight[wanted],
        )

    # --- the whole catalog

    @collective
    def cross_entropy(
        self,
        queries: Tensor,
        targets: Tensor,
        similarity: str = "dot",
        temperature: float | Tensor = 1.0,
        reduction: str = "mean",
        *,
        ignore_index: int | None = None,
        weight: Tensor | None = None,
    ) -> Tensor:
        """Softmax loss of this rank's queries over the whole catalog.

        Args:
            queries, targets, similarity, temperature, reduction, ignore_index, weight: as for
                :meth:`ItemTable.cross_entropy`; ``"mean"`` and ``"sum"`` are over this rank's,
                weights those of the whole catalog.
        """
        self.shard._warn_of_dense_gradients("cross_entropy")
        stored = self.shard._coordinates.equal_queries(queries, similarity)
        tables = self.parts_of(stored, similarity)
        check_queries(stored, tables.dim, ndims=None)
        check_targets(targets, stored.shape[:-1])
        temperature = check_loss(temperature, reduction)
        if weight is not None:
            check_weight(weight, self.num_embeddings)
            check_device("weight", weight, *self.shard._tables)
        targets = ignoring(targets, ignore_index, self.num_embeddings).long()
        native.check_ids("targets", targets.contiguous(), 0, self.num_embeddings)
        stored = without_ignored(stored, targets, self.num_embeddings)
        prepared = tempered(prepare_queries(stored, similarity), temperature)
        prepared = prepared.reshape(-1, tables.dim)
        losses = ShardedCrossEntropy.apply(
            prepared, tables.id_embeddings, targets.reshape(-1), tables, self
        )
        return reduced(losses, targets, self.num_embeddings, reduction, weight)

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
        mixture: ops.Mixture | None = None,
    ) -> ops.TopK:
        """The exact ``k`` best items for each of this rank's queries.

        Args:
            queries, similarity, exclude: as for :meth:`ItemTable.topk`; queries (B,
                embedding_dim).
            k: the same on each rank.
            first_pass: ``None`` or ``"int8"``, as for :meth:`ItemTable.topk`; of each rank's rows.
            only: as for :meth:`ItemTable.topk`; ids for all queries must be the same on all ranks,
                and lists per query must be given on all ranks or on none.
            mixture: as for :meth:`ItemTable.topk`, for this rank's queries; given on all ranks or
                on none. The log-sum-exp equals that of a single process up to rounding, which can
                swap near ties between listed and other items.
        """
        allowed = f"1 <= k <= {self.num_embeddings}, the number of items"
        k = integer("k", k, allowed)
        if not 1 <= k <= self.num_embeddings:
            raise invalid("k", k, allowed)
        stored, factor = self.shard._coordinates.stored_queries(queries, similarity)
        if mixture is not None:
            stored, factor = self.shard._coordinates.equal_queries(queries, similarity), None
        best = sharded_topk(self, stored, k, similarity, exclude, first_pass, only, mixture)
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
        mixture: ops.Mixture | None = None,
    ) -> Tensor:
        """The exact rank of each of this rank's targets among all items, 0 = first.

        Args:
            queries, targets, similarity, exclude: as for :meth:`ItemTable.target_ranks`; queries
                (B, embedding_dim).
            first_pass, only: as for :meth:`topk`; a target that is not among these has rank -1.
            mixture: as for :meth:`topk`.
        """
        stored, _ = self.shard._coordinates.stored_queries(queries, similarity)
        if mixture is not None:
            stored = self.shard._coordinates.equal_queries(queries, similarity)
        check_targets(targets, stored.shape[:-1])
        targets = targets.long().contiguous()
        native.check_ids("targets", targets, 0, self.num_embeddings)
        return sharded_target_ranks(
            self, stored, targets, similarity, exclude, first_pass, only, mixture
        )


def _own_rows(num_items: int, group: Any) -> slice:
    """Those of a catalog that this rank holds."""
    bounds, rank = shard_bounds(num_items, dist.get_world_size(group)), dist.get_rank(group)
    return slice(bounds[rank], bounds[rank + 1])
