"""Tables and plots of a comparison."""

from __future__ import annotations

import csv
import io
import itertools
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import scipy.stats
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from alphafuse_ext.config import Config
from alphafuse_ext.experiments.jobs import RANKS, Figures, unpacked_ranks, validation_of
from alphafuse_ext.experiments.spec import Comparison
from alphafuse_ext.files import atomic_path
from alphafuse_ext.metrics import METRICS, ndcg_of_examples

SHOWN = ("ndcg@10", "hr@10", "ndcg@20", "hr@20")
TESTED = "ndcg@10"
"""What methods are tested by, user by user."""
_LONGEST_LABEL = 50
GROUPS = ("head users", "tail users", "head items", "tail items", "cold items")


@dataclass(frozen=True)
class Trial:
    """One point of a method's grid, with the first seed.

    Attributes:
        settings: as they were given.
        config: resolved.
        figures: ``None``: it has not ended well.
    """

    settings: dict[str, Any]
    config: Config
    figures: Figures | None

    @property
    def validation(self) -> float | None:
        """The metric that trials are chosen by."""
        return None if self.figures is None else validation_of(self.figures)


@dataclass(frozen=True)
class Row:
    """A method on a data set.

    Attributes:
        dataset, method: their names.
        trials: every point of the grid.
        chosen: place of the chosen one; ``None``: none has ended well.
        runs: figures of the chosen settings, one a seed, those that there are.
        failures: why runs failed.
        names: of the runs, on record and of their folders.
    """

    dataset: str
    method: str
    trials: list[Trial]
    chosen: int | None
    runs: list[Figures]
    failures: list[str] = field(default_factory=list)
    names: list[str] = field(default_factory=list)

    def values(self, metric: str) -> list[float]:
        """A test metric of each run."""
        return [run["results"]["test"][metric] for run in self.runs]

    @property
    def chosen_by(self) -> float:
        """The mean validation metric of the runs."""
        return statistics.mean(map(validation_of, self.runs))

    def gains_of_examples(self) -> npt.NDArray[np.float64]:
        """NDCG@10 of each example, the mean over the runs."""
        ranks = np.stack([unpacked_ranks(run["ranks"]) for run in self.runs])
        return ndcg_of_examples(ranks).mean(0)


@dataclass(frozen=True)
class PairedTest:
    """A paired test of a method against the best other method.

    Attributes:
        other: the other method with the best validation metric.
        gain: relative, of mean NDCG@10.
        p: two-sided, of a paired t-test over the examples' NDCG@10, each the mean over seeds.
    """

    other: str
    gain: float
    p: float


def paired_test(row: Row, rows: Iterable[Row]) -> PairedTest | None:
    """A paired test of a row against the best other row of its data set, chosen on validation."""
    others = [one for one in rows if one.dataset == row.dataset and one.method != row.method]
    others = [one for one in others if one.runs]
    if not others or not row.runs:
        return None
    other = max(others, key=lambda one: one.chosen_by)
    ours, theirs = row.gains_of_examples(), other.gains_of_examples()
    mean = float(theirs.mean())
    gain = float(ours.mean()) / mean - 1 if mean else float("inf")
    if np.array_equal(ours, theirs):
        return PairedTest(other.method, gain, 1.0)
    return PairedTest(other.method, gain, float(scipy.stats.ttest_rel(ours, theirs).pvalue))


def write_report(folder: Path, comparison: Comparison, rows: list[Row]) -> None:
    """Write the tables ``compare.md``, ``.csv`` and ``.tex``, the pictures ``compare.png`` and
    ``curves.png``, and ``ranks.parquet``, each atomically.
    """
    for name, text in (
        ("compare.md", markdown(comparison, rows)),
        ("compare.csv", comma_separated(rows)),
        ("compare.tex", latex(comparison, rows)),
    ):
        with atomic_path(folder / name) as temporary:
            Path(temporary).write_text(text, encoding="utf-8")
    pictures = {}
    if any(row.runs for row in rows):
        pictures["compare.png"] = picture(comparison, rows)
    if any(run.get("curve") for row in rows for run in row.runs):
        pictures["curves.png"] = curves(comparison, rows)
    for name, figure in pictures.items():
        with atomic_path(folder / name) as temporary:
            figure.savefig(temporary, dpi=150, format="png")
    _write_ranks(folder, rows)


