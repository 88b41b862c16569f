"""``mixture``, of ``topk`` and ``target_ranks``: a softmax mixed with listed probabilities."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from op_inputs import CASES, TableCase, wide

import alphafuse_ext as af
from alphafuse_ext import _core
from alphafuse_ext.items.adapted_table import AdaptedTable
from alphafuse_ext.ops import mixture as module
from alphafuse_ext.ops import native, reference

pytestmark = pytest.mark.usefixtures("one_thread", "on_device")

FORMS = ["padded", "offsets"]
WEIGHTS = [0.2, 0.97, "each"]


def some_lists(form: str, batch: int, num_items: int, weight: object, temperature: float = 1.0):
    """Lists of any length, some empty, in no order; with fillers and padding ids."""
    most = min(num_items, 40)
    ids = torch.rand(batch, num_items + 1).argsort(1)[:, :most]  # the padding id once
    lengths = torch.randint(most + 1, (batch,))
    kept = torch.arange(most) < lengths[:, None]
    probabilities = torch.rand(batch, most).masked_fill(~kept, 0.0)
    probabilities /= probabilities.sum(1, keepdim=True).clamp(min=1e-6) * 1.1
    probabilities[:, :2] *= torch.randint(2, (batch, 1))  # some of 0
    if weight == "each":
        weight = torch.rand(batch) * 0.99
        weight[::3] = 0.0
    if form == "padded":
        ids = ids.masked_fill(~kept, -1)
        probabilities = probabilities.masked_fill(~kept, torch.nan)  # anything
        order = torch.randperm(most)
        return af.Mixture(ids[:, order], probabilities[:, order], weight, temperature)
    offsets = torch.nn.functional.pad(lengths.cumsum(0), (1, 0))
    return af.Mixture(ids[kept], probabilities[kept], weight, temperature, offsets)


def left_out_of(form: str | None, batch: int, num_items: int):
    if form is None:
        return None
    if form == "shared":
        return torch.randint(-1, num_items + 1, (num_items // 2,))
    if form == "padded":
        return torch.randint(-1, num_items + 1, (batch, num_items // 2))
    counts = torch.randint(0, num_items // 2, (batch,))
    offsets = torch.nn.functional.pad(counts.cumsum(0), (1, 0))
    return offsets, torch.randint(num_items, (int(counts.sum()),))


def check_order(queries, found, semantic, embeddings, expected, **options) -> None:
    """Where float64 tells items apart, in its order; and log probabilities are its own."""
    values, ids = found
    assert values.dtype == torch.float32
    assert ids.dtype == torch.int64
    real = ids >= 0
    assert torch.equal(real, expected[1] >= 0)
    similarity, fusion = options.get("similarity", "dot"), options.get("fusion", "concat")
    scores = reference.score_all(
        wide(queries), wide(semantic), wide(embeddings), fusion, similarity
    )
    dense = reference.log_probabilities(scores, options["mixture"])
    own = dense.gather(1, ids.clamp(min=0).cpu())
    scale = max(1.0, scores.abs().max().item())
    torch.testing.assert_close(values.double()[real], own[real], rtol=0, atol=3e-5 * scale)
    # No item is ahead of one that is more likely by more than rounding.
    assert ((own[:, 1:] <= own[:, :-1] + 3e-5 * scale) | ~real[:, 1:]).all()
    torch.testing.assert_close(own[real], expected[0][real], rtol=0, atol=3e-5 * scale)
    assert all(len(row[row >= 0].unique()) == int((row >= 0).sum()) for row in ids)


@pytest.mark.parametrize("weight", WEIGHTS)
@pytest.mark.parametrize("only", [None, "shared", "padded", "offsets"])
@pytest.mark.parametrize("exclude", [None, "padded", "offsets"])
@pytest.mark.parametrize("form", FORMS)
def test_definition(form: str, exclude: str | None, only: str | None, weight: object) -> None:
    """Against a dense float64 computation; the places that ``target_ranks`` finds are the same."""
    semantic, embeddings = TableCase(num_embeddings=300).tables()
    queries = torch.randn(20, 19)
    options = {
        "exclude": left_out_of(exclude, 20, 300),
        "only": left_out_of(only, 20, 300),
        "mixture": some_lists(form, 20, 300, weight, 0.7),
    }
    tables = wide(queries), wide(semantic), wide(embeddings)
    for k in (1, 10, 300):
        found = af.topk(queries, k, semantic, embeddings, **options)
        expected = reference.topk(tables[0], k, *tables[1:], **options)
        check_order(queries, found, semantic, embeddings, expected, **options)
    for place in range(0, 300, 23):
        targets = found.indices[:, place].clone()
        filler = targets < 0
        ranks = af.target_ranks(
            queries, targets.masked_fill(filler, 300), semantic, embeddings, **options
        )
        assert torch.equal(ranks, torch.where(filler, -1, place))
    targets = torch.randint(301, (20,))  # excluded ones and those that are not allowed, too
    ranks = af.target_ranks(queries, targets, semantic, embeddings, **options)
    expected = reference.target_ranks(tables[0], targets, *tables[1:], **options)
    assert torch.equal(ranks < 0, expected < 0)
    assert (ranks - expected).abs().max() <= 1  # a near tie
    assert ((ranks - expected) != 0).sum() <= 1


@pytest.mark.parametrize("similarity", ["dot", "cosine"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_kind_of_table(case: TableCase, similarity: str, isa: str) -> None:
    semantic, embeddings = case.tables()
    n, queries = case.num_embeddings, torch.randn(9, case.dim)
    options = {
        "fusion": case.fusion,
        "similarity": similarity,
        "exclude": torch.randint(-1, n + 1, (9, 3)),
        "mixture": some_lists("padded", 9, n, 0.3, 0.2),
    }
    k = min(n, 30)
    found = af.topk(queries, k, semantic, embeddings, **options)
    expected = reference.topk(wide(queries), k, wide(semantic), wide(embeddings), **options)
    check_order(queries, found, semantic, embeddings, expected, **options)
    for place in range(0, k, 7):
        targets = found.indices[:, place]
        ranks = af.target_ranks(
            queries, torch.where(targets < 0, n, targets), semantic, embeddings, **options
        )
        assert torch.equal(ranks, torch.where(targets < 0, -1, place))


@pytest.mark.parametrize("mixture", ["of weight 0", "of probability 0", "empty"])
def test_what_adds_nothing_changes_nothing(mixture: str, isa: str, threads: int) -> None:
    """Bit for bit the model's order, ties and all; any temperature."""
    semantic = torch.randint(-2, 3, (500, 3)).float()
    queries, targets = torch.randint(-2, 3, (30, 3)).float() * 0.3, torch.randint(501, (30,))
    lists = some_lists("padded", 30, 500, 0.5, 0.3)
    if mixture == "of weight 0":
        lists = lists._replace(weight=0.0)
    elif mixture == "of probability 0":
        lists = lists._replace(probabilities=torch.zeros_like(lists.probabilities))
    else:
        empty = torch.zeros(30, 0)
        lists = lists._replace(ids=empty.long(), probabilities=empty)
    options = {"exclude": torch.randint(-1, 501, (30, 50))}
    found = af.topk(queries, 400, semantic, None, **options, mixture=lists)
    expected = af.topk(queries, 400, semantic, None, **options)
    assert torch.equal(found.indices, expected.indices)
    ranks = af.target_ranks(queries, targets, semantic, None, **options, mixture=lists)
    assert torch.equal(ranks, af.target_ranks(queries, targets, semantic, None, **options))


