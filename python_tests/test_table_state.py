"""An item table as a module: what its state means, casts and moves, and what cannot be changed."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.multiprocessing
from safetensors.torch import load_file, save_file
from torch import nn

from alphafuse_ext import ItemTable
from alphafuse_ext.items.space import SemanticSpace
from alphafuse_ext.items.table_spec import FORMAT, TableSpec

N, WIDTH = 23, 10
LOW = (torch.float16, torch.bfloat16)


def table_of(kind: str) -> ItemTable:
    """A table of each kind, its values fresh."""
    if kind == "id_only":
        return ItemTable.id_only(N, 6)
    rows = torch.randn(N, WIDTH)
    space = SemanticSpace.from_embeddings(rows)
    if kind == "frozen":
        return ItemTable.frozen(space, rows, 6)
    split = {"dim": 6, "null_dim": 3, "init": "normal"}
    if kind in ("original", "projected"):
        return ItemTable.from_space(space, rows, **split, coordinates=kind)
    return ItemTable.from_space(space, rows, **split, fusion=kind)


KINDS = ("concat", "add", "original", "projected", "id_only", "frozen")


# --- what the tensors mean travels with them


def test_add_is_not_loaded_into_concat():
    """Widths that fit by chance: 7 + 3 columns, added or side by side."""
    semantic_rows, id_embeddings = torch.randn(N, 7), torch.randn(N, 3)
    add = ItemTable(semantic_rows, id_embeddings, fusion="add")
    concat = ItemTable(torch.zeros(N, 7), torch.zeros(N, 3), fusion="concat")
    for strict in (True, False):
        with pytest.raises(RuntimeError, match=r"fusion='add'.*expected fusion='concat'"):
            concat.load_state_dict(add.state_dict(), strict=strict)
    assert not concat.weight.any()


def test_another_coordinates_map_is_not_loaded():
    """The two maps have one shape here, and each its own meaning."""
    rows = torch.randn(N, WIDTH)
    space = SemanticSpace.from_embeddings(rows)
    original = ItemTable.from_space(space, rows, dim=WIDTH, null_dim=4, coordinates="original")
    singular = ItemTable.from_space(space, rows, dim=WIDTH, null_dim=4)
    with pytest.raises(RuntimeError, match=r"coordinates='original'.*coordinates='singular'"):
        singular.load_state_dict(original.state_dict(), strict=False)


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_with_a_table_of_every_kind_loads_from_tensors_alone(kind, tmp_path):
    """As safetensors keeps them, which holds nothing but tensors, and as `torch.save` does."""
    table, other = table_of(kind), table_of(kind)
    model = nn.ModuleDict({"table": table, "layer": nn.Linear(2, 2)})
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    nn.ModuleDict({"table": other, "layer": nn.Linear(2, 2)}).load_state_dict(
        load_file(tmp_path / "model.safetensors")
    )
    assert torch.equal(other.weight, table.weight)
    torch.save(model.state_dict(), tmp_path / "model.pt")
    state = torch.load(tmp_path / "model.pt", weights_only=True)
    own = {name.removeprefix("table."): tensor for name, tensor in state.items() if "table" in name}
    rebuilt = ItemTable.from_state(own, sparse=True)
    assert torch.equal(rebuilt.weight, table.weight)
    assert (rebuilt.fusion, rebuilt.coordinates) == (table.fusion, table.coordinates)
    assert rebuilt.null_dim == table.null_dim
    assert rebuilt.sparse


@pytest.mark.parametrize("kind", KINDS)
def test_every_other_kind_is_refused(kind):
    table = table_of(kind)
    for other in set(KINDS) - {kind}:
        with pytest.raises(RuntimeError, match="_extra_state: got"):
            table.load_state_dict(table_of(other).state_dict())


def test_one_table_alone_is_not_fused_in_any_way():
    rows = torch.randn(N, 4)
    first, second = ItemTable(None, rows, "add"), ItemTable(None, torch.zeros(N, 4), "concat")
    second.load_state_dict(first.state_dict())
    assert torch.equal(second.weight, rows)


@pytest.mark.parametrize("strict", [True, False])
def test_a_state_without_its_spec_is_refused_unless_it_is_added(strict):
    table = table_of("add")
    model = nn.ModuleDict({"table": table, "layer": nn.Linear(2, 2)})
    state = nn.ModuleDict({"table": table_of("add"), "layer": nn.Linear(2, 2)}).state_dict()
    del state["table._extra_state"]
    before = table.weight.clone()
    with pytest.raises(RuntimeError, match=r"table\._extra_state: got none, so how .* not known"):
        model.load_state_dict(state, strict=strict)
    assert torch.equal(table.weight, before)
    state["table._extra_state"] = table.get_extra_state()
    model.load_state_dict(state, strict=strict)
    assert torch.equal(table.id_embeddings, state["table.id_embeddings"])


def test_a_state_without_a_table_has_no_spec():
    model = nn.ModuleDict({"table": table_of("concat"), "layer": nn.Linear(2, 2)})
    missing, _ = model.load_state_dict(
        {"layer.weight": torch.ones(2, 2), "layer.bias": torch.ones(2)}, strict=False
    )
    assert missing == ["table.id_embeddings", "table.semantic_rows", "table._extra_state"]
    assert (model["layer"].weight == 1).all()


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (torch.tensor([1, 2, 3], dtype=torch.uint8), "no description of an item table"),
        (torch.tensor(list(b"[1]"), dtype=torch.uint8), "no description of an item table"),
        (torch.tensor(list(b'{"format": 1}'), dtype=torch.uint8), "no description"),
        (torch.zeros(2), "no description of an item table"),
        ({"fusion": "add"}, "no description of an item table"),
        (
            torch.tensor(list(b'{"format": %d}' % (FORMAT + 1)), dtype=torch.uint8),
            rf"format {FORMAT + 1}; expected format {FORMAT} or earlier",
        ),
    ],
)
def test_a_description_that_makes_no_sense(extra, message):
    table = table_of("add")
    state = {**table.state_dict(), "_extra_state": extra}
    with pytest.raises(RuntimeError, match=message):
        table.load_state_dict(state)
    with pytest.raises(ValueError, match=message):
        ItemTable.from_state(state)


def test_a_state_with_a_wrong_spec_is_refused():
    state = dict(table_of("concat").state_dict())
    lie = TableSpec("concat", "singular", 7, 3, N).to_tensor()
    with pytest.raises(ValueError, match="embedding_dim=7; expected embedding_dim=6"):
        ItemTable.from_state({**state, "_extra_state": lie})
    with pytest.raises(ValueError, match="fusion='concat', embedding_dim=6; expected fusion=None"):
        ItemTable.from_state({**state, "semantic_rows": None})


def test_values_that_the_table_cannot_hold_are_not_loaded():
    table, high = ItemTable.id_only(N, 4).half(), ItemTable.id_only(N, 4)
    with torch.no_grad():
        high.id_embeddings[5, 1] = 1e5
    with pytest.raises(RuntimeError, match=r"id_embeddings: 100000\.0 in row 5, column 1"):
        table.load_state_dict(high.state_dict())
    table.load_state_dict(high.state_dict(), assign=True)  # takes the tensors as they are
    assert table.id_embeddings.dtype == torch.float32


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (torch.zeros(N, 3, dtype=torch.float64), "id_embeddings: got torch.float64"),
        (torch.zeros(3, N).T, "id_embeddings: got column stride 23"),
    ],
)
def test_tensors_that_the_ops_cannot_read_are_not_assigned(tensor, message):
    table = table_of("add")
    before = table.id_embeddings
    with pytest.raises(RuntimeError, match=message):
        table.load_state_dict({**table.state_dict(), "id_embeddings": tensor}, assign=True)
    assert table.id_embeddings is before
    table.load_state_dict({**table.state_dict(), "id_embeddings": tensor})  # copied


def test_a_strided_parameter_is_refused_by_the_constructor():
    with pytest.raises(ValueError, match="id_embeddings: got column stride 23"):
        ItemTable(None, nn.Parameter(torch.zeros(3, N).T))
    assert ItemTable(None, torch.zeros(3, N).T).id_embeddings.is_contiguous()


def test_how_rows_are_fused_is_fixed():
    table = table_of("add")
    for name in ("fusion", "coordinates"):
        with pytest.raises(AttributeError, match=name):
            setattr(table, name, "concat")


# --- casts and moves


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "cast",
    [
        lambda module: module.double(),
        lambda module: module.to(torch.float64),
        lambda module: module.type(torch.float64),
        lambda module: module.type(torch.int32),
        lambda module: module.to(torch.float8_e4m3fn),
        lambda module: module.to(torch.complex64),
    ],
)
@pytest.mark.filterwarnings("ignore:Complex modules")
def test_a_type_that_the_ops_do_not_read_is_refused_at_the_cast(kind, cast):
    table = table_of(kind)
    before = {name: tensor.dtype for name, tensor in table.state_dict().items()}
    with pytest.raises(TypeError, match=r"dtype of \w+: got torch\.\w+; expected float32, bfloat"):
        cast(nn.Sequential(table))
    assert {name: tensor.dtype for name, tensor in table.state_dict().items()} == before
    table(torch.arange(3))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", LOW)
def test_half_and_back(kind, dtype):
    table = table_of(kind)
    weight = table.weight.clone()
    mapping = None if table.coordinates_map is None else table.coordinates_map.clone()
    low = table.half() if dtype == torch.float16 else table.bfloat16()
    assert low is table
    for tensor in (table.semantic_rows, table.id_embeddings):
        assert tensor is None or tensor.dtype == dtype
    assert table.weight.dtype == dtype
    # Each stored value is rounded once; the map is not, so that its directions stay orthonormal.
    torch.testing.assert_close(table.weight.float(), weight, rtol=0.02, atol=0.05)
    queries = torch.randn(2, table.embedding_dim).to(dtype)
    targets = torch.tensor([3, N])
    values, ids = table.topk(queries, 2)
    assert torch.isfinite(values).all()
    assert torch.isfinite(table.cross_entropy(queries, targets))
    assert (table.target_ranks(queries, ids[:, 1]) == 1).all()
    assert table.float().weight.dtype == torch.float32
    if mapping is not None:
        assert torch.equal(table.coordinates_map, mapping)


def test_semantic_rows_of_another_type_follow_a_cast():
    table = ItemTable(torch.randn(N, 4).bfloat16(), torch.randn(N, 2))
    assert table.to(torch.bfloat16).id_embeddings.dtype == torch.bfloat16
    assert table.float().semantic_rows.dtype == torch.float32


@pytest.mark.parametrize("name", ["semantic_rows", "id_embeddings"])
def test_a_cast_that_would_overflow_is_refused(name):
    tensors = {"semantic_rows": torch.ones(N, 4), "id_embeddings": torch.ones(N, 4)}
    tensors[name][7, 2] = -70000.0
    table = ItemTable(**tensors)
    with pytest.raises(ValueError, match=rf"{name}: got -70000\.0 in row 7, column 2; .*float16"):
        table.half()
    assert table.weight.dtype == torch.float32
    table.bfloat16()


def test_to_the_meta_device_and_back():
    """How large models are laid out first and given memory later."""
    table = table_of("original")
    empty = copy.deepcopy(table).to("meta").to_empty(device="cpu")
    assert (empty.num_embeddings, empty.embedding_dim) == (N, WIDTH)
    empty.load_state_dict(table.state_dict())
    assert torch.equal(empty.weight, table.weight)


def _write_ones(table: ItemTable) -> None:
    with torch.no_grad():
        table.id_embeddings.fill_(1.0)


def test_shared_memory():
    table = table_of("add")
    table.topk(torch.randn(1, 6), 2, first_pass="int8")  # with a compressed copy beside it
    assert table.share_memory() is table
    assert table.semantic_rows.is_shared()
    assert table.id_embeddings.is_shared()
    process = torch.multiprocessing.get_context("spawn").Process(target=_write_ones, args=(table,))
    process.start()
    process.join()
    assert process.exitcode == 0
    assert (table.id_embeddings == 1).all()


@pytest.mark.parametrize("kind", KINDS)
def test_freezing(kind):
    table = table_of(kind)
    assert table.requires_grad_(False) is table
    queries = torch.randn(3, table.embedding_dim, requires_grad=True)
    targets = torch.tensor([0, 1, N])
    assert not table(targets).requires_grad
    assert not table.weight.requires_grad
    (table.cross_entropy(queries, targets) + table.score_all(queries).sum()).backward()
    assert queries.grad.any()
    assert all(parameter.grad is None for parameter in table.parameters())
    table.requires_grad_(True)
    assert table.weight.requires_grad == (kind != "frozen")


@pytest.mark.parametrize("kind", KINDS)
def test_copies_own_their_memory(kind):
    table = table_of(kind)
    queries = torch.randn(2, table.embedding_dim)
    table.topk(queries, 3, first_pass="int8")
    for other in (copy.deepcopy(table), pickle.loads(pickle.dumps(table))):
        assert torch.equal(other.weight, table.weight)
        assert isinstance(other.id_embeddings, nn.Parameter) or other.id_embeddings is None
        for left, right in zip(table.state_dict().values(), other.state_dict().values(),
                               strict=True):  # fmt: skip
            assert torch.equal(left, right)
            assert left.data_ptr() != right.data_ptr()
        assert torch.equal(other.topk(queries, 3, first_pass="int8")[1], table.topk(queries, 3)[1])
