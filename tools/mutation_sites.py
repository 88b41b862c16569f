"""Places in the CUDA kernels where ``mutations.py`` puts a mistake: barriers, waits, bounds, ..."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

KERNELS = Path(__file__).resolve().parent.parent / "csrc" / "cuda"


KINDS = ("barrier", "wait", "bounds", "other", "wgmma")
"""``other``: what :data:`PLANTED` names; ``wgmma``: what only a build with it has."""

_WHERE = "::alphafuse::mutant"
PLANTED = (
    # Steps in 32 bits through tables that have more.
    (
        "rows.cuh",
        "other",
        "row * part.stride",
        f"({_WHERE} == {{}} ? int(row * part.stride) : row * part.stride)",
    ),
    (
        "rows.cuh",
        "other",
        "at * part.stride",
        f"({_WHERE} == {{}} ? int(at * part.stride) : at * part.stride)",
    ),
    (
        "device.cuh",
        "other",
        "row * tables.semantic.stride",
        f"({_WHERE} == {{}} ? int(row * tables.semantic.stride) : row * tables.semantic.stride)",
    ),
    (
        "device.cuh",
        "other",
        "row * tables.id.stride",
        f"({_WHERE} == {{}} ? int(row * tables.id.stride) : row * tables.id.stride)",
    ),
    # TF32 cut off where it is to be rounded.
    ("tile.cuh", "other", "to_tf32(word)", f"({_WHERE} == {{}} ? word : to_tf32(word))"),
    (
        "product.cu",
        "other",
        "to_tf32(",
        f"({_WHERE} == {{}} ? +[](uint32_t bits) {{{{ return bits; }}}} : &to_tf32)(",
    ),
    ("cross_entropy.cu", "other", "sum -= lost[r];", f"if ({_WHERE} != {{}}) sum -= lost[r];"),
    ("ids.cu", "other", "bits_of(max_id)", f"(bits_of(max_id) - ({_WHERE} == {{}}))"),
    (
        "best_keys.cuh",
        "other",
        "row_of(own[i]) : -1",
        f"row_of(own[i]) : ({_WHERE} == {{}} ? 0 : -1)",
    ),
    # More shared memory than there is on 8.6, 8.9 and 12.0.
    ("tile.cuh", "other", "arena.used()", f"(arena.used() + ({_WHERE} == {{}} ? 60 << 10 : 0))"),
    ("product.cu", "other", "arena.used()", f"(arena.used() + ({_WHERE} == {{}} ? 60 << 10 : 0))"),
    # More threads than __launch_bounds__ allows.
    (
        "tile.cuh",
        "other",
        "grid_of(scan.units(), 1), Tile::kThreads,",
        f"grid_of(scan.units(), 1), Tile::kThreads << ({_WHERE} == {{}}),",
    ),
    # As many parts as there are blocks, or a few more: a second wave of few.
    (
        "tile.cuh",
        "other",
        "return parts_of_waves(",
        f"if ({_WHERE} == {{}}) return min(scan.item_tiles, ceil_div(int64_t{{{{Tile::kBlocks}}}} "
        "* multiprocessors(launch), max(1, scan.query_tiles)));\n  return parts_of_waves(",
    ),
    ("tile.cuh", "wgmma", "fence_for_wgmma();", f"if ({_WHERE} != {{}}) fence_for_wgmma();"),
    ("tile.cuh", "wgmma", "begin_wgmma();", f"if ({_WHERE} != {{}}) begin_wgmma();"),
    (
        "tile.cuh",
        "wgmma",
        "end_wgmma(scores.at[0], scores.at[1]);",
        f"if ({_WHERE} != {{}}) end_wgmma(scores.at[0], scores.at[1]);",
    ),
    ("tile.cuh", "wgmma", "Tile::kWarpGroups ||", f"(Tile::kWarpGroups && {_WHERE} != {{}}) ||"),
    *(
        ("bulk_scan.cuh", "wgmma", text, f"if ({_WHERE} != {{}}) {text}")
        for text in (
            "fence_for_wgmma();",
            "begin_wgmma();",
            "end_wgmma(scores.at[0], scores.at[1]);",
            "wait_barrier(memory.empty + next.stage, next.parity ^ 1);",
            "wait_barrier(memory.full + at.stage, at.parity);",
            "free_stage(tile_stage + chunk);",
        )
    ),
    # Sums of strips that do not go on from those before.
    (
        "cross_entropy.cu",
        "other",
        "arguments.goes_on",
        f"({_WHERE} != {{}} && arguments.goes_on)",
    ),
)
"""File, kind, text and what stands in its place: each place with the text is one."""


@dataclass(frozen=True)
class Site:
    """One place of a source.

    Attributes:
        file: below ``csrc/cuda``.
        line: from 1, for people.
        begin, end: of what is changed, in characters of the file.
        text: what stands there.
        kind: of :data:`KINDS`.
        instead: the switched text; ``{}`` is the mutant's number.
        which: of the places of the file with this text, from 1.
    """

    file: str
    line: int
    begin: int
    end: int
    text: str
    kind: str
    instead: str
    which: int = 1

    @property
    def words(self) -> str:
        """The text on one line."""
        return " ".join(self.text.split())

    @property
    def key(self) -> str:
        """The site's own as long as its text stays, wherever it moves in the file."""
        return f"{self.file}: {self.words}" + (f" ({self.which})" if self.which > 1 else "")


