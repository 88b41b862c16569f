"""``cross_entropy`` against its definition."""

from __future__ import annotations

import pytest
import torch
from op_inputs import CASES, TableCase, check_against_reference

import alphafuse_ext as af
from alphafuse_ext import _core
from alphafuse_ext.ops import native, reference
from alphafuse_ext.ops.tables import FusedTables

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(("similarity", "temperature"), [("dot", 1.0), ("cosine", 0.07)])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_values_and_gradients(
    case: TableCase, similarity: str, temperature: float, isa: str, device: torch.device
) -> None:
    semantic, embeddings = case.tables(device)
    targets = torch.randint(case.num_embeddings + 1, (53,), device=device)
    check_against_reference(
        lambda module, q, s, e: module.cross_entropy(
            q, targets.to(q.device), s, e, case.fusion, similarity, temperature, "none"
        ),
        torch.randn(53, case.dim, device=device),
        semantic,
        embeddings,
    )


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("batch", [1, 5, 16, 17, 48, 49, 130, 200])
def test_batches_and_reductions(
    batch: int, reduction: str, isa: str, threads: int, device: torch.device
) -> None:
    semantic, embeddings = TableCase(num_embeddings=700).tables(device)
    targets = torch.randint(701, (batch,), device=device)
    targets[0] = 3
    check_against_reference(
        lambda module, q, s, e: module.cross_entropy(
            q, targets.to(q.device), s, e, reduction=reduction
        ),
        torch.randn(batch, 19, device=device),
        semantic,
        embeddings,
    )


def test_half_precision_queries(isa: str, device: torch.device) -> None:
    """The loss is float32, and the queries' gradient of their dtype."""
    semantic, embeddings = TableCase().tables(device)
    queries = torch.randn(7, 19, device=device).bfloat16().requires_grad_()
    targets = torch.randint(261, (7,), dtype=torch.int32, device=device)
    loss = af.cross_entropy(queries, targets, semantic, embeddings)
    assert loss.dtype == torch.float32
    loss.backward()
    assert queries.grad.dtype == torch.bfloat16
    wide = queries.detach().float().requires_grad_()
    af.cross_entropy(wide, targets, semantic, embeddings).backward()
    assert torch.equal(queries.grad, wide.grad.bfloat16())


@pytest.mark.parametrize("shape", [(), (3, 4), (2, 1, 5), (0, 4)])
def test_any_batch_shape(shape: tuple[int, ...], device: torch.device) -> None:
    """As of the queries one after another, gradients included."""
    semantic, embeddings = TableCase().tables(device)
    targets = torch.randint(262, shape, device=device)
    queries = torch.randn(*shape, 19, device=device, requires_grad=True)
    flat = queries.detach().reshape(-1, 19).requires_grad_()
    losses = af.cross_entropy(queries, targets, semantic, embeddings, reduction="none")
    expected = af.cross_entropy(flat, targets.reshape(-1), semantic, embeddings, reduction="none")
    assert torch.equal(losses, expected.view(shape))
    weights = torch.randn(shape, device=device)
    (losses * weights).sum().backward()
    (expected * weights.reshape(-1)).sum().backward()
    assert torch.equal(queries.grad, flat.grad.view_as(queries))


@pytest.mark.slow
@pytest.mark.parametrize(("fusion", "similarity"), [("concat", "dot"), ("add", "cosine")])
def test_more_queries_than_backward_takes_at_once(fusion: str, similarity: str) -> None:
    """32 MiB hold the gradients of 436 queries of 600 columns for each of 32 parts."""
    case = TableCase(dim=600, null_dim=5, fusion=fusion, num_embeddings=33_000)
    semantic, embeddings = case.tables()
    targets = torch.randint(33_000, (500,))
    check_against_reference(
        lambda module, q, s, e: module.cross_entropy(q, targets, s, e, fusion, similarity, 0.5),
        torch.randn(500, 600) / 25,
        semantic,
        embeddings,
    )


