"""The two forms of the exact solution that exponential methods start from, and what these methods share.

With a form's scale s, rate r and prediction m (s = sigma, r = alpha, m = x0_hat in data prediction; s = alpha,
r = sigma, m = eps_hat in noise prediction) the probability-flow ODE is d(x / s) = m d(r / s) exactly, so that

    x' = (s' / s) x + s' int m d(r / s),

and a method says how m is continued from its last values. lambda = log(alpha / sigma); h is a hop's step in it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from diffusers_fn._arrays import concrete
from diffusers_fn.levels import Array, Level
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


def one_state(levels: Level, form: Form, m: list[Array]) -> Solver:
    """The solver x' = (s' / s) x + sum_k m[k] m_k."""
    frm, to = neighbours(levels)
    x0, eps = form.keeps
    return linear_solver(levels, x=[form.scale(to) / form.scale(frm)], x0=x0, eps=eps, m=m)


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
