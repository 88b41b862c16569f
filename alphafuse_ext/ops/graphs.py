"""What ``torch.compile`` is told of a function, without importing ``torch._dynamo``.

``torch.compiler`` has both, but imports it at once, which takes as long as importing torch.
"""

from __future__ import annotations

import typing
from collections.abc import Callable
from typing import Any, TypeVar

import torch

F = TypeVar("F", bound=Callable[..., Any])


def outside_graphs(function: F) -> F:
    """The function, called between graphs: ``torch.compiler.disable``."""
    return typing.cast(F, torch._disable_dynamo(function))  # as torch itself does it


def constant_in_graphs(function: F) -> F:
    """The function, called while tracing: ``torch.compiler.assume_constant_result``."""
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function
