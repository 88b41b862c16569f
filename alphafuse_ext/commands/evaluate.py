"""``alphafuse evaluate``: metrics of a trained run."""

from __future__ import annotations

import argparse
import json
import warnings
from typing import Any

from alphafuse_ext.choices import TIE_RULES
from alphafuse_ext.commands.options import add_device, add_keep_seen, add_neighbors, add_run
from alphafuse_ext.metrics import CUTOFFS


def add_evaluate(evaluate: argparse.ArgumentParser) -> None:
    evaluate.set_defaults(command=_evaluate)
    evaluate.add_argument(
        "--split",
        choices=("validation", "test"),
        default="test",
        help="what is evaluated (default: test)",
    )
    evaluate.add_argument(
        "--ties",
        choices=TIE_RULES,
        default="id",
        help="order of items with equal scores: by id, as in recommendations (default), or the "
        "mean over all their orders",
    )
    evaluate.add_argument(
        "--groups",
        action="store_true",
        help="also by group: head and tail users (by history length), head, tail and cold items "
        "(by training interactions)",
    )
    evaluate.add_argument(
        "--cutoffs",
        type=int,
        nargs="+",
        metavar="K",
        help=f"the values of k of HR@k, NDCG@k and MRR@k (default: {' '.join(map(str, CUTOFFS))})",
    )
    evaluate.add_argument(
        "--candidates",
        type=int,
        metavar="N",
        help="also rank each target among N sampled unseen items alone, as older papers did",
    )
    evaluate.add_argument(
        "--json", action="store_true", help="print all metrics as JSON instead of a table"
    )
    add_keep_seen(evaluate, "rank")
    add_neighbors(evaluate)
    add_device(evaluate)
    add_run(evaluate)


def _evaluate(options: argparse.Namespace) -> None:
    from alphafuse_ext.evaluation.tables import (
        group_sections,
        lists_table,
        metrics_table,
        names_at,
        own_metrics_line,
        sample_words,
    )
    from alphafuse_ext.serving.recommender import Recommender

    recommender = Recommender.load(options.run, options.device)
    split = options.split
    how = split, options.keep_seen, options.ties
    cutoffs = options.cutoffs or CUTOFFS
    with_lists: dict[str, Any] = {"neighbors": options.neighbors, "cutoffs": cutoffs}
    evaluation = recommender.evaluate_in_detail(*how, **with_lists)
    mixed_with = recommender.ranking_neighbors(options.neighbors)
    for line in evaluation.warnings():
        warnings.warn(line, stacklevel=1)
    protocol = recommender.config.protocol
    groups = recommender.long_tail(evaluation, split) if options.groups else None
    own_metrics = recommender.own_metrics(split, options.keep_seen, options.neighbors)
    sample = recommender.split.samples.get(split)
    lists = recommender.list_metrics(split, 10, options.keep_seen, options.neighbors)
    sampled = None
    if options.candidates is not None:
        ranked_by = (split, options.keep_seen, options.neighbors)
        sampled = recommender.evaluate_sampled(options.candidates, *ranked_by, cutoffs=cutoffs)
    if options.json:
        report = {"protocol": protocol, "split": split, **evaluation.to_dict()}
        report |= {"own_metrics": own_metrics} if own_metrics else {}
        report |= {"sample": sample} if sample else {}
        report |= {"lists": lists}
        report |= {"sampled_candidates": sampled} if sampled is not None else {}
        report |= {"neighbors": mixed_with.weights()} if mixed_with is not None else {}
        print(json.dumps(report if groups is None else {**report, "groups": groups}, indent=2))
        return
    popularity = recommender.popularity(*how, cutoffs=cutoffs)
    seen_items = evaluation.seen_items
    ties = ""
    if options.ties == "mean":
        ties = ", ties: mean over all orders" + (" (groups: by id)" if options.groups else "")
    print(
        f"{split}, {protocol}: {evaluation.examples:,} examples{sample_words(sample)}, the whole "
        f"catalog ranked, seen items {seen_items}{ties}"
    )
    alone = recommender.neighbors is not None and mixed_with is None
    every = {"model alone" if alone else "this run": evaluation.metrics}
    if mixed_with is not None and recommender.config.trained:
        every["model alone"] = recommender.evaluate_in_detail(
            *how, neighbors=False, cutoffs=cutoffs
        ).metrics
    every["popularity"] = popularity.metrics
    for name, one in recommender.baselines(*how, cutoffs=cutoffs).items():
        every[name] = one["by_seen_items"][seen_items]
    apart: dict[str, Any] = {}
    if groups is not None:
        beside = recommender.long_tail(popularity, split)
        apart = group_sections(groups, beside, seen_items)
    if sampled is not None:
        apart[f"among {options.candidates:,} sampled items, not the whole catalog"] = sampled
    names = {} if options.cutoffs is None else {"names": names_at(cutoffs)}
    print(metrics_table({"all examples": every, **apart}, **names))
    print(lists_table(lists))
    if own_metrics:
        print(own_metrics_line(own_metrics))
    print("all cut-offs, with seen items excluded and ranked: --json")
