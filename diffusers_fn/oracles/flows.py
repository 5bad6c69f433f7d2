"""Exact probability flows and exact densities of noised data; NumPy float64 for NumPy inputs."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np

from diffusers_fn._arrays import namespace
from diffusers_fn._types import Array, ArrayLike, Numbers
from diffusers_fn.levels import Level
from diffusers_fn.oracles.denoisers import as_data, components_last, mixture_components, per_example

__all__ = ["draw_mixture", "gaussian_flow", "mixture_flow", "mixture_log_prob"]


def gaussian_flow(mean: ArrayLike, std: ArrayLike, x: ArrayLike, start: Level, end: Level) -> Array:
    """Returns the end of the probability flow of N(mean, std^2) data from x at one level to another, up or down.

    The flow is affine and preserves the standard score:

        (x' - alpha' mean) / sqrt(alpha'^2 std^2 + sigma'^2) = (x - alpha mean) / sqrt(alpha^2 std^2 + sigma^2)

    Args:
      mean: a number, or an array that broadcasts with x.
      std: as mean.
      x: any shape, NumPy or JAX; the result is of the same kind.
      start: one level, S = [].
      end: one level, S = []; it may be the clean one.

    >>> float(gaussian_flow(0.5, 0.3, 10.0, Level(0.0, 10.0, 0.0), Level(1.0, 0.0, 0.0)))
    0.8
    """
    xp = namespace(mean, std, x, start, end)
    spread = lambda level: xp.sqrt((level.alpha * std) ** 2 + level.sigma**2)  # noqa: E731
    moved: Array = end.alpha * mean + spread(end) / spread(start) * (x - start.alpha * mean)
    return moved


def mixture_flow(weights: Numbers, means: Numbers, stds: Numbers, x: Numbers, start: Level, end: Level) -> np.ndarray:
    """Returns the end of the probability flow of mixture data from x, for each entry; it preserves the quantile.

        F'(x') = F(x),   F the distribution function of sum_k w_k N(alpha mean_k, alpha^2 std_k^2 + sigma^2)

    It is the flow of `mixture(..., independent=True)`. Computed on the host in float64, by bisection.

    Args:
      weights: [K], positive; they are normalised to sum to 1.
      means: [K].
      stds: [K], positive.
      x: any shape, NumPy, within about 8 standard deviations of a component.
      start: one level, S = [].
      end: one level, S = [].

    Raises:
      ValueError: unless weights, means and stds are [K].

    >>> noisy, clean = Level(0.0, 10.0, 0.0), Level(1.0, 0.0, 0.0)
    >>> mixture_flow([0.5, 0.5], [-1.0, 1.0], [0.1, 0.1], np.array([6.7448975]), noisy, clean).round(4)
    array([1.])
    """
    shares, centres, widths = (np.asarray(a, np.float64) for a in (weights, means, stds))
    if shares.ndim != 1 or centres.shape != shares.shape or widths.shape != shares.shape:
        raise ValueError(f"weights, means and stds must be [K]; got {shares.shape}, {centres.shape}, {widths.shape}")
    shares = shares / shares.sum()
    x = np.asarray(x, np.float64)
    erfc = np.vectorize(math.erfc, otypes=[np.float64])

    def tail(x: np.ndarray, level: Level, upper: np.ndarray) -> np.ndarray:
        """The probability above x if `upper`, else below x; the smaller of the two is accurate."""
        spread = np.sqrt((level.alpha * widths) ** 2 + level.sigma**2)
        score = (x[..., None] - level.alpha * centres) / spread
        return np.sum(shares * 0.5 * erfc(np.where(upper[..., None], score, -score) / np.sqrt(2.0)), axis=-1)

    upper = tail(x, start, np.zeros(x.shape, bool)) > 0.5
    target = tail(x, start, upper)
    reach = 40.0 * np.sqrt((end.alpha * widths) ** 2 + end.sigma**2).max()
    low = np.full(x.shape, (end.alpha * centres).min() - reach)
    high = np.full(x.shape, (end.alpha * centres).max() + reach)
    for _ in range(90):  # bisection to rounding
        middle = 0.5 * (low + high)
        left = np.where(upper, tail(middle, end, upper) > target, tail(middle, end, upper) < target)
        low, high = np.where(left, middle, low), np.where(left, high, middle)
    return 0.5 * (low + high)


def mixture_log_prob(
    weights: Numbers, means: Numbers, stds: Numbers, *, independent: bool = False
) -> Callable[[Array, Level], Array]:
    """Returns (x, level) -> [B], the log density in nats of x at a level for mixture data.

        log p(x) = log sum_k w_k N(x; alpha mean_k, alpha^2 std_k^2 + sigma^2)

    Its gradient in x is -E[eps | x] / sigma with the eps of `mixture`. One component is a Gaussian; stds of 0 are a
    finite data set.

    Args: as for `mixture`.
    Raises: as `mixture`.

    >>> log_prob = mixture_log_prob([1.0], [0.0], [1.0])
    >>> f"{log_prob(jnp.zeros((1, 2)), Level(0.8, 0.6, 0.0))[0]:.4f}"  # -log(2 pi)
    '-1.8379'
    """
    on_device, on_host = mixture_components(weights, means, stds)

    def log_prob(x: Array, level: Level) -> Array:
        xp = namespace(weights, means, stds, x, level.alpha, level.sigma)
        x = as_data(x, xp)
        components = on_device if on_host is None or xp is jnp else on_host
        log_w, mu, sd = (components_last(a, x) for a in components)  # [1, ..., K]
        alpha, sigma = per_example(level.alpha, x[..., None], xp), per_example(level.sigma, x[..., None], xp)
        var = (alpha * sd) ** 2 + sigma**2
        log_density = -0.5 * ((x[..., None] - alpha * mu) ** 2 / var + xp.log(2.0 * xp.pi * var))
        axes = tuple(range(1, x.ndim))
        if not independent:
            log_density = xp.sum(log_density, axis=axes)  # [B, K]
            log_w = log_w.reshape(1, -1)
        total = _logsumexp(log_density + log_w, xp)
        return xp.sum(total, axis=axes) if independent else total

    return log_prob


def draw_mixture(key: jax.Array, weights: Numbers, means: Numbers, stds: Numbers, num: int) -> jax.Array:
    """Returns num samples of mixture data, [num, ...].

    Args:
      key: one key.
      weights: [K], positive; they are normalised to sum to 1.
      means: [K, ...].
      stds: as means.
      num: the number of samples.

    Raises:
      ValueError: as `mixture`.

    >>> draw_mixture(jax.random.key(0), [0.5, 0.5], jnp.array([[-1.0, 1.0], [1.0, 1.0]]), jnp.zeros((2, 2)), 3).shape
    (3, 2)
    """
    (log_weights, means, stds), _ = mixture_components(weights, means, stds)
    which_key, noise_key = jax.random.split(key)
    which = jax.random.categorical(which_key, log_weights, shape=(num,))
    stds = stds.reshape(stds.shape + (1,) * (means.ndim - stds.ndim))
    return means[which] + stds[which] * jax.random.normal(noise_key, (num, *means.shape[1:]), means.dtype)


def _logsumexp(values: Array, xp: ModuleType) -> Array:
    """Over the last axis."""
    return jax.nn.logsumexp(values, axis=-1) if xp is jnp else np.logaddexp.reduce(values, axis=-1)
