"""DPM-Solver(++) with several steps: one evaluation a level, divided differences of the last predictions."""

from __future__ import annotations

from typing import Any

import numpy as np

from diffusers_fn._arrays import namespace
from diffusers_fn.discrete import check_eta
from diffusers_fn.levels import Array, Level, log_snr, snr_ratio
from diffusers_fn.solvers.base import Solver, check_num_levels, check_plan, linear_solver, neighbours
from diffusers_fn.solvers.forms import Form, check_alpha, data_prediction, hops, noise_prediction, one_state, whole_hop


def dpmpp_1(levels: Level, form: Form = data_prediction) -> Solver:
    """Returns DPM-Solver++ of first order (Lu et al. 2022, https://arxiv.org/abs/2211.01095, eq. 9): DDIM, eta = 0.

        x' = (sigma' / sigma) x + alpha' (1 - e^-h) x0_hat

    Args:
      levels: Level[N], N >= 2, any process.
      form: data_prediction, or noise_prediction for DPM-Solver-1 (https://arxiv.org/abs/2206.00927, eq. 3.7).

    Raises:
      ValueError: if levels are no plan (see `check_plan`) of at least two levels, or alpha = 0 in noise prediction.

    >>> from diffusers_fn import grids
    >>> dpmpp_1(grids.karras(3)).rows.m.round(4)[:, 0]
    array([0.9686, 0.9992, 1.    ])
    """
    _check(levels, 2, form)
    return one_state(levels, form, [whole_hop(levels, form)])


def dpmpp_2m(levels: Level, form: Form = data_prediction) -> Solver:
    """Returns DPM-Solver++(2M), of second order (Lu et al. 2022, https://arxiv.org/abs/2211.01095, algorithm 2).

        x' = (sigma' / sigma) x + alpha' (1 - e^-h) D,   D = (1 + 1 / 2r) m_1 - 1 / 2r m_2,   r = h_before / h

    The first hop is of first order. alpha = 0 at the first level is allowed in data prediction.

    Args:
      levels: Level[N], N >= 2, any process.
      form: data_prediction, or noise_prediction for its DPM-Solver counterpart.

    Raises:
      ValueError: as `dpmpp_1`.

    >>> from diffusers_fn import grids
    >>> dpmpp_2m(grids.karras(3)).rows.m.round(4)
    array([[ 0.9686, -0.    ],
           [ 2.0298, -1.0306],
           [ 1.    ,  0.    ]])
    """
    _check(levels, 2, form)
    whole = whole_hop(levels, form)
    back = 0.5 * whole / _ratio(levels, 1)
    return one_state(levels, form, [whole + back, -back])


def dpmpp_3m(levels: Level, form: Form = data_prediction) -> Solver:
    """Returns DPM-Solver++(3M) with the coefficients of its authors' code, as every library runs it.

        x' = (sigma' / sigma) x + alpha' (1 - e^-h) m_1 + alpha' phi_2 D_1 - alpha' phi_3 D_2

    with phi_2 = 1 - (1 - e^-h) / h, phi_3 = phi_2 / h - 1/2 and the divided differences D_1, D_2 of the last three
    values. Hops one and two are `dpmpp_1` and `dpmpp_2m`. The Taylor expansion asks for 2 phi_3 in front of D_2, so
    the order is two, with a smaller error than `dpmpp_2m`; `deis` with order=3 has the exact weights.

    Args:
      levels: Level[N], N >= 3, any process.
      form: data_prediction, or noise_prediction.

    Raises:
      ValueError: as `dpmpp_1`, with at least three levels.

    >>> from diffusers_fn import grids
    >>> dpmpp_3m(grids.karras(4)).rows.m.sum(axis=1).round(4)  # what a constant prediction gets: 1 - e^-h
    array([0.8785, 0.9517, 0.9957, 1.    ])
    """
    _check(levels, 3, form)
    xp = namespace(levels)
    _, to = neighbours(levels)
    whole, r0, r1 = whole_hop(levels, form), _ratio(levels, 1), _ratio(levels, 2)
    h = 0.5 * xp.diff(log_snr(levels), axis=0)
    # Weights of D_1 = a + share (a - b), D_2 = (a - b) / (r0 + r1), where a = (m_1 - m_2) / r0, b = (m_2 - m_3) / r1.
    of_d1 = form.rate(to) - form.sign * whole / h
    of_d2 = 0.5 * form.rate(to) - form.sign * of_d1 / h
    start = hops(whole) < 2  # hops of lower order, with infinite r
    over = 1.0 / xp.where(start, 1.0, r0 + r1)
    share = xp.where(start, 0.0, r0) * over
    of_a = xp.where(start, 0.5 * whole, of_d1 * (1.0 + share) + of_d2 * over) / r0
    of_b = xp.where(start, 0.0, -of_d1 * share - of_d2 * over) / r1
    return one_state(levels, form, [whole + of_a, of_b - of_a, -of_b])


def dpmpp_2m_sde(levels: Level, eta: Any = 1.0) -> Solver:
    """Returns the stochastic DPM-Solver++(2M) (Lu et al. 2022, https://arxiv.org/abs/2211.01095, section 5).

        x' = (sigma' / sigma) e^(-eta h) x + alpha' (1 - e^(-(1 + eta) h)) D + sigma' sqrt(1 - e^(-2 eta h)) z

    with the D of `dpmpp_2m` (the midpoint form). eta = 1 is the reverse SDE, eta = 0 is `dpmpp_2m` (without a noise
    column, if it is a Python 0).

    Args:
      levels: Level[N], N >= 2, any process.
      eta: [] in [0, 1].

    Raises:
      ValueError: if levels are no plan (see `check_plan`) of at least two levels, or a readable eta is outside [0, 1].

    >>> from diffusers_fn import grids
    >>> dpmpp_2m_sde(grids.karras(3)).rows.noise.round(4)
    array([2.514e+00, 2.000e-03, 0.000e+00])
    """
    check_eta(eta)
    if isinstance(eta, (int, float)) and eta == 0:
        return dpmpp_2m(levels)
    _check(levels, 2, data_prediction)
    xp = namespace(levels, eta)
    frm, to = neighbours(levels)
    squared = snr_ratio(frm, to)  # e^(-2h)
    whole = to.alpha * (1.0 - squared ** (0.5 * (1.0 + eta)))
    back = 0.5 * whole / _ratio(levels, 1)
    return linear_solver(
        levels,
        x=[to.sigma / frm.sigma * squared ** (0.5 * eta)],
        x0=1.0,
        eps=0.0,
        m=[whole + back, -back],
        noise=to.sigma * xp.sqrt(1.0 - squared**eta),
    )


def _ratio(levels: Level, k: int) -> Array:
    """How many times longer in lambda than a hop the k-th hop before it was; infinite where there was none."""
    xp = namespace(levels)
    h = xp.diff(log_snr(levels), axis=0)
    return xp.concatenate([np.full((min(k, h.shape[0]), *h.shape[1:]), np.inf), h[: h.shape[0] - k] / h[k:]])


def _check(levels: Level, num_levels: int, form: Form) -> None:
    check_plan(levels)
    check_num_levels(levels, num_levels)
    if form is noise_prediction:
        check_alpha(levels)
