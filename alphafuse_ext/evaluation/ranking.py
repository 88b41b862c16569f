"""Full-catalog ranking: exact ranks of held-out targets, and metrics.

A target is a hit at k exactly if it is among the k items recommended after its history. If seen
items are excluded, a target in the history is therefore a miss. Items with equal scores are ordered
by id, which is arbitrary: the number of tied targets, and the metrics averaged over all orders of
ties, are computed too.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from tqdm import tqdm

from alphafuse_ext.checks import invalid
from alphafuse_ext.choices import TIE_RULES, TieRule
from alphafuse_ext.data import Examples, Sequences, length_batches
from alphafuse_ext.data.sequences import evenly_spread
from alphafuse_ext.evaluation.run_neighbors import RunNeighbors
from alphafuse_ext.items.catalog import Catalog
from alphafuse_ext.items.item_embeddings import ItemEmbeddings
from alphafuse_ext.items.table import ItemTable
from alphafuse_ext.metrics import CUTOFFS, ranking_metrics
from alphafuse_ext.models import SequenceModel
from alphafuse_ext.ops.arguments import Only
from alphafuse_ext.ops.mixture import Mixture, Softmax, listed, split_mixture

# The rank of a target that no list can show. Beyond every cutoff, also those above the number of
# items.
UNREACHABLE = np.iinfo(np.int64).max

# Whether the items of a history are ranked.
SeenItems: TypeAlias = Literal["excluded", "ranked"]

IntArray: TypeAlias = npt.NDArray[np.int64]
Encode: TypeAlias = Callable[[Sequences], Tensor]

# Above this share of targets among the seen items, metrics depend on whether these are ranked.
MANY_SEEN = 0.01

# Ties matter if their order changes a metric by more than this: about as much as another training
# seed does.
TIES_MATTER = 0.001

# Ties are counted in chunks of this many scores (128 MiB), and where the metrics do not rest on the
# counts, in an even sample of the examples that has about so many scores (seconds).
_CHUNK_SCORES = 2**25
_SAMPLE_SCORES = 2**30


@dataclass(frozen=True)
class Ties:
    """Targets whose score equals that of other items, and the metric that depends on their order
    most.

    Attributes:
        examples: number of targets counted: all, or an even sample for a large catalog.
        tied: how many of them share their score with another ranked item.
        metric: the one of :func:`ranking_metrics` that differs most between the tie rules.
        by_id, mean: its value over these examples under either rule.
    """

    examples: int
    tied: int
    metric: str
    by_id: float
    mean: float


@dataclass(frozen=True)
class Evaluation:
    """Metrics with seen items excluded and ranked.

    Attributes:
        seen_items: ``"excluded"`` or ``"ranked"``: which of the two ``metrics`` are.
        examples: number of targets.
        targets_seen_before: number of targets in their histories; misses if seen items are
            excluded.
        tie_rule: how items with equal scores are ordered.
        by_seen_items: metrics for both, see :func:`ranking_metrics`.
        ties_by_seen_items: ties for both.
        ranks_by_seen_items: rank of each target for both, ties by id, ``(E,)``; 0 = first,
            ``UNREACHABLE``: not ranked.
        cutoffs: of the metrics.
    """

    seen_items: SeenItems
    examples: int
    targets_seen_before: int
    tie_rule: TieRule
    by_seen_items: dict[SeenItems, dict[str, float]]
    ties_by_seen_items: dict[SeenItems, Ties]
    ranks_by_seen_items: dict[SeenItems, IntArray]
    cutoffs: tuple[int, ...] = CUTOFFS

    @property
    def metrics(self) -> dict[str, float]:
        """Those of ``seen_items``."""
        return self.by_seen_items[self.seen_items]

    @property
    def ties(self) -> Ties:
        """Those of ``seen_items``."""
        return self.ties_by_seen_items[self.seen_items]

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        return {
            "examples": self.examples,
            "seen_items": self.seen_items,
            "targets_seen_before": self.targets_seen_before,
            "tie_rule": self.tie_rule,
            "ties": dataclasses.asdict(self.ties),
            "metrics": self.metrics,
            "metrics_by_seen_items": self.by_seen_items,
        }

    def warnings(self) -> list[str]:
        """Caveats of the metrics, one line each."""
        lines = []
        if self.seen_items == "excluded":
            lines += seen_target_warnings(self.targets_seen_before, self.examples)
        ties = self.ties
        if self.tie_rule == "id" and abs(ties.by_id - ties.mean) > TIES_MATTER:
            lines.append(
                f"{ties.tied:,} of {ties.examples:,} targets score exactly as other items do, and "
                f"the order of ids decides: {ties.metric} is {ties.by_id:.4f}, but "
                f"{ties.mean:.4f} as a mean over all orders of the equals, which --ties mean "
                '(ties="mean") evaluates'
            )
        return lines


def seen_target_warnings(seen_before: int, examples: int) -> list[str]:
    """A warning if many targets are never recommended because they are in their histories."""
    if seen_before <= MANY_SEEN * examples:
        return []
    return [
        f"{seen_before:,} of {examples:,} targets ({seen_before / examples:.1%}) are items that "
        "their users had before: misses, since seen items are left out. Where users come back to "
        "items, --keep-seen (keep_seen=True) recommends and ranks them as well"
    ]


def evaluate_model(
    model: SequenceModel,
    examples: Examples,
    keep_seen: bool = False,
    ties: TieRule = "id",
    batch_size: int = 512,
    progress: bool = False,
    retired: IntArray | None = None,
    neighbors: RunNeighbors | None = None,
    cutoffs: Sequence[int] = CUTOFFS,
) -> Evaluation:
    """Metrics of a model over the whole catalog, seen items excluded and ranked.

    Args:
        examples: histories with one target each.
        keep_seen: ``metrics`` are those with seen items ranked.
        ties: ``"id"``: items with equal scores are ordered by id, as in recommendations;
            ``"mean"``: metrics are means over all their orders.
        batch_size: histories per batch; they are grouped by length.
        progress: show a progress bar in a terminal.
        retired: ids that are not ranked; such a target is a miss.
        neighbors: rank by the model's softmax mixed with their probabilities.
        cutoffs: the values of k.
    """
    batches = _batches(examples, batch_size, progress)
    table, how = model.whole_table, (model.similarity, keep_seen, ties, cutoffs)
    with _ranking(model) as encode:
        return _evaluate(table, encode, batches, examples, *how, retired, neighbors)


def evaluate_popularity(
    item_counts: npt.NDArray[np.int64],
    examples: Examples,
    keep_seen: bool = False,
    ties: TieRule = "id",
    batch_size: int = 512,
    retired: IntArray | None = None,
    cutoffs: Sequence[int] = CUTOFFS,
) -> Evaluation:
    """Metrics of the popularity baseline: all users get the items by training popularity.

    Popularity is a one-dimensional item embedding, so the same op applies, ties included.

    Args:
        item_counts: ``(N,)`` occurrences in the training interactions.
        examples, keep_seen, ties, batch_size, retired, cutoffs: as for :func:`evaluate_model`.
    """
    table = ItemTable(None, torch.from_numpy(item_counts.astype(np.float32))[:, None])
    batches = _batches(examples, batch_size, progress=False)

    def encode(histories: Sequences) -> Tensor:
        return torch.ones(len(histories), 1)

    return _evaluate(table, encode, batches, examples, "dot", keep_seen, ties, cutoffs, retired)


def example_ranks(
    model: SequenceModel,
    examples: Examples,
    exclude_seen: bool = True,
    batch_size: int = 512,
    progress: bool = False,
) -> npt.NDArray[np.int64]:
    """Exact rank of each target among all items, by the op ``target_ranks``.

    Args:
        examples, batch_size, progress: as for :func:`evaluate_model`.
        exclude_seen: exclude the items of the history.

    Returns:
        ``(E,)`` int64, 0 = first, in the order of ``examples``; ``UNREACHABLE`` if the target
        itself is excluded.
    """
    with encoded(model, examples, batch_size, progress) as (batches, encode):
        return encoded_ranks(model, examples, batches, encode, exclude_seen)


@contextmanager
def encoded(
    model: SequenceModel,
    examples: Examples,
    batch_size: int = 512,
    progress: bool = False,
    kept: bool = False,
) -> Iterator[tuple[Iterable[IntArray], Encode]]:
    """Batches of examples, and what encodes them.

    Args:
        examples, batch_size, progress: as for :func:`evaluate_model`.
        kept: encode each batch once, however often they are ranked: ``(E, dim)`` numbers.
    """
    batches = _batches(examples, batch_size, progress)
    with _ranking(model) as encode:
        if not kept:
            yield batches, encode
            return
        listed, queries = list(batches), []
        for rows in listed:
            queries.append(encode(examples.histories.select(rows)))
        in_turn = itertools.cycle(queries)
        yield listed, lambda histories: next(in_turn)


def encoded_ranks(
    model: SequenceModel,
    examples: Examples,
    batches: Iterable[IntArray],
    encode: Encode,
    exclude_seen: bool = True,
    neighbors: RunNeighbors | None = None,
) -> npt.NDArray[np.int64]:
    """:func:`example_ranks` of what :func:`encoded` gives.

    Args:
        neighbors: as for :func:`evaluate_model`.
    """
    seen_items: SeenItems = "excluded" if exclude_seen else "ranked"
    ranks = _rank(
        model.table,
        encode,
        batches,
        examples,
        model.similarity,
        (seen_items,),
        neighbors=neighbors,
    )
    return ranks[seen_items].by_id


def sampled_ranks(
    model: SequenceModel,
    examples: Examples,
    candidates: Sequences,
    exclude_seen: bool = True,
    batch_size: int = 512,
    retired: IntArray | None = None,
    neighbors: RunNeighbors | None = None,
) -> IntArray:
    """Rank of each target among itself and its candidates, ``(E,)``; else as
    :func:`example_ranks`.

    Args:
        candidates: of :func:`sampled_candidates`.
        retired, neighbors: as for :func:`evaluate_model`.
    """
    lengths = candidates.lengths + 1
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    values = np.insert(candidates.values, candidates.offsets[1:], examples.targets)
    protocol: SeenItems = "excluded" if exclude_seen else "ranked"
    batches = _batches(examples, batch_size, progress=False)
    with _ranking(model) as encode:
        return _rank(
            model.table,
            encode,
            batches,
            examples,
            model.similarity,
            (protocol,),
            retired=retired,
            neighbors=neighbors,
            among=Sequences(offsets, values),
        )[protocol].by_id


def sampled_candidates(
    examples: Examples,
    num_items: int,
    count: int,
    seed: int,
    retired: IntArray | None = None,
) -> Sequences:
    """``count`` items for each example, drawn alike among those that are neither its target nor
    seen nor retired, none twice.

    Raises:
        ValueError: an example for which there are not so many.
    """
    generator = np.random.default_rng(seed)
    gone = np.zeros(0, np.int64) if retired is None else retired
    drawn = []
    for start in range(0, len(examples), 4096):
        some = examples.select(np.arange(start, min(start + 4096, len(examples))))
        rows, seen = np.arange(len(some)), some.seen
        seen_keys = np.repeat(rows, seen.lengths) * num_items + seen.select(rows).values
        gone_keys = (rows[:, None] * num_items + gone).ravel()
        taken = np.unique(np.concatenate([seen_keys, gone_keys, rows * num_items + some.targets]))
        most = num_items - np.bincount(taken // num_items, minlength=len(some)).max()
        if not 1 <= count <= most:
            allowed = f"1 <= candidates <= {most}, the unseen items of every user"
            raise invalid("candidates", count, allowed)
        found = np.zeros(0, np.int64)
        missing = np.full(len(some), count)
        while missing.any():
            of = np.repeat(rows, missing)
            keys = np.unique(of * num_items + generator.integers(num_items, size=len(of)))
            keys = keys[~np.isin(keys, taken)]
            found, taken = np.concatenate([found, keys]), np.union1d(taken, keys)
            missing -= np.bincount(keys // num_items, minlength=len(some))
        drawn.append(np.sort(found) % num_items)
    values = np.concatenate(drawn) if drawn else np.zeros(0, np.int64)
    return Sequences(np.arange(len(examples) + 1) * count, values)


@dataclass(frozen=True, eq=False)
class RankedItems:
    """The items that are ranked: the whole catalog, or some, gathered once for many queries.

    Attributes:
        model: its item table has them all.
        ids: int64, ascending; ``None``: all.
    """

    model: SequenceModel
    ids: IntArray | None = None

    @classmethod
    def without(cls, model: SequenceModel, retired: IntArray | None) -> RankedItems:
        """All but retired ones."""
        if retired is None or not len(retired):
            return cls(model)
        return cls(model, np.setdiff1d(np.arange(model.table.num_embeddings), retired))

    def best(
        self,
        histories: Sequences,
        k: int,
        seen: Sequences | None = None,
        lists: Sequences | None = None,
        neighbors: RunNeighbors | None = None,
    ) -> tuple[Tensor, Tensor, Mixture | None]:
        """The ``k`` best items after each history, in inference mode.

        Args:
            histories: B.
            k: or fewer, where fewer are ranked.
            seen: ids to leave out after each.
            lists: rank those after each, instead of ``ids``.
            neighbors: as for :func:`evaluate_model`.

        Returns:
            Scores and ids, ``(B, k)``, -1 after the last item of a shorter list; and what the
            model's softmax was mixed with.
        """
        table: Catalog = self.model.table
        device = self._device
        with torch.inference_mode():
            queries = encode_histories(self.model, histories, device)
            exclude = None if seen is None else exclusion(seen, device)
            only: Only = self.chosen if lists is None else exclusion(lists, device)
            mixture = None
            if neighbors is not None:  # which is over the whole catalog, whatever is ranked
                among = self.mask if lists is None else lists
                mixture = neighbors.mixture(histories, device, seen, among)
            gathers = self.chosen is not None and lists is None and mixture is None
            if gathers:
                table, places = self._gathered
                only = None
                exclude = None if exclude is None else (exclude[0], places[exclude[1]])
            elif lists is None and self.ids is not None:
                k = min(k, len(self.ids))
            scores, ids = table.topk(
                queries,
                min(k, table.num_embeddings),
                similarity=self.model.similarity,
                exclude=exclude,
                first_pass="auto",
                only=only,
                mixture=mixture,
            )
            if self.chosen is not None and gathers:
                ids = torch.where(ids < 0, ids, self.chosen[ids.clamp(min=0)])
        return scores, ids, mixture

    @cached_property
    def mask(self) -> npt.NDArray[np.bool_] | None:
        """Whether each item is ranked; ``None``: all are."""
        if self.ids is None:
            return None
        mask = np.zeros(self.model.table.num_embeddings, dtype=bool)
        mask[self.ids] = True
        return mask

    @cached_property
    def chosen(self) -> Tensor | None:
        """The ids on the model's device."""
        return None if self.ids is None else torch.from_numpy(self.ids).to(self._device)

    @cached_property
    def _gathered(self) -> tuple[ItemEmbeddings, Tensor]:
        """A table of these items, and the place of each of the catalog in it; -1: in none."""
        assert self.chosen is not None, "of some items"
        # Compressed copies ask for the versions of tensors, which those of inference have not.
        with torch.inference_mode(False), torch.no_grad():
            places = torch.full((self.model.table.num_embeddings,), -1, device=self._device)
            places[self.chosen] = torch.arange(len(self.chosen), device=self._device)
            return self.model.whole_table.select(self.chosen).eval(), places

    @property
    def _device(self) -> torch.device:
        return self.model.device


