"""Evaluation protocols: training sequences, and validation and test examples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from alphafuse_ext.checks import invalid
from alphafuse_ext.config.protocol import PROTOCOLS, Shares
from alphafuse_ext.data.interactions import PARTS, Interactions
from alphafuse_ext.data.sequences import IntArray, Sequences, Slices, count_up
from alphafuse_ext.data.summary import as_dates


@dataclass(frozen=True, eq=False)
class Examples:
    """Histories with one target each.

    Attributes:
        users: user ids, int64, shape `(E,)`.
        histories: `E` sequences of item ids, untruncated and never empty (a model truncates them
            when it pads).
        targets: the next item, int64, shape `(E,)`.
        seen: the items excluded from the ranking if seen items are, `E` sequences. A target may be
            among them.
    """

    users: IntArray
    histories: Slices
    targets: IntArray
    seen: Slices

    def __post_init__(self) -> None:
        counts = {len(self.users), len(self.histories), len(self.targets), len(self.seen)}
        if len(counts) > 1:
            raise invalid(
                "users, histories, targets, seen", f"lengths {sorted(counts)}", "one length"
            )
        if np.any(self.histories.lengths == 0):
            raise invalid("histories", "an empty history", "at least one item in each")

    def __len__(self) -> int:
        return len(self.targets)

    def select(self, index: IntArray) -> Examples:
        """Some of the examples, in the order of ``index``."""
        return Examples(
            self.users[index],
            self.histories.select(index),
            self.targets[index],
            self.seen.select(index),
        )

    def targets_seen(self) -> npt.NDArray[np.bool_]:
        """Which targets are among `seen`: they are never recommended if seen items are excluded."""
        found = np.zeros(len(self), dtype=bool)
        for start in range(0, len(self), 4096):  # prefixes share their values: not all at once
            index = np.arange(start, min(start + 4096, len(self)))
            seen = self.seen.select(index)
            rows = np.repeat(index, seen.lengths)
            found[rows[seen.values == self.targets[rows]]] = True
        return found


@dataclass(frozen=True, eq=False)
class Split:
    """Training sequences, validation and test examples of one protocol.

    Attributes:
        name: of the protocol.
        train: one sequence of item ids per training user, never empty, in the order of the users.
        validation: examples for model selection.
        test: examples for the final evaluation.
        report: counts, including all users and interactions that are not split or not trained on.
        train_lengths: how many interactions of each user are trained on, the first ones, int64,
            shape `(users,)`; 0 of one who is not.
        train_baskets, train_weights: of each training item, aligned with `train.values`, what
            :class:`NextItemRows` takes; None: there are none.
    """

    name: str
    train: Sequences
    validation: Examples
    test: Examples
    report: dict[str, int | str]
    train_lengths: IntArray
    train_baskets: IntArray | None = None
    train_weights: npt.NDArray[np.float32] | None = None

    @property
    def samples(self) -> dict[str, dict[str, int]]:
        """Of validation and test, where some ``users`` were drawn ``of`` all, by a ``seed``."""
        kinds = {name: f"{name}_sample_" for name in ("validation", "test")}
        found = {
            name: {key: self.report.get(before + key) for key in ("users", "of", "seed")}
            for name, before in kinds.items()
        }
        return {name: sample for name, sample in found.items() if sample["users"] is not None}  # type: ignore[misc]

    def train_item_counts(self, num_items: int) -> IntArray:
        """Training interactions of each item, int64, shape `(num_items,)`.

        Used for popularity and frequency weights, so that these do not depend on held-out items.
        """
        return _item_counts(self.train, num_items)


def split_interactions(
    interactions: Interactions,
    protocol: str = "leave-one-out",
    validation_share: float = Shares.validation_share,
    test_share: float = Shares.test_share,
    seed: int = 0,
    baskets: bool = False,
) -> Split:
    """The split of a protocol by its name.

    Args:
        protocol: one of ``PROTOCOLS``.
        validation_share, test_share: see :func:`cold_start_users` and :func:`time_split`; not used
            by leave-one-out.
        seed: see :func:`cold_start_users`; not used by the others.
        baskets: a user's interactions at one time are held out together, and the history of each
            ends before all of them: "the last item" is the last basket then.

    Raises:
        ValueError: an unknown protocol, or what that protocol's function refuses.
    """
    if interactions.parts is not None and protocol not in ("given", "none"):
        raise invalid("protocol", repr(protocol), "given, or none: the data come with a split")
    begins = interactions.baskets() if baskets else None
    if protocol == "leave-one-out":
        return leave_one_out(interactions, begins)
    if protocol == "cold-start-users":
        return cold_start_users(interactions, validation_share, test_share, seed, begins)
    if protocol == "time":
        return time_split(interactions, validation_share, test_share, begins)
    if protocol == "given":
        return given_split(interactions, begins)
    if protocol == "none":
        return whole(interactions, begins)
    raise invalid("protocol", repr(protocol), f"one of {', '.join(PROTOCOLS)}")


def leave_one_out(interactions: Interactions, baskets: IntArray | None = None) -> Split:
    """Per user: the last item for test, the one before it for validation, the rest for training.

    The history of a test target includes the validation item. A user with fewer than three
    interactions is not split: all of them are for training.

    Args:
        baskets: see :meth:`Interactions.baskets`; what is said of items is then of baskets, of
            which each item is an example.

    Raises:
        ValueError: no user has three interactions.
    """
    sequences = interactions.sequences
    lengths = sequences.lengths
    if baskets is not None:
        return _leave_one_basket_out(interactions, baskets)
    long_enough = lengths >= 3
    users = np.flatnonzero(long_enough)
    if len(users) == 0:
        found = f"{len(lengths)} users of at most {lengths.max(initial=0)} interactions"
        raise invalid("interactions", found, "a user with at least 3")
    train_lengths = np.where(long_enough, lengths - 2, lengths)
    examples = [_examples(sequences, users, lengths[users] - back) for back in (2, 1)]
    counts = {"users_split": len(users), "users_too_short": int(np.sum(~long_enough))}
    return _split("leave-one-out", interactions, train_lengths, examples, counts)


def _leave_one_basket_out(interactions: Interactions, baskets: IntArray) -> Split:
    sequences = interactions.sequences
    rows = np.repeat(np.arange(len(sequences)), sequences.lengths)
    begins = baskets == count_up(sequences.lengths)
    counts = np.bincount(rows, begins, minlength=len(sequences)).astype(np.int64)
    numbers = np.cumsum(begins) - np.repeat(np.cumsum(counts) - counts, sequences.lengths)
    from_end = counts[rows] - numbers  # 0: of the last basket
    long_enough = counts >= 3
    if not long_enough.any():
        found = f"{len(counts)} users of at most {counts.max(initial=0)} baskets"
        raise invalid("interactions", found, "a user with at least 3")
    held_out = np.bincount(rows[from_end <= 1], minlength=len(sequences))
    train_lengths = sequences.lengths - np.where(long_enough, held_out, 0)
    examples = [
        examples_with_history(name, sequences, inside, "users of 3 baskets", baskets)
        for name, inside in (
            ("validation", (from_end == 1) & long_enough[rows]),
            ("test", (from_end == 0) & long_enough[rows]),
        )
    ]
    report = {
        "users_split": int(long_enough.sum()),
        "users_too_short": int(np.sum(~long_enough)),
        "baskets": int(counts.sum()),
    }
    return _split("leave-one-out", interactions, train_lengths, examples, report, baskets)


def cold_start_users(
    interactions: Interactions,
    validation_share: float = Shares.validation_share,
    test_share: float = Shares.test_share,
    seed: int = 0,
    baskets: IntArray | None = None,
) -> Split:
    """Users that are not trained on: each of their prefixes is an example.

    Users are shuffled and divided into test, validation and training users. Training users keep
    their whole sequences; a validation or test user of `L` interactions gives `L - 1` examples, and
    one of a single interaction gives none.

    Args:
        validation_share, test_share: of the users, above 0 and together below 1; 8:1:1 by default.
        seed: of the shuffling.
        baskets: see :meth:`Interactions.baskets`; items of a user's first are no targets.

    Raises:
        ValueError: shares out of range, or a split without examples.
    """
    Shares(validation_share, test_share)  # which checks them
    num_users, lengths = interactions.num_users, interactions.sequences.lengths
    shuffled = np.random.default_rng(seed).permutation(num_users)
    num_test = max(1, round(test_share * num_users))
    num_validation = max(1, round(validation_share * num_users))
    test_users = np.sort(shuffled[:num_test])
    validation_users = np.sort(shuffled[num_test : num_test + num_validation])
    train_lengths = lengths.copy()
    train_lengths[test_users] = train_lengths[validation_users] = 0
    counts: dict[str, int | str] = {"split_seed": seed}
    parts = {"validation": validation_users, "test": test_users}
    examples = []
    for name, users in parts.items():
        prefixes = np.maximum(lengths[users] - 1, 0)
        rows = np.repeat(users, prefixes)
        counts[f"{name}_users"] = len(users)
        counts[f"{name}_users_of_one_interaction"] = int(np.sum(lengths[users] < 2))
        if len(rows) == 0:
            found = f"{num_users} users, of whom no {name} user has two interactions"
            raise invalid("interactions", found, "more users with at least two interactions")
        if baskets is None:
            examples.append(_examples(interactions.sequences, rows, count_up(prefixes) + 1))
        else:
            inside = np.repeat(np.isin(np.arange(num_users), users), lengths)
            allowed = "users with two baskets"
            found_examples = (name, interactions.sequences, inside, allowed, baskets)
            examples.append(examples_with_history(*found_examples))
    if not train_lengths.any():
        raise invalid("interactions", f"{num_users} users", "some left to train on")
    return _split("cold-start-users", interactions, train_lengths, examples, counts, baskets)


def time_split(
    interactions: Interactions,
    validation_share: float = Shares.validation_share,
    test_share: float = Shares.test_share,
    baskets: IntArray | None = None,
) -> Split:
    """Two points in time for all users: everything before the first is for training, as in
        production.

    Every interaction from the first point on is a validation target, every one from the second on
    a test target; its history is all that its user did before it. A user's first interaction
    has no history and is not a target.

    Args:
        validation_share, test_share: of the interactions, above 0 and together below 1; they fix
            the two points. Interactions at the same time stay together, so splits may be larger.
        baskets: see :meth:`Interactions.baskets`; a user's first has no history.

    Raises:
        ValueError: shares out of range; no times, or times that are not comparable between users;
            too few distinct times; a split without examples.
    """
    Shares(validation_share, test_share)  # which checks them
    times, sequences = comparable_times(interactions), interactions.sequences
    if times is None:
        counted = "times that only count each user's interactions"
        found = "no time column" if interactions.timestamps is None else counted
        allowed = "times that are comparable between users, for the protocol 'time'"
        raise invalid("interactions", found, allowed)
    rows = np.repeat(np.arange(len(sequences)), sequences.lengths)
    places = count_up(sequences.lengths)

    in_order = np.sort(times)
    last = len(in_order) - 1
    points = [
        in_order[min(last, round((1 - share) * len(in_order)))]
        for share in (validation_share + test_share, test_share)
    ]
    if points[0] == in_order[0] or points[0] == points[1]:
        found = f"points in time {points[0]} and {points[1]}, the earliest time {in_order[0]}"
        raise invalid("interactions", found, "times that the shares can be parted at")
    train_lengths = np.bincount(rows[times < points[0]], minlength=len(sequences))
    counts: dict[str, int | str] = {}
    examples = []
    for name, begin, end in (("validation", points[0], points[1]), ("test", points[1], None)):
        inside = times >= begin if end is None else (times >= begin) & (times < end)
        counts[f"{name}_from"] = begin.item()
        counts[f"{name}_interactions"] = int(inside.sum())
        first = (places if baskets is None else baskets) == 0
        counts[f"{name}_interactions_without_history"] = int(np.sum(inside & first))
        allowed = "users active before and after the points in time"
        examples.append(examples_with_history(name, sequences, inside, allowed, baskets))
    return _split("time", interactions, train_lengths, examples, counts, baskets)


def comparable_times(interactions: Interactions) -> npt.NDArray[Any] | None:
    """The times of interactions; ``None``: there are none, or they count each user's own."""
    times, places = interactions.timestamps, count_up(interactions.sequences.lengths)
    if times is None or any(np.array_equal(times, places + first) for first in (0, 1)):
        return None
    return times


