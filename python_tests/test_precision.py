"""What products are computed in: on the CPU in bfloat16 too, where it has instructions for it; on a
GPU, and emulated, every op in each precision."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from types import ModuleType

import numpy as np
import pytest
import torch
from conftest import PRODUCTS_OF_BFLOAT16, on_a_device
from op_inputs import assert_near, wide

import alphafuse_ext as af
from alphafuse_ext import _core, ops
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
def plain_bfloat16(monkeypatch: pytest.MonkeyPatch, bfloat16_isa: str) -> str:
    """Each instruction set multiplies bfloat16, in plain C++ where it has no instructions."""
    monkeypatch.setattr(native, "BFLOAT16_ISAS", (bfloat16_isa,))
    return bfloat16_isa


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


def scores_of(isa: str, queries: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """In bfloat16, by the kernels of an instruction set."""
    before, scores = _core.isa(), torch.empty(len(queries), len(ids))
    _core.set_isa(isa)
    tables, bfloat16 = _core.Tables(None, ids), native.PRECISION_CODES["bfloat16"]
    _core.cpu.score_all(tables, queries, scores, (2, bfloat16))
    _core.set_isa(before)
    return scores


@pytest.mark.parametrize("isa", sorted({*_core.supported_isas(), *native.BFLOAT16_ISAS}))
def test_instructions_of_the_processor(isa: str) -> None:
    """Its scores are those of plain C++, bit for bit."""
    if isa not in _core.supported_isas():
        pytest.skip(f"NOT RUN: this processor or build has no {isa}; in plain C++ only")
    queries, ids = torch.randn(20, 33), torch.randn(700, 33)
    plain = "amx_emulated" if isa.startswith("amx") else "scalar"
    assert torch.equal(scores_of(isa, queries, ids), scores_of(plain, queries, ids))


@pytest.mark.parametrize("isa", [name for name in PRODUCTS_OF_BFLOAT16 if name.startswith("amx")])
@pytest.mark.parametrize("dim", [1, 32, 83])
def test_products_of_tiles(dim: int, isa: str) -> None:
    """Bit for bit as Intel's manual defines them: of 32 columns at a time, the even ones' sum and
    the odd ones', each step rounded once; numbers below 2^-126 are 0."""
    queries, ids = torch.randn(37, dim).to(BFLOAT), torch.randn(150, dim).to(BFLOAT)
    left, right = wide(queries).numpy(), wide(ids).numpy()
    expected = np.zeros((37, 150), np.float32)
    for first in range(0, dim, 32):
        halves = np.zeros((2, 37, 150), np.float32)
        for d in range(first, min(first + 32, dim)):
            products = left[:, d, None] * right[:, d]
            halves[d % 2] = (halves[d % 2] + products).astype(np.float32)
        expected += halves[0] + halves[1]
    found = scores_of(isa, queries.float(), ids.float())
    assert np.array_equal(found.numpy(), expected)
    tiny = scores_of(isa, queries.float() * 2**-70, ids.float() * 2**-70)
    assert torch.equal(tiny, torch.zeros(37, 150))


@on_a_device
def test_choice(device: torch.device, on_device: None) -> None:
    for exact in (False, True):
        assert chosen(BFLOAT, BFLOAT, BFLOAT, exact=exact) == "bfloat16"
        assert chosen(HALF, HALF, None, exact=exact) == "float16"
        assert chosen(HALF, None, HALF, exact=exact) == "float16"
        for types in ((HALF, BFLOAT, HALF), (FLOAT, BFLOAT, BFLOAT), (BFLOAT, BFLOAT, FLOAT)):
            assert chosen(*types, exact=exact) == "float32"
        assert chosen(BFLOAT, BFLOAT, BFLOAT, "cosine", exact) == "float32"
    with torch.autocast(device.type, BFLOAT):
        assert chosen(FLOAT, HALF, FLOAT, "cosine") == "bfloat16"
        assert chosen(FLOAT, HALF, FLOAT, exact=True) == "float32"


@on_a_device
def test_tf32_where_torch_allows_it(on_device: None, tf32: None) -> None:
    assert chosen(FLOAT, BFLOAT, FLOAT) == "tf32"
    assert chosen(FLOAT, BFLOAT, FLOAT, exact=True) == "float32"
    assert chosen(BFLOAT, BFLOAT, BFLOAT) == "bfloat16"


@on_a_device
@pytest.mark.skipif(
    not hasattr(torch.backends.cuda.matmul, "fp32_precision"), reason="a setting of torch 2.9"
)
@pytest.mark.parametrize("older", ["highest", "high", None])
@pytest.mark.parametrize("newer", ["tf32", "ieee"])
def test_both_settings_of_tf32(older: str | None, newer: str, on_device: None) -> None:
    """The newer decides, where both were used; then the older one may not be asked for."""
    matmul = torch.backends.cuda.matmul
    before = torch.get_float32_matmul_precision(), matmul.fp32_precision
    try:
        if older is not None:
            torch.set_float32_matmul_precision(older)
        matmul.fp32_precision = newer
        expected = "tf32" if newer == "tf32" else "float32"
        assert chosen(FLOAT, BFLOAT, FLOAT) == expected
        assert chosen(FLOAT, BFLOAT, FLOAT, exact=True) == "float32"
    finally:
        torch.set_float32_matmul_precision(before[0])
        matmul.fp32_precision = before[1]
    assert torch.get_float32_matmul_precision() == before[0]


