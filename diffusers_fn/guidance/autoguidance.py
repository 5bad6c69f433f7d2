"""Guidance away from a worse version of the same model."""

from __future__ import annotations

from typing import Any

import jax

from diffusers_fn._arrays import check_callable
from diffusers_fn.denoisers import Denoiser, Transform
from diffusers_fn.guidance.rules import Rule, check_rule, linear
from diffusers_fn.guidance.scales import Scale, scale_at
from diffusers_fn.levels import Level
from diffusers_fn.parameterizations import Prediction

__all__ = ["autoguidance"]


def autoguidance(worse: Denoiser, scale: Scale, *, rule: Rule = linear) -> Transform:
    """Returns the transform that guides a model away from a worse version of itself, with or without a condition.

        out' = (1 - scale) out_worse + scale out

    Karras et al., "Guiding a Diffusion Model with a Bad Version of Itself", 2024, https://arxiv.org/abs/2406.02507,
    eq. 6. The worse model is smaller, or trained for fewer steps. If it is the same network without some of its layers,
    this is skip-layer guidance; with perturbed attention it is perturbed-attention guidance.

    Args:
      worse: a denoiser; it is called with the x, level and cond of the guided one.
      scale: [] or [B], may be traced, or a function of the level. The Python number 1 skips the second evaluation.
      rule: combines the two predictions, see `classifier_free`.

    Raises:
      ValueError: if worse is not a function or rule is not a Rule; when called, if a scale has another batch than x.

    >>> import jax.numpy as jnp
    >>> from diffusers_fn.oracles import gaussian
    >>> guided = autoguidance(gaussian(0.0, 2.0), 3.0)(gaussian(0.0, 1.0))
    >>> guided(jnp.ones((1, 1)), Level(0.6, 0.8, 0.0)).x0.round(2)  # 3 * 0.6 - 2 * 2.4 / 2.08
    Array([[-0.51]], dtype=float32)
    """
    check_callable("worse", worse, "make_denoiser(apply, params, epsilon)")
    check_rule(rule)
    if isinstance(scale, (int, float)) and scale == 1:
        return lambda denoise: denoise

    def transform(denoise: Denoiser) -> Denoiser:
        def guided(x: jax.Array, level: Level, cond: Any = None) -> Prediction:
            better = denoise(x, level, cond)
            return rule(better, worse(x, level, cond), scale_at(scale, level, x), level)

        return guided

    return transform
