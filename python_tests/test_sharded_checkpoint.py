"""Checkpoints of a sharded table: some ranks write them, and others go on to the same end."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from planted import payloads
from spawned import spawn

import alphafuse_ext as af
from alphafuse_ext.distributed import (
    ShardedItemTable,
    load_checkpoint,
    save_checkpoint,
)
from alphafuse_ext.distributed import checkpoint as checkpoints
from alphafuse_ext.files import UnreadableFileError
from alphafuse_ext.models import SASRec
from alphafuse_ext.optim import LazyAdam, RowWiseAdagrad
from alphafuse_ext.torchrun import FirstRankError

pytestmark = pytest.mark.slow

N, STEPS = 53, 3
KINDS = torch.optim.AdamW, torch.optim.SparseAdam, LazyAdam, RowWiseAdagrad


def model_and_optimizers(kind: type = torch.optim.AdamW, seed: int = 0, **options):
    """SASRec on this rank's rows of a table that is the same whatever the number of ranks."""
    torch.manual_seed(seed)
    sparse = kind is not torch.optim.AdamW
    rows = np.random.default_rng(seed).standard_normal((N, 12)).astype(np.float32)
    space = af.SemanticSpace.from_embeddings(rows, progress=False)
    options = {"dim": 8, "null_dim": 4, "init": "normal", "sparse": sparse, **options}
    whole = af.ItemTable.from_space(space, rows, progress=False, **options)
    loss = {"loss": "sampled_softmax", "negatives": 3} if sparse else {}
    model = SASRec(whole, history=6, dropout=0.0, **loss)
    model.table = ShardedItemTable.from_table(whole)
    own = list(model.table.parameters())
    others = [p for name, p in model.named_parameters() if not name.startswith("table.")]
    # Adam makes steps of rounding where a gradient is zero but for it, as that of keys' biases is.
    return model, [kind(own, 0.02), torch.optim.SGD(others, 0.02, momentum=0.9)], others


def train(model, optimizers, others, first: int, steps: int) -> None:
    """The same batches for any number of ranks, which have all of them."""
    for step in range(first, first + steps):
        generator = torch.Generator().manual_seed(step)
        batch = torch.randint(N, (4, 7), generator=generator)
        torch.manual_seed(step)
        for optimizer in optimizers:
            optimizer.zero_grad()
        model.loss(batch[:, :-1], batch[:, 1:]).backward()
        for parameter in others:
            dist.all_reduce(parameter.grad)
            parameter.grad /= dist.get_world_size()
        for optimizer in optimizers:
            optimizer.step()


def whole_state(model) -> dict[str, torch.Tensor]:
    state = {name: value.detach().clone() for name, value in model.named_parameters()}
    name = "table.shard.id_embeddings"
    rows = [None] * dist.get_world_size()
    dist.all_gather_object(rows, state[name])
    state[name] = torch.cat(rows)
    return state


def check_written(rank: int, ranks: int, folder: Path) -> None:
    """A run with a checkpoint in its middle."""
    for kind in KINDS:
        trained = model_and_optimizers(kind)
        train(*trained, 0, STEPS)
        save_checkpoint(folder / f"middle-{kind.__name__}", *trained[:2], facts={"step": STEPS})
        train(*trained, STEPS, STEPS)
        if rank == 0:
            torch.save(whole_state(trained[0]), folder / f"end-{kind.__name__}.pt")
        else:
            whole_state(trained[0])
    # Without optimizers, and what is there already stays.
    model = trained[0]
    save_checkpoint(folder / "weights", model)
    before = sorted(path.stat().st_mtime_ns for path in (folder / "weights").iterdir())
    with pytest.raises(FileExistsError if rank == 0 else FirstRankError, match="which exists"):
        save_checkpoint(folder / "weights", model)
    assert before == sorted(path.stat().st_mtime_ns for path in (folder / "weights").iterdir())
    dist.barrier()


