"""Constructors of item tables, with and without language embeddings."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
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
from alphafuse_ext.deprecation import SPACE_SPLIT, renamed_arguments
from alphafuse_ext.files import PathLike, load_tensors, new_tensor_file
from alphafuse_ext.items.coordinates import Coordinates, check_coordinates
from alphafuse_ext.items.embedding_rows import EmbeddingRows, Embeddings
from alphafuse_ext.items.initialization import init_id_embeddings
from alphafuse_ext.items.space import SemanticSpace
from alphafuse_ext.items.stored_tables import StoredTables
from alphafuse_ext.ops.arguments import FLOAT_TYPES

if TYPE_CHECKING:
    from typing_extensions import Self

# The kind of semantic files, and how many rows are converted at once.
_FILE = "semantic rows"
_CHUNK = 1 << 18

Sum: TypeAlias = Callable[[Tensor], Tensor]


class TableConstructors(StoredTables):
    """Alternative constructors of :class:`alphafuse_ext.ItemTable`."""

    @classmethod
    @renamed_arguments(SPACE_SPLIT)
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
            language_embeddings: shape (N, d_l), as for :meth:`SemanticSpace.project`; rows of
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
            chunk_rows, progress: see :meth:`SemanticSpace.project`.

        Raises:
            TypeError, ValueError: an invalid argument.

        Note:
            Defaults are the settings that were best on validation data, as in :class:`Config`. The
            paper's table has ``fusion="concat"``, half of ``dim`` as ``null_dim``,
            ``standardize=False``, ``semantic_rms=None`` and ``init="zeros"``.
        """
        check_coordinates(coordinates)
        check_space_split(space_split, space_split_power, fusion, coordinates)
        _check_semantic_dtype(semantic_dtype)
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
        semantic_rows = _semantic_rows(
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
        rows = _semantic_rows(
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
            space, language_embeddings, standardize, semantic_rms, semantic_dtype, semantic_file,
                chunk_rows, progress: as for :meth:`from_space`.
            dim: number of directions kept, ``None``: all ``d_l``.
        """
        _check_semantic_dtype(semantic_dtype)
        rows = _semantic_rows(
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


def _id_columns(
    space: SemanticSpace, dim: int, null_dim: int, coordinates: str, space_split: str
) -> int:
    if space_split != "hard":
        return dim
    return space.embedding_dim if coordinates == "projected" else null_dim


def _check_semantic_dtype(dtype: torch.dtype) -> None:
    if dtype not in FLOAT_TYPES:
        raise invalid("semantic_dtype", dtype, "float32, bfloat16 or float16", TypeError)


def _semantic_rows(
    space: SemanticSpace,
    language_embeddings: Embeddings,
    dim: int | None,
    standardize: bool,
    semantic_rms: float | None,
    chunk_rows: int | None,
    progress: bool | None,
    gains: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
    file: PathLike | None = None,
    sum_: Sum | None = None,
) -> Tensor:
    """Singular coordinates, scaled to the given root mean square.

    Args:
        gains: divide each coordinate by its own, after that.
        dtype: of the result.
        file: where to keep it, as a memory map, in place of memory.
        sum_: of what is counted here, over the shards of a catalog; ``None``: this is all of it.
    """

    def fill(out: Tensor | None) -> Tensor:
        rows = space.project(
            language_embeddings, dim, standardize, out, chunk_rows=chunk_rows, progress=progress
        )
        if semantic_rms is not None:
            rows *= _factor(rows, semantic_rms, sum_)
        if gains is not None:
            rows /= gains
        return rows

    if semantic_rms is not None and not 0.0 < semantic_rms < float("inf"):
        raise invalid("semantic_rms", semantic_rms, "a positive finite number, or None")
    if file is None:
        return fill(None).to(dtype)
    shape = EmbeddingRows(language_embeddings).num_rows, space.check_dim(dim)
    with new_tensor_file(file, _FILE, "semantic_rows", shape, dtype) as kept:
        if dtype == torch.float32:
            fill(kept)
        else:
            with TemporaryFile(dir=Path(file).parent) as scratch:
                scratch.truncate(4 * shape[0] * shape[1])
                rows = fill(torch.from_numpy(np.memmap(scratch, np.float32, "r+", 0, shape)))
                for start in range(0, shape[0], _CHUNK):
                    kept[start : start + _CHUNK] = rows[start : start + _CHUNK]
    return load_tensors(file, _FILE)[0]["semantic_rows"]


def _factor(rows: Tensor, semantic_rms: float, sum_: Sum | None) -> float:
    """The factor that scales the root mean square over rows with text to ``semantic_rms``."""
    norms = torch.linalg.vector_norm(rows, dim=1).double()
    found = torch.stack([norms.square().sum(), (norms > 0).sum()])
    squares, with_text = (found if sum_ is None else sum_(found)).tolist()
    if with_text == 0:
        raise invalid(
            "language_embeddings",
            "rows that are all alike: no factor gives their coordinates, all zero, a semantic_rms",
            "rows that differ from item to item, or semantic_rms=None",
        )
    return semantic_rms / math.sqrt(squares / (with_text * rows.shape[1]))
