"""Diffusion of vectors: noise schedules, adding noise, and sampling back from it.

``x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps`` for ``t = 0 .. T - 1``; what denoises predicts
``x_0``. Sampling is deterministic, given its first noise, by DDIM (Song et al., ICLR 2021), or
draws from the posterior at every step (DDPM; Ho et al., NeurIPS 2020).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from alphafuse_ext.checks import invalid
from alphafuse_ext.choices import SCHEDULES

# The reference values of the linear schedule.
BETA_START, BETA_END = 1e-4, 0.02


def noise_schedule(name: str, timesteps: int) -> Tensor:
    """``abar_t``, what share of the variance of ``x_t`` is the signal's.

    * ``linear``: beta rises evenly from 1e-4 to 0.02.
    * ``cosine``: abar is a squared cosine (Nichol and Dhariwal, ICML 2021).
    * ``exp``: a variance-preserving process with a linear rate from 0.1 to 10.
    * ``sqrt``: abar is ``1 - sqrt(t / T)``, which is noisy early (Li et al., NeurIPS 2022).

    Returns:
        float64, ``(timesteps,)``, falling.
    """
    if name not in SCHEDULES:
        raise invalid("noise_schedule", repr(name), f"one of {', '.join(SCHEDULES)}")
    if name == "linear":
        betas = torch.linspace(BETA_START, BETA_END, timesteps, dtype=torch.float64)
    elif name == "exp":
        rate = torch.linspace(1, 2 * timesteps + 1, timesteps, dtype=torch.float64)
        betas = 1 - torch.exp(-0.1 / timesteps - rate * 0.5 * (10 - 0.1) / timesteps**2)
    else:
        share: Callable[[Tensor], Tensor] = (
            (lambda t: torch.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2)
            if name == "cosine"
            else (lambda t: 1 - torch.sqrt(t + 0.0001))
        )
        times = torch.arange(timesteps + 1, dtype=torch.float64) / timesteps
        betas = (1 - share(times[1:]) / share(times[:-1])).clamp(max=0.999)
    return torch.cumprod(1 - betas, 0)


def add_noise(start: Tensor, noise: Tensor, share: Tensor) -> Tensor:
    """``x_t`` of vectors ``x_0``.

    Args:
        start, noise: ``(B, dim)``.
        share: ``abar_t`` of each, ``(B,)``.
    """
    share = share[:, None]
    return share.sqrt() * start + (1 - share).sqrt() * noise


def sample(
    denoise: Callable[[Tensor, int], Tensor],
    noise: Callable[[int], Tensor],
    shares: Tensor,
    stride: int,
    sampler: str,
) -> Tensor:
    """Vectors ``x_0`` from noise.

    Args:
        denoise: ``denoise(x_t, t)`` predicts ``x_0``.
        noise: ``noise(i)`` gives standard normal vectors: those to begin with for 0, and for DDPM
            one for each step after.
        shares: ``abar_t``, ``(T,)``.
        stride: steps from ``t`` to ``t - stride``, beginning at ``T - 1``; divides T.
        sampler: ``"ddim"``, or ``"ddpm"`` with a stride of 1.
    """
    known = [1.0, *shares.tolist()]  # known[t + 1] is abar_t; before the first step all is signal
    vectors = noise(0)
    for step, time in enumerate(range(len(shares) - 1, -1, -stride), 1):
        start = denoise(vectors, time)
        share, before = known[time + 1], known[max(0, time + 1 - stride)]
        if sampler == "ddim":
            found = (vectors - math.sqrt(share) * start) / math.sqrt(1 - share)
            vectors = math.sqrt(before) * start + math.sqrt(1 - before) * found
            continue
        kept = share / before  # 1 - beta
        mean_of_start = math.sqrt(before) * (1 - kept) / (1 - share)
        mean_of_vectors = math.sqrt(kept) * (1 - before) / (1 - share)
        vectors = mean_of_start * start + mean_of_vectors * vectors
        if time > 0:
            vectors = vectors + math.sqrt((1 - kept) * (1 - before) / (1 - share)) * noise(step)
    return vectors


def noise_of_histories(ids: Tensor, padding: int, dim: int, seed: int, step: int) -> Tensor:
    """Standard normal vectors that follow from each history alone, whatever batch it is in.

    Args:
        ids: ``(B, L)`` int64, padded on the right.
        padding: id that stands where a history has ended.
        dim: of a vector.
        seed, step: other vectors for each pair.

    Returns:
        float32 ``(B, dim)``.
    """
    state = torch.full((len(ids),), seed, dtype=torch.int64, device=ids.device)
    for column in ids.unbind(1):
        state = torch.where(column == padding, state, _mix(state + _mix(column + 1)))
    places = torch.arange(step * dim, (step + 1) * dim, device=ids.device)
    words = _mix(state[:, None] + _mix(places))
    # Two uniform numbers of 53 bits, the first above 0, make a normal one (Box and Muller).
    first = (_shift(words, 11).double() + 1) / 2**53
    second = _shift(_mix(words), 11).double() / 2**53
    return (torch.sqrt(-2 * torch.log(first)) * torch.cos(2 * math.pi * second)).float()


def _shift(words: Tensor, bits: int) -> Tensor:
    """To the right, zeros coming in."""
    return (words >> bits) & ((1 << (64 - bits)) - 1)


def _mix(words: Tensor) -> Tensor:
    """The finalizer of SplitMix64 (Steele et al., OOPSLA 2014), on int64 that wrap around."""
    words = words + (0x9E3779B97F4A7C15 - 2**64)
    words = (words ^ _shift(words, 30)) * (0xBF58476D1CE4E5B9 - 2**64)
    words = (words ^ _shift(words, 27)) * (0x94D049BB133111EB - 2**64)
    return words ^ _shift(words, 31)
