"""The command line's words: help of a screen's length, and mistakes answered by the nearest."""

from __future__ import annotations

import shlex

import pytest

from alphafuse_ext.cli import main, parser
from alphafuse_ext.commands import COMMANDS


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[str, str]:
    with pytest.raises(SystemExit) as end:
        main(arguments)
    said = capsys.readouterr()
    assert end.value.code == (2 if said.err else 0)
    return said.out, said.err


@pytest.mark.parametrize(
    ("arguments", "nearest"),
    [
        (["trian"], "train"),
        (["recomend", "runs/first"], "recommend"),
        (["train", "--epocs", "3"], "--epochs"),
        (["train", "--epocs=3"], "--epochs"),
        (["train", "--loss", "cros_entropy"], "cross_entropy"),
        (["evaluate", "run", "--grups"], "--groups"),
    ],
)
def test_the_nearest_word(capsys, arguments, nearest) -> None:
    out, err = printed(capsys, *arguments)
    assert f"did you mean {nearest}?" in err
    assert err.count("\n") == 1
    assert not out


def test_nothing_is_near(capsys) -> None:
    _, err = printed(capsys, "train", "--zzzzzzz")
    assert "--zzzzzzz: no such option;" in err
    assert "mean" not in err


@pytest.mark.parametrize("name", COMMANDS)
def test_help_has_an_example(capsys, name) -> None:
    """Which the parser takes."""
    out, _ = printed(capsys, name, "--help")
    one = COMMANDS[name]
    assert one.help[1:] in " ".join(out.split())
    assert one.example in out
    program, *arguments = shlex.split(one.example)
    assert program == "alphafuse"
    assert parser(name).parse_args(arguments).command


def test_help_shows_what_people_use(capsys) -> None:
    """And all the rest where it is asked for."""
    short, _ = printed(capsys, "train", "--help")
    long, _ = printed(capsys, "train", "--help-all")
    assert "--interactions" in short
    assert short.count("\n") < 80
    assert "--whitening-groups" not in short
    options = parser("train")._all_options()
    assert "--whitening-groups" in options
    for option in options:
        if option not in ("--version", "--traceback"):
            assert option in long
