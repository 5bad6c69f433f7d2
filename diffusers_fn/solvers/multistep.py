"""Multistep DPM-Solver(++): one network evaluation per step, divided differences of the last predictions."""

from __future__ import annotations

from typing import Any

import numpy as np

from diffusers_fn._arrays import check_eta, namespace
from diffusers_fn._types import Array, ArrayLike
from diffusers_fn.levels import Level
from diffusers_fn.solvers.base import Solver
from diffusers_fn.solvers.exponential import (
    ExponentialForm,
    ExponentialStep,
    data_prediction,
    exponential_step,
    noise_prediction,
)
from diffusers_fn.solvers.multistep_tables import multistep_solver, step_orders
from diffusers_fn.solvers.plans import check_alpha, check_plan, neighbours

__all__ = [
    "difference_weights",
    "dpmpp_1",
    "dpmpp_1_sde",
    "dpmpp_2m",
    "dpmpp_2m_sde",
    "dpmpp_3m",
    "dpmpp_3m_sde",
]


def dpmpp_1(levels: Level, form: ExponentialForm = data_prediction) -> Solver:
    """Returns DPM-Solver++ of first order (Lu et al. 2022, https://arxiv.org/abs/2211.01095, eq. 9): DDIM, eta = 0.

        x' = (sigma' / sigma) x + alpha' (1 - e^-h) x0_hat

    Args:
      levels: Level[N], any process.
      form: data_prediction, or noise_prediction for DPM-Solver-1 (https://arxiv.org/abs/2206.00927, eq. 3.7).

    Raises:
      ValueError: if levels are not a plan (see `check_plan`), or alpha = 0 in noise prediction.

    >>> from diffusers_fn import grids
    >>> dpmpp_1(grids.karras(3)).rows.m.round(4)[:, 0]
    array([0.9686, 0.9992, 1.    ])
    """
    return _multistep(levels, 1, form, 0)


def dpmpp_2m(
    levels: Level, form: ExponentialForm = data_prediction, *, taylor: bool = False, euler_at_final: bool = False
) -> Solver:
    """Returns DPM-Solver++(2M), of second order (Lu et al. 2022, https://arxiv.org/abs/2211.01095, algorithm 2).

        x' = (sigma' / sigma) x + alpha' (1 - e^-h) D,   D = (1 + 1 / 2r) m_1 - 1 / 2r m_2,   r = h_before / h

    The first step is of first order. alpha = 0 at the first level is allowed in data prediction.

    Args:
      levels: Level[N], any process.
      form: data_prediction, or noise_prediction for its DPM-Solver counterpart.
      taylor: whether the difference (m_1 - m_2) / r has its exact weight, alpha' (1 - (1 - e^-h) / h), instead of half
        the weight of m_1: solver_type "taylor" of the authors' code, "heun" elsewhere, where False is "midpoint".
      euler_at_final: whether the step into the last level is of first order. The final denoise always is.

    Raises:
      ValueError: as `dpmpp_1`.

    >>> from diffusers_fn import grids
    >>> dpmpp_2m(grids.karras(3)).rows.m.round(4)
    array([[ 0.9686, -0.    ],
           [ 2.0298, -1.0306],
           [ 1.    ,  0.    ]])
    """
    return _multistep(levels, 2, form, 0, taylor, euler_at_final=euler_at_final)


def dpmpp_3m(
    levels: Level,
    form: ExponentialForm = data_prediction,
    *,
    taylor: bool = False,
    lower_order_final: bool = False,
    euler_at_final: bool = False,
) -> Solver:
    """Returns DPM-Solver++(3M) with the coefficients of its authors' code, which other libraries use too.

        x' = (sigma' / sigma) x + alpha' (1 - e^-h) m_1 + alpha' phi_2 D_1 - alpha' phi_3 D_2

    with phi_2 = 1 - (1 - e^-h) / h, phi_3 = phi_2 / h - 1/2 and the divided differences D_1, D_2 of the last three
    values. The first two steps are `dpmpp_1` and `dpmpp_2m`. The Taylor expansion has 2 phi_3 in front of D_2, so the
    order is two, with a smaller error than `dpmpp_2m`; `deis` with order=3 has the exact weights.

    Args:
      levels: Level[N], any process.
      form: data_prediction, or noise_prediction.
      taylor: as `dpmpp_2m`, for the steps of second order.
      lower_order_final: whether the order falls to one at the end: two in the step into the last level, one in the
        final denoise. Libraries do so for fewer than 15 steps, the authors for fewer than 10.
      euler_at_final: whether the step into the last level is of first order already, for runs that end there.

    Raises:
      ValueError: as `dpmpp_1`.

    >>> from diffusers_fn import grids
    >>> dpmpp_3m(grids.karras(4)).rows.m.sum(axis=1).round(4)  # what a constant prediction gets: 1 - e^-h
    array([0.8785, 0.9517, 0.9957, 1.    ])
    """
    return _multistep(levels, 3, form, 0, taylor, lower_order_final, euler_at_final)


def dpmpp_1_sde(levels: Level, eta: ArrayLike = 1.0, form: ExponentialForm = data_prediction) -> Solver:
    """Returns the stochastic DPM-Solver++ of first order; see `dpmpp_2m_sde`, whose D is m_1 here.

    In data prediction eta = 1 is `ancestral`. In noise prediction ("SDE-DPM-Solver-1") it is

        x' = (alpha' / alpha) x - (1 + eta) sigma' (e^h - 1) eps_hat + sigma' sqrt(eta (e^(2h) - 1)) z

    Args: as `dpmpp_2m_sde`.
    Raises: as `dpmpp_2m_sde`.

    >>> from diffusers_fn import grids
    >>> dpmpp_1_sde(grids.karras(3)).rows.noise.round(4)
    array([2.514e+00, 2.000e-03, 0.000e+00])
    """
    return _multistep(levels, 1, form, eta)