@pytest.mark.parametrize("temperature", [1.0, 0.3])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype, temperature: float) -> None:
    """Scores of listed items are rounded as those of all are."""
    embeddings, queries = torch.randn(300, 19).to(dtype), torch.randn(9, 19).to(dtype)
    mixture = some_lists("padded", 9, 300, 0.3, temperature)
    found = af.topk(queries, 300, None, embeddings, mixture=mixture)
    expected = reference.topk(wide(queries), 300, None, wide(embeddings), mixture=mixture)
    check_order(queries, found, None, embeddings, expected, mixture=mixture)
    nothing = af.topk(queries, 300, None, embeddings, mixture=mixture._replace(weight=0.0))
    plain = af.topk(queries, 300, None, embeddings)
    assert torch.equal(nothing.indices, plain.indices)


def test_equals_are_ordered_by_id(threads: int) -> None:
    """Listed or not: items of one row and one probability, and those whose probability is 0."""
    embeddings = torch.ones(200, 1)
    ids = torch.tensor([[190, 3, 77, 150]])
    mixture = af.Mixture(ids, torch.tensor([[0.25, 0.25, 0.0, 0.25]]), 0.5)
    values, found = af.topk(torch.ones(1, 1), 200, None, embeddings, mixture=mixture)
    others = [i for i in range(200) if i not in (3, 150, 190)]
    assert found[0].tolist() == [3, 150, 190, *others]
    expected = [math.log(0.5 / 200 + 0.125)] * 3 + [math.log(0.5 / 200)] * 197
    torch.testing.assert_close(values[0].cpu(), torch.tensor(expected))
    for place in (0, 1, 2, 3, 77 + 2, 199):
        rank = af.target_ranks(torch.ones(1, 1), found[:, place], None, embeddings, mixture=mixture)
        assert rank.item() == place


