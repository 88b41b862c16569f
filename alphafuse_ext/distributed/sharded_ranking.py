"""Ranking over a sharded catalog: each rank ranks its shard for the queries of all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

import alphafuse_ext._core as _core
import alphafuse_ext.ops as ops
from alphafuse_ext.checks import invalid
from alphafuse_ext.distributed.collectives import Gathered, stacked
from alphafuse_ext.distributed.merge import merge_log_sum_exp, merge_topk
from alphafuse_ext.distributed.shard import Shard
from alphafuse_ext.ops import native
from alphafuse_ext.ops.arguments import (
    Exclude,
    Mixture,
    check_queries,
    prepare_queries,
    split_exclude,
)
from alphafuse_ext.ops.compressed import check_first_pass
from alphafuse_ext.ops.mixture import (
    Listed,
    MixtureArguments,
    Softmax,
    is_among,
    listed,
    log_sum_exp,
    merged,
    raised_scores,
    split_mixture,
)
from alphafuse_ext.ops.only import (
    Only,
    allowed_ids,
    gather_rows,
    listed_scores,
    padded,
    split_only,
)
from alphafuse_ext.ops.tables import FusedTables
from alphafuse_ext.ops.target_ranks import ahead_in_lists
from alphafuse_ext.ops.topk import padded_topk, topk_of_lists

# The kernels' id of the first chosen item of a shard: lower and higher ids are free for targets
# that precede or follow all of them.
_FIRST = 1


@dataclass(frozen=True)
class MixedPart:
    """What a mixture lists among this rank's items, for the queries of all ranks.

    Attributes:
        ids: in the shard's ids, ``(B, M)``, ascending, filled up with their number.
        raised: their scores, ``(B, M)``.
        left_out: which are not ranked: excluded, or not allowed; fillers, too.
        softmax: over the whole catalog.
    """

    ids: Tensor
    raised: Tensor
    left_out: Tensor
    softmax: Softmax

    @classmethod
    def of(
        cls,
        table: Shard,
        tables: FusedTables,
        queries: Tensor,
        gathered: Gathered,
        given: MixtureArguments,
        lists: Listed,
    ) -> tuple[MixedPart, Tensor]:
        """What is listed here, of which only fillers are left out; all of it, in the catalog's ids.

        Args:
            tables: the shard's.
            queries: of all ranks, ready for the kernels.
            given, lists: of this rank's queries.
        """
        padding = table.shard.num_embeddings
        every = gathered.padded_rows(lists.ids, table.num_embeddings)
        probabilities = gathered.padded_rows(lists.probabilities, 0.0)
        sums = torch.stack(log_sum_exp(queries, tables, given.temperature))
        maxima, logs = merge_log_sum_exp(*stacked(sums, table.group).unbind(1))
        softmax = Softmax.of(maxima, logs, gathered.rows(given.weights), given.temperature)
        local = table.to_local(every)
        local, order = torch.where(local < 0, padding, local).sort(1)
        here = Listed(local, probabilities.gather(1, order))
        raised = raised_scores(queries, here, FusedTables(*tables.flat), softmax)
        return cls(local, raised, local == padding, softmax), every

    def of_targets(self, table: Shard, targets: Tensor, scores: Tensor) -> Tensor:
        """The targets' scores, raised of those that a list of any rank has."""
        is_target = (self.ids == table.to_local(targets)[:, None]) & (targets >= 0)[:, None]
        raised, found = self.raised.where(is_target, 0.0).sum(1), is_target.any(1).long()
        dist.all_reduce(raised, group=table.group)
        dist.all_reduce(found, group=table.group)
        return torch.where(found > 0, raised, scores)

    def ahead(self, table: Shard, targets: Tensor, scores: Tensor) -> Tensor:
        """How many of the listed items here precede targets of such scores."""
        padding = table.shard.num_embeddings
        lists = self.ids.masked_fill(self.left_out, padding)
        return ahead_in_lists(self.raised, scores, lists, _among(table, targets), padding)