def given_split(interactions: Interactions, baskets: IntArray | None = None) -> Split:
    """The split that came with the interactions, in three files or by a column.

    Every validation and every test interaction is a target; its history is all that its user did
    before it, in training, validation and test in that order. A user's first interaction has no
    history and is not a target, so that users apart, who are not trained on, can be given as well.

    Args:
        baskets: see :meth:`Interactions.baskets`; a user's first has no history.

    Raises:
        ValueError: interactions without a split, or a split without examples or training
            interactions.
    """
    sequences, parts = interactions.sequences, interactions.parts
    if parts is None:
        allowed = "files for validation and test, or a split column, for the protocol 'given'"
        raise invalid("interactions", "no split of their own", allowed)
    rows = np.repeat(np.arange(len(sequences)), sequences.lengths)
    train_lengths = np.bincount(rows[parts == 0], minlength=len(sequences))
    if not train_lengths.any():
        raise invalid("interactions", "a split without training interactions", "some to train on")
    counts: dict[str, int | str] = {}
    examples = []
    for part, name in enumerate(PARTS[1:], start=1):
        inside = parts == part
        counts[f"{name}_interactions"] = int(inside.sum())
        first = (count_up(sequences.lengths) if baskets is None else baskets) == 0
        counts[f"{name}_interactions_without_history"] = int(np.sum(inside & first))
        allowed = "validation and test interactions of users with others before them"
        examples.append(examples_with_history(name, sequences, inside, allowed, baskets))
    return _split("given", interactions, train_lengths, examples, counts, baskets)


