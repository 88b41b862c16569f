"""Whether PyTorch is tracing, and decorators for ``torch.compile``.

``torch.compiler`` has the decorators too, but imports ``torch._dynamo`` at once, which takes as
long as importing torch.
"""

from __future__ import annotations

import typing
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

F = TypeVar("F", bound=Callable[..., Any])

_PLAIN = (torch.Tensor, torch.nn.Parameter)


def outside_graphs(function: F) -> F:
    """The function, called between graphs: ``torch.compiler.disable``."""
    return typing.cast(F, torch._disable_dynamo(function))  # as torch itself does it


def constant_in_graphs(function: F) -> F:
    """The function, called while tracing: ``torch.compiler.assume_constant_result``."""
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


def is_traced(arguments: tuple[Any, ...]) -> bool:
    """Whether something watches what is called, not only what comes of it."""
    for one in arguments:  # a generator would take as long as all the rest
        if isinstance(one, Tensor) and type(one) not in _PLAIN:
            return True
    return (
        torch._C._len_torch_dispatch_stack() > 0
        or torch._C._functorch.maybe_current_level() is not None
        or torch._C._get_tracing_state() is not None
    )
