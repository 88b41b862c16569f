"""Components of one's own: a model, a loss, an adapter and a metric, as users write them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import alphafuse_ext as af
from alphafuse_ext.cli import main
from alphafuse_ext.config import own
from alphafuse_ext.data import synthetic_catalog
from alphafuse_ext.models import SASRec

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
SMALL = {"dim": 8, "epochs": 2, "history": 6, "batch_size": 64, "encoder": "tfidf", "threads": 1}


def margin_loss(table, hidden, targets, margin: float = 0.5, power: int = 1):
    """A hinge of each target against the whole catalog."""
    has_target = targets != table.padding_idx
    scores = table.score_all(hidden[has_target])
    wanted = scores.gather(1, targets[has_target][:, None])
    return F.relu(margin + scores - wanted).pow(power).mean(1).sum()


class Linear(nn.Module):
    """A linear map of language rows, with ID embeddings where it is given them."""

    def __init__(self, width: int, dim: int, bias: bool = True):
        super().__init__()
        self.layer = nn.Linear(width, dim, bias=bias)

    def forward(self, language, own):
        return self.layer(language) if own is None else self.layer(language) + own


def beyond_accuracy(lists, targets, item_counts, log_base: float = 2.0):
    """Coverage of the catalog, and novelty: self-information of what is recommended."""
    shown = lists[lists >= 0]
    share = (item_counts + 1) / (item_counts + 1).sum()
    novelty = -np.log(share[shown]).mean() / np.log(log_base)
    return {"coverage": len(np.unique(shown)) / len(item_counts), "novelty": novelty}


def hits(lists, targets, item_counts):
    return (lists == targets[:, None]).any(1).mean()


class Narrow(SASRec):
    """A model of ours with another default and a setting more."""

    def __init__(self, table, dropout: float = 0.1, pool: Literal["last", "mean"] = "last", **rest):
        super().__init__(table, dropout=dropout, **rest)
        self.pool = pool


class Deeper(Linear):
    """An adapter that hands settings on to its base, with another default of one."""

    def __init__(self, width: int, dim: int, depth: int = 1, bias: bool = False, **rest):
        super().__init__(width, dim, bias=bias, **rest)
        self.depth = depth


class Deepest(Deeper):
    def __init__(self, width: int, dim: int, depth: int = 3, **rest):
        super().__init__(width, dim, depth=depth, **rest)


@pytest.fixture
def catalog():
    return synthetic_catalog(num_users=120, num_items=60, seed=2)


@pytest.fixture
def gru(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    from gru4rec import GRU4Rec

    return GRU4Rec


def silent(line: str) -> None:
    """Log nothing."""


def test_a_model_of_one_s_own(catalog, gru, tmp_path):
    """It trains, is read back, resumes bit for bit and is exported as others are."""
    options = {**SMALL, "log": silent, "model": gru, "hidden": 12, "layers": 2}
    whole = af.fit(*catalog, output=tmp_path / "whole", **options, loss="bce", negatives=4)
    assert isinstance(whole.model, gru)
    assert (whole.model.gru.hidden_size, whole.model.gru.num_layers) == (12, 2)
    assert whole.config.model == "gru4rec:GRU4Rec"
    assert whole.model.objective["loss"] == "bce"
    loaded = af.Recommender.load(tmp_path / "whole")
    assert loaded.evaluate() == whole.evaluate()
    half = af.fit(
        *catalog, output=tmp_path / "half", **{**options, "epochs": 1}, loss="bce", negatives=4
    )
    (tmp_path / "half" / "results.json").unlink()
    resumed = af.resume(half.run.path, epochs=2, log=silent)
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], tensor), name


def test_its_settings_are_flags(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(EXAMPLES)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if Path(p) != EXAMPLES])
    monkeypatch.delitem(sys.modules, "gru4rec", raising=False)
    run = [*("train", "--output", str(tmp_path / "run"), "--epochs", "1", "--dim", "8")]
    assert main([*run, "--model", "gru4rec:GRU4Rec", "--hidden", "6", "--threads", "1"]) == 0
    found = json.loads((tmp_path / "run" / "config.json").read_text())["config"]
    assert (found["model"], found["hidden"], found["layers"]) == ("gru4rec:GRU4Rec", 6, 1)
    assert "heads" not in found
    with pytest.raises(SystemExit):
        main(["train", "--model", "gru4rec:GRU4Rec", "--help-all"])
    assert "--hidden" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main([*run, "--hidden", "6"])
    assert "--hidden: no such option" in capsys.readouterr().err
    assert main([*run, "--model", "gru4rec:GRU4Rec", "--heads", "2"]) == 2
    assert "none with model=gru4rec:GRU4Rec" in capsys.readouterr().err


def test_a_loss_an_adapter_and_metrics_of_one_s_own(catalog, tmp_path):
    given = {"loss": margin_loss, "margin": 0.25, "item_embedding": Linear, "bias": False}
    lines: list[str] = []
    run = af.fit(
        *catalog,
        output=tmp_path / "run",
        **{**SMALL, "log": lines.append, **given, "adapter_ids": True, "metric": beyond_accuracy},
    )
    assert run.model.table.adapter.layer.bias is None
    assert run.model.objective == {"loss": run.config.loss, "margin": 0.25, "power": 1}
    kept = run.run.results()["own_metrics"]
    assert set(kept) == {"coverage@10", "novelty@10"}
    assert 0 < kept["coverage@10"] <= 1
    assert any(line.startswith("your own: coverage@10 ") for line in lines)
    loaded = af.Recommender.load(tmp_path / "run")
    assert isinstance(loaded.model.table.adapter, Linear)
    assert loaded.own_metrics() == kept
    found = loaded.evaluate()
    assert kept.items() <= found.items()


@pytest.mark.parametrize(("kind", "depth"), [(Deeper, 1), (Deepest, 3)])
def test_settings_that_are_handed_on_to_a_base_reach_it(catalog, tmp_path, kind, depth):
    """Of a setting that a class and its base have, the class's default counts."""
    assert af.Config(item_embedding=kind).depth == depth
    assert not af.Config(item_embedding=kind).bias
    given = {"item_embedding": kind, "depth": 2, "bias": True, "epochs": 1}
    run = af.fit(*catalog, output=tmp_path / "run", **{**SMALL, "log": silent, **given})
    adapter = af.Recommender.load(tmp_path / "run").model.table.adapter
    assert (adapter.depth, adapter.layer.bias is None) == (2, False)
    assert isinstance(run.model.table.adapter, kind)


