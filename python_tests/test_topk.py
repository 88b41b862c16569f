"""``topk`` against its definition."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from op_inputs import CASES, TableCase, assert_near, wide

import alphafuse_ext as af
from alphafuse_ext import _core
from alphafuse_ext.ops import native, reference
from alphafuse_ext.ops.tables import FusedTables

pytestmark = pytest.mark.usefixtures("one_thread", "on_device")


def check(
    queries: torch.Tensor,
    k: int,
    semantic: torch.Tensor | None,
    embeddings: torch.Tensor | None,
    **options: object,
) -> None:
    """Values against the float64 ones, to rounding; ids and their order exactly, as scored."""
    values, ids = af.topk(queries, k, semantic, embeddings, **options)
    expected, _ = reference.topk(wide(queries), k, wide(semantic), wide(embeddings), **options)
    assert values.dtype == torch.float32
    assert ids.dtype == torch.int64
    assert_near(values, expected)
    options.pop("exclude", None)
    scores = af.score_all(queries.float(), semantic, embeddings, **options)
    real = ids >= 0
    assert torch.equal(real, ~values.eq(-torch.inf))
    assert torch.equal(values[real], scores.gather(1, ids.clamp(min=0))[real])
    falling = (values[:, :-1] > values[:, 1:]) | ~real[:, 1:]
    rising_ids = (values[:, :-1] == values[:, 1:]) & (ids[:, :-1] < ids[:, 1:])
    assert (falling | rising_ids).all()


@pytest.mark.parametrize("similarity", ["dot", "cosine"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_values_and_ids(case: TableCase, similarity: str, isa: str) -> None:
    semantic, embeddings = case.tables()
    k = min(20, case.num_embeddings)
    queries = torch.randn(53, case.dim)
    check(queries, k, semantic, embeddings, fusion=case.fusion, similarity=similarity)


@pytest.mark.parametrize("batch", [0, 1, 49])
@pytest.mark.parametrize("k", [1, 2, 300, 1000])
def test_sizes(batch: int, k: int, isa: str, threads: int) -> None:
    semantic, embeddings = TableCase(num_embeddings=1000).tables()
    check(torch.randn(batch, 19), k, semantic, embeddings)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_queries(dtype: torch.dtype) -> None:
    semantic, embeddings = TableCase().tables()
    check(torch.randn(5, 19).to(dtype), 10, semantic, embeddings)


@pytest.mark.parametrize("exclude", [None, torch.tensor([4, -1, 7])])
def test_a_single_query(exclude: torch.Tensor | None) -> None:
    """As a batch of one, without its dimension; both named as ``torch.topk`` names them."""
    semantic, embeddings = TableCase().tables()
    query = torch.randn(19)
    found = af.topk(query, 10, semantic, embeddings, exclude=exclude)
    rows = None if exclude is None else exclude[None]
    expected = af.topk(query[None], 10, semantic, embeddings, exclude=rows)
    assert found.values.shape == found.indices.shape == (10,)
    assert torch.equal(found.values, expected.values[0])
    assert torch.equal(found.indices, expected.indices[0])
    table = af.ItemTable(semantic, embeddings)
    assert torch.equal(table.topk(query, 10, exclude=exclude).indices, found.indices)


def small_integers(*shape: int) -> torch.Tensor:
    """Products of these are exact in float32, and ties abound."""
    return torch.randint(-2, 3, shape).float()


@pytest.mark.parametrize("form", ["none", "padded", "offsets"])
def test_ties_and_exclusion(form: str, isa: str, threads: int) -> None:
    semantic, embeddings = small_integers(700, 3), small_integers(700, 2)
    queries = small_integers(50, 5)
    exclude = None
    if form == "padded":
        exclude = torch.randint(-1, 701, (50, 300))
    elif form == "offsets":
        counts = torch.randint(0, 400, (50,))
        exclude = (
            torch.nn.functional.pad(counts.cumsum(0), (1, 0)),
            torch.randint(700, (int(counts.sum()),)),
        )
    for k in (1, 10, 700):
        values, ids = af.topk(queries, k, semantic, embeddings, exclude=exclude)
        expected = reference.topk(queries, k, semantic, embeddings, exclude=exclude)
        assert torch.equal(values, expected[0])
        assert torch.equal(ids, expected[1])


def test_does_not_depend_on_threads(isa: str) -> None:
    semantic, embeddings = TableCase(num_embeddings=5000).tables()
    queries = torch.randn(60, 19)
    results = []
    for count in (1, 2, 3, 7):
        torch.set_num_threads(count)
        results.append(af.topk(queries, 50, semantic, embeddings, similarity="cosine"))
    for values, ids in results[1:]:
        assert torch.equal(values, results[0][0])
        assert torch.equal(ids, results[0][1])


def scratch_of(kernel: Callable, arguments: tuple, where: tuple) -> int:
    """Bytes that a kernel asks for."""
    asked = []

    def allocate(count: int) -> torch.Tensor:
        asked.append(count)
        return torch.empty(count, dtype=torch.uint8)

    kernel(*arguments, (*where[:2], allocate, *where[3:]))
    return sum(asked)


@pytest.mark.parametrize("similarity", ["dot", "cosine"])
@pytest.mark.parametrize("k", [1, 100])
@pytest.mark.parametrize("batch", [1, 16, 150])
def test_scratch_memory(batch: int, k: int, similarity: str, device: torch.device) -> None:
    """It has the bounds that csrc/cuda/topk.cu and target_ranks.cu state, at any length."""
    queries = torch.randn(batch, 6)
    kernels, where = native.kernels(queries)
    if kernels is _core.cpu:
        pytest.skip("the CPU's kernels are not given scratch memory")
    emulated = device.type == "cpu"
    blocks = 4 if emulated else 2 * torch.cuda.get_device_properties(device).multi_processor_count
    query_tiles = -(-batch // (128 if batch > 16 else 16))
    places = 1 << (k - 1).bit_length()
    for rows in (200, 3000, 9000):
        semantic, ids = torch.randn(rows, 4), torch.randn(rows, 2)
        tables = FusedTables(semantic, ids, "concat", similarity == "cosine").native()
        values, best = torch.empty(batch, k), torch.empty(batch, k, dtype=torch.int64)
        targets, ranks = torch.zeros(2, batch, dtype=torch.int64)
        norms = 4 * rows if similarity == "cosine" else 0
        parts = min(-(-rows // 128), -(-blocks // query_tiles))
        capacity = k + min(max(3 * k, 512), max(k, 1024))
        of_scores = rows < (400 if emulated else 100_000)
        merged = -(-parts // (2 if emulated else 16))
        lists = parts * (8 * capacity + 4) + merged * (8 * k + 4)
        a_query = 4 * rows if of_scores else lists
        bound = norms + batch * (a_query + 8 * places) + 6 * 256
        arguments = (tables, queries, None, [], values, best)
        assert 0 < scratch_of(kernels.topk, arguments, where) <= bound
        scores = torch.zeros(batch)
        arguments = (tables, queries, targets, scores, None, [], ranks)
        bound = norms + 8 * batch * parts + 2 * 256
        assert 0 < scratch_of(kernels.target_ranks, arguments, where) <= bound


def test_nothing_left(isa: str) -> None:
    semantic, embeddings = TableCase().tables()
    exclude = torch.arange(261).expand(2, -1)
    values, ids = af.topk(torch.randn(2, 19), 3, semantic, embeddings, exclude=exclude)
    assert torch.equal(values, torch.full((2, 3), -torch.inf))
    assert torch.equal(ids, torch.full((2, 3), -1))


def test_minus_infinity_and_nan_are_items_too(isa: str, threads: int) -> None:
    """They come before the fillers: -inf first, NaN last of all."""
    embeddings = torch.ones(300, 1)
    embeddings[10::7] = torch.nan
    embeddings[11::7] = -torch.inf
    exclude = torch.arange(40)[None]
    expected = reference.topk(torch.ones(1, 1), 300, None, embeddings, exclude=exclude)
    values, ids = af.topk(torch.ones(1, 1), 300, None, embeddings, exclude=exclude)
    assert torch.equal(ids, expected[1])
    torch.testing.assert_close(values, expected[0], rtol=0, atol=0, equal_nan=True)
    assert values[0, 259].isnan()
    assert ids[0, 260] == -1


@pytest.mark.parametrize("k", [1, 31, 100, 1000, 2999, 3000])
@pytest.mark.parametrize("order", ["random", "ascending", "descending"])
def test_lists_of_any_length(order: str, k: int, threads: int) -> None:
    """Lists drop what is not among the best now and then; with ties, NaN and items left out."""
    scores = torch.randint(-40, 41, (3000,)).float()
    scores[::11] = torch.nan
    scores[::13] = -torch.inf
    if order != "random":
        scores = scores.sort(descending=order == "descending").values
    exclude = torch.randint(-1, 3001, (2, 50))
    queries, embeddings = torch.tensor([[1.0], [0.5]]), scores[:, None]
    expected = reference.topk(queries, k, None, embeddings, exclude=exclude)
    values, ids = af.topk(queries, k, None, embeddings, exclude=exclude)
    assert torch.equal(ids, expected[1])
    torch.testing.assert_close(values, expected[0], rtol=0, atol=0, equal_nan=True)


def test_signed_zeros_are_equal(isa: str) -> None:
    embeddings = torch.tensor([0.0, -0.0, 0.0, -0.0, 1.0])[:, None]
    _, ids = af.topk(torch.ones(1, 1), 5, None, embeddings)
    assert ids.tolist() == [[4, 0, 1, 2, 3]]


def test_no_gradient() -> None:
    semantic, embeddings = TableCase().tables()
    queries = torch.randn(2, 19, requires_grad=True)
    values, _ = af.topk(queries, 3, semantic, embeddings.requires_grad_())
    assert not values.requires_grad


NUMBERS = st.sampled_from([-2.0, -1.0, -0.0, 0.0, 1.0, 2.0, math.nan, math.inf])


@st.composite
def problems(draw: st.DrawFn) -> tuple:
    """Queries, tables, exclusion, instruction set: few distinct scores, NaN and infinities."""
    items = draw(st.integers(1, 40))
    batch = draw(st.integers(0, 4))
    dim = draw(st.integers(1, 3))

    def array(rows: int, cols: int) -> torch.Tensor:
        values = draw(st.lists(NUMBERS, min_size=rows * cols, max_size=rows * cols))
        return torch.tensor(values).reshape(rows, cols)

    ids = st.lists(st.integers(0, items), max_size=items)
    lists = draw(st.lists(ids, min_size=batch, max_size=batch))
    width = max([1, *map(len, lists)])
    filled = [row + [-1] * (width - len(row)) for row in lists]
    padded = torch.tensor(filled, dtype=torch.int64).reshape(batch, width)
    offsets = torch.tensor([0, *map(len, lists)]).cumsum(0)
    flat = torch.tensor([i for row in lists for i in row], dtype=torch.int64)
    exclude = draw(st.sampled_from([None, padded, (offsets, flat)]))
    isa = draw(st.sampled_from(_core.supported_isas()))
    return array(batch, dim), array(items, dim), exclude, isa


@given(problem=problems(), data=st.data())
@settings(max_examples=150, deadline=None)
def test_any_catalog(problem: tuple, data: st.DataObject) -> None:
    """Equal to the definition, and its places are those that ``target_ranks`` finds."""
    queries, embeddings, exclude, isa = problem
    k = data.draw(st.integers(1, len(embeddings)))
    before = _core.isa()
    _core.set_isa(isa)
    try:
        values, ids = af.topk(queries, k, None, embeddings, exclude=exclude)
        for place in range(k):
            targets = ids[:, place].clone()
            filler = targets == -1
            targets[filler] = len(embeddings)
            ranks = af.target_ranks(queries, targets, None, embeddings, exclude=exclude)
            assert torch.equal(ranks, torch.where(filler, -1, place))
    finally:
        _core.set_isa(before)
    expected = reference.topk(queries.double(), k, None, embeddings.double(), exclude=exclude)
    torch.testing.assert_close(values.double(), expected[0], rtol=0, atol=0, equal_nan=True)
    assert torch.equal(ids, expected[1])


S, E, Q = torch.randn(9, 4), torch.randn(9, 3), torch.randn(2, 7)
ROWS = torch.tensor([[0], [1]])


@pytest.mark.parametrize(
    ("k", "exclude", "error", "message"),
    [
        (0, None, ValueError, "k: got 0; expected 1 <= k <= 9"),
        (10, None, ValueError, "k: got 10; expected 1 <= k <= 9"),
        (2.0, None, TypeError, "k: got 2.0"),
        (True, None, TypeError, "k: got True"),
        (1, ROWS[:1], ValueError, r"exclude: got shape \(1, 1\); expected \(2, M\)"),
        (1, ROWS[0], ValueError, r"exclude: got shape \(1,\)"),
        (1, ROWS.float(), TypeError, "exclude: got torch.float32"),
        (1, [1, 2, 3], TypeError, "exclude: got list"),
        (1, ROWS * -2, IndexError, "exclude: got -2 at position 1; expected -1 <= id <= 9"),
        (1, ROWS * 10, IndexError, "exclude: got 10 at position 1"),
        (1, ROWS.to("meta"), ValueError, "exclude: got device meta"),
        (1, (torch.tensor([0, 1]), ROWS[0]), ValueError, r"exclude offsets: got shape \(2,\)"),
        (1, (torch.tensor([0, 1, 1]), ROWS), ValueError, r"exclude ids: got shape \(2, 1\)"),
        (1, (torch.tensor([0, 1, 2]), ROWS[0]), ValueError, "exclude: got offsets"),
        (1, (torch.tensor([1, 1, 1]), ROWS[0]), ValueError, "exclude: got offsets"),
        (1, (torch.tensor([0, 2, 1]), ROWS[0]), ValueError, "exclude: got offsets"),
        (1, (torch.tensor([0, 1, 1]), ROWS[0] + 10), IndexError, "exclude: got 10 at position 0"),
        (1, (torch.zeros(3), ROWS[0]), TypeError, "exclude offsets: got torch.float32"),
    ],
)
def test_bad_arguments(k: object, exclude: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        af.topk(Q, k, S, E, exclude=exclude)


def test_bad_queries() -> None:
    with pytest.raises(ValueError, match="queries: got shape"):
        af.topk(Q[:, 1:], 1, S, E)
    with pytest.raises(ValueError, match=r"queries: got shape \(1, 2, 7\); expected \(7,\) or \(B"):
        af.topk(Q[None], 1, S, E)
    with pytest.raises(ValueError, match=r"exclude: got shape \(2, 1\); expected \(M,\)"):
        af.topk(Q[0], 1, S, E, exclude=ROWS)


@pytest.mark.parametrize("three", [np.int64(3), np.uint8(3), torch.tensor(3)], ids=repr)
def test_k_of_any_integer_type(three: object) -> None:
    semantic, embeddings = TableCase().tables()
    queries = torch.randn(2, 19)
    found = af.topk(queries, three, semantic, embeddings)
    assert torch.equal(found.indices, af.topk(queries, 3, semantic, embeddings).indices)


@pytest.mark.parametrize("k", [np.True_, torch.tensor(True), np.float64(3), torch.tensor(3.0)])
def test_k_of_another_type(k: object) -> None:
    semantic, embeddings = TableCase().tables()
    with pytest.raises(TypeError, match=r"k: got .*; expected an int, 1 <= k <= 261"):
        af.topk(torch.randn(2, 19), k, semantic, embeddings)
