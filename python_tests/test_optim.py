"""The optimizers of touched rows against their definitions, in float64."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import alphafuse_ext as af
from alphafuse_ext.ops import gradients
from alphafuse_ext.optim import LazyAdam, RowWiseAdagrad

pytestmark = pytest.mark.usefixtures("one_thread")

N = 300
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
KINDS = [LazyAdam, RowWiseAdagrad]


def gradient(parameter: Tensor, rows: int = 40, coalesced: bool = False) -> Tensor:
    """Of random rows; where it is not coalesced, of some of them several times."""
    device, cols = parameter.device, parameter.shape[1]
    if coalesced:
        ids = torch.randperm(N, device=device)[:rows].sort().values
    else:
        ids = torch.randint(N // 4, (rows,), device=device)
    values = torch.randn(rows, cols, device=device).to(parameter.dtype)
    return torch.sparse_coo_tensor(
        ids[None], values, parameter.shape, is_coalesced=coalesced, check_invariants=True
    )


def adam_by_definition(
    table: Tensor, grads: list[Tensor], lr: float, betas: tuple[float, float], eps: float
) -> Tensor:
    """Lazy Adam, in float64, a row at a time."""
    m, v, table = torch.zeros_like(table), torch.zeros_like(table), table.clone()
    for step, grad in enumerate(grads, 1):
        size = lr * math.sqrt(1 - betas[1] ** step) / (1 - betas[0] ** step)
        dense = grad.to_dense().double()
        for row in grad._indices()[0].unique():
            m[row] = betas[0] * m[row] + (1 - betas[0]) * dense[row]
            v[row] = betas[1] * v[row] + (1 - betas[1]) * dense[row] ** 2
            table[row] -= size * m[row] / (v[row].sqrt() + eps)
    return table


def adagrad_by_definition(
    table: Tensor, grads: list[Tensor], lr: float, eps: float, first: float
) -> Tensor:
    """Row-wise Adagrad, in float64, a row at a time."""
    sums, table = torch.full((len(table),), first, dtype=torch.float64), table.clone()
    for grad in grads:
        dense = grad.to_dense().double()
        for row in grad._indices()[0].unique():
            sums[row] += dense[row].square().mean()
            table[row] -= lr * dense[row] / (sums[row].sqrt() + eps)
    return table


def wide(grads: list[Tensor]) -> list[Tensor]:
    """Sparse gradients in float64, not yet summed."""
    return [
        torch.sparse_coo_tensor(
            g._indices().cpu(), g._values().cpu().double(), g.shape, check_invariants=True
        )
        for g in grads
    ]


def stepped(optimizer: torch.optim.Optimizer, parameter: Tensor, grads: list[Tensor]) -> None:
    for grad in grads:
        parameter.grad = grad
        optimizer.step()


@pytest.mark.parametrize("cols", [1, 7, 60, 96])
@pytest.mark.parametrize("coalesced", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_definition(kind: type, coalesced: bool, cols: int, isa: str, device: torch.device) -> None:
    parameter = torch.randn(N, cols, device=device).requires_grad_()
    before = parameter.detach().cpu().double()
    grads = [gradient(parameter, coalesced=coalesced) for _ in range(6)]
    if kind is LazyAdam:
        optimizer: Any = LazyAdam([parameter], 0.02, (0.8, 0.95), 1e-6)
        expected = adam_by_definition(before, wide(grads), 0.02, (0.8, 0.95), 1e-6)
    else:
        optimizer = RowWiseAdagrad([parameter], 0.02, 1e-6, 0.1)
        expected = adagrad_by_definition(before, wide(grads), 0.02, 1e-6, 0.1)
    stepped(optimizer, parameter, grads)
    torch.testing.assert_close(parameter.detach().cpu().double(), expected, rtol=1e-5, atol=1e-6)
    touched = torch.cat([g._indices()[0] for g in grads]).unique().cpu()
    others = torch.ones(N, dtype=torch.bool)
    others[touched] = False
    assert torch.equal(parameter.detach().cpu()[others], before.float()[others])
    for key in optimizer.STATE:
        rows = optimizer.state[parameter][key].cpu()[others]
        assert (rows == (0.0 if kind is LazyAdam else 0.1)).all()


@pytest.mark.parametrize("coalesced", [True, False])
def test_pytorchs_sparse_adam(coalesced: bool) -> None:
    """The same moments bit for bit where PyTorch does not sum; the step to its square root."""
    ours, theirs = (torch.randn(N, 60).requires_grad_() for _ in range(2))
    with torch.no_grad():
        theirs.copy_(ours)
    grads = [gradient(ours, coalesced=coalesced) for _ in range(10)]
    optimizers = LazyAdam([ours], 0.01), torch.optim.SparseAdam([theirs], 0.01)
    for optimizer, parameter in zip(optimizers, (ours, theirs), strict=True):
        stepped(optimizer, parameter, copy.deepcopy(grads))
    found, expected = optimizers[0].state[ours], optimizers[1].state[theirs]
    assert found["step"] == expected["step"] == 10
    for key in ("exp_avg", "exp_avg_sq"):
        if coalesced:
            assert torch.equal(found[key], expected[key])
        torch.testing.assert_close(found[key], expected[key])
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_keeps_float32_state(
    kind: type, dtype: torch.dtype, isa: str, device: torch.device
) -> None:
    """State as of a float32 parameter, gradients summed in float32; a step is rounded once."""
    parameter = torch.randn(N, 37, device=device).to(dtype).requires_grad_()
    exact = parameter.detach().float().requires_grad_()
    optimizer, of_exact = kind([parameter], 0.05), kind([exact], 0.05)
    for _ in range(4):
        parameter.grad = grad = gradient(parameter)
        exact.grad = wide([grad])[0].float().to(device)
        exact.data.copy_(parameter.detach())
        optimizer.step()
        of_exact.step()
        assert torch.equal(parameter.detach(), exact.detach().to(dtype))
    for key in kind.STATE:
        assert optimizer.state[parameter][key].dtype == torch.float32
        assert torch.equal(optimizer.state[parameter][key], of_exact.state[exact][key])


@pytest.mark.parametrize("kind", KINDS)
def test_duplicates_are_summed_before_they_are_squared(kind: type, device: torch.device) -> None:
    twice, once = (torch.zeros(9, 3, device=device).requires_grad_() for _ in range(2))
    ids = torch.tensor([[4, 2, 4]], device=device)
    values = torch.tensor([[1.0], [3.0], [5.0]], device=device).expand(3, 3)
    twice.grad = torch.sparse_coo_tensor(ids, values, (9, 3))
    once.grad = torch.sparse_coo_tensor(
        ids[:, 1:], torch.tensor([[3.0], [6.0]], device=device).expand(2, 3), (9, 3)
    ).coalesce()
    for parameter in (twice, once):
        kind([parameter]).step()
    assert torch.equal(twice, once)
    assert (once[[2, 4]] < 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_on_any_number_of_threads(kind: type) -> None:
    found = []
    start = torch.randn(N * 20, 60)
    grads = [
        torch.sparse_coo_tensor(
            torch.randint(N * 20, (1, 3000)), torch.randn(3000, 60), start.shape
        )
        for _ in range(3)
    ]
    grads.append(grads[0].coalesce())
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        parameter = start.clone().requires_grad_()
        stepped(kind([parameter]), parameter, grads)
        found.append(parameter.detach())
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_on_any_instruction_set(kind: type) -> None:
    start, found = torch.randn(N, 61), []
    grads = [gradient(start, coalesced=True) for _ in range(3)]
    before = af._core.isa()
    try:
        for isa in af._core.supported_isas():
            af._core.set_isa(isa)
            parameter = start.clone().requires_grad_()
            stepped(kind([parameter]), parameter, grads)
            found.append(parameter.detach())
    finally:
        af._core.set_isa(before)
    assert all(torch.equal(found[0], one) for one in found[1:])


@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_gradient_counts_as_a_step(kind: type, device: torch.device) -> None:
    parameter = torch.randn(5, 2, device=device).requires_grad_()
    before, optimizer = parameter.detach().clone(), kind([parameter])
    optimizer.step()  # without any gradient
    assert not optimizer.state
    empty = torch.empty((1, 0), dtype=torch.int64, device=device)
    parameter.grad = torch.sparse_coo_tensor(empty, torch.empty(0, 2, device=device), (5, 2))
    optimizer.step()
    assert torch.equal(parameter, before)
    assert optimizer.state[parameter]["step"] == 1


@pytest.mark.parametrize("kind", KINDS)
def test_ascending(kind: type) -> None:
    down, up = (torch.zeros(N, 4, requires_grad=True) for _ in range(2))
    for grad in [gradient(down) for _ in range(3)]:
        stepped(kind([down], 0.1), down, [grad])
        stepped(kind([up], 0.1, maximize=True), up, [grad])
    assert torch.equal(down, -up)
    assert (down != 0).any()


# --- torch.optim's interface ----------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_state_dict_goes_on_bit_for_bit(
    kind: type, dtype: torch.dtype, device: torch.device, tmp_path: Any
) -> None:
    """Float32 state of a bfloat16 parameter, which PyTorch's own loading rounds."""
    parameter = torch.randn(N, 6, device=device).to(dtype).requires_grad_()
    grads = [gradient(parameter) for _ in range(6)]
    optimizer = kind([parameter], 0.1)
    stepped(optimizer, parameter, grads[:3])
    torch.save([parameter.detach(), optimizer.state_dict()], tmp_path / "saved.pt")
    values, state = torch.load(tmp_path / "saved.pt", weights_only=True)
    again = values.requires_grad_()
    resumed = kind([again], 5.0)
    resumed.load_state_dict(state)
    assert resumed.param_groups[0]["lr"] == 0.1
    copied = copy.deepcopy(resumed)
    twin = copied.param_groups[0]["params"][0]
    for one, of in ((optimizer, parameter), (resumed, again), (copied, twin)):
        stepped(one, of, grads[3:])
    for one, of in ((resumed, again), (copied, twin)):
        assert torch.equal(of, parameter)
        assert one.state[of]["step"] == 6
        for key in kind.STATE:
            assert torch.equal(one.state[of][key], optimizer.state[parameter][key])


