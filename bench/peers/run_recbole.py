"""RecBole's SASRec for ``sasrec.py``; runs in RecBole's environment."""

from __future__ import annotations

import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for what benchmarks share
from peers import child


def main() -> None:
    """Train, rank, report."""
    wanted = child.settings(__doc__, "recbole")
    warnings.filterwarnings("ignore")
    import recbole
    from recbole.config import Config
    from recbole.data import create_dataset, data_preparation
    from recbole.utils import get_model, get_trainer, init_seed

    sys.argv = sys.argv[:1]  # RecBole reads it too
    torch.set_num_threads(wanted["threads"])
    histories = child.histories(wanted["data"], wanted["dataset"])
    # Each prefix of a history is an example of its own: as many steps an epoch as the others make.
    prefixes = sum(len(items) - 2 for items in histories.values() if len(items) > 2)
    batch_size = -(-prefixes * wanted["batch_size"] // len(histories))
    scratch = tempfile.TemporaryDirectory()
    options: dict[str, Any] = {
        "data_path": wanted["data"],
        "checkpoint_dir": scratch.name,
        "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
        "MAX_ITEM_LIST_LENGTH": wanted["history"],
        "hidden_size": wanted["dim"],
        "inner_size": wanted["dim"],
        "n_layers": 1,
        "n_heads": 1,
        "hidden_dropout_prob": wanted["dropout"],
        "attn_dropout_prob": wanted["dropout"],
        "loss_type": "CE",
        "train_neg_sample_args": None,
        "train_batch_size": batch_size,
        "eval_batch_size": 512,
        "learning_rate": wanted["learning_rate"],
        "epochs": wanted["epochs"],
        "eval_args": {
            "split": {"LS": "valid_and_test"},
            "order": "TO",
            "group_by": "user",
            "mode": "full",
        },
        "metrics": ["Recall", "NDCG"],
        "topk": [10],
        "valid_metric": "NDCG@10",
        "use_gpu": False,
        "state": "ERROR",
        "show_progress": False,
        "seed": wanted["seed"],
    }
    config = Config(model="SASRec", dataset=wanted["dataset"], config_dict=options)
    init_seed(config["seed"], config["reproducibility"])
    train, _, test = data_preparation(config, create_dataset(config))
    data = test.dataset
    model = get_model("SASRec")(config, train.dataset)
    trainer = get_trainer(config["MODEL_TYPE"], "SASRec")(config, model)
    seconds = []
    for epoch in range(wanted["epochs"]):
        started = time.perf_counter()
        trainer._train_epoch(train, epoch, show_progress=False)
        seconds.append(time.perf_counter() - started)
    started = time.perf_counter()
    trainer.evaluate(test, load_best_model=False)
    ranking_seconds = time.perf_counter() - started
    # Its own evaluation ranks seen items; lists without them are made here, and not timed.
    numbers = {token: row for row, token in enumerate(data.field2id_token["item_id"])}
    lists = {}
    model.eval()
    with torch.no_grad():
        for interaction, *_ in test:
            scores = model.full_sort_predict(interaction).view(len(interaction), -1)
            scores[:, 0] = -torch.inf  # padding
            users = data.id2token("user_id", interaction["user_id"])
            for user, row in zip(users, scores, strict=True):
                row[[numbers[item] for item in histories[user]]] = -torch.inf
                lists[user] = data.id2token("item_id", row.topk(10).indices)
    package = f"RecBole {recbole.__version__}"
    notes = (
        f"each prefix an example, padded to the longest history, {batch_size} a step; "
        "ranking: its own evaluation, which ranks seen items"
    )
    child.report(wanted["output"], seconds, ranking_seconds, lists, package, notes)


if __name__ == "__main__":
    main()
