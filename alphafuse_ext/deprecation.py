"""Deprecated names: they work, and warn with ``FutureWarning``."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec, TypeVar

from alphafuse_ext.checks import invalid

P = ParamSpec("P")
T = TypeVar("T")

SETTINGS = {"clip": "truncate", "split": "space_split", "split_power": "space_split_power"}
"""Names of settings in earlier records of runs, with their new names."""


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
            for old in names.keys() & kwargs.keys():
                if names[old] in kwargs:
                    allowed = f"{names[old]} alone, which is its new name"
                    raise invalid(old, repr(kwargs[old]), allowed, TypeError)
                warnings.warn(f"{old} is now {names[old]}", FutureWarning, stacklevel=2)
            current: Any = {names.get(name, name): value for name, value in kwargs.items()}
            return function(*args, **current)

        return with_old_names

    return decorate


def renamed_attribute(old: str, new: str) -> Any:
    """A property that reads the attribute ``new``, and warns that ``old`` is deprecated."""

    def read(self: object) -> Any:
        warnings.warn(f"{old} is now {new}", FutureWarning, stacklevel=2)
        return getattr(self, new)

    read.__doc__ = f"Old name of `{new}`."
    return property(read)


def recorded_names(values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings recorded by an earlier version, under their new names, without a warning."""
    return {SETTINGS.get(name, name): value for name, value in values.items()}


def digested_names(values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings under their original names, so that digests do not change with names."""
    first = {new: old for old, new in SETTINGS.items()}
    return {first.get(name, name): value for name, value in values.items()}
