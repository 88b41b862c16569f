"""``lookup`` against its definition."""

from __future__ import annotations

import importlib

import pytest
import torch
from op_inputs import CASES, TOLERANCE, TableCase, assert_near, check_against_reference, wide

import alphafuse_ext as af
from alphafuse_ext.ops import reference

pytestmark = pytest.mark.usefixtures("one_thread")

DTYPES = list(TOLERANCE)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_rows_are_exact(case: TableCase, isa: str, device: torch.device) -> None:
    """A row is the sum in float32, rounded once, so it can be compared bit by bit."""
    semantic, embeddings = case.tables(device)
    ids = torch.randint(case.num_embeddings + 1, (5, 7), device=device)
    rows = af.lookup(ids, semantic, embeddings, case.fusion)
    dtype = case.id_dtype or case.semantic_dtype
    exact = reference.lookup(ids.cpu(), wide(semantic), wide(embeddings), case.fusion)
    expected = exact.float().to(dtype)
    assert rows.dtype == dtype
    assert torch.equal(rows.cpu(), expected)


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("case", [case for case in CASES if case.id_dtype], ids=str)
def test_gradient(case: TableCase, sparse: bool, isa: str, device: torch.device) -> None:
    semantic, embeddings = case.tables(device)
    assert embeddings is not None
    ids = torch.randint(case.num_embeddings + 1, (3, 50), device=device)
    embeddings.requires_grad_()
    rows = af.lookup(ids, semantic, embeddings, case.fusion, sparse=sparse)
    upstream = torch.randn(rows.shape).to(rows.dtype)
    rows.backward(upstream.to(device))

    exact = wide(embeddings).requires_grad_()
    reference.lookup(ids.cpu(), wide(semantic), exact, case.fusion).backward(upstream.double())
    assert embeddings.grad is not None
    assert embeddings.grad.dtype == case.id_dtype
    assert embeddings.grad.is_sparse == sparse
    assert_near(embeddings.grad.to_dense(), exact.grad, embeddings.dtype)


def test_sparse_gradient_holds_touched_rows_only(device: torch.device) -> None:
    semantic, embeddings = TableCase(num_embeddings=4000).tables(device)
    embeddings.requires_grad_()
    ids = torch.tensor([[3999, 7, 4000], [7, 0, 2500]], device=device)
    rows = af.lookup(ids, semantic, embeddings, sparse=True)
    (grad,) = torch.autograd.grad(rows.sum(), embeddings)
    assert grad.is_coalesced()
    assert grad.indices().tolist() == [[0, 7, 2500, 3999]]
    values = torch.tensor([1.0, 2.0, 1.0, 1.0], device=device)[:, None].expand(4, 7)
    assert torch.equal(grad.values(), values)


def test_padding_row_is_zero_whatever_the_table(device: torch.device) -> None:
    semantic = torch.full((4, 3), torch.nan, device=device)
    rows = af.lookup(torch.tensor([4, 4], device=device), semantic, None)
    assert torch.equal(rows, torch.zeros(2, 3, device=device))


@pytest.mark.parametrize("shape", [(), (0,), (1,), (2, 0, 3), (2, 3, 4)])
def test_any_shape_of_ids(shape: tuple[int, ...], device: torch.device) -> None:
    semantic, embeddings = TableCase().tables(device)
    embeddings.requires_grad_()
    ids = torch.randint(261, shape, device=device)
    rows = af.lookup(ids, semantic, embeddings)
    assert rows.shape == (*shape, 19)
    rows.sum().backward()
    assert embeddings.grad.sum() == 7 * ids.numel()


def test_int32_ids_and_strided_inputs(device: torch.device) -> None:
    """Rows may be strided, as those of a slice of columns are; nothing is copied."""
    wide_table = torch.randn(50, 40, device=device)
    semantic, embeddings = wide_table[::2, 5:12], wide_table[1::2, 20:33]
    ids = torch.randint(26, (6, 8), device=device, dtype=torch.int32).T
    expected = reference.lookup(ids.cpu(), semantic.cpu(), embeddings.cpu())
    assert torch.equal(af.lookup(ids, semantic, embeddings).cpu(), expected)


def test_one_row_stands_for_all(threads: int) -> None:
    """A table expanded from one row: a row stride of zero."""
    semantic = torch.randn(1, 5).expand(1000, 5)
    rows = af.lookup(torch.arange(1000), semantic, None)
    assert torch.equal(rows, semantic)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("other", DTYPES)
def test_narrowing_of_every_half(dtype: torch.dtype, other: torch.dtype, isa: str) -> None:
    """All 65536 bit patterns of a half-precision type survive, and round as torch rounds."""
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int16)
    values = bits.view(other if other != torch.float32 else torch.bfloat16).to(other)[:, None]
    rows = af.lookup(torch.arange(2**16), values, torch.zeros(2**16, 1, dtype=dtype))
    expected = torch.cat([values, torch.zeros_like(values)], 1).to(dtype)
    torch.testing.assert_close(rows, expected, rtol=0, atol=0, equal_nan=True)


def test_rounding_to_half(isa: str) -> None:
    """Random bit patterns of float32, subnormals and infinities among them."""
    values = torch.randint(-(2**31), 2**31, (100_000, 1)).to(torch.int32).view(torch.float32)
    near_half = torch.randn(100_000, 1) * 10.0 ** torch.randint(-9, 6, (100_000, 1))
    for table in (values, near_half):
        for dtype in (torch.bfloat16, torch.float16):
            empty = torch.zeros(len(table), 1, dtype=dtype)
            rows = af.lookup(torch.arange(len(table)), table, empty)[:, :1]
            torch.testing.assert_close(rows, table.to(dtype), rtol=0, atol=0, equal_nan=True)


