"""The benchmarks' own logic, as far as it decides what a figure is taken for."""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import importlib.metadata
import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import alphafuse_ext as af
from alphafuse_ext.config.config import Config
from alphafuse_ext.data import Interactions, Sequences, read_interactions, synthetic_catalog
from alphafuse_ext.experiments.jobs import Record
from alphafuse_ext.experiments.spec import Comparison, read_comparison
from alphafuse_ext.runs import device as devices

pytestmark = pytest.mark.slow

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
BENCH, TOOLS = ROOT / "bench", ROOT / "tools"


@pytest.fixture
def bench(monkeypatch):
    """Imports a module of the benchmarks or tools, which are no package."""
    monkeypatch.syspath_prepend(TOOLS)
    monkeypatch.syspath_prepend(BENCH)
    yield importlib.import_module
    for name, module in list(sys.modules.items()):
        file = Path(getattr(module, "__file__", None) or "/")
        if BENCH in file.parents or TOOLS in file.parents:
            del sys.modules[name]


def test_controls_keep_the_spectrum_and_lose_the_meaning(bench):
    rows = np.random.default_rng(1).normal(size=(4000, 6)) @ np.diag([4.0, 2, 1, 1, 0.5, 0.1]) + 2
    made = bench("experiments.control_embeddings").controls(rows, seed=0)
    assert sorted(made["shuffled"].sum(1)) == sorted(rows.astype(np.float32).sum(1))
    assert (made["shuffled"] != rows.astype(np.float32)).any(1).mean() > 0.99
    spectrum = af.SemanticSpace.from_embeddings(rows).eigenvalues
    found = af.SemanticSpace.from_embeddings(made["random"])
    np.testing.assert_allclose(found.eigenvalues, spectrum, rtol=0.15)
    np.testing.assert_allclose(found.mean, rows.mean(0), atol=0.3)
    correlation = np.corrcoef(made["random"].T, rows.T)[:6, 6:]
    assert np.abs(correlation).max() < 0.1


def test_smaller_shares_of_users_are_parts_of_larger_ones(bench):
    clicks, _ = synthetic_catalog(200, 60, seed=1)
    clicks = read_interactions(clicks)
    made = bench("experiments.user_shares").shares(clicks, seed=0)
    users = {name: set(rows["user"]) for name, rows in made.items()}
    sizes = {
        name: len(found) for name, found in users.items() if name not in ("train-5", "train-50")
    }
    assert sizes == {"validation": 20, "test": 40, "train-10": 14, "train-20": 28, "train-100": 140}
    assert users["train-5"] < users["train-20"] < users["train-50"] < users["train-100"]
    assert not users["train-100"] & (users["validation"] | users["test"])
    rows = pd.concat([made[name] for name in ("train-100", "validation", "test")])
    assert len(rows) == len(clicks)
    user, history = next(iter(rows.groupby("user")))
    place = list(clicks.users).index(user)
    assert list(history.sort_values("time")["item"]) == list(clicks.items[clicks.sequences[place]])


