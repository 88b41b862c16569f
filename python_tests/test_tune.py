"""Searches: what they refuse, what they run, and what they hand on to a comparison."""

from __future__ import annotations

import dataclasses
import json
import warnings

import numpy as np
import pytest
from test_compare import SMALL, shop

from alphafuse_ext.cli import main
from alphafuse_ext.experiments import tune as tuning
from alphafuse_ext.experiments.compare import compare
from alphafuse_ext.experiments.jobs import EndedError, waiting
from alphafuse_ext.experiments.spec import Method, read_comparison, read_search
from alphafuse_ext.experiments.tune import tune

pytestmark = pytest.mark.slow

optuna = pytest.importorskip("optuna")
__all__ = ["shop"]  # a fixture

RANGES = """
[methods.AlphaFuse]
dropout = {low = 0.1, high = 0.6}
null_dim = {low = 2, high = 8, step = 2}
norm = ["pre", "post"]
[methods.id]
item_embedding = "id"
learning_rate = {low = 1e-4, high = 1e-2, log = true}
sparse = [false]
"""


@pytest.fixture
def search(shop):
    (shop / "search.toml").write_text(SMALL + RANGES)
    return read_search(shop / "search.toml")


def test_a_search_of_lists_alone(shop):
    ranges = "[methods.lists]\nmodel = 'neighbors'\nneighbors_language_weight = {low = 0, high = 2}"
    (shop / "lists.toml").write_text(SMALL + ranges)
    tuned = tune(read_search(shop / "lists.toml"), shop / "out", trials=2, log=None)
    assert (tuned[0].ended, tuned[0].failed) == (2, 0)
    assert 0 <= tuned[0].settings["neighbors_language_weight"] <= 2


def figures_of(job, value):
    """Of a run that ended with a validation metric."""
    results = {"validation": {job.config.select: value}}
    labels = {"dataset": job.dataset, "method": job.method, "content": job.content}
    return {**labels, "config": job.config.to_dict(), "results": results}


def pretended(values):
    """A run that ends at once with the next of some validation metrics."""
    left = iter(values)

    def run_job(job, runs, threads, device, ended, watch):
        value = next(left)
        if isinstance(value, str):
            return {**figures_of(job, 0.0), "error": value}
        return figures_of(job, value)

    return run_job


def test_a_search_and_the_comparison_of_what_it_found(shop, search, capsys):
    lines: list[str] = []
    found = tune(search, shop / "out", trials=1, log=lines.append)
    assert [(one.method, one.ended, one.stopped, one.failed) for one in found] == [
        *(("AlphaFuse", 1, 0, 0), ("id", 1, 0, 0)),
    ]
    assert [line.split(", ")[0] for line in lines] == ["run 1 of 2", "run 2 of 2"]
    assert ["left" in line for line in lines] == [True, False]
    best = found[0].settings
    assert 0.1 <= best["dropout"] <= 0.6
    assert best["null_dim"] in (2, 4, 6, 8)
    assert best["norm"] in ("pre", "post")
    comparison = read_comparison(shop / "out" / "tuned.toml", seeds=[3])
    rows = compare(comparison, shop / "out", finished=True)
    assert [row.runs[0]["results"]["validation"]["ndcg@20"] for row in rows] == [
        one.validation for one in found
    ]
    assert rows[0].trials[0].config.null_dim == best["null_dim"]
    command = ["tune", str(shop / "search.toml"), "--output", str(shop / "out"), "--trials", "1"]
    assert main(command) == 0  # all on record
    assert "| id " in capsys.readouterr().out


def test_a_budget_is_for_all_that_was_tried(shop, search, monkeypatch):
    monkeypatch.setattr(tuning, "run_job", pretended([0.1, "no memory", 0.3, 0.2, 0.2, 0.2]))
    found = tune(search, shop / "out", trials=3, log=lambda _: None)
    assert [(one.ended, one.failed, one.validation) for one in found] == [(2, 1, 0.3), (3, 0, 0.2)]
    # It goes on where it stopped: two more of each.
    monkeypatch.setattr(tuning, "run_job", pretended([0.5, 0.1, 0.1, 0.6]))
    found = tune(search, shop / "out", trials=5, log=lambda _: None)
    assert [(one.ended, one.failed, one.validation) for one in found] == [(4, 1, 0.5), (5, 0, 0.6)]
    page = (shop / "out" / "tune.md").read_text()
    assert "0.6000" in page


