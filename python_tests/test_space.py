"""The semantic space against float64 brute force, and every way its input can be wrong."""

import os
import pickle
import tracemalloc

import numpy as np
import pytest
import scipy.linalg
import torch
from matplotlib.figure import Figure

from alphafuse_ext.files import UnreadableFileError, load_tensors, save_tensors
from alphafuse_ext.items.space import SemanticSpace


def embeddings(rng, num_items=300, width=24, unit_norm=False):
    """Correlated rows with a mean far from zero, as text encoders give them."""
    directions = np.linalg.qr(rng.standard_normal((width, width)))[0]
    spread = np.geomspace(1.0, 1e-2, width)[:, None] * directions
    rows = rng.standard_normal((num_items, width)) @ spread + 3.0 * rng.standard_normal(width)
    if unit_norm:
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows


def brute_force(rows, scale=1.0, weights=None):
    """Mean and covariance by their definition, over the items with text."""
    rows = np.asarray(rows, dtype=np.float64)
    weights = np.ones(len(rows)) if weights is None else np.asarray(weights, dtype=np.float64)
    weights = weights * (rows != 0).any(axis=1)
    rows = rows * scale
    mean = (weights[:, None] * rows).sum(axis=0) / weights.sum()
    centred = rows - mean
    return mean, (weights[:, None] * centred).T @ centred / weights.sum()


def assert_decomposes(space, rows, scale=1.0, weights=None, tolerance=1e-11):
    mean, covariance = brute_force(rows, scale, weights)
    largest = np.linalg.eigvalsh(covariance)[-1]
    np.testing.assert_allclose(space.mean, mean, rtol=1e-11, atol=1e-13 * scale)
    rebuilt = space.basis * space.eigenvalues @ space.basis.T
    np.testing.assert_allclose(rebuilt, covariance, rtol=0, atol=tolerance * largest)
    np.testing.assert_allclose(space.basis.T @ space.basis, np.eye(len(mean)), atol=1e-12)
    assert (np.diff(space.eigenvalues) <= 0).all()
    strongest = np.take_along_axis(space.basis, np.abs(space.basis).argmax(axis=0)[None], axis=0)
    assert (strongest > 0).all()


@pytest.fixture
def rng(request):
    seed = np.random.SeedSequence().entropy
    print(f"seed: {seed}")  # shown where a test fails
    return np.random.default_rng(seed)


# --- from_embeddings


@pytest.mark.parametrize("chunk_rows", [1, 7, 299, 300, None])
@pytest.mark.parametrize("scale", [1.0, 40.0])
@pytest.mark.parametrize("weighted", [False, True])
def test_fit_is_the_definition(rng, chunk_rows, scale, weighted):
    rows = embeddings(rng)
    rows[rng.integers(300, size=20)] = 0.0
    weights = rng.integers(0, 9, size=300) if weighted else None
    space = SemanticSpace.from_embeddings(rows, scale=scale, weights=weights, chunk_rows=chunk_rows)
    assert_decomposes(space, rows, scale, weights)
    has_text = rows.any(axis=1)
    assert space.num_items == 300
    assert space.total_weight == (has_text.sum() if weights is None else weights[has_text].sum())


def test_fit_is_sound_where_the_mean_is_huge_against_the_spread(rng):
    rows = 1e6 + rng.standard_normal((500, 6)) * np.geomspace(1.0, 1e-3, 6)
    space = SemanticSpace.from_embeddings(rows, chunk_rows=33)
    # The textbook E[x x^T] - mean mean^T would be wrong by about 1e-4 here.
    assert_decomposes(space, rows, tolerance=1e-8)