def test_metrics_by_share_are_means_over_the_seeds_that_have_run(bench, tmp_path):
    def run(method, percent, value, cold):
        groups = {"head items": {"ndcg@10": 0.9}, **cold}
        results = {
            "test": {"ndcg@10": value},
            "test_groups": {"metrics_by_seen_items": {"excluded": groups}},
        }
        return {"dataset": f"{percent}% of users", "method": method, "results": results}

    runs = [
        run("A", 100, 0.5, {}),  # no item is cold
        run("A", 5, 0.1, {"cold items": {"ndcg@10": 0.02}}),
        run("A", 5, 0.3, {"cold items": {"ndcg@10": 0.04}}),
        run("B", 5, 0.4, {"cold items": {"ndcg@10": 0.06}}),
    ]
    (tmp_path / "runs.json").write_text(json.dumps({"runs": dict(enumerate(runs))}))
    by_share = bench("experiments.by_share")
    every, cold = (by_share.numbers(tmp_path, group) for group in by_share.PANELS.values())
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in by_share.table(every)]
    assert [cells[0], *cells[2:]] == [
        ["", "5%", "100%"],
        ["A", "0.2000 ± 0.1414 (2)", "0.5000 (1)"],
        ["B", "0.4000 (1)", ""],
    ]
    assert cold == {"A": {5: [0.02, 0.04]}, "B": {5: [0.06]}}
    by_share.draw({"all items": every, "items never trained on": cold}, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


def test_the_comparisons_of_the_repository_are_sound(monkeypatch, tmp_path):
    """Each file says what Config takes, and gives every method as many trials."""
    for name in ("amazon-beauty", "amazon-industrial"):
        (tmp_path / name).mkdir()
        for file in (f"{name}.inter", f"{name}.item", "minilm-l6.npy"):
            (tmp_path / name / file).touch()
        shares = tmp_path / "shares" / name
        shares.mkdir(parents=True)
        for file in (
            "validation",
            "test",
            *(f"train-{percent}" for percent in (5, 10, 20, 50, 100)),
        ):
            (shares / f"{file}.csv").touch()
    for file in ("shuffled.npy", "random.npy"):
        (tmp_path / file).touch()
    monkeypatch.setenv("ALPHAFUSE_DATA", str(tmp_path))
    monkeypatch.setenv("CONTROLS", str(tmp_path))
    monkeypatch.setenv("SHARES", str(tmp_path / "shares"))
    files = sorted((BENCH / "experiments").glob("*.toml"))
    assert files
    for path in files:
        comparison = read_comparison(path)
        assert len({len(method.grid()) for method in comparison.methods}) == 1, path
        assert comparison.seeds == (0, 1, 2, 3, 4)
        for dataset in comparison.datasets:
            trials = [
                json.dumps(config.resolve(384, 12_000).to_dict())
                for method in comparison.methods
                for config in comparison.trials(dataset, method)
            ]
            assert len(set(trials)) == len(trials), path
        assert not strangers(BENCH / "results" / f"compare-{path.stem}" / "runs.json", comparison)


def strangers(record: Path, comparison: Comparison) -> list[str]:
    """Recorded runs that a comparison does not have, so that it would not resume them."""

    def settings(config: Config) -> dict[str, object]:
        # The protocol is that of the data, which are not read here.
        free = {"seed": 0, "threads": None, "protocol": None}
        return {**config.to_dict(), **free}

    own = [
        (dataset.name, method.name, settings(config.resolve(384, 12_000)))
        for dataset in comparison.datasets
        for method in comparison.methods
        for config in comparison.trials(dataset, method)
    ]
    return [
        name
        for name, run in Record(record).runs.items()
        if (run["dataset"], run["method"], settings(Config.from_record(run["config"]))) not in own
    ]


LOOP = """
        /*0000*/                   S2R R0, SR_TID.X ;
.L_x_0:
        /*0010*/                   LDSM.16.M88.4 R4, [R0] ;
        /*0020*/              @!P0 BRA `(.L_x_1) ;
        /*0030*/                   LDG.E R8, desc[UR4][R2.64] ;
        /*0040*/                   LDG.E R9, desc[UR4][R2.64+0x4] ;
        /*0050*/                   STS [R0], R8 ;
        /*0060*/                   BRA `(.L_x_2) ;
.L_x_1:
        /*0070*/                   LDGSTS.E.BYPASS.128 [R0], desc[UR4][R2.64] ;
.L_x_2:
        /*0080*/                   HMMA.16816.F32.BF16 R12, R4, R6, R12 ;
        /*0090*/                   HMMA.1688.F32.TF32 R12, R4, R6, R12 ;
        /*00a0*/               @P1 BRA `(.L_x_0) ;
.L_x_3:
        /*00b0*/                   FFMA R1, R1, R1, R1 ;
        /*00c0*/               @P2 BRA `(.L_x_3) ;
        /*00d0*/                   EXIT ;
"""


def test_the_main_loop_of_a_kernel(bench):
    """The way of aligned rows, which copies past the registers, through the products' loop."""
    sass = bench("sass")
    loops = sass.loops_of(LOOP.splitlines())
    assert [loop.fmas for loop in loops] == [16 * 8 * 24, 32]
    main = sass.main_loop(loops)
    assert main.kinds == {"shared": 1, "other": 2, "global": 1, "tensor": 2}
    assert main.issue_clocks == 6
    assert main.tensor_clocks == 4 + 4  # TF32 at half the rate
    assert main.bytes == 32 * 16
    assert main.fraction_of_peak == 1
    assert main.times(2).clocks == 16
    assert sass.main_loop([]) is None
    # A tensor core that multiplies all the time has the rate that NVIDIA states.
    rate = sass.TENSOR_FMAS * 2 * sass.SCHEDULERS * sass.PROCESSORS * sass.CLOCK_GHZ * 1e9
    assert rate == pytest.approx(989e12, rel=1e-3)


def test_a_warp_s_share_of_wgmma(bench):
    code = LOOP.replace(
        "HMMA.16816.F32.BF16 R12, R4, R6, R12", "HGMMA.64x128x16.F32 R24, gdesc[UR20]"
    )
    main = bench("sass").main_loop(bench("sass").loops_of(code.splitlines()))
    assert main.fmas == 64 * 128 * 16 // 4 + 16 * 8 * 8
    assert main.tensor_clocks == 64 + 4


def test_waiting_for_a_copy_is_no_loop(bench):
    """Around the products it would hide their loop."""
    wait = """.L_x_0:
        /*0004*/                   SYNCS.PHASECHK.TRANS64.TRYWAIT P0, [R2], R3 ;
        /*0008*/              @!P0 BRA `(.L_x_7) ;
.L_x_8:
"""
    again = """.L_x_7:
        /*0100*/                   SYNCS.PHASECHK.TRANS64.TRYWAIT P0, [R2], R3 ;
        /*0110*/              @!P0 BRA `(.L_x_7) ;
        /*0120*/                   BRA `(.L_x_8) ;
"""
    sass = bench("sass")
    code = LOOP.replace(".L_x_0:\n", wait) + again
    main = sass.main_loop(sass.loops_of(code.splitlines()))
    assert main.fmas == 16 * 8 * 24
    assert main.kinds["barrier"] == 1
    # A turn of it is 64 columns where bulk copies bring them.
    kernel = sass.Kernel("bulk_scan_kernel<WarpGroupTile<1>, A>", 100, 0, main, (main,))
    assert kernel.tile[0].fmas == (2 + 1) * main.fmas


def test_the_epilogue_of_a_tile(bench):
    """What the loop around the main one does: the way that has its exponentials and stores."""
    sass = bench("sass")
    outer = (
        """
.L_x_9:
        /*0010*/                   MOV R1, R2 ;
"""
        + "\n".join(LOOP.splitlines()[2:15])
        + """
        /*0100*/              @!P0 BRA `(.L_x_8) ;
        /*0110*/                   MUFU.EX2 R1, R2 ;
        /*0120*/                   STG.E desc[UR4][R2.64], R1 ;
.L_x_8:
        /*0130*/               @P1 BRA `(.L_x_9) ;
"""
    )
    [(main, around)] = sass.nests_of(outer.splitlines())
    assert main.fmas == 16 * 8 * 24
    assert [loop.kinds for loop in around] == [{"other": 3, "special": 1, "global": 1}]
    kernel = sass.Kernel("scan_kernel<TileOf<1, 4, 2>, WriteScores>", 100, 0, main, around)
    whole, epilogue = kernel.tile
    assert epilogue.issue_clocks == 5
    assert whole.issue_clocks == 4 * main.issue_clocks + 5  # 128 columns of two bytes
    assert dataclasses.replace(kernel, name="merge_kernel").tile is None


def beyond_a_plain_install() -> list[str]:
    """What can be imported here and `pip install .` does not bring."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    brought, waiting = set(), list(project["dependencies"])
    while waiting:
        wanted = Requirement(waiting.pop())
        name = canonicalize_name(wanted.name)
        if name in brought or not (wanted.marker is None or wanted.marker.evaluate({"extra": ""})):
            continue
        brought.add(name)
        waiting += importlib.metadata.requires(name) or []
    found = importlib.metadata.packages_distributions()
    return sorted(
        module
        for module, names in found.items()
        if module != "alphafuse_ext" and not brought & set(map(canonicalize_name, names))
    )


PLAIN_INSTALL = """
import contextlib, importlib.machinery, io, json, os, runpy, sys

class Finder(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name.partition(".")[0] not in without:
            return super().find_spec(name, path, target)

root, without, runs = json.loads(sys.argv[1])
sys.meta_path[sys.meta_path.index(importlib.machinery.PathFinder)] = Finder
path, found = sys.path[:], []
for script, *arguments in runs:
    # As Python starts a script: its own folder first, and nothing of another's.
    sys.path[:] = [os.path.dirname(f"{root}/{script}"), *path]
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None) or ""
        if file.startswith((f"{root}/bench/", f"{root}/tools/")):
            del sys.modules[name]
    sys.argv = [script, *arguments]
    said, status = io.StringIO(), 0
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            runpy.run_path(f"{root}/{script}", run_name="__main__")
        except SystemExit as end:
            status = end.code or 0
        except ImportError as error:
            status = repr(error)
    found.append([status, said.getvalue()])
print(json.dumps(found))
"""


def run_on_a_plain_install(*runs: list[str]) -> list[tuple[int | str, str]]:
    """What scripts end with and print where nothing but the package's dependencies is there."""
    beyond = beyond_a_plain_install()
    assert "pytest" in beyond
    assert not {"torch", "numpy", "matplotlib"} & set(beyond)
    # As they stand: what is compiled is another question, and a slow one.
    environment = {**os.environ, "TORCHDYNAMO_DISABLE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", PLAIN_INSTALL, json.dumps([str(ROOT), beyond, runs])],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_every_script_explains_itself_on_a_plain_install():
    files = [*BENCH.rglob("*.py"), *TOOLS.glob("*.py")]
    scripts = sorted(
        str(path.relative_to(ROOT)) for path in files if "__main__" in path.read_text()
    )
    assert len(scripts) > 15
    found = run_on_a_plain_install(*([script, "--help"] for script in scripts))
    for script, (status, said) in zip(scripts, found, strict=True):
        assert status == 0, script
        assert said.startswith(f"usage: {Path(script).name} "), script


def test_benchmarks_and_pages_that_are_named_are_there():
    """In documents, scripts and comments; what a command would write need not be."""
    named = re.compile(r"(?<!--output )(?<![\w/.-])(?:bench|tools)/[\w./*-]*\w")
    files = [*ROOT.glob("*.*"), *(ROOT / ".ci").iterdir(), *BENCH.glob("*.*")]
    for folder in ("alphafuse_ext", "csrc", "docs", "examples", "python_tests", "tools"):
        files += (ROOT / folder).rglob("*.*")
    for folder in ("ops", "training", "peers", "scale", "experiments"):
        files += (BENCH / folder).glob("*.*")
    kinds = {".md", ".py", ".sh", ".toml", ".h", ".cpp", ".cu", ".cuh", ""}
    files = [file for file in files if file.is_file() and file.suffix in kinds]
    count = 0
    for file in files:
        if file.name in ("CHANGELOG.md", Path(__file__).name):
            continue
        for name in named.findall(file.read_text(encoding="utf-8")):
            assert any(ROOT.glob(name)) or "NAME" in name, f"{file}: {name}"
            count += 1
    assert count > 60


def test_a_folder_for_results_that_is_not_there_is_refused_first():
    """Not after hours."""
    required = {
        "bench/training/new_items.py": ["."],
        "bench/peers/sasrec.py": ["amazon-beauty", "--data", ".", "--environments", "."],
        "bench/training/epoch.py": ["--data", "."],
        "bench/scale/equal_seconds.py": ["."],
    }
    others = ("ops/overhead", "peers/recbole_ranking")
    others += (
        "scale/decomposition",
        "scale/large",
        "scale/offline_ranking",
        "scale/reading",
        "scale/sharding",
    )
    scripts = [*required, *(f"bench/{name}.py" for name in others), "tools/mutations.py"]
    found = run_on_a_plain_install(
        *([script, *required.get(script, []), "--output", "/no/folder"] for script in scripts)
    )
    for script, (status, said) in zip(scripts, found, strict=True):
        assert status == 2, script
        message = "error: argument --output: got /no/folder; expected a folder that exists"
        assert said.endswith(f"{Path(script).name}: {message}\n"), script


def test_what_a_script_needs_is_named(tmp_path):
    found = run_on_a_plain_install(
        ["bench/peers/recbole_ranking.py"], ["bench/peers/run_recbole.py", "{}"],
        ["bench/peers/run_rectools.py", "{}"], ["tools/mutations.py", "--work", str(tmp_path)],
    )  # fmt: skip
    for (status, _), module in zip(
        found, ("recbole", "recbole", "rectools", "pytest"), strict=True
    ):
        assert status.startswith(f"not installed: {module} (pip install '.[")


@pytest.mark.slow
def test_a_quick_look_at_every_op_on_a_plain_install(bench):
    small = ["--num-items", "200", "--batch", "2", "--num-ids", "50", "--row-seconds", "0.001"]
    [(status, said)] = run_on_a_plain_install(
        ["bench/scoring.py", "--quick", "--device", "cpu", *small]
    )
    assert status == 0
    assert "left out: FAISS: not installed: faiss (pip install faiss-cpu)" in said
    lines = said.splitlines()
    assert max(map(len, lines)) <= 100
    for op in bench("ops.cases").OPS:
        heads = [n for n, line in enumerate(lines) if line in (f"{op}, {way}" for way in PASSES)]
        assert heads, op
        for head in heads:
            sizes = ["items", "ids" if op.startswith("lookup") else "queries", "ours"]
            assert lines[head + 1].split()[:3] == sizes
            assert lines[head + 1].split()[-1] == "floors"
            assert len(lines[head + 2]) == len(lines[head + 1])


PASSES = ("forward", "forward and backward")


@pytest.fixture
def whole_run(bench):
    """Results of ``scoring.py`` over its grid, with figures as wide as they come."""
    contenders = bench("ops.contenders")
    names, peers = contenders.CONTENDERS, contenders.PEERS
    figures = {"seconds": 0.0123, "peak_bytes": 123_000_000, "units_per_second": 1.23e9}
    figures |= {"ratio": 12.3, "times_floor": 123.4, "note": None}
    sizes = {"op": list(bench("ops.cases").OPS), "backward": (False, True)}
    sizes |= {"num_items": (5_000, 1_000_000), "batch": (1, 1024)}
    rows = [
        {
            **dict(zip(sizes, row, strict=True)),
            "floor_seconds": 0.000123,
            "checked": True,
            "contenders": {
                name: dict(figures)
                for name in names
                if (name not in peers and name != contenders.IN_TWO_PASSES)
                or (name in peers[:3] and row[0] == "cross_entropy")
                or (name in (contenders.IN_TWO_PASSES, "FAISS") and row[0] == "topk")
            },
        }
        for row in itertools.product(*sizes.values())
    ]
    rates = {"gflops": 270.0, "gb_per_second": 12.3}
    return {
        **{"command": "python bench/scoring.py", "machine": {"device": "CPU", "commit": "c0ffee"}},
        **{"rates": rates, "rates_after": rates, "contenders": list(names), "left_out": {}},
        **{"sizes": {"dtype": "float32", "dim": 128}, "seconds": 1080.0, "rows": rows},
    }


def test_other_results_of_another_package_are_named_and_of_ours_end_the_run(bench):
    turns, mismatch = bench("ops.turns"), bench("ops.cases").Mismatch

    def check(found, expected):
        if not torch.equal(found, expected):
            raise mismatch("not the same")

    case = SimpleNamespace(check=check)
    catalog = SimpleNamespace(device=torch.device("cpu"))

    def contender(name, value):
        return SimpleNamespace(
            name=name,
            needed_bytes=0,
            prepare=lambda: None,
            run=lambda: (torch.tensor([value]), []),
        )

    plain, ours = contender(turns.PLAIN, 1.0), contender(turns.OURS, 1.0)
    peer = contender(turns.PEERS[0], 2.0)
    found, compared = turns.first_round([plain, ours, peer], case, catalog, 1e9)
    assert compared
    assert found[turns.OURS].samples
    assert found[peer.name].note == "other results"
    assert not found[peer.name].samples
    with pytest.raises(mismatch, match="not the same"):
        turns.first_round([plain, contender(turns.OURS, 2.0)], case, catalog, 1e9)


def test_tables_of_a_whole_run_fit_a_terminal(bench, whole_run):
    tables = bench("ops.tables")
    assert max(map(len, tables.terminal_tables(whole_run))) <= 100
    row = next(row for row in whole_run["rows"] if row["op"] == "topk")
    row["checked"] = False
    row["contenders"]["PyTorch"] |= {"seconds": None, "note": "does not fit: 12.3 GB"}
    lines = tables.terminal_tables(whole_run)
    assert max(map(len, lines)) <= 100
    assert "  5k, 1: PyTorch: does not fit: 12.3 GB" in lines
    assert "  5k, 1: not checked: nothing to compare with" in lines


def test_a_page_has_every_row_and_names_who_was_left_out(bench, whole_run):
    page = bench("ops.tables").page
    text = page(whole_run)
    assert text.startswith("# Every op on CPU\n\nMeasured at commit c0ffee.\n\n`python bench/scor")
    assert "left out" not in text
    assert len(re.findall(r"^\| [a-z_]+ +\| (?:fwd|f\+b) ", text, re.M)) == len(whole_run["rows"])
    assert "12.3 ms, 12x, 123 MB" in text
    half = {**whole_run, "sizes": {"dtype": "bfloat16"}}
    assert page(half).startswith("# Every op in bfloat16 on CPU\n")
    assert "\n- left out: FAISS why\n" in page({**whole_run, "left_out": {"FAISS": "why"}})


def test_the_device_is_the_gpu_where_it_can_be_used(bench, monkeypatch, capsys):
    measure = bench("measure")
    monkeypatch.setattr(measure, "device_name", lambda device: f"name of {device}")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert measure.choose_device(None) == torch.device("cpu")
    assert capsys.readouterr().out == "on cpu, name of cpu: PyTorch sees no CUDA device\n"

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(devices, "_core", SimpleNamespace(devices=["cpu"]))
    assert measure.choose_device(None) == torch.device("cpu")
    assert "built without CUDA kernels" in capsys.readouterr().out
    with pytest.raises(argparse.ArgumentTypeError, match=r"got 'cuda'; .* without CUDA kernels"):
        measure.usable_device("cuda")

    monkeypatch.setattr(measure, "why_not_cuda", lambda: None)
    assert measure.choose_device(None) == measure.usable_device("cuda") == torch.device("cuda")
    assert capsys.readouterr().out == "on cuda, name of cuda\n"
    assert measure.choose_device(torch.device("cpu")) == torch.device("cpu")


@pytest.mark.parametrize("script", ["scoring", "training.epoch"])
def test_scripts_choose_their_device(bench, monkeypatch, tmp_path, script):
    module, asked = bench(script), []

    def choose(device):
        asked.append(device)
        raise SystemExit

    monkeypatch.setattr(module, "choose_device", choose)
    (tmp_path / "amazon-beauty").mkdir()
    arguments = ["--data", str(tmp_path)] if script == "training.epoch" else []
    for given in ([], ["--device", "cpu"]):
        with pytest.raises(SystemExit):
            module.main([*arguments, *given, "--output", str(tmp_path)])
    assert asked == [None, torch.device("cpu")]


def test_a_table(bench):
    lines = bench("report").table(["", "a", "b"], [["x", "1.50", ""], ["long name", "007", "1e5"]])
    assert lines == [
        "|           |    a |   b |",
        "|:----------|-----:|----:|",
        "| x         | 1.50 |     |",
        "| long name |  007 | 1e5 |",
    ]


def test_a_page(bench, tmp_path, monkeypatch):
    report = bench("report")
    monkeypatch.setattr(sys, "argv", ["bench/x.py", "--output", "a b"])
    text = report.page("Title", report.command(), {"cores": 2, "sizes": {"dim": 8}}, ["body"])
    report.write(tmp_path / "x.md", text)
    assert (tmp_path / "x.md").read_text() == (
        "# Title\n\n`python bench/x.py --output 'a b'`\n\n- cores: 2\n- sizes: dim 8\n\nbody\n"
    )
    text = report.page("Title", "command", {"commit": "c0ffee", "cores": 2, "date": "today"}, [])
    assert text == "# Title\n\nMeasured at commit c0ffee, today.\n\n`command`\n\n- cores: 2\n\n"


def test_places_for_mistakes(bench, tmp_path):
    """Barriers, waits and comparisons of device code; switches put there leave all else alone."""
    sites = bench("mutation_sites")
    path = sites.KERNELS / "planted.cuh"
    source = """
__device__ inline int f(int n, int rows) {
  if (n >= rows || n == 3) return 0;  // if (n < 5) in words
  const bool there = n >= 0 && g(n);
  __syncthreads();
  wait_copies<2>();
  __syncthreads();
  return there ? 1 : 2;
}
inline void on_the_host(int n) { if (n < 3) __syncthreads(); }
"""
    (tmp_path / "planted.cuh").write_text(source)
    sites.KERNELS = tmp_path
    found = sites.sites_of(tmp_path / path.name)
    assert [(site.kind, site.text, site.which) for site in found] == [
        ("bounds", "n >= rows", 1),
        ("bounds", "n >= 0", 1),
        ("barrier", "__syncthreads();", 1),
        ("wait", "wait_copies<2>();", 1),
        ("barrier", "__syncthreads();", 2),
        ("bounds", "there", 1),
    ]
    assert found[0].instead == "(::alphafuse::mutant != {} && (n >= rows))"  # never left
    assert found[1].instead == "(::alphafuse::mutant == {} || (n >= 0))"  # always taken
    assert len({site.key for site in found}) == len(found)
    for site in found:
        assert source[site.begin : site.end] == site.text
        assert site.instead.count("(") == site.instead.count(")")


def test_the_kernels_places_for_mistakes(bench):
    found = bench("mutation_sites").all_sites()
    sites = bench("mutation_sites")
    assert {site.kind for site in found} == set(sites.KINDS)
    for file, kind, text, _ in sites.PLANTED:
        assert any((site.file, site.kind, site.text) == (file, kind, text) for site in found), text
    assert len({site.key for site in found}) == len(found) > 100
    assert {"tile.cuh", "topk.cu", "rows.cuh"} <= {site.file for site in found}


def test_a_decomposition_from_the_disk_is_that_of_memory(bench, tmp_path):
    """It compares rows itself, under today's defaults too."""
    decomposition = bench("scale.decomposition")
    path = tmp_path / "rows.npy"
    decomposition.write_embeddings(path, 300, 16)
    found = decomposition.measure(path, 8)
    assert found["file"] >= 300 * 8 * 4
    assert list(found["stages"]) == ["reading once", "fit", "rows into a file"]


def test_ranking_everyone_reads_what_the_command_says(bench, tmp_path):
    script = bench("scale.offline_ranking")
    script.make_run(tmp_path / "run", users=1_100, items=60, dim=16)
    found = script.rank(tmp_path / "run", tmp_path / "lists.parquet", k=5, threads=1)
    assert found["users"] == 1_100
    assert found["rows"] == 5 * 1_100
    assert 0 < found["ranking_seconds"] < found["seconds"]


def test_a_large_set_has_something_to_learn_and_is_measured(bench, tmp_path):
    """At a tiny size: every process of it runs, and a click follows from the one before."""
    script = bench("scale.large")
    folder = tmp_path / "set"
    script.make_set(folder, users=400, items=2_000, clicks=6_000, width=12, seed=3)
    clicks = pd.read_parquet(folder / "clicks.parquet")
    assert len(clicks) == pytest.approx(6_000, rel=0.05)
    assert clicks["user_id"].nunique() == 400
    assert clicks["item_id"].max() < 2_000
    rows = np.load(folder / "embeddings.npy")
    assert rows.shape == (2_000, 12)
    items = clicks["item_id"].to_numpy()
    follows = np.diff(clicks["user_id"].to_numpy()) == 0

    def likeness(one, other):
        return np.mean(
            [np.corrcoef(rows[a], rows[b])[0, 1] for a, b in zip(one, other, strict=True)]
        )

    drawn = np.random.default_rng(0).permutation(items)[1:][follows][:500]
    first, then = items[:-1][follows][:500], items[1:][follows][:500]
    assert likeness(first, then) > likeness(first, drawn) + 0.1
    options = SimpleNamespace(
        dim=8,
        history=5,
        steps=2,
        epochs=1,
        threads=1,
        settings=["--negatives=4"],
        parts=script.PARTS,
    )
    found = script.measure(folder, options)
    assert found["read"]["clicks"] == len(clicks)
    assert found["recommend"]["users"] == 400
    assert found["pytorch"]["steps"] > 2
    table = "\n".join(script.lines_of(found))
    for name in ("reading", "an epoch of training", "recommend`, 400 users", "PyTorch's epoch"):
        assert name in table


def test_calls_of_the_small_scripts_are_of_one_kind(bench):
    """Ours and PyTorch's, by the shape of what they give."""
    every = {**bench("ops.overhead").calls(), **bench("ops.small_calls").calls(200, 2)}
    for name, pair in every.items():
        results = [call() for call in pair]
        firsts = [one[0] if isinstance(one, tuple) else one for one in results]
        shapes = [None if first is None else first.shape for first in firsts]
        assert shapes[0] == shapes[1], name
    assert len(every) > 10


def test_new_items_are_measured_by_the_last_click_alone(bench):
    """Users whose last item is held out, by what their items are called elsewhere."""
    new_items = bench("training.new_items")
    clicks = Interactions(
        np.arange(4), np.arange(6), Sequences.from_lists([[0, 1, 2], [2, 3], [5], [4, 2, 5]])
    )
    renamed = np.array([10, 11, 12, 13, 14, 15])
    found = new_items.examples_of(clicks, np.array([2, 5]), renamed)
    assert found.users.tolist() == [0, 3]
    assert found.targets.tolist() == [12, 15]
    assert [found.histories[n].tolist() for n in range(2)] == [[10, 11], [14, 12]]
    rows = np.eye(6, 3) + np.eye(6, 3, -3) + 0.01
    examples = new_items.examples_of(clicks, np.array([2, 5]), np.arange(6))
    # Of one direction with the last item: item 5 with 2; item 2's own is shared with 5 alone.
    assert new_items.content_ranks(rows, examples, 1).tolist()[1] == 0