def test_state_of_pytorchs_sparse_adam_is_taken_over() -> None:
    ours, theirs = (torch.ones(N, 6, requires_grad=True) for _ in range(2))
    grads = [gradient(ours, coalesced=True) for _ in range(6)]
    first = torch.optim.SparseAdam([theirs], 0.1, (0.7, 0.8))
    stepped(first, theirs, grads[:3])
    optimizer = LazyAdam([ours])
    optimizer.load_state_dict(copy.deepcopy(first.state_dict()))
    with torch.no_grad():
        ours.copy_(theirs)
    stepped(first, theirs, grads[3:])
    stepped(optimizer, ours, grads[3:])
    assert optimizer.state[ours]["step"] == 6
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "of", "message"),
    [
        (LazyAdam, RowWiseAdagrad, "a state of step, sum for parameter 0; expected exp_avg"),
        (RowWiseAdagrad, torch.optim.Adagrad, r"sum of shape \(300, 6\).* shape \(300, 1\)"),
        (LazyAdam, torch.optim.AdamW, "weight_decay: got 0.01; expected none with LazyAdam"),
    ],
)
def test_state_of_another_optimizer_is_refused(kind: type, of: type, message: str) -> None:
    parameter = torch.ones(N, 6, requires_grad=True)
    other = of([parameter])
    parameter.grad = gradient(parameter)
    if of is torch.optim.AdamW:
        parameter.grad = parameter.grad.to_dense()
    other.step()
    optimizer = kind([parameter])
    with pytest.raises(ValueError, match=message):
        optimizer.load_state_dict(other.state_dict())
    assert not optimizer.state
    assert set(optimizer.param_groups[0]) == set(kind([parameter]).param_groups[0])


