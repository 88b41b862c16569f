"""Print the README's shell command of a given name, so that what CI runs is what users read.

A command is the ``sh`` block that follows the comment ``<!-- command: NAME -->``.
"""

import re
import sys
from pathlib import Path

README = Path(__file__).resolve().parent.parent / "README.md"


def command(name: str) -> str:
    """The block's text; fails where the README has no such block."""
    pattern = rf"<!-- command: {re.escape(name)} -->\n```sh\n(.*?)```"
    found = re.search(pattern, README.read_text(), re.DOTALL)
    if found is None:
        raise SystemExit(f"README.md has no command called {name!r}")
    return found[1]


if __name__ == "__main__":
    print(command(sys.argv[1]), end="")