def example_lists(
    ranked: RankedItems,
    examples: Examples,
    k: int,
    exclude_seen: bool = True,
    batch_size: int = 512,
    neighbors: RunNeighbors | None = None,
) -> IntArray:
    """The lists that are recommended after each history, ``(E, k)``, see :meth:`RankedItems.best`.

    Args:
        ranked: the items, and a model in evaluation mode.
        examples, exclude_seen, batch_size: as for :func:`example_ranks`.
        k: length of a list.
        neighbors: as for :func:`evaluate_model`.
    """
    lists = np.full((len(examples), k), -1, dtype=np.int64)
    for rows in _batches(examples, batch_size, progress=False):
        seen = examples.seen.select(rows) if exclude_seen else None
        histories = examples.histories.select(rows)
        _, ids, _ = ranked.best(histories, k, seen, neighbors=neighbors)
        lists[rows, : ids.shape[1]] = ids.cpu().numpy()
    return lists


def encode_histories(model: SequenceModel, histories: Sequences, device: torch.device) -> Tensor:
    """Queries ``(B, dim)`` after each of ``histories``.

    Raises:
        FloatingPointError: a query has a NaN or an infinity.
    """
    ids = histories.pad(
        np.arange(len(histories)), length=model.history, padding=model.table.padding_idx
    )
    queries = model.encode(torch.from_numpy(ids).to(device))
    _refuse_diverged("queries", queries)
    return queries


