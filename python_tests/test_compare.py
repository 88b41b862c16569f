"""Comparisons: what they refuse, what they run, what is on record, and what the tables say."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import html
import io
import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from matplotlib import rc_context
from safetensors.numpy import load_file

from alphafuse_ext import Config, RunFolder
from alphafuse_ext.cli import main
from alphafuse_ext.config.config import every_setting
from alphafuse_ext.data import read_embeddings, read_items, synthetic_catalog
from alphafuse_ext.deprecation import digested_names
from alphafuse_ext.experiments import data
from alphafuse_ext.experiments import jobs as running
from alphafuse_ext.experiments.compare import compare
from alphafuse_ext.experiments.data import content_of
from alphafuse_ext.experiments.jobs import Job, Record, packed_ranks, unpacked_ranks
from alphafuse_ext.experiments.report import Row, curves, latex, paired_test, picture, table
from alphafuse_ext.experiments.spec import (
    Comparison,
    Dataset,
    Method,
    comparison_of,
    read_comparison,
)
from alphafuse_ext.files import lock_folder

pytestmark = pytest.mark.slow

SMALL = """
seeds = [3, 5]
[settings]
dim = 8
epochs = 1
history = 6
[data.shop]
interactions = "clicks.csv"
items = "items.csv"
embeddings = "$ROWS/rows.npy"
settings = {batch_size = 64}
"""
METHODS = """
[methods."AlphaFuse, add"]
dropout = [0.1, 0.3]
[methods.id]
item_embedding = "id"
"""


@pytest.fixture
def shop(tmp_path, monkeypatch):
    """A folder with a data set and a file that compares two methods on it."""
    clicks, items = synthetic_catalog(num_users=80, num_items=60, seed=1)
    clicks.to_csv(tmp_path / "clicks.csv", index=False)
    items.to_csv(tmp_path / "items.csv", index=False)
    rows = np.random.default_rng(0).normal(size=(len(items), 12)).astype(np.float32)
    np.save(tmp_path / "rows.npy", rows)
    monkeypatch.setenv("ROWS", str(tmp_path))
    (tmp_path / "compare.toml").write_text(SMALL + METHODS)
    return tmp_path


def test_a_comparison_from_its_file(shop, monkeypatch):
    lines: list[str] = []
    comparison = read_comparison(shop / "compare.toml")
    rows = compare(comparison, shop / "out", processes=2, log=lines.append)
    assert [(row.method, len(row.trials), len(row.runs)) for row in rows] == [
        ("AlphaFuse, add", 2, 2),
        ("id", 1, 2),
    ]
    assert len(lines) == 5  # three trials, and another seed of each method
    for place, line in enumerate(lines, start=1):
        assert line.startswith(f"run {place} of 5, shop-")
        assert re.search(r": validation ndcg@20 0\.\d{4} at epoch \d+; \d+ s", line)
        assert (" left" in line) == (place < 5)
    chosen = rows[0].trials[rows[0].chosen]
    assert chosen.validation == max(trial.validation for trial in rows[0].trials)
    for row in rows:
        assert [run["config"]["seed"] for run in row.runs] == [3, 5]
        for run in row.runs:
            assert (run["config"]["dim"], run["config"]["batch_size"]) == (8, 64)
            assert run["config"]["dropout"] == row.trials[row.chosen].config.dropout
            assert run["peak_memory_bytes"] > 2**26
            assert 0 < run["seconds_to_best"] <= run["seconds"]
    # The figures are those of the run folders, the ranks those of their metrics.
    for folder in (shop / "out" / "runs").iterdir():
        if not folder.is_dir():
            continue
        results = RunFolder(folder).results()
        run = json.loads((shop / "out" / "runs.json").read_text())["runs"][folder.name]
        assert run["results"]["test"] == results["test"]
        ranks = unpacked_ranks(run["ranks"])
        assert len(ranks) == results["examples"]
        assert (ranks < 10).mean() == pytest.approx(results["test"]["hr@10"])
    page = (shop / "out" / "compare.md").read_text()
    mean, deviation = (f(rows[1].values("ndcg@10")) for f in (statistics.mean, statistics.stdev))
    assert f"{mean:.4f} ± {deviation:.4f}" in page
    assert f"{rows[0].runs[0]['results']['examples']} examples" in page
    made_by = r"^- 4 runs: alphafuse_ext .*, torch .*, threads 1, float32$"
    assert re.search(made_by, page, re.MULTILINE)
    lines_of = list(csv.DictReader((shop / "out" / "compare.csv").open()))
    assert [(line["method"], line["seed"]) for line in lines_of] == [
        *(("AlphaFuse, add", "3"), ("AlphaFuse, add", "5"), ("id", "3"), ("id", "5")),
    ]
    assert float(lines_of[2]["hr@10"]) == rows[1].runs[0]["results"]["test"]["hr@10"]
    for name in ("validation mrr@50", "ndcg@1"):
        kind, metric = ("validation", "mrr@50") if " " in name else ("test", name)
        assert float(lines_of[2][name]) == rows[1].runs[0]["results"][kind][metric]
    for name in ("compare.png", "curves.png"):
        assert (shop / "out" / name).read_bytes()[:4] == b"\x89PNG"
    assert "| coverage@10 " in page
    tex = (shop / "out" / "compare.tex").read_text()
    assert rf"AlphaFuse, add & {'0.'}" in tex or r"AlphaFuse, add & \textbf{0." in tex
    assert tex.count(r"\textbf{") >= 4
    assert rf"{mean:.4f} $\pm$ {deviation:.4f}" in tex
    figure = curves(comparison, rows)
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == [
        "AlphaFuse, add",
        "id",
    ]
    # Without those that an earlier version recorded.
    older = [
        dataclasses.replace(row, runs=[{**row.runs[0], "curve": []}, *row.runs[1:]]) for row in rows
    ]
    lines_drawn = [len(curves(comparison, given).axes[0].lines) for given in (rows, older)]
    assert lines_drawn == [8, 4]
    # Of every user, exactly, under the names of the data.
    ranks = pd.read_parquet(shop / "out" / "ranks.parquet")
    assert list(ranks.columns) == ["dataset", "method", "seed", "run", "user", "item", "rank"]
    assert len(ranks) == 4 * rows[0].runs[0]["results"]["examples"]
    own = ranks[(ranks["method"] == "id") & (ranks["seed"] == 3)]
    gains = np.where(own["rank"] < 10, 1 / np.log2(own["rank"] + 2.0), 0)
    assert gains.mean() == pytest.approx(rows[1].runs[0]["results"]["test"]["ndcg@10"])
    clicks = pd.read_csv(shop / "clicks.csv").sort_values("timestamp", kind="stable")
    last = clicks.groupby("user_id")["item_id"].last()
    assert (own["item"].to_numpy() == last[own["user"]].to_numpy()).all()

    # On record: nothing runs again, also without the folders; another method is added to it.
    shutil.rmtree(shop / "out" / "runs")
    with monkeypatch.context() as patch:
        patch.setattr(running, "run_job", None)
        again = compare(comparison, shop / "out", log=lines.append)
    assert [row.values("ndcg@10") for row in again] == [row.values("ndcg@10") for row in rows]
    assert len(lines) == 5
    pd.testing.assert_frame_equal(pd.read_parquet(shop / "out" / "ranks.parquet"), ranks)


def test_a_method_with_and_without_neighbors(shop):
    """They train the same; validation and test are those of the ranking that each has."""
    methods = [Method("alone", {}), Method("mixed", {"neighbors": True})]
    given = read_comparison(shop / "compare.toml", seeds=[3])
    comparison = dataclasses.replace(given, methods=tuple(methods))
    alone, mixed = compare(comparison, shop / "out", processes=2, log=lambda line: None)
    ours, theirs = (row.runs[0]["results"] for row in (mixed, alone))
    assert ours["model_alone"]["test"] == theirs["test"]
    assert ours["neighbors"]["validation_of_the_model"] == theirs["validation"]
    assert ours["validation"] == ours["neighbors"]["validation"]
    assert mixed.trials[0].validation == ours["neighbors"]["validation"]["ndcg@20"]
    assert ours["test"] != theirs["test"]
    ranks = unpacked_ranks(mixed.runs[0]["ranks"])
    assert (ranks < 10).mean() == pytest.approx(ours["test"]["hr@10"])
    lines = (shop / "out" / "compare.md").read_text().splitlines()
    cells: dict[str, list[str]] = {}
    for line in lines:  # the first table
        if "|" in line:
            name, _, *values = (cell.strip() for cell in line.split("|")[1:-1])
            cells.setdefault(name, values[:3])
    assert cells["mixed, its model alone"] == cells["alone"] != cells["mixed"]


def test_lists_alone_are_a_method_of_one_run(shop):
    """A list is a grid, settings of all that it does not have are left out, no seed repeats it."""
    methods = [Method("id", {"item_embedding": "id"})]
    methods += [Method("lists", {"model": "neighbors", "neighbors_weight": [0.5, 0.9]})]
    given = read_comparison(shop / "compare.toml")
    lines: list[str] = []
    comparison = dataclasses.replace(given, methods=tuple(methods))
    rows = compare(comparison, shop / "out", processes=2, log=lines.append)
    assert [len(row.runs) for row in rows] == [2, 1]
    assert [line.split(",")[0] for line in lines] == [f"run {n} of 4" for n in range(1, 5)]
    best = max(rows[1].trials, key=lambda trial: trial.validation)
    assert rows[1].runs[0]["config"]["neighbors_weight"] == best.config.neighbors_weight
    page = (shop / "out" / "compare.md").read_text()
    assert f"| {rows[1].values('ndcg@10')[0]:.4f} " in page
    assert "lists, its model alone" not in page
    assert compare(comparison, shop / "out", finished=True)[1].values("hr@10")


def test_lists_alone_among_methods_by_their_names(shop):
    settings = {"dim": 8, "epochs": 1, "keep_seen": True}
    source = {"interactions": shop / "clicks.csv", "embeddings": shop / "rows.npy"}
    comparison = comparison_of(source, ["id", "neighbors"], [0], settings)
    given = [method.settings for method in comparison.methods]
    assert given == [
        {**settings, "item_embedding": "id"}, {"keep_seen": True, "model": "neighbors"},
    ]  # fmt: skip
    with pytest.raises(ValueError, match=r"methods: got 'neighbor'; expected one of .*, neighbors"):
        comparison_of(source, ["neighbor"], [0], settings)


def test_a_countdown():
    """What is left: runs at a time, each as long as those that ended, failed ones aside."""
    countdown = running.Countdown(6, processes=2)
    assert countdown.line("a", "failed: x", None) == "run 1 of 6, a: failed: x"
    assert countdown.line("b", "good", 40.0) == "run 2 of 6, b: good; 40 s; about 80 s left"
    assert countdown.line("c", "good", 80.0) == "run 3 of 6, c: good; 80 s; about 2 min left"
    countdown.total = 4  # methods without a trial that ended well have no other seeds
    assert countdown.line("d", "good", 7200.0) == "run 4 of 4, d: good; 2 h 00"


def test_a_new_setting_does_not_make_a_record_useless(tmp_path):
    """Runs from before it are those of its default; what cannot be read any more is kept."""
    config = Config(dim=8, item_embedding="id").resolve(None, 60)
    job = Job("shop", "id", {}, config, "digest")
    before = {k: v for k, v in config.to_dict().items() if k not in ("block", "position_std")}
    run = {"dataset": "shop", "method": "id", "content": "digest", "results": {}}
    written = {
        "a": {**run, "config": before},
        "b": {**run, "config": {**before, "no_such_setting": 1}},
    }
    (tmp_path / "runs.json").write_text(json.dumps({"runs": written}))
    record = Record(tmp_path / "runs.json")
    assert record.results(job)["config"] == config.to_dict()
    assert record.runs["b"] == written["b"]
    for other in (
        dataclasses.replace(job, config=config.replace(position_std=0.1)),
        dataclasses.replace(job, content="of other data"),
    ):
        assert record.results(other) is None


def test_old_names_of_settings_in_records(shop):
    """They name the same runs."""
    config = Config(dim=8, space_split="soft", truncate=True).resolve(12, 60)
    job = Job("shop", "soft", {}, config, "digest")
    run = {"dataset": "shop", "method": "soft", "content": "digest", "results": {}}
    before = digested_names(config.to_dict())
    (shop / "runs.json").write_text(json.dumps({"runs": {job.name: {**run, "config": before}}}))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        record = Record(shop / "runs.json")
    assert record.runs.keys() == {job.name}
    assert record.results(job)["config"] == config.to_dict()


def test_no_other_configuration_has_a_job_s_name():
    """As if the default of a setting that no method names had changed, one after another."""
    config = Config(item_embedding="llminit", dim=128).resolve(384, 60)
    job, changed = Job("shop", "LLMInit", {}, config, "digest"), 0
    for name, owners in every_setting().items():
        if name == "threads":  # changes nothing that a run finds
            continue
        choices = {choice for owner in owners for choice in owner.field.metadata["choices"] or ()}
        for value in (True, False, 2, 0.5, *choices):
            try:
                other = config.replace(**{name: value})
            except (ValueError, TypeError):
                continue
            if other != config:
                assert dataclasses.replace(job, config=other).name != job.name, name
                changed += 1
    assert changed > 30


def test_the_content_of_data_is_the_same_wherever_it_lies(shop):
    sources = {"interactions": shop / "clicks.csv", "embeddings": shop / "rows.npy"}
    found = content_of(sources)
    shutil.copytree(shop, shop / "elsewhere")
    moved = {name: shop / "elsewhere" / path.name for name, path in sources.items()}
    assert content_of(moved) == found
    rows = np.load(moved["embeddings"])
    rows[-1, -1] += 1
    np.save(moved["embeddings"], rows)
    assert content_of(moved) != found
    assert content_of({**sources, "item_column": "item_id"}) != found
    assert content_of({"interactions": shop / "clicks.csv"}) != found


def test_the_content_of_data_is_all_of_it(tmp_path):
    """A byte in the middle of a file; the names of files in a folder, which may be a column."""
    rows = np.zeros(3 << 20, np.uint8)
    found = set()
    for place in (0, len(rows) // 2, len(rows) - 1):
        rows[place] = 1
        rows.tofile(tmp_path / "rows.npy")
        found.add(content_of({"embeddings": tmp_path / "rows.npy"}))
    for day in ("day=1", "day=2"):
        (tmp_path / day / day).mkdir(parents=True)
        (tmp_path / day / day / "part.parquet").write_bytes(b"x")
        found.add(content_of({"interactions": tmp_path / day}))
    assert len(found) == 5


def test_one_comparison_at_a_time(shop):
    (shop / "out").mkdir()
    comparison = read_comparison(shop / "compare.toml")
    with lock_folder(shop / "out"), pytest.raises(BlockingIOError, match=r"^output: got .*another"):
        compare(comparison, shop / "out", finished=True)
    compare(comparison, shop / "out", finished=True)


def test_a_failed_run_is_a_row_that_says_so_and_is_tried_again(shop, monkeypatch):
    text = SMALL.replace("[3, 5]", "[3]") + METHODS.replace("[0.1, 0.3]", "0.1")
    (shop / "compare.toml").write_text(f"{text}[methods.wild]\nlearning_rate = 1e30\n")
    comparison = read_comparison(shop / "compare.toml")
    rows = compare(comparison, shop / "out", processes=2, log=lambda _: None)
    assert [len(row.runs) for row in rows] == [1, 1, 0]
    assert "FloatingPointError: epoch 1: the training loss is" in rows[2].failures[0]
    page = (shop / "out" / "compare.md").read_text()
    assert "- wild: FloatingPointError: epoch 1" in page
    assert list(csv.DictReader((shop / "out" / "compare.csv").open()))[2]["error"]
    tried = []
    monkeypatch.setattr(running, "run_job", lambda job, *_: tried.append(job) or {"error": "again"})
    rows = compare(comparison, shop / "out", log=lambda _: None)
    assert [job.method for job in tried] == ["wild"]
    assert rows[2].failures == ["again"]


def test_an_interrupted_run_goes_on(shop):
    """What a process leaves that is killed at the end is a run folder without results."""
    text = SMALL.replace("[3, 5]", "[3]") + METHODS.replace("[0.1, 0.3]", "0.1")
    (shop / "compare.toml").write_text(text)
    comparison = read_comparison(shop / "compare.toml")
    first = compare(comparison, shop / "whole", processes=2, log=lambda _: None)
    shutil.copytree(shop / "whole" / "runs", shop / "cut" / "runs")
    for results in (shop / "cut" / "runs").glob("*/results.json"):
        results.unlink()
    rows = compare(comparison, shop / "cut", processes=2, log=lambda _: None)
    assert len(list((shop / "cut" / "runs").glob("*/results.json"))) == 2
    for one, other in zip(first, rows, strict=True):
        assert one.values("ndcg@10") == other.values("ndcg@10")


def test_a_killed_process_is_a_failure(shop, monkeypatch):
    monkeypatch.setattr(running, "_WORKER", ("-c", "import os; os.kill(os.getpid(), 9)"))
    comparison = read_comparison(shop / "compare.toml", seeds=[0])
    rows = compare(comparison, shop / "out", log=lambda _: None)
    assert {*rows[0].failures, *rows[1].failures} == {"killed by signal 9, for want of memory?"}
    assert "| id " in (shop / "out" / "compare.md").read_text()


SLEEPER = """
import os, pathlib, sys, time
name = sys.argv[1].removesuffix(".job.json")
pathlib.Path(name + ".pid").write_text(str(os.getpid()))
time.sleep(20)
pathlib.Path(name + ".survived").touch()
"""


def test_ctrl_c_of_the_parent_alone_ends_its_runs(shop, monkeypatch):
    monkeypatch.setattr(running, "_WORKER", ("-c", SLEEPER))
    comparison = read_comparison(shop / "compare.toml", seeds=[0])
    runs = shop / "out" / "runs"

    def interrupt():
        while len(list(runs.glob("*.pid"))) < 2 or not all(map(Path.read_text, runs.glob("*.pid"))):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        compare(comparison, shop / "out", processes=2, log=lambda _: None)
    pids = [int(path.read_text()) for path in runs.glob("*.pid")]
    assert len(pids) == 2  # and the third has not begun
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    assert not list(runs.glob("*.survived"))
    assert not (shop / "out" / "runs.json").exists()  # none of them has failed


def test_a_run_that_ignores_termination_is_killed(shop, monkeypatch):
    deaf = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)" + SLEEPER
    monkeypatch.setattr(running, "_WORKER", ("-c", deaf))
    monkeypatch.setattr(running, "_PATIENCE", 0.1)
    comparison = read_comparison(shop / "compare.toml", seeds=[0])
    config = next(comparison.trials(comparison.datasets[0], comparison.methods[1]))
    job = Job("shop", "id", {}, config, "digest")
    started = (shop / job.name).with_suffix(".pid")
    figures = running.run_job(job, shop, 1, "cpu", threading.Event(), lambda _: started.exists())
    assert "killed by signal 9" in figures["error"]


def workers_of(folder):
    """Processes of runs below a folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            said = path.read_bytes().decode(errors="replace")
            if "experiments.worker" in said and str(folder) in said:
                found.append(int(path.parent.name))
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGKILL, -9), (signal.SIGTERM, 143), (signal.SIGINT, 130)]
)
def test_runs_end_with_the_process_that_started_them(shop, number, status):
    """And the same command goes on with them."""
    text = (SMALL + METHODS).replace("epochs = 1", "epochs = 1000000\npatience = 1000000")
    (shop / "compare.toml").write_text(text.replace("dropout = [0.1, 0.3]", ""))
    command = [sys.executable, "-m", "alphafuse_ext", "compare", str(shop / "compare.toml")]
    command += ["--output", str(shop / "out"), "--processes", "2"]
    # A job that a shell put into the background is deaf to SIGINT, and so would this one be.
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    child = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    signal.signal(signal.SIGINT, previous)
    with child as process:
        while len(list((shop / "out").glob("runs/*/metrics.jsonl"))) < 2:
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.1)
        assert len(workers_of(shop)) == 2
        process.send_signal(number)
        said = process.stderr.read()
        assert process.wait() == status, said
    if number != signal.SIGKILL:
        assert workers_of(shop) == []
    deadline = time.monotonic() + 60
    while workers_of(shop):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert not (shop / "out" / "runs.json").exists()
    assert not list((shop / "out").glob(".*"))


