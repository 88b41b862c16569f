"""What mkdocs calls to build the site: pictures are drawn, docstrings lose Sphinx's roles."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from mkdocs.structure.files import File

from alphafuse_ext import SemanticSpace
from alphafuse_ext.training.plots import plot_gains


def on_files(files: Any, config: Any) -> Any:
    """Add the pictures to the files of the site."""
    matplotlib.use("agg")
    falling = np.arange(1, 129) ** -0.8
    rows = np.random.default_rng(0).normal(size=(5000, 128)) * falling
    space = SemanticSpace.fit(rows, progress=False)
    with tempfile.TemporaryDirectory() as folder:
        space.plot(Path(folder) / "spectrum.png", dim=96, null_dim=64)
        soft = space.gains(96, 64, 0.5)
        plot_gains(space.eigenvalues[:96], soft, soft, Path(folder) / "gains.png")
        for picture in Path(folder).glob("*.png"):
            file = File.generated(config, f"img/{picture.name}", content=picture.read_bytes())
            files.append(file)
    return files


def on_page_content(html: str, **_: Any) -> str:
    """Names in docstrings without `:func:` and its like, which the site would show."""
    return re.sub(r":(?:func|class|meth|mod|attr|data):(?=<code>)", "", html)