def test_gradient_does_not_need_the_old_values() -> None:
    """As with nn.Embedding, the table may be stepped in place before backward runs."""
    semantic, embeddings = TableCase().tables()
    embeddings.requires_grad_()
    rows = af.lookup(torch.tensor([1, 2]), semantic, embeddings)
    with torch.no_grad():
        embeddings.add_(1)
    rows.sum().backward()
    assert embeddings.grad[1:3].sum() == 14


def test_same_gradient_bit_by_bit() -> None:
    """Rows that many ids touch are summed in one order, whatever the threads."""
    semantic, embeddings = TableCase(num_embeddings=50).tables()
    ids, upstream = torch.randint(50, (10_000,)), torch.randn(10_000, 19)
    grads = []
    before = torch.get_num_threads()
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        table = embeddings.clone().requires_grad_()
        af.lookup(ids, semantic, table).backward(upstream)
        grads.append(table.grad)
    torch.set_num_threads(before)
    assert all(torch.equal(grad, grads[0]) for grad in grads)


@pytest.mark.parametrize("bad", [-1, 262, 2**40, -(2**62)])
def test_id_out_of_range(bad: int, device: torch.device) -> None:
    if device.type == "cuda":
        pytest.skip("an error that a GPU finds ends the use of it by the whole process")
    semantic, embeddings = TableCase().tables()
    ids = torch.randint(262, (10,))
    ids[6] = bad
    with pytest.raises(IndexError, match=rf"ids: got {bad} at position 6; expected 0 <= id <= 261"):
        af.lookup(ids, semantic, embeddings)


S, E = torch.randn(9, 4), torch.randn(9, 3)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([1], S, E), TypeError, "ids: got list"),
        ((torch.ones(2), S, E), TypeError, "ids: got torch.float32"),
        ((torch.tensor([1]), None, None), ValueError, "semantic_rows, id_embeddings: got None"),
        ((torch.tensor([1]), S.double(), E), TypeError, "semantic_rows: got torch.float64"),
        ((torch.tensor([1]), S, E.int()), TypeError, "id_embeddings: got torch.int32"),
        ((torch.tensor([1]), S.numpy(), E), TypeError, "semantic_rows: got ndarray"),
        ((torch.tensor([1]), S[0], E), ValueError, r"semantic_rows: got shape \(4,\)"),
        ((torch.tensor([1]), S[:0], E[:0]), ValueError, r"semantic_rows: got shape \(0, 4\)"),
        ((torch.tensor([1]), S, E[:, :0]), ValueError, r"id_embeddings: got shape \(9, 0\)"),
        ((torch.tensor([1]), S, E[:8]), ValueError, "id_embeddings: got 8 rows; expected 9"),
        ((torch.tensor([1]), E, S, "add"), ValueError, "id_embeddings: got 4 columns"),
        ((torch.tensor([1]), S, E, "sum"), ValueError, "fusion: got 'sum'"),
        ((torch.tensor([1]), S.T, None), ValueError, "semantic_rows: got column stride 4"),
        ((torch.tensor([1]), S.clone().requires_grad_(), E), ValueError, "semantic_rows: .* grad"),
        ((torch.tensor([1]), S, E.to("meta")), ValueError, "id_embeddings: got device meta"),
        ((torch.tensor([1], device="meta"), S, E), ValueError, "ids: got device meta"),
    ],
)
def test_bad_arguments(arguments: tuple, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        af.lookup(*arguments)


def test_lookup_in_a_graph(isa: str) -> None:
    """Rows go on into other operations; both gradients flow."""
    semantic, embeddings = TableCase().tables()
    ids = torch.randint(262, (4, 6))
    check_against_reference(
        lambda module, q, s, e: (module.lookup(ids, s, e) * q).tanh(),
        torch.randn(4, 6, 19),
        semantic,
        embeddings,
    )


def test_rows_alone_take_one_call_of_the_core(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without gradients no op's steps; tables are read anew, wherever their data are by then."""
    module = importlib.import_module("alphafuse_ext.ops.lookup")

    def op(*arguments: object) -> None:
        raise AssertionError("the op was called")

    monkeypatch.setattr(module, "_op", op)
    semantic, ids = torch.randn(9, 4), torch.tensor([[3, 9], [0, 8]])
    parameter = torch.nn.Parameter(torch.randn(9, 3))
    for table in (torch.randn(9, 3), torch.randn(12, 3)[:9], torch.randn(9, 3).bfloat16()):
        parameter.data = table
        with torch.no_grad():
            expected = reference.lookup(ids, wide(semantic), wide(table)).float().to(table.dtype)
            for rows in (af.lookup(ids, semantic, parameter), af.ItemTable(semantic, table)(ids)):
                assert rows.dtype == table.dtype
                assert torch.equal(rows, expected)
    with pytest.raises(AssertionError, match="the op was called"):
        af.lookup(ids, semantic, parameter)
    for bad in (torch.tensor([10]), torch.tensor([-1]), torch.tensor([1], dtype=torch.int32)):
        with torch.no_grad(), pytest.raises(AssertionError, match="the op was called"):
            af.lookup(bad, semantic, parameter)