def test_a_trial_that_was_cut_off_is_tried_again(shop, search, monkeypatch):
    settings, cut_off = [], [True]

    def run_job(job, *_):
        settings.append((job.config.dropout, job.config.null_dim, job.config.norm))
        if cut_off[0]:
            raise KeyboardInterrupt
        return figures_of(job, 0.1)

    monkeypatch.setattr(tuning, "run_job", run_job)
    with pytest.raises(KeyboardInterrupt):
        tune(search, shop / "out", trials=2, log=lambda _: None)
    before = len(settings)  # one, or the next as well
    cut_off[0] = False
    found = tune(search, shop / "out", trials=2, log=lambda _: None)
    assert settings[before : 2 * before] == settings[:before]
    assert [(one.ended, one.failed) for one in found] == [(2, 0), (2, 0)]


def test_a_trial_below_the_median_is_stopped(shop, search, monkeypatch):
    """The first five never are; the last shows two bad epochs after its warm-up."""
    shown = []

    def run_job(job, runs, threads, device, ended, watch):
        folder = runs / job.name
        folder.mkdir()
        count, value = 0, 0.1 if len(shown) == 5 else 0.5
        lines = ""
        for epoch in range(1, 9):
            lines += json.dumps({"epoch": epoch, "validation": {job.config.select: value}}) + "\n"
            (folder / "metrics.jsonl").write_text(lines)
            count = epoch
            if watch(folder):
                break
        shown.append(count)
        return figures_of(job, value)

    monkeypatch.setattr(tuning, "run_job", run_job)
    (shop / "search.toml").write_text(SMALL + RANGES.partition("[methods.id]")[0])
    found = tune(read_search(shop / "search.toml"), shop / "out", trials=6, log=lambda _: None)
    assert shown[:5] == [8] * 5
    assert shown[5] == tuning.WARMUP_EPOCHS
    assert (found[0].ended, found[0].stopped) == (5, 1)
    assert len(list((shop / "out" / "runs").iterdir())) == 5  # what was stopped is cleared away


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (("high = 0.6", "high = 0.1"), ValueError, r"^methods.AlphaFuse: dropout: got 0.1 to 0.1"),
        (("high = 0.6", "high = 1.6"), ValueError, r"^methods.AlphaFuse: dropout: got 1.6"),
        (("high = 0.6", "hihg = 0.6"), ValueError, r"^methods.AlphaFuse: dropout: hihg: got it"),
        (("high = 0.6", 'high = "x"'), TypeError, r"^methods.AlphaFuse: dropout: high: got 'x'"),
        (("low = 1e-4", "low = 0"), ValueError, r"^methods.id: learning_rate: low: got 0;"),
        (("log = true", "log = 1"), TypeError, r"^methods.id: learning_rate: log: got 1"),
        (("step = 2", "step = 0"), ValueError, r"^methods.AlphaFuse: null_dim: step: got 0"),
        (('["pre", "post"]', "[]"), ValueError, r"^methods.AlphaFuse: norm: got \[\]"),
        (("dropout", "dropuot"), TypeError, r"^methods.AlphaFuse: dropuot: got"),
        ((RANGES, "[methods.id]\ndim = 8"), ValueError, r"^methods.id: got nothing to search"),
    ],
)
def test_invalid_settings_are_named_before_anything_runs(shop, change, error, message):
    (shop / "search.toml").write_text((SMALL + RANGES).replace(*change))
    with pytest.raises(error, match=message):
        read_search(shop / "search.toml")


def test_ranges_are_not_for_comparisons(shop):
    (shop / "search.toml").write_text(SMALL + RANGES)
    with pytest.raises(ValueError, match=r"^methods.AlphaFuse: dropout: got .*for alphafuse tune"):
        read_comparison(shop / "search.toml")


def test_no_trials(shop, search):
    with pytest.raises(ValueError, match=r"^trials: got 0"):
        tune(search, shop / "out", trials=0)
    assert not (shop / "out").exists()


