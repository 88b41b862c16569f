"""``CompressedTables``: a first pass changes how long an answer takes, never the answer."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from op_inputs import CASES, TableCase

import alphafuse_ext as af
from alphafuse_ext import CompressedTables, ItemTable, _core
from alphafuse_ext.items import item_embeddings

pytestmark = pytest.mark.usefixtures("one_thread")

Table = torch.Tensor | None


def check(
    queries: torch.Tensor,
    semantic: Table,
    embeddings: Table,
    fusion: str = "concat",
    similarity: str = "dot",
    exclude: torch.Tensor | None = None,
    k: int = 20,
) -> CompressedTables:
    """Bitwise what float32 gives; returns the copy, which holds what was counted."""
    tables = (semantic, embeddings, fusion, similarity)
    compressed = CompressedTables(*tables)
    rows = compressed.shape.num_embeddings
    k = min(k, rows)
    values, ids = af.topk(queries, k, *tables, exclude)
    found_values, found_ids = af.topk(queries, k, *tables, exclude, compressed)
    assert torch.equal(found_ids, ids)
    assert torch.equal(found_values.view(torch.int32), values.view(torch.int32))
    # Targets near the top, and anywhere.
    targets = torch.where(torch.arange(len(queries)) % 2 == 0, ids[:, k // 2], -1)
    targets = torch.where(targets < 0, torch.randint(rows + 1, targets.shape), targets)
    ranks = af.target_ranks(queries, targets, *tables, exclude)
    assert torch.equal(af.target_ranks(queries, targets, *tables, exclude, compressed), ranks)
    assert compressed.tiles > 0
    assert 0 <= compressed.redone <= compressed.tiles
    return compressed


@pytest.mark.parametrize("similarity", ["dot", "cosine"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_kinds_of_table(case: TableCase, similarity: str, first_pass_isa: str) -> None:
    semantic, embeddings = case.tables()
    queries = torch.randn(9, case.dim)
    check(queries, semantic, embeddings, case.fusion, similarity, k=5)


@pytest.mark.parametrize("batch", [1, 2, 7, 60])
@pytest.mark.parametrize("similarity", ["dot", "cosine"])
def test_large_catalog(batch: int, similarity: str, first_pass_isa: str, threads: int) -> None:
    semantic, embeddings = TableCase(num_embeddings=20_011, dim=24, null_dim=9).tables()
    exclude = torch.randint(-1, 20_012, (batch, 50))
    queries = torch.randn(batch, 24)
    compressed = check(queries, semantic, embeddings, "concat", similarity, exclude)
    assert compressed.redone < compressed.tiles


def adversaries() -> dict[str, tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Queries, semantic rows and ID embeddings that an error bound could get wrong."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    rows, semantic_dim, null_dim = 3000, 12, 8
    queries, semantic, ids = random(6, 20), random(rows, semantic_dim), random(rows, null_dim)
    steps = torch.randint(-2, 3, (rows, null_dim), generator=generator)
    found = {
        "equal rows": (queries, semantic[:1].repeat(rows, 1), ids[:1].repeat(rows, 1)),
        "rows equal but for one bit": (
            queries,
            semantic[:1].repeat(rows, 1),
            (ids[:1].view(torch.int32) + steps.int()).view(torch.float32),
        ),
        "zero rows": (queries, torch.zeros_like(semantic), torch.zeros_like(ids)),
        "zero queries": (torch.zeros_like(queries), semantic, ids),
        "scores all equal": (queries * (torch.arange(20) < 1), semantic * 0 + 2, ids),
        "few different scores": (
            torch.randint(-1, 2, (6, 20), generator=generator).float(),
            semantic.round(),
            ids.round(),
        ),
        "cancellation": (
            torch.cat([queries[:, :10], -queries[:, :10] * (1 + 1e-6)], 1),
            torch.cat([semantic[:, :10] * 1e3, semantic[:, :2] * 1e3], 1),
            semantic[:, 2:10] * 1e3,
        ),
    }
    scales = 10.0 ** torch.randint(-6, 7, (rows, 1), generator=generator)
    found["norms that differ by 12 orders"] = (queries, semantic * scales, ids * scales)
    for name, factor in {
        "huge": 1e18,
        "overflowing": 1e30,
        "tiny": 1e-22,
        "subnormal": 1e-39,
    }.items():
        found[f"{name} rows"] = (queries, semantic * factor, ids * factor)
        found[f"{name} queries"] = (queries * factor, semantic, ids)
        found[f"{name} both"] = (queries * factor, semantic * factor, ids * factor)
    outlier = semantic.clone()
    outlier[:, 3] *= 1e6
    found["one outlier dimension"] = (queries, outlier, ids)
    found["a query blind to it"] = (queries * (torch.arange(20) != 3), outlier, ids)
    found["a query that sees only it"] = (queries * (torch.arange(20) == 3), outlier, ids)
    one_row = semantic.clone()
    one_row[1234] *= 1e8
    found["one outlier row"] = (queries, one_row, ids)
    for name, value in {"nan": torch.nan, "inf": torch.inf, "-inf": -torch.inf}.items():
        rare, one = ids.clone(), queries.clone()
        rare[::97, 2] = value
        one[2, 5] = value
        found[f"{name} in rows"] = (queries, semantic, rare)
        found[f"{name} in a query"] = (one, semantic, ids)
        found[f"{name} in both"] = (one, semantic, rare)
    return found


@pytest.mark.parametrize("similarity", ["dot", "cosine"])
@pytest.mark.parametrize("fusion", ["concat", "add"])
@pytest.mark.parametrize("name", adversaries())
def test_adversarial_inputs(name: str, fusion: str, similarity: str, first_pass_isa: str) -> None:
    queries, semantic, ids = adversaries()[name]
    if fusion == "add":
        semantic = torch.cat([semantic, -ids[:, :8]], 1)
    check(queries, semantic, ids, fusion, similarity)


@st.composite
def any_tables(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, str]:
    """Values of every size, special ones too, and rows that repeat."""
    values = st.floats(width=32) | st.integers(-3, 3).map(float)
    dims = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    pool = draw(st.integers(1, 6))

    def table(rows: int, cols: int) -> torch.Tensor:
        drawn = draw(st.lists(values, min_size=rows * cols, max_size=rows * cols))
        return torch.tensor(drawn, dtype=torch.float32).reshape(rows, cols)

    rows = torch.randint(pool, (draw(st.integers(1, 400)),))
    queries = table(draw(st.integers(1, 3)), sum(dims))
    semantic, ids = (table(pool, cols)[rows] for cols in dims)
    return queries, semantic, ids, draw(st.sampled_from(_core.supported_isas()))


# Two kinds of NaN that meet in a sum: which is passed on is up to the compiler.
TWO_NANS = torch.zeros(1, 2), torch.tensor([[torch.inf]]), torch.tensor([[torch.nan]]), "scalar"


@example(problem=TWO_NANS, similarity="dot")
@given(problem=any_tables(), similarity=st.sampled_from(["dot", "cosine"]))
@settings(max_examples=200, deadline=None)
def test_any_tables(problem: tuple, similarity: str) -> None:
    queries, semantic, ids, isa = problem
    before = _core.isa()
    _core.set_isa(isa)
    try:
        check(queries, semantic, ids, similarity=similarity, k=3)
    finally:
        _core.set_isa(before)


def test_long_rows(first_pass_isa: str) -> None:
    """So many columns that sums of integers would overflow if queries kept all their bits."""
    semantic, ids = torch.rand(300, 3000) + 1, torch.rand(300, 1001) + 1
    check(torch.rand(3, 4001) + 1, semantic, ids)
    check(torch.ones(2, 4001), torch.ones(300, 3000), torch.ones(300, 1001))


def test_what_survives_is_counted(first_pass_isa: str) -> None:
    """Nothing can be ruled out among equal items, nearly everything among random ones."""
    ids, queries = torch.randn(50_000, 16), torch.randn(4, 16)
    random = CompressedTables(None, ids)
    equal = CompressedTables(None, ids[:1].expand(50_000, -1))
    assert (random.tiles, random.redone) == (0, 0)
    af.topk(queries, 10, None, ids, first_pass=random)
    af.topk(queries, 10, None, ids[:1].expand(50_000, -1), first_pass=equal)
    assert random.redone <= random.tiles / 3
    assert equal.redone == equal.tiles > 0
    once = random.tiles
    af.topk(queries, 10, None, ids, first_pass=random)
    assert random.tiles == 2 * once


@pytest.mark.parametrize("isa", ["avx2vnni", "avx512vnni", "amx", "amx_emulated"])
def test_products_of_bytes(isa: str) -> None:
    """The largest codes and numbers, whose sums an instruction that saturates would cut."""
    if isa not in _core.supported_isas():
        pytest.skip(f"this machine or build has no {isa}: its instructions are NOT tested here")
    before = _core.isa()
    _core.set_isa(isa)
    try:
        signs = torch.randint(0, 2, (3000, 256)).float() * 2 - 1
        signs[:20] = torch.linspace(1, 2, 20)[:, None]  # ahead of all
        compressed = check(torch.ones(20, 256), signs, None)
        assert compressed.redone < compressed.tiles
    finally:
        _core.set_isa(before)


def test_by_name() -> None:
    semantic, ids = TableCase().tables()
    queries = torch.randn(3, 19)
    values, found = af.topk(queries, 5, semantic, ids, first_pass="int8")
    expected = af.topk(queries, 5, semantic, ids)
    assert torch.equal(values, expected[0])
    assert torch.equal(found, expected[1])
    ranks = af.target_ranks(queries, found[:, 2], semantic, ids, first_pass="int8")
    assert ranks.tolist() == [2, 2, 2]


def test_memory_is_what_the_docstring_says() -> None:
    for columns, rounded_up in ((28, 28), (30, 32)):
        compressed = CompressedTables(torch.randn(6400, columns), torch.randn(6400, 12))
        held = sum(tensor.numel() * tensor.element_size() for tensor in compressed.tensors)
        assert held == 6400 * (rounded_up + 12 + 24)


# --- refreshed copies


def test_refresh() -> None:
    semantic, ids = TableCase().tables()
    assert ids is not None
    for similarity in ("dot", "cosine"):
        compressed = CompressedTables(semantic, ids, similarity=similarity)
        other = torch.randn_like(ids) * 3
        compressed.refresh(other)
        queries = torch.randn(30, 19)
        expected = af.topk(queries, 9, semantic, other, similarity=similarity)
        found = af.topk(queries, 9, semantic, other, similarity=similarity, first_pass=compressed)
        assert torch.equal(found[1], expected[1])
    with pytest.raises(ValueError, match="id_embeddings: got tables of TableShape"):
        compressed.refresh(torch.randn(261, 8))


def item_table() -> ItemTable:
    return ItemTable(torch.randn(3000, 8), torch.nn.Parameter(torch.randn(3000, 8)))


def check_item_table(table: ItemTable) -> None:
    queries = torch.randn(5, 16)
    values, ids = table.topk(queries, 10)
    found_values, found_ids = table.topk(queries, 10, first_pass="int8")
    assert torch.equal(ids, found_ids)
    assert torch.equal(values, found_values)
    ranks = table.target_ranks(queries, ids[:, 5], first_pass="int8")
    assert ranks.tolist() == [5] * 5


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("fused", [True, False])
def test_table_follows_an_optimizer(fused: bool, training: bool) -> None:
    """Fused optimizers write without PyTorch's counting it."""
    table = item_table()
    optimizer = torch.optim.Adam(table.parameters(), lr=1.0, fused=fused)
    for _ in range(3):
        table.train()
        if training:
            check_item_table(table)
        table.cross_entropy(torch.randn(4, 16), torch.arange(4)).backward()
        optimizer.step()
        table.train(training)
        check_item_table(table)


