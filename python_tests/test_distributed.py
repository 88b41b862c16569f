"""A catalog over several processes against the same in one: real ones, joined by gloo."""

from __future__ import annotations

import os
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from spawned import spawn

import alphafuse_ext as af
from alphafuse_ext.distributed import (
    RankError,
    ShardedItemTable,
    merge_log_sum_exp,
    merge_topk,
    shard_bounds,
)
from alphafuse_ext.items.table import ItemTable
from alphafuse_ext.models import SASRec

pytestmark = pytest.mark.slow

N, D = 103, 16
KINDS = ["concat", "add", "id", "frozen", "soft", "original"]
COSINE = ("concat", "add", "id", "frozen")
SIMILARITIES = {False: ("dot",), True: ("dot", "cosine")}


def whole_table(kind: str, sparse: bool = False) -> ItemTable:
    """The same table on each rank."""
    generator = torch.Generator().manual_seed(5)
    rows = torch.randn(N, 24, generator=generator) * torch.logspace(0.5, -1, 24)
    rows[7] = rows[8]  # a tie
    options = {"dim": D, "null_dim": 6, "init": "normal", "generator": generator}
    if kind == "id":
        table = ItemTable.id_only(N, D, init="normal", generator=generator, sparse=sparse)
        return with_twins(table)
    space = af.SemanticSpace.from_embeddings(rows.numpy(), progress=False)
    if kind == "frozen":
        return ItemTable.frozen(space, rows.numpy(), D)
    if kind == "soft":
        options |= {"space_split": "soft", "fusion": "add"}
    elif kind == "original":
        options |= {"coordinates": "original", "dim": 24}
    else:
        options |= {"fusion": kind}
    table = ItemTable.from_space(space, rows.numpy(), sparse=sparse, **options)
    return with_twins(table)


def with_twins(table: ItemTable) -> ItemTable:
    """Two items of one embedding, which score alike."""
    with torch.no_grad():
        if table.id_embeddings is not None:
            table.id_embeddings[7] = table.id_embeddings[8]
    return table


def inputs(rank: int, width: int):
    """Queries, targets, lists to leave out and candidates of a rank: as many as it likes."""
    generator = torch.Generator().manual_seed(100 + rank)
    count = 3 + 2 * rank
    queries = torch.randn(count, width, generator=generator)
    targets = torch.randint(N + 1, (count,), generator=generator)
    exclude = torch.randint(-1, N, (count, 4 + rank), generator=generator)
    candidates = torch.randint(N + 1, (count, 5), generator=generator)
    return queries, targets, exclude, candidates


def check_ranking(rank: int, ranks: int, folder: Path) -> None:
    """Bit for bit, ties, padded and ragged lists, and more items asked for than a rank has."""
    for kind in KINDS:
        whole = whole_table(kind)
        table = ShardedItemTable.from_table(whole)
        queries, targets, exclude, _ = inputs(rank, whole.embedding_dim)
        similarities = SIMILARITIES[kind in COSINE]
        for similarity in similarities:
            for k in (1, 10, N):
                found = table.topk(queries, k, similarity, exclude)
                expected = whole.topk(queries, k, similarity, exclude)
                assert torch.equal(found.values, expected.values), (kind, similarity, k)
                assert torch.equal(found.indices, expected.indices), (kind, similarity, k)
                int8 = table.topk(queries, k, similarity, exclude, first_pass="int8")
                assert torch.equal(int8.values, expected.values), (kind, similarity, k)
                assert torch.equal(int8.indices, expected.indices), (kind, similarity, k)
            ranks_found = table.target_ranks(queries, targets, similarity, exclude)
            assert torch.equal(
                ranks_found,
                table.target_ranks(queries, targets, similarity, exclude, first_pass="int8"),
            )
            assert torch.equal(
                ranks_found, whole.target_ranks(queries, targets, similarity, exclude)
            )
            assert torch.equal(
                table.target_ranks(queries, targets, similarity),
                whole.target_ranks(queries, targets, similarity),
            )
        lengths = torch.arange(len(queries)) % 3
        offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
        ragged = offsets, exclude.flatten()[: int(offsets[-1])].clamp(min=0)
        found = table.topk(queries, 5, exclude=ragged)
        assert torch.equal(found.indices, whole.topk(queries, 5, exclude=ragged).indices)
        # An item and its twin are next to each other, the lower id first, on whichever ranks.
        twin = whole(torch.tensor([8])).detach()
        best = table.topk(twin, N).indices[0].tolist()
        assert best.index(8) == best.index(7) + 1