@pytest.mark.parametrize(
    "dtype",
    [
        np.float16,
        np.float32,
        np.float64,
        torch.float16,
        torch.bfloat16,
        torch.float32,
        torch.float64,
    ],
)
def test_dtypes_and_containers(rng, dtype):
    rows = embeddings(rng, unit_norm=True)
    given = torch.tensor(rows).to(dtype) if isinstance(dtype, torch.dtype) else rows.astype(dtype)
    before = given.clone() if isinstance(given, torch.Tensor) else given.copy()
    space = SemanticSpace.from_embeddings(given, scale=40.0, chunk_rows=64)
    exact = given.double().numpy() if isinstance(given, torch.Tensor) else given
    assert_decomposes(space, exact, 40.0)
    space.transform(given, whiten=True)
    assert (given == before).all(), "the input was written to"


def test_non_contiguous_and_byte_swapped_input(rng):
    rows = embeddings(rng).astype(np.float32)
    whole = SemanticSpace.from_embeddings(rows)
    for given in (np.asfortranarray(rows), rows.astype(">f4"), np.repeat(rows, 2, axis=0)[::2]):
        np.testing.assert_array_equal(SemanticSpace.from_embeddings(given).basis, whole.basis)
    transposed = torch.tensor(rows.T.copy()).t()
    np.testing.assert_array_equal(SemanticSpace.from_embeddings(transposed).basis, whole.basis)


def test_tensors_that_need_gradients(rng):
    rows = torch.tensor(embeddings(rng), requires_grad=True)
    space = SemanticSpace.from_embeddings(rows)
    assert not space.transform(rows).requires_grad


def test_integer_weights_are_repeated_rows(rng):
    rows = embeddings(rng, 40, 8)
    times = rng.integers(0, 4, size=40)
    times[0] = 1
    weighted = SemanticSpace.from_embeddings(rows, weights=torch.tensor(times), chunk_rows=9)
    repeated = SemanticSpace.from_embeddings(np.repeat(rows, times, axis=0))
    np.testing.assert_allclose(weighted.eigenvalues, repeated.eigenvalues, rtol=1e-9)
    np.testing.assert_allclose(weighted.basis, repeated.basis, atol=1e-7)


def test_scale_moves_eigenvalues_by_its_square(rng):
    rows = embeddings(rng)
    one, forty = (
        SemanticSpace.from_embeddings(rows),
        SemanticSpace.from_embeddings(rows, scale=40.0),
    )
    np.testing.assert_allclose(forty.eigenvalues, 1600.0 * one.eigenvalues, rtol=1e-9)
    np.testing.assert_allclose(forty.mean, 40.0 * one.mean)


def test_the_same_input_gives_the_same_bits(rng):
    rows = embeddings(rng)
    first, second = (
        SemanticSpace.from_embeddings(rows, chunk_rows=50),
        SemanticSpace.from_embeddings(rows, chunk_rows=50),
    )
    assert first.basis.tobytes() == second.basis.tobytes()
    assert first.eigenvalues.tobytes() == second.eigenvalues.tobytes()


class CountingMap(np.memmap):
    """A memory map that notes how many rows each slice asks for."""

    asked: list[int]

    def __getitem__(self, where):
        result = super().__getitem__(where)
        if isinstance(where, slice):
            self.asked.append(len(result))
        return result


def test_a_memory_map_is_read_once_in_chunks_and_never_whole(rng, tmp_path):
    num_items, width, chunk_rows = 20_000, 32, 500
    rows = embeddings(rng, num_items, width).astype(np.float16)
    path = tmp_path / "embeddings.bin"
    rows.tofile(path)
    given = CountingMap(path, dtype=np.float16, mode="r", shape=rows.shape)
    chunk_bytes = 8 * chunk_rows * width

    given.asked = []
    tracemalloc.start()
    space = SemanticSpace.from_embeddings(given, chunk_rows=chunk_rows)
    _, fit_peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert given.asked == [chunk_rows] * 40
    assert_decomposes(space, rows)
    # The input is 1.3 MB in float16 and 5 MB in float64; the weights of the items are 160 kB.
    assert fit_peak < 8 * num_items + 6 * chunk_bytes

    given.asked = []
    out = torch.empty(num_items, 4)
    tracemalloc.start()
    space.transform(given, dim=4, out=out, chunk_rows=chunk_rows)
    _, project_peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert given.asked == [chunk_rows] * 40
    assert project_peak < 6 * chunk_bytes