def test_groups_schedules_and_closures() -> None:
    slow, fast = (torch.zeros(N, 4, requires_grad=True) for _ in range(2))
    optimizer = LazyAdam([{"params": [slow], "lr": 0.01}, {"params": [fast]}], lr=0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 0.5**epoch)
    ids = torch.arange(5)

    def closure() -> Tensor:
        optimizer.zero_grad()
        rows = [af.lookup(ids, None, one, sparse=True) for one in (slow, fast)]
        loss = -sum(one.sum() for one in rows)
        loss.backward()
        return loss

    assert optimizer.step(closure).detach() == 0
    expected = torch.tensor([0.01, 0.1])
    torch.testing.assert_close(torch.stack([slow[0, 0], fast[0, 0]]), expected)
    schedule.step()
    assert float(optimizer.step(closure).detach()) == pytest.approx(-5 * 4 * 0.11, rel=1e-5)
    torch.testing.assert_close(torch.stack([slow[0, 0], fast[0, 0]]), 1.5 * expected)
    assert (slow[5:] == 0).all()
    optimizer.param_groups[1]["lr"] = torch.tensor(0.0)  # as a warm-up begins
    before = fast.detach().clone()
    optimizer.step(closure)
    assert torch.equal(fast, before)
    optimizer.param_groups[1]["lr"] = math.nan
    before = slow.detach().clone()
    with pytest.raises(ValueError, match="lr: got nan; expected 0 <= lr, finite"):
        optimizer.step()
    assert torch.equal(slow, before), "nothing is stepped where something is invalid"


