"""What a comparison runs: data sets, methods with their grids, and seeds."""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from alphafuse_ext.checks import invalid
from alphafuse_ext.config import Config, layered
from alphafuse_ext.config.item_embedding import ITEM_EMBEDDINGS

SOURCES = (
    *("interactions", "items", "embeddings"),
    *("user_column", "item_column", "time_column", "text_columns", "title_column"),
    *("encoder", "encoder_model", "ids_are_rows", "unknown_items", "missing_ids"),
    *("validation", "test", "split_column", "time_format", "weight_column", "basket_column"),
)
"""Keys of a data set: arguments of :func:`alphafuse_ext.fit`."""
DEFAULT_SEEDS = (0, 1, 2)
FILES = ("interactions", "items", "embeddings", "validation", "test")
_OF_ALL = ("seed", "threads")


@dataclass(frozen=True)
class Dataset:
    """The files of a data set, and settings of all methods on it.

    Attributes:
        name: in tables and names of folders.
        sources: arguments of :func:`alphafuse_ext.fit` by name, of :data:`SOURCES`.
        settings: fields of :class:`alphafuse_ext.Config`, before those of a method.
    """

    name: str
    sources: dict[str, Any]
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Method:
    """A row of a table.

    Attributes:
        name: of the row.
        settings: fields of :class:`alphafuse_ext.Config`; a list is tried value by value.
    """

    name: str
    settings: dict[str, Any]

    def grid(self) -> list[dict[str, Any]]:
        """The settings of each trial: all combinations of what is listed."""
        listed = {k: v for k, v in self.settings.items() if isinstance(v, list)}
        fixed = {k: v for k, v in self.settings.items() if k not in listed}
        combinations = itertools.product(*listed.values())
        return [{**fixed, **dict(zip(listed, values, strict=True))} for values in combinations]

    def check_lists(self) -> None:
        """Raises ``ValueError`` for a list that is empty or has a value twice."""
        for name, value in self.settings.items():
            if isinstance(value, list):
                if not value:
                    raise invalid(f"methods.{self.name}: {name}", "[]", "one value or more")
                _check_different(f"methods.{self.name}: {name}", value)


@dataclass(frozen=True)
class Comparison:
    """Methods x data sets x seeds; each method's settings are chosen among its grid.

    Attributes:
        datasets, methods: of the tables; names are different.
        seeds: the first one tries the grid, all of them train what was chosen.
        settings: fields of :class:`alphafuse_ext.Config` of every run, before all others.

    Raises:
        ValueError, TypeError: an invalid setting, named with its method.
    """

    datasets: tuple[Dataset, ...]
    methods: tuple[Method, ...]
    seeds: tuple[int, ...]
    settings: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_named(self.datasets, self.methods)
        if not self.seeds:
            raise invalid("seeds", "none", "one or more")
        for seed in self.seeds:
            if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
                raise invalid("seeds", repr(seed), "integers >= 0")
        _check_different("seeds", self.seeds)
        for dataset, method in itertools.product(self.datasets, self.methods):
            list(self.trials(dataset, method))

    def trials(self, dataset: Dataset, method: Method) -> Iterator[Config]:
        """The configuration of each trial of a method on a data set, with the first seed."""
        for name, value in method.settings.items():
            if isinstance(value, dict):
                allowed = "a value, or a list of them: ranges are for alphafuse tune"
                raise invalid(f"methods.{method.name}: {name}", value, allowed)
        method.check_lists()
        for point in method.grid():
            yield _config((self.settings, dataset.settings, point), method, self.seeds[0])


@dataclass(frozen=True)
class Search:
    """Ranges of methods' settings on data sets, to be searched.

    Attributes:
        datasets, settings: as of a :class:`Comparison`.
        methods: whose settings are values, lists of them, or ranges ``{low = ..., high = ...}``,
            with ``log = true`` where factors matter, or a ``step``.
        seed: of every run, and of the search.

    Raises:
        ValueError, TypeError: as a :class:`Comparison`; a range that is none.
    """

    datasets: tuple[Dataset, ...]
    methods: tuple[Method, ...]
    seed: int
    settings: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_named(self.datasets, self.methods)
        for method in self.methods:
            method.check_lists()
            for name, value in method.settings.items():
                if isinstance(value, dict):
                    _check_range(f"methods.{method.name}: {name}", value)
            if not any(isinstance(value, list | dict) for value in method.settings.values()):
                allowed = "a list or a range for one setting or more"
                raise invalid(f"methods.{method.name}", "nothing to search", allowed)
        for dataset, method in itertools.product(self.datasets, self.methods):
            list(self.corners(dataset, method))

    def corners(self, dataset: Dataset, method: Method) -> Iterator[Config]:
        """Configurations at the ends of every range and list, the others at their first."""
        ends = {name: _ends(value) for name, value in method.settings.items()}
        first = {name: values[0] for name, values in ends.items()}
        for name, values in ends.items():
            for value in values:
                yield self.config(dataset, method, {**first, name: value})

    def config(self, dataset: Dataset, method: Method, settings: dict[str, Any]) -> Config:
        """The configuration of settings that were drawn for a method."""
        return _config((self.settings, dataset.settings, settings), method, self.seed)


