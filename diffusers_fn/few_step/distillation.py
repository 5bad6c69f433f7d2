"""Progressive distillation: one step of the student is two steps of its teacher."""

from __future__ import annotations

from typing import Any

import jax

from diffusers_fn._arrays import expand
from diffusers_fn.denoisers import Denoiser
from diffusers_fn.levels import Level
from diffusers_fn.parameterizations import Prediction


def two_step_target(
    teacher: Denoiser, x: jax.Array, frm: Level, middle: Level, to: Level, cond: Any = None
) -> Prediction:
    """Returns the (x0, eps) with which one DDIM step from `frm` to `to` ends where two of the teacher do.

        x' = alpha' x0(x) + sigma' eps(x),   x'' = alpha'' x0(x') + sigma'' eps(x')
        x0 = (x'' - sigma'' / sigma x) / (alpha'' - sigma'' / sigma alpha),   eps = (x - alpha x0) / sigma

    Salimans & Ho, "Progressive Distillation for Fast Sampling of Diffusion Models", 2022,
    https://arxiv.org/abs/2202.00512, algorithm 2 and appendix G. The student learns it as it would learn data:
    `losses.denoising_loss(out, x0, eps, frm, parameterization, weight=losses.truncated_snr)`. It can then be the
    teacher of the next one, with half as many steps. No gradient passes through it.

    Args:
      teacher: the denoiser to distil.
      x: [B, ...] noisy data at `frm`.
      frm, middle, to: levels, S = [] or [B], from noisy to clean; `to` may be the clean level (alpha 1, sigma 0).
      cond: handed to the teacher.

    >>> import jax.numpy as jnp
    >>> from diffusers_fn.oracles import gaussian
    >>> levels = [Level(0.0, 1.0, 1.0), Level(0.6, 0.8, 0.5), Level(1.0, 0.0, 0.0)]
    >>> x0 = two_step_target(gaussian(0.0, 1.0), jnp.ones((1, 2)), *levels).x0  # 0.8 of x half-way, then 0.6 of it
    >>> round(float(x0[0, 0]), 6)
    0.48
    """
    first = teacher(x, frm, cond)
    half_way = expand(middle.alpha, x) * first.x0 + expand(middle.sigma, x) * first.eps
    second = teacher(half_way, middle, cond)
    end = expand(to.alpha, x) * second.x0 + expand(to.sigma, x) * second.eps
    ratio = to.sigma / frm.sigma
    x0 = expand(1.0 / (to.alpha - ratio * frm.alpha), x) * (end - expand(ratio, x) * x)
    eps = expand(1.0 / frm.sigma, x) * (x - expand(frm.alpha, x) * x0)
    return jax.tree.map(jax.lax.stop_gradient, Prediction(x0, eps))
