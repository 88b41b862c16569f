"""Defaults of training beyond a size of the catalog, in one place.

Up to ``FULL_CATALOG_UP_TO`` items the loss is the softmax over all of them, and each row is
updated in each step. Beyond, a step costs what its batch touches. The numbers are the best of some
by validation after equal seconds (``bench/scale/equal_seconds.py``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from alphafuse_ext.config.option import Chosen

FULL_CATALOG_UP_TO = 50_000
"""Items, up to which the softmax over all of them is the loss where none is named."""

BFLOAT16_FROM = 1_000
"""Items, from which the softmax over all of them multiplies in bfloat16 on processors with
instructions for it: of fewer it is a small part of a step."""

SAMPLED: dict[str, Any] = {"negatives_per": "batch", "negatives": 1024}
"""Of a loss of drawn negatives."""
SAMPLING = "mixed"
"""Of a softmax that corrects for it."""
BATCH_SIZE = 256
"""With that loss."""
BEYOND = f"beyond {FULL_CATALOG_UP_TO:,} items"
LARGE = ("sparse", *SAMPLED, "negative_sampling", "batch_size")
"""What depends on the size of the catalog, beside the loss."""


def large_defaults(config: Chosen, loss: str | None, num_items: int) -> dict[str, Any]:
    """Values of settings that were not given, beyond the size; none up to it.

    Args:
        config: all settings.
        loss: that it will have.
        num_items: of the catalog.
    """
    given: Mapping[str, Any] = config.given
    if num_items <= FULL_CATALOG_UP_TO or loss not in ("sampled_softmax", "infonce", "bce"):
        return {}
    found: dict[str, Any] = {}
    if given.get("negatives_per", "batch") == "batch":
        found = {**SAMPLED, "negatives": min(SAMPLED["negatives"], num_items)}
        if given.get("negative_sampling") == "in-batch":
            del found["negatives"]
        # A model of one's own may take no counts of items, which this is drawn by.
        if loss == "sampled_softmax" and config.logq is not False and ":" not in config.model:
            found["negative_sampling"] = SAMPLING
    decays = config.weight_decay or config.optimizer != "adam" or config.space_split == "learned"
    if config.sparse is not None and not decays:  # which item embeddings of rows have
        found["sparse"] = True
    found["batch_size"] = BATCH_SIZE
    return {name: value for name, value in found.items() if name not in given}


def in_words(values: Mapping[str, Any], num_items: int) -> str:
    """A line of what :func:`large_defaults` chose."""
    parts = {
        "sparse": "ID embeddings are updated where a batch touches them (--no-sparse: all)",
        "negatives": f"{values.get('negatives', 0):,} negatives (--negatives)",
        "negatives_per": "shared by a batch (--negatives-per)",
        "negative_sampling": "half of them by popularity (--negative-sampling)",
        "batch_size": f"batches of {values.get('batch_size', 0):,} sequences (--batch-size)",
    }
    said = ", ".join(text for name, text in parts.items() if name in values)
    return f"large catalog, {num_items:,} items: {said}"