def _write_ranks(folder: Path, rows: list[Row]) -> None:
    """The ranks of the chosen runs' test targets, for tests of one's own; of runs on record whose
    folders are gone what was written of them before.
    """
    target = folder / "ranks.parquet"
    before = pd.read_parquet(target) if target.exists() else None
    found = []
    for row in rows:
        for name, run in zip(row.names, row.runs, strict=True):
            file = folder / "runs" / f"{name}{RANKS}"
            if file.exists():
                frame = pd.read_parquet(file)
                facts = {"dataset": row.dataset, "method": row.method}
                facts |= {"seed": run["config"]["seed"], "run": name}
                found.append(pd.DataFrame(facts, index=frame.index).join(frame))
            elif before is not None:
                found.append(before[before["run"] == name])
    if found and any(map(len, found)):
        with atomic_path(target) as temporary:
            pd.concat(found, ignore_index=True).to_parquet(temporary, index=False)


def markdown(comparison: Comparison, rows: list[Row]) -> str:
    """The tables, a section for each data set."""
    seeds = ", ".join(map(str, comparison.seeds))
    lines = [
        "# Comparison",
        "",
        f"Mean ± standard deviation over the seeds ({seeds}) of test metrics at the epoch, and "
        "under the settings, that validation selected; HR equals Recall: one target each. Beside "
        "each method the best of the others, by validation: the relative difference in NDCG@10, "
        "and p of a paired t-test over users. Seconds and memory are those of one process.",
        "",
    ]
    lines += [*_made_by(rows), ""]
    if comparison.settings:
        lines += [f"Settings of all: {settings_text(comparison.settings)}.", ""]
    for dataset in comparison.datasets:
        own = [row for row in rows if row.dataset == dataset.name]
        lines += [f"## {dataset.name}", ""]
        first = next((run["results"] for row in own for run in row.runs), None)
        if first is not None:
            lines += [
                f"{first['protocol']}, {first['examples']:,} examples, the whole catalog ranked, "
                f"seen items {first['seen_items']}.",
                "",
            ]
        if dataset.settings:
            lines += [f"Settings of all: {settings_text(dataset.settings)}.", ""]
        header = ["method", "seeds", *(name.upper() for name in SHOWN), "best of the others"]
        header += ["parameters", "s / epoch", "s to the best", "MB"]
        cells = [line for row in own for line in (_cells(row, rows), *_model_alone(row))]
        if first is not None:
            popularity = [f"{first['popularity'][name]:.4f}" for name in SHOWN]
            cells.append(["popularity", "", *popularity, *[""] * 5])
            for name, one in first.get("baselines", {}).items():
                metrics = one["by_seen_items"][first["seen_items"]]
                values = [f"{metrics[metric]:.4f}" for metric in SHOWN]
                cells.append([name, "", *values, *[""] * 5])
        lines += [*table(header, cells), ""]
        failures = [f"{row.method}: {error}" for row in own for error in row.failures]
        if failures:
            lines += ["Failed:", "", *(f"- {failure}" for failure in failures), ""]
        lines += _trial_lines(own)
        if first is not None and "test_groups" in first:
            lines += _group_lines(own, first)
        lines += _own_metric_lines(own)
    return "\n".join(lines).rstrip() + "\n"


def _made_by(rows: list[Row]) -> list[str]:
    """Versions and machines that the runs were made with, a line for each kind."""
    counts: Counter[str] = Counter()
    for row in rows:
        for run in row.runs:
            found = run["environment"]
            facts = (
                f"alphafuse_ext {found['alphafuse_ext']}, torch {found['torch']}, Python "
                f"{found['python']}, {found['platform']}, {found['native']['isa']}, threads "
                f"{found['threads']}"
            )
            # Earlier versions recorded the precision among the settings alone.
            precision = run["results"].get("precision", run["config"].get("precision"))
            counts[facts if precision is None else f"{facts}, {precision}"] += 1
    return [f"- {count} runs: {facts}" for facts, count in counts.most_common()]