def test_the_default_chunk_is_64_mib_whatever_the_input(tmp_path):
    # A sparse file: 200 GB to the reader, nothing on the disk.
    given = CountingMap(tmp_path / "huge", dtype=np.float16, mode="w+", shape=(1 << 25, 3072))
    given.asked = []
    given[0] = np.nan
    with pytest.raises(ValueError, match="row 0"):
        SemanticSpace.from_embeddings(given, weights=np.broadcast_to(1.0, 1 << 25))
    assert given.asked == [(64 << 20) // (8 * 3072)]


def test_progress_bar(rng, capfd):
    rows = embeddings(rng)
    space = SemanticSpace.from_embeddings(rows, chunk_rows=100)
    assert "items" not in capfd.readouterr().err
    SemanticSpace.from_embeddings(rows, chunk_rows=100, progress=True)
    assert "300/300" in capfd.readouterr().err
    space.transform(rows, chunk_rows=100, progress=True)
    assert "projecting" in capfd.readouterr().err


# --- degenerate input


def test_unit_norm_half_precision_with_fewer_items_than_dimensions(rng):
    rows = embeddings(rng, num_items=20, width=48, unit_norm=True).astype(np.float16)
    space = SemanticSpace.from_embeddings(rows, scale=40.0)
    assert space.matrix_rank == 19
    white = space.transform(rows, whiten=True).double()
    assert torch.isfinite(white).all()
    assert (white[:, space.matrix_rank :] == 0).all()
    covariance = white.T @ white / len(rows)
    expected = torch.diag((torch.arange(48) < space.matrix_rank).double())
    torch.testing.assert_close(covariance, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("chunk_rows", [1, 7, None])
@pytest.mark.parametrize("num_items", [1, 2, 12, 13, 24])
@pytest.mark.parametrize("weighted", [False, True])
def test_few_rows_are_decomposed_as_many_are(rng, num_items, weighted, chunk_rows):
    """As brute force has it, and as they are where items without text make them many.

    Of 24 columns, up to 12 rows are few.
    """
    rows = embeddings(rng, num_items)
    weights = rng.random(num_items) if weighted else None
    space = SemanticSpace.from_embeddings(rows, 40.0, weights, chunk_rows)
    if num_items > 1:
        assert_decomposes(space, rows, 40.0, weights)
    padded = None if weights is None else np.append(weights, np.ones(100))
    many = SemanticSpace.from_embeddings(
        np.vstack([rows, np.zeros((100, 24))]), 40.0, padded, chunk_rows
    )
    assert space.matrix_rank == many.matrix_rank == min(num_items - 1, 24)
    scale = max(many.eigenvalues[0], 1.0)
    np.testing.assert_allclose(space.eigenvalues, many.eigenvalues, atol=1e-13 * scale, rtol=1e-9)
    kept = slice(space.matrix_rank)
    np.testing.assert_allclose(space.basis[:, kept], many.basis[:, kept], atol=1e-6)
    again = SemanticSpace.from_embeddings(rows, 40.0, weights, chunk_rows)
    assert space.basis.tobytes() == again.basis.tobytes()


def test_few_rows_take_no_decomposition_of_all_columns(rng, monkeypatch):
    """Which takes half a minute for 4,096 columns."""
    sizes = []
    eigh = scipy.linalg.eigh

    def recorded(matrix, **options):
        sizes.append(len(matrix))
        return eigh(matrix, **options)

    monkeypatch.setattr(scipy.linalg, "eigh", recorded)
    space = SemanticSpace.from_embeddings(rng.standard_normal((20, 512)))
    assert max(sizes) <= 40
    assert space.basis.shape == (512, 512)
    assert space.matrix_rank == 19
    assert (space.eigenvalues[20:] == 0).all()


def test_few_rows_that_float64_cannot_hold():
    rows = np.ones((2, 8))
    rows[0, 3], rows[1, 3] = 1e200, -1e200
    with pytest.raises(ValueError, match="float64 can hold"):
        SemanticSpace.from_embeddings(rows)


@pytest.mark.parametrize("value", [0.1, 1 / 3, 1e-30, 12345.678])
@pytest.mark.parametrize("num_items", [1, 3, 1000])
def test_items_that_are_all_alike_have_no_direction(rng, value, num_items):
    rows = np.tile(value * rng.standard_normal(16), (num_items, 1))
    space = SemanticSpace.from_embeddings(rows, weights=rng.random(num_items) + 0.1, chunk_rows=7)
    assert space.matrix_rank == 0
    assert (space.transform(rows, whiten=True) == 0).all()


def test_a_constant_and_a_repeated_column(rng):
    rows = embeddings(rng, width=6)
    rows[:, 2] = 0.7
    rows[:, 5] = rows[:, 1]
    space = SemanticSpace.from_embeddings(rows)
    with pytest.warns(FutureWarning, match=r"^SemanticSpace\.rank is now matrix_rank$"):
        assert space.rank == 4
    assert space.matrix_rank == 4
    assert torch.isfinite(space.transform(rows, whiten=True)).all()


def test_width_one(rng):
    rows = rng.standard_normal((9, 1))
    space = SemanticSpace.from_embeddings(rows)
    np.testing.assert_allclose(space.transform(rows)[:, 0], rows[:, 0] - rows.mean(), rtol=1e-6)


# --- transform


@pytest.mark.parametrize("dim", [1, 5, 24, None])
@pytest.mark.parametrize("whiten", [False, True])
@pytest.mark.parametrize("scale", [1.0, 40.0])
def test_projection_is_the_definition(rng, dim, whiten, scale):
    rows = embeddings(rng)
    without_text = rng.choice(300, size=15, replace=False)
    rows[without_text] = 0.0
    weights = rng.random(300)
    space = SemanticSpace.from_embeddings(rows, scale=scale, weights=weights)
    projected = space.transform(rows, dim=dim, whiten=whiten, chunk_rows=41)
    width = dim or 24
    expected = (scale * rows - space.mean) @ space.basis[:, :width]
    if whiten:
        expected /= np.sqrt(space.eigenvalues[:width])
    expected[without_text] = 0.0
    assert projected.dtype == torch.float32
    assert projected.shape == (300, width)
    np.testing.assert_allclose(projected.numpy(), expected, rtol=1.2e-7, atol=1e-9)
    assert (projected[without_text] == 0).all()


def test_whitened_coordinates_have_unit_covariance_under_the_weights(rng):
    rows, weights = embeddings(rng), rng.random(300)
    space = SemanticSpace.from_embeddings(rows, weights=weights)
    white = space.transform(rows, whiten=True).double().numpy()
    mean, covariance = brute_force(white, weights=weights)
    np.testing.assert_allclose(mean, 0.0, atol=1e-5)
    np.testing.assert_allclose(covariance, np.eye(24), atol=1e-5)


def test_projection_of_other_items_into_a_given_tensor(rng):
    space = SemanticSpace.from_embeddings(embeddings(rng))
    others = rng.standard_normal((7, 24))
    out = torch.full((7, 10), torch.nan)[:, ::2]
    assert space.transform(others, dim=5, out=out) is out
    assert torch.equal(out, space.transform(others, dim=5))


def test_old_names_warn(rng):
    rows = embeddings(rng)
    space = SemanticSpace.from_embeddings(rows, scale=2.0)
    with pytest.warns(
        FutureWarning, match=r"^SemanticSpace\.fit is now .*\.from_embeddings$"
    ) as one:
        old = SemanticSpace.fit(rows, scale=2.0)
    assert one[0].filename == __file__
    np.testing.assert_array_equal(old.basis, space.basis)
    expected = space.transform(rows, 4, whiten=True)
    with pytest.warns(FutureWarning, match=r"^SemanticSpace\.project is now .*\.transform$"):
        assert torch.equal(space.project(rows, 4, True), expected)
    with pytest.warns(FutureWarning, match="^standardize is now whiten$"):
        assert torch.equal(space.transform(rows, 4, standardize=True), expected)


# --- split


def test_split_by_size_and_by_threshold(rng):
    space = SemanticSpace.from_embeddings(embeddings(rng))
    eigenvalues = space.eigenvalues
    assert space.split(null_dim=5) == (24, 5)
    assert space.split(dim=12, null_dim=np.int64(11)) == (12, 11)
    assert space.split(dim=12, null_dim=12, fusion="add") == (12, 12)
    for dim in (2, 12, 24):
        for null_dim in range(1, dim):
            threshold = eigenvalues[dim - null_dim]
            assert space.split(dim, null_threshold=threshold) == (dim, null_dim)
            assert space.split(dim, null_threshold=threshold, fusion="add") == (dim, null_dim)


def test_the_threshold_is_in_scaled_units(rng):
    rows = embeddings(rng)
    threshold = SemanticSpace.from_embeddings(rows).eigenvalues[10] * 1.0001
    assert SemanticSpace.from_embeddings(rows).split(null_threshold=threshold) == (24, 14)
    scaled = SemanticSpace.from_embeddings(rows, scale=40.0)
    assert scaled.split(null_threshold=1600.0 * threshold) == (24, 14)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "exactly one"),
        ({"null_dim": 3, "null_threshold": 0.1}, "exactly one"),
        ({"null_dim": 0}, "null_dim: got 0; expected 1 <= null_dim <= 23"),
        ({"null_dim": 24}, "null_dim: got 24; expected 1 <= null_dim <= 23"),
        ({"dim": 8, "null_dim": 8}, "null_dim: got 8; expected 1 <= null_dim <= 7"),
        ({"dim": 8, "null_dim": 9, "fusion": "add"}, "expected 1 <= null_dim <= 8"),
        ({"dim": 0, "null_dim": 1}, "dim: got 0; expected 1 <= dim <= 24"),
        ({"dim": 25, "null_dim": 1}, "dim: got 25"),
        ({"null_dim": 3, "fusion": "cover"}, "fusion: got 'cover'"),
        ({"null_threshold": 0.0}, "no null space"),
        ({"null_threshold": float("nan")}, "no null space"),
        ({"null_threshold": 1e9}, "nothing but null space"),
        ({"null_threshold": 1e9, "fusion": "add"}, "nothing but null space"),
    ],
)
def test_splits_that_do_not_fit(rng, arguments, message):
    space = SemanticSpace.from_embeddings(embeddings(rng))
    with pytest.raises(ValueError, match=message):
        space.split(**arguments)


