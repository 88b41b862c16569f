"""Shared by all benchmarks: facts of the machine, its throughput, time, peak memory."""

from __future__ import annotations

import argparse
import ctypes
import math
import multiprocessing
import os
import platform
import re
import subprocess
import time
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from alphafuse_ext.build import build_info
from alphafuse_ext.runs.device import why_not_cuda

RESULTS = Path(__file__).resolve().parent / "results"
GB = 1e9


# --- the machine ----------------------------------------------------------------------------------


def device_name(device: torch.device) -> str:
    """The model of the processor or of the GPU, as the system reports it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.M)
    except OSError:
        found = None
    return found[1].strip() if found else platform.processor() or platform.machine()


def device_slug(device: torch.device) -> str:
    """:func:`device_name` as part of a file's name: ``amd-epyc-9654-96-core-processor``."""
    return re.sub(r"[^a-z0-9]+", "-", device_name(device).lower()).strip("-")


def available_bytes(device: torch.device) -> int:
    """Memory that can still be allocated on the device."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        found = re.search(r"^MemAvailable:\s*(\d+) kB", Path("/proc/meminfo").read_text(), re.M)
    except OSError:
        found = None
    if found:
        return int(found[1]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def all_threads() -> int:
    """The cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def commit() -> str:
    """The commit measured, marked where the sources differ from it."""
    try:
        git = ["git", "-C", str(RESULTS.parent)]
        head = subprocess.run(
            [*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True
        ).stdout.strip()
        sources = [":/alphafuse_ext", ":/csrc", ":/bench/*.py", ":/tools/*.py"]
        changed = subprocess.run(
            [*git, "status", "--porcelain", "--", *sources],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{head} with local changes" if changed else head


def today() -> str:
    """The day, in UTC."""
    return datetime.now(timezone.utc).date().isoformat()


def machine_facts(device: torch.device) -> dict[str, Any]:
    """What a number needs beside it to be compared with another: machine, versions, commit."""
    facts: dict[str, Any] = {
        "device": device_name(device),
        "cores": all_threads(),
        "threads": torch.get_num_threads(),
        "memory_gb": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / GB, 1),
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "alphafuse_ext": build_info(),
        "commit": commit(),
        "date": today(),
    }
    if device.type == "cuda":
        facts["cuda"] = torch.version.cuda
        facts["gpu_memory_gb"] = round(torch.cuda.mem_get_info(device)[1] / GB, 1)
    return facts


# --- time -----------------------------------------------------------------------------------------


def seconds(call: Callable[[], Any], device: torch.device, calls: int = 1) -> float:
    """Seconds a call, averaged over ``calls`` of them; CUDA events where the device is a GPU."""
    if device.type == "cuda":
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize(device)
        begin.record()
        for _ in range(calls):
            call()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3 / calls
    started = time.perf_counter()
    for _ in range(calls):
        call()
    return (time.perf_counter() - started) / calls


# --- memory ---------------------------------------------------------------------------------------


class PeakMemory:
    """The peak of memory inside a ``with`` block, above what was held when it began.

    On the CPU it is the process's peak resident set: the kernel's own high-water mark (``VmHWM`` in
    ``/proc/self/status``), set back through ``/proc/self/clear_refs`` at the start, minus the
    resident set at the start, after the allocator has returned what it keeps in reserve. So
    allocations by any library count, and a page counts when it is touched. On CUDA it is
    ``torch.cuda.max_memory_allocated`` against ``memory_allocated``.

    ``extra_bytes`` is ``None`` where the system has no such counters.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.extra_bytes: int | None = None
        self._before: int | None = None

    def __enter__(self) -> PeakMemory:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
            self._before = torch.cuda.memory_allocated(self.device)
            return self
        _return_free_memory()
        try:
            Path("/proc/self/clear_refs").write_text("5")
            self._before = _status_bytes("VmRSS")
        except OSError:
            self._before = None
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._before is None:
            return
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            peak = torch.cuda.max_memory_allocated(self.device)
        else:
            peak = _status_bytes("VmHWM")
        self.extra_bytes = max(0, peak - self._before)


def run_process(command: list[str], threads: int) -> dict[str, Any]:
    """Run a command: its ``seconds``, ``peak_bytes`` of memory, and what it ``said``.

    A process begins with the peak memory of its parent, so what needs much memory beforehand is
    done by :func:`in_own_process`.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    started = time.perf_counter()
    child = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    said = child.stdout.read() if child.stdout else ""
    _, status, usage = os.wait4(child.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)} ended with {os.waitstatus_to_exitcode(status)}")
    taken = time.perf_counter() - started
    return {"seconds": taken, "peak_bytes": usage.ru_maxrss * 1024, "said": said}


def in_own_process(function: Callable[..., None], *arguments: Any) -> None:
    """Call a function in a process of its own, whose memory this one does not inherit."""
    child = multiprocessing.get_context("spawn").Process(target=function, args=arguments)
    child.start()
    child.join()
    if child.exitcode:
        raise SystemExit(f"{function.__name__} ended with {child.exitcode}")