@dataclass(frozen=True)
class RankingRequest:
    """The queries of all ranks to this rank's shard.

    Attributes:
        gathered: whose queries are which.
        queries: of all ranks, ready for the kernels; for lists as they were given.
        similarity: as given.
        tables: the rows to rank: the shard's, or those of it that were chosen for all queries.
        chosen: the ids of these in the whole catalog, ascending; ``None``: the shard's own.
        lists: what each query may rank, ``(B, M)``, as :func:`allowed_ids` has them, in the shard's
            ids; ``None``: all of ``tables``.
        left_out: ids of the whole catalog that are not ranked, ``(B, M)``, padded with -1.
        compressed: the copy for a first pass, as kernels take it.
        mixed: of a mixture, what is listed here; its items are among ``left_out``.
    """

    gathered: Gathered
    queries: Tensor
    similarity: str
    tables: FusedTables
    chosen: Tensor | None
    lists: Tensor | None
    left_out: Tensor
    compressed: list[Tensor]
    mixed: MixedPart | None

    @classmethod
    def of(
        cls,
        table: Shard,
        queries: Tensor,
        similarity: str,
        exclude: Exclude,
        first_pass: str | None,
        only: Only,
        mixture: Mixture | None,
    ) -> RankingRequest:
        """Check one rank's arguments, and gather those of all.

        Args:
            queries: as the shard stores rows.
        """
        tables = table.parts_of(queries, similarity, exact=True).detach()
        check_queries(queries, tables.dim)
        allowed = None
        if only is not None:
            allowed = allowed_ids(*split_only(only, queries), table.num_embeddings)
        compressed = check_first_pass(
            table.shard._first_pass(first_pass, similarity), *tables.pair, tables.fusion, similarity
        )
        if allowed is not None and compressed is not None:
            raise invalid("first_pass", "a first pass together with only", "None with only")
        offsets, ids = split_exclude(exclude, queries)
        left_out = torch.full((len(queries), 1), -1, device=queries.device)
        if ids is not None:
            left_out = ids if offsets is None else padded("exclude", offsets, ids)
        native.check_ids("exclude", left_out.long().contiguous(), -1, table.num_embeddings)

        lists = chosen = None
        wanted = None if allowed is None else allowed.shared
        given = None if mixture is None else split_mixture(mixture, queries)
        in_lists = None if given is None else listed(given, table.num_embeddings)
        _check_alike(table, wanted, allowed is not None and allowed.lists is not None, given)
        whole = tables
        if allowed is None or allowed.lists is None:
            queries = prepare_queries(queries.detach(), similarity).contiguous()
        gathered = Gathered(queries.detach(), table.group)
        first, end = table.first_id, table.first_id + table.shard.num_embeddings
        if wanted is not None:
            chosen = wanted[(wanted >= first) & (wanted < end)]
            if len(chosen):
                tables = _numbered(gather_rows(tables, chosen - first), similarity)
        elif allowed is not None and allowed.lists is not None:
            every = gathered.padded_rows(allowed.lists, table.num_embeddings)
            here = (every >= first) & (every < end)
            lists = torch.where(here, every - first, table.shard.num_embeddings).sort(1).values
        every_query = gathered.rows(queries.detach())
        left_out = gathered.padded_rows(left_out.long(), -1)
        mixed = None
        if given is not None and in_lists is not None:
            prepared = every_query if lists is None else prepare_queries(every_query, similarity)
            mixed, every = MixedPart.of(table, whole, prepared, gathered, given, in_lists)
            padding = table.shard.num_embeddings
            mixed.left_out.logical_or_(
                is_among("exclude", mixed.ids, None, table.to_local(left_out), padding)
            )
            some = lists if chosen is None else chosen - first
            if some is not None:
                mixed.left_out.logical_or_(~is_among("only", mixed.ids, None, some, padding))
            every = every.masked_fill(every == table.num_embeddings, -1)
            left_out = torch.cat([left_out, every], 1)
        return cls(
            gathered,
            every_query,
            similarity,
            tables,
            chosen,
            lists,
            left_out,
            [] if compressed is None else compressed.tensors,
            mixed,
        )

    @property
    def num_ranked(self) -> int:
        """How many items of this rank are ranked, where each query has no list of its own."""
        return self.tables.num_embeddings if self.chosen is None else len(self.chosen)

    def excluded(self, num_embeddings: int) -> Any:
        """What is left out, as kernels take it for :attr:`tables`."""
        if self.chosen is None:
            return native.exclude(None, self.left_out, num_embeddings)
        places, found = _places(self.left_out, self.chosen)
        kept = torch.where(found, places + _FIRST, -1)
        return native.exclude(None, kept, len(self.chosen) + _FIRST)


