"""A parser that suggests the nearest option or command, and shows short help by default."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, NoReturn


class Parser(argparse.ArgumentParser):
    """An argument parser; see :meth:`show_first`."""

    def __init__(self, **options: Any) -> None:
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, **options)
        self._first: Collection[str] | None = None
        self._before: Callable[[Sequence[str]], None] | None = None

    def show_first(self, names: Collection[str]) -> None:
        """Show only these options in ``--help``, and all of them in ``--help-all``.

        Args:
            names: of the options' values, such as ``learning_rate``.
        """
        self._first = names
        self.usage = "%(prog)s [options]"
        self.add_argument("--help-all", action=_HelpAll, help="show every option")

    def before_parsing(self, add: Callable[[Sequence[str]], None]) -> None:
        """Let ``add`` add options that follow from what is parsed, once."""
        self._before = add

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As of ``argparse``, after what :meth:`before_parsing` was given."""
        if self._before is not None and args is not None:
            add, self._before = self._before, None
            try:
                add(args)
            except (ValueError, TypeError) as error:
                self.error(str(error))
        return super().parse_known_args(args, namespace)

    def format_help(self) -> str:
        """The help that ``--help`` shows."""
        if self._first is None:
            return super().format_help()
        shown = {*self._first, "help", "help_all"}
        hidden = {
            action: action.help
            for action in self._actions
            if action.dest not in shown and action.help != argparse.SUPPRESS
        }
        for action in hidden:
            action.help = argparse.SUPPRESS
        try:
            return f"{super().format_help()}\n{len(hidden)} more options: {self.prog} --help-all\n"
        finally:
            for action, text in hidden.items():
                action.help = text

    def format_full_help(self) -> str:
        """The help of every option."""
        return super().format_help()

    def parse_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> argparse.Namespace:
        """As in ``argparse``; an error for an unknown option suggests the nearest."""
        options, unknown = self.parse_known_args(args, namespace)
        if unknown:
            first = next((word for word in unknown if word.startswith("-")), unknown[0])
            first = first.partition("=")[0]
            self.error(f"{first}: no such option{_nearest(first, self._all_options())}")
        return options

    def error(self, message: str) -> NoReturn:
        """End with one line on standard error."""
        self.exit(2, f"alphafuse: error: {message}; see {self.prog} --help\n")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if getattr(action, "takes_names", False) and ":" in value:
            return  # package.module:name
        if action.choices is not None and value not in action.choices:
            choices = [str(choice) for choice in action.choices]
            near = _nearest(str(value), choices)
            raise argparse.ArgumentError(
                action, f"got {value!r}; expected one of {', '.join(choices)}{near}"
            )

    def _all_options(self) -> list[str]:
        """The options of this parser and of the commands that it has."""
        found: list[str] = []
        for action in self._actions:
            found += action.option_strings
            if isinstance(action, argparse._SubParsersAction):
                for command in action.choices.values():
                    found += command._all_options()
        return found


class _HelpAll(argparse.Action):
    def __init__(self, option_strings: Sequence[str], dest: str, help: str) -> None:
        super().__init__(option_strings, dest, nargs=0, default=argparse.SUPPRESS, help=help)

    def __call__(self, parser: Any, *_: Any) -> None:
        print(parser.format_full_help(), end="")
        parser.exit()


def _nearest(given: str, allowed: Iterable[str]) -> str:
    """A question to end an error with, or nothing."""
    near = difflib.get_close_matches(given, list(allowed), n=1)
    return f"; did you mean {near[0]}?" if near else ""
