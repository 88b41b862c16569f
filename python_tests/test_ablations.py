"""The paper's ablations as settings of a run, each beside its definition in plain NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import fresh_generator

from alphafuse_ext import Config
from alphafuse_ext.config.presets import PRESETS, preset_options
from alphafuse_ext.data import leave_one_out, read_interactions, read_items, synthetic_catalog
from alphafuse_ext.runs.assembly import build_table

WIDTH = 24


@pytest.fixture(scope="module")
def split():
    clicks, items = synthetic_catalog(num_users=120, num_items=70, seed=5)
    return leave_one_out(read_interactions(clicks, read_items(items)))


def definition(config, embeddings, counts, basis, id_embeddings):
    """Item embeddings of method.md, parts 1 and 2, in float64.

    ``basis`` decides the directions' signs and nothing else: it is checked to be eigenvectors.
    """
    weights = counts / counts.sum() if config.weights == "frequency" else None
    x = config.scale * embeddings
    mean = np.average(x, axis=0, weights=weights)
    covariance = np.cov((x - mean).T, bias=True)
    if weights is not None:
        covariance = (x - mean).T @ (weights[:, None] * (x - mean))
    eigenvalues, vectors = np.linalg.eigh(covariance)
    eigenvalues, vectors = eigenvalues[::-1], vectors[:, ::-1]
    np.testing.assert_allclose(np.abs((vectors * basis).sum(0)), 1, atol=1e-7)

    dim = config.dim if config.truncate else WIDTH
    null_dim = config.null_dim
    if config.null_threshold is not None:
        null_dim = int((eigenvalues[:dim] <= config.null_threshold).sum())
    rows = (x - mean) @ basis[:, :dim]
    if config.standardize:
        rows = rows / np.sqrt(eigenvalues[:dim])
    null = np.arange(dim) >= dim - null_dim
    if config.fusion == "concat":
        rows = rows[:, ~null]
    if config.semantic_rms:
        rows = rows * config.semantic_rms / np.sqrt(np.mean(rows**2))
    if config.coordinates == "projected":  # ID vectors of d_l onto the null space
        id_embeddings = id_embeddings @ basis[:, :dim][:, null]
    if config.fusion == "concat":
        fused = np.hstack([rows, id_embeddings])
    else:
        fused = rows.copy()
        fused[:, null] += id_embeddings
    return fused @ basis[:, :dim].T if config.coordinates == "original" else fused


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"standardize": False},
        {"semantic_rms": 0.0},
        {"truncate": False, "dim": None, "null_dim": 9},
        {"truncate": False, "dim": None, "null_dim": 9, "fusion": "concat", "standardize": False},
        {"fusion": "concat", "null_dim": 6},
        {"null_dim": 16},
        {"null_dim": None, "null_threshold": 0.6},
        {"null_dim": None, "null_threshold": 900.0, "scale": 40.0, "semantic_rms": 0.0},
        {"weights": "frequency"},
        {"weights": "frequency", "fusion": "concat", "standardize": False},
        {"coordinates": "original"},
        {"coordinates": "original", "fusion": "concat", "weights": "frequency"},
        {"coordinates": "projected"},
        {"coordinates": "projected", "fusion": "concat", "standardize": False},
    ],
    ids=str,
)
def test_a_setting_is_its_definition(split, options):
    rng = fresh_generator()
    spread = np.geomspace(2, 0.3, WIDTH)
    rotation = np.linalg.qr(rng.standard_normal((WIDTH, WIDTH)))[0]
    embeddings = (rng.standard_normal((70, WIDTH)) * spread) @ rotation + rng.standard_normal(WIDTH)
    given = {"dim": 16, "null_dim": 10, "init": "normal", **options}
    config = Config.from_dict(given).resolve(WIDTH, 1000)
    table, space = build_table(config, 70, embeddings, split.train_item_counts(70))
    expected = definition(
        config,
        embeddings,
        split.train_item_counts(70),
        space.basis,
        table.id_embeddings.detach().double().numpy(),
    )
    found = table(torch.arange(70)).detach().double().numpy()
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())
    # Scores, and so a ranking, are inner products with those.
    queries = rng.standard_normal((3, expected.shape[1])).astype(np.float32)
    scores = table.score_all(torch.from_numpy(queries)).detach().numpy()
    np.testing.assert_allclose(scores, queries @ expected.T, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    ("init", "holds"),
    [
        ("zeros", lambda w: not w.any()),
        ("normal", lambda w: abs(w.mean()) < 0.05 and abs(w.std() - 1) < 0.05),
        ("uniform", lambda w: w.min() >= 0 and w.max() <= 1 and abs(w.mean() - 0.5) < 0.02),
        ("orthogonal", lambda w: torch.allclose(w.T @ w, torch.eye(64), atol=1e-5)),
        ("xavier_uniform", lambda w: 0.99 < w.abs().max() / (6 / (400 + 64)) ** 0.5 <= 1),
        ("xavier_normal", lambda w: abs(w.std() / (2 / (400 + 64)) ** 0.5 - 1) < 0.05),
        ("sparse", lambda w: ((w == 0).sum(0) == 4).all() and abs(w.std() - 1) < 0.05),
    ],
)
def test_an_init_is_its_definition(init, holds):
    embeddings = fresh_generator().standard_normal((400, 128))
    config = Config(dim=128, null_dim=64, init=init).resolve(128, 1000)
    table, _ = build_table(config, 400, embeddings)
    assert holds(table.id_embeddings.detach())
    half = Config(dim=128, null_dim=64, init=init, init_scale=0.5).resolve(128, 1000)
    torch.manual_seed(7)
    whole = build_table(config, 400, embeddings)[0].id_embeddings
    torch.manual_seed(7)
    assert torch.equal(build_table(half, 400, embeddings)[0].id_embeddings, whole / 2)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_settings(name):
    config = Config.from_dict(preset_options(name)).resolve(384, 1000)
    assert (config.history, config.batch_size, config.dropout) == (10, 256, 0.1)
    assert config.targets == "last"


def test_what_sets_the_public_code_apart():
    paper, code = (Config.from_dict(preset_options(n)) for n in ("paper-movies", "public-code"))
    differ = {
        name: (value, getattr(code, name))
        for name, value in paper.to_dict().items()
        if value != getattr(code, name)
    }
    assert differ == {
        "fusion": ("concat", "add"),
        "ranking_similarity": (None, "dot"),
        "keep_seen": (False, True),
    }
    assert (code.dim, code.null_dim, code.loss, code.temperature) == (128, 64, "infonce", 0.07)


def test_unknown_presets_are_named():
    with pytest.raises(ValueError, match=r"^preset: got 'paper-books'; expected one of paper-mov"):
        preset_options("paper-books")
