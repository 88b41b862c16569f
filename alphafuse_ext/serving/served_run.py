"""A trained run as it is served: model, catalog and histories, and the folder they came from."""

from __future__ import annotations

import dataclasses
import os
import warnings
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from alphafuse_ext.checks import check_flag, invalid
from alphafuse_ext.config import Config
from alphafuse_ext.data import Interactions, Items, Split
from alphafuse_ext.evaluation.ranking import RankedItems
from alphafuse_ext.evaluation.run_neighbors import RunNeighbors
from alphafuse_ext.files import reading
from alphafuse_ext.items.projection import SemanticProjection
from alphafuse_ext.models import SequenceModel
from alphafuse_ext.runs.assembly import build_split, rebuild_model
from alphafuse_ext.runs.device import usable_device
from alphafuse_ext.runs.run_folder import RunFolder, without_paths
from alphafuse_ext.serving.catalog import projection_of_run

if TYPE_CHECKING:
    from typing_extensions import Self

_PARTS = ("model", "items", "interactions", "neighbors")


class ServedRun:
    """What :class:`alphafuse_ext.Recommender` recommends by; its arguments are the same.

    It is not changed: a changed one is another, which shares what is the same.
    """

    changes: tuple[str, ...] = ()
    """What is another than in the run's folder, a line for each change."""

    _fitted: SemanticProjection | None = None
    _source: dict[str, Any] | None = None

    def __init__(
        self,
        model: SequenceModel,
        config: Config,
        interactions: Interactions,
        items: Items,
        run: RunFolder,
        neighbors: RunNeighbors | None = None,
    ) -> None:
        self.model = model.eval()
        self.config = config
        self.interactions = interactions
        self.items = items
        self.run = run
        self.neighbors = neighbors

    @classmethod
    def load(cls, run: str | os.PathLike[str], device: str | torch.device | None = None) -> Self:
        """The selected epoch of a run, from its folder alone.

        Args:
            run: the folder.
            device: where it ranks. ``None``: on the GPU, where there is one that this build has
                kernels for; else on the CPU. On which device it was trained does not matter.

        Raises:
            OSError: no epoch of the run has finished yet, or a file of it cannot be read.
            ValueError: a device that this machine or this build does not have.
        """
        device = usable_device(device)
        folder = RunFolder(run)
        config = folder.config()
        tensors, items = folder.model("best")[0], folder.items()
        with reading(folder.path):
            model = rebuild_model(config, tensors)
            if (rows := model.table.num_embeddings) != len(items):
                raise invalid("items", len(items), f"{rows}, as item embeddings")
            neighbors = folder.item_neighbors()
            if config.neighbors and neighbors is None:
                raise invalid("run", "neighbors without their lists", "a whole run folder")
            if neighbors is not None and (size := neighbors.neighbors.num_items) != len(items):
                raise invalid("neighbors", f"of {size} items", f"of {len(items)}")
        return cls(model.to(device), config, folder.interactions(), items, folder, neighbors)

    @cached_property
    def split(self) -> Split:
        """Training sequences, and validation and test examples."""
        return build_split(self.config, self.interactions)

    @cached_property
    def projection(self) -> SemanticProjection | None:
        """How language embeddings become semantic rows; ``None`` of a run without such rows."""
        return self._fitted or projection_of_run(self.run, self.config, lambda: self.split)

    @property
    def retired(self) -> npt.NDArray[np.int64] | None:
        """Ids of items that are not recommended any more; ``None``: of none."""
        return None if self.items.retired is None else np.flatnonzero(self.items.retired)

    @cached_property
    def ranked_items(self) -> RankedItems:
        """The items ranked by default: all but retired ones."""
        return RankedItems.without(self.model, self.retired)

    def keeps_seen(self, given: bool | None) -> bool:
        """Whether seen items are ranked too; ``None``: as in training."""
        if given is None:
            return self.config.keep_seen
        check_flag("keep_seen", given)
        return given

    def ranking_neighbors(self, given: bool | None) -> RunNeighbors | None:
        """Those that are ranked with; ``None``: the model ranks alone.

        Warns:
            UserWarning: training has not ended, so that their weights are not chosen yet.

        Raises:
            ValueError: asked for in a run that has none, or whose weights are not chosen yet; or
                not wanted in a run that has nothing else.
        """
        if given is not None:
            check_flag("neighbors", given)
        if given is False and not self.config.trained:
            allowed = "True or None: the run has no model to rank by alone"
            raise invalid("neighbors", False, allowed)
        if given is False or (given is None and self.neighbors is None):
            return None
        if self.neighbors is None:
            raise invalid("neighbors", True, "None or False: the run was trained without neighbors")
        if self.neighbors.weight is None:
            why = "training has not ended, and their weights are not chosen yet"
            if given or not self.config.trained:
                raise invalid("neighbors", given, f"None or False: {why}")
            warnings.warn(f"neighbors: {why}: ranked by the model alone", stacklevel=3)
            return None
        return self.neighbors

    def with_interactions(self, interactions: Interactions) -> Self:
        """The same model, which knows other users and histories, or none.

        Args:
            interactions: of the same items in the same order.
        """
        if not np.array_equal(interactions.items, self.items.tokens):
            raise invalid("interactions", "other items", "the recommender's own, in its order")
        return self.changed("interactions", interactions=interactions)

    def save(self, output: str | os.PathLike[str], keep_paths: bool = True) -> Self:
        """Write a run folder that :meth:`load` reads; the run's own stays as it is.

        Args:
            output: the folder to make.
            keep_paths: record where the run's files lay; ``False``: their names alone, and no
                columns of the catalog but titles and texts, for a folder that leaves this machine.

        Returns:
            The recommender of that folder.

        Raises:
            OSError: there is something at ``output`` already, or nothing can be written there.
        """
        source = self.changed_source()
        with RunFolder.create(
            output,
            self.config,
            self.run.report(),
            self.interactions,
            self.items if keep_paths else dataclasses.replace(self.items, columns=None),
            source if keep_paths else without_paths(source),
            self.model.state_dict(),
        ) as temporary:
            if self.neighbors is not None:
                self.neighbors.save(temporary)
            if self.projection is not None:
                self.projection.space.save(temporary / "space")
            if self.encodes_texts:
                self.run.share_encoder(temporary)
        return type(self).load(output, self.model.device)

    def changed_source(self) -> dict[str, Any]:
        """What a folder of this recommender says it came from."""
        return {
            **self.source(),
            "changed_from": str(self.run.path),
            "changes": list(self.changes),
            "extended": False,
            "projection": None if self.projection is None else self.projection.record(),
        }

    def source(self) -> dict[str, Any]:
        """What the data and the embeddings came from; see :meth:`RunFolder.source`."""
        return self._source or self.run.source()

    @property
    def encodes_texts(self) -> bool:
        """Whether its language embeddings are of an encoder that it may encode new texts by."""
        record = self.source()["embeddings"]
        return record is not None and record["from"] == "texts"

    def changed(
        self,
        what: str,
        projection: SemanticProjection | None = None,
        source: dict[str, Any] | None = None,
        **parts: Any,
    ) -> Self:
        """Another one, with others of its parts.

        Args:
            what: what is another, for the record.
            projection, source: in place of its own.
            **parts: ``model``, ``items``, ``interactions``, ``neighbors``.
        """
        mine = {name: getattr(self, name) for name in _PARTS}
        changed = type(self)(config=self.config, run=self.run, **{**mine, **parts})
        changed.changes = (*self.changes, what)
        changed._fitted = projection or self.projection
        changed._source = source or self._source
        return changed
