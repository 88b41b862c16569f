"""The spec of an item table: the meaning of its tensors, saved with them."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass

import torch
from torch import Tensor

from alphafuse_ext.checks import invalid

FORMAT = 1
EXTRA_STATE = "_extra_state"
"""Torch's key for extra state in a module's ``state_dict``."""


@dataclass(frozen=True)
class TableSpec:
    """How stored rows become embeddings; two tables of equal spec may exchange their tensors.

    Attributes:
        fusion: ``"concat"`` or ``"add"``; ``None`` where there is one table, and nothing to fuse.
        coordinates: ``"singular"``, ``"original"``, ``"projected"``, ``"soft"`` or ``"learned"``.
        embedding_dim, null_dim: width of an embedding, and of what the ID embeddings reach of it.
        padding_idx: the id of the padding, ``N``.
    """

    fusion: str | None
    coordinates: str
    embedding_dim: int
    null_dim: int
    padding_idx: int

    def to_tensor(self) -> Tensor:
        """As a tensor of bytes: a state of tensors alone fits every format that keeps states."""
        text = json.dumps({"format": FORMAT, **dataclasses.asdict(self)})
        return torch.tensor(list(text.encode()), dtype=torch.uint8)

    @classmethod
    def from_tensor(cls, state: object) -> TableSpec:
        """From :meth:`to_tensor`'s result.

        Raises:
            ValueError: not a spec, or of a later format.
        """
        fault: ValueError = invalid(
            EXTRA_STATE, "no description of an item table", "what a table saved"
        )
        if not isinstance(state, Tensor) or state.dtype != torch.uint8 or state.ndim != 1:
            raise fault
        try:
            values = json.loads(bytes(state.tolist()))
            found = values.pop("format")
            if isinstance(found, int) and found > FORMAT:
                raise invalid(EXTRA_STATE, f"format {found}", f"format {FORMAT} or earlier")
            return cls(**values)
        except (UnicodeDecodeError, json.JSONDecodeError, AttributeError, KeyError, TypeError):
            raise fault from None
        except RecursionError:
            raise fault from None

    def check(self, expected: TableSpec) -> None:
        """Raises ``ValueError``, naming what differs, unless this is what is ``expected``."""
        pairs = {
            name: (value, getattr(expected, name))
            for name, value in dataclasses.asdict(self).items()
            if value != getattr(expected, name)
        }
        if pairs:
            raise invalid(
                EXTRA_STATE,
                ", ".join(f"{name}={given!r}" for name, (given, _) in pairs.items()),
                ", ".join(f"{name}={wanted!r}" for name, (_, wanted) in pairs.items()),
            )