def check_only(rank: int, ranks: int, folder: Path) -> None:
    """Some items in place of all, for all queries or for each: bit for bit."""
    generator = torch.Generator().manual_seed(3)
    shared = {
        "many": torch.randperm(N, generator=generator)[:60],
        "few": torch.tensor([8, 7, 7, N, -1]),  # on the first rank alone
        "last": torch.tensor([N - 1]),
    }
    for kind in KINDS:
        whole = whole_table(kind)
        table = ShardedItemTable.from_table(whole)
        queries, targets, exclude, _ = inputs(rank, whole.embedding_dim)
        lists = torch.randint(-1, N + 1, (len(queries), 30 + rank), generator=generator)
        lists[0] = -1
        lists[1, :3] = torch.tensor([7, 8, 7])
        targets[1] = 8
        lengths = torch.arange(len(queries)) % 4
        offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
        ragged = offsets, lists.flatten()[: int(offsets[-1])].clamp(min=0)
        for only in (*shared.values(), lists, ragged):
            for left_out in (None, exclude):
                for similarity in SIMILARITIES[kind in COSINE]:
                    case = (kind, only, similarity)
                    for k in (1, 12, N):
                        how = (queries, k, similarity, left_out)
                        found, expected = table.topk(*how, only=only), whole.topk(*how, only=only)
                        assert torch.equal(found.values, expected.values), case
                        assert torch.equal(found.indices, expected.indices), case
                    for wanted in (targets, targets.clamp(max=8)):
                        how = (queries, wanted, similarity, left_out)
                        found = table.target_ranks(*how, only=only)
                        assert torch.equal(found, whole.target_ranks(*how, only=only)), case
    with pytest.raises(ValueError, match="first_pass"):
        table.topk(queries, 3, first_pass="int8", only=shared["many"])
    for differing in (shared["many"][: 3 + rank], lists if rank else shared["many"]):
        with pytest.raises(ValueError, match="only: got"):
            table.topk(queries, 3, only=differing)


def check_mixture(rank: int, ranks: int, folder: Path) -> None:
    """Items as in one process, and values to the rounding of the softmax's sum; with lists of any
    length, what is left out, and what alone is ranked."""
    generator = torch.Generator().manual_seed(7 + rank)
    shared = torch.randperm(N, generator=torch.Generator().manual_seed(3))[:60]
    for kind in KINDS:
        whole = whole_table(kind)
        table = ShardedItemTable.from_table(whole)
        queries, targets, exclude, _ = inputs(rank, whole.embedding_dim)
        width = 20 + 3 * rank
        ids = torch.rand(len(queries), N + 1, generator=generator).argsort(1)[:, :width]
        ids[1, :2], targets[1] = torch.tensor([7, 8]), 8
        ids[1, 2:] = -1
        targets[0] = ids[0, 0]
        probabilities = torch.rand(ids.shape, generator=generator) / width
        probabilities[1] = 0.25
        weight = torch.rand(len(queries), generator=generator)
        offsets = torch.arange(len(queries) + 1) * width
        flat = ids[:-1].flatten(), probabilities[:-1].flatten()
        offsets = offsets.clamp(max=len(flat[0]))  # the last list is empty
        lists = torch.randint(-1, N + 1, (len(queries), 30 + rank), generator=generator)
        for mixture in (
            af.Mixture(ids, probabilities, weight, 0.5),
            af.Mixture(*flat, 0.3, 0.5, offsets),
        ):
            for left_out, only in ((None, None), (exclude, None), (exclude, shared), (None, lists)):
                for similarity in SIMILARITIES[kind in COSINE]:
                    case = (kind, only, similarity)
                    options = {"only": only, "mixture": mixture}
                    passes = ("int8", None) if only is None else (None,)
                    for k, first_pass in [(k, one) for k in (1, 12, N) for one in passes]:
                        how = (queries, k, similarity, left_out)
                        found = table.topk(*how, first_pass=first_pass, **options)
                        expected = whole.topk(*how, **options)
                        assert torch.equal(found.indices, expected.indices), case
                        torch.testing.assert_close(
                            found.values, expected.values, rtol=1e-5, atol=1e-5
                        )
                    how = (queries, targets, similarity, left_out)
                    found = table.target_ranks(*how, **options)
                    assert torch.equal(found, whole.target_ranks(*how, **options)), case
    mixture = af.Mixture(ids, probabilities, 0.2, 1.0 + rank)
    for differing in (mixture, mixture if rank else None):
        with pytest.raises(ValueError, match="mixture: got temperatures"):
            table.topk(queries, 3, mixture=differing)


