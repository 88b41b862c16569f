"""Settings: each declared once, with its default, its help, what it may be and what it belongs to.

A component (a protocol, an item embedding, a model, a loss) has a frozen dataclass of settings,
whose fields are made by :func:`option`. Where a setting chooses a component (``model="dreamrec"``),
its ``kinds`` name the settings of each choice; :class:`alphafuse_ext.Config` puts them together.

Without PyTorch, so that the command line's help does not wait for it.
"""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from types import NoneType
from typing import Any, ClassVar, Protocol, TypeVar

from alphafuse_ext.checks import invalid

S = TypeVar("S", bound="Settings")

_WORDS = {int: "an integer", float: "a number", bool: "True or False", str: "a string"}
_ABSTRACT: dict[type, type] = {int: Integral, float: Real}
"""So that NumPy's numbers are numbers."""
SEEDS_BELOW = 2**63
"""Seeds that torch takes."""


class Chosen(Protocol):
    """The settings of all components, as :class:`alphafuse_ext.Config` has them."""

    def component(self, slot: str) -> Any: ...

    def __getattr__(self, name: str) -> Any: ...


@dataclass(frozen=True)
class Settings:
    """Settings of one component; none of its own."""

    group: ClassVar[str] = ""
    """Under which the command line's help lists them."""
    of_training: ClassVar[bool] = False
    """Whether only a run whose model is trained has them."""

    def __post_init__(self) -> None:
        """Check each by itself.

        Raises:
            ValueError, TypeError: naming the setting.
        """
        for field in dataclasses.fields(self):
            _check(field, types_of(type(self))[field.name], getattr(self, field.name))

    def check(self, config: Chosen) -> None:
        """Check them beside those of other components.

        Raises:
            ValueError: naming the setting.
        """

    def resolve(
        self, config: Chosen, embedding_dim: int | None, num_items: int
    ) -> Mapping[str, Any]:
        """Values of those that depend on the data or on other components.

        Args:
            config: all settings.
            embedding_dim: ``d_l``; ``None`` without language embeddings.
            num_items: ``N``.

        Raises:
            ValueError: a setting that the data cannot have.
        """
        return {}


def option(
    default: Any,
    help: str,
    *,
    choices: tuple[str, ...] | None = None,
    kinds: Mapping[Any, type[Settings]] | None = None,
    infer: Callable[[Mapping[str, Any]], Any] | None = None,
    own: str | None = None,
    minimum: float | None = None,
    maximum: float | None = None,
    above: float | None = None,
    below: float | None = None,
    group: str | None = None,
) -> Any:
    """A field of a :class:`Settings`.

    Args:
        default: ``None`` where it depends on others; the ``help`` says how.
        help: for the command line.
        choices: strings that it may be.
        kinds: by choice, the settings that come with it; ``choices`` are its strings.
        infer: from the settings that were given, the choice where none was.
        own: what a ``package.module:name`` may be in place of a choice, ``"model"``, ``"loss"``,
            ``"adapter"`` or ``"metric"``; see :mod:`alphafuse_ext.config.own`.
        minimum, maximum, above, below: of a number.
        group: in the help, in place of that of its class.
    """
    if kinds is not None and choices is None:
        choices = tuple(kind for kind in kinds if isinstance(kind, str)) or None
    return dataclasses.field(
        default=default,
        metadata={
            **{"help": help, "choices": choices, "kinds": kinds, "infer": infer, "own": own},
            **{"minimum": minimum, "maximum": maximum, "above": above, "below": below},
            "group": group,
        },
    )


def with_default(of: type[Settings], name: str, default: Any, **changes: Any) -> Any:
    """A field of a base class again, with another default."""
    found = next(field for field in dataclasses.fields(of) if field.name == name)
    return dataclasses.field(default=default, metadata={**found.metadata, **changes})


def chosen(slot: str, kinds: Mapping[Any, type[S]], choice: Any, given: Mapping[str, Any]) -> S:
    """The settings of a choice, checked, for whoever makes a component without a configuration.

    Args:
        slot: the setting that chooses, ``"loss"``.
        kinds: its choices.
        choice: the one that is made.
        given: settings; ``None`` stands for a default.

    Raises:
        ValueError, TypeError: a choice or a setting that there is none of, or a bad value.
    """
    if choice is None or choice not in kinds:
        names = ", ".join(kind for kind in kinds if kind is not None)
        raise invalid(slot, repr(choice), f"one of {names}")
    kind = kinds[choice]
    wanted = {name: value for name, value in given.items() if value is not None}
    known = {field.name for field in dataclasses.fields(kind)}
    for name, value in wanted.items():
        if name not in known:
            allowed = f"none with {slot}={choice}, which has {', '.join(sorted(known)) or 'none'}"
            raise invalid(name, repr(value), allowed)
    return kind(**wanted)


_TYPES: dict[type[Settings], dict[str, Any]] = {}


def types_of(settings: type[Settings]) -> dict[str, Any]:
    """Of the fields, by name; to find them takes longer than to check them."""
    if settings not in _TYPES:
        _TYPES[settings] = typing.get_type_hints(settings)
    return _TYPES[settings]


def kind_of(annotation: Any) -> type:
    """``int`` of ``int | None``."""
    return next(t for t in (*typing.get_args(annotation), annotation) if t is not NoneType)


def _check(field: dataclasses.Field[Any], annotation: Any, value: Any) -> None:
    """An integer where one is meant and a finite number where one is; neither is a bool."""
    if value is None and NoneType in typing.get_args(annotation):
        return
    name, kind, limits = field.name, kind_of(annotation), field.metadata
    if isinstance(value, bool) and kind is not bool:
        fits = False
    else:
        fits = isinstance(value, _ABSTRACT.get(kind, kind))
    if not fits:
        raise invalid(name, repr(value), _WORDS[kind], TypeError)
    choices = limits["choices"]
    if choices and value not in choices and not (limits["own"] and ":" in value):
        raise invalid(name, repr(value), f"one of {', '.join(choices)}")
    if kind in (int, float) and not _within(value, limits):
        raise invalid(name, value, _range(name, kind, limits))


def _within(value: float, limits: Mapping[str, Any]) -> bool:
    return (
        math.isfinite(value)
        and (limits["minimum"] is None or value >= limits["minimum"])
        and (limits["maximum"] is None or value <= limits["maximum"])
        and (limits["above"] is None or value > limits["above"])
        and (limits["below"] is None or value < limits["below"])
    )


def _range(name: str, kind: type, limits: Mapping[str, Any]) -> str:
    low = "" if limits["minimum"] is None else f"{limits['minimum']} <= "
    low = low if limits["above"] is None else f"{limits['above']} < "
    below = "2**63" if limits["below"] == SEEDS_BELOW else limits["below"]
    high = "" if limits["maximum"] is None else f" <= {limits['maximum']}"
    high = high if below is None else f" < {below}"
    if low and high:
        return f"{low}{name}{high}"
    if not low and not high:
        return "a finite number"
    # "an integer >= 1" reads better than "1 <= dim".
    number, sign = low.split(" ")[:2] if low else ("", "")
    mirrored = {"<=": ">=", "<": ">"}.get(sign, "")
    return f"{_WORDS[kind]} {mirrored} {number}" if low else f"{_WORDS[kind]}{high}"
