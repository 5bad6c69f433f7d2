"""Calibration: the scale and shift that give latents mean 0 and variance 1, computed from data."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from diffusers_fn._types import Numbers
from diffusers_fn.latents.codec import Codec

__all__ = ["calibrate", "calibrate_codec"]


def calibrate(
    mean: Numbers, logvar: Numbers | None = None, *, per_channel: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Returns (scale, shift), float64 [] or [C], such that (z - shift) scale has mean 0 and variance 1 over the data.

    For z ~ N(mean, exp(logvar)), over all examples and entries,

        shift = E[mean],    scale = (Var[mean] + E[exp(logvar)])^(-1/2)

    in closed form, without draws. Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion Models", 2021,
    https://arxiv.org/abs/2112.10752, appendix G, who use the scale and no shift. Computed on the host.

    Args:
      mean: [N, *latent], the means; or the latents themselves, with logvar None.
      logvar: [N, *latent], or None for 0 variance.
      per_channel: True for one scale and shift per channel (last axis), False for one of each.

    Raises:
      ValueError: if shapes differ, values are not finite, or the latents are constant.

    >>> scale, shift = calibrate(np.array([[1.0, 0.0], [5.0, 0.0]]), np.log([[5.0, 4.0], [5.0, 4.0]]), per_channel=True)
    >>> scale.round(4).tolist(), shift.tolist()
    ([0.3333, 0.5], [3.0, 0.0])
    """
    return _scale_and_shift(*_moments(mean, logvar, per_channel))


def calibrate_codec(
    codec: Codec, batches: Iterable[Any], *, per_channel: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Returns (scale, shift) as `calibrate` does, for the latents of batches of data, one batch in memory at a time.

    Args:
      codec: its encode is called without jit; pass a compiled one.
      batches: arrays [B, ...]; B may vary, and all examples have the same weight.
      per_channel: as for `calibrate`.

    Raises:
      ValueError: as `calibrate`, or if there are no batches.

    >>> codec = Codec(lambda x: (x, np.full_like(x, -np.inf)), lambda z: z)
    >>> scale, shift = calibrate_codec(codec, [np.array([[0.0]]), np.array([[4.0], [8.0], [4.0]])])
    >>> round(float(scale), 4), float(shift)
    (0.3536, 4.0)
    """
    count, mean, square = 0, np.float64(0), np.float64(0)
    for x in batches:
        batch_count, batch_mean, batch_square = _moments(*codec.encode(x), per_channel)
        # Means and sums of squared deviations, merged without the cancellation of E[z^2] - E[z]^2: Chan, Golub and
        # LeVeque, "Updating Formulae and a Pairwise Algorithm for Computing Sample Variances" (1979), eq. 2.1.
        total = count + batch_count
        square = square + batch_square + (batch_mean - mean) ** 2 * count * batch_count / total
        mean = mean + (batch_mean - mean) * batch_count / total
        count = total
    if not count:
        raise ValueError("calibration needs at least one batch; got none")
    return _scale_and_shift(count, mean, square)


def _moments(mean: Any, logvar: Any, per_channel: bool) -> tuple[int, Any, Any]:
    """The number of entries, their mean, and the expected sum of (z - mean)^2; the last two [] or [C]."""
    mean = np.asarray(mean, np.float64)
    logvar = np.full(mean.shape, -np.inf) if logvar is None else np.asarray(logvar, np.float64)
    if mean.ndim < 2 or 0 in mean.shape or logvar.shape != mean.shape:
        raise ValueError(f"mean and logvar must have one shape [N, ...]; got {mean.shape} and {logvar.shape}")
    if not np.isfinite(mean).all() or np.isnan(logvar).any() or np.isposinf(logvar).any():
        raise ValueError("latents must be finite; got NaN or infinite values")
    axes = tuple(range(mean.ndim - 1)) if per_channel else None
    center = mean.mean(axes)
    spread = np.sum((mean - center) ** 2 + np.exp(logvar), axes)
    return mean.size // center.size, center, spread


def _scale_and_shift(count: int, mean: Any, square: Any) -> tuple[np.ndarray, np.ndarray]:
    std = np.sqrt(square / count)
    if not np.all(std > 0):
        which = f" in channels {np.flatnonzero(std == 0).tolist()}" if np.ndim(std) else ""
        raise ValueError(f"the latents are constant{which}: no scale gives them unit variance")
    return np.asarray(1 / std), np.asarray(mean)
