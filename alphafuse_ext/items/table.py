"""The item table: frozen semantic rows and trainable ID embeddings, used as one embedding."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from alphafuse_ext.checks import invalid
from alphafuse_ext.config.item_embedding import (
    DEFAULT_DIM,
    AlphaFuse,
    SoftSplit,
    check_space_split,
    default_null_dim,
)
from alphafuse_ext.files import PathLike, load_tensors, reading, save_tensors
from alphafuse_ext.items.computed_weight import ComputedWeight
from alphafuse_ext.items.coordinates import Coordinates, check_coordinates
from alphafuse_ext.items.embedding_rows import EmbeddingRows, Embeddings
from alphafuse_ext.items.initialization import init_id_embeddings
from alphafuse_ext.items.item_embeddings import ItemEmbeddings
from alphafuse_ext.items.semantic_rows import Sum, check_semantic_dtype, semantic_rows_of
from alphafuse_ext.items.space import SemanticSpace, check_fusion
from alphafuse_ext.items.table_spec import EXTRA_STATE, TableSpec
from alphafuse_ext.ops.arguments import FLOAT_TYPES, check_device, check_tables

if TYPE_CHECKING:
    from typing_extensions import Self

_KIND = "ItemTable"
_TENSORS = ("semantic_rows", "id_embeddings", "coordinates_map")


class ItemTable(ItemEmbeddings):
    """Embeddings of a catalog of ``N`` items, a replacement for ``nn.Embedding``.

    Row ``i`` is ``[semantic_rows[i], id_embeddings[i]]`` with ``fusion="concat"``; with ``"add"``
    the ID embedding is added to the last columns of the semantic row. The fused table is only
    materialized by :attr:`weight`: all methods below read the two tables directly. They are the
    functions of the same name in :mod:`alphafuse_ext.ops` applied to them.

    Ids are ``0 .. N - 1``; ``N`` is the padding index: a zero row without a gradient.

    Most tables are created by :meth:`from_space`, :meth:`id_only`, :meth:`from_embedding`,
    :meth:`llm_init` or :meth:`frozen`.

    Args:
        semantic_rows: float32, bfloat16 or float16, shape (N, dim - null_dim) with ``"concat"``
            and (N, dim) with ``"add"``; a buffer, never trained. ``None``: an ID-only table.
        id_embeddings: float32, bfloat16 or float16, shape (N, null_dim); a parameter (used as it
            is if it is an ``nn.Parameter``). ``None``: a frozen table.
        fusion: ``"concat"`` or ``"add"``.
        sparse: gradients of ``id_embeddings`` from lookups and candidate scores are sparse
            tensors of the touched rows, for ``alphafuse_ext.optim.LazyAdam``; of ``score_all``
            and ``cross_entropy`` they are dense, with a warning.
        coordinates: ``"singular"``, ``"original"`` or ``"projected"``, or, for a split with gains,
            ``"soft"`` or ``"learned"``; see :meth:`from_space`.
        coordinates_map: float32, the linear map from stored rows to embeddings; trained only with
            ``"learned"``; ``None`` with ``"singular"``. With ``"soft"`` the gains, shape (dim,)
            (the semantic rows are stored divided by them), with ``"learned"`` their logarithms.

    Attributes:
        semantic_rows, id_embeddings, coordinates_map: as given, or ``None``.
        fusion, coordinates: as given; read-only, as they define the meaning of the tensors.
        sparse: as given; may be changed.
        null_dim: number of columns that the ID embeddings affect; 0 without ID embeddings.

    Raises:
        TypeError: a table is not a tensor, or of another dtype.
        ValueError: both tables are ``None``, shapes or devices do not match, NaN or infinities.

    Note:
        ``DistributedDataParallel`` broadcasts all buffers, including ``semantic_rows``, before each
        step unless it is given ``broadcast_buffers=False``.
    """

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

    # --- constructors

    @classmethod
    def from_space(
        cls,
        space: SemanticSpace,
        language_embeddings: Embeddings,
        dim: int | None = DEFAULT_DIM,
        null_dim: int | None = None,
        null_threshold: float | None = None,
        fusion: str = AlphaFuse.fusion,
        standardize: bool = AlphaFuse.standardize,
        coordinates: str = "singular",
        init: str = AlphaFuse.init,
        sparse: bool = False,
        generator: torch.Generator | None = None,
        *,
        space_split: str = AlphaFuse.space_split,
        space_split_power: float = SoftSplit.space_split_power,
        semantic_rms: float | None = AlphaFuse.semantic_rms,
        semantic_dtype: torch.dtype = torch.float32,
        semantic_file: PathLike | None = None,
        init_scale: float = 1.0,
        chunk_rows: int | None = None,
        progress: bool | None = None,
        _sum: Sum | None = None,
    ) -> Self:
        """A table with semantic rows from language embeddings, and ID embeddings in their null
        space.

        Args:
            space: the decomposition.
            language_embeddings: shape (N, d_l), as for :meth:`SemanticSpace.transform`; rows of
                zeros are items without text and get semantic rows of zeros.
            dim, null_dim, null_threshold, fusion: the split, see :meth:`SemanticSpace.split`.
                With ``"concat"`` the semantic rows are the first ``dim - null_dim`` coordinates,
                with ``"add"`` all ``dim``. Without ``null_dim`` and ``null_threshold`` the
                null space is 15/16 of ``dim`` with ``"add"``, half of it with ``"concat"``, and
                one direction if ``space_split`` is not ``"hard"``.
            standardize: whiten the semantic rows.
            coordinates: of the ID embeddings, and of the sum with the semantic rows.

                - ``"singular"``: both in singular coordinates; ``embedding_dim`` is ``dim``.
                - ``"original"``: ID embeddings ``(N, null_dim)`` in singular coordinates, joined
                  in the original ones: the embedding is ``fused @ basis[:, :dim].T`` and
                  ``embedding_dim`` is ``d_l``. Cosine cross entropy needs ``dim = d_l``.
                - ``"projected"``: ID embeddings ``(N, d_l)`` in original coordinates, projected
                  onto the null space by ``id @ U_null``; ``embedding_dim`` is ``dim``. No cosine.

                The map is applied to rows that are looked up, and its transpose to queries: scores
                are ``(queries @ coordinates_map.T) @ stored_row``. Nothing of the catalog's size
                is materialized.
            init, init_scale, generator: initial ID embeddings, see
                :func:`alphafuse_ext.items.initialization.init_id_embeddings`.
            sparse: sparse gradients of the ID embeddings.
            space_split: ``"hard"``: directions of the row space are frozen, those of the null space
                trained. With ``"add"`` also

                - ``"soft"``: all are trained, the ID embedding of a direction multiplied by its
                  gain, see :meth:`SemanticSpace.gains`: 1 in the null space, less outside of it.
                  At no extra cost; with Adam a gain scales learning rate and initial values.
                - ``"learned"``: the same with trained gains, starting from those. Scores cost twice
                  as much.

                Both have no cosine similarity.
            space_split_power: the exponent p of the gains.
            semantic_rms: scale the semantic rows to this root mean square over items with text.
                ``None``: do not scale.
            semantic_dtype: of the stored semantic rows: float32, bfloat16 or float16.
            semantic_file: a new safetensors file for the semantic rows, which are memory-mapped
                instead of held in memory, and shared by the processes of a machine. The suffix is
                added if missing.
            chunk_rows, progress: see :meth:`SemanticSpace.transform`.

        Raises:
            TypeError, ValueError: an invalid argument.

        Note:
            Defaults are the settings that were best on validation data, as in :class:`Config`. The
            paper's table has ``fusion="concat"``, half of ``dim`` as ``null_dim``,
            ``standardize=False``, ``semantic_rms=None`` and ``init="zeros"``.
        """
        check_coordinates(coordinates)
        check_space_split(space_split, space_split_power, fusion, coordinates)
        check_semantic_dtype(semantic_dtype)
        if null_dim is None and null_threshold is None:
            null_dim = default_null_dim(space.check_dim(dim), fusion, space_split)
        dim, null_dim = space.split(dim, null_dim, null_threshold, fusion)
        num_items = EmbeddingRows(language_embeddings).num_rows
        id_embeddings = init_id_embeddings(
            num_items,
            _id_columns(space, dim, null_dim, coordinates, space_split),
            init,
            init_scale,
            generator,
        )
        mapping = Coordinates.of(space, dim, null_dim, fusion, coordinates)
        divided_by = None
        if space_split != "hard":
            gains = torch.tensor(space.gains(dim, null_dim, space_split_power))
            mapping = Coordinates(
                space_split, (gains if space_split == "soft" else gains.log()).float()
            )
            divided_by = gains if space_split == "soft" else None
        semantic_rows = semantic_rows_of(
            space,
            language_embeddings,
            dim if fusion == "add" else dim - null_dim,
            standardize,
            semantic_rms,
            chunk_rows,
            progress,
            divided_by,
            semantic_dtype,
            semantic_file,
            _sum,
        )
        return cls(semantic_rows, id_embeddings, fusion, sparse, *mapping)

    @classmethod
    def id_only(
        cls,
        num_items: int,
        dim: int,
        init: str = AlphaFuse.init,
        init_scale: float = 1.0,
        sparse: bool = False,
        generator: torch.Generator | None = None,
    ) -> Self:
        """A table without semantic rows: the ID-only model.

        Args:
            num_items, dim: shape of the ID embeddings.
            init, init_scale, generator: see
                :func:`alphafuse_ext.items.initialization.init_id_embeddings`.
            sparse: sparse gradients.
        """
        weight = init_id_embeddings(num_items, dim, init, init_scale, generator)
        return cls(None, weight, sparse=sparse)

    @classmethod
    def from_embedding(cls, embedding: nn.Embedding) -> Self:
        """An ID-only table with the rows of an ``nn.Embedding``, such as a trained model's.

        The row at ``padding_idx`` is no item and is left out: items keep their order, and those
        after it are numbered one lower. With ``padding_idx=0`` item ``k`` becomes ``k - 1``; with
        the last index, or without a padding index, ids stay. The padding of the table is ``N``, as
        of any table.

        Args:
            embedding: float32, bfloat16 or float16. Rows are copied; ``sparse``, training mode and
                ``requires_grad`` are taken over.

        Raises:
            TypeError: not an ``nn.Embedding``, or weights of another dtype.
            ValueError: an embedding with ``max_norm`` or ``scale_grad_by_freq``, which a table does
                not have; without an item; NaN or infinities.
        """
        if not isinstance(embedding, nn.Embedding):
            raise invalid("embedding", type(embedding).__name__, "an nn.Embedding", TypeError)
        if embedding.weight.dtype not in FLOAT_TYPES:
            allowed = "float32, bfloat16 or float16"
            raise invalid("embedding", embedding.weight.dtype, allowed, TypeError)
        if embedding.max_norm is not None:
            raise invalid("embedding", f"max_norm={embedding.max_norm}", "one without max_norm")
        if embedding.scale_grad_by_freq:
            allowed = "one without it: gradients of a table are sums"
            raise invalid("embedding", "scale_grad_by_freq=True", allowed)
        rows, padding = embedding.weight.detach(), embedding.padding_idx
        kept = [rows] if padding is None else [rows[:padding], rows[padding + 1 :]]
        rows = torch.cat(kept)  # a copy in either case
        if rows.numel() == 0:
            raise invalid("embedding", f"{embedding}", "one with at least one item")
        trained = nn.Parameter(rows, requires_grad=embedding.weight.requires_grad)
        return cls(None, trained, sparse=embedding.sparse).train(embedding.training)

    @classmethod
    def llm_init(
        cls,
        space: SemanticSpace,
        language_embeddings: Embeddings,
        dim: int | None = DEFAULT_DIM,
        standardize: bool = AlphaFuse.standardize,
        semantic_rms: float | None = AlphaFuse.semantic_rms,
        sparse: bool = False,
        chunk_rows: int | None = None,
        progress: bool | None = None,
    ) -> Self:
        """ID embeddings initialized with the truncated semantic rows: the baseline LLMInit.

        Args:
            space, language_embeddings, standardize, semantic_rms, sparse, chunk_rows, progress: as
                for :meth:`from_space`.
            dim: number of directions kept, ``None``: all ``d_l``; all of them are trained.
        """
        rows = semantic_rows_of(
            space, language_embeddings, dim, standardize, semantic_rms, chunk_rows, progress
        )
        return cls(None, rows, sparse=sparse)

    @classmethod
    def frozen(
        cls,
        space: SemanticSpace,
        language_embeddings: Embeddings,
        dim: int | None = DEFAULT_DIM,
        standardize: bool = AlphaFuse.standardize,
        semantic_rms: float | None = AlphaFuse.semantic_rms,
        semantic_dtype: torch.dtype = torch.float32,
        semantic_file: PathLike | None = None,
        chunk_rows: int | None = None,
        progress: bool | None = None,
    ) -> Self:
        """A table of the truncated semantic rows only, without ID embeddings.

        Args:
            space, language_embeddings, standardize, semantic_rms: as for :meth:`from_space`.
            semantic_dtype, semantic_file, chunk_rows, progress: the same.
            dim: number of directions kept, ``None``: all ``d_l``.
        """
        check_semantic_dtype(semantic_dtype)
        rows = semantic_rows_of(
            space,
            language_embeddings,
            dim,
            standardize,
            semantic_rms,
            chunk_rows,
            progress,
            dtype=semantic_dtype,
            file=semantic_file,
        )
        return cls(rows, None)

    # --- as an nn.Embedding

    @property
    def weight(self) -> Tensor:
        """All embeddings, shape (N, embedding_dim), differentiable.

        For an ID-only table this is the parameter itself, as in ``nn.Embedding``. Otherwise it is
        read-only, see :class:`ComputedWeight`. For two tables it is computed at each access,
        ``N * embedding_dim`` numbers; no op needs it.
        """
        if self.coordinates_map is None and self.semantic_rows is None:
            return self._any_table
        if self.coordinates_map is None and self.id_embeddings is None:
            return ComputedWeight.of(self._any_table)
        ids = torch.arange(self.num_embeddings, device=self._any_table.device)
        return ComputedWeight.of(self(ids))

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


def _id_columns(
    space: SemanticSpace, dim: int, null_dim: int, coordinates: str, space_split: str
) -> int:
    if space_split != "hard":
        return dim
    return space.embedding_dim if coordinates == "projected" else null_dim


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
