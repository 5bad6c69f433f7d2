"""Training a network's variance by the variational bound: L_vlb and L_hybrid.

Nichol & Dhariwal, "Improved Denoising Diffusion Probabilistic Models", 2021, https://arxiv.org/abs/2102.09672, 3.1.
One number an example, [B]; the caller takes the mean.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from diffusers_fn.discrete import q_sample
from diffusers_fn.likelihood.vlb import vb_terms_bpd
from diffusers_fn.losses import Error, Weight, denoising_loss, mse
from diffusers_fn.noise_schedules import NoiseSchedule, level_at
from diffusers_fn.parameterizations import Parameterization, epsilon, split_variance
from diffusers_fn.variances import Variance, learned_range


def vlb_loss(
    schedule: NoiseSchedule,
    out: jax.Array,
    x0: jax.Array,
    eps: jax.Array,
    t: Any,
    *,
    parameterization: Parameterization = epsilon,
    variance: Variance = learned_range,
    num_levels: Any = 256,
    approximate: bool = False,
) -> jax.Array:
    """Returns T L_t [B], whose mean over even t is L_vlb without its prior term, in bits per dimension.

    Mean and variance are both trained (eq. 4-7 of the paper; `RESCALED_KL` of its code, which also works on plain L_t).
    Its gradient is noisy: draw t by `losses.loss_second_moment` (section 3.3).

    Args:
      schedule: a table of T timesteps.
      out: [B, ..., 2C] the network's output for x_t, or [B, ..., C] with a fixed variance.
      x0: [B, ..., C] data in [-1, 1].
      eps: [B, ..., C] the noise in x_t.
      t: [B] integers.
      parameterization: what `out` means.
      variance: learned_range or learned; fixed_small and fixed_large train the mean alone.
      num_levels, approximate: of L_0, see `discretized_gaussian_log_likelihood`.

    Raises:
      ValueError: as `p_mean_variance`.

    >>> from diffusers_fn.noise_schedules import linear_betas, make_noise_schedule
    >>> schedule, eps = make_noise_schedule(linear_betas(1000)), jnp.ones((1, 2))
    >>> out = jnp.concatenate([eps, -jnp.ones((1, 2))], axis=-1)  # the noise, and the posterior's own variance
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
    t: Any,
    *,
    parameterization: Parameterization = epsilon,
    variance: Variance = learned_range,
    vlb_weight: Any = 1e-3,
    error: Error = mse,
    weight: Weight | None = None,
    num_levels: Any = 256,
    approximate: bool = False,
) -> jax.Array:
    """Returns L_simple + vlb_weight L_vlb [B] (eq. 16), where L_vlb trains the variance alone.

    The mean part of the output enters L_vlb without a gradient, the variance part does not enter L_simple. With the
    paper's weight 0.001 it is `RESCALED_MSE` of its code, mse + T / 1000 L_t.

    Args:
      schedule, x0, eps, t, parameterization, num_levels, approximate: as for `vlb_loss`.
      out: [B, ..., 2C] the network's output for x_t.
      variance: learned_range or learned.
      vlb_weight: [], lambda of the paper.
      error, weight: of L_simple, as for `losses.denoising_loss`.

    Raises:
      ValueError: as `p_mean_variance`, or if the variance is not a learned one.

    >>> from diffusers_fn.noise_schedules import linear_betas, make_noise_schedule
    >>> schedule, eps = make_noise_schedule(linear_betas(1000)), jnp.ones((1, 2))
    >>> out = jnp.concatenate([eps + 0.5, -jnp.ones((1, 2))], axis=-1)
    >>> hybrid_loss(schedule, out, jnp.zeros((1, 2)), eps, jnp.array([500]), vlb_weight=0.0)
    Array([0.25], dtype=float32)
    """
    if not variance.learned:
        raise ValueError(f"hybrid_loss trains a variance: pass learned_range or learned; got {variance.name}")
    mean_out, var_out = split_variance(out, x0)
    if var_out is not None:
        out = jnp.concatenate([jax.lax.stop_gradient(mean_out), var_out], axis=-1)
    simple = denoising_loss(mean_out, x0, eps, level_at(schedule, t), parameterization, error=error, weight=weight)
    vlb = vlb_loss(
        schedule, out, x0, eps, t,
        parameterization=parameterization, variance=variance, num_levels=num_levels, approximate=approximate,
    )  # fmt: skip
    return simple + vlb_weight * vlb
