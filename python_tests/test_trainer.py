"""What the trainer does with its settings: learning rates and weight decay."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pytest
import torch
from conftest import HostReads, on_a_device

from alphafuse_ext import Config, ItemTable
from alphafuse_ext.config.item_embedding import ADAGRAD_RATE
from alphafuse_ext.data import leave_one_out, read_interactions, read_items, synthetic_catalog
from alphafuse_ext.optim import LazyAdam, RowWiseAdagrad
from alphafuse_ext.runs.assembly import build_model
from alphafuse_ext.training.trainer import Progress, Trainer, rate_factor


@pytest.fixture(scope="module")
def split():
    clicks, items = synthetic_catalog(num_users=60, num_items=48, seed=1)
    return leave_one_out(read_interactions(clicks, read_items(items)))


def trainer(split, device="cpu", **options) -> Trainer:
    options = {"item_embedding": "id", "dim": 8, "dropout": 0.0, "batch_size": 16, **options}
    config = Config.from_dict(options).resolve(None, 48)
    torch.manual_seed(0)
    table = ItemTable.id_only(48, 8, sparse=config.sparse)
    return Trainer(build_model(config, table).to(device), split, config)


def test_the_learning_rate_rises_and_falls():
    config = Config(epochs=10, warmup=2.0)
    assert [rate_factor(config, done) for done in (0.0, 1.0, 2.0, 9.9)] == [0.0, 0.5, 1.0, 1.0]
    linear = config.replace(learning_rate_schedule="linear")
    assert [rate_factor(linear, done) for done in (1.0, 2.0, 6.0, 10.0)] == [0.5, 1.0, 0.5, 0.0]
    cosine = config.replace(learning_rate_schedule="cosine")
    wanted = [0.5, 1.0, (1 + 2**-0.5) / 2, 0.5, 0.0]
    found = [rate_factor(cosine, done) for done in (1.0, 2.0, 4.0, 6.0, 10.0)]
    assert found == pytest.approx(wanted, abs=1e-12)


@pytest.mark.parametrize("sparse", [False, True])
def test_every_step_has_its_learning_rate(split, sparse):
    run = trainer(split, sparse=sparse, epochs=4, warmup=1.0, learning_rate_schedule="linear")
    rates = []
    for optimizer in run.optimizers:
        optimizer.register_step_pre_hook(
            lambda optimizer, *_: rates.append([group["lr"] for group in optimizer.param_groups])
        )
    run.run_epoch()
    run.run_epoch()
    steps = len(rates) // len(run.optimizers) // 2
    assert steps > 2
    for number, found in enumerate(rates):
        wanted = 1e-3 * rate_factor(run.config, number // len(run.optimizers) / steps)
        assert found == pytest.approx([wanted] * len(found))


def test_sparse_rows_may_have_their_own_learning_rate(split):
    for options, wanted in (
        ({}, 2e-3),
        ({"sparse_optimizer": "adagrad"}, 2e-3 * ADAGRAD_RATE),
        ({"sparse_optimizer": "adagrad", "sparse_learning_rate": 0.5}, 0.5),
        ({"sparse_learning_rate": 0.5}, 0.5),
    ):
        run = trainer(split, sparse=True, learning_rate=2e-3, warmup=1.0, **options)
        rows, encoder = run.optimizers
        kind = RowWiseAdagrad if "sparse_optimizer" in options else LazyAdam
        assert isinstance(rows, kind)
        run._set_learning_rate(0.5)
        assert rows.param_groups[0]["lr"] == wanted / 2
        assert encoder.param_groups[0]["lr"] == 1e-3


@pytest.mark.parametrize("optimizer", ["adam", "adagrad"])
def test_sparse_rows_go_on_bit_for_bit(split, optimizer):
    whole, begun, resumed = (
        trainer(split, sparse=True, sparse_optimizer=optimizer, epochs=2) for _ in range(3)
    )
    for run in (whole, whole, begun):
        run.run_epoch()
    resumed.model.load_state_dict(begun.model.state_dict())
    resumed.restore(begun.progress, begun.epochs, begun.state()[1])
    resumed.run_epoch()
    for found, expected in zip(resumed.state(), whole.state(), strict=True):
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_moments_of_pytorchs_sparse_adam_are_resumed(split):
    """Of runs that were begun when it trained sparse rows: the same names, the same meaning."""
    begun, resumed = (trainer(split, sparse=True, epochs=2) for _ in range(2))
    rows = begun.optimizers[0].param_groups[0]
    begun.optimizers[0] = torch.optim.SparseAdam(rows["params"], rows["lr"], rows["betas"])
    begun.optimizers[0].param_groups[0]["initial_lr"] = rows["lr"]
    begun.run_epoch()
    resumed.model.load_state_dict(begun.model.state_dict())
    kept = copy.deepcopy(begun.state()[1])
    resumed.restore(copy.copy(begun.progress), begun.epochs[:], kept)
    found = resumed.state()[1]
    assert found.keys() == kept.keys()
    assert all(torch.equal(found[name], kept[name]) for name in kept)
    for run in (begun, resumed):
        run.run_epoch()
    for name, expected in begun.state()[0].items():
        torch.testing.assert_close(resumed.state()[0][name], expected, rtol=0, atol=1e-5)


def test_moments_of_another_optimizer_are_refused(split):
    begun = trainer(split, sparse=True, sparse_optimizer="adagrad", epochs=2)
    begun.run_epoch()
    resumed = trainer(split, sparse=True, epochs=2)
    with pytest.raises(ValueError, match="state_dict: got a state of step, sum for parameter 0"):
        resumed.restore(begun.progress, begun.epochs, begun.state()[1])


@pytest.mark.parametrize("on", ["all", "encoder", "item-embeddings"])
@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
def test_weight_decay_is_where_it_is_asked_for(split, on, optimizer):
    """A step of a zero gradient moves what decays, and nothing else."""
    run = trainer(split, weight_decay=0.1, weight_decay_on=on, optimizer=optimizer)
    model = run.model
    before = {name: value.clone() for name, value in run.state()[0].items()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    for one in run.optimizers:
        one.step()
    for name, value in run.state()[0].items():
        part = "item-embeddings" if name.startswith("table.") else "encoder"
        decays = on in ("all", part) and bool(before[name].any())
        assert torch.equal(value, before[name]) != decays, name
        if optimizer == "adamw" and decays:
            torch.testing.assert_close(value, before[name] * (1 - 1e-4))


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({"learning_rate": 1e39}, r"\w[\w.]* is not finite at learning_rate 1e\+39"),
        ({"learning_rate": 1e39, "sparse": True}, r"table.id_embeddings is not finite"),
        ({"learning_rate": 1e25}, r"the model's queries are not finite at learning_rate 1e\+25"),
    ],
)
def test_an_epoch_whose_last_step_diverges_does_not_count(split, options, found):
    """The loss of that step was finite: it is taken before the parameters move."""
    run = trainer(split, batch_size=64, **options)
    with pytest.raises(FloatingPointError, match=f"epoch 1: {found}.*a lower one"):
        run.run_epoch()
    assert (run.progress.epoch, run.progress.best, run.epochs) == (0, None, [])


def test_scores_are_finite_too(split):
    run = trainer(split)
    torch.nn.init.constant_(run.model.table.id_embeddings, 10.0)
    run.model.encode = lambda ids: torch.full((len(ids), 8), 1e38)
    with pytest.raises(FloatingPointError, match="epoch 1: the model's scores are not finite at"):
        run.run_epoch()
    assert run.progress.best is None


@pytest.mark.parametrize("key", ["exp_avg", "exp_avg_sq"])
def test_moments_are_finite_too(split, key):
    """An infinite second moment stops its parameter for good, while all else looks well."""
    run = trainer(split, batch_size=64)
    run.run_epoch()
    parameter = run.model.table.id_embeddings
    run.optimizers[0].state[parameter][key][3, 2] = torch.inf
    with pytest.raises(FloatingPointError, match=r"epoch 2: .*not finite at learning_rate 0.001"):
        run.run_epoch()
    kept = {name: value.clone() for name, value in run.state()[1].items()}
    with pytest.raises(FloatingPointError, match=f"epoch 1: table.id_embeddings.{key} is not fin"):
        trainer(split).restore(Progress(epoch=1, best_epoch=1, best=0.1), [{}], kept)


def test_buffers_are_finite_too(split):
    run = trainer(split)
    run.model.register_buffer("statistics", torch.tensor([1.0, torch.nan]))
    with pytest.raises(FloatingPointError, match="statistics is not finite at learning_rate"):
        run.run_epoch()


LONG = {"loss": "sampled_softmax", "negatives": 8, "dropout": 0.3, "batch_size": 8}


def test_validations_within_an_epoch_change_nothing_of_it(split):
    whole, parts = trainer(split, **LONG), trainer(split, validate_every=3, **LONG)
    steps, saved = len(whole.rows.batches(8, np.random.default_rng(0))), []
    assert steps == 7
    line = whole.run_epoch()
    lines = [parts.run_epoch(lambda: saved.append(1)) for _ in range(3)]
    assert not saved  # ten minutes have not passed
    assert [line["epoch"] for line in lines] == [3 / 7, 6 / 7, 1]
    assert (parts.progress.epoch, parts.progress.step, parts.progress.epochs_done) == (1, 0, 1)
    assert line["validation"] == lines[-1]["validation"]
    for name, value in whole.state()[0].items():
        assert torch.equal(value, parts.state()[0][name]), name
    order = whole.rows.batches(8, np.random.default_rng((0, 1)))
    targets = [sum(whole.rows.targets_of(rows) for rows in order[a : a + 3]) for a in (0, 3, 6)]
    mean = np.average([line["loss"] for line in lines], weights=targets)
    assert mean == pytest.approx(line["loss"], rel=1e-6)


def test_patience_counts_validations(split):
    run = trainer(split, validate_every=3, patience=2, select="hr@1", **LONG)
    run._validate = lambda examples: {"hr@1": 1.0 / (1 + len(run.epochs))}
    while not run.finished:
        run.run_epoch()
    assert [line["epoch"] for line in run.epochs] == [3 / 7, 6 / 7, 1]
    assert run.progress.best_epoch == 3 / 7


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("stop", [1, 2, 3])
def test_going_on_in_the_middle_of_an_epoch(split, sparse, stop):
    """Batches, dropout, negatives, losses and moments are as without the interruption."""
    options = {"validate_every": 3, "checkpoint_minutes": 1e-9, "sparse": sparse, **LONG}
    whole, begun = trainer(split, **options), trainer(split, **options)
    kept = []

    def save() -> None:
        tensors = ({k: v.clone() for k, v in part.items()} for part in begun.state())
        kept.append((dataclasses.replace(begun.progress), list(begun.epochs), *tensors))

    for _ in range(2):
        begun.run_epoch(save)
        save()
    progress, epochs, parameters, found = kept[stop]
    assert progress.step == stop + 1
    torch.rand(5)
    again = trainer(split, **options)
    with torch.no_grad():
        for name, parameter in again.model.named_parameters():
            parameter.copy_(parameters[name])
    again.restore(progress, epochs, found)
    for run in (whole, again):
        while run.progress.epochs_done < 2:
            run.run_epoch()
    for one, other in zip(whole.epochs, again.epochs, strict=True):
        assert {n: v for n, v in one.items() if "seconds" not in n} == {
            n: v for n, v in other.items() if "seconds" not in n
        }
    for one, other in zip(whole.state(), again.state(), strict=True):
        assert one.keys() == other.keys()
        for name in one:
            assert torch.equal(one[name], other[name]), name


def test_a_checkpoint_within_an_epoch_is_finite(split):
    run = trainer(split, checkpoint_minutes=1e-9, **LONG)
    run.optimizers[0].register_step_post_hook(
        lambda *_: run.model.table.id_embeddings.data[0].fill_(torch.nan)
    )
    with pytest.raises(FloatingPointError, match=r"epoch 1: table\.id_embeddings is not finite"):
        run.run_epoch(lambda: pytest.fail("saved"))


@on_a_device
@pytest.mark.parametrize(
    "options",
    [
        {"loss": "cross_entropy"},
        {"loss": "cross_entropy", "precision": "bf16"},
        {"loss": "sampled_softmax", "negatives": 4, "negatives_per": "batch"},
        {"loss": "infonce", "negatives": 4},
    ],
)
def test_the_host_does_not_wait_in_a_step(split, device, options):
    """However many steps an epoch has, it asks the device as often; and its loss is the CPU's."""
    counted, steps = [], []
    for batch_size in (16, 5):
        run = trainer(split, device, batch_size=batch_size, **options)
        steps.append(len(run.rows.batches(batch_size, np.random.default_rng(0))))
        with HostReads() as reads:
            loss = run._train_part(None)
        counted.append(reads.found)
        assert 0 < loss < 10
    assert steps[0] < steps[1]
    assert counted[0] == counted[1]


def test_the_loss_of_an_epoch_is_that_of_its_targets(split):
    run = trainer(split, loss="cross_entropy", learning_rate=1e-30)
    found = run.run_epoch()["loss"]
    every = np.arange(len(run.rows.rows))
    with torch.no_grad():
        whole = run.model.loss(*run.batch(every)).item()
    assert found == pytest.approx(whole / run.rows.targets_of(every), rel=1e-6)