@pytest.mark.parametrize("arguments", [{"null_dim": 2.5}, {"null_dim": True}, {"dim": "8"}])
def test_sizes_that_are_no_integers(rng, arguments):
    space = SemanticSpace.from_embeddings(embeddings(rng))
    with pytest.raises(TypeError, match="an integer"):
        space.split(**{"null_dim": 1, **arguments})


def test_a_threshold_out_of_range_names_the_range_of_the_kept_eigenvalues(rng):
    space = SemanticSpace.from_embeddings(embeddings(rng))
    with pytest.raises(ValueError, match="eigenvalue") as caught:
        space.split(dim=6, null_threshold=0.0)
    assert f"{space.eigenvalues[5]:.6g}" in str(caught.value)
    assert f"{space.eigenvalues[0]:.6g}" in str(caught.value)


# --- bad input


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_the_first_row_that_is_not_finite_is_named(rng, bad, dtype):
    rows = embeddings(rng).astype(dtype)
    space = SemanticSpace.from_embeddings(rows)
    rows[[137, 210], [5, 0]] = bad
    for use in (SemanticSpace.from_embeddings, space.transform):
        with pytest.raises(ValueError, match=r"language_embeddings: got -?(nan|inf) in row 137"):
            use(rows, chunk_rows=50)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ([[1.0, 2.0]], TypeError, "got list"),
        (np.ones((4, 3), dtype=np.int32), TypeError, "int32"),
        (np.ones((4, 3), dtype=np.complex64), TypeError, "complex64"),
        (torch.ones(4, 3, dtype=torch.int64), TypeError, "int64"),
        (np.ones(4), ValueError, r"shape \(4,\)"),
        (np.ones((2, 3, 4)), ValueError, r"shape \(2, 3, 4\)"),
        (np.ones((0, 3)), ValueError, "at least one item"),
        (np.ones((3, 0)), ValueError, "at least one item"),
        (np.zeros((3, 2)), ValueError, "no item that has both text"),
        (np.array([[1e200, 1.0], [-1e200, 1.0]]), ValueError, "float64 can hold"),
    ],
)
def test_bad_embeddings(given, error, message):
    with pytest.raises(error, match=f"language_embeddings: .*{message}"):
        SemanticSpace.from_embeddings(given)