def _cells(row: Row, rows: list[Row]) -> list[str]:
    if not row.runs:
        why = "failed" if row.failures else "not run yet"
        return [row.method, "0", why, *[""] * (len(SHOWN) + 4)]
    failed = f", {len(row.failures)} failed" if row.failures else ""
    cells = [row.method, f"{len(row.runs)}{failed}"]
    cells += [spread(row.values(name)) for name in SHOWN]
    test = paired_test(row, rows)
    shown = ""
    if test is not None:
        p = f"{test.p:.3f}" if test.p >= 0.001 else f"{test.p:.0e}"
        shown = f"{test.gain:+.1%} on {test.other}, p {p}"
    cells.append(shown)
    cells.append(f"{row.runs[0]['results']['trainable_parameters']:,}")
    cells.append(f"{statistics.median(r['results']['seconds_per_epoch'] for r in row.runs):.1f}")
    cells.append(f"{statistics.median(r['seconds_to_best'] for r in row.runs):.0f}")
    cells.append(f"{statistics.median(r['peak_memory_bytes'] for r in row.runs) / 2**20:,.0f}")
    return cells


def _trial_lines(rows: list[Row]) -> list[str]:
    """What each method tried, and what it is trained with."""
    cells = []
    for row in rows:
        for place, trial in enumerate(row.trials):
            numbers = ["", ""]
            if trial.figures is not None:
                test = trial.figures["results"]["test"][TESTED]
                numbers = [f"{trial.validation:.4f}", f"{test:.4f}"]
            mark = "yes" if place == row.chosen else ""
            cells.append([row.method, settings_text(trial.settings), *numbers, mark])
    select = rows[0].trials[0].config.select
    header = ["method", "settings", f"validation {select}", f"test {TESTED}", "chosen"]
    return ["Trials, the first seed:", "", *table(header, cells), ""]


def _group_lines(rows: list[Row], first: dict[str, Any]) -> list[str]:
    """NDCG@10 of head and tail apart."""
    counts = first["test_groups"]["metrics_by_seen_items"][first["seen_items"]]
    groups = [group for group in GROUPS if counts.get(group, {}).get("examples")]
    cells = []
    for row in rows:
        if not row.runs:
            continue
        found = [
            run["results"]["test_groups"]["metrics_by_seen_items"][first["seen_items"]]
            for run in row.runs
        ]
        cells.append(
            [row.method, *(spread([one[group][TESTED] for one in found]) for group in groups)]
        )
    header = [TESTED.upper(), *(f"{g} ({counts[g]['examples']:,})" for g in groups)]
    return [*table(header, cells), ""]


def _own_metric_lines(rows: list[Row]) -> list[str]:
    """What lists are like, and metrics of one's own, where runs have any."""
    found = [[_own_metrics(run) for run in row.runs] for row in rows]
    # Of a row, what all its runs have: runs of earlier versions may be among them.
    names_of = [[n for n in (of[0] if of else ()) if all(n in one for one in of)] for of in found]
    names = list(dict.fromkeys(itertools.chain.from_iterable(names_of)))
    if not names:
        return []
    cells = [
        [row.method, *(spread([one[n] for one in of]) if n in own else "" for n in names)]
        for row, of, own in zip(rows, found, names_of, strict=True)
    ]
    return [*table(["method", *names], cells), ""]


def _own_metrics(run: dict[str, Any]) -> dict[str, float]:
    lists = run["results"].get("lists", {}).get("this run", {})
    of_lists = {name: value for name, value in lists.items() if "@" in name}
    return {**of_lists, **run["results"].get("own_metrics", {})}


def _model_alone(row: Row) -> list[list[str]]:
    """A line of what the models of runs with neighbors do without them."""
    found = [run["results"].get("model_alone") for run in row.runs]
    if not found or None in found:
        return []
    values = [spread([one["test"][name] for one in found]) for name in SHOWN]
    return [[f"{row.method}, its model alone", str(len(found)), *values, *[""] * 5]]


