"""RecTools' own machinery over our model, and our table inside its SASRec."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

rectools = pytest.importorskip("rectools", reason="NO RECTOOLS: pip install '.[rectools]'")

from rectools import Columns  # noqa: E402
from rectools.dataset import Dataset  # noqa: E402
from rectools.metrics import Recall  # noqa: E402
from rectools.model_selection import LastNSplitter, cross_validate  # noqa: E402
from rectools.models import PopularModel, load_model  # noqa: E402
from rectools.models.nn.transformers.sasrec import SASRecModel  # noqa: E402

from alphafuse_ext.data import encode_texts, read_items, synthetic_catalog  # noqa: E402
from alphafuse_ext.integrations.rectools import (  # noqa: E402
    AlphaFuseItemNet,
    AlphaFuseModel,
)

SMALL = {"dim": 16, "null_dim": 8, "epochs": 15, "history": 20}


@pytest.fixture(scope="module")
def clicks():
    """Interactions of integer items in the order of dates, and the items' encoded texts."""
    frame, items = synthetic_catalog(num_users=200, num_items=60, seed=5)
    items = read_items(items)
    frame.columns = [Columns.User, Columns.Item, Columns.Datetime]
    numbers = {token: 3 * place + 7 for place, token in enumerate(items.tokens)}
    frame[Columns.Item] = frame[Columns.Item].map(numbers)
    frame[Columns.Weight] = 1
    minutes = pd.to_timedelta(frame[Columns.Datetime].rank(method="first"), unit="min")
    frame[Columns.Datetime] = pd.Timestamp("2024-01-01") + minutes
    rows = encode_texts(items.texts, "tfidf").rows
    return frame, dict(zip(numbers.values(), rows, strict=True))


@pytest.fixture(scope="module")
def file(clicks, tmp_path_factory):
    """The embeddings as a file: what RecTools can keep in a configuration."""
    path = tmp_path_factory.mktemp("rectools") / "rows.npz"
    _, embeddings = clicks
    np.savez(path, ids=np.array([*embeddings]), rows=np.stack([*embeddings.values()]))
    return str(path)


@pytest.fixture(scope="module")
def fitted(clicks):
    frame, embeddings = clicks
    dataset = Dataset.construct(frame)
    return AlphaFuseModel(embeddings, **SMALL).fit(dataset), dataset


def test_recommendations_are_the_recommenders(fitted):
    """In RecTools' columns, of the same items and scores, without what was seen."""
    model, dataset = fitted
    users = dataset.user_id_map.external_ids[[5, 0, 17]]
    found = model.recommend(users, dataset, k=4, filter_viewed=True)
    assert list(found) == [Columns.User, Columns.Item, Columns.Score, Columns.Rank]
    own = model.recommender.recommend(list(users), k=4, keep_seen=False)
    assert found[Columns.User].tolist() == own["user"].tolist()
    assert found[Columns.Item].tolist() == own["item"].tolist()
    np.testing.assert_allclose(found[Columns.Score], own["score"], rtol=1e-5)
    seen = model.recommend(users, dataset, k=4, filter_viewed=False)
    own = model.recommender.recommend(list(users), k=4, keep_seen=True)
    assert seen[Columns.Item].tolist() == own["item"].tolist()


def test_everything_is_trained_on(fitted):
    model, dataset = fitted
    split = model.recommender.split
    assert len(split.train.values) == len(dataset.interactions.df)
    assert len(split.test) == len(split.validation) == 0


def test_a_whitelist(fitted):
    model, dataset = fitted
    allowed = dataset.item_id_map.external_ids[10:20]
    users = dataset.user_id_map.external_ids[:6]
    found = model.recommend(users, dataset, 3, filter_viewed=False, items_to_recommend=allowed)
    assert set(found[Columns.Item]) <= set(allowed)
    assert (found.groupby(Columns.User).size() == 3).all()


