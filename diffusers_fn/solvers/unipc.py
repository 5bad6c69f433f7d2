"""UniPC: an exponential multistep predictor with a corrector that costs no network evaluation.

Zhao et al., "UniPC: A Unified Predictor-Corrector Framework", 2023, https://arxiv.org/abs/2302.04867.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from diffusers_fn._arrays import namespace
from diffusers_fn._types import Array, ArrayLike
from diffusers_fn.levels import Level, log_snr
from diffusers_fn.solvers.base import Solver
from diffusers_fn.solvers.exponential import ExponentialForm, data_prediction, exponential_step
from diffusers_fn.solvers.multistep_tables import (
    check_order,
    predictor_corrector_table,
    step_index,
    step_orders,
    value_before,
)
from diffusers_fn.solvers.plans import check_alpha, neighbours

__all__ = ["unipc"]


def unipc(
    levels: Level,
    order: int = 3,
    form: ExponentialForm = data_prediction,
    *,
    bh1: bool = False,
    corrector: ArrayLike | Sequence[bool] = True,
    lower_order_final: bool = True,
    euler_at_final: bool = False,
) -> Solver:
    """Returns UniPC (Zhao et al. 2023, https://arxiv.org/abs/2302.04867, algorithms 1 and 2).

    There is one network evaluation per step. In a step of length h in lambda = log(alpha / sigma), from x with the
    predictions m_1, m_2, ...:

        predictor   x' = (s' / s) x + c m_1 + B sum_k rho_k (m_{1+k} - m_1) / r_k
        corrector   once m' at x' is known, adds the term with r = 1, which moves x to the corrected point

    The corrector changes the state before the next step starts and raises the order to `order` + 1 on a smooth grid;
    orders 3 and 4 need lower_order_final=False for that, since the lowered order of the last step limits it to three.
    The state at the last level is the predicted one, as in the authors' code. Their third choice of weights, exact for
    each order, is `sa_solver` with tau = 0.

    Args:
      levels: Level[N], any process whose first alpha is positive.
      order: 1 to 4, of the predictor; the first steps have fewer predictions and a lower order.
      form: data_prediction or noise_prediction.
      bh1: whether B(h) = h (the paper's B_1) instead of e^h - 1 (B_2).
      corrector: whether to correct; or a factor for the correction of each step, [N - 1], 0 for none.
      lower_order_final: whether the order falls to one at the end, as in the authors' code: two in the step into
        the last level, one in the final denoise.
      euler_at_final: whether the step into the last level is of first order already, for runs that end there.

    Raises:
      ValueError: if levels are not a plan (see `check_plan`), alpha = 0, or the order is not 1, 2, 3 or 4.

    >>> from diffusers_fn import grids
    >>> unipc(grids.karras(4), order=1).rows.m.shape  # the corrector uses one more value
    (4, 2)
    """
    check_order(levels, order)
    check_alpha(levels)
    corrector = _corrector(corrector, levels)
    xp = namespace(levels)
    half_log_snr = 0.5 * log_snr(levels)
    step = exponential_step(*neighbours(levels), form)
    h = step.h
    # m_{1+k} lies at r_k h, which is negative; where there is none r_k is -k.
    r = [
        xp.where(step_index(h) >= k, (value_before(half_log_snr, k) - half_log_snr[:-1]) / h, -float(k))
        for k in range(1, order)
    ]
    signed_h = -form.sign * h
    b_h = signed_h if bh1 else xp.expm1(signed_h)
    b = -step.rate * b_h

    predicted, corrected = [0.0 * h] * order, [0.0 * h] * (order + 1)
    used = step_orders(h.shape[0], order, lower_order_final, euler_at_final).reshape(-1, *(1,) * (h.ndim - 1))
    for p in range(1, order + 1):
        mine = used == p
        rho = [0.5 + 0.0 * h] if p == 2 else _solve(r[: p - 1], signed_h, b_h)
        weights = _weights(step.w0, b, rho, r[: p - 1])
        predicted = [xp.where(mine, new, old) for new, old in zip(_pad(weights, order, h), predicted)]
        rho = [0.5 + 0.0 * h] if p == 1 else _solve([*r[: p - 1], 1.0 + 0.0 * h], signed_h, b_h)
        weights = _weights(step.w0, b, rho[:-1], r[: p - 1])
        # m' comes first, as rho (m' - m_1).
        weights = [b * rho[-1], weights[0] - b * rho[-1], *weights[1:]]
        corrected = [xp.where(mine, new, old) for new, old in zip(_pad(weights, order + 1, h), corrected)]
    return predictor_corrector_table(levels, form, predicted, corrected, step, corrector)


def _corrector(corrector: Any, levels: Level) -> Array:
    """[] or [N - 1, 1, ...], the factor for the correction of each step."""
    num_steps = levels.sigma.shape[0] - 1
    if np.shape(corrector) not in ((), (num_steps,)):
        raise ValueError(
            f"corrector must be one number or one per step, [{num_steps}]; got shape {np.shape(corrector)}"
        )
    corrector = namespace(corrector).asarray(corrector) * 1.0
    return corrector if corrector.ndim == 0 else corrector.reshape(num_steps, *(1,) * (levels.sigma.ndim - 1))


def _solve(r: list[Array], signed_h: Array, b_h: Array) -> list[Array]:
    """The rho that solve sum_k rho_k r_k^(n-1) = n! phi_{n+1}(h) h / B(h), n = 1 ... len(r) (the paper's eq. 7)."""
    if not r:
        return []
    xp = namespace(r, signed_h)
    phi, right = xp.expm1(signed_h) / signed_h - 1.0, []
    for n in range(1, len(r) + 1):
        right.append(phi * math.factorial(n) / b_h)
        phi = phi / signed_h - 1.0 / math.factorial(n + 1)
    matrix = xp.stack([xp.stack([r_k**n for r_k in r], axis=-1) for n in range(len(r))], axis=-2)
    rho = xp.linalg.solve(matrix, xp.stack(right, axis=-1)[..., None])[..., 0]
    return [rho[..., k] for k in range(len(r))]


def _weights(w0: Array, b: Array, rho: list[Array], r: list[Array]) -> list[Array]:
    """The coefficients of m_1, m_2, ... in w0 m_1 + b sum_k rho_k (m_{1+k} - m_1) / r_k."""
    terms = [b * rho_k / r_k for rho_k, r_k in zip(rho, r)]
    return [w0 - sum(terms), *terms]


def _pad(columns: list[Array], length: int, like: Array) -> list[Array]:
    return columns + [0.0 * like] * (length - len(columns))
