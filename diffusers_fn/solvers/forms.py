"""The two forms of the exact solution that exponential methods start from, and what these methods share.

With a form's scale s, rate r and prediction m (s = sigma, r = alpha, m = x0_hat in data prediction; s = alpha,
r = sigma, m = eps_hat in noise prediction) the probability-flow ODE is d(x / s) = m d(r / s) exactly, so that

    x' = (s' / s) x + s' int m d(r / s),

and a method says how m is continued from its last values. lambda = log(alpha / sigma); h is a hop's step in it.

The reverse SDE, with eta times its noise, has the same kind of exact solution. In data prediction the noise makes x
forget faster, in noise prediction it makes m count for more (see `Hop`); eta = 0 is the ODE.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from diffusers_fn._arrays import concrete, is_zero, namespace, safe_sqrt
from diffusers_fn.levels import Array, Level, log_snr, root_snr_ratio
from diffusers_fn.solvers.base import Solver, check_num_levels, check_plan, linear_solver, neighbours


class Form(NamedTuple):
    """Which prediction a method integrates: d(x / scale) = m d(rate / scale).

    Attributes:
      scale: level -> S.
      rate: level -> S.
      keeps: (coefficient of x0_hat, coefficient of eps_hat) in m.
      sign: of lambda in rate / scale = exp(sign lambda).
    """

    scale: Callable[[Level], Array]
    rate: Callable[[Level], Array]
    keeps: tuple[float, float]
    sign: float


data_prediction = Form(lambda level: level.sigma, lambda level: level.alpha, (1.0, 0.0), 1.0)
noise_prediction = Form(lambda level: level.alpha, lambda level: level.sigma, (0.0, 1.0), -1.0)


class Hop(NamedTuple):
    """The exact solution over each hop of a plan, with the ODE's noise eta = 0 or the reverse SDE's eta > 0; [N-1, *S].

        x' = x_coef x + sign kappa r int m(u) e^(sign kappa (u - lambda')) du + noise z
        data prediction    kappa = 1 + eta,  r = alpha',            x_coef = e^(-eta h) sigma' / sigma,
                           noise = sigma' sqrt(1 - e^(-2 eta h))
        noise prediction   kappa = 1,        r = (1 + eta) sigma',  x_coef = alpha' / alpha,
                           noise = sigma' sqrt(eta (e^(2h) - 1))

    Attributes:
      x: x_coef.
      rate: r.
      kappa: as above.
      whole: what a constant prediction is multiplied by.
      slope: what a constant first derivative of m with respect to (u - lambda) / h is multiplied by.
      noise: the standard deviation, or None where eta is a Python 0.
    """

    x: Array
    rate: Array
    kappa: Array
    whole: Array
    slope: Array
    noise: Array | None


def exact_hop(levels: Level, form: Form, eta: Any = 0.0) -> Hop:
    """The numbers of `Hop`; eta is [] or [N - 1, *S]."""
    frm, to = neighbours(levels)
    ratio = root_snr_ratio(frm, to)  # e^-h
    h = half_steps(levels)
    if form.sign > 0:
        x = to.sigma / frm.sigma * _power(ratio, eta)
        kappa, rate = 1.0 + eta + 0.0 * to.alpha, to.alpha
        whole = to.alpha * (1.0 - ratio**kappa)
        noise = to.sigma * safe_sqrt(1.0 - _power(ratio, 2.0 * eta))
    else:
        x = to.alpha / frm.alpha
        kappa, rate = 1.0 + 0.0 * to.alpha, (1.0 + eta) * to.sigma
        whole = rate - (1.0 + eta) * frm.sigma * x
        noise = safe_sqrt(eta * (1.0 - ratio**2)) * frm.sigma * x  # sigma' e^h = sigma alpha' / alpha
    slope = rate - form.sign * whole / kappa * (1.0 / h)  # 1 / h = 0 out of pure noise, also for gradients
    return Hop(x, rate, kappa, whole, slope, None if is_zero(eta) else noise)


def _power(base: Array, exponent: Any) -> Array:
    """base^exponent, with slope 0 at base 0 where it is infinite: gradients pass through it."""
    xp = namespace(base, exponent)
    known = (base > 0) | (exponent >= 1)
    return xp.where(known, xp.where(known, base, 1.0) ** exponent, 0.0**exponent)


def half_steps(levels: Level) -> Array:
    """h, the step of each hop in lambda = log SNR / 2; infinite out of pure noise. [N - 1, *S]."""
    return 0.5 * namespace(levels).diff(log_snr(levels), axis=0)


def one_state(levels: Level, form: Form, m: list[Array], hop: Hop | None = None) -> Solver:
    """The solver x' = (s' / s) x + sum_k m[k] m_k, or the hop's own coefficient of x and noise."""
    frm, to = neighbours(levels)
    x0, eps = form.keeps
    if hop is None:
        return linear_solver(levels, x=[form.scale(to) / form.scale(frm)], x0=x0, eps=eps, m=m)
    return linear_solver(levels, x=[hop.x], x0=x0, eps=eps, m=m, noise=hop.noise)


