"""What mkdocs calls to build the site: pictures and the command line's pages are made here."""

from __future__ import annotations

import argparse
import html
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from mkdocs.structure.files import File

from alphafuse_ext import SemanticSpace
from alphafuse_ext.cli import parser
from alphafuse_ext.training.plots import plot_gains

COMMANDS = re.compile(r"<!-- commands:.*?-->")


def on_files(files: Any, config: Any) -> Any:
    """Add the pictures to the files of the site."""
    matplotlib.use("agg")
    falling = np.arange(1, 129) ** -0.8
    rows = np.random.default_rng(0).normal(size=(5000, 128)) * falling
    space = SemanticSpace.from_embeddings(rows, progress=False)
    with tempfile.TemporaryDirectory() as folder:
        space.plot(Path(folder) / "spectrum.png", dim=96, null_dim=64)
        soft = space.gains(96, 64, 0.5)
        plot_gains(space.eigenvalues[:96], soft, soft, Path(folder) / "gains.png")
        for picture in Path(folder).glob("*.png"):
            file = File.generated(config, f"img/{picture.name}", content=picture.read_bytes())
            files.append(file)
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Every command and flag, where a page asks for them."""
    return COMMANDS.sub(lambda _: "\n".join(command_reference(parser())), markdown)


def on_page_content(content: str, **_: Any) -> str:
    """Names in docstrings without `:func:` and its like, which the site would show."""
    return re.sub(r":(?:func|class|meth|mod|attr|data):(?=<code>)", "", content)


def command_reference(whole: argparse.ArgumentParser) -> Iterator[str]:
    """Markdown of each command: a heading, what it does, a table for each group of its flags."""
    for action in whole._actions:
        if not isinstance(action, argparse._SubParsersAction):
            continue
        helps = {choice.dest: choice.help for choice in action._choices_actions}
        for name, command in action.choices.items():
            yield f"## {name}\n\n{_text(helps[name] or '')}.\n"
            for group in command._action_groups:
                flags = [
                    flag
                    for flag in group._group_actions
                    if flag.dest != "help" and flag.help != argparse.SUPPRESS
                ]
                if flags:
                    yield f"| {group.title} | |\n| --- | --- |"
                    yield from (f"| {_flag(flag)} | {_meaning(flag)} |" for flag in flags)
                    yield ""
            if command.epilog:
                yield f"```\n{command.epilog}\n```\n"


def _flag(action: argparse.Action) -> str:
    """Its names and what follows them."""
    value = action.metavar or (action.dest if action.choices else action.dest.upper())
    value = value[0] if isinstance(value, tuple) else value
    more = " ..." if action.nargs == "+" else ""
    if not action.option_strings:
        return f"`{value}`{more}"
    takes = "" if action.nargs == 0 or action.choices else f" `{value}`{more}"
    return ", ".join(f"`{name}`" for name in action.option_strings) + takes


def _meaning(action: argparse.Action) -> str:
    said = [_text(action.help % vars(action))] if action.help else []
    if action.choices:
        said.append("one of " + ", ".join(f"`{choice}`" for choice in action.choices))
    if action.required and action.option_strings:
        said.append("required")
    return "; ".join(said)


def _text(plain: str) -> str:
    """What Markdown, also in a table, shows as it is written."""
    escaped = re.sub(r"([\\*_`])", r"\\\1", html.escape(plain, quote=False))
    return escaped.replace("|", "&#124;")