def examples_with_history(
    name: str,
    sequences: Sequences,
    inside: npt.NDArray[np.bool_],
    allowed: str,
    baskets: IntArray | None = None,
) -> Examples:
    """An example for each interaction that is ``inside``, but for users' first.

    Args:
        name: of the targets, for messages.
        sequences: of all interactions.
        inside: whether each is a target.
        allowed: what would have had an example, for messages.
        baskets: where the history of each ends, see :meth:`Interactions.baskets`; ``None``: where
            the item itself is.
    """
    rows = np.repeat(np.arange(len(sequences)), sequences.lengths)
    places = count_up(sequences.lengths)
    lengths = places if baskets is None else baskets
    chosen = np.flatnonzero(inside & (lengths > 0))
    if len(chosen) == 0:
        raise invalid("interactions", f"no user with a history at a {name} target", allowed)
    return _examples(sequences, rows[chosen], places[chosen], lengths[chosen])


def whole(interactions: Interactions, baskets: IntArray | None = None) -> Split:
    """Train on everything, without validation and test: for a model with known settings."""
    nobody = np.zeros(0, dtype=np.int64)
    examples = [_examples(interactions.sequences, nobody, nobody) for _ in range(2)]
    return _split("none", interactions, interactions.sequences.lengths, examples, {}, baskets)


