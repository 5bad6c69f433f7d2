"""The type of a process, and functions that the families share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from diffusers_fn._arrays import concrete, floating, namespace
from diffusers_fn._types import Array, ArrayLike
from diffusers_fn.levels import Level

__all__ = ["Process", "TimeFunction", "at_log_snr", "check_ordered", "make_process", "on_circle", "ones", "sigmoid"]

TimeFunction = Callable[[Any], Any]


class Process(NamedTuple):
    """A continuous family of noise levels; S, the shape of t, is [] or [N].

    Attributes:
      level: t -> Level of shape S, with the network's time label.
      time: log SNR -> t, the inverse of t -> log_snr(level(t)).
      rates: t -> (f, g^2) of the forward equation, S each; not finite where alpha = 0.
      t_min: the default end of sampling.
      t_max: the default start of sampling.

    >>> from diffusers_fn.processes import vp
    >>> process = vp()
    >>> bool(process(0.5) == process.level(0.5))
    True
    """

    level: Callable[[Any], Level]
    time: TimeFunction
    rates: Callable[[Any], tuple[Array, Array]]
    t_min: float
    t_max: float

    def __call__(self, t: ArrayLike) -> Level:
        return self.level(t)


def at_log_snr(process: Process, log_snr: ArrayLike) -> Level:
    """Returns the level of a process at a log SNR, shape [] or [N].

    >>> from diffusers_fn.processes import flow
    >>> at_log_snr(flow(), 0.0).sigma
    np.float64(0.5)
    """
    return process.level(process.time(log_snr))


def make_process(
    coefficients: Callable[[Any], tuple[Array, Array]],
    time: TimeFunction,
    rates: Callable[[Any], tuple[Array, Array]],
    ends: tuple[Any, Any],
    domain: tuple[float, float] = (0.0, 1.0),
    label: TimeFunction = lambda t: t,
) -> Process:
    """Returns the process with the given functions; it checks the times and converts them to a floating dtype.

    Args:
      coefficients: t -> (alpha, sigma).
      time: log SNR -> t.
      rates: t -> (f, g^2).
      ends: t_min and t_max.
      domain: the lowest and the highest t for which the formulas hold.
      label: t -> the network's time label.

    >>> from diffusers_fn.processes import flow
    >>> make_process(lambda t: (1 - t, t), flow().time, flow().rates, ends=(0.0, 1.0))(0.25).sigma
    np.float64(0.25)
    """

    def checked_level(t: ArrayLike) -> Level:
        t = _check_time(t, domain)
        alpha, sigma = coefficients(t)
        return Level(alpha, sigma, label(t))

    def checked_rates(t: ArrayLike) -> tuple[Array, Array]:
        with np.errstate(divide="ignore"):  # infinite where alpha = 0
            return rates(_check_time(t, domain))

    def time_at(log_snr: ArrayLike) -> Array:
        return time(floating(log_snr))

    return Process(checked_level, time_at, checked_rates, *ends)


def sigmoid(x: Any) -> Array:
    """Returns 1 / (1 + exp(-x)), to full relative precision also where it is close to 0.

    >>> float(sigmoid(0.0))
    0.5
    """
    xp = namespace(x)
    return xp.exp(-xp.logaddexp(0.0, -x))


def on_circle(log_snr: ArrayLike) -> tuple[Array, Array]:
    """Returns (alpha, sigma) with alpha^2 + sigma^2 = 1 at a log SNR.

    >>> alpha, sigma = on_circle(0.0)
    >>> round(float(alpha), 6), round(float(sigma), 6)
    (0.707107, 0.707107)
    """
    xp = namespace(log_snr)
    return xp.sqrt(sigmoid(log_snr)), xp.sqrt(sigmoid(-log_snr))


def ones(like: Any) -> Array:
    """Returns ones with the shape and type of an array.

    >>> ones(np.float64(3.0))
    np.float64(1.0)
    """
    return namespace(like).ones_like(like)[()]


def check_ordered(strictly: bool = False, **bounds: Any) -> None:
    """Raises ValueError unless 0 < the first bound <= the second (< if strictly); traced bounds are not checked.

    >>> check_ordered(beta_min=2.0, beta_max=1.0)
    Traceback (most recent call last):
    ...
    ValueError: this process needs 0 < beta_min <= beta_max; got 2.0 and 1.0
    """
    (low_name, low), (high_name, high) = ((name, concrete(value)) for name, value in bounds.items())
    relation = "<" if strictly else "<="
    if low is not None and high is not None and not (low > 0 and (low < high or (low == high and not strictly))):
        raise ValueError(f"this process needs 0 < {low_name} {relation} {high_name}; got {low} and {high}")


def _check_time(t: Any, domain: tuple[float, float]) -> Array:
    t, (lowest, highest) = floating(t), domain
    values = concrete(t)
    if values is not None and values.size:
        slack = 1e-6 * (highest - lowest) if np.isfinite(highest) else 0.0  # for times rounded to float32
        wrong = values[~((values >= lowest - slack) & (values <= highest + slack))]
        if wrong.size:
            allowed = f"in [{lowest:g}, {highest:g}]" if np.isfinite(highest) else "above 0"
            raise ValueError(f"t must lie {allowed} for this process; got {wrong.flat[0]}")
    return t