def _refuse_diverged(what: str, found: Tensor) -> None:
    if not torch.isfinite(found).all():
        cure = "trained at a lower learning_rate it may not"
        raise FloatingPointError(f"the model's {what} are not finite: it has diverged; {cure}")


def exclusion(seen: Sequences, device: torch.device) -> tuple[Tensor, Tensor]:
    """``seen`` as the argument ``exclude`` of the ops: offsets and ids, on ``device``."""
    # Copies: sequences are read-only, which torch does not know.
    offsets, ids = torch.tensor(seen.offsets), torch.tensor(seen.values)
    return offsets.to(device), ids.to(device)


def _batches(examples: Examples, batch_size: int, progress: bool) -> Iterable[IntArray]:
    batches = length_batches(examples.histories.lengths, batch_size, None)
    return tqdm(batches, "rank", leave=False, disable=None if progress else True)


@contextmanager
def _ranking(model: SequenceModel) -> Iterator[Encode]:
    """The model's queries, without dropout and gradients; the model's mode is restored after."""
    device, was_training = model.device, model.training
    model.eval()
    try:
        with torch.inference_mode():
            yield lambda histories: encode_histories(model, histories, device)
    finally:
        model.train(was_training)


@dataclass(frozen=True, eq=False)
class _Ranks:
    """Ranks of targets, each array int64, shape ``(E,)``.

    Attributes:
        by_id: number of items ranked before the target, ties by id.
        better: number of items with a higher score, if ties were counted.
        tied: number of other items with the same score, if ties were counted.
    """

    by_id: IntArray
    better: IntArray
    tied: IntArray