def with_samples(split: Split, validation_users: int, test_users: int, seed: int) -> Split:
    """The split with the validation and test examples of some users, drawn without replacement.

    Args:
        validation_users, test_users: how many; 0, and as many as there are or more: all.
        seed: of the draws; which users they are does not depend on the other part.

    Returns:
        The split, whose report names the samples (``validation_sample_users`` of
        ``validation_sample_of``), and numbers that were more than there are users.
    """
    report = dict(split.report)
    parts: dict[str, Any] = {}
    for number, (name, wanted) in enumerate(
        {"validation": validation_users, "test": test_users}.items()
    ):
        examples: Examples = getattr(split, name)
        users = np.unique(examples.users)
        if wanted > len(users):
            report |= {f"{name}_users_asked": wanted, f"{name}_users_found": len(users)}
        elif 0 < wanted < len(users):
            drawn = np.random.default_rng((seed, number)).choice(users, wanted, replace=False)
            parts[name] = examples.select(np.flatnonzero(np.isin(examples.users, drawn)))
            report |= {
                f"{name}_examples": len(parts[name]),
                f"{name}_sample_users": wanted,
                f"{name}_sample_of": len(users),
                f"{name}_sample_seed": seed,
            }
    return replace(split, **parts, report=report) if report != split.report else split