def test_ignored_targets_change_nothing(isa: str, device: torch.device) -> None:
    semantic, embeddings = TableCase().tables(device)
    queries = torch.randn(60, 19, device=device)
    targets = torch.randint(261, (60,), device=device)
    targets[::2] = 261
    results = []
    for keep in (slice(None), slice(1, None, 2)):
        q = queries[keep].clone().requires_grad_()
        e = embeddings.clone().requires_grad_()
        loss = af.cross_entropy(q, targets[keep], semantic, e)
        loss.backward()
        results.append((loss.detach(), q.grad, e.grad))
    (loss, q_grad, e_grad), (same_loss, same_q_grad, same_e_grad) = results
    torch.testing.assert_close(loss, same_loss)
    assert not q_grad[::2].any()
    torch.testing.assert_close(q_grad[1::2], same_q_grad)
    torch.testing.assert_close(e_grad, same_e_grad)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize(("similarity", "ignore_index"), [("dot", -100), ("cosine", 3)])
def test_weights_and_another_ignored_target(
    similarity: str, ignore_index: int, reduction: str, isa: str, device: torch.device
) -> None:
    """As torch has it, of which the reference is; the padding is ignored as well."""
    semantic, embeddings = TableCase().tables(device)
    targets = torch.randint(262, (60,), dtype=torch.int32, device=device)
    targets[::7], targets[3] = ignore_index, 261
    weight = torch.rand(261, device=device)
    weight[targets[5]] = 0.0
    check_against_reference(
        lambda module, q, s, e: module.cross_entropy(
            q,
            targets.long().to(q.device) if module is reference else targets,
            s,
            e,
            similarity=similarity,
            reduction=reduction,
            ignore_index=ignore_index,
            weight=weight.to(q.device),
        ),
        torch.randn(60, 19, device=device),
        semantic,
        embeddings,
    )