def test_a_search_of_other_data_or_settings_is_another(shop, search, monkeypatch):
    """Trials count for the data, the seed and the settings that they ran with, and no others."""

    def ended(search):
        return [one.ended for one in tune(search, shop / "out", trials=2, log=lambda _: None)]

    calls = []

    def run_job(job, *_):
        calls.append(job)
        return figures_of(job, 0.1)

    monkeypatch.setattr(tuning, "run_job", run_job)
    small = dataclasses.replace(search, methods=search.methods[:1])
    assert ended(small) == [2]
    assert ended(small) == [2]
    assert len(calls) == 2
    for other in (
        dataclasses.replace(small, seed=11),
        dataclasses.replace(small, settings={**small.settings, "history": 5}),
    ):
        before = len(calls)
        assert ended(other) == [2]
        assert len(calls) == before + 2
    rows = np.load(shop / "rows.npy")
    np.save(shop / "rows.npy", rows[::-1])
    before = len(calls)
    assert ended(small) == [2]
    assert len(calls) == before + 2


def test_a_search_goes_on_under_new_names(shop, search, monkeypatch):
    """Trials that ran under the old names of settings count, and so do the best of them."""
    now = {"space_split": ["soft", "learned"], "dropout": {"low": 0.1, "high": 0.6}}
    now = dataclasses.replace(search, methods=(Method("gains", now),))
    monkeypatch.setattr(tuning, "run_job", pretended([0.3, 0.2]))
    tune(now, shop / "out", trials=2, log=lambda _: None)
    journal = shop / "out" / "tune.journal"
    assert '"space_split"' in journal.read_text()
    journal.write_text(journal.read_text().replace('"space_split"', '"split"'))
    monkeypatch.setattr(tuning, "run_job", pretended([0.1]))
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        (found,) = tune(now, shop / "out", trials=3, log=lambda _: None)
        best = read_comparison(shop / "out" / "tuned.toml").methods[0].settings
    assert (found.ended, found.validation) == (3, 0.3)
    assert found.settings == best
    assert best.keys() == {"space_split", "dropout"}


@pytest.mark.parametrize("name", ["商店 😀", 'a "b" \\c', "x|$y$", "../up"])
def test_what_was_found_is_read_back_under_any_name(shop, name, monkeypatch):
    label = json.dumps(name, ensure_ascii=False)
    text = SMALL.replace("data.shop", f"data.{label}") + RANGES.replace(
        "methods.id", f"methods.{label}"
    )
    (shop / "search.toml").write_text(text)
    monkeypatch.setattr(tuning, "run_job", pretended([0.1, 0.1]))
    tune(read_search(shop / "search.toml"), shop / "out", trials=1, log=lambda _: None)
    found = read_comparison(shop / "out" / "tuned.toml")
    assert [one.name for one in found.datasets] == [name]
    assert [one.name for one in found.methods] == ["AlphaFuse", name]


def test_exit_status_of_a_method_without_a_trial(shop, monkeypatch, capsys):
    (shop / "search.toml").write_text(SMALL + RANGES)
    command = ["tune", str(shop / "search.toml"), "--output", str(shop / "out"), "--trials"]
    monkeypatch.setattr(tuning, "run_job", pretended(["no memory", 0.1, 0.1, 0.1]))
    assert main([*command, "1"]) == 1
    assert "no successful trial of AlphaFuse on shop" in capsys.readouterr().err
    assert main([*command, "2"]) == 0


def test_a_trial_that_was_ended_is_no_failure(shop, search, monkeypatch):
    """Ctrl-C while others run: they are as those that were cut off."""

    def run_job(job, runs, threads, device, ended, watch):
        if job.config.item_embedding != "id":
            return figures_of(job, 0.1)
        ended.wait()
        raise EndedError(job.name)

    monkeypatch.setattr(tuning, "run_job", run_job)
    one = dataclasses.replace(search, methods=search.methods[1:])
    study = None

    def submitted(self, runs, trials, *rest):
        nonlocal study
        study = self.study
        with waiting(2) as (pool, ended):
            found = pool.submit(self._trial, runs, 1, "cpu", ended)
            while not study.get_trials(states=(optuna.trial.TrialState.RUNNING,)):
                pass
            raise KeyboardInterrupt
        assert found

    monkeypatch.setattr(tuning._Search, "run", submitted)
    with pytest.raises(KeyboardInterrupt):
        tune(one, shop / "out", trials=1, log=lambda _: None)
    assert [trial.state.name for trial in study.get_trials()] == ["RUNNING"]
    assert not (shop / "out" / "runs.json").exists()
