"""The reverse step of DDPM on a noise schedule, from a network's output.

B is the batch size, x [B, ...], t [] or [B] integers in [0, T-1]. Results are at least float32. Ho et al., "Denoising
Diffusion Probabilistic Models", 2020, https://arxiv.org/abs/2006.11239.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from diffusers_fn import _random
from diffusers_fn._arrays import check_per_example, expand
from diffusers_fn._types import ArrayLike
from diffusers_fn.discrete.forward import q_posterior_mean_variance
from diffusers_fn.noise_schedules import NoiseSchedule, level_at
from diffusers_fn.parameterizations import Parameterization, epsilon, split_variance, to_prediction
from diffusers_fn.variances import Variance, fixed_small

__all__ = [
    "MeanVariance",
    "denoise_step",
    "p_mean_variance",
    "p_sample",
]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class MeanVariance:
    """The model's Gaussian p(x_{t-1} | x_t).

    Attributes:
      mean: [B, ...].
      variance: [B, ...].
      log_variance: [B, ...].
      pred_x_start: [B, ...] the predicted x_0 from which the mean is computed.
    """

    mean: jax.Array
    variance: jax.Array
    log_variance: jax.Array
    pred_x_start: jax.Array


def p_mean_variance(
    schedule: NoiseSchedule,
    model_output: jax.Array,
    x_t: jax.Array,
    t: ArrayLike,
    *,
    parameterization: Parameterization = epsilon,
    variance: Variance = fixed_small,
    clip_denoised: bool = True,
) -> MeanVariance:
    """Returns the model's p(x_{t-1} | x_t), with the posterior mean at the predicted x_0.

    Ho et al. 2020, https://arxiv.org/abs/2006.11239, eq. 1 and 7.

    Args:
      schedule: the noise schedule.
      model_output: [B, ..., C], or [B, ..., 2C] with a learned variance.
      x_t: [B, ..., C] noisy data.
      t: [] or [B] integers.
      parameterization: what the network's output means.
      variance: fixed_small, fixed_large, learned or learned_range.
      clip_denoised: whether to clip the predicted x_0 to [-1, 1].

    Raises:
      ValueError: if shapes or dtypes do not fit, t is out of range, or the output has variance channels although
        `variance` is fixed (or none although it is learned).

    >>> from diffusers_fn.noise_schedules import linear_betas, make_noise_schedule
    >>> schedule = make_noise_schedule(linear_betas(1000))
    >>> p_mean_variance(schedule, jnp.zeros((1, 2)), jnp.ones((1, 2)), jnp.array([0])).pred_x_start
    Array([[1., 1.]], dtype=float32)
    """
    check_per_example("t", t, x_t)
    out, var_out = split_variance(model_output, x_t)
    pred_x_start = to_prediction(parameterization, out, x_t, level_at(schedule, t)).x0
    if clip_denoised:
        pred_x_start = jnp.clip(pred_x_start, -1.0, 1.0)
    mean, _, _ = q_posterior_mean_variance(schedule, pred_x_start, x_t.astype(pred_x_start.dtype), t)
    if variance.learned != (var_out is not None):
        raise ValueError(
            f"variance={variance.name} needs {'twice as many channels as' if variance.learned else 'the channels of'} "
            f"x_t ({x_t.shape[-1]}) in the network's output; got {model_output.shape[-1]}: pass another variance "
            "(fixed_small, fixed_large, learned, learned_range)"
        )
    var, log_var = variance.on_table(schedule, t, var_out)
    full = lambda value: jnp.broadcast_to(expand(value, mean), mean.shape)  # noqa: E731
    return MeanVariance(mean, full(var), full(log_var), pred_x_start)


def p_sample(
    key: jax.Array,
    schedule: NoiseSchedule,
    model_output: jax.Array,
    x_t: jax.Array,
    t: ArrayLike,
    *,
    parameterization: Parameterization = epsilon,
    variance: Variance = fixed_small,
    clip_denoised: bool = True,
) -> jax.Array:
    """Returns x_{t-1} [B, ...], a draw from the model's p(x_{t-1} | x_t); no noise is added where t == 0.

    Ho et al. 2020, https://arxiv.org/abs/2006.11239, algorithm 2.

    Args:
      key: one key, or [B] keys, with which the noise of an example depends on its own key alone.
      schedule, model_output, x_t, t, parameterization, variance, clip_denoised: as for `p_mean_variance`.

    Raises:
      ValueError: as `p_mean_variance`.

    >>> from diffusers_fn.noise_schedules import linear_betas, make_noise_schedule
    >>> schedule = make_noise_schedule(linear_betas(1000))
    >>> p_sample(jax.random.key(0), schedule, jnp.zeros((1, 2)), jnp.full((1, 2), 0.5), jnp.array([0])).round(4)
    Array([[0.5, 0.5]], dtype=float32)
    """
    p = p_mean_variance(
        schedule, model_output, x_t, t,
        parameterization=parameterization, variance=variance, clip_denoised=clip_denoised,
    )  # fmt: skip
    nonzero = expand(jnp.asarray(t) != 0, p.mean)
    return p.mean + nonzero * jnp.exp(0.5 * p.log_variance) * _random.normal(key, p.mean)


denoise_step = p_sample