def check_read(rank: int, ranks: int, folder: Path) -> None:
    """By another number of ranks, to the same end."""
    for kind in KINDS:
        going_on = model_and_optimizers(kind, seed=1)
        facts = load_checkpoint(folder / f"middle-{kind.__name__}", *going_on[:2])
        assert facts == {"step": STEPS}
        train(*going_on, STEPS, STEPS)
        end = torch.load(folder / f"end-{kind.__name__}.pt")
        for name, value in whole_state(going_on[0]).items():
            torch.testing.assert_close(value, end[name], rtol=1e-4, atol=1e-5)
        # The frozen rows as well: another table was built.
        table, other = model_and_optimizers(kind)[0].table, going_on[0].table
        assert torch.equal(other.shard.semantic_rows, table.shard.semantic_rows)
    model, optimizers, _ = model_and_optimizers()
    load_checkpoint(folder / "middle-AdamW", model)
    assert not optimizers[0].state
    for given, said in (
        (lambda: load_checkpoint(folder / "none", model), "folder: got .*none"),
        (
            lambda: load_checkpoint(folder / "weights", model_and_optimizers(null_dim=3)[0]),
            "null_dim 4; expected null_dim 3",
        ),
        (
            lambda: load_checkpoint(folder / "weights", model.table),
            "another model, which differs in model/blocks",
        ),
        (lambda: load_checkpoint(folder / "weights", torch.nn.Linear(2, 2)), "Linear, with 0"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=said):
            given()


def check_a_rank_dies_while_saving(rank: int, ranks: int, folder: Path) -> None:
    """Nothing has the checkpoint's name."""
    model, optimizers, _ = model_and_optimizers()
    if rank == 1:
        checkpoints.save_tensors = lambda *args: os._exit(0)
    with pytest.raises(Exception, match=r"."):
        save_checkpoint(folder / "dead", model, optimizers)
    assert not (folder / "dead").exists()


@pytest.mark.parametrize(("before", "after"), [(2, 3), (3, 2), (2, 1)])
def test_another_number_of_ranks(before, after, tmp_path):
    spawn(before, tmp_path, [check_written])
    (tmp_path / "store").unlink()
    spawn(after, tmp_path, [check_read])


def test_a_rank_dies_while_saving(tmp_path):
    spawn(2, tmp_path, [check_a_rank_dies_while_saving], seconds=5)
    assert not list(tmp_path.glob("*dead*"))


@pytest.fixture
def one_rank():
    """A group of this process alone."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_a_file_that_was_planted_runs_nothing(one_rank, tmp_path):
    """In the place of any file of a checkpoint, or of that which earlier versions had unpickled."""
    model, optimizers, others = model_and_optimizers()
    train(model, optimizers, others, 0, 1)
    save_checkpoint(tmp_path / "good", model, optimizers, facts={"step": 1})
    before = whole_state(model)
    marker = tmp_path / "marker"
    for content in payloads(marker).values():
        (tmp_path / "good" / ".metadata").write_bytes(content)
        with contextlib.suppress(Exception):
            load_checkpoint(tmp_path / "good", model, optimizers)
        assert not marker.exists()
    (tmp_path / "good" / ".metadata").unlink()
    names = sorted(path.name for path in (tmp_path / "good").iterdir())
    assert names == ["checkpoint.json", "rank-0.safetensors"]
    for content in payloads(marker).values():
        for name in names:
            whole = (tmp_path / "good" / name).read_bytes()
            (tmp_path / "good" / name).write_bytes(content)
            with pytest.raises(UnreadableFileError, match=name):
                load_checkpoint(tmp_path / "good", model, optimizers)
            (tmp_path / "good" / name).write_bytes(whole)
    assert not marker.exists()
    for name, value in whole_state(model).items():
        assert torch.equal(value, before[name])


def test_a_checkpoint_that_is_not_whole_changes_nothing(one_rank, tmp_path):
    model, optimizers, others = model_and_optimizers()
    train(model, optimizers, others, 0, 1)
    folder = tmp_path / "saved"
    save_checkpoint(folder, model, optimizers)
    other = model_and_optimizers(seed=1)[0]
    before = whole_state(other)
    facts, rows = folder / "checkpoint.json", folder / "rank-0.safetensors"
    whole = facts.read_text(), rows.read_bytes()
    described = json.loads(whole[0])

    def refused(said: str) -> None:
        with pytest.raises(UnreadableFileError, match=said):
            load_checkpoint(folder, other)
        facts.write_text(whole[0])
        rows.write_bytes(whole[1])

    for bounds in ([0, 52], [1, 53], [0, 30, 20, 53], [], [0, True, 53], "0, 53", [0.0, 53]):
        facts.write_text(json.dumps({**described, "bounds": bounds}))
        refused("its bounds are")
    facts.write_text(json.dumps({**described, "bounds": [0, 53, 60]}))
    refused("its bounds are")
    for name in described:
        if name != "alphafuse_ext":
            facts.write_text(json.dumps({k: v for k, v in described.items() if k != name}))
            refused(f"it has no '{name}'")
    facts.write_text("[]")
    refused("it has no")
    rows.write_bytes(whole[1][:-1])
    refused("rank-0.safetensors: cannot be read")
    # Of fewer items than it says, and a rank that is not there.
    facts.write_text(json.dumps({**described, "bounds": [0, 20, 53]}))
    (folder / "rank-1.safetensors").write_bytes(whole[1])
    refused(r"rank-0.safetensors: cannot be read: it has model/table.* of shape \(53, ")
    (folder / "rank-1.safetensors").unlink()
    facts.write_text(json.dumps({**described, "bounds": [0, 20, 53]}))
    with pytest.raises(FileNotFoundError, match="rank-1"):
        load_checkpoint(folder, other)
    for name, value in whole_state(other).items():
        assert torch.equal(value, before[name])


def test_a_model_of_another_type_or_shape_is_refused(one_rank, tmp_path):
    save_checkpoint(tmp_path / "saved", model_and_optimizers()[0])
    halves = model_and_optimizers()[0].bfloat16()
    with pytest.raises(ValueError, match=r"^folder: got .* of torch.float32.*; expected torch.bfl"):
        load_checkpoint(tmp_path / "saved", halves)
    longer = model_and_optimizers()[0]
    longer.position = torch.nn.Embedding(7, 8)
    with pytest.raises(ValueError, match=r"position.weight of .* \(6, 8\); expected .*\(7, 8\)"):
        load_checkpoint(tmp_path / "saved", longer)


def test_state_that_is_no_row_for_each_item_is_refused(one_rank, tmp_path):
    model, _, others = model_and_optimizers()
    adafactor = torch.optim.Adafactor(model.table.parameters())
    train(model, [adafactor], others, 0, 1)
    with pytest.raises(ValueError, match=r"^optimizers: got table.shard.id_embeddings.col_var of"):
        save_checkpoint(tmp_path / "saved", model, [adafactor])
    assert not (tmp_path / "saved").exists()
