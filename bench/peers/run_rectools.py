"""RecTools' SASRec for ``sasrec.py``; runs in RecTools' environment."""

from __future__ import annotations

import sys
import time
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for what benchmarks share
from peers import child

LOSSES = {"softmax": "softmax", "sampled": "sampled_softmax"}


def dataset(histories: dict[str, list[str]]) -> Any:
    """Interactions in RecTools' form; places in a history stand for times."""
    from rectools import Columns
    from rectools.dataset import Dataset

    rows = [
        (user, item, 1.0, pd.Timestamp(place, unit="D"))
        for user, items in histories.items()
        for place, item in enumerate(items)
    ]
    return Dataset.construct(pd.DataFrame(rows, columns=Columns.Interactions))


def main() -> None:
    """Train, rank, report."""
    wanted = child.settings(__doc__, "rectools")
    warnings.filterwarnings("ignore")
    from pytorch_lightning import Callback, Trainer, seed_everything
    from rectools import Columns
    from rectools.models import SASRecModel
    from rectools.models.nn.item_net import IdEmbeddingsItemNet

    epoch_seconds: list[float] = []

    class EpochClock(Callback):
        """Seconds of each training epoch, of all copies together: RecTools trains with a copy."""

        def on_train_epoch_start(self, *_: Any) -> None:
            self.started = time.perf_counter()

        def on_train_epoch_end(self, *_: Any) -> None:
            epoch_seconds.append(time.perf_counter() - self.started)

    torch.set_num_threads(wanted["threads"])
    seed_everything(wanted["seed"], verbose=False)
    histories = child.histories(wanted["data"], wanted["dataset"])

    def trainer() -> Trainer:
        return Trainer(
            max_epochs=wanted["epochs"],
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[EpochClock()],
        )

    model = SASRecModel(
        n_blocks=1,
        n_heads=1,
        n_factors=wanted["dim"],
        dropout_rate=wanted["dropout"],
        session_max_len=wanted["history"],
        loss=LOSSES[wanted["loss"]],
        n_negatives=wanted["negatives"],
        lr=wanted["learning_rate"],
        batch_size=wanted["batch_size"],
        epochs=wanted["epochs"],
        item_net_block_types=(IdEmbeddingsItemNet,),
        get_trainer_func=trainer,
        recommend_torch_device="cpu",
        recommend_n_threads=wanted["threads"],
        recommend_use_torch_ranking=wanted["torch_ranking"],
    )
    # Its loss learns from all but the last two items; it recommends after all but the last.
    model.fit(dataset({user: items[:-1] for user, items in histories.items()}))
    whole = dataset(histories)
    known = model.data_preparator.item_id_map.external_ids
    users = [user for user, items in histories.items() if set(items) & set(known)]
    started = time.perf_counter()
    found = model.recommend(users, whole, k=10, filter_viewed=True, on_unsupported_targets="ignore")
    ranking_seconds = time.perf_counter() - started
    lists = found.groupby(Columns.User, sort=False)[Columns.Item].agg(list).to_dict()
    package = f"RecTools {version('rectools')}"
    ranking = "PyTorch" if wanted["torch_ranking"] else "implicit"
    notes = f"every history padded to its longest; ranking: `recommend` by {ranking}"
    child.report(wanted["output"], epoch_seconds, ranking_seconds, lists, package, notes)


if __name__ == "__main__":
    main()
