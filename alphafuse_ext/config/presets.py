"""Published settings by name: those of the AlphaFuse paper, and of its public code.

Hu et al., "AlphaFuse: Learn ID Embeddings for Sequential Recommendation in Null Space of Language
Embeddings", SIGIR 2025. The paper and its code differ; ``PRESETS`` has both:

==================== ================================== ======================================
                     ``paper-*``                        ``public-code``
==================== ================================== ======================================
fusion               ``concat``: ID embeddings in place ``add``: onto whitened directions 65 to
                     of the null space's directions     128 of 128
ranking              cosine, as in training             inner products, though trained by
                                                        cosine with temperature 0.07
items already seen   excluded (the paper does not say)  ranked
==================== ================================== ======================================

Both train on one target for each prefix. Settings that neither specifies have the simplest value:
one block, one head, no zero sink, whitened rows left at variance 1, PyTorch's ``betas`` of Adam;
epochs and patience are the package's own. The paper's language embeddings have norm 1 (OpenAI's),
which ``scale`` 40 assumes; ``null_threshold`` applies to eigenvalues after scaling, and other
encoders have others.
"""

from __future__ import annotations

from collections.abc import Mapping
from textwrap import fill
from types import MappingProxyType
from typing import Any

from alphafuse_ext.checks import invalid
from alphafuse_ext.config.config import layered

_PAPER: dict[str, Any] = {
    "history": 10,
    "standardize": True,
    "semantic_rms": 0.0,
    "fusion": "concat",
    "blocks": 1,
    "heads": 1,
    "dropout": 0.1,
    "zero_sink": False,
    "targets": "last",
    "batch_size": 256,
    "beta2": 0.999,
    "neighbors": False,
}
_SASREC: dict[str, Any] = {
    **_PAPER,
    "dim": 128,
    "null_dim": 64,
    "loss": "infonce",
    "temperature": 0.07,
    "negatives": 64,
    "weight_decay": 1e-6,
}
_COLD_START: dict[str, Any] = {"protocol": "cold-start-users", "learning_rate": 1e-3}
_LONG_TAIL: dict[str, Any] = {"protocol": "leave-one-out", "learning_rate": 1e-4, "init": "zeros"}

PRESETS = MappingProxyType(
    {
        "paper-movies": {**_SASREC, **_COLD_START, "init": "zeros"},
        "paper-toys": {**_SASREC, **_COLD_START, "init": "normal"},
        "paper-sports": {**_SASREC, **_COLD_START, "init": "normal", "learning_rate": 1e-2},
        "paper-yelp": {**_SASREC, **_LONG_TAIL},
        "paper-fashion": {**_SASREC, **_LONG_TAIL},
        "paper-beauty": {**_SASREC, **_LONG_TAIL},
        "paper-dreamrec": {
            **_PAPER,
            "protocol": "cold-start-users",
            "model": "dreamrec",
            "truncate": False,
            "scale": 40.0,
            "null_threshold": 0.25,
            "init": "zeros",
            "timesteps": 2000,
            "stride": 100,
            "noise_schedule": "linear",
            "guidance": 5.0,
            "condition_dropout": 0.1,
            "learning_rate": 1e-5,
            "weight_decay": 0.0,
        },
        "public-code": {
            **_SASREC,
            **_COLD_START,
            "init": "zeros",
            "fusion": "add",
            "ranking_similarity": "dot",
            "keep_seen": True,
        },
    }
)
"""By name, fields of :class:`alphafuse_ext.Config`; the others keep their defaults."""


def preset_options(name: str) -> dict[str, Any]:
    """The settings of a preset.

    Raises:
        ValueError: there is no such preset.
    """
    if name not in PRESETS:
        raise invalid("preset", repr(name), f"one of {', '.join(PRESETS)}")
    return dict(PRESETS[name])


def with_preset(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a preset, overridden by others.

    Settings of the preset that the chosen components do not have are left out.

    Raises:
        ValueError: there is no such preset.
    """
    return layered(preset_options(name), options)


_GLUE = "\xa0"
"""No-break space, which keeps name and value on one line."""


def describe_preset(name: str, options: Mapping[str, Any]) -> str:
    """Lines that describe a preset, and which of its settings ``options`` override."""
    preset, used = preset_options(name), with_preset(name, options)
    kept = {key: value for key, value in preset.items() if key in used and used[key] == value}
    lines = [f"preset {name}: {_listed(kept)}"]
    if changed := {key: used[key] for key in preset if key in used and key not in kept}:
        lines.append(f"in place of the preset's: {_listed(changed)}")
    if dropped := [key for key in preset if key not in used]:
        lines.append(f"left out, as the chosen components do not have them: {', '.join(dropped)}")
    wrapped = (fill(line, 96, subsequent_indent="  ") for line in lines)
    return "\n".join(wrapped).replace(_GLUE, " ")


def _listed(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}{_GLUE}{value}" for name, value in settings.items())
