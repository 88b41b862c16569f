"""The encoder: causality, padding, positions, the zero sink."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from alphafuse_ext import ItemTable
from alphafuse_ext.models import SASRec
from alphafuse_ext.models.sasrec import Block

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
def test_a_query_depends_on_its_own_history_alone(zero_sink, blocks, heads):
    model = encoder(zero_sink=zero_sink, blocks=blocks, heads=heads)
    histories = [[3, 1, 4, 1, 5], [9, 2], [6]]
    together = model.encode(padded(*histories))
    for row, history in enumerate(histories):
        torch.testing.assert_close(together[row], model.encode(padded(history))[0])


def test_causal():
    model = encoder(blocks=2, heads=2)
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


def test_zero_sink_is_one_zero_key_for_each_missing_position():
    torch.manual_seed(1)
    block = Block(DIM, 2, 0.0, "pre").eval()
    x = torch.randn(1, 3, DIM)
    from alphafuse_ext.models.sasrec import _sink_mask

    found = block._attend(x, _sink_mask(torch.tensor([3]), 3, 8, x.dtype))
    query, key, value = block.query_key_value(x).view(3, 3, 2, DIM // 2).permute(1, 2, 0, 3)
    key, value = F.pad(key, (0, 0, 5, 0)), F.pad(value, (0, 0, 5, 0))
    scores = query @ key.transpose(1, 2) / math.sqrt(DIM // 2)
    mask = torch.cat([torch.zeros(3, 5), torch.full((3, 3), -math.inf).triu(1)], 1)
    attended = torch.softmax(scores + mask, -1) @ value
    wanted = block.output(attended.transpose(0, 1).reshape(1, 3, DIM))
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_a_block_is_that_of_torch(norm):
    torch.manual_seed(2)
    block = Block(DIM, 2, 0.0, norm).eval()
    for layer_norm in (block.attention_norm, block.feed_forward_norm):
        torch.nn.init.normal_(layer_norm.weight)
        torch.nn.init.normal_(layer_norm.bias)
    wanted = torch.nn.TransformerEncoderLayer(
        DIM, 2, DIM, 0.0, "gelu", batch_first=True, norm_first=norm == "pre"
    ).eval()
    for ours, theirs in (
        (block.output, wanted.self_attn.out_proj),
        (block.feed_forward[0], wanted.linear1),
        (block.feed_forward[-1], wanted.linear2),
        (block.attention_norm, wanted.norm1),
        (block.feed_forward_norm, wanted.norm2),
    ):
        theirs.load_state_dict(ours.state_dict())
    with torch.no_grad():
        wanted.self_attn.in_proj_weight.copy_(block.query_key_value.weight)
        wanted.self_attn.in_proj_bias.copy_(block.query_key_value.bias)
    x = torch.randn(3, 5, DIM)
    causal = torch.nn.Transformer.generate_square_subsequent_mask(5)
    torch.testing.assert_close(block(x, None), wanted(x, causal), rtol=1e-4, atol=1e-5)


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
