"""Which settings go together; each fault is named before anything is computed."""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Mapping
from numbers import Integral, Real
from types import NoneType
from typing import TYPE_CHECKING, Any

from alphafuse_ext.checks import invalid
from alphafuse_ext.choices import (
    ADAPTED,
    DEFAULT_SHARE,
    WITH_IDS,
    check_block,
    check_diffusion,
    check_logq,
    check_shares,
    check_smoothing,
    check_space_split,
)
from alphafuse_ext.training.defaults import (
    OF_ADAPTERS,
    OF_DIFFUSION,
    OF_FILTER,
    OF_LLMESR,
    OF_NEGATIVES,
)

if TYPE_CHECKING:
    from alphafuse_ext.training.config import Config

_COUNTS = (
    *("k_core", "dim", "experts", "whitening_groups", "history", "blocks", "heads"),
    *(
        "similar_users",
        "negatives",
        "batch_size",
        "epochs",
        "patience",
        "evaluation_batch_size",
        "threads",
    ),
)
_POSITIVE = ("scale", "learning_rate", "temperature", "input_scale", "alignment_temperature")
_NOT_NEGATIVE = (
    *("weight_decay", "semantic_rms", "init_scale", "seed", "split_seed", "warmup"),
    *("space_split_power", "alignment_weight", "position_std", "distillation_weight"),
)


def check_config(config: Config, types: Mapping[str, Any]) -> None:
    """Raises ``ValueError`` or ``TypeError``, naming the setting, unless all go together.

    Args:
        config: the settings.
        types: of its fields.
    """
    for field in dataclasses.fields(config):
        _check_type(config, field.name, types[field.name])
        value, choices = getattr(config, field.name), field.metadata["choices"]
        if choices and value not in choices and value is not None:
            raise invalid(field.name, repr(value), f"one of {', '.join(choices)}")
    for names, fits, allowed in (
        (_COUNTS, lambda value: value >= 1, "an integer >= 1"),
        (_POSITIVE, lambda value: value > 0, "a number > 0"),
        (_NOT_NEGATIVE, lambda value: value >= 0, "a number >= 0"),
    ):
        for name in names:
            value = getattr(config, name)
            if value is not None and not fits(value):
                raise invalid(name, value, allowed)
    if config.seed >= 2**63:
        raise invalid("seed", config.seed, "an integer below 2**63, which torch takes")
    for name in ("dropout", "beta2"):
        if not 0 <= getattr(config, name) < 1:
            raise invalid(name, getattr(config, name), f"0 <= {name} < 1")
    if config.dim is not None and config.dim % config.heads:
        raise invalid("heads", config.heads, f"a divisor of dim = {config.dim}")
    _check_protocol(config)
    _check_truncate(config)
    _check_adapter(config)
    _check_split(config)
    _check_coordinates(config)
    _check_block(config)
    _check_loss(config)
    _check_optimizer(config)
    _check_sparse(config)
    _check_model(config)


def _check_protocol(config: Config) -> None:
    used = {
        "leave-one-out": (),
        "cold-start-users": ("validation_share", "test_share", "split_seed"),
        "time": ("validation_share", "test_share"),
        "none": (),
    }
    for name in used["cold-start-users"]:
        if name not in used[config.protocol] and getattr(config, name) is not None:
            allowed = f"none with protocol={config.protocol}, which does not use it"
            raise invalid(name, getattr(config, name), allowed)
    if used[config.protocol]:
        check_shares(
            *(
                DEFAULT_SHARE if share is None else share
                for share in (config.validation_share, config.test_share)
            )
        )


def _check_truncate(config: Config) -> None:
    if not config.truncate and config.item_embedding == "id":
        allowed = "True with item_embedding=id, which has no language embeddings"
        raise invalid("truncate", False, allowed)


def _check_adapter(config: Config) -> None:
    kind = config.item_embedding
    for name, (owner, _) in OF_ADAPTERS.items():
        if getattr(config, name) is not None and not kind.startswith(owner):
            allowed = f"none with item_embedding={kind}: it is of {owner}"
            raise invalid(name, getattr(config, name), allowed)
    if config.adapter_ids and (kind not in ADAPTED or kind in WITH_IDS):
        allowed = f"False with item_embedding={kind}, which has no adapter that lacks them"
        raise invalid("adapter_ids", True, allowed)
    if kind not in ADAPTED:
        return
    if not config.truncate:
        raise invalid("truncate", False, f"True with item_embedding={kind}: adapters give dim")
    if config.sparse:
        raise invalid("sparse", True, f"False with item_embedding={kind}: adapters are dense")


