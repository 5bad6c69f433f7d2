"""Losses that train a learned variance with the variational bound: L_vlb and L_hybrid.

Nichol & Dhariwal, "Improved Denoising Diffusion Probabilistic Models", 2021, https://arxiv.org/abs/2102.09672,
section 3.1. Each returns one number per example, [B]; the caller takes the mean.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from diffusers_fn._types import ArrayLike
from diffusers_fn.discrete import q_sample
from diffusers_fn.likelihood.vlb import vb_terms_bpd
from diffusers_fn.losses import Error, Weight, denoising_loss, mse
from diffusers_fn.noise_schedules import NoiseSchedule, level_at
from diffusers_fn.parameterizations import Parameterization, epsilon, split_variance
from diffusers_fn.variances import Variance, learned_range

__all__ = ["hybrid_loss", "vlb_loss"]


def vlb_loss(
    schedule: NoiseSchedule,
    out: jax.Array,
    x0: jax.Array,
    eps: jax.Array,
    t: ArrayLike,
    *,
    parameterization: Parameterization = epsilon,
    variance: Variance = learned_range,
    num_levels: ArrayLike | None = 256,
    approximate: bool = False,
) -> jax.Array:
    """Returns T L_t [B] in bits per dimension; its mean over uniform t is L_vlb without the prior term.

    It trains both mean and variance (eq. 4-7 of the paper; `RESCALED_KL` in its code). Its gradient is noisy: sample t
    by `losses.loss_second_moment` (section 3.3).

    Args:
      schedule: the noise schedule, of T timesteps.
      out: [B, ..., 2C] the network's output for x_t, or [B, ..., C] with a fixed variance.
      x0: [B, ..., C] data, in [-1, 1] if they have grey levels.
      eps: [B, ..., C] the noise in x_t.
      t: [B] integers, the timesteps.
      parameterization: that of the first C channels of `out`.
      variance: learned_range or learned; with fixed_small and fixed_large only the mean is trained.
      num_levels, approximate: for L_0, see `vb_terms_bpd`.

    Raises:
      ValueError: as `p_mean_variance`.

    >>> from diffusers_fn.noise_schedules import linear_betas, make_noise_schedule
    >>> schedule, eps = make_noise_schedule(linear_betas(1000)), jnp.ones((1, 2))
    >>> out = jnp.concatenate([eps, -jnp.ones((1, 2))], axis=-1)  # the exact noise, and the variance of the posterior
    >>> vlb_loss(schedule, out, jnp.zeros((1, 2)), eps, jnp.array([500])).round(3)
    Array([0.], dtype=float32)
    """
    x_t = q_sample(schedule, x0, t, eps)
    terms = vb_terms_bpd(
        schedule, out, x0, x_t, t,
        parameterization=parameterization, variance=variance, clip_denoised=False,
        num_levels=num_levels, approximate=approximate,
    )  # fmt: skip
    return schedule.betas.shape[0] * terms.bpd


def hybrid_loss(
    schedule: NoiseSchedule,
    out: jax.Array,
    x0: jax.Array,
    eps: jax.Array,
    t: ArrayLike,
    *,
    parameterization: Parameterization = epsilon,
    variance: Variance = learned_range,
    vlb_weight: ArrayLike = 1e-3,
    error: Error = mse,
    weight: Weight | None = None,
    num_levels: ArrayLike | None = 256,
    approximate: bool = False,
) -> jax.Array:
    """Returns L_simple + vlb_weight L_vlb [B] (eq. 16), in which L_vlb trains the variance only.

    No gradient of L_vlb passes through the mean channels, and L_simple does not contain the variance channels. With the
    paper's weight 0.001 it is `RESCALED_MSE` in its code, mse + T / 1000 L_t.

    Args:
      schedule, x0, eps, t, parameterization, num_levels, approximate: as for `vlb_loss`.
      out: [B, ..., 2C] the network's output for x_t.
      variance: learned_range or learned.
      vlb_weight: [], the paper's lambda.
      error, weight: for L_simple, as for `losses.denoising_loss`.

    Raises:
      ValueError: as `p_mean_variance`, or if the variance is fixed.

    >>> from diffusers_fn.noise_schedules import linear_betas, make_noise_schedule
    >>> schedule, eps = make_noise_schedule(linear_betas(1000)), jnp.ones((1, 2))
    >>> out = jnp.concatenate([eps + 0.5, -jnp.ones((1, 2))], axis=-1)
    >>> hybrid_loss(schedule, out, jnp.zeros((1, 2)), eps, jnp.array([500]), vlb_weight=0.0)
    Array([0.25], dtype=float32)
    """
    if not variance.learned:
        raise ValueError(f"hybrid_loss needs a learned variance: pass learned_range or learned; got {variance.name}")
    mean_out, var_out = split_variance(out, x0)
    if var_out is not None:
        out = jnp.concatenate([jax.lax.stop_gradient(mean_out), var_out], axis=-1)
    simple = denoising_loss(mean_out, x0, eps, level_at(schedule, t), parameterization, error=error, weight=weight)
    vlb = vlb_loss(
        schedule, out, x0, eps, t,
        parameterization=parameterization, variance=variance, num_levels=num_levels, approximate=approximate,
    )  # fmt: skip
    return simple + vlb_weight * vlb