def test_masked_entries_are_refused(rng):
    """In each array that enters; a mask of nothing is one of no masked array."""
    rows, weights = embeddings(rng), rng.random(300)
    space = SemanticSpace.from_embeddings(rows, weights=weights)
    unmasked = SemanticSpace.from_embeddings(
        np.ma.masked_array(rows), weights=np.ma.masked_array(weights)
    )
    assert unmasked.basis.tobytes() == space.basis.tobytes()
    masked = np.ma.masked_greater(rows, rows.max() - 1e-9)
    masked_weights = np.ma.masked_less(weights, 0.5)
    for use, argument in (
        (
            lambda: SemanticSpace.from_embeddings(masked),
            "language_embeddings: got a masked array, 1 of",
        ),
        (lambda: space.transform(masked), "language_embeddings: got a masked array, 1 of"),
        (
            lambda: SemanticSpace.from_embeddings(rows, weights=masked_weights),
            "weights: got a masked array",
        ),
        (
            lambda: SemanticSpace(
                space.mean, space.basis, np.ma.masked_less(space.eigenvalues, 1), 1.0, 3, 3.0
            ),
            "eigenvalues: got a masked array",
        ),
    ):
        with pytest.raises(ValueError, match=argument):
            use()


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), float("inf")])
def test_bad_scale(rng, scale):
    with pytest.raises(ValueError, match="scale: got"):
        SemanticSpace.from_embeddings(embeddings(rng), scale=scale)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (np.ones(299), r"shape \(299,\); expected shape \(300,\)"),
        (np.ones((300, 1)), r"shape \(300, 1\)"),
        (np.zeros(300), "zeros only"),
        (np.where(np.arange(300) == 7, -1.0, 1.0), "-1.0 for item 7"),
        (np.where(np.arange(300) == 9, np.nan, 1.0), "nan for item 9"),
        (np.where(np.arange(300) == 9, np.inf, 1.0), "inf for item 9"),
    ],
)
def test_bad_weights(rng, weights, message):
    with pytest.raises(ValueError, match=f"weights: got .*{message}"):
        SemanticSpace.from_embeddings(embeddings(rng), weights=weights)


