"""Training as a whole: repeatable, resumable, and better than what it must beat."""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import re
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

import alphafuse_ext as af
from alphafuse_ext import _core
from alphafuse_ext.config import large
from alphafuse_ext.config import model as of_models
from alphafuse_ext.config.item_embedding import ADAPTERS
from alphafuse_ext.data import synthetic_catalog
from alphafuse_ext.models import next_item
from alphafuse_ext.ops import native
from alphafuse_ext.reports.run import write_run_report
from alphafuse_ext.training import trainer as training

SMALL = {"dim": 16, "epochs": 3, "negatives": 16, "history": 8, "dropout": 0.1}

# Three interactions of each user: after two are held out, nothing is left to predict.
SHORT = pd.DataFrame(
    {"user_id": np.repeat(np.arange(9), 3), "item_id": [f"item{n:05d}" for n in range(27)]}
)


def silent(_: str) -> None:
    pass


@pytest.fixture(scope="module")
def catalog() -> tuple[pd.DataFrame, pd.DataFrame]:
    return synthetic_catalog(num_users=300, num_items=120, seed=1)


@pytest.fixture(scope="module")
def embeddings(catalog) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(len(catalog[1]), 24)).astype(np.float32)


def fit(catalog, embeddings, output: Path, **options) -> af.Recommender:
    small = SMALL
    if options.get("loss") == "cross_entropy":
        small = {name: value for name, value in small.items() if name != "negatives"}
    return af.fit(*catalog, embeddings, output, **{"log": silent, **small, **options})


def state(run: Path) -> dict[str, torch.Tensor]:

    return load_file(run / "last.safetensors")


def assert_same_run(first: Path, second: Path) -> None:
    one, other = state(first), state(second)
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name
    results = [json.loads((run / "results.json").read_text()) for run in (first, second)]
    for key in ("test", "validation", "best_epoch", "popularity"):
        assert results[0][key] == results[1][key]


@pytest.mark.parametrize("loss", ["cross_entropy", "sampled_softmax", "infonce", "bce"])
def test_same_seed_same_numbers(catalog, embeddings, tmp_path, loss):
    fit(catalog, embeddings, tmp_path / "a", loss=loss, epochs=2)
    torch.rand(3)  # what went before must not matter
    fit(catalog, embeddings, tmp_path / "b", loss=loss, epochs=2)
    assert_same_run(tmp_path / "a", tmp_path / "b")


def test_another_seed_other_numbers(catalog, embeddings, tmp_path):
    for seed in (0, 1):
        fit(catalog, embeddings, tmp_path / str(seed), seed=seed, epochs=1)
    one, other = state(tmp_path / "0"), state(tmp_path / "1")
    assert not torch.equal(one["norm.weight"], other["norm.weight"])