@on_a_device
def test_a_compiled_op_asks_for_tf32(on_device: None, tf32: None) -> None:
    """Within a whole graph."""
    semantic, ids, queries = torch.randn(150, 24), torch.randn(150, 8), torch.randn(20, 32)

    def scores() -> torch.Tensor:
        return af.score_all(queries, semantic, ids)

    compiled = torch.compile(scores, fullgraph=True, backend="aot_eager")
    found = compiled()
    assert torch.equal(found, scores())
    exact = reference.score_all(wide(queries), wide(semantic), wide(ids))
    assert (found.double().cpu() - exact).abs().max() / exact.abs().max() > 1e-5


@pytest.mark.parametrize("similarity", ["dot", "cosine"])
@pytest.mark.parametrize("fusion", ["concat", "add"])
def test_scores_in_autocast(fusion: str, similarity: str, plain_bfloat16: str) -> None:
    """Rounded to its type, and no further: what float64 makes of the rounded operands is near."""
    semantic, ids = torch.randn(150, 24), torch.randn(150, 24 if fusion == "add" else 8)
    queries = torch.randn(20, 24 if fusion == "add" else 32)
    with torch.autocast("cpu", BFLOAT):
        scores = af.score_all(queries, semantic, ids, fusion, similarity)
    exact = reference.score_all(wide(queries), wide(semantic), wide(ids), fusion, similarity)
    error = (scores.double() - exact).abs().max() / exact.abs().max()
    assert 1e-5 < error < 2e-2
    if (fusion, similarity) == ("concat", "dot"):
        rounded = [wide(t.to(BFLOAT)) for t in (queries, semantic, ids)]
        assert_near(scores, reference.score_all(*rounded))


def test_no_order_is_decided_in_less(tf32: None, plain_bfloat16: str) -> None:
    """Where scores round to equal ones, too."""
    semantic, ids = torch.randn(400, 24), torch.randn(400, 8)
    ids[200:], semantic[200:] = ids[:200], semantic[:200] * (1 + 2**-12)
    queries, targets = torch.randn(20, 32), torch.randint(400, (20,))
    with torch.autocast("cpu", BFLOAT):
        found = af.topk(queries, 50, semantic, ids)
        ranks = af.target_ranks(queries, targets, semantic, ids)
    torch.set_float32_matmul_precision("highest")
    expected = af.topk(queries, 50, semantic, ids)
    assert torch.equal(found.indices, expected.indices)
    assert torch.equal(found.values, expected.values)
    assert torch.equal(ranks, af.target_ranks(queries, targets, semantic, ids))


@pytest.mark.parametrize("similarity", ["dot", "cosine"])
def test_loss_in_autocast(similarity: str, plain_bfloat16: str) -> None:
    semantic, ids = torch.randn(300, 24), torch.randn(300, 8, requires_grad=True)
    queries = (torch.randn(20, 32) / 6).requires_grad_()
    targets = torch.randint(300, (20,))
    with torch.autocast("cpu", BFLOAT):
        loss = af.cross_entropy(queries, targets, semantic, ids, similarity=similarity)
    loss.backward()  # out of autocast, as usual, and in its type all the same
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


# --- Every op in every precision ------------------------------------------------------------------

PRECISIONS = {
    # Bounds of the error, relative to the largest value: less would be another precision.
    "float32": (0.0, 2e-5),
    "tf32": (1e-5, 4e-3),
    "autocast-bfloat16": (1e-5, 3e-2),
    "autocast-float16": (1e-6, 4e-3),
    "bfloat16": (0.0, 3e-2),
    "float16": (0.0, 4e-3),
}
"""Of tables and queries in float32, or in the type of that name."""


def call(
    op: str,
    module: ModuleType,
    ids: torch.Tensor,
    queries: torch.Tensor,
    *tables: torch.Tensor,
    **kinds: str,
) -> torch.Tensor:
    """An op of our module, or of the reference; ``ids`` is ``(candidates, queries)``."""
    ids = ids.to(queries.device)
    targets, negatives = ids[0].contiguous(), ids[1:, 0].contiguous()
    if op == "cross_entropy":
        return module.cross_entropy(queries, targets, *tables, reduction="none", **kinds)
    if op == "sampled_softmax":
        return module.sampled_softmax(
            queries, targets, negatives, *tables, reduction="none", **kinds
        )
    if op == "score_candidates":
        return module.score_candidates(queries, ids.T.contiguous(), *tables, **kinds)
    if op == "shared_candidates":
        return module.score_candidates(queries, negatives, *tables, **kinds)
    return module.score_all(queries, *tables, **kinds)


