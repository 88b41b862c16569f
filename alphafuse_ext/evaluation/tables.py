"""Tables of metrics for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_SHOWN = ("hr@5", "hr@10", "hr@20", "ndcg@5", "ndcg@10", "ndcg@20", "mrr@10")
_LEGEND = (
    "hr@k: share of examples whose target is among the first k; ndcg@k, mrr@k: the same, a\n"
    "target counting the more the higher it stands"
)
_ROWS = {
    "popularity": "everyone gets the most popular items",
    "popular now": "the same, of the newest training clicks",
    "last again": "the history from its end",
    "bought together": "by what was taken together with the history in training",
    "alike by text": "by the likeness of texts to those of the history",
}
"""What rows of a table are whose name does not say it."""

Metrics = Mapping[str, float]


def metrics_table(
    sections: Mapping[str, Mapping[str, Metrics]], names: Sequence[str] = _SHOWN
) -> str:
    """Metrics by cut-off in columns, at most 80 wide by default, with a legend below.

    Args:
        sections: by title, metrics by whose they are; a section of none has its title alone.
        names: of the metrics.
    """
    lines = [f"{'':<17}" + "".join(f"{name:>9}" for name in names)]
    shown = {whose for rows in sections.values() for whose in rows}
    legend = [f"{whose}: {meaning}" for whose, meaning in _ROWS.items() if whose in shown]
    for title, rows in sections.items():
        lines.append(title)
        for whose, metrics in rows.items():
            lines.append(f"  {whose:<15}" + "".join(f"{metrics[name]:>9.4f}" for name in names))
    return "\n".join([*lines, _LEGEND, *legend])


def by_seen_items(results: Mapping[str, Any]) -> dict[str, Mapping[str, Metrics]]:
    """Test metrics of a run by whose they are: its own, its model's alone where it ranks with
    neighbors, popularity's, and those of other baselines, which may have them under one rule."""
    found = {"this run": results["test_by_seen_items"]}
    if "model_alone" in results:
        found["model alone"] = results["model_alone"]["test_by_seen_items"]
    found["popularity"] = results["popularity_by_seen_items"]
    others = results.get("baselines", {})
    return {**found, **{name: one["by_seen_items"] for name, one in others.items()}}


def results_table(results: Mapping[str, Any]) -> str:
    """Test metrics of a run, its ``results.json``, beside those of popularity."""
    chosen = results["seen_items"]
    sections = {
        f"seen items {seen}{', as this run recommends' if seen == chosen else ''}": {
            whose: metrics[seen]
            for whose, metrics in by_seen_items(results).items()
            if seen in metrics
        }
        for seen in sorted(results["test_by_seen_items"], key=chosen.__ne__)
    }
    sample = sample_words(results.get("samples", {}).get("test"))
    title = (
        f"test, {results['protocol']}: {results['examples']:,} examples{sample}, the whole catalog "
        "ranked" + (f" by epoch {results['best_epoch']:g}" if results["epochs"] else "")
    )
    return f"{title}\n{metrics_table(sections)}"


def sample_words(sample: Mapping[str, Any] | None) -> str:
    """After a number of examples, of which users they are; nothing where they are all users'."""
    if sample is None:
        return ""
    return f" of {sample['users']:,} users (a sample of {sample['of']:,})"


OF_LISTS = {
    "coverage": "share of the catalog in a list",
    "gini": "0, all items alike, to 1, one alone",
    "popularity": "training clicks of a recommended item",
    "novelty": "bits; high: rare items",
    "diversity": "1 - cosine of the texts within a list",
}
"""What metrics of lists mean."""


def lists_table(found: Mapping[str, Metrics]) -> str:
    """What recommended lists are like, of :meth:`alphafuse_ext.Recommender.list_metrics`."""
    first = next(iter(found.values()))
    names = [name for name in first if "@" in name]
    kinds = [name.partition("@")[0] for name in names]
    lines = [f"lists of {names[0].partition('@')[2]}, {first['lists']:,} of them"]
    lines.append(f"{'':<17}" + "".join(f"{kind:>12}" for kind in kinds))
    for whose, values in found.items():
        lines.append(f"  {whose:<15}" + "".join(f"{_four(values.get(name)):>12}" for name in names))
    said = [f"{kind}: {OF_LISTS[kind]}" for kind in kinds]
    pairs = ["; ".join(said[place : place + 2]) for place in range(0, len(said), 2)]
    return "\n".join([*lines, *pairs])


def _four(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def own_metrics_line(metrics: Metrics) -> str:
    """Metrics of one's own, on a line."""
    return "your own: " + ", ".join(f"{name} {value:.4f}" for name, value in metrics.items())


def names_at(cutoffs: Sequence[int]) -> tuple[str, ...]:
    """The metrics of some cut-offs, as a table has them."""
    return tuple(f"{name}@{k}" for name in ("hr", "ndcg", "mrr") for k in cutoffs)


def group_sections(
    ours: Mapping[str, Any], popularity: Mapping[str, Any], seen_items: str
) -> dict[str, dict[str, Metrics]]:
    """Sections of :func:`metrics_table`, of two :func:`long_tail_report` of the same examples."""
    users = f"histories of {ours['head_user_length']} items and more"
    items = f"{ours['head_item_count']} training interactions and more"
    meaning = {
        "head users": users,
        "tail users": "shorter histories",
        "head items": f"targets of {items}",
        "tail items": "targets of fewer",
        "cold items": "targets that training has not seen",
    }
    beside = popularity["metrics_by_seen_items"][seen_items]
    sections: dict[str, dict[str, Metrics]] = {}
    for name, metrics in ours["metrics_by_seen_items"][seen_items].items():
        count = metrics["examples"]
        rows = {"this run": metrics, "popularity": beside[name]} if count else {}
        sections[f"{name}, {meaning[name]}: {count:,} examples"] = rows
    return sections
