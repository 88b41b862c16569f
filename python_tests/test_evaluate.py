"""Metrics and ranks against brute force."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import ndcg_score

from alphafuse_ext import ItemTable
from alphafuse_ext.data import Examples, Sequences
from alphafuse_ext.models import SASRec
from alphafuse_ext.training.evaluate import example_ranks, popularity_ranks, ranking_metrics


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
        wanted = int((scores[allowed] > scores[target]).sum())
        assert ranks[row] == wanted


def test_ranking_leaves_the_model_in_its_mode():
    model = SASRec(ItemTable(None, torch.randn(60, 8)), history=5).train()
    example_ranks(model, examples(np.random.default_rng(0), 60, 3))
    assert model.training


def test_popularity_breaks_ties_by_id_and_skips_seen_items():
    counts = np.array([5, 9, 5, 0])
    cases = Examples(
        np.arange(3),
        Sequences.from_lists([np.array([1]), np.array([3]), np.array([0])]),
        np.array([2, 2, 3]),
        Sequences.from_lists([np.array([1]), np.array([3]), np.array([0])]),
    )
    assert popularity_ranks(counts, cases).tolist() == [1, 2, 2]
    assert popularity_ranks(counts, cases, exclude_seen=False).tolist() == [2, 2, 3]