@contextlib.contextmanager
def computing_in(precision: str, device: torch.device) -> Iterator[None]:
    """What users do for it."""
    before = torch.get_float32_matmul_precision()
    half = getattr(torch, precision.removeprefix("autocast-"), BFLOAT)
    try:
        torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
        with torch.autocast(device.type, half, enabled=precision.startswith("autocast")):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


@on_a_device
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(
    ("fusion", "similarity"), [("concat", "dot"), ("add", "dot"), ("concat", "cosine")]
)
@pytest.mark.parametrize(
    "op",
    ["score_all", "cross_entropy", "sampled_softmax", "score_candidates", "shared_candidates"],
)
def test_values_and_gradients(
    op: str, fusion: str, similarity: str, precision: str, device: torch.device, on_device: None
) -> None:
    """Near those of float64 on the same values; and not nearer than the precision allows.

    Of few queries, whose tiles are narrow, and of many.
    """
    dtype = getattr(torch, precision, FLOAT)
    kinds = {"fusion": fusion, "similarity": similarity}
    for batch in (5, 40):
        semantic = torch.randn(300, 24).to(dtype)
        embeddings = torch.randn(300, 24 if fusion == "add" else 8).to(dtype)
        queries = (torch.randn(batch, 24 if fusion == "add" else 32) / 6).to(dtype)
        ids = torch.randint(300, (12, batch))
        found = []
        for module, q, s, e in (
            (ops, queries, semantic, embeddings),
            (reference, wide(queries), wide(semantic), wide(embeddings)),
        ):
            q, e = q.detach().requires_grad_(), e.detach().requires_grad_()
            with computing_in(precision, device) if module is ops else contextlib.nullcontext():
                result = call(op, module, ids, q, s, e, **kinds)
            # Backward, out of autocast as usual, is in the precision of the forward pass.
            with computing_in(precision if precision == "tf32" else "float32", device):
                result.backward(torch.ones_like(result))
            found.append((result.detach(), q.grad, e.grad))
        errors = []
        for got, expected in zip(*found, strict=True):
            error = (got.double().cpu() - expected).abs().max() / expected.abs().max()
            errors.append(error.item())
        least, most = PRECISIONS[precision]
        assert max(errors) < most, errors
        # What is no product of a tile is computed in float32 always.
        if op in ("score_all", "cross_entropy"):
            assert min(errors[1:]) > least, errors


@on_a_device
@pytest.mark.parametrize("half", [BFLOAT, HALF])
def test_operands_are_rounded_once(
    half: torch.dtype, device: torch.device, on_device: None
) -> None:
    """Operands are rounded to its type, and no further."""
    semantic, ids, queries = torch.randn(150, 24), torch.randn(150, 8), torch.randn(20, 32)
    with torch.autocast(device.type, half):
        scores = af.score_all(queries, semantic, ids)
    assert_near(scores, reference.score_all(*(wide(t.to(half)) for t in (queries, semantic, ids))))


@on_a_device
@pytest.mark.parametrize("half", [BFLOAT, HALF])
@pytest.mark.parametrize("num_items", [400, 120])
def test_no_order_is_decided_in_less_on_a_device(
    half: torch.dtype, num_items: int, device: torch.device, on_device: None, tf32: None
) -> None:
    """Where scores round to equal ones, too; in tables of both of topk's ways, emulated."""
    semantic, ids = torch.randn(num_items, 24), torch.randn(num_items, 8)
    middle = num_items // 2
    ids[middle:], semantic[middle:] = ids[:middle], semantic[:middle] * (1 + 2**-12)
    queries, targets = torch.randn(20, 32), torch.randint(num_items, (20,))
    with torch.autocast(device.type, half):
        found = af.topk(queries, 50, semantic, ids)
        ranks = af.target_ranks(queries, targets, semantic, ids)
    torch.set_float32_matmul_precision("highest")
    expected = af.topk(queries, 50, semantic, ids)
    assert torch.equal(found.indices, expected.indices)
    assert torch.equal(found.values, expected.values)
    assert torch.equal(ranks, af.target_ranks(queries, targets, semantic, ids))


@on_a_device
@pytest.mark.parametrize("half", [BFLOAT, HALF])
def test_order_of_half_tables(half: torch.dtype, on_device: None) -> None:
    """Decided by products of halves, summed in float32: the order of what score_all sums."""
    semantic, ids = torch.randn(500, 24).to(half), torch.randn(500, 8).to(half)
    queries, targets = torch.randn(20, 32).to(half), torch.randint(500, (20,))
    exact = reference.score_all(wide(queries), wide(semantic), wide(ids))
    found = af.topk(queries, 50, semantic, ids)
    assert_near(found.values, exact.topk(50).values)
    assert_near(exact.gather(1, found.indices.cpu()), exact.topk(50).values)
    ranks = af.target_ranks(queries, targets, semantic, ids).cpu()
    of_targets = exact.gather(1, targets.cpu()[:, None])
    assert (ranks >= (exact > of_targets + 1e-4).sum(1)).all()
    assert (ranks <= (exact > of_targets - 1e-4).sum(1)).all()
