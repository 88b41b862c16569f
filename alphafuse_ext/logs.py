"""Lines about what a call does: to its argument ``log``, and to Python's logger ``alphafuse_ext``.

The logger has no handler of ours: ``logging.basicConfig(level=logging.INFO)`` shows its lines.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

Log: TypeAlias = Callable[[str], object]

LOGGER = logging.getLogger("alphafuse_ext")


@dataclass(frozen=True)
class Lines:
    """A ``log`` whose lines also go to the logger, at level INFO.

    Attributes:
        log: as the caller gave it; ``None``: the logger alone.
    """

    log: Log | None

    def __call__(self, line: str) -> None:
        LOGGER.info(line, stacklevel=2)
        if self.log is not None:
            self.log(line)


def logged(log: Log | None) -> Lines:
    """The argument ``log`` of a public function, with the logger beside it.

    One that came through here before is returned as it is, so that no line is logged twice.
    """
    return log if isinstance(log, Lines) else Lines(log)