def test_similar_items(fitted):
    """With and without the item itself, by cosine."""
    model, dataset = fitted
    targets = dataset.item_id_map.external_ids[[3, 1]]
    found = model.recommend_to_items(targets, dataset, k=5)
    own = model.recommender.recommend_to_items(list(targets), k=5)
    assert found[Columns.TargetItem].tolist() == own["target_item"].tolist()
    assert found[Columns.Item].tolist() == own["item"].tolist()
    itself = model.recommend_to_items(targets, dataset, k=5, filter_itself=False)
    first = itself[itself[Columns.Rank] == 1]
    assert first[Columns.Item].tolist() == first[Columns.TargetItem].tolist() == list(targets)


def test_in_cross_validate(clicks):
    """Its folds, its metrics: better than popularity on what was planted."""
    frame, embeddings = clicks
    models = {"ours": AlphaFuseModel(embeddings, **SMALL), "popular": PopularModel()}
    result = cross_validate(
        Dataset.construct(frame),
        LastNSplitter(1, n_splits=2, filter_cold_items=True, filter_already_seen=False),
        {"recall": Recall(10)},
        models,
        k=10,
        filter_viewed=False,
    )
    metrics = pd.DataFrame(result["metrics"]).groupby("model")["recall"].mean()
    assert metrics["ours"] > metrics["popular"]


def test_config_and_saving(fitted, tmp_path):
    """A model from its settings, and the fitted one from a file, to the same lists."""
    model, dataset = fitted
    config = model.get_config()
    assert AlphaFuseModel.from_config(config).settings == model.settings
    model.save(tmp_path / "model.pkl")
    again = load_model(tmp_path / "model.pkl")
    users = dataset.user_id_map.external_ids[:5]
    one, other = (each.recommend(users, dataset, 5, True) for each in (model, again))
    pd.testing.assert_frame_equal(one, other)


def test_bad_settings_before_anything(clicks):
    frame, embeddings = clicks
    with pytest.raises((TypeError, ValueError), match="nulldim"):
        AlphaFuseModel(embeddings, nulldim=3)
    some = dict(list(embeddings.items())[:5])
    with pytest.raises(ValueError, match="embeddings"):
        AlphaFuseModel(some, **SMALL).fit(Dataset.construct(frame))


def test_item_net_of_their_sasrec(clicks, file):
    """Trains, keeps the semantic rows, and gives padding no embedding."""
    dataset = Dataset.construct(clicks[0])
    model = SASRecModel(
        n_factors=16,
        n_blocks=1,
        n_heads=1,
        session_max_len=10,
        epochs=1,
        item_net_block_types=(AlphaFuseItemNet,),
        item_net_constructor_kwargs={"embeddings": file, "null_dim": 8},
        deterministic=True,
    )
    model.fit(dataset)
    net = model.torch_model.item_model.item_net_blocks[0]
    rows = net.get_all_embeddings()
    assert rows.shape == (1 + net.table.num_embeddings, 16)
    assert not rows[0].any()
    torch.testing.assert_close(rows[1:, :8], net.table.semantic_rows[:, :8])
    tokens = model.data_preparator.item_id_map.external_ids[1:]
    fresh = AlphaFuseItemNet.from_dataset(
        model.data_preparator.train_dataset, 16, embeddings=file, null_dim=8
    )
    torch.testing.assert_close(fresh.table.semantic_rows, net.table.semantic_rows)
    assert not torch.equal(fresh.table.id_embeddings, net.table.id_embeddings)
    assert len(tokens) == net.table.num_embeddings
    users = dataset.user_id_map.external_ids[:3]
    assert len(model.recommend(users, dataset, 5, filter_viewed=True)) == 15
    with pytest.raises(ValueError, match="embeddings"):
        AlphaFuseItemNet.from_dataset(model.data_preparator.train_dataset, 16)


def test_item_net_from_a_checkpoint(clicks, file):
    """The same weights in a net made from the shape alone."""
    kwargs = {"embeddings": file, "null_dim": 8}
    model = SASRecModel(
        n_factors=16,
        n_blocks=1,
        n_heads=1,
        session_max_len=10,
        epochs=1,
        item_net_block_types=(AlphaFuseItemNet,),
        item_net_constructor_kwargs=kwargs,
    ).fit(Dataset.construct(clicks[0]))
    again = SASRecModel.loads(model.dumps())
    one, other = (each.torch_model.item_model.get_all_embeddings() for each in (model, again))
    torch.testing.assert_close(one, other)
