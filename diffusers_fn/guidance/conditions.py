"""Several conditions at once: composed, or kept away from by a perpendicular negative."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from diffusers_fn._arrays import expand
from diffusers_fn.denoisers import Denoiser, Transform
from diffusers_fn.guidance.predictions import evaluate, inner, like, one_an_example
from diffusers_fn.guidance.scales import Scale, scale_at
from diffusers_fn.levels import Level
from diffusers_fn.parameterizations import Prediction


def composed(scales: Sequence[Scale], null_cond: Any, *, batched: bool = True) -> Transform:
    """Returns the transform that composes K conditions: the guided denoiser's cond is a sequence of K of them.

        out = (1 - sum_k scale_k) out_uncond + sum_k scale_k out_k

    Liu et al., "Compositional Visual Generation with Composable Diffusion Models", 2022,
    https://arxiv.org/abs/2206.01714, eq. 11 (and), and with negative scales eq. 13 (not). A learned variance is the
    first condition's. With the scales 1, 0, ... it is the first condition, with 0, 0, ... none, bit for bit.

    Args:
      scales: K scales, each [] or [B], may be traced, or a function of the level.
      null_cond: as for `classifier_free`, like one of the conditions.
      batched: True evaluates all in one batch of (K + 1) B; False in K + 1 passes.

    Raises:
      ValueError: if there are no scales, or the guided denoiser is called without K conditions.

    >>> from diffusers_fn.parameterizations import epsilon
    >>> from diffusers_fn.denoisers import make_denoiser
    >>> denoise = make_denoiser(lambda params, x, t, cond: x * cond[:, None], None, epsilon)
    >>> guided = composed([2.0, -1.0], null_cond=0)(denoise)
    >>> guided(jnp.ones((1, 1)), Level(0.8, 0.6, 0.0), cond=[jnp.array([5]), jnp.array([3])]).eps
    Array([[7.]], dtype=float32)
    """
    if not len(scales):
        raise ValueError("composed guidance needs at least one scale")

    def transform(denoise: Denoiser) -> Denoiser:
        def guided(x: jax.Array, level: Level, cond: Any = None) -> Prediction:
            if not isinstance(cond, (list, tuple)) or len(cond) != len(scales):
                given = f"{len(cond)} conditions" if isinstance(cond, (list, tuple)) else f"{type(cond).__name__}"
                raise ValueError(f"cond must be a list or tuple of {len(scales)} conditions, one a scale; got {given}")
            conds = [one_an_example(c, x, "composed guidance") for c in cond]
            *ours, none = evaluate(denoise, x, level, [*conds, like(conds[0], null_cond)], batched=batched)
            weights = [expand(scale_at(scale, level), x) for scale in scales]
            x0 = _weighted(weights, [p.x0 for p in ours], none.x0)
            return Prediction(x0, _weighted(weights, [p.eps for p in ours], none.eps), ours[0].var_frac)

        return guided

    return transform


def perpendicular_negative(
    scale: Scale, null_cond: Any, negatives: Sequence[Any], weights: Sequence[Scale], *, batched: bool = True
) -> Transform:
    """Returns the transform that guides to cond and away from K negatives, as far as they do not contradict cond.

        out = (1 - scale) out_uncond + scale (out_cond - sum_k w_k perp_k),
        perp_k = d_k - <d_k, d> / |d|^2 d,    d = out_cond - out_uncond,  d_k = out_k - out_uncond

    Armandpour et al., "Re-imagine the Negative Prompt Algorithm" (Perp-Neg), 2023, https://arxiv.org/abs/2304.04968,
    section 3. With weights 0 it is `classifier_free`. A plain negative prompt is `classifier_free` with the negative as
    null_cond.

    Args:
      scale: [] or [B], may be traced, or a function of the level.
      null_cond: as for `classifier_free`.
      negatives: K conditions, each like null_cond.
      weights: K numbers, each as scale, positive to keep away.
      batched: True evaluates all in one batch of (K + 2) B; False in K + 2 passes.

    Raises:
      ValueError: if there are no negatives or not as many weights, or the guided denoiser is called without cond.

    >>> denoise = lambda x, level, cond=None: Prediction(cond["to"], cond["to"])
    >>> to = lambda a, b: {"to": jnp.array([[a, b]])}
    >>> guided = perpendicular_negative(2.0, to(0.0, 0.0), [to(3.0, 1.0)], [0.5])(denoise)
    >>> guided(jnp.ones((1, 2)), Level(0.8, 0.6, 0.0), to(1.0, 0.0)).eps
    Array([[ 2., -1.]], dtype=float32)
    """
    if not len(negatives) or len(negatives) != len(weights):
        raise ValueError(
            f"negatives and weights must be as many, and at least one; got {len(negatives)} and {len(weights)}"
        )

    def transform(denoise: Denoiser) -> Denoiser:
        def guided(x: jax.Array, level: Level, cond: Any = None) -> Prediction:
            cond = one_an_example(cond, x, "guidance with a negative condition")
            conds = [cond, like(cond, null_cond), *(like(cond, negative) for negative in negatives)]
            positive, none, *others = evaluate(denoise, x, level, conds, batched=batched)
            w, ws = expand(scale_at(scale, level), x), [expand(scale_at(weight, level), x) for weight in weights]
            x0 = _away(w, ws, positive.x0, none.x0, [p.x0 for p in others])
            eps = _away(w, ws, positive.eps, none.eps, [p.eps for p in others])
            return Prediction(x0, eps, positive.var_frac)

        return guided

    return transform


def _weighted(weights: Sequence[jax.Array], outs: Sequence[jax.Array], none: jax.Array) -> jax.Array:
    total = (1 - sum(weights)) * none
    for weight, out in zip(weights, outs):
        total = total + weight * out
    return total


def _away(
    scale: jax.Array, weights: Sequence[jax.Array], out: jax.Array, none: jax.Array, others: Sequence[jax.Array]
) -> jax.Array:
    d = out - none
    square = inner(d, d)
    for weight, other in zip(weights, others):
        d_k = other - none
        along = jnp.where(square > 0, inner(d_k, d) / jnp.where(square > 0, square, 1.0), 0.0)
        out = out - weight * (d_k - along * d)
    return (1 - scale) * none + scale * out
