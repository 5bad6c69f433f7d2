"""Discrete noise schedules: beta sequences and the table made from them.

Tables are computed on the host in float64 and rounded once, where they meet the data. T is the number of
timesteps, t = 0 ... T-1; t = -1 stands for the clean data. `betas[t]` is the variance added by step t.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffusers_fn._arrays import concrete, entries, is_traced, namespace
from diffusers_fn.levels import Level


def linear_betas(num_timesteps: int, beta_start: float = 1e-4, beta_end: float = 2e-2) -> np.ndarray:
    """Returns betas [T] spaced evenly from beta_start to beta_end (Ho et al. 2020, section 4).

    https://arxiv.org/abs/2006.11239. The ends are not rescaled when T differs from 1000.

    Raises:
      ValueError: if num_timesteps < 1, or unless 0 <= beta_start <= beta_end <= 1.

    >>> linear_betas(1000)[[0, -1]]
    array([0.0001, 0.02  ])
    """
    _check_ends(num_timesteps, beta_start, beta_end)
    return np.linspace(beta_start, beta_end, int(num_timesteps), dtype=np.float64)


def scaled_linear_betas(num_timesteps: int, beta_start: float = 0.00085, beta_end: float = 0.012) -> np.ndarray:
    """Returns betas [T] whose square roots are evenly spaced; the defaults are latent diffusion's.

    Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion Models", 2022,
    https://arxiv.org/abs/2112.10752 (named `linear` in its code, `scaled_linear` elsewhere).

    >>> scaled_linear_betas(1000)[[0, -1]]
    array([0.00085, 0.012  ])
    """
    return quadratic_betas(num_timesteps, beta_start, beta_end)


def quadratic_betas(num_timesteps: int, beta_start: float = 1e-4, beta_end: float = 2e-2) -> np.ndarray:
    """Returns betas [T] = linspace(sqrt(beta_start), sqrt(beta_end))^2, DDPM's `quad` (Ho et al. 2020).

    >>> quadratic_betas(3, 0.01, 0.09)
    array([0.01, 0.04, 0.09])
    """
    _check_ends(num_timesteps, beta_start, beta_end)
    return np.linspace(beta_start**0.5, beta_end**0.5, int(num_timesteps), dtype=np.float64) ** 2


def sqrt_betas(num_timesteps: int, beta_start: float = 1e-4, beta_end: float = 2e-2) -> np.ndarray:
    """Returns betas [T] = sqrt(linspace(beta_start, beta_end)), the `sqrt` schedule of latent diffusion.

    Rombach et al. 2022, https://arxiv.org/abs/2112.10752.

    >>> sqrt_betas(2, 0.01, 0.04)
    array([0.1, 0.2])
    """
    return np.sqrt(linear_betas(num_timesteps, beta_start, beta_end))


def cosine_betas(num_timesteps: int, s: float = 0.008, max_beta: float = 0.999) -> np.ndarray:
    """Returns betas [T] of the cosine schedule, clipped at max_beta.

        alpha_bar(u) = cos^2((u + s) / (1 + s) * pi / 2),   beta_t = min(1 - alpha_bar(t+1) / alpha_bar(t), max_beta)

    with u = t / T. Nichol & Dhariwal, "Improved Denoising Diffusion Probabilistic Models", 2021,
    https://arxiv.org/abs/2102.09672, eq. 17.

    Raises:
      ValueError: if num_timesteps < 1, s < 0 or max_beta is not in (0, 1].

    >>> cosine_betas(1000)[-1]
    np.float64(0.999)
    """
    _check_num_timesteps(num_timesteps)
    if s < 0:
        raise ValueError(f"s, the offset of the cosine schedule, must not be negative; got {s}")
    if not 0 < max_beta <= 1:
        raise ValueError(f"max_beta must lie in (0, 1]; got {max_beta}")
    u = np.arange(num_timesteps + 1, dtype=np.float64) / num_timesteps
    alpha_bar = np.cos((u + s) / (1 + s) * np.pi / 2) ** 2
    return np.minimum(1.0 - alpha_bar[1:] / alpha_bar[:-1], max_beta)


def sigmoid_betas(num_timesteps: int, beta_start: float = 1e-4, beta_end: float = 2e-2) -> np.ndarray:
    """Returns betas [T] along a sigmoid: beta_start + (beta_end - beta_start) * sigmoid(linspace(-6, 6)).

    Xu et al., "GeoDiff", 2022, https://arxiv.org/abs/2203.02923.

    >>> sigmoid_betas(3, 0.0, 1.0).round(4)
    array([0.0025, 0.5   , 0.9975])
    """
    _check_ends(num_timesteps, beta_start, beta_end)
    sigmoid = 1.0 / (1.0 + np.exp(-np.linspace(-6.0, 6.0, int(num_timesteps), dtype=np.float64)))
    return beta_start + (beta_end - beta_start) * sigmoid


def zero_terminal_snr(betas: np.ndarray) -> np.ndarray:
    """Returns betas [T] shifted and scaled so that the last level is pure noise and the first is unchanged.

    sqrt(alpha_bar) is mapped linearly onto [0, its first value]. Lin et al., "Common Diffusion Noise Schedules
    and Sample Steps are Flawed", 2024, https://arxiv.org/abs/2305.08891, algorithm 1. The last beta is 1: train
    such a schedule with the v or x0 parameterization, since epsilon says nothing about x0 there.

    >>> float(make_noise_schedule(zero_terminal_snr(linear_betas(1000))).alphas_cumprod[-1])
    0.0
    """
    root = np.sqrt(np.cumprod(1.0 - _check_betas(betas)))
    if root.size < 2:
        raise ValueError("zero_terminal_snr needs at least 2 timesteps; got 1")
    root = (root - root[-1]) * (root[0] / (root[0] - root[-1]))
    alphas_cumprod = root**2
    return 1.0 - alphas_cumprod / np.concatenate([[1.0], alphas_cumprod[:-1]])


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class NoiseSchedule:
    """The table of a discrete diffusion; every field has shape [T], float64 on the host.

    alpha_bar stands for alphas_cumprod and beta_tilde for posterior_variance; equations of Ho et al. 2020.

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
      posterior_log_variance_clipped: its log; the entry at t = 0 takes the value of the entry at t = 1.
      posterior_mean_coef1: the weight of x_0 in the posterior mean (eq. 7).
      posterior_mean_coef2: the weight of x_t in the posterior mean (eq. 7).
    """

    betas: Any
    alphas: Any
    alphas_cumprod: Any
    alphas_cumprod_prev: Any
    sqrt_alphas_cumprod: Any
    sqrt_one_minus_alphas_cumprod: Any
    log_one_minus_alphas_cumprod: Any
    sqrt_recip_alphas_cumprod: Any
    sqrt_recipm1_alphas_cumprod: Any
    posterior_variance: Any
    posterior_log_variance_clipped: Any
    posterior_mean_coef1: Any
    posterior_mean_coef2: Any


def make_noise_schedule(betas: np.ndarray) -> NoiseSchedule:
    """Returns the table of a diffusion with the given betas [T] (Ho et al. 2020, eq. 2-7).

    Raises:
      ValueError: unless betas is a vector of finite numbers in (0, 1], below 1 before the last.

    >>> f"{make_noise_schedule(linear_betas(1000)).alphas_cumprod[-1]:.6e}"
    '4.035830e-05'
    """
    betas = _check_betas(betas)
    alphas = 1.0 - betas
    alphas_cumprod = np.cumprod(alphas)
    alphas_cumprod_prev = np.concatenate([[1.0], alphas_cumprod[:-1]])
    one_minus = 1.0 - alphas_cumprod
    posterior_variance = betas * (1.0 - alphas_cumprod_prev) / one_minus
    # With T = 1 there is no entry at t = 1 to borrow; beta_0 bounds the variance there.
    first = posterior_variance[1] if betas.size > 1 else betas[0]
    with np.errstate(divide="ignore"):  # alpha_bar = 0 at zero terminal SNR: the reciprocals are infinite
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


def level_at(schedule: NoiseSchedule, t: Any) -> Level:
    """Returns the level at timestep t: alpha = sqrt(alpha_bar_t), sigma = sqrt(1 - alpha_bar_t).

    t = -1 is the clean level (alpha 1, sigma 0). NumPy integers in give float64 NumPy out, to build plans on
    the host; JAX integers give JAX arrays of the default float type. The label `t` is a float in both.

    Args:
      schedule: the table.
      t: S, integers in [-1, T-1].

    Raises:
      ValueError: if t is not of integer type or a readable t is out of range. A traced t cannot be read: out of
        range it gives NaN, never another timestep.

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