def test_probabilities_of_any_size(isa: str) -> None:
    """Where scores are far apart, each side of the mixture may be lost beside the other."""
    embeddings = torch.tensor([-500.0, -499.0, 0.0, 60.0, 80.0, 80.0])[:, None]
    mixture = af.Mixture(torch.tensor([[0, 1, 4]]), torch.tensor([[1e-30, 0.6, 1e-30]]), 0.5)
    values, ids = af.topk(torch.ones(1, 1), 6, None, embeddings, mixture=mixture)
    assert ids.tolist() == [[1, 4, 5, 3, 0, 2]]
    scores = embeddings.double().cpu().T
    expected = reference.log_probabilities(scores, mixture).gather(1, ids.cpu())
    torch.testing.assert_close(values.double().cpu(), expected, rtol=1e-6, atol=1e-4)


@pytest.mark.parametrize("weight", WEIGHTS)
def test_first_pass(weight: object, first_pass_isa: str) -> None:
    """Bit for bit as without."""
    semantic, embeddings = TableCase(num_embeddings=3000).tables()
    if not native.runs_on_cpu(semantic):
        pytest.skip("no first pass there")
    queries, targets = torch.randn(40, 19), torch.randint(3001, (40,))
    mixture = some_lists("padded", 40, 3000, weight)
    targets[:20] = mixture.ids[:20, 0].clamp(min=0)
    options = {"exclude": torch.randint(-1, 3001, (40, 20)), "mixture": mixture}
    found = af.topk(queries, 50, semantic, embeddings, first_pass="int8", **options)
    expected = af.topk(queries, 50, semantic, embeddings, **options)
    assert torch.equal(found.values, expected.values)
    assert torch.equal(found.indices, expected.indices)
    ranks = af.target_ranks(queries, targets, semantic, embeddings, first_pass="int8", **options)
    assert torch.equal(ranks, af.target_ranks(queries, targets, semantic, embeddings, **options))


def test_does_not_depend_on_threads(isa: str) -> None:
    semantic, embeddings = TableCase(num_embeddings=5000).tables()
    queries, mixture = torch.randn(60, 19), some_lists("padded", 60, 5000, "each")
    results = []
    for count in (1, 2, 3, 7):
        torch.set_num_threads(count)
        results.append(af.topk(queries, 50, semantic, embeddings, mixture=mixture))
    for values, ids in results[1:]:
        assert torch.equal(values, results[0][0])
        assert torch.equal(ids, results[0][1])


@pytest.mark.parametrize("form", FORMS)
def test_a_single_query(form: str) -> None:
    semantic, embeddings = TableCase().tables()
    query, mixture = torch.randn(19), some_lists(form, 1, 261, 0.4)
    expected = af.topk(query[None], 10, semantic, embeddings, mixture=mixture)
    if form == "padded":
        mixture = mixture._replace(ids=mixture.ids[0], probabilities=mixture.probabilities[0])
    found = af.topk(query, 10, semantic, embeddings, mixture=mixture)
    assert torch.equal(found.values, expected.values[0])
    assert torch.equal(found.indices, expected.indices[0])
    assert torch.equal(
        reference.topk(wide(query), 10, wide(semantic), wide(embeddings), mixture=mixture)[1],
        found.indices.cpu(),
    )
    rank = af.target_ranks(query, found.indices[3], semantic, embeddings, mixture=mixture)
    assert rank.item() == 3


