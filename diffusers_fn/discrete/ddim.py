"""DDIM on a noise schedule: its timesteps, its step, and the step in reverse.

B is the batch size, x [B, ...], t [] or [B] integers in [-1, T-1], -1 for the clean data. Results are at least float32.
Song et al., "Denoising Diffusion Implicit Models", 2021, https://arxiv.org/abs/2010.02502.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffusers_fn._arrays import check_data, check_eta, check_per_example, concrete, expand, is_zero
from diffusers_fn._types import ArrayLike
from diffusers_fn.levels import add_noise, snr_ratio
from diffusers_fn.noise_schedules import NoiseSchedule, check_timesteps, level_at
from diffusers_fn.parameterizations import epsilon, to_prediction

__all__ = [
    "ddim_reverse_step",
    "ddim_step",
    "ddim_timesteps",
]


def ddim_timesteps(num_timesteps: int, num_steps: int, skip_type: str = "uniform") -> np.ndarray:
    """Returns the timesteps [num_steps] of a DDIM plan: distinct integers in descending order.

    uniform: linspace(0, T-1), rounded, with both ends (a single step is T-1).
    quadratic: linspace(0, sqrt(0.8 T))^2, rounded down; equal neighbours are moved to the next free timestep.

    Song et al. 2021, https://arxiv.org/abs/2010.02502, appendix D.2.

    Raises:
      ValueError: unless 1 <= num_steps <= num_timesteps and skip_type is "uniform" or "quadratic".

    >>> ddim_timesteps(1000, 5)
    array([999, 749, 500, 250,   0])
    >>> ddim_timesteps(1000, 5, "quadratic")
    array([800, 450, 200,  50,   0])
    """
    if num_steps != int(num_steps) or not 1 <= num_steps <= num_timesteps:
        raise ValueError(
            f"num_steps must be an integer from 1 to the {num_timesteps} timesteps of the schedule; got {num_steps}"
        )
    num_timesteps, num_steps = int(num_timesteps), int(num_steps)
    if skip_type == "uniform":
        # Counted from 0, so that ties round as in other libraries.
        steps = np.linspace(0, num_timesteps - 1, num_steps).round() if num_steps > 1 else np.array([num_timesteps - 1])
    elif skip_type == "quadratic":
        steps = np.linspace(np.sqrt(num_timesteps * 0.8), 0, num_steps)[::-1] ** 2
        steps = np.minimum(np.floor(steps + 1e-9), num_timesteps - 1)  # sqrt and square must not lose a whole step
    else:
        raise ValueError(f"skip_type must be 'uniform' or 'quadratic'; got {skip_type!r}")
    # Make them strictly ascending, and leave room at the top for the timesteps that follow.
    index = np.arange(num_steps)
    steps = np.maximum.accumulate(steps.astype(np.int64) - index) + index
    return np.minimum(steps, num_timesteps - num_steps + index)[::-1]


def ddim_step(
    schedule: NoiseSchedule,
    x_t: jax.Array,
    t: ArrayLike,
    t_prev: ArrayLike,
    predicted_noise: jax.Array,
    *,
    eta: ArrayLike = 0.0,
    noise: jax.Array | None = None,
    clip_denoised: bool = True,
    use_clipped_model_output: bool = False,
) -> jax.Array:
    """Returns x at t_prev, one DDIM step from x_t; shape [B, ...].

        x_prev = sqrt(ab_prev) x0_hat + sqrt(1 - ab_prev - s^2) eps_hat + s noise                (eq. 12)
        s = eta sqrt((1 - ab_prev) / (1 - ab_t)) sqrt(1 - ab_t / ab_prev)                        (eq. 16)

    Song et al. 2021, https://arxiv.org/abs/2010.02502, with ab = alpha_bar.

    Args:
      schedule: the noise schedule.
      x_t: [B, ...].
      t: [] or [B] integers in [0, T-1].
      t_prev: [] or [B] integers in [-1, T-1], below t; at -1, the clean level, the result is x0_hat.
      predicted_noise: [B, ...] eps_hat.
      eta: [] or [B] in [0, 1]: 0 is deterministic, 1 is DDPM with the posterior variance; may be traced.
      noise: [B, ...] standard normal; required unless eta is the number 0.
      clip_denoised: whether to clip x0_hat to [-1, 1].
      use_clipped_model_output: whether to recompute eps_hat from the clipped x0_hat.

    Raises:
      ValueError: if shapes or dtypes do not fit, timesteps are out of range or not descending, eta is outside [0, 1],
        or noise is missing.

    >>> from diffusers_fn.discrete import q_sample
    >>> from diffusers_fn.noise_schedules import linear_betas, make_noise_schedule
    >>> schedule = make_noise_schedule(linear_betas(1000))
    >>> x_t = q_sample(schedule, jnp.full((1, 2), 0.5), jnp.array([999]), jnp.ones((1, 2)))
    >>> ddim_step(schedule, x_t, jnp.array([999]), jnp.array([-1]), jnp.ones((1, 2))).round(3)
    Array([[0.5, 0.5]], dtype=float32)
    """
    check_data(x_t=x_t, predicted_noise=predicted_noise)
    check_per_example("t", t, x_t)
    check_per_example("t_prev", t_prev, x_t)
    check_timesteps(schedule, t)
    _check_descending(t, t_prev)
    check_eta(eta)
    check_per_example("eta", eta, x_t)
    if noise is None and not is_zero(eta):
        raise ValueError(f"noise is required unless eta is 0; got eta = {eta} and no noise")
    if noise is not None:
        check_data(x_t=x_t, noise=noise)

    level, prev = level_at(schedule, t), level_at(schedule, t_prev)
    x0_hat = to_prediction(epsilon, predicted_noise, x_t, level).x0
    if clip_denoised:
        x0_hat = jnp.clip(x0_hat, -1.0, 1.0)
    eps_hat = predicted_noise
    if use_clipped_model_output:
        eps_hat = (x_t - expand(level.alpha, x_t) * x0_hat) / expand(level.sigma, x_t)
    if noise is None:
        return add_noise(x0_hat, eps_hat.astype(x0_hat.dtype), prev)
    # With r = SNR_t / SNR_prev, eq. 16 is s = eta sigma_prev sqrt(1 - r). sigma_prev^2 - s^2 is expanded, because
    # rounding could make the difference negative.
    r = snr_ratio(level, prev)
    s = eta * prev.sigma * jnp.sqrt(1.0 - r)
    direction = prev.sigma * jnp.sqrt((1.0 - eta**2) + eta**2 * r)
    return expand(prev.alpha, x_t) * x0_hat + expand(direction, x_t) * eps_hat + expand(s, x_t) * noise


def ddim_reverse_step(
    schedule: NoiseSchedule, x_t: jax.Array, t: ArrayLike, t_next: ArrayLike, predicted_noise: jax.Array
) -> jax.Array:
    """Returns x at t_next > t, the deterministic DDIM step in reverse; shape [B, ...].

        x_next = sqrt(ab_next) x0_hat + sqrt(1 - ab_next) eps_hat                                (eq. 14)

    Song et al. 2021, https://arxiv.org/abs/2010.02502, with ab = alpha_bar. Nothing is clipped, because clipping cannot
    be inverted. t may be -1: x_t is then the clean data.

    Raises:
      ValueError: if shapes or dtypes do not fit, or timesteps are out of range or not ascending.

    >>> from diffusers_fn.noise_schedules import linear_betas, make_noise_schedule
    >>> schedule = make_noise_schedule(linear_betas(1000))
    >>> ddim_reverse_step(schedule, jnp.ones((1, 2)), jnp.array([-1]), jnp.array([0]), jnp.zeros((1, 2)))
    Array([[0.99995, 0.99995]], dtype=float32)
    """
    check_data(x_t=x_t, predicted_noise=predicted_noise)
    check_per_example("t", t, x_t)
    check_per_example("t_next", t_next, x_t)
    _check_descending(t_next, t)
    level, following = level_at(schedule, t), level_at(schedule, t_next)
    x0_hat = to_prediction(epsilon, predicted_noise, x_t, level).x0
    return add_noise(x0_hat, predicted_noise.astype(x0_hat.dtype), following)


def _check_descending(t: Any, t_prev: Any) -> None:
    """Raises ValueError unless t_prev < t; traced timesteps are not checked."""
    high, low = concrete(t), concrete(t_prev)
    if high is not None and low is not None and not np.all(low < high):
        raise ValueError(f"the noisier timestep must be above the cleaner one; got {high} and {low}")
