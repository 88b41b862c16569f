"""Old names of what has a new one: they work, and warn."""

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
"""Old names of fields of :class:`alphafuse_ext.Config`, and what each is now."""
PROCESS_GROUP = {"ranks": "process_group"}
"""Of an argument of functions that train."""
SPLIT = {"part": "split"}
"""Of an argument of functions that evaluate."""


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


def renamed_arguments(names: Mapping[str, str]) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """A decorator: the function takes keyword arguments by their old names as well, and warns.

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
    """A property that reads the attribute ``new``, and warns that it is ``old`` no more."""

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
    """The values by their names of today, in the same order; each old name is warned of.

    Args:
        values: by name.
        names: the new name of each old one.
        spelled: how a name is shown in a warning or an error.

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
    """Settings that an earlier version recorded, by their names of today, without a warning."""
    return {SETTINGS.get(name, name): value for name, value in values.items()}


def digested_names(values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings by the names that digests have been made of from the first, for a new digest."""
    first = {new: old for old, new in SETTINGS.items()}
    return {first.get(name, name): value for name, value in values.items()}
