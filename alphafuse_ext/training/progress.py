"""Progress of a run: a header, a line for each epoch, and progress bars."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from typing import Any

from alphafuse_ext.config import Config
from alphafuse_ext.logs import Log


def shows_bars(log: Log) -> bool:
    """Whether to show progress bars: if ``log`` prints to a terminal."""
    return getattr(log, "log", log) is print and sys.stdout.isatty()


def duration(seconds: float) -> str:
    """Format seconds: ``"8 s"``, ``"3 min"``, ``"2 h 05"``."""
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 100:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60:02}"


def explained(config: Config, validated: bool) -> Iterator[str]:
    """The lines before the first epoch: model, stopping rule, columns and header."""
    if not config.trained:
        yield f"model {config.model}: lists of neighbors alone, nothing to train"
        return
    table = f"{config.item_embedding} of {config.dim} dimensions"
    if config.null_dim is not None:
        table += f", null space {config.null_dim}, fusion {config.fusion}"
    yield f"model {config.model}, item embedding {table}"
    columns = f"{'epoch':>5} {'loss':>8}"
    if validated:
        shown = _shown(config)
        every = config.validate_every
        often = "" if every is None else f", validated every {every:,} steps and at their end"
        yield (
            f"training: at most {config.epochs} epochs{often}; ends after {config.patience} "
            f"{'' if every is None else 'validations '}without a better validation {config.select}"
        )
        yield (
            f"loss: mean over training targets; {', '.join(shown)}: on the validation examples; "
            "*: best so far"
        )
        columns += "".join(f"{name:>8}" for name in shown)
    else:
        yield f"training: {config.epochs} epochs; loss: mean over training targets"
    yield "train s, rank s: seconds of training and of validation; left: time of all epochs to come"
    yield f"{columns} {'train s':>8} {'rank s':>7} {'left':>8}"


def epoch_line(
    config: Config, line: Mapping[str, Any], best_epoch: float, seconds_left: float
) -> str:
    """The last validation, ``line``, under the header of :func:`explained`."""
    epoch = line["epoch"]
    said = f"{epoch if isinstance(epoch, int) else format(epoch, '.2f'):>5} {line['loss']:>8.4f}"
    if line["validation"]:
        said += "".join(f"{line['validation'][name]:>8.4f}" for name in _shown(config))
    said += f" {line['train_seconds']:>8.1f} {line['validation_seconds']:>7.1f}"
    said += f" {duration(seconds_left):>8}"
    best = line["validation"] and best_epoch == line["epoch"]
    return f"{said} *" if best else said


def _shown(config: Config) -> list[str]:
    return list(dict.fromkeys((config.select, "hr@10")))
