"""DreamRec: schedules, sampling, guidance and noise against plain formulas; a run of its own."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import alphafuse_ext as af
from alphafuse_ext import ItemTable
from alphafuse_ext.choices import SCHEDULES
from alphafuse_ext.config import Config
from alphafuse_ext.config import model as declared
from alphafuse_ext.data import synthetic_catalog
from alphafuse_ext.models import DreamRec
from alphafuse_ext.models.diffusion import add_noise, noise_of_histories, noise_schedule, sample

N = 40


def model(**options) -> DreamRec:
    torch.manual_seed(0)
    table = ItemTable(torch.randn(N, 10), torch.randn(N, 6) / 3)
    settings = {"timesteps": 20, "stride": 5, "history": 6, "dropout": 0.0, **options}
    return DreamRec(table, **settings).eval()


# --- schedules ------------------------------------------------------------------------------------


@pytest.mark.parametrize("timesteps", [1, 10, 2000])
@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_fall_from_signal_to_noise(name, timesteps):
    shares = noise_schedule(name, timesteps)
    assert shares.shape == (timesteps,)
    assert (shares.diff() < 0).all()
    assert shares[-1] >= 0
    assert shares[0] < 1
    if timesteps == 2000:
        assert shares[-1] < 0.01


def test_schedules_by_their_formulas():
    betas = 1e-4 + (0.02 - 1e-4) * np.arange(50) / 49
    assert np.allclose(noise_schedule("linear", 50), np.cumprod(1 - betas))
    cosine = noise_schedule("cosine", 50)
    level = [math.cos((t / 50 + 0.008) / 1.008 * math.pi / 2) ** 2 for t in range(51)]
    assert np.allclose(cosine[:-1], np.array(level[1:-1]) / level[0])
    root = noise_schedule("sqrt", 50)
    level = [1 - math.sqrt(t / 50 + 1e-4) for t in range(51)]
    assert np.allclose(root[:-1], np.array(level[1:-1]) / level[0])
    exp = noise_schedule("exp", 50)
    rate = np.linspace(1, 101, 50)
    assert np.allclose(exp, np.exp(-np.cumsum(0.1 / 50 + rate * 0.5 * 9.9 / 50**2)))


def test_noise_has_its_share():
    start, noise = torch.full((20_000, 2), 3.0), torch.randn(20_000, 2)
    noisy = add_noise(start, noise, torch.full((20_000,), 0.36))
    assert noisy.mean().item() == pytest.approx(1.8, abs=0.03)
    assert noisy.var().item() == pytest.approx(0.64, abs=0.03)


# --- sampling -------------------------------------------------------------------------------------


@pytest.mark.parametrize("stride", [1, 4, 12])
def test_ddim_is_its_formula(stride):
    shares = noise_schedule("cosine", 12)
    target, first = torch.randn(3, 5).double(), torch.randn(3, 5).double()

    def denoise(vectors, time):  # a denoiser that is right about half of it
        return 0.5 * target + 0.1 * math.sin(time) * vectors

    found = sample(denoise, lambda step: first, shares, stride, "ddim")
    vectors = first
    for time in range(11, -1, -stride):
        now = shares[time]
        before = shares[time - stride] if time >= stride else torch.tensor(1.0).double()
        start = denoise(vectors, time)
        noise = (vectors - now.sqrt() * start) / (1 - now).sqrt()
        vectors = before.sqrt() * start + (1 - before).sqrt() * noise
    torch.testing.assert_close(found, vectors)


def test_a_perfect_denoiser_gives_its_target():
    target = torch.randn(3, 5)
    for sampler, stride in (("ddim", 5), ("ddim", 20), ("ddpm", 1)):
        found = sample(
            lambda vectors, time: target,
            lambda step: torch.randn(3, 5),
            noise_schedule("linear", 20),
            stride,
            sampler,
        )
        torch.testing.assert_close(found, target)


def test_ddpm_draws_from_the_posterior():
    """Of a normal x_0, whose best prediction is linear: what is drawn has its mean and variance."""
    shares = noise_schedule("cosine", 200)
    mean, variance = 1.5, 0.49

    def denoise(vectors, time):
        share = shares[time].item()
        gain = math.sqrt(share) * variance / (share * variance + 1 - share)
        return mean + gain * (vectors - math.sqrt(share) * mean)

    torch.manual_seed(3)
    drawn = sample(denoise, lambda step: torch.randn(40_000, 1), shares, 1, "ddpm")
    assert drawn.mean().item() == pytest.approx(mean, abs=0.03)
    assert drawn.var().item() == pytest.approx(variance, abs=0.04)


def test_noise_follows_from_the_history_alone():
    ids = torch.randint(30, (4000, 5))
    ids[0] = torch.tensor([3, 4, 30, 30, 30])
    noise = noise_of_histories(ids, 30, 8, seed=1, step=0)
    assert noise.dtype == torch.float32
    alone = noise_of_histories(torch.tensor([[3, 4]]), 30, 8, seed=1, step=0)
    assert torch.equal(noise[:1], alone)
    for other in (
        noise_of_histories(torch.tensor([[4, 3]]), 30, 8, seed=1, step=0),
        noise_of_histories(torch.tensor([[3, 4]]), 30, 8, seed=2, step=0),
        noise_of_histories(torch.tensor([[3, 4]]), 30, 8, seed=1, step=1),
    ):
        assert not torch.isclose(other, alone).any()
    assert noise.mean().abs() < 0.03
    assert noise.std().item() == pytest.approx(1, abs=0.03)
    assert (torch.corrcoef(noise.T) - torch.eye(8)).abs().max() < 0.1
    assert (noise.abs() > 1.96).float().mean().item() == pytest.approx(0.05, abs=0.01)


def test_guidance_is_its_formula():
    """Both branches in one pass are as two."""
    ids = torch.tensor([[3, 1, 4], [5, 9, N]])
    guided = model(guidance=2.0)
    condition = super(DreamRec, guided).encode(ids)
    null = guided.null_condition.expand_as(condition)

    def denoise(vectors, time):
        times = torch.full((2,), time)
        with_history = guided.denoise(vectors, condition, times)
        without = guided.denoise(vectors, null, times)
        return 3.0 * with_history - 2.0 * without

    expected = sample(
        denoise,
        lambda step: noise_of_histories(ids, N, 16, 0, step),
        guided.shares,
        guided.stride,
        "ddim",
    )
    torch.testing.assert_close(guided.encode(ids), expected, rtol=1e-4, atol=1e-4)


def test_the_same_history_has_the_same_query():
    dreams = model()
    alone = dreams.encode(torch.tensor([[7, 8]]))
    torch.testing.assert_close(dreams.encode(torch.tensor([[1, 2, 3], [7, 8, N]]))[1:], alone)
    assert torch.equal(dreams.encode(torch.tensor([[7, 8]])), alone)
    other = model(sampling_seed=1).encode(torch.tensor([[7, 8]]))
    assert not torch.allclose(other, alone)


# --- training -------------------------------------------------------------------------------------


def test_the_loss_reaches_the_id_embeddings_of_histories_and_targets():
    dreams = model().train()
    ids, targets = torch.tensor([[3, 1, N]]), torch.tensor([[1, 8, N]])
    dreams.loss(ids, targets).backward()
    touched = dreams.table.id_embeddings.grad.any(1)
    assert touched.nonzero().flatten().tolist() == [1, 3, 8]
    assert dreams.loss(ids, torch.full_like(targets, N)).item() == 0


SMALL = {
    "model": "dreamrec",
    "dim": 16,
    "null_dim": 8,
    "timesteps": 20,
    "stride": 5,
    "guidance": 1.0,
    "dropout": 0.1,
    "batch_size": 32,
    "threads": 1,
}


@pytest.fixture(scope="module")
def data():
    return synthetic_catalog(num_users=250, num_items=120, seed=5)


def run(data, output, **options):
    interactions, items = data[0], data[1]
    return af.fit(
        interactions, items, encoder="tfidf", output=output, log=lambda *_: None,
        **{**SMALL, **options},
    )  # fmt: skip


def test_a_resumed_run_is_the_uninterrupted_run(data, tmp_path, monkeypatch):
    whole = run(data, tmp_path / "whole", epochs=3)
    loss, calls = DreamRec.loss, []

    def interrupt(*arguments):
        calls.append(1)
        if len(calls) == 12:
            raise KeyboardInterrupt
        return loss(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(DreamRec, "loss", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run(data, tmp_path / "cut", epochs=3)
    resumed = af.resume(tmp_path / "cut", log=lambda *_: None)
    for name, tensor in whole.model.state_dict().items():
        if isinstance(tensor, torch.Tensor):
            assert torch.equal(tensor, resumed.model.state_dict()[name]), name
    assert resumed.run.results()["test"] == whole.run.results()["test"]
    loaded = af.Recommender.load(tmp_path / "whole")
    assert loaded.evaluate() == whole.run.results()["test"]


@pytest.mark.slow
def test_it_learns_what_was_planted(data, tmp_path):
    recommender = run(data, tmp_path / "run", epochs=30, patience=30, learning_rate=3e-3)
    results = recommender.run.results()
    assert results["test"]["ndcg@10"] > 1.3 * results["popularity"]["ndcg@10"]


# --- what cannot be -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stride": 30}, r"stride: got 30; expected a divisor of timesteps = 2000"),
        ({"timesteps": 0}, "timesteps: got 0"),
        ({"noise_schedule": "round"}, "noise_schedule: got 'round'"),
        ({"sampler": "ddpm"}, "stride: got 100; expected 1 with sampler=ddpm"),
        ({"guidance": -1.0}, "guidance: got -1.0"),
        ({"condition_dropout": 1.0}, "condition_dropout: got 1.0"),
        ({"condition_dropout": 0.0}, "guidance: got 5.0; expected 0 with condition_dropout=0"),
        ({"item_embedding": "id", "init": "zeros"}, "init: got 'zeros' with model=dreamrec"),
        ({"loss": "infonce"}, "loss: got 'infonce'; expected none with model=dreamrec"),
        ({"sampling_seed": -1}, "sampling_seed: got -1"),
    ],
)
def test_settings_that_cannot_be(options, message):
    with pytest.raises(ValueError, match=message):
        Config(model="dreamrec", **options)


def test_settings_of_another_model():
    with pytest.raises(ValueError, match=r"guidance: got .*; expected none with model=sasrec"):
        Config(guidance=2.0)


def test_the_defaults_are_one():
    dreams = DreamRec(ItemTable(None, torch.randn(N, 8)))
    assert len(dreams.shares) == declared.DreamRec.timesteps
    for name in ("stride", "guidance", "condition_dropout", "sampler", "sampling_seed"):
        assert getattr(dreams, name) == getattr(declared.DreamRec, name)


def test_a_table_of_zeros_is_refused():
    with pytest.raises(ValueError, match="table: got embeddings that are all zero"):
        DreamRec(ItemTable(None, torch.zeros(N, 8)))
