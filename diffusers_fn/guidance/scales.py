"""Guidance scales: a number, an array [B] with one number per example, or a function of the level."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffusers_fn._arrays import check_per_example, concrete, entries, expand, with_auto_axes
from diffusers_fn._types import Array, ArrayLike
from diffusers_fn.levels import Level

__all__ = [
    "Scale",
    "cosine_guidance_schedule",
    "interval",
    "linear_guidance_schedule",
    "scale_at",
    "scale_on_plan",
]

Scale = ArrayLike | Callable[[Level], ArrayLike]  # [] or [B], may be traced, or a function level -> [] or [B]


def scale_at(scale: Scale, level: Level, x: jax.Array) -> jax.Array:
    """Returns the value of a scale at a level, [] or [B, 1, ..., 1], to multiply arrays like x [B, ...].

    Raises:
      ValueError: if the value is not [] or [B].

    >>> float(scale_at(2.0, Level(0.8, 0.6, 0.0), jnp.ones((2, 3))))
    2.0
    >>> scale_at(lambda level: 10 * level.sigma, Level(1.0, jnp.array([0.1, 0.6]), 0.0), jnp.ones((2, 3)))
    Array([[1.],
           [6.]], dtype=float32)
    """
    value = _value(scale, level)
    check_per_example("the guidance scale", value, x)
    return expand(value, x)


def linear_guidance_schedule(
    step: ArrayLike, total_steps: ArrayLike, start_scale: ArrayLike = 1.0, end_scale: ArrayLike = 7.5
) -> jax.Array:
    """Returns the scale at a step: start_scale at step 0, end_scale at step total_steps, linear between them.

    `scale_on_plan` turns such values into a function of the level.

    Args:
      step: integers of any shape, the shape of the result.
      total_steps: a number.
      start_scale: a number.
      end_scale: a number.

    >>> float(linear_guidance_schedule(5, 10, 1.0, 7.0))
    4.0
    """
    return jnp.asarray(start_scale + (end_scale - start_scale) * (jnp.asarray(step) / total_steps))


def cosine_guidance_schedule(
    step: ArrayLike, total_steps: ArrayLike, start_scale: ArrayLike = 1.0, end_scale: ArrayLike = 7.5
) -> jax.Array:
    """Returns the scale at a step: start_scale at step 0, end_scale at step total_steps, half a cosine between them.

    Args: as for `linear_guidance_schedule`.

    >>> float(cosine_guidance_schedule(10, 10, 1.0, 7.0))
    7.0
    """
    remaining = 0.5 * (1.0 + jnp.cos(jnp.pi * jnp.asarray(step) / total_steps))
    return jnp.asarray(end_scale + (start_scale - end_scale) * remaining)


def scale_on_plan(levels: Level, values: Array | Sequence[float]) -> Callable[[Level], jax.Array]:
    """Returns the scale, a function of the level, whose value is values[i] at levels[i].

    Between two levels (inner stages of a solver) it is linear in log SNR; outside the plan it is constant.

    Args:
      levels: Level[N], the plan of the sampler, noisiest first.
      values: [N], may be traced; for example `linear_guidance_schedule(jnp.arange(N), N)`.

    Raises:
      ValueError: unless levels and values are [N].

    >>> levels = Level(np.ones(3), np.array([4.0, 2.0, 1.0]), np.zeros(3))
    >>> scale = scale_on_plan(levels, linear_guidance_schedule(jnp.arange(3), 2, 1.0, 5.0))
    >>> [float(scale(Level(1.0, sigma, 0.0))) for sigma in (4.0, 2.0, 1.0)]
    [1.0, 3.0, 5.0]
    """
    shapes = np.shape(levels.sigma), np.shape(values)
    if len(shapes[0]) != 1 or shapes[0] != shapes[1] or not shapes[0][0]:
        raise ValueError(
            f"levels must be Level[N] and values [N], one value per level; got {shapes[0]} and {shapes[1]}"
        )

    def scale(level: Level) -> jax.Array:
        at = _log_ratio(level)
        nodes, node_values = _log_ratio(levels), jnp.asarray(values, at.dtype)
        gaps = jnp.abs(at[..., None] - nodes.reshape((1,) * at.ndim + (-1,)))
        between = with_auto_axes(jnp.interp, -at, -nodes, node_values)
        # Rounding moves a level of the plan by a few 1e-6 at most; two levels of a plan are further apart.
        at_node = jnp.min(gaps, axis=-1) < 1e-5
        return jnp.where(at_node, entries(node_values, jnp.argmin(gaps, axis=-1)), between)

    return scale


def interval(
    scale: Scale, low: ArrayLike, high: ArrayLike, *, outside: ArrayLike = 1.0
) -> Callable[[Level], jax.Array]:
    """Returns the scale, a function of the level, that is `scale` if low < sigma / alpha <= high, else `outside`.

    Kynkaanniemi et al., "Applying Guidance in a Limited Interval Improves Sample and Distribution Quality in Diffusion
    Models", 2024, https://arxiv.org/abs/2404.07724, eq. 5. A compiled sampler serves every interval: the network is
    evaluated twice outside the interval too.

    Args:
      scale: [] or [B], or a function of the level.
      low: [] or [B], may be traced.
      high: as low; jnp.inf for no upper end.
      outside: the neutral scale: 1 for `classifier_free` and `autoguidance`, 0 for `classifier`. `classifier_free_pp`
        has no scale that returns the conditional prediction; 0 returns the unconditional one.

    Raises:
      ValueError: unless 0 <= low < high (not checked if one is traced).

    >>> scale = interval(3.0, 0.3, 2.0)
    >>> [float(scale(Level(1.0, sigma, 0.0))) for sigma in (0.3, 0.4, 2.0, 2.1)]
    [1.0, 3.0, 3.0, 1.0]
    """
    ends = concrete(low), concrete(high)
    if ends[0] is not None and ends[1] is not None and not np.all((ends[0] >= 0) & (ends[0] < ends[1])):
        raise ValueError(f"the interval of sigma / alpha must satisfy 0 <= low < high; got low = {low}, high = {high}")

    def limited(level: Level) -> jax.Array:
        ratio = jnp.asarray(level.sigma) / jnp.asarray(level.alpha)
        return jnp.where((low < ratio) & (ratio <= high), _value(scale, level), outside)

    return limited


def _value(scale: Scale, level: Level) -> Any:
    if callable(scale):
        try:
            value = scale(level)
        except TypeError as error:
            if "positional argument" not in str(error):
                raise
            raise ValueError(
                f"a guidance scale is a number, an array [B] or a function of the level alone: {error}"
            ) from error
    else:
        value = scale
    if isinstance(value, str):
        raise ValueError(f"a guidance scale must be a number, an array [B] or a function of the level; got {value!r}")
    return value


def _log_ratio(level: Level) -> jax.Array:
    """log(sigma / alpha), a large finite number at pure noise (alpha = 0)."""
    alpha, sigma = jnp.asarray(level.alpha), jnp.asarray(level.sigma)
    return jnp.log(sigma) - jnp.log(jnp.maximum(alpha, 1e-30))
