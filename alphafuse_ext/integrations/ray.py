"""Ray Data: recommendations for all users on a cluster, by actors that each hold the model.

>>> from alphafuse_ext.integrations.ray import recommendation_dataset
>>> dataset = recommendation_dataset("/shared/runs/first", concurrency=8, k=20)
>>> dataset.write_parquet("s3://bucket/everyone")

Part files that go on after an interruption are those of ``alphafuse recommend --parts``.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pandas as pd
import ray.data

from alphafuse_ext.checks import integer, invalid
from alphafuse_ext.serving.offline import digests
from alphafuse_ext.serving.queries import listed_for_all
from alphafuse_ext.serving.recommender import Recommender


def recommendation_dataset(
    run: str | os.PathLike[str],
    users: list[Any] | None = None,
    *,
    concurrency: int = 1,
    device: str = "cpu",
    users_at_once: int = 4096,
    resources: dict[str, Any] | None = None,
    **options: Any,
) -> ray.data.Dataset:
    """Recommendations as a lazy Ray dataset.

    Args:
        run: the run folder, on a shared file system.
        users: user ids; default: all users.
        concurrency: number of actors, each of which loads the run.
        device: of each actor.
        users_at_once: number of users per batch.
        resources: of an actor, as ``ray.data.Dataset.map_batches`` takes them, such as
            ``{"num_cpus": 4}`` or ``{"num_gpus": 1}``; default: one CPU.
        options: as for :meth:`Recommender.recommend`.

    Returns:
        Columns as of :meth:`Recommender.recommend`.
        Rows of a user are contiguous, best first; users are in any order.

    Raises:
        ValueError, OSError: a number out of range, a list in ``only`` for each user, or no run; an
            actor's, where the run is no longer what it was when this was called.
    """
    for name, given in (("concurrency", concurrency), ("users_at_once", users_at_once)):
        if integer(name, given, "an integer >= 1") < 1:
            raise invalid(name, given, "an integer >= 1")
    if options.get("only") is not None:
        options["only"] = listed_for_all(options["only"])
    recommender = Recommender.load(run, device)
    if users is None:
        users = recommender.interactions.users.tolist()
    blocks = -(-len(users) // users_at_once)
    asked = ray.data.from_pandas(pd.DataFrame({"user": users})).repartition(max(1, blocks))
    return asked.map_batches(
        _Ranker,
        batch_size=users_at_once,
        batch_format="pandas",
        fn_constructor_kwargs={
            "run": str(Path(run).absolute()),
            "device": device,
            "of": digests(recommender, options.get("neighbors")),
            **options,
        },
        concurrency=concurrency,
        **(resources or {"num_cpus": 1}),
    )


class _Ranker:
    """An actor that ranks some users."""

    def __init__(self, run: str, device: str, of: dict[str, str], **options: Any) -> None:
        self.recommender, self.options = Recommender.load(run, device), options
        if digests(self.recommender, options.get("neighbors")) != of:
            allowed = "the run that was asked, which has changed since"
            raise invalid("run", run, allowed)

    def __call__(self, batch: pd.DataFrame) -> pd.DataFrame:
        return self.recommender.recommend(users=batch["user"].tolist(), **self.options)