def test_exit_status_of_failed_runs(shop, monkeypatch, capsys):
    command = ["compare", str(shop / "compare.toml"), "--output", str(shop / "out"), "--seeds", "3"]

    def run_job(job, *_):
        labels = {"dataset": job.dataset, "method": job.method, "content": job.content}
        return {**labels, "config": job.config.to_dict(), "error": "no memory"}

    monkeypatch.setattr(running, "run_job", run_job)
    assert main(command) == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith("alphafuse: error: runs that fai")
    assert main([*command, "--finished"]) == 0


def test_the_paired_test():
    generator = np.random.default_rng(0)

    def row(method, shift, validation):
        runs = [
            {
                "config": {"select": "ndcg@20"},
                "ranks": packed_ranks(np.maximum(generator.integers(0, 40, 500) - shift, 0)),
                "results": {"validation": {"ndcg@20": validation}},
            }
            for _ in range(2)
        ]
        return Row("shop", method, [], 0, runs)

    rows = [row("a", 0, 0.1), row("b", 5, 0.3), row("c", 8, 0.2)]
    found = paired_test(rows[0], rows)
    ours, theirs = rows[0].gains_of_examples(), rows[1].gains_of_examples()
    assert found.other == "b"
    assert found.gain == pytest.approx(ours.mean() / theirs.mean() - 1)
    assert found.p == pytest.approx(scipy.stats.ttest_rel(ours, theirs).pvalue)
    assert paired_test(rows[1], rows).other == "c"
    assert paired_test(rows[1], rows[1:2]) is None
    same = row("d", 0, 0.1)
    assert paired_test(same, [same, *[type(same)("shop", "e", [], 0, same.runs)]]).p == 1


