"""On a device the host never waits: every op, forward and backward, can be captured in a graph."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from conftest import HostReads, on_a_device
from op_inputs import TableCase

import alphafuse_ext as af

pytestmark = pytest.mark.slow

BATCH, K = 37, 5

Inputs = dict[str, torch.Tensor]
Step = Callable[[Inputs], tuple[torch.Tensor, ...]]


def inputs(case: TableCase, device: torch.device) -> Inputs:
    """Fresh tables, queries and ids."""
    semantic, embeddings = case.tables(device)
    assert semantic is not None
    assert embeddings is not None
    ids = torch.randint(case.num_embeddings, (BATCH, K), device=device)
    return {
        "semantic": semantic,
        "embeddings": embeddings,
        "queries": torch.randn(BATCH, case.dim, device=device),
        "ids": ids,
        "targets": ids[:, 0].contiguous(),
        "exclude": ids[:, 1:].contiguous(),
    }


def differentiable(op: Callable[..., torch.Tensor], *names: str) -> Step:
    """The op's result, and its gradients of the queries, if it has any, and the ID embeddings."""

    def step(given: Inputs) -> tuple[torch.Tensor, ...]:
        wanted = [given["embeddings"].detach().requires_grad_()]
        values: dict[str, torch.Tensor] = {**given, "embeddings": wanted[0]}
        if "queries" in names:
            values["queries"] = given["queries"].detach().requires_grad_()
            wanted.append(values["queries"])
        out = op(*(values[name] for name in names), values["semantic"], values["embeddings"])
        return (out.detach(), *torch.autograd.grad(out.square().sum(), wanted))

    return step


def ranking(given: Inputs) -> tuple[torch.Tensor, ...]:
    return af.topk(
        given["queries"], K, given["semantic"], given["embeddings"], exclude=given["exclude"]
    )


def ranks(given: Inputs) -> tuple[torch.Tensor, ...]:
    tables = given["semantic"], given["embeddings"]
    return (af.target_ranks(given["queries"], given["targets"], *tables, exclude=given["exclude"]),)


STEPS: dict[str, Step] = {
    "lookup": differentiable(af.lookup, "ids"),
    "score_all": differentiable(af.score_all, "queries"),
    "score_candidates": differentiable(af.score_candidates, "queries", "ids"),
    "shared candidates": differentiable(af.score_candidates, "queries", "targets"),
    "sampled_softmax": differentiable(af.sampled_softmax, "queries", "targets", "ids"),
    "shared negatives": differentiable(af.sampled_softmax, "queries", "targets", "targets"),
    "cross_entropy": differentiable(af.cross_entropy, "queries", "targets"),
    "topk": ranking,
    "target_ranks": ranks,
}


@on_a_device
@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
def test_the_host_never_waits(step: Step, device: torch.device) -> None:
    given = inputs(TableCase(), device)
    with HostReads() as reads:
        step(given)
    assert not reads.found
    if device.type == "cuda":
        torch.cuda.set_sync_debug_mode("error")
        try:
            step(given)
        finally:
            torch.cuda.set_sync_debug_mode("default")


@on_a_device
def test_a_sparse_gradient_is_the_one_exception(device: torch.device) -> None:
    """Its size is known to the device alone; this shows that what the test above counts is seen."""
    given = inputs(TableCase(), device)
    embeddings = given["embeddings"].requires_grad_()
    with HostReads() as reads:
        af.lookup(given["ids"], given["semantic"], embeddings, sparse=True).sum().backward()
    assert reads.found == ["index"]


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
def test_a_captured_step_replays(step: Step, dtype: torch.dtype) -> None:
    """A CUDA graph of forward and backward, replayed with other values in the same memory."""
    device = torch.device("cuda")
    case = TableCase(dim=64, null_dim=32, semantic_dtype=dtype, id_dtype=dtype)
    static, other = inputs(case, device), inputs(case, device)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # what is set up at a first call
        step(static)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step(static)
    for name, value in other.items():
        static[name].copy_(value)
    graph.replay()
    for found, expected in zip(captured, step(other), strict=True):
        torch.testing.assert_close(found, expected)
