"""Settings: what fits together and what is refused."""

from __future__ import annotations

import pickle
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from conftest import fresh_generator

from alphafuse_ext import Config
from alphafuse_ext.config import layered
from alphafuse_ext.config.config import every_setting
from alphafuse_ext.config.large import BATCH_SIZE, FULL_CATALOG_UP_TO, SAMPLED
from alphafuse_ext.data import leave_one_out, read_interactions, read_items, synthetic_catalog
from alphafuse_ext.deprecation import digested_names
from alphafuse_ext.runs.assembly import build_model, build_table
from alphafuse_ext.training.trainer import Trainer

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


@pytest.mark.parametrize(
    ("argument", "options"),
    [
        ("item_embedding", {"item_embedding": "bert"}),
        ("dim", {"dim": 0}),
        ("null_dim", {"dim": 64, "null_dim": 65}),
        ("null_dim", {"dim": 64, "null_dim": 64, "fusion": "concat"}),
        ("null_dim", {"dim": 64, "null_dim": 0}),
        ("null_dim", {"item_embedding": "id", "null_dim": 8}),
        ("null_threshold", {"item_embedding": "llminit", "null_threshold": 0.1}),
        ("null_threshold", {"null_dim": 8, "null_threshold": 0.1}),
        ("heads", {"dim": 64, "heads": 3}),
        ("dropout", {"dropout": 1.0}),
        ("learning_rate", {"learning_rate": 0.0}),
        ("learning_rate", {"learning_rate": float("nan")}),
        ("temperature", {"temperature": -1.0}),
        ("weight_decay", {"weight_decay": -1.0}),
        ("semantic_rms", {"semantic_rms": -0.1}),
        ("patience", {"patience": 0}),
        ("select", {"select": "ndcg@7"}),
        ("sparse", {"sparse": True, "loss": "cross_entropy"}),
        ("weight_decay", {"sparse": True, "weight_decay": 1e-6}),
        ("sparse", {"sparse": True, "item_embedding": "frozen"}),
        ("sparse_optimizer", {"sparse_optimizer": "adagrad"}),
        ("sparse_optimizer", {"sparse": True, "sparse_optimizer": "adamw"}),
        ("sparse_learning_rate", {"sparse_learning_rate": 0.1}),
        ("sparse_learning_rate", {"sparse": True, "sparse_learning_rate": 0.0}),
        ("temperature", {"temperature": float("inf")}),
        ("learning_rate", {"learning_rate": float("inf")}),
        ("scale", {"scale": float("nan")}),
        ("seed", {"seed": 2**63}),
        ("coordinates", {"coordinates": "projected", "loss": "infonce"}),
        ("coordinates", {"coordinates": "original", "item_embedding": "id"}),
        ("coordinates", {"coordinates": "projected", "ranking_similarity": "cosine"}),
        ("truncate", {"truncate": False, "item_embedding": "id"}),
        ("protocol", {"protocol": "hold-out"}),
        ("test_share", {"test_share": 0.2}),
        ("test_share", {"test_share": 1.0, "protocol": "time"}),
        ("validation_share, test_share", {"test_share": 0.9, "protocol": "time"}),
        ("split_seed", {"split_seed": 1, "protocol": "time"}),
        ("split_seed", {"split_seed": -1, "protocol": "cold-start-users"}),
        ("k_core", {"k_core": 0}),
        ("ranking_similarity", {"ranking_similarity": "euclid"}),
        ("ranking_similarity", {"ranking_similarity": "cosine", "model": "dreamrec"}),
        ("item_embedding", {"model": "llm-esr"}),
        ("distillation_weight", {"distillation_weight": 0.1}),
        (
            "similar_users",
            {"similar_users": 0, "model": "llm-esr", "item_embedding": "llm-esr"},
        ),
        ("dim", {"dim": 15, "item_embedding": "llm-esr"}),
        ("heads", {"dim": 12, "heads": 4, "model": "llm-esr", "item_embedding": "llm-esr"}),
        ("adapter_ids", {"adapter_ids": True}),
        ("adapter_ids", {"adapter_ids": True, "item_embedding": "gated"}),
        ("experts", {"experts": 4, "item_embedding": "morec"}),
        ("experts", {"experts": 0, "item_embedding": "unisrec"}),
        ("whitening_groups", {"whitening_groups": 4, "item_embedding": "whitenrec"}),
        ("alignment_weight", {"alignment_weight": 0.1}),
        ("alignment_weight", {"alignment_weight": -0.1, "item_embedding": "rlmrec-generative"}),
        (
            "alignment_temperature",
            {"alignment_temperature": 0.0, "item_embedding": "rlmrec-contrastive"},
        ),
        ("sparse", {"sparse": True, "item_embedding": "morec"}),
        ("truncate", {"truncate": False, "item_embedding": "unisrec"}),
        ("null_dim", {"null_dim": 8, "item_embedding": "gated"}),
        ("space_split", {"space_split": "half"}),
        ("space_split", {"space_split": "soft", "item_embedding": "llminit"}),
        ("space_split", {"space_split": "soft", "loss": "infonce"}),
        ("space_split", {"space_split": "learned", "ranking_similarity": "cosine"}),
        ("space_split_power", {"space_split_power": 0.5}),
        ("space_split_power", {"space_split_power": -0.5, "space_split": "soft"}),
        ("fusion", {"space_split": "soft", "fusion": "concat"}),
        ("coordinates", {"space_split": "soft", "coordinates": "original"}),
        ("sparse", {"space_split": "learned", "sparse": True}),
        ("norm", {"norm": "pre", "block": "bsarec"}),
        ("filter_cutoff", {"filter_cutoff": 5}),
        ("filter_share", {"filter_share": 0.5, "block": "ligr"}),
        ("filter_share", {"filter_share": 1.1, "block": "bsarec"}),
        ("causal_filter", {"causal_filter": False, "block": "bsarec"}),
        ("feed_forward", {"feed_forward": 0}),
        ("input_scale", {"input_scale": 0.0}),
        ("negatives", {"negatives": 3, "model": "dreamrec"}),
        ("negatives", {"negatives": 0}),
        ("negatives", {"negatives": 8, "loss": "cross_entropy"}),
        ("negative_sampling", {"negative_sampling": "mixed", "loss": "cross_entropy"}),
        ("negative_sampling", {"negative_sampling": "frequency"}),
        ("label_smoothing", {"label_smoothing": 1.0}),
        ("label_smoothing", {"label_smoothing": 0.1, "loss": "bce"}),
        ("label_smoothing", {"label_smoothing": 0.1, "sparse": True}),
        ("label_smoothing", {"label_smoothing": 0.1, "negatives": 4}),
        ("language_smoothing", {"language_smoothing": 1.0}),
        ("language_smoothing", {"language_smoothing": 0.1, "loss": "infonce"}),
        ("language_smoothing", {"language_smoothing": 0.1, "sparse": True}),
        ("language_smoothing", {"language_smoothing": 0.1, "model": "dreamrec"}),
        ("logq", {"logq": True, "loss": "bce"}),
        ("logq", {"logq": True, "loss": "cross_entropy"}),
        ("warmup", {"warmup": 5.0, "epochs": 5}),
        ("warmup", {"warmup": -1.0}),
        ("optimizer", {"optimizer": "sgd"}),
        ("optimizer", {"optimizer": "adamw", "sparse": True}),
        ("learning_rate_schedule", {"learning_rate_schedule": "step"}),
        ("weight_decay_on", {"weight_decay_on": "encoder"}),
        (
            "weight_decay_on",
            {
                "weight_decay_on": "item-embeddings",
                "weight_decay": 0.1,
                "item_embedding": "frozen",
            },
        ),
    ],
)
def test_bad_settings_are_named(argument, options):
    with pytest.raises(ValueError, match=f"^{argument}: got"):
        Config(**options)


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        *(("dim", 64.0), ("dim", "64"), ("epochs", True), ("dropout", "0.1"), ("dropout", True)),
        *(("sparse", 1), ("select", None), ("seed", None), ("threads", 1.5), ("scale", [0.1])),
    ],
)
def test_settings_of_a_wrong_type_are_named(argument, value):
    with pytest.raises(TypeError, match=f"^{argument}: got"):
        Config(**{argument: value})


