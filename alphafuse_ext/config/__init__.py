"""The settings of a run, those of each component in a file of its own; without PyTorch."""

from alphafuse_ext.config.config import Config, layered

__all__ = ["Config", "layered"]