def comma_separated(rows: list[Row]) -> str:
    """A line for each run of the chosen settings."""
    text = io.StringIO()
    header = ["dataset", "method", "seed", "best_epoch", *METRICS]
    header += [f"validation {name}" for name in METRICS]
    header += ["parameters", "seconds_per_epoch", "seconds_to_best", "peak_memory_bytes", "error"]
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    for row in rows:
        for run in row.runs:
            results = run["results"]
            writer.writerow(
                [
                    *(row.dataset, row.method, run["config"]["seed"], f"{results['best_epoch']:g}"),
                    *(results["test"][name] for name in METRICS),
                    *(results["validation"][name] for name in METRICS),
                    *(results["trainable_parameters"], results["seconds_per_epoch"]),
                    *(run["seconds_to_best"], run["peak_memory_bytes"], ""),
                ]
            )
        for error in row.failures:
            writer.writerow([row.dataset, row.method, *[""] * (len(header) - 3), error])
    return text.getvalue()


_TEX = {"&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}"}
_TEX |= {"~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "\\": r"\textbackslash{}"}


def latex(comparison: Comparison, rows: list[Row]) -> str:
    """A table for each data set, by ``booktabs``: means and standard deviations, the best bold."""
    lines = ["% \\usepackage{booktabs}"]
    for dataset in comparison.datasets:
        own = [row for row in rows if row.dataset == dataset.name and row.runs]
        means = {name: [statistics.mean(row.values(name)) for row in own] for name in SHOWN}
        lines += ["", f"% {dataset.name}", rf"\begin{{tabular}}{{l{'r' * len(SHOWN)}}}"]
        heads = " & ".join(_tex(name.upper()) for name in SHOWN)
        lines += [r"\toprule", rf"method & {heads} \\", r"\midrule"]
        for place, row in enumerate(own):
            cells = []
            for name in SHOWN:
                cell = spread(row.values(name)).replace("±", r"$\pm$")
                best = means[name][place] == max(means[name])
                cells.append(rf"\textbf{{{cell}}}" if best else cell)
            lines.append(rf"{_tex(row.method)} & {' & '.join(cells)} \\")
        lines += [r"\bottomrule", r"\end{tabular}"]
    return "\n".join(lines) + "\n"


def _tex(name: str) -> str:
    """A name as LaTeX prints it."""
    return "".join(_TEX.get(letter, letter) for letter in name)


def curves(comparison: Comparison, rows: list[Row]) -> Figure:
    """Validation over the epochs, of all runs of the chosen settings: a color for each method."""
    shown = {
        dataset.name: [
            row
            for row in rows
            if row.dataset == dataset.name and any(run.get("curve") for run in row.runs)
        ]
        for dataset in comparison.datasets
    }
    shown = {name: own for name, own in shown.items() if own}
    figure = Figure(figsize=(8, 3.6 * len(shown)), layout="constrained")
    panels = figure.subplots(len(shown), 1, squeeze=False)[:, 0]
    for axes, (name, own) in zip(panels, shown.items(), strict=True):
        for number, row in enumerate(own):
            label: str | None = _shortened(row.method, _LONGEST_LABEL)
            for run in row.runs:
                if not (curve := run.get("curve")):  # recorded by an earlier version, or untrained
                    continue
                epochs, values = zip(*curve, strict=True)
                axes.plot(epochs, values, color=f"C{number % 10}", label=label, linewidth=1)
                best = run["results"]["best_epoch"]
                axes.plot(best, dict(curve)[best], ".", color=f"C{number % 10}")
                label = None
        axes.set_title(_shortened(name, 2 * _LONGEST_LABEL), loc="left", parse_math=False)
        axes.set_xlabel("epoch; a dot: the chosen one")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_ylabel(f"validation {own[0].trials[0].config.select}")
        axes.spines[["top", "right"]].set_visible(False)
        legend = axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
        for text in legend.get_texts():
            text.set_parse_math(False)
    return figure


def picture(comparison: Comparison, rows: list[Row]) -> Figure:
    """NDCG@10 of each method: a dot for each seed, a line over their range, the mean."""
    shown = [
        (dataset.name, [row for row in rows if row.dataset == dataset.name and row.runs])
        for dataset in comparison.datasets
    ]
    shown = [(name, own) for name, own in shown if own]
    height = sum(0.9 + 0.32 * len(own) for _, own in shown)
    figure = Figure(figsize=(8, max(2.2, height)), layout="constrained")
    ratios = [len(own) + 1 for _, own in shown]
    panels = figure.subplots(len(shown), 1, squeeze=False, height_ratios=ratios)[:, 0]
    for axes, (name, own) in zip(panels, shown, strict=True):
        own = sorted(own, key=lambda row: statistics.mean(row.values(TESTED)))
        for place, row in enumerate(own):
            values = row.values(TESTED)
            axes.hlines(place, min(values), max(values), color="tab:blue", linewidth=2, alpha=0.4)
            axes.plot(values, [place] * len(values), ".", color="tab:blue", markersize=5)
            axes.plot(statistics.mean(values), place, "|", color="black", markersize=12)
        # Names are no formulas, whatever signs of the dollar are in them.
        labels = [_shortened(row.method, _LONGEST_LABEL) for row in own]
        axes.set_yticks(range(len(own)), labels, parse_math=False)
        axes.set_title(_shortened(name, 2 * _LONGEST_LABEL), loc="left", parse_math=False)
        axes.set_xlabel(f"test {TESTED.upper()}, a dot for each seed")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="x", linewidth=0.5, alpha=0.5)
    return figure


