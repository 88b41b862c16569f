"""Draws the pictures of the pages when the site is built: mkdocs calls `on_files`."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from mkdocs.structure.files import File

from alphafuse_ext import SemanticSpace
from alphafuse_ext.data import encode_texts, synthetic_catalog
from alphafuse_ext.training.plots import plot_gains


def on_files(files: Any, config: Any) -> Any:
    """Add the pictures to the files of the site."""
    matplotlib.use("agg")
    texts = synthetic_catalog(num_users=50, num_items=600, seed=0)[1]["title"].tolist()
    space = SemanticSpace.fit(encode_texts(texts, "tfidf", dim=96).rows, progress=False)
    with tempfile.TemporaryDirectory() as folder:
        space.plot(Path(folder) / "spectrum.png", dim=64, null_dim=48)
        soft = space.gains(64, 48, 0.5)
        plot_gains(space.eigenvalues[:64], soft, np.ones(64), Path(folder) / "gains.png")
        for picture in Path(folder).glob("*.png"):
            file = File.generated(config, f"img/{picture.name}", content=picture.read_bytes())
            files.append(file)
    return files
