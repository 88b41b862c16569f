"""Metrics and ranks against brute force."""

from __future__ import annotations

import itertools
import math
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import ndcg_score

import alphafuse_ext as af
from alphafuse_ext import ItemTable
from alphafuse_ext.cli import main
from alphafuse_ext.data import Examples, Sequences, leave_one_out
from alphafuse_ext.evaluation import ranking as evaluating
from alphafuse_ext.evaluation.ranking import (
    UNREACHABLE,
    evaluate_model,
    evaluate_popularity,
    example_ranks,
    sampled_candidates,
    sampled_ranks,
)
from alphafuse_ext.metrics import list_metrics, ranking_metrics
from alphafuse_ext.models import SASRec

LOSS_BY = {"dot": "sampled_softmax", "cosine": "infonce"}


def test_metrics_of_known_ranks():
    metrics = ranking_metrics(np.array([0, 3, 10, 49, 50]))
    assert metrics["hr@1"] == 1 / 5
    assert metrics["hr@10"] == 2 / 5
    assert metrics["hr@20"] == 3 / 5
    assert metrics["hr@50"] == 4 / 5
    assert metrics["mrr@10"] == pytest.approx((1 + 1 / 4) / 5)
    assert metrics["ndcg@5"] == pytest.approx((1 + 1 / np.log2(5)) / 5)


def test_ndcg_is_the_library_s():
    generator = np.random.default_rng(0)
    scores = generator.normal(size=(50, 40))
    targets = generator.integers(40, size=50)
    ranks = (scores > scores[np.arange(50), targets][:, None]).sum(1)
    relevance = np.eye(40)[targets]
    metrics = ranking_metrics(ranks)
    for k in (1, 5, 10, 20):
        assert metrics[f"ndcg@{k}"] == pytest.approx(ndcg_score(relevance, scores, k=k))


def test_no_examples_have_no_metrics():
    assert np.isnan(ranking_metrics(np.array([]))["hr@10"])


def examples(generator: np.random.Generator, num_items: int, count: int) -> Examples:
    seen = [generator.choice(num_items, generator.integers(1, 12), False) for _ in range(count)]
    sequences = Sequences.from_lists(seen)
    return Examples(
        np.arange(count), sequences, generator.integers(num_items, size=count), sequences
    )


@pytest.mark.parametrize("similarity", ["dot", "cosine"])
@pytest.mark.parametrize("exclude_seen", [True, False])
def test_ranks_are_brute_force_ranks(similarity, exclude_seen):
    generator = np.random.default_rng(5)
    torch.manual_seed(5)
    table = ItemTable(torch.randn(60, 6), torch.randn(60, 6))
    model = SASRec(table, history=5, loss=LOSS_BY[similarity])
    cases = examples(generator, 60, 37)
    ranks = example_ranks(model, cases, exclude_seen, batch_size=8)
    model.eval()
    weight = table.weight.double()
    if similarity == "cosine":
        weight = torch.nn.functional.normalize(weight, dim=1)
    for row, target in enumerate(cases.targets):
        history = cases.histories[row]
        query = model.encode(torch.tensor(history[-5:])[None])[0].double()
        scores = weight @ query
        allowed = torch.ones(60, dtype=torch.bool)
        if exclude_seen:
            allowed[torch.tensor(history)] = False
        if allowed[target]:
            assert ranks[row] == int((scores[allowed] > scores[target]).sum())
        else:
            assert ranks[row] == UNREACHABLE


def test_ranking_leaves_the_model_in_its_mode():
    model = SASRec(ItemTable(None, torch.randn(60, 8)), history=5).train()
    example_ranks(model, examples(np.random.default_rng(0), 60, 3))
    assert model.training


def test_an_error_leaves_the_model_in_its_mode():
    model = SASRec(ItemTable(None, torch.randn(60, 8)), history=5).train()
    model.similarity = "none"
    with pytest.raises(ValueError, match="similarity"):
        example_ranks(model, examples(np.random.default_rng(0), 60, 3))
    assert model.training


def test_popularity_breaks_ties_by_id_and_leaves_out_seen_items():
    counts = np.array([5, 9, 5, 0])
    histories = Sequences.from_lists([np.array([1]), np.array([3]), np.array([0]), np.array([1])])
    cases = Examples(np.arange(4), histories, np.array([2, 2, 3, 1]), histories)
    popularity = evaluate_popularity(counts, cases)
    excluded, ranked = np.array([1, 2, 2, UNREACHABLE]), np.array([2, 2, 3, 0])
    assert popularity.by_seen_items["excluded"] == ranking_metrics(excluded)
    assert popularity.by_seen_items["ranked"] == ranking_metrics(ranked)
    assert popularity.metrics == popularity.by_seen_items["excluded"]
    assert evaluate_popularity(counts, cases, keep_seen=True).metrics == ranking_metrics(ranked)
    assert popularity.targets_seen_before == 1


