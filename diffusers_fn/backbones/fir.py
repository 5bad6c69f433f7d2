"""Halving and doubling images with a low-pass filter, as NCSN++ does.

Karras et al., "Analyzing and Improving the Image Quality of StyleGAN" (2020), https://arxiv.org/abs/1912.04958,
appendix B; Song et al., "Score-Based Generative Modeling through Stochastic Differential Equations" (2021),
https://arxiv.org/abs/2011.13456, appendix H.2. A filter is a sequence of numbers f, which acts along both axes and is
divided by its sum; pixels outside the image are zero.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

__all__ = ["fir_down", "fir_up"]


def fir_down(x: jax.Array, taps: Sequence[float] = (1, 3, 3, 1), *, padding: int | None = None) -> jax.Array:
    """Returns filtered images with every second pixel kept: [B, H, W, C] -> [B, H / 2, W / 2, C].

    (1, 1) is the mean of 2x2 squares, (1, 3, 3, 1) reaches one pixel further. `padding` zeros are added on every side:
    by default (len(taps) - 1) // 2, which halves sizes exactly.

    >>> fir_down(jnp.arange(4.0).reshape(1, 2, 2, 1), (1, 1)).item()
    1.5
    """
    kernel = _kernel(taps)
    pad = (len(taps) - 1) // 2 if padding is None else padding
    return _depthwise(x, kernel, stride=2, spread=1, padding=pad)


def fir_up(x: jax.Array, taps: Sequence[float] = (1, 3, 3, 1)) -> jax.Array:
    """Returns images of twice the size: zeros between the pixels, then the filter: [B, H, W, C] -> [B, 2 H, 2 W, C].

    Four times the transpose of `fir_down`: (1, 1) repeats every pixel, (1, 3, 3, 1) interpolates linearly.

    >>> fir_up(jnp.arange(2.0).reshape(1, 1, 2, 1), (1, 1))[0, :, :, 0].tolist()
    [[0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 1.0, 1.0]]
    """
    kernel = 4 * _kernel(taps)[::-1, ::-1]
    return _depthwise(x, kernel, stride=1, spread=2, padding=len(taps) - 1 - (len(taps) - 1) // 2)


def _kernel(taps: Sequence[float]) -> np.ndarray:
    """Returns the normalised filter of both axes [K, K]; ValueError unless K is even, so that sizes halve exactly."""
    if len(taps) < 2 or len(taps) % 2 or sum(taps) == 0:
        raise ValueError(f"a filter must have an even number of taps and a sum other than 0; got {tuple(taps)}")
    one = np.asarray(taps, np.float64) / np.sum(taps)
    return one[:, None] * one[None, :]


def _depthwise(x: jax.Array, kernel: np.ndarray, *, stride: int, spread: int, padding: int) -> jax.Array:
    """Returns the correlation of every channel with one kernel; `spread` - 1 zeros go between the pixels first."""
    channels = x.shape[-1]
    weights = jnp.broadcast_to(jnp.asarray(kernel, x.dtype)[:, :, None, None], (*kernel.shape, 1, channels))
    return jax.lax.conv_general_dilated(
        x,
        weights,
        (stride, stride),
        ((padding, padding), (padding, padding)),
        lhs_dilation=(spread, spread),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=channels,
    )
