"""The border of the native core: what does not fit is an error there, and never a crash."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from alphafuse_ext import _core
from alphafuse_ext.ops import native

KERNELS = Path(__file__).resolve().parent.parent / "csrc" / "kernels.def"

Q, IDS, OUT = torch.randn(2, 7), torch.tensor([1, 2]), torch.empty(2, 9)
S, E = torch.randn(9, 4), torch.randn(9, 3)
GRAD, CODES, BOUNDS = torch.empty(9, 3), torch.empty(64 * 8).char(), torch.empty(3, 64)


@pytest.fixture
def tables() -> _core.Tables:
    return _core.Tables(S, E)


def test_every_kernel_has_the_arguments_of_the_list() -> None:
    """What Python shows of a kernel is derived from kernels.def; every device has every name."""
    text = KERNELS.read_text()
    listed = re.findall(r"^(\w*)KERNEL\(\w+, (\w+),(.*?)\)$", text, re.DOTALL | re.M)
    assert len(listed) == len(re.findall(r"^(?:CPU_|PRODUCT_)?KERNEL\(", text, re.M)) > 10
    for only, name, declared in listed:
        arguments = re.findall(r"(\w+)(?:,|$)", re.sub(r"<.*?>+", "", declared))
        for device in _core.devices:
            kernel = getattr(getattr(_core, device), name)
            if device == "cpu" or only != "CPU_":
                where = "threads" if device == "cpu" else "launch"
                assert kernel.__text_signature__ == f"({', '.join(arguments)}, {where}, /)"
            else:
                with pytest.raises(NotImplementedError, match=f"{name} has no {device} kernel yet"):
                    kernel()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((1, Q, OUT, 1), TypeError, "tables: got int; expected Tables"),
        ((Q.tolist(), OUT, 1), TypeError, "queries: got list; expected a tensor"),
        ((None, OUT, 1), TypeError, "queries: got NoneType; expected a tensor"),
        ((Q.numpy(), OUT, 1), TypeError, "queries: got float32; expected torch.float32"),
        ((Q.double(), OUT, 1), TypeError, "queries: got torch.float64; expected torch.float32"),
        ((Q.half(), OUT, 1), TypeError, "queries: got torch.float16; expected torch.float32"),
        ((Q.to("meta"), OUT, 1), ValueError, "queries: got meta; expected cpu"),
        ((Q.T.contiguous().T, OUT, 1), ValueError, "queries: got a tensor that is not contiguous"),
        (
            (Q[:, :6].contiguous(), OUT, 1),
            ValueError,
            r"queries: got shape \(2, 6\); .* = \(2, 7\)",
        ),
        ((Q, OUT[:, :8].contiguous(), 1), ValueError, r"out: got shape \(2, 8\); .* = \(2, 9\)"),
        ((Q[:1], OUT, 1), ValueError, r"out: got shape \(2, 9\); expected .* = \(1, 9\)"),
        ((torch.tensor(1.0), OUT, 1), ValueError, r"queries: got shape \(\); expected"),
        ((Q, OUT, 1.5), TypeError, "threads: got float; expected an int"),
        ((Q, OUT), TypeError, "got 3 arguments; expected 4"),
        ((Q, OUT, 1, 1), TypeError, "got 5 arguments; expected 4"),
    ],
)
def test_arguments_of_a_kernel(
    tables: _core.Tables, arguments: tuple, error: type[Exception], message: str
) -> None:
    if not isinstance(arguments[0], int):
        arguments = (tables, *arguments)
    with pytest.raises(error, match=f"^score_all: {message}"):
        _core.cpu.score_all(*arguments)


def test_batch_dimensions_are_one_size(tables: _core.Tables) -> None:
    """Ids of any shape, and a single query, need no view made of them."""
    ids, rows = torch.randint(9, (2, 3, 4)), torch.empty(2, 3, 4, 7)
    _core.cpu.lookup(tables, ids, rows, 1)
    assert torch.equal(rows, torch.cat([S, E], 1)[ids])
    scores = torch.empty(9)
    _core.cpu.score_all(tables, Q[0], scores, 1)
    torch.testing.assert_close(scores, torch.cat([S, E], 1) @ Q[0])
    with pytest.raises(ValueError, match=r"lookup: out: got shape \(2, 3, 5, 7\)"):
        _core.cpu.lookup(tables, ids, torch.empty(2, 3, 5, 7), 1)


@pytest.mark.parametrize(
    ("kernel", "arguments", "message"),
    [
        ("lookup_backward", (Q, "groups", GRAD[:8], 1), r"out: got shape \(8, 3\)"),
        ("lookup_backward", (torch.randn(3, 7), "groups", GRAD, 1), "groups of 2 ids; expected 3"),
        ("topk", (Q, "exclude", [], OUT, OUT.long(), 1), "exclude: got 3 batch; expected 2 batch"),
        ("topk", (Q, None, [], OUT, OUT[:, :2].long(), 1), r"ids: got shape \(2, 2\)"),
        ("topk", (Q, None, [CODES], OUT, OUT.long(), 1), r"compressed: got shape \(512,\)"),
        ("topk", (Q, None, [CODES[:256], BOUNDS], OUT, OUT.long(), 1), "got 2 tensors; expected"),
        ("compress", (CODES[1:], BOUNDS, 1), r"codes: got shape \(511,\); expected .* = \(512,\)"),
        ("score_all_backward", (Q, OUT, None, GRAD[1:], 1), r"grad_ids: got shape \(8, 3\)"),
    ],
)
def test_sizes_that_other_arguments_give(
    tables: _core.Tables, kernel: str, arguments: tuple, message: str
) -> None:
    made = {
        "groups": _core.cpu.group_ids(IDS, 9, True),
        "exclude": _core.cpu.exclude_padded(torch.zeros(3, 1, dtype=torch.int64), 9),
    }
    arguments = tuple(made[a] if isinstance(a, str) else a for a in arguments)
    if kernel != "lookup_backward":
        arguments = (tables, *arguments)
    with pytest.raises(ValueError, match=f"^{kernel}: .*{message}"):
        getattr(_core.cpu, kernel)(*arguments)


def test_tables_stay_alive() -> None:
    """The native tables hold on to the tensors whose memory they read."""
    native_tables = _core.Tables(torch.full((300_000, 4), 2.0), None)
    torch.randn(300_000, 4)  # would take the place of freed memory
    rows = torch.empty(1, 4)
    _core.cpu.lookup(native_tables, torch.tensor([299_999]), rows, 1)
    assert torch.equal(rows, torch.full((1, 4), 2.0))


def test_backends_are_chosen_by_name_only() -> None:
    for name in ("cpu", "cuda-emulated", "no such"):
        if name not in _core.devices or name == "cpu":
            with (
                pytest.raises(ValueError, match=f"backend: got '{name}'; expected one of"),
                native.use_backend(name),
            ):
                pass


INTERRUPTED = """
import signal
import sys
import threading