def table_entry(schedule: NoiseSchedule, field: str, t: Any) -> Any:
    """Returns the entry of one field of the table at timesteps t >= 0, as `level_at` returns a level.

    >>> float(table_entry(make_noise_schedule(linear_betas(1000)), "betas", 999))
    0.02
    """
    check_timesteps(schedule, t, lowest=0)
    return _at(getattr(schedule, field), t, clean=np.nan)


def respace(schedule: NoiseSchedule, timesteps: np.ndarray) -> NoiseSchedule:
    """Returns the table of the shorter diffusion that visits only the given timesteps of `schedule`.

    Its alpha_bar are those of the kept timesteps and its betas are recomputed from them. Entry i belongs to the
    i-th smallest of `timesteps`, which stays the label to hand to the network. Nichol & Dhariwal 2021,
    https://arxiv.org/abs/2102.09672, eq. 19.

    Args:
      schedule: a table of T timesteps.
      timesteps: the kept ones, in any order, distinct.

    Raises:
      ValueError: if the timesteps are not distinct integers in [0, T-1].

    >>> schedule = make_noise_schedule(linear_betas(1000))
    >>> respace(schedule, np.array([999, 499])).betas.shape
    (2,)
    """
    schedule = on_host(schedule)
    timesteps = np.sort(np.asarray(timesteps).ravel())
    check_timesteps(schedule, timesteps, lowest=0)
    if timesteps.size == 0 or np.any(np.diff(timesteps) == 0):
        raise ValueError(f"timesteps to keep must be distinct and at least one; got {timesteps}")
    alphas_cumprod = schedule.alphas_cumprod[timesteps]
    return make_noise_schedule(1.0 - alphas_cumprod / np.concatenate([[1.0], alphas_cumprod[:-1]]))


