"""Every init has the distribution it is named after, and the same generator gives the same bits."""

import math

import pytest
import torch

from alphafuse_ext.choices import INITS
from alphafuse_ext.items.initialization import init_id_embeddings

N, D = 4000, 25


def make(init, **arguments):
    return init_id_embeddings(N, D, init, **arguments)


def test_the_inits_of_the_method_are_there():
    assert set(INITS) == {
        "zeros",
        "normal",
        "uniform",
        "orthogonal",
        "xavier_uniform",
        "xavier_normal",
        "sparse",
    }


@pytest.mark.parametrize("init", INITS)
def test_reproducible_and_scaled(init):
    seed = torch.seed()
    print(f"seed: {seed}")

    def generator():
        return torch.Generator().manual_seed(seed)

    first = make(init, generator=generator())
    state = torch.get_rng_state()
    assert torch.equal(first, make(init, generator=generator()))
    assert torch.equal(state, torch.get_rng_state()), "the global generator was used"
    assert first.shape == (N, D)
    assert first.dtype == torch.float32
    assert torch.equal(make(init, generator=generator(), scale=0.25), 0.25 * first)
    half = make(init, generator=generator(), dtype=torch.bfloat16)
    assert torch.equal(half, first.bfloat16())
    if init != "zeros":
        assert not torch.equal(first, make(init, generator=torch.Generator().manual_seed(seed ^ 1)))


@pytest.mark.parametrize("init", [name for name in INITS if name not in ("zeros",)])
def test_without_a_generator_the_global_seed_decides(init):
    torch.manual_seed(7)
    first = make(init)
    torch.manual_seed(7)
    assert torch.equal(first, make(init))
    assert not torch.equal(first, make(init))


def test_distributions():
    generator = torch.Generator().manual_seed(0)  # fixed: these bounds are statistical
    assert (make("zeros") == 0).all()

    normal = make("normal", generator=generator)
    assert abs(normal.mean()) < 0.02
    assert abs(normal.std() - 1) < 0.02
    assert normal.abs().max() > 3

    uniform = make("uniform", generator=generator)
    assert uniform.min() >= 0
    assert uniform.max() < 1
    assert abs(uniform.mean() - 0.5) < 0.01
    assert abs(uniform.std() - 1 / math.sqrt(12)) < 0.01

    bound = math.sqrt(6 / (N + D))
    xavier = make("xavier_uniform", generator=generator)
    assert xavier.abs().max() <= bound
    assert xavier.abs().max() > 0.999 * bound

    deviation = math.sqrt(2 / (N + D))
    xavier = make("xavier_normal", generator=generator)
    assert abs(xavier.std() / deviation - 1) < 0.02
    assert xavier.abs().max() > 3 * deviation


def test_orthogonal_columns_or_rows():
    tall = make("orthogonal").double()
    torch.testing.assert_close(tall.T @ tall, torch.eye(D).double(), rtol=0, atol=1e-5)
    wide = init_id_embeddings(6, 40, "orthogonal").double()
    torch.testing.assert_close(wide @ wide.T, torch.eye(6).double(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("num_items", [1, 99, 100, 101, 4000])
def test_sparse_zeroes_one_percent_of_each_column(num_items):
    weight = init_id_embeddings(num_items, D, "sparse")
    assert ((weight == 0).sum(dim=0) == math.ceil(0.01 * num_items)).all()
    if num_items == 4000:
        assert abs(weight[weight != 0].std() - 1) < 0.05
        zero_rows = [set(torch.nonzero(column == 0).ravel().tolist()) for column in weight.T]
        assert zero_rows[0] != zero_rows[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 3), "num_items: got 0"),
        ((3, 0), "null_dim: got 0"),
        ((3, 3, "ortho"), "init: got 'ortho'; expected 'zeros' or"),
        ((3, 3, "normal", math.nan), "init_scale: got nan"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        init_id_embeddings(*arguments)
