"""The variational bound of a discrete diffusion, in bits per dimension.

    -log2 P(x_0) <= L_T + sum_{t=1}^{T-1} L_t + L_0     (Ho et al. 2020, https://arxiv.org/abs/2006.11239, eq. 5)

L_T is the divergence of q(x_T | x_0) from N(0, 1), L_t that of the posterior from the model's reverse step, and L_0 the
negative log probability of the grey levels under the last step. B is the batch; each term is divided by the number of
entries of an example.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from diffusers_fn import _random, losses
from diffusers_fn._arrays import check_data, concrete, is_zero, namespace, split_like, working_dtype
from diffusers_fn._types import ArrayLike
from diffusers_fn.denoisers import Denoiser, check_pure_noise
from diffusers_fn.discrete import (
    p_mean_variance,
    predict_noise_from_start,
    q_mean_variance,
    q_posterior_mean_variance,
    q_sample,
)
from diffusers_fn.levels import Level
from diffusers_fn.likelihood.discretized import discretized_gaussian_log_likelihood, normal_kl
from diffusers_fn.noise_schedules import NoiseSchedule, level_at
from diffusers_fn.parameterizations import Parameterization, check_parameterization, epsilon
from diffusers_fn.parameterizations import x0 as clean
from diffusers_fn.variances import Variance, fixed_small

__all__ = ["Bound", "VbTerms", "calc_bpd", "prior_bpd", "vb_terms_bpd"]

_LOG_2 = float(np.log(2.0))
_LOG_2_PI = float(np.log(2.0 * np.pi))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class VbTerms:
    """One term of the bound for each example.

    Attributes:
      bpd: [B], the term in bits per dimension.
      pred_x_start: [B, ...], the predicted x_0 that it was computed with.
    """

    bpd: jax.Array
    pred_x_start: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Bound:
    """The variational bound and its terms, in bits per dimension.

    Attributes:
      total_bpd: [B], prior_bpd plus the sum of vb.
      prior_bpd: [B], L_T.
      vb: [B, T], L_t in column t; column 0 is L_0.
      x0_mse: [B, T], the mean squared error of the predicted x_0 at each t.
      mse: [B, T], the mean squared error of the predicted noise at each t.
    """

    total_bpd: jax.Array
    prior_bpd: jax.Array
    vb: jax.Array
    x0_mse: jax.Array
    mse: jax.Array


def prior_bpd(schedule: NoiseSchedule, x_start: jax.Array) -> jax.Array:
    """Returns L_T [B] = KL(q(x_T | x_0) || N(0, 1)) in bits per dimension; it does not depend on the network.

    Args:
      schedule: the noise schedule.
      x_start: [B, ...] data in [-1, 1].

    Raises:
      ValueError: if x_start is not of floating type.

    >>> from diffusers_fn.noise_schedules import linear_betas, make_noise_schedule
    >>> bits = prior_bpd(make_noise_schedule(linear_betas(1000)), jnp.full((1, 4), 0.5))
    >>> f"{bits[0]:.1e}"
    '7.3e-06'
    """
    check_data(x_start=x_start)
    mean, _, log_variance = q_mean_variance(schedule, x_start, jnp.asarray(schedule.betas.shape[0] - 1))
    return _bits(normal_kl(mean, jnp.broadcast_to(log_variance, mean.shape), 0.0, 0.0))


def vb_terms_bpd(
    schedule: NoiseSchedule,
    model_output: jax.Array,
    x_start: jax.Array,
    x_t: jax.Array,
    t: ArrayLike,
    *,
    parameterization: Parameterization = epsilon,
    variance: Variance = fixed_small,
    clip_denoised: bool = True,
    num_levels: ArrayLike | None = 256,
    approximate: bool = False,
) -> VbTerms:
    """Returns the term L_t of the bound, KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t)), and L_0 for t = 0.

    Args:
      schedule: the noise schedule.
      model_output: [B, ..., C], or [B, ..., 2C] if the variance is learned.
      x_start: [B, ..., C] data, in [-1, 1] if they have grey levels.
      x_t: [B, ..., C] a draw of q(x_t | x_0).
      t: [] or [B] integers, the timesteps.
      parameterization, variance, clip_denoised: as for `p_mean_variance`.
      num_levels, approximate: for L_0, as for `discretized_gaussian_log_likelihood`. None for data without grey levels,
        in any range: L_0 is then the negative log density of x_0 under the last step, and the bound one of a density.

    Raises:
      ValueError: as `p_mean_variance`, or if the schedule (not traced) ends at pure noise and x_0 does not follow from
        the network's output there (epsilon, score): L_t is infinite.

    >>> from diffusers_fn.noise_schedules import linear_betas, make_noise_schedule
    >>> schedule = make_noise_schedule(linear_betas(1000))
    >>> x_start, noise, t = jnp.zeros((1, 2)), jnp.ones((1, 2)), jnp.array([500])
    >>> x_t = q_sample(schedule, x_start, t, noise)
    >>> vb_terms_bpd(schedule, noise, x_start, x_t, t).bpd.round(4)  # 0 for the exact noise
    Array([0.], dtype=float32)
    """
    check_data(x_start=x_start, x_t=x_t)
    t = split_like(t, x_start)
    _check_terminal(schedule, t, parameterization)
    p = p_mean_variance(
        schedule, model_output, x_t, t,
        parameterization=parameterization, variance=variance, clip_denoised=clip_denoised,
    )  # fmt: skip
    true_mean, _, true_log_variance = q_posterior_mean_variance(schedule, x_start, x_t, t)
    true_log_variance = jnp.broadcast_to(true_log_variance, true_mean.shape)
    kl = _bits(normal_kl(true_mean, true_log_variance, p.mean, p.log_variance))
    x_start = jnp.asarray(x_start, p.mean.dtype)
    if num_levels is None:
        log_likelihood = -0.5 * ((x_start - p.mean) ** 2 * jnp.exp(-p.log_variance) + p.log_variance + _LOG_2_PI)
    else:
        log_likelihood = discretized_gaussian_log_likelihood(
            x_start, p.mean, 0.5 * p.log_variance, num_levels=num_levels, approximate=approximate
        )
    nll = -_bits(log_likelihood)
    return VbTerms(jnp.where(jnp.asarray(t) == 0, nll, kl), p.pred_x_start)


def calc_bpd(
    key: jax.Array,
    schedule: NoiseSchedule,
    denoise: Denoiser,
    x_start: jax.Array,
    *,
    variance: Variance = fixed_small,
    clip_denoised: bool = True,
    labels: ArrayLike | None = None,
    num_levels: ArrayLike | None = 256,
    approximate: bool = False,
) -> Bound:
    """Returns the bound on -log2 P(x_start) for each example, with its T terms.

    It is an unbiased estimate from one draw of x_t per term, with T network evaluations in one scan. Nichol & Dhariwal
    2021, https://arxiv.org/abs/2102.09672, section 3 (`calc_bpd_loop` in their code). For the bound of a shorter chain,
    `respace` the schedule and pass the kept timesteps as labels.

    Args:
      key: one key, or [B] keys; with [B] keys the draws of an example depend on its own key only.
      schedule: the noise schedule, of T timesteps.
      denoise: the denoiser, its conditioning bound.
      x_start: [B, ...] data in [-1, 1].
      variance: that of the reverse steps; learned and learned_range need a denoiser that predicts var_frac.
      clip_denoised: whether to clip the predicted x_0 to [-1, 1].
      labels: [T], the time label of the network at each timestep; None for the timesteps themselves.
      num_levels, approximate: for L_0, as for `vb_terms_bpd`.

    Raises:
      ValueError: if x_start is not of floating type, labels is not [T], the denoiser predicts var_frac and `variance`
        is fixed (or the reverse), or alpha = 0 at the last timestep and x_0 does not follow from the network's output.

    >>> from diffusers_fn import fixed_large, oracles
    >>> from diffusers_fn.noise_schedules import linear_betas, make_noise_schedule
    >>> schedule = make_noise_schedule(linear_betas(100, 1e-3, 0.2))
    >>> denoise, x_start = oracles.gaussian(0.0, 0.25), jnp.full((1, 64), 0.25)
    >>> bound = calc_bpd(jax.random.key(0), schedule, denoise, x_start, variance=fixed_large)
    >>> exact = 7.04  # bits, for levels 1 / 127.5 apart, one standard deviation from the mean
    >>> bound.vb.shape, exact < float(bound.total_bpd[0]) < exact + 1.0
    ((1, 100), True)
    """
    check_data(x_start=x_start)
    x_start = jnp.asarray(x_start, working_dtype(x_start))
    num_timesteps = schedule.betas.shape[0]
    t = np.arange(num_timesteps)
    levels = level_at(schedule, t)
    if labels is not None:
        if np.shape(labels) != (num_timesteps,):
            raise ValueError(f"labels must be [{num_timesteps}], one per timestep; got shape {np.shape(labels)}")
        levels = Level(levels.alpha, levels.sigma, namespace(labels).asarray(labels))
    check_pure_noise(denoise, levels, x_start)

    def term(key: jax.Array, inputs: tuple[jax.Array, Level]) -> tuple[jax.Array, tuple[jax.Array, ...]]:
        t, level = inputs
        noise = _random.normal(_random.fold_in(key, t), x_start)
        x_t = q_sample(schedule, x_start, t, noise)
        prediction = denoise(x_t, level)
        out = prediction.x0
        if prediction.var_frac is not None:
            out = jnp.concatenate([out, 2.0 * prediction.var_frac - 1.0], axis=-1)
        terms = vb_terms_bpd(
            schedule, out, x_start, x_t, t,
            parameterization=clean, variance=variance, clip_denoised=clip_denoised,
            num_levels=num_levels, approximate=approximate,
        )  # fmt: skip
        eps = predict_noise_from_start(schedule, x_t, t, terms.pred_x_start)
        return key, (terms.bpd, losses.mse(terms.pred_x_start, x_start), losses.mse(eps, noise))

    rows = jax.tree.map(lambda a: jnp.asarray(a, x_start.dtype), levels)
    _, parts = jax.lax.scan(term, key, (jnp.asarray(t), rows), reverse=True)
    vb, x0_mse, mse = (jnp.moveaxis(part, 0, 1) for part in parts)
    prior = prior_bpd(schedule, x_start)
    return Bound(prior + jnp.sum(vb, axis=1), prior, vb, x0_mse, mse)


def _bits(nats: jax.Array) -> jax.Array:
    return jnp.mean(nats.reshape(nats.shape[0], -1), axis=1) / _LOG_2


def _check_terminal(schedule: NoiseSchedule, t: ArrayLike, parameterization: Parameterization) -> None:
    """Raises ValueError if L_t is infinite at one of the timesteps t, or, if they are traced, at any timestep."""
    check_parameterization(parameterization)
    alphas, known = concrete(schedule.sqrt_alphas_cumprod), concrete(t)
    if alphas is None:
        return
    visited = alphas if known is None else alphas[known]
    if np.any(visited == 0) and is_zero(parameterization.line(Level(0.0, 1.0, 0.0))[0]):
        raise ValueError(
            f"the bound is infinite at pure noise (alpha = 0), where this schedule ends, for parameterization "
            f"{parameterization.name!r}: use v or x0, or a schedule that ends with alpha > 0"
        )