def test_a_target_that_no_list_can_show_is_no_hit_in_a_catalog_smaller_than_the_cutoff():
    metrics = ranking_metrics(np.array([UNREACHABLE, 0]), cutoffs=(1, 10**6))
    assert metrics["hr@1000000"] == metrics["ndcg@1000000"] == metrics["mrr@1000000"] == 0.5


def returning_users(num_items: int, seed: int) -> pd.DataFrame:
    """Listeners who come back to a few favourites: most targets were had before."""
    generator = np.random.default_rng(seed)
    favourites = [generator.choice(num_items, 6, replace=False) for _ in range(80)]
    plays = [(user, item) for user in range(80) for item in generator.choice(num_items, 2)]
    plays += [(user, item) for user in range(80) for item in generator.choice(favourites[user], 9)]
    return pd.DataFrame(plays, columns=["user_id", "item_id"])


def metrics_of_lists(lists: list[list[str]], targets: list[str]) -> dict[str, float]:
    """HR, NDCG and MRR in plain Python, from lists as a user gets them."""
    metrics = {}
    for k in (1, 5, 10, 20, 50):
        places = [
            items[:k].index(target) if target in items[:k] else None
            for items, target in zip(lists, targets, strict=True)
        ]
        found = [place for place in places if place is not None]
        metrics[f"hr@{k}"] = len(found) / len(targets)
        metrics[f"ndcg@{k}"] = sum(1 / math.log2(place + 2) for place in found) / len(targets)
        metrics[f"mrr@{k}"] = sum(1 / (place + 1) for place in found) / len(targets)
    return metrics


@pytest.mark.parametrize("num_items", [30, 90])  # fewer than the largest cutoff, and more
@pytest.mark.parametrize("trained_with", [False, True])
def test_metrics_are_those_of_the_lists_that_recommend_returns(tmp_path, num_items, trained_with):
    said: list[str] = []
    recommender = af.fit(
        returning_users(num_items, seed=num_items),
        output=tmp_path / "run",
        item_embedding="id",
        keep_seen=trained_with,
        dim=16,
        epochs=2,
        history=6,
        log=said.append,
    )
    results = recommender.run.results()
    assert results["seen_items"] == ("ranked" if trained_with else "excluded")
    assert results["test_by_seen_items"][results["seen_items"]] == results["test"]
    split = leave_one_out(recommender.interactions)
    tokens = recommender.items.tokens
    k = min(50, num_items)
    for part in ("validation", "test"):
        cases = getattr(split, part)
        histories = [tokens[cases.histories[row]].tolist() for row in range(len(cases))]
        targets = tokens[cases.targets].tolist()
        for keep_seen in (None, False, True):
            frame = recommender.recommend(histories=histories, k=k, keep_seen=keep_seen)
            by_user = frame.groupby("user")["item"].agg(list)
            wanted = metrics_of_lists([by_user[row] for row in range(len(cases))], targets)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)
                found = recommender.evaluate(part, keep_seen)
            assert found == pytest.approx(wanted, abs=1e-12)
            if part == "test":
                kept = trained_with if keep_seen is None else keep_seen
                assert results["test_by_seen_items"]["ranked" if kept else "excluded"] == found
    popular = np.argsort(-split.train_item_counts(num_items), kind="stable")
    lists = [[i for i in popular if i not in split.test.seen[row]] for row in range(80)]
    wanted = metrics_of_lists(lists, split.test.targets.tolist())
    assert results["popularity_by_seen_items"]["excluded"] == pytest.approx(wanted, abs=1e-12)
    wanted = metrics_of_lists([list(popular)] * 80, split.test.targets.tolist())
    assert results["popularity_by_seen_items"]["ranked"] == pytest.approx(wanted, abs=1e-12)
    warned = [line for line in said if "--keep-seen" in line]
    assert len(warned) == (0 if trained_with else 1)  # once, before training
    seen_before = sum(split.test.targets[row] in split.test.seen[row] for row in range(80))
    assert results["targets_seen_before"] == seen_before > 20
    if not trained_with:
        assert all(f"{seen_before} of 80 targets" in line for line in warned)
        with pytest.warns(UserWarning, match=f"{seen_before} of 80 targets .*--keep-seen"):
            recommender.evaluate()
        assert recommender.evaluate_in_detail(split="test").examples == 80