def test_numbers_of_numpy_are_numbers():
    config = Config(dim=np.int64(64), dropout=np.float32(0.5), temperature=1)
    assert (config.dim, config.dropout, config.temperature) == (64, 0.5, 1)


def test_all_directions_and_one_of_them():
    with pytest.raises(ValueError, match=r"^dim: got 64; expected none with truncate=False"):
        Config(truncate=False, dim=64).resolve(384, 1000)
    with pytest.raises(ValueError, match=r"^heads: got 5; expected a divisor of the 384 dim"):
        Config(truncate=False, heads=5).resolve(384, 1000)


@pytest.mark.parametrize(("protocol", "history"), [("leave-one-out", 50), ("cold-start-users", 10)])
def test_the_history_is_the_protocol_s(protocol, history):
    assert Config(protocol=protocol).resolve(384, 1000).history == history
    assert Config(protocol=protocol, history=7).resolve(384, 1000).history == 7


@pytest.mark.parametrize(
    ("options", "num_items", "loss", "negatives"),
    [
        ({}, 50_000, "cross_entropy", None),
        ({}, 50_001, "sampled_softmax", SAMPLED["negatives"]),
        ({"negatives_per": "batch"}, 1000, "sampled_softmax", 256),
        ({"sparse": True}, 1000, "sampled_softmax", 256),
        ({"loss": "cross_entropy"}, 10**6, "cross_entropy", None),
        ({"loss": "bce", "negatives": 1}, 1000, "bce", 1),
        ({"model": "dreamrec"}, 1000, None, None),
    ],
)
def test_the_loss_follows_from_the_catalog(options, num_items, loss, negatives):
    config = Config(**options).resolve(384, num_items)
    assert (config.loss, config.negatives) == (loss, negatives)


