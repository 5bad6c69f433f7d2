"""Guidance: transforms denoiser -> denoiser that steer samples towards a condition."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from diffusers_fn._arrays import expand
from diffusers_fn.denoisers import Denoiser, Transform
from diffusers_fn.levels import Level
from diffusers_fn.parameterizations import Prediction


def apply_guidance(noise_pred_cond: jax.Array, noise_pred_uncond: jax.Array, guidance_scale: Any) -> jax.Array:
    """Returns uncond + scale * (cond - uncond), written (1 - scale) uncond + scale cond.

    In that form scale 1 is the conditional prediction and scale 0 the unconditional one, bit for bit. Ho &
    Salimans, "Classifier-Free Diffusion Guidance", 2022, https://arxiv.org/abs/2207.12598, eq. 6 with
    scale = 1 + w.

    Args:
      noise_pred_cond: [B, ...].
      noise_pred_uncond: [B, ...].
      guidance_scale: [] or [B].

    >>> apply_guidance(jnp.ones((1, 2)), jnp.zeros((1, 2)), 7.5)
    Array([[7.5, 7.5]], dtype=float32)
    """
    scale = expand(guidance_scale, noise_pred_cond)
    return (1 - scale) * noise_pred_uncond + scale * noise_pred_cond


def classifier_free(
    scale: float | jax.Array | Callable[[Level], Any], null_cond: Any, *, batched: bool = True
) -> Transform:
    """Returns the transform for classifier-free guidance (Ho & Salimans 2022, eq. 6; see `apply_guidance`).

    Guidance is linear, so x0 and eps are guided by the same rule. A learned variance is the conditional one.

    Args:
      scale: [] or [B], may be traced, or a function of the level. A Python number 1 skips the second evaluation.
      null_cond: what the network takes for "no condition": a pytree like cond whose leaves broadcast to it (for
        class labels, the number num_classes).
      batched: True evaluates both in one batch of 2B, as neighbouring pairs (a batch that is split over devices
        stays where it is); False in two passes, at half the peak memory.

    Raises:
      ValueError: if the guided denoiser is called without cond.

    >>> from diffusers_fn.parameterizations import epsilon
    >>> from diffusers_fn.denoisers import make_denoiser
    >>> denoise = make_denoiser(lambda params, x, t, cond: x * cond[:, None], None, epsilon)
    >>> guided = classifier_free(3.0, null_cond=0)(denoise)
    >>> guided(jnp.ones((1, 2)), Level(0.8, 0.6, 0.0), cond=jnp.array([2])).eps
    Array([[6., 6.]], dtype=float32)
    """
    if isinstance(scale, (int, float)) and scale == 1:
        return lambda denoise: denoise

    def transform(denoise: Denoiser) -> Denoiser:
        def guided(x: jax.Array, level: Level, cond: Any = None) -> Prediction:
            if cond is None:
                raise ValueError(
                    "classifier-free guidance needs cond (class labels, ...); got None: use guidance scale 1"
                )
            each = lambda c: jnp.broadcast_to(c, x.shape[:1]) if jnp.ndim(c) == 0 else jnp.asarray(c)  # noqa: E731
            cond = jax.tree.map(each, cond)
            null = jax.tree.map(lambda c, n: jnp.broadcast_to(jnp.asarray(n, c.dtype), c.shape), cond, null_cond)
            both = (
                _pair(denoise, x, level, cond, null) if batched else (denoise(x, level, cond), denoise(x, level, null))
            )
            w = scale(level) if callable(scale) else scale
            conditional, unconditional = both
            return Prediction(
                apply_guidance(conditional.x0, unconditional.x0, w),
                apply_guidance(conditional.eps, unconditional.eps, w),
                conditional.var_frac,
            )

        return guided

    return transform


def linear_guidance_schedule(step: Any, total_steps: Any, start_scale: Any = 1.0, end_scale: Any = 7.5) -> jax.Array:
    """Returns the scale at a step, from start_scale at step 0 to end_scale at step total_steps, linearly.

    >>> float(linear_guidance_schedule(5, 10, 1.0, 7.0))
    4.0
    """
    return start_scale + (end_scale - start_scale) * (jnp.asarray(step) / total_steps)


def cosine_guidance_schedule(step: Any, total_steps: Any, start_scale: Any = 1.0, end_scale: Any = 7.5) -> jax.Array:
    """Returns the scale at a step, from start_scale at step 0 to end_scale at total_steps, along half a cosine.

    >>> float(cosine_guidance_schedule(10, 10, 1.0, 7.0))
    7.0
    """
    remaining = 0.5 * (1.0 + jnp.cos(jnp.pi * jnp.asarray(step) / total_steps))
    return end_scale + (start_scale - end_scale) * remaining


def _pair(denoise: Denoiser, x: jax.Array, level: Level, cond: Any, null: Any) -> tuple[Prediction, Prediction]:
    """Both predictions from one batch of 2B in which every example stands beside its unconditional twin."""
    twice = lambda a: jnp.repeat(a, 2, axis=0)  # noqa: E731
    levels = jax.tree.map(lambda a: twice(a) if jnp.ndim(a) else a, level)
    pairs = jax.tree.map(lambda c, n: jnp.stack([c, n], axis=1).reshape(2 * c.shape[0], *c.shape[1:]), cond, null)
    prediction = denoise(twice(x), levels, pairs)
    return jax.tree.map(lambda a: a[0::2], prediction), jax.tree.map(lambda a: a[1::2], prediction)
