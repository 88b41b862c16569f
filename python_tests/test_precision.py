"""What products are computed in: on the CPU in bfloat16 too, where it has instructions for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext

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


@pytest.fixture
def plain_bfloat16(monkeypatch: pytest.MonkeyPatch, isa: str) -> str:
    """Each instruction set multiplies bfloat16, in plain C++ where it has no instructions."""
    monkeypatch.setattr(native, "BFLOAT16_ISAS", (isa,))
    return isa


Run = Callable[[], AbstractContextManager[None]]


@pytest.fixture(params=[*_core.supported_isas(), EMULATED])
def rounds(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    """In which what autocast rounds to bfloat16 is: each instruction set, the emulated GPU."""
    if request.param == EMULATED:
        if EMULATED not in _core.devices:
            pytest.skip("needs ALPHAFUSE_CUDA=emulated")
        yield lambda: native.use_backend(EMULATED)
        return
    before = _core.isa()
    _core.set_isa(request.param)
    monkeypatch.setattr(native, "BFLOAT16_ISAS", (request.param,))
    yield nullcontext
    _core.set_isa(before)


def test_choice_on_the_cpu(isa: str, tf32: None) -> None:
    found = "bfloat16" if isa in native.BFLOAT16_ISAS else "float32"
    assert chosen(BFLOAT, BFLOAT, BFLOAT) == found
    assert chosen(BFLOAT, BFLOAT, BFLOAT, exact=True) == "float32"
    for types in ((HALF, HALF, HALF), (FLOAT, FLOAT, FLOAT), (BFLOAT, FLOAT, FLOAT)):
        assert chosen(*types) == "float32"
    with torch.autocast("cpu", BFLOAT):
        assert chosen(FLOAT, FLOAT, FLOAT, "cosine") == found
        assert chosen(FLOAT, FLOAT, FLOAT, exact=True) == "float32"
        assert chosen(HALF, HALF, HALF) == "float32"
    with torch.autocast("cpu", HALF):
        assert chosen(FLOAT, FLOAT, FLOAT) == "float32"


def test_instructions_of_the_processor() -> None:
    """Its scores are those of plain C++, bit for bit."""
    queries, ids = torch.randn(20, 33), torch.randn(700, 33)
    found = {}
    for isa in _core.supported_isas():
        before = _core.isa()
        _core.set_isa(isa)
        found[isa] = torch.empty(20, 700)
        tables, bfloat16 = _core.Tables(None, ids), native.PRECISION_CODES["bfloat16"]
        _core.cpu.score_all(tables, queries, found[isa], (2, bfloat16))
        _core.set_isa(before)
    for isa, scores in found.items():
        assert torch.equal(scores, found["scalar"]), isa
    if not set(found) & set(native.BFLOAT16_ISAS):
        pytest.skip(
            f"NOT RUN: this processor has none of {native.BFLOAT16_ISAS}; in plain C++ only"
        )


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


@pytest.mark.parametrize("similarity", ["dot", "cosine"])
@pytest.mark.parametrize("fusion", ["concat", "add"])
def test_scores_in_autocast(fusion: str, similarity: str, rounds: Run) -> None:
    """Rounded to its type, and no further: what float64 makes of the rounded operands is near."""
    semantic, ids = torch.randn(150, 24), torch.randn(150, 24 if fusion == "add" else 8)
    queries = torch.randn(20, 24 if fusion == "add" else 32)
    with rounds(), torch.autocast("cpu", BFLOAT):
        scores = af.score_all(queries, semantic, ids, fusion, similarity)
    exact = reference.score_all(wide(queries), wide(semantic), wide(ids), fusion, similarity)
    error = (scores.double() - exact).abs().max() / exact.abs().max()
    assert 1e-5 < error < 2e-2
    if (fusion, similarity) == ("concat", "dot"):
        rounded = [wide(t.to(BFLOAT)) for t in (queries, semantic, ids)]
        assert_near(scores, reference.score_all(*rounded))


def test_no_order_is_decided_in_less(tf32: None, rounds: Run) -> None:
    """Where scores round to equal ones, too."""
    semantic, ids = torch.randn(400, 24), torch.randn(400, 8)
    ids[200:], semantic[200:] = ids[:200], semantic[:200] * (1 + 2**-12)
    queries, targets = torch.randn(20, 32), torch.randint(400, (20,))
    with rounds():
        with torch.autocast("cpu", BFLOAT):
            found = af.topk(queries, 50, semantic, ids)
            ranks = af.target_ranks(queries, targets, semantic, ids)
        torch.set_float32_matmul_precision("highest")
        expected = af.topk(queries, 50, semantic, ids)
        assert torch.equal(found.indices, expected.indices)
        assert torch.equal(found.values, expected.values)
        assert torch.equal(ranks, af.target_ranks(queries, targets, semantic, ids))


@pytest.mark.parametrize("similarity", ["dot", "cosine"])
def test_loss_in_autocast(similarity: str, rounds: Run) -> None:
    semantic, ids = torch.randn(300, 24), torch.randn(300, 8, requires_grad=True)
    queries = (torch.randn(20, 32) / 6).requires_grad_()
    targets = torch.randint(300, (20,))
    with rounds(), torch.autocast("cpu", BFLOAT):
        loss = af.cross_entropy(queries, targets, semantic, ids, similarity=similarity)
    with rounds():  # out of autocast, as usual, and in its type all the same
        loss.backward()
    q, e = (wide(t).requires_grad_() for t in (queries, ids))
    exact = reference.cross_entropy(q, targets, wide(semantic), e, similarity=similarity)
    exact.backward()
    assert 1e-7 < abs(loss.item() - exact.item()) / exact.item() < 1e-2
    for got, expected in ((queries.grad, q.grad), (ids.grad, e.grad)):
        error = (got.double() - expected).abs().max() / expected.abs().max()
        assert 1e-5 < error < 3e-2


@pytest.mark.parametrize("similarity", ["dot", "cosine"])
@pytest.mark.parametrize("queries_of_list", [1, 40])
def test_lists_in_autocast(queries_of_list: int, similarity: str, plain_bfloat16: str) -> None:
    """Products with candidates and negatives, by either way through the lists."""
    lists = 80 // queries_of_list
    semantic, ids = torch.randn(300, 24), torch.randn(300, 8)
    queries = torch.randn(lists, queries_of_list, 32) / 6
    candidates, targets = torch.randint(300, (lists, 50)), torch.randint(300, (80,)).view(lists, -1)

    def gradients(cast: Callable[[torch.Tensor], torch.Tensor], module: object) -> list:
        inputs = [cast(t).requires_grad_() for t in (queries, ids)]
        scores = module.score_candidates(
            inputs[0], candidates, cast(semantic), inputs[1], similarity=similarity
        )
        loss = module.sampled_softmax(
            inputs[0], targets, candidates, cast(semantic), inputs[1], similarity=similarity
        )
        given = torch.linspace(-1, 1, scores.numel()).view(scores.shape)
        of_scores = torch.autograd.grad((scores * cast(given)).sum(), inputs, retain_graph=True)
        return [scores, loss, *of_scores, *torch.autograd.grad(loss, inputs)]

    with torch.autocast("cpu", BFLOAT):
        found = gradients(lambda t: t.clone(), af)
    expected = gradients(wide, reference)
    for name, got, exact in zip(
        ("scores", "loss", *4 * ["gradient"]), found, expected, strict=True
    ):
        error = (got.double() - exact).abs().max() / exact.abs().max()
        assert (1e-5 if name == "scores" else 0) < error < 3e-2


@pytest.mark.parametrize("batch", [1, 2, 37, 100])
def test_the_loss_does_not_depend_on_threads(batch: int, plain_bfloat16: str) -> None:
    """Nor on the queries beside a query; odd numbers of them, of items and of columns."""
    semantic, ids = torch.randn(5001, 20), torch.randn(5001, 15)
    queries, targets = torch.randn(batch, 35), torch.randint(5001, (batch,))
    found = []
    before = torch.get_num_threads()
    for threads in (1, 3):
        torch.set_num_threads(threads)
        inputs = [t.clone().requires_grad_() for t in (queries, ids)]
        with torch.autocast("cpu", BFLOAT):
            losses = af.cross_entropy(inputs[0], targets, semantic, inputs[1], reduction="none")
            first = af.cross_entropy(queries[:1], targets[:1], semantic, ids)
        found.append([losses.detach(), *torch.autograd.grad(losses.sum(), inputs)])
        assert first == losses[0]
    torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
