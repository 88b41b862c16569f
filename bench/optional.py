"""Packages that benchmarks can use and ``pip install .`` does not bring. Standard library alone."""

from __future__ import annotations

from importlib.util import find_spec

INSTALL = {
    "cut_cross_entropy": "pip install cut-cross-entropy",
    "cuvs": "pip install cuvs-cu12, or cuvs-cu13",
    "faiss": "pip install faiss-cpu",
    "hypothesis": "pip install '.[test]'",
    "liger_kernel": "pip install liger-kernel",
    "pytest": "pip install '.[test]'",
    "recbole": "pip install '.[recbole]', in an environment of its own",
    "rectools": "pip install '.[rectools]', in an environment of its own",
}
"""Installation hint by module name."""


def missing(*modules: str) -> str | None:
    """The missing packages with installation hints; ``None``: none is missing."""
    words = [f"{module} ({INSTALL[module]})" for module in modules if find_spec(module) is None]
    return f"not installed: {', '.join(words)}" if words else None


def need(*modules: str) -> None:
    """Ends the program with one line where one of them is not installed."""
    if found := missing(*modules):
        raise SystemExit(found)
