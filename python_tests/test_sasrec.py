"""The encoder: causality, padding, positions, the zero sink."""

from __future__ import annotations

import pytest
import torch

from alphafuse_ext import ItemTable
from alphafuse_ext.config.model import BLOCKS
from alphafuse_ext.models import SASRec

NUM_ITEMS, DIM = 31, 16


def encoder(**options) -> SASRec:
    torch.manual_seed(0)
    table = ItemTable(torch.randn(NUM_ITEMS, 10), torch.randn(NUM_ITEMS, 6))
    return SASRec(table, history=8, **options).eval()


def padded(*histories: list[int]) -> torch.Tensor:
    length = max(map(len, histories))
    return torch.tensor([h + [NUM_ITEMS] * (length - len(h)) for h in histories])


@pytest.mark.parametrize("zero_sink", [False, True])
@pytest.mark.parametrize(("blocks", "heads"), [(1, 1), (3, 4)])
@pytest.mark.parametrize("block", BLOCKS)
def test_a_query_depends_on_its_own_history_alone(zero_sink, blocks, heads, block):
    model = encoder(zero_sink=zero_sink, blocks=blocks, heads=heads, block=block)
    histories = [[3, 1, 4, 1, 5], [9, 2], [6]]
    together = model.encode(padded(*histories))
    for row, history in enumerate(histories):
        torch.testing.assert_close(together[row], model.encode(padded(history))[0])


@pytest.mark.parametrize("block", BLOCKS)
def test_causal(block):
    model = encoder(blocks=2, heads=2, block=block)
    first, second = model(padded([3, 1, 4, 1, 5])), model(padded([3, 1, 4, 7, 2]))
    torch.testing.assert_close(first[:, :3], second[:, :3])
    assert not torch.allclose(first[:, 3:], second[:, 3:])


def test_positions_count_from_the_end():
    """With attention and feed-forward silenced, the newest item always meets position 0."""
    model = encoder()
    block = model.blocks[0]
    for layer in (block.output, block.feed_forward[-1]):
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    ids = padded([3, 1, 4], [5])
    hidden = model(ids)
    weight, position = model.table.weight, model.position.weight
    torch.testing.assert_close(hidden[0, 0], model.norm(weight[3] + position[2]))
    torch.testing.assert_close(hidden[0, 2], model.norm(weight[4] + position[0]))
    torch.testing.assert_close(hidden[1, 0], model.norm(weight[5] + position[0]))


def test_position_std_is_of_the_first_positions():
    torch.manual_seed(0)
    table = ItemTable.id_only(NUM_ITEMS, 64)
    for std in (0.0, 0.5):
        found = SASRec(table, history=50, position_std=std).position.weight.std().item()
        assert found == pytest.approx(std, rel=0.1)


def test_input_scale_is_of_the_items_that_go_in():
    """The scored table stays as it is, and so do the positions."""
    plain, scaled = encoder(), encoder(input_scale=4.0)
    ids = padded([3, 1, 4], [5])
    for tensor in (plain.table.semantic_rows, plain.table.id_embeddings.data):
        tensor.mul_(4.0)
    torch.testing.assert_close(scaled(ids), plain(ids))
    assert torch.equal(scaled.table.weight * 4.0, plain.table.weight)


def test_norms_of_the_input_and_of_the_last_block():
    """After post-norm blocks there is no norm of another kind; the input's takes scales away."""
    model = encoder(norm="post", embedding_norm=True)
    assert isinstance(model.norm, torch.nn.Identity)
    ids = padded([3, 1, 4])
    before = model(ids)
    with torch.no_grad():
        for weight in (model.table.id_embeddings, model.table.semantic_rows, model.position.weight):
            weight.mul_(100)
    torch.testing.assert_close(model(ids), before, rtol=1e-3, atol=1e-4)
    with_one_more = {name.partition(".")[0] for name, _ in model.named_parameters()}
    assert with_one_more == {"table", "position", "embedding_norm", "blocks"}


def test_a_full_history_has_no_sink():
    model = encoder(zero_sink=True)
    ids = torch.randint(NUM_ITEMS, (2, 8))
    with_sink = model(ids)
    model.zero_sink = False
    torch.testing.assert_close(with_sink, model(ids))


@pytest.mark.parametrize(
    ("argument", "value"),
    [("history", 0), ("blocks", 0), ("heads", 3), ("heads", 0), ("dropout", 1.0), ("norm", "none")],
)
def test_bad_arguments_are_named(argument, value):
    table = ItemTable(None, torch.randn(NUM_ITEMS, DIM))
    with pytest.raises(ValueError, match=f"^{argument}: got"):
        SASRec(table, **{argument: value})


def test_too_long_a_history_is_refused():
    with pytest.raises(ValueError, match=r"^ids: got"):
        encoder()(torch.zeros(1, 9, dtype=torch.int64))