def k_core(interactions: Interactions, k: int) -> tuple[Interactions, IntArray]:
    """Keep users and items of at least `k` interactions, repeatedly until none has fewer.

    Args:
        k: minimum number of interactions of a user and of an item; 1 drops items without any.

    Returns:
        The interactions left, whose items are the items left, and the ids that those had before,
        int64, ascending.

    Raises:
        ValueError: a number below 1, or nothing is left.
    """
    if k < 1:
        raise invalid("k_core", k, "an integer >= 1")
    sequences = interactions.sequences
    rows = np.repeat(np.arange(len(sequences)), sequences.lengths)
    kept = np.arange(len(sequences.values))
    while True:
        users, items = rows[kept], sequences.values[kept]
        enough = (np.bincount(users)[users] >= k) & (np.bincount(items)[items] >= k)
        if enough.all():
            break
        kept = kept[enough]
        if len(kept) == 0:
            raise invalid("k_core", f"{k}, which leaves no interactions", "a smaller number")
    mask = np.zeros(len(rows), dtype=bool)
    mask[kept] = True
    left = interactions.where(mask)
    item_ids, values = np.unique(left.sequences.values, return_inverse=True)
    sequences = Sequences(left.sequences.offsets, values)
    left = replace(left, items=interactions.items[item_ids], sequences=sequences)
    return left, item_ids


def describe_split(report: Mapping[str, Any]) -> list[str]:
    """The report of a :class:`Split` in sentences."""
    return [*_sentences(report)]


