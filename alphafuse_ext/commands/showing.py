"""Recommendations to read, in a terminal."""

from __future__ import annotations

import shlex
import typing

import numpy as np
import pandas as pd

from alphafuse_ext.serving.recommender import Recommender


def show_some(recommender: Recommender) -> None:
    """Recommendations for three users with histories of middling length."""
    from alphafuse_ext.reports.run import median_users  # matplotlib is slow to import

    users = recommender.interactions.users[median_users(recommender, 3)].tolist()
    print(
        f"\n{len(users)} users: the last items that each had, and what is recommended "
        "(place, score, item)"
    )
    show(recommender, recommender.recommend(users, k=min(5, len(recommender.items))))
    run, user = shlex.quote(str(recommender.run.path)), shlex.quote(str(users[0]))
    print(f"\nmore: alphafuse recommend {run} --users {user}; alphafuse evaluate {run}")


def show(
    recommender: Recommender, frame: pd.DataFrame, histories: list[list[str]] | None = None
) -> None:
    """Print recommendations, each query's below the newest items of its history."""
    items, clicks = recommender.items, recommender.interactions
    titles = frame["title"] if "title" in frame else [""] * len(frame)
    names = [name(*one) for one in zip(frame["item"], titles, strict=True)]
    for asked, rows in frame.assign(name=names).groupby("user", sort=False):
        if histories is None:
            place = clicks.find_users([asked])[0]
            known = clicks.sequences[place] if place >= 0 else np.zeros(0, np.int64)
        else:
            found = clicks.find_items(histories[typing.cast(int, asked)])
            known = found[found >= 0]
        print(f"\n{'user' if histories is None else 'history'} {asked}")
        for item in known[-5:]:
            title = items.titles[item] if items.titles is not None else ""
            print(f"      had  {name(items.tokens[item], title)}")
        sources = [f"  ({one})" for one in rows["from"]] if "from" in rows else [""] * len(rows)
        for best, source in zip(rows.itertuples(), sources, strict=True):
            print(f"  {best.rank:>3}. {best.score:>7.3f}  {best.name}{source}")


def name(token: object, title: str) -> str:
    return f"{token}  {title}"[:100].rstrip()
