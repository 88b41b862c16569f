"""Sequential recommenders on fused language and ID embeddings (AlphaFuse, SIGIR 2025)."""

from pkgutil import extend_path

# `python -m alphafuse_ext` in a source checkout imports these sources, while the native core
# may lie with the installed package: look for submodules there as well.
__path__ = extend_path(__path__, __name__)

__version__ = "0.1.0"