def test_weight_on_items_without_text_only(rng):
    rows = embeddings(rng)
    rows[3] = 0.0
    with pytest.raises(ValueError, match="weights: got no item that has both text"):
        SemanticSpace.from_embeddings(rows, weights=np.arange(300) == 3)


def test_bad_chunk_rows(rng):
    with pytest.raises(ValueError, match="chunk_rows: got 0"):
        SemanticSpace.from_embeddings(embeddings(rng), chunk_rows=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dim": 25}, "dim: got 25; expected 1 <= dim <= 24"),
        ({"out": torch.empty(300, 23)}, r"out: got torch.float32 of shape \(300, 23\)"),
        ({"out": torch.empty(300, 24, dtype=torch.float64)}, "out: got torch.float64"),
        ({"out": torch.empty(300, 24, device="meta")}, "out: got .* on meta"),
    ],
)
def test_bad_projections(rng, arguments, message):
    rows = embeddings(rng)
    with pytest.raises(ValueError, match=message):
        SemanticSpace.from_embeddings(rows).transform(rows, **arguments)


def test_projection_of_another_width(rng):
    with pytest.raises(ValueError, match=r"shape \(300, 23\); expected shape \(N, 24\)"):
        SemanticSpace.from_embeddings(embeddings(rng)).transform(embeddings(rng, width=23))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"basis": np.eye(3)}, "basis: got shape"),
        ({"eigenvalues": np.arange(4.0)}, "eigenvalues: got ascending"),
        ({"mean": np.full(4, np.nan)}, "mean: got a NaN"),
        ({"mean": np.float64(1.0)}, "mean: got shape"),
        ({"scale": -1.0}, "scale: got -1.0"),
        ({"num_items": 0}, "num_items"),
    ],
)
def test_a_space_made_by_hand_is_checked(change, message):
    sound = {
        "mean": np.zeros(4),
        "basis": np.eye(4),
        "eigenvalues": np.ones(4),
        "scale": 1.0,
        "num_items": 3,
        "total_weight": 3.0,
    }
    assert SemanticSpace(**sound).embedding_dim == 4
    with pytest.raises(ValueError, match=message):
        SemanticSpace(**{**sound, **change})