def test_lists_are_those_that_are_ranked(catalog, tmp_path):
    """A hit rate of one's own is ours, seen items left out or not."""
    run = af.fit(
        *catalog, output=tmp_path / "run", **{**SMALL, "log": silent, "metric": hits, "metric_k": 5}
    )
    for keep_seen in (False, True):
        found = run.evaluate("validation", keep_seen=keep_seen)
        assert found["hits@5"] == pytest.approx(found["hr@5"], abs=1e-12)


def test_compare_takes_them(tmp_path, gru):
    """By their names in a file."""
    from alphafuse_ext.experiments.spec import read_comparison

    file = tmp_path / "compare.toml"
    (tmp_path / "clicks.csv").write_text("user,item\n1,2\n")
    file.write_text(
        '[settings]\nheads = 2\n[data.shop]\ninteractions = "clicks.csv"\n'
        '[methods.GRU4Rec]\nmodel = "gru4rec:GRU4Rec"\nlayers = [1, 2]\nitem_embedding = "id"\n'
        '[methods.SASRec]\nitem_embedding = "id"\n'
    )
    comparison = read_comparison(file)
    layers = [c.layers for c in comparison.trials(comparison.datasets[0], comparison.methods[0])]
    assert layers == [1, 2]
    (config,) = comparison.trials(comparison.datasets[0], comparison.methods[1])
    assert config.heads == 2


def test_a_model_of_ours_with_another_default():
    config = af.Config(model=Narrow)
    assert (config.dropout, config.pool, config.heads) == (0.1, "last", 1)
    for bad in ({"dropout": 1.0}, {"pool": "first"}):
        (name,) = bad
        with pytest.raises(ValueError, match=f"^{name}: got"):
            af.Config(model=Narrow, **bad)


class NoDefault(SASRec):
    def __init__(self, table, width: int, **rest): ...


class OtherType(SASRec):
    def __init__(self, table, width: list[int] | None = None, **rest): ...


def no_margin(table, hidden, targets, margin): ...


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"model": NoDefault}, r"^width: got no default in .*:NoDefault; expected a default"),
        ({"model": OtherType}, r"^width: got .* in .*:OtherType; expected int, float, bool"),
        ({"model": margin_loss}, r"^model: got .*margin_loss, a function; expected a subclass of"),
        ({"loss": SASRec}, r"^loss: got .*SASRec, a .*; expected a function of \(table, hidden"),
        ({"loss": no_margin}, r"^margin: got no default"),
        ({"item_embedding": hits}, r"^item_embedding: got .*hits, a function; expected a subclass"),
        ({"metric": "nowhere:hits"}, r"^metric: got 'nowhere:hits' \(No module named 'nowhere'\)"),
        ({"metric": "json:hits"}, r"^metric: got 'json:hits'; expected the name of a class or fun"),
        ({"metric": "hits"}, r"^metric: got 'hits'; expected package.module:name"),
        ({"metric_k": 5}, r"^metric_k: got 5; expected none without metric"),
        ({"model": lambda table: None}, r"^model: got .*; expected a class or function at the top"),
    ],
)
def test_what_is_none_is_named(given, message):
    with pytest.raises((ValueError, TypeError), match=message):
        af.Config(**given)


def test_only_what_is_asked_for_is_imported(tmp_path, monkeypatch):
    """A run folder does not make its reader import files that lie where the reader stands."""
    (tmp_path / "planted.py").write_text("raise SystemExit('imported')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p not in ("", str(tmp_path))])
    with pytest.raises(ValueError, match=r"^model: got 'planted:Model'"):
        own.find("model", "planted:Model")
