"""Language embeddings without their meaning, for a comparison that asks where a gain comes from.

    python bench/experiments/control_embeddings.py DATA/minilm-l6.npy --output controls

``shuffled.npy`` has the same rows, each of another item; ``random.npy`` has rows of a normal
distribution with the same mean and covariance, so the same spectrum.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import numpy.typing as npt

from alphafuse_ext import SemanticSpace
from alphafuse_ext.files import atomic_path


def controls(rows: npt.NDArray[np.floating], seed: int) -> dict[str, npt.NDArray[np.float32]]:
    """Both, by name, each of the shape of ``rows``."""
    generator = np.random.default_rng(seed)
    space = SemanticSpace.from_embeddings(np.ascontiguousarray(rows, np.float32), progress=False)
    spread = np.sqrt(np.clip(space.eigenvalues, 0.0, None))
    drawn = generator.standard_normal(rows.shape) * spread @ space.basis.T + space.mean
    return {
        "shuffled": rows[generator.permutation(len(rows))].astype(np.float32),
        "random": drawn.astype(np.float32),
    }


def main() -> None:
    """Write both."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("embeddings", type=Path, help="a .npy file, (N, d_l)")
    parser.add_argument("--output", type=Path, required=True, help="folder, which is made")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    for name, made in controls(np.load(options.embeddings), options.seed).items():
        with (
            atomic_path(options.output / f"{name}.npy") as temporary,
            open(temporary, "wb") as file,
        ):
            np.save(file, made)
        print(options.output / f"{name}.npy")


if __name__ == "__main__":
    main()
