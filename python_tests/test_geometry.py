"""What survives of the language embeddings' distances."""

import numpy as np
import pytest
from conftest import fresh_generator
from scipy.stats import spearmanr

from alphafuse_ext.items.geometry import distance_survival, plot_maps


@pytest.fixture
def rows():
    return fresh_generator().standard_normal((40, 6))


def test_survival_of_copies_noise_and_constants(rows):
    rotation, _ = np.linalg.qr(fresh_generator().standard_normal((6, 6)))
    parts = {
        "rotated": 3 * rows @ rotation,
        "noise": fresh_generator().standard_normal((40, 6)),
        "constant": np.ones((40, 2)),
    }
    survival = distance_survival(rows, parts, pairs=5000)
    assert survival["rotated"] == pytest.approx(1, abs=1e-9)
    assert abs(survival["noise"]) < 0.3
    assert np.isnan(survival["constant"])


def test_survival_is_spearman_over_all_pairs(rows):
    part = rows + fresh_generator().standard_normal(rows.shape)
    first, second = np.triu_indices(40, 1)
    exact = spearmanr(
        np.linalg.norm(rows[first] - rows[second], axis=1),
        np.linalg.norm(part[first] - part[second], axis=1),
    ).statistic
    found = distance_survival(rows, {"part": part}, pairs=100_000)["part"]
    assert found == pytest.approx(exact, abs=0.02)
    assert found == distance_survival(rows, {"part": part}, pairs=100_000)["part"]


def test_bad_input(rows):
    with pytest.raises(ValueError, match=r"parts\['short'\]: got 39 rows"):
        distance_survival(rows, {"short": rows[1:]})
    with pytest.raises(ValueError, match="pairs: got 2"):
        distance_survival(rows, {}, pairs=2)
    with pytest.raises(ValueError, match="language_embeddings: got 2 rows"):
        distance_survival(rows[:2], {})


def test_maps_are_drawn(rows, tmp_path):
    plot_maps(
        {"fused": rows, "ID": rows[:, :2]},
        np.arange(40.0),
        "clicks",
        {"fused": 0.5},
        tmp_path / "map.png",
        points=30,
    )
    assert (tmp_path / "map.png").read_bytes()[:4] == b"\x89PNG"
    assert [path.name for path in tmp_path.iterdir()] == ["map.png"]


def test_names_of_parts_are_no_formulas(rows, tmp_path):
    """A sign of the dollar would begin one, and most are not understood."""
    path = tmp_path / "map.png"
    plot_maps({"costs $_^$": rows}, np.arange(40.0), "of $^$", {}, path, points=30)
    assert path.read_bytes()[:4] == b"\x89PNG"