def sharded_topk(
    table: Shard,
    queries: Tensor,
    k: int,
    similarity: str,
    exclude: Exclude,
    first_pass: str | None,
    only: Only,
    mixture: Mixture | None = None,
) -> ops.TopK:
    """Of queries as the shard stores rows; see :meth:`ShardedItemTable.topk`."""
    asked = RankingRequest.of(table, queries, similarity, exclude, first_pass, only, mixture)
    tables, every, first_id = asked.tables, asked.queries, table.first_id
    if asked.lists is not None:
        local = table.to_local(asked.left_out)
        values, ids = topk_of_lists(every, k, asked.lists, tables, similarity, local)
        ids = torch.where(ids < 0, ids, ids + first_id)
    else:
        values = torch.empty(
            (len(every), min(k, asked.num_ranked)), device=every.device, dtype=torch.float32
        )
        ids = torch.empty_like(values, dtype=torch.int64)
        if ids.numel():
            kernels, where = native.kernels(every, tables.precision)
            excluded = asked.excluded(table.num_embeddings)
            kernels.topk(tables.native(), every, excluded, asked.compressed, values, ids, where)
        if asked.chosen is not None and len(asked.chosen):
            ids = torch.where(ids < 0, ids, asked.chosen[(ids - _FIRST).clamp(min=0)])
        values, ids = padded_topk(values, ids, k)  # a shard may have fewer
    mixed = asked.mixed
    if mixed is not None:
        mixed_ids = (mixed.ids + first_id).masked_fill(mixed.left_out, -1)
        values, ids = merged(values, ids, mixed.raised, mixed_ids, k)
    parts, own = (stacked(values, table.group), stacked(ids, table.group)), asked.gathered.own
    best = merge_topk(parts[0][:, own], parts[1][:, own], k)
    if mixed is None:
        return best
    values = mixed.softmax.of_rows(own).log_probabilities(best.values)
    return ops.TopK(values.masked_fill(best.indices < 0, -torch.inf), best.indices)


def sharded_target_ranks(
    table: Shard,
    queries: Tensor,
    targets: Tensor,
    similarity: str,
    exclude: Exclude,
    first_pass: str | None,
    only: Only,
    mixture: Mixture | None = None,
) -> Tensor:
    """Of queries as the shard stores rows; see :meth:`ShardedItemTable.target_ranks`."""
    asked = RankingRequest.of(table, queries, similarity, exclude, first_pass, only, mixture)
    tables, every = asked.tables, asked.queries
    wanted = asked.gathered.rows(targets)
    ranked = wanted != table.num_embeddings
    if asked.lists is not None:
        ahead, found = _ahead_in_lists(table, asked, wanted)
        ranked &= found
    else:
        scores = table.target_scores(table.parts_of(every, similarity, exact=True), every, wanted)
        dist.all_reduce(scores, group=table.group)  # all but one rank add zero
        if asked.mixed is not None:
            scores = asked.mixed.of_targets(table, wanted, scores)
        ahead, target_ids = torch.zeros_like(wanted), wanted
        if asked.chosen is not None:
            places, found = _places(wanted, asked.chosen)
            # One that is not among these is before or behind all of them, or is not ranked.
            target_ids = torch.where(found, places + _FIRST, (_FIRST + len(asked.chosen)))
            target_ids = torch.where(wanted < table.first_id, 0, target_ids)
            found = found.long()
            dist.all_reduce(found, group=table.group)
            ranked &= found > 0
        if asked.num_ranked:
            kernels, where = native.kernels(every, tables.precision)
            excluded = asked.excluded(table.num_embeddings)
            kernels.target_ranks(
                tables.native(), every, target_ids, scores, excluded, asked.compressed, ahead, where
            )
        if asked.mixed is not None:
            ahead += asked.mixed.ahead(table, wanted, scores)
    dist.all_reduce(ahead, group=table.group)
    return torch.where(ranked, ahead, -1)[asked.gathered.own]


