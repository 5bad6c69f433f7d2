"""The forward process q of DDPM on a noise schedule, and its posterior.

B is the batch size, x [B, ...], t [] or [B] integers in [0, T-1]. Results are at least float32. Ho et al., "Denoising
Diffusion Probabilistic Models", 2020, https://arxiv.org/abs/2006.11239.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from diffusers_fn import _random
from diffusers_fn._arrays import check_data, check_per_example, expand, working_dtype
from diffusers_fn._types import ArrayLike
from diffusers_fn.levels import add_noise
from diffusers_fn.noise_schedules import NoiseSchedule, level_at, table_entry

__all__ = [
    "forward_diffusion",
    "predict_noise_from_start",
    "predict_start_from_noise",
    "q_mean_variance",
    "q_posterior_mean_variance",
    "q_sample",
]


def q_sample(schedule: NoiseSchedule, x_start: jax.Array, t: ArrayLike, noise: jax.Array) -> jax.Array:
    """Returns x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) noise, shape [B, ...]; at t = -1 it is x_start.

    Ho et al. 2020, https://arxiv.org/abs/2006.11239, eq. 4.

    Raises:
      ValueError: if shapes differ, a dtype is not floating or t (not traced) is outside [-1, T-1].

    >>> from diffusers_fn.noise_schedules import linear_betas, make_noise_schedule
    >>> schedule = make_noise_schedule(linear_betas(1000))
    >>> q_sample(schedule, jnp.ones((1, 2)), jnp.array([999]), jnp.zeros((1, 2)))
    Array([[0.00635282, 0.00635282]], dtype=float32)
    """
    check_per_example("t", t, x_start)
    return add_noise(x_start, noise, level_at(schedule, t))


def q_mean_variance(
    schedule: NoiseSchedule, x_start: jax.Array, t: ArrayLike
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns (mean, variance, log_variance) of q(x_t | x_0): mean [B, ...], the others broadcast with it.

    Ho et al. 2020, https://arxiv.org/abs/2006.11239, eq. 4.

    Raises:
      ValueError: if shapes differ, a dtype is not floating or t (not traced) is outside [0, T-1].

    >>> from diffusers_fn.noise_schedules import linear_betas, make_noise_schedule
    >>> schedule = make_noise_schedule(linear_betas(1000))
    >>> mean, variance, _ = q_mean_variance(schedule, jnp.ones((1, 2)), jnp.array([0]))
    >>> variance.shape, round(float(variance[0, 0]), 6)
    ((1, 1), 0.0001)
    """
    at = _entries(schedule, t, x_start)
    mean = at("sqrt_alphas_cumprod") * x_start
    return mean, at("sqrt_one_minus_alphas_cumprod") ** 2, at("log_one_minus_alphas_cumprod")


def predict_start_from_noise(schedule: NoiseSchedule, x_t: jax.Array, t: ArrayLike, noise: jax.Array) -> jax.Array:
    """Returns x_0 = x_t / sqrt(alpha_bar_t) - sqrt(1 / alpha_bar_t - 1) noise, shape [B, ...].

    Ho et al. 2020, https://arxiv.org/abs/2006.11239, eq. 4, solved for x_0.

    Raises:
      ValueError: if shapes differ, a dtype is not floating or t (not traced) is outside [0, T-1].

    >>> from diffusers_fn.noise_schedules import linear_betas, make_noise_schedule
    >>> schedule = make_noise_schedule(linear_betas(1000))
    >>> x_t = q_sample(schedule, jnp.ones((1, 2)), jnp.array([10]), jnp.ones((1, 2)))
    >>> predict_start_from_noise(schedule, x_t, jnp.array([10]), jnp.ones((1, 2))).round(5)
    Array([[1., 1.]], dtype=float32)
    """
    check_data(x_t=x_t, noise=noise)
    at = _entries(schedule, t, x_t)
    return at("sqrt_recip_alphas_cumprod") * x_t - at("sqrt_recipm1_alphas_cumprod") * noise


