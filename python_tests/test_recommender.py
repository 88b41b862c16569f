"""Recommendations against a brute-force ranking of the same scores."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch

import alphafuse_ext as af
from alphafuse_ext.data import interactions, synthetic_catalog
from alphafuse_ext.data.ids import IdIndex


@pytest.fixture(scope="module")
def recommender(tmp_path_factory) -> af.Recommender:
    clicks, items = synthetic_catalog(num_users=200, num_items=90, seed=2)
    return af.fit(
        clicks,
        items,
        output=tmp_path_factory.mktemp("runs") / "run",
        encoder="tfidf",
        dim=16,
        epochs=1,
        negatives=8,
        history=6,
        log=lambda _: None,
    )


@pytest.mark.parametrize("keep_seen", [False, True])
def test_users_get_the_best_unseen_items(recommender, keep_seen):
    users = recommender.interactions.users[[5, 0, 17]].tolist()
    frame = recommender.recommend(users, k=7, keep_seen=keep_seen)
    assert list(frame.columns) == ["user", "rank", "item", "title", "score"]
    weight = recommender.model.table.weight.detach()
    for user in users:
        history = recommender.interactions.sequences[recommender.interactions.user_index([user])[0]]
        with torch.inference_mode():
            query = recommender.model.encode(torch.from_numpy(history[-6:].copy())[None])[0]
        scores = (weight @ query).double().numpy()
        if not keep_seen:
            scores[history] = -np.inf
        best = np.argsort(-scores, kind="stable")[:7]
        rows = frame[frame["user"] == user]
        assert rows["rank"].tolist() == list(range(1, 8))
        assert rows["item"].tolist() == recommender.items.tokens[best].tolist()
        np.testing.assert_allclose(rows["score"], scores[best], rtol=1e-5)


def test_a_history_gets_what_its_user_would(recommender):
    user = recommender.interactions.users[3]
    history = recommender.interactions.items[recommender.interactions.sequences[3]].tolist()
    by_user = recommender.recommend([user], k=5).drop(columns="user")
    by_history = recommender.recommend(histories=[history], k=5).drop(columns="user")
    pd.testing.assert_frame_equal(by_user, by_history)


def test_batches_do_not_matter(recommender):
    pd.testing.assert_frame_equal(
        recommender.recommend(k=3, batch_size=7), recommender.recommend(k=3, batch_size=512)
    )


def test_the_catalog_is_indexed_once(recommender, monkeypatch):
    served = dataclasses.replace(recommender.interactions)  # nothing is cached in a copy
    monkeypatch.setattr(recommender, "interactions", served)
    indexed = []

    def counted(ids):
        indexed.append(len(ids))
        return IdIndex(ids)

    monkeypatch.setattr(interactions, "IdIndex", counted)
    histories = [served.items[served.sequences[user]].tolist() for user in range(9)]
    for _ in range(2):
        recommender.recommend(histories=histories, k=2)
    assert indexed.count(served.num_items) == 1


def test_one_who_has_seen_nearly_everything(recommender):
    history = recommender.items.tokens[:-2].tolist()
    frame = recommender.recommend(histories=[history], k=10)
    assert set(frame["item"]) == set(recommender.items.tokens[-2:])


@pytest.mark.parametrize(
    ("argument", "options"),
    [
        ("k", {"k": 0}),
        ("k", {"k": 91}),
        ("users", {"users": ["nobody"]}),
        ("users", {"users": []}),
        ("items", {"histories": [["nothing"]]}),
        ("histories", {"histories": []}),
        (r"histories\[1\]", {"histories": [["0"], []]}),
        ("histories", {"users": ["0"], "histories": [["0"]]}),
    ],
)
def test_bad_queries_are_named(recommender, argument, options):
    with pytest.raises(ValueError, match=f"^{argument}: got"):
        recommender.recommend(**options)


def test_a_part_that_does_not_exist(recommender):
    with pytest.raises(ValueError, match=r"^part: got"):
        recommender.evaluate("train")