def test_weights_of_every_kind() -> None:
    """A number, a tensor of none or of one dimension, of any float type."""
    semantic, embeddings = TableCase().tables()
    queries, mixture = torch.randn(6, 19), some_lists("padded", 6, 261, 0.5)
    expected = af.topk(queries, 10, semantic, embeddings, mixture=mixture)
    for weight in (
        np.float32(0.5),
        torch.tensor(0.5),
        torch.full((6,), 0.5).half(),
        torch.full((6,), 0.5).double(),
    ):
        found = af.topk(queries, 10, semantic, embeddings, mixture=mixture._replace(weight=weight))
        assert torch.equal(found.values, expected.values)
    other = mixture._replace(ids=mixture.ids.int(), probabilities=mixture.probabilities.double())
    found = af.topk(queries, 10, semantic, embeddings, mixture=other)
    assert torch.equal(found.indices, expected.indices)


class Adapter(torch.nn.Module):
    """Of no ID embeddings."""

    def __init__(self) -> None:
        super().__init__()
        self.map = torch.nn.Linear(8, 5)

    def forward(self, language: torch.Tensor, own: None) -> torch.Tensor:
        return self.map(language)


@pytest.mark.parametrize("kind", ["original", "projected", "soft", "learned", "adapted", "select"])
def test_item_tables(kind: str) -> None:
    """Ranked by their embeddings' own softmax, however these are stored; the values are its."""
    rows = torch.randn(60, 8) * torch.linspace(3, 1, 8)
    space = af.SemanticSpace.from_embeddings(rows.cpu())
    if kind == "adapted":
        table = AdaptedTable(rows, Adapter(), None, 5)
    else:
        options = {"space_split": kind} if kind in ("soft", "learned") else {"coordinates": kind}
        options = {} if kind == "select" else options
        fusion = "add" if kind in ("soft", "learned") else "concat"
        table = af.ItemTable.from_space(
            space, rows.cpu(), 8, 4, fusion=fusion, init="normal", **options
        ).to(rows.device)
    table.eval()
    if kind == "select":
        table = table.select(torch.arange(0, 60, 2))
    n = table.num_embeddings
    queries, mixture = torch.randn(3, table.embedding_dim), some_lists("padded", 3, n, 0.4, 1.5)
    with torch.no_grad():
        scores = table.score_all(queries).double().cpu()
        found = table.topk(queries, n, mixture=mixture)
        expected = reference.log_probabilities(scores, mixture)
        torch.testing.assert_close(
            found.values.double().cpu(), expected.sort(descending=True).values, rtol=0, atol=1e-4
        )
        torch.testing.assert_close(
            expected.gather(1, found.indices.cpu()), found.values.double().cpu(), rtol=0, atol=1e-4
        )
        ranks = table.target_ranks(queries, found.indices[:, 7], mixture=mixture)
    assert ranks.tolist() == [7, 7, 7]


def test_cosines_of_clipped_coordinates_are_refused() -> None:
    rows = torch.randn(60, 8)
    space = af.SemanticSpace.from_embeddings(rows.cpu())
    table = af.ItemTable.from_space(space, rows.cpu(), 5, 2, coordinates="original", init="normal")
    mixture = some_lists("padded", 2, 60, 0.4)
    for call in (
        lambda: table.topk(torch.randn(2, 8), 3, "cosine", mixture=mixture),
        lambda: table.target_ranks(
            torch.randn(2, 8), torch.zeros(2).long(), "cosine", mixture=mixture
        ),
    ):
        with pytest.raises(NotImplementedError, match="similarity: got 'cosine' with coordinates"):
            call()


NUMBERS = st.sampled_from([-2.0, -1.0, -0.0, 0.0, 1.0, 2.0, math.nan, math.inf, -math.inf])