def test_table_follows_other_changes() -> None:
    table = item_table().eval()
    check_item_table(table)
    with torch.no_grad():
        table.id_embeddings.mul_(-3)
    check_item_table(table)
    table.load_state_dict(item_table().state_dict())
    check_item_table(table)
    table.id_embeddings = torch.nn.Parameter(torch.randn(3000, 8))
    check_item_table(table)
    table.semantic_rows.neg_()
    check_item_table(table)
    check_item_table(table.bfloat16().float())


def test_table_keeps_its_copy() -> None:
    table = item_table().eval()
    compressed = table.compressed()
    codes = compressed.tensors[2]
    assert table.compressed() is compressed
    assert compressed.tensors[2] is codes
    with torch.no_grad():
        table.id_embeddings.mul_(2)
    semantic_codes = compressed.tensors[0]
    assert table.compressed() is compressed
    assert compressed.tensors[0] is semantic_codes
    assert compressed.tensors[2] is not codes
    assert table.compressed("cosine") is not compressed


def test_automatic_first_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """``"auto"`` of ``topk`` is int8 for large catalogs in evaluation mode, of few queries for
    smaller ones, of many where int8 products are faster, and else nothing."""
    table = item_table()

    def has_first_pass(count: int = 5) -> bool:
        queries = torch.randn(count, 16)
        found = table.topk(queries, 10, first_pass="auto")
        assert torch.equal(found.indices, table.topk(queries, 10).indices)
        copies = table._compressed._kept
        blocks = copies["dot"].copy.tiles if copies else 0
        copies.clear()
        return blocks > 0

    assert not has_first_pass()
    monkeypatch.setattr(item_embeddings, "INT8_PAYS_FROM_FOR_FEW", 3000)
    assert not has_first_pass()
    table.eval()
    assert has_first_pass(8)
    assert not has_first_pass(9)
    monkeypatch.setattr(item_embeddings, "INT8_PAYS_FROM", 3000)
    assert has_first_pass(9)
    fast = [(name, True) for name in ("avx512", "avx512vnni", "avx512bf16", "avx2vnni", "amx")]
    for isa, pays in [*fast, ("avx2", False), ("neon", False), ("amx_emulated", False)]:
        monkeypatch.setattr(item_embeddings._core, "isa", lambda isa=isa: isa)
        assert has_first_pass(32)
        assert has_first_pass(33) == pays
    monkeypatch.setattr(item_embeddings, "INT8_PAYS_FROM", 3001)
    assert not has_first_pass(9)
    monkeypatch.setattr(item_embeddings, "INT8_PAYS_FROM_FOR_FEW", 3001)
    assert not has_first_pass()


