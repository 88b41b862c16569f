"""A self-contained HTML page: headings, tables, plots, lists."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.figure import Figure

from alphafuse_ext.files import atomic_path

_TEMPLATES = Environment(
    loader=PackageLoader("alphafuse_ext.reports", "."), autoescape=True, undefined=StrictUndefined
)


class Table(NamedTuple):
    """Rows under a header; numbers stand to the right."""

    header: Sequence[str]
    rows: Sequence[Sequence[Any]]


class Picture(NamedTuple):
    """An embedded image with its alternative text."""

    image: Markup
    caption: str


class Listing(NamedTuple):
    """What belongs to a name, such as recommendations to a history."""

    name: str
    before: Sequence[str]
    ranked: Sequence[tuple[str, str]]


class Section(NamedTuple):
    """A heading and what stands under it."""

    title: str
    parts: Sequence[str | Table | Picture | Listing]


def write_page(
    path: str | os.PathLike[str],
    title: str,
    lines: Sequence[str],
    sections: Sequence[Section],
    short: Sequence[str] = (),
) -> None:
    """Write a page.

    Args:
        path: the file to write or to replace; the folder above it is made where it is missing.
        title: of the page.
        lines: what stands under it.
        sections: in their order; those without a part are left out.
        short: the whole page in a sentence or two, above the lines.
    """
    filled = [section for section in sections if section.parts]
    page = _TEMPLATES.get_template("page.html.jinja").render(
        title=title,
        lines=lines,
        short=short,
        sections=filled,
        is_number=lambda cell: isinstance(cell, (int, float)),
        show=show,
        kind=lambda part: type(part).__name__,
    )
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        Path(temporary).write_text(page, encoding="utf-8")


def percent(share: float) -> str:
    """A share as a person reads it, with three digits."""
    return f"{100 * share:.3g}%"


def show(cell: Any) -> str:
    """A cell as a person reads it: numbers with four digits, or in groups of three."""
    if isinstance(cell, bool) or not isinstance(cell, (int, float)):
        return "" if cell is None else str(cell)
    if isinstance(cell, int) or (cell.is_integer() and abs(cell) >= 10):
        return f"{int(cell):,}"
    return f"{cell:.4g}" if abs(cell) < 1e-3 or abs(cell) >= 10 else f"{cell:.4f}"


def named(values: Iterable[tuple[str, Any]]) -> Table:
    """A table of names and values."""
    return Table(("", ""), [*values])


def drawn(figure: Figure, caption: str) -> Picture:
    """A figure as SVG, whose letters stay letters."""
    file = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": caption}):
        figure.savefig(file, format="svg", metadata={"Date": None})
    image = file.getvalue()
    image = image[image.index("<svg") :]  # without what only a file of its own has
    label = Markup('<svg role="img" aria-label="{}"').format(caption)
    return Picture(label + Markup(image[len("<svg") :]), caption)


def photographed(path: Path, caption: str) -> Picture:
    """A PNG file."""
    data = base64.b64encode(path.read_bytes()).decode()
    image = Markup('<img src="data:image/png;base64,{}" alt="{}">').format(data, caption)
    return Picture(image, caption)
