"""Calls of the native core: the kernels of a device, and where they run.

Ops allocate their results here in Python; the native core knows nothing of PyTorch. It reads
attributes of tensors, checks dtype, shape, device and contiguity of each, and names kernel and
argument in errors.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

import alphafuse_ext._core as _core
import alphafuse_ext.build  # noqa: F401  (refuses a core that is missing or of another version)
from alphafuse_ext.checks import invalid
from alphafuse_ext.ops.graphs import constant_in_graphs, is_traced

PRECISION_CODES = {"float32": 0, "bfloat16": 1, "float16": 2, "tf32": 3}

BFLOAT16_ISAS = ("avx512bf16", "amx")
"""Instruction sets that multiply bfloat16 faster than float32."""

_chosen: str | None = None


def kernels(tensor: torch.Tensor, precision: str = "float32") -> tuple[Any, Any]:
    """The kernels for a tensor's device, and their last argument: where to run.

    That is the number of threads on the CPU, with what products are computed in where that is less
    than float32, for kernels that take it (``PRODUCT_KERNEL`` in ``kernels.def``); on a GPU its
    index, the current stream, a function that allocates scratch memory of as many bytes as a kernel
    asks for, and what products are computed in.

    Args:
        precision: what ``precision.precision_of`` returned.

    Raises:
        NotImplementedError: this build has no kernels for the device.
    """
    device = tensor.device
    if _chosen is not None:
        # Only the CPU's kernels run in threads; others, as emulated ones, are launched.
        return getattr(_core, _chosen), _launch(device, precision)
    if device.type == "cpu":
        threads = torch.get_num_threads()
        return _core.cpu, threads if precision == "float32" else (
            threads,
            PRECISION_CODES[precision],
        )
    if device.type not in _core.devices:
        raise NotImplementedError(
            f"this build of alphafuse_ext has no kernels for {device.type} tensors: what they are "
            "compiled with was not found when it was installed; install it again where it is "
            "(for CUDA, with ALPHAFUSE_CUDA=1 to see why not)"
        )
    return getattr(_core, device.type), _launch(device, precision)


def runs_on_cpu(tensor: torch.Tensor) -> bool:
    """Whether ``kernels`` are the CPU's own; ``torch.compile`` can trace it."""
    return _chosen is None and tensor.device.type == "cpu"


@constant_in_graphs
def cpu_multiplies_bfloat16() -> bool:
    """Whether the CPU has instructions for it, in the kernels in use; others would be slower."""
    return _core.isa() in BFLOAT16_ISAS


def _launch(device: torch.device, precision: str) -> tuple[int, int, Any, int]:
    def allocate(count: int) -> torch.Tensor:
        return torch.empty(count, dtype=torch.uint8, device=device)

    if device.type == "cpu":
        return -1, 0, allocate, PRECISION_CODES[precision]
    stream = torch.cuda.current_stream(device).cuda_stream
    return device.index, stream, allocate, PRECISION_CODES[precision]


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Context in which all ops run on the kernels of that name, such as emulated ones; for tests.

    Args:
        name: one of ``_core.devices`` but ``"cpu"``, as ``"cuda_emulated"`` in a build with
            ``ALPHAFUSE_CUDA=emulated``, which takes tensors on the CPU.
    """
    global _chosen
    if name == "cpu" or name not in _core.devices:
        others = [other for other in _core.devices if other != "cpu"]
        raise invalid("backend", repr(name), f"one of {others}, which this build has")
    before, _chosen = _chosen, name
    try:
        yield
    finally:
        _chosen = before


def check_ids(argument: str, ids: torch.Tensor, min_id: int, max_id: int) -> None:
    """Refuse ids outside of ``min_id .. max_id``: contiguous int64, any shape.

    On the CPU, and where a device is emulated, an ``IndexError``. On a GPU the check
    is asynchronous: it prints the id to standard output, and later calls raise.
    """
    core, where = kernels(ids)
    if core is _core.cpu:
        core.check_ids(argument, ids, min_id, max_id)
    else:
        core.check_ids(argument, ids, min_id, max_id, where)


def exclude(
    offsets: torch.Tensor | None, ids: torch.Tensor | None, padding: int
) -> _core.cpu.Exclude | tuple[torch.Tensor, torch.Tensor] | None:
    """The ids to leave out, sorted for each query, from what ``split_exclude`` returned."""
    if ids is None:
        return None
    ids = ids.contiguous()
    if kernels(ids)[0] is _core.cpu:
        if offsets is None:
            return _core.cpu.exclude_padded(ids, padding)
        return _core.cpu.exclude_offsets(offsets.contiguous(), ids, padding)

    check_ids("exclude", ids, -1, padding)
    ids = torch.where(ids == -1, padding, ids)  # behind all items, where kernels do not come
    if offsets is None:
        batch, width = ids.shape
        return torch.arange(batch + 1, device=ids.device) * width, ids.sort(1).values.view(-1)
    offsets = offsets.contiguous()
    check_offsets("exclude", offsets, len(ids))
    places = torch.arange(len(ids), device=ids.device)
    first_keys = (torch.searchsorted(offsets, places, right=True) - 1) * (padding + 1)
    return offsets, (first_keys + ids).sort().values - first_keys


def check_offsets(argument: str, offsets: torch.Tensor, count: int) -> None:
    """Refuse offsets that do not ascend from 0 to ``count``: int64, ``(B + 1,)``.

    On the CPU a ``ValueError``, on a GPU as :func:`check_ids`.
    """
    ends = (offsets[0] == 0) & (offsets[-1] == count)
    rise = ends & (offsets[1:] >= offsets[:-1]).all()
    message = (
        f"{argument}: got offsets that do not rise from 0 to the number of ids ({count}); expected "
        f"offsets[0] = 0 <= offsets[1] <= ... <= offsets[B] = {count}"
    )
    refuse_unless(rise, message)


def refuse_unless(fits: torch.Tensor, message: str) -> None:
    """Where a flag is not set, a ``ValueError`` on the CPU; elsewhere, and in compiled graphs,
    what PyTorch does there: an error of a later call."""
    if fits.device.type != "cpu" or torch.compiler.is_compiling() or is_traced((fits,)):
        torch._assert_async(fits, message)
    elif not fits:
        raise ValueError(message)