def _check_llmesr(config: Config) -> None:
    if config.model != "llm-esr":
        for name in OF_LLMESR:
            if getattr(config, name) is not None:
                allowed = f"none with model={config.model}: it is of llm-esr"
                raise invalid(name, getattr(config, name), allowed)
        return
    if config.item_embedding != "llm-esr":
        allowed = "llm-esr with model=llm-esr, which encodes its two halves apart"
        raise invalid("item_embedding", config.item_embedding, allowed)


def _check_llmesr_width(config: Config) -> None:
    if config.item_embedding != "llm-esr" or config.dim is None:
        return
    if config.dim % 2:
        raise invalid("dim", config.dim, "an even number with item_embedding=llm-esr: two halves")
    if config.model == "llm-esr" and config.dim // 2 % config.heads:
        raise invalid("heads", config.heads, f"a divisor of half of dim = {config.dim}")


def _check_model(config: Config) -> None:
    _check_llmesr(config)
    _check_llmesr_width(config)
    given = {
        name: getattr(config, name) for name in OF_DIFFUSION if getattr(config, name) is not None
    }
    if config.model != "dreamrec":
        for name, value in given.items():
            raise invalid(name, value, f"none with model={config.model}: it is of dreamrec")
        return
    for name in (
        *("loss", *OF_NEGATIVES, "logq", "label_smoothing", "language_smoothing"),
        *("temperature", "ranking_similarity"),
    ):
        default = type(config).__dataclass_fields__[name].default
        if getattr(config, name) != default:
            allowed = "none with model=dreamrec, which learns to take noise away"
            raise invalid(name, getattr(config, name), allowed)
    known = {**OF_DIFFUSION, **given}
    if known["sampling_seed"] < 0 or known["sampling_seed"] >= 2**63:
        raise invalid("sampling_seed", known["sampling_seed"], "0 <= sampling_seed < 2**63")
    known.pop("sampling_seed")
    check_diffusion(**known)
    if config.item_embedding == "id" and config.init == "zeros":
        raise invalid(
            "init",
            "'zeros' with model=dreamrec and item_embedding=id",
            "another: a diffusion of zeros learns to say zero",
        )


def _check_type(config: Config, name: str, annotation: Any) -> None:
    """An integer where one is meant and a finite number where one is; neither is a bool."""
    value = getattr(config, name)
    kinds = typing.get_args(annotation) or (annotation,)
    if value is None and NoneType in kinds:
        return
    kind = kinds[0]
    if isinstance(value, bool) and kind is not bool:
        fits = False
    else:
        fits = isinstance(value, {int: Integral, float: Real}.get(kind, kind))
    if fits and kind is float and not math.isfinite(value):
        raise invalid(name, value, "a finite number")
    if not fits:
        words = {int: "an integer", float: "a number", bool: "True or False", str: "a string"}
        raise invalid(name, repr(value), words[kind], TypeError)


def _check_coordinates(config: Config) -> None:
    if config.coordinates == "singular":
        return
    if config.item_embedding != "alphafuse":
        allowed = f"'singular' with item_embedding={config.item_embedding}: it has no null space"
        raise invalid("coordinates", repr(config.coordinates), allowed)
    if config.coordinates != "projected":
        return
    for setting, cosine, other in (
        ("loss", "infonce", "another loss: infonce compares by cosine"),
        ("ranking_similarity", "cosine", "another: with it, cosines would be compared"),
    ):
        if getattr(config, setting) == cosine:
            raise invalid(
                "coordinates",
                f"'projected' with {setting}={cosine}",
                f"{other}, and a stored row and its projected embedding differ in norm",
            )


