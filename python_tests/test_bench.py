"""The benchmarks' own logic, as far as it decides what a figure is taken for."""

from __future__ import annotations

import dataclasses
import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest

import alphafuse_ext as af
from alphafuse_ext.data import Interactions, Sequences
from alphafuse_ext.experiments.spec import read_comparison

BENCH = Path(__file__).resolve().parent.parent / "bench"


@pytest.fixture
def bench(monkeypatch):
    """Imports a module of the benchmarks, which stand beside each other and are no package."""
    monkeypatch.syspath_prepend(BENCH)
    yield importlib.import_module
    for name, module in list(sys.modules.items()):
        if Path(getattr(module, "__file__", None) or "/").parent == BENCH:
            del sys.modules[name]


@pytest.fixture
def dataset(tmp_path):
    np.save(tmp_path / "minilm-l6.npy", np.zeros((3, 384), np.float16))
    return tmp_path


@pytest.fixture
def job(bench, dataset):
    """A training run of a study."""
    runs = bench("training_runs")
    return runs.Job.of("LLMInit, first", {**runs.SHARED, "item_embedding": "llminit"}, dataset)


def test_figures_are_used_for_their_own_configuration_alone(job):
    assert job.name.startswith("llminit-first-seed0-")
    recorded = {job.name: {"config": json.loads(json.dumps(job.config.to_dict()))}}
    assert job.recorded(recorded)

    # As if the default of a setting that no trial names had changed, one setting after another.
    changed = 0
    for field in dataclasses.fields(af.Config):
        for value in (True, False, 2, 0.5, *(field.metadata["choices"] or ())):
            try:
                config = dataclasses.replace(job.config, **{field.name: value})
            except (ValueError, TypeError):
                continue
            if config == job.config:
                continue
            other = dataclasses.replace(job, config=config)
            assert other.name != job.name
            assert not other.recorded(recorded)
            assert not other.recorded({other.name: recorded[job.name]})
            changed += 1
    assert changed > 30


def test_figures_without_a_configuration_are_not_used(job):
    assert not job.recorded({})
    assert not job.recorded({job.name: {"test": {"ndcg@10": 0.1}}})


def test_a_new_setting_does_not_make_figures_useless(bench, job):
    """Runs from before it are those of its default, which the name of a job then has too."""
    runs = bench("training_runs")
    before = {k: v for k, v in job.config.to_dict().items() if k not in ("norm", "embedding_norm")}
    gone, other = {**before, "no_such_setting": 1}, {**before, "norm": "post"}
    record = {
        f"llminit-first-seed0-{n}": {"config": config} for n, config in enumerate((before, gone))
    }
    found = runs.with_later_settings(record)
    assert job.recorded(found)
    assert len(found) == 2
    assert not job.recorded(runs.with_later_settings({"llminit-first-seed0-0": {"config": other}}))
    record = runs.with_later_settings({"llminit-first-seed0-0": {"config": gone}})
    assert list(record) == ["llminit-first-seed0-0"]


def test_controls_keep_the_spectrum_and_lose_the_meaning(bench):
    rows = np.random.default_rng(1).normal(size=(4000, 6)) @ np.diag([4.0, 2, 1, 1, 0.5, 0.1]) + 2
    made = bench("control_embeddings").controls(rows, seed=0)
    assert sorted(made["shuffled"].sum(1)) == sorted(rows.astype(np.float32).sum(1))
    assert (made["shuffled"] != rows.astype(np.float32)).any(1).mean() > 0.99
    spectrum = af.SemanticSpace.fit(rows).eigenvalues
    found = af.SemanticSpace.fit(made["random"])
    np.testing.assert_allclose(found.eigenvalues, spectrum, rtol=0.15)
    np.testing.assert_allclose(found.mean, rows.mean(0), atol=0.3)
    correlation = np.corrcoef(made["random"].T, rows.T)[:6, 6:]
    assert np.abs(correlation).max() < 0.1


