"""Where a model trains and serves: the GPU where there is one that the kernels run on."""

from __future__ import annotations

import inspect
import warnings
from types import SimpleNamespace

import pytest
import torch

import alphafuse_ext as af
from alphafuse_ext import cli
from alphafuse_ext.experiments.check import check
from alphafuse_ext.experiments.compare import compare
from alphafuse_ext.experiments.tune import tune
from alphafuse_ext.runs import device as devices
from alphafuse_ext.runs.device import device_of_ranks, usable_device, why_not_cuda
from alphafuse_ext.training.refit import refit


@pytest.fixture
def gpus(monkeypatch):
    """A machine with two GPUs, as PyTorch sees them."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Some GPU")


def test_the_gpu_is_the_default(gpus, monkeypatch):
    monkeypatch.setattr(devices, "why_not_cuda", lambda: None)
    lines: list[str] = []
    assert usable_device(None, lines.append) == torch.device("cuda")
    assert lines == ["on cuda, Some GPU"]
    assert usable_device("cpu", lines.append) == torch.device("cpu")
    assert usable_device(None, lines.append, alone=False) == torch.device("cpu")
    assert device_of_ranks(2) == "cuda"
    assert len(lines) == 1
    with pytest.warns(UserWarning, match=r"^on the CPU, though .*: GPUs for 2 of 3 processes$"):
        assert device_of_ranks(3) == "cpu"


def test_a_gpu_without_kernels_is_told_of(trained_run, gpus, monkeypatch, capsys):
    item = af.Recommender.load(trained_run, "cpu").items.tokens[0]
    monkeypatch.setattr(devices, "_core", SimpleNamespace(devices=["cpu"]))
    assert cli.main(["similar", str(trained_run), "--items", str(item)]) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(
        "alphafuse: warning: on the CPU, though there is a GPU: alphafuse_ext wa"
    )


def test_a_gpu_that_the_kernels_were_not_built_for(gpus, monkeypatch):
    def no_kernels(*arguments):
        raise RuntimeError("no kernel image is available\nand more")

    core = SimpleNamespace(devices=["cpu", "cuda"], cuda_architectures="90")
    monkeypatch.setattr(devices, "_core", core)
    monkeypatch.setattr(torch, "zeros", lambda *shape, **options: None)
    monkeypatch.setattr(devices.ops, "lookup", lambda *arguments: None)
    assert why_not_cuda() is None
    monkeypatch.setattr(devices.ops, "lookup", no_kernels)
    said = "the CUDA kernels, built for 90, do not run: no kernel image is available"
    assert why_not_cuda() == said
    with pytest.warns(UserWarning, match=f"^on the CPU, though there is a GPU: {said}$"):
        assert usable_device(None) == torch.device("cpu")


def test_nothing_is_said_without_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    lines: list[str] = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert usable_device(None, lines.append) == torch.device("cpu")
    assert not lines
    assert why_not_cuda() == "PyTorch sees no CUDA device"


def test_it_is_the_default_of_all_commands_and_functions():
    commands = cli.parser()._subparsers._group_actions[0].choices
    defaults = {
        name: command.get_default("device")
        for name, command in commands.items()
        if any(action.dest == "device" for action in command._actions)
    }
    assert len(defaults) > 10
    assert set(defaults.values()) == {None}
    load = af.Recommender.load
    for function in (af.fit, af.resume, af.extend, refit, check, compare, tune, load):
        assert inspect.signature(function).parameters["device"].default is None


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device")
def test_a_run_trained_on_a_gpu_opens_on_the_cpu(tmp_path):
    clicks, items = af.data.synthetic_catalog(num_users=100, num_items=50, seed=1)
    lines: list[str] = []
    options = {"item_embedding": "id", "dim": 8, "epochs": 1}
    trained = af.fit(clicks, items, output=tmp_path / "run", log=lines.append, **options)
    assert trained.model.device.type == "cuda"
    assert any(line.startswith("on cuda, ") for line in lines)
    opened = af.Recommender.load(trained.run.path, "cpu")
    users = opened.interactions.users[:5]
    found, expected = opened.recommend(users, k=3), trained.recommend(users, k=3)
    assert found["score"].to_numpy() == pytest.approx(expected["score"].to_numpy(), rel=1e-3)
