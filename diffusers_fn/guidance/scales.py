"""How strong guidance is: a number, one number an example, or a function of the level."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffusers_fn._arrays import concrete
from diffusers_fn.levels import Level

Scale = float | jax.Array | Callable[[Level], Any]  # [] or [B], may be traced, or a function level -> [] or [B]


def scale_at(scale: Scale, level: Level) -> Any:
    """Returns the number that a scale is at a level, [] or [B].

    >>> scale_at(2.0, Level(0.8, 0.6, 0.0)), scale_at(lambda level: 10 * level.sigma, Level(0.8, 0.6, 0.0))
    (2.0, 6.0)
    """
    return scale(level) if callable(scale) else scale


def linear_guidance_schedule(step: Any, total_steps: Any, start_scale: Any = 1.0, end_scale: Any = 7.5) -> jax.Array:
    """Returns the scale at a step, from start_scale at step 0 to end_scale at step total_steps, linearly.

    `scale_on_plan` makes a function of the level of it.

    >>> float(linear_guidance_schedule(5, 10, 1.0, 7.0))
    4.0
    """
    return start_scale + (end_scale - start_scale) * (jnp.asarray(step) / total_steps)


def cosine_guidance_schedule(step: Any, total_steps: Any, start_scale: Any = 1.0, end_scale: Any = 7.5) -> jax.Array:
    """Returns the scale at a step, from start_scale at step 0 to end_scale at total_steps, along half a cosine.

    `scale_on_plan` makes a function of the level of it.

    >>> float(cosine_guidance_schedule(10, 10, 1.0, 7.0))
    7.0
    """
    remaining = 0.5 * (1.0 + jnp.cos(jnp.pi * jnp.asarray(step) / total_steps))
    return end_scale + (start_scale - end_scale) * remaining


def scale_on_plan(levels: Level, values: Any) -> Callable[[Level], jax.Array]:
    """Returns the function of the level that is values[i] at levels[i]: a schedule over steps as a scale.

    At a level of the plan it is the value itself; between two of them (inner stages of a solver) linear in log SNR,
    outside the plan the nearer end.

    Args:
      levels: Level[N], the plan, noisiest first.
      values: [N], may be traced; for instance of `linear_guidance_schedule(jnp.arange(N), N)`.

    Raises:
      ValueError: unless levels and values are [N].

    >>> levels = Level(np.ones(3), np.array([4.0, 2.0, 1.0]), np.zeros(3))
    >>> scale = scale_on_plan(levels, linear_guidance_schedule(jnp.arange(3), 2, 1.0, 5.0))
    >>> [float(scale(Level(1.0, sigma, 0.0))) for sigma in (4.0, 2.0, 1.0)]
    [1.0, 3.0, 5.0]
    """
    shapes = np.shape(levels.sigma), np.shape(values)
    if len(shapes[0]) != 1 or shapes[0] != shapes[1] or not shapes[0][0]:
        raise ValueError(f"levels must be Level[N] and values [N], a value a level; got {shapes[0]} and {shapes[1]}")

    def scale(level: Level) -> jax.Array:
        at = _log_ratio(level)
        known, found = _log_ratio(levels), jnp.asarray(values, at.dtype)
        gaps = jnp.abs(at[..., None] - known.reshape((1,) * at.ndim + (-1,)))
        # A plan's level seen twice differs by rounding, a few 1e-6 at most; two levels of a plan by more.
        own = jnp.min(gaps, axis=-1) < 1e-5
        return jnp.where(own, found[jnp.argmin(gaps, axis=-1)], jnp.interp(-at, -known, found))

    return scale


def interval(scale: Scale, low: Any, high: Any, *, outside: Any = 1.0) -> Callable[[Level], jax.Array]:
    """Returns the scale that is `scale` where low < sigma / alpha <= high, and `outside` elsewhere.

    Kynkaanniemi et al., "Applying Guidance in a Limited Interval Improves Sample and Distribution Quality in Diffusion
    Models", 2024, https://arxiv.org/abs/2404.07724, eq. 5. One program serves every interval, so the second evaluation
    is made outside it too.

    Args:
      scale: [] or [B], or a function of the level.
      low: [] or [B], may be traced.
      high: as low; jnp.inf for no upper end.
      outside: the scale that guides nothing: 1 for `classifier_free` and `autoguidance`, 0 for `classifier`. No
        scale of `classifier_free_pp` is the conditional prediction; 0 is the unconditional one.

    Raises:
      ValueError: unless 0 <= low < high, where they can be read.

    >>> scale = interval(3.0, 0.3, 2.0)
    >>> [float(scale(Level(1.0, sigma, 0.0))) for sigma in (0.3, 0.4, 2.0, 2.1)]
    [1.0, 3.0, 3.0, 1.0]
    """
    ends = concrete(low), concrete(high)
    if ends[0] is not None and ends[1] is not None and not np.all((ends[0] >= 0) & (ends[0] < ends[1])):
        raise ValueError(f"an interval of sigma / alpha needs 0 <= low < high; got low = {low}, high = {high}")

    def limited(level: Level) -> jax.Array:
        ratio = jnp.asarray(level.sigma) / jnp.asarray(level.alpha)
        return jnp.where((low < ratio) & (ratio <= high), scale_at(scale, level), outside)

    return limited


def _log_ratio(level: Level) -> jax.Array:
    """log(sigma / alpha), with pure noise (alpha = 0) a large number and no infinity."""
    alpha, sigma = jnp.asarray(level.alpha), jnp.asarray(level.sigma)
    return jnp.log(sigma) - jnp.log(jnp.maximum(alpha, 1e-30))