def test_a_step_counts_as_a_write() -> None:
    """Autograd refuses a graph whose rows have changed, as after any write in place."""
    parameter = torch.ones(5, 2, requires_grad=True)
    squares = (parameter * parameter).sum()
    parameter.grad = gradient_of_rows(parameter, [0, 3])
    LazyAdam([parameter]).step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        squares.backward()


def gradient_of_rows(parameter: Tensor, ids: list[int], coalesced: bool = True) -> Tensor:
    values = torch.ones(len(ids), parameter.shape[1])
    return torch.sparse_coo_tensor(
        torch.tensor([ids]), values, parameter.shape, is_coalesced=coalesced, check_invariants=False
    )


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        *((kind, {"lr": value}, "lr: got") for kind in KINDS for value in (-1.0, math.nan)),
        *((kind, {"lr": value}, "lr: got") for kind in KINDS for value in (math.inf, "1")),
        *((kind, {"eps": value}, "eps: got") for kind in KINDS for value in (0.0, -1e-8, 1e-50)),
        (LazyAdam, {"betas": (1.0, 0.9)}, r"betas\[0\]: got 1.0; expected 0 <= beta < 1"),
        (LazyAdam, {"betas": (0.9, -0.1)}, r"betas\[1\]: got -0.1"),
        (LazyAdam, {"betas": 0.9}, "betas: got 0.9; expected two numbers"),
        (RowWiseAdagrad, {"initial_accumulator_value": -1.0}, "initial_accumulator_value: got -1"),
    ],
)
def test_options_that_are_refused(kind: type, options: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        kind([torch.zeros(3, 2, requires_grad=True)], **options)


@pytest.mark.parametrize("option", ["weight_decay", "lr_decay", "amsgrad"])
def test_options_of_a_group_that_would_be_ignored(option: str) -> None:
    first, second = (torch.zeros(3, 2, requires_grad=True) for _ in range(2))
    optimizer = LazyAdam([first])
    with pytest.raises(ValueError, match=f"{option}: got 0.1; expected none with LazyAdam"):
        optimizer.add_param_group({"params": [second], option: 0.1})
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda: torch.zeros(3), r"one of shape \(3,\)"),
        (lambda: torch.zeros(3, 2, 2), r"one of shape \(3, 2, 2\)"),
        (lambda: torch.zeros(3, 2).double(), "one of torch.float64"),
        (lambda: torch.zeros(2, 3).T, r"one of strides \(1, 3\)"),
        (lambda: torch.zeros(3, 9)[:, :4].detach(), r"one of strides \(9, 1\)"),
        (lambda: torch.zeros(3, 2).to_sparse(1), "layout torch.sparse_coo"),
    ],
)
def test_parameters_that_are_refused(made: Callable[[], Tensor], message: str) -> None:
    for kind in KINDS:
        with pytest.raises((ValueError, TypeError), match=f"params: got .*{message}.* contiguous"):
            kind([made().requires_grad_()])