@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_any_catalog(data: st.DataObject) -> None:
    """Bit for bit the order of scores, those of listed items raised, with NaN and infinities; the
    places are those that ``target_ranks`` finds."""
    items, batch = data.draw(st.integers(1, 30)), data.draw(st.integers(0, 4))
    dim = data.draw(st.integers(1, 3))

    def array(rows: int, cols: int) -> torch.Tensor:
        size = rows * cols
        return torch.tensor(data.draw(st.lists(NUMBERS, min_size=size, max_size=size))).reshape(
            rows, cols
        )

    def lists() -> list[list[int]]:
        ids = st.lists(st.integers(0, items), max_size=items, unique=True)
        return data.draw(st.lists(ids, min_size=batch, max_size=batch))

    def padded(rows: list[list[int]]) -> torch.Tensor:
        width = max([1, *map(len, rows)])
        filled = [row + [-1] * (width - len(row)) for row in rows]
        return torch.tensor(filled, dtype=torch.int64).reshape(batch, width)

    queries, embeddings = array(batch, dim), array(items, dim)
    ids = padded(lists())
    sizes = st.sampled_from([0.0, 1e-40, 0.01, 0.25, 1.0])
    numbers = data.draw(st.lists(sizes, min_size=ids.numel(), max_size=ids.numel()))
    weight = data.draw(st.sampled_from([0.0, 0.2, 0.999]))
    probabilities = torch.tensor(numbers).reshape(ids.shape)
    mixture = af.Mixture(ids, probabilities, weight, data.draw(st.sampled_from([1.0, 0.25])))
    options = {"exclude": padded(lists())}
    if data.draw(st.booleans()):
        options["only"] = padded(lists())
    k = data.draw(st.integers(1, items))
    before = _core.isa()
    _core.set_isa(data.draw(st.sampled_from(_core.supported_isas())))
    try:
        values, found = af.topk(queries, k, None, embeddings, **options, mixture=mixture)
        for place in range(k):
            filler = found[:, place] == -1
            targets = found[:, place].masked_fill(filler, items)
            ranks = af.target_ranks(queries, targets, None, embeddings, **options, mixture=mixture)
            assert torch.equal(ranks, torch.where(filler, -1, place))
        scores = af.score_all(queries, None, embeddings)
        given = module.split_mixture(mixture, queries)
        tables = af.ops.tables.FusedTables.checked(None, embeddings, "concat")
        softmax = module.softmax_of(queries, tables, given)
    finally:
        _core.set_isa(before)
    dense = torch.zeros(batch, items + 2, dtype=torch.float64)
    dense.scatter_(1, ids.masked_fill(ids < 0, items + 1), probabilities.double())
    raised = softmax.raised(scores, dense[:, :items])
    left_out = reference.left_out_of(options.get("only"), options["exclude"], batch, items)
    for b, order in enumerate(reference.in_order(raised)):
        order = order[~left_out[b, order]][:k]
        assert found[b, : len(order)].tolist() == order.tolist()
        expected = softmax.of_rows(slice(b, b + 1)).log_probabilities(raised[b, order])[0]
        assert torch.equal(values[b, : len(order)].nan_to_num(99.0), expected.nan_to_num(99.0))
        assert (found[b, len(order) :] == -1).all()


IDS, Q = torch.tensor([[0, 4], [7, -1]]), torch.full((2, 2), 0.25)


