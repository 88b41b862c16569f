"""The report of a run: settings, data, curves, metrics beside popularity's, recommendations."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from alphafuse_ext.config import Config
from alphafuse_ext.data.split import describe_split
from alphafuse_ext.data.summary import summarize
from alphafuse_ext.evaluation.tables import OF_LISTS, by_seen_items, sample_words
from alphafuse_ext.reports.data import data_sections, title_of
from alphafuse_ext.reports.page import (
    Listing,
    Picture,
    Section,
    Table,
    named,
    percent,
    photographed,
    write_page,
)
from alphafuse_ext.runs.run_folder import without_paths
from alphafuse_ext.serving.recommender import Recommender

_METRICS = ("hr@5", "hr@10", "hr@20", "ndcg@5", "ndcg@10", "ndcg@20", "mrr@10")
_OF_GROUPS = ("hr@10", "ndcg@10")
_PICTURES = {
    "curves.png": "Training loss and the validation metric that selects the epoch.",
    "spectrum.png": "Variance of the language embeddings along each direction, and the null space.",
    "gains.png": "Gain of the ID embedding along each direction, against its eigenvalue.",
    "geometry.png": "Maps of the items: their language embeddings, the fused rows, their parts.",
}


def write_run_report(
    recommender: Recommender, path: str | os.PathLike[str] | None = None, users: int = 6
) -> Path:
    """Write the self-contained report of a run.

    Args:
        recommender: as the run left it.
        path: the HTML file to write or to replace; default: ``report.html`` in the run folder.
        users: number of users with recommendations, and of items with neighbors, to show.

    Returns:
        The file.
    """
    run = recommender.run
    target = run.path / "report.html" if path is None else Path(path)
    # Reports are shared: no paths and no user ids.
    config, source, environment = recommender.config, without_paths(run.source()), run.environment()
    embeddings = source.get("embeddings")
    lines = [
        f"{run.path.name}, by alphafuse_ext {environment['alphafuse_ext']}, "
        f"torch {environment['torch']}, Python {environment['python']}, {environment['platform']}.",
        f"Interactions: {source.get('interactions')}. Items: {source.get('items')}. "
        f"Embeddings: {embeddings.get('from') if embeddings else 'none'}.",
    ]
    if source.get("preset") is not None:
        lines.append(f"Preset: {source['preset']}; other given settings override it.")
    sections = [
        Section("Metrics", _metrics(run.results()) if run.has("results.json") else []),
        Section("Training", _pictures(run.path, "curves.png")),
        Section("Recommendations", _recommendations(recommender, users)),
        Section("Nearest items", _nearest(recommender, users)),
        Section(
            "Item embeddings", _pictures(run.path, "spectrum.png", "gains.png", "geometry.png")
        ),
        *_data(recommender),
        Section("Split", [*describe_split(run.report()), named(_report_rows(run.report()))]),
        Section("Settings", [_settings(config)]),
    ]
    short = in_short(run.results()) if run.has("results.json") else []
    write_page(target, f"Run {run.path.name}", lines, sections, short)
    return target


def in_short(results: dict[str, Any]) -> list[str]:
    """The results of a run in sentences: against the baselines, and what it is good and bad at."""
    if "test" not in results:
        return []
    seen = results["seen_items"]
    ours, popularity = results["test"], results["popularity"]
    others = {
        name: one["by_seen_items"][seen]
        for name, one in results.get("baselines", {}).items()
        if seen in one["by_seen_items"]
    }
    value = ours[_JUDGED]
    lines = [
        f"For {ours['hr@10']:.1%} of {results['examples']:,} test examples the item that came next "
        f"is among the ten that are recommended. The run is {_times(value, popularity[_JUDGED])} "
        f"popularity ({_JUDGED.upper()} {value:.4f} against {popularity[_JUDGED]:.4f})"
    ]
    if others:
        best = max(others, key=lambda name: others[name][_JUDGED])
        lines[0] += f", and {_times(value, others[best][_JUDGED])} the best other baseline, {best}"
    lines[0] += "."
    groups = results["test_groups"]["metrics_by_seen_items"][seen]
    known = {n: g for n, g in groups.items() if g["examples"] >= _ENOUGH}
    if len(known) > 1:
        ranked = sorted(known, key=lambda name: known[name][_JUDGED])
        good, bad = (
            f"{_GROUPS[name]} ({_JUDGED.upper()} {known[name][_JUDGED]:.4f}, "
            f"{known[name]['examples']:,} examples)"
            for name in (ranked[-1], ranked[0])
        )
        alike = known[ranked[-1]][_JUDGED] < _ALIKE * known[ranked[0]][_JUDGED]
        told = f"It is best {good}, and worst {bad}."
        lines.append("It is about as good for all groups of users and items." if alike else told)
    return lines


_JUDGED = "ndcg@10"
_ENOUGH = 30
"""Examples, from which on a group is spoken of."""
_ALIKE = 1.1
"""Ratio of the best group to the worst, up to which they are said to be alike."""
_GROUPS = {
    "head users": "after the longest histories",
    "tail users": "after short histories",
    "head items": "at the most popular items",
    "tail items": "at less popular items",
    "cold items": "at items that training has not seen",
}


def _times(ours: float, theirs: float) -> str:
    """How good it is beside another, in words."""
    if not theirs:
        return "better than" if ours else "no better than"
    ratio = ours / theirs
    if ratio < 0.995:
        return "worse than"
    if ratio < 1.95:
        return "as good as" if ratio < 1.005 else f"{ratio - 1:.0%} better than"
    return f"{ratio:.1f} times as good as" if ratio < 9.95 else f"{ratio:.0f} times as good as"


def _data(recommender: Recommender) -> list[Section]:
    clicks, items = recommender.interactions, recommender.items
    return data_sections(clicks, items, summarize(clicks, items)) if len(clicks) else []


def _metrics(results: dict[str, Any]) -> list[str | Table]:
    if "test" not in results:
        return [f"Nothing was held out: {results['epochs']} epochs on all interactions."]
    rows = [
        (f"{who}, seen items {seen}", *(metrics[seen][name] for name in _METRICS))
        for seen in results["test_by_seen_items"]
        for who, metrics in by_seen_items(results).items()
        if seen in metrics
    ]
    sample = sample_words(results.get("samples", {}).get("test"))
    parts: list[str | Table] = [
        f"{results['protocol']}: {results['examples']:,} test examples{sample}, the whole catalog "
        + (
            f"ranked, at epoch {results['best_epoch']:g} of {results['epochs']:g}, which "
            "validation selected."
            if results["epochs"]
            else "ranked."
        ),
        Table(("", *_METRICS), rows),
    ]
    groups = (results[f"{whose}_groups"] for whose in ("test", "popularity"))
    parts.append(_groups(results["seen_items"], *groups))
    if lists := results.get("lists"):
        names = [name for name in lists["this run"] if "@" in name]
        rows = [(who, *(_of_lists(name, one) for name in names)) for who, one in lists.items()]
        parts.append(Table(("what is recommended", *names), rows))
        kinds = [name.partition("@")[0] for name in names]
        parts.append("; ".join(f"{kind}: {OF_LISTS[kind]}" for kind in kinds) + ".")
    return parts


def _of_lists(name: str, found: dict[str, float]) -> Any:
    value = found.get(name)
    return percent(value) if name.startswith("coverage") and value is not None else value


def _groups(seen: str, ours: dict[str, Any], popularity: dict[str, Any]) -> Table:
    """Head and tail apart, with seen items excluded or ranked as the run selects."""
    beside = popularity["metrics_by_seen_items"][seen]
    rows = [
        (
            f"{name}, seen items {seen}",
            values["examples"],
            *(metrics.get(metric) for metrics in (values, beside[name]) for metric in _OF_GROUPS),
        )
        for name, values in ours["metrics_by_seen_items"][seen].items()
        if values["examples"]
    ]
    header = [*_OF_GROUPS, *(f"popularity's {metric}" for metric in _OF_GROUPS)]
    return Table(("", "examples", *header), rows)


def _pictures(folder: Path, *names: str) -> list[Picture]:
    return [
        photographed(folder / name, _PICTURES[name]) for name in names if (folder / name).is_file()
    ]


def _recommendations(recommender: Recommender, users: int) -> list[Listing]:
    if not recommender.interactions.num_users:  # as from the hub
        return []
    middling = median_users(recommender, users)
    names = recommender.interactions.users[middling]
    found = recommender.recommend(names.tolist(), k=min(5, len(recommender.items)))
    listings = []
    for number, (place, user) in enumerate(zip(middling, names, strict=True), start=1):
        rows = found[found["user"] == user]
        history = recommender.interactions.sequences[int(place)][-5:]
        listings.append(
            Listing(
                f"user {number} of those shown",
                [title_of(recommender.items, item) for item in history],
                _ranked(rows),
            )
        )
    return listings


def median_users(recommender: Recommender, count: int) -> np.ndarray:
    """Ids of users with histories of middling length, to show recommendations for."""
    lengths = pd.Series(recommender.interactions.sequences.lengths)
    distances = (lengths - lengths.median()).abs()
    return distances.sort_values(kind="stable").index[:count].to_numpy()


def _nearest(recommender: Recommender, items: int) -> list[Listing]:
    popular = np.argsort(-recommender.interactions.item_counts(), kind="stable")[:items]
    tokens = recommender.items.tokens[popular]
    found = recommender.recommend_to_items(tokens.tolist(), k=min(5, len(recommender.items)))
    return [
        Listing(
            title_of(recommender.items, item), [], _ranked(found[found["target_item"] == token])
        )
        for item, token in zip(popular, tokens, strict=True)
    ]


def _ranked(frame: pd.DataFrame) -> list[tuple[str, str]]:
    """Recommended items, each with its score; with neighbors its probability, and from where."""
    titles = frame["title"] if "title" in frame else [""] * len(frame)
    names = [f"{t}  {title}"[:120].rstrip() for t, title in zip(frame["item"], titles, strict=True)]
    if "from" in frame:
        pairs = zip(np.exp(frame["score"]), frame["from"], strict=True)
        return [(n, f"{percent(p)}, {of}") for n, (p, of) in zip(names, pairs, strict=True)]
    return [(n, f"{score:.3f}") for n, score in zip(names, frame["score"], strict=True)]


def _report_rows(report: dict[str, Any]) -> list[tuple[str, Any]]:
    # Points in time are in the sentences, as dates.
    counts = {name: value for name, value in report.items() if not name.endswith("_from")}
    return [(name.replace("_", " "), value) for name, value in counts.items()]


def _settings(config: Config) -> Table:
    usual = Config().to_dict()
    rows = [
        (name, value, "" if usual.get(name) in (None, value) else f"default {usual[name]}")
        for name, value in config.to_dict().items()
        if value is not None
    ]
    return Table(("setting", "value", ""), rows)
