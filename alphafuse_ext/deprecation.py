"""Old names of what has a new one: they work, and warn."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


def renamed(function: Callable[P, T], old: str) -> Callable[P, T]:
    """The function under its old name, which warns with ``FutureWarning``.

    Args:
        function: as it is called now.
        old: its name before, for the warning.
    """

    @functools.wraps(function)
    def alias(*args: P.args, **kwargs: P.kwargs) -> T:
        warnings.warn(f"{old} is now {function.__qualname__}", FutureWarning, stacklevel=2)
        return function(*args, **kwargs)

    alias.__doc__ = f"Old name of `{function.__qualname__}`."
    return alias