def on_host(schedule: NoiseSchedule) -> NoiseSchedule:
    """Returns the table as NumPy float64, whatever it was.

    Raises:
      ValueError: if the table is traced.

    >>> on_host(jax.tree.map(jnp.asarray, make_noise_schedule(linear_betas(4)))).betas.dtype
    dtype('float64')
    """
    if is_traced(schedule):
        raise ValueError("this needs the schedule's numbers: call it outside jit, or close over the schedule")
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), schedule)


def check_timesteps(schedule: NoiseSchedule, t: Any, lowest: int = 0) -> None:
    """Raises ValueError unless t holds integers, in [lowest, T-1] as far as they can be read.

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
    """The table's entry at t, `clean` at t = -1, NaN elsewhere."""
    num_timesteps = table.shape[0]
    if namespace(table, t) is np:
        return np.concatenate([np.asarray(table, np.float64), [clean]])[np.asarray(t)]
    t = jnp.asarray(t).astype(jnp.result_type(int))  # a narrow or unsigned type cannot be compared with -1 and T
    table = jnp.asarray(table, jnp.result_type(float))
    value = jnp.where(t == -1, clean, entries(table, jnp.clip(t, 0, num_timesteps - 1)))
    return jnp.where((t < -1) | (t >= num_timesteps), jnp.nan, value)


def _check_num_timesteps(num_timesteps: int) -> None:
    if num_timesteps != int(num_timesteps) or num_timesteps < 1:
        raise ValueError(f"num_timesteps must be an integer of at least 1; got {num_timesteps}")


def _check_ends(num_timesteps: int, beta_start: float, beta_end: float) -> None:
    _check_num_timesteps(num_timesteps)
    if not 0 <= beta_start <= beta_end <= 1:
        raise ValueError(f"betas must satisfy 0 <= beta_start <= beta_end <= 1; got {beta_start} and {beta_end}")


def _check_betas(betas: Any) -> np.ndarray:
    betas = np.asarray(betas, np.float64)
    if betas.ndim != 1 or betas.size == 0:
        raise ValueError(f"betas must be a vector [T] with T >= 1; got shape {betas.shape}")
    if not np.all((betas > 0) & (betas <= 1)) or np.any(betas[:-1] == 1):
        raise ValueError(
            "betas must lie in (0, 1), only the last may be 1 (zero terminal SNR); "
            f"got values from {betas.min()} to {betas.max()}"
        )
    return betas
