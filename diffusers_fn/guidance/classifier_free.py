"""Guidance by one network with and without its condition."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from diffusers_fn._arrays import expand
from diffusers_fn.denoisers import Denoiser, Transform
from diffusers_fn.guidance.predictions import evaluate, like, one_an_example
from diffusers_fn.guidance.rules import Rule, apply_guidance, linear
from diffusers_fn.guidance.scales import Scale, scale_at
from diffusers_fn.levels import Level
from diffusers_fn.parameterizations import Prediction


def classifier_free(
    scale: Scale, null_cond: Any, *, batched: bool = True, channels: int | None = None, rule: Rule = linear
) -> Transform:
    """Returns the transform for classifier-free guidance (Ho & Salimans 2022, eq. 6; see `apply_guidance`).

    Guidance is linear, so x0 and eps are guided by the same rule. A learned variance is the conditional one.

    Args:
      scale: [] or [B], may be traced, or a function of the level. A Python number 1 skips the second evaluation.
      null_cond: what the network takes for "no condition": a pytree like cond whose leaves broadcast to it (for
        class labels, the number num_classes).
      batched: True evaluates both in one batch of 2B, as neighbouring pairs (a batch that is split over devices
        stays where it is); False in two passes, at half the peak memory.
      channels: how many of the channels (last axis) are guided, the others staying conditional; None for all. The
        code of DiT guides the first 3 (Peebles & Xie 2023, https://arxiv.org/abs/2212.09748).
      rule: how the two are combined: `linear`, `rescaled(phi)`, `projected(eta, norm_threshold)`.

    Raises:
      ValueError: if channels is not positive, or the guided denoiser is called without cond or with fewer channels.

    >>> from diffusers_fn.parameterizations import epsilon
    >>> from diffusers_fn.denoisers import make_denoiser
    >>> denoise = make_denoiser(lambda params, x, t, cond: x * cond[:, None], None, epsilon)
    >>> guided = classifier_free(3.0, null_cond=0)(denoise)
    >>> guided(jnp.ones((1, 2)), Level(0.8, 0.6, 0.0), cond=jnp.array([2])).eps
    Array([[6., 6.]], dtype=float32)
    """
    if channels is not None and channels < 1:
        raise ValueError(f"channels, how many are guided, must be at least 1, or None for all; got {channels}")
    if isinstance(scale, (int, float)) and scale == 1:
        return lambda denoise: denoise

    def transform(denoise: Denoiser) -> Denoiser:
        def guided(x: jax.Array, level: Level, cond: Any = None) -> Prediction:
            conditional, unconditional = with_and_without(denoise, x, level, cond, null_cond, batched)
            w = expand(scale_at(scale, level), x)
            if channels is None:
                return rule(conditional, unconditional, w, level)
            first = _first_channels(x, channels)
            combined = rule(conditional, unconditional, jnp.where(first, w, 1.0), level)
            x0 = jnp.where(first, combined.x0, conditional.x0)
            return Prediction(x0, jnp.where(first, combined.eps, conditional.eps), combined.var_frac)

        return guided

    return transform


def classifier_free_pp(scale: Scale, null_cond: Any, *, batched: bool = True) -> Transform:
    """Returns the transform for CFG++: x0 is guided, the noise that is added back is the unconditional one.

        x0 = (1 - scale) x0_uncond + scale x0_cond,    eps = eps_uncond

    Chung et al., "CFG++: Manifold-constrained Classifier Free Guidance for Diffusion Models", 2024,
    https://arxiv.org/abs/2406.08070, algorithm 2. For solvers whose hop is written in x0 and eps: `ddim` with any eta.
    Those that read x and x0 alone (`ancestral`, `dpmpp_2m`, ...) make plain guidance of it. Scale 0 is the
    unconditional prediction, bit for bit; with the paper's scales, 0 to 1, DDIM interpolates.

    Args:
      scale: [] or [B], may be traced, or a function of the level; lambda of the paper.
      null_cond: as for `classifier_free`.
      batched: as for `classifier_free`.

    Raises:
      ValueError: if the guided denoiser is called without cond.

    >>> from diffusers_fn.parameterizations import epsilon
    >>> from diffusers_fn.denoisers import make_denoiser
    >>> denoise = make_denoiser(lambda params, x, t, cond: x * cond[:, None], None, epsilon)
    >>> guided = classifier_free_pp(0.5, null_cond=0)(denoise)
    >>> prediction = guided(jnp.ones((1, 1)), Level(0.5, 0.5, 0.0), jnp.array([2]))
    >>> prediction.x0, prediction.eps
    (Array([[1.]], dtype=float32), Array([[0.]], dtype=float32))
    """

    def transform(denoise: Denoiser) -> Denoiser:
        def guided(x: jax.Array, level: Level, cond: Any = None) -> Prediction:
            conditional, unconditional = with_and_without(denoise, x, level, cond, null_cond, batched)
            x0 = apply_guidance(conditional.x0, unconditional.x0, scale_at(scale, level))
            return Prediction(x0, unconditional.eps, conditional.var_frac)

        return guided

    return transform


def with_and_without(
    denoise: Denoiser, x: jax.Array, level: Level, cond: Any, null_cond: Any, batched: bool
) -> tuple[Prediction, Prediction]:
    """Returns the conditional and the unconditional prediction."""
    cond = one_an_example(cond, x, "classifier-free guidance")
    conditional, unconditional = evaluate(denoise, x, level, [cond, like(cond, null_cond)], batched=batched)
    return conditional, unconditional


def _first_channels(x: jax.Array, channels: int) -> jax.Array:
    """Where x has its first so many channels: bool [1, ..., C]."""
    if channels > x.shape[-1]:
        raise ValueError(f"channels must be at most x's channels, {x.shape[-1]}; got {channels}")
    return (jnp.arange(x.shape[-1]) < channels).reshape((1,) * (x.ndim - 1) + (-1,))