@pytest.mark.parametrize(
    ("options", "found"),
    [
        (
            {},
            {"sparse": True, **SAMPLED, "negative_sampling": "mixed", "batch_size": BATCH_SIZE},
        ),
        (
            {"loss": "bce"},  # which does not correct for what is drawn
            {"sparse": True, **SAMPLED, "negative_sampling": "uniform", "batch_size": BATCH_SIZE},
        ),
        ({"logq": False}, {"negative_sampling": "uniform"}),
        ({"negative_sampling": "in-batch"}, {**SAMPLED, "negatives": 256}),
        ({"batch_size": 7, "negatives": 3}, {"batch_size": 7, "negatives": 3, "sparse": True}),
        ({"sparse": False}, {"sparse": False, **SAMPLED}),
        ({"negatives_per": "position"}, {"negatives_per": "position", "negatives": 256}),
        ({"weight_decay": 0.1}, {"sparse": False, **SAMPLED}),
        ({"optimizer": "adamw"}, {"sparse": False}),
        ({"space_split": "learned"}, {"sparse": False}),
        ({"item_embedding": "unisrec"}, {"sparse": None, **SAMPLED}),
        ({"loss": "cross_entropy"}, {"sparse": False, "batch_size": 128}),
        ({"model": "dreamrec"}, {"sparse": False, "batch_size": 128}),
    ],
    ids=str,
)
def test_defaults_of_a_large_catalog(options, found):
    """What is given stays, and what a run cannot have is not chosen."""
    config = Config(**options).resolve(384, FULL_CATALOG_UP_TO + 1)
    assert {name: getattr(config, name) for name in found} == found
    assert config.resolve(384, FULL_CATALOG_UP_TO + 1) == config
    assert Config.from_record(config.to_dict()) == config
    small = Config(**options).resolve(384, FULL_CATALOG_UP_TO)
    kept = Config(**options)
    assert small.batch_size == kept.batch_size
    assert small.sparse == kept.sparse


@pytest.mark.parametrize("name", ["label_smoothing", "language_smoothing"])
def test_smoothing_of_a_catalog_too_large_for_it(name):
    with pytest.raises(ValueError, match=rf"^{name}: got 0\.1; expected none with loss=sampled"):
        Config(**{name: 0.1}).resolve(384, 60_000)


