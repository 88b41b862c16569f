"""Items nearest to each by language embedding, which a softmax's targets are shared with.

What a user took next is one draw of what they might have taken, and of the others what reads almost
alike is the likeliest. Sharing a target with its neighbors in language tells the loss so, whatever
the item embeddings are made of.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from tqdm.auto import tqdm

from alphafuse_ext import ops
from alphafuse_ext.files import PathLike, load_tensors, save_tensors
from alphafuse_ext.items.embedding_rows import EmbeddingRows, Embeddings

NEIGHBORS, TEMPERATURE = 10, 0.05
"""How many, and what their cosines are divided by before a softmax makes weights of them."""

_KIND = "neighbors"
_CHUNK = 1024


class Neighbors(NamedTuple):
    """Neighbors of each item.

    Attributes:
        ids: int64, shape (N, K), none of which is the item itself.
        weights: float32, shape (N, K), of sum 1; of an item without text 0.
    """

    ids: Tensor
    weights: Tensor

    @classmethod
    def of(cls, language_embeddings: Embeddings, count: int = NEIGHBORS) -> Neighbors:
        """By cosine about the mean; exact, by ``topk``, so that no (N, N) scores are held.

        Args:
            language_embeddings: shape (N, d_l), as for :meth:`SemanticSpace.fit`; a row of zeros is
                an item without text, which has no neighbors and is none. Held in memory once, in
                float32.
            count: K; fewer where there are no more items.
        """
        given = EmbeddingRows(language_embeddings)
        rows = torch.empty(given.num_rows, given.width)
        for where, chunk in given.chunks("reading"):
            rows[where] = torch.from_numpy(chunk)
        has_text = rows.any(1)
        ids = torch.zeros(len(rows), count, dtype=torch.int64)
        weights = torch.zeros(len(rows), count)
        known = has_text.nonzero()[:, 0]
        rows = rows[known]
        if len(known) < 2:
            return cls(ids, weights)
        rows -= rows.mean(0)
        found = min(count, len(known) - 1)
        starts = range(0, len(rows), _CHUNK)
        long = len(rows) > 100_000
        for start in tqdm(starts, "neighbors", leave=False, disable=None if long else True):
            own = torch.arange(start, min(start + _CHUNK, len(rows)))
            values, places = ops.topk(
                rows[own], found, None, rows, similarity="cosine", exclude=own[:, None]
            )
            ids[known[own], :found] = known[places]
            weights[known[own], :found] = (values / TEMPERATURE).softmax(1)
        return cls(ids, weights)

    def extended(self, num_items: int) -> Neighbors:
        """Of a catalog that has grown: new items have none."""
        more = num_items - len(self.ids)
        pad = torch.nn.functional.pad
        return Neighbors(*(pad(part, (0, 0, 0, more)) for part in self))

    def save(self, path: PathLike) -> None:
        """Write ``path.safetensors``."""
        save_tensors(path, _KIND, self._asdict())

    @classmethod
    def load(cls, path: PathLike) -> Neighbors:
        """Read what :meth:`save` wrote.

        Raises:
            FileNotFoundError, UnreadableFileError: there is none, or it is damaged.
        """
        found, _ = load_tensors(path, _KIND)
        return cls(found["ids"], found["weights"])