def device_code(source: str) -> Iterator[tuple[int, int]]:
    """Where bodies of functions for the device begin and end."""
    depth_of_function: int | None = None
    depth = begin = header = 0
    for at, letter in enumerate(source):
        if letter == "{":
            text = source[header:at]
            if depth_of_function is None and re.search(r"__(device|global)__", text):
                depth_of_function, begin = depth, at
            depth += 1
            header = at + 1
        elif letter == "}":
            depth -= 1
            if depth_of_function == depth:
                yield begin, at
                depth_of_function = None
            header = at + 1
        elif letter == ";":
            header = at + 1


def blank_comments(source: str) -> str:
    """The source with spaces for comments and strings, all else where it was."""
    return re.sub(
        r"//[^\n]*|\"(?:\\.|[^\"\\\n])*\"",
        lambda found: " " * len(found[0]),
        source,
    )


def closing(source: str, begin: int) -> int:
    """The place of the bracket that closes the one at ``begin``."""
    depth = 0
    for at in range(begin, len(source)):
        depth += {"(": 1, ")": -1}.get(source[at], 0)
        if depth == 0:
            return at
    raise ValueError("brackets do not match")


def operands(source: str, begin: int, end: int) -> Iterator[tuple[int, int]]:
    """The parts of a condition between ``&&`` and ``||`` that stand outside of brackets."""
    depth, first = 0, begin
    at = begin
    while at < end:
        depth += {"(": 1, "[": 1, ")": -1, "]": -1}.get(source[at], 0)
        if depth == 0 and source[at : at + 2] in ("&&", "||"):
            yield first, at
            at += 2
            first = at
            continue
        at += 1
    yield first, end


def conditions(source: str, begin: int, end: int) -> Iterator[tuple[int, int, bool]]:
    """Conditions in ``[begin, end)``, and what they are passed over by: true or false."""
    for found in re.finditer(r"\bif \(", source[begin:end]):
        first = begin + found.end()
        last = closing(source, first - 1)
        leaves = re.match(r"\)\s*\{?\s*(continue|return|break)\b", source[last:end])
        yield first, last, not leaves
    # A name for a condition, and one that chooses between two values.
    for found in re.finditer(r"\bconst bool \w+ = ([^;?]*?)(?= \?|;)", source[begin:end]):
        yield begin + found.start(1), begin + found.end(1), True
    for found in re.finditer(r"(?:= |return |, |\()([\w.\[\]()<>=&+\- ]*?) \?", source[begin:end]):
        first = last = begin + found.end(1)
        depth = 0
        while first > begin + found.start(1) and depth >= 0:  # to a bracket that stays open
            first -= 1
            depth += {")": 1, "(": -1}.get(source[first], 0)
        yield first + (depth < 0), last, True


COMPARES = re.compile(r"(?<![<>-])(<=|>=|<|>)(?![<>])|\bis_(query|item|row|there)\b|\bthere\b")


def sites_of(path: Path) -> list[Site]:
    """The places of a source, in its order."""
    original = path.read_text()
    source = blank_comments(original)
    found: dict[tuple[int, int], Site] = {}

    def add(begin: int, end: int, kind: str, instead: str) -> None:
        while source[begin].isspace():
            begin += 1
        while source[end - 1].isspace():
            end -= 1
        text = original[begin:end]
        line = source.count("\n", 0, begin) + 1
        kind = "wgmma" if path.name == "bulk_scan.cuh" else kind
        name = str(path.relative_to(KERNELS))
        found.setdefault((begin, end), Site(name, line, begin, end, text, kind, instead))

    for first, last in device_code(source):
        for kind, pattern in (
            ("barrier", r"__syncthreads\(\);"),
            ("wait", r"wait_copies<[^;]*>\(\);"),
        ):
            for place in re.finditer(pattern, source[first:last]):
                skipped = "if (::alphafuse::mutant != {}) " + place[0]
                add(first + place.start(), first + place.end(), kind, skipped)
        for begin, end, passed in conditions(source, first, last):
            if "constexpr" in source[begin - 14 : begin]:
                continue
            for one, other in operands(source, begin, end):
                text = source[one:other].strip()
                if not text or not COMPARES.search(re.sub(r"<[\w:, ]+>", "", text)):
                    continue
                word = "==" if passed else "!="
                join = "||" if passed else "&&"
                add(one, other, "bounds", f"(::alphafuse::mutant {word} {{}} {join} ({text}))")
    for file, kind, text, instead in PLANTED:
        for place in re.finditer(re.escape(text), source) if file == path.name else ():
            add(place.start(), place.end(), kind, instead)
    places = sorted(found.values(), key=lambda site: site.begin)
    # Of two that overlap the smaller.
    places = [
        site
        for site in places
        if not any(
            other is not site and site.begin <= other.begin and other.end <= site.end
            for other in places
        )
    ]
    seen: Counter[str] = Counter()
    for number, site in enumerate(places):
        seen[site.text] += 1
        places[number] = replace(site, which=seen[site.text])
    return places


def all_sites() -> list[Site]:
    """Of all kernels; the emulator and the tests are none."""
    paths = sorted([*KERNELS.glob("*.cu"), *KERNELS.glob("*.cuh")])
    sites = [site for path in paths if path.name != "gpu.cuh" for site in sites_of(path)]
    # min() and max() are the host's too.
    return [site for site in sites if (site.file, site.text) != ("device.cuh", "a < b")]
