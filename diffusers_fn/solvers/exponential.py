"""The exact solution of a step, which exponential methods (DPM-Solver, DEIS, UniPC, SA-Solver) start from.

With the scale s, the rate r and the prediction m of a form

    data prediction    s = sigma,   r = alpha,   m = x0_hat,    sign = +1
    noise prediction   s = alpha,   r = sigma,   m = eps_hat,   sign = -1

the probability-flow ODE is d(x / s) = m d(r / s) exactly, and r / s = e^(sign lambda), lambda = log(alpha / sigma). So

    x' = (s' / s) x + sign r' int m(u) e^(sign (u - lambda')) du,     u from lambda to lambda' = lambda + h,

and a method chooses how to extrapolate m(u) from its last values. The reverse SDE with eta times its noise has an exact
solution of the same form: a smaller coefficient of x in data prediction, a larger weight of m in noise prediction.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from diffusers_fn._arrays import is_zero, namespace, safe_sqrt
from diffusers_fn._types import Array, ArrayLike
from diffusers_fn.levels import Level, log_snr, root_snr_ratio

__all__ = [
    "ExponentialForm",
    "ExponentialStep",
    "data_prediction",
    "exponential_step",
    "noise_prediction",
]


class ExponentialForm(NamedTuple):
    """Which prediction m an exponential method integrates, see this module's docstring: data or noise prediction.

    Attributes:
      scale: level -> s, [] or [B].
      rate: level -> r, [] or [B].
      keeps: (coefficient of x0_hat, coefficient of eps_hat) in m.
      sign: of lambda in r / s = e^(sign lambda).
    """

    scale: Callable[[Level], Array]
    rate: Callable[[Level], Array]
    keeps: tuple[float, float]
    sign: float


data_prediction = ExponentialForm(lambda level: level.sigma, lambda level: level.alpha, (1.0, 0.0), 1.0)
noise_prediction = ExponentialForm(lambda level: level.alpha, lambda level: level.sigma, (0.0, 1.0), -1.0)


class ExponentialStep(NamedTuple):
    """The exact solution from one level to another, of the ODE (eta = 0) or the reverse SDE (eta > 0).

        x' = x_coef x + sign kappa r int m(u) e^(sign kappa (u - lambda')) du + noise z
           = x_coef x + w0 m + w1 h dm/du + w2 h^2 d^2m/du^2 + ... + noise z          (derivatives at the start)

        data prediction    kappa = 1 + eta,  r = alpha',            x_coef = e^(-eta h) sigma' / sigma,
                           noise = sigma' sqrt(1 - e^(-2 eta h))
        noise prediction   kappa = 1,        r = (1 + eta) sigma',  x_coef = alpha' / alpha,
                           noise = sigma' sqrt(eta (e^(2h) - 1))

    Attributes:
      x: x_coef.
      w0: the weight of m; in data prediction of the ODE alpha' (1 - e^-h).
      w1: the weight of the first derivative, r - sign w0 / (kappa h).
      w2: the weight of the second derivative, r / 2 - sign w1 / (kappa h).
      noise: a standard deviation, or None where eta is a Python 0.
      h: the length of the step in lambda; infinite from pure noise.
      rate: r.
      kappa: as above.
    """

    x: Array
    w0: Array
    w1: Array
    w2: Array
    noise: Array | None
    h: Array
    rate: Array
    kappa: Array


def exponential_step(start: Level, end: Level, form: ExponentialForm, eta: ArrayLike = 0.0) -> ExponentialStep:
    """Returns the exact solution from `start` to `end`, the cleaner level.

    Args:
      start: S = [...]; alpha = 0 is allowed in data prediction.
      end: as start.
      form: data_prediction or noise_prediction.
      eta: [] or as start.

    From sigma = 2 to sigma = 1, alpha = 1, with constant x0_hat and the ODE:

    >>> step = exponential_step(Level(1.0, 2.0, 0.0), Level(1.0, 1.0, 0.0), data_prediction)
    >>> float(step.x), float(step.w0)
    (0.5, 0.5)
    """
    kappa: Array
    ratio = root_snr_ratio(start, end)  # e^-h
    h = 0.5 * (log_snr(end) - log_snr(start))
    x, rate, one = form.scale(end) / form.scale(start), form.rate(end), 1.0 + 0.0 * end.alpha
    if form.sign > 0:
        x = x * _power(ratio, eta)
        kappa = one + eta
        w0 = rate * (1.0 - ratio**kappa)
        noise = end.sigma * safe_sqrt(1.0 - _power(ratio, 2.0 * eta))
    else:
        kappa, rate = one, (1.0 + eta) * rate
        w0 = rate - (1.0 + eta) * start.sigma * x
        noise = safe_sqrt(eta * (1.0 - ratio**2)) * start.sigma * x  # sigma' e^h = sigma alpha' / alpha
    per_h = 1.0 / h  # 0 from pure noise, for gradients too
    w1 = rate - form.sign * w0 / kappa * per_h
    w2 = 0.5 * rate - form.sign * w1 / kappa * per_h
    return ExponentialStep(x, w0, w1, w2, None if is_zero(eta) else noise, h, rate, kappa)


def _power(base: Array, exponent: Any) -> Array:
    """base^exponent, with derivative 0 at base 0 in place of infinity, so that gradients stay finite."""
    xp = namespace(base, exponent)
    known = (base > 0) | (exponent >= 1)
    return xp.where(known, xp.where(known, base, 1.0) ** exponent, 0.0**exponent)