@pytest.mark.parametrize(
    "options",
    [
        {"sparse": False},
        {"sparse": True},
        {"negative_sampling": "popularity", "learning_rate_schedule": "cosine", "warmup": 1.5},
        {"negative_sampling": "in-batch", "negatives_per": "batch"},
        {"loss": "cross_entropy", "negatives": None, "language_smoothing": 0.2},
    ],
    ids=str,
)
def test_a_resumed_run_is_the_uninterrupted_run(
    catalog, embeddings, tmp_path, options, monkeypatch
):
    fit(catalog, embeddings, tmp_path / "whole", **options)
    loss, calls = next_item.next_item_loss, []

    def interrupt(*arguments, **options):
        calls.append(1)
        if len(calls) == 5:  # in the second epoch: an epoch has three batches
            raise KeyboardInterrupt
        return loss(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(next_item, "next_item_loss", interrupt)
        with pytest.raises(KeyboardInterrupt):
            fit(catalog, embeddings, tmp_path / "cut", **options)
    assert len(af.RunFolder(tmp_path / "cut").epochs()) == 1
    usable = af.Recommender.load(tmp_path / "cut").recommend(k=3)
    assert usable["user"].nunique() == 300
    af.resume(tmp_path / "cut", log=silent)
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


@pytest.mark.parametrize(
    ("options", "loss", "why"),
    [
        ({}, "cross_entropy", "the full catalog up to 50,000 items, sampled beyond"),
        ({"sparse": True}, "sampled_softmax", "as sparse asks for a sampled one"),
        ({"logq": True}, "sampled_softmax", "as a setting of negatives is given"),
    ],
)
def test_the_default_loss_is_logged(catalog, embeddings, tmp_path, options, loss, why):
    lines: list[str] = []
    options = {"epochs": 1, "negatives": None, "log": lines.append, **options}
    recommender = fit(catalog, embeddings, tmp_path / "run", **options)
    assert recommender.config.loss == loss
    assert f"loss: {loss}, of a catalog of 120 items ({why})" in lines


def test_what_a_run_prints_is_made_to_be_read(catalog, embeddings, tmp_path):
    """No dictionaries, lists or names of fields; columns are explained; warnings come once."""
    clicks, items = catalog
    again = clicks[clicks["user_id"].isin(clicks["user_id"].unique()[:60])]
    later = again.groupby("user_id").tail(3).assign(timestamp=clicks["timestamp"].max() + 1)
    lines: list[str] = []
    options = {"epochs": 2, "log": lambda line: lines.extend(line.splitlines())}
    fit((pd.concat([clicks, later]), items), embeddings, tmp_path / "run", **options)
    assert not [line for line in lines if any(sign in line for sign in ("_examples", "[", "{"))]
    assert sum("their users had before" in line for line in lines) == 1
    (header,) = (place for place, line in enumerate(lines) if line.startswith("epoch "))
    assert lines[header].split() == [
        *("epoch", "loss", "ndcg@20", "hr@10", "train", "s", "rank", "s", "left")
    ]
    before = " ".join(lines[:header])
    for column in ("loss: ", "ndcg@20, hr@10: ", "train s, rank s: ", "left: ", "*: "):
        assert column in before
    assert "at most 2 epochs" in before
    assert lines[header + 2].split()[6:8] == ["0", "s"]  # left after the last epoch
    assert any(line.startswith("split leave-one-out: ") for line in lines)


@pytest.mark.parametrize("where", ["terminal", "pipe", "log"])
def test_bars_stand_beside_a_log_that_is_printed_in_a_terminal(
    catalog, embeddings, tmp_path, monkeypatch, where
):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    out, err = io.StringIO() if where == "pipe" else Terminal(), Terminal()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    fit(catalog, embeddings, tmp_path / "run", epochs=2, log=silent if where == "log" else print)
    if where == "terminal":
        assert "epoch 1 of 2: " in err.getvalue()
        assert re.search(r"epoch 2 of 2, \d+ s left at most: ", err.getvalue())
        assert "rank: " in err.getvalue()
    else:
        assert "epoch" not in err.getvalue()
        assert "rank: " not in err.getvalue()
    assert ("epoch " in out.getvalue()) == (where != "log")


def test_a_preset_is_printed_and_on_the_page(catalog, embeddings, tmp_path):
    lines: list[str] = []
    given = {"preset": "paper-toys", "dim": 24, "null_dim": 12, "loss": "cross_entropy"}
    options = {"epochs": 1, "log": lines.append}
    recommender = af.fit(*catalog, embeddings, tmp_path / "run", **given, **options)
    (said,) = (line.replace("\n  ", " ") for line in lines if line.startswith("preset "))
    first, changed, dropped = said.splitlines()
    assert first.startswith("preset paper-toys: history 10, ")
    assert "init normal" in first
    assert "epochs" not in said
    assert changed == ("in place of the preset's: dim 24, null_dim 12, loss cross_entropy")
    assert dropped == "left out, as the chosen components do not have them: negatives"
    assert recommender.run.source()["preset"] == "paper-toys"
    assert "Preset: paper-toys" in write_run_report(recommender).read_text()


def test_a_preset_s_negatives_go_with_its_loss(catalog, embeddings, tmp_path):
    options = {"preset": "paper-toys", "dim": 24, "null_dim": 12, "epochs": 1, "log": silent}
    for loss, negatives in ((None, 64), ("cross_entropy", None)):
        given = options if loss is None else {**options, "loss": loss}
        run = af.fit(*catalog, embeddings, tmp_path / str(loss), **given)
        assert run.config.negatives == negatives


def test_a_soft_split_without_power_trains_all_directions_alike(catalog, embeddings, tmp_path):
    fit(catalog, embeddings, tmp_path / "soft", space_split="soft", space_split_power=0.0)
    fit(catalog, embeddings, tmp_path / "all", null_dim=16)
    results = [af.RunFolder(tmp_path / name).results() for name in ("soft", "all")]
    assert results[0]["test"] == results[1]["test"]
    soft, everything = state(tmp_path / "soft"), state(tmp_path / "all")
    assert torch.equal(soft["table.id_embeddings"], everything["table.id_embeddings"])


def test_a_run_that_ended_is_not_resumed(catalog, embeddings, tmp_path):
    fit(catalog, embeddings, tmp_path / "run", epochs=1)
    with pytest.raises(ValueError, match=r"^resume: got"):
        af.resume(tmp_path / "run", log=silent)


@pytest.mark.parametrize(
    "options",
    [
        {"item_embedding": "id"},
        {"item_embedding": "llminit"},
        {"item_embedding": "frozen"},
        {"fusion": "concat", "null_dim": 6, "standardize": False},
        {"null_dim": 16},
        {"null_dim": None, "null_threshold": 1.0, "dim": 24, "semantic_rms": 0.0},
        {"coordinates": "original"},
        {"coordinates": "projected"},
        {"weights": "frequency"},
        {"targets": "last", "epochs": 1},
        {"blocks": 2, "heads": 2, "zero_sink": False},
        {"negatives_per": "batch", "sparse": True, "negatives": 2000},  # of few the loss is noise
        {"keep_seen": True},
        {"protocol": "cold-start-users", "test_share": 0.2, "split_seed": 5},
        {"protocol": "time", "validation_share": 0.2},
        {"k_core": 3},
        {"truncate": False, "dim": None},
        {"loss": "infonce", "ranking_similarity": "dot"},
        *({"item_embedding": kind} for kind in ADAPTERS),
        {"item_embedding": "llm-esr", "model": "llm-esr", "negatives": 8},
        {"item_embedding": "morec", "adapter_ids": True, "loss": "cross_entropy"},
        {"item_embedding": "rlmrec-contrastive", "alignment_weight": 0.5, "init": "normal"},
        {"space_split": "soft"},
        {"space_split": "learned", "null_dim": 4, "space_split_power": 1.0, "blocks": 2},
        {
            "space_split": "soft",
            "sparse": True,
            "null_threshold": 1.0,
            "dim": 24,
            "semantic_rms": 0.0,
        },
        {"block": "bsarec", "filter_share": 0.5},
        {"block": "bsarec", "targets": "last", "epochs": 1},
        {"block": "ligr", "input_scale": 4.0},
        {"loss": "cross_entropy", "label_smoothing": 0.1},
        {"negative_sampling": "mixed", "logq": False},
        {"optimizer": "adamw", "weight_decay": 0.1, "weight_decay_on": "encoder"},
    ],
    ids=str,
)
def test_every_kind_of_run(catalog, embeddings, tmp_path, options):
    recommender = fit(catalog, embeddings, tmp_path / "run", **options)
    results = recommender.run.results()
    assert all(math.isfinite(value) for value in results["test"].values())
    losses = [line["loss"] for line in recommender.run.epochs()]
    assert min(losses) < losses[0] or len(losses) == 1
    assert (
        (tmp_path / "run" / "gains.png").exists()
        == ("gains" in results)
        == ("space_split" in options)
    )
    again = af.Recommender.load(tmp_path / "run")
    assert again.evaluate("test") == results["test"]
    pd.testing.assert_frame_equal(again.recommend(k=4), recommender.recommend(k=4))


def test_tensorboard_has_all_of_a_run(catalog, embeddings, tmp_path):
    recommender = fit(
        catalog, embeddings, tmp_path / "run", epochs=2, learning_rate_schedule="linear"
    )
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    board = EventAccumulator(str(tmp_path / "run")).Reload()
    results = recommender.run.results()

    def values(name):
        return [(one.step, one.value) for one in board.Scalars(name)]

    for name, value in results["test"].items():
        assert values(f"test/{name}") == [(2, pytest.approx(value))]
    lines = recommender.run.epochs()
    for part in ("train", "validation"):
        seconds = [line[f"{part}_seconds"] for line in lines]
        assert [value for _, value in values(f"seconds/{part}")] == pytest.approx(seconds)
    rates = [value for _, value in values("learning_rate")]
    assert len(rates) == 2
    assert 0 < rates[1] < rates[0] <= recommender.config.learning_rate
    content = board.PluginTagToContent("hparams")["_hparams_/session_start_info"]
    settings = HParamsPluginData.FromString(content).session_start_info.hparams
    assert settings["dim"].number_value == 16
    assert settings["item_embedding"].string_value == "alphafuse"
    assert "validate_every" not in settings  # which is None


def test_the_run_folder(catalog, embeddings, tmp_path):
    fit(catalog, embeddings, tmp_path / "run", epochs=2)
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert {
        "config.json", "metrics.jsonl", "results.json", "best.safetensors", "last.safetensors",
        "start.safetensors", "optimizer-2.safetensors", "spectrum.png", "curves.png",
        "items.parquet", "interactions.parquet",
    } <= names  # fmt: skip
    assert any(name.startswith("events.out.tfevents") for name in names)
    assert not any(".tmp" in name for name in names)
    description = json.loads((tmp_path / "run" / "config.json").read_text())
    assert description["config"]["dim"] == 16
    assert description["config"]["null_dim"] == 15
    assert description["data"]["users"] == 300
    assert description["environment"]["torch"] == torch.__version__


def test_embeddings_without_a_catalog(catalog, embeddings, tmp_path):
    """Whichever way says whose the rows are, the run is the same; the order of clicks is none."""
    clicks, items = catalog
    numbers = {token: number for number, token in enumerate(items["item_id"])}
    numbered = clicks.assign(item_id=clicks["item_id"].map(numbers))
    assert numbered["item_id"].drop_duplicates().tolist() != list(range(120))
    by_id = dict(zip(items["item_id"], embeddings, strict=True))
    shuffled = dict(sorted(by_id.items(), key=lambda pair: hash(pair[0])))
    ways = {
        "catalog": (clicks, items, embeddings),
        "row numbers": (numbered, None, embeddings),
        "ids": (clicks, None, by_id),
        "ids, shuffled": (clicks, items, shuffled),
    }
    for name, arguments in ways.items():
        rows = name == "row numbers"
        af.fit(*arguments, tmp_path / name, ids_are_rows=rows, log=silent, **SMALL)
        assert_same_run(tmp_path / "catalog", tmp_path / name)

    # Items of a mapping that no one clicked are cold ones; a click on an item without a row is an
    # error that counts them.
    cold = {**by_id, "new": embeddings[0]}
    assert (
        af.fit(clicks, None, cold, tmp_path / "cold", log=silent, **SMALL).items.tokens[-1] == "new"
    )
    del by_id[clicks["item_id"].iloc[0]]
    with pytest.raises(ValueError, match=r"interactions with items .* lacks: 'item"):
        af.fit(clicks, None, by_id, tmp_path / "missing", log=silent, **SMALL)
    with pytest.raises(ValueError, match=r"interactions with items .* lacks: 'item"):
        af.fit(
            clicks, None, embeddings, tmp_path / "tokens", log=silent, ids_are_rows=True, **SMALL
        )


def test_what_a_run_is_made_from(catalog, embeddings, tmp_path):
    def source(name, *arguments, **options):
        af.fit(*arguments, output=tmp_path / name, log=silent, **{**SMALL, "epochs": 1, **options})
        return json.loads((tmp_path / name / "config.json").read_text())["source"]

    catalog[0].to_csv(tmp_path / "clicks.csv", index=False)
    np.save(tmp_path / "e.npy", embeddings)
    found = source("files", tmp_path / "clicks.csv", catalog[1], tmp_path / "e.npy")
    assert found["interactions"] == str(tmp_path / "clicks.csv")
    assert found["items"] == "DataFrame"
    assert found["embeddings"]["from"] == str(tmp_path / "e.npy")
    assert found["embeddings"]["shape"] == [120, 24]
    digest = found["embeddings"]["sha256"]
    assert digest == hashlib.sha256(embeddings.tobytes()).hexdigest()
    found = source("texts", *catalog, encoder="tfidf")
    assert found["embeddings"]["from"] == "texts"
    assert found["embeddings"]["encoder"] == "tfidf"
    assert found["embeddings"]["versions"]["scikit-learn"]
    assert source("id", *catalog, embeddings, item_embedding="id")["embeddings"] is None


def test_the_selected_epoch_is_the_best(catalog, embeddings, tmp_path):
    recommender = fit(catalog, embeddings, tmp_path / "run", epochs=8, patience=2)
    lines, results = recommender.run.epochs(), recommender.run.results()
    values = [line["validation"]["ndcg@20"] for line in lines]
    assert results["best_epoch"] == 1 + int(np.argmax(values))
    assert results["validation"]["ndcg@20"] == max(values)
    assert len(lines) == min(8, results["best_epoch"] + 2)
    assert recommender.evaluate("validation") == results["validation"]


@pytest.mark.parametrize(
    ("argument", "change"),
    [
        ("embeddings", {"embeddings": np.ones((3, 24), np.float32)}),
        ("embeddings", {"embeddings": None, "items": None}),
        ("embeddings", {"items": None}),
        ("embeddings", {"items": None, "item_embedding": "id"}),
        ("embeddings", {"embeddings": np.ones((120, 24), np.float32)}),
        ("embeddings", {"embeddings": np.ones((120, 24), np.float32), "semantic_rms": 0.0}),
        ("embeddings", {"embeddings": {"item00000": np.ones(24)}}),
        ("ids_are_rows", {"ids_are_rows": True, "embeddings": None}),
        ("encoder", {"encoder": "tfidf"}),
        ("encoder_model", {"encoder_model": "some/model"}),
        ("encoder_model", {"encoder_model": "m", "encoder": "tfidf", "embeddings": None}),
        ("text_columns", {"items": None, "ids_are_rows": True, "text_columns": ["title"]}),
        ("null_dim", {"null_dim": 17}),
        ("dim", {"dim": 25}),
        ("language_embeddings", {"embeddings": np.full((120, 24), np.nan, np.float32)}),
        ("interactions", {"interactions": SHORT}),
        ("time_column", {"time_column": "when"}),
        ("device", {"device": "cuda"}),
    ],
)
def test_bad_input_leaves_nothing_behind(catalog, embeddings, tmp_path, argument, change):
    if argument == "device" and torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    arguments = {"interactions": catalog[0], "items": catalog[1], "embeddings": embeddings}
    with pytest.raises(ValueError, match=f"^{argument}: got"):
        af.fit(**{**arguments, **SMALL, **change}, output=tmp_path / "run", log=silent)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("options", [{}, {"loss": "infonce"}, {"model": "dreamrec"}])
def test_training_in_bfloat16(catalog, embeddings, tmp_path, options):
    """Near the same in float32 at first, repeatable, and parameters stay float32."""
    options = {"epochs": 1, "patience": 1, **options}
    if "model" in options:
        options |= {"timesteps": 20, "stride": 5, "negatives": None}
    losses = []
    for name, precision in (("a", "float32"), ("b", "bf16"), ("c", "bf16")):
        run = fit(catalog, embeddings, tmp_path / name, precision=precision, **options).run
        losses.append(run.epochs()[0]["loss"])
        tensors = run.model("last")[0].items()
        assert all(t.dtype == torch.float32 for _, t in tensors if t.is_floating_point())
    assert losses[1] == losses[2]
    assert 0 < abs(losses[0] - losses[1]) < 0.02 * losses[0]


@pytest.mark.parametrize("has", [False, True])
def test_bfloat16_by_default(catalog, embeddings, tmp_path, monkeypatch, has):
    """Where the processor has it and the catalog is large enough; said, and recorded."""
    monkeypatch.setattr(native, "BFLOAT16_ISAS", (_core.isa(),) if has else ())
    monkeypatch.setattr("alphafuse_ext.training.train.BFLOAT16_FROM", 120)
    losses, chosen, said = {}, {}, {}

    def train(name, **options):
        lines = []
        options = {"loss": "cross_entropy", "epochs": 1, "log": lines.append, **options}
        run = fit(catalog, embeddings, tmp_path / name, **options).run
        losses[name] = run.epochs()[0]["loss"]
        chosen[name] = run.config().precision
        assert run.results()["precision"] == chosen[name]
        assert run.results()["instruction_set"] == _core.isa()
        said[name] = [line for line in lines if "precision: " in line]

    train("default")
    train("exact", precision="float32")
    train("sampled", loss="sampled_softmax")
    assert chosen["sampled"] == "float32"
    assert chosen["default"] == ("bf16" if has else "float32")
    assert len(said["default"]) == has
    if has:
        train("asked", precision="bf16")
        assert losses["default"] == losses["asked"]
        assert 0 < abs(losses["default"] - losses["exact"]) < 1e-2 * losses["exact"]
    else:
        assert losses["default"] == losses["exact"]
    monkeypatch.setattr("alphafuse_ext.training.train.BFLOAT16_FROM", 121)
    train("small")
    assert chosen["small"] == "float32"


def test_an_existing_folder_is_left_alone(catalog, embeddings, tmp_path):
    (tmp_path / "run").mkdir()
    with pytest.raises(FileExistsError, match=r"^output: got"):
        fit(catalog, embeddings, tmp_path / "run")
    assert list((tmp_path / "run").iterdir()) == []


def test_half_a_checkpoint_is_refused(catalog, embeddings, tmp_path):
    fit(catalog, embeddings, tmp_path / "run", epochs=1)
    best = tmp_path / "run" / "best.safetensors"
    best.write_bytes(best.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"best\.safetensors"):
        af.Recommender.load(tmp_path / "run")


@pytest.mark.data
@pytest.mark.slow
def test_real_frozen_embeddings_reach_the_same_either_way(tmp_path):
    """Its ids are row numbers: taken in the order of appearance, NDCG@10 would fall by half."""
    if "ALPHAFUSE_DATA" not in os.environ:
        pytest.skip("ALPHAFUSE_DATA does not name the folder of the real data sets")
    folder = Path(os.environ["ALPHAFUSE_DATA"]) / "amazon-industrial"
    clicks, rows = folder / "amazon-industrial.inter", np.load(folder / "minilm-l6.npy")
    shuffled = np.random.default_rng(0).permutation(len(rows)).tolist()
    ways = {
        "catalog": {"items": folder / "amazon-industrial.item", "embeddings": rows},
        "rows": {"embeddings": rows, "ids_are_rows": True},
        "ids": {"embeddings": {number: rows[number] for number in shuffled}},
    }
    found = {}
    for name, arguments in ways.items():
        options = {"item_embedding": "frozen", "epochs": 6, "patience": 6}
        recommender = af.fit(clicks, output=tmp_path / name, **arguments, **options)
        found[name] = recommender.run.results()["test"]["ndcg@10"]
    assert found["rows"] == found["catalog"] > 0.06, found  # in the wrong order 0.025
    assert found["ids"] == pytest.approx(found["catalog"], rel=0.1), found


@pytest.mark.data
@pytest.mark.slow
def test_real_data_beats_popularity_and_id_only(tmp_path):
    """amazon-industrial, one seed, a few epochs."""
    if "ALPHAFUSE_DATA" not in os.environ:
        pytest.skip("ALPHAFUSE_DATA does not name the folder of the real data sets")
    folder = Path(os.environ["ALPHAFUSE_DATA"]) / "amazon-industrial"
    results = {}
    for item_embedding in ("alphafuse", "id"):
        recommender = af.fit(
            folder / "amazon-industrial.inter",
            folder / "amazon-industrial.item",
            folder / "minilm-l6.npy",
            tmp_path / item_embedding,
            item_embedding=item_embedding,
            epochs=12,
            patience=12,
        )
        results[item_embedding] = recommender.run.results()
    found = {name: result["test"]["ndcg@10"] for name, result in results.items()}
    found["popularity"] = results["id"]["popularity"]["ndcg@10"]
    assert found["alphafuse"] > found["popularity"], found
    assert found["alphafuse"] > found["id"], found


def test_fit_leaves_its_caller_alone(catalog, embeddings, tmp_path):
    torch.manual_seed(3)
    numbers, threads = torch.random.get_rng_state(), torch.get_num_threads()
    fit(catalog, embeddings, tmp_path / "run", epochs=1, threads=threads + 1)
    assert torch.equal(torch.random.get_rng_state(), numbers)
    assert torch.get_num_threads() == threads
    with pytest.raises(ValueError, match="a run that has not ended"):
        af.resume(tmp_path / "run", log=lambda _: None)
    with pytest.raises(ValueError, match="null_threshold"):
        fit(catalog, embeddings, tmp_path / "bad", dim=16, null_threshold=-1.0, threads=threads + 1)
    assert torch.equal(torch.random.get_rng_state(), numbers)
    assert torch.get_num_threads() == threads
    assert not (tmp_path / "bad").exists()


def test_a_run_goes_on_under_other_settings(catalog, embeddings, tmp_path, monkeypatch):
    def stop(self, checkpoint=None):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(training.Trainer, "run_epoch", stop)
        with pytest.raises(KeyboardInterrupt):
            fit(catalog, embeddings, tmp_path / "run", epochs=9)
    described = json.loads((tmp_path / "run" / "config.json").read_text())
    described["environment"]["torch"] = "1.0"
    (tmp_path / "run" / "config.json").write_text(json.dumps(described))
    said: list[str] = []
    threads = described["environment"]["threads"] + 1
    with pytest.raises(ValueError, match="epochs: got 0"):
        af.resume(tmp_path / "run", log=said.append, epochs=0)
    run = af.resume(tmp_path / "run", log=said.append, epochs=2, patience=7, threads=threads).run
    assert len(run.epochs()) == 2
    assert (run.config().epochs, run.config().patience, run.config().threads) == (2, 7, threads)
    warned = [line for line in said if line.startswith("warning: ")]
    assert any(f"threads {threads}, where the run began with {threads - 1}" in w for w in warned)
    assert any("where the run began with 1.0" in line for line in warned)


@pytest.mark.parametrize("device", ["banana", "mps", "meta", "cuda:99", 1.5])
def test_devices_that_are_none(catalog, embeddings, tmp_path, device):
    with pytest.raises(ValueError, match=r"^device: got"):
        fit(catalog, embeddings, tmp_path / "run", device=device)
    assert list(tmp_path.iterdir()) == []


def test_folders_of_another_kind_or_version(catalog, embeddings, tmp_path):
    run = fit(catalog, embeddings, tmp_path / "run", epochs=1).run
    path = run.path / "config.json"
    whole = json.loads(path.read_text())
    for change, message in (
        ({**whole, "format": 2}, "format 2, of a later version"),
        ({"name": "another program's"}, "does not describe a run"),
        ([1, 2], "does not describe a run"),
        ({name: value for name, value in whole.items() if name != "config"}, "no 'config'"),
        ({**whole, "config": {**whole["config"], "colour": "red"}}, "colour"),
        ({**whole, "config": {**whole["config"], "dim": 0}}, "dim: got 0"),
    ):
        path.write_text(json.dumps(change))
        with pytest.raises(af.UnreadableFileError, match=message):
            af.Recommender.load(run.path)


def test_a_relative_output_outlives_a_change_of_directory(
    catalog, embeddings, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    run = fit(catalog, embeddings, "run", epochs=1).run
    monkeypatch.chdir("/")
    assert run.results()["epochs"] == 1


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("steps", [1, 6, 9])
def test_a_run_interrupted_within_an_epoch_is_the_uninterrupted_run(
    catalog, embeddings, tmp_path, sparse, steps, monkeypatch
):
    options = {"sparse": sparse, "batch_size": 64, "validate_every": 2, "epochs": 3}
    options["checkpoint_minutes"] = 1e-9  # at every step, of which an epoch has six
    whole = fit(catalog, embeddings, tmp_path / "whole", **options).run
    loss, calls = next_item.next_item_loss, []

    def interrupt(*arguments, **options):
        calls.append(1)
        if len(calls) > steps:
            raise KeyboardInterrupt
        return loss(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(next_item, "next_item_loss", interrupt)
        with pytest.raises(KeyboardInterrupt):
            fit(catalog, embeddings, tmp_path / "cut", **options)
    folder = af.RunFolder(tmp_path / "cut")
    assert [*folder.path.glob("optimizer-*")] == [
        folder.path / f"optimizer-{steps // 6}{f'-{steps % 6}' if steps % 6 else ''}.safetensors"
    ]
    lines: list[str] = []
    af.resume(folder.path, log=lines.append)
    within = f", step {steps % 6} of the next" if steps % 6 else ""
    assert f"resume {folder.path} after epoch {steps // 6}{within}" in lines
    assert_same_run(tmp_path / "whole", tmp_path / "cut")
    timed = ("train_seconds", "validation_seconds")
    for one, other in zip(whole.epochs(), folder.epochs(), strict=True):
        for line in (one, other):
            for name in timed:
                del line[name]
        assert one == other
    best = whole.results()["best_epoch"]
    assert best in [line["epoch"] for line in whole.epochs()]
    assert f"by epoch {best:g}" in "\n".join(lines)


def test_frozen_rows_are_written_once(catalog, embeddings, tmp_path):
    """A checkpoint has what is trained, and of that the rows that changed."""
    run = fit(catalog, embeddings, tmp_path / "run", epochs=1, checkpoint_minutes=1e-9).run
    start, last = (set(load_file(run.path / f"{name}.safetensors")) for name in ("start", "last"))
    assert "table.semantic_rows" in start
    assert not any("semantic" in name for name in last)
    names = {name for path in run.path.glob("optimizer-*") for name in load_file(path)}
    assert names
    assert not any("semantic" in name for name in names)


def test_defaults_of_a_large_catalog_are_printed(catalog, embeddings, tmp_path, monkeypatch):
    for module in (large, of_models):
        monkeypatch.setattr(module, "FULL_CATALOG_UP_TO", 119)
    lines: list[str] = []
    options = {"epochs": 1, "negatives": None, "log": lines.append}
    run = fit(catalog, embeddings, tmp_path / "run", **options).run
    [line] = [line for line in lines if line.startswith("large catalog")]
    assert line.startswith("large catalog, 120 items: ID embeddings are updated where a batch")
    assert all(
        word in line for word in ("--no-sparse", "120 negatives (--negatives)", "batches of")
    )
    config = run.config()
    assert (config.loss, config.sparse, config.negatives_per) == ("sampled_softmax", True, "batch")
    lines.clear()
    options |= {"sparse": False, "negatives": 7, "negatives_per": "sequence", "batch_size": 64}
    config = fit(catalog, embeddings, tmp_path / "given", **options).run.config()
    assert (config.sparse, config.negatives, config.batch_size) == (False, 7, 64)
    assert not any(line.startswith("large catalog") for line in lines)
    fit(catalog, embeddings, tmp_path / "many", **{**options, "negatives": 130})
    assert "negatives: 130, drawn with replacement from a catalog of 120 items" in lines


def test_histories_are_read_as_earlier_versions_wrote_them(catalog, embeddings, tmp_path):
    """A Python list for each user, where now there are offsets."""
    run = fit(catalog, embeddings, tmp_path / "run", epochs=1).run
    now, path = run.interactions(), run.path / "interactions.parquet"
    frame = pd.read_parquet(path)
    assert [list(ids) for ids in frame["items"]] == [
        list(now.sequences[user]) for user in range(now.num_users)
    ]
    frame.to_parquet(path, index=False)
    again = run.interactions()
    for name in ("users", "items", "timestamps"):
        assert np.array_equal(getattr(again, name), getattr(now, name))
    assert np.array_equal(again.sequences.values, now.sequences.values)
    assert np.array_equal(again.sequences.offsets, now.sequences.offsets)
    frame["items"] = [[1, None], *frame["items"][1:]]
    frame.to_parquet(path, index=False)
    with pytest.raises(af.UnreadableFileError, match=r"interactions\.parquet.*missing values"):
        run.interactions()
