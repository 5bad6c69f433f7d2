"""Guidance by a worse version of the same model."""

from __future__ import annotations

from typing import Any

import jax

from diffusers_fn._arrays import expand
from diffusers_fn.denoisers import Denoiser, Transform
from diffusers_fn.guidance.rules import Rule, linear
from diffusers_fn.guidance.scales import Scale, scale_at
from diffusers_fn.levels import Level
from diffusers_fn.parameterizations import Prediction


def autoguidance(worse: Denoiser, scale: Scale, *, rule: Rule = linear) -> Transform:
    """Returns the transform that guides a model away from a worse version of itself, on the same condition or none.

        out = (1 - scale) out_worse + scale out

    Karras et al., "Guiding a Diffusion Model with a Bad Version of Itself", 2024, https://arxiv.org/abs/2406.02507,
    eq. 6. The worse model is smaller or trained for less time; a model whose layers are skipped makes it skip-layer
    guidance, one whose attention is perturbed, perturbed-attention guidance.

    Args:
      worse: a denoiser, called with the same x, level and cond.
      scale: [] or [B], may be traced, or a function of the level. A Python number 1 skips the second evaluation.
      rule: how the two are combined, see `classifier_free`.

    >>> import jax.numpy as jnp
    >>> from diffusers_fn.oracles import gaussian
    >>> guided = autoguidance(gaussian(0.0, 2.0), 3.0)(gaussian(0.0, 1.0))
    >>> guided(jnp.ones((1, 1)), Level(0.6, 0.8, 0.0)).x0.round(2)  # 3 * 0.6 - 2 * 2.4 / 2.08
    Array([[-0.51]], dtype=float32)
    """
    if isinstance(scale, (int, float)) and scale == 1:
        return lambda denoise: denoise

    def transform(denoise: Denoiser) -> Denoiser:
        def guided(x: jax.Array, level: Level, cond: Any = None) -> Prediction:
            better = denoise(x, level, cond)
            return rule(better, worse(x, level, cond), expand(scale_at(scale, level), x), level)

        return guided

    return transform
