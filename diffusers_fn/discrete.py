"""The DDPM and DDIM vocabulary on a table: literal one-step functions that read like the papers.

B is the batch, x [B, ...], t [] or [B] integers in [0, T-1]. Nothing here knows a network: each function takes
what the network put out. For whole sampling loops see `sample`; a test pins every step here to a row of a solver.
Data of lower precision are promoted: results are at least float32.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffusers_fn import _random
from diffusers_fn._arrays import check_data, check_eta, check_per_example, concrete, expand, working_dtype
from diffusers_fn.levels import add_noise, snr_ratio
from diffusers_fn.noise_schedules import NoiseSchedule, check_timesteps, level_at, table_entry
from diffusers_fn.parameterizations import Parameterization, epsilon, split_variance, to_prediction
from diffusers_fn.variances import Variance, fixed_small


def q_sample(schedule: NoiseSchedule, x_start: jax.Array, t: Any, noise: jax.Array) -> jax.Array:
    """Returns x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) noise (Ho et al. 2020, eq. 4).

    https://arxiv.org/abs/2006.11239. At t = -1 the result is x_start.

    Raises:
      ValueError: if shapes or dtypes do not agree or a readable t is outside [-1, T-1].

    >>> from diffusers_fn.noise_schedules import linear_betas, make_noise_schedule
    >>> schedule = make_noise_schedule(linear_betas(1000))
    >>> q_sample(schedule, jnp.ones((1, 2)), jnp.array([999]), jnp.zeros((1, 2)))
    Array([[0.00635282, 0.00635282]], dtype=float32)
    """
    check_per_example("t", t, x_start)
    return add_noise(x_start, noise, level_at(schedule, t))


def q_mean_variance(schedule: NoiseSchedule, x_start: jax.Array, t: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns (mean, variance, log_variance) of q(x_t | x_0), each [B, ...] or broadcastable (eq. 4).

    >>> from diffusers_fn.noise_schedules import linear_betas, make_noise_schedule
    >>> schedule = make_noise_schedule(linear_betas(1000))
    >>> mean, variance, _ = q_mean_variance(schedule, jnp.ones((1, 2)), jnp.array([0]))
    >>> variance.shape, round(float(variance[0, 0]), 6)
    ((1, 1), 0.0001)
    """
    at = _entries(schedule, t, x_start)
    mean = at("sqrt_alphas_cumprod") * x_start
    return mean, at("sqrt_one_minus_alphas_cumprod") ** 2, at("log_one_minus_alphas_cumprod")


def predict_start_from_noise(schedule: NoiseSchedule, x_t: jax.Array, t: Any, noise: jax.Array) -> jax.Array:
    """Returns x_0 = x_t / sqrt(alpha_bar_t) - sqrt(1 / alpha_bar_t - 1) noise, eq. 4 solved for x_0.

    >>> from diffusers_fn.noise_schedules import linear_betas, make_noise_schedule
    >>> schedule = make_noise_schedule(linear_betas(1000))
    >>> x_t = q_sample(schedule, jnp.ones((1, 2)), jnp.array([10]), jnp.ones((1, 2)))
    >>> predict_start_from_noise(schedule, x_t, jnp.array([10]), jnp.ones((1, 2))).round(5)
    Array([[1., 1.]], dtype=float32)
    """
    check_data(x_t=x_t, noise=noise)
    at = _entries(schedule, t, x_t)
    return at("sqrt_recip_alphas_cumprod") * x_t - at("sqrt_recipm1_alphas_cumprod") * noise


def predict_noise_from_start(schedule: NoiseSchedule, x_t: jax.Array, t: Any, x_start: jax.Array) -> jax.Array:
    """Returns the noise in x_t given x_0, eq. 4 solved for the noise.

    >>> from diffusers_fn.noise_schedules import linear_betas, make_noise_schedule
    >>> schedule = make_noise_schedule(linear_betas(1000))
    >>> predict_noise_from_start(schedule, jnp.ones((1, 2)), jnp.array([999]), jnp.zeros((1, 2))).round(4)
    Array([[1., 1.]], dtype=float32)
    """
    check_data(x_t=x_t, x_start=x_start)
    at = _entries(schedule, t, x_t)
    return (x_t - at("sqrt_alphas_cumprod") * x_start) / at("sqrt_one_minus_alphas_cumprod")