def test_ranks_are_packed_exactly_where_metrics_look():
    ranks = np.array([0, 9, 49, 254, 255, 10_000, np.iinfo(np.int64).max])
    assert unpacked_ranks(packed_ranks(ranks)).tolist() == [0, 9, 49, 254, 255, 255, 255]


def test_a_list_is_a_grid():
    method = Method("m", {"dim": 8, "dropout": [0.1, 0.2], "norm": ["pre", "post"]})
    assert method.grid() == [
        {"dim": 8, "dropout": dropout, "norm": norm}
        for dropout in (0.1, 0.2)
        for norm in ("pre", "post")
    ]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (("[3, 5]", "[3, 3]"), ValueError, r"^seeds: got 3 twice; expected each once"),
        (("[3, 5]", "[]"), ValueError, r"^seeds: got none"),
        (("[3, 5]", "[-1]"), ValueError, r"^seeds: got -1"),
        (("[3, 5]", "7"), TypeError, r"^seeds: got 7"),
        (("[0.1, 0.3]", "[0.1, 0.1]"), ValueError, r"^methods.AlphaFuse, add: dropout: got 0.1 tw"),
        (("[0.1, 0.3]", "[]"), ValueError, r"^methods.AlphaFuse, add: dropout: got \[\]"),
        (("[0.1, 0.3]", "[0.1, 1.5]"), ValueError, r"^methods.AlphaFuse, add: dropout: got 1.5"),
        (('"id"', '"bert"'), ValueError, r"^methods.id: item_embedding: got 'bert'; expected one"),
        (
            ("dropout", "dropuot"),
            TypeError,
            r"^methods.AlphaFuse, add: dropuot: got .*an dropout",
        ),
        (("dim = 8", "seed = 8"), ValueError, r"^methods.AlphaFuse, add: seed: got 8"),
        (("dim = 8", "dim = [8]"), ValueError, r"^settings: dim: got \[8\]; expected one value"),
        (("[settings]", "[setting]"), ValueError, r"^setting: got it; expected one of seeds"),
        (("items = ", "item = "), ValueError, r"^data.shop: item: got it; expected one of inter"),
        (("clicks.csv", "none.csv"), FileNotFoundError, r"^data.shop: interactions: got .*none"),
        (("$ROWS", "$NO_SUCH"), ValueError, r"^data.shop: embeddings: got .NO_SUCH.*variables"),
        ((METHODS, ""), ValueError, r"^methods: got none"),
        (("seeds =", "seeds ="), None, ""),
        (("[data.shop]", "[data.shop"), ValueError, r"^comparison: got .*; expected a TOML file"),
        (("history = 6", "x = " + "[" * 9999), ValueError, r"^comparison: .*nests too deep; ex"),
        (("history = 6", "history = 6\nheads = 16"), ValueError, r"^methods.*heads: got 16"),
    ],
)
def test_invalid_settings_are_named_before_anything_runs(shop, change, error, message):
    text = (SMALL + METHODS).replace(*change)
    (shop / "compare.toml").write_text(text)
    if error is None:
        read_comparison(shop / "compare.toml")
        return
    with pytest.raises(error, match=message):
        read_comparison(shop / "compare.toml")