def all_inputs(ranks: int, width: int):
    parts = [inputs(rank, width) for rank in range(ranks)]
    return [[part[place] for part in parts] for place in range(4)]


def loss_of(model, which: str, queries, targets, candidates):
    """One of the losses that a model may have."""
    if which == "cross_entropy":
        return model.cross_entropy(queries, targets, temperature=0.7)
    if which == "sampled_softmax":
        log_q = torch.linspace(-3, -1, N)
        return model.sampled_softmax(queries, targets, candidates, temperature=0.7, log_q=log_q)
    if which == "candidates":
        scores = model.score_candidates(queries, candidates.clamp(max=N - 1))
        return scores.logsumexp(-1).sum()
    rows = model(candidates)
    return (rows * torch.arange(rows.numel()).view_as(rows).cos()).sum()


def check_gradients(rank: int, ranks: int, folder: Path) -> None:
    """Losses, and gradients of the mean over the ranks, against one process with all queries."""
    for kind in KINDS:
        for sparse in (False, True):
            whole = whole_table(kind, sparse)
            table = ShardedItemTable.from_table(whole)
            every = all_inputs(ranks, whole.embedding_dim)

            for which in ("cross_entropy", "sampled_softmax", "candidates", "lookup"):
                if which == "lookup":
                    ids = every[3][rank]
                    assert torch.equal(table(ids), whole(ids)), kind
                queries = [part.clone().requires_grad_() for part in every[0]]
                own = every[0][rank].clone().requires_grad_()
                expected = [
                    loss_of(whole, which, q, t, c)
                    for q, t, c in zip(queries, every[1], every[3], strict=True)
                ]
                found = loss_of(table, which, own, every[1][rank], every[3][rank])
                torch.testing.assert_close(found, expected[rank], rtol=1e-5, atol=1e-5)
                if not found.requires_grad:
                    continue
                (sum(expected) / ranks).backward()
                found.backward()
                if which != "lookup":
                    whole_grad = queries[rank].grad * ranks
                    torch.testing.assert_close(own.grad, whole_grad, rtol=1e-4, atol=1e-5)
                if whole.id_embeddings is not None:
                    rows = slice(table.first_id, table.first_id + table.shard.num_embeddings)
                    grad = table.shard.id_embeddings.grad
                    assert grad.is_sparse == (sparse and which != "cross_entropy"), which
                    torch.testing.assert_close(
                        grad.to_dense(),
                        whole.id_embeddings.grad.to_dense()[rows],
                        rtol=1e-4,
                        atol=1e-5,
                    )
                    whole.id_embeddings.grad = table.shard.id_embeddings.grad = None


def check_ignored(rank: int, ranks: int, folder: Path) -> None:
    """A query without target, or whose loss has no weight, may hold anything on any rank."""
    whole = whole_table("concat")
    table = ShardedItemTable.from_table(whole)
    queries, targets, _, _ = inputs(rank, whole.embedding_dim)
    targets[0] = N
    given = {"weight": torch.linspace(0.5, 2.0, N)}
    marked = targets.masked_fill(targets == N, -100)
    found = table.cross_entropy(queries, marked, ignore_index=-100, **given)
    torch.testing.assert_close(found, whole.cross_entropy(queries, targets, **given))
    negatives = torch.arange(N + 1)
    found = table.sampled_softmax(queries, marked, negatives, ignore_index=-100, **given)
    torch.testing.assert_close(found, whole.cross_entropy(queries, targets, **given))
    for similarity, sampled in (("dot", False), ("cosine", False), ("dot", True), ("cosine", True)):
        grads = []
        for held in (0.0, torch.nan):
            queries[:2] = held
            own = queries.clone().requires_grad_()
            if sampled:
                losses = table.sampled_softmax(
                    own, targets, negatives, similarity, reduction="none"
                )
            else:
                losses = table.cross_entropy(own, targets, similarity, reduction="none")
            losses.backward((torch.arange(len(queries)) != 1).float())
            grads.append((own.grad[0], own.grad[2:], table.shard.id_embeddings.grad))
            table.shard.id_embeddings.grad = None
        assert grads[0][2].any()
        for wanted, found in zip(*grads, strict=True):
            assert torch.equal(found, wanted), similarity