def test_both_ways_of_seen_items_rank_the_same_queries():
    torch.manual_seed(3)
    model = SASRec(ItemTable(None, torch.randn(60, 8)), history=5)
    cases = examples(np.random.default_rng(3), 60, 40)
    evaluation = evaluate_model(model, cases, batch_size=7)
    for seen_items, exclude_seen in (("excluded", True), ("ranked", False)):
        ranks = example_ranks(model, cases, exclude_seen=exclude_seen)
        assert evaluation.by_seen_items[seen_items] == ranking_metrics(ranks)


def test_metrics_over_all_orders_of_equals_are_means_over_all_orders():
    generator = np.random.default_rng(11)
    scores = generator.integers(3, size=(7, 6)).astype(float)
    targets = generator.integers(6, size=7)
    own = scores[np.arange(7), targets][:, None]
    better, tied = (scores > own).sum(1), (scores == own).sum(1) - 1
    assert tied.max() > 0
    found = []
    for order in itertools.permutations(range(6)):
        place = np.argsort(order)  # of an item among its equals
        ahead = (scores == own) & (place < place[targets][:, None])
        found.append(ranking_metrics(better + ahead.sum(1), cutoffs=(1, 2, 3, 10)))
    metrics = ranking_metrics(better, cutoffs=(1, 2, 3, 10), tied=tied)
    for name, value in metrics.items():
        assert value == pytest.approx(np.mean([one[name] for one in found]))


@pytest.mark.parametrize("similarity", ["dot", "cosine"])
@pytest.mark.parametrize("block", [1, 150, 10**6])  # scores at a time; a catalog has 60
@pytest.mark.usefixtures("one_thread")
def test_ties_are_counted_exactly(similarity, block, monkeypatch):
    monkeypatch.setattr(evaluating, "_CHUNK_SCORES", block)
    generator = np.random.default_rng(7)
    torch.manual_seed(7)
    rows = torch.randn(60, 6)
    rows[torch.from_numpy(generator.choice(60, 40, replace=False))] = torch.randn(6)
    model = SASRec(ItemTable(rows, None), history=5, loss=LOSS_BY[similarity])
    cases = examples(generator, 60, 90)
    for ties, keep_seen in itertools.product(("id", "mean"), (False, True)):
        evaluation = evaluate_model(model, cases, keep_seen, ties, batch_size=16)
        by_id, better, tied = [], [], []
        model.eval()
        for row, target in enumerate(cases.targets):
            history = torch.tensor(cases.histories[row])
            with torch.inference_mode():
                scores = model.table.score_all(model.encode(history[None, -5:]), similarity)[0]
            left = np.ones(60, dtype=bool)
            if not keep_seen:
                left[history] = False
            higher, same = (scores > scores[target]).numpy(), (scores == scores[target]).numpy()
            hidden = not left[target]
            by_id.append(
                UNREACHABLE if hidden else (left & higher).sum() + (left & same)[:target].sum()
            )
            better.append(UNREACHABLE if hidden else (left & higher).sum())
            tied.append(0 if hidden else (left & same).sum() - 1)
        wanted = {"id": ranking_metrics(by_id), "mean": ranking_metrics(better, tied=tied)}
        assert evaluation.metrics == pytest.approx(wanted[ties])
        found = evaluation.ties
        assert (found.examples, found.tied) == (90, np.count_nonzero(tied))
        assert found.by_id == pytest.approx(wanted["id"][found.metric])
        assert found.mean == pytest.approx(wanted["mean"][found.metric])
        moved = {name: abs(wanted["id"][name] - wanted["mean"][name]) for name in wanted["id"]}
        assert moved[found.metric] == pytest.approx(max(moved.values()))


def test_the_order_of_the_catalog_decides_by_id_and_not_in_the_mean():
    """36 of 40 items are alike, and what users want is always one of those."""
    torch.manual_seed(0)
    rows = torch.randn(40, 8)
    rows[4:] = rows[4]
    histories = Sequences.from_lists([[user % 4, (user + 1) % 4] for user in range(30)])
    targets = np.arange(30) % 3 + 4
    found = {}
    for name, ids in (("first", np.arange(40)), ("last", np.arange(40)[::-1].copy())):
        renumbered = Sequences(histories.offsets, ids[histories.values])
        cases = Examples(np.arange(30), renumbered, ids[targets], renumbered)
        torch.manual_seed(1)
        model = SASRec(ItemTable(rows[np.argsort(ids)], None), history=5)
        for ties in ("id", "mean"):
            found[name, ties] = evaluate_model(model, cases, ties=ties)
    assert found["first", "mean"].metrics == pytest.approx(found["last", "mean"].metrics)
    assert found["first", "id"].metrics["hr@10"] > found["last", "id"].metrics["hr@10"] + 0.5
    for name in ("first", "last"):
        (line,) = found[name, "id"].warnings()
        ties = found[name, "id"].ties
        assert line.startswith("30 of 30 targets score exactly as other items do")
        assert f"{ties.metric} is {ties.by_id:.4f}" in line
        assert f"{ties.mean:.4f}" in line
        assert "--ties mean" in line
        assert found[name, "mean"].warnings() == []