def test_a_pipe_is_read_once_and_no_input_of_several_runs(shop):
    os.mkfifo(shop / "pipe.csv")
    (shop / "compare.toml").write_text((SMALL + METHODS).replace("clicks.csv", "pipe.csv"))
    with pytest.raises(ValueError, match=r"interactions: got .*pipe\.csv, a pipe or a device; exp"):
        read_comparison(shop / "compare.toml")


def test_data_that_can_be_read_once_alone_is_refused(shop):
    os.mkfifo(shop / "pipe.csv")
    (shop / "compare.toml").write_text((SMALL + METHODS).replace("clicks.csv", "pipe.csv"))
    with pytest.raises(ValueError, match=r"^data.shop: interactions: got .*pipe.csv, a pipe or a"):
        read_comparison(shop / "compare.toml")
    with pytest.raises(ValueError, match=r"^interactions: got /dev/null, a pipe or a device"):
        comparison_of({"interactions": Path("/dev/null")}, ["id"], [1], {})


def test_a_method_that_needs_language_asks_for_it(shop):
    text = (SMALL + METHODS).replace('embeddings = "$ROWS/rows.npy"', "")
    (shop / "compare.toml").write_text(text.replace('items = "items.csv"', ""))
    comparison = read_comparison(shop / "compare.toml")
    with pytest.raises(ValueError, match=r"^data.shop, methods.AlphaFuse, add: got no language em"):
        compare(comparison, shop / "out", log=lambda _: None)
    assert not (shop / "out").exists()


