"""What can be chosen among, and together, for whoever checks settings."""

from __future__ import annotations

from typing import Literal, TypeAlias

from alphafuse_ext.checks import invalid

MODELS: tuple[str, ...] = ("sasrec", "dreamrec", "llm-esr")
BlockKind: TypeAlias = Literal["sasrec", "bsarec", "ligr"]
BLOCKS: tuple[BlockKind, ...] = ("sasrec", "bsarec", "ligr")
Loss: TypeAlias = Literal["cross_entropy", "sampled_softmax", "infonce", "bce"]
LOSSES: tuple[Loss, ...] = ("cross_entropy", "sampled_softmax", "infonce", "bce")
NegativesPer: TypeAlias = Literal["position", "sequence", "batch"]
NEGATIVES_PER: tuple[NegativesPer, ...] = ("position", "sequence", "batch")
NegativeSampling: TypeAlias = Literal["uniform", "popularity", "mixed"]
NEGATIVE_SAMPLINGS: tuple[NegativeSampling, ...] = ("uniform", "popularity", "mixed")
Norm: TypeAlias = Literal["pre", "post", "query"]
NORMS: tuple[Norm, ...] = ("pre", "post", "query")
SCHEDULES: tuple[str, ...] = ("linear", "cosine", "exp", "sqrt")
SAMPLERS: tuple[str, ...] = ("ddim", "ddpm")


def check_smoothing(name: str, share: float, loss: str | None) -> None:
    """Raises ``ValueError`` for what :func:`next_item_loss` cannot do; ``loss`` may be open yet.

    Args:
        name: ``"label_smoothing"`` or ``"language_smoothing"``.
        share: of each target.
    """
    if not 0 <= share < 1:
        raise invalid(name, share, f"0 <= {name} < 1")
    if share and loss not in (None, "cross_entropy"):
        allowed = f"0 with loss={loss}: targets are shared by cross_entropy alone"
        raise invalid(name, share, allowed)


def check_logq(logq: bool | None, loss: str | None) -> None:
    """Raises ``ValueError`` for a correction that a loss does not have."""
    if logq and loss not in (None, "sampled_softmax", "infonce"):
        raise invalid("logq", True, f"False or None with loss={loss}: sampled softmaxes have it")


def check_diffusion(
    timesteps: int,
    stride: int,
    noise_schedule: str,
    guidance: float,
    condition_dropout: float,
    sampler: str,
) -> None:
    """Raises ``ValueError`` for settings that ``DreamRec`` cannot have."""
    for name, value in (("timesteps", timesteps), ("stride", stride)):
        if value < 1:
            raise invalid(name, value, "an integer >= 1")
    if timesteps % stride:
        raise invalid("stride", stride, f"a divisor of timesteps = {timesteps}")
    for name, choice, choices in (
        ("noise_schedule", noise_schedule, SCHEDULES),
        ("sampler", sampler, SAMPLERS),
    ):
        if choice not in choices:
            raise invalid(name, repr(choice), f"one of {', '.join(choices)}")
    if sampler == "ddpm" and stride != 1:
        raise invalid("stride", stride, "1 with sampler=ddpm, which takes every step")
    if not guidance >= 0:
        raise invalid("guidance", guidance, "a number >= 0")
    if not 0 <= condition_dropout < 1:
        raise invalid("condition_dropout", condition_dropout, "0 <= condition_dropout < 1")
    if guidance and not condition_dropout:
        raise invalid(
            "guidance",
            guidance,
            "0 with condition_dropout=0: the null condition, which guidance needs, is learned "
            "where the condition is dropped",
        )
