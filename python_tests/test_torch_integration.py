"""The ops as PyTorch sees them: opcheck, torch.compile, autocast, DDP, optimizers, memory."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from op_inputs import TableCase
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import alphafuse_ext as af
from alphafuse_ext import _core
from alphafuse_ext.items.table import ItemTable
from alphafuse_ext.ops import declare, native, reference
from alphafuse_ext.ops.mixture import split_mixture

pytestmark = pytest.mark.usefixtures("one_thread")

Op = Callable[..., torch.Tensor]


def differentiable_ops(ids: torch.Tensor) -> dict[str, Op]:
    """Each as a function of queries ``(B, dim)`` and ID embeddings, and the semantic rows."""
    return {
        "lookup": lambda q, e, s: af.lookup(ids, s, e) * q,
        "score_all": lambda q, e, s: af.score_all(q, s, e, similarity="cosine"),
        "score_candidates": lambda q, e, s: af.score_candidates(q, ids, s, e),
        "sampled_softmax": lambda q, e, s: af.sampled_softmax(q, ids, ids.flip(0), s, e),
        "cross_entropy": lambda q, e, s: af.cross_entropy(q, ids, s, e, temperature=0.5),
    }


OPS = sorted(differentiable_ops(torch.zeros(0)))


def mixture_of(ids: torch.Tensor) -> af.Mixture:
    """Lists of one item each."""
    return af.Mixture(ids[:, None], torch.full_like(ids[:, None], 0.4, dtype=torch.float32), 0.3)


# --- opcheck --------------------------------------------------------------------------------------


def sample_arguments() -> dict[str, tuple]:
    semantic, embeddings = TableCase(num_embeddings=150).tables()
    assert embeddings is not None
    embeddings.requires_grad_()
    queries = torch.randn(5, 19, requires_grad=True)
    ids = torch.randint(151, (5,))
    grouped = torch.randn(2, 3, 19, requires_grad=True)
    candidates = torch.randint(151, (2, 4))
    exclude = torch.randint(-1, 151, (5, 6))
    compressed = af.CompressedTables(semantic, embeddings, similarity="cosine").tensors
    mixed = (*split_mixture(mixture_of(ids), queries)[:4], 0.7)

    def tables(cosine: bool, gradient: bool = True) -> tuple:
        ids = embeddings if gradient else embeddings.detach()
        return semantic, ids, "concat", cosine, "float32"

    fixed = tables(True, False)
    return {
        "lookup": (ids, *tables(False), False),
        "lookup_backward": (torch.randn(5, 19), ids, 150, 7, torch.float32),
        "score_all": (queries, *tables(True), torch.bfloat16),
        "score_all_backward": (
            *(torch.randn(5, 150).bfloat16(), queries.detach(), *fixed, True, True),
        ),
        "score_candidates": (grouped, candidates, *tables(True), False),
        "score_candidates_grad_queries": (
            torch.randn(2, 3, 4),
            grouped.detach(),
            candidates,
            *fixed,
        ),
        "score_candidates_grad_ids": (
            torch.randn(2, 3, 4),
            torch.randn(2, 3, 4),
            grouped.detach(),
            candidates,
            *fixed,
        ),
        "sampled_softmax": (
            *(grouped, candidates[:, :3], candidates, torch.rand(150), *tables(True), False),
        ),
        "sampled_softmax_backward": (
            torch.randn(2, 3),
            torch.full((3, 2, 3), 4.0),
            grouped.detach(),
            candidates[:, :3],
            candidates,
            None,
            *tables(False, False),
            True,
            True,
        ),
        "cross_entropy": (queries, ids, *tables(False)),
        "cross_entropy_backward": (
            torch.randn(5),
            torch.full((2, 5), 4.0),
            queries.detach(),
            ids,
            *tables(False, False),
            True,
            False,
        ),
        "topk": (queries.detach(), 3, *fixed, None, exclude, compressed),
        "target_ranks": (queries.detach(), ids, *tables(False, False), None, exclude, []),
        "topk_only": (queries.detach(), 3, *fixed, None, exclude, None, ids),
        "topk_mixture": (
            *(queries.detach(), 3, *fixed, None, exclude, compressed, None, None),
            *mixed,
        ),
        "target_ranks_mixture": (
            *(queries.detach(), ids, *fixed, None, exclude, [], None, exclude),
            *mixed,
        ),
        "target_ranks_only": (queries.detach(), ids, *fixed, None, exclude, None, exclude),
    }


@pytest.mark.parametrize("name", sorted(sample_arguments()))
def test_opcheck(name: str) -> None:
    """Schema, fake kernel, autograd registration and tracing with dynamic shapes."""
    torch.library.opcheck(getattr(torch.ops.alphafuse, name).default, sample_arguments()[name])


def test_opcheck_covers_every_op() -> None:
    registered = {
        name.removeprefix("alphafuse::").split(".")[0]
        for name in torch._C._dispatch_get_all_op_names()
        if name.startswith("alphafuse::")
    }
    assert registered == set(sample_arguments())


# --- what is traced -------------------------------------------------------------------------------


class Traced(torch.nn.Module):
    """What a function does with an item table."""

    def __init__(self, table: torch.nn.Module, call: Callable) -> None:
        super().__init__()
        self.table, self.call = table, call

    def forward(self, *arguments: torch.Tensor) -> object:
        return self.call(self.table, *arguments)


def lists_of(ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.arange(ids.shape[0] + 1), ids


METHODS: dict[str, Callable] = {
    "forward": lambda t, q, i: t(i),
    "mean": lambda t, q, i: t.mean() + q,
    "weight": lambda t, q, i: t.weight[i.clamp(max=39)] * q,
    "score_all": lambda t, q, i: t.score_all(q),
    "score_candidates": lambda t, q, i: t.score_candidates(q, i),
    "own candidates": lambda t, q, i: t.score_candidates(q, i[:, None]),
    "candidates of positions": lambda t, q, i: t.score_candidates(q[:, None], i[:, None, None]),
    "sampled_softmax": lambda t, q, i: t.sampled_softmax(q, i, i),
    "own negatives": lambda t, q, i: t.sampled_softmax(
        q, i, i.flip(0)[:, None], log_q=torch.linspace(-2, -1, t.num_embeddings, device=q.device)
    ),
    "cross_entropy": lambda t, q, i: t.cross_entropy(q, i),
    "weighted": lambda t, q, i: t.cross_entropy(
        q, i, ignore_index=2, weight=torch.linspace(0.5, 2.0, t.num_embeddings, device=q.device)
    ),
    "of positions": lambda t, q, i: t.cross_entropy(q[None], i[None], "cosine", 0.3, "none"),
    "first_pass": lambda t, q, i: t.topk(q, 3, first_pass="auto"),
    "topk": lambda t, q, i: t.topk(q, 3),
    "topk of one": lambda t, q, i: t.topk(q[0], 3),
    "exclude": lambda t, q, i: t.topk(q, 3, exclude=i[:, None]),
    "exclude offsets": lambda t, q, i: t.topk(q, 3, exclude=lists_of(i)),
    "only": lambda t, q, i: t.topk(q, 3, only=i),
    "only lists": lambda t, q, i: t.topk(q, 3, only=i[:, None]),
    "only offsets": lambda t, q, i: t.topk(q, 3, only=lists_of(i), exclude=i[:, None]),
    "mixture": lambda t, q, i: t.topk(q, 3, exclude=i[:, None], mixture=mixture_of(i)),
    "mixture offsets": lambda t, q, i: t.topk(
        q, 3, only=lists_of(i), mixture=af.Mixture(i, i * 0.0 + 0.4, 0.3, 0.5, lists_of(i)[0])
    ),
    "k of a batch": lambda t, q, i: t.topk(q, q.shape[0]),
    "target_ranks": lambda t, q, i: t.target_ranks(q, i),
    "target_ranks of one": lambda t, q, i: t.target_ranks(q[0], i[0]),
    "target_ranks exclude": lambda t, q, i: t.target_ranks(q, i, exclude=lists_of(i)),
    "target_ranks only": lambda t, q, i: t.target_ranks(q, i, only=i, exclude=lists_of(i)),
    "target_ranks mixture": lambda t, q, i: t.target_ranks(q, i, mixture=mixture_of(i)),
    "target_ranks only mixture": lambda t, q, i: t.target_ranks(
        q, i, only=i[:, None], mixture=mixture_of(i)
    ),
    "target_ranks only lists": lambda t, q, i: t.target_ranks(q, i, only=i[:, None]),
}


# --- torch.compile --------------------------------------------------------------------------------


def gradients_of(function: Op, arguments: tuple) -> list[torch.Tensor]:
    queries, embeddings, semantic = arguments
    q, e = queries.clone().requires_grad_(), embeddings.clone().requires_grad_()
    result = function(q, e, semantic)
    weight = torch.linspace(-1, 1, max(1, result.numel()))[: result.numel()].view(result.shape)
    return [result.detach(), *torch.autograd.grad((result * weight).sum(), (q, e))]


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("name", OPS)
def test_compile_forward_and_backward(name: str, dynamic: bool) -> None:
    semantic, embeddings = TableCase(num_embeddings=150).tables()
    eager = differentiable_ops(torch.randint(150, (5,)))[name]
    compiled = torch.compile(eager, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    arguments = (torch.randn(5, 19), embeddings, semantic)
    for result, expected in zip(
        gradients_of(compiled, arguments), gradients_of(eager, arguments), strict=True
    ):
        torch.testing.assert_close(result, expected)


@pytest.mark.parametrize("dynamic", [pytest.param(False, marks=pytest.mark.slow), True])
@pytest.mark.parametrize("method", METHODS)
def test_compile_every_argument(method: str, dynamic: bool) -> None:
    """In one graph, and again for a batch of another size."""
    torch._dynamo.reset()  # it counts how often it has compiled the one code
    semantic, embeddings = TableCase(num_embeddings=40).tables()
    module = Traced(ItemTable(semantic, embeddings).eval(), METHODS[method])
    compiled = torch.compile(module, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for batch in (4, 7):
        arguments = torch.randn(batch, 19), torch.randint(41, (batch,))
        torch.testing.assert_close(
            tree_leaves(compiled(*arguments)), tree_leaves(module(*arguments)), rtol=0, atol=0
        )


@pytest.mark.parametrize("dynamic", [None, True])
def test_compile_an_annealed_temperature(dynamic: bool | None) -> None:
    """A number that changes at each step, in a graph or two for all."""
    semantic, embeddings = TableCase().tables()
    queries, targets = torch.randn(5, 19), torch.randint(262, (5,))
    graphs = []

    def count(graph: torch.fx.GraphModule, _: list) -> Callable:
        graphs.append(graph)
        return graph.forward

    def loss(temperature: float) -> torch.Tensor:
        return af.cross_entropy(queries, targets, semantic, embeddings, temperature=temperature)

    compiled = torch.compile(loss, fullgraph=True, dynamic=dynamic, backend=count)
    for step in range(12):
        temperature = 1.0 - step / 16
        torch.testing.assert_close(compiled(temperature), loss(temperature), rtol=0, atol=0)
    assert len(graphs) <= 2


@pytest.mark.parametrize("shape", [(), (1,)])
def test_a_temperature_that_is_trained(shape: tuple[int, ...]) -> None:
    semantic, embeddings = TableCase().tables()
    queries, targets = torch.randn(5, 19), torch.randint(262, (5,))
    temperature = torch.full(shape, 0.7, dtype=torch.float64, requires_grad=True)

    def loss(temperature: torch.Tensor | float) -> torch.Tensor:
        return af.cross_entropy(queries, targets, semantic, embeddings, temperature=temperature)

    wide = semantic.double(), embeddings.double()
    scaled = temperature.reshape(())
    expected = reference.cross_entropy(queries.double(), targets, *wide, temperature=scaled)
    (wanted,) = torch.autograd.grad(expected, temperature)
    for call in (loss, torch.compile(loss, fullgraph=True, backend="aot_eager")):
        (grad,) = torch.autograd.grad(call(temperature), temperature)
        torch.testing.assert_close(grad, wanted, rtol=1e-4, atol=1e-5)
        with pytest.raises((ValueError, RuntimeError), match="temperature: got a tensor of anoth"):
            call(torch.full(shape, -1.0))


def test_compile_ranking() -> None:
    semantic, embeddings = TableCase(num_embeddings=150).tables()
    exclude = torch.randint(-1, 151, (5, 6))
    targets = torch.randint(151, (5,))

    def rank(queries: torch.Tensor) -> tuple[torch.Tensor, ...]:
        ranks = af.target_ranks(queries, targets, semantic, embeddings, exclude=exclude)
        return *af.topk(queries, 4, semantic, embeddings, exclude=exclude), ranks

    queries = torch.randn(5, 19)
    compiled = torch.compile(rank, fullgraph=True, backend="aot_eager")
    for result, expected in zip(compiled(queries), rank(queries), strict=True):
        assert torch.equal(result, expected)


@pytest.mark.slow
def test_compile_a_training_step_with_inductor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lookup, encoder and loss in one graph, with code generated around the ops."""
    # Not the user's cache, which may hold code around the ops of another version.
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    semantic, embeddings = TableCase(num_embeddings=150).tables()
    ids, targets = torch.randint(151, (6, 4)), torch.randint(151, (6,))

    def step(q: torch.Tensor, e: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
        history = torch.tanh(af.lookup(ids, s, e)).mean(1) + q
        negatives = af.score_candidates(history, ids, s, e).logsumexp(-1).mean()
        return af.cross_entropy(history, targets, s, e) + negatives

    arguments = (torch.randn(6, 19), embeddings, semantic)
    ids[ids == 150] = 0  # log-sum-exp over nothing but padding has no gradient
    compiled = torch.compile(step, fullgraph=True)
    for result, expected in zip(
        gradients_of(compiled, arguments), gradients_of(step, arguments), strict=True
    ):
        torch.testing.assert_close(result, expected)


def test_compile_leaves_the_graph_for_sparse_gradients() -> None:
    semantic, embeddings = TableCase().tables()
    embeddings.requires_grad_()
    compiled = torch.compile(
        lambda ids: af.lookup(ids, semantic, embeddings, sparse=True) * 2, backend="aot_eager"
    )
    (grad,) = torch.autograd.grad(compiled(torch.tensor([4, 4])).sum(), embeddings)
    assert grad.is_sparse
    assert grad._indices().tolist() == [[4]]
    assert torch.equal(grad._values(), torch.full((1, 7), 4.0))


# --- torch.jit.trace ------------------------------------------------------------------------------


@pytest.mark.parametrize("method", sorted(METHODS.keys() - {"k of a batch"}))  # it is a constant
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
def test_jit_trace_records_the_custom_ops(method: str) -> None:
    """And not the empty memory that a kernel writes to; for batches of other sizes, too."""
    semantic, embeddings = TableCase(num_embeddings=40).tables()
    for table in (ItemTable(semantic, embeddings), ItemTable(torch.randn(40, 19), None)):
        module = Traced(table, METHODS[method])
        examples = [(torch.randn(b, 19), torch.randint(41, (b,))) for b in (4, 7)]
        traced = torch.jit.trace(module, examples[0])
        for arguments in examples:
            torch.testing.assert_close(
                tree_leaves(traced(*arguments)), tree_leaves(module(*arguments)), rtol=0, atol=0
            )


# --- torch.export, ONNX ---------------------------------------------------------------------------


def every_method(table: ItemTable, queries: torch.Tensor, ids: torch.Tensor) -> list[torch.Tensor]:
    found = [call(table, queries, ids) for name, call in METHODS.items() if name != "k of a batch"]
    found += [table.score_all(queries, "cosine")]
    found += [table.topk(queries, 40, "cosine", ids[:, None]).values]  # near ties
    return tree_leaves(found)


@pytest.mark.parametrize(
    "way",
    ["torchscript", pytest.param("dynamo", marks=pytest.mark.slow)],
)
@pytest.mark.filterwarnings("ignore")  # what exporters say of themselves
def test_onnx_has_every_op(way: str, tmp_path: Path) -> None:
    """Of a model of one's own with an item table; with ties, NaN and lists that run out."""
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    semantic, embeddings = (torch.randint(-2, 3, (40, width)).float() for width in (12, 7))
    table = ItemTable(semantic, embeddings).eval()
    with torch.no_grad():
        table.id_embeddings[7] = torch.nan
    module = Traced(table, every_method).eval()
    examples = [(torch.randint(-2, 3, (b, 19)).float(), torch.randint(40, (b,))) for b in (4, 7)]
    batch = torch.export.Dim("batch", min=2)
    sizes = {"arguments": ({0: batch}, {0: batch})}
    path = tmp_path / "model.onnx"
    if way == "torchscript":
        axes = {"queries": [0], "ids": [0]}
        torch.onnx.export(
            module, examples[0], path, dynamo=False, input_names=list(axes), dynamic_axes=axes
        )
    else:
        torch.onnx.export(
            module, examples[0], path, dynamo=True, dynamic_shapes=sizes, verbose=False
        )
    session = onnxruntime.InferenceSession(path)
    names = [one.name for one in session.get_inputs()]
    for arguments in examples:
        given = dict(zip(names, (one.numpy() for one in arguments), strict=True))
        for found, expected in zip(session.run(None, given), module(*arguments), strict=True):
            torch.testing.assert_close(
                torch.from_numpy(found), expected.detach(), rtol=1e-5, atol=1e-5, equal_nan=True
            )


def test_export_has_the_custom_ops() -> None:
    table = ItemTable(*TableCase(num_embeddings=40).tables()).eval()
    module = Traced(table, every_method).eval()
    examples = [(torch.randn(b, 19), torch.randint(40, (b,))) for b in (4, 7)]
    batch = torch.export.Dim("batch", min=2)
    sizes = {"arguments": ({0: batch}, {0: batch})}
    program = torch.export.export(module, examples[0], dynamic_shapes=sizes)
    assert "alphafuse.topk.default" in str(program.graph)
    for arguments in examples:
        found, expected = program.module()(*arguments), module(*arguments)
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize("method", METHODS)
def test_the_meta_device_is_refused_in_one_line(method: str) -> None:
    semantic, embeddings = (torch.randn(40, 19, device="meta") for _ in range(2))
    gains = torch.ones(19, device="meta")
    soft = {"coordinates": "soft", "coordinates_map": gains}
    arguments = torch.randn(4, 19, device="meta"), torch.zeros(4, dtype=torch.int64, device="meta")
    for table in (ItemTable(None, embeddings), ItemTable(semantic, embeddings, "add", **soft)):
        if (method, table.fusion) in (("weight", "concat"), ("of positions", "add")):
            continue  # the parameter itself; refused as it is a cosine
        with pytest.raises(ValueError, match=r"^[a-z_]+: got device meta; expected a device with"):
            METHODS[method](table, *arguments)


# --- autocast -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OPS)
def test_autocast_widens_queries_and_casts_no_table(name: str, isa: str) -> None:
    """Under autocast a linear layer hands over bfloat16; the op takes it, exactly, in float32, or
    with the tables in autocast's type where the processor multiplies that."""
    semantic, embeddings = TableCase().tables()
    op = differentiable_ops(torch.randint(261, (5,)))[name]
    layer = torch.nn.Linear(19, 19)
    inputs = torch.randn(5, 19)
    with torch.autocast("cpu", torch.bfloat16):
        queries = layer(inputs)
        assert queries.dtype == torch.bfloat16
        table = embeddings.clone().requires_grad_()
        result = op(queries, table, semantic)
    result.sum().backward()
    assert table.grad.dtype == torch.float32
    assert layer.weight.grad is not None

    with torch.autocast("cpu", torch.bfloat16, enabled=isa in native.BFLOAT16_ISAS):
        exact = op(queries.detach().float(), embeddings, semantic)
    if name == "score_all":
        assert result.dtype == torch.bfloat16
        exact = exact.bfloat16()
    else:
        assert result.dtype == torch.float32
    assert torch.equal(result, exact)


# --- optimizers -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["lookup", "score_candidates", "sampled_softmax"])
def test_sparse_adam_steps_touched_rows_only(name: str) -> None:
    semantic, embeddings = TableCase().tables()
    table = embeddings.clone().requires_grad_()
    optimizer = torch.optim.SparseAdam([table], lr=0.1)
    ids = torch.tensor([3, 9, 9, 261, 250])
    if name == "lookup":
        result = af.lookup(ids, semantic, table, sparse=True)
    elif name == "sampled_softmax":
        result = af.sampled_softmax(
            torch.randn(2, 19), ids[:2], ids[2:], semantic, table, sparse=True
        )
    else:
        result = af.score_candidates(torch.randn(2, 19), ids, semantic, table, sparse=True)
    result[result.isfinite()].sum().backward()
    optimizer.step()
    moved = (table.detach() != embeddings).any(dim=1).nonzero().flatten()
    assert moved.tolist() == [3, 9, 250]


def test_training_finds_the_targets(device: torch.device) -> None:
    """A few steps of Adam on the loss bring every target to the first place."""
    semantic = torch.randn(300, 8, device=device)
    table = torch.zeros(300, 8, requires_grad=True, device=device)
    queries = torch.randn(20, 16, requires_grad=True, device=device)
    targets = torch.randperm(300, device=device)[:20]
    optimizer = torch.optim.Adam([table, queries], lr=0.1)
    for _ in range(60):
        optimizer.zero_grad()
        af.cross_entropy(queries, targets, semantic, table).backward()
        optimizer.step()
    assert torch.equal(af.score_all(queries, semantic, table).argmax(1), targets)


# --- threads and processes ------------------------------------------------------------------------


def test_calls_from_several_threads() -> None:
    """Python threads share the pool of native threads; results are the same."""
    torch.set_num_threads(2)
    semantic, embeddings = TableCase(num_embeddings=3000).tables()
    queries = torch.randn(40, 19)
    expected = af.topk(queries, 10, semantic, embeddings)
    wrong: list[int] = []

    def work(index: int) -> None:
        for _ in range(20):
            values, ids = af.topk(queries, 10, semantic, embeddings)
            if not (torch.equal(values, expected[0]) and torch.equal(ids, expected[1])):
                wrong.append(index)

    workers = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


def test_small_work_is_one_thread_s() -> None:
    """What a call computes does not depend on how many threads it finds worth calling."""
    semantic, embeddings = TableCase(num_embeddings=3000).tables()
    queries = torch.randn(40, 19)
    targets = torch.randint(3000, (40,))
    found = []
    for work in (1, 1 << 17, 1 << 40):
        _core.set_work_of_thread(work)
        try:
            loss = af.cross_entropy(queries, targets, semantic, embeddings)
            found.append((loss, *af.topk(queries, 10, semantic, embeddings)))
        finally:
            _core.set_work_of_thread(1)
    for others in found[1:]:
        assert all(map(torch.equal, found[0], others))


def run_python(code: str, timeout: int = 120) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=timeout, check=False
    )


