"""The variance of a reverse step: fixed_small, fixed_large, learned, learned_range.

Each is computed in two ways: at a timestep of a noise schedule, for `p_mean_variance` and `p_sample`, and between any
two levels, for `solvers.ancestral`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffusers_fn._arrays import expand, namespace
from diffusers_fn._types import Array
from diffusers_fn.levels import Level, posterior, transition
from diffusers_fn.noise_schedules import NoiseSchedule, table_entry

__all__ = ["Variance", "fixed_large", "fixed_small", "learned", "learned_range"]


def __dir__() -> list[str]:
    return __all__


class Variance(NamedTuple):
    """The variance of p(x_cleaner | x_noisier).

    Attributes:
      name: for error messages.
      learned: whether the network returns variance channels.
      on_table: (schedule, t, var_out) -> (variance, log_variance) of the step t -> t - 1. Both have the shape of t or,
        if learned, the shape of var_out, the network's variance channels.
      between: (noisier, cleaner) -> (std, log_range), shape S each. The standard deviation is
        std * exp(var_frac * log_range), or std if log_range is None.

    >>> std, _ = fixed_large.between(Level(0.6, 0.8, 1.0), Level(1.0, 0.0, 0.0))
    >>> round(float(std), 6)
    0.8
    """

    name: str
    learned: bool
    on_table: Callable[[NoiseSchedule, Any, Any], tuple[Any, Any]]
    between: Callable[[Level, Level], tuple[Array, Array | None]]


def _small_on_table(schedule: NoiseSchedule, t: Any, var_out: Any) -> tuple[Any, Any]:
    log_variance = table_entry(schedule, "posterior_log_variance_clipped", t)
    return table_entry(schedule, "posterior_variance", t), log_variance


def _small_between(noisier: Level, cleaner: Level) -> tuple[Array, None]:
    return namespace(noisier, cleaner).sqrt(posterior(noisier, cleaner)[2]), None


def _large_on_table(schedule: NoiseSchedule, t: Any, var_out: Any) -> tuple[Any, Any]:
    xp = namespace(schedule, t)
    first = xp.exp(table_entry(schedule, "posterior_log_variance_clipped", t))
    variance = xp.where(xp.asarray(t) == 0, first, table_entry(schedule, "betas", t))
    return variance, xp.log(variance)


def _large_between(noisier: Level, cleaner: Level) -> tuple[Array, None]:
    return namespace(noisier, cleaner).sqrt(transition(noisier, cleaner)[1]), None


def _learned_on_table(schedule: NoiseSchedule, t: Any, var_out: jax.Array) -> tuple[Any, Any]:
    return jnp.exp(var_out), var_out


def _learned_between(noisier: Level, cleaner: Level) -> tuple[Array, Array]:
    # The log variance is the output v = 2 var_frac - 1, so std = exp(v / 2) = exp(-1/2) exp(var_frac).
    ones = 0.0 * noisier.sigma + 1.0
    return float(np.exp(-0.5)) * ones, ones


def _range_on_table(schedule: NoiseSchedule, t: Any, var_out: jax.Array) -> tuple[Any, Any]:
    frac = (var_out + 1) / 2
    low = expand(table_entry(schedule, "posterior_log_variance_clipped", t), frac)
    high = jnp.log(expand(table_entry(schedule, "betas", t), frac))
    log_variance = frac * high + (1 - frac) * low
    return jnp.exp(log_variance), log_variance


def _range_between(noisier: Level, cleaner: Level) -> tuple[Array, Array]:
    small, large = _small_between(noisier, cleaner)[0], _large_between(noisier, cleaner)[0]
    return small, namespace(noisier, cleaner).log(large / small)


# beta_tilde_t of the posterior: optimal if the data is a single point (Ho et al. 2020, section 3.2).
fixed_small = Variance("fixed_small", False, _small_on_table, _small_between)

# beta_t of the transition: optimal if the data is standard normal (Ho et al. 2020, section 3.2). At t = 0 it is
# beta_tilde at t = 1.
fixed_large = Variance("fixed_large", False, _large_on_table, _large_between)

# The network returns the log variance.
learned = Variance("learned", True, _learned_on_table, _learned_between)

# The network returns v in [-1, 1]: log variance = f log beta + (1 - f) log beta_tilde with f = (v + 1) / 2
# (Nichol & Dhariwal 2021, https://arxiv.org/abs/2102.09672, eq. 15).
learned_range = Variance("learned_range", True, _range_on_table, _range_between)
