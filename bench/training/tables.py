"""The results of ``epoch.py`` for people: the lines of a loss, and the whole page."""

from __future__ import annotations

from typing import Any

import report
from measure import format_bytes, format_seconds, significant
from training.contenders import ONCE, OURS, PARTS, PLAIN, STAGES
from training.turns import GOALS

SHORT = {OURS: "ours", ONCE: "fused once"}
"""Contenders over a column of a terminal."""


def _heading(setting: dict[str, Any]) -> list[str]:
    """Which loss, and what of an epoch was measured."""
    config = setting["config"]
    measured = (
        "all batches"
        if setting["batches"] == setting["batches_in_epoch"]
        else f"{setting['batches']} of {setting['batches_in_epoch']} batches, scaled up"
    )
    negatives = (
        f", {config['negatives']} negatives per {config['negatives_per']}"
        if config["loss"] != "cross_entropy"
        else ", whole catalog"
    )
    return [f"## {config['loss']}{negatives}", "", f"Seconds of an epoch ({measured}).", ""]


def _totals(result: dict[str, Any]) -> list[str]:
    """Of a contender: an epoch, a step, memory and loss."""

    def peak(value: int | None) -> str:
        return "not measured" if value is None else format_bytes(value)

    return [
        format_seconds(result["epoch_seconds"]),
        format_seconds(result["median_step_seconds"]),
        peak(result["peak_bytes"]["step"]),
        peak(result["peak_bytes"]["loss"]),
        f"{result['mean_loss_of_last_round']:.5f}",
    ]


TOTALS = ("epoch", "median step", "peak, step", "peak, loss", "loss")


def setting_lines(setting: dict[str, Any]) -> list[str]:
    """Markdown of one loss, without its profile."""
    results = setting["contenders"]

    def cells(result: dict[str, Any]) -> list[str]:
        return [*map(format_seconds, result["parts"].values()), *_totals(result)]

    lines = _heading(setting)
    lines += report.table(["", *PARTS, *TOTALS], [[n, *cells(r)] for n, r in results.items()])
    lines += ["", "Stages:", ""]
    lines += report.table(
        ["", *STAGES],
        [[n, *(format_seconds(r["stages"][s]) for s in STAGES)] for n, r in results.items()],
    )
    ratios, others = _comparison(setting)
    return [*lines, "", RATIOS, "", *report.table(*ratios), "", *others, ""]


def terminal_lines(setting: dict[str, Any]) -> list[str]:
    """The same for a terminal: contenders beside each other, parts above their stages."""
    results = setting["contenders"]
    rows = []
    for part, stages in PARTS.items():
        rows.append([part, *(format_seconds(r["parts"][part]) for r in results.values())])
        if len(stages) > 1:
            rows += [
                [f"  {stage}", *(format_seconds(r["stages"][stage]) for r in results.values())]
                for stage in stages
            ]
    rows += map(list, zip(TOTALS, *map(_totals, results.values()), strict=True))
    names = [
        next((name.replace(k, v) for k, v in SHORT.items() if name.startswith(k)), name)
        for name in results
    ]
    ratios, others = _comparison(setting)
    lines = [*_heading(setting), *report.plain(["", *names], rows), "", RATIOS]
    lines += [*report.plain(*ratios), ""]
    return lines + [line for text in others for line in (report.wrapped(text) or [""])]


RATIOS = "Times as fast as plain PyTorch (the quicker of its contenders):"


def _comparison(setting: dict[str, Any]) -> tuple[tuple[list[str], list[list[str]]], list[str]]:
    """A table of :data:`RATIOS`; what trainer and ranking take, in paragraphs."""
    header = ["", *(f"{part} (goal {goal:g})" for part, goal in GOALS.items())]
    rows = [[k, *(f"{v[part]:.2f}" for part in GOALS)] for k, v in setting["ratios"].items()]
    trainer, ranking = setting["trainer"], setting["ranking"]
    seconds = ranking["seconds"]
    return (header, rows), [
        "The package's own trainer, whose step is not cut in stages (dense gradient), over the "
        f"same rows: {format_seconds(trainer['epoch_seconds'])} an epoch, "
        f"{format_seconds(trainer['validation_seconds'])} its validation.",
        "",
        f"Ranking {ranking['examples']} validation examples ({ranking['ranked']} ranked): "
        f"`target_ranks` {format_seconds(seconds[OURS])}, PyTorch {format_seconds(seconds[PLAIN])}"
        f" (product, comparison, count): {significant(ranking['ratio'])} times as fast. Beside "
        f"it, alike for both: encoder {format_seconds(seconds['encoder'])}, lists of seen items "
        f"{format_seconds(seconds['seen items'])}. {ranking['ranks_that_differ']} ranks differ, "
        f"by at most {ranking['largest_difference']} (float32 rounding).",
    ]


def page(results: dict[str, Any]) -> str:
    """The results as a Markdown file."""
    body = [
        "Item side: lookup of the histories, candidates and loss, backward of both, optimizer step "
        "of the ID embeddings. Dense: fused Adam; sparse: LazyAdam, PyTorch's SparseAdam. Losses "
        "and gradients agreed before they were timed. Peak extra memory of the batch with the most "
        "positions: of a whole step, and of the loss and its backward alone "
        "(`measure.PeakMemory`); loss: the mean over the batches of the last round.",
        "",
    ]
    for setting in results["settings"]:
        body += setting_lines(setting)
    for setting in results["settings"]:
        body += [
            f"## Profile: alphafuse_ext, dense, {setting['config']['loss']}",
            "",
            f"{setting['profiled_steps']} steps, operators by their own time; `[...]` are the "
            "stages, whose own time is what no operator below accounts for.",
            "",
            "```",
            *(line.rstrip() for line in setting["profile"].strip().splitlines()),
            "```",
            "",
        ]
    machine = results["machine"]
    title = f"SASRec training on {results['dataset']}, {machine['device']}"
    facts = {"setting": results["setting"], **machine}
    return report.page(title, results["command"], facts, body[:-1])