def test_a_space_cannot_be_changed(rng):
    space = SemanticSpace.from_embeddings(embeddings(rng))
    with pytest.raises(ValueError, match="read-only"):
        space.basis[0, 0] = 1.0
    with pytest.raises(AttributeError):
        space.scale = 2.0


# --- save, load


def test_save_and_load_are_bitwise(rng, tmp_path):
    rows = embeddings(rng)
    space = SemanticSpace.from_embeddings(rows, scale=1 / 3, weights=rng.random(300))
    space.save(tmp_path / "run" / "space")
    loaded = SemanticSpace.load(tmp_path / "run" / "space")
    assert sorted(os.listdir(tmp_path / "run")) == ["space.safetensors"]
    for name in ("mean", "basis", "eigenvalues"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(space, name))
    for name in ("scale", "num_items", "total_weight"):
        assert getattr(loaded, name) == getattr(space, name)
    assert torch.equal(loaded.transform(rows, 9, True), space.transform(rows, 9, True))


def test_pickle_round_trip(rng):
    space = SemanticSpace.from_embeddings(embeddings(rng))
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(space)).basis, space.basis)


@pytest.mark.parametrize("keep", [0, 30, -8])
def test_truncated_file(rng, tmp_path, keep):
    SemanticSpace.from_embeddings(embeddings(rng)).save(tmp_path / "space")
    path = tmp_path / "space.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UnreadableFileError, match=r"space\.safetensors"):
        SemanticSpace.load(tmp_path / "space")


def test_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"space\.safetensors"):
        SemanticSpace.load(tmp_path / "space")


@pytest.mark.parametrize("name", ["mean", "basis", "eigenvalues", "scale", "num_items"])
def test_a_file_that_lacks_something(rng, tmp_path, name):
    SemanticSpace.from_embeddings(embeddings(rng)).save(tmp_path / "space")
    tensors, facts = load_tensors(tmp_path / "space", "SemanticSpace")
    for values in (tensors, facts):
        values.pop(name, None)
    save_tensors(tmp_path / "space", "SemanticSpace", tensors, facts)
    with pytest.raises(UnreadableFileError, match=rf"space\.safetensors: .*no '{name}'"):
        SemanticSpace.load(tmp_path / "space")


