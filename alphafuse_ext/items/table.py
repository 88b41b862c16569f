"""The item table: frozen semantic rows and trainable ID embeddings, used as one embedding."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from alphafuse_ext import ops
from alphafuse_ext.checks import invalid
from alphafuse_ext.files import PathLike, load_tensors, reading, save_tensors
from alphafuse_ext.items.computed_weight import ComputedWeight
from alphafuse_ext.items.coordinates import (
    COORDINATES,
    coordinates_of,
    make_coordinates_map,
    map_queries,
    map_rows,
)
from alphafuse_ext.items.embedding_rows import EmbeddingRows, Embeddings
from alphafuse_ext.items.initialization import init_id_embeddings
from alphafuse_ext.items.meaning import EXTRA_STATE, Meaning
from alphafuse_ext.items.space import SemanticSpace, check_fusion
from alphafuse_ext.ops.arguments import FLOAT_TYPES, Exclude, check_device, check_tables

if TYPE_CHECKING:
    from typing_extensions import Self

_KIND = "ItemTable"
_TENSORS = ("semantic_rows", "id_embeddings", "coordinates_map")


class ItemTable(nn.Module):
    """Embeddings of a catalog of ``N`` items, where a model expects an ``nn.Embedding``.

    Row ``i`` is ``[semantic_rows[i], id_embeddings[i]]`` with ``fusion="concat"``; with ``"add"``
    the ID embedding is added to the last columns of the semantic row. The fused table is never
    built, except by :attr:`weight`: every method below reads the two tables directly, and is the
    function of the same name in :mod:`alphafuse_ext.ops` applied to them.

    Ids are ``0 .. N - 1``; ``N`` is the padding index: a zero row without a gradient.

    Most tables are made by :meth:`from_space`, :meth:`id_only`, :meth:`llm_init` or
    :meth:`frozen`.

    Args:
        semantic_rows: float32, bfloat16 or float16, shape (N, dim - null_dim) with ``"concat"``
            and (N, dim) with ``"add"``; a buffer, never trained. ``None``: an ID-only table.
        id_embeddings: float32, bfloat16 or float16, shape (N, null_dim); a parameter (the given
            one, if it is one). ``None``: a frozen table.
        fusion: ``"concat"`` or ``"add"``.
        sparse: gradients of ``id_embeddings`` from lookups and candidate scores are sparse
            tensors that hold the touched rows only, as ``torch.optim.SparseAdam`` takes them.
        coordinates_map: float32, a fixed linear map from stored rows to embeddings, see
            ``coordinates`` of :meth:`from_space`.

    Attributes:
        semantic_rows, id_embeddings, coordinates_map: as given, or ``None``.
        sparse: as given; may be changed.
        null_dim: columns of the embedding that the ID embeddings reach; 0 where there are none.

    Raises:
        TypeError: a table that is no tensor, or of another dtype.
        ValueError: both tables ``None``, shapes or devices that do not fit, NaN or infinities.

    Note:
        ``DistributedDataParallel`` sends all buffers, ``semantic_rows`` among them, to every
        process before each step unless it is given ``broadcast_buffers=False``.
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
        coordinates_map: Tensor | None = None,
    ) -> None:
        super().__init__()
        check_fusion(fusion)
        _check_map_type(coordinates_map)
        coordinates = coordinates_of(coordinates_map)
        # Projected ID embeddings always stand beside the semantic columns; the map fuses them.
        stored_fusion = "concat" if coordinates == "projected" else fusion
        if not isinstance(id_embeddings, nn.Parameter):
            id_embeddings = _plain(id_embeddings)
        shape = check_tables(_plain(semantic_rows), id_embeddings, stored_fusion)
        if coordinates_map is not None:
            check_device("coordinates_map", coordinates_map, semantic_rows, id_embeddings)
            if coordinates_map.shape[0] != shape.dim:
                raise invalid(
                    "coordinates_map",
                    f"shape {tuple(coordinates_map.shape)}",
                    f"{shape.dim} rows, as many as a stored row has columns",
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
        self.register_buffer("coordinates_map", _plain(coordinates_map))
        self._compressed: dict[str, tuple[ops.CompressedTables, _Seen | None, _Seen | None]] = {}
        self._fusion = fusion
        self.sparse = bool(sparse)
        self._coordinates = coordinates
        self._stored_fusion = stored_fusion
        self._stored_dim = shape.dim
        self.null_dim = shape.null_dim
        if coordinates_map is not None and coordinates == "projected" and shape.null_dim:
            self.null_dim = int(coordinates_map[-shape.null_dim :].any(dim=0).sum())

    # --- making tables

    @classmethod
    def from_space(
        cls,
        space: SemanticSpace,
        language_embeddings: Embeddings,
        dim: int | None = 128,
        null_dim: int | None = None,
        null_threshold: float | None = None,
        fusion: str = "concat",
        standardize: bool = False,
        coordinates: str = "singular",
        init: str = "zeros",
        sparse: bool = False,
        generator: torch.Generator | None = None,
        *,
        semantic_rms: float | None = None,
        semantic_dtype: torch.dtype = torch.float32,
        init_scale: float = 1.0,
        chunk_rows: int | None = None,
        progress: bool | None = None,
    ) -> ItemTable:
        """Semantic rows from language embeddings, ID embeddings in their null space.

        Args:
            space: the decomposition.
            language_embeddings: shape (N, d_l), as for :meth:`SemanticSpace.project`; rows of
                zeros are items without text and get semantic rows of zeros.
            dim, null_dim, null_threshold, fusion: the split, see :meth:`SemanticSpace.split`.
                With ``"concat"`` the semantic rows are the first ``dim - null_dim`` coordinates,
                with ``"add"`` all ``dim``.
            standardize: whiten the semantic rows.
            coordinates: where the ID embeddings live and where they join the semantic rows.

                - ``"singular"``: both in singular coordinates; ``embedding_dim`` is ``dim``.
                - ``"original"``: ID embeddings ``(N, null_dim)`` in singular coordinates, joined
                  in the original ones: the embedding is ``fused @ basis[:, :dim].T`` and
                  ``embedding_dim`` is ``d_l``. Cosine cross entropy needs ``dim = d_l``.
                - ``"projected"``: ID embeddings ``(N, d_l)`` in original coordinates, projected
                  onto the null space by ``id @ U_null``; ``embedding_dim`` is ``dim``. No cosine.

                Either is one small map that is applied to what is looked up, and transposed to
                queries: scores are ``(queries @ coordinates_map.T) @ stored_row``, so the ops stay
                the same and nothing of the catalog's size is built.
            init, init_scale, generator: first ID embeddings, see
                :func:`alphafuse_ext.items.initialization.init_id_embeddings`.
            sparse: sparse gradients of the ID embeddings.
            semantic_rms: multiply the semantic rows by the one factor that makes the root mean
                square of their values, over items with text, this. ``None``: leave them.
            semantic_dtype: float32, bfloat16 or float16, in which the semantic rows are stored.
            chunk_rows, progress: see :meth:`SemanticSpace.project`.

        Raises:
            TypeError, ValueError: an argument that does not fit, as at the places named above.
        """
        if coordinates not in COORDINATES:
            raise invalid("coordinates", repr(coordinates), " or ".join(map(repr, COORDINATES)))
        _check_semantic_dtype(semantic_dtype)
        dim, null_dim = space.split(dim, null_dim, null_threshold, fusion)
        num_items = EmbeddingRows(language_embeddings).num_rows
        id_embeddings = init_id_embeddings(
            num_items,
            space.embedding_dim if coordinates == "projected" else null_dim,
            init,
            init_scale,
            generator,
        )
        semantic_rows = _semantic_rows(
            space,
            language_embeddings,
            dim if fusion == "add" else dim - null_dim,
            standardize,
            semantic_rms,
            chunk_rows,
            progress,
        )
        return cls(
            semantic_rows.to(semantic_dtype),
            id_embeddings,
            fusion,
            sparse,
            make_coordinates_map(space, dim, null_dim, fusion, coordinates),
        )

    @classmethod
    def id_only(
        cls,
        num_items: int,
        dim: int,
        init: str = "xavier_normal",
        init_scale: float = 1.0,
        sparse: bool = False,
        generator: torch.Generator | None = None,
    ) -> ItemTable:
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
    def llm_init(
        cls,
        space: SemanticSpace,
        language_embeddings: Embeddings,
        dim: int | None = 128,
        standardize: bool = False,
        semantic_rms: float | None = None,
        sparse: bool = False,
        chunk_rows: int | None = None,
        progress: bool | None = None,
    ) -> ItemTable:
        """ID embeddings that start at the clipped semantic rows: the baseline LLMInit.

        Args:
            space, language_embeddings, standardize, semantic_rms, sparse, chunk_rows, progress: as
                for :meth:`from_space`.
            dim: directions kept, all ``d_l`` if ``None``; all of them are trained.
        """
        rows = _semantic_rows(
            space, language_embeddings, dim, standardize, semantic_rms, chunk_rows, progress
        )
        return cls(None, rows, sparse=sparse)

    @classmethod
    def frozen(
        cls,
        space: SemanticSpace,
        language_embeddings: Embeddings,
        dim: int | None = 128,
        standardize: bool = False,
        semantic_rms: float | None = None,
        semantic_dtype: torch.dtype = torch.float32,
        chunk_rows: int | None = None,
        progress: bool | None = None,
    ) -> ItemTable:
        """The clipped semantic rows alone, without ID embeddings.

        Args:
            space, language_embeddings, standardize, semantic_rms, semantic_dtype, chunk_rows,
                progress: as for :meth:`from_space`.
            dim: directions kept, all ``d_l`` if ``None``.
        """
        _check_semantic_dtype(semantic_dtype)
        rows = _semantic_rows(
            space, language_embeddings, dim, standardize, semantic_rms, chunk_rows, progress
        )
        return cls(rows.to(semantic_dtype), None)

    # --- what it is

    @property
    def fusion(self) -> str:
        """``"concat"`` or ``"add"``; fixed, as the tensors mean nothing without it."""
        return self._fusion

    @property
    def coordinates(self) -> str:
        """``"singular"`` (no map), ``"original"`` or ``"projected"``; fixed."""
        return self._coordinates

    # --- as an nn.Embedding

    @property
    def num_embeddings(self) -> int:
        """Number of items ``N``, without the padding."""
        return self._any_table.shape[0]

    @property
    def embedding_dim(self) -> int:
        """Width of an embedding and of a query."""
        return self._stored_dim if self.coordinates_map is None else self.coordinates_map.shape[1]

    @property
    def padding_idx(self) -> int:
        """The id of the padding, ``N``."""
        return self.num_embeddings

    @property
    def weight(self) -> Tensor:
        """All embeddings, shape (N, embedding_dim), differentiable.

        An ID-only table's is the parameter itself, as an ``nn.Embedding``'s. Any other is there to
        read, and refuses writes: see :class:`ComputedWeight`. Where two tables are fused it is
        built anew each time, ``N * embedding_dim`` numbers; no op needs it.
        """
        if self.coordinates_map is None and self.semantic_rows is None:
            return self._any_table
        if self.coordinates_map is None and self.id_embeddings is None:
            return ComputedWeight.of(self._any_table)
        ids = torch.arange(self.num_embeddings, device=self._any_table.device)
        return ComputedWeight.of(self(ids))

    def forward(self, ids: Tensor) -> Tensor:
        """Embeddings of items.

        Args:
            ids: int64 or int32, any shape; ``N`` gives a row of zeros.

        Returns:
            Shape ``(*ids.shape, embedding_dim)``, in the dtype of the ID embeddings (of the
            semantic rows where there are none).
        """
        rows = ops.lookup(ids, *self._tables, fusion=self._stored_fusion, sparse=self.sparse)
        return map_rows(rows, self.coordinates_map)

    # --- the ops

    def score_all(self, queries: Tensor, similarity: str = "dot") -> Tensor:
        """Scores of every item, shape (B, N), in the queries' dtype; see :func:`ops.score_all`.

        Args:
            queries: shape (B, embedding_dim).
            similarity: ``"dot"`` or ``"cosine"``.
        """
        stored, factor = map_queries(queries, self.coordinates_map, similarity)
        scores = ops.score_all(
            stored, *self._tables, fusion=self._stored_fusion, similarity=similarity
        )
        return self._unmapped(scores, factor, queries.dtype)

    def score_candidates(
        self, queries: Tensor, candidates: Tensor, similarity: str = "dot"
    ) -> Tensor:
        """Scores of given items; see :func:`ops.score_candidates`.

        Args:
            queries: shape (B, embedding_dim) or (B, L, embedding_dim).
            candidates: ids, shape (K,), (B, K) or (B, L, K).
            similarity: ``"dot"`` or ``"cosine"``.

        Returns:
            Shape (B, K) or (B, L, K), in the queries' dtype.
        """
        stored, factor = map_queries(queries, self.coordinates_map, similarity)
        scores = ops.score_candidates(
            stored,
            candidates,
            *self._tables,
            fusion=self._stored_fusion,
            similarity=similarity,
            sparse=self.sparse,
        )
        return self._unmapped(scores, factor, queries.dtype)

    def cross_entropy(
        self,
        queries: Tensor,
        targets: Tensor,
        similarity: str = "dot",
        temperature: float = 1.0,
        reduction: str = "mean",
    ) -> Tensor:
        """Softmax loss over the whole catalog; see :func:`ops.cross_entropy`.

        Args:
            queries: shape (B, embedding_dim).
            targets: ids, shape (B,); ``N`` is ignored.
            similarity: ``"dot"`` or ``"cosine"``.
            temperature: divides the scores.
            reduction: ``"mean"``, ``"sum"`` or ``"none"``.

        Raises:
            NotImplementedError: cosine with a clipped table in original coordinates.
        """
        stored, _ = map_queries(queries, self.coordinates_map, similarity)
        if similarity == "cosine" and self.coordinates == "original":
            kept, width = self._stored_dim, self.embedding_dim
            if kept < width:
                raise invalid(
                    "similarity",
                    f"'cosine' with coordinates='original', dim={kept}, d_l={width}",
                    "dim = d_l, or similarity='dot': a clipped query has lost some of its norm",
                    NotImplementedError,
                )
        return ops.cross_entropy(
            stored,
            targets,
            *self._tables,
            fusion=self._stored_fusion,
            similarity=similarity,
            temperature=temperature,
            reduction=reduction,
        )

    def compressed(self, similarity: str = "dot") -> ops.CompressedTables:
        """The table's own compressed copy, for ``first_pass="int8"`` of the next two methods.

        Made at its first use and kept; the part that holds the ID embeddings is made anew when they
        have changed: when PyTorch counts a write to them, and, as fused optimizers write without
        being counted, at every call while the table is in training mode and at the first one
        after. A write in evaluation mode that PyTorch does not count (through ``.data``) is not
        seen: call ``compressed().refresh(table.id_embeddings)`` after one.

        Args:
            similarity: ``"dot"`` or ``"cosine"``; one copy for each.
        """
        semantic, embeddings = (_Seen.of(table) for table in self._tables)
        copy, semantic_then, embeddings_then = self._compressed.get(similarity, (None, None, None))
        if copy is None or not _Seen.same(semantic, semantic_then):
            copy = ops.CompressedTables(*self._tables, self._stored_fusion, similarity)
        elif self.training or not _Seen.same(embeddings, embeddings_then):
            copy.refresh(self.id_embeddings)
        # What was made in training mode may be out of date at the next call, whatever is counted.
        self._compressed[similarity] = copy, semantic, None if self.training else embeddings
        return copy

    def train(self, mode: bool = True) -> Self:
        """Sets training or evaluation mode; :meth:`compressed` says what it changes."""
        if mode:
            self._compressed = {
                similarity: (copy, semantic, None)
                for similarity, (copy, semantic, _) in self._compressed.items()
            }
        return super().train(mode)

    def __getstate__(self) -> dict[str, Any]:
        # A pickle or a deep copy has no use for the compressed copies of these very tensors.
        return {**self.__dict__, "_compressed": {}}

    def _first_pass(self, name: str | None, similarity: str) -> ops.CompressedTables | str | None:
        return self.compressed(similarity) if name == "int8" else name

    def topk(
        self,
        queries: Tensor,
        k: int,
        similarity: str = "dot",
        exclude: Exclude = None,
        first_pass: str | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The ``k`` best items of each query, exactly; see :func:`ops.topk`.

        Args:
            queries: shape (B, embedding_dim).
            k: 1 .. N.
            similarity: ``"dot"`` or ``"cosine"``.
            exclude: ids never returned: padded (B, M) with -1, or ``(offsets (B + 1,), ids)``.
            first_pass: ``"int8"``: score the compressed copy first, see :meth:`compressed`. The
                result is the same, bit for bit.

        Returns:
            Scores (float32) and ids (int64), both of shape (B, k), best first.
        """
        stored, factor = map_queries(queries, self.coordinates_map, similarity)
        values, ids = ops.topk(
            stored,
            k,
            *self._tables,
            fusion=self._stored_fusion,
            similarity=similarity,
            exclude=exclude,
            first_pass=self._first_pass(first_pass, similarity),
        )
        return (values if factor is None else values * factor), ids

    def target_ranks(
        self,
        queries: Tensor,
        targets: Tensor,
        similarity: str = "dot",
        exclude: Exclude = None,
        first_pass: str | None = None,
    ) -> Tensor:
        """The exact place of each target among all items, 0 first; see :func:`ops.target_ranks`.

        Args:
            queries: shape (B, embedding_dim).
            targets: ids, shape (B,).
            similarity: ``"dot"`` or ``"cosine"``.
            exclude, first_pass: as for :meth:`topk`.

        Returns:
            int64, shape (B,).
        """
        stored, _ = map_queries(queries, self.coordinates_map, similarity)
        return ops.target_ranks(
            stored,
            targets,
            *self._tables,
            fusion=self._stored_fusion,
            similarity=similarity,
            exclude=exclude,
            first_pass=self._first_pass(first_pass, similarity),
        )

    # --- files

    def save(self, path: PathLike) -> None:
        """Write ``path.safetensors``, whole or not at all.

        Args:
            path: the file, with or without its suffix.
        """
        save_tensors(path, _KIND, self.state_dict(), {"sparse": self.sparse})

    @classmethod
    def load(cls, path: PathLike) -> ItemTable:
        """Read what :meth:`save` wrote, bit for bit, onto the CPU.

        Raises:
            FileNotFoundError: there is no such file.
            UnreadableFileError: it is damaged, or does not hold one sound table.
        """
        tensors, facts = load_tensors(path, _KIND)
        with reading(path):
            return cls.from_state(tensors, **facts)

    # --- the state that travels

    @classmethod
    def from_state(cls, state: Mapping[str, Any], sparse: bool = False) -> ItemTable:
        """The table whose ``state_dict()`` this is; the given tensors become its own.

        Args:
            state: the tensors by name, with the ``_extra_state`` that says how they are fused.
            sparse: sparse gradients of the ID embeddings.

        Raises:
            TypeError, ValueError: it is no whole state of one sound table.
        """
        meaning = Meaning.from_tensor(state.get(EXTRA_STATE))
        table = cls(
            state.get("semantic_rows"),
            state.get("id_embeddings"),
            meaning.fusion or "concat",
            sparse,
            state.get("coordinates_map"),
        )
        meaning.check(table._meaning)
        return table

    @property
    def _meaning(self) -> Meaning:
        return Meaning(
            None if None in self._tables else self.fusion,
            self.coordinates,
            self.embedding_dim,
            self.null_dim,
            self.padding_idx,
        )

    def get_extra_state(self) -> Tensor:
        """What the tensors of the state mean, as bytes; see :class:`Meaning`."""
        return self._meaning.to_tensor()

    def set_extra_state(self, state: object) -> None:
        """Raises ``ValueError`` unless tensors of that meaning fit this table; sets nothing."""
        Meaning.from_tensor(state).check(self._meaning)

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
        # The way into a table that does not pass its constructor; `load_state_dict` raises the
        # messages. Nothing is copied of a state that is not finite, that means something else, or
        # that does not say what it means: "add" and "concat" may have tensors of the same shapes.
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
        """What keeps a state from being copied into this table, or from taking its place."""
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
        before = self.coordinates_map
        super()._apply(fn, recurse)
        moved = self.coordinates_map
        if before is not None and moved is not None and moved.dtype != before.dtype:
            # Rounded directions are not orthonormal any more: the map moves, but stays float32.
            self.coordinates_map = before.to(moved.device)
        return self

    # --- inside

    @property
    def _tables(self) -> tuple[Tensor | None, Tensor | None]:
        return self.semantic_rows, self.id_embeddings

    @property
    def _any_table(self) -> Tensor:
        table = self.semantic_rows if self.id_embeddings is None else self.id_embeddings
        assert table is not None
        return table

    def _unmapped(self, scores: Tensor, factor: Tensor | None, dtype: torch.dtype) -> Tensor:
        """Scores of mapped queries as those of the queries: scaled, in the queries' dtype."""
        if self.coordinates_map is None:
            return scores
        return (scores if factor is None else scores * factor).to(dtype)

    def extra_repr(self) -> str:
        return (
            f"{self.num_embeddings}, {self.embedding_dim}, null_dim={self.null_dim}, "
            f"fusion={self.fusion!r}, coordinates={self.coordinates!r}, sparse={self.sparse}"
        )


class _Seen(NamedTuple):
    """A tensor as it was: kept, so that no other takes its place in memory, and its version."""

    tensor: Tensor
    version: int

    @classmethod
    def of(cls, tensor: Tensor | None) -> _Seen | None:
        return None if tensor is None else cls(tensor.detach(), tensor._version)

    @staticmethod
    def same(now: _Seen | None, then: _Seen | None) -> bool:
        if now is None or then is None:
            return now is then
        return (
            now.tensor.data_ptr() == then.tensor.data_ptr()
            and now.tensor.shape == then.tensor.shape
            and now.tensor.dtype == then.tensor.dtype
            and now.version == then.version
        )


def _plain(tensor: Tensor | None) -> Tensor | None:
    """The tensor as the ops read it, and never trained, whatever the caller does with his."""
    return tensor.detach().contiguous() if isinstance(tensor, Tensor) else tensor


def _check_semantic_dtype(dtype: torch.dtype) -> None:
    if dtype not in FLOAT_TYPES:
        raise invalid("semantic_dtype", dtype, "float32, bfloat16 or float16", TypeError)


def _check_map_type(mapping: Tensor | None) -> None:
    if mapping is None:
        return
    if not isinstance(mapping, Tensor) or mapping.dtype not in FLOAT_TYPES:
        given = mapping.dtype if isinstance(mapping, Tensor) else type(mapping).__name__
        raise invalid("coordinates_map", given, "a float32 tensor or None", TypeError)
    if mapping.ndim != 2 or 0 in mapping.shape:
        raise invalid(
            "coordinates_map",
            f"shape {tuple(mapping.shape)}",
            "shape (columns of a stored row, embedding_dim)",
        )


def _first_not_finite(table: Tensor | None, dtype: torch.dtype | None = None) -> str | None:
    """What is not finite in a table, or would not be in ``dtype``, and where first."""
    if table is None or table.is_meta or table.numel() == 0:
        return None
    # One pass without a temporary of the table's size: NaN and infinities show in the extremes.
    dtype = dtype or table.dtype
    extremes = torch.stack(torch.aminmax(table.detach()))
    if torch.isfinite(extremes.to(dtype)).all():
        return None
    row, column = torch.nonzero(~torch.isfinite(table.detach().to(dtype)))[0].tolist()
    return f"{table[row, column].item()} in row {row}, column {column}"


def _semantic_rows(
    space: SemanticSpace,
    language_embeddings: Embeddings,
    dim: int | None,
    standardize: bool,
    semantic_rms: float | None,
    chunk_rows: int | None,
    progress: bool | None,
) -> Tensor:
    """Singular coordinates, float32, multiplied so that their root mean square is as asked."""
    if semantic_rms is not None and not 0.0 < semantic_rms < float("inf"):
        raise invalid("semantic_rms", semantic_rms, "a positive finite number, or None")
    rows = space.project(
        language_embeddings, dim, standardize, chunk_rows=chunk_rows, progress=progress
    )
    if semantic_rms is None:
        return rows
    norms = torch.linalg.vector_norm(rows, dim=1).double()
    values = int((norms > 0).sum()) * rows.shape[1]
    if values == 0:
        raise invalid(
            "language_embeddings",
            "rows that are all alike: no factor gives their coordinates, all zero, a semantic_rms",
            "rows that differ from item to item, or semantic_rms=None",
        )
    rows *= semantic_rms / (norms.square().sum() / values).sqrt().item()
    return rows
