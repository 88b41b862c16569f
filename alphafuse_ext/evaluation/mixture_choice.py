"""How much neighbors count beside a model: weights chosen on validation, after training."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from alphafuse_ext.config import Config
from alphafuse_ext.config.neighbors import softmax_temperature
from alphafuse_ext.data import Examples
from alphafuse_ext.data.sequences import evenly_spread
from alphafuse_ext.evaluation.ranking import encoded, encoded_ranks
from alphafuse_ext.evaluation.run_neighbors import RunNeighbors
from alphafuse_ext.metrics import ranking_metrics
from alphafuse_ext.models import SequenceModel

WEIGHTS = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5)
LARGER_WEIGHTS = (0.7, 0.9)
"""Each is tried where the one before it is the best so far: beside a weak model."""

LANGUAGE_WEIGHTS = (0.0, 0.25, 0.5, 1.0, 2.0)
TEMPERATURES = (0.1, 0.2, 0.4, 0.8)
"""In standard deviations of a query's scores."""

FIRST = {"weight": 0.2, "language_weight": 1.0}
"""Where the search begins; one setting is varied at a time."""

_NAMES = ("weight", "language_weight", "temperature")

_QUERIES = 64


def choose_weights(
    neighbors: RunNeighbors,
    model: SequenceModel,
    config: Config,
    examples: Examples,
    progress: bool = False,
) -> tuple[RunNeighbors, dict[str, Any]]:
    """Neighbors with the weights that are best on validation, by ``config.select``.

    Those that the settings name are kept. The others are chosen one after another: the temperature
    where the loss has none for the ranked scores, the weight of language, the weight beside the
    model. Each history is encoded once.

    Args:
        neighbors: lists of the training interactions.
        model: on its device.
        config: of the run.
        examples: of validation; none where the settings name all weights.
        progress: show progress bars in a terminal.

    Returns:
        The neighbors, and the record of ``results.json``: the weights, ``made_of``, and where
        there is validation ``grid``, ``select``, ``validation``, ``validation_of_the_model``,
        ``seconds``.
    """
    given = {
        "weight": config.neighbors_weight,
        "language_weight": config.neighbors_language_weight,
        "temperature": config.neighbors_temperature or softmax_temperature(config),
    }
    chosen = {**FIRST, **{name: value for name, value in given.items() if value is not None}}
    if not neighbors.neighbors.language:
        chosen["language_weight"] = given["language_weight"] = 0.0
    if not len(examples):
        done = neighbors.weighted(**chosen)
        return done, {**done.weights(), "made_of": done.made_of}
    started = time.perf_counter()
    grids = {"language_weight": LANGUAGE_WEIGHTS, "weight": WEIGHTS}
    if given["temperature"] is None:
        unit = _deviation(model, examples)
        grids = {"temperature": tuple(unit * share for share in TEMPERATURES), **grids}
        chosen["temperature"] = grids["temperature"][1]
    measured: dict[tuple[float, ...], dict[str, float]] = {}
    ask = (config.evaluation_batch_size, progress)
    with encoded(model, examples, *ask, kept=True) as (batches, encode):

        def metrics(**weights: float) -> dict[str, float]:
            key = tuple(weights[name] for name in _NAMES)
            if key not in measured:
                weighted = neighbors.weighted(**weights)
                exclude_seen = not config.keep_seen
                ranks = encoded_ranks(model, examples, batches, encode, exclude_seen, weighted)
                measured[key] = ranking_metrics(ranks)
            return measured[key]

        def best(name: str, values: Sequence[float]) -> float:
            found = [metrics(**{**chosen, name: value})[config.select] for value in values]
            return values[int(np.argmax(found))]  # the first of equals

        for name, values in grids.items():
            if given[name] is None:
                chosen[name] = best(name, values)
        if given["weight"] is None:
            for pair in itertools.pairwise((WEIGHTS[-1], *LARGER_WEIGHTS)):
                if chosen["weight"] == pair[0]:
                    chosen["weight"] = best("weight", pair)
        validation = metrics(**chosen)
        of_the_model = metrics(**{**chosen, "weight": 0.0})
    done = neighbors.weighted(**chosen)
    return done, {
        **done.weights(),
        "made_of": done.made_of,
        "select": config.select,
        "validation": validation,
        "validation_of_the_model": of_the_model,
        "grid": [
            {**dict(zip(_NAMES, key, strict=True)), config.select: line[config.select]}
            for key, line in measured.items()
        ],
        "seconds": time.perf_counter() - started,
    }


def _deviation(model: SequenceModel, examples: Examples) -> float:
    """The standard deviation of a query's scores over the catalog, a mean over some examples."""
    some = evenly_spread(len(examples), _QUERIES)
    with encoded(model, examples.select(some)) as (batches, encode):
        found = [
            model.whole_table.score_all(
                encode(examples.histories.select(some[rows])), model.similarity
            )
            for rows in batches
        ]
    mean = float(torch.cat(found).float().std(1).mean())
    return mean if mean > 0 else 1.0


def described(record: dict[str, Any], alone: str) -> str:
    """On a line, what was chosen and what it gives on validation.

    Args:
        record: of :func:`choose_weights`.
        alone: what ranks without neighbors, in words.
    """
    weights = ", ".join(f"{name.replace('_', ' ')} {record[name]:.3g}" for name in _NAMES)
    line = f"neighbors: {weights}"
    if "validation" not in record:
        return f"{line}, as given"
    before, after = (
        record[kind][record["select"]] for kind in ("validation_of_the_model", "validation")
    )
    line += f"; validation {record['select']} {before:.4f} by {alone} alone, {after:.4f} with them"
    line += f" ({len(record['grid'])} rankings, {record['seconds']:.3g} s)"
    return line + ("" if record["weight"] else "; the lists do not help")
