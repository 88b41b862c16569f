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
from alphafuse_ext.items import item_embeddings
from alphafuse_ext.serving import queries


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
        found = recommender.recommend(users=["nobody"], columns="rectools")
    assert list(found.columns) == ["user_id", "item_id", "score", "rank", "title", "from"]


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


def popular(recommender, k, share=0.1):
    """By the newest interactions, counted one by one, then by all, then by id."""
    clicks = recommender.interactions
    order = np.argsort(-np.asarray(clicks.timestamps), kind="stable")
    last = np.asarray(clicks.timestamps)[order][round(share * len(clicks)) - 1]
    newest = clicks.sequences.values[np.asarray(clicks.timestamps) >= last].tolist()
    every = clicks.sequences.values.tolist()
    counted = [(-newest.count(i), -every.count(i), i) for i in range(len(clicks.items))]
    return [(clicks.items[item], -count) for count, _, item in sorted(counted)][:k]


def test_unknown_users_get_what_is_popular_and_are_named(recommender):
    known = recommender.interactions.users[[4, 2]].tolist()
    users = ["nobody", known[0], "no one", known[1]]
    with pytest.warns(
        UserWarning, match="unknown users get what is popular: 'nobody', 'no"
    ) as said:
        frame = recommender.recommend(users, k=3, batch_size=3)
    assert len(said) == 1
    assert said[0].filename == __file__
    assert frame["user"].unique().tolist() == [str(user) for user in users]
    share = recommender.run.results()["baselines"]["popular now"]["share"]
    for user in ("nobody", "no one"):
        rows = frame[frame["user"] == user]
        assert rows["from"].tolist() == ["popular now"] * 3
        found = list(zip(rows["item"], rows["score"], strict=True))
        assert found == popular(recommender, 3, share)
    rest = frame[frame["from"] == "model"].drop(columns=["from", "user"]).reset_index(drop=True)
    alone = recommender.recommend(known, k=3).drop(columns="user")
    pd.testing.assert_frame_equal(rest, alone)
    with pytest.raises(ValueError, match="users: got unknown 'nobody', 'no one'"):
        recommender.recommend(users, k=3, strict=True)


def test_an_unknown_user_keeps_the_type_of_the_others(recommender):
    numbers = np.arange(recommender.interactions.num_users)
    for users, asked, expected in (
        (numbers, [3, 10**6, "2000000"], [3, 10**6, 2 * 10**6]),
        (numbers * 1.0, [3, "2000000.0"], [3.0, 2e6]),
        (numbers, [3, "x"], ["3", "x"]),
        (numbers, [3, 10**30], ["3", str(10**30)]),
        (numbers.astype(str).astype(object), ["3", 10**6], ["3", "1000000"]),
    ):
        clicks = dataclasses.replace(recommender.interactions, users=users)
        with pytest.warns(UserWarning, match="unknown users"):
            frame = recommender.with_interactions(clicks).recommend(asked, k=1)
        assert frame["user"].tolist() == expected


def test_nobody_knows_what_is_popular_without_interactions(recommender):
    nobody = dataclasses.replace(
        recommender.interactions,
        users=np.zeros(0, dtype=object),
        sequences=type(recommender.interactions.sequences)([0], np.zeros(0, np.int64)),
        timestamps=None,
    )
    alone = recommender.with_interactions(nobody)
    some = recommender.items.tokens[:2].tolist()
    with pytest.warns(
        UserWarning, match="1 of 3 histories have no known item and get nothing, as no"
    ):
        frame = alone.recommend(histories=[["x"], some, []], k=2)
    assert frame["user"].tolist() == [1, 1]


def test_popular_items_without_times_are_those_of_all(recommender):
    timeless = dataclasses.replace(recommender.interactions, timestamps=None)
    frame = recommender.with_interactions(timeless).recommend(histories=[[]], k=4)
    assert frame["from"].tolist() == ["popular"] * 4
    counts = timeless.item_counts()
    best = np.argsort(-counts, kind="stable")[:4]
    assert frame["item"].tolist() == timeless.items[best].tolist()
    assert frame["score"].tolist() == counts[best].tolist()


@pytest.fixture
def shop(recommender):
    """With columns of the catalog, and two retired items."""
    count = len(recommender.items)
    kinds = [None if n % 10 == 9 else "abc"[n % 7 % 3] for n in range(count)]
    columns = pd.DataFrame({"kind": pd.Categorical(kinds), "price": np.arange(count) * 0.5})
    columns["day"] = pd.Categorical([f"2026-01-{n % 28 + 1:02d}" for n in range(count)])
    items = dataclasses.replace(recommender.items, columns=columns)
    return recommender.changed("columns", items=items).retire_items(items.tokens[[5, 6]])


