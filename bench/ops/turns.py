"""A row of ``scoring.py``: contenders take turns, compared in the first round, then timed."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass, field
from typing import Any

import torch
from measure import PeakMemory, format_bytes, seconds
from ops.cases import Case, Catalog, Mismatch, check_gradients
from ops.contenders import OURS, PLAIN, Contender
from ops.peers import PEERS
from torch import Tensor

WARM_UP = 3.0
"""A first round that takes fewer seconds is a warm-up and not counted."""

LONG_ROUND = 20.0
"""A first round that takes more seconds stays the only one, unless more are asked for."""

MOST_ROUNDS = 100
SHORTEST_SAMPLE = 5e-3
"""Seconds; a quicker call is repeated within a sample."""


@dataclass
class Measurement:
    """What came of one contender; ``note`` says why there are no numbers.

    ``seconds`` is the median of ``samples``, ``peak_bytes`` the most memory held during a call
    above what was held before it, results included. In their row: ``ratio`` is the time of
    ``PyTorch`` divided by ``seconds``, ``times_floor`` is ``seconds`` divided by the floor.
    """

    seconds: float | None = None
    samples: list[float] = field(default_factory=list)
    peak_bytes: int | None = None
    units_per_second: float | None = None
    ratio: float | None = None
    times_floor: float | None = None
    note: str | None = None


def first_round(
    contenders: list[Contender], case: Case, catalog: Catalog, memory_budget: float
) -> tuple[dict[str, Measurement], bool]:
    """Runs every contender once and compares what comes out.

    Returns:
        A measurement of one sample, or a note, for each; and whether there were two to compare.

    Raises:
        Mismatch: two of them disagree, but for other packages, whose note says so.
    """
    found: dict[str, Measurement] = {}
    reference: tuple[str, Any, list[Tensor]] | None = None
    compared = False
    # The plain one first: it is what the others are compared with.
    for contender in sorted(contenders, key=lambda contender: contender.name != PLAIN):
        name = contender.name
        if contender.needed_bytes > memory_budget:
            found[name] = Measurement(note=f"does not fit: {format_bytes(contender.needed_bytes)}")
            continue
        try:
            contender.prepare()
            results: list[tuple[Any, list[Tensor]]] = []
            with PeakMemory(catalog.device) as peak:
                taken = seconds(lambda: results.append(contender.run()), catalog.device)  # noqa: B023
        except Exception as error:
            if name == OURS and isinstance(error, NotImplementedError):
                found[name] = Measurement(note=f"not on {catalog.device.type} yet")
            elif name in PEERS:  # another package's, of whatever version is installed
                words = str(error).strip().splitlines() or [type(error).__name__]
                found[name] = Measurement(note=f"fails: {words[0][:60]}")
            else:
                raise
            continue
        found[name] = Measurement(samples=[taken], peak_bytes=peak.extra_bytes)
        outputs, gradients = results.pop()
        if reference is None:
            reference = name, outputs, gradients
            continue
        try:
            case.check(outputs, reference[1])
            if gradients:
                check_gradients(catalog, gradients, reference[2])
        except Mismatch as error:
            if name in PEERS:  # it may be less exact than what is compared here: not timed
                found[name] = Measurement(note="other results")
                continue
            raise Mismatch(f"{name} against {reference[0]}: {error}") from None
        compared = True
    return found, compared


def take_turns(
    contenders: list[Contender],
    found: dict[str, Measurement],
    device: torch.device,
    repeats: int | None,
    row_seconds: float,
) -> None:
    """Adds rounds A B C A B C ... to those of the :func:`first_round` that have run.

    Args:
        contenders: all of the row.
        found: what their first round gave; samples and medians are added to it.
        device: where they run.
        repeats: rounds to count at least. ``None`` takes it from the first round: three after a
            warm-up, two, or that one alone if it took over :data:`LONG_ROUND`.
        row_seconds: more rounds than that, until so much time has passed.
    """
    running = [contender for contender in contenders if found[contender.name].samples]
    first = sum(found[contender.name].samples[0] for contender in running)
    latest = {contender.name: found[contender.name].samples[0] for contender in running}
    if first < WARM_UP:
        for contender in running:
            with PeakMemory(device) as peak:  # again: the first call of all sets things up
                latest[contender.name] = seconds(contender.run, device)
            found[contender.name].peak_bytes = peak.extra_bytes
            found[contender.name].samples.clear()
    rounds = 0 if first < WARM_UP else 1
    least = repeats or (3 if first < WARM_UP else 2 if first < LONG_ROUND else 1)
    started = time.perf_counter()
    while rounds < least or (
        first < WARM_UP and rounds < MOST_ROUNDS and time.perf_counter() - started < row_seconds
    ):
        for contender in running:
            calls = max(1, round(SHORTEST_SAMPLE / latest[contender.name]))
            latest[contender.name] = seconds(contender.run, device, calls)
            found[contender.name].samples.append(latest[contender.name])
        rounds += 1
    for contender in running:
        measurement = found[contender.name]
        measurement.seconds = statistics.median(measurement.samples)
