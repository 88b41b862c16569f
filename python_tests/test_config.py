"""Settings: what fits together and what is refused."""

from __future__ import annotations

import pytest

from alphafuse_ext import Config


@pytest.mark.parametrize(
    ("argument", "options"),
    [
        ("item_embedding", {"item_embedding": "unisrec"}),
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
    ],
)
def test_bad_settings_are_named(argument, options):
    with pytest.raises(ValueError, match=f"^{argument}: got"):
        Config(**options)


def test_unknown_settings_are_named():
    with pytest.raises(TypeError, match=r"^dimension: got"):
        Config.from_dict({"dimension": 64})


def test_round_trip():
    config = Config(dim=64, null_threshold=0.25, zero_sink=False)
    assert Config.from_dict(config.to_dict()) == config


@pytest.mark.parametrize(
    ("options", "embedding_dim", "dim", "null_dim"),
    [
        ({}, 384, 128, 120),
        ({}, 100, 100, 94),
        ({"heads": 8}, 100, 96, 90),
        ({"dim": 64}, 384, 64, 60),
        ({"dim": 64, "fusion": "concat"}, 384, 64, 32),
        ({"dim": 64, "null_dim": 10}, 384, 64, 10),
        ({"dim": 64, "null_threshold": 0.1}, 384, 64, None),
        ({"item_embedding": "id"}, None, 128, None),
    ],
)
def test_defaults_that_depend_on_the_data(options, embedding_dim, dim, null_dim):
    resolved = Config(**options).resolve(embedding_dim)
    assert (resolved.dim, resolved.null_dim) == (dim, null_dim)
