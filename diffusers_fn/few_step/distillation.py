"""Progressive distillation: one step of the student equals two steps of its teacher."""

from __future__ import annotations

from typing import Any

import jax

from diffusers_fn._arrays import expand
from diffusers_fn.denoisers import Denoiser
from diffusers_fn.levels import Level
from diffusers_fn.parameterizations import Prediction

__all__ = ["two_step_target"]


def two_step_target(
    teacher: Denoiser, x: jax.Array, start: Level, middle: Level, end: Level, cond: Any = None
) -> Prediction:
    """Returns the (x0, eps), each [B, ...], with which one DDIM step from start to end equals two steps of the teacher.

        x' = alpha' x0(x) + sigma' eps(x),   x'' = alpha'' x0(x') + sigma'' eps(x')
        x0 = (x'' - sigma'' / sigma x) / (alpha'' - sigma'' / sigma alpha),   eps = (x - alpha x0) / sigma

    Salimans & Ho, "Progressive Distillation for Fast Sampling of Diffusion Models", 2022,
    https://arxiv.org/abs/2202.00512, algorithm 2 and appendix G. Use it in place of the data to train the student:
    `losses.denoising_loss(out, x0, eps, start, parameterization, weight=losses.truncated_snr)`. The student is then the
    teacher of the next round, with half the number of steps. No gradient passes through the result.

    Args:
      teacher: the denoiser to distil.
      x: [B, ...] noisy data at `start`.
      start, middle, end: levels, S = [] or [B], from noisy to clean; `end` may be the clean level (alpha 1, sigma 0).
      cond: the teacher's conditioning.

    >>> import jax.numpy as jnp
    >>> from diffusers_fn.oracles import gaussian
    >>> levels = [Level(0.0, 1.0, 1.0), Level(0.6, 0.8, 0.5), Level(1.0, 0.0, 0.0)]
    >>> x0 = two_step_target(gaussian(0.0, 1.0), jnp.ones((1, 2)), *levels).x0  # 0.8 x, then 0.6 times that
    >>> round(float(x0[0, 0]), 6)
    0.48
    """
    first = teacher(x, start, cond)
    half_way = expand(middle.alpha, x) * first.x0 + expand(middle.sigma, x) * first.eps
    second = teacher(half_way, middle, cond)
    x_end = expand(end.alpha, x) * second.x0 + expand(end.sigma, x) * second.eps
    ratio = end.sigma / start.sigma
    x0 = expand(1.0 / (end.alpha - ratio * start.alpha), x) * (x_end - expand(ratio, x) * x)
    eps = expand(1.0 / start.sigma, x) * (x - expand(start.alpha, x) * x0)
    return jax.tree.map(jax.lax.stop_gradient, Prediction(x0, eps))
