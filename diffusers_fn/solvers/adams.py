"""Adams-Bashforth methods: the polynomial through the last predictions, integrated. DEIS, LMS, iPNDM."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from diffusers_fn._arrays import namespace
from diffusers_fn.levels import Array, Level, log_snr
from diffusers_fn.solvers.base import Solver, neighbours
from diffusers_fn.solvers.forms import (
    Form,
    check_alpha,
    check_order,
    exact_hop,
    hops,
    lagged,
    noise_prediction,
    one_state,
    orders,
    whole_hop,
)


def deis(
    levels: Level,
    order: int = 3,
    form: Form = noise_prediction,
    *,
    lower_order_final: bool = False,
    euler_at_final: bool = False,
) -> Solver:
    """Returns the exponential Adams-Bashforth method: the last predictions' polynomial in lambda, integrated exactly.

        x' = (s' / s) x + s' sum_k m_k int L_k(lambda) d(r / s)

    with the Lagrange polynomials L_k. In noise prediction it is DEIS in log rho (Zhang & Chen 2023,
    https://arxiv.org/abs/2204.13902, eq. 15). The first hops are of lower order, as many values as there are.

    Args:
      levels: Level[N], N >= order + 1, any process whose first alpha is positive.
      order: 1 to 4, how many predictions are used.
      form: noise_prediction or data_prediction.
      lower_order_final, euler_at_final: as `dpmpp_3m`.

    Raises:
      ValueError: if levels are no plan (see `check_plan`), alpha = 0, or the order is not in 1 ... min(4, N - 1).

    >>> from diffusers_fn import grids
    >>> deis(grids.karras(4), order=2).rows.m.round(3)
    array([[-70.277,   0.   ],
           [-12.968,   3.715],
           [ -0.619,   0.151],
           [  1.   ,   0.   ]])
    """
    check_order(levels, order)
    check_alpha(levels)
    used = orders(levels.sigma.shape[0] - 1, order, lower_order_final, euler_at_final)
    return one_state(levels, form, adams(levels, used, order, form))


def lms(levels: Level, order: int = 4) -> Solver:
    """Returns the linear multistep method in rho = sigma / alpha: x' / alpha' = x / alpha + sum_k eps_k int L_k d(rho).

    Adams-Bashforth on d(x / alpha) / d(rho) = eps_hat, for levels spaced as they like (Katherine Crowson's sampler,
    https://github.com/crowsonkb/k-diffusion; its integrals are by quadrature, here they are exact). It extrapolates
    into sigma = 0 too, where tables end with x0_hat: a last level of sigma 1e-13, left without a denoise, is that hop.

    Args: as `deis`, without the form.
    Raises: as `deis`.

    >>> from diffusers_fn import grids
    >>> lms(grids.karras(4), order=2).rows.m[2].round(3)
    array([-0.48 ,  0.012])
    """
    check_order(levels, order)
    check_alpha(levels)
    _, to = neighbours(levels)
    used = orders(levels.sigma.shape[0] - 1, order)
    columns = lagrange_integrals(levels.sigma / levels.alpha, used, order, lambda u: to.alpha[None] + 0.0 * u)
    return one_state(levels, noise_prediction, columns)


def ipndm(levels: Level, order: int = 4) -> Solver:
    """Returns the improved PNDM: DDIM with eps_hat replaced by an Adams-Bashforth mean of the last ones.

        m = (3, -1) / 2,  (23, -16, 5) / 12,  (55, -59, 37, -9) / 24

    Liu et al. 2022 (https://arxiv.org/abs/2202.09778, eq. 12) without its Runge-Kutta start: Zhang & Chen 2023
    (https://arxiv.org/abs/2204.13902, section 4). The weights ignore the spacing: the order is `order` where
    sigma / alpha is evenly spaced, and two on a smooth grid otherwise.

    Args: as `deis`, without the form.
    Raises: as `deis`.

    >>> from diffusers_fn import grids
    >>> (ipndm(grids.karras(4), order=2).rows.m[1] / ipndm(grids.karras(4), order=1).rows.m[1]).round(3)
    array([ 1.5, -0.5])
    """
    check_order(levels, order)
    check_alpha(levels)
    whole = whole_hop(levels, noise_prediction)
    rows = np.minimum(hops(whole), order - 1)
    return one_state(levels, noise_prediction, [ADAMS_BASHFORTH[rows, k] * whole for k in range(order)])


ADAMS_BASHFORTH = np.array(
    [
        [1.0, 0.0, 0.0, 0.0],
        [3 / 2, -1 / 2, 0.0, 0.0],
        [23 / 12, -16 / 12, 5 / 12, 0.0],
        [55 / 24, -59 / 24, 37 / 24, -9 / 24],
    ]
)


def adams(
    levels: Level, used: np.ndarray, num_columns: int, form: Form, eta: Any = 0.0, *, implicit: bool = False
) -> list[Array]:
    """The columns sign kappa r int L_k(u) e^(sign kappa (u - lambda')) du of `Hop`, m continued as a polynomial.

    used: [N - 1], how many predictions each hop uses.
    implicit: whether the first of them is the one at the hop's end (Adams-Moulton) instead of its start.
    """
    hop = exact_hop(levels, form, eta)
    half_log_snr = 0.5 * log_snr(levels)
    xp = namespace(hop, half_log_snr)
    power = form.sign * hop.kappa
    measure = lambda u: (power * hop.rate)[None] * xp.exp(power[None] * (u - half_log_snr[None, 1:]))  # noqa: E731
    return lagrange_integrals(half_log_snr, used, num_columns, measure, implicit=implicit)


def lagrange_integrals(
    u: Array, used: np.ndarray, num_columns: int, measure: Callable[[Array], Array], *, implicit: bool = False
) -> list[Array]:
    """Columns int L_k(u) measure(u) du over each hop, with L_k the Lagrange polynomials of the last `used` nodes.

    measure: [Q, N - 1, *S] -> the same, for quadrature points of each hop.
    """
    points, weights = np.polynomial.legendre.leggauss(24)
    along = lambda a: a.reshape(-1, *(1,) * np.ndim(u))  # noqa: E731
    points, weights = along(0.5 + 0.5 * points), along(0.5 * weights)
    step = u[1:] - u[:-1]
    q = u[None, :-1] + points * step[None]
    weighted = weights * measure(q)
    xp = namespace(u, weighted)
    nodes = [lagged(u, k) for k in range(num_columns)]
    if implicit:
        nodes = [u[1:], *nodes[:-1]]
    used = used.reshape(-1, *(1,) * (np.ndim(u) - 1))
    columns = []
    for k in range(num_columns):
        polynomial = 1.0 + 0.0 * q
        for j in range(num_columns):
            if j != k:
                both = used > max(j, k)
                gap = xp.where(both, nodes[k] - nodes[j], 1.0)
                polynomial = polynomial * xp.where(both[None], (q - nodes[j][None]) / gap[None], 1.0)
        columns.append(xp.where(used > k, xp.sum(polynomial * weighted, axis=0) * step, 0.0))
    return columns
