"""Where a model trains and serves."""

from __future__ import annotations

import torch

import alphafuse_ext._core as _core
from alphafuse_ext.checks import invalid


def usable_device(device: str | torch.device) -> torch.device:
    """The device by its name, if the model and the kernels can be there.

    Raises:
        ValueError: there is none of that name, or this machine or this build has none.
    """
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
