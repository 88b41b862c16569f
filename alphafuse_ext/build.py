"""How the native core was built, and which instruction set is in use."""

from __future__ import annotations

from alphafuse_ext._version import __version__

try:
    import alphafuse_ext._core as _core
except ModuleNotFoundError as error:
    raise ImportError(
        "alphafuse_ext._core, the native core, is not built; run `pip install .` (or "
        "`pip install -e .`) in the source folder"
    ) from error

if _core.version != __version__:
    raise ImportError(
        f"alphafuse_ext is {__version__}, but its native core was built from "
        f"{_core.version}; install the package again"
    )


def build_info() -> dict[str, object]:
    """The build of the native core, and the instruction set in use.

    Returns:
        ``version`` of the package and ``compiler`` (name and version); ``isas_built``, the
        instruction sets the kernels were compiled for, ``isas_supported``, those of them that this
        machine has, and ``isa``, the one in use (``ALPHAFUSE_ISA`` forces one by name; ``scalar``
        is the compiler's baseline for the machine, ``amx_emulated`` that with AMX's tiles in plain
        C++, for tests; ``amx`` is in use by name alone); ``cuda``, ``None`` or the ``version`` of
        the compiler and the ``architectures`` built for; ``sanitizers``, those compiled in.
    """
    cuda = None
    if _core.cuda_version is not None:
        cuda = {
            "version": _core.cuda_version,
            "architectures": [f"sm_{name}" for name in _core.cuda_architectures.split()],
        }
    return {
        "version": _core.version,
        "compiler": _core.compiler,
        "isas_built": _core.built_isas(),
        "isas_supported": _core.supported_isas(),
        "isa": _core.isa(),
        "cuda": cuda,
        "sanitizers": [name for name in _core.sanitizers.split(",") if name],
    }
