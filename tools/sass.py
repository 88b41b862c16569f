"""What the compiler made of the CUDA kernels: their main loops in machine code, without a GPU.

    pip install nvidia-cuda-nvdisasm
    python tools/sass.py --output bench/results
    python tools/sass.py --sources cross_entropy_fused topk --arch 80

Every kernel below ``csrc/cuda`` is compiled by ``nvcc`` for one architecture and disassembled. Its
main loop is the innermost loop with the most multiplications, or where there are none, with the
most bytes loaded; where it has branches, the shortest way through it that multiplies and copies
most, which is that of aligned rows. A kernel that scans the catalog has an epilogue on each tile of
scores, in the loop around the main one: a tile is so many turns of the main loop, and the epilogue.
**A model, not a measurement**: it takes one instruction of each of a processor's four schedulers a
clock, the tensor cores' dense rate, and bandwidth, each as if nothing else mattered; latencies,
bank conflicts, caches and occupancy are not in it. It says what cannot be reached, never what is.
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "bench"))
import report
from measure import commit, today

SOURCES = Path(__file__).resolve().parent.parent / "csrc"

# An H100 SXM, which at this clock has the 989 TFLOPS of bfloat16 that NVIDIA states.
PROCESSORS, CLOCK_GHZ, BANDWIDTH_TB = 132, 1.83, 3.35
SCHEDULERS = 4
TENSOR_FMAS = 512  # of bfloat16 or float16, dense, a clock and scheduler; TF32 half of it
SPECIAL_LANES = 4  # a clock and scheduler: a warp's MUFU takes eight
FFMA_LANES = 32  # a clock and scheduler: a warp's FFMA
REGISTERS, WARPS = 65536, 64  # of a processor

_INSTRUCTION = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(@!?U?P\w+\s+)?([A-Z][A-Z0-9_.x]*)(.*?);")
_LABEL = re.compile(r"^(\.L_x_\d+):")
_TARGET = re.compile(r"`\((\.L_x_\d+)\)")
_KINDS = {
    "HMMA": "tensor",
    "HGMMA": "tensor",
    "FFMA": "FFMA",
    "LDSM": "shared",
    "LDS": "shared",
    "STS": "shared",
    "LDGSTS": "global",
    "LDG": "global",
    "STG": "global",
    "LDL": "spill",
    "STL": "spill",
    "MUFU": "special",
    "SHFL": "shuffle",
    "BAR": "barrier",
    "SYNCS": "barrier",
}
_WIDTHS = {"128": 16, "64": 8, "U16": 2, "S16": 2, "U8": 1, "S8": 1}
KINDS = ("tensor", "FFMA", "shared", "global", "special", "shuffle", "barrier", "spill", "other")


@dataclass(frozen=True)
class Loop:
    """A loop without loops in it, as one warp runs it once.

    Attributes:
        kinds: instructions by kind, see ``KINDS``.
        fmas: multiply-adds of the warp.
        tensor_clocks: of the tensor cores, at their dense rate.
        bytes: that the warp asks of global memory.
    """

    kinds: Counter[str]
    fmas: int
    tensor_clocks: float
    bytes: int

    @property
    def issue_clocks(self) -> int:
        """An instruction a clock."""
        return sum(self.kinds.values())

    @property
    def math_clocks(self) -> float:
        """Of whichever unit multiplies."""
        return self.tensor_clocks or self.kinds["FFMA"]

    @property
    def fraction_of_peak(self) -> float:
        """The most of the unit's rate that issuing everything else leaves."""
        return self.math_clocks / max(self.issue_clocks, self.math_clocks, 1)

    @property
    def memory_clocks(self) -> float:
        """What the loop's bytes take at the card's bandwidth, shared by all schedulers."""
        rate = BANDWIDTH_TB * 1e3 / CLOCK_GHZ / PROCESSORS / SCHEDULERS
        return self.bytes / rate

    @property
    def clocks(self) -> float:
        """Of whatever takes longest: issuing, multiplying, or the special functions."""
        special = self.kinds["special"] * 32 / SPECIAL_LANES
        return max(self.issue_clocks, self.math_clocks, special)

    def times(self, turns: int) -> Loop:
        """So many turns of it."""
        kinds = Counter({kind: turns * count for kind, count in self.kinds.items()})
        return Loop(kinds, turns * self.fmas, turns * self.tensor_clocks, turns * self.bytes)

    def __add__(self, other: Loop) -> Loop:
        return Loop(
            self.kinds + other.kinds,
            self.fmas + other.fmas,
            self.tensor_clocks + other.tensor_clocks,
            self.bytes + other.bytes,
        )