def test_texts_are_encoded_once_for_all_runs(shop):
    text = (SMALL + METHODS).replace('embeddings = "$ROWS/rows.npy"', "")
    (shop / "compare.toml").write_text(text.replace("[3, 5]", "[3]").replace("[0.1, 0.3]", "0.1"))
    rows = compare(read_comparison(shop / "compare.toml"), shop / "out", log=lambda _: None)
    assert [len(row.runs) for row in rows] == [1, 1]
    (kept,) = (shop / "out" / "embeddings").iterdir()
    assert load_file(kept)["rows"].shape[0] == 60


def encoded(shop, **said):
    """What runs of a comparison of texts are told: the content, and the embeddings of the texts.

    Args:
        shop: its folder.
        **said: of the encoder, as a data set says it.
    """
    files = {name: str(shop / f"{name}.csv") for name in ("clicks", "items")}
    dataset = Dataset("shop", {"interactions": files["clicks"], "items": files["items"], **said})
    wanted = Comparison((dataset,), (Method("frozen", {"item_embedding": "frozen"}),), (0,))
    known = data.inspect_data(dataset, wanted, shop / "out", lambda _: None)
    items = read_items(files["items"])
    return known.content, read_embeddings(known.sources["embeddings"], items).record()["sha256"]


def test_other_texts_are_encoded_anew(shop):
    """The same titles in another order: a file of the same size."""
    first = encoded(shop)
    assert encoded(shop) == first
    whole = (shop / "items.csv").read_bytes()
    items = pd.read_csv(shop / "items.csv")
    items["title"] = items["title"].to_numpy()[::-1]
    items.to_csv(shop / "items.csv", index=False)
    assert len((shop / "items.csv").read_bytes()) == len(whole)
    other = encoded(shop)
    assert other[0] != first[0]
    assert other[1] != first[1]
    (shop / "items.csv").write_bytes(whole)
    assert encoded(shop) == first
    assert len(list((shop / "out" / "embeddings").iterdir())) == 2


