"""The tensors of an item table: checks, casts, state dicts and files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from alphafuse_ext.checks import invalid
from alphafuse_ext.files import PathLike, load_tensors, reading, save_tensors
from alphafuse_ext.items.coordinates import Coordinates
from alphafuse_ext.items.item_embeddings import ItemEmbeddings
from alphafuse_ext.items.space import check_fusion
from alphafuse_ext.items.table_spec import EXTRA_STATE, TableSpec
from alphafuse_ext.ops.arguments import FLOAT_TYPES, check_device, check_tables

if TYPE_CHECKING:
    from typing_extensions import Self

_KIND = "ItemTable"
_TENSORS = ("semantic_rows", "id_embeddings", "coordinates_map")


class StoredTables(ItemEmbeddings):
    """The tensors of an :class:`alphafuse_ext.ItemTable`, which has the arguments' meaning."""

    semantic_rows: Tensor | None
    id_embeddings: nn.Parameter | None
    coordinates_map: Tensor | None

    def __init__(
        self,
        semantic_rows: Tensor | None,
        id_embeddings: Tensor | None,
        fusion: str = "concat",
        sparse: bool = False,
        coordinates: str = "singular",
        coordinates_map: Tensor | None = None,
    ) -> None:
        check_fusion(fusion)
        mapping = Coordinates(coordinates, coordinates_map)
        mapping.check()
        stored_fusion = mapping.stored_fusion(fusion)
        super().__init__(sparse, stored_fusion)
        if not isinstance(id_embeddings, nn.Parameter):
            id_embeddings = _plain(id_embeddings)
        shape = check_tables(_plain(semantic_rows), id_embeddings, stored_fusion)
        if coordinates_map is not None:
            check_device("coordinates_map", coordinates_map, semantic_rows, id_embeddings)
            if mapping.stored_dim() != shape.dim:
                raise invalid(
                    "coordinates_map",
                    f"shape {tuple(coordinates_map.shape)}, for stored rows of "
                    f"{mapping.stored_dim()} columns",
                    f"one for the {shape.dim} columns that they have",
                )
        tensors = dict(zip(_TENSORS, (semantic_rows, id_embeddings, coordinates_map), strict=True))
        for name, tensor in tensors.items():
            fault = _first_not_finite(tensor)
            if fault is not None:
                raise invalid(name, fault, "finite numbers only")

        self.register_buffer("semantic_rows", _plain(semantic_rows))
        if id_embeddings is not None and not isinstance(id_embeddings, nn.Parameter):
            id_embeddings = nn.Parameter(id_embeddings)
        self.register_parameter("id_embeddings", id_embeddings)
        if coordinates == "learned":
            assert coordinates_map is not None, "checked above"
            if not isinstance(coordinates_map, nn.Parameter):
                coordinates_map = nn.Parameter(coordinates_map.detach().contiguous())
            self.register_parameter("coordinates_map", coordinates_map)
        else:
            self.register_buffer("coordinates_map", _plain(coordinates_map))
        self.null_dim = mapping.null_dim(shape.null_dim)
        self._fusion = fusion
        self._coordinates_mode = coordinates
        self._stored_dim = shape.dim

    def named_modules(
        self,
        memo: set[nn.Module] | None = None,
        prefix: str = "",
        remove_duplicate: bool = True,
    ) -> Iterator[tuple[str, nn.Module]]:
        """As of any module; with sparse gradients an ``nn.EmbeddingBag`` comes first, whose
        parameter is :attr:`id_embeddings`: ``DistributedDataParallel`` expects sparse ones of that
        module and of ``nn.Embedding`` alone, which models like to initialize anew."""
        if self.sparse and self.id_embeddings is not None:
            yield prefix, _SparseRows(self.id_embeddings)
        yield from super().named_modules(memo, prefix, remove_duplicate)

    # --- properties

    @property
    def fusion(self) -> str:
        """``"concat"`` or ``"add"``; read-only, as it defines the meaning of the tensors."""
        return self._fusion

    @property
    def coordinates(self) -> str:
        """``"singular"`` (no map), ``"original"``, ``"projected"``, ``"soft"`` or ``"learned"``."""
        return self._coordinates_mode

    @property
    def embedding_dim(self) -> int:
        """Dimension of embeddings and queries."""
        return self._coordinates.embedding_dim(self._stored_dim)

    def extended(self, rows: Tensor) -> Self:
        """This table with new items appended, whose ID embeddings are zero.

        Args:
            rows: float, shape (M, columns): what their embeddings are to be made of, as
                :meth:`parts` gives the semantic part; of a table without semantic rows their first
                ID embeddings.

        Raises:
            ValueError: rows of another width.
        """
        semantic, own = self._tables
        columns = self._any_table.shape[1] if semantic is None else semantic.shape[1]
        if rows.ndim != 2 or rows.shape[1] != columns:
            raise invalid("rows", f"shape {tuple(rows.shape)}", f"shape (M, {columns})")
        rows = rows.to(self._any_table.device)
        if semantic is None:
            assert own is not None, "a table has one of the two"
            own = torch.cat([own.detach(), rows.to(own.dtype)])
        else:
            stored = self._coordinates.stored_semantic(rows).to(semantic.dtype)
            semantic = torch.cat([semantic, stored])
            if own is not None:
                own = torch.cat([own.detach(), own.new_zeros(len(rows), own.shape[1])])
        mapping = self.coordinates_map
        copied = None if mapping is None else mapping.detach().clone()
        return type(self)(semantic, own, self.fusion, self.sparse, self.coordinates, copied)

    # --- files

    def save(self, path: PathLike) -> None:
        """Write ``path.safetensors`` atomically.

        Args:
            path: the file, with or without its suffix.
        """
        save_tensors(path, _KIND, self.state_dict(), {"sparse": self.sparse})

    @classmethod
    def load(cls, path: PathLike) -> Self:
        """Load a file of :meth:`save` onto the CPU, bitwise the same.

        Raises:
            FileNotFoundError: the file does not exist.
            UnreadableFileError: it is damaged, or is not a valid table.
        """
        tensors, facts = load_tensors(path, _KIND)
        with reading(path):
            return cls.from_state(tensors, **facts)

    # --- state dict

    @classmethod
    def from_state(cls, state: Mapping[str, Any], sparse: bool = False) -> Self:
        """The table with this ``state_dict()``; the tensors are not copied.

        Args:
            state: the tensors by name, with the ``_extra_state`` that says how they are fused.
            sparse: sparse gradients of the ID embeddings.

        Raises:
            TypeError, ValueError: not a complete and valid state.
        """
        spec = TableSpec.from_tensor(state.get(EXTRA_STATE))
        table = cls(
            state.get("semantic_rows"),
            state.get("id_embeddings"),
            spec.fusion or "concat",
            sparse,
            spec.coordinates,
            state.get("coordinates_map"),
        )
        spec.check(table._spec)
        return table

    @property
    def _spec(self) -> TableSpec:
        return TableSpec(
            None if None in self._tables else self.fusion,
            self.coordinates,
            self.embedding_dim,
            self.null_dim,
            self.padding_idx,
        )

    def get_extra_state(self) -> Tensor:
        """What the tensors of the state mean, as bytes; see :class:`TableSpec`."""
        return self._spec.to_tensor()

    def set_extra_state(self, state: object) -> None:
        """Raises ``ValueError`` unless tensors of that spec fit this table; sets nothing."""
        TableSpec.from_tensor(state).check(self._spec)

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Any],
        prefix: str,
        local_metadata: Mapping[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        # Loading bypasses the constructor, so checks are repeated here; `load_state_dict` raises
        # the messages. Nothing is copied from a state that is not finite, has another spec, or has
        # none: "add" and "concat" may have tensors of the same shapes.
        state = {name: state_dict.get(prefix + name) for name in (*_TENSORS, EXTRA_STATE)}
        faults = self._faults(state, local_metadata.get("assign_to_params_buffers", False))
        if state[EXTRA_STATE] is None and any(state[name] is not None for name in _TENSORS):
            faults.append(
                f"{EXTRA_STATE}: got none, so how the tensors are fused is not known; expected it "
                "beside them. Where it is known to be as in this table, say so: "
                f'state["{prefix}{EXTRA_STATE}"] = table.get_extra_state()'
            )
        if faults:
            error_msgs.extend(f"{prefix}{fault}" for fault in faults)
            return
        super()._load_from_state_dict(
            state_dict,
            prefix,
            local_metadata,
            strict,
            missing_keys,
            unexpected_keys,
            error_msgs,
        )

    def _faults(self, state: Mapping[str, Any], assign: bool) -> list[str]:
        """Reasons why a state cannot be copied into this table, or assigned."""
        faults = []
        if state[EXTRA_STATE] is not None:
            try:
                self.set_extra_state(state[EXTRA_STATE])
            except ValueError as error:
                faults.append(str(error))
        for name in _TENSORS:
            given, own = state[name], getattr(self, name)
            if not isinstance(given, Tensor) or own is None:
                continue  # torch says so
            fault = _first_not_finite(given, given.dtype if assign else own.dtype)
            if fault is not None:
                faults.append(f"{name}: {fault}")
        if assign:
            semantic_rows, id_embeddings = (
                state[name] if isinstance(state[name], Tensor) else own
                for name, own in zip(_TENSORS, self._tables, strict=False)
            )
            try:
                check_tables(semantic_rows, id_embeddings, self._stored_fusion)
            except (TypeError, ValueError) as error:
                faults.append(str(error))
        return faults

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # Every move and cast of a module passes here: `.to()`, `.half()`, `.share_memory()`.
        for name, tensor in zip(_TENSORS, self._tables, strict=False):
            if tensor is None:
                continue
            dtype = fn(torch.empty(0, dtype=tensor.dtype, device=tensor.device)).dtype
            if dtype not in FLOAT_TYPES:
                raise invalid(
                    f"dtype of {name}",
                    dtype,
                    "float32, bfloat16 or float16, which the ops read; they accumulate in float32",
                    TypeError,
                )
            fault = None if dtype == tensor.dtype else _first_not_finite(tensor, dtype)
            if fault is not None:
                raise invalid(name, fault, f"numbers that {dtype} can hold")
        before = None if self.coordinates_map is None else self.coordinates_map.detach()
        super()._apply(fn, recurse)
        moved = self.coordinates_map
        if before is not None and moved is not None and moved.dtype != before.dtype:
            # Rounded directions are not orthonormal any more: the map moves, but stays float32.
            moved.data = before.to(moved.device)
        return self

    # --- inside

    def parts(self) -> tuple[Tensor | None, Tensor | None]:
        """Semantic part and ID part of the embeddings of all items.

        With a hard split these are the stored tensors; otherwise gains are included.
        """
        with torch.no_grad():
            semantic, own = self._coordinates.parts(*self._tables)
        return semantic, own

    @property
    def gains(self) -> Tensor | None:
        """Factor of each direction's ID embedding, for a soft or learned split."""
        return self._coordinates.gains

    @property
    def _tables(self) -> tuple[Tensor | None, Tensor | None]:
        return self.semantic_rows, self.id_embeddings

    @property
    def _coordinates(self) -> Coordinates:
        return Coordinates(self._coordinates_mode, self.coordinates_map)

    def extra_repr(self) -> str:
        return (
            f"{self.num_embeddings}, {self.embedding_dim}, null_dim={self.null_dim}, "
            f"fusion={self.fusion!r}, coordinates={self.coordinates!r}, sparse={self.sparse}"
        )


class _SparseRows(nn.EmbeddingBag):
    """Marks a parameter as one with sparse gradients, for ``DistributedDataParallel``."""

    def __init__(self, rows: nn.Parameter) -> None:
        super().__init__(rows.shape[0], rows.shape[1], sparse=True, _weight=rows)
        del self.weight
        self.id_embeddings = rows


def _plain(tensor: Tensor | None) -> Tensor | None:
    """The tensor as the ops read it, detached from the caller's graph."""
    return tensor.detach().contiguous() if isinstance(tensor, Tensor) else tensor


def _first_not_finite(table: Tensor | None, dtype: torch.dtype | None = None) -> str | None:
    """What is not finite in a table, or would not be in ``dtype``, and where first."""
    if table is None or table.is_meta or table.numel() == 0:
        return None
    # One pass without a temporary of the table's size: NaN and infinities show in the extremes.
    dtype = dtype or table.dtype
    extremes = torch.stack(torch.aminmax(table.detach()))
    if torch.isfinite(extremes.to(dtype)).all():
        return None
    place = torch.nonzero(~torch.isfinite(table.detach().to(dtype)))[0].tolist()
    where = ", ".join(map("{} {}".format, ("row", "column")[-len(place) :], place))
    return f"{table[tuple(place)].item()} in {where}"
