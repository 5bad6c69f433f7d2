"""The noise schedule of a discrete diffusion, a table of its coefficients, and the noise levels in it.

Tables are computed on the host in float64 and rounded once, when they are combined with data. T is the number of
timesteps, t = 0 ... T-1; t = -1 stands for the clean data.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffusers_fn._arrays import concrete, entries, is_traced, namespace
from diffusers_fn._types import Array, ArrayLike
from diffusers_fn.levels import Level
from diffusers_fn.noise_schedules.betas import check_betas

__all__ = [
    "NoiseSchedule",
    "check_timesteps",
    "level_at",
    "make_noise_schedule",
    "on_host",
    "respace",
    "table_entry",
]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class NoiseSchedule:
    """The noise schedule of a discrete diffusion as a table; every field has shape [T], float64 on the host.

    alpha_bar is alphas_cumprod and beta_tilde is posterior_variance; equation numbers of Ho et al. 2020,
    https://arxiv.org/abs/2006.11239.

    Attributes:
      betas: beta_t, the variance added by step t (eq. 2).
      alphas: 1 - beta_t.
      alphas_cumprod: alpha_bar_t = prod_{s <= t} alpha_s (eq. 4).
      alphas_cumprod_prev: alpha_bar_{t-1}, with 1 at t = 0.
      sqrt_alphas_cumprod: the scale of x_0 in x_t (eq. 4).
      sqrt_one_minus_alphas_cumprod: the standard deviation of the noise in x_t (eq. 4).
      log_one_minus_alphas_cumprod: log variance of q(x_t | x_0).
      sqrt_recip_alphas_cumprod: 1 / sqrt(alpha_bar_t).
      sqrt_recipm1_alphas_cumprod: sqrt(1 / alpha_bar_t - 1).
      posterior_variance: beta_tilde_t = beta_t (1 - alpha_bar_{t-1}) / (1 - alpha_bar_t) (eq. 7); 0 at t = 0.
      posterior_log_variance_clipped: log(beta_tilde_t); at t = 0 the value of t = 1.
      posterior_mean_coef1: the coefficient of x_0 in the posterior mean (eq. 7).
      posterior_mean_coef2: the coefficient of x_t in the posterior mean (eq. 7).
    """

    betas: Array
    alphas: Array
    alphas_cumprod: Array
    alphas_cumprod_prev: Array
    sqrt_alphas_cumprod: Array
    sqrt_one_minus_alphas_cumprod: Array
    log_one_minus_alphas_cumprod: Array
    sqrt_recip_alphas_cumprod: Array
    sqrt_recipm1_alphas_cumprod: Array
    posterior_variance: Array
    posterior_log_variance_clipped: Array
    posterior_mean_coef1: Array
    posterior_mean_coef2: Array


def make_noise_schedule(betas: np.ndarray) -> NoiseSchedule:
    """Returns the noise schedule of a diffusion with the given betas [T] (Ho et al. 2020, eq. 2-7).

    https://arxiv.org/abs/2006.11239.

    Raises:
      ValueError: unless betas is a vector of numbers in (0, 1], of which only the last may be 1.

    >>> from diffusers_fn.noise_schedules import linear_betas
    >>> f"{make_noise_schedule(linear_betas(1000)).alphas_cumprod[-1]:.6e}"
    '4.035830e-05'
    """
    betas = check_betas(betas)
    alphas = 1.0 - betas
    alphas_cumprod = np.cumprod(alphas)
    alphas_cumprod_prev = np.concatenate([[1.0], alphas_cumprod[:-1]])
    one_minus = 1.0 - alphas_cumprod
    posterior_variance = betas * (1.0 - alphas_cumprod_prev) / one_minus
    # With T = 1 there is no value at t = 1; beta_0 is an upper bound of the variance.
    first = posterior_variance[1] if betas.size > 1 else betas[0]
    with np.errstate(divide="ignore"):  # the reciprocals are infinite where alpha_bar = 0 (zero terminal SNR)
        return NoiseSchedule(
            betas=betas,
            alphas=alphas,
            alphas_cumprod=alphas_cumprod,
            alphas_cumprod_prev=alphas_cumprod_prev,
            sqrt_alphas_cumprod=np.sqrt(alphas_cumprod),
            sqrt_one_minus_alphas_cumprod=np.sqrt(one_minus),
            log_one_minus_alphas_cumprod=np.log(one_minus),
            sqrt_recip_alphas_cumprod=np.sqrt(1.0 / alphas_cumprod),
            sqrt_recipm1_alphas_cumprod=np.sqrt(1.0 / alphas_cumprod - 1.0),
            posterior_variance=posterior_variance,
            posterior_log_variance_clipped=np.log(np.concatenate([[first], posterior_variance[1:]])),
            posterior_mean_coef1=betas * np.sqrt(alphas_cumprod_prev) / one_minus,
            posterior_mean_coef2=(1.0 - alphas_cumprod_prev) * np.sqrt(alphas) / one_minus,
        )


def level_at(schedule: NoiseSchedule, t: ArrayLike) -> Level:
    """Returns the level at timestep t: alpha = sqrt(alpha_bar_t), sigma = sqrt(1 - alpha_bar_t).

    t = -1 is the clean level (alpha 1, sigma 0). NumPy integers give float64 NumPy arrays, for plans on the host; JAX
    integers give JAX arrays of the default float type. The label `t` of the level is a float in both.

    Args:
      schedule: the noise schedule.
      t: S, integers in [-1, T-1].

    Raises:
      ValueError: if t has no integer dtype or is out of range. A traced t is not checked: out of range, the level is
        NaN, never that of another timestep.

    >>> from diffusers_fn.noise_schedules import linear_betas
    >>> schedule = make_noise_schedule(linear_betas(1000))
    >>> level_at(schedule, -1)
    Level(alpha=np.float64(1.0), sigma=np.float64(0.0), t=np.float64(-1.0))
    >>> level_at(schedule, np.array([999, 0])).t
    array([999.,   0.])
    """
    check_timesteps(schedule, t, lowest=-1)
    alpha = _at(schedule.sqrt_alphas_cumprod, t, clean=1.0)
    sigma = _at(schedule.sqrt_one_minus_alphas_cumprod, t, clean=0.0)
    return Level(alpha, sigma, namespace(alpha).asarray(t).astype(alpha.dtype)[()])


def table_entry(schedule: NoiseSchedule, field: str, t: ArrayLike) -> Any:
    """Returns the values of one field of the noise schedule at timesteps t in [0, T-1]; S, as for `level_at`.

    Raises:
      ValueError: as `level_at`.

    >>> from diffusers_fn.noise_schedules import linear_betas
    >>> float(table_entry(make_noise_schedule(linear_betas(1000)), "betas", 999))
    0.02
    """
    check_timesteps(schedule, t, lowest=0)
    return _at(getattr(schedule, field), t, clean=np.nan)


def respace(schedule: NoiseSchedule, timesteps: np.ndarray) -> NoiseSchedule:
    """Returns the noise schedule of the shorter diffusion over the given timesteps of `schedule`.

    It keeps alpha_bar at those timesteps, and recomputes the betas from it. Timestep i of the new schedule is the i-th
    smallest of `timesteps`, which remains the network's time label. Nichol & Dhariwal 2021,
    https://arxiv.org/abs/2102.09672, eq. 19.

    Args:
      schedule: a noise schedule of T timesteps.
      timesteps: the timesteps to keep, distinct, in any order.

    Raises:
      ValueError: if the timesteps are not distinct integers in [0, T-1].

    >>> from diffusers_fn.noise_schedules import linear_betas
    >>> schedule = make_noise_schedule(linear_betas(1000))
    >>> respace(schedule, np.array([999, 499])).betas.shape
    (2,)
    """
    schedule = on_host(schedule)
    timesteps = np.sort(np.asarray(timesteps).ravel())
    check_timesteps(schedule, timesteps, lowest=0)
    if timesteps.size == 0 or np.any(np.diff(timesteps) == 0):
        raise ValueError(f"timesteps to keep must be distinct, and one or more; got {timesteps}")
    alphas_cumprod = np.asarray(schedule.alphas_cumprod)[timesteps]
    return make_noise_schedule(1.0 - alphas_cumprod / np.concatenate([[1.0], alphas_cumprod[:-1]]))


def on_host(schedule: NoiseSchedule) -> NoiseSchedule:
    """Returns the noise schedule as NumPy float64 arrays.

    Raises:
      ValueError: if the schedule is traced.

    >>> from diffusers_fn.noise_schedules import linear_betas
    >>> on_host(jax.tree.map(jnp.asarray, make_noise_schedule(linear_betas(4)))).betas.dtype
    dtype('float64')
    """
    if is_traced(schedule):
        raise ValueError("the schedule must not be traced here: call this outside jit, or close over the schedule")
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), schedule)


def check_timesteps(schedule: NoiseSchedule, t: ArrayLike, lowest: int = 0) -> None:
    """Raises ValueError unless t has an integer dtype and, if it is not traced, lies in [lowest, T-1].

    >>> from diffusers_fn.noise_schedules import linear_betas
    >>> check_timesteps(make_noise_schedule(linear_betas(1000)), 1000)
    Traceback (most recent call last):
    ...
    ValueError: timesteps must lie in [0, 999] for a schedule of 1000 timesteps; got 1000
    """
    num_timesteps = schedule.betas.shape[0]
    dtype = t.dtype if isinstance(t, jax.Array) else np.asarray(t).dtype
    if not jnp.issubdtype(dtype, jnp.integer):
        raise ValueError(f"timesteps must be integers; got {dtype}")
    values = concrete(t)
    if values is not None and values.size and (values.min() < lowest or values.max() >= num_timesteps):
        wrong = values[(values < lowest) | (values >= num_timesteps)].flat[0]
        raise ValueError(
            f"timesteps must lie in [{lowest}, {num_timesteps - 1}] for a schedule of {num_timesteps} timesteps; "
            f"got {wrong}"
        )


def _at(table: Any, t: Any, clean: float) -> Any:
    """Returns the table's value at t, `clean` at t = -1, NaN elsewhere."""
    num_timesteps = table.shape[0]
    if namespace(table, t) is np:
        return np.concatenate([np.asarray(table, np.float64), [clean]])[np.asarray(t)]
    t = jnp.asarray(t).astype(jnp.result_type(int))  # an unsigned or small integer type does not hold -1 and T
    table = jnp.asarray(table, jnp.result_type(float))
    value = jnp.where(t == -1, clean, entries(table, jnp.clip(t, 0, num_timesteps - 1)))
    return jnp.where((t < -1) | (t >= num_timesteps), jnp.nan, value)
