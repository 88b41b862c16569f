"""DreamRec: the next item's embedding, drawn by a diffusion model that a history guides.

Yang et al., "Generate What You Prefer: Reshaping Sequential Recommendation via Guided Diffusion",
NeurIPS 2023.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from alphafuse_ext.checks import invalid
from alphafuse_ext.config import model as declared
from alphafuse_ext.config.loss import LOSSES
from alphafuse_ext.config.protocol import Protocol
from alphafuse_ext.items.item_embeddings import ItemEmbeddings
from alphafuse_ext.models import diffusion
from alphafuse_ext.models.diffusion import add_noise, noise_of_histories, sample
from alphafuse_ext.models.sasrec import SASRec

# Rows that tell how large the table's values are.
_MOST_SAMPLED = 10_000
_OF_LOSSES = {
    field.name
    for kinds in ((declared.NextItem,), LOSSES.values())
    for kind in kinds
    for field in dataclasses.fields(kind)
    if field.name != "history"
}


class DreamRec(SASRec):
    """Draws the embedding of the next item, and ranks the catalog by inner product with it.

    The encoder of :class:`SASRec` turns a history into a condition ``c``. The target's fused row,
    divided by the root mean square of the rows that the model began with, is ``x_0``; the denoiser
    predicts it from ``x_t``, ``c`` and ``t``, and the loss is the mean squared error. With
    probability ``condition_dropout`` a learned null condition stands for ``c``; sampling predicts
    ``(1 + guidance) f(x_t, c, t) - guidance f(x_t, null, t)``.

    Args:
        table, history: as for :class:`SASRec`.
        timesteps: T.
        stride: of sampling: ``T / stride`` steps.
        noise_schedule: see :func:`alphafuse_ext.models.diffusion.noise_schedule`.
        guidance: w; 0: the condition alone.
        condition_dropout: p.
        sampler: ``"ddim"``; or ``"ddpm"``: all steps, with noise at each.
        sampling_seed: of the noise, which follows from it and the history: the same history has
            the same query, alone or in any batch.
        **encoder: the others of :class:`SASRec`, but for those of its loss.
    """

    settings: ClassVar[type[declared.Model]] = declared.DreamRec

    def __init__(
        self,
        table: ItemEmbeddings,
        history: int = Protocol.default_history,
        timesteps: int = declared.DreamRec.timesteps,
        stride: int = declared.DreamRec.stride,
        noise_schedule: str = declared.DreamRec.noise_schedule,
        guidance: float = declared.DreamRec.guidance,
        condition_dropout: float = declared.DreamRec.condition_dropout,
        sampler: str = declared.DreamRec.sampler,
        sampling_seed: int = declared.DreamRec.sampling_seed,
        **encoder: Any,
    ) -> None:
        for name in encoder:
            if name in _OF_LOSSES:
                allowed = "none: DreamRec learns to take noise away"
                raise invalid(name, repr(encoder[name]), allowed)
        declared.DreamRec(
            timesteps=timesteps,
            stride=stride,
            noise_schedule=noise_schedule,
            guidance=guidance,
            condition_dropout=condition_dropout,
            sampler=sampler,
            sampling_seed=sampling_seed,
        )  # which checks them
        super().__init__(table, history, **encoder)
        self.stride, self.sampler, self.guidance = stride, sampler, guidance
        self.condition_dropout, self.sampling_seed = condition_dropout, sampling_seed
        dim = table.embedding_dim
        self.null_condition = nn.Parameter(torch.empty(dim))
        nn.init.normal_(self.null_condition, std=0.02)
        self.step = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))
        self.denoiser = nn.Sequential(
            nn.Linear(3 * dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim)
        )
        self.shares: Tensor
        self.register_buffer(
            "shares", diffusion.noise_schedule(noise_schedule, timesteps), persistent=False
        )
        self.row_scale: Tensor
        self.register_buffer("row_scale", _scale_of(table))

    def loss(self, ids: Tensor, targets: Tensor) -> Tensor:
        has_target = targets != self.table.padding_idx
        condition = self(ids)[has_target]
        start = self.table(targets[has_target]) / self.row_scale
        device = start.device
        times = torch.randint(len(self.shares), (len(start),), device=device)
        noisy = add_noise(start, torch.randn_like(start), self.shares[times].to(start.dtype))
        dropped = torch.rand(len(start), 1, device=device) < self.condition_dropout
        condition = torch.where(dropped, self.null_condition, condition)
        return (self.denoise(noisy, condition, times) - start).square().mean(1).sum()

    def denoise(self, vectors: Tensor, condition: Tensor, times: Tensor) -> Tensor:
        """Predictions of ``x_0``.

        Args:
            vectors: ``x_t``, ``(B, dim)``.
            condition: ``c``, ``(B, dim)``.
            times: ``t``, ``(B,)`` int64.
        """
        step = self.step(_positions(times, vectors.shape[1]).to(vectors.dtype))
        return self.denoiser(torch.cat([vectors, condition, step], 1))

    def encode(self, ids: Tensor) -> Tensor:
        condition = super().encode(ids)
        padding, dim = self.table.padding_idx, condition.shape[1]
        if self.guidance:
            null = self.null_condition.expand_as(condition)
            condition = torch.cat([condition, null])

        def denoise(vectors: Tensor, time: int) -> Tensor:
            times = torch.full((len(condition),), time, device=ids.device)
            if not self.guidance:
                return self.denoise(vectors, condition, times)
            both = self.denoise(torch.cat([vectors, vectors]), condition, times)
            guided, free = both.chunk(2)
            return (1 + self.guidance) * guided - self.guidance * free

        def noise(step: int) -> Tensor:
            return noise_of_histories(ids, padding, dim, self.sampling_seed, step)

        return sample(denoise, noise, self.shares, self.stride, self.sampler)


def _scale_of(table: ItemEmbeddings) -> Tensor:
    """The root mean square of the table's values, over rows that are not zero."""
    count = table.num_embeddings
    device = next(table.buffers(), next(table.parameters(), torch.empty(0))).device
    ids = torch.linspace(0, count - 1, min(count, _MOST_SAMPLED), device=device).long()
    with torch.no_grad():
        rows = table(ids).float()
    rows = rows[rows.any(1)]
    if not len(rows):
        raise invalid(
            "table",
            "embeddings that are all zero",
            "others: what a diffusion of zeros learns is to say zero",
        )
    return rows.square().mean().sqrt()


def _positions(times: Tensor, dim: int) -> Tensor:
    """Sines and cosines of times, ``(B, dim)``."""
    half = (dim + 1) // 2
    rates = torch.exp(
        torch.arange(half, device=times.device) * (-math.log(10_000) / max(1, half - 1))
    )
    angles = times[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], 1)[:, :dim]
