"""What is trained on, and what is held out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from alphafuse_ext.checks import invalid
from alphafuse_ext.config.option import SEEDS_BELOW, Settings, option


@dataclass(frozen=True)
class Protocol(Settings):
    """Of a protocol without settings of its own."""

    group: ClassVar[str] = "protocol"
    default_history: ClassVar[int] = 50


@dataclass(frozen=True)
class Shares(Protocol):
    """Of a protocol that holds out shares: of the users, or of the interactions."""

    validation_share: float = option(
        0.1, "share of the users or (time) interactions to validate on", above=0, below=1
    )
    test_share: float = option(0.1, "share to test on", above=0, below=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.validation_share + self.test_share >= 1:
            found = f"{self.validation_share} and {self.test_share}"
            raise invalid("validation_share, test_share", found, "a sum below 1")


@dataclass(frozen=True)
class ColdStartUsers(Shares):
    """Of users apart, whose every prefix is an example; the AlphaFuse paper's history is short."""

    default_history: ClassVar[int] = 10

    split_seed: int = option(
        0, "which users are held out, whatever seed is", minimum=0, below=SEEDS_BELOW
    )


PROTOCOLS = {
    "leave-one-out": Protocol,
    "cold-start-users": ColdStartUsers,
    "time": Shares,
    "given": Protocol,
    "none": Protocol,
}


@dataclass(frozen=True)
class Split(Settings):
    """The protocol, and what is left out before it."""

    group: ClassVar[str] = "protocol"

    protocol: str = option(
        "leave-one-out",
        "leave-one-out: a user's last item is the test target, the one before it the validation "
        "target; cold-start-users: users apart, every prefix of theirs an example; time: all that "
        "comes after a point in time; given: the parts that come with the data, in "
        "three files or by a column; none: all is trained on, for as many epochs as are given",
        kinds=PROTOCOLS,
    )
    k_core: int = option(
        1,
        "leave out users and items of fewer interactions, over and over until none is left",
        minimum=1,
    )
    baskets: bool = option(
        False,
        "a user's interactions at one time are a basket without an order, held out together, and "
        "none of its items is in the history of another",
    )
