"""Recommendations against a brute-force ranking of the same scores."""

from __future__ import annotations

import dataclasses
import warnings

import numpy as np
import pandas as pd
import pytest
import torch

import alphafuse_ext as af
from alphafuse_ext.data import interactions
from alphafuse_ext.data.ids import IdIndex


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


def test_columns_of_rectools(recommender):
    """The same rows, in the columns and their order that RecTools' models have."""
    names = {"user": "user_id", "item": "item_id"}
    plain = recommender.recommend(k=4)
    found = recommender.recommend(k=4, columns="rectools")
    assert list(found.columns) == ["user_id", "item_id", "score", "rank", "title"]
    pd.testing.assert_frame_equal(found, plain.rename(columns=names)[found.columns])
    frames = list(recommender.recommend_in_batches(k=4, batch_size=60, columns="rectools"))
    pd.testing.assert_frame_equal(pd.concat(frames, ignore_index=True), found)
    some = recommender.items.tokens[:3].tolist()
    plain = recommender.recommend_to_items(some, 4)
    found = recommender.recommend_to_items(some, 4, columns="rectools")
    assert list(found.columns) == ["target_item_id", "item_id", "score", "rank", "title"]
    assert found["target_item_id"].tolist() == plain["target_item"].tolist()
    assert found["item_id"].tolist() == plain["item"].tolist()
    with pytest.warns(UserWarning, match="nobody"):
        empty = recommender.recommend(users=["nobody"], columns="rectools")
    assert (len(empty), empty.columns[0]) == (0, "user_id")


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


def test_a_user_who_has_seen_nearly_all_items(recommender):
    history = recommender.items.tokens[:-2].tolist()
    frame = recommender.recommend(histories=[history], k=10)
    assert set(frame["item"]) == set(recommender.items.tokens[-2:])


def test_unknown_users_are_left_out_and_named(recommender):
    known = recommender.interactions.users[[4, 2]].tolist()
    users = ["nobody", known[0], "no one", known[1]]
    with pytest.warns(UserWarning, match="unknown users are left out: 'nobody', 'no one'") as said:
        frame = recommender.recommend(users, k=3)
    assert len(said) == 1
    assert said[0].filename == __file__
    pd.testing.assert_frame_equal(frame, recommender.recommend(known, k=3))
    with pytest.raises(ValueError, match="users: got unknown 'nobody', 'no one'"):
        recommender.recommend(users, k=3, strict=True)


def test_unknown_items_are_left_out_and_histories_without_a_known_one_are_named(recommender):
    known = recommender.items.tokens[:3].tolist()
    histories = [["x"], [known[0], "x", known[1]], [], [known[2]], ["y", "z"]]
    with pytest.warns(UserWarning, match="histories") as said:
        frame = recommender.recommend(histories=histories, k=3)
    assert [str(line.message) for line in said] == [
        "unknown items are left out of 3 of 5 histories: 'x', 'x', 'y', 'z'",
        "no known item, so no recommendations, in 3 of 5 histories: 0, 2, 4",
    ]
    alone = recommender.recommend(histories=[known[:2], known[2:]], k=3)
    assert frame["user"].unique().tolist() == [1, 3]
    alone["user"] = alone["user"].map({0: 1, 1: 3})
    pd.testing.assert_frame_equal(frame, alone)
    with pytest.raises(ValueError, match=r"^histories\[2\]: got an empty history"):
        recommender.recommend(histories=histories, strict=True)
    with pytest.raises(ValueError, match=r"^items: got unknown 'x'"):
        recommender.recommend(histories=histories[:2], strict=True)


@pytest.mark.parametrize(
    "options",
    [{"users": ["nobody"]}, {"histories": [["nothing"]]}, {"histories": [[], ["nothing"]]}],
)
def test_nothing_known_is_an_empty_frame_like_any_other(recommender, options):
    with pytest.warns(UserWarning, match="unknown"):
        frame = recommender.recommend(**options)
    name = "histories" if "histories" in options else "users"
    some = {
        "histories": [recommender.items.tokens[:2]],
        "users": recommender.interactions.users[:1],
    }
    full = recommender.recommend(**{name: some[name]})
    assert len(frame) == 0
    assert frame.dtypes.to_dict() == full.dtypes.to_dict()
    pd.testing.assert_frame_equal(pd.concat([frame, full], ignore_index=True), full)


def test_known_users_and_items_are_served_without_warnings(recommender):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        recommender.recommend(k=2)
        recommender.recommend(recommender.interactions.users[:2], k=2)
        recommender.recommend(histories=[recommender.items.tokens[:2]], k=2)