import torch

from alphafuse_ext import _core, ops
from alphafuse_ext.ops.compressed import CompressedTables

class Stopped(Exception):
    pass

def stop(*_):
    raise Stopped

def interrupted(kernel, *arguments):
    # The other thread raises its signal when this one lets go of the interpreter: in the kernel.
    called = threading.Lock()
    called.acquire()
    def raise_it():
        called.acquire()
        signal.raise_signal(signal.SIGUSR1)
    other = threading.Thread(target=raise_it)
    other.start()
    try:
        called.release()
        kernel(*arguments)
    except Stopped:
        other.join()
        return
    sys.exit(f"{kernel} has returned")

def unwritten(*shape):
    return torch.full(shape, torch.nan)

signal.signal(signal.SIGUSR1, stop)
sys.setswitchinterval(3600)
torch.set_num_threads(2)
cpu, where = _core.cpu, 2
rows, queries = torch.randn(200_000, 64), torch.randn(4096, 64)
tables, targets = _core.Tables(None, rows), torch.arange(4096)
compressed = CompressedTables(None, rows)
for copies in ([], compressed.tensors):
    values, ids = unwritten(4096, 100), torch.zeros(4096, 100, dtype=torch.int64)
    interrupted(cpu.topk, tables, queries, None, copies, values, ids, where)
    assert values.isnan().all(), "topk"
    ranks = torch.full((4096,), -7)
    scores = torch.randn(4096)
    interrupted(cpu.target_ranks, tables, queries, targets, scores, None, copies, ranks, where)
    assert (ranks == -7).all(), "target_ranks"
maxima, logs = unwritten(2, 4096)
interrupted(cpu.log_sum_exp, tables, queries, maxima, logs, where)
assert maxima.isnan().all(), "log_sum_exp"
maxima, logs, weights = torch.ones(3, 4096)
grads = unwritten(4096, 64), unwritten(200_000, 64)
interrupted(
    cpu.cross_entropy_backward, tables, queries, targets, maxima, logs, weights, *grads, where
)
assert grads[0].isnan().all(), "cross_entropy_backward"
wide, wide_queries = torch.randn(20_000, 1024), torch.randn(1, 512, 1024)
candidates = torch.arange(300_000)[None] % 20_000  # several times what a signal waits
found = unwritten(1, 512, 300_000)
interrupted(
    cpu.score_candidates, _core.Tables(None, wide), wide_queries, candidates, found, where
)
assert found[0, -1, -1].isnan(), "score_candidates"
back = unwritten(1, 512, 1024)
interrupted(
    cpu.score_candidates_grad_queries, _core.Tables(None, wide), candidates, found, back, where
)
assert back[0, -1].isnan().all(), "score_candidates_grad_queries"

# What is called afterwards, and in another thread, is done as ever.
sys.setswitchinterval(0.005)
results = [ops.topk(queries[:256], 5, None, rows)]
thread = threading.Thread(target=lambda: results.append(ops.topk(queries[:256], 5, None, rows)))
thread.start()
thread.join()
assert torch.equal(results[0].indices, results[1].indices)
print("done")
"""


def test_a_signal_ends_a_long_call() -> None:
    """One whose handler raises, as that of Ctrl-C: before anything more is written."""
    ran = subprocess.run(
        [sys.executable, "-c", INTERRUPTED], capture_output=True, text=True, check=False
    )
    assert (ran.stdout, ran.returncode) == ("done\n", 0), ran.stderr
