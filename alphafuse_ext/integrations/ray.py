"""Ray Data: recommendations for all users on a cluster, by actors that each hold the model.

>>> from alphafuse_ext.integrations.ray import recommendation_dataset, write_recommendations
>>> write_recommendations("/shared/runs/first", "/shared/everyone", parts=1000, concurrency=8, k=20)
>>> dataset = recommendation_dataset("/shared/runs/first", concurrency=8, k=20)
>>> dataset.write_parquet("s3://bucket/everyone")
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import ray.data

from alphafuse_ext.checks import integer, invalid
from alphafuse_ext.deprecation import renamed
from alphafuse_ext.serving.offline import Parts, digests
from alphafuse_ext.serving.queries import listed_for_all
from alphafuse_ext.serving.recommender import Recommender


def write_recommendations(
    run: str | os.PathLike[str],
    output: str | os.PathLike[str],
    parts: int,
    *,
    concurrency: int = 1,
    device: str = "cpu",
    resources: dict[str, Any] | None = None,
    **options: Any,
) -> tuple[int, int]:
    """Write recommendations for all users to part files, as ``alphafuse recommend --parts``.

    The same call resumes after an interruption: existing part files are skipped. Ray itself retries
    the part files of a worker that died.

    Args:
        run: the run folder, on a shared file system.
        output, options: as for :class:`alphafuse_ext.serving.offline.Parts`; also on a shared
            file system.
        parts: number of files.
        concurrency: number of actors, each of which loads the run.
        device: of each actor.
        resources: of an actor, as ``ray.data.Dataset.map_batches`` takes them, such as
            ``{"num_cpus": 4}`` or ``{"num_gpus": 1}``; default: one CPU.

    Returns:
        The number of rows and users written by this call.

    Raises:
        ValueError, OSError: as :class:`alphafuse_ext.serving.offline.Parts`, before Ray starts.
    """
    _check_concurrency(concurrency)
    held = Parts(Recommender.load(run, device), output, parts, **options)
    missing = held.missing()
    if not missing:
        return 0, 0
    made_of = {
        "run": str(Path(run).absolute()),
        "output": str(Path(output).absolute()),
        "count": parts,
        "device": device,
        "options": held.options,
    }
    numbers = ray.data.from_items([{"part": part} for part in missing])
    written = numbers.repartition(len(missing)).map_batches(
        _Writer,
        batch_size=1,
        fn_constructor_kwargs=made_of,
        concurrency=min(concurrency, len(missing)),
        **(resources or {"num_cpus": 1}),
    )
    counts = written.to_pandas()
    return int(counts["rows"].sum()), int(counts["users"].sum())


recommend_in_parts = renamed(write_recommendations, "recommend_in_parts")


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
        run, concurrency, device, resources: as for :func:`write_recommendations`.
        users: user ids; default: all users.
        users_at_once: number of users per batch.
        options: as for :meth:`Recommender.recommend`.

    Returns:
        Columns as of :meth:`Recommender.recommend`.
        Rows of a user are contiguous, best first; users are in any order.

    Raises:
        ValueError, OSError: a number out of range, a list in ``only`` for each user, or no run; an
            actor's, where the run is no longer what it was when this was called.
    """
    _check_concurrency(concurrency)
    if users_at_once < 1:
        raise invalid("users_at_once", users_at_once, "an integer >= 1")
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


recommendations = renamed(recommendation_dataset, "recommendations")


class _Writer:
    """An actor that writes part files."""

    def __init__(
        self, run: str, output: str, count: int, device: str, options: dict[str, Any]
    ) -> None:
        self.parts = Parts(Recommender.load(run, device), output, count, **options)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        written = np.array([self.parts.write(int(part)) for part in batch["part"]]).reshape(-1, 2)
        return {"rows": written[:, 0], "users": written[:, 1]}


class _Ranker:
    """An actor that ranks some users."""

    def __init__(self, run: str, device: str, of: dict[str, str], **options: Any) -> None:
        self.recommender, self.options = Recommender.load(run, device), options
        if digests(self.recommender, options.get("neighbors")) != of:
            allowed = "the run that was asked, which has changed since"
            raise invalid("run", run, allowed)

    def __call__(self, batch: pd.DataFrame) -> pd.DataFrame:
        return self.recommender.recommend(users=batch["user"].tolist(), **self.options)


def _check_concurrency(concurrency: int) -> None:
    if integer("concurrency", concurrency, "an integer >= 1") < 1:
        raise invalid("concurrency", repr(concurrency), "an integer >= 1")
