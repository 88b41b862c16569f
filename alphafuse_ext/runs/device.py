"""Where a model trains and serves."""

from __future__ import annotations

import warnings

import torch

import alphafuse_ext._core as _core
import alphafuse_ext.ops as ops
from alphafuse_ext.checks import invalid
from alphafuse_ext.logs import Log, logged


def usable_device(
    device: str | torch.device | None, log: Log | None = None, alone: bool = True
) -> torch.device:
    """The device by its name, if the model and the kernels can be there.

    Args:
        device: its name. ``None``: the GPU, where torch finds one and this build has kernels for
            it; else the CPU.
        log: is told of a GPU that is taken by default.
        alone: without it ``None`` is the CPU: of several processes each has its own GPU.

    Raises:
        ValueError: there is none of that name, or this machine or this build has none.
    """
    if device is None:
        if not alone or not _can_have_gpus(1):
            return torch.device("cpu")
        logged(log)(f"on cuda, {torch.cuda.get_device_name()}")
        return torch.device("cuda")
    allowed = "cpu, cuda or cuda:<number>"
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise invalid("device", repr(device), allowed) from error
    if found.type == "cpu":
        return torch.device("cpu")
    if found.type != "cuda":
        raise invalid("device", str(device), f"{allowed}: the ops have kernels for these")
    if not torch.cuda.is_available():
        raise invalid("device", str(device), "cpu: torch finds no CUDA device here")
    if "cuda" not in _core.devices:
        raise invalid("device", str(device), "cpu: this build has no CUDA kernels")
    if found.index is not None and found.index >= torch.cuda.device_count():
        raise invalid("device", str(device), f"cuda:0 to cuda:{torch.cuda.device_count() - 1}")
    return found


def device_of_ranks(ranks: int) -> str:
    """``"cuda"`` where each of so many processes of this machine can have a GPU, else ``"cpu"``."""
    return "cuda" if _can_have_gpus(ranks) else "cpu"


def why_not_cuda() -> str | None:
    """Why the kernels cannot run on a GPU here, if so."""
    if not torch.cuda.is_available():
        return "PyTorch sees no CUDA device"
    if "cuda" not in _core.devices:
        return "alphafuse_ext was built without CUDA kernels (ALPHAFUSE_CUDA=1 pip install .)"
    try:  # what was built may be for other GPUs
        one = torch.zeros(1, 1, device="cuda")
        ops.lookup(torch.zeros(1, dtype=torch.int64, device="cuda"), one, one)
    except RuntimeError as error:
        built = _core.cuda_architectures
        return f"the CUDA kernels, built for {built}, do not run: {str(error).splitlines()[0]}"
    return None


def _can_have_gpus(count: int) -> bool:
    """Whether there are so many; if there are some that are not taken, a warning says why."""
    why = why_not_cuda()
    if why is None and (found := torch.cuda.device_count()) < count:
        why = f"GPUs for {found} of {count} processes"
    if why is not None and torch.cuda.is_available():
        warnings.warn(f"on the CPU, though there is a GPU: {why}", stacklevel=3)
    return why is None