def predict_noise_from_start(schedule: NoiseSchedule, x_t: jax.Array, t: ArrayLike, x_start: jax.Array) -> jax.Array:
    """Returns the noise in x_t given x_0, shape [B, ...].

    Ho et al. 2020, https://arxiv.org/abs/2006.11239, eq. 4, solved for the noise.

    Raises:
      ValueError: if shapes differ, a dtype is not floating or t (not traced) is outside [0, T-1].

    >>> from diffusers_fn.noise_schedules import linear_betas, make_noise_schedule
    >>> schedule = make_noise_schedule(linear_betas(1000))
    >>> predict_noise_from_start(schedule, jnp.ones((1, 2)), jnp.array([999]), jnp.zeros((1, 2))).round(4)
    Array([[1., 1.]], dtype=float32)
    """
    check_data(x_t=x_t, x_start=x_start)
    at = _entries(schedule, t, x_t)
    return (x_t - at("sqrt_alphas_cumprod") * x_start) / at("sqrt_one_minus_alphas_cumprod")


def q_posterior_mean_variance(
    schedule: NoiseSchedule, x_start: jax.Array, x_t: jax.Array, t: ArrayLike
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns (mean, variance, log_variance_clipped) of q(x_{t-1} | x_t, x_0): mean [B, ...], the others broadcast.

    Ho et al. 2020, https://arxiv.org/abs/2006.11239, eq. 6-7. At t = 0 the variance is 0, and its clipped log is
    the one of t = 1.

    Raises:
      ValueError: if shapes differ, a dtype is not floating or t (not traced) is outside [0, T-1].

    >>> from diffusers_fn.noise_schedules import linear_betas, make_noise_schedule
    >>> schedule = make_noise_schedule(linear_betas(1000))
    >>> mean, variance, log_variance = q_posterior_mean_variance(
    ...     schedule, jnp.ones((1, 2)), jnp.zeros((1, 2)), jnp.array([0]))
    >>> mean, float(variance[0, 0]), round(float(log_variance[0, 0]), 4)
    (Array([[1., 1.]], dtype=float32), 0.0, -9.8167)
    """
    check_data(x_start=x_start, x_t=x_t)
    at = _entries(schedule, t, x_t)
    mean = at("posterior_mean_coef1") * x_start + at("posterior_mean_coef2") * x_t
    return mean, at("posterior_variance"), at("posterior_log_variance_clipped")


def forward_diffusion(
    key: jax.Array, schedule: NoiseSchedule, x: jax.Array, t: ArrayLike
) -> tuple[jax.Array, jax.Array]:
    """Returns (noisy_x, noise), [B, ...] each: a draw from q(x_t | x_0) and the noise in it.

    Args:
      key: one key, or [B] keys.
      schedule: the noise schedule.
      x: [B, ...] clean data.
      t: [] or [B] integers in [-1, T-1].

    Raises:
      ValueError: as `q_sample`, or if there are neither one nor B keys.

    >>> from diffusers_fn.noise_schedules import linear_betas, make_noise_schedule
    >>> schedule = make_noise_schedule(linear_betas(1000))
    >>> noisy_x, noise = forward_diffusion(jax.random.key(0), schedule, jnp.ones((4, 2)), jnp.array([0, 1, 2, 3]))
    >>> noisy_x.shape == noise.shape == (4, 2)
    True
    """
    check_data(x=x)
    x = jnp.asarray(x, working_dtype(x))
    noise = _random.normal(key, x)
    return q_sample(schedule, x, t, noise), noise


def _entries(schedule: NoiseSchedule, t: Any, x: jax.Array) -> Callable[[str], jax.Array]:
    """Returns the function from a field's name to its values at t, shaped to multiply x."""
    check_per_example("t", t, x)
    return lambda field: expand(table_entry(schedule, field, t), x)
