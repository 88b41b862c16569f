"""The results of ``training.py`` for people: the lines of a loss, and the whole page."""

from __future__ import annotations

from typing import Any

import report
from measure import format_bytes, format_seconds, significant
from training_contenders import OURS, PARTS, PLAIN, STAGES
from training_turns import GOALS


def setting_lines(setting: dict[str, Any]) -> list[str]:
    """Markdown of one loss, without its profile."""
    results, config = setting["contenders"], setting["config"]
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

    def peak(value: int | None) -> str:
        return "not measured" if value is None else format_bytes(value)

    def cells(result: dict[str, Any]) -> list[str]:
        seconds = [*result["parts"].values(), result["epoch_seconds"]]
        return [
            *(format_seconds(value) for value in seconds),
            format_seconds(result["median_step_seconds"]),
            peak(result["peak_bytes"]["step"]),
            peak(result["peak_bytes"]["loss"]),
            f"{result['mean_loss_of_last_round']:.5f}",
        ]

    header = ["", *PARTS, "epoch", "median step", "peak, step", "peak, loss", "loss"]
    lines = [f"## {config['loss']}{negatives}", "", f"Seconds of an epoch ({measured}).", ""]
    lines += report.table(header, [[name, *cells(result)] for name, result in results.items()])
    lines += ["", "Stages:", ""]
    lines += report.table(
        ["", *STAGES],
        [[n, *(format_seconds(r["stages"][s]) for s in STAGES)] for n, r in results.items()],
    )
    lines += ["", "Times as fast as plain PyTorch (the quicker of its contenders):", ""]
    goals = [f"{part} (goal {goal:g})" for part, goal in GOALS.items()]
    lines += report.table(
        ["", *goals],
        [[k, *(f"{v[part]:.2f}" for part in GOALS)] for k, v in setting["ratios"].items()],
    )
    trainer, ranking = setting["trainer"], setting["ranking"]
    seconds = ranking["seconds"]
    lines += [
        "",
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
        "",
    ]
    return lines


def page(results: dict[str, Any]) -> str:
    """The results as a Markdown file."""
    body = [
        "Item side: lookup of the histories, candidates and loss, backward of both, optimizer step "
        "of the ID embeddings. Dense: fused Adam; sparse: SparseAdam. Losses and gradients agreed "
        "before they were timed. Peak extra memory of the batch with the most positions: of a "
        "whole step, and of the loss and its backward alone (`measure.PeakMemory`); loss: the mean "
        "over the batches of the last round.",
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