def _evaluate(
    table: ItemEmbeddings,
    encode: Encode,
    batches: Iterable[IntArray],
    examples: Examples,
    similarity: str,
    keep_seen: bool,
    tie_rule: TieRule,
    cutoffs: Sequence[int],
    retired: IntArray | None = None,
    neighbors: RunNeighbors | None = None,
) -> Evaluation:
    if tie_rule not in TIE_RULES:
        raise invalid("ties", repr(tie_rule), " or ".join(map(repr, TIE_RULES)))
    most = _SAMPLE_SCORES // table.num_embeddings if tie_rule == "id" else len(examples)
    counted = evenly_spread(len(examples), most)
    ranks = _rank(
        table,
        encode,
        batches,
        examples,
        similarity,
        ("excluded", "ranked"),
        count_ties=counted,
        retired=retired,
        neighbors=neighbors,
    )
    metrics, ties = {}, {}
    for protocol, found in ranks.items():
        by_id = ranking_metrics(found.by_id[counted], cutoffs)
        mean = ranking_metrics(found.better[counted], cutoffs, found.tied[counted])
        metrics[protocol] = mean if tie_rule == "mean" else ranking_metrics(found.by_id, cutoffs)
        most_moved = max(by_id, key=lambda name: abs(by_id[name] - mean[name]))
        ties[protocol] = Ties(
            examples=len(counted),
            tied=int((found.tied[counted] > 0).sum()),
            metric=most_moved,
            by_id=by_id[most_moved],
            mean=mean[most_moved],
        )
    return Evaluation(
        seen_items="ranked" if keep_seen else "excluded",
        examples=len(examples),
        targets_seen_before=int(examples.targets_seen().sum()),
        tie_rule=tie_rule,
        by_seen_items=metrics,
        ties_by_seen_items=ties,
        ranks_by_seen_items={protocol: found.by_id for protocol, found in ranks.items()},
        cutoffs=tuple(cutoffs),
    )