@pytest.mark.parametrize(
    ("mixture", "error", "message"),
    [
        ((IDS, Q, 0.5), TypeError, "mixture: got tuple; expected a Mixture"),
        (af.Mixture(IDS.tolist(), Q, 0.5), TypeError, "mixture.ids: got list"),
        (af.Mixture(IDS.float(), Q, 0.5), TypeError, "mixture.ids: got torch.float32"),
        (af.Mixture(IDS[0], Q[0], 0.5), ValueError, r"mixture.ids: got shape \(2,\); expected \(2"),
        (af.Mixture(IDS[:1], Q[:1], 0.5), ValueError, r"mixture.ids: got shape \(1, 2\)"),
        (af.Mixture(IDS, Q[:, :1], 0.5), ValueError, r"mixture.probabilities: got shape \(2, 1\)"),
        (af.Mixture(IDS, Q.half(), 0.5), TypeError, "mixture.probabilities: got torch.float16"),
        (af.Mixture(IDS, [0.5], 0.5), TypeError, "mixture.probabilities: got list"),
        (af.Mixture(IDS, Q, 1.0), ValueError, "mixture.weight: got 1.0; expected 0 <= weight < 1"),
        (af.Mixture(IDS, Q, -0.1), ValueError, "mixture.weight: got -0.1"),
        (af.Mixture(IDS, Q, math.nan), ValueError, "mixture.weight: got nan"),
        (af.Mixture(IDS, Q, "half"), TypeError, "mixture.weight: got str; expected a number"),
        (af.Mixture(IDS, Q, IDS), TypeError, "mixture.weight: got torch.int64"),
        (af.Mixture(IDS, Q, Q), ValueError, r"mixture.weight: got shape \(2, 2\)"),
        (af.Mixture(IDS, Q, Q[0] * 4), ValueError, "mixture.weight: got a tensor of another"),
        (af.Mixture(IDS, Q, 0.5, 0.0), ValueError, "mixture.temperature: got 0.0"),
        (af.Mixture(IDS, Q, 0.5, math.inf), ValueError, "mixture.temperature: got inf"),
        (af.Mixture(IDS, Q, 0.5, None), TypeError, "mixture.temperature: got NoneType"),
        (af.Mixture(IDS, -Q, 0.5), ValueError, "mixture.probabilities: got another number"),
        (af.Mixture(IDS, Q * 5, 0.5), ValueError, "mixture.probabilities: got another number"),
        (af.Mixture(IDS, Q * math.nan, 0.5), ValueError, "mixture.probabilities: got another"),
        (af.Mixture(IDS * 0, Q, 0.5), ValueError, "mixture.ids: got an item twice in a list"),
        (af.Mixture(IDS + 3, Q, 0.5), IndexError, "mixture.ids: got 10 at position 2"),
        (af.Mixture(IDS - 1, Q, 0.5), IndexError, "mixture.ids: got -2 at position 3"),
        (af.Mixture(IDS, Q.to("meta"), 0.5), ValueError, "mixture.probabilities: got device meta"),
        (af.Mixture(IDS[0], Q[0], 0.5, 1.0, IDS[0]), ValueError, "mixture offsets: got shape"),
        (
            af.Mixture(IDS[0], Q[0], 0.5, 1.0, torch.tensor([0, 2, 1])),
            ValueError,
            "mixture: got offsets",
        ),
    ],
)
def test_refusals(mixture: object, error: type[Exception], message: str) -> None:
    semantic, embeddings = torch.randn(9, 4), torch.randn(9, 3)
    queries, targets = torch.randn(2, 7), torch.tensor([1, 2])
    if not native.runs_on_cpu(queries):
        pytest.skip("the inputs are made for the CPU")
    with pytest.raises(error, match=message):
        af.topk(queries, 3, semantic, embeddings, mixture=mixture)
    with pytest.raises(error, match=message):
        af.target_ranks(queries, targets, semantic, embeddings, mixture=mixture)


@pytest.mark.parametrize(
    ("argument", "form"),
    [(a, f) for a in ("exclude", "only") for f in ("shared", "padded", "offsets")][1:],
)
def test_ids_of_others_are_checked_by_their_names(argument: str, form: str) -> None:
    semantic, embeddings = torch.randn(9, 4), torch.randn(9, 3)
    queries, targets = torch.randn(2, 7), torch.tensor([1, 2])
    if not native.runs_on_cpu(queries):
        pytest.skip("a GPU does not make the host wait for its checks of ids")
    ids = torch.tensor([[1, 2, 3], [2, 77, 3]])
    given = {"shared": ids[1], "padded": ids, "offsets": (torch.tensor([0, 1, 6]), ids.flatten())}
    options = {argument: given[form], "mixture": some_lists("offsets", 2, 9, 0.5)}
    with pytest.raises(
        IndexError, match=rf"^{argument}: got 77 at position {1 + 3 * (form != 'shared')}"
    ):
        af.topk(queries, 3, semantic, embeddings, **options)
    with pytest.raises(IndexError, match=rf"^{argument}: got 77"):
        af.target_ranks(queries, targets, semantic, embeddings, **options)


def test_no_first_pass_beside_only() -> None:
    semantic, embeddings = TableCase(num_embeddings=30).tables()
    if not native.runs_on_cpu(semantic):
        pytest.skip("no first pass there")
    options = {"first_pass": "int8", "only": torch.tensor([3])}
    with pytest.raises(ValueError, match="first_pass: got a first pass together with only"):
        af.topk(torch.randn(2, 19), 3, semantic, embeddings, **options,
                mixture=some_lists("padded", 2, 30, 0.5))  # fmt: skip
