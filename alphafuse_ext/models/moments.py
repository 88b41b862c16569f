"""State of optimizers by the names of parameters, to be written and read back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn


def moments(model: nn.Module, optimizers: Iterable[torch.optim.Optimizer]) -> dict[str, Tensor]:
    """Of each parameter and key of an optimizer's state: ``"<parameter's name>.<key>"``."""
    optimizers = list(optimizers)
    return {
        f"{name}.{key}": torch.as_tensor(value)
        for name, parameter in model.named_parameters()
        for optimizer in optimizers
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def restore_moments(
    model: nn.Module,
    optimizers: Iterable[torch.optim.Optimizer],
    found: Mapping[str, Tensor],
) -> None:
    """Give optimizers the state that :func:`moments` found in others of a model like this."""
    parameters = dict(model.named_parameters())
    state: dict[Tensor, dict[str, Any]] = {}
    for name, value in found.items():
        parameter, _, key = name.rpartition(".")
        state.setdefault(parameters[parameter], {})[key] = value
    for optimizer in optimizers:
        places = [p for group in optimizer.param_groups for p in group["params"]]
        own = {place: state[p] for place, p in enumerate(places) if p in state}
        if isinstance(optimizer, torch.optim.SparseAdam):  # counts in a Python int
            own = {place: {**s, "step": s["step"].item()} for place, s in own.items()}
        optimizer.load_state_dict({**optimizer.state_dict(), "state": own})
