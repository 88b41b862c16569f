"""The allowed values of settings, and which go together.

Without PyTorch, so that the command line's help does not wait for it.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

from alphafuse_ext.checks import invalid

PROTOCOLS = ("leave-one-out", "cold-start-users", "time", "none")
DEFAULT_SHARE = 0.1
"""Default share of users or interactions in validation, and in test."""

FUSIONS = ("concat", "add")
SIMILARITIES = ("dot", "cosine")
COORDINATES = ("singular", "original", "projected")
SPACE_SPLITS = ("hard", "soft", "learned")
INITS = (
    *("zeros", "normal", "uniform", "orthogonal", "xavier_uniform", "xavier_normal", "sparse"),
)
"""Names that :func:`~alphafuse_ext.items.initialization.init_id_embeddings` knows."""
ADAPTED = (
    "morec",
    "whitenrec",
    "whitenrec+",
    "unisrec",
    "gated",
    "rlmrec-contrastive",
    "rlmrec-generative",
    "llm-esr",
)
"""Names of :func:`make_adapter`, as ``item_embedding`` has them."""
WITH_IDS = ("gated", "rlmrec-contrastive", "rlmrec-generative", "llm-esr")
"""Those that have ID embeddings always; the others may have them added to what they compute."""

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
DEFAULT_NORM: dict[BlockKind, Norm] = {"sasrec": "pre", "bsarec": "post", "ligr": "pre"}
DEFAULT_FEED_FORWARD: dict[BlockKind, int] = {"sasrec": 1, "bsarec": 4, "ligr": 4}
SCHEDULES: tuple[str, ...] = ("linear", "cosine", "exp", "sqrt")
SAMPLERS: tuple[str, ...] = ("ddim", "ddpm")

TieRule: TypeAlias = Literal["id", "mean"]
TIE_RULES: tuple[TieRule, ...] = ("id", "mean")
EXPORT_FORMATS = ("safetensors", "faiss", "usearch", "onnx")


def check_shares(validation_share: float, test_share: float) -> None:
    """Raises ``ValueError`` for shares that leave an empty split."""
    for name, share in (("validation_share", validation_share), ("test_share", test_share)):
        if not 0 < share < 1:
            raise invalid(name, share, f"0 < {name} < 1")
    if validation_share + test_share >= 1:
        found = f"{validation_share} and {test_share}"
        raise invalid("validation_share, test_share", found, "a sum below 1")


def check_space_split(
    space_split: str, space_split_power: float, fusion: str, coordinates: str
) -> None:
    """Raises ``ValueError`` for an unknown split of the space, or one that the others exclude."""
    if space_split not in SPACE_SPLITS:
        raise invalid("space_split", repr(space_split), " or ".join(map(repr, SPACE_SPLITS)))
    if not 0 <= space_split_power < float("inf"):
        raise invalid("space_split_power", space_split_power, "a finite number >= 0")
    if space_split == "hard":
        return
    if fusion != "add":
        raise invalid(
            "fusion", repr(fusion), f"'add' with space_split={space_split}: all directions are both"
        )
    if coordinates != "singular":
        allowed = f"'singular' with space_split={space_split}: gains are of singular directions"
        raise invalid("coordinates", repr(coordinates), allowed)


def check_block(
    kind: BlockKind,
    norm: Norm | None,
    feed_forward: int | None,
    filter_cutoff: int | None,
    filter_share: float | None,
) -> None:
    """Raises ``ValueError`` for what :func:`make_block` cannot make; ``None`` is its default."""
    if kind not in BLOCKS:
        raise invalid("block", repr(kind), f"one of {', '.join(BLOCKS)}")
    if norm is not None and norm not in NORMS:
        raise invalid("norm", repr(norm), f"one of {', '.join(NORMS)}")
    if kind != "sasrec" and norm not in (None, DEFAULT_NORM[kind]):
        raise invalid("norm", repr(norm), f"{DEFAULT_NORM[kind]!r} with block={kind}")
    if feed_forward is not None and feed_forward < 1:
        raise invalid("feed_forward", feed_forward, "an integer >= 1")
    if filter_cutoff is not None and filter_cutoff < 1:
        raise invalid("filter_cutoff", filter_cutoff, "an integer >= 1")
    if filter_share is not None and not 0 <= filter_share <= 1:
        raise invalid("filter_share", filter_share, "0 <= filter_share <= 1")


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
