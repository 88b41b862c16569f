"""Metrics and ranks against brute force."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import ndcg_score

import alphafuse_ext as af
from alphafuse_ext import ItemTable
from alphafuse_ext.data import Examples, Sequences, leave_one_out
from alphafuse_ext.models import SASRec
from alphafuse_ext.training.evaluate import (
    UNREACHABLE,
    evaluate_model,
    evaluate_popularity,
    example_ranks,
    ranking_metrics,
)


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
    model = SASRec(table, history=5)
    cases = examples(generator, 60, 37)
    ranks = example_ranks(model, cases, similarity, exclude_seen, batch_size=8)
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
            allowed[torch.from_numpy(history)] = False
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
    with pytest.raises(ValueError, match="similarity"):
        example_ranks(model, examples(np.random.default_rng(0), 60, 3), similarity="none")
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
    assert len(warned) == (0 if trained_with else 1)
    seen_before = sum(split.test.targets[row] in split.test.seen[row] for row in range(80))
    assert results["targets_seen_before"] == seen_before > 20
    if not trained_with:
        assert f"{seen_before} of 80 targets" in warned[0]
        with pytest.warns(UserWarning, match=f"{seen_before} of 80 targets .*--keep-seen"):
            recommender.evaluate()


def test_both_ways_of_seen_items_rank_the_same_queries():
    torch.manual_seed(3)
    model = SASRec(ItemTable(None, torch.randn(60, 8)), history=5)
    cases = examples(np.random.default_rng(3), 60, 40)
    evaluation = evaluate_model(model, cases, batch_size=7)
    for seen_items, exclude_seen in (("excluded", True), ("ranked", False)):
        ranks = example_ranks(model, cases, exclude_seen=exclude_seen)
        assert evaluation.by_seen_items[seen_items] == ranking_metrics(ranks)
