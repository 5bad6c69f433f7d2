"""The scale and the shift that bring latents to mean 0 and variance 1, from data."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from diffusers_fn.latents.codec import Codec


def calibrate(mean: Any, logvar: Any = None, *, per_channel: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Returns (scale, shift) with which (z - shift) scale has mean 0 and variance 1 over the data.

    For z ~ N(mean, exp(logvar)) of a random example and a random entry,

        shift = E[mean],    scale = (Var[mean] + E[exp(logvar)])^(-1/2)

    which needs no draws. Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion Models", 2021,
    https://arxiv.org/abs/2112.10752, appendix G, where the shift is left out: there, pass on (scale, 0).

    Args:
      mean: [N, *latent], or latents themselves, with logvar None. On the host, in float64.
      logvar: [N, *latent] or None.
      per_channel: True: a number for each entry of the last axis; False: one for all.

    Returns:
      float64 arrays [] or [C].

    Raises:
      ValueError: if shapes differ, numbers are not finite, or latents are constant.

    >>> scale, shift = calibrate(np.array([[1.0, 0.0], [5.0, 0.0]]), np.log([[5.0, 4.0], [5.0, 4.0]]), per_channel=True)
    >>> scale.round(4).tolist(), shift.tolist()
    ([0.3333, 0.5], [3.0, 0.0])
    """
    return _line(*_moments(mean, logvar, per_channel))


def calibrate_codec(
    codec: Codec, batches: Iterable[Any], *, per_channel: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Returns `calibrate` of everything that a codec makes of batches of data, one batch in memory at a time.

    Args:
      codec: its encode is called as it is: jit it before.
      batches: arrays [B, ...]; B may vary, and every example counts the same.
      per_channel: as for `calibrate`.

    Raises:
      ValueError: as `calibrate`, and for no batches.

    >>> codec = Codec(lambda x: (x, np.full_like(x, -np.inf)), lambda z: z)
    >>> scale, shift = calibrate_codec(codec, [np.array([[0.0]]), np.array([[4.0], [8.0], [4.0]])])
    >>> round(float(scale), 4), float(shift)
    (0.3536, 4.0)
    """
    count, mean, square = 0, np.float64(0), np.float64(0)
    for x in batches:
        more, its_mean, its_square = _moments(*codec.encode(x), per_channel)
        # Means and sums of squares around them, joined without the cancellation of E[z^2] - E[z]^2: Chan, Golub and
        # LeVeque, "Updating Formulae and a Pairwise Algorithm for Computing Sample Variances" (1979), eq. 2.1.
        total = count + more
        square = square + its_square + (its_mean - mean) ** 2 * count * more / total
        mean = mean + (its_mean - mean) * more / total
        count = total
    if not count:
        raise ValueError("there must be at least one batch to calibrate with")
    return _line(count, mean, square)


def _moments(mean: Any, logvar: Any, per_channel: bool) -> tuple[int, Any, Any]:
    """The number of entries, their mean, and the expected sum of (z - mean)^2; the last two [] or [C]."""
    mean = np.asarray(mean, np.float64)
    logvar = np.full(mean.shape, -np.inf) if logvar is None else np.asarray(logvar, np.float64)
    if mean.ndim < 2 or 0 in mean.shape or logvar.shape != mean.shape:
        raise ValueError(f"mean and logvar must be of one shape [N, ...]; got {mean.shape} and {logvar.shape}")
    if not np.isfinite(mean).all() or np.isnan(logvar).any() or np.isposinf(logvar).any():
        raise ValueError("latents must be finite; got NaN or infinite values")
    axes = tuple(range(mean.ndim - 1)) if per_channel else None
    center = mean.mean(axes)
    spread = np.sum((mean - center) ** 2 + np.exp(logvar), axes)
    return mean.size // center.size, center, spread


def _line(count: int, mean: Any, square: Any) -> tuple[np.ndarray, np.ndarray]:
    std = np.sqrt(square / count)
    if not np.all(std > 0):
        which = f" in channels {np.flatnonzero(std == 0).tolist()}" if np.ndim(std) else ""
        raise ValueError(f"the latents are constant{which}: no scale gives them unit variance")
    return np.asarray(1 / std), np.asarray(mean)