def test_ties_of_popularity():
    """Items 1 to 3 are bought equally often."""
    histories = Sequences.from_lists([[0], [1]])
    cases = Examples(np.arange(2), histories, np.array([3, 3]), histories)
    popularity = evaluate_popularity(np.array([9, 5, 5, 5]), cases, ties="mean")
    assert popularity.by_seen_items["excluded"]["hr@1"] == pytest.approx((1 / 3 + 0) / 2)
    assert popularity.by_seen_items["ranked"]["hr@5"] == 1
    assert popularity.by_seen_items["ranked"]["mrr@5"] == pytest.approx((1 / 2 + 1 / 3 + 1 / 4) / 3)
    assert evaluate_popularity(np.array([9, 5, 5, 5]), cases).ties.tied == 2


def test_in_a_large_catalog_ties_are_counted_in_a_sample(monkeypatch):
    torch.manual_seed(0)
    model = SASRec(ItemTable(torch.ones(60, 8), None), history=5)
    cases = examples(np.random.default_rng(0), 60, 50)
    monkeypatch.setattr(evaluating, "_SAMPLE_SCORES", 60 * 20)
    assert evaluate_model(model, cases, keep_seen=True).ties.tied == 20
    assert evaluate_model(model, cases, keep_seen=True, ties="mean").ties.tied == 50


def test_scores_that_are_not_numbers_are_the_lowest_and_equal():
    """A query of infinities scores NaN everywhere."""
    table = ItemTable(torch.tensor([[1.0, 1.0], [0.0, 1.0], [1.0, 0.0]]), None)
    scores = table.score_all(torch.tensor([[torch.inf, 1.0]]))
    assert scores.isnan().tolist() == [[False, True, False]]
    nothing_seen = torch.tensor([0, 0]), torch.tensor([], dtype=torch.int64)
    equals = evaluating._equals(scores, torch.tensor([1]), nothing_seen, np.empty(0, np.int64))
    assert [count.item() for count in equals["ranked"]] == [2, 0]


@pytest.mark.parametrize(
    ("argument", "given"),
    [
        ("cutoffs", {"cutoffs": "10"}),
        ("cutoffs", {"cutoffs": 10}),
        ("cutoffs", {"cutoffs": [10.5]}),
        ("cutoffs", {"cutoffs": [5, 0]}),
        ("ranks", {"ranks": [0.5]}),
        ("ranks", {"ranks": 3}),
    ],
)
def test_what_is_no_list_of_integers_is_refused(argument, given):
    with pytest.raises((TypeError, ValueError), match=f"^{argument}: got .*; expected integers"):
        ranking_metrics(**{"ranks": [1, 2], **given})


def test_a_tie_rule_that_does_not_exist():
    with pytest.raises(ValueError, match=r"^ties: got 'random'; expected 'id' or 'mean'"):
        evaluate_popularity(np.ones(60), examples(np.random.default_rng(0), 60, 3), ties="random")


# --- beside accuracy, and among sampled items


def test_list_metrics_by_hand():
    lists = np.array([[0, 1], [0, 2], [0, -1]])
    counts = np.array([5, 2, 0, 0])
    rows = np.array([[2.0, 0.0], [0.0, 3.0], [1.0, 1.0], [0.0, 0.0]])
    found = list_metrics(lists, counts, rows)
    assert set(found) == {f"{name}@2" for name in metric_names}
    assert found["coverage@2"] == 3 / 4
    times = [3, 1, 1, 0]
    differences = sum(abs(one - other) for one in times for other in times)
    assert found["gini@2"] == pytest.approx(differences / (2 * 4 * sum(times)))
    assert found["popularity@2"] == (5 + 2 + 5 + 0 + 5) / 5
    bits = [-math.log2((count + 1) / 11) for count in (5, 2, 5, 0, 5)]
    assert found["novelty@2"] == pytest.approx(np.mean(bits))
    assert found["diversity@2"] == pytest.approx(((1 - 0) + (1 - 0.5**0.5)) / 2)
    alike = list_metrics(np.array([[0], [1], [2], [3]]), counts)
    assert alike["gini@1"] == 0
    assert "diversity@1" not in alike
    # An item without text is compared with none.
    assert np.isnan(list_metrics(np.array([[0, 3]]), counts, rows)["diversity@2"])
    assert np.isnan(list_metrics(np.full((2, 3), -1), counts)["novelty@3"])
    with pytest.raises(ValueError, match="ids below 4"):
        list_metrics(np.array([[4]]), counts)


