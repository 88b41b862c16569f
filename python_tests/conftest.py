"""Fixtures that more than one test file uses."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import alphafuse_ext as af
from alphafuse_ext import _core
from alphafuse_ext.cli import main
from alphafuse_ext.config import model
from alphafuse_ext.data import synthetic_catalog
from alphafuse_ext.ops import native
from alphafuse_ext.training import train

model.NEIGHBORS_UP_TO = train.NEIGHBORS_UP_TO = 0  # tests of neighbors ask for them, or lift this
_core.set_work_of_thread(1)  # small inputs too are for all threads that a test asks for

SEED = pytest.StashKey[int]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--all", action="store_true", help="slow tests too, on fresh random inputs")


def pytest_configure(config: pytest.Config) -> None:
    fresh = random.SystemRandom().randrange(2**31) if config.option.all else 0
    # In the environment for pytest-xdist's processes, which are to draw the same.
    config.stash[SEED] = int(os.environ.setdefault("ALPHAFUSE_TEST_SEED", str(fresh)))


def pytest_report_header(config: pytest.Config) -> str:
    which = "all tests" if config.option.all else "without slow tests, which --all adds"
    return f"{which}; ALPHAFUSE_TEST_SEED={config.stash[SEED]} repeats this run's inputs"


def repeats(item: pytest.Item) -> bool:
    """Whether a test of a device's kernels differs from another in what only the CPU's have."""
    params = item.callspec.params if hasattr(item, "callspec") else {}
    if params.get("device", "cpu") == "cpu":
        return False
    isa = _core.supported_isas()[-1]
    return params.get("isa", isa) != isa or params.get("threads", 1) != 1


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out repetitions, and slow tests, but in files that are named on the command line."""
    again = {item for item in items if repeats(item)}
    config.hook.pytest_deselected(items=list(again))
    items[:] = [item for item in items if item not in again]
    if config.option.all or config.option.markexpr:
        return
    named = {
        (config.invocation_params.dir / arg.partition("::")[0]).resolve() for arg in config.args
    }
    slow = {item for item in items if item.get_closest_marker("slow") and item.path not in named}
    config.hook.pytest_deselected(items=list(slow))
    items[:] = [item for item in items if item not in slow]


@pytest.fixture(autouse=True)
def _fresh_inputs(request: pytest.FixtureRequest) -> None:
    """Seeds every test differently, by its name."""
    seed = (request.config.stash[SEED] + zlib.crc32(request.node.nodeid.encode())) % 2**31
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 (tests of others may use the global state)
    torch.manual_seed(seed)


@pytest.fixture(scope="session")
def trained_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of `alphafuse train`, to read only: all tests share it.

    Beside it lie ``clicks.csv`` and ``items.parquet``, that it was trained on, and ``printed.txt``.
    """
    folder = tmp_path_factory.mktemp("shared")
    # No number of parts divides the users.
    clicks, items = synthetic_catalog(num_users=201, num_items=90, seed=2)
    clicks.to_csv(folder / "clicks.csv", index=False)
    items.to_parquet(folder / "items.parquet", index=False)
    data = ["--interactions", folder / "clicks.csv", "--items", folder / "items.parquet"]
    small = ["--encoder", "tfidf", "--dim", 16, "--null-dim", 12, "--negatives", 8, "--history", 6]
    arguments = ["train", *data, *small, "--epochs", 2, "--output", folder / "run"]
    with (folder / "printed.txt").open("w") as printed, contextlib.redirect_stdout(printed):
        assert main(list(map(str, arguments))) == 0
    return folder / "run"


@pytest.fixture
def copied_run(trained_run: Path, tmp_path: Path) -> Path:
    """A copy of the shared run, for a test that changes it."""
    return Path(shutil.copytree(trained_run, tmp_path / "copied-run"))


@pytest.fixture(scope="module")
def recommender(trained_run: Path) -> af.Recommender:
    """Of the shared run."""
    return af.Recommender.load(trained_run)


def written(folder: Path) -> dict[Path, tuple[int, int]]:
    """What lies below a folder: the size of each file, and when it was written."""
    found = ((path, path.stat()) for path in folder.rglob("*"))
    return {path: (facts.st_size, facts.st_mtime_ns) for path, facts in found}


@pytest.fixture(scope="session")
def _as_trained(trained_run: Path) -> dict[Path, tuple[int, int]]:
    return written(trained_run.parent)


@pytest.fixture(autouse=True)
def _trained_run_stays(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fails the test that writes to the shared run or to its data."""
    if "trained_run" not in request.fixturenames:
        yield
        return
    before = request.getfixturevalue("_as_trained")
    yield
    after = written(request.getfixturevalue("trained_run").parent)
    assert after == before, "the shared run was changed; copied_run is for that"


def fresh_generator() -> np.random.Generator:
    """For a test's inputs, seeded as PyTorch is."""
    return np.random.default_rng(random.getrandbits(63))


def _forced(request: pytest.FixtureRequest) -> Iterator[str]:
    before = _core.isa()
    _core.set_isa(request.param)
    yield request.param
    _core.set_isa(before)


PRODUCTS_OF_BFLOAT16 = [name for name in _core.supported_isas() if not name.endswith("vnni")]


@pytest.fixture(params=[name for name in PRODUCTS_OF_BFLOAT16 if not name.startswith("amx")])
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Forces each instruction set that this machine has, in turn, but those whose kernels are
    another's except in a first pass and in bfloat16."""
    yield from _forced(request)


@pytest.fixture(params=PRODUCTS_OF_BFLOAT16)
def bfloat16_isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """As ``isa``, for products of bfloat16: by tiles too, in plain C++ on any machine."""
    yield from _forced(request)


@pytest.fixture(params=_core.supported_isas())
def first_pass_isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """As ``isa``, for a first pass in int8: each that this machine has."""
    yield from _forced(request)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """For small inputs, on which OpenMP's threads would spend their time waiting."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=[1, 2, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """Sets the number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


EMULATED = "cuda_emulated"
DEVICES: list = ["cpu"]
if torch.cuda.is_available():  # else test_build.py skips, once and loudly
    DEVICES.append(pytest.param("cuda", marks=pytest.mark.cuda))


if EMULATED in _core.devices:  # built with ALPHAFUSE_CUDA=emulated: CUDA's kernels, CPU's tensors
    DEVICES.append(EMULATED)

on_a_device = pytest.mark.parametrize(
    "device", [name for name in DEVICES if name != "cpu"], indirect=True
)
"""The fixture ``device`` without the CPU's own kernels; skipped where there are no others."""


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    """Where an op has kernels: the devices of this machine, and the emulated one if it is built."""
    if request.param != EMULATED:
        yield torch.device(request.param)
        return
    with native.use_backend(EMULATED):
        yield torch.device("cpu")


@pytest.fixture
def on_device(device: torch.device) -> Iterator[None]:
    """As ``device``, and new tensors are made there."""
    with device:
        yield


READS = ("_local_scalar_dense", "is_nonzero", "nonzero", "masked_select", "_unique2", "equal")
"""Of PyTorch's own, what gives the host a value or a size that only the device knows."""


class HostReads(TorchDispatchMode):
    """Counts them."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = func.overloadpacket.__name__
        masked = name == "index" and any(
            index is not None and index.dtype == torch.bool for index in args[1]
        )
        if name in READS or masked:
            self.found.append(name)
        return func(*args, **(kwargs or {}))
