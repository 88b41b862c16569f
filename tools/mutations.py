"""Which mistakes in the CUDA kernels the emulated tests notice: barriers, waits, bounds, others.

    python tools/mutations.py          # hours; resumes; bench/results/mutations.json and .md
    python tools/mutations.py --list

Every ``__syncthreads`` and ``wait_copies`` of the kernels is taken out, and every comparison that
decides whether something is read, written or counted is passed over, one by one; and the mistakes
are made that ``mutation_sites.PLANTED`` lists: indices of 32 bits, TF32 cut off, ... The sources
are compiled once, into a copy, with a switch at each place, which the environment variable
``ALPHAFUSE_MUTANT`` throws: so a mutant costs no compilation. Its tests are first the programs
without Python, then the emulated tests of the ops, both under AddressSanitizer, with the schedules
of threads that the emulator draws; the first that fails or hangs notices it. Rows are written as
they come, and kept while the line that they change is the same.

What nothing notices is looked at by a person, who says why in ``EXPLAINED``, or writes a test.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "bench"))
import report
from measure import RESULTS, commit, device_name, existing_folder, positive_float, today
from mutation_sites import KERNELS, KINDS, Site, all_sites
from optional import need

ROOT = Path(__file__).resolve().parent.parent
OPS = (
    *("lookup", "score_all", "score_candidates", "sampled_softmax", "cross_entropy", "topk"),
    *("target_ranks", "optim"),
)

STANDS_FOR = {
    "best_keys": "topk",
    "bulk_scan": "cross_entropy",
    "candidate_lists": "score_candidates",
    "exclude": "topk",
    "grouping": "lookup",
    "ids": "lookup",
    "product": "cross_entropy",
    "strips": "cross_entropy",
    "target_scores": "target_ranks",
}
"""The op whose tests come first for a file that is not called after one."""

SWITCH = """
namespace alphafuse {
inline const int mutant = [] {
  const char* const value = std::getenv("ALPHAFUSE_MUTANT");
  return value == nullptr ? -1 : std::atoi(value);
}();
}
"""

EXPLAINED: dict[str, str] = {
    "best_keys.cuh: __syncthreads();": "Each caller has a barrier of its own after it.",
    "candidate_lists.cuh: row < 0": "Entries of no row are dropped before they are read.",
    "cross_entropy.cu: query.target < Tile::kItems": "For more than 2^31 items, as the other end.",
    "cross_entropy.cu: query.target >= 0": "For more than 2^31 items, where the cast would wrap.",
    "cross_entropy.cu: scores.items < Tile::kItems": "A short cut: what it guards tests each item.",
    "cross_entropy_fused.cu: at >= end": "Of wgmma alone, whose build these tests are not of.",
    "cross_entropy_fused.cu: column >= 0": "Of wgmma alone: without it none is before the first.",
    "cross_entropy_fused.cu: is_item": "What is read too far is replaced by 0 three lines below.",
    "cross_entropy_fused.cu: row < tables.rows": "Of a row of zeros, or as above.",
    "cross_entropy_fused.cu: row < unit.batch": "What is read too far is of rows never written.",
    "cross_entropy_fused.cu: row >= 0": "A row below 0 equals no column while it fits an int.",
    "cross_entropy_fused.cu: scores.items < Tile::kItems": "A short cut, as in cross_entropy.cu.",
    "cross_entropy_fused.cu: target < 0": "A short cut: no column of the tile is so far.",
    "cross_entropy_fused.cu: target < Tile::kQueries": "A short cut, as above.",
    "cross_entropy_fused.cu: target >= 0": "A short cut, as above.",
    "cross_entropy_fused.cu: target >= Tile::kItems": "A short cut, as above.",
    "lookup.cu: column + n > rows.second_from": "A short cut: columns before its own read as 0.",
    "lookup.cu: column < rows.first.cols": "A short cut: columns after its last read as 0.",
    "lookup.cu: rows.second.cols > 0": "A short cut: a table of no columns reads as zeros.",
    "product.cu: i < end": "What comes after the end goes to a stage that nobody reads.",
    "product.cu: wait_copies<0>();": "The loop has waited for all copies: empty groups are left.",
    "rows.cuh: !is_row(row(i))": "All tiles that gather have whole turns of rows.",
    "rows.cuh: column >= 0": "No caller asks for a whole piece before the first column.",
    "rows.cuh: window.column >= window.cols": "A short cut: columns after the last read as 0.",
    "rows.cuh: window.k + kPiece > rows.second_from": "A short cut, as in lookup.cu.",
    "strips.cu: row < rows.count": "Of tiles alone, which wgmma has.",
    "target_ranks.cu: !scores.is_query(r)": "A short cut: what is counted for none is not written.",
    "target_scores.cu: slice < scan.slices": "As in product.cu.",
    "target_scores.cu: wait_copies<0>();": "As in product.cu.",
    "tile.cuh: Tile::lane() < Tile::kLanesOfRow": "All lanes have the same sum to write.",
    "tile.cuh: Tile::warp_query() < queries_left": "A short cut: of no query nothing is seen.",
    "tile.cuh: __syncthreads(); (2)": "The barrier of the next tile's first slice comes before.",
    "tile.cuh: wait_copies<0>();": "As in product.cu.",
    "topk.cu: __syncthreads();": "A thread reads and sets the sizes of the same queries.",
    "topk.cu: key < threshold": "A short cut: lists are cut to their best keys later.",
    "topk.cu: scores.at[r][c] < limit": "A short cut: keys are compared below.",
    "topk.cu: size <= max_length": "A short cut: lists are cut earlier than they need be.",
}
"""Why a mutant that nothing notices is none, by ``file: changed text``."""


def build(folder: Path, sites: list[Site]) -> None:
    """A copy of the sources with all switches, its test programs and its package."""
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(folder / "sources")], check=True)
    sources = folder / "sources"
    for path in sorted({site.file for site in sites}):
        text = (KERNELS / path).read_text()
        for number, site in reversed(list(enumerate(sites))):
            if site.file == path:
                text = text[: site.begin] + site.instead.format(number) + text[site.end :]
        (sources / "csrc" / "cuda" / path).write_text(text)
    device = sources / "csrc" / "emulator" / "device.h"
    text = device.read_text()
    end = text.index("#include <cmath>")
    device.write_text(text[:end] + "#include <cstdlib>\n" + SWITCH + text[end:])
    native, by_wgmma = str(folder / "native"), str(folder / "native-wgmma")
    options = ["-DALPHAFUSE_CUDA=emulated", "-DALPHAFUSE_SANITIZE=address"]
    options += [f"-DCMAKE_MAKE_PROGRAM={shutil.which('ninja')}", "-DALPHAFUSE_PYTHON=OFF"]
    install = [sys.executable, "-m", "pip", "install", "--quiet"]
    install += ["--no-deps", "--no-build-isolation"]
    commands = [
        ["cmake", "-S", str(sources), "-B", native, "-G", "Ninja", *options],
        ["cmake", "--build", native, "--target", "native_tests"],
        [
            *("cmake", "-S", str(sources), "-B", by_wgmma, "-G", "Ninja"),
            *(*options, "-DALPHAFUSE_WGMMA=1"),
        ],
        ["cmake", "--build", by_wgmma, "--target", "test_score_all", "test_cross_entropy"],
        [*install, "--target", str(folder / "site"), str(sources)],
    ]
    environment = {**os.environ, "ALPHAFUSE_SANITIZE": "address", "ALPHAFUSE_CUDA": "emulated"}
    for command in commands:
        subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)


def tests(folder: Path, kind: str) -> Iterator[tuple[str, list[str], dict[str, str]]]:
    """Name, command and environment of each test, the quickest first."""
    if kind == "wgmma":
        for name in ("score_all", "cross_entropy"):
            program = folder / "native-wgmma" / f"test_{name}"
            yield f"test_{name} (native, wgmma)", ["setarch", "-R", str(program)], {}
        return
    for name in (
        *("waves", "far_rows", "lookup", "score_all", "target_ranks", "topk", "cross_entropy"),
    ):
        yield (
            f"test_{name} (native)",
            ["setarch", "-R", str(folder / "native" / f"test_{name}")],
            {},
        )
    # The second loads the C++ library, whose exceptions the first looks for when it starts.
    preload = [
        subprocess.run(
            ["gcc", f"-print-file-name={name}"], capture_output=True, text=True, check=True
        ).stdout.strip()
        for name in ("libasan.so", "libubsan.so")
    ]
    environment = {
        "LD_PRELOAD": " ".join(preload),
        "ASAN_OPTIONS": "detect_leaks=0",
        "PYTHONPATH": str(folder / "site"),
    }
    pytest = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"]
    for op in OPS:
        path = str(ROOT / "python_tests" / f"test_{op}.py")
        yield f"test_{op}", [*pytest, "-k", "cuda_emulated", path], environment


# What a failed test says of why.
SIGNS = r"(ERROR: AddressSanitizer: [\w-]+|exception: .*|^E  .*|FAILED: .*|\w+Error: .*)"


def first_to_notice(
    folder: Path, number: int, limit: float, op: str = "", kind: str = ""
) -> tuple[str | None, str]:
    """The test that fails with a mutant, and how; ``None`` if all pass. Those of ``op`` first."""
    for name, command, extra in sorted(tests(folder, kind), key=lambda test: op not in test[0]):
        environment = {**os.environ, **extra, "ALPHAFUSE_MUTANT": str(number)}
        try:
            done = subprocess.run(
                command, env=environment, capture_output=True, text=True, timeout=limit, cwd=folder
            )
        except subprocess.TimeoutExpired:
            return name, "does not end"
        if done.returncode:
            reason = re.search(SIGNS, done.stdout + done.stderr, re.M)
            return name, (reason[1] if reason else f"status {done.returncode}").strip()[:100]
    return None, ""


def page(sites: list[Site], rows: dict[str, dict[str, object]], facts: dict[str, object]) -> str:
    """The record as Markdown: how many of each kind are noticed, and all that are not."""
    body = ["| kind | places | noticed | of those not: explained |", "|:--|--:|--:|--:|"]
    missed = []
    for kind in KINDS:
        own = [site for site in sites if site.kind == kind]
        done = [site for site in own if site.key in rows]
        left = [site for site in done if rows[site.key]["noticed_by"] is None]
        missed += left
        explained = sum(site.key in EXPLAINED for site in left)
        body.append(
            f"| {kind} | {len(done)} of {len(own)} | {len(done) - len(left)} | {explained} |"
        )
    body += ["", "## What nothing notices", ""]
    for site in missed:
        why = EXPLAINED.get(site.key, "**not explained**")
        body.append(f"- `{site.file}:{site.line}`, {site.kind}: `{site.words}`. {why}")
    body += [
        "",
        "## All",
        "",
        "| place | kind | taken out | noticed by | how |",
        "|:--|:--|:--|:--|:--|",
    ]
    for site in sites:
        row = rows.get(site.key)
        if row is not None:
            text = site.words.replace("|", "\\|")
            how = str(row["how"]).replace("|", "\\|")
            who = row["noticed_by"] or "nothing"
            body.append(f"| {site.file}:{site.line} | {site.kind} | `{text}` | {who} | {how} |")
    title = "Mistakes in the CUDA kernels that the emulated tests notice"
    return report.page(title, report.command(), facts, body)


def main() -> None:
    """Run what has not run, and write the record."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--list", action="store_true", help="print the places and end")
    parser.add_argument("--only", metavar="TEXT", help="places whose file and text have this")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS, help="all by default")
    scratch = Path(tempfile.gettempdir()) / "mutations"
    parser.add_argument("--work", type=Path, default=scratch, help="a scratch folder")
    parser.add_argument(
        "--built", action="store_true", help="--work has the build of these sources"
    )
    parser.add_argument("--limit", type=positive_float, default=120, help="seconds of a test")
    parser.add_argument(
        "--output", type=existing_folder, default=RESULTS, help="folder of the record"
    )
    options = parser.parse_args()
    sites = all_sites()
    if options.list:
        for number, site in enumerate(sites):
            print(number, site.kind, f"{site.file}:{site.line}", site.words)
        return
    path = options.output / "mutations.json"
    rows = json.loads(path.read_text()) if path.exists() else {}
    rows = {key: row for key, row in rows.items() if key in {site.key for site in sites}}
    if not options.built:
        need("pytest", "hypothesis")
        for tool in ("cmake", "ninja"):
            if shutil.which(tool) is None:
                parser.error(f"needs {tool} (pip install {tool})")
        build(options.work, sites)
        noticed, how = first_to_notice(options.work, -1, options.limit)
        if noticed:
            raise SystemExit(f"without any mutant {noticed} fails: {how}")
    # Barriers and waits first: of what is out of order a test may not be wrong every time.
    for number, site in sorted(enumerate(sites), key=lambda each: each[1].kind == "bounds"):
        if site.key in rows or (options.only and options.only not in site.key):
            continue
        if site.kind not in options.kinds:
            continue
        started = time.perf_counter()
        stem = Path(site.file).stem
        op = next((op for op in OPS if stem.startswith(op)), STANDS_FOR.get(stem, ""))
        noticed, how = first_to_notice(options.work, number, options.limit, op, site.kind)
        rows[site.key] = {
            "file": site.file,
            "kind": site.kind,
            "noticed_by": noticed,
            "how": how,
            "seconds": round(time.perf_counter() - started, 1),
            "commit": commit(),
        }
        path.write_text(json.dumps(rows, indent=1) + "\n")
        print(number, site.key, "|", noticed, "|", how, flush=True)
    facts: dict[str, object] = {"machine": device_name(torch.device("cpu"))}
    facts |= {"commit": commit(), "date": today()}
    report.write(options.output / "mutations.md", page(sites, rows, facts))


if __name__ == "__main__":
    main()
