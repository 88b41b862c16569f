"""RecBole trains our model, and our ranking gives the lists of RecBole's own."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

recbole = pytest.importorskip("recbole", reason="NO RECBOLE: pip install '.[recbole]'")

from recbole.config import Config  # noqa: E402
from recbole.data import create_dataset, data_preparation  # noqa: E402
from recbole.quick_start import run_recbole  # noqa: E402
from recbole.utils import get_model, get_trainer, init_seed  # noqa: E402
from recbole.utils.case_study import full_sort_topk as their_topk  # noqa: E402

from alphafuse_ext.data import synthetic_catalog  # noqa: E402
from alphafuse_ext.integrations.recbole import (  # noqa: E402
    AlphaFuse,
    full_sort_metrics,
    full_sort_topk,
)


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    """A small atomic data set, and what all runs share."""
    folder = tmp_path_factory.mktemp("recbole")
    clicks, items = synthetic_catalog(num_users=150, num_items=60, seed=5)
    clicks.columns = ["user_id:token", "item_id:token", "timestamp:float"]
    (folder / "small").mkdir()
    clicks.to_csv(folder / "small" / "small.inter", sep="\t", index=False)
    generator = np.random.default_rng(0)
    rows = generator.normal(size=(len(items), 24)) * np.geomspace(2, 0.1, 24)
    names = items.iloc[:, 0].astype(str).to_numpy()
    np.savez(folder / "rows.npz", ids=names.astype("U"), rows=rows.astype(np.float32))
    return {
        "data_path": str(folder),
        "checkpoint_dir": str(folder / "saved"),
        "item_embeddings": str(folder / "rows.npz"),
        "alphafuse": {"dim": 16, "null_dim": 8, "dropout": 0.2},
        "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
        "MAX_ITEM_LIST_LENGTH": 12,
        "train_neg_sample_args": None,
        "loss_type": "CE",
        "hidden_size": 16,
        "inner_size": 16,
        "epochs": 3,
        "train_batch_size": 128,
        "eval_batch_size": 64,
        "learning_rate": 0.003,
        "eval_args": {"split": {"LS": "valid_and_test"}, "order": "TO", "mode": "full"},
        "metrics": ["Recall", "NDCG"],
        "topk": [10],
        "valid_metric": "NDCG@10",
        "use_gpu": False,
        "state": "ERROR",
        "show_progress": False,
    }


@pytest.fixture(autouse=True)
def by_itself(monkeypatch, tmp_path):
    """RecBole reads the arguments of the process, and writes its logs where that stands."""
    monkeypatch.setattr(sys, "argv", ["pytest"])
    monkeypatch.chdir(tmp_path)


def trained(name, settings, epochs=2):
    config = Config(model=name, dataset="small", config_dict=settings)
    init_seed(1, True)
    train, _, test = data_preparation(config, create_dataset(config))
    kind = get_model(name)
    model = kind(config, train.dataset)
    trainer = get_trainer(config["MODEL_TYPE"], name)(config, model)
    for epoch in range(epochs):
        trainer._train_epoch(train, epoch)
    return model, test, trainer


def test_run_recbole_trains_it(settings):
    # saved=False: RecBole 1.2.1 cannot read its own checkpoints with torch 2.6 and later.
    result = run_recbole("AlphaFuse", "small", config_dict=settings, saved=False)
    assert result["test_result"]["ndcg@10"] > 0.05


@pytest.mark.parametrize("name", ["SASRec", "GRU4Rec", "AlphaFuse"])
def test_lists_are_recboles(name, settings):
    """The same scores and items, user by user, whichever order users are asked for in."""
    model, test, _ = trained(name, settings)
    users = np.array([7, 3, 120, 44])
    theirs = their_topk(users, model, test, 5)
    scores, items = full_sort_topk(users, model, test, 5, batch_size=3)
    torch.testing.assert_close(scores, theirs[0].detach(), rtol=1e-4, atol=1e-4)
    assert torch.equal(items, theirs[1])


@pytest.mark.parametrize("name", ["SASRec", "AlphaFuse"])
def test_metrics_are_recboles(name, settings):
    model, test, trainer = trained(name, settings)
    theirs = trainer.evaluate(test, load_best_model=False)
    ours = full_sort_metrics(model, test)
    assert ours["ndcg@10"] == pytest.approx(theirs["ndcg@10"], abs=1e-4)  # rounded there
    assert ours["hr@10"] == pytest.approx(theirs["recall@10"], abs=1e-4)


def test_seen_items_left_out(settings):
    model, test, _ = trained("SASRec", settings)
    users = np.array([1, 2, 3])
    _, items = full_sort_topk(users, model, test, 20, exclude_seen=True)
    rows = test.dataset.inter_feat
    for user, found in zip(users, items, strict=True):
        history = rows[model.ITEM_SEQ][rows["user_id"] == user][0]
        assert not set(found.tolist()) & set(history.tolist())


def test_the_model_is_ours(settings):
    """Scores are inner products with the fused rows; padding is never recommended."""
    model, test, _ = trained("AlphaFuse", settings)
    batch = test.dataset[torch.arange(5)]
    model.eval()
    scores = model.full_sort_predict(batch)
    queries = model(batch[model.ITEM_SEQ], batch[model.ITEM_SEQ_LEN])
    torch.testing.assert_close(scores[:, 1:], queries @ model.table.weight.T)
    assert (scores[:, 0] == -torch.inf).all()
    torch.testing.assert_close(model.predict(batch), scores[torch.arange(5), batch["item_id"]])
    assert isinstance(model, AlphaFuse)


def test_refusals(settings):
    model, test, _ = trained("SASRec", settings, epochs=0)
    with pytest.raises(ValueError, match="uid_series"):
        full_sort_topk(np.array([10_000]), model, test, 5)
    model.item_embedding = None
    with pytest.raises(TypeError, match="SASRec"):
        full_sort_topk(np.array([1]), model, test, 5)
    with pytest.raises(ValueError, match="item_embeddings"):
        trained("AlphaFuse", {**settings, "item_embeddings": None})
    other, test, _ = trained("GRU4Rec", settings, epochs=0)
    whole = other.full_sort_predict
    other.full_sort_predict = lambda batch: whole(batch) * 2  # as one that scores by more
    with pytest.raises(TypeError, match="GRU4Rec"):
        full_sort_topk(np.array([1]), other, test, 5)