@dataclass(frozen=True)
class Kernel:
    """A kernel's resources and main loop.

    Attributes:
        name: without namespaces.
        registers: of a thread.
        spilled_bytes: written to memory for want of registers.
        main: ``None`` where it has no loop.
        around: what the loops around it add to each of their turns, from the innermost.
    """

    name: str
    registers: int
    spilled_bytes: int
    main: Loop | None
    around: tuple[Loop, ...] = ()

    @property
    def warps(self) -> int:
        """Warps that a processor's registers have room for, at most."""
        return min(WARPS, REGISTERS // (32 * max(8, -(-self.registers // 8) * 8)))

    @property
    def tile(self) -> tuple[Loop, Loop] | None:
        """A tile of the catalog at :data:`DIM`: all of it, and its epilogue alone.

        ``None``: the kernel scans no catalog.
        """
        scans = re.match(r"(bulk_)?scan_kernel<(TileOf|WarpGroupTile)<(\d)", self.name)
        if scans is None or self.main is None:
            return None
        in_words = scans[3] in ("0", "3")  # float32 and TF32, of four bytes
        slices = DIM * (4 if in_words else 2) // (CHUNK_BYTES if scans[1] else SLICE_BYTES)
        slice_, around = self.main, self.around
        if scans[3] == "0":  # FFMA has a loop over the pieces of a slice
            if len(around) < 2:
                return None
            slice_, around = self.main.times(PIECES) + around[0], around[1:]
        return (slice_.times(slices) + around[0], around[0]) if around else None


DIM, SLICE_BYTES, CHUNK_BYTES, PIECES = 128, 64, 128, 4
"""Columns of a fused row; what a turn of the main loop takes of it, by bulk copies or not; and how
often 16 bytes of it."""


def loops_of(lines: list[str]) -> list[Loop]:
    """The innermost loops of a kernel's disassembly: from a label to a branch back to it."""
    return [loop for loop, _ in nests_of(lines)]


def nests_of(lines: list[str]) -> list[tuple[Loop, tuple[Loop, ...]]]:
    """The innermost loops, each with what the loops around it add, from the innermost."""
    labels: dict[str, int] = {}
    code: list[_Instruction] = []
    for line in lines:
        if label := _LABEL.match(line.strip()):
            labels[label[1]] = len(code)
        elif found := _INSTRUCTION.search(line):
            target = _TARGET.search(found[3])
            jump = target[1] if target and found[2].startswith("BRA") else None
            code.append(_Instruction(found[2], jump, bool(found[1])))
    ends: dict[int, int] = {}  # of each loop, by its beginning: the last branch back to it
    for place, instruction in enumerate(code):
        if instruction.jump is not None and labels.get(instruction.jump, place + 1) <= place:
            ends[labels[instruction.jump]] = place
    spans = {span for span in ends.items() if _is_loop(code[span[0] : span[1] + 1])}

    def within(inner: tuple[int, int], outer: tuple[int, int]) -> bool:
        return inner != outer and outer[0] <= inner[0] and inner[1] <= outer[1]

    nests: list[tuple[Loop, tuple[Loop, ...]]] = []
    for inner in sorted(spans):
        if any(within(span, inner) for span in spans):
            continue
        loop = _loop(_way_through(code, labels, *inner))
        around: list[Loop] = []
        for outer in sorted((span for span in spans if within(inner, span)), key=lambda s: -s[0]):
            way = _way_through(code, labels, outer[0], inner[0], _effects)[:-1]
            way += _way_through(code, labels, inner[1] + 1, outer[1], _effects)
            around.append(_loop(way))
            inner = outer
        nests.append((loop, tuple(around)))
    return nests


@dataclass(frozen=True)
class _Instruction:
    """One instruction.

    Attributes:
        name: with its modifiers, such as ``LDG.E.128``.
        jump: the label that a branch goes to.
        predicated: whether it may also be passed over.
    """

    name: str
    jump: str | None
    predicated: bool

    @property
    def parts(self) -> list[str]:
        return self.name.split(".")

    @property
    def kind(self) -> str:
        return _KINDS.get(self.parts[0], "other")

    @property
    def fmas(self) -> int:
        """Multiply-adds of a warp."""
        if self.parts[0] == "HGMMA":  # of four warps, such as 64x128x16
            return math.prod(map(int, self.parts[1].split("x"))) // 4
        if self.kind == "tensor":
            return {"16816": 16 * 8 * 16, "1688": 16 * 8 * 8, "1684": 16 * 8 * 4}[self.parts[1]]
        return FFMA_LANES if self.kind == "FFMA" else 0

    @property
    def stored_bytes(self) -> int:
        """That a warp stores to global memory."""
        return 0 if self.parts[0] != "STG" else self._width

    @property
    def bytes(self) -> int:
        """That a warp loads from global memory."""
        if self.parts[0] not in ("LDG", "LDGSTS"):
            return 0
        return self._width

    @property
    def _width(self) -> int:
        return 32 * next((_WIDTHS[part] for part in self.parts if part in _WIDTHS), 4)


def _is_loop(code: list[_Instruction]) -> bool:
    """Not a wait for an mbarrier, of which that it has come is the way, nor one copy's threads.

    Nor what lies between a place and code of it that stands behind the kernel's end.
    """
    names = {each.parts[0] for each in code if not each.predicated}
    waits = names & {"SYNCS", "UBLKCP"} and not any(each.fmas for each in code)
    return "EXIT" not in names and not waits


def _products(instruction: _Instruction) -> tuple[int, int]:
    """What a main loop is for: multiply-adds, and bytes copied past the registers."""
    return instruction.fmas, instruction.bytes if instruction.parts[0] == "LDGSTS" else 0


def _effects(instruction: _Instruction) -> tuple[int, int]:
    """What an epilogue is for: products and exponentials, and bytes stored."""
    return instruction.fmas + 32 * (instruction.kind == "special"), instruction.stored_bytes


def _way_through(
    code: list[_Instruction],
    labels: dict[str, int],
    first: int,
    last: int,
    purpose: Callable[[_Instruction], tuple[int, int]] = _products,
) -> list[_Instruction]:
    """The shortest way from ``first`` to ``last`` that does most of its purpose.

    All that lies between them where every way leads over code that stands elsewhere.
    """
    # Of the best way to each place: what it does, steps; and the place before.
    best: dict[int, tuple[tuple[int, int, int], int]] = {first: ((0, 0, 0), -1)}
    for place in range(first, last):
        if place not in best:
            continue
        instruction = code[place]
        more, size = purpose(instruction)
        (most, sizes, steps), _ = best[place]
        found = (most + more, sizes + size, steps - 1)
        follow = []
        if instruction.jump is None or instruction.predicated:
            follow.append(place + 1)
        if instruction.jump is not None:
            follow.append(labels.get(instruction.jump, -1))
        for after in follow:
            if place < after <= last and (after not in best or found > best[after][0]):
                best[after] = (found, place)
    if last not in best:
        return code[first : last + 1]
    way, place = [], last
    while place >= 0:
        way.append(code[place])
        place = best[place][1]
    return way[::-1]


def _loop(way: list[_Instruction]) -> Loop:
    kinds = Counter(instruction.kind for instruction in way)
    clocks = sum(
        each.fmas / TENSOR_FMAS * (2 if "TF32" in each.parts else 1)
        for each in way
        if each.kind == "tensor"
    )
    return Loop(kinds, sum(i.fmas for i in way), clocks, sum(i.bytes for i in way))


def weight(loop: Loop) -> tuple[int, int, int]:
    """The main loop has the most multiplications; without any, it loads most."""
    return loop.fmas, loop.bytes, loop.issue_clocks


def main_loop(loops: list[Loop]) -> Loop | None:
    """The heaviest."""
    return max(loops, key=weight, default=None)


def kernels_of(source: Path, arch: str, nvcc: str, nvdisasm: str) -> list[Kernel]:
    """Compile a source and read its kernels; for ``90a`` those with wgmma."""
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernels.cubin"
        command = [nvcc, "-std=c++17", f'-DALPHAFUSE_CUDA_ARCHS="{arch}"', "-I", str(SOURCES)]
        command += ["-DALPHAFUSE_WGMMA"] if arch == "90a" else []
        command += [f"-arch=sm_{arch}", "-cubin", "-Xptxas", "-v", "-o", str(cubin), str(source)]
        said = _output([*command], errors=True)
        listing = _output([nvdisasm, "-c", str(cubin)])
    resources = {
        found[1]: (int(found[3]), int(found[2]))
        for found in re.finditer(
            r"Compiling entry function '(\w+)'.*?(\d+) bytes spill stores.*?Used (\d+) registers",
            said,
            re.DOTALL,
        )
    }
    texts = re.split(r"^\s*\.section\s+\.text\.(\w+),.*$", listing, flags=re.MULTILINE)
    code = dict(zip(texts[1::2], texts[2::2], strict=True))
    names = _output(["c++filt", *resources]).splitlines() if resources else []
    kernels = []
    for mangled, name in zip(resources, names, strict=True):
        if "cub::" in name:  # sorting is CUB's own
            continue
        nests = nests_of(code[mangled].splitlines())
        nest = max(nests, key=lambda nest: weight(nest[0]), default=(None, ()))
        kernels.append(Kernel(_short(name), *resources[mangled], *nest))
    return kernels


def _short(name: str) -> str:
    """A demangled name without namespaces, result and arguments."""
    name = re.sub(r"\(anonymous namespace\)::|alphafuse::|cuda::", "", name)
    name = re.sub(r"\((?:Precision|DType|bool|int)\)", "", name.removeprefix("void "))
    depth = 0
    for place, letter in enumerate(name):  # the arguments begin at a bracket outside < >
        depth += {"<": 1, ">": -1}.get(letter, 0)
        if letter == "(" and depth == 0:
            return name[:place]
    return name


def _output(command: list[str], errors: bool = False) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command[:1])}: {done.stderr.strip()}")
    return done.stdout + (done.stderr if errors else "")