def test_texts_are_encoded_anew_by_another_encoder(shop, tmp_path, monkeypatch):
    """Of another name, of other files below the same name, or of another version."""

    class SentenceTransformer:
        def __init__(self, name, **_):
            self.factor = len(Path(name, "weights").read_text()) if Path(name).exists() else 7

        def encode(self, texts, **_):
            return np.array([[len(text), self.factor, 1.0] for text in texts], np.float32)

    package = ModuleType("sentence_transformers")
    package.SentenceTransformer = SentenceTransformer
    tfidf = encoded(shop)
    assert encoded(shop, encoder="tfidf")[1] == tfidf[1]
    monkeypatch.setitem(sys.modules, "sentence_transformers", package)
    (tmp_path / "model").mkdir()
    found = [tfidf]
    for weights in ("one", "three"):
        (tmp_path / "model" / "weights").write_text(weights)
        model = {"encoder": "sentence-transformers", "encoder_model": str(tmp_path / "model")}
        found.append(encoded(shop, **model))
        assert encoded(shop, **model) == found[-1]
    # Unless told, by TF-IDF as long as there is nothing better, of which the version tells.
    for version in ("3.0", "4.0"):
        monkeypatch.setattr(
            data, "_versions", lambda version=version: {"sentence-transformers": version}
        )
        found.append(encoded(shop))
    assert len({content for content, _ in found}) == len(found)
    assert len({rows for _, rows in found}) == len(found) - 1


def test_what_another_encoder_did_in_its_place_is_not_kept(shop, monkeypatch):
    """A model that could not be fetched, and now can."""
    package = ModuleType("sentence_transformers")

    def refuse(name, **_):
        raise OSError("no network")

    package.SentenceTransformer = refuse
    monkeypatch.setitem(sys.modules, "sentence_transformers", package)
    monkeypatch.setattr(data, "_versions", lambda: {"sentence-transformers": "3.0"})
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    first = encoded(shop)
    assert encoded(shop) == first

    class SentenceTransformer:
        def __init__(self, name, **_):
            pass

        def encode(self, texts, **_):
            return np.array([[len(text), 1.0] for text in texts], np.float32)

    package.SentenceTransformer = SentenceTransformer
    other = encoded(shop)
    assert other[0] != first[0]
    assert other[1] != first[1]