@pytest.mark.parametrize("scale", [-1.0, "one", None, [1.0]])
def test_a_description_that_makes_no_sense(rng, tmp_path, scale):
    SemanticSpace.from_embeddings(embeddings(rng)).save(tmp_path / "space")
    tensors, facts = load_tensors(tmp_path / "space", "SemanticSpace")
    save_tensors(tmp_path / "space", "SemanticSpace", tensors, {**facts, "scale": scale})
    with pytest.raises(UnreadableFileError, match="scale"):
        SemanticSpace.load(tmp_path / "space")


# --- plot


def areas(figure):
    """Widths of the coloured parts of the picture, by the first words of their labels."""
    (axes,) = figure.axes
    return {
        patch.get_label().split(",")[0]: len(patch.get_data().values)
        for patch in axes.patches
        if hasattr(patch, "get_data")
    }


def test_plot_marks_the_parts(rng, tmp_path):
    space = SemanticSpace.from_embeddings(embeddings(rng))
    figure = space.plot(tmp_path / "spectrum.png", dim=20, null_dim=8, title="a title")
    assert areas(figure) == {"row space: language": 12, "null space: IDs": 8, "truncated": 4}
    assert figure.axes[0].get_yscale() == "log"
    assert (tmp_path / "spectrum.png").read_bytes().startswith(b"\x89PNG")
    assert os.listdir(tmp_path) == ["spectrum.png"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({}, {"kept": 24}),
        ({"dim": 20}, {"kept": 20, "truncated": 4}),
        ({"dim": 20, "null_dim": 0}, {"kept": 20, "truncated": 4}),
        ({"dim": 20, "null_dim": 20}, {"null space: IDs": 20, "truncated": 4}),
    ],
)
def test_plot_without_one_of_the_parts(rng, arguments, expected):
    assert areas(SemanticSpace.from_embeddings(embeddings(rng)).plot(**arguments)) == expected


def test_plot_of_a_split_that_does_not_fit(rng, tmp_path):
    space = SemanticSpace.from_embeddings(embeddings(rng))
    with pytest.raises(ValueError, match="null_dim: got 21"):
        space.plot(tmp_path / "spectrum.png", dim=20, null_dim=21)
    with pytest.raises(ValueError, match="exactly one"):
        space.plot(tmp_path / "spectrum.png", null_dim=2, null_threshold=0.1)
    assert os.listdir(tmp_path) == []


def test_plot_marks_the_threshold(rng):
    space = SemanticSpace.from_embeddings(embeddings(rng))
    threshold = float(space.eigenvalues[15])
    figure = space.plot(null_threshold=threshold)
    assert areas(figure) == {"row space: language": 15, "null space: IDs": 9}
    (line,) = figure.axes[0].lines
    assert set(line.get_ydata()) == {threshold}


def test_plot_into_given_axes_and_of_degenerate_spaces(rng):
    figure = Figure()
    axes = figure.subplots(1, 2)
    rows = embeddings(rng, num_items=5)
    assert SemanticSpace.from_embeddings(rows).plot(ax=axes[0], dim=20, null_dim=18) is figure
    assert SemanticSpace.from_embeddings(np.ones((3, 4))).plot(ax=axes[1]) is figure
    figure.canvas.draw()
    hatched = [patch for axis in axes for patch in axis.patches if patch.get_hatch()]
    assert [patch.get_label() for patch in hatched] == [
        "no variance, 20 directions",
        "no variance, 4 directions",
    ]


def test_a_title_is_no_formula(tmp_path):
    """A sign of the dollar would begin one, and most are not understood."""
    rows = np.random.default_rng(0).standard_normal((30, 6)).astype(np.float32)
    space = SemanticSpace.from_embeddings(rows, progress=False)
    space.plot(tmp_path / "spectrum.png", dim=4, null_dim=2, title="costs $_^$")
    assert (tmp_path / "spectrum.png").stat().st_size
