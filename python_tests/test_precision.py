"""What products are computed in: never on the CPU in less than float32."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from conftest import EMULATED
from op_inputs import assert_near, wide

import alphafuse_ext as af
from alphafuse_ext import _core
from alphafuse_ext.ops import native, reference
from alphafuse_ext.ops.precision import precision_of
from alphafuse_ext.ops.tables import FusedTables

FLOAT, BFLOAT, HALF = torch.float32, torch.bfloat16, torch.float16


@pytest.fixture
def tf32() -> Iterator[None]:
    """PyTorch's permission to use TF32."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    yield
    torch.set_float32_matmul_precision(before)


def chosen(
    queries: torch.dtype,
    semantic: torch.dtype | None,
    ids: torch.dtype | None,
    similarity: str = "dot",
    exact: bool = False,
) -> str:
    tensors = [None if t is None else torch.zeros(2, 2, dtype=t) for t in (queries, semantic, ids)]
    tables = FusedTables(tensors[1], tensors[2], "concat", similarity == "cosine")
    return precision_of(tensors[0], tables, exact)


@pytest.mark.parametrize("exact", [False, True])
def test_the_cpu_has_float32_only(exact: bool, tf32: None) -> None:
    with torch.autocast("cpu", BFLOAT):
        assert chosen(BFLOAT, BFLOAT, BFLOAT, exact=exact) == "float32"


emulated = pytest.mark.skipif(EMULATED not in _core.devices, reason="needs ALPHAFUSE_CUDA=emulated")


@emulated
def test_choice() -> None:
    with native.use_backend(EMULATED):
        for exact in (False, True):
            assert chosen(BFLOAT, BFLOAT, BFLOAT, exact=exact) == "bfloat16"
            assert chosen(HALF, HALF, None, exact=exact) == "float16"
            assert chosen(HALF, None, HALF, exact=exact) == "float16"
            for types in ((HALF, BFLOAT, HALF), (FLOAT, BFLOAT, BFLOAT), (BFLOAT, BFLOAT, FLOAT)):
                assert chosen(*types, exact=exact) == "float32"
            assert chosen(BFLOAT, BFLOAT, BFLOAT, "cosine", exact) == "float32"
        with torch.autocast("cpu", BFLOAT):
            assert chosen(FLOAT, HALF, FLOAT, "cosine") == "bfloat16"
            assert chosen(FLOAT, HALF, FLOAT, exact=True) == "float32"


@emulated
def test_tf32_where_torch_allows_it(tf32: None) -> None:
    with native.use_backend(EMULATED):
        assert chosen(FLOAT, BFLOAT, FLOAT) == "tf32"
        assert chosen(FLOAT, BFLOAT, FLOAT, exact=True) == "float32"
        assert chosen(BFLOAT, BFLOAT, BFLOAT) == "bfloat16"


@emulated
@pytest.mark.skipif(
    not hasattr(torch.backends.cuda.matmul, "fp32_precision"), reason="a setting of torch 2.9"
)
@pytest.mark.parametrize("older", ["highest", "high", None])
@pytest.mark.parametrize("newer", ["tf32", "ieee"])
def test_both_settings_of_tf32(older: str | None, newer: str) -> None:
    """The newer decides, where both were used; then the older one may not be asked for."""
    matmul = torch.backends.cuda.matmul
    before = torch.get_float32_matmul_precision(), matmul.fp32_precision
    try:
        if older is not None:
            torch.set_float32_matmul_precision(older)
        matmul.fp32_precision = newer
        expected = "tf32" if newer == "tf32" else "float32"
        with native.use_backend(EMULATED):
            assert chosen(FLOAT, BFLOAT, FLOAT) == expected
            assert chosen(FLOAT, BFLOAT, FLOAT, exact=True) == "float32"
    finally:
        torch.set_float32_matmul_precision(before[0])
        matmul.fp32_precision = before[1]
    assert torch.get_float32_matmul_precision() == before[0]


@emulated
def test_a_compiled_op_asks_for_tf32(tf32: None) -> None:
    """Within a whole graph."""
    semantic, ids, queries = torch.randn(150, 24), torch.randn(150, 8), torch.randn(20, 32)

    def scores() -> torch.Tensor:
        return af.score_all(queries, semantic, ids)

    with native.use_backend(EMULATED):
        compiled = torch.compile(scores, fullgraph=True, backend="aot_eager")
        assert torch.equal(compiled(), scores())
        assert not torch.equal(scores(), queries @ torch.cat([semantic, ids], 1).T)


@emulated
@pytest.mark.parametrize("similarity", ["dot", "cosine"])
@pytest.mark.parametrize("fusion", ["concat", "add"])
def test_scores_in_autocast(fusion: str, similarity: str) -> None:
    """Rounded to its type, and no further: what float64 makes of the rounded operands is near."""
    semantic, ids = torch.randn(150, 24), torch.randn(150, 24 if fusion == "add" else 8)
    queries = torch.randn(20, 24 if fusion == "add" else 32)
    with native.use_backend(EMULATED), torch.autocast("cpu", BFLOAT):
        scores = af.score_all(queries, semantic, ids, fusion, similarity)
    exact = reference.score_all(wide(queries), wide(semantic), wide(ids), fusion, similarity)
    error = (scores.double() - exact).abs().max() / exact.abs().max()
    assert 1e-5 < error < 2e-2
    if (fusion, similarity) == ("concat", "dot"):
        rounded = [wide(t.to(BFLOAT)) for t in (queries, semantic, ids)]
        assert_near(scores, reference.score_all(*rounded))


@emulated
def test_no_order_is_decided_in_less(tf32: None) -> None:
    """Where scores round to equal ones, too."""
    semantic, ids = torch.randn(400, 24), torch.randn(400, 8)
    ids[200:], semantic[200:] = ids[:200], semantic[:200] * (1 + 2**-12)
    queries, targets = torch.randn(20, 32), torch.randint(400, (20,))
    with native.use_backend(EMULATED):
        with torch.autocast("cpu", BFLOAT):
            found = af.topk(queries, 50, semantic, ids)
            ranks = af.target_ranks(queries, targets, semantic, ids)
        torch.set_float32_matmul_precision("highest")
        expected = af.topk(queries, 50, semantic, ids)
        assert torch.equal(found.indices, expected.indices)
        assert torch.equal(found.values, expected.values)
        assert torch.equal(ranks, af.target_ranks(queries, targets, semantic, ids))


@emulated
@pytest.mark.parametrize("similarity", ["dot", "cosine"])
def test_loss_in_autocast(similarity: str) -> None:
    semantic, ids = torch.randn(300, 24), torch.randn(300, 8, requires_grad=True)
    queries = (torch.randn(20, 32) / 6).requires_grad_()
    targets = torch.randint(300, (20,))
    with native.use_backend(EMULATED), torch.autocast("cpu", BFLOAT):
        loss = af.cross_entropy(queries, targets, semantic, ids, similarity=similarity)
    with native.use_backend(EMULATED):  # out of autocast, as usual, and in its type all the same
        loss.backward()
    q, e = (wide(t).requires_grad_() for t in (queries, ids))
    exact = reference.cross_entropy(q, targets, wide(semantic), e, similarity=similarity)
    exact.backward()
    assert 1e-7 < abs(loss.item() - exact.item()) / exact.item() < 1e-2
    for got, expected in ((queries.grad, q.grad), (ids.grad, e.grad)):
        error = (got.double() - expected).abs().max() / expected.abs().max()
        assert 1e-5 < error < 3e-2