def _sentences(report: Mapping[str, Any]) -> Iterator[str]:
    def count(name: str, one: str | None = None) -> str:
        found = report.get(name, 0)
        return f"{found:,}" + ("" if one is None else f" {one}" + "s" * (found != 1))

    parts = ("validation", "test")
    held_out = f"{count('validation_examples')} validation and {count('test_examples')} test"
    protocol = report.get("protocol")
    if protocol == "leave-one-out":
        what = "basket" if "baskets" in report else "item"
        yield (
            f"split leave-one-out: {count('users_split', 'user')}, of each the last {what} for "
            "test and the one before for validation"
        )
        if report.get("users_too_short"):
            short = count("users_too_short", "user")
            yield f"too short: {short} with fewer than 3 {what}s, trained on only"
    elif protocol == "cold-start-users":
        yield (
            f"split cold-start-users: {count('validation_users', 'user')} for validation and "
            f"{count('test_users', 'user')} for test, none of whom is trained on "
            f"(split_seed {report.get('split_seed')}); each item after their first is an example"
        )
        if single := sum(report.get(f"{part}_users_of_one_interaction", 0) for part in parts):
            yield f"no example: {single:,} of them, with one item"
    elif protocol == "time":
        points = np.array([report.get(f"{part}_from", 0) for part in parts])
        dates = as_dates(points)
        begin, end = points if dates is None else [str(date).replace("T", " ") for date in dates]
        clock = "" if dates is None else " (UTC)"
        yield (
            f"split time: trained on what is before {begin}, validation up to {end}, test from "
            f"there on{clock}"
        )
        if first := sum(report.get(f"{part}_interactions_without_history", 0) for part in parts):
            yield f"no example: {first:,} held-out interactions, their users' first"
    elif protocol == "given":
        validation, test = (count(f"{part}_interactions", "interaction") for part in parts)
        yield f"split given: {validation} for validation and {test} for test"
        if first := sum(report.get(f"{part}_interactions_without_history", 0) for part in parts):
            yield f"no example: {first:,} of them, their users' first"
    else:
        yield f"split {protocol}: nothing is held out, and nothing measured"
    examples = f"; {held_out} examples" if protocol != "none" else ""
    yield (
        f"trained on: {count('train_interactions', 'interaction')}, of {report.get('users', 0):,} "
        f"users and {report.get('items', 0):,} items in all{examples}"
    )
    for part in parts:
        if f"{part}_sample_users" in report:
            seed = report[f"{part}_sample_seed"]
            yield (
                f"{part}: a sample of {count(f'{part}_sample_users')} of "
                f"{count(f'{part}_sample_of')} users, drawn by seed {seed} ({part}_users; 0 takes "
                "all)"
            )
        elif f"{part}_users_asked" in report:
            yield (
                f"{part}: {part}_users {count(f'{part}_users_asked')} is cut to the "
                f"{count(f'{part}_users_found')} there are"
            )
    if report.get("train_sequences_of_one_item"):
        yield (
            f"nothing to learn: {count('train_sequences_of_one_item', 'user')} with one training "
            "interaction, which nothing follows"
        )
    if report.get("items_without_training_interactions"):
        said = f"cold: {count('items_without_training_interactions', 'item')} never trained on"
        validation, test = (
            count(f"{part}_targets_without_training_interactions") for part in parts
        )
        targets = f", targets of {validation} validation and {test} test examples"
        yield said if protocol == "none" else said + targets


def _examples(
    sequences: Sequences, users: IntArray, places: IntArray, lengths: IntArray | None = None
) -> Examples:
    """An example for each user and place: the item there after all items before it, or after so
    many."""
    histories = sequences.prefixes(users, places if lengths is None else lengths)
    targets = sequences.values[sequences.starts[users] + places]
    return Examples(users, histories, targets, seen=histories)


def _split(
    name: str,
    interactions: Interactions,
    train_lengths: IntArray,
    examples: Sequence[Examples],
    counts: Mapping[str, int | str],
    baskets: IntArray | None = None,
) -> Split:
    """The split that trains on the first `train_lengths` of each user, with these two examples."""
    train = interactions.sequences.first(train_lengths).select(np.flatnonzero(train_lengths))
    untrained = _item_counts(train, interactions.num_items) == 0
    report: dict[str, int | str] = {
        "protocol": name,
        "users": interactions.num_users,
        "items": interactions.num_items,
        "interactions": len(interactions),
        **counts,
        "train_interactions": len(train.values),
        "train_sequences_of_one_item": int(np.sum(train.lengths == 1)),
        "items_without_training_interactions": int(np.sum(untrained)),
    }
    for part, held_out in zip(("validation", "test"), examples, strict=True):
        report |= {
            f"{part}_examples": len(held_out),
            f"{part}_targets_without_training_interactions": int(
                np.sum(untrained[held_out.targets])
            ),
            f"{part}_targets_seen_before": int(held_out.targets_seen().sum()),
        }
    validation, test = examples
    lengths = interactions.sequences.lengths
    trained = count_up(lengths) < np.repeat(train_lengths, lengths)
    weights = interactions.weights
    return Split(
        name,
        train,
        validation,
        test,
        report,
        np.asarray(train_lengths),
        None if baskets is None else baskets[trained],
        None if weights is None else weights[trained],
    )


def _item_counts(sequences: Sequences, num_items: int) -> IntArray:
    return np.bincount(sequences.values, minlength=num_items)