def _shortened(name: str, length: int) -> str:
    """A name as a picture has room for: without what is in the middle of a long one."""
    kept = length // 2
    return name if len(name) <= length else f"{name[:kept]}…{name[-kept:]}"


def spread(values: Sequence[float]) -> str:
    """Mean and standard deviation, as a table has them."""
    if len(values) == 1:
        return f"{values[0]:.4f}"
    return f"{statistics.mean(values):.4f} ± {statistics.stdev(values):.4f}"


def table(
    header: Sequence[str], rows: Sequence[Sequence[str]], left: int | None = None
) -> list[str]:
    """The lines of a Markdown table, aligned for a terminal too.

    Args:
        header: names of the columns.
        rows: cells, as they are to be read.
        left: how many columns, the first, are words; the others are numbers, aligned to the right
            on a page too. ``None``: no column is marked as either.
    """
    rows = [[cell.replace("|", "/") for cell in row] for row in rows]
    if left is None:
        lines = aligned(header, rows, len(header))
        rules = ["-" * (len(cell) + 2) for cell in lines[0]]
    else:  # two wider than a column's name at least, as the tables on record are
        lines = aligned(header, rows, left, room=2)
        rules = [":" + "-" * (len(cell) + 1) for cell in lines[0][:left]]
        rules += ["-" * (len(cell) + 1) + ":" for cell in lines[0][left:]]
    marked = [f"| {' | '.join(cells)} |" for cells in lines]
    return [marked[0], f"|{'|'.join(rules)}|", *marked[1:]]


def aligned(
    header: Sequence[str], rows: Sequence[Sequence[str]], left: int, room: int = 0
) -> list[list[str]]:
    """Header and rows with the cells of each column equally wide.

    Args:
        header, rows: the cells.
        left: how many columns, the first, are words; the others are aligned to the right.
        room: how much wider than its name a column is at least.
    """
    columns = zip(header, *rows, strict=True)
    widths = [max(len(name) + room, *map(len, cells), 0) for name, *cells in columns]
    return [
        [
            cell.ljust(width) if place < left else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        for line in (header, *rows)
    ]


def settings_text(settings: dict[str, Any]) -> str:
    """Settings as words of Markdown; numbers to four figures."""
    words = {
        name: f"{value:.4g}" if isinstance(value, float) else value
        for name, value in settings.items()
    }
    return ", ".join(f"`{name}={word}`" for name, word in words.items()) or "the defaults"