def _ends(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [value["low"], value["high"]]
    return value if isinstance(value, list) else [value]


def _check_range(name: str, value: dict[str, Any]) -> None:
    _check_keys(name, value, ("low", "high", "log", "step"))
    for key in ("low", "high"):
        number = value.get(key)
        if isinstance(number, bool) or not isinstance(number, int | float):
            raise invalid(f"{name}: {key}", repr(number), "a number", TypeError)
    log, step = value.get("log", False), value.get("step")
    if not isinstance(log, bool):
        raise invalid(f"{name}: log", repr(log), "true or false", TypeError)
    if not value["low"] < value["high"]:
        raise invalid(name, f"{value['low']} to {value['high']}", "low < high")
    if log and value["low"] <= 0:
        raise invalid(f"{name}: low", value["low"], "a number > 0 with log")
    if step is not None and (log or not isinstance(step, int | float) or not step > 0):
        raise invalid(f"{name}: step", repr(step), "a number > 0, and none with log")


def _check_named(datasets: Sequence[Dataset], methods: Sequence[Method]) -> None:
    for name, things in (("data", datasets), ("methods", methods)):
        if not things:
            raise invalid(name, "none", "one or more")
        for thing in things:
            label = thing.name
            if not label.strip() or label != label.strip() or not label.isprintable():
                allowed = "a name of printable characters, no space at its ends"
                raise invalid(name, repr(label), allowed)
        _check_different(name, [thing.name for thing in things])


def _config(layers: Sequence[Mapping[str, Any]], method: Method, seed: int) -> Config:
    """A configuration of settings, later layers first; an error says of which method."""
    for name in _OF_ALL:
        for layer in layers:
            if name in layer:
                raise invalid(f"methods.{method.name}: {name}", layer[name], f"--{name}s")
    try:
        given = layered(*layers)
        config = Config.from_dict({**given, "seed": seed})
    except (ValueError, TypeError) as error:
        raise type(error)(f"methods.{method.name}: {error}") from error
    if config.protocol == "none":
        raise invalid(f"methods.{method.name}: protocol", "none", "one that holds something out")
    return config


def read_comparison(path: str | os.PathLike[str], seeds: Sequence[int] | None = None) -> Comparison:
    """A comparison from a TOML file.

    .. code-block:: toml

        seeds = [0, 1, 2, 3, 4]

        [settings]                      # of every run
        dim = 128

        [data.beauty]
        interactions = "${DATA}/beauty.inter"
        items = "${DATA}/beauty.item"
        embeddings = "minilm.npy"
        settings = {history = 50}       # of every run on this data set

        [methods."AlphaFuse, soft"]
        item_embedding = "alphafuse"
        space_split = "soft"
        dropout = [0.4, 0.5]            # a list is a grid

    Paths are relative to the file's folder, and may hold environment variables.

    Args:
        path: the file.
        seeds: in place of the file's.

    Raises:
        ValueError, TypeError: invalid keys or values.
        OSError: it cannot be read.
    """
    values = _read(Path(path))
    found = values.seeds if seeds is None else list(seeds)
    return Comparison(values.datasets, values.methods, tuple(found), values.settings)


def read_search(path: str | os.PathLike[str]) -> Search:
    """A search from a TOML file: that of a comparison, in which settings of methods may be ranges.

    .. code-block:: toml

        [methods."AlphaFuse, soft"]
        space_split = "soft"
        learning_rate = {low = 1e-4, high = 1e-2, log = true}
        dropout = {low = 0.2, high = 0.7}
        norm = ["pre", "post"]

    Its first seed is that of all runs. Errors are those of :func:`read_comparison`.
    """
    values = _read(Path(path))
    seed = values.seeds[0] if values.seeds else 0
    return Search(values.datasets, values.methods, seed, values.settings)


class _Values(NamedTuple):
    datasets: tuple[Dataset, ...]
    methods: tuple[Method, ...]
    seeds: list[Any]
    settings: dict[str, Any]


def _read(path: Path) -> _Values:
    values = _read_toml(path)
    _check_keys("", values, ("seeds", "settings", "data", "methods"))
    datasets = []
    for name, given in _tables("data", values):
        _check_keys(f"data.{name}", given, (*SOURCES, "settings"))
        if "interactions" not in given:
            raise invalid(f"data.{name}", "no interactions", "a file of them")
        sources = {key: value for key, value in given.items() if key != "settings"}
        for key in FILES:
            if key in sources:
                sources[key] = _existing(f"data.{name}: {key}", sources[key], path.parent)
        datasets.append(Dataset(name, sources, _settings(f"data.{name}", given)))
    methods = [Method(name, given) for name, given in _tables("methods", values)]
    seeds = values.get("seeds", list(DEFAULT_SEEDS))
    if not isinstance(seeds, list):
        raise invalid("seeds", repr(seeds), "a list of integers", TypeError)
    return _Values(tuple(datasets), tuple(methods), seeds, _settings("", values))


def comparison_of(
    sources: Mapping[str, Any],
    methods: Sequence[str],
    seeds: Sequence[int],
    settings: Mapping[str, Any],
) -> Comparison:
    """One data set and item embeddings by their names, as flags give them.

    Args:
        sources: arguments of :func:`alphafuse_ext.fit`.
        methods: values of ``item_embedding``; or ``"neighbors"``, which is no model.
        seeds: of each.
        settings: fields of :class:`alphafuse_ext.Config`; lists are grids. ``neighbors`` takes
            those that it has.
    """
    known = (*ITEM_EMBEDDINGS, "neighbors")
    for name in methods:
        if name not in known:
            raise invalid("methods", repr(name), f"one of {', '.join(known)}")
    given = {key: value for key, value in sources.items() if value not in (None, False)}
    for key in FILES:
        if key in given:
            given[key] = _existing(key, str(given[key]), Path())
    file = Path(given["interactions"]).name
    dataset = Dataset(file.split(".")[0] or file, given)
    found = [
        Method(name, layered(settings, {"model": name}))
        if name == "neighbors"
        else Method(name, {**settings, "item_embedding": name})
        for name in methods
    ]
    return Comparison((dataset,), tuple(found), tuple(seeds))


def _read_toml(path: Path) -> dict[str, Any]:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise invalid("comparison", f"{path}: {error}", "a TOML file") from error
    except RecursionError as error:
        raise invalid("comparison", f"{path}, which nests too deep", "a TOML file") from error


def _tables(name: str, values: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    found = values.get(name, {})
    if not isinstance(found, dict):
        raise invalid(name, repr(found), f"tables [{name}.NAME]", TypeError)
    for key, value in found.items():
        if not isinstance(value, dict):
            raise invalid(f"{name}.{key}", repr(value), "a table", TypeError)
        yield key, value


def _settings(where: str, values: Mapping[str, Any]) -> dict[str, Any]:
    found = values.get("settings", {})
    name = f"{where}: settings" if where else "settings"
    if not isinstance(found, dict):
        raise invalid(name, repr(found), "a table", TypeError)
    for key, value in found.items():
        if isinstance(value, list):
            raise invalid(f"{name}: {key}", repr(value), "one value: grids are of methods")
    return found


def _check_keys(where: str, values: Mapping[str, Any], known: Sequence[str]) -> None:
    for key in values:
        if key not in known:
            raise invalid(f"{where}: {key}" if where else key, "it", f"one of {', '.join(known)}")


def _check_different(name: str, values: Sequence[Any]) -> None:
    for place, value in enumerate(values):
        if value in values[:place]:
            raise invalid(name, f"{value!r} twice", "each once")


def _existing(name: str, value: Any, folder: Path) -> str:
    if not isinstance(value, str):
        raise invalid(name, repr(value), "a path", TypeError)
    expanded = os.path.expandvars(value)
    if "$" in expanded:
        raise invalid(name, value, "environment variables that are set")
    found = folder / expanded
    if not found.exists():
        raise invalid(name, str(found), "a file that exists", FileNotFoundError)
    if not (found.is_file() or found.is_dir()):
        raise invalid(name, f"{found}, a pipe or a device", "a file, which can be read again")
    return str(found.absolute())