def test_copies_of_a_table_make_their_own() -> None:
    table = item_table().eval()
    check_item_table(table)
    for other in (copy.deepcopy(table), pickle.loads(pickle.dumps(table))):
        with torch.no_grad():
            other.id_embeddings.neg_()
        check_item_table(other)
        assert other.compressed() is not table.compressed()
    check_item_table(table)


@pytest.mark.parametrize("kind", ["frozen", "id only", "add", "half"])
def test_kinds_of_item_table(kind: str) -> None:
    rows = torch.randn(3000, 16)
    check_item_table(
        {
            "frozen": lambda: ItemTable(rows, None),
            "id only": lambda: ItemTable(None, rows),
            "add": lambda: ItemTable(rows, rows[:, :4].clone(), fusion="add"),
            "half": lambda: ItemTable(rows[:, :9].half(), rows[:, :7].bfloat16()),
        }[kind]()
    )


# --- bad arguments

S, E, Q = torch.randn(9, 4), torch.randn(9, 3), torch.randn(2, 7)


@pytest.mark.parametrize(
    ("first_pass", "error", "message"),
    [
        ("int4", ValueError, "first_pass: got 'int4'; expected None, 'int8' or CompressedTables"),
        (8, TypeError, "first_pass: got int"),
        (CompressedTables(S[1:], E[1:]), ValueError, "num_embeddings=8"),
        (CompressedTables(torch.randn(9, 5), E), ValueError, "dim=8"),
        (CompressedTables(torch.randn(9, 3), S), ValueError, "null_dim=4"),
        (CompressedTables(S, E, similarity="cosine"), ValueError, "'cosine'"),
        (CompressedTables(torch.randn(9, 7), E, "add"), ValueError, "'add'"),
    ],
)
def test_bad_first_pass(first_pass: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        af.topk(Q, 2, S, E, first_pass=first_pass)
    with pytest.raises(error, match=message):
        af.target_ranks(Q, torch.tensor([0, 1]), S, E, first_pass=first_pass)


def test_bad_tables() -> None:
    with pytest.raises(ValueError, match="fusion: got 'mul'"):
        CompressedTables(S, E, "mul")
    with pytest.raises(ValueError, match="similarity: got 'l2'"):
        CompressedTables(S, E, similarity="l2")
    with pytest.raises(ValueError, match="id_embeddings: got"):
        CompressedTables(S, E[1:])


@pytest.mark.parametrize("k", [1, 100, 1000, 2999])
@pytest.mark.parametrize("order", ["random", "ascending", "descending"])
def test_long_lists_of_a_first_pass(order: str, k: int) -> None:
    """Bit for bit those without one; ties, and items left out."""
    scores = torch.randint(-40, 41, (3000,)).float()
    if order != "random":
        scores = scores.sort(descending=order == "descending").values
    queries, embeddings = torch.tensor([[1.0], [0.5]]), scores[:, None]
    exclude = torch.randint(-1, 3001, (2, 50))
    plain = af.topk(queries, k, None, embeddings, exclude=exclude)
    found = af.topk(queries, k, None, embeddings, exclude=exclude, first_pass="int8")
    assert torch.equal(found.indices, plain.indices)
    assert torch.equal(found.values, plain.values)