def check_training(rank: int, ranks: int, folder: Path) -> None:
    """SASRec on a shard on each rank, other gradients averaged: as in one process."""
    torch.manual_seed(0)
    whole = SASRec(whole_table("add"), history=8, dropout=0.0)
    torch.manual_seed(0)
    model = SASRec(whole_table("add"), history=8, dropout=0.0)
    model.table = ShardedItemTable.from_table(model.table)
    generator = torch.Generator().manual_seed(9)
    batches = torch.randint(N, (5, 2 * ranks, 9), generator=generator)

    optimizers = [torch.optim.Adam(one.parameters(), lr=0.01) for one in (whole, model)]
    others = [p for name, p in model.named_parameters() if not name.startswith("table.")]
    for batch in batches:
        loss = whole.loss(batch[:, :-1], batch[:, 1:]) / ranks
        optimizers[0].zero_grad()
        loss.backward()
        optimizers[0].step()
        own = batch[2 * rank : 2 * rank + 2]
        mine = model.loss(own[:, :-1], own[:, 1:])
        optimizers[1].zero_grad()
        mine.backward()
        for parameter in others:
            dist.all_reduce(parameter.grad)
            parameter.grad /= ranks
        optimizers[1].step()
        total = mine.detach().clone()
        dist.all_reduce(total)
        torch.testing.assert_close(total / ranks, loss.detach(), rtol=1e-4, atol=1e-4)
    rows = slice(model.table.first_id, model.table.first_id + model.table.shard.num_embeddings)
    torch.testing.assert_close(
        model.table.shard.id_embeddings, whole.table.id_embeddings[rows], rtol=1e-3, atol=1e-4
    )
    assert not torch.equal(whole.table.id_embeddings, whole_table("add").id_embeddings)


def check_from_space(rank: int, ranks: int, folder: Path) -> None:
    """Each rank reads its own rows of a memory map."""
    rows = np.load(folder / "rows.npy", mmap_mode="r")
    space = af.SemanticSpace.from_embeddings(rows, progress=False)
    options = {"dim": D, "null_dim": 6, "init": "zeros", "semantic_rms": None, "progress": False}
    table = ShardedItemTable.from_space(space, rows, **options)
    whole = ItemTable.from_space(space, rows, **options)
    assert torch.equal(table(torch.arange(N)), whole(torch.arange(N)))
    if rank == 0:
        whole.save(folder / f"whole-{ranks}")
    dist.barrier()
    loaded = ShardedItemTable.load(folder / f"whole-{ranks}")
    assert torch.equal(loaded(torch.arange(N)), whole(torch.arange(N)))
    file = folder / f"rows-{rank}"
    kept = ShardedItemTable.from_space(space, rows, semantic_file=file, **options)
    assert torch.equal(kept(torch.arange(N)), whole(torch.arange(N)))


def check_from_space_by_default(rank: int, ranks: int, folder: Path) -> None:
    """Scale of the semantic rows and spread of the IDs are the catalog's, not each shard's."""
    rows = np.load(folder / "rows.npy", mmap_mode="r")
    space = af.SemanticSpace.from_embeddings(rows, progress=False)
    table = ShardedItemTable.from_space(space, rows, dim=D, progress=False)
    whole = ItemTable.from_space(space, rows, dim=D, progress=False)
    own = slice(shard_bounds(N, ranks)[rank], shard_bounds(N, ranks)[rank + 1])
    torch.testing.assert_close(table.shard.semantic_rows, whole.semantic_rows[own])
    torch.manual_seed(rank)
    spread = ShardedItemTable.from_space(space, rows, dim=D, progress=False).shard.id_embeddings
    torch.manual_seed(rank)
    alone = ItemTable.from_space(space, rows[own], dim=D, progress=False).id_embeddings
    columns = alone.shape[1]
    factor = ((len(alone) + columns) / (N + columns)) ** 0.5
    torch.testing.assert_close(spread, alone * factor)