@pytest.mark.parametrize(
    ("grad", "message"),
    [
        (lambda p: torch.ones_like(p), r"a dense gradient of a parameter of shape \(6, 2\)"),
        (lambda p: torch.ones_like(p).to_sparse(), "one of 2 sparse dimensions"),
    ],
)
def test_gradients_that_are_refused(grad: Callable[[Tensor], Tensor], message: str) -> None:
    """Before any parameter has been stepped."""
    fine, other = (torch.ones(6, 2, requires_grad=True) for _ in range(2))
    fine.grad = gradient_of_rows(fine, [1])
    other.grad = grad(other)
    for kind in KINDS:
        optimizer = kind([fine, other])
        with pytest.raises(ValueError, match=f"grad: got {message}.* expected a sparse one"):
            optimizer.step()
        assert not optimizer.state
    assert torch.equal(fine, torch.ones(6, 2))


@pytest.mark.parametrize("coalesced", [True, False])
def test_rows_that_are_not_there(coalesced: bool, device: torch.device) -> None:
    if device.type != "cpu":
        pytest.skip("on a GPU an error ends the process's context")
    for kind, row in itertools.product(KINDS, (-1, 6)):
        parameter = torch.ones(6, 2, requires_grad=True)
        parameter.grad = gradient_of_rows(parameter, sorted([row, 2]), coalesced)
        with pytest.raises(IndexError, match=f"gradient: got {row} at position"):
            kind([parameter]).step()


@pytest.mark.parametrize("ids", [[3, 3], [4, 1]])
def test_a_gradient_that_is_not_coalesced_as_it_says(ids: list[int], device: torch.device) -> None:
    """Threads would share a row."""
    if device.type != "cpu":
        pytest.skip("on a GPU an error ends the process's context")
    for kind in KINDS:
        parameter = torch.ones(6, 2, requires_grad=True)
        parameter.grad = gradient_of_rows(parameter, ids)
        message = f"gradient: got {ids[1]} at position 1; expected {ids[0] + 1} <= id <= 5"
        with pytest.raises(IndexError, match=message):
            kind([parameter]).step()


# --- tables ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_training_a_sparse_table(kind: type, on_device: None) -> None:
    """Gradients of lookups and of candidates, added up; other rows stay bit for bit."""
    table = af.ItemTable(torch.randn(N, 5), torch.randn(N, 6), sparse=True)
    before = table.id_embeddings.detach().clone()
    optimizer = kind(table.parameters(), 0.1)
    history, candidates = torch.randint(50, (4, 7)), torch.randint(30, 80, (4, 9))
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        scores = table.score_candidates(table(history).mean(1), candidates)
        loss = torch.nn.functional.softplus(-scores).mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] / 2
    touched = torch.cat([history.flatten(), candidates.flatten()]).unique()
    moved = (table.id_embeddings != before).any(1).nonzero().flatten()
    assert torch.equal(moved, touched)


def test_gradients_of_sparse_tables_are_not_sorted_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Autograd does not say of them that they are coalesced."""
    table = af.ItemTable(torch.randn(N, 5), torch.randn(N, 6), sparse=True)
    queries = table(torch.randint(50, (4, 7))).mean(1)
    table.score_candidates(queries, torch.randint(30, 80, (4, 9))).sum().backward()
    monkeypatch.setattr(gradients, "group_ids", lambda *_: pytest.fail("sorts"))
    for kind in KINDS:
        kind(table.parameters()).step()


def test_in_a_compiled_function() -> None:
    """A step is a break of the graph, and the same."""
    compiled, plain = (torch.ones(6, 2, requires_grad=True) for _ in range(2))
    for parameter in (compiled, plain):
        parameter.grad = gradient_of_rows(parameter, [1, 4])
    first, second = LazyAdam([compiled]), LazyAdam([plain])
    torch.compile(lambda: first.step(), backend="eager")()
    second.step()
    assert torch.equal(compiled, plain)
    assert (compiled[1] < 1).all()