def test_lists_of_any_kind(recommender):
    users = recommender.interactions.users[:4]
    wanted = recommender.recommend(users.tolist(), k=2)
    for given in (users, pd.Series(users), pd.Index(users), tuple(users), iter(users), {*users}):
        frame = recommender.recommend(given, k=2)
        if isinstance(given, set):
            frame = frame.set_index("user").loc[users].reset_index()
        pd.testing.assert_frame_equal(frame, wanted)
    items = recommender.items.tokens[:6].reshape(2, 3)
    wanted = recommender.recommend(histories=items.tolist(), k=2)
    for given in (items, list(items), pd.Series(list(items)), (tuple(row) for row in items)):
        pd.testing.assert_frame_equal(recommender.recommend(histories=given, k=2), wanted)


@pytest.mark.parametrize(
    ("kind", "argument", "options"),
    [
        (ValueError, "k", {"k": 0}),
        (ValueError, "k", {"k": 91}),
        (TypeError, "k", {"k": "5"}),
        (TypeError, "k", {"k": True}),
        (TypeError, "k", {"k": 2.0}),
        (ValueError, "batch_size", {"batch_size": 0}),
        (TypeError, "keep_seen", {"keep_seen": "no"}),
        (TypeError, "strict", {"strict": "no"}),
        (ValueError, "columns", {"columns": "recbole"}),
        (ValueError, "users", {"users": ["nobody"], "strict": True}),
        (ValueError, "users", {"users": []}),
        (ValueError, "items", {"histories": [["nothing"]], "strict": True}),
        (ValueError, "histories", {"histories": []}),
        (ValueError, "histories", {"users": ["0"], "histories": [["0"]]}),
        # What looks like a list and is none:
        (TypeError, "users", {"users": "12"}),
        (TypeError, "users", {"users": b"12"}),
        (TypeError, "users", {"users": 12}),
        (TypeError, "users", {"users": {"1": "2"}}),
        (TypeError, "users", {"users": pd.DataFrame({"1": ["2"]})}),
        (TypeError, "users", {"users": np.array(12)}),
        (TypeError, "users", {"users": [["1"]]}),
        (TypeError, "histories", {"histories": "31"}),
        (TypeError, "histories", {"histories": {"1": ["2"]}}),
        (TypeError, "histories", {"histories": pd.DataFrame({"1": ["2"]})}),
        (TypeError, r"histories\[0\]", {"histories": ["31"]}),
        (TypeError, r"histories\[1\]", {"histories": [["3"], "1"]}),
        (TypeError, r"histories\[0\]", {"histories": [3, 1]}),
        (TypeError, r"histories\[0\]", {"histories": [{"3": 1}]}),
        (TypeError, "items", {"histories": [["3", None]]}),
    ],
)
def test_bad_queries_are_named(recommender, kind, argument, options):
    with pytest.raises(kind, match=f"^{argument}: got [^\n]*$"):
        recommender.recommend(**options)


@pytest.mark.parametrize("dtype", ["int64", "int32", "float64", "str", "category"])
def test_recommendations_merge_with_the_data(tmp_path, dtype):
    """Ids come back in the type they came in, from a run's folder too."""
    generator = np.random.default_rng(0)
    clicks = pd.DataFrame(generator.integers(100, 120, (300, 2)), columns=["user_id", "item_id"])
    clicks["user_id"] = clicks["user_id"].astype(dtype)
    clicks["item_id"] = clicks["item_id"].astype(dtype)
    catalog = clicks[["item_id"]].drop_duplicates()
    catalog["price"] = generator.random(len(catalog))
    trained = af.fit(
        clicks,
        output=tmp_path / "run",
        item_embedding="id",
        dim=8,
        epochs=1,
        negatives=8,
        log=lambda _: None,
    )
    for recommender in (trained, af.Recommender.load(tmp_path / "run")):
        frame = recommender.recommend(k=2, keep_seen=True)
        merged = frame.merge(catalog, left_on="item", right_on="item_id")
        assert len(merged) == len(frame) == 2 * clicks["user_id"].nunique()
        prices = catalog.set_index("item_id")["price"]
        assert merged["price"].tolist() == [prices[item] for item in frame["item"]]
        merged = frame.merge(clicks, left_on="user", right_on="user_id")
        assert len(merged) == 2 * len(clicks)
        for asked in ([100, 101.0, "102"], [np.float32(100), np.int8(101), "102"]):
            found = recommender.recommend(asked, k=1)["user"]
            assert [float(user) for user in found] == [100, 101, 102]
            assert found.dtype == frame["user"].dtype


def test_a_split_that_does_not_exist(recommender):
    with pytest.raises(ValueError, match=r"^split: got"):
        recommender.evaluate("train")