def find_nvdisasm() -> str | None:
    """On the path, or in PyPI's nvidia-cuda-nvdisasm."""
    if found := shutil.which("nvdisasm"):
        return found
    spec = importlib.util.find_spec("nvidia")
    folders = [] if spec is None else list(spec.submodule_search_locations or [])
    places = [place for folder in folders for place in Path(folder).glob("*/bin/nvdisasm")]
    return str(places[0]) if places else None


def page(found: dict[str, list[Kernel]], arch: str) -> str:
    """The kernels as Markdown."""
    rows = []
    for source, kernels in found.items():
        for kernel in sorted(kernels, key=lambda kernel: kernel.name):
            cells = [source, f"`{kernel.name}`", str(kernel.registers), str(kernel.warps)]
            cells.append(str(kernel.spilled_bytes))
            if kernel.main is None:
                rows.append([*cells, *[""] * 8])
                continue
            loop = kernel.main
            mix = ", ".join(f"{loop.kinds[kind]} {kind}" for kind in KINDS if loop.kinds[kind])
            share = f"{loop.fraction_of_peak:.0%}" if loop.fmas else ""
            memory = f"{loop.memory_clocks:.0f}" if loop.bytes else ""
            rows.append([*cells, mix, str(loop.issue_clocks), f"{loop.math_clocks:.0f}"])
            rows[-1] += [memory, share]
            if kernel.tile is None:
                rows[-1] += [""] * 3
                continue
            whole, epilogue = kernel.tile
            mix = ", ".join(
                f"{epilogue.kinds[kind]} {kind}" for kind in KINDS if epilogue.kinds[kind]
            )
            rows[-1] += [mix, f"{whole.clocks:.0f}", f"{whole.math_clocks / whole.clocks:.0%}"]
    header = ["source", "kernel", "registers", "warps by registers", "spilled bytes"]
    header += ["main loop", "issue clocks", "math clocks", "memory clocks", "most of peak"]
    header += ["epilogue of a tile", f"clocks of a tile, dim {DIM}", "most of peak of a tile"]
    body = [
        "A model from machine code, **not a measurement**; nothing here has run on a GPU. Clocks "
        "are of one warp's turn of the main loop on one scheduler, on the shortest way through it "
        "that multiplies and copies most: an instruction a clock; tensor cores "
        f"at {TENSOR_FMAS} multiply-adds a clock (TF32: half), FFMA at {FFMA_LANES}; bytes from "
        f"global memory at {BANDWIDTH_TB} TB/s over {PROCESSORS} processors of {SCHEDULERS} "
        f"schedulers at {CLOCK_GHZ} GHz, as if no cache held them. The largest of the three bounds "
        "the loop; 'most of peak' is math over issue. Where products stand in a loop of their own, "
        "as FFMA does, the copies around it are not counted in these. Of a scan, a tile is its "
        f"turns of the main loop at dim {DIM} and its epilogue, on the shortest way through it "
        "with most products, exponentials and stores, loops in it once; its clocks are the most of "
        f"issue, math and special functions at {SPECIAL_LANES} lanes a clock.",
        "",
        *report.table(header, rows, left=2),
    ]
    facts = {"architecture": f"sm_{arch}", "commit": commit(), "date": today()}
    return report.page("Main loops of the CUDA kernels", report.command(), facts, body)


def main() -> None:
    """Disassemble the kernels and write their table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    every = sorted(path.stem for path in (SOURCES / "cuda").glob("*.cu"))
    parser.add_argument("--sources", nargs="+", choices=every, default=every, metavar="NAME")
    parser.add_argument("--arch", default="90", help="such as 80 (default: 90); 90a: with wgmma")
    parser.add_argument("--output", type=Path, help="folder for the page")
    options = parser.parse_args()
    nvcc = shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc"
    nvdisasm = find_nvdisasm()
    if not Path(nvcc).exists() or nvdisasm is None:
        parser.error("needs nvcc, and nvdisasm: pip install nvidia-cuda-nvdisasm")
    found = {}
    for name in options.sources:
        kernels = kernels_of(SOURCES / "cuda" / f"{name}.cu", options.arch, nvcc, nvdisasm)
        if kernels:
            found[name] = kernels
    text = page(found, options.arch)
    print(text)
    if options.output is not None:
        options.output.mkdir(parents=True, exist_ok=True)
        report.write(options.output / f"sass-sm_{options.arch}.md", text)


if __name__ == "__main__":
    main()
