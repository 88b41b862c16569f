"""What importing the package brings along: modules are counted, so that no clock is needed."""

from __future__ import annotations

import subprocess
import sys

import pytest

import alphafuse_ext as af
from alphafuse_ext.commands import COMMANDS

SLOW = {"torch._dynamo", "pandas", "pyarrow", "matplotlib", "sklearn", "scipy", "tensorboard"}


def imported_by(code: str) -> set[str]:
    """The modules that a new interpreter has imported once it has run the code."""
    code = f"import sys\n{code}\nprint('\\n'.join(sys.modules), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stderr.split())


def test_package_imports_no_torch() -> None:
    """Nothing but the standard library, until a name is used."""
    modules = imported_by("import alphafuse_ext; dir(alphafuse_ext); alphafuse_ext.__version__")
    assert not modules & (SLOW | {"torch", "numpy"})


@pytest.mark.parametrize("name", ["topk", "ItemTable", "models", "SemanticSpace"])
def test_ops_and_modules_import_torch_alone(name: str) -> None:
    modules = imported_by(f"import alphafuse_ext; alphafuse_ext.{name}")
    assert "torch" in modules
    assert not modules & SLOW


def test_every_public_name() -> None:
    """Each is found where the table of names says, and all are listed."""
    assert set(dir(af)) == set(af.__all__) == {*af._MODULES, "models", "__version__"}
    for name in af.__all__:
        assert getattr(af, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'scoreall'"):
        af.scoreall  # noqa: B018


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--version"],
        ["trian"],
        ["train", "--epochz"],
        *([one, "-h"] for one in COMMANDS),
    ],
    ids=" ".join,
)
def test_help_imports_no_torch(arguments: list[str]) -> None:
    """Nor what reads data, but for the help of one command, which lists what it can read."""
    code = (
        "import contextlib, alphafuse_ext.cli\n"
        "with contextlib.redirect_stderr(None), contextlib.suppress(SystemExit):\n"
        f"    alphafuse_ext.cli.main({arguments!r})"
    )
    found = imported_by(code) & (SLOW | {"torch", "numpy"})
    assert not found or arguments == ["prepare", "-h"]
