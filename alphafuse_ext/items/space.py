"""The semantic space: language embeddings decomposed into a row space and a null space."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Real
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from alphafuse_ext.checks import integer, invalid, refuse_masked
from alphafuse_ext.choices import FUSIONS
from alphafuse_ext.deprecation import renamed, renamed_arguments, renamed_attribute
from alphafuse_ext.files import PathLike, load_tensors, reading, save_tensors
from alphafuse_ext.items.embedding_rows import EmbeddingRows, Embeddings

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


_DEGENERATE = 1e-8
"""A direction whose eigenvalue is at most this fraction of the largest has no variance."""

_KIND = "SemanticSpace"


@dataclass(frozen=True, eq=False)
class SemanticSpace:
    """Mean, directions and variances of a catalog's language embeddings (AlphaFuse, SIGIR 2025).

    An embedding ``x`` has the singular coordinates ``(scale * x - mean) @ basis``. The first
    directions have high variance over the items (*row space*); the last have almost none and are
    used for ID embeddings (*null space*).

    Created by :meth:`from_embeddings` or :meth:`load`.

    Attributes:
        mean: mean of the scaled embeddings, float64, shape (d_l,).
        basis: orthonormal directions in its columns, float64, shape (d_l, d_l). Signs are fixed:
            the component of largest magnitude (the first if tied) is positive.
        eigenvalues: variance of the scaled embeddings along each direction, descending, float64,
            shape (d_l,). The last may be negative by rounding.
        scale: factor applied to all embeddings first.
        num_items: number of rows in :meth:`from_embeddings`, with and without text.
        total_weight: sum of the weights of the items with text (their number, where uniform).
        effective_items: effective sample size: the squared sum of the weights divided by the sum
            of their squares. For files without it, the number of items.
    """

    mean: NDArray[np.float64]
    basis: NDArray[np.float64]
    eigenvalues: NDArray[np.float64]
    scale: float
    num_items: int
    total_weight: float
    effective_items: float = 0.0

    def __post_init__(self) -> None:
        width = np.shape(self.mean)[-1] if np.ndim(self.mean) else 0
        shapes = {"mean": (width,), "basis": (width, width), "eigenvalues": (width,)}
        for name, shape in shapes.items():
            refuse_masked(name, getattr(self, name))
            value = np.array(getattr(self, name), dtype=np.float64)
            if value.shape != shape or width == 0:
                raise invalid(name, f"shape {value.shape}", f"shape {shape} with d_l >= 1")
            if not np.isfinite(value).all():
                raise invalid(name, "a NaN or an infinity", "finite numbers only")
            value.flags.writeable = False
            object.__setattr__(self, name, value)
        if (np.diff(self.eigenvalues) > 0).any():
            raise invalid("eigenvalues", "ascending values", "descending order")
        _check_scale(self.scale)
        if self.num_items < 1 or not 0 < self.total_weight < np.inf:
            raise invalid(
                "num_items, total_weight",
                f"{self.num_items}, {self.total_weight}",
                "at least one item, and a positive weight",
            )
        if self.effective_items <= 0.0:
            known = min(float(self.num_items), self.total_weight)
            object.__setattr__(self, "effective_items", known)

    @classmethod
    def from_embeddings(
        cls,
        language_embeddings: Embeddings,
        scale: float = 1.0,
        weights: ArrayLike | torch.Tensor | None = None,
        chunk_rows: int | None = None,
        progress: bool | None = None,
    ) -> SemanticSpace:
        """Decompose language embeddings in one pass.

        Mean and covariance are accumulated in float64, chunk by chunk (Chan, Golub and LeVeque
        1979), which is numerically stable even if the mean is large compared with the variance.
        For few rows, N <= d_l / 2, the centered rows are factored instead of their covariance;
        further directions complete the basis, with eigenvalues of zero. Memory: one chunk and four
        (d_l, d_l) matrices.

        Args:
            language_embeddings: shape (N, d_l), a NumPy array, torch tensor or memory map of
                float16, float32, float64 or (tensors) bfloat16. A row of zeros is an item without
                text; it is excluded from mean and covariance.
            scale: factor applied to every embedding first, e.g. 40 for the unit-norm embeddings
                of OpenAI; eigenvalues and ``null_threshold`` are in scaled units.
            weights: shape (N,), non-negative, e.g. how often each item occurs in the training
                interactions; default: uniform. Covariances are divided by the
                sum of the weights (N if uniform).
            chunk_rows: rows per chunk; default: 64 MiB of float64.
            progress: show a progress bar; default: if the input is long.

        Raises:
            TypeError: embeddings of an unsupported type or dtype.
            ValueError: a wrong shape, NaN or an infinity (the first such row is named), a masked
                entry, an invalid scale or weight, or no item with text and a positive weight.
        """
        rows = EmbeddingRows(language_embeddings, chunk_rows)
        scale = _check_scale(scale)
        item_weights = _check_weights(weights, rows.num_rows)

        total = squares = 0.0
        mean = np.zeros(rows.width)
        few = 2 * rows.num_rows <= rows.width
        factors: list[NDArray[np.float64]] = []  # for few rows; the scatter is factor.T @ factor
        scatter = np.zeros((0 if few else rows.width, rows.width))
        largest = 0.0
        for where, chunk in rows.chunks("decomposing", progress):
            chunk_weights = item_weights[where] * chunk.any(axis=1)
            chunk_total = float(chunk_weights.sum())
            if chunk_total == 0.0:
                continue
            squares += float((chunk_weights / item_weights.max()) @ chunk_weights)
            largest = max(largest, float(chunk.max()), -float(chunk.min()))
            # Dividing the weights first avoids overflow.
            shift = (chunk_weights / chunk_total) @ chunk - mean
            merged = total + chunk_total
            chunk -= mean + shift
            chunk *= np.sqrt(chunk_weights)[:, None]
            if few:
                factors += [chunk, shift[None] * np.sqrt(total * (chunk_total / merged))]
            else:
                with np.errstate(over="ignore", invalid="ignore"):  # checked once, below
                    scatter += chunk.T @ chunk
                    scatter += np.outer(shift * (total * (chunk_total / merged)), shift)
            mean += shift * (chunk_total / merged)
            total = merged
        if total == 0.0:
            raise invalid(
                "language_embeddings" if weights is None else "weights",
                "no item that has both text (a row that is not all zeros) and weight",
                "at least one",
            )

        with np.errstate(over="ignore", invalid="ignore"):
            if few:
                matrix = np.concatenate(factors) / np.sqrt(total) * scale
                variances = np.square(matrix).sum(axis=0)
            else:
                matrix = scatter / total * scale**2
                variances = matrix.diagonal()
        if not (np.isfinite(matrix).all() and np.isfinite(variances).all()):
            raise invalid(
                "language_embeddings",
                f"values up to {largest:g} at scale {scale:g}",
                "a covariance that float64 can hold",
            )
        # Equal items differ only by rounding of their mean: this is not a direction.
        noise = rows.width * (scale * largest * 64 * np.finfo(np.float64).eps) ** 2
        if variances.sum() <= noise:
            matrix[:] = 0.0
        eigenvalues, basis = (_eigen_of_rows if few else _eigen)(matrix)
        strongest = np.abs(basis).argmax(axis=0)
        basis = basis * np.where(basis[strongest, np.arange(rows.width)] < 0, -1.0, 1.0)
        effective = total / squares * (total / float(item_weights.max()))
        return cls(mean * scale, basis, eigenvalues, scale, rows.num_rows, total, effective)

    fit = renamed(from_embeddings, "SemanticSpace.fit")

    @property
    def embedding_dim(self) -> int:
        """Dimension ``d_l`` of the language embeddings."""
        return self.mean.shape[0]

    @property
    def matrix_rank(self) -> int:
        """Number of directions with variance: ``S_j > 1e-8 * S_0``."""
        return int(self._carries.sum())

    rank = renamed_attribute("SemanticSpace.rank", "matrix_rank")

    @property
    def _carries(self) -> NDArray[np.bool_]:
        return self.eigenvalues > max(_DEGENERATE * self.eigenvalues[0], 0.0)

    def split(
        self,
        dim: int | None = None,
        null_dim: int | None = None,
        null_threshold: float | None = None,
        fusion: str = "concat",
    ) -> tuple[int, int]:
        """Truncate the space and split it into row space and null space.

        The null space is the last ``null_dim`` of the first ``dim`` directions.

        Args:
            dim: number of directions kept; default: all ``d_l``.
            null_dim: size of the null space: 1 .. dim - 1, with ``fusion="add"`` also ``dim``.
            null_threshold: alternatively, the variance (scaled, not whitened) up to which a kept
                direction belongs to the null space.
            fusion: ``"concat"`` or ``"add"``.

        Returns:
            ``dim`` and ``null_dim`` as integers.

        Raises:
            TypeError: a size is not an integer.
            ValueError: both or neither of ``null_dim`` and ``null_threshold``, a size out of range,
                or a threshold that leaves an empty null space or row space.
        """
        check_fusion(fusion)
        dim = self.check_dim(dim)
        if (null_dim is None) == (null_threshold is None):
            raise invalid(
                "null_dim, null_threshold",
                f"{null_dim}, {null_threshold}",
                "exactly one of the two",
            )
        if null_dim is not None:
            null_dim = integer("null_dim", null_dim)
            most = dim if fusion == "add" else dim - 1
            if not 1 <= null_dim <= most:
                raise invalid(
                    "null_dim", null_dim, f"1 <= null_dim <= {most} (dim={dim}, fusion={fusion!r})"
                )
            return dim, null_dim
        assert null_threshold is not None  # the other of the two
        kept = self.eigenvalues[:dim]
        found = int((kept <= null_threshold).sum())
        if not 0 < found < dim:
            what = "no null space" if found == 0 else "nothing but null space"
            raise invalid(
                "null_threshold",
                f"{null_threshold}, which leaves {what}",
                f"a value between the smallest and the largest eigenvalue of the {dim} directions "
                f"kept: {kept[-1]:.6g} <= null_threshold < {kept[0]:.6g}",
            )
        return dim, found

    def gains(self, dim: int, null_dim: int, power: float) -> NDArray[np.float64]:
        """The gain of each direction's ID embedding in a soft split.

        ``g_j = min(1, (S_ref / S_j) ** (power / 2))`` with ``S_ref`` the eigenvalue of the first
        direction of the null space: 1 in the null space, and smaller for directions of higher
        variance. A hard split is the limit of a large ``power``; with 0 all gains are 1.

        Args:
            dim, null_dim: of :meth:`split`.
            power: p, at least 0.

        Returns:
            float64, shape (dim,). A direction without variance has gain 1.
        """
        carries = self._carries[:dim]
        kept = np.where(carries, self.eigenvalues[:dim], 1.0)
        if not carries.any():
            return np.ones(dim)
        reference = kept[min(dim - null_dim, int(carries.sum()) - 1)]
        found = np.minimum(1.0, (reference / kept) ** (power / 2))
        return np.where(carries, found, 1.0)

    @renamed_arguments({"standardize": "whiten"})
    def transform(
        self,
        language_embeddings: Embeddings,
        dim: int | None = None,
        whiten: bool = False,
        out: torch.Tensor | None = None,
        chunk_rows: int | None = None,
        progress: bool | None = None,
    ) -> torch.Tensor:
        """Singular coordinates of embeddings: ``(scale * x - mean) @ basis[:, :dim]``.

        Computed in float64, chunk by chunk; only one chunk and the result are in memory.

        Args:
            language_embeddings: shape (N, d_l), as for :meth:`from_embeddings`, of the fitted or
                other items. A row of zeros (an item without text) becomes a row of zeros.
            dim: number of directions kept; default: all ``d_l``.
            whiten: divide each coordinate by its standard deviation over the fitted items.
                Directions without variance become zero.
            out: output tensor: float32 on the CPU, shape (N, dim).
            chunk_rows: rows per chunk; default: 64 MiB of float64.
            progress: show a progress bar; default: if the input is long.

        Returns:
            float32, shape (N, dim); ``out`` if given.

        Raises:
            TypeError, ValueError: as :meth:`from_embeddings`; a ``dim`` out of range; an ``out`` of
                another shape, dtype or device.
        """
        rows = EmbeddingRows(language_embeddings, chunk_rows)
        if rows.width != self.embedding_dim:
            raise invalid(
                "language_embeddings",
                f"shape ({rows.num_rows}, {rows.width})",
                f"shape (N, {self.embedding_dim}), as fitted",
            )
        dim = self.check_dim(dim)
        if out is None:
            out = torch.empty(rows.num_rows, dim)
        elif (
            out.shape != (rows.num_rows, dim)
            or out.dtype != torch.float32
            or out.device.type != "cpu"
        ):
            raise invalid(
                "out",
                f"{out.dtype} of shape {tuple(out.shape)} on {out.device}",
                f"torch.float32 of shape {(rows.num_rows, dim)} on the CPU",
            )
        directions = self.basis[:, :dim]
        if whiten:
            carries = self._carries[:dim]
            directions = directions * np.where(
                carries, 1.0 / np.sqrt(np.where(carries, self.eigenvalues[:dim], 1.0)), 0.0
            )
        directions = np.ascontiguousarray(directions)
        for where, chunk in rows.chunks("projecting", progress):
            without_text = ~chunk.any(axis=1)
            chunk *= self.scale
            chunk -= self.mean
            coordinates = chunk @ directions
            coordinates[without_text] = 0.0
            out[where] = torch.from_numpy(coordinates)
        return out

    project = renamed(transform, "SemanticSpace.project")

    def save(self, path: PathLike) -> None:
        """Write ``path.safetensors`` atomically.

        Args:
            path: the file, with or without its suffix.
        """
        arrays = {name: getattr(self, name) for name in ("mean", "basis", "eigenvalues")}
        save_tensors(
            path,
            _KIND,
            {name: torch.tensor(array) for name, array in arrays.items()},
            {
                "scale": self.scale,
                "num_items": self.num_items,
                "total_weight": self.total_weight,
                "effective_items": self.effective_items,
            },
        )

    @classmethod
    def load(cls, path: PathLike) -> SemanticSpace:
        """Load a file of :meth:`save`, bitwise the same.

        Raises:
            FileNotFoundError: the file does not exist.
            UnreadableFileError: it is damaged, or is not a valid space.
        """
        tensors, facts = load_tensors(path, _KIND)
        with reading(path):
            return cls(
                mean=tensors["mean"].numpy(),
                basis=tensors["basis"].numpy(),
                eigenvalues=tensors["eigenvalues"].numpy(),
                scale=facts["scale"],
                num_items=facts["num_items"],
                total_weight=facts["total_weight"],
                effective_items=facts.get("effective_items", 0.0),
            )

    def plot(
        self,
        path: PathLike | None = None,
        ax: Axes | None = None,
        dim: int | None = None,
        null_dim: int | None = None,
        null_threshold: float | None = None,
        title: str | None = None,
    ) -> Figure:
        """Plot the spectrum with row space, null space and truncated directions marked.

        Args:
            path: also save the plot there (the suffix chooses the format).
            ax: draw into these axes instead of a new figure.
            dim: number of directions kept; default: all.
            null_dim: size of the null space: 0 .. dim; without it and ``null_threshold``, no null
                space is marked.
            null_threshold: alternatively, the largest variance of the null space.
            title: of the plot.

        Returns:
            The figure; it is not registered with pyplot and need not be closed.
        """
        # Imported here: drawing is rare, and matplotlib slow to import.
        from alphafuse_ext.items.spectrum import plot_spectrum

        if null_threshold is None and null_dim in (None, 0):
            dim, null_dim = self.check_dim(dim), 0
        else:
            dim, null_dim = self.split(dim, null_dim, null_threshold, fusion="add")
        return plot_spectrum(
            self.eigenvalues,
            dim=dim,
            null_dim=null_dim,
            rank=self.matrix_rank,
            null_threshold=null_threshold,
            title=title,
            path=path,
            ax=ax,
        )

    def check_dim(self, dim: int | None) -> int:
        """Directions kept, all ``d_l`` of ``None``; ``ValueError`` where there are not as many."""
        if dim is None:
            return self.embedding_dim
        dim = integer("dim", dim)
        if not 1 <= dim <= self.embedding_dim:
            raise invalid("dim", dim, f"1 <= dim <= {self.embedding_dim}, the embeddings' width")
        return dim

    def __repr__(self) -> str:
        return (
            f"SemanticSpace(embedding_dim={self.embedding_dim}, matrix_rank={self.matrix_rank}, "
            f"num_items={self.num_items}, scale={self.scale:g})"
        )


def _eigen(matrix: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Eigenvalues, descending, and eigenvectors of a symmetric matrix, which is overwritten."""
    import scipy.linalg  # takes a fifth of the time that torch does

    ascending, vectors = scipy.linalg.eigh(matrix, overwrite_a=True, check_finite=False)
    return ascending[::-1], vectors[:, ::-1]


