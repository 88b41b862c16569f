"""Training over several processes: the same model, one writer, and a clear end for all of them."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from spawned import spawn

import alphafuse_ext as af
import alphafuse_ext.distributed
from alphafuse_ext import Config, cli
from alphafuse_ext.data import leave_one_out, read_interactions, read_items, synthetic_catalog
from alphafuse_ext.distributed.process_group import ProcessGroup, broadcasting
from alphafuse_ext.items.language_neighbors import Neighbors
from alphafuse_ext.models.moments import moments
from alphafuse_ext.runs.assembly import build_model, build_table
from alphafuse_ext.torchrun import FirstRankError, RankError
from alphafuse_ext.training import trainer as of_training
from alphafuse_ext.training import training_run
from alphafuse_ext.training.extend import extend
from alphafuse_ext.training.sharding import own_state, shard_items
from alphafuse_ext.training.trainer import Progress, Trainer

pytestmark = pytest.mark.slow

N = 48


def data():
    clicks, items = synthetic_catalog(num_users=61, num_items=N, seed=1)
    return clicks, items, np.random.default_rng(0).standard_normal((N, 12)).astype(np.float32)


def trainer(process_group: ProcessGroup | None, **options) -> Trainer:
    clicks, items, rows = data()
    split = leave_one_out(read_interactions(clicks, read_items(items)))
    settings = {"dim": 8, "dropout": 0.0, "history": 5, "batch_size": 20, **options}
    neighbors = Neighbors.of(rows)
    rows = None if options.get("item_embedding") == "id" else rows
    config = Config.from_dict(settings).resolve(None if rows is None else 12, N)
    torch.manual_seed(0)
    counts = split.train_item_counts(N)
    table, _ = build_table(config, N, rows, counts)
    model = build_model(config, table, counts, neighbors)
    if process_group is not None and process_group.shard_items:
        shard_items(model, process_group)
    if config.sparse:  # what is drawn is drawn by each rank for itself: here, for all the same
        model.negative_sampler.draw = lambda shape, device, _: torch.arange(3, 3 + shape[0])
    return Trainer(model, split, config, process_group)


SPARSE = {
    "loss": "sampled_softmax",
    "negatives": 7,
    "negatives_per": "batch",
    "negative_sampling": "popularity",
    "sparse": True,
}


SETTINGS = (
    {},
    {"fusion": "concat", "null_dim": 3},
    {"space_split": "soft", "null_dim": 3},
    {"block": "bsarec", "targets": "last"},
    {"block": "ligr", "label_smoothing": 0.1, "weight_decay": 0.01},
    {"batch_size": 59},  # the last batch has two rows, which is no row for the third rank
    {"item_embedding": "id", "language_smoothing": 0.2},
    {"item_embedding": "frozen"},
    SPARSE,
)
WHOLE_SETTINGS = ({"space_split": "learned"}, {"item_embedding": "whitenrec"})


def check_epochs(rank: int, ranks: int, folder: Path) -> None:
    """A step of all ranks is that of one process with the whole batch."""
    for together, settings in (
        (ProcessGroup(), (*SETTINGS, *WHOLE_SETTINGS)),
        (ProcessGroup(shard_items=True), SETTINGS),
    ):
        for options in settings:
            alone, shared = trainer(None, **options), trainer(together, **options)
            first = {name: value.clone() for name, value in alone.state()[0].items()}
            for _ in range(2):
                expected, found = alone.run_epoch(), shared.run_epoch()
                assert found["loss"] == pytest.approx(expected["loss"], rel=1e-5), options
                wanted = pytest.approx(expected["validation"], abs=1e-9)
                assert found["validation"] == wanted, options
            states = alone.state(), shared.state()
            check_same_state(*states, rank)
            assert any(not torch.equal(first[name], value) for name, value in states[0][0].items())
            if not together.shard_items:
                check_equal_on_ranks(shared)


def check_same_state(expected, found, rank: int) -> None:
    """Parameters and moments by name, which the first rank has of all items."""
    for wanted, state in zip(expected, found, strict=True):
        if rank == 0:
            assert state.keys() == wanted.keys()
        for name, value in state.items():
            tolerance = 2e-5 * max(1.0, float(value.abs().max()))
            torch.testing.assert_close(value, wanted[name], rtol=1e-3, atol=tolerance)


def check_changing_ranks(rank: int, ranks: int, folder: Path) -> None:
    """A checkpoint of whichever kind goes on as the other."""
    sharded = ProcessGroup(shard_items=True)
    for options in ({}, SPARSE):
        expected = trainer(None, **options)
        kinds = (None, sharded, ProcessGroup(), sharded, None)
        going_on = None
        for together in kinds:
            before, going_on = going_on, trainer(together, **options)
            if before is not None:
                kept = [before.state()]
                dist.broadcast_object_list(kept, 0)
                parameters, found = kept[0]
                own = dict(going_on.model.named_parameters())
                with torch.no_grad():
                    for name, value in own_state(going_on.model, parameters).items():
                        own[name].copy_(value)
                going_on.restore(before.progress, before.epochs, found)
            lines = expected.run_epoch(), going_on.run_epoch()
            assert lines[0]["loss"] == pytest.approx(lines[1]["loss"], rel=1e-5)
        check_same_state(expected.state(), going_on.state(), rank)


def check_within_an_epoch(rank: int, ranks: int, folder: Path) -> None:
    """A checkpoint between two steps goes on as if uninterrupted, whatever the ranks drew.

    On two ranks bit for bit. DistributedDataParallel orders its buckets anew after a process's
    first step, and on more of them gradients are summed in an order that depends on the place.
    """
    exact = ranks < 3
    options = {"dropout": 0.3, "validate_every": 2, "checkpoint_minutes": 1e-9, "batch_size": 8}
    of_training._STEPS_BETWEEN_CLOCKS = 3
    for together in (ProcessGroup(), ProcessGroup(shard_items=True)):
        expected, begun, kept = trainer(together, **options), trainer(together, **options), []

        def save(begun=begun, kept=kept) -> None:
            parameters, found = begun.state()
            progress = dataclasses.asdict(begun.progress)
            kept.append(({k: v.clone() for k, v in parameters.items()}, found, progress))
            kept[-1][1].update({k: v.clone() for k, v in found.items()})

        while begun.progress.epoch == 0:
            begun.run_epoch(save)
        every = [kept]
        dist.broadcast_object_list(every, 0)
        assert [one[2]["step"] for one in every[0]] == [3]
        parameters, found, progress = every[0][0]
        going_on = trainer(together, **options)
        own = dict(going_on.model.named_parameters())
        with torch.no_grad():
            for name, value in own_state(going_on.model, parameters).items():
                own[name].copy_(value)
        going_on.restore(Progress(**progress), begun.epochs[: progress["validations"]], found)
        for run in (expected, going_on):
            while run.progress.epochs_done < 1.5:
                run.run_epoch()
        losses = [[line["loss"] for line in run.epochs] for run in (expected, going_on)]
        assert losses[0] == (losses[1] if exact else pytest.approx(losses[1], rel=1e-6))
        states = expected.state(), going_on.state()
        for one, other in zip(*states, strict=True):
            assert one.keys() == other.keys()
            for name in one:
                tolerance = 0.0 if exact or not one[name].is_floating_point() else 1e-4
                torch.testing.assert_close(one[name], other[name], rtol=tolerance, atol=tolerance)
        fewer = trainer(None, **options)  # of the ranks' losses, those of all
        with torch.no_grad():
            for name, parameter in fewer.model.named_parameters():
                parameter.copy_(parameters[name])
        fewer.restore(Progress(**progress), begun.epochs[: progress["validations"]], found)
        assert fewer.run_epoch()["loss"] == pytest.approx(losses[0][1], rel=0.1)
    of_training._STEPS_BETWEEN_CLOCKS = 32


def check_equal_on_ranks(trained: Trainer) -> None:
    """Bit for bit: nothing may drift apart."""
    parameters = {name: value.detach() for name, value in trained.model.named_parameters()}
    for name, value in {**parameters, **moments(trained.model, trained.optimizers)}.items():
        first = value.clone()
        dist.broadcast(first, 0)
        assert torch.equal(first, value), name


def check_what_is_drawn(rank: int, ranks: int, folder: Path) -> None:
    """Of models that draw at random, or learn from a batch: they train, and ranks stay equal."""
    together = ProcessGroup()
    for options in (
        {"dropout": 0.3},
        {"model": "dreamrec"},
        {"item_embedding": "unisrec", "adapter_ids": True},
        {"item_embedding": "rlmrec-contrastive"},
        {"model": "llm-esr", "item_embedding": "llm-esr"},
        {"loss": "infonce", "negatives": 5},
    ):
        trained = trainer(together, batch_size=59, **options)
        losses = [trained.run_epoch()["loss"] for _ in range(4)]
        assert losses[-1] < losses[0], options
        check_equal_on_ranks(trained)
    # Masks differ between ranks: the same rows would else be dropped in all parts of a batch.
    drawn = trainer(together, dropout=0.3)
    drawn.run_epoch()
    own = torch.rand(4)
    first = own.clone()
    dist.broadcast(first, 0)
    assert torch.equal(first, own) == (rank == 0)


def check_runs(rank: int, ranks: int, folder: Path) -> None:
    """`fit`, `resume` and `extend`, each rank with the same result, and one that writes."""
    clicks, items, rows = data()
    options = {"dim": 8, "dropout": 0.0, "history": 5, "batch_size": 20, "epochs": 2, "threads": 1}
    options["neighbors"] = False
    said: list[str] = []
    together = ProcessGroup()
    options |= {"log": said.append}
    first = af.fit(clicks, items, rows, folder / "run", process_group=together, **options)
    assert bool(said) == (rank == 0)
    assert first.run.path == folder / "run"
    assert first.run.environment()["ranks"] == ranks
    results = first.run.results()
    assert first.evaluate() == pytest.approx(results["test"], abs=1e-12)
    if rank == 0:
        alone = af.fit(clicks, items, rows, folder / "alone", **options)
        assert results["test"] == pytest.approx(alone.run.results()["test"], abs=1e-9)
    shared = ProcessGroup(shard_items=True)
    sharded = af.fit(clicks, items, rows, folder / "sharded", process_group=shared, **options)
    assert sharded.run.results()["test"] == pytest.approx(results["test"], abs=1e-9)
    assert sharded.run.results()["trainable_parameters"] == results["trainable_parameters"]
    new = clicks.assign(user_id=clicks["user_id"] + "-new")
    settings = {"output": folder / "on", "log": said.append}
    extended = extend(folder / "run", new, process_group=together, **settings)
    assert extended.interactions.num_users == 2 * first.interactions.num_users
    with pytest.raises(ValueError if rank == 0 else FirstRankError, match="resume"):
        af.resume(folder / "run", process_group=together)


def check_refusals(rank: int, ranks: int, folder: Path) -> None:
    """On every rank, before anything is written."""
    together = ProcessGroup()
    clicks, items, rows = data()
    kind = ValueError if rank == 0 else FirstRankError
    with pytest.raises(kind, match=f"process_group: got {ranks}"):
        af.fit(clicks, items, rows, folder / "none", process_group=together, dim=8, batch_size=1)
    with pytest.raises(kind, match="dim"):
        af.fit(clicks, items, rows, folder / "none", process_group=together, dim=0)
    assert not (folder / "none").exists()
    with pytest.raises(ValueError, match=r"data: got \['a', 'b'.* on ranks 0 to"):
        together.check_same({"torch": 1, "data": "b" if rank == 1 else "a"})
    sharded = ProcessGroup(shard_items=True)
    for options in ({"item_embedding": "unisrec"}, {"space_split": "learned", "fusion": "add"}):
        with pytest.raises(kind, match="with shard_items"):
            af.fit(clicks, items, rows, folder / "none", process_group=sharded, dim=8, **options)
    quiet = {"dim": 8, "log": lambda line: None}
    mixed = ProcessGroup(shard_items=rank == 1)
    with pytest.raises(ValueError, match=r"shard_items: got \[False, True"):
        af.fit(clicks, items, rows, folder / "mixed", process_group=mixed, **quiet)
    version = training_run.__version__
    training_run.__version__ = "0.0" if rank == 1 else version
    with pytest.raises(ValueError, match=r"alphafuse_ext: got .*'0\.0'"):
        af.fit(clicks, items, rows, folder / "other", process_group=together, **quiet)
    training_run.__version__ = version

    def work() -> int:
        if rank == 1:
            raise OSError("no such disk")
        return rank

    with pytest.raises(OSError if rank == 1 else RankError, match="no such disk"):
        together.each(work)
    assert together.each(lambda: rank) == rank
    with pytest.raises(ZeroDivisionError), together.together():
        1 / 0  # noqa: B018
    with pytest.raises(RuntimeError, match="shapes"), together.together():
        torch.ones(2, 3) @ torch.ones(2, 3)


def check_a_rank_whose_rows_diverge(rank: int, ranks: int, folder: Path) -> None:
    """All ranks end alike, though only one of them holds the row."""
    trained = trainer(ProcessGroup(shard_items=True))
    if rank == 1:
        with torch.no_grad():
            trained.model.table.shard.id_embeddings[2, 1] = torch.inf
    trained._train_part = lambda checkpoint: 0.0
    found = r"epoch 1: table\.shard\.id_embeddings is not finite at learning_rate 0\.001"
    with pytest.raises(FloatingPointError, match=found):
        trained.run_epoch()
    assert trained.progress.best is None


def check_the_first_fails(rank: int, ranks: int, folder: Path) -> None:
    """What it raised is received, also where it cannot be pickled."""
    together = ProcessGroup()
    if rank == 0:
        with pytest.raises(LookupError), broadcasting(together):
            raise LookupError("gone", lambda: None)
    else:
        with pytest.raises(FirstRankError, match=r"rank 0: .*gone"):
            together.receive()


def check_a_dead_rank(rank: int, ranks: int, folder: Path) -> None:
    trained = trainer(ProcessGroup(timeout=5))
    trained.run_epoch()
    if rank == 1:
        os._exit(0)
    with pytest.raises(RankError, match=r"rank [02] of 3: another rank has ended, .* for 5 s"):
        trained.run_epoch()


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks(ranks, tmp_path):
    checks = [
        check_epochs,
        check_changing_ranks,
        check_what_is_drawn,
        check_within_an_epoch,
        check_runs,
        check_refusals,
        check_a_rank_whose_rows_diverge,
        check_the_first_fails,
    ]
    spawn(ranks, tmp_path, checks)


def test_a_rank_that_dies(tmp_path):
    spawn(3, tmp_path, [check_a_dead_rank], seconds=5)


# --- the command line

FLAGS = [
    "--no-neighbors",
    "--dim",
    "8",
    "--dropout",
    "0",
    "--history",
    "5",
    "--threads",
    "1",
    "--seed",
    "3",
]


def write_data(folder: Path) -> list[str]:
    clicks, items, _ = data()
    clicks.to_csv(folder / "clicks.csv", index=False)
    items.to_csv(folder / "items.csv", index=False)
    return ["--interactions", str(folder / "clicks.csv"), "--items", str(folder / "items.csv")]


def launch(ranks: int, *arguments: str) -> list[subprocess.Popen]:
    """What torchrun starts, without the one that watches it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(ranks)}
    return [
        subprocess.Popen(
            [sys.executable, "-m", "alphafuse_ext", *arguments],
            env={**os.environ, **place, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(ranks)
    ]


def ended(processes: list[subprocess.Popen]) -> list[tuple[int, str, str]]:
    found = []
    for process in processes:
        out, err = process.communicate(timeout=120)
        found.append((process.returncode, out, err))
    return found


def wait_for_epochs(run: Path, epochs: int) -> None:
    metrics = run / "metrics.jsonl"
    until = time.monotonic() + 120
    while not metrics.exists() or len(metrics.read_text().splitlines()) < epochs:
        assert time.monotonic() < until, "no epoch has finished"
        time.sleep(0.02)


def test_torchrun(tmp_path):
    """As the documentation has it, and its result with one process."""
    run, alone = tmp_path / "run", tmp_path / "alone"
    arguments = ["train", *write_data(tmp_path), *FLAGS, "--epochs", "3", "--output"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command = [*torchrun, "-m", "alphafuse_ext", *arguments, str(run)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("report: ") == 1, done.stdout
    cli.main([*arguments, str(alone)])
    found, expected = (json.loads((folder / "results.json").read_text()) for folder in (run, alone))
    assert found["test"] == pytest.approx(expected["test"], abs=1e-9)


@pytest.mark.parametrize("sharded", [(False, True), (True, False)])
def test_a_rank_is_killed_and_the_run_is_resumed(sharded, tmp_path):
    """The others say so and end; another number of ranks goes on, to the result of one process."""
    run, alone = tmp_path / "run", tmp_path / "alone"
    endless = ["--epochs", "100000", "--patience", "100000"]
    arguments = ["train", *write_data(tmp_path), *FLAGS, "--output"]
    before, after = (["--shard-items"] if one else [] for one in sharded)
    processes = launch(3, *arguments, str(run), *endless, *before)
    wait_for_epochs(run, 2)
    processes[1].kill()
    for rank, (status, _, err) in enumerate(ended(processes)):
        if rank != 1:
            assert status == 1, err
            assert f"rank {rank} of 3: another rank has ended" in err
            assert "alphafuse train --resume" in err
    epochs = len((run / "metrics.jsonl").read_text().splitlines()) + 2
    until = ["--epochs", str(epochs), "--patience", "100000"]
    for rank, (status, out, err) in enumerate(
        ended(launch(2, "train", "--resume", str(run), *until, *after))
    ):
        assert status == 0, err
        assert ("processes 2, where the run began with 3" in out) == (rank == 0)
    cli.main([*arguments, str(alone), *until])
    found, expected = (json.loads((folder / "results.json").read_text()) for folder in (run, alone))
    assert found["epochs"] == expected["epochs"] == epochs
    assert found["validation"] == pytest.approx(expected["validation"], abs=0.02)


def test_a_rank_hangs(tmp_path):
    """One that is there and does not answer: the timeout ends the others."""
    run = tmp_path / "run"
    endless = ["--epochs", "100000", "--patience", "100000", "--rank-timeout", "4"]
    processes = launch(2, "train", *write_data(tmp_path), *FLAGS, "--output", str(run), *endless)
    wait_for_epochs(run, 1)
    processes[1].send_signal(signal.SIGSTOP)
    [(status, _, err)] = ended(processes[:1])
    assert status == 1
    assert "rank 0 of 2: another rank has ended, or has not answered for 4 s" in err
    processes[1].kill()
    processes[1].communicate()
    af.Recommender.load(run)  # the last finished epoch is there


def test_torchrun_ends_a_rank(tmp_path):
    run = tmp_path / "run"
    endless = ["--epochs", "100000", "--patience", "100000"]
    processes = launch(2, "train", *write_data(tmp_path), *FLAGS, "--output", str(run), *endless)
    wait_for_epochs(run, 1)
    for process in processes:
        process.send_signal(signal.SIGTERM)
    for rank, (status, _, err) in enumerate(ended(processes)):
        assert status == 1, err
        assert f"rank {rank} of 2: " in err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["train", "--interactions", "none.csv"], "none.csv"),
        (["train", "--batch-size", "1"], "process_group: got 2; expected at most 1"),
    ],
)
def test_bad_input(arguments, said, tmp_path, monkeypatch):
    """One clear error for all ranks, and nothing written."""
    monkeypatch.chdir(tmp_path)
    (status, _, err), (other, _, silent) = ended(launch(2, *arguments))
    assert said in err
    assert said not in silent
    assert (status, other) == (2, 1)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["train", "--device", "cuda:0"], "--device: got cuda:0; expected cuda under torchrun"),
        (["train", "--device", "tpu"], "device: got 'tpu'; expected cpu, cuda"),
        (["train", "--rank-timeout", "0"], "--rank-timeout: got 0.0; expected seconds > 0"),
        (["evaluate", "runs/first"], "torchrun: got a command for one process; expected train"),
        (["recommend", "runs/first", "--k", "5"], "--parts: got none, under torchrun"),
    ],
)
def test_bad_input_of_a_rank(arguments, said, monkeypatch, capsys):
    """Seen before it looks for the others."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert cli.main(arguments) == 2
    assert said in capsys.readouterr().err


def test_what_needs_ranks(capsys):
    assert cli.main(["train", "--rank-timeout", "5"]) == 2
    assert "--rank-timeout: got 5.0; expected none without torchrun" in capsys.readouterr().err
    assert cli.main(["train", "--shard-items"]) == 2
    assert "--shard-items: got one process; expected several" in capsys.readouterr().err
