"""Runs CMake for the native core; CMakeLists.txt is the one description of that build."""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

SOURCE = Path(__file__).resolve().parent
# Each reaches CMake as an option of the same name.
OPTIONS = (
    "ALPHAFUSE_CUDA",
    "ALPHAFUSE_CUDA_ARCHS",
    "ALPHAFUSE_WGMMA",
    "ALPHAFUSE_WERROR",
    "ALPHAFUSE_SANITIZE",
)


def find_tool(name: str, folder_attribute: str) -> str:
    """The path of ``cmake`` or ``ninja``: the Python package's if there is one, else from PATH."""
    try:
        folder = getattr(importlib.import_module(name), folder_attribute)
    except ImportError:
        folder = None
    found = (folder and shutil.which(name, path=folder)) or shutil.which(name)
    if not found:
        raise RuntimeError(f"{name} was not found; `pip install {name}` provides it")
    return found


class CMakeBuild(build_ext):
    """``build_ext`` by way of CMake and Ninja."""

    def build_extension(self, ext: Extension) -> None:
        import pybind11

        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        # One folder for wheels and editable installs, so that a second build is a short one.
        build = SOURCE / "build" / f"cmake-{sys.implementation.cache_tag}"
        cache = build / "CMakeCache.txt"
        if cache.exists() and f"CMAKE_HOME_DIRECTORY:INTERNAL={SOURCE}\n" not in cache.read_text():
            shutil.rmtree(build)  # copied along with the sources; CMake would refuse it
        cmake = find_tool("cmake", "CMAKE_BIN_DIR")
        arguments = [
            f"-DCMAKE_MAKE_PROGRAM={find_tool('ninja', 'BIN_DIR')}",
            "-DCMAKE_BUILD_TYPE=Release",
            f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={target.parent}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
        ]
        for option in OPTIONS:
            if os.environ.get(option):
                arguments.append(f"-D{option}={os.environ[option]}")
            else:
                arguments.append(f"-U{option}")  # not the value a previous build has cached
        configure = [cmake, "-S", str(SOURCE), "-B", str(build), "-G", "Ninja", *arguments]
        subprocess.run(configure, check=True)
        subprocess.run([cmake, "--build", str(build), "--target", "_core"], check=True)


setup(
    ext_modules=[Extension("alphafuse_ext._core", sources=[])],
    cmdclass={"build_ext": CMakeBuild},
)
