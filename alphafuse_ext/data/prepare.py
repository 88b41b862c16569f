"""Convert a published data set to the two files that `alphafuse train` reads."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from alphafuse_ext.checks import invalid
from alphafuse_ext.data.interactions import Interactions, read_interactions
from alphafuse_ext.data.items import Items, read_items
from alphafuse_ext.data.published import PUBLISHED, read_ratings, read_texts
from alphafuse_ext.data.split import k_core
from alphafuse_ext.data.summary import are_nanoseconds, summarize
from alphafuse_ext.files import atomic_folder, atomic_path, check_writable, write_json
from alphafuse_ext.logs import Log, logged

REPEATS = ("all", "first", "last")


class Prepared(NamedTuple):
    """What `prepare` wrote."""

    interactions: Interactions
    items: Items
    report: dict[str, Any]
    """`dataset`, `files`; `steps`: after each, how many interactions, users and items were left;
    `summary`, of `alphafuse_ext.data.summary.summarize`."""


def prepare(
    dataset: str,
    interactions: str | os.PathLike[str],
    items: str | os.PathLike[str] | None,
    output: str | os.PathLike[str],
    min_rating: float | None = None,
    repeats: str = "all",
    core: int = 5,
    require_text: bool = False,
    log: Log | None = None,
    finish: Callable[[Path, Prepared], None] | None = None,
) -> Prepared:
    """Convert the files of a published data set to a folder to train on.

    Args:
        dataset: of `alphafuse_ext.data.published.PUBLISHED`.
        interactions: the file of its reviews or ratings, compressed or not; JSON lines are read
            line by line, so that the file may be larger than memory.
        items: the file of its items' texts; None where there is none.
        output: the folder to make: `interactions.parquet` (`user_id`, `item_id`, `timestamp`, in
            the order of time), `items.parquet` (`item_id` and texts) and `prepared.json`.
        min_rating: lower ratings are left out.
        repeats: of a user's interactions with one item, keep `"all"`, the `"first"` or the
            `"last"`.
        core: users and items of fewer interactions are dropped, repeatedly; 1 for none.
        require_text: leave items out that have no text.
        log: called with a line of counts for each step.
        finish: given the folder before it takes its name, to add files, and what is returned.

    Raises:
        FileNotFoundError, FileExistsError: there is no such file, or something at `output`.
        ValueError: an unknown data set or setting, an unreadable file, or nothing is left.
    """
    log = logged(log)
    if dataset not in PUBLISHED:
        raise invalid("dataset", repr(dataset), ", ".join(PUBLISHED))
    if repeats not in REPEATS:
        raise invalid("repeats", repr(repeats), ", ".join(REPEATS))
    if isinstance(core, bool) or not isinstance(core, (int, np.integer)) or core < 1:
        raise invalid("core", repr(core), "an integer >= 1")
    if require_text and items is None:
        raise invalid("require_text", True, "False, or a file of items")
    for name, path in (("interactions", interactions), ("items", items)):
        if path is not None and not Path(path).is_file():
            found = f"{path}, which is no file"
            raise invalid(name, found, "an existing file", FileNotFoundError)
    if os.path.lexists(output):
        found = f"{output}, which exists"
        raise invalid("output", found, "a folder that does not exist yet", FileExistsError)
    check_writable("output", output)

    steps: list[dict[str, Any]] = []

    def note(step: str, clicks: int, users: int, goods: int) -> None:
        steps.append({"step": step, "interactions": clicks, "users": users, "items": goods})
        if log is not None:
            log(f"{step}: {clicks:,} interactions, {users:,} users, {goods:,} items")

    frame = read_ratings(dataset, Path(interactions))
    if min_rating is not None and "rating" not in frame:
        found = f"{min_rating}, of {dataset}, which has no ratings"
        raise invalid("min_rating", found, "None")

    def keep(step: str, rows: pd.Series) -> None:
        nonlocal frame
        frame = frame[rows]
        if frame.empty:
            raise invalid("interactions", f"{interactions}, of which nothing is {step}", "some")
        note(step, len(frame), frame["user_id"].nunique(), frame["item_id"].nunique())

    keep("in the file", pd.Series(True, frame.index))
    complete = frame[["user_id", "item_id", "timestamp"]].notna().all(axis=1)
    if not complete.all():
        keep("with user, item and time", complete)
    if min_rating is not None:
        keep(f"rated {min_rating:g} or more", frame["rating"].astype(float) >= min_rating)
    clicks = read_interactions(
        frame[["user_id", "item_id", "timestamp"]], None, "user_id", "item_id", "timestamp"
    )
    if repeats != "all":
        clicks = _once(clicks, repeats)
        note(f"the {repeats} of each user and item", *_sizes(clicks))
    clicks = _core(clicks, core, note)

    texts = pd.DataFrame(index=pd.Index(clicks.items, name="item_id"))
    if items is not None:
        found, twice = read_texts(dataset, Path(items), texts.index)
        if not len(found):
            allowed = f"items of {interactions}"
            raise invalid("items", f"{items}, which has none of {len(texts)} items", allowed)
        texts = found.reindex(texts.index, fill_value="")
        if log is not None and twice:
            log(f"items: {twice:,} lines of items that had come before, left out")
        if require_text:
            filled = (texts != "").any(axis=1).to_numpy()
            if not filled.all():
                clicks = _select(clicks, filled[clicks.sequences.values])
                clicks, _ = k_core(clicks, 1)
                note("of items with a text", *_sizes(clicks))
                clicks = _core(clicks, core, note)
                texts = texts.loc[clicks.items]
    table = texts.reset_index()
    catalog = read_items(table, "item_id", [name for name in table if name != "item_id"])
    clicks = Interactions(clicks.users, catalog.tokens, clicks.sequences, clicks.timestamps)

    report = {
        "dataset": dataset,
        "files": {
            "interactions": str(interactions),
            "items": None if items is None else str(items),
        },
        "steps": steps,
        "summary": summarize(clicks, catalog),
    }
    prepared = Prepared(clicks, catalog, report)
    with atomic_folder(output) as folder:
        for name, written in (("interactions", _rows(clicks)), ("items", table)):
            with atomic_path(folder / f"{name}.parquet") as path:
                written.to_parquet(path, index=False)
        write_json(folder / "prepared.json", report)
        if finish is not None:
            finish(folder, prepared)
    return prepared


def _sizes(clicks: Interactions) -> tuple[int, int, int]:
    return len(clicks), clicks.num_users, clicks.num_items


def _core(clicks: Interactions, core: int, note: Any) -> Interactions:
    left, _ = k_core(clicks, core)
    if len(left) < len(clicks):
        note(f"{core} or more of each user and item", *_sizes(left))
    return left


def _once(clicks: Interactions, which: str) -> Interactions:
    """One interaction of each user and item."""
    users = np.repeat(np.arange(clicks.num_users), clicks.sequences.lengths)
    pairs = pd.Series(users * np.int64(clicks.num_items) + clicks.sequences.values)
    return _select(clicks, ~pairs.duplicated(keep="first" if which == "first" else "last"))


def _select(clicks: Interactions, kept: Any) -> Interactions:
    """Some interactions, of the same users and items."""
    kept = np.asarray(kept)
    before = np.concatenate([[0], np.cumsum(kept)])
    sequences = type(clicks.sequences)(
        before[clicks.sequences.offsets], clicks.sequences.values[kept]
    )
    times = None if clicks.timestamps is None else clicks.timestamps[kept]
    return Interactions(clicks.users, clicks.items, sequences, times)


def _rows(clicks: Interactions) -> pd.DataFrame:
    """A row for each interaction, in the order of time."""
    assert clicks.timestamps is not None, "published data sets have times"
    users = np.repeat(clicks.users, clicks.sequences.lengths)
    order = np.argsort(clicks.timestamps, kind="stable")
    times = clicks.timestamps[order]
    if are_nanoseconds(times):  # dates stay dates
        times = times.astype("datetime64[ns]")
    return pd.DataFrame(
        {
            "user_id": users[order],
            "item_id": clicks.items[clicks.sequences.values[order]],
            "timestamp": times,
        }
    )
