"""Self-conditioning: the network's previous estimate of x0 as its input, in training and in sampling.

Chen, Zhang & Hinton, "Analog Bits: Generating Discrete Data using Diffusion Models with Self-Conditioning", 2022,
https://arxiv.org/abs/2208.04202, section 3.2. The network is `backbones.SelfConditioned`, or any other that takes the
estimate as a keyword argument.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from diffusers_fn import _random
from diffusers_fn._arrays import expand
from diffusers_fn.denoisers import Denoiser
from diffusers_fn.levels import Level
from diffusers_fn.parameterizations import Prediction

__all__ = ["first_estimate", "self_conditioned"]


def __dir__() -> list[str]:
    return __all__


def self_conditioned(
    make: Callable[[jax.Array], Denoiser],
) -> Callable[..., tuple[Prediction, jax.Array]]:
    """Returns the denoiser that conditions each evaluation on the previous x0, for `solvers.with_memory(solver)`.

    The first evaluation is conditioned on zeros. With guidance or clipping inside `make`, the next evaluation is
    conditioned on the guided or clipped x0 (Chen et al. 2022, https://arxiv.org/abs/2208.04202, algorithm 2):

        guided = lambda x0: classifier_free(2.0, null)(make_denoiser(apply, params, epsilon, x0=x0))
        sample(key, self_conditioned(lambda x0: bind(guided(x0), labels)), solvers.with_memory(solver), x)

    Args:
      make: x0 [B, ...] -> the denoiser whose network is conditioned on x0; its other conditioning is bound.

    Returns:
      (x, level, memory=None) -> (prediction, memory), where memory [B, ...] is the prediction's x0 in x's dtype.

    >>> from diffusers_fn import grids, guidance, sample, solvers
    >>> halfway = lambda x0: lambda x, level, cond=None: Prediction(x0 + (1.0 - x0) / 2, x)  # to 1, by halves
    >>> solver = solvers.with_memory(solvers.ddim(grids.karras(3)))
    >>> sample(None, self_conditioned(halfway), solver, jnp.zeros((1, 1))).x0
    Array([[0.875]], dtype=float32)
    """

    def denoise(x: jax.Array, level: Level, memory: Any = None) -> tuple[Prediction, jax.Array]:
        prediction = make(jnp.zeros_like(x) if memory is None else memory)(x, level)
        return prediction, prediction.x0.astype(x.dtype)

    return denoise


def first_estimate(
    key: jax.Array, predict: Callable[[jax.Array], jax.Array], x: jax.Array, *, share: float = 0.5
) -> jax.Array:
    """Returns the x0 [B, ...] to condition the network on in a training step: its own estimate, or zeros.

    On average the fraction `share` of the examples gets stop_gradient(predict(zeros)), the estimate without
    self-conditioning; the others get zeros (Chen et al. 2022, https://arxiv.org/abs/2208.04202, algorithm 1). The
    estimate is computed for the whole batch: one more network evaluation per step.

    Args:
      key: one key, or [B] keys.
      predict: x0 [B, ...] -> the network's estimate of x0 from x, conditioned on the given x0.
      x: [B, ...] the noisy batch.
      share: in [0, 1], the probability that an example gets the estimate.

    Raises:
      ValueError: unless share lies in [0, 1].

    >>> estimate = first_estimate(jax.random.key(0), lambda x0: x0 + 1.0, jnp.zeros((1000, 1)))
    >>> 450 < float(estimate.sum()) < 550
    True
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share must lie in [0, 1]; got {share}")
    zeros = jnp.zeros_like(x)
    estimate = jax.lax.stop_gradient(predict(zeros)).astype(x.dtype)
    conditioned = _random.draw(jax.random.uniform, key, x.shape[:1], jnp.float32) < share
    return jnp.where(expand(conditioned, x) > 0, estimate, zeros)
