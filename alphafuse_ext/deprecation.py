"""Deprecated names: they work, and warn with ``FutureWarning``."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec, TypeVar

from alphafuse_ext.checks import invalid

P = ParamSpec("P")
T = TypeVar("T")

SPACE_SPLIT = {"split": "space_split", "split_power": "space_split_power"}
SETTINGS = {"clip": "truncate", **SPACE_SPLIT}
"""Deprecated names of fields of :class:`alphafuse_ext.Config`, with their new names."""
PROCESS_GROUP = {"ranks": "process_group"}
"""Deprecated argument of functions that train."""
SPLIT = {"part": "split"}
"""Deprecated argument of functions that evaluate."""


def renamed(function: Callable[P, T], old: str) -> Callable[P, T]:
    """The function under its old name, which warns with ``FutureWarning``.

    Args:
        function: under its new name; may be a class method.
        old: its old name, for the warning.
    """
    if isinstance(function, classmethod):
        return classmethod(renamed(function.__func__, old))  # type: ignore[return-value]

    @functools.wraps(function)
    def alias(*args: P.args, **kwargs: P.kwargs) -> T:
        warnings.warn(f"{old} is now {function.__qualname__}", FutureWarning, stacklevel=2)
        return function(*args, **kwargs)

    alias.__doc__ = f"Old name of `{function.__qualname__}`."
    return alias


def renamed_arguments(names: Mapping[str, str]) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """A decorator: the function also accepts keyword arguments by their old names, with a warning.

    Args:
        names: the new name of each old one.
    """

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        @functools.wraps(function)
        def with_old_names(*args: P.args, **kwargs: P.kwargs) -> T:
            return function(*args, **current_names(kwargs, names))  # type: ignore[arg-type]

        return with_old_names

    return decorate


def renamed_attribute(old: str, new: str) -> Any:
    """A property that reads the attribute ``new``, and warns that ``old`` is deprecated."""

    def read(self: object) -> Any:
        warnings.warn(f"{old} is now {new}", FutureWarning, stacklevel=2)
        return getattr(self, new)

    read.__doc__ = f"Old name of `{new}`."
    return property(read)


def current_names(
    values: Mapping[str, Any],
    names: Mapping[str, str] = SETTINGS,
    spelled: Callable[[str], str] = str,
) -> dict[str, Any]:
    """The values under their new names, in the same order, with a warning for each old name.

    Args:
        values: by name.
        names: the new name of each old one.
        spelled: formats a name for warnings and errors.

    Raises:
        TypeError: a value is given under both of its names.
    """
    for old, new in names.items():
        if old in values:
            if new in values:
                allowed = f"{spelled(new)} alone, which is its new name"
                raise invalid(spelled(old), repr(values[old]), allowed, TypeError)
            warnings.warn(f"{spelled(old)} is now {spelled(new)}", FutureWarning, stacklevel=3)
    return {names.get(name, name): value for name, value in values.items()}


def recorded_names(values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings recorded by an earlier version, under their new names, without a warning."""
    return {SETTINGS.get(name, name): value for name, value in values.items()}


def digested_names(values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings under their original names, so that digests do not change with names."""
    first = {new: old for old, new in SETTINGS.items()}
    return {first.get(name, name): value for name, value in values.items()}
