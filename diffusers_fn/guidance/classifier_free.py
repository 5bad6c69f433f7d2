"""Classifier-free guidance: one network, evaluated with and without its condition."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from diffusers_fn._arrays import check_callable
from diffusers_fn.denoisers import Denoiser, Transform
from diffusers_fn.guidance.predictions import predict_both
from diffusers_fn.guidance.rules import Rule, apply_guidance, check_rule, linear
from diffusers_fn.guidance.scales import Scale, scale_at
from diffusers_fn.levels import Level
from diffusers_fn.parameterizations import Prediction

__all__ = ["classifier_free", "classifier_free_pp"]


def classifier_free(
    scale: Scale, null_cond: Any, *, batched: bool = True, channels: int | None = None, rule: Rule = linear
) -> Transform:
    """Returns the transform of classifier-free guidance.

        out' = (1 - scale) out_uncond + scale out_cond,    with other rules see `Rule`

    Ho & Salimans, "Classifier-Free Diffusion Guidance", 2022, https://arxiv.org/abs/2207.12598, eq. 6 with
    scale = 1 + w. The formula is linear, so x0 and eps both follow it. A learned variance is the conditional one.

    Args:
      scale: [] or [B], may be traced, or a function of the level. The Python number 1 skips the second evaluation.
      null_cond: the network's input for "no condition", a pytree like cond whose leaves broadcast to it (for class
        labels, the number num_classes).
      batched: True evaluates both in one batch of 2B, with the two copies of an example as neighbours (so that a batch
        that is split over devices stays on them); False in two batches of B, at half the peak memory.
      channels: the number of channels (last axis) that are guided, the first ones; the others stay conditional. None
        guides all. DiT's code guides the first 3 (Peebles & Xie 2023, https://arxiv.org/abs/2212.09748).
      rule: combines the two predictions: `linear`, `rescaled(phi)`, `projected(eta, norm_threshold)` or another `Rule`.

    Raises:
      ValueError: if channels is not positive or rule is not a Rule; when called, if cond is None, a cond or scale has
        another batch than x, null_cond does not broadcast to cond, or x has fewer channels.

    >>> from diffusers_fn.parameterizations import epsilon
    >>> from diffusers_fn.denoisers import make_denoiser
    >>> denoise = make_denoiser(lambda params, x, t, cond: x * cond[:, None], None, epsilon)
    >>> guided = classifier_free(3.0, null_cond=0)(denoise)
    >>> guided(jnp.ones((1, 2)), Level(0.8, 0.6, 0.0), cond=jnp.array([2])).eps
    Array([[6., 6.]], dtype=float32)
    """
    if channels is not None and channels < 1:
        raise ValueError(
            f"channels, the number of guided channels, must be at least 1, or None for all; got {channels}"
        )
    check_rule(rule)
    if isinstance(scale, (int, float)) and scale == 1:
        return lambda denoise: denoise

    def transform(denoise: Denoiser) -> Denoiser:
        check_callable("denoise", denoise, "make_denoiser(apply, params, epsilon)")

        def guided(x: jax.Array, level: Level, cond: Any = None) -> Prediction:
            conditional, unconditional = predict_both(denoise, x, level, cond, null_cond, batched=batched)
            w = scale_at(scale, level, x)
            if channels is None:
                return rule(conditional, unconditional, w, level)
            first = _first_channels(x, channels)
            combined = rule(conditional, unconditional, jnp.where(first, w, 1.0), level)
            x0 = jnp.where(first, combined.x0, conditional.x0)
            return Prediction(x0, jnp.where(first, combined.eps, conditional.eps), combined.var_frac)

        return guided

    return transform


def classifier_free_pp(scale: Scale, null_cond: Any, *, batched: bool = True) -> Transform:
    """Returns the transform of CFG++, in which x0 is guided and eps is the unconditional prediction.

        x0' = (1 - scale) x0_uncond + scale x0_cond,    eps' = eps_uncond

    Chung et al., "CFG++: Manifold-constrained Classifier Free Guidance for Diffusion Models", 2024,
    https://arxiv.org/abs/2406.08070, algorithm 2. Use it with solvers whose step is written in x0 and eps: `ddim` with
    any eta. Solvers that use x and x0 alone (`ancestral`, `dpmpp_2m`, ...) give the result of plain
    guidance. Scale 0 is the unconditional prediction, bit for bit; the paper's scales lie between 0 and 1.

    Args:
      scale: [] or [B], may be traced, or a function of the level; the paper's lambda.
      null_cond: as for `classifier_free`.
      batched: as for `classifier_free`.

    Raises:
      ValueError: when called, if cond is None.

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
            conditional, unconditional = predict_both(denoise, x, level, cond, null_cond, batched=batched)
            x0 = apply_guidance(conditional.x0, unconditional.x0, scale_at(scale, level, x))
            return Prediction(x0, unconditional.eps, conditional.var_frac)

        return guided

    return transform


def _first_channels(x: jax.Array, channels: int) -> jax.Array:
    """True for the first `channels` channels of x: bool [1, ..., C]."""
    if channels > x.shape[-1]:
        raise ValueError(f"channels must be at most {x.shape[-1]}, the channels of x; got {channels}")
    return (jnp.arange(x.shape[-1]) < channels).reshape((1,) * (x.ndim - 1) + (-1,))