@pytest.mark.parametrize("options", [{"model": "dreamrec"}, {"loss": "cross_entropy"}, {}])
def test_what_earlier_versions_recorded(options):
    """They wrote a loss and negatives where there was no use for them, and fewer settings."""
    recorded = {"loss": "sampled_softmax", "negatives": 256, "negatives_per": "sequence", **options}
    if not options:
        options = {"loss": "sampled_softmax"}
    found = Config.from_record({"dim": 64, **recorded}).resolve(384, 1000)
    assert found == Config(dim=64, **options).resolve(384, 1000)
    assert Config.from_record(found.to_dict()) == found


@pytest.mark.parametrize(
    ("options", "norm", "feed_forward", "embedding_norm", "causal_filter"),
    [
        ({}, "pre", 1, False, None),
        ({"block": "ligr"}, "pre", 4, False, None),
        ({"block": "bsarec"}, "post", 4, True, True),
        ({"block": "bsarec", "targets": "last", "feed_forward": 2}, "post", 2, True, False),
        ({"norm": "post", "embedding_norm": True}, "post", 1, True, None),
    ],
)
def test_the_block_s_own_defaults(options, norm, feed_forward, embedding_norm, causal_filter):
    found = Config(**options).resolve(384, 1000)
    wanted = (norm, feed_forward, embedding_norm, causal_filter)
    assert (*(found.norm, found.feed_forward, found.embedding_norm, found.causal_filter),) == wanted


def test_more_heads_than_the_data_has_dimensions():
    with pytest.raises(ValueError, match=r"^heads: got 8; expected at most dim = 6, as the lang"):
        Config(heads=8).resolve(6, 1000)


def test_what_passes_trains():
    """What is not refused at once is not refused later: combinations, drawn, train for an epoch."""
    clicks, items = synthetic_catalog(num_users=8, num_items=48, seed=1)
    clicks = read_interactions(clicks, read_items(items))
    split = leave_one_out(clicks)
    rows = fresh_generator().standard_normal((clicks.num_items, 12)).astype(np.float32)
    fixed = ("select", "init", "weights", "protocol", "causal_filter")
    drawn = {}
    for name, owners in every_setting().items():
        choices = {choice for owner in owners for choice in owner.field.metadata["choices"] or ()}
        if choices and name not in fixed:
            drawn[name] = [*sorted(choices), None]
    drawn |= {"sparse": [None, True], "causal_filter": [None, False, True]}
    drawn |= {"adapter_ids": [None, True], "label_smoothing": [None, 0.1]}
    models = ("sasrec", "dreamrec", "llm-esr")
    refused, trained = 0, Counter()
    while min(trained[model] for model in models) < 60:
        given = {name: random.choice(values) for name, values in drawn.items()}
        given["model"] = min(models, key=trained.__getitem__)
        if given["model"] == "llm-esr":
            given["item_embedding"] = "llm-esr"
        step = 1 if given["sampler"] == "ddpm" else 2
        numbers = {"negatives": 3, "weight_decay": 1e-3, "warmup": 0.5, "timesteps": 8}
        given |= {**numbers, "stride": step, "loss": given["loss"] or "sampled_softmax"}
        # Those that the chosen components have: the others are refused, and other tests are of it.
        given = {n: v for n, v in layered(given, {}).items() if v is not None}
        try:
            config = Config(**given, dim=8, history=4, batch_size=4).resolve(12, clicks.num_items)
        except ValueError:
            refused += 1
            continue
        trained[config.model] += 1
        language = rows if config.component("item_embedding").language else None
        counts = split.train_item_counts(clicks.num_items)
        table, _ = build_table(config, clicks.num_items, language, counts)
        line = Trainer(build_model(config, table, counts), split, config).run_epoch()
        assert np.isfinite(line["loss"]), given
    assert refused > 0