def _ahead_in_lists(table: Shard, asked: RankingRequest, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """How many of each list's items here precede the target; whether any rank's list has it."""
    lists, local, padding = asked.lists, _among(table, wanted), table.shard.num_embeddings
    assert lists is not None
    is_target = lists == local[:, None]
    is_target &= (local < padding)[:, None]
    kept, scores = listed_scores(
        asked.queries, lists, asked.tables, asked.similarity, table.to_local(asked.left_out)
    )
    _, every = listed_scores(asked.queries, lists, asked.tables, asked.similarity, None)
    target = every.where(is_target, 0).sum(1)
    found = is_target.any(1).long()
    dist.all_reduce(target, group=table.group)
    dist.all_reduce(found, group=table.group)
    if asked.mixed is not None:
        target = asked.mixed.of_targets(table, wanted, target)
    ahead = ahead_in_lists(scores, target, kept, local, padding)
    if asked.mixed is not None:
        ahead += asked.mixed.ahead(table, wanted, target)
    return ahead, found > 0


def _among(table: Shard, targets: Tensor) -> Tensor:
    """Ids of targets in the shard; of others -1 before all of its own, their number behind them."""
    local = table.to_local(targets)
    behind = local.where(local >= 0, table.shard.num_embeddings)
    return torch.where(targets < table.first_id, -1, behind)


def _numbered(tables: FusedTables, similarity: str) -> FusedTables:
    """Tables whose rows have ids from :data:`_FIRST` on."""
    part = _core.Tables(*tables.pair, tables.fusion, similarity, _FIRST)
    return FusedTables(*tables.pair, tables.fusion, tables.cosine, tables.precision, native=part)


def _places(ids: Tensor, among: Tensor) -> tuple[Tensor, Tensor]:
    """Where ids would be among ascending ones, and whether they are there."""
    places = torch.searchsorted(among, ids.contiguous())
    if not len(among):
        return places, torch.zeros_like(ids, dtype=torch.bool)
    return places, among[places.clamp(max=len(among) - 1)] == ids


def _check_alike(
    table: Shard, shared: Tensor | None, lists: bool, mixture: MixtureArguments | None
) -> None:
    """Refuse, on every rank, ``only`` that differs in kind, or ids for all queries that differ, and
    a mixture on some ranks alone, or of another temperature."""
    kind = 2 if lists else int(shared is not None)
    facts = torch.tensor([kind, 0, 0, 0], device=table.device)
    if mixture is not None:
        facts[3] = torch.tensor(mixture.temperature, dtype=torch.float64).view(torch.int64)
    if shared is not None:
        mixed = (shared + 1) * 0x9E3779B97F4A7C1  # wraps around
        facts[1], facts[2] = len(shared), (mixed ^ (mixed >> 31)).sum()
    every = stacked(facts, table.group)
    if bool((every[:, 3] != every[0, 3]).any()):
        temperatures = [float(one) or None for one in every[:, 3].cpu().view(torch.float64)]
        found_there = f"temperatures {temperatures} on the ranks"
        raise invalid("mixture", found_there, "one, or no mixture on any")
    if bool((every != every[0]).any()):
        found = [("none", "ids", "lists")[int(one)] for one in every[:, 0]]
        allowed = "the same ids on each, lists on each, or none"
        raise invalid("only", f"{found}, or other ids, on the ranks", allowed)