def test_dropped_unknown_items_are_counted(shop, capsys):
    """Once for all runs, each of which reads them alone."""
    items = pd.read_csv(shop / "items.csv")
    items[:50].to_csv(shop / "few.csv", index=False)
    clicks = pd.read_csv(shop / "clicks.csv")
    lost = clicks[~clicks["item_id"].isin(items["item_id"][:50])]
    files = ["--interactions", shop / "clicks.csv", "--items", shop / "few.csv"]
    small = ["--methods", "id", "--seeds", 0, "--epochs", 1, "--dim", 8, "--output", shop / "out"]
    command = list(map(str, ["compare", *files, *small]))
    assert main(command) == 2
    assert "--unknown-items drop" in capsys.readouterr().err
    assert main([*command, "--unknown-items", "drop"]) == 0
    counts = f"dropped {len(lost)} interactions, "
    assert f"data.clicks: unknown items: {counts}" in capsys.readouterr().out
    record = json.loads((shop / "out" / "runs.json").read_text())["runs"]
    report = RunFolder(shop / "out" / "runs" / next(iter(record))).report()
    assert report["interactions_dropped"] == len(lost)


def test_data_that_has_changed_meanwhile_is_not_trained_on(shop, monkeypatch):
    """Its figures would be on record as of what it was."""
    monkeypatch.setattr(running, "_WORKER", ("-c", "print('begun')"))
    comparison = read_comparison(shop / "compare.toml")
    known = data.inspect_data(comparison.datasets[0], comparison, shop, lambda _: None)
    config = next(comparison.trials(comparison.datasets[0], comparison.methods[0]))
    job = known.job("shop", "AlphaFuse, add", config)

    def error():
        return running.run_job(job, shop, 1, "cpu", threading.Event())["error"]

    assert error() == "begun"
    rows = np.load(shop / "rows.npy")
    for change in (rows[::-1], rows[:-1]):
        np.save(shop / "rows.npy", change)
        assert re.match(r"embeddings: written to since they were looked at", error())
    (shop / "rows.npy").unlink()
    (shop / "clicks.csv").touch()
    assert re.match(r"interactions, embeddings: written to", error())
    assert not list(shop.glob("*.job.json"))


def test_nothing_is_encoded_where_another_process_compares(shop):
    text = (SMALL + METHODS).replace('embeddings = "$ROWS/rows.npy"', "")
    (shop / "compare.toml").write_text(text)
    (shop / "out").mkdir()
    comparison = read_comparison(shop / "compare.toml")
    with lock_folder(shop / "out"), pytest.raises(BlockingIOError, match=r"^output: got .*another"):
        compare(comparison, shop / "out", finished=True)
    assert not list((shop / "out").iterdir())


@pytest.mark.parametrize(
    "name", ["../../../esc", "/esc", "a/b", ".", "con", "n" * 5000, "a\\b", "shop|$x$", "商店 😀"]
)
def test_names_are_labels_and_no_paths(shop, name):
    """Whatever they are, all that is made is made in the comparison's folder."""
    text = (SMALL + METHODS).replace('embeddings = "$ROWS/rows.npy"', "").replace("[3, 5]", "[3]")
    text = text.replace("data.shop", f"data.{json.dumps(name, ensure_ascii=False)}")
    text = text.replace("methods.id", f"methods.{json.dumps(name, ensure_ascii=False)}")
    (shop / "compare.toml").write_text(text.replace("dropout = [0.1, 0.3]", ""))
    comparison = read_comparison(shop / "compare.toml")
    before = {path for path in shop.rglob("*") if path.is_file()}
    rows = compare(comparison, shop / "deep" / "er" / "out", finished=True, log=lambda _: None)
    assert [(row.dataset, row.method) for row in rows] == [(name, "AlphaFuse, add"), (name, name)]
    for row in rows:
        job = Job(row.dataset, row.method, {}, row.trials[0].config, "digest")
        assert re.fullmatch(r"[a-z0-9-]{1,200}", job.name)
    made = {path for path in shop.rglob("*") if path.is_file()} - before
    assert made
    for path in made:
        assert path.is_relative_to(shop / "deep" / "er" / "out")
    assert not Path("/esc").exists()


@pytest.mark.parametrize("name", ["", " ", " shop", "two\nlines", "a\tb", "\x7f", "a\u2028b"])
@pytest.mark.parametrize("kind", ["data", "methods"])
def test_names_that_no_table_can_show_are_refused(shop, name, kind):
    said = {"data": "data.shop", "methods": "methods.id"}[kind]
    text = (SMALL + METHODS).replace(said, f"{kind}.{json.dumps(name)}".replace("\x7f", "\\u007f"))
    (shop / "compare.toml").write_text(text)
    with pytest.raises(ValueError, match=rf"^{kind}: got .*; expected a name of printable"):
        read_comparison(shop / "compare.toml")


def test_a_data_set_of_flags_is_named_by_its_file(shop):
    for file, name in (("clicks.csv.gz", "clicks"), (".csv", ".csv"), ("..csv", "..csv")):
        (shop / file).touch()
        made = comparison_of({"interactions": shop / file}, ["id"], [1], {})
        assert made.datasets[0].name == name