def _status_bytes(field: str) -> int:
    found = re.search(rf"^{field}:\s*(\d+) kB", Path("/proc/self/status").read_text(), re.M)
    if found is None:
        raise OSError(f"/proc/self/status has no {field}")
    return int(found[1]) * 1024


def _return_free_memory() -> None:
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, OSError):  # not glibc: nothing to ask
        return


# --- the machine's own rates ----------------------------------------------------------------------


def machine_rates(
    device: torch.device, dtype: torch.dtype = torch.float32, repeats: int = 7
) -> dict[str, float]:
    """What the machine can do at best, from PyTorch's own kernels.

    Returns:
        ``gflops``: a square matrix product in ``dtype`` (2048; 8192 on CUDA, without TF32).
        ``gb_per_second``: reading, as ``torch.sum`` over 1 GiB of float32.
        Each is the best of ``repeats``.
    """
    size = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    long = torch.ones(1 << 28, device=device)
    product = min(seconds(lambda: a @ b, device) for _ in range(repeats))
    read = min(seconds(long.sum, device) for _ in range(repeats))
    return {"gflops": 2 * size**3 / product / 1e9, "gb_per_second": long.nbytes / read / 1e9}


# --- numbers for people ---------------------------------------------------------------------------


def format_seconds(value: float) -> str:
    """Three significant digits with a unit: ``812 us``, ``12.3 ms``, ``1.23 s``."""
    for unit, factor in (("us", 1e6), ("ms", 1e3)):
        if value * factor < 999.5:
            return f"{significant(value * factor)} {unit}"
    return f"{significant(value)} s"


def format_bytes(value: float, digits: int = 3) -> str:
    """That many significant digits with a decimal unit: ``512 KB``, ``1.02 GB``."""
    for unit, factor in (("KB", 1e3), ("MB", 1e6)):
        if value / factor < 999.5:
            return f"{significant(value / factor, digits)} {unit}"
    return f"{significant(value / GB, digits)} GB"


def significant(value: float, digits: int = 3) -> str:
    """``value`` in plain notation with at least ``digits`` significant digits."""
    if value == 0:
        return "0"
    decimals = digits - 1 - math.floor(math.log10(abs(value)))
    return f"{value:.{max(0, decimals)}f}"


def in_words(value: Any) -> str:
    """A fact or a dict of them on one line."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {in_words(part)}" for name, part in value.items())
    if isinstance(value, list | tuple):
        return " ".join(map(in_words, value)) or "none"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


# --- arguments ------------------------------------------------------------------------------------


def positive_int(text: str) -> int:
    """An argparse type: an integer of at least 1; underscores may group its digits."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"got {text!r}; expected an integer >= 1")
    return value


def positive_float(text: str) -> float:
    """An argparse type: a finite number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"got {text!r}; expected a number > 0")
    return value


def existing_folder(text: str) -> Path:
    """An argparse type: a folder that is there."""
    if not Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"got {text}; expected a folder that exists")
    return Path(text)


def add_counts(parser: argparse.ArgumentParser, *options: tuple[str, int, str]) -> None:
    """Options of integers >= 1: name, default, and what it is."""
    for name, default, what in options:
        parser.add_argument(name, type=positive_int, default=default, metavar="N",
                            help=f"{what}; %(default)s by default")  # fmt: skip


def check_null_dim(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Ends the program unless ``--null-dim`` has room in ``--dim``."""
    largest = args.dim - (args.fusion == "concat")
    if args.null_dim > largest:
        parser.error(
            f"argument --null-dim: got {args.null_dim}; expected at most {largest} with --dim "
            f"{args.dim} and --fusion {args.fusion}"
        )


def data_folder(parser: argparse.ArgumentParser, args: argparse.Namespace) -> Path:
    """The data set's folder below ``--data``, or the parser's error."""
    folder: Path = args.data / args.dataset
    if not folder.is_dir():
        parser.error(f"argument dataset: got {folder}, no folder; expected one below --data")
    return folder


def usable_device(text: str) -> torch.device:
    """An argparse type: ``cpu``, or ``cuda`` where a GPU and kernels for it are."""
    if text not in ("cpu", "cuda"):
        raise argparse.ArgumentTypeError(f"got {text!r}; expected cpu or cuda")
    if text == "cuda" and (why := why_not_cuda()):
        raise argparse.ArgumentTypeError(f"got {text!r}; {why}")
    return torch.device(text)


def add_device_option(parser: argparse.ArgumentParser) -> None:
    """``--device``; what :func:`choose_device` makes of it."""
    parser.add_argument("--device", type=usable_device, metavar="NAME",
                        help="cpu or cuda; by default cuda where it can be used")  # fmt: skip


def choose_device(asked: torch.device | None) -> torch.device:
    """The device that was asked for, or the GPU where there is one with kernels; says which."""
    why = None if asked is not None else why_not_cuda()
    device = asked or torch.device("cpu" if why else "cuda")
    print(f"on {device}, {device_name(device)}" + (f": {why}" if why else ""), flush=True)
    return device