def _eigen_of_rows(rows: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The same of ``rows.T @ rows``, shape (d_l, d_l), from its few rows."""
    import scipy.linalg

    basis, corner = scipy.linalg.qr(rows.T, mode="full", check_finite=False)
    count = len(rows)
    corner = corner[:count]
    found, vectors = _eigen(corner @ corner.T)
    basis[:, :count] = basis[:, :count] @ vectors
    # None is negative but by rounding; those of the completion come last.
    return np.append(found.clip(min=0.0), np.zeros(len(basis) - count)), basis


def check_fusion(fusion: str) -> str:
    """``fusion`` itself, if it is one of :data:`FUSIONS`; otherwise a ``ValueError``."""
    if fusion not in FUSIONS:
        raise invalid("fusion", repr(fusion), " or ".join(map(repr, FUSIONS)))
    return fusion


def _check_scale(scale: float) -> float:
    if not isinstance(scale, Real):
        raise invalid("scale", repr(scale), "a number", TypeError)
    if not 0.0 < scale < float("inf"):
        raise invalid("scale", scale, "a positive finite number")
    return float(scale)


def _check_weights(weights: ArrayLike | torch.Tensor | None, num_items: int) -> NDArray[np.float64]:
    if weights is None:
        return np.ones(num_items)
    if isinstance(weights, torch.Tensor):
        weights = weights.detach().cpu().to(torch.float64).numpy()
    refuse_masked("weights", weights)
    result = np.asarray(weights, dtype=np.float64)
    if result.shape != (num_items,):
        raise invalid("weights", f"shape {result.shape}", f"shape ({num_items},), one per item")
    bad = ~np.isfinite(result) | (result < 0)
    if bad.any():
        first = int(bad.argmax())
        raise invalid("weights", f"{result[first]} for item {first}", "finite numbers >= 0")
    if not result.any():
        raise invalid("weights", "zeros only", "at least one positive weight")
    return result