def q_posterior_mean_variance(
    schedule: NoiseSchedule, x_start: jax.Array, x_t: jax.Array, t: Any
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns (mean, variance, log_variance_clipped) of q(x_{t-1} | x_t, x_0) (Ho et al. 2020, eq. 6-7).

    At t = 0 the variance is 0 and its clipped log is that of t = 1.

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


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class MeanVariance:
    """The model's Gaussian p(x_{t-1} | x_t): mean, variance, log_variance, and the x_0 behind it; all [B, ...]."""

    mean: jax.Array
    variance: jax.Array
    log_variance: jax.Array
    pred_x_start: jax.Array


def p_mean_variance(
    schedule: NoiseSchedule,
    model_output: jax.Array,
    x_t: jax.Array,
    t: Any,
    *,
    parameterization: Parameterization = epsilon,
    variance: Variance = fixed_small,
    clip_denoised: bool = True,
) -> MeanVariance:
    """Returns the model's p(x_{t-1} | x_t) (Ho et al. 2020, eq. 1, with the mean of eq. 7 at the predicted x_0).

    Args:
      schedule: the table.
      model_output: [B, ..., C], or [B, ..., 2C] where the variance is learned.
      x_t: [B, ..., C] noisy data.
      t: [] or [B] integers.
      parameterization: what the network puts out.
      variance: fixed_small, fixed_large, learned or learned_range.
      clip_denoised: whether to clip the predicted x_0 to [-1, 1].

    Raises:
      ValueError: if shapes or dtypes do not agree, t is out of range, or the output has variance channels that
        `variance` does not use (or lacks those that it needs).

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
            f"x_t ({x_t.shape[-1]}) from the network; got {model_output.shape[-1]}: pass another variance "
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
    t: Any,
    *,
    parameterization: Parameterization = epsilon,
    variance: Variance = fixed_small,
    clip_denoised: bool = True,
) -> jax.Array:
    """Returns a draw x_{t-1} of the model's p(x_{t-1} | x_t) (Ho et al. 2020, algorithm 2).

    No noise is added where t == 0.

    Args:
      key: one key, or [B] keys for noise that depends on the example alone.
      schedule, model_output, x_t, t, parameterization, variance, clip_denoised: as for `p_mean_variance`.

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


def forward_diffusion(key: jax.Array, schedule: NoiseSchedule, x: jax.Array, t: Any) -> tuple[jax.Array, jax.Array]:
    """Returns (noisy_x, noise): a draw of q(x_t | x_0) and the noise that went into it.

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


def ddim_timesteps(num_timesteps: int, num_steps: int, skip_type: str = "uniform") -> np.ndarray:
    """Returns the timesteps [num_steps] that DDIM visits: integers, descending, distinct.

    uniform: linspace(0, T-1), rounded; both ends are visited (a single step visits T-1).
    quadratic: linspace(0, sqrt(0.8 T))^2, rounded down (Song et al., "Denoising Diffusion Implicit Models", 2021,
    https://arxiv.org/abs/2010.02502, appendix D.2); equal neighbours are moved apart to the next free timestep.

    Raises:
      ValueError: unless 1 <= num_steps <= num_timesteps and skip_type is one of the two.

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
        steps = np.round(np.linspace(num_timesteps - 1, 0, num_steps)[::-1])
    elif skip_type == "quadratic":
        steps = np.linspace(np.sqrt(num_timesteps * 0.8), 0, num_steps)[::-1] ** 2
        steps = np.minimum(np.floor(steps + 1e-9), num_timesteps - 1)  # sqrt and square must not lose a whole step
    else:
        raise ValueError(f"skip_type must be 'uniform' or 'quadratic'; got {skip_type!r}")
    # Strictly ascending: at least one more than the entry before, and room for the entries after.
    index = np.arange(num_steps)
    steps = np.maximum.accumulate(steps.astype(np.int64) - index) + index
    return np.minimum(steps, num_timesteps - num_steps + index)[::-1]


def ddim_step(
    schedule: NoiseSchedule,
    x_t: jax.Array,
    t: Any,
    t_prev: Any,
    predicted_noise: jax.Array,
    *,
    eta: Any = 0.0,
    noise: jax.Array | None = None,
    clip_denoised: bool = True,
    use_clipped_model_output: bool = False,
) -> jax.Array:
    """Returns x at t_prev, one DDIM step from x_t (Song et al. 2021, https://arxiv.org/abs/2010.02502, eq. 12).

        x_prev = sqrt(ab_prev) x0_hat + sqrt(1 - ab_prev - s^2) eps_hat + s noise
        s = eta sqrt((1 - ab_prev) / (1 - ab_t)) sqrt(1 - ab_t / ab_prev)                        (eq. 16)

    Args:
      schedule: the table.
      x_t: [B, ...].
      t: [] or [B] integers in [0, T-1].
      t_prev: [] or [B] integers in [-1, T-1], below t; -1 is the clean level and ends the chain on x0_hat.
      predicted_noise: [B, ...] eps_hat.
      eta: 0 is deterministic, 1 is DDPM with the posterior variance; may be traced.
      noise: [B, ...] standard normal; needed unless eta is 0.
      clip_denoised: whether to clip x0_hat to [-1, 1].
      use_clipped_model_output: whether eps_hat is computed anew from the clipped x0_hat.

    Raises:
      ValueError: if shapes or dtypes do not agree, timesteps are out of range or not descending, eta is outside
        [0, 1], or noise is missing.

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
    check_descending(t, t_prev)
    check_eta(eta)
    check_per_example("eta", eta, x_t)
    if noise is None and not (isinstance(eta, (int, float)) and eta == 0):
        raise ValueError(f"noise is needed where eta is not 0; got eta = {eta} and no noise")
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
    # With r = SNR_t / SNR_prev, eq. 16 is s = eta sigma_prev sqrt(1 - r); sigma_prev^2 - s^2 is then written without
    # a difference of nearly equal numbers, which rounding could make negative.
    r = snr_ratio(level, prev)
    s = eta * prev.sigma * jnp.sqrt(1.0 - r)
    direction = prev.sigma * jnp.sqrt((1.0 - eta**2) + eta**2 * r)
    return expand(prev.alpha, x_t) * x0_hat + expand(direction, x_t) * eps_hat + expand(s, x_t) * noise


def ddim_reverse_step(
    schedule: NoiseSchedule, x_t: jax.Array, t: Any, t_next: Any, predicted_noise: jax.Array
) -> jax.Array:
    """Returns x at t_next > t, the deterministic DDIM step taken upwards (Song et al. 2021, eq. 14).

        x_next = sqrt(ab_next) x0_hat + sqrt(1 - ab_next) eps_hat

    Nothing is clipped: clipping cannot be undone. t may be -1, where x_t is the clean data.

    >>> from diffusers_fn.noise_schedules import linear_betas, make_noise_schedule
    >>> schedule = make_noise_schedule(linear_betas(1000))
    >>> ddim_reverse_step(schedule, jnp.ones((1, 2)), jnp.array([-1]), jnp.array([0]), jnp.zeros((1, 2)))
    Array([[0.99995, 0.99995]], dtype=float32)
    """
    check_data(x_t=x_t, predicted_noise=predicted_noise)
    check_per_example("t", t, x_t)
    check_per_example("t_next", t_next, x_t)
    check_descending(t_next, t)
    level, following = level_at(schedule, t), level_at(schedule, t_next)
    x0_hat = to_prediction(epsilon, predicted_noise, x_t, level).x0
    return add_noise(x0_hat, predicted_noise.astype(x0_hat.dtype), following)


def check_descending(t: Any, t_prev: Any) -> None:
    """Raises ValueError if readable timesteps do not satisfy t_prev < t."""
    high, low = concrete(t), concrete(t_prev)
    if high is not None and low is not None and not np.all(low < high):
        raise ValueError(f"the noisier timestep must be above the cleaner one; got {high} and {low}")


def _entries(schedule: NoiseSchedule, t: Any, x: jax.Array) -> Callable[[str], jax.Array]:
    """Returns field name -> the table's entry at t, shaped to multiply x."""
    check_per_example("t", t, x)
    return lambda field: expand(table_entry(schedule, field, t), x)
