"""Components of one's own: found by their names, their arguments as settings.

* A model is a subclass of :class:`alphafuse_ext.models.SequenceModel`.
* A loss is a function ``loss(table, hidden, targets, **settings)``, see
  :func:`alphafuse_ext.models.losses.next_item_loss`, whose first three arguments it shares.
* An adapter is a class that is made as ``Adapter(width, dim, **settings)`` and called as
  ``adapter(language, own)``, see :mod:`alphafuse_ext.items.adapters`.
* A metric is a function ``metric(lists, targets, item_counts, **settings)`` of the recommended
  items ``(E, metric_k)``, ``-1`` where a list ends, the targets ``(E,)``, and the training
  interactions of each item ``(N,)``, all int64 arrays of NumPy; it returns a number, or several by
  name.

Their other arguments are settings: each has a default, and an annotation of ``int``, ``float``,
``bool``, ``str`` or ``Literal``. ``**settings`` are those of the base class.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import sys
import types
import typing
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any

from alphafuse_ext.checks import invalid
from alphafuse_ext.config.item_embedding import Adapter
from alphafuse_ext.config.loss import Loss
from alphafuse_ext.config.model import Model
from alphafuse_ext.config.option import Settings, option
from alphafuse_ext.config.training import Metric

_SLOTS = {"item_embedding": "adapter", "model": "model", "loss": "loss", "metric": "metric"}
_GIVEN = {
    "model": ("table", "item_counts", "neighbors"),
    "loss": ("table", "hidden", "targets"),
    "adapter": ("width", "dim"),
    "metric": ("lists", "targets", "item_counts"),
}
"""Arguments that are no settings."""
_BASES: dict[str, type[Settings]] = {
    **{"model": Model, "loss": Loss, "adapter": Adapter, "metric": Metric},
}
_TYPES = (int, float, bool, str)


def name_of(slot: str, value: Any) -> Any:
    """The name ``"package.module:name"`` of a class or function; other values as they are."""
    if slot not in _SLOTS or not (inspect.isclass(value) or inspect.isfunction(value)):
        return value
    name = f"{value.__module__}:{value.__qualname__}"
    if "<" in name or find(slot, name) is not value:
        allowed = "a class or function at the top of a module, which a run can find again"
        raise invalid(slot, name, allowed)
    return name


def find(slot: str, name: str) -> Any:
    """A class or function by its name.

    Raises:
        ValueError: there is none.
    """
    module, _, path = name.partition(":")
    try:
        # A script that is run, or a notebook, is not imported again.
        found: Any = sys.modules["__main__"] if module == "__main__" else import_module(module)
    except (ImportError, ValueError) as error:
        allowed = "package.module:name of a module that Python can import"
        raise invalid(slot, f"{name!r} ({error})", allowed) from error
    for part in path.split("."):
        found = getattr(found, part, None)
    if not callable(found):
        raise invalid(slot, repr(name), f"the name of a class or function of {module}")
    return found


def settings_of(hook: str, slot: str, name: str) -> type[Settings]:
    """The settings of a component by its name.

    Raises:
        ValueError, TypeError: there is none, or an argument that cannot be a setting.
    """
    return _settings(find(slot, name), hook, name)


def arguments(slot: str, name: str) -> set[str]:
    """The arguments that are settings of a class or function by its name."""
    every = _signatures(find(slot, name))
    return {field for one in every for field, _, _ in _arguments(one, _SLOTS[slot])}


@functools.cache
def _settings(thing: Any, hook: str, name: str) -> type[Settings]:
    _check_kind(thing, hook, name)
    if "settings" in vars(thing):
        return thing.settings  # declared, as those of ours are
    fields: dict[str, tuple[Any, Any]] = {}
    base = _BASES[hook]
    for one in _signatures(thing):
        if one is not thing and "settings" in vars(one):
            base = one.settings
            break
        for field_name, parameter, annotation in _arguments(one, hook):
            # Of a class and its bases, the class's own comes first.
            fields.setdefault(field_name, _field(field_name, parameter, annotation, name))
    of_base = {field.name: field for field in dataclasses.fields(base)}
    made = []
    for field_name, (annotation, field) in fields.items():
        if field_name in of_base:  # the base's help and range, with a default of one's own
            known = of_base[field_name]
            field = dataclasses.field(default=field.default, metadata=known.metadata)
        made.append((field_name, annotation, field))
    return dataclasses.make_dataclass(
        f"{name.rpartition(':')[2]}Settings",
        made,
        bases=(base,),
        frozen=True,
        namespace={"__module__": __name__},
    )


def _check_kind(thing: Any, hook: str, name: str) -> None:
    slot = next(slot for slot, of in _SLOTS.items() if of == hook)
    if hook == "model":
        settings = getattr(thing, "settings", None)
        fits = inspect.isclass(thing) and inspect.isclass(settings) and issubclass(settings, Model)
        allowed = "a subclass of alphafuse_ext.models.SequenceModel"
    elif hook in ("loss", "metric"):
        fits, allowed = inspect.isfunction(thing), f"a function of ({', '.join(_GIVEN[hook])})"
    else:
        fits = inspect.isclass(thing) and hasattr(thing, "state_dict")
        allowed = "a subclass of torch.nn.Module, an adapter"
    if not fits:
        raise invalid(slot, f"{name}, a {type(thing).__name__}", allowed)


def _signatures(thing: Any) -> Iterator[Any]:
    """It and, where it hands others on, its bases."""
    if not inspect.isclass(thing):
        yield thing
        return
    for one in thing.__mro__:
        if one is object or ("__init__" not in vars(one) and "settings" not in vars(one)):
            continue
        yield one
        parameters = inspect.signature(one).parameters.values()
        if all(p.kind is not p.VAR_KEYWORD for p in parameters):
            return


def _arguments(thing: Any, hook: str) -> Iterator[tuple[str, inspect.Parameter, Any]]:
    function: Callable[..., Any] = thing.__init__ if inspect.isclass(thing) else thing
    hints = typing.get_type_hints(function)
    for parameter in inspect.signature(function).parameters.values():
        taken = parameter.name == "self" or parameter.name in _GIVEN[hook]
        if not taken and parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            yield parameter.name, parameter, hints.get(parameter.name)


def _field(name: str, parameter: inspect.Parameter, annotation: Any, of: str) -> tuple[Any, Any]:
    default = parameter.default
    if default is parameter.empty:
        raise invalid(name, f"no default in {of}", "a default, as every setting has one", TypeError)
    if annotation is None:
        annotation = type(default)
    of_union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    kinds = [t for t in typing.get_args(annotation) if t is not types.NoneType]
    kind = kinds[0] if of_union and len(kinds) == 1 else annotation
    choices = None
    if typing.get_origin(kind) is typing.Literal:
        choices, kind = typing.get_args(kind), str
    if kind not in _TYPES:
        allowed = "int, float, bool, str or Literal of strings, or one of them or None"
        raise invalid(name, f"{annotation} in {of}", allowed, TypeError)
    return (kind | None if of_union else kind), option(default, f"of {of}", choices=choices)
