"""What importing the package brings along: modules are counted, so that no clock is needed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pandas as pd
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


@pytest.mark.parametrize("name", ["", "data", "distributed", "models", "ops", "optim"])
def test_dir_shows_what_is_public(name: str) -> None:
    """Without what a module imports, and with the packages that nothing has imported yet."""
    module = f"alphafuse_ext.{name}".rstrip(".")
    code = f"import alphafuse_ext as af, {module} as m; print(*dir(m)); print(*sorted(m.__all__))"
    code += "\nfor name in dir(m): getattr(m, name)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    shown, public = done.stdout.splitlines()
    assert shown == public


@pytest.mark.parametrize("name", ["topk", "ItemTable", "models", "optim", "SemanticSpace"])
def test_ops_and_modules_import_torch_alone(name: str) -> None:
    modules = imported_by(f"import alphafuse_ext; alphafuse_ext.{name}")
    assert "torch" in modules
    assert not modules & SLOW


@pytest.mark.parametrize("name", ["Recommender", "fit", "extend"])
def test_data_and_runs_import_only_what_reads(name: str) -> None:
    """pandas and pyarrow; what encodes texts, draws or logs waits until it does."""
    modules = imported_by(f"import alphafuse_ext; alphafuse_ext.{name}")
    assert not modules & (SLOW - {"pandas", "pyarrow"})


@pytest.mark.parametrize(
    "command",
    [
        "info",
        "evaluate {run}",
        "recommend {run} --users {user} --k 3",
        "similar {run} --items {item}",
    ],
)
def test_commands_import_only_what_reads(command: str, trained_run: Path) -> None:
    clicks = pd.read_csv(trained_run.parent / "clicks.csv")
    user, item = clicks["user_id"][0], clicks["item_id"][0]
    arguments = [word.format(run=trained_run, user=user, item=item) for word in command.split()]
    code = (
        "import contextlib, io, alphafuse_ext.cli\n"
        "with contextlib.redirect_stdout(io.StringIO()):\n"
        f"    assert alphafuse_ext.cli.main({arguments!r}) == 0"
    )
    assert not imported_by(code) & (SLOW - {"pandas", "pyarrow"})


def test_every_public_name() -> None:
    """Each is found where the table of names says, and all are listed."""
    assert set(dir(af)) == set(af.__all__) == {*af._MODULES, *af._PACKAGES, "__version__"}
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
    """Nor what reads data."""
    code = (
        "import contextlib, alphafuse_ext.cli\n"
        "with contextlib.redirect_stderr(None), contextlib.suppress(SystemExit):\n"
        f"    alphafuse_ext.cli.main({arguments!r})"
    )
    assert not imported_by(code) & (SLOW | {"torch", "numpy"})
