"""Blocks against their papers' definitions, in plain code."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from alphafuse_ext import ItemTable
from alphafuse_ext.models import SASRec
from alphafuse_ext.models.blocks import Block, BSARecBlock, LiGRBlock
from alphafuse_ext.models.sasrec import _sink_mask

DIM, HISTORY = 16, 8
EVERYWHERE = torch.ones(3, 5, dtype=torch.bool)


def test_zero_sink_is_one_zero_key_for_each_missing_position():
    torch.manual_seed(1)
    block = Block(DIM, 2, 0.0, "pre").eval()
    x = torch.randn(1, 3, DIM)
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
    torch.testing.assert_close(block(x, None, EVERYWHERE), wanted(x, causal), rtol=1e-4, atol=1e-5)


def test_queries_alone_are_normed_on_the_way_in():
    torch.manual_seed(7)
    block = with_random_norms(Block(DIM, 2, 0.0, "query"))
    x = torch.randn(3, 5, DIM)
    attention = torch.nn.MultiheadAttention(DIM, 2, batch_first=True)
    attention.in_proj_weight = block.query_key_value.weight
    attention.in_proj_bias = block.query_key_value.bias
    attention.out_proj = block.output
    causal = torch.nn.Transformer.generate_square_subsequent_mask(5)
    queries = block.attention_norm(x)
    attended = attention(queries, x, x, attn_mask=causal, need_weights=False)[0]
    y = block.feed_forward_norm(x + attended)
    wanted = y + block.feed_forward(y)
    torch.testing.assert_close(block(x, None, EVERYWHERE), wanted, rtol=1e-4, atol=1e-5)


def with_random_norms(block):
    """The block in evaluation mode, its layer norms no longer those that hide each other."""
    for layer in block.modules():
        if isinstance(layer, torch.nn.LayerNorm):
            torch.nn.init.normal_(layer.weight)
            torch.nn.init.normal_(layer.bias)
    return block.eval()


def attention_of_torch(block, x):
    """What the block's attention adds, by torch's own layer, causal and without a sink."""
    attention = torch.nn.MultiheadAttention(DIM, block.heads, batch_first=True)
    attention.in_proj_weight = block.query_key_value.weight
    attention.in_proj_bias = block.query_key_value.bias
    attention.out_proj = block.output
    causal = torch.nn.Transformer.generate_square_subsequent_mask(x.shape[1])
    return attention(x, x, x, attn_mask=causal, need_weights=False)[0]


def filtered_by_fft(x, cutoff):
    """The slow part of a window that is full: BSARec's equation, by the transform it names."""
    spectrum = torch.fft.rfft(x, dim=1, norm="ortho")
    spectrum[:, cutoff // 2 + 1 :] = 0
    return torch.fft.irfft(spectrum, n=x.shape[1], dim=1, norm="ortho")


@pytest.mark.parametrize("cutoff", [1, 3, 5, 50])
@pytest.mark.parametrize("length", [HISTORY, 5])
def test_bsarec_is_its_equations(cutoff, length):
    torch.manual_seed(3)
    block = BSARecBlock(DIM, 2, 0.0, 4, HISTORY, cutoff, 0.7)
    block = with_random_norms(block)
    x = torch.randn(3, length, DIM)
    window = torch.zeros(3, HISTORY, DIM)  # padded on the left, as the authors have it
    window[:, HISTORY - length :] = x
    low = filtered_by_fft(window, cutoff)[:, HISTORY - length :]
    fast = block.beta**2 * (x - low)
    of_filter = block.filter_norm(x + low + fast)
    of_attention = block.attention_norm(x + attention_of_torch(block, x))
    mixed = 0.7 * of_filter + 0.3 * of_attention
    wanted = block.feed_forward_norm(mixed + block.feed_forward(mixed))
    found = block(x, None, torch.ones(3, length, dtype=torch.bool))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    assert block.feed_forward[0].out_features == 4 * DIM


def test_bsarec_ignores_padding():
    torch.manual_seed(4)
    block = with_random_norms(BSARecBlock(DIM, 2, 0.0, 4, HISTORY))
    x = torch.randn(3, 5, DIM)
    present = torch.arange(5) < torch.tensor([[5], [3], [1]])
    found = block(x, None, present)
    for row, length in enumerate((5, 3, 1)):
        alone = block(x[row : row + 1, :length], None, present[row : row + 1, :length])
        torch.testing.assert_close(found[row, :length], alone[0], rtol=1e-4, atol=1e-5)


def test_a_filter_is_causal_or_it_is_not():
    torch.manual_seed(5)
    x = torch.randn(1, 5, DIM)
    changed = x.clone()
    changed[:, 3:] += 1
    everywhere = torch.ones(1, 5, dtype=torch.bool)
    for causal in (False, True):
        block = BSARecBlock(DIM, 2, 0.0, 4, HISTORY, causal=causal).eval()
        before, after = block(x, None, everywhere), block(changed, None, everywhere)
        assert torch.allclose(before[:, :3], after[:, :3], atol=1e-6) == causal
    with_all = BSARecBlock(DIM, 2, 0.0, 4, HISTORY, causal=False)
    with_all.load_state_dict(block.state_dict())
    # The last position sees all there is, either way.
    torch.testing.assert_close(with_all.eval()(x, None, everywhere)[:, -1], before[:, -1])


def test_ligr_is_its_equations():
    torch.manual_seed(6)
    block = with_random_norms(LiGRBlock(DIM, 2, 0.0))
    x = torch.randn(3, 5, DIM)
    attended = attention_of_torch(block, block.attention_norm(x))
    y = x + torch.sigmoid(block.attention_gate(x)) * attended
    inside, normed = block.feed_forward, block.feed_forward_norm(y)
    fed = (F.silu(normed @ inside.gate.weight.T) * (normed @ inside.up.weight.T)) @ (
        inside.out.weight.T
    )
    wanted = y + torch.sigmoid(block.feed_forward_gate(y)) * fed
    torch.testing.assert_close(block(x, None, EVERYWHERE), wanted, rtol=1e-4, atol=1e-5)
    assert inside.up.out_features == 4 * DIM


def test_what_a_block_is_made_of_by_default():
    table = ItemTable.id_only(20, DIM)
    for block, kind, normed, last in (
        ("sasrec", Block, False, torch.nn.LayerNorm),
        ("bsarec", BSARecBlock, True, torch.nn.Identity),
        ("ligr", LiGRBlock, False, torch.nn.LayerNorm),
    ):
        model = SASRec(table, HISTORY, block=block)
        assert [type(one) for one in model.blocks] == [kind]
        assert isinstance(model.embedding_norm, torch.nn.LayerNorm) == normed
        assert type(model.norm) is last


@pytest.mark.parametrize(
    ("argument", "options"),
    [
        ("block", {"block": "mamba"}),
        ("norm", {"norm": "rms"}),
        ("norm", {"norm": "pre", "block": "bsarec"}),
        ("norm", {"norm": "post", "block": "ligr"}),
        ("norm", {"norm": "query", "block": "bsarec"}),
        ("feed_forward", {"feed_forward": 0}),
        ("filter_cutoff", {"filter_cutoff": 0, "block": "bsarec"}),
        ("filter_share", {"filter_share": 1.5, "block": "bsarec"}),
        ("input_scale", {"input_scale": 0.0}),
        ("position_std", {"position_std": -1.0}),
    ],
)
def test_bad_blocks_are_named(argument, options):
    with pytest.raises(ValueError, match=f"^{argument}: got"):
        SASRec(ItemTable.id_only(20, DIM), HISTORY, **options)