def check_refusals(rank: int, ranks: int, folder: Path) -> None:
    """On every rank, with the reason."""
    whole = whole_table("add")
    bounds = shard_bounds(N, ranks)
    semantic, own = whole.semantic_rows, whole.id_embeddings.detach()
    last = bounds[rank + 1] - (rank == 0)  # the first rank lacks a row
    rows = slice(bounds[rank], last)
    with pytest.raises(ValueError, match="rows on the ranks"):
        ShardedItemTable(ItemTable(semantic[rows], own[rows].clone(), "add"), N)
    rows = slice(bounds[rank], bounds[rank + 1])
    columns = 6 - (rank == 0)
    shard = ItemTable(semantic[rows], own[rows, :columns].clone(), "add")
    with pytest.raises(ValueError, match=r"columns: got .* on ranks 0 to"):
        ShardedItemTable(shard, N)
    rows = np.random.default_rng(rank).normal(size=(N, 24))
    space = af.SemanticSpace.from_embeddings(rows, progress=False)
    with pytest.raises(ValueError, match=r"space: got .* on ranks 0 to"):
        ShardedItemTable.from_space(space, rows, dim=D, null_dim=6)
    table = ShardedItemTable.from_table(whole)
    queries = torch.randn(2, D)
    for given, named in ((0, "k"), (N + 1, "k")):
        with pytest.raises(ValueError, match=named):
            table.topk(queries, given)
    with pytest.raises(ValueError, match="queries"):
        table.topk(queries[:, :3], 2)
    with pytest.raises(IndexError, match="targets"):
        table.cross_entropy(queries, torch.tensor([0, N + 1]))
    with pytest.raises(ValueError, match="temperature"):
        table.cross_entropy(queries, torch.tensor([0, 1]), temperature=0.0)
    with pytest.raises(ValueError, match=r"weight: .*one for each item"):
        table.cross_entropy(queries, torch.tensor([0, 1]), weight=torch.ones(N - 1))
    with pytest.raises(ValueError, match=r"log_q: .*one for each item"):
        table.sampled_softmax(
            queries, torch.tensor([0, 1]), torch.tensor([2]), log_q=torch.ones(N - 1)
        )
    for offsets in ([0, 1, 2], [1, 1, 1], [0, 2, 1], [0, 1, 1 << 40], [0, -1, 1]):
        pair = torch.tensor(offsets), torch.tensor([4])
        for argument in ("exclude", "only"):
            with pytest.raises(ValueError, match=f"{argument}: got offsets"):
                table.topk(queries, 3, **{argument: pair})
            with pytest.raises(ValueError, match=f"{argument}: got offsets"):
                table.target_ranks(queries, torch.tensor([0, 1]), **{argument: pair})


def check_second_derivatives(rank: int, ranks: int, folder: Path) -> None:
    """There are none, and their absence is an error on every rank."""
    table = ShardedItemTable.from_table(whole_table("add"))
    queries, targets, _, candidates = inputs(rank, D)
    queries.requires_grad_()
    for value in (
        table.cross_entropy(queries, targets),
        table(targets).sum(),
        table.mean().sum(),
        table.score_candidates(queries, candidates).clamp(min=-9).sum(),
        table.sampled_softmax(queries, targets, candidates),
    ):
        wanted = list(table.parameters())
        with pytest.raises(NotImplementedError, match="create_graph: got True, through a sharded"):
            torch.autograd.grad(value, wanted, create_graph=True)
    for call in (table.cross_entropy, table.score_candidates):
        with pytest.raises(NotImplementedError, match="sharded table in forward mode"):
            torch.func.jvp(lambda q, f=call: f(q, targets), (queries.detach(),), (queries,))