metric_names = ("coverage", "gini", "popularity", "novelty", "diversity")


def test_a_run_says_what_its_lists_are_like(recommender):
    found = recommender.list_metrics(k=5)
    assert found.keys() == {"this run", "popularity"}
    frame = recommender.recommend(
        histories=[recommender.items.tokens[one] for one in recommender.split.test.histories], k=5
    )
    shown = recommender.interactions.item_index(frame["item"])
    assert found["this run"]["coverage@5"] == len(np.unique(shown)) / len(recommender.items)
    assert found["this run"]["diversity@5"] > 0
    assert found["popularity"]["novelty@5"] < found["this run"]["novelty@5"]
    results = recommender.run.results()
    assert results["lists"] == recommender.list_metrics()


@pytest.mark.parametrize("exclude_seen", [True, False])
def test_ranks_among_sampled_items(exclude_seen):
    generator = np.random.default_rng(5)
    num_items = 60
    cases = examples(generator, num_items, 40)
    model = SASRec(ItemTable.id_only(num_items, 8, init="normal"), history=6, blocks=1).eval()
    retired = np.array([3, 50])
    drawn = sampled_candidates(cases, num_items, 20, 1, retired)
    assert np.array_equal(sampled_candidates(cases, num_items, 20, 1, retired).values, drawn.values)
    assert not np.array_equal(
        sampled_candidates(cases, num_items, 20, 2, retired).values, drawn.values
    )
    found = sampled_ranks(model, cases, drawn, exclude_seen, 7, retired)
    for row in range(len(cases)):
        own, target = drawn[row], cases.targets[row]
        assert len(set(own)) == 20
        assert not set(own) & {target, *cases.seen[row], *retired}
        if target in retired or (exclude_seen and target in cases.seen[row]):
            assert found[row] == UNREACHABLE
            continue
        with torch.inference_mode():
            ids = torch.tensor(cases.histories[row][-6:])[None]
            scores = model.table.score_all(model.encode(ids))[0]
        better = [item for item in own if (-scores[item], item) < (-scores[target], target)]
        assert found[row] == len(better)
    # Drawn alike among what there is.
    many = sampled_candidates(cases.select(np.zeros(3_000, np.int64)), num_items, 5, 0)
    counts = np.bincount(many.values, minlength=num_items)
    allowed = ~np.isin(np.arange(num_items), [*cases.seen[0], cases.targets[0]])
    assert counts[~allowed].sum() == 0
    expected = 15_000 / allowed.sum()
    assert np.abs(counts[allowed] - expected).max() < 6 * expected**0.5
    with pytest.raises(ValueError, match="candidates: got 59; expected 1 <= candidates <= "):
        sampled_candidates(cases, num_items, 59, 0)


def test_cutoffs_of_one_s_own(recommender, capsys):
    usual = recommender.evaluate()
    own = recommender.evaluate(cutoffs=[3, 10])
    assert set(own) == {f"{name}@{k}" for name in ("hr", "ndcg", "mrr") for k in (3, 10)}
    assert own["ndcg@10"] == usual["ndcg@10"]
    assert usual["hr@1"] <= own["hr@3"] <= usual["hr@5"]
    run = str(recommender.run.path)
    assert main(["evaluate", run, "--cutoffs", "3", "7", "--groups", "--candidates", "20"]) == 0
    said = capsys.readouterr()
    assert "hr@3     hr@7   ndcg@3   ndcg@7    mrr@3    mrr@7" in said.out
    assert "among 20 sampled items, not the whole catalog" in said.out
    assert "may order models otherwise" in said.err
    assert "coverage" in said.out
    with pytest.warns(UserWarning, match="may order models otherwise"):
        sampled = recommender.evaluate_sampled(20)
    assert sampled["this run"]["hr@10"] > usual["hr@10"]
    assert sampled["popularity"].keys() == usual.keys()
    assert main(["evaluate", run, "--cutoffs", "0"]) == 2
    assert "cutoffs: got 0" in capsys.readouterr().err