def test_the_comparisons_of_the_repository_are_sound(monkeypatch, tmp_path):
    """Each file says what Config takes, and gives every method as many trials."""
    for name in ("amazon-beauty", "amazon-industrial"):
        (tmp_path / name).mkdir()
        for file in (f"{name}.inter", f"{name}.item", "minilm-l6.npy"):
            (tmp_path / name / file).touch()
    for file in ("shuffled.npy", "random.npy"):
        (tmp_path / file).touch()
    monkeypatch.setenv("ALPHAFUSE_DATA", str(tmp_path))
    monkeypatch.setenv("CONTROLS", str(tmp_path))
    files = sorted((BENCH / "experiments").glob("*.toml"))
    assert len(files) >= 3
    for path in files:
        comparison = read_comparison(path)
        assert len({len(method.grid()) for method in comparison.methods}) == 1, path
        assert comparison.seeds == (0, 1, 2, 3, 4)


def test_a_study_s_table_names_what_misses(bench, dataset):
    studies = bench("studies")
    for name, study in studies.STUDIES.items():
        jobs = studies.jobs_of(study, dataset, seeds=2)
        assert len({job.name for row in jobs for job in row}) == 2 * len(study.rows), name
    study = studies.STUDIES["long-tail"]
    path = BENCH / "results" / "long-tail-amazon-beauty.json"
    record = json.loads(path.read_text())["runs"]
    rows = [
        [r for r in record.values() if r["config"]["item_embedding"] == kind]
        for kind in ("alphafuse", "id")
    ]
    assert [len(row) for row in rows] == [3, 3]
    whole = studies.page("title", study, rows, 3, {})
    assert "miss" not in whole
    cut = studies.page("title", study, [rows[0], rows[1][:2]], 3, {})
    assert "**Seeds that miss**: ID only: 1." in cut
    assert "| ID only    |       2 |" in cut


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
    assert main.tensor_clocks == 2 + 2  # TF32 at half the rate
    assert main.bytes == 32 * 16
    assert main.fraction_of_peak == 4 / 6
    assert sass.main_loop([]) is None


def test_a_warp_s_share_of_wgmma(bench):
    code = LOOP.replace(
        "HMMA.16816.F32.BF16 R12, R4, R6, R12", "HGMMA.64x128x16.F32 R24, gdesc[UR20]"
    )
    main = bench("sass").main_loop(bench("sass").loops_of(code.splitlines()))
    assert main.fmas == 64 * 128 * 16 // 4 + 16 * 8 * 8
    assert main.tensor_clocks == 32 + 2


def test_a_table(bench):
    lines = bench("report").table(["", "a", "b"], [["x", "1.50", ""], ["long name", "007", "1e5"]])
    assert lines == [
        "|           |    a |   b |",
        "|:----------|-----:|----:|",
        "| x         | 1.50 |     |",
        "| long name |  007 | 1e5 |",
    ]


def test_a_page_and_its_figures(bench, tmp_path, monkeypatch):
    report = bench("report")
    monkeypatch.setattr(sys, "argv", ["bench/x.py", "--output", "a b"])
    text = report.page("Title", report.command(), {"cores": 2, "sizes": {"dim": 8}}, ["body"])
    report.write(tmp_path / "x", {"rows": [1]}, text)
    assert (tmp_path / "x.md").read_text() == (
        "# Title\n\n`python bench/x.py --output 'a b'`\n\n- cores: 2\n- sizes: dim 8\n\nbody\n"
    )
    assert json.loads((tmp_path / "x.json").read_text()) == {"rows": [1]}


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
    assert {site.kind for site in found} == {"barrier", "wait", "bounds"}
    assert len({site.key for site in found}) == len(found) > 100
    assert {"tile.cuh", "topk.cu", "rows.cuh"} <= {site.file for site in found}


def test_new_items_are_measured_by_the_last_click_alone(bench):
    """Users whose last item is held out, by what their items are called elsewhere."""
    new_items = bench("new_items")
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