def check_a_rank_that_dies_in_between(rank: int, ranks: int, folder: Path) -> None:
    """Of the loss and its gradient."""
    table = ShardedItemTable.from_table(whole_table("add"))
    loss = table.cross_entropy(torch.randn(2, D), torch.tensor([0, 1]))
    rows = table(torch.arange(N)).sum()
    if rank == 1:
        os._exit(0)
    for value in (loss, rows):
        with pytest.raises(RankError, match="rank 0 of 2: another rank has ended"):
            value.backward()


def check_a_dead_rank(rank: int, ranks: int, folder: Path) -> None:
    """The others end with an error in seconds, and do not hang."""
    table = ShardedItemTable.from_table(whole_table("add"))
    if rank == 1:
        os._exit(0)
    with pytest.raises(RankError, match="rank 0 of 2: another rank has ended"):
        table.topk(torch.randn(2, D), 3)


@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_ranks(ranks, tmp_path):
    """In one run of processes, which take longer to start than to check."""
    np.save(tmp_path / "rows.npy", np.random.default_rng(0).normal(size=(N, 24)))
    checks = [
        check_ranking,
        check_only,
        check_mixture,
        check_gradients,
        check_ignored,
        check_training,
        check_from_space,
        check_from_space_by_default,
        check_refusals,
        check_second_derivatives,
    ]
    spawn(ranks, tmp_path, checks)


def test_a_rank_that_dies(tmp_path):
    for check in (check_a_dead_rank, check_a_rank_that_dies_in_between):
        folder = tmp_path / check.__name__
        folder.mkdir()
        spawn(2, folder, [check], seconds=5)


def test_merged_lists_are_those_of_the_whole():
    """Parts of a score matrix, with ties, NaN and lists that are not full."""
    generator = torch.Generator().manual_seed(0)
    scores = torch.randint(-3, 4, (6, 40), generator=generator).float()
    scores[0, 5] = torch.nan
    scores[1] = torch.nan
    scores[2, 3], scores[2, 4] = torch.inf, -torch.inf

    def best(row: int, items) -> list[int]:
        return sorted(
            items, key=lambda i: (bool(scores[row, i].isnan()), -scores[row, i].item(), i)
        )

    values = torch.full((3, 6, 12), -torch.inf)
    ids = torch.full((3, 6, 12), -1)
    for number, part in enumerate((range(0, 13), range(13, 20), range(20, 40))):
        for row in range(6):
            found = [i for i in best(row, part) if row != 3 or i % 9 == 0][:12]
            ids[number, row, : len(found)] = torch.tensor(found)
            values[number, row, : len(found)] = scores[row, found]
    merged = merge_topk(values, ids, 12)
    for row in range(6):
        expected = [i for i in best(row, range(40)) if row != 3 or i % 9 == 0][:12]
        expected += [-1] * (12 - len(expected))
        assert merged.indices[row].tolist() == expected
    with pytest.raises(ValueError, match="k"):
        merge_topk(values, ids, 37)
    with pytest.raises(ValueError, match="values, ids"):
        merge_topk(values, ids[:2], 3)


def test_merged_softmax_is_that_of_the_whole():
    scores = torch.randn(3, 5, 20) * 50
    scores[1, 2] = -torch.inf
    maxima = scores.amax(2)
    logs = (scores - maxima[..., None]).nan_to_num(-torch.inf).exp().sum(2).log()
    highest, log = merge_log_sum_exp(maxima, logs)
    expected = scores.transpose(0, 1).flatten(1).logsumexp(1)
    torch.testing.assert_close(highest + log, expected)


def test_bounds():
    assert shard_bounds(10, 3) == [0, 4, 8, 10]
    assert shard_bounds(3, 3) == [0, 1, 2, 3]
    for items in range(1, 30):
        for ranks in range(1, 9):
            parts = [len(part) for part in torch.arange(items).chunk(ranks)]
            if len(parts) == ranks:
                bounds = shard_bounds(items, ranks)
                assert [end - start for start, end in pairwise(bounds)] == parts
            else:
                with pytest.raises(ValueError, match="world_size"):
                    shard_bounds(items, ranks)
    with pytest.raises(ValueError, match="world_size"):
        shard_bounds(3, 0)