def test_errors_in_threads_leave_the_pool_usable() -> None:
    torch.set_num_threads(3)
    semantic, embeddings = TableCase(num_embeddings=3000).tables()
    queries = torch.randn(4, 19)
    for _ in range(5):
        with pytest.raises(IndexError):
            af.cross_entropy(queries, torch.full((4,), 3001), semantic, embeddings)
        af.topk(queries, 3, semantic, embeddings)


@pytest.mark.slow
def test_after_a_fork() -> None:
    """A forked child, such as a worker of a DataLoader, has a pool of its own."""
    code = """
import os, torch, alphafuse_ext as af
from alphafuse_ext import _core
torch.set_num_threads(2)
_core.set_work_of_thread(1)
table = torch.randn(3000, 8)
queries = torch.randn(4, 8)
expected = af.topk(queries, 5, table, None)[1]
for _ in range(3):  # PyTorch's threads, which a child has not
    table.T @ table
child = os.fork()
same = torch.equal(af.topk(queries, 5, table, None)[1], expected)
if child == 0:
    os._exit(0 if same else 1)
assert same and os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
print("fine")
"""
    result = run_python(code)
    assert result.stdout.split() == ["fine"], result.stderr


# --- distributed ----------------------------------------------------------------------------------


class Model(torch.nn.Module):
    """An encoder of one layer between a lookup and the loss."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        self.register_buffer("semantic_rows", torch.randn(200, 5, generator=generator))
        self.id_embeddings = torch.nn.Parameter(torch.randn(200, 3, generator=generator))
        self.layer = torch.nn.Linear(8, 8)
        with torch.no_grad():
            self.layer.weight.copy_(torch.randn(8, 8, generator=generator))
            self.layer.bias.zero_()

    def forward(self, ids: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        tables = (self.semantic_rows, self.id_embeddings)
        queries = self.layer(af.lookup(ids, *tables).mean(1))
        negatives = af.score_candidates(queries, ids, *tables).exp().mean()
        return af.cross_entropy(queries, targets, *tables) + 0.01 * negatives


def batch_of(rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(100 + rank)
    return (
        torch.randint(200, (6, 4), generator=generator),
        torch.randint(200, (6,), generator=generator),
    )


def train_one_step(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(os.path.join(folder, "store"), 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    model = DistributedDataParallel(Model())
    model(*batch_of(rank)).backward()
    grads = {name: parameter.grad for name, parameter in model.module.named_parameters()}
    torch.save(grads, os.path.join(folder, f"{rank}.pt"))
    dist.barrier()
    # Not torn down: the last owner of the group is the model, whose destruction holds the GIL while
    # it waits for a thread of the group that may be waiting for the GIL (torch 2.13).
    os._exit(0)


class SparseModel(torch.nn.Module):
    """One's own module around an item table, as around an ``nn.Embedding(sparse=True)``."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        rows = torch.randn(200, 8, generator=generator)
        self.table = ItemTable(rows[:, :5], rows[:, 5:], sparse=True)
        self.layer = torch.nn.Linear(8, 8)
        torch.nn.init.eye_(self.layer.weight)
        torch.nn.init.zeros_(self.layer.bias)

    def forward(self, ids: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        queries = self.layer(self.table(ids).mean(1))
        return self.table.score_candidates(queries, targets[:, None]).square().mean()


def step_sparsely(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(os.path.join(folder, "store"), 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    model = DistributedDataParallel(SparseModel())
    model(*batch_of(rank)).backward()
    optimizer = torch.optim.SparseAdam([model.module.table.id_embeddings])
    optimizer.step()
    grads = {name: parameter.grad for name, parameter in model.module.named_parameters()}
    torch.save(grads, os.path.join(folder, f"{rank}.pt"))
    dist.barrier()
    os._exit(0)  # as above


@pytest.mark.slow
def test_sparse_gradients_in_distributed_data_parallel(tmp_path: Path) -> None:
    mp.spawn(step_sparsely, args=(str(tmp_path),), nprocs=2)
    model = SparseModel()
    ((model(*batch_of(0)) + model(*batch_of(1))) / 2).backward()
    touched = torch.cat([ids.flatten() for rank in (0, 1) for ids in batch_of(rank)]).unique()
    for rank in (0, 1):
        grads = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert grads["table.id_embeddings"].is_sparse
        assert torch.equal(grads["table.id_embeddings"].coalesce().indices()[0], touched)
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(grads[name].to_dense(), parameter.grad.to_dense())


@pytest.mark.slow
def test_distributed_data_parallel(tmp_path: Path) -> None:
    """Two gloo processes get the mean of both batches' gradients, as one process would."""
    mp.spawn(train_one_step, args=(str(tmp_path),), nprocs=2)
    model = Model()
    ((model(*batch_of(0)) + model(*batch_of(1))) / 2).backward()
    for rank in (0, 1):
        grads = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(grads[name], parameter.grad)


# --- memory ---------------------------------------------------------------------------------------

MEASURE = """
import resource, torch, alphafuse_ext as af
torch.set_num_threads(2)

def growth(function):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    function()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024

"""


def megabytes(code: str) -> float:
    result = run_python(MEASURE + code)
    assert result.returncode == 0, result.stderr
    return float(result.stdout)


@pytest.mark.slow
def test_no_array_of_all_scores() -> None:
    """With 2048 queries and 100,000 items all scores would take 820 MB."""
    code = """
queries = torch.randn(2048, 4, requires_grad=True)
semantic, ids = torch.randn(100_000, 2), torch.randn(100_000, 2, requires_grad=True)
targets = torch.randint(100_000, (2048,))

def all_three():
    af.cross_entropy(queries, targets, semantic, ids).backward()
    af.topk(queries, 10, semantic, ids, exclude=targets[:, None])
    af.target_ranks(queries, targets, semantic, ids, exclude=targets[:, None])

print(growth(all_three))
"""
    assert megabytes(code) < 100


@pytest.mark.slow
def test_backward_of_many_wide_queries() -> None:
    """Their gradients, kept apart for each of 8 parts of the catalog, would take 210 MB."""
    code = """
queries = torch.randn(6400, 1024, requires_grad=True)
ids = torch.randn(8192, 8, requires_grad=True)
semantic, targets = torch.randn(8192, 1016), torch.randint(8192, (6400,))
loss = af.cross_entropy(queries, targets, semantic, ids)
print(growth(loss.backward))
"""
    assert megabytes(code) < 120  # 26 of them the gradient


@pytest.mark.slow
def test_no_fused_table() -> None:
    """Fused, this table would take 205 MB; its two halves take a row each."""
    code = """
semantic = torch.randn(1, 64).expand(400_000, 64)
ids = torch.randn(1, 64).expand(400_000, 64)
queries, targets = torch.randn(2, 128), torch.tensor([5, 399_999])

def every_op():
    for similarity in ("dot", "cosine"):
        af.cross_entropy(queries, targets, semantic, ids, similarity=similarity)
        af.topk(queries, 10, semantic, ids, similarity=similarity)
        af.target_ranks(queries, targets, semantic, ids, similarity=similarity)
        af.score_candidates(queries, targets, semantic, ids, similarity=similarity)
        af.score_all(queries, semantic, ids, similarity=similarity)
        af.lookup(targets, semantic, ids)

print(growth(every_op))
"""
    assert megabytes(code) < 60


# --- two ways into an op --------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(sample_arguments()))
def test_both_ways_into_an_op_are_one(name: str) -> None:
    """Eager calls pass the dispatcher by; what it would have returned is the same, bit for bit."""
    arguments = sample_arguments()[name]
    declared = {op.name: op for op in declare.OPS}[name]
    eager = declared(*declared._nested(arguments))
    dispatched = getattr(torch.ops.alphafuse, name).default(*arguments)
    leaves = [a for a in arguments if isinstance(a, torch.Tensor) and a.requires_grad]
    results = []
    for found in (eager, dispatched):
        tensors = [found] if isinstance(found, torch.Tensor) else list(found)
        # The first result is the differentiable one.
        assert tensors[0].requires_grad == bool(leaves)
        grads = torch.autograd.grad(tensors[0].sum(), leaves) if leaves else ()
        results.append([*tensors, *grads])
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


def test_what_watches_calls_sees_the_custom_op() -> None:
    """Dispatch modes, functorch and fake tensors; and eager calls do not go there."""
    semantic, embeddings = TableCase().tables()
    queries, ids = torch.randn(2, 19), torch.tensor([1, 2])

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(str(func))
            return func(*args, **(kwargs or {}))

    seen: list[str] = []
    with Watch():
        af.topk(queries, 3, semantic, embeddings)
        af.lookup(ids, semantic, embeddings)
    assert "alphafuse.topk.default" in seen
    assert "alphafuse.lookup.default" in seen
    graph = make_fx(lambda q: af.score_all(q, semantic, embeddings))(queries)
    assert "alphafuse.score_all" in graph.code
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert af.score_all(queries, semantic, embeddings).shape == (2, 261)
    mapped = torch.vmap(lambda q: af.score_all(q[None], semantic, embeddings))(queries)
    assert torch.equal(mapped[:, 0], af.score_all(queries, semantic, embeddings))