def _check_sparse(config: Config) -> None:
    if not config.sparse:
        return
    if config.item_embedding == "frozen":
        raise invalid("sparse", True, "False with item_embedding=frozen: no rows are trained")
    if config.loss == "cross_entropy":
        raise invalid(
            "sparse",
            True,
            "a sampled loss: full-catalog cross entropy has a gradient for every item",
        )
    if config.optimizer != "adam":
        raise invalid("optimizer", config.optimizer, "adam with sparse, which is lazy Adam")
    if config.weight_decay:
        raise invalid(
            "weight_decay", config.weight_decay, "0 with sparse: lazy Adam has no weight decay"
        )


def _check_block(config: Config) -> None:
    check_block(
        config.block,  # type: ignore[arg-type]  # its choices were checked
        config.norm,  # type: ignore[arg-type]
        config.feed_forward,
        config.filter_cutoff,
        config.filter_share,
    )
    if config.block != "bsarec":
        for name in (*OF_FILTER, "causal_filter"):
            if getattr(config, name) is not None:
                allowed = f"none with block={config.block}, which has no frequency layer"
                raise invalid(name, getattr(config, name), allowed)
    elif config.causal_filter is False and config.targets == "all":
        allowed = "True with targets=all: a position would see the target that it has to find"
        raise invalid("causal_filter", False, allowed)


def _check_loss(config: Config) -> None:
    if config.loss == "cross_entropy":
        for name in OF_NEGATIVES:
            if getattr(config, name) is not None:
                allowed = "none with loss=cross_entropy, which has the whole catalog"
                raise invalid(name, getattr(config, name), allowed)
    # Of a sampled loss, which sparse is too.
    sampled = config.loss
    if sampled is None and (config.names_negatives or config.sparse):
        sampled = "sampled_softmax"
    check_smoothing("label_smoothing", config.label_smoothing, sampled)
    check_smoothing("language_smoothing", config.language_smoothing, sampled)
    check_logq(config.logq, sampled)


def _check_optimizer(config: Config) -> None:
    if config.weight_decay_on != "all" and not config.weight_decay:
        allowed = "all where weight_decay is 0: there is none"
        raise invalid("weight_decay_on", config.weight_decay_on, allowed)
    if config.weight_decay_on == "item-embeddings" and config.item_embedding == "frozen":
        allowed = "all or encoder with item_embedding=frozen: its rows are not trained"
        raise invalid("weight_decay_on", config.weight_decay_on, allowed)
    if config.warmup >= config.epochs:
        raise invalid("warmup", config.warmup, f"fewer than epochs = {config.epochs}")


def _check_space_split(config: Config) -> None:
    if config.space_split == "hard":
        if config.space_split_power is not None:
            raise invalid(
                "space_split_power", config.space_split_power, "none with space_split=hard"
            )
        return
    if config.item_embedding != "alphafuse":
        allowed = f"'hard' with item_embedding={config.item_embedding}: only alphafuse has a split"
        raise invalid("space_split", repr(config.space_split), allowed)
    check_space_split(
        config.space_split, config.space_split_power or 0.0, config.fusion, config.coordinates
    )
    for setting, cosine in (("loss", "infonce"), ("ranking_similarity", "cosine")):
        if getattr(config, setting) == cosine:
            found, allowed = (
                f"{config.space_split!r} with {setting}={cosine}",
                "'hard' with cosines",
            )
            raise invalid("space_split", found, allowed)
    if config.sparse and config.space_split == "learned":
        raise invalid("sparse", True, "False with space_split=learned: every step moves the gains")


def _check_split(config: Config) -> None:
    _check_space_split(config)
    split_given = config.null_dim is not None or config.null_threshold is not None
    if config.item_embedding != "alphafuse":
        if split_given:
            name = "null_dim" if config.null_dim is not None else "null_threshold"
            raise invalid(
                name,
                getattr(config, name),
                f"none with item_embedding={config.item_embedding}: only alphafuse has a split",
            )
        return
    if config.null_dim is not None and config.null_threshold is not None:
        raise invalid(
            "null_threshold",
            config.null_threshold,
            f"either null_threshold or null_dim (given: {config.null_dim}), not both",
        )
    if config.dim is None or config.null_dim is None:
        return
    most = config.dim if config.fusion == "add" else config.dim - 1
    if not 1 <= config.null_dim <= most:
        raise invalid(
            "null_dim",
            config.null_dim,
            f"1 <= null_dim <= {most} with dim={config.dim} and fusion={config.fusion}",
        )
