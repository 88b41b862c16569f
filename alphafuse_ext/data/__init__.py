"""From files to data: interactions, item texts, language embeddings, splits and batches."""

from alphafuse_ext.config.protocol import PROTOCOLS
from alphafuse_ext.data._delimited import Layout
from alphafuse_ext.data._tables import Source, is_delimited, origin
from alphafuse_ext.data.batches import NextItemRows, length_batches
from alphafuse_ext.data.dataset import Dataset
from alphafuse_ext.data.embeddings import LanguageEmbeddings, read_embeddings
from alphafuse_ext.data.interactions import Interactions, read_interactions, read_split
from alphafuse_ext.data.items import Items, read_items
from alphafuse_ext.data.merge import merge_interactions
from alphafuse_ext.data.reading import Reading
from alphafuse_ext.data.sequences import Sequences, Slices
from alphafuse_ext.data.split import (
    Examples,
    Split,
    cold_start_users,
    given_split,
    k_core,
    leave_one_out,
    split_interactions,
    time_split,
)
from alphafuse_ext.data.synthetic import PlantedSignal, planted_signals, synthetic_catalog
from alphafuse_ext.data.text import encode_texts

__all__ = [
    "PROTOCOLS",
    "Dataset",
    "Examples",
    "Interactions",
    "Items",
    "LanguageEmbeddings",
    "Layout",
    "NextItemRows",
    "PlantedSignal",
    "Reading",
    "Sequences",
    "Slices",
    "Source",
    "Split",
    "cold_start_users",
    "encode_texts",
    "given_split",
    "is_delimited",
    "k_core",
    "leave_one_out",
    "length_batches",
    "merge_interactions",
    "origin",
    "planted_signals",
    "read_embeddings",
    "read_interactions",
    "read_items",
    "read_split",
    "split_interactions",
    "synthetic_catalog",
    "time_split",
]


def __dir__() -> list[str]:
    return __all__
