"""``Dropout``: how often, how much, and the same again."""

from __future__ import annotations

import math

import pytest
import torch

from alphafuse_ext.models.dropout import Dropout

COUNT = 400_003
"""Not a multiple of what one draw is for."""


@pytest.mark.parametrize("p", [0.001, 0.1, 0.4, 0.5, 0.9, 0.999])
def test_how_often_and_how_much(p: float) -> None:
    out = Dropout(p)(torch.ones(COUNT))
    kept = out != 0
    deviation = math.sqrt(COUNT * p * (1 - p))
    assert abs(int(kept.sum()) - COUNT * (1 - p)) < 6 * deviation + COUNT / 2**16
    scale = out[kept].unique()
    assert len(scale) == 1
    assert abs(float(scale) * (1 - p) - 1) < 2**-16 / (1 - p)


@pytest.mark.parametrize("apart", [1, 2, 3, 4, 5, 8, 1000])
def test_elements_are_independent(apart: int) -> None:
    """Also those that share their random bits."""
    kept = (Dropout(0.3)(torch.ones(COUNT)) != 0).double() - 0.7
    correlation = (kept[apart:] * kept[:-apart]).mean() / (0.3 * 0.7)
    assert abs(correlation) < 6 / math.sqrt(COUNT)


def test_repeats_for_any_number_of_threads() -> None:
    x, before = torch.randn(70, 33, 50), torch.get_num_threads()
    results = []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            torch.manual_seed(5)
            results.append(Dropout(0.4)(x))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*results)
    assert not torch.equal(results[0], Dropout(0.4)(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradient_goes_where_values_go(dtype: torch.dtype) -> None:
    x = torch.randn(9, 31).add(3).to(dtype).transpose(0, 1).requires_grad_()
    out = Dropout(0.4)(x)
    assert out.dtype == dtype
    out.sum().backward()
    torch.testing.assert_close(out, x.detach() * x.grad)


def test_nothing_to_drop() -> None:
    x = torch.randn(5, 3)
    for layer in (Dropout(0.0), Dropout(1e-7), Dropout(0.5).eval()):
        assert torch.equal(layer(x), x)
    assert Dropout(0.5)(torch.empty(0, 3)).shape == (0, 3)
    assert not Dropout(1.0)(x).any()
