"""From files to data: interactions, item texts, language embeddings, splits and batches."""

from alphafuse_ext.data.batches import length_batches
from alphafuse_ext.data.embeddings import read_embeddings
from alphafuse_ext.data.interactions import Interactions, read_interactions
from alphafuse_ext.data.items import Items, read_items
from alphafuse_ext.data.sequences import Sequences
from alphafuse_ext.data.split import Examples, Split, leave_one_out
from alphafuse_ext.data.synthetic import hidden_communities, synthetic_catalog
from alphafuse_ext.data.text import encode_texts

__all__ = [
    "Examples",
    "Interactions",
    "Items",
    "Sequences",
    "Split",
    "encode_texts",
    "hidden_communities",
    "leave_one_out",
    "length_batches",
    "read_embeddings",
    "read_interactions",
    "read_items",
    "synthetic_catalog",
]