@pytest.mark.parametrize("who", ["users", "histories", "nobody"])
@pytest.mark.parametrize(
    "options",
    [
        {"exclude": [3, 8, 9, 40]},
        {"where": {"kind": "a"}},
        {"where": {"kind": ["a", "c"], "price": {"max": 30}}},
        {"where": {"price": {"min": 2.5, "max": 20}}, "exclude": [12]},
        {"where": {"price": [1.5, "3", 7]}},
        {"where": {"day": {"min": "2026-01-10", "max": "2026-01-20"}}},
        {"at_most": 1, "by": "kind"},
        {"at_most": 2, "by": "kind", "where": {"price": {"min": 10}}},
        {"at_most": 3, "by": "price"},
        {"only": [1, 2, 3, 5, 8, 20], "exclude": [2]},
        {"only": [[1, 2, 3, 5, 8], [20, 21, 22]], "where": {"kind": ["a", "b"]}},
        {"only": [[1, 2, 3, 5, 8], [20, 21, 22]], "at_most": 1, "by": "kind"},
    ],
    ids=str,
)
def test_filters_cut_whole_lists_down(shop, who, options):
    """As if the whole catalog were ranked, and what is not wanted were struck from the list."""
    tokens, columns = shop.items.tokens, shop.items.columns
    k, asked = 6, {"histories": [[], []]}
    if who == "users":
        asked = {"users": shop.interactions.users[[3, 8]].tolist()}
    elif who == "histories":
        asked = {"histories": [tokens[[7, 30]].tolist(), tokens[[60]].tolist()]}
    whole = shop.recommend(**asked, k=len(tokens))
    given = dict(options)
    for name in ("only", "exclude"):
        if name in options:
            rows = options[name]
            lists = [tokens[row].tolist() for row in rows] if np.ndim(rows[0]) else None
            given[name] = tokens[rows].tolist() if lists is None else lists
    frame = shop.recommend(**asked, k=k, **given)
    for number, (name, rows) in enumerate(whole.groupby("user", sort=False)):
        expected, had = [], {}
        for token in rows["item"]:
            row = columns.iloc[shop.interactions.item_index([token])[0]]
            only = given.get("only")
            only = only[number] if only is not None and isinstance(only[0], list) else only
            fits = token not in given.get("exclude", []) and (only is None or token in only)
            for column, wanted in options.get("where", {}).items():
                if isinstance(wanted, dict):
                    fits &= wanted.get("min", row[column]) <= row[column]
                    fits &= row[column] <= wanted.get("max", row[column])
                else:
                    fits &= str(row[column]).removesuffix(".0") in [
                        str(one) for one in ([wanted] if isinstance(wanted, str) else wanted)
                    ]
            value = row[options["by"]] if "by" in options else None
            if fits and (pd.isna(value) or had.get(value, 0) < options["at_most"]):
                had[value] = had.get(value, 0) + 1
                expected.append(token)
        found = frame[frame["user"] == name]
        assert found["item"].tolist() == expected[:k]
        assert found["rank"].tolist() == list(range(1, len(found) + 1))


@pytest.mark.parametrize("options", [{"exclude": 3}, {"where": {"kind": ["a", "c"]}}], ids=str)
def test_few_queries_get_what_many_do(shop, options, monkeypatch):
    """Ranked in another way, which is faster for a few, or for few excluded items."""
    if "exclude" in options:
        options = {"exclude": shop.items.tokens[::3].tolist()}
    users = shop.interactions.users[:30].tolist()
    for keep_seen in (False, True):
        how = {"k": 8, "keep_seen": keep_seen, "batch_size": 1, **options}
        wanted = shop.recommend(users, **how)
        alone = [shop.recommend([user], **how) for user in users]
        pd.testing.assert_frame_equal(pd.concat(alone, ignore_index=True), wanted)
        monkeypatch.setattr(queries, "_FEW_EXCLUDED", 0)
        pd.testing.assert_frame_equal(shop.recommend(users, **how), wanted)
        monkeypatch.undo()


def test_a_large_catalog_with_retired_items(shop, monkeypatch):
    """Whose items that are left have a compressed copy of their own."""
    users = shop.interactions.users[:5].tolist()
    wanted = shop.recommend(users, k=5)
    again = shop.changed("nothing")
    for name in ("INT8_PAYS_FROM", "INT8_PAYS_FROM_FOR_FEW"):
        monkeypatch.setattr(item_embeddings, name, 1)
    monkeypatch.setattr(item_embeddings, "INT8_PAYS_UP_TO", 10**9)
    pd.testing.assert_frame_equal(again.recommend(users, k=5), wanted)


