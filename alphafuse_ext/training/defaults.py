"""Defaults of settings that depend on other settings, and allowed values."""

from __future__ import annotations

from typing import Any

from alphafuse_ext.choices import ADAPTED

DEFAULT_HISTORY = 50
COLD_START_HISTORY = 10
"""Of cold-start users, whose every prefix is an example: the AlphaFuse paper's."""

FULL_CATALOG_UP_TO = 50_000
"""Largest catalog for which the full softmax is the default loss."""
ITEM_EMBEDDINGS = ("alphafuse", "id", "llminit", "frozen", *ADAPTED)
LEARNING_RATE_SCHEDULES = ("constant", "linear", "cosine")
OPTIMIZERS = ("adam", "adamw")
WEIGHT_DECAY_ON = ("all", "encoder", "item-embeddings")

OF_NEGATIVES: dict[str, Any] = {
    "negatives": 256,
    "negatives_per": "sequence",
    "negative_sampling": "uniform",
}
"""Defaults of a sampled loss."""
OF_FILTER: dict[str, Any] = {"filter_cutoff": 5, "filter_share": 0.7}
"""Defaults of bsarec's frequency layer."""
OF_ADAPTERS: dict[str, tuple[str, Any]] = {
    "experts": ("unisrec", 8),
    "whitening_groups": ("whitenrec+", 4),
    "alignment_weight": ("rlmrec", 0.01),
    "alignment_temperature": ("rlmrec", 0.2),
}
"""The prefix of the adapters that have a setting, and its default."""

# Defaults of DreamRec, as in its constructor.
OF_DIFFUSION: dict[str, Any] = {
    "timesteps": 2000,
    "stride": 100,
    "noise_schedule": "linear",
    "guidance": 5.0,
    "condition_dropout": 0.1,
    "sampler": "ddim",
    "sampling_seed": 0,
}

OF_LLMESR: dict[str, Any] = {"distillation_weight": 0.1, "similar_users": 10}
"""Defaults of llm-esr, as in its constructor."""

BEFORE_THERE_WAS_A_CHOICE: dict[str, Any] = {
    "negative_sampling": "uniform",
    "norm": "pre",
    "embedding_norm": False,
    "feed_forward": 1,
}
"""Settings that came later, whose default depends on others."""