@pytest.mark.parametrize(
    ("name", "nearest"), [("item_embeding", "item_embedding"), ("learning_rates", "learning_rate")]
)
def test_unknown_settings_are_named(name, nearest):
    with pytest.raises(TypeError, match=rf"^{name}: got 64.*did you mean {nearest}\?$"):
        Config.from_dict({name: 64})
    with pytest.raises(AttributeError, match=f"did you mean {nearest}"):
        getattr(Config(), name)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"fusion": "add", "item_embedding": "id"}, "item_embedding=id: it is of alphafuse"),
        ({"filter_cutoff": 5, "block": "ligr"}, "block=ligr: it is of bsarec"),
        ({"init": "zeros", "item_embedding": "morec"}, "adapter_ids=False: it is of adapter_ids=T"),
        ({"heads": 1, "model": "gru4rec:GRU4Rec"}, "model=gru4rec:GRU4Rec: it is of sasrec"),
        ({"split_seed": 0}, "protocol=leave-one-out: it is of cold-start-users"),
        ({"space_split_power": 0.5}, "space_split=hard: it is of soft, learned"),
    ],
)
def test_a_setting_that_the_chosen_components_do_not_have(monkeypatch, given, message):
    """Refused whatever its value; ``None`` says nothing."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    name = next(iter(given))
    with pytest.raises(ValueError, match=rf"^{name}: got .*; expected none with {message}"):
        Config(**given)
    assert getattr(Config(**{**given, name: None}), name) is None
    assert name not in layered(given, {})


def test_every_setting_has_help_and_fits_its_own_range():
    for name, owners in every_setting().items():
        for owner in owners:
            assert owner.field.metadata["help"], name
            owner.settings()


def test_a_configuration_is_a_value():
    config = Config(dim=64, space_split="soft")
    for other in (
        pickle.loads(pickle.dumps(config)),
        config.replace(),
        Config.from_dict(config.given),
    ):
        assert (other, hash(other)) == (config, hash(config))
    assert config.replace(dim=32) != config
    with pytest.raises(AttributeError, match="dim"):
        config.dim = 32


def test_round_trip():
    config = Config(dim=64, null_threshold=0.25, zero_sink=False)
    assert Config.from_dict(config.to_dict()) == config


OLD_NAMES = {"clip": False, "split": "soft", "split_power": 1.0}
NEW_NAMES = {"truncate": False, "space_split": "soft", "space_split_power": 1.0}


def test_records_of_earlier_versions_open_without_a_warning(recwarn):
    config = Config(**NEW_NAMES)
    recorded = {**{k: v for k, v in config.to_dict().items() if k not in NEW_NAMES}, **OLD_NAMES}
    assert Config.from_record(recorded) == config
    assert not OLD_NAMES.keys() & config.to_dict().keys()
    assert not recwarn


def test_digests_are_of_the_names_that_they_were_made_of():
    described = digested_names(Config(**NEW_NAMES).to_dict())
    assert OLD_NAMES.items() <= described.items()
    assert not NEW_NAMES.keys() & described.keys()
    assert list(described.values()) == list(Config(**NEW_NAMES).to_dict().values())


@pytest.mark.parametrize(
    ("options", "embedding_dim", "dim", "null_dim"),
    [
        ({}, 384, 128, 120),
        ({"space_split": "soft"}, 384, 128, 1),
        ({"space_split": "learned", "null_dim": 64}, 384, 128, 64),
        ({}, 100, 100, 94),
        ({"heads": 8}, 100, 96, 90),
        ({"dim": 64}, 384, 64, 60),
        ({"dim": 64, "fusion": "concat"}, 384, 64, 32),
        ({"dim": 64, "null_dim": 10}, 384, 64, 10),
        ({"dim": 64, "null_threshold": 0.1}, 384, 64, None),
        ({"item_embedding": "id"}, None, 128, None),
        ({"truncate": False}, 384, 384, 360),
        ({"truncate": False, "dim": 384}, 384, 384, 360),
    ],
)
def test_defaults_that_depend_on_the_data(options, embedding_dim, dim, null_dim):
    resolved = Config(**options).resolve(embedding_dim, 1000)
    assert (resolved.dim, resolved.null_dim) == (dim, null_dim)
