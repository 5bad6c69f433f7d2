"""Exponential moving averages (EMA) of the parameters: schedules of the decay, and several averages at once.

After update n = 1, 2, ... of the parameters p, an average a becomes

    a <- a + w_n (p - a),    w_n = 1 - decay_n

and a `WeightSchedule` returns w_n. It returns w_n and not the decay, since the decay of a long average rounds to 1
in float32. For averages of other lengths after a run see `post_hoc_weights`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from diffusers_fn._arrays import check_count, check_number
from diffusers_fn._types import ArrayLike
from diffusers_fn.training.post_hoc import (
    combine,
    post_hoc_error,
    post_hoc_weights,
    power_function_gamma,
    power_function_std,
)

__all__ = [
    "Averages",
    "Averaging",
    "WeightSchedule",
    "averaging",
    "combine",
    "exponential",
    "half_life",
    "move",
    "post_hoc_error",
    "post_hoc_weights",
    "power_function",
    "power_function_gamma",
    "power_function_std",
    "ratio_warmed_up",
    "start",
    "warmed_up",
]

WeightSchedule = Callable[[Any], Any]  # n [], the number of updates including this one, from 1 -> w_n []


def __dir__() -> list[str]:
    return __all__


# Schedules of the weight.


def exponential(decay: float) -> WeightSchedule:
    """Returns the schedule w_n = 1 - decay of the plain exponential moving average.

    Args:
      decay: in [0, 1).

    Raises:
      ValueError: unless decay lies in [0, 1).

    >>> round(exponential(0.75)(jnp.array(1)), 4)
    0.25
    """
    _check_decay("decay", decay)
    return lambda n: 1.0 - decay


def warmed_up(
    decay: float, *, inv_gamma: float = 1.0, power: float = 2 / 3, min_decay: float = 0.0, start: int = 0
) -> WeightSchedule:
    """Returns the schedule of the decay 1 - (1 + s / inv_gamma)^-power, clipped to [min_decay, decay].

    Here s = n - 1 - start; up to s = 0 the average is the parameters themselves.

    The length of the average grows with the number of updates; with power 1 and inv_gamma 1 it is their mean. It is
    the warm-up of k-diffusion (`EMAWarmup`, Crowson, https://github.com/crowsonkb/k-diffusion) and of diffusers
    (`EMAModel(use_ema_warmup=True)`, whose update_after_step is `start`). With powers 2/3 and 3/4 the decay reaches
    0.999 after 31,600 and 10,000 updates.

    Args:
      decay: the largest decay, in [0, 1).
      inv_gamma: positive; multiplies the length of the warm-up.
      power: positive.
      min_decay: the smallest decay after s = 0, in [0, decay].
      start: the number of updates before the averaging starts.

    Raises:
      ValueError: if a number is out of range.

    >>> warmed_up(0.9999, power=1.0)(jnp.arange(1, 5)).round(4).tolist()[:2]  # the plain mean
    [1.0, 0.5]
    """
    _check_decay("decay", decay)
    _check_decay("min_decay", min_decay)
    check_count("start", start, 0)
    check_number("inv_gamma", inv_gamma)
    check_number("power", power)
    if not (inv_gamma > 0 and power > 0 and min_decay <= decay):
        raise ValueError(
            "inv_gamma and power must be positive and min_decay at most decay; got "
            f"{inv_gamma}, {power} and {min_decay}"
        )

    def weight(n: Any) -> Any:
        s = _float(jnp.maximum(n - 1 - start, 0))
        w = (1.0 + s / inv_gamma) ** -power
        return jnp.where(s == 0, 1.0, jnp.clip(w, 1.0 - decay, 1.0 - min_decay))

    return weight


def ratio_warmed_up(decay: float, *, min_decay: float = 0.0, start: int = 0) -> WeightSchedule:
    """Returns the schedule of the decay (1 + s) / (10 + s), clipped to [min_decay, decay], with s = n - 1 - start.

    Up to s = 0 the average is the parameters themselves. It is the warm-up of TensorFlow's `ExponentialMovingAverage`
    and the default of diffusers' `EMAModel`.

    Args: as for `warmed_up`.

    Raises:
      ValueError: if a number is out of range.

    >>> ratio_warmed_up(0.9999)(jnp.array([1, 9])).tolist()
    [1.0, 0.5]
    """
    _check_decay("decay", decay)
    _check_decay("min_decay", min_decay)
    check_count("start", start, 0)
    if min_decay > decay:
        raise ValueError(f"min_decay must be at most decay = {decay}; got {min_decay}")

    def weight(n: Any) -> Any:
        s = _float(jnp.maximum(n - 1 - start, 0))
        return jnp.where(s == 0, 1.0, jnp.clip(9.0 / (10.0 + s), 1.0 - decay, 1.0 - min_decay))

    return weight


def half_life(updates: float, *, ramp: float | None = 0.05) -> WeightSchedule:
    """Returns the schedule of the decay 2^(-1 / h) with the half-life h = min(updates, ramp * n).

    Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models", 2022,
    https://arxiv.org/abs/2206.00364, appendix F.3. Their code counts images: `updates` is its half-life divided by the
    batch size.

    Args:
      updates: the half-life, the number of updates after which the weight of an update has halved.
      ramp: limits the half-life to this fraction of the updates so far; None for no limit.

    Raises:
      ValueError: if a number is not positive.

    >>> round(float(half_life(10.0, ramp=None)(jnp.array(1))), 4)
    0.067
    """
    if not updates > 0 or (ramp is not None and not ramp > 0):
        raise ValueError(f"updates and ramp must be positive; got {updates} and {ramp}")
    return lambda n: -jnp.expm1(-math.log(2.0) / jnp.minimum(updates, jnp.inf if ramp is None else ramp * _float(n)))


def power_function(std: float) -> WeightSchedule:
    """Returns the schedule w_n = 1 - (1 - 1/n)^(gamma + 1), whose average weights time t of a run by t^gamma.

    The length of the average is proportional to that of the run: std is the standard deviation of t under these
    weights, divided by the run's length, and gamma = `power_function_gamma(std)`. Karras et al., "Analyzing and
    Improving the Training Dynamics of Diffusion Models" (EDM2), 2024, https://arxiv.org/abs/2312.02696, eq. 127. If
    averages of two lengths are stored during a run, `post_hoc_weights` reconstructs other lengths from them.

    Args:
      std: sigma_rel, in (0, 0.288]; the paper stores 0.05 and 0.10.

    Raises:
      ValueError: if std is out of range.

    >>> power_function(0.1)(jnp.array([1, 1000])).round(6)
    Array([1.     , 0.00791], dtype=float32)
    """
    exponent = float(power_function_gamma(std)) + 1.0
    return lambda n: -jnp.expm1(exponent * jnp.log1p(-1.0 / _float(n)))


# Averages as a state.


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Averages:
    """Several averages of the parameters.

    Attributes:
      count: [] int32, the number of updates so far.
      trees: one tree like the parameters per schedule, at least float32.
    """

    count: jax.Array
    trees: tuple[Any, ...]


class Averaging(NamedTuple):
    """A pair of pure functions.

    Attributes:
      init: (params) -> Averages before the first update, each equal to the parameters.
      update: (averages, params) -> Averages after one more update of the parameters.
    """

    init: Callable[[Any], Averages]
    update: Callable[[Averages, Any], Averages]


def averaging(*schedules: WeightSchedule) -> Averaging:
    """Returns the pair (init, update) that computes one average per schedule.

    >>> keep = averaging(exponential(0.5), power_function(0.1))
    >>> averages = keep.update(keep.init({"w": jnp.zeros(1)}), {"w": jnp.ones(1)})
    >>> [tree["w"] for tree in averages.trees]
    [Array([0.5], dtype=float32), Array([1.], dtype=float32)]
    """

    def init(params: Any) -> Averages:
        return Averages(jnp.zeros((), jnp.int32), tuple(start(params) for _ in schedules))

    def update(averages: Averages, params: Any) -> Averages:
        count = averages.count + 1
        trees = (move(tree, params, weight(count)) for tree, weight in zip(averages.trees, schedules, strict=True))
        return Averages(count, tuple(trees))

    return Averaging(init, update)


def start(params: Any) -> Any:
    """Returns the average before the first update: a copy of the parameters, at least float32.

    A copy, since a donated state must not contain a buffer twice; float32, since the increments of a bfloat16 average
    round to zero.

    >>> start({"w": jnp.ones(1, jnp.bfloat16)})
    {'w': Array([1.], dtype=float32)}
    """
    return jax.tree.map(lambda p: jnp.array(p, jnp.promote_types(p.dtype, jnp.float32), copy=True), params)


def move(average: Any, params: Any, weight: ArrayLike) -> Any:
    """Returns average + weight (params - average), leaf by leaf, in the average's precision.

    >>> move({"w": jnp.zeros(1)}, {"w": jnp.ones(1)}, 0.25)
    {'w': Array([0.25], dtype=float32)}
    """
    return jax.tree.map(lambda a, p: a + jnp.asarray(weight, a.dtype) * (p.astype(a.dtype) - a), average, params)


def _float(n: Any) -> jax.Array:
    """The number as a float32 array, or float64 if that is JAX's default."""
    return jnp.asarray(n, jnp.result_type(float))


def _check_decay(name: str, value: float) -> None:
    check_number(name, value)
    if not value < 1:
        raise ValueError(f"{name} must lie in [0, 1); got {value}")
