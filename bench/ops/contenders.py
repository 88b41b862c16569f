"""Who computes a case of ``cases.py``: ours, PyTorch's, the compiler's and other packages' way."""

from __future__ import annotations

import functools
from collections.abc import Callable, Container
from dataclasses import dataclass
from typing import Any

import torch
from ops.cases import Case, Catalog, FusedOnEachCall, ReadyTable
from ops.peers import PEERS, why_not
from torch import Tensor

OURS = "alphafuse_ext"
IN_TWO_PASSES = "alphafuse_ext, int8 first"
PLAIN = "PyTorch"
READY = "PyTorch, ready table"
COMPILED = "torch.compile"
CONTENDERS = (OURS, IN_TWO_PASSES, PLAIN, READY, COMPILED, *PEERS)


def left_out(device: torch.device, dtype: torch.dtype) -> dict[str, str]:
    """The contenders that are not there, and why."""
    found = {}
    if device.type != "cpu":
        found[IN_TWO_PASSES] = "on the CPU alone"
    for name in PEERS:
        if why := why_not(name, device, dtype):
            found[name] = why
    try:
        torch.compile(torch.neg)(torch.ones(2, device=device))
    except Exception as error:  # whatever its backends meet: no compiler, another Python
        words = str(error).strip().splitlines() or [type(error).__name__]
        found[COMPILED] = f"compiles nothing here: {words[0]}"
    return found


@dataclass
class Contender:
    """One way to compute a case.

    ``run()`` gives its outputs, then its gradients if it has any. ``prepare()`` is called once
    before, and neither timed nor counted as memory: compiling, building an index. ``needed_bytes``
    is an estimate of what it takes.
    """

    name: str
    run: Callable[[], tuple[Any, list[Tensor]]]
    needed_bytes: float = 0.0
    prepare: Callable[[], Any] = lambda: None


def build_contenders(
    case: Case, catalog: Catalog, backward: bool, without: Container[str] = ()
) -> list[Contender]:
    """All contenders of a case, as far as they exist, but those of names ``without``.

    None has run yet.
    """
    work = case.backward if backward else case.forward
    assert work is not None
    # Drawn when the first contender is known to fit, and shared by all.
    grad_output = functools.cache(
        case.grad_output if backward and case.grad_output else lambda: None
    )
    # Equal inputs, but leaves of their own: contenders share no autograd state.
    queries, id_embeddings, table = (
        None if tensor is None else tensor.detach().requires_grad_(backward)
        for tensor in (case.queries, catalog.id_embeddings, catalog.table)
    )
    assert id_embeddings is not None
    assert table is not None

    def fused(queries: Any, semantic_rows: Tensor, id_embeddings: Tensor) -> Any:
        return case.plain(
            queries, FusedOnEachCall(semantic_rows, id_embeddings, catalog.fusion, case.sparse)
        )

    def contender(name: str, forward: Callable[..., Any], *inputs: Any) -> Contender:
        leaves = [tensor for tensor in (inputs[0], inputs[-1]) if tensor is not None]

        def run() -> tuple[Any, list[Tensor]]:
            if not backward:
                with torch.inference_mode():
                    return forward(*inputs), []
            outputs = forward(*inputs)
            return outputs.detach(), list(torch.autograd.grad(outputs, leaves, grad_output()))

        needed = work.our_bytes if name == OURS else work.plain_bytes
        return Contender(name, run, needed, prepare=grad_output)

    tables = (catalog.semantic_rows, id_embeddings)
    torch.compiler.reset()  # otherwise the ninth shape of a function silently runs uncompiled
    found = [
        contender(OURS, case.ours, queries, *tables),
        contender(PLAIN, fused, queries, *tables),
        contender(
            READY,
            lambda queries, table: case.plain(queries, ReadyTable(table, case.sparse)),
            queries,
            table,
        ),
    ]
    if COMPILED not in without:
        compiled = torch.compile(fused, dynamic=False, fullgraph=True)
        found.append(contender(COMPILED, compiled, queries, *tables))
        found[-1].prepare = found[-1].run
    if case.first_pass:

        def in_two_passes(*inputs: Any) -> Any:
            return case.ours(*inputs, first_pass=catalog.compressed)

        found.append(contender(IN_TWO_PASSES, in_two_passes, queries, *tables))
        found[-1].prepare = lambda: catalog.compressed
    for name, function in case.on_ready_table.items():
        found.append(contender(name, function, queries, table))
    for name, (search, index) in case.searches.items():
        found.append(Contender(name, lambda search=search: (search(), []), prepare=index))  # type: ignore[misc]
    return [contender for contender in found if contender.name not in without]
