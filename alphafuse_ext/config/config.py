"""Everything that decides a run: the settings of its components under flat names."""

from __future__ import annotations

import dataclasses
import difflib
import functools
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from alphafuse_ext.checks import invalid
from alphafuse_ext.config import own
from alphafuse_ext.config.item_embedding import ItemEmbedding
from alphafuse_ext.config.model import Sequence
from alphafuse_ext.config.option import Settings
from alphafuse_ext.config.protocol import Split
from alphafuse_ext.config.training import Optimizer, Ranking, Run, Training
from alphafuse_ext.deprecation import recorded_names

ALWAYS: tuple[type[Settings], ...] = (
    *(Split, ItemEmbedding, Sequence, Training, Run, Optimizer, Ranking),
)
"""What every run has, or every run that trains; their choices bring other components in."""
_MODEL = next(field for field in dataclasses.fields(Sequence) if field.name == "model")


class Owner(NamedTuple):
    """Who has a setting.

    Attributes:
        choices: the choices that lead to it, ``(("model", "sasrec"), ("block", "bsarec"))``; none
            of what every run has.
        settings: the component's.
        field: the setting's.
    """

    choices: tuple[tuple[str, Any], ...]
    settings: type[Settings]
    field: dataclasses.Field[Any]


class Config:
    """The settings of a run; each is a flag of ``alphafuse train`` under the same name.

    Which settings there are follows from the components that are chosen, ``protocol``,
    ``item_embedding``, ``model``, ``block`` and ``loss``: see the modules of
    :mod:`alphafuse_ext.config`. ``None`` stands for a setting's default. A setting that the chosen
    components do not have is refused, and reads as ``None``, or as what the model has fixed.

    Args:
        **given: settings by name. ``item_embedding``, ``model``, ``loss`` and ``metric`` may be a
            class or function of one's own, or its name, ``"package.module:name"``: its arguments
            are settings then (see :mod:`alphafuse_ext.config.own`).

    Attributes:
        given: those that were given.

    Raises:
        ValueError: a value is out of its range, two settings contradict each other, or the chosen
            components have no such setting.
        TypeError: a value of another type, or the name of no setting.
    """

    given: dict[str, Any]
    _components: dict[str, Settings]

    def __init__(self, **given: Any) -> None:
        given = {name: own.name_of(name, value) for name, value in given.items()}
        given = {n: v for n, v in given.items() if v is not None or not _none_is_default(n)}
        found = components(given)
        had = {field.name for kind in found.values() for field in dataclasses.fields(kind)}
        for name in given:
            if name not in had:
                raise _refused(name, given[name], given)
        inferred = _choices(given)
        made = {}
        for slot, kind in found.items():
            names = [field.name for field in dataclasses.fields(kind)]
            values = {name: given[name] for name in names if name in given}
            values |= {name: inferred[name] for name in names if name in inferred}
            made[slot] = kind(**values)
        values = {}
        for component in made.values():
            values |= {f.name: getattr(component, f.name) for f in dataclasses.fields(component)}
        self.__dict__.update(values)
        self.__dict__.update(given=given, _components=made, _values=values)
        for component in made.values():
            component.check(self)

    def __getattr__(self, name: str) -> Any:
        if name in every_setting():
            return getattr(self.component("model"), name, None)
        raise AttributeError(f"{name!r} is no setting{_nearest(name)}")

    def __setattr__(self, name: str, value: object) -> None:
        raise dataclasses.FrozenInstanceError(f"cannot assign to {name}: use replace")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Config) and self.to_dict() == other.to_dict()

    def __hash__(self) -> int:
        return hash(tuple(self.to_dict().items()))

    def __repr__(self) -> str:
        return f"Config({', '.join(f'{name}={value!r}' for name, value in self.given.items())})"

    def __reduce__(self) -> tuple[Any, ...]:
        return Config.from_dict, (self.given,)

    def component(self, slot: str) -> Any:
        """The settings that a choice brings, ``component("model")``."""
        return self._components[slot]

    def of(self, slot: str) -> dict[str, Any]:
        """The settings that a choice brings, and those of choices among them, by name."""
        found: dict[str, Any] = {}
        for field in dataclasses.fields(self._components[slot]):
            value = getattr(self, field.name)
            found[field.name] = value
            if field.name in self._components:
                found |= self.of(field.name)
        return found

    def replace(self, **changes: Any) -> Config:
        """These settings with others in place of some."""
        return Config(**{**self.given, **changes})

    __replace__ = replace

    def resolve(self, embedding_dim: int | None, num_items: int) -> Config:
        """This configuration with the defaults that depend on the data filled in.

        Args:
            embedding_dim: ``d_l``, the dimension of the language embeddings; ``None`` without any.
            num_items: ``N``, the size of the catalog.

        Raises:
            ValueError: a setting that the data cannot have.
        """
        found: dict[str, Any] = {}
        for component in self._components.values():
            found |= component.resolve(self, embedding_dim, num_items)
        return self.replace(**found)

    @property
    def trained(self) -> bool:
        """Whether there is a model to train."""
        return self.component("model").trained

    @property
    def weights_of_neighbors(self) -> Any:
        """The settings that say how much neighbors count, of a run that ranks with them."""
        return self.component("neighbors" if self.trained else "model")

    @property
    def embeds_language(self) -> bool:
        """Whether its item embeddings are made of language embeddings."""
        return self.trained and self.component("item_embedding").language

    @property
    def needs_language(self) -> bool:
        """Whether a run takes language embeddings."""
        return self.embeds_language or bool(self.language_smoothing)

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        return dict(self._values)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Config:
        """From :meth:`to_dict`'s result, or from settings by name."""
        return cls(**values)

    @classmethod
    def from_record(cls, values: Mapping[str, Any]) -> Config:
        """From what this or an earlier version recorded of a run.

        Settings that came later have their defaults, but that there were no neighbors; earlier
        versions recorded settings for which there was no use as well.
        """
        return cls(**_had({"neighbors": False, **recorded_names(values)}))