def test_a_weight_scales_its_row(isa: str, device: torch.device) -> None:
    """Losses and gradients are bit for bit those of losses that are multiplied afterwards."""
    semantic, embeddings = TableCase().tables(device)
    queries = torch.randn(4, 15, 19, device=device)
    targets = torch.randint(262, (4, 15), device=device)
    targets[1, ::2] = 261
    weight = torch.rand(261, device=device).half()
    of_targets = torch.cat([weight, weight.new_zeros(1)])[targets].float()
    results = []
    for given in ({}, {"weight": weight}):
        q, e = queries.clone().requires_grad_(), embeddings.clone().requires_grad_()
        losses = af.cross_entropy(q, targets, semantic, e, reduction="none", **given)
        losses = losses if given else losses * of_targets
        losses.sum().backward()
        results.append((losses.detach(), q.grad, e.grad))
    for expected, found in zip(*results, strict=True):
        assert torch.equal(found, expected)
    mean = af.cross_entropy(queries, targets, semantic, embeddings, weight=weight)
    torch.testing.assert_close(mean, results[0][0].sum() / of_targets.sum())
    ignored = targets.fill_(-100)
    given = {"ignore_index": -100, "weight": weight}
    assert af.cross_entropy(queries, ignored, semantic, embeddings, **given).isnan()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("similarity", ["dot", "cosine"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_an_ignored_query_may_hold_anything(
    value: float, similarity: str, dtype: torch.dtype, isa: str, device: torch.device
) -> None:
    """Losses and gradients are bit for bit those beside a query of zeros."""
    semantic, embeddings = TableCase(semantic_dtype=dtype, id_dtype=dtype).tables(device)
    queries = torch.randn(60, 19, device=device).to(dtype)
    targets = torch.randint(261, (60,), device=device)
    targets[::3] = 261
    results = []
    for held in (0.0, value):
        queries[::3, 5:] = held
        q, e = queries.clone().requires_grad_(), embeddings.clone().requires_grad_()
        loss = af.cross_entropy(q, targets, semantic, e, similarity=similarity, temperature=0.5)
        loss.backward()
        results.append((loss.detach(), q.grad, e.grad))
    assert not results[1][1][::3].any()
    assert results[1][2].any()
    for expected, found in zip(*results, strict=True):
        assert torch.equal(found, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("similarity", ["dot", "cosine"])
def test_a_loss_of_weight_zero_may_be_nan(
    similarity: str, dtype: torch.dtype, isa: str, device: torch.device
) -> None:
    """To the table its query is one that is ignored."""
    semantic, embeddings = TableCase(semantic_dtype=dtype, id_dtype=dtype).tables(device)
    queries = torch.randn(60, 19, device=device).to(dtype)
    queries[::3, 5:] = torch.nan
    targets = torch.randint(261, (60,), device=device)
    grads = []
    for of_nan in (targets[::3].clone(), 261):
        targets[::3] = of_nan
        e = embeddings.clone().requires_grad_()
        losses = af.cross_entropy(
            queries, targets, semantic, e, similarity=similarity, reduction="none"
        )
        weights = torch.ones(60, device=device)
        weights[::3] = 0
        losses.backward(weights)
        grads.append(e.grad)
    assert grads[1].any()
    assert torch.equal(*grads)


def test_nothing_to_average(device: torch.device) -> None:
    """As torch: the mean over no targets is NaN, their sum 0."""
    semantic, embeddings = TableCase().tables(device)
    embeddings.requires_grad_()
    queries = torch.randn(2, 19, device=device)
    ignored = torch.tensor([261, 261], device=device)
    assert af.cross_entropy(queries, ignored, semantic, embeddings).isnan()
    assert af.cross_entropy(queries, ignored, semantic, embeddings, reduction="sum") == 0
    empty = torch.randn(0, 19, requires_grad=True, device=device)
    none = torch.zeros(0, dtype=torch.int64, device=device)
    loss = af.cross_entropy(empty, none, semantic, embeddings, reduction="sum")
    loss.backward()
    assert loss == 0
    assert embeddings.grad.shape == embeddings.shape
    assert not embeddings.grad.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_scores_far_below_zero(dtype: torch.dtype, isa: str, device: torch.device) -> None:
    """What fills up a tile beyond the last item scores 0, and must not be taken for the best.

    The scores are exact in either dtype.
    """
    semantic, embeddings = torch.randint(-8, 9, (2, 77, 32), device=device).div(8).to(dtype)
    semantic[:, 0] = 0.25
    queries = torch.randint(-1, 2, (20, 64), device=device).to(dtype)
    queries[:, 0] = -1024
    targets = torch.randint(77, (20,), device=device)
    check_against_reference(
        lambda module, q, s, e: module.cross_entropy(q, targets.to(q.device), s, e),
        queries,
        semantic,
        embeddings,
    )


@pytest.mark.parametrize("scale", [2**-10, 1, 2**5, 2**12])
def test_scores_of_any_size(scale: float, isa: str, threads: int, device: torch.device) -> None:
    """The running maximum keeps exponentials in range, whatever order large scores come in.

    The scores are exact in float32, so that what is compared is the softmax.
    """
    embeddings = torch.randn(2000, 8, device=device).mul(16).round() / 16
    for order in (embeddings, embeddings[embeddings[:, 0].argsort()]):
        targets = torch.randint(2000, (6,), device=device)
        check_against_reference(
            lambda module, q, s, e, targets=targets: module.cross_entropy(
                q * scale, targets.to(q.device), s, e, reduction="none"
            ),
            torch.eye(8, device=device)[:6],
            None,
            order,
        )


def test_many_items(isa: str, device: torch.device) -> None:
    """A million terms lose nothing in the sum, though of one size, all rounded the same way.

    Every 1,024th tile of 128 is of the largest terms, exp(0), for each thread of a kernel has its
    own maximum: beside it the others are no whole numbers. Bound: half a unit in the last place
    of a logarithm below 16, 2**-21, and thrice that for the exponentials and what joins threads.
    """
    rows = -torch.ones(1 << 20, 1)
    rows.view(8, 1024, 128)[:, 0] = 0.0
    apart = torch.tensor([[1.125], [2.3], [3.1]])
    targets = torch.zeros(3, dtype=torch.int64, device=device)
    losses = af.cross_entropy(apart.to(device), targets, rows.to(device), None, reduction="none")
    expected = torch.logsumexp(apart.double() @ rows.double().T, 1)
    torch.testing.assert_close(losses.double().cpu(), expected, rtol=0, atol=2**-20 * 2)


def test_infinite_and_nan_scores(isa: str, device: torch.device) -> None:
    """An item at -inf has no part; a NaN shows in the loss instead of being passed over."""
    embeddings = torch.randn(300, 2, device=device).abs()
    queries = torch.tensor([[1.0, 1.0]], device=device)
    targets = torch.tensor([5], device=device)
    with_minus_inf = embeddings.clone()
    with_minus_inf[7] = -torch.inf
    without = torch.cat([embeddings[:7], embeddings[8:]])
    torch.testing.assert_close(
        af.cross_entropy(queries, targets, None, with_minus_inf),
        af.cross_entropy(queries, targets, None, without),
    )
    embeddings[290] = torch.nan
    assert af.cross_entropy(queries, targets, None, embeddings).isnan()


def test_no_score_is_finite(device: torch.device) -> None:
    """There is no loss then, but NaN; and the other queries keep theirs."""
    embeddings = torch.rand(300, 2, device=device) + 0.5
    queries = torch.ones(20, 2, device=device)
    expected = af.cross_entropy(queries, torch.zeros(20).long().to(device), None, embeddings)
    for value in (-torch.inf, torch.inf, torch.nan):
        queries[3] = value
        losses = af.cross_entropy(
            queries, torch.zeros(20).long().to(device), None, embeddings, reduction="none"
        )
        assert losses[3].isnan()
        torch.testing.assert_close(losses[[2, 4]], expected.expand(2))


def test_gradients_where_scores_are_infinite(device: torch.device) -> None:
    """An item at -inf has no part in the gradients of the others."""
    embeddings = torch.rand(300, 2, device=device) + 0.5
    embeddings[7] = -torch.inf
    queries, targets = torch.ones(20, 2, device=device), torch.arange(20, device=device) % 7
    table = embeddings.clone().requires_grad_()
    af.cross_entropy(queries, targets, None, table).backward()
    without = torch.cat([embeddings[:7], embeddings[8:]]).requires_grad_()
    af.cross_entropy(queries, targets, None, without).backward()
    assert not table.grad[7].any()
    torch.testing.assert_close(torch.cat([table.grad[:7], table.grad[8:]]), without.grad)


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


@pytest.mark.parametrize("similarity", ["dot", "cosine"])
@pytest.mark.parametrize("batch", [1, 16, 17, 300])
def test_scratch_memory(batch: int, similarity: str, device: torch.device) -> None:
    """It has the bounds that csrc/cuda/cross_entropy.cu states, whatever the catalog's length."""
    queries = torch.randn(batch, 19, device=device)
    kernels, where = native.kernels(queries)
    if kernels is _core.cpu:
        pytest.skip("the CPU's kernels are not given scratch memory")
    emulated = device.type == "cpu"
    strip_bytes = 32 << 10 if emulated else 64 << 20
    blocks = 2 if emulated else torch.cuda.get_device_properties(device).multi_processor_count
    asked = []

    def allocate(count: int) -> torch.Tensor:
        asked.append(count)
        return torch.empty(count, dtype=torch.uint8, device=device)

    where = (*where[:2], allocate, *where[3:])
    targets = torch.randint(100, (batch,), device=device)
    tile = 128 if batch > 16 else 16
    for rows in (100, 1000, 10_000):
        semantic = torch.randn(rows, 12, device=device)
        ids = torch.randn(rows, 7, device=device)
        tables = FusedTables(semantic, ids, "concat", similarity == "cosine").native()
        maxima, logs, weights = torch.rand(3, batch, device=device)
        asked.clear()
        kernels.log_sum_exp(tables, queries, maxima, logs, where)
        kernels.cross_entropy_backward(
            tables,
            queries,
            targets,
            maxima,
            logs,
            weights,
            torch.empty_like(queries),
            torch.empty_like(ids),
            where,
        )
        forward, backward = asked
        query_tiles = ceil_div(batch, tile)
        norms = 4 * rows if similarity == "cosine" else 0
        rounding = 6 * 256
        assert forward <= norms + 8 * tile * (2 * blocks + query_tiles) + rounding
        strip = max(128, strip_bytes // (4 * batch * 128) * 128)
        strip = min(strip, ceil_div(rows, 128) * 128)
        bound = norms + 4 * batch * strip
        bound += 4 * 128 * 128 * (2 * blocks + query_tiles + strip // 128)  # parts of products
        bound += 4 * strip * (1 + query_tiles) if similarity == "cosine" else 0
        assert 4 * batch * 128 <= backward <= bound + rounding


def test_deterministic_for_given_threads(threads: int, device: torch.device) -> None:
    semantic, embeddings = TableCase(num_embeddings=3000).tables(device)
    queries = torch.randn(70, 19, device=device)
    targets = torch.randint(3000, (70,), device=device)
    results = []
    for _ in range(3):
        q, e = queries.clone().requires_grad_(), embeddings.clone().requires_grad_()
        loss = af.cross_entropy(q, targets, semantic, e)
        loss.backward()
        results.append((loss.detach(), q.grad, e.grad))
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))


def test_strided_inputs(device: torch.device) -> None:
    wide = torch.randn(90, 60, device=device)
    targets = torch.randint(45, (14,), device=device)[::2]
    check_against_reference(
        lambda module, q, s, e: module.cross_entropy(q, targets.to(q.device), s, e),
        torch.randn(19, 7, device=device).T,
        wide[::2, 3:15],
        wide[1::2, 40:47],
    )


@pytest.mark.parametrize("fusion", ["concat", "add"])
def test_a_bias_is_a_column_of_ones(fusion: str, device: torch.device) -> None:
    """docs/ops/cross_entropy.md: each op adds the bias that is the last ID column."""
    generator = torch.Generator().manual_seed(0)
    semantic_rows = torch.randn(50, 5, generator=generator)
    ids, bias = torch.randn(50, 5, generator=generator), torch.randn(50, generator=generator)
    queries = torch.randn(7, 10 if fusion == "concat" else 5, generator=generator)
    targets = torch.randint(0, 50, (7,), generator=generator)
    bias.requires_grad_()
    rows = torch.cat([semantic_rows, ids], 1) if fusion == "concat" else semantic_rows + ids
    scores = queries @ rows.T + bias
    expected = torch.nn.functional.cross_entropy(scores, targets)
    (grad,) = torch.autograd.grad(expected, bias)

    if fusion == "add":
        semantic_rows = torch.cat([semantic_rows, torch.zeros(50, 1)], 1)
    with_bias = torch.cat([ids, bias.detach()[:, None]], 1).to(device).requires_grad_()
    queries = torch.cat([queries, torch.ones(7, 1)], 1).to(device)
    tables = (semantic_rows.to(device), with_bias, fusion)
    loss = af.cross_entropy(queries, targets.to(device), *tables)
    loss.backward()
    torch.testing.assert_close(loss.cpu(), expected.detach())
    torch.testing.assert_close(with_bias.grad[:, -1].cpu(), grad)
    _, best = af.topk(queries, 5, *tables)
    assert torch.equal(best.cpu(), scores.topk(5).indices)


@pytest.mark.parametrize("bad", [-100, -1, 262])
def test_target_out_of_range(bad: int, device: torch.device) -> None:
    if device.type == "cuda":
        pytest.skip("an error that a GPU finds ends the use of it by the whole process")
    semantic, embeddings = TableCase().tables()
    with pytest.raises(IndexError, match=f"targets: got {bad} at position 1; expected 0 <= id"):
        af.cross_entropy(torch.randn(2, 19), torch.tensor([0, bad]), semantic, embeddings)


S, E, Q, T = torch.randn(9, 4), torch.randn(9, 3), torch.randn(2, 7), torch.tensor([1, 2])


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((Q, T[:1], S, E), ValueError, r"targets: got shape \(1,\); expected \(2,\)"),
        ((Q, T[:, None], S, E), ValueError, r"targets: got shape \(2, 1\)"),
        ((Q, T.float(), S, E), TypeError, "targets: got torch.float32"),
        ((Q, T.to("meta"), S, E), ValueError, "targets: got device meta"),
        ((Q[:, :3], T, S, E), ValueError, "queries: got shape"),
        ((Q, T, S, E, "concat", "dot", 0.0), ValueError, "temperature: got 0.0"),
        ((Q, T, S, E, "concat", "dot", -1.0), ValueError, "temperature: got -1.0"),
        ((Q, T, S, E, "concat", "dot", float("nan")), ValueError, "temperature: got nan"),
        ((Q, T, S, E, "concat", "dot", 1.0, "max"), ValueError, "reduction: got 'max'"),
    ],
)
def test_bad_arguments(arguments: tuple, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        af.cross_entropy(*arguments)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"ignore_index": -100.0}, TypeError, "ignore_index: got -100.0; expected an integer or"),
        ({"ignore_index": True}, TypeError, "ignore_index: got True"),
        ({"weight": [1.0] * 9}, TypeError, "weight: got list; expected a float tensor or None"),
        ({"weight": torch.ones(9).long()}, TypeError, "weight: got torch.int64"),
        ({"weight": torch.ones(2)}, ValueError, r"weight: got shape \(2,\); expected \(9,\), one"),
        ({"weight": torch.ones(9, device="meta")}, ValueError, "weight: got device meta"),
        ({"weight": torch.ones(9, requires_grad=True)}, ValueError, "weight: .*call .detach"),
    ],
)
def test_bad_options(options: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        af.cross_entropy(Q, T, S, E, **options)
