"""Orders: quantities as weights of targets, and baskets without an order inside."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

import alphafuse_ext as af
from alphafuse_ext import ItemTable
from alphafuse_ext.cli import main
from alphafuse_ext.data import (
    Interactions,
    Sequences,
    read_interactions,
    split_interactions,
    synthetic_catalog,
)
from alphafuse_ext.items.language_neighbors import Neighbors
from alphafuse_ext.models.losses import next_item_loss

SMALL = {"dim": 8, "epochs": 2, "history": 6, "item_embedding": "id", "neighbors": False}


def quiet(_: str) -> None:
    pass


@pytest.fixture(scope="module")
def orders():
    """Lines of orders, several at a time, with quantities."""
    clicks, items = synthetic_catalog(num_users=120, num_items=60, seed=3)
    clicks["timestamp"] //= 3
    clicks["quantity"] = 1 + np.random.default_rng(0).integers(0, 4, len(clicks))
    return clicks, items


FRAME = pd.DataFrame(
    [
        *(("a", "p", 1, "x", 2), ("a", "q", 2, "x", 1), ("a", "r", 3, "y", 1)),
        *(("a", "s", 3, "z", 0.5), ("b", "p", 9, "x", 1), ("b", "q", 8, "x", 3)),
    ],
    columns=["user", "item", "time", "order", "quantity"],
)


@pytest.mark.parametrize("as_file", [False, True])
def test_columns_of_orders(as_file, tmp_path):
    source = FRAME
    if as_file:
        source = tmp_path / "orders.csv"
        FRAME.to_csv(source, index=False)
    lines = []
    read = read_interactions(
        source, weight_column="quantity", basket_column="order", log=lines.append
    )
    assert read.timestamps.tolist() == [1, 1, 3, 3, 8, 8]
    assert read.items[read.sequences.values].tolist() == ["p", "q", "r", "s", "p", "q"]
    assert read.weights.tolist() == [2, 1, 1, 0.5, 1, 3]
    assert read.weights.dtype == np.float32
    # Two orders at one time are one basket; the earliest time of an order is all its rows'.
    assert read.baskets().tolist() == [0, 0, 2, 2, 0, 0]
    assert "weight column 'quantity', basket column 'order'" in lines[-1]
    assert read_interactions(source).weights is None


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({"quantity": -1}, {"weight_column": "quantity"}, "weight_column: got 6 rows with '?-1"),
        ({"quantity": "many"}, {"weight_column": "quantity"}, "weight_column: got 6 rows with"),
        ({"quantity": np.nan}, {"weight_column": "quantity"}, "a finite number, 0 or more"),
        ({}, {"weight_column": "item"}, "another column than those of the others"),
        ({}, {"weight_column": "weight"}, "weight_column: got 'weight'"),
        ({"order": None}, {"basket_column": "order"}, "basket_column: got a column with 6 empty"),
        ({}, {"basket_column": "order", "time_column": ""}, "or a column of times beside it"),
    ],
)
def test_orders_that_are_none(change, options, message):
    with pytest.raises(ValueError, match=message):
        read_interactions(FRAME.assign(**change), **options)


def baskets_of(*sizes_of_users):
    """Users of baskets of these sizes; every item is another."""
    times = [np.repeat(np.arange(len(sizes)), sizes) for sizes in sizes_of_users]
    lengths = [len(one) for one in times]
    items = np.split(np.arange(sum(lengths)), np.cumsum(lengths)[:-1])
    return Interactions(
        np.arange(len(times)),
        np.arange(sum(lengths)),
        Sequences.from_lists(items),
        np.concatenate(times) + 1_600_000_000,
    )


def examples_of(part):
    return {
        target: tuple(history)
        for target, history in zip(part.targets.tolist(), map(list, part.histories), strict=True)
    }


def test_the_last_basket_is_held_out():
    clicks = baskets_of([2, 1, 3, 2], [1, 1], [4], [1, 2, 1])
    split = split_interactions(clicks, baskets=True)
    assert examples_of(split.test) == {
        6: (0, 1, 2, 3, 4, 5),
        7: (0, 1, 2, 3, 4, 5),
        17: (14, 15, 16),
    }
    assert examples_of(split.validation) == {
        **dict.fromkeys((3, 4, 5), (0, 1, 2)),
        **dict.fromkeys((15, 16), (14,)),
    }
    assert split.train_lengths.tolist() == [3, 2, 4, 1]
    assert split.train_baskets.tolist() == [0, 0, 2, 0, 1, 0, 0, 0, 0, 0]
    assert split.report["users_too_short"] == 2
    with pytest.raises(ValueError, match="2 users of at most 2 baskets"):
        split_interactions(baskets_of([2, 2], [3]), baskets=True)
    with pytest.raises(ValueError, match="interactions without times, which tell them"):
        split_interactions(Interactions(clicks.users, clicks.items, clicks.sequences), baskets=True)


@pytest.mark.parametrize("protocol", ["leave-one-out", "cold-start-users", "time", "given"])
def test_no_history_has_what_was_bought_with_the_target(protocol):
    generator = np.random.default_rng(1)
    clicks = baskets_of(*(generator.integers(1, 4, 6) for _ in range(40)))
    if protocol == "given":
        parts = np.minimum(clicks.timestamps - clicks.timestamps.min(), 4)
        parts = np.where(parts < 3, 0, parts - 2).astype(np.int8)
        clicks = Interactions(
            clicks.users, clicks.items, clicks.sequences, clicks.timestamps, parts
        )
    split = split_interactions(clicks, protocol, baskets=True)
    places = clicks.baskets()
    starts = np.repeat(clicks.sequences.starts, clicks.sequences.lengths)
    for part in (split.validation, split.test):
        assert len(part)
        for target, history in zip(part.targets, part.histories, strict=True):
            begin = starts[target]
            assert history.tolist() == list(range(begin, begin + places[target]))
            assert len(history)
    # Without baskets the split is another.
    assert len(split_interactions(clicks, protocol).test) != len(split.test) or protocol in (
        "time",
        "given",
    )


LOSSES = [
    {"loss": "cross_entropy"},
    {"loss": "cross_entropy", "label_smoothing": 0.2, "language_smoothing": 0.1},
    {"loss": "sampled_softmax", "negatives_per": "sequence"},
    {"loss": "infonce", "negatives_per": "position"},
    {"loss": "bce", "negatives_per": "batch"},
    {"loss": "bce", "negatives_per": "sequence"},
]


@pytest.mark.parametrize("settings", LOSSES, ids=str)
def test_a_weight_multiplies_a_target_s_part(settings):
    """Linear in the weights, and with 1 for each what it is without them."""
    table = ItemTable.id_only(20, 8, init="normal")
    hidden = torch.randn(3, 4, 8)
    targets = torch.randint(20, (3, 4))
    targets[0, 2:] = targets[1, 0] = table.padding_idx
    kwargs = {"neighbors": Neighbors.of(np.random.default_rng(0).normal(size=(20, 5)))}

    def loss(weights):
        torch.manual_seed(0)
        return next_item_loss(table, hidden, targets, weights=weights, **settings, **kwargs)

    ones = torch.ones(3, 4)
    torch.testing.assert_close(loss(ones), loss(None), rtol=1e-5, atol=1e-5)
    weights = torch.rand(3, 4) * 3
    parts = [loss(torch.where(torch.arange(12).view(3, 4) == i, 1.0, 0.0)) for i in range(12)]
    expected = (torch.stack(parts) * weights.view(-1)).sum()
    torch.testing.assert_close(loss(weights), expected, rtol=1e-4, atol=1e-4)
    assert all(part == 0 for part in (parts[2], parts[3], parts[4]))


def test_a_run_on_orders(orders, tmp_path, capsys):
    clicks, items = orders
    clicks.to_csv(tmp_path / "orders.csv", index=False)
    command = ["train", "--interactions", tmp_path / "orders.csv", "--baskets", "--dim", 8]
    command += ["--weight-column", "quantity", "--epochs", 2, "--item-embedding", "id"]
    command += ["--output", tmp_path / "run", "--no-neighbors"]
    assert main(list(map(str, command))) == 0
    assert "of each the last basket for test" in capsys.readouterr().out
    run = af.Recommender.load(tmp_path / "run")
    assert run.config.baskets
    assert run.interactions.weights.sum() == clicks["quantity"].sum()
    results = run.run.results()
    assert results["examples"] == len(run.split.test)
    # A history to recommend for needs no quantities.
    clicks[:50].drop(columns="quantity").to_csv(tmp_path / "histories.csv", index=False)
    asked = ["recommend", tmp_path / "run", "--histories", tmp_path / "histories.csv"]
    assert main(list(map(str, [*asked, "--output", tmp_path / "best.csv"]))) == 0
    # The order of a basket's lines says nothing, and quantities do.
    shuffled = clicks.sample(frac=1, random_state=1).sort_values("timestamp", kind="stable")
    items_of = items[["item_id"]]
    given = {"weight_column": "quantity", "baskets": True, "log": quiet, **SMALL}
    same = [
        af.fit(one, items_of, output=tmp_path / name, **given)
        for name, one in (("one", clicks), ("other", shuffled))
    ]
    frames = [one.recommend(sorted(one.interactions.users.tolist())[:10], k=5) for one in same]
    pd.testing.assert_frame_equal(*(frame[["user", "rank", "item"]] for frame in frames))
    heavy = clicks["item_id"].iloc[0]
    more = clicks.assign(quantity=np.where(clicks["item_id"] == heavy, 200, 1))
    loud = af.fit(more, items_of, output=tmp_path / "heavy", **{**given, "epochs": 6})
    assert (loud.recommend(k=5)["item"] == heavy).sum() > 2 * (
        same[0].recommend(k=5)["item"] == heavy
    ).sum()
    # It goes on, and is refitted, as it was trained.
    later = clicks.assign(timestamp=clicks["timestamp"] + clicks["timestamp"].max())
    grown = af.extend(tmp_path / "one", later, output=tmp_path / "more", epochs=1, log=quiet)
    assert grown.config.baskets
    assert len(grown.interactions.weights) == 2 * len(clicks)
    again = af.refit(tmp_path / "one", later, output=tmp_path / "again", log=quiet)
    assert again.config.baskets
    assert again.interactions.weights.sum() == 2 * clicks["quantity"].sum()
    with pytest.raises(ValueError, match="weight_column"):
        af.extend(tmp_path / "one", later.drop(columns="quantity"), output=tmp_path / "no")


def test_a_column_of_orders_is_enough(orders, tmp_path):
    clicks, items = orders
    named = clicks.assign(order=clicks["timestamp"], timestamp=clicks["timestamp"] * 10)
    named["timestamp"] += np.arange(len(named)) % 3
    given = {"log": quiet, **SMALL}
    run = af.fit(named, items, output=tmp_path / "run", basket_column="order", **given)
    assert run.config.baskets
    assert run.split.report["baskets"] == len(clicks[["user_id", "timestamp"]].drop_duplicates())


def test_weights_that_nothing_is_trained_by(orders, tmp_path):
    """Refused by a model that has no use for them; of lists alone a line says so."""
    clicks, items = orders
    given = {"weight_column": "quantity", "encoder": "tfidf"}
    dream = {"model": "dreamrec", "dim": 8, "null_dim": 4, "log": quiet}
    with pytest.raises(ValueError, match="weight_column: got weights of interactions; expected"):
        af.fit(clicks, items, output=tmp_path / "no", **dream, **given)
    assert not (tmp_path / "no").exists()
    lines = []
    af.fit(clicks, items, output=tmp_path / "lists", model="neighbors", log=lines.append, **given)
    assert "weights of interactions are not used: nothing is trained" in lines
