"""Merging new interactions with known ones."""

from __future__ import annotations

import numpy as np
import pandas as pd

from alphafuse_ext.checks import invalid
from alphafuse_ext.data.ids import IdIndex
from alphafuse_ext.data.interactions import Interactions, joined_ids
from alphafuse_ext.data.sequences import IntArray, Sequences
from alphafuse_ext.logs import Log, logged

# Times in another unit (seconds, milliseconds, nanoseconds) differ by such a factor or more.
_OTHER_UNIT = 500.0


def merge_interactions(
    known: Interactions, new: Interactions, log: Log | None = None
) -> Interactions:
    """Both, in order of time within each user; known users keep their ids, new ones follow.

    With times, an interaction with a known time is not added twice, so new data may include the
    old. Without times, all new interactions are appended.

    Args:
        known, new: of the same catalog.
        log: called with a line of counts.

    Raises:
        TypeError: user ids of another type.
        ValueError: times in one of the two only, or in another unit; or a given split.
    """
    log = logged(log)
    if known.parts is not None or new.parts is not None:
        found = "interactions with a given split"
        raise invalid("interactions", found, "none with one: fit anew, with a new split")
    if not np.array_equal(known.items, new.items):
        raise invalid("new", "interactions of another catalog", "of the same one")
    if (known.weights is None) != (new.weights is None):
        found = f"weights in the {'new' if known.weights is None else 'known'} interactions alone"
        raise invalid("weight_column", found, "weights in both or in neither")
    _check_times(known, new)
    users = joined_ids("interactions", known.users, new.users)
    places = IdIndex(users).find("interactions", new.users)
    rows = pd.concat(
        [
            _rows(known, np.arange(known.num_users)),
            _rows(new, places),
        ],
        ignore_index=True,
        keys=None,
    )
    rows["new"] = np.arange(len(rows)) >= len(known)
    repeated = 0
    if known.timestamps is not None:
        keys = ["user", "item", "time"]
        # Within one source repeats are kept: only what the other one has is left out.
        is_known = pd.MultiIndex.from_frame(rows[keys]).isin(
            pd.MultiIndex.from_frame(rows.loc[~rows["new"], keys])
        )
        rows = rows[~(rows["new"].to_numpy() & is_known)]
        repeated = len(known) + len(new) - len(rows)
        rows = rows.sort_values(["user", "time"], kind="stable")
    else:
        rows = rows.sort_values("user", kind="stable")
    lengths = np.bincount(rows["user"], minlength=len(users))
    sequences = Sequences(np.concatenate([[0], np.cumsum(lengths)]), rows["item"].to_numpy())
    times = None if known.timestamps is None else rows["time"].to_numpy()
    weights = None if known.weights is None else rows["weight"].to_numpy(np.float32)
    if log is not None:
        log(
            f"interactions: {len(known):,} known, {len(rows) - len(known):,} new ones, of "
            f"{len(users) - known.num_users:,} new users among them; {repeated:,} that were known "
            "already"
        )
    return Interactions(users, known.items, sequences, times, weights=weights)


def _rows(interactions: Interactions, users: IntArray) -> pd.DataFrame:
    frame = pd.DataFrame({"user": np.repeat(users, interactions.sequences.lengths)})
    frame["item"] = interactions.sequences.values
    if interactions.timestamps is not None:
        frame["time"] = interactions.timestamps
    if interactions.weights is not None:
        frame["weight"] = interactions.weights
    return frame


def _check_times(known: Interactions, new: Interactions) -> None:
    has = [one.timestamps is not None for one in (known, new)]
    if has[0] != has[1]:
        words = ("with times", "without")
        found = f"new interactions {words[not has[1]]}, behind others {words[not has[0]]}"
        raise invalid("interactions", found, "times in both or in neither")
    if known.timestamps is None or new.timestamps is None or not len(new):
        return
    then, now = (float(np.median(np.abs(t))) for t in (known.timestamps, new.timestamps))
    if min(then, now) > 0 and not 1 / _OTHER_UNIT < now / then < _OTHER_UNIT:
        found = f"times of about {now:g} in new interactions, {then:g} in those that are known"
        raise invalid("interactions", found, "times in one unit")
