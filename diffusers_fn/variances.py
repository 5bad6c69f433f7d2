"""The variance of a reverse step: fixed_small, fixed_large, learned, learned_range.

Each is one value with two readings: on a table, for `p_mean_variance` and `p_sample`, and between any two levels,
for `solvers.ancestral`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffusers_fn._arrays import expand, namespace
from diffusers_fn.levels import Array, Level, posterior, transition
from diffusers_fn.noise_schedules import NoiseSchedule, table_entry


class Variance(NamedTuple):
    """How uncertain p(x_to | x_frm) is.

    Attributes:
      name: for messages.
      learned: whether the network puts out variance channels.
      on_table: (schedule, t, var_out) -> (variance, log_variance) of the step t -> t - 1; each has t's shape, or
        that of var_out, the network's variance channels, where it is learned.
      between: (frm, to) -> (std, log_range), where the standard deviation is std * exp(var_frac * log_range), or
        std where log_range is None; S each.
    """

    name: str
    learned: bool
    on_table: Callable[[NoiseSchedule, Any, Any], tuple[Any, Any]]
    between: Callable[[Level, Level], tuple[Array, Array | None]]


def _small_on_table(schedule: NoiseSchedule, t: Any, var_out: Any) -> tuple[Any, Any]:
    log_variance = table_entry(schedule, "posterior_log_variance_clipped", t)
    return table_entry(schedule, "posterior_variance", t), log_variance


def _small_between(frm: Level, to: Level) -> tuple[Array, None]:
    return namespace(frm, to).sqrt(posterior(frm, to)[2]), None


def _large_on_table(schedule: NoiseSchedule, t: Any, var_out: Any) -> tuple[Any, Any]:
    xp = namespace(schedule, t)
    first = xp.exp(table_entry(schedule, "posterior_log_variance_clipped", t))
    variance = xp.where(xp.asarray(t) == 0, first, table_entry(schedule, "betas", t))
    return variance, xp.log(variance)


def _large_between(frm: Level, to: Level) -> tuple[Array, None]:
    return namespace(frm, to).sqrt(transition(frm, to)[1]), None


def _learned_on_table(schedule: NoiseSchedule, t: Any, var_out: jax.Array) -> tuple[Any, Any]:
    return jnp.exp(var_out), var_out


def _learned_between(frm: Level, to: Level) -> tuple[Array, Array]:
    # The log variance is the output v = 2 var_frac - 1 itself, so std = exp(v / 2) = exp(-1/2) exp(var_frac).
    ones = 0.0 * frm.sigma + 1.0
    return float(np.exp(-0.5)) * ones, ones


def _range_on_table(schedule: NoiseSchedule, t: Any, var_out: jax.Array) -> tuple[Any, Any]:
    frac = (var_out + 1) / 2
    low = expand(table_entry(schedule, "posterior_log_variance_clipped", t), frac)
    high = jnp.log(expand(table_entry(schedule, "betas", t), frac))
    log_variance = frac * high + (1 - frac) * low
    return jnp.exp(log_variance), log_variance


def _range_between(frm: Level, to: Level) -> tuple[Array, Array]:
    small, large = _small_between(frm, to)[0], _large_between(frm, to)[0]
    return small, namespace(frm, to).log(large / small)


# beta_tilde_t, the posterior's: right for data that is a point (Ho et al. 2020, section 3.2).
fixed_small = Variance("fixed_small", False, _small_on_table, _small_between)

# beta_t, the transition's: right for normal data (Ho et al. 2020, section 3.2). At t = 0, beta_tilde at t = 1.
fixed_large = Variance("fixed_large", False, _large_on_table, _large_between)

# The network puts out the log variance itself.
learned = Variance("learned", True, _learned_on_table, _learned_between)

# The network puts out v in [-1, 1]: log variance = f log beta + (1 - f) log beta_tilde with f = (v + 1) / 2
# (Nichol & Dhariwal 2021, https://arxiv.org/abs/2102.09672, eq. 15).
learned_range = Variance("learned_range", True, _range_on_table, _range_between)
