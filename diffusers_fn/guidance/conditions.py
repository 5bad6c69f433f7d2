"""Guidance by several conditions: composed conditions and perpendicular negative conditions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from diffusers_fn.denoisers import Denoiser, Transform
from diffusers_fn.guidance.predictions import broadcast_cond, inner_product, one_per_example, predict_each
from diffusers_fn.guidance.scales import Scale, scale_at
from diffusers_fn.levels import Level
from diffusers_fn.parameterizations import Prediction

__all__ = ["composed", "perpendicular_negative"]


def composed(scales: Sequence[Scale], null_cond: Any, *, batched: bool = True) -> Transform:
    """Returns the transform that composes K conditions; the cond of the guided denoiser is a list or tuple of them.

        out' = (1 - sum_k scale_k) out_uncond + sum_k scale_k out_k

    Liu et al., "Compositional Visual Generation with Composable Diffusion Models", 2022,
    https://arxiv.org/abs/2206.01714, eq. 11 (and), with negative scales eq. 13 (not). A learned variance is that of the
    first condition. Scales (1, 0, ...) give the prediction for the first condition and scales (0, 0, ...) the
    unconditional one, bit for bit.

    Args:
      scales: K scales, each [] or [B], may be traced, or a function of the level.
      null_cond: "no condition", a pytree like one of the conditions whose leaves broadcast to it.
      batched: True evaluates one batch of (K + 1) B; False K + 1 batches of B.

    Raises:
      ValueError: if scales is empty; when called, if cond is not a list or tuple of K conditions.

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
                raise ValueError(
                    f"cond must be a list or tuple of {len(scales)} conditions, one per scale; got {given}"
                )
            conds = [one_per_example(c, x, "composed guidance") for c in cond]
            conds.append(broadcast_cond(null_cond, conds[0]))
            *conditional, uncond = predict_each(denoise, x, level, conds, batched=batched)
            weights = [scale_at(scale, level, x) for scale in scales]
            x0 = _weighted(weights, [p.x0 for p in conditional], uncond.x0)
            eps = _weighted(weights, [p.eps for p in conditional], uncond.eps)
            return Prediction(x0, eps, conditional[0].var_frac)

        return guided

    return transform


def perpendicular_negative(
    scale: Scale, null_cond: Any, negatives: Sequence[Any], weights: Sequence[Scale], *, batched: bool = True
) -> Transform:
    """Returns the transform that guides towards cond, and away from the parts of K negatives that do not oppose cond.

        out' = (1 - scale) out_uncond + scale (out_cond - sum_k w_k perp_k),
        perp_k = d_k - <d_k, d> / |d|^2 d,    d = out_cond - out_uncond,  d_k = out_k - out_uncond

    Armandpour et al., "Re-imagine the Negative Prompt Algorithm" (Perp-Neg), 2023, https://arxiv.org/abs/2304.04968,
    section 3. With weights 0 it is `classifier_free`. For a plain negative prompt use `classifier_free` with the
    negative as null_cond.

    Args:
      scale: [] or [B], may be traced, or a function of the level.
      null_cond: as for `classifier_free`.
      negatives: K conditions, each a pytree like null_cond.
      weights: K scales, each as scale; positive to guide away.
      batched: True evaluates one batch of (K + 2) B; False K + 2 batches of B.

    Raises:
      ValueError: if negatives is empty or has another length than weights; when called, if cond is None.

    >>> denoise = lambda x, level, cond=None: Prediction(cond["to"], cond["to"])
    >>> to = lambda a, b: {"to": jnp.array([[a, b]])}
    >>> guided = perpendicular_negative(2.0, to(0.0, 0.0), [to(3.0, 1.0)], [0.5])(denoise)
    >>> guided(jnp.ones((1, 2)), Level(0.8, 0.6, 0.0), to(1.0, 0.0)).eps
    Array([[ 2., -1.]], dtype=float32)
    """
    if not len(negatives) or len(negatives) != len(weights):
        raise ValueError(
            f"there must be at least one negative, and one weight per negative; got {len(negatives)} and {len(weights)}"
        )

    def transform(denoise: Denoiser) -> Denoiser:
        def guided(x: jax.Array, level: Level, cond: Any = None) -> Prediction:
            cond = one_per_example(cond, x, "guidance with a negative condition")
            conds = [cond, *(broadcast_cond(other, cond) for other in (null_cond, *negatives))]
            positive, uncond, *others = predict_each(denoise, x, level, conds, batched=batched)
            w, ws = scale_at(scale, level, x), [scale_at(weight, level, x) for weight in weights]
            x0 = _perpendicular(w, ws, positive.x0, uncond.x0, [p.x0 for p in others])
            eps = _perpendicular(w, ws, positive.eps, uncond.eps, [p.eps for p in others])
            return Prediction(x0, eps, positive.var_frac)

        return guided

    return transform


def _weighted(weights: Sequence[jax.Array], outs: Sequence[jax.Array], uncond: jax.Array) -> jax.Array:
    total = (1 - sum(weights)) * uncond
    for weight, out in zip(weights, outs):
        total = total + weight * out
    return total


def _perpendicular(
    scale: jax.Array, weights: Sequence[jax.Array], out: jax.Array, uncond: jax.Array, others: Sequence[jax.Array]
) -> jax.Array:
    d = out - uncond
    square = inner_product(d, d)
    for weight, other in zip(weights, others):
        d_k = other - uncond
        along = jnp.where(square > 0, inner_product(d_k, d) / jnp.where(square > 0, square, 1.0), 0.0)
        out = out - weight * (d_k - along * d)
    return (1 - scale) * uncond + scale * out
