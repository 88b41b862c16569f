"""Recommenders on the Hugging Face hub, with `huggingface_hub`'s mixin.

>>> from alphafuse_ext.integrations.hub import HubRecommender
>>> HubRecommender(recommender).push_to_hub("me/beauty")
>>> recommender = HubRecommender.from_pretrained("me/beauty").recommender
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import ModelHubMixin, snapshot_download

from alphafuse_ext.checks import invalid
from alphafuse_ext.data import Interactions, Sequences
from alphafuse_ext.files import write_json
from alphafuse_ext.serving.recommender import Recommender

_RUN = "run"
_SAVING = {"config", "repo_id", "model_card_kwargs"}


class HubRecommender(
    ModelHubMixin,
    library_name="alphafuse_ext",
    tags=["recommender-systems", "sequential-recommendation", "alphafuse"],
    paper_url="https://arxiv.org/abs/2504.19218",
    license="apache-2.0",
):
    """A recommender with `save_pretrained`, `push_to_hub` and `from_pretrained`.

    A repository holds the run folder `run` (see :mod:`alphafuse_ext.runs.run_folder`), whose
    tensors are safetensors, the settings as `config.json`, and a model card. Interactions are
    only included on request: without them, the recommender works for histories and items, and has
    no users. Of the run's input files it has the names, not the paths.

    Args:
        recommender: what to save.
        with_interactions: also save users and their histories.
    """

    def __init__(self, recommender: Recommender, with_interactions: bool = False) -> None:
        self.recommender = recommender
        self.with_interactions = with_interactions

    def save_pretrained(
        self,
        save_directory: str | Path,
        *,
        with_interactions: bool | None = None,
        push_to_hub: bool = False,
        **options: Any,
    ) -> str | None:
        """Write the content of a repository to a folder, as `ModelHubMixin.save_pretrained`.

        Args:
            save_directory: the folder.
            with_interactions: overrides the constructor's.
            push_to_hub: also push it.
            **options: those of `ModelHubMixin.save_pretrained`.

        Raises:
            TypeError: an unknown option.
            FileExistsError: the folder has a run.
        """
        if not push_to_hub and (unknown := set(options) - _SAVING):
            allowed = f"with_interactions, push_to_hub, {', '.join(sorted(_SAVING))}"
            raise invalid(", ".join(sorted(unknown)), "an unknown option", allowed, TypeError)
        saved = self._with(with_interactions)
        return super(HubRecommender, saved).save_pretrained(
            save_directory, push_to_hub=push_to_hub, **options
        )

    def push_to_hub(
        self, repo_id: str, *, with_interactions: bool | None = None, **options: Any
    ) -> str:
        """Push to a repository on the hub, as `ModelHubMixin.push_to_hub`.

        Args:
            repo_id: its name.
            with_interactions: overrides the constructor's.
            **options: those of `ModelHubMixin.push_to_hub`.
        """
        return super(HubRecommender, self._with(with_interactions)).push_to_hub(repo_id, **options)

    def _with(self, with_interactions: bool | None) -> HubRecommender:
        if with_interactions is None:
            return self
        if not isinstance(with_interactions, bool):
            raise invalid("with_interactions", repr(with_interactions), "True or False", TypeError)
        return HubRecommender(self.recommender, with_interactions)

    def _save_pretrained(self, save_directory: Path) -> None:
        if (save_directory / _RUN).exists():
            found = f"{save_directory}, which holds a run"
            allowed = "a folder without one"
            raise invalid("save_directory", found, allowed, FileExistsError)
        saved = self.recommender
        if not self.with_interactions:
            nobody = Interactions(
                np.zeros(0, dtype=object), saved.items.tokens, Sequences([0], np.zeros(0, np.int64))
            )
            saved = saved.with_interactions(nobody)
        saved.save(save_directory / _RUN, keep_paths=False)
        write_json(save_directory / "config.json", saved.config.to_dict())

    @classmethod
    def _from_pretrained(
        cls,
        *,
        model_id: str,
        revision: str | None,
        cache_dir: str | Path | None,
        force_download: bool,
        local_files_only: bool,
        token: str | bool | None,
        device: str | torch.device | None = None,
        **_: Any,
    ) -> HubRecommender:
        """The recommender of a repository or of a local folder; ``device`` as for
        :meth:`Recommender.load`."""
        folder = Path(model_id)
        if not folder.is_dir():
            folder = Path(
                snapshot_download(
                    model_id,
                    revision=revision,
                    cache_dir=cache_dir,
                    force_download=force_download,
                    local_files_only=local_files_only,
                    token=token,
                )
            )
        if not (folder / _RUN).is_dir():
            allowed = f"a folder or repository that holds a folder {_RUN!r}"
            raise invalid("pretrained_model_name_or_path", model_id, allowed, FileNotFoundError)
        recommender = Recommender.load(folder / _RUN, device)
        return cls(recommender, with_interactions=recommender.interactions.num_users > 0)