def test_lists_of_a_kind_are_ranked_as_deep_as_it_takes(shop):
    """Where nearly everything is of one kind: the last items of the order are found."""
    kinds = ["a"] * 85 + ["b", "c", "d", "e", "f"]
    columns = pd.DataFrame({"kind": pd.Categorical(kinds)})
    items = dataclasses.replace(shop.items, columns=columns)
    alike = shop.changed("columns", items=items)
    frame = alike.recommend(k=6, at_most=1, by="kind", keep_seen=True)
    counts = frame.groupby("user").size()
    assert (counts == 6).all()
    places = alike.interactions.item_index(frame["item"])
    assert not pd.DataFrame({"u": frame["user"], "k": np.array(kinds)[places]}).duplicated().any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"exclude": "31"}, "exclude: got '31'; expected a list of item ids"),
        ({"where": {"colour": "red"}}, r"where: got 'colour'; expected one of the item columns \["),
        ({"where": {}}, "where: got none; expected"),
        ({"where": ["kind"]}, "where: got a value of type list; expected"),
        ({"where": {"price": "dear"}}, "where: got price 'dear'; expected a number"),
        ({"where": {"price": {"most": 3}}}, r"where: got price with \['most'\]; expected min, max"),
        ({"where": {"kind": None}}, "where: got kind None; expected a string"),
        ({"where": {"price": {"min": 1e9}}}, "where: got no item that is left; expected"),
        ({"where": {"kind": "z"}, "strict": True}, "where: got kind 'z', which no item has"),
        ({"exclude": ["nothing"], "strict": True}, "items: got unknown 'nothing'"),
        ({"at_most": 1}, "by: got None; expected an item column, with at_most"),
        ({"by": "kind"}, "at_most: got None; expected a number of items, with by"),
        ({"at_most": 0, "by": "kind"}, "at_most: got 0; expected at_most >= 1"),
        ({"at_most": True, "by": "kind"}, "at_most: got True; expected an integer"),
        ({"at_most": 1, "by": "colour"}, "by: got 'colour'; expected one of the item columns"),
    ],
)
def test_bad_filters_are_named(shop, options, message):
    with pytest.raises((ValueError, TypeError), match=f"^{message}"):
        shop.recommend(shop.interactions.users[:1], **options)


def test_filters_of_what_is_not_there_are_named(shop, recommender):
    user = shop.interactions.users[:1]
    with pytest.warns(UserWarning, match="where: no item has kind 'z'"):
        shop.recommend(user, where={"kind": ["a", "z"]})
    with pytest.warns(UserWarning, match="exclude: unknown items: 'nothing'"):
        shop.recommend(user, exclude=["nothing"])
    bare = dataclasses.replace(recommender.items, columns=None)
    without = recommender.changed("columns", items=bare)
    with pytest.raises(ValueError, match="by: got 'kind'; expected None: the run has kept no col"):
        without.recommend(user, at_most=1, by="kind")


def test_columns_are_kept_in_the_folder(shop, tmp_path):
    """But not where it leaves the machine."""
    wanted = shop.recommend(where={"kind": "a", "price": {"max": 30}}, at_most=2, by="day")
    kept = shop.save(tmp_path / "kept")
    pd.testing.assert_frame_equal(kept.items.columns, shop.items.columns)
    found = kept.recommend(where={"kind": "a", "price": {"max": 30}}, at_most=2, by="day")
    pd.testing.assert_frame_equal(found, wanted)
    assert shop.save(tmp_path / "sent", keep_paths=False).items.columns is None


def test_unknown_items_are_left_out_and_histories_without_a_known_one_are_named(recommender):
    known = recommender.items.tokens[:3].tolist()
    histories = [["x"], [known[0], "x", known[1]], [], [known[2]], ["y", "z"]]
    with pytest.warns(UserWarning, match="histories") as said:
        frame = recommender.recommend(histories=histories, k=3)
    assert [str(line.message) for line in said] == [
        "unknown items are left out of 3 of 5 histories: 'x', 'x', 'y', 'z'",
        "2 of 5 histories have no known item and get what is popular: 0, 4",
    ]
    alone = recommender.recommend(histories=[known[:2], known[2:]], k=3)
    assert frame["user"].unique().tolist() == [0, 1, 2, 3, 4]
    alone["user"] = alone["user"].map({0: 1, 1: 3})
    ours = frame[frame["user"].isin([1, 3])].drop(columns="from").reset_index(drop=True)
    pd.testing.assert_frame_equal(ours, alone)
    assert (
        frame["from"].tolist() == [*["popular now"] * 3, *["model"] * 3] * 2 + ["popular now"] * 3
    )
    with pytest.raises(ValueError, match=r"^histories\[2\]: got an empty history"):
        recommender.recommend(histories=histories, strict=True)
    with pytest.raises(ValueError, match=r"^items: got unknown 'x'"):
        recommender.recommend(histories=histories[:2], strict=True)


@pytest.mark.parametrize(
    "options",
    [{"users": [10**9]}, {"histories": [["nothing"]]}, {"histories": [["none"], ["nothing"]]}],
)
def test_nothing_known_is_a_frame_like_any_other(recommender, options):
    with pytest.warns(UserWarning, match="unknown"):
        frame = recommender.recommend(**options)
    name = "histories" if "histories" in options else "users"
    some = {
        "histories": [recommender.items.tokens[:2]],
        "users": recommender.interactions.users[:1],
    }
    full = recommender.recommend(**{name: some[name]})
    assert len(frame) == 10 * len(options[name])
    assert frame.drop(columns="from").dtypes.to_dict() == full.dtypes.to_dict()


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
