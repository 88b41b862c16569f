"""What each share of the training users gives: a table and a picture of a comparison of shares.

    python bench/experiments/by_share.py bench/results/compare-amazon-industrial-user-shares

Reads ``runs.json`` of ``alphafuse compare`` over the data sets of ``user_shares.py``, and writes
``by-share.md`` and ``by-share.png`` beside it: NDCG@10 of all test examples, and of those whose
item no training user of the share has.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from pathlib import Path
from statistics import mean, stdev

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for what benchmarks share
import report

from alphafuse_ext.experiments.report import spread

METRIC = "ndcg@10"
PANELS = {"all items": None, "items never trained on": "cold items"}

Numbers = dict[str, dict[int, list[float]]]  # by method, by percent of the users, of each seed


def numbers(folder: Path, group: str | None) -> Numbers:
    """The metric of each finished run, of one group of test examples or of all."""
    found: Numbers = defaultdict(lambda: defaultdict(list))
    for run in json.loads((folder / "runs.json").read_text())["runs"].values():
        results = run["results"]
        groups = results["test_groups"]["metrics_by_seen_items"]["excluded"]
        part = results["test"] if group is None else groups.get(group)
        if part is None:  # nobody takes such an item
            continue
        found[run["method"]][int(run["dataset"].split("%")[0])].append(part[METRIC])
    return found


def table(found: Numbers) -> list[str]:
    """A row for each method, a column for each share."""
    percents = sorted({percent for shares in found.values() for percent in shares})

    def cell(values: list[float]) -> str:
        return f"{spread(values)} ({len(values)})" if values else ""

    rows = [[name, *(cell(shares.get(p, [])) for p in percents)] for name, shares in found.items()]
    return list(report.table(("", *(f"{percent}%" for percent in percents)), rows))


def draw(panels: dict[str, Numbers], path: Path) -> None:
    """Each panel's means by share, with the standard deviation over seeds."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    axes = figure.subplots(1, len(panels))
    for axis, (title, found) in zip(axes, panels.items(), strict=True):
        for method, shares in found.items():
            percents = sorted(shares)
            means = [mean(shares[percent]) for percent in percents]
            spreads = [stdev(v) if len(v) > 1 else 0.0 for v in map(shares.get, percents) if v]
            axis.errorbar(percents, means, spreads, marker="o", capsize=2, label=method)
        ticks = sorted({percent for shares in found.values() for percent in shares})
        axis.set_xscale("log")
        axis.set_xticks(ticks, [f"{percent}%" for percent in ticks], minor=False)
        axis.minorticks_off()
        axis.set(
            title=title, xlabel="share of the training users", ylabel="NDCG@10", ylim=(0, None)
        )
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize="small")
    figure.savefig(path, dpi=120)


def main() -> None:
    """Write both files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("folder", type=Path, help="where compare wrote runs.json")
    folder = parser.parse_args().folder
    panels = {title: numbers(folder, group) for title, group in PANELS.items()}
    lines = [f"# NDCG@10 by the share of the training users, {folder.name}"]
    lines += ["", "Mean ± standard deviation over the seeds (their number).", ""]
    lines += ["![NDCG@10 by share](by-share.png)"]
    for title, found in panels.items():
        lines += ["", f"## {title.capitalize()}", "", *table(found)]
    (folder / "by-share.md").write_text("\n".join(lines) + "\n")
    draw(panels, folder / "by-share.png")


if __name__ == "__main__":
    main()