def _rank(
    table: Catalog,
    encode: Encode,
    batches: Iterable[IntArray],
    examples: Examples,
    similarity: str,
    protocols: Sequence[SeenItems],
    count_ties: IntArray | None = None,
    retired: IntArray | None = None,
    neighbors: RunNeighbors | None = None,
    among: Sequences | None = None,
) -> dict[SeenItems, _Ranks]:
    """Ranks under each of ``protocols``; ties of the examples ``count_ties``.

    Args:
        among: rank these items of each example alone, its target among them, and no other.
    """
    size = len(examples)
    gone = np.zeros(table.num_embeddings, dtype=bool)
    gone[[] if retired is None else retired] = True
    is_live = ~gone if gone.any() else None
    live = None if is_live is None else torch.from_numpy(np.flatnonzero(is_live))

    def mixture_of(rows: IntArray, protocol: SeenItems, device: torch.device) -> Mixture | None:
        if neighbors is None:
            return None
        seen = examples.seen.select(rows) if protocol == "excluded" else None
        allowed = is_live if among is None else among.select(rows)
        return neighbors.mixture(examples.histories.select(rows), device, seen, allowed)

    ranks = {
        protocol: _Ranks(*(np.zeros(size, dtype=np.int64) for _ in range(3)))
        for protocol in protocols
    }
    counted = np.zeros(size, dtype=bool)
    counted[[] if count_ties is None else count_ties] = True
    for rows in batches:
        queries = encode(examples.histories.select(rows))
        targets = torch.tensor(examples.targets[rows]).to(queries.device)
        # Finite factors may give an infinite score.
        scores = table.score_candidates(queries, targets[:, None], similarity=similarity)
        _refuse_diverged("scores", scores)
        seen = exclusion(examples.seen.select(rows), queries.device)
        only: Only = None if live is None else live.to(queries.device)
        if among is not None:
            only = exclusion(among.select(rows), queries.device)
        for protocol in protocols:
            exclude = seen if protocol == "excluded" else None
            found = table.target_ranks(
                queries,
                targets,
                similarity=similarity,
                exclude=exclude,
                only=only,
                mixture=mixture_of(rows, protocol, queries.device),
            )
            ranks[protocol].by_id[rows] = found.cpu().numpy()
        places = np.flatnonzero(counted[rows])
        most = _CHUNK_SCORES if neighbors is None else _CHUNK_SCORES // 4  # several arrays
        chunk = max(1, most // table.num_embeddings)
        for start in range(0, len(places), chunk):
            some = places[start : start + chunk]
            assert isinstance(table, ItemEmbeddings), "of whole tables"
            scores = table.score_all(queries[some], similarity=similarity)
            seen = exclusion(examples.seen.select(rows[some]), queries.device)
            equals = None
            for protocol in protocols:
                mixture = mixture_of(rows[some], protocol, queries.device)
                if mixture is not None:
                    mixed = _mixed(scores.float(), queries[some], mixture)
                    equals = _equals(mixed, targets[some], seen, np.flatnonzero(gone))
                elif equals is None:
                    equals = _equals(scores, targets[some], seen, np.flatnonzero(gone))
                better, tied = equals[protocol]
                ranks[protocol].better[rows[some]] = better.cpu().numpy()
                ranks[protocol].tied[rows[some]] = tied.cpu().numpy()
    for protocol, found_ranks in ranks.items():
        hidden = gone[examples.targets]
        if protocol == "excluded":
            hidden = hidden | examples.targets_seen()
        found_ranks.by_id[hidden] = found_ranks.better[hidden] = UNREACHABLE
        found_ranks.tied[hidden] = 0
    return ranks


def _mixed(scores: Tensor, queries: Tensor, mixture: Mixture) -> Tensor:
    """All scores ``(B, N)``, those of listed items raised, in a new tensor."""
    arguments, padding = split_mixture(mixture, queries), scores.shape[1]
    lists = listed(arguments, padding)
    tempered = scores / arguments.temperature
    maxima = tempered.amax(1)
    logs = tempered.sub_(maxima[:, None]).exp_().sum(1).log()
    softmax = Softmax.of(maxima, logs, arguments.weights, arguments.temperature)
    whole = torch.cat([scores, scores.new_zeros(len(scores), 1)], 1)  # the last for fillers
    raised = softmax.raised(whole.gather(1, lists.ids), lists.probabilities)
    return whole.scatter_(1, lists.ids, raised)[:, :padding].contiguous()


def _equals(
    scores: Tensor, targets: Tensor, seen: tuple[Tensor, Tensor], retired: IntArray
) -> dict[SeenItems, tuple[Tensor, Tensor]]:
    """How many items score higher than the target, and how many others score the same, ``(B,)``
    each.

    Args:
        scores: ``(B, N)``, which is overwritten; NaN counts as the lowest.
        targets: ``(B,)``; where it is among ``seen``, ``"excluded"`` has no meaning.
        seen: offsets and ids.
        retired: ids that are not ranked, and of which ``targets`` is none.
    """

    def count(found: Tensor) -> Tensor:
        return found.view(torch.uint8).sum(1, dtype=torch.int32).long()  # bools sum far slower

    scores.nan_to_num_(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)
    # From here on NaN is neither higher than the target nor equal to it.
    target = scores.gather(1, targets[:, None])
    scores[:, torch.from_numpy(retired)] = torch.nan
    better, tied = count(scores > target), count(scores == target) - 1
    offsets, ids = seen
    rows = torch.repeat_interleave(torch.arange(len(targets), device=ids.device), offsets.diff())
    rows, ids = torch.stack([rows, ids]).unique(dim=1)  # a history may have an item twice
    left_out, beside = scores[rows, ids], target[rows, 0]
    without = (
        better.index_add(0, rows, -(left_out > beside).long()),
        tied.index_add(0, rows, -(left_out == beside).long()),
    )
    return {"ranked": (better, tied), "excluded": without}