def dpmpp_2m_sde(
    levels: Level,
    eta: ArrayLike = 1.0,
    form: ExponentialForm = data_prediction,
    *,
    taylor: bool = False,
    euler_at_final: bool = False,
) -> Solver:
    """Returns the stochastic DPM-Solver++(2M) (Lu et al. 2022, https://arxiv.org/abs/2211.01095, section 5).

        x' = (sigma' / sigma) e^(-eta h) x + alpha' (1 - e^(-(1 + eta) h)) D + sigma' sqrt(1 - e^(-2 eta h)) z

    with the D of `dpmpp_2m`. eta multiplies the squared noise of the reverse SDE: 1 is that SDE, 0 is `dpmpp_2m`
    (without a noise column, if it is a Python 0).

    Args:
      levels: Level[N], any process.
      eta: [] in [0, 1].
      form: data_prediction; noise_prediction for "SDE-DPM-Solver", see `dpmpp_1_sde`.
      taylor, euler_at_final: as `dpmpp_2m`; with `taylor` the weight contains (1 + eta) h in place of h.

    Raises:
      ValueError: if levels are not a plan (see `check_plan`), eta (not traced) is outside
        [0, 1], or alpha = 0 in noise prediction.

    >>> from diffusers_fn import grids
    >>> dpmpp_2m_sde(grids.karras(3)).rows.noise.round(4)
    array([2.514e+00, 2.000e-03, 0.000e+00])
    """
    return _multistep(levels, 2, form, eta, taylor, euler_at_final=euler_at_final)


def dpmpp_3m_sde(
    levels: Level,
    eta: ArrayLike = 1.0,
    form: ExponentialForm = data_prediction,
    *,
    taylor: bool = True,
    lower_order_final: bool = False,
    euler_at_final: bool = False,
) -> Solver:
    """Returns the stochastic DPM-Solver++(3M): `dpmpp_3m` with (1 + eta) h in its weights, and noise.

        x' = (sigma' / sigma) e^(-eta h) x + alpha' ((1 - e^(-(1 + eta) h)) m_1 + phi_2 D_1 - phi_3 D_2)
             + sigma' sqrt(1 - e^(-2 eta h)) z

    Katherine Crowson's sampler (https://github.com/crowsonkb/k-diffusion), whose second step is that of `taylor`.
    Another library has the opposite sign of the 1/2 in phi_3; that method has order one and is not offered.

    Args: as `dpmpp_2m_sde` and `dpmpp_3m`.
    Raises: as `dpmpp_2m_sde`.

    >>> from diffusers_fn import grids
    >>> dpmpp_3m_sde(grids.karras(4)).rows.m.sum(axis=1).round(4)  # 1 - e^(-2h)
    array([0.9852, 0.9977, 1.    , 1.    ])
    """
    return _multistep(levels, 3, form, eta, taylor, lower_order_final, euler_at_final)


def _multistep(
    levels: Level,
    order: int,
    form: ExponentialForm,
    eta: Any,
    taylor: bool = False,
    lower_order_final: bool = False,
    euler_at_final: bool = False,
) -> Solver:
    """The solver whose orders are `step_orders`."""
    check_plan(levels)
    check_eta(eta)
    if form is noise_prediction:
        check_alpha(levels)
    step = exponential_step(*neighbours(levels), form, eta)
    used = step_orders(step.h.shape[0], order, lower_order_final, euler_at_final)
    return multistep_solver(levels, form, difference_weights(step, used, order, taylor), step)


def difference_weights(step: ExponentialStep, used: np.ndarray, order: int, taylor: bool) -> list[Array]:
    """Returns the columns of m in x' = x_coef x + w0 m_1 + w1 D_1 + w2 D_2 + noise z, with the differences

        a = (m_1 - m_2) / r_0,  b = (m_2 - m_3) / r_1,  D_2 = (a - b) / (r_0 + r_1),  D_1 = a + r_0 D_2,

    and r_k the length of the (k + 1)-th step before, per length of this one; D_1 = a at order two.

    Args:
      step: the exact solution of each step, [N - 1, *S].
      used: [N - 1], the order of each step.
      order: the largest of them, the number of columns.
      taylor: as `dpmpp_2m`.
    """
    xp, h = namespace(step), step.h
    used = used.reshape(-1, *(1,) * (h.ndim - 1))
    q0, q1 = _ratio(h, 1), _ratio(h, 2)
    second = step.w1 if taylor else 0.5 * step.w0

    before = xp.where(used < 3, 1.0, q0)
    of_d2 = xp.where(used < 3, 0.0, (step.w1 / before + step.w2) * before * q1 / (before + q1))
    of_a = (xp.where(used == 1, 0.0, xp.where(used == 2, second, step.w1)) + of_d2) * q0
    of_b = -of_d2 * q1
    return [step.w0 + of_a, of_b - of_a, -of_b][:order]


def _ratio(h: Array, k: int) -> Array:
    """1 / r, the length of each step in lambda per length of the k-th step before; 0 where there was none."""
    return namespace(h).concatenate([np.zeros((min(k, h.shape[0]), *h.shape[1:])), h[k:] / h[: h.shape[0] - k]])