def predict_correct(
    levels: Level, form: Form, predictor: list[Array], corrector: list[Array], hop: Hop, corrected: Any = 1.0
) -> Solver:
    """The solver that predicts the next level's state, and moves it once the prediction there is known.

    As the corrected point is the predicted one plus a sum of predictions, with the same noise, both fit one row: row i
    corrects the hop that led to its level, in units of that level's x, and predicts the next. The last level's state
    is the predicted one.

    predictor: columns of m_1, m_2, ... in the hop; corrector: of m', m_1, m_2, ... instead.
    corrected: [] or [N - 1, *S], what each hop's correction is multiplied by.
    """
    zero = 0.0 * predictor[0]
    num_columns = max(len(predictor) + 1, len(corrector))
    predictor = predictor + [zero] * (num_columns - len(predictor))
    corrector = corrector + [zero] * (num_columns - len(corrector))
    xp = namespace(levels, predictor, corrector, corrected)
    m = []
    for k in range(num_columns):
        moved = corrected * (corrector[k] - (predictor[k - 1] if k else 0.0))
        arrived = xp.concatenate([xp.zeros_like(moved[:1]), moved[:-1]])
        m.append(predictor[k] + hop.x * arrived)
    return one_state(levels, form, m, hop)


def whole_hop(levels: Level, form: Form) -> Array:
    """s' (r' / s' - r / s), what a constant prediction is multiplied by; [N - 1, *S]."""
    frm, to = neighbours(levels)
    return form.rate(to) - form.rate(frm) * (form.scale(to) / form.scale(frm))


def hops(column: Array) -> np.ndarray:
    """0 ... N - 2, shaped to combine with a column [N - 1, *S]."""
    return np.arange(column.shape[0]).reshape(-1, *(1,) * (column.ndim - 1))


def lagged(values: Array, k: int) -> Array:
    """The entry k before each hop's start, of [N, *S]; the first one where there is none (mask it)."""
    return values[np.maximum(np.arange(values.shape[0] - 1) - k, 0)]


def orders(num_hops: int, order: int, lower_order_final: bool = False, euler_at_final: bool = False) -> np.ndarray:
    """The order of each hop, [N - 1]: as many as there are predictions, and fewer at the end where that is asked for.

    The orders count down to one. They reach it in the hop into the last level with euler_at_final, and with
    lower_order_final alone in the denoise after it, so that the hop into the last level has order two.

    >>> orders(6, 3)
    array([1, 2, 3, 3, 3, 3])
    >>> orders(6, 3, lower_order_final=True), orders(6, 3, lower_order_final=True, euler_at_final=True)
    (array([1, 2, 3, 3, 3, 2]), array([1, 2, 3, 3, 2, 1]))
    """
    hop = np.arange(num_hops)
    used = np.minimum(hop + 1, order)
    left = num_hops - hop
    if lower_order_final:
        return np.minimum(used, left if euler_at_final else left + 1)
    return np.where(left == 1, 1, used) if euler_at_final else used


def check_order(levels: Level, order: int) -> None:
    """Raises ValueError unless levels are a plan that is long enough for a multistep method of order 1 to 4."""
    if order not in (1, 2, 3, 4):
        raise ValueError(f"order must be 1, 2, 3 or 4; got {order}")
    check_plan(levels)
    check_num_levels(levels, order + 1)


def check_alpha(levels: Level) -> None:
    """Raises ValueError if a readable alpha is zero, where sigma / alpha is infinite."""
    alpha = concrete(levels.alpha)
    if alpha is not None and np.any(alpha == 0):
        raise ValueError(
            "this solver needs alpha > 0 at every level: sigma / alpha is infinite on pure noise; start at a level "
            "with a little signal, or use ddim, euler, heun or dpmpp_2m, which can start at alpha = 0"
        )