def layered(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Settings in layers, the later ones first.

    Those of earlier layers that the chosen components do not have are left out; those of the last
    layer are not, so that :class:`Config` refuses them.
    """
    merged: dict[str, Any] = {}
    for layer in layers:
        merged |= layer
    return {**_had(merged), **layers[-1]}


def _had(values: Mapping[str, Any]) -> dict[str, Any]:
    """Of settings those that the components have which they choose, and what no component has."""
    given = {name: value for name, value in values.items() if value is not None}
    names = {f.name for kind in components(given).values() for f in dataclasses.fields(kind)}
    return {n: v for n, v in values.items() if n in names or n not in every_setting()}


def components(given: Mapping[str, Any]) -> dict[str, type[Settings]]:
    """The components that settings choose, by the setting that chooses them.

    Raises:
        ValueError, TypeError: a choice that is none.
    """
    choices = _choices(given)
    found: dict[str, type[Settings]] = {}

    def add(slot: str, kind: type[Settings]) -> None:
        found[slot] = kind
        for field in dataclasses.fields(kind):
            if field.metadata["kinds"] is not None:
                value = given.get(field.name, choices.get(field.name, field.default))
                add(field.name, _kind(field, value))

    model: Any = _kind(_MODEL, given.get("model", _MODEL.default))
    for kind in ALWAYS:
        if model.trained or not kind.of_training:
            add(kind.__name__.lower(), kind)
    return found


def _choices(given: Mapping[str, Any]) -> dict[str, Any]:
    """Choices that were not made, by what was given beside them."""
    found = {}
    for name, owners in every_setting().items():
        infer = owners[0].field.metadata["infer"]
        if infer is not None and name not in given and (value := infer(given)) is not None:
            found[name] = value
    return found


def _kind(field: dataclasses.Field[Any], value: Any) -> type[Settings]:
    kinds, hook = field.metadata["kinds"], field.metadata["own"]
    try:
        if value in kinds:
            return kinds[value]
    except TypeError:  # what is not hashable is none of them
        pass
    if hook is not None and isinstance(value, str) and ":" in value:
        return own.settings_of(hook, field.name, value)
    if type(next(iter(kinds))) is bool:
        allowed = " or ".join(str(kind) for kind in (True, False) if kind in kinds)
        raise invalid(field.name, repr(value), allowed, TypeError)
    choices = field.metadata["choices"] or ()
    kind = ValueError if isinstance(value, str) else TypeError
    listed = [f"one of {', '.join(choices)}"] if choices else []
    allowed = ", or ".join([*listed, *(["package.module:name"] if hook else [])])
    near = difflib.get_close_matches(str(value), choices, n=1)
    allowed += f"; did you mean {near[0]}?" if near else ""
    raise invalid(field.name, repr(value), allowed, kind)


@functools.cache
def every_setting() -> dict[str, list[Owner]]:
    """The settings of all components of ours, by name, with who has them."""
    found: dict[str, list[Owner]] = {}

    def add(kind: type[Settings], choices: tuple[tuple[str, Any], ...]) -> None:
        for field in dataclasses.fields(kind):
            found.setdefault(field.name, []).append(Owner(choices, kind, field))
        for field in dataclasses.fields(kind):
            for value, one in (field.metadata["kinds"] or {}).items():
                if value is not None:
                    add(one, (*choices, (field.name, value)))

    for kind in ALWAYS:
        add(kind, ())
    return found


def own_settings(given: Mapping[str, Any]) -> Iterator[Owner]:
    """The settings of components of one's own that are chosen."""
    for slot, kind in components(given).items():
        if isinstance(given.get(slot), str) and ":" in given[slot]:
            for field in dataclasses.fields(kind):
                yield Owner(((slot, given[slot]),), kind, field)


def _none_is_default(name: str) -> bool:
    """Whether ``None`` says nothing: of what a choice brings, and of a setting that may be it."""
    owners = every_setting().get(name, [])
    return any(owner.choices or owner.field.default is None for owner in owners)


def _refused(name: str, value: Any, given: Mapping[str, Any]) -> Exception:
    """Of a setting that the chosen components do not have."""
    owners = every_setting().get(name)
    if owners is None:
        return invalid(name, repr(value), f"the name of a setting{_nearest(name)}", TypeError)
    chosen = {**_choices(given), **given}
    for kind in components(given).values():
        for field in dataclasses.fields(kind):
            chosen.setdefault(field.name, field.default)

    def missed(owner: Owner) -> tuple[int, str, Any]:
        """How far the choices follow the way to an owner, and the step that they do not take."""
        steps = enumerate(owner.choices)
        wrong = ((place, *step) for place, step in steps if chosen.get(step[0]) != step[1])
        return next(wrong, (0, "", None))

    found = [missed(owner) for owner in owners]
    farthest = max(place for place, _, _ in found)
    slot = next(slot for place, slot, _ in found if place == farthest)
    if slot not in components(given):  # of what only training has
        allowed = f"none with model={chosen['model']}, which is not trained"
        return invalid(name, repr(value), allowed)
    choices = dict.fromkeys(str(choice) for _, other, choice in found if other == slot)
    of = f"{slot}=True" if "True" in choices else ", ".join(choices)
    return invalid(name, repr(value), f"none with {slot}={chosen[slot]}: it is of {of}")


def _nearest(name: str) -> str:
    near = difflib.get_close_matches(name, every_setting(), n=1)
    return f"; did you mean {near[0]}?" if near else ""