def test_item_ids_that_learn_by_language_need_some(shop):
    text = SMALL.replace('embeddings = "$ROWS/rows.npy"', "")
    method = '[methods.smoothed]\nitem_embedding = "id"\nlanguage_smoothing = 0.2\n'
    (shop / "compare.toml").write_text(text + method)
    rows = compare(read_comparison(shop / "compare.toml"), shop / "texts", log=lambda _: None)
    assert [run["config"]["language_smoothing"] for run in rows[0].runs] == [0.2] * 2
    without = text.replace('items = "items.csv"', "")
    assert without != text
    (shop / "none.toml").write_text(without + method)
    with pytest.raises(ValueError, match=r"methods.smoothed: got no language embeddings"):
        compare(read_comparison(shop / "none.toml"), shop / "none", log=lambda _: None)


def test_by_flags(shop, capsys):
    arguments = ["compare", "--seeds", "3", "--output", str(shop / "out")]
    data = [f"--{name}={shop / name}.csv" for name in ("items",)]
    data += [f"--interactions={shop / 'clicks.csv'}", f"--embeddings={shop / 'rows.npy'}"]
    small = ["--dim", "8", "--epochs", "1", "--history", "6"]
    assert main([*arguments, *data, "--methods", "id", "frozen", *small]) == 0
    shown = capsys.readouterr().out
    assert "| frozen" in shown
    assert "## clicks" in shown
    assert main([*arguments, *data, "--methods", "id", "bert"]) == 2
    assert "methods: got 'bert'; expected one of alphafuse" in capsys.readouterr().err
    assert main(arguments) == 2
    assert "what to compare: got nothing" in capsys.readouterr().err
    assert main([*arguments, str(shop / "compare.toml"), "--dim", "8"]) == 2
    assert "--dim: got 8; expected none together with a TOML file" in capsys.readouterr().err
    assert main([*arguments, str(shop / "compare.toml"), "--processes", "0"]) == 2
    assert "processes: got 0" in capsys.readouterr().err
    assert main([*arguments, str(shop / "compare.toml"), "--device", "cuda:99"]) == 2
    assert "device: got" in capsys.readouterr().err


def test_seeds_of_flags_come_first(shop):
    assert read_comparison(shop / "compare.toml", seeds=[9]).seeds == (9,)
    sources = {"interactions": shop / "clicks.csv", "items": None}
    made = comparison_of(sources, ["id"], [1], {"dim": 8})
    assert made.datasets[0].sources == {"interactions": str(shop / "clicks.csv")}


def letters_of(figure):
    """What a picture says, as whoever looks at it reads it."""
    file = io.StringIO()
    with rc_context({"svg.fonttype": "none"}):
        figure.savefig(file, format="svg")
    return html.unescape(" ".join(re.findall(r"<text[^>]*>([^<]*)</text>", file.getvalue())))


@pytest.mark.parametrize(
    "name",
    ["$", "from $5 to $6^", r"$\frac$", "$x_1$ | ID", "<b>&amp;</b>", "a_b^c", "\\$5", "x" * 300],
)
def test_a_picture_shows_names_as_they_are(shop, name):
    text = SMALL.replace("data.shop", f"data.{json.dumps(name)}")
    (shop / "compare.toml").write_text(text + f"[methods.{json.dumps(name)}]\n")
    comparison = read_comparison(shop / "compare.toml")
    runs = [{"results": {"test": {"ndcg@10": value}}} for value in (0.1, 0.2)]
    shown = letters_of(picture(comparison, [Row(name, name, [], 0, runs)]))
    if len(name) > 100:
        assert "x" * 25 + "…" + "x" * 25 in shown  # and room for the rest
        assert len(shown) < 300
    else:
        assert shown.count(name) == 2


@pytest.mark.slow
def test_names_in_latex():
    names = ["a_b & 50% {x}", "~^\\$#"]
    methods = tuple(Method(name, {"item_embedding": "id"}) for name in names)
    comparison = Comparison((Dataset("d_1", {}),), methods, (0,))
    metrics = {f"{name}@{k}": 0.5 for name in ("hr", "ndcg") for k in (10, 20)}
    rows = [Row("d_1", name, [], 0, [{"results": {"test": metrics}}]) for name in names]
    tex = latex(comparison, rows)
    assert r"a\_b \& 50\% \{x\} & \textbf{0.5000}" in tex
    assert r"\textasciitilde{}\textasciicircum{}\textbackslash{}\$\# & " in tex


def test_tables_are_in_utf_8_wherever_they_are_written(shop):
    """Names in TOML are; a machine's own encoding may not have ±."""
    label = json.dumps("商店", ensure_ascii=False)
    text = (SMALL + METHODS).replace("data.shop", f"data.{label}")
    (shop / "compare.toml").write_text(text, encoding="utf-8")
    command = [sys.executable, "-X", "utf8=0", "-m", "alphafuse_ext", "compare"]
    command += [str(shop / "compare.toml"), "--output", str(shop / "out"), "--finished"]
    posix = {**os.environ, "LC_ALL": "POSIX", "PYTHONCOERCECLOCALE": "0"}
    posix["PYTHONIOENCODING"] = "utf-8"
    subprocess.run(command, env=posix, check=True, capture_output=True)
    assert "## 商店" in (shop / "out" / "compare.md").read_text(encoding="utf-8")


def test_a_table_is_markdown():
    assert table(["a", "long"], [["x|y", "1"]]) == [
        *("| a   | long |", "|-----|------|", "| x/y | 1    |"),
    ]
