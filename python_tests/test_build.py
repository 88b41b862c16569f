"""What was built, how an instruction set is chosen, and that the kernels keep to themselves."""

from __future__ import annotations

import importlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import alphafuse_ext as af
from alphafuse_ext import _core

ROOT = Path(af.__file__).resolve().parent.parent


def load_core(isa: str) -> subprocess.CompletedProcess[str]:
    """Imports the native core by itself, without PyTorch, and prints the instruction set."""
    code = (
        "from importlib.util import module_from_spec, spec_from_file_location\n"
        f"spec = spec_from_file_location('_core', {_core.__file__!r})\n"
        "core = module_from_spec(spec)\n"
        "spec.loader.exec_module(core)\n"
        "print(core.isa())"
    )
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "ALPHAFUSE_ISA": isa},
        capture_output=True,
        text=True,
        check=False,
    )


def test_build_info() -> None:
    info = af.build_info()
    assert info["version"] == af.__version__
    assert info["isa"] in info["isas_supported"]
    assert set(info["isas_supported"]) <= set(info["isas_built"])
    # First, so that it is nobody's best.
    assert info["isas_built"][:2] == info["isas_supported"][:2] == ["amx_emulated", "scalar"]
    assert info["cuda"] is None or info["cuda"]["architectures"]


def test_best_instruction_set_is_the_default() -> None:
    result = load_core("")
    # AMX by name alone, until it has run on a processor that has it.
    known = [isa for isa in _core.supported_isas() if isa != "amx"]
    assert result.stdout.split() == known[-1:], result.stderr


@pytest.mark.parametrize("isa", _core.supported_isas())
def test_environment_forces_an_instruction_set(isa: str) -> None:
    result = load_core(isa)
    assert result.stdout.split() == [isa], result.stderr


def test_tiles_are_those_of_the_processor() -> None:
    """And the system gives them, or they are not offered."""
    facts = Path("/proc/cpuinfo")
    flags = facts.read_text().split() if facts.exists() else []
    if not {"amx_tile", "amx_int8", "amx_bf16"} <= set(flags):
        assert "amx" not in _core.supported_isas()
        assert "expected one of amx_emulated, scalar" in load_core("amx").stderr
        pytest.skip("NOT RUN: this processor has no AMX; its instructions in plain C++ only")
    assert _core.supported_isas()[-1] == "amx"


def test_unknown_instruction_set() -> None:
    result = load_core("avx1024")
    assert "ALPHAFUSE_ISA: got avx1024; expected one of amx_emulated, scalar" in result.stderr
    before = _core.isa()
    with pytest.raises(ValueError, match="got sse2; expected one of amx_emulated, scalar"):
        _core.set_isa("sse2")
    assert _core.isa() == before


def test_core_of_another_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_core, "version", "0.0.0")
    with pytest.raises(
        ImportError, match=r"core was built from 0\.0\.0; install the package again"
    ):
        importlib.reload(sys.modules["alphafuse_ext.build"])


def test_import_needs_no_driver_and_no_torch_libraries() -> None:
    """The core links the system's libraries only: no libcuda, no libcudart, no libtorch."""
    if not sys.platform.startswith("linux") or shutil.which("readelf") is None:
        pytest.skip("no readelf here: what the core links is NOT checked")
    output = subprocess.run(
        ["readelf", "-d", _core.__file__], capture_output=True, text=True, check=True
    ).stdout
    needed = [line.split("[")[1].rstrip("]") for line in output.splitlines() if "NEEDED" in line]
    allowed = (
        "libstdc++",
        "libm.",
        "libgcc_s",
        "libc.",
        "ld-linux",
        "libpthread",
        "libdl",
        "librt",
    )
    sanitizers = ("libasan", "libubsan")
    assert needed
    for library in needed:
        assert library.startswith(allowed + sanitizers), library


def test_kernels_keep_to_their_namespace() -> None:
    """A kernel object may define nothing outside the namespace of its instruction set.

    Were it to, the linker could keep, say, the AVX-512 copy of a shared inline function for all.
    """
    objects = sorted((ROOT / "build").glob("cmake-*/CMakeFiles/kernels_*.dir/csrc/cpu/*.o"))
    if not objects or shutil.which("nm") is None:
        pytest.skip("no build folder or no nm here: the kernels' symbols are NOT checked")
    assert {path.stem for path in objects} >= {"topk.cpp", "lookup.cpp", "cross_entropy.cpp"}
    for path in objects:
        isa = path.parts[path.parts.index("CMakeFiles") + 1].removeprefix("kernels_").split(".")[0]
        output = subprocess.run(
            ["nm", "-C", "--defined-only", "--extern-only", str(path)],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        symbols = [line.split(maxsplit=2)[2] for line in output.splitlines() if line.strip()]
        symbols = [name for name in symbols if not name.startswith("DW.ref.__gxx_personality")]
        assert symbols
        for name in symbols:
            assert f"alphafuse::{isa}::" in name, f"{path}: {name}"


def arguments_of(call: str) -> list[str]:
    """What stands between the outer commas of a call, from its bracket on."""
    found, depth = [""], 0
    for letter in call:
        depth += {"(": 1, "{": 1, "<": 1, ")": -1, "}": -1, ">": -1}.get(letter, 0)
        if depth == 0:
            break
        if letter == "," and depth == 1:
            found.append("")
        else:
            found[-1] += letter
    return [" ".join(argument.split()).removeprefix("(") for argument in found]


def test_kernels_are_launched_within_their_bounds() -> None:
    """With more threads than ``__launch_bounds__`` a launch fails, on a GPU alone."""
    sources = "".join(
        re.sub(r"//[^\n]*", "", path.read_text())
        for path in sorted((ROOT / "csrc" / "cuda").glob("*.cu*"))
    )
    bounds = {
        name: arguments_of(bound)[0]
        for bound, name in re.findall(
            r"__global__ void __launch_bounds__(\([^{;]*?\))\s*(\w+)\(", sources
        )
    }
    assert len(bounds) > 10
    launched = set()
    for place in re.finditer(r"\benqueue(?=\(launch)", sources):
        given = arguments_of(sources[place.end() :])
        name = given[2].partition("<")[0]
        if name in bounds:
            assert given[4] == bounds[name], f"{name}: launched with {given[4]} threads"
            launched.add(name)
    assert launched == bounds.keys()


@pytest.mark.cuda
def test_cuda_is_here() -> None:
    """Skipped, loudly, where the CUDA halves of test_lookup and test_score_all do not run."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device here: the CUDA kernels are NOT tested")
    assert af.build_info()["cuda"] is not None
