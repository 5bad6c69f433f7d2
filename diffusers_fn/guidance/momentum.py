"""Adaptive projected guidance with momentum, which the state of the solver carries."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from diffusers_fn._arrays import check_per_example, expand
from diffusers_fn._types import ArrayLike
from diffusers_fn.denoisers import Denoiser
from diffusers_fn.guidance.predictions import predict_both, shift_output
from diffusers_fn.guidance.rules import check_threshold, projected_update
from diffusers_fn.guidance.scales import Scale, scale_at
from diffusers_fn.levels import Level
from diffusers_fn.parameterizations import Parameterization, Prediction, target, x0

__all__ = ["DenoiserWithMemory", "projected_with_momentum"]

DenoiserWithMemory = Callable[..., tuple[Prediction, jax.Array]]  # (x, level, memory=None) -> (prediction, memory)


def projected_with_momentum(
    denoise: Denoiser,
    cond: Any,
    scale: Scale,
    null_cond: Any,
    *,
    momentum: ArrayLike = -0.5,
    eta: ArrayLike = 0.0,
    norm_threshold: ArrayLike | None = None,
    on: Parameterization = x0,
    batched: bool = True,
) -> DenoiserWithMemory:
    """Returns a denoiser for adaptive projected guidance with momentum; it takes and returns a memory d.

        d <- out_cond - out_uncond + momentum d at each evaluation,    then as in `projected`

    Sadat et al., "Eliminating Oversaturation and Artifacts of High Guidance Scales in Diffusion Models", 2024,
    https://arxiv.org/abs/2410.02416, algorithm 1; the paper's momentum is negative. Sample it with
    `solvers.with_memory(solver)`:

        sample(key, projected_with_momentum(denoise, labels, 4.0, null), with_memory(solvers.ddim(levels)), x)

    Args:
      denoise: the denoiser to guide; apply `clip_x0` or other transforms to it first.
      cond: the condition, bound here.
      scale: as for `classifier_free`.
      null_cond: as for `classifier_free`.
      momentum: [] or [B], may be traced; 0 is `projected`.
      eta: as for `projected`.
      norm_threshold: as for `projected`.
      on: as for `projected`.
      batched: as for `classifier_free`.

    Raises:
      ValueError: if norm_threshold (not traced) is not positive; when called, if cond is None.

    >>> import jax.numpy as jnp
    >>> denoise = lambda x, level, cond=None: Prediction(x * cond[:, None], x)
    >>> guided = projected_with_momentum(denoise, jnp.array([2.0]), 3.0, 1.0, momentum=-0.5, eta=1.0)
    >>> _, memory = guided(jnp.ones((1, 1)), Level(0.8, 0.6, 0.0))
    >>> prediction, memory = guided(jnp.ones((1, 1)), Level(0.8, 0.6, 0.0), memory)
    >>> prediction.x0, memory  # 2 + (3 - 1) (1 - 0.5)
    (Array([[3.]], dtype=float32), Array([[0.5]], dtype=float32))
    """
    check_threshold(norm_threshold)

    def guided(x: jax.Array, level: Level, memory: Any = None) -> tuple[Prediction, jax.Array]:
        check_per_example("momentum", momentum, x)
        check_per_example("eta", eta, x)
        conditional, unconditional = predict_both(denoise, x, level, cond, null_cond, batched=batched)
        out, other = (target(on, p.x0, p.eps, level) for p in (conditional, unconditional))
        d = out - other
        if memory is not None:
            d = d + expand(momentum, d) * memory
        update = projected_update(d, out, eta, norm_threshold)
        return shift_output(conditional, (scale_at(scale, level, out) - 1) * update, level, on), d

    return guided
