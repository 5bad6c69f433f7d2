"""Training losses: what is compared, how much each level counts, and which times are drawn.

Losses return one number an example, [B]; the caller takes the mean. Weights are functions of the level, written
once as the weight of |x0 - x0_hat|^2 and converted to whatever the network puts out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from diffusers_fn import _random
from diffusers_fn._arrays import check_data, entries, namespace
from diffusers_fn.levels import Array, Level, log_snr
from diffusers_fn.parameterizations import Parameterization, target
from diffusers_fn.processes import Process

Error = Callable[[jax.Array, jax.Array], jax.Array]
Weight = Callable[[Level], Array]
TimeSampler = Callable[[jax.Array, int], jax.Array]


# What is compared.


def mse(out: jax.Array, wanted: jax.Array) -> jax.Array:
    """Returns the mean squared error [B] of [B, ...].

    >>> mse(jnp.zeros((1, 2)), jnp.array([[1.0, 3.0]]))
    Array([5.], dtype=float32)
    """
    return _mean((out - wanted) ** 2)


def l1(out: jax.Array, wanted: jax.Array) -> jax.Array:
    """Returns the mean absolute error [B] of [B, ...].

    >>> l1(jnp.zeros((1, 2)), jnp.array([[1.0, 3.0]]))
    Array([2.], dtype=float32)
    """
    return _mean(jnp.abs(out - wanted))


def huber(out: jax.Array, wanted: jax.Array) -> jax.Array:
    """Returns the mean Huber error [B] of [B, ...]: d^2 / 2 up to |d| = 1, |d| - 1/2 beyond.

    >>> huber(jnp.zeros((1, 2)), jnp.array([[1.0, 3.0]]))
    Array([1.5], dtype=float32)
    """
    return _mean(optax.losses.huber_loss(out, wanted, delta=1.0))


def denoising_loss(
    out: jax.Array,
    x0: jax.Array,
    eps: jax.Array,
    level: Level,
    parameterization: Parameterization,
    *,
    error: Error = mse,
    weight: Weight | None = None,
) -> jax.Array:
    """Returns the loss [B] of a network's output against what it should have put out.

    With weight None this is L_simple, the plain error of the output (Ho et al. 2020,
    https://arxiv.org/abs/2006.11239, eq. 14). Otherwise the error is multiplied by `output_weight`, so that with
    `mse` the loss is weight(level) |x0 - x0_hat|^2 whatever the parameterization.

    Args:
      out: [B, ...] the network's output for x = alpha x0 + sigma eps (without variance channels).
      x0: [B, ...] clean data.
      eps: [B, ...] the noise in x.
      level: S = [] or [B].
      parameterization: what `out` means.
      error: mse, l1 or huber.
      weight: None, or one of the weights below.

    Raises:
      ValueError: if shapes or dtypes do not agree.

    >>> from diffusers_fn.parameterizations import epsilon
    >>> x0, eps = jnp.ones((1, 2)), jnp.zeros((1, 2))
    >>> denoising_loss(jnp.full((1, 2), 0.5), x0, eps, Level(0.8, 0.6, 0.0), epsilon)
    Array([0.25], dtype=float32)
    """
    check_data(x0=x0, eps=eps, out=out)
    loss = error(out, target(parameterization, x0, eps, level))
    return loss if weight is None else loss * output_weight(weight, parameterization)(level)


# How much each level counts: weights of |x0 - x0_hat|^2.


def output_weight(weight: Weight, parameterization: Parameterization) -> Weight:
    """Returns the weight of |out - target|^2 that equals `weight` on |x0 - x0_hat|^2.

    With x fixed, an error e in x0 is an error -alpha / sigma e in eps, hence (p - q alpha / sigma) e in the output
    p x0 + q eps: |x0 - x0_hat|^2 = (sigma / (alpha q - sigma p))^2 |out - target|^2.

    >>> from diffusers_fn.parameterizations import epsilon
    >>> round(float(output_weight(snr, epsilon)(Level(0.8, 0.6, 0.0))), 6)
    1.0
    """

    def converted(level: Level) -> Array:
        p, q = parameterization.line(level)
        return weight(level) * (level.sigma / (level.alpha * q - level.sigma * p)) ** 2

    return converted


def uniform(level: Level) -> Array:
    """Returns 1: every level's error in x0 counts the same.

    >>> uniform(Level(0.8, 0.6, 0.0))
    1.0
    """
    return 1.0 + 0.0 * level.alpha


def snr(level: Level) -> Array:
    """Returns alpha^2 / sigma^2; for the epsilon parameterization this is the plain loss (Ho et al. 2020, eq. 14).

    >>> round(float(snr(Level(0.8, 0.6, 0.0))), 4)
    1.7778
    """
    return (level.alpha / level.sigma) ** 2


def min_snr(gamma: float = 5.0) -> Weight:
    """Returns the weight min(SNR, gamma).

    Hang et al., "Efficient Diffusion Training via Min-SNR Weighting Strategy", 2023,
    https://arxiv.org/abs/2303.09556, section 3.4.

    >>> float(min_snr(1.0)(Level(0.8, 0.6, 0.0)))
    1.0
    """
    _check_positive("gamma", gamma)
    return lambda level: namespace(level).minimum(snr(level), gamma)


def truncated_snr(level: Level) -> Array:
    """Returns max(SNR, 1) (Salimans & Ho 2022, https://arxiv.org/abs/2202.00512, section 4).

    >>> float(truncated_snr(Level(0.6, 0.8, 0.0)))
    1.0
    """
    return namespace(level).maximum(snr(level), 1.0)


def p2(gamma: float = 1.0, k: float = 1.0) -> Weight:
    """Returns the weight SNR / (k + SNR)^gamma, which is 1 / (k + SNR)^gamma on the error in eps.

    Choi et al., "Perception Prioritized Training of Diffusion Models", 2022, https://arxiv.org/abs/2204.00227,
    eq. 8.

    >>> round(float(p2()(Level(0.8, 0.6, 0.0))), 4)
    0.64
    """
    _check_positive("k", k)
    return lambda level: snr(level) / (k + snr(level)) ** gamma


def edm(sigma_data: float = 0.5) -> Weight:
    """Returns the weight (sigma^2 + sigma_data^2) / (sigma sigma_data)^2, with sigma / alpha for sigma.

    It makes the plain loss of the edm parameterization (Karras et al. 2022, https://arxiv.org/abs/2206.00364,
    table 1 and eq. 8).

    >>> float(edm(0.5)(Level(1.0, 0.5, 0.0)))
    8.0
    """
    _check_positive("sigma_data", sigma_data)
    return lambda level: snr(level) + 1.0 / sigma_data**2


def sigmoid(bias: float = 0.0) -> Weight:
    """Returns the weight SNR sigmoid(bias - log SNR), which is sigmoid(bias - log SNR) on the error in eps.

    Kingma & Gao, "Understanding Diffusion Objectives as the ELBO with Simple Data Augmentation", 2023,
    https://arxiv.org/abs/2303.00848; Hoogeboom et al. 2024, https://arxiv.org/abs/2410.19324, section 3.

    >>> float(sigmoid()(Level(0.5, 0.5, 0.0)))
    0.5
    """
    return lambda level: snr(level) / (1.0 + namespace(level).exp(log_snr(level) - bias))


def likelihood(process: Process) -> Weight:
    """Returns the weight g^2 alpha^2 / (2 sigma^4) = -d(SNR)/dt / 2, with t uniform on the process.

    On the error of the score it is g^2 / 2, with which t_max - t_min times the mean loss over uniform t bounds the
    negative log-likelihood, in nats over the number of dimensions; other time samplers change the weight. Song et al.,
    "Maximum Likelihood Training of Score-Based Diffusion Models", 2021, https://arxiv.org/abs/2101.09258, theorem 1;
    Kingma et al. 2021, https://arxiv.org/abs/2107.00630, eq. 18.

    >>> from diffusers_fn.processes import vp
    >>> round(float(likelihood(vp())(vp()(0.5))), 4)
    0.4684
    """

    def weight(level: Level) -> Array:
        _, g2 = process.rates(process.time(log_snr(level)))
        return snr(level) * g2 / (2 * level.sigma**2)

    return weight


# What noise is drawn.


def offset_noise(key: jax.Array, eps: jax.Array, strength: float) -> jax.Array:
    """Returns eps + strength * z with one z a channel and example, so that a network learns to move the mean colour.

    N. Guttenberg, "Diffusion with Offset Noise", 2023, https://www.crosslabs.org/blog/diffusion-with-offset-noise;
    0.1 is usual. The noise is then of variance 1 + strength^2 on the mean of a channel, which sampling ignores.

    >>> eps = offset_noise(jax.random.key(0), jnp.zeros((2, 8, 8, 3)), 0.1)
    >>> eps.shape, bool(jnp.all(eps == eps[:, :1, :1]))
    ((2, 8, 8, 3), True)
    """
    shape = (eps.shape[0], *(1,) * (eps.ndim - 2), eps.shape[-1])
    return eps + strength * _random.draw(jax.random.normal, key, shape, eps.dtype)


# Which times are drawn: u in [0, 1), t = floor(u T) on a table of T timesteps.


def uniform_time(key: jax.Array, batch_size: int) -> jax.Array:
    """Returns u [batch_size], independent and uniform in [0, 1). With [B] keys each is drawn from its own.

    >>> uniform_time(jax.random.key(0), 4).shape
    (4,)
    """
    return _random.draw(jax.random.uniform, key, (batch_size,), jnp.result_type(float))


def stratified_time(key: jax.Array, batch_size: int) -> jax.Array:
    """Returns u [batch_size], one uniform draw from each of batch_size equal cells of [0, 1).

    Lowers the variance of the batch's mean loss (as the sampler of Kingma et al. 2021, appendix I.1,
    https://arxiv.org/abs/2107.00630). Strata belong to positions in the batch that the call is given.

    >>> bool(jnp.all(jnp.floor(4 * stratified_time(jax.random.key(0), 4)) == jnp.arange(4)))
    True
    """
    u = (jnp.arange(batch_size) + uniform_time(key, batch_size)) / batch_size
    return jnp.minimum(u, _below_one())


def antithetic_time(key: jax.Array, batch_size: int) -> jax.Array:
    """Returns u [batch_size], where entry i + ceil(B / 2) is the mirror image 1 - u of entry i.

    Song et al. 2021 (DDIM), https://arxiv.org/abs/2010.02502, official code.

    >>> u = antithetic_time(jax.random.key(0), 4)
    >>> (u[:2] + u[2:]).round(5)
    Array([1., 1.], dtype=float32)
    """
    u = uniform_time(key, batch_size)
    half = (batch_size + 1) // 2
    mirrored = jnp.minimum(1.0 - u[: batch_size - half], _below_one())
    return jnp.concatenate([u[:half], mirrored])


def logit_normal_time(mean: float = 0.0, std: float = 1.0) -> TimeSampler:
    """Returns the sampler of u = sigmoid(mean + std * z), z standard normal.

    Esser et al., "Scaling Rectified Flow Transformers", 2024, https://arxiv.org/abs/2403.03206, eq. 19.

    Raises:
      ValueError: unless std is positive.

    >>> logit_normal_time()(jax.random.key(0), 4).shape
    (4,)
    """
    _check_positive("std", std)

    def sampler(key: jax.Array, batch_size: int) -> jax.Array:
        z = _random.draw(jax.random.normal, key, (batch_size,), jnp.result_type(float))
        return jnp.minimum(jax.nn.sigmoid(mean + std * z), _below_one())

    return sampler


def mode_time(scale: float = 1.29) -> TimeSampler:
    """Returns the sampler of u' = 1 - u - scale (cos(pi u / 2)^2 - 1 + u), u uniform: more (scale > 0) in the middle.

    Esser et al. 2024, https://arxiv.org/abs/2403.03206, eq. 20, whose best setting is 1.29.

    Raises:
      ValueError: unless -1 <= scale <= 2 / (pi - 2), where u' rises with 1 - u.

    >>> mode_time()(jax.random.key(0), 4).shape
    (4,)
    """
    if not -1 <= scale <= 2 / (np.pi - 2):
        raise ValueError(f"scale must lie in [-1, {2 / (np.pi - 2):.4f}]; got {scale}")

    def sampler(key: jax.Array, batch_size: int) -> jax.Array:
        u = uniform_time(key, batch_size)
        shifted = 1.0 - u - scale * (jnp.cos(0.5 * np.pi * u) ** 2 - 1.0 + u)
        return jnp.clip(shifted, 0.0, _below_one())

    return sampler


def log_normal_level(
    at: Callable[[jax.Array], Level], mean: float = -1.2, std: float = 1.2
) -> Callable[[jax.Array, int], Level]:
    """Returns (key, B) -> Level[B] with log(sigma / alpha) = mean + std * z, z standard normal.

    Karras et al. 2022, https://arxiv.org/abs/2206.00364, table 1 (P_mean and P_std).

    Args:
      at: log SNR -> Level, for instance `functools.partial(processes.at_log_snr, processes.edm())`.
      mean, std: of log(sigma / alpha).

    Raises:
      ValueError: unless std is positive.

    >>> import functools
    >>> from diffusers_fn import processes
    >>> draw = log_normal_level(functools.partial(processes.at_log_snr, processes.edm()))
    >>> draw(jax.random.key(0), 4).sigma.shape
    (4,)
    """
    _check_positive("std", std)

    def draw(key: jax.Array, batch_size: int) -> Level:
        z = _random.draw(jax.random.normal, key, (batch_size,), jnp.result_type(float))
        return at(-2.0 * (mean + std * z))

    return draw


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LossSecondMoment:
    """The recent losses of every timestep, from which timesteps are drawn in proportion to their size.

    Attributes:
      history: [T, H] the last H losses of each timestep, the oldest first.
      count: [T] how many of them are filled.
    """

    history: jax.Array
    count: jax.Array


def loss_second_moment(num_timesteps: int, history: int = 10) -> LossSecondMoment:
    """Returns the empty record for importance sampling of t.

    Nichol & Dhariwal 2021, https://arxiv.org/abs/2102.09672, section 3.3: p_t proportional to sqrt(E[L_t^2]), and
    L_t is divided by p_t. Until every timestep has `history` losses, t is uniform.

    >>> record = update_loss_second_moment(loss_second_moment(2, history=1), jnp.arange(2), jnp.array([1.0, 3.0]))
    >>> time_probabilities(record, uniform_prob=0.0)
    Array([0.25, 0.75], dtype=float32)
    """
    if num_timesteps < 1 or history < 1:
        raise ValueError(f"num_timesteps and history must be at least 1; got {num_timesteps} and {history}")
    return LossSecondMoment(jnp.zeros((num_timesteps, history)), jnp.zeros((num_timesteps,), jnp.int32))


def time_probabilities(record: LossSecondMoment, uniform_prob: float = 1e-3) -> jax.Array:
    """Returns p [T], a share `uniform_prob` of which is spread evenly (see `loss_second_moment`).

    >>> time_probabilities(loss_second_moment(4))
    Array([0.25, 0.25, 0.25, 0.25], dtype=float32)
    """
    num_timesteps, size = record.history.shape
    root = jnp.sqrt(jnp.mean(record.history**2, axis=1))
    total = jnp.sum(root)
    p = (1 - uniform_prob) * root / jnp.where(total > 0, total, 1.0) + uniform_prob / num_timesteps
    warm = jnp.all(record.count == size) & (total > 0)
    return jnp.where(warm, p, 1.0 / num_timesteps)


def draw_times(
    key: jax.Array, record: LossSecondMoment, batch_size: int, uniform_prob: float = 1e-3
) -> tuple[jax.Array, jax.Array]:
    """Returns (t [B] int, weight [B]): timesteps drawn by `time_probabilities`, and 1 / (T p_t) to correct for it.

    >>> t, weight = draw_times(jax.random.key(0), loss_second_moment(4), batch_size=3)
    >>> t.shape, weight
    ((3,), Array([1., 1., 1.], dtype=float32))
    """
    p = time_probabilities(record, uniform_prob)
    t = _random.draw(lambda k, shape, _: jax.random.choice(k, p.shape[0], shape, p=p), key, (batch_size,), None)
    return t, 1.0 / (p.shape[0] * entries(p, t))


def update_loss_second_moment(record: LossSecondMoment, t: jax.Array, losses: jax.Array) -> LossSecondMoment:
    """Returns the record with the unweighted losses [B] at timesteps t [B] entered in order.

    >>> record = update_loss_second_moment(loss_second_moment(2, history=2), jnp.array([0, 0]), jnp.array([3.0, 4.0]))
    >>> record.history[0], record.count
    (Array([3., 4.], dtype=float32), Array([2, 0], dtype=int32))
    """
    size = record.history.shape[1]

    def enter(record: LossSecondMoment, item: tuple[jax.Array, jax.Array]) -> tuple[LossSecondMoment, None]:
        t, loss = item
        row, count = record.history[t], record.count[t]
        full = jnp.concatenate([row[1:], loss[None].astype(row.dtype)])
        row = jnp.where(count == size, full, row.at[jnp.minimum(count, size - 1)].set(loss))
        count = jnp.minimum(count + 1, size)
        return LossSecondMoment(record.history.at[t].set(row), record.count.at[t].set(count)), None

    return jax.lax.scan(enter, record, (t, losses))[0]


def _mean(error: jax.Array) -> jax.Array:
    return jnp.mean(error.reshape(error.shape[0], -1), axis=1)


def _below_one() -> float:
    """The largest float below 1: rounding must not turn u into 1, hence t into T."""
    return float(1.0 - jnp.finfo(jnp.result_type(float)).epsneg)


def _check_positive(name: str, value: Any) -> None:
    if not value > 0:
        raise ValueError(f"{name} must be positive; got {value}")
