"""Adams-Bashforth methods, which integrate the polynomial through the last predictions: DEIS, LMS, iPNDM."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from diffusers_fn._arrays import namespace
from diffusers_fn._types import Array
from diffusers_fn.levels import Level, log_snr
from diffusers_fn.solvers.base import Solver
from diffusers_fn.solvers.exponential import (
    ExponentialForm,
    ExponentialStep,
    exponential_step,
    noise_prediction,
)
from diffusers_fn.solvers.multistep_tables import (
    check_order,
    multistep_solver,
    step_index,
    step_orders,
    value_before,
)
from diffusers_fn.solvers.plans import check_alpha, neighbours

__all__ = ["ADAMS_BASHFORTH", "adams", "deis", "ipndm", "lagrange_integrals", "lms"]


def deis(
    levels: Level,
    order: int = 3,
    form: ExponentialForm = noise_prediction,
    *,
    lower_order_final: bool = False,
    euler_at_final: bool = False,
) -> Solver:
    """Returns the exponential Adams-Bashforth method, which integrates a polynomial through the last predictions.

        x' = (s' / s) x + s' sum_k m_k int L_k(lambda) d(r / s)

    with the Lagrange polynomials L_k. In noise prediction it is DEIS in log rho (Zhang & Chen 2023,
    https://arxiv.org/abs/2204.13902, eq. 15). The first steps have a lower order, the number of predictions so far.

    Args:
      levels: Level[N], any process whose first alpha is positive.
      order: 1 to 4, the number of predictions.
      form: noise_prediction or data_prediction.
      lower_order_final, euler_at_final: as `dpmpp_3m`.

    Raises:
      ValueError: if levels are not a plan (see `check_plan`), alpha = 0, or the order is not 1, 2, 3 or 4.

    >>> from diffusers_fn import grids
    >>> deis(grids.karras(4), order=2).rows.m.round(3)
    array([[-70.277,   0.   ],
           [-12.968,   3.715],
           [ -0.619,   0.151],
           [  1.   ,   0.   ]])
    """
    check_order(levels, order)
    check_alpha(levels)
    step = exponential_step(*neighbours(levels), form)
    used = step_orders(levels.sigma.shape[0] - 1, order, lower_order_final, euler_at_final)
    return multistep_solver(levels, form, adams(levels, used, order, form, step), step)


def lms(levels: Level, order: int = 4) -> Solver:
    """Returns the linear multistep method in rho = sigma / alpha: x' / alpha' = x / alpha + sum_k eps_k int L_k d(rho).

    Adams-Bashforth on d(x / alpha) / d(rho) = eps_hat, for any spacing of the levels: Katherine Crowson's sampler
    (https://github.com/crowsonkb/k-diffusion), which integrates by quadrature; here the integrals are exact. That code
    also extrapolates to sigma = 0, where the tables here return x0_hat; a last level of sigma = 1e-13 with
    `final_denoise=False` gives its result.

    Args: as `deis`, without the form.
    Raises: as `deis`.

    >>> from diffusers_fn import grids
    >>> lms(grids.karras(4), order=2).rows.m[2].round(3)
    array([-0.48 ,  0.012])
    """
    check_order(levels, order)
    check_alpha(levels)
    start, end = neighbours(levels)
    used = step_orders(levels.sigma.shape[0] - 1, order)
    columns = lagrange_integrals(levels.sigma / levels.alpha, used, order, lambda u: end.alpha[None] + 0.0 * u)
    return multistep_solver(levels, noise_prediction, columns, exponential_step(start, end, noise_prediction))


def ipndm(levels: Level, order: int = 4) -> Solver:
    """Returns the improved PNDM: DDIM with eps_hat replaced by an Adams-Bashforth mean of the last predictions.

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
    step = exponential_step(*neighbours(levels), noise_prediction)
    used = np.minimum(step_index(step.w0), order - 1)
    m = [ADAMS_BASHFORTH[used, k] * step.w0 for k in range(order)]
    return multistep_solver(levels, noise_prediction, m, step)


# Row p - 1: the weights of the last p values on an even grid.
ADAMS_BASHFORTH = np.array(
    [
        [1.0, 0.0, 0.0, 0.0],
        [3 / 2, -1 / 2, 0.0, 0.0],
        [23 / 12, -16 / 12, 5 / 12, 0.0],
        [55 / 24, -59 / 24, 37 / 24, -9 / 24],
    ]
)


def adams(
    levels: Level,
    used: np.ndarray,
    num_columns: int,
    form: ExponentialForm,
    step: ExponentialStep,
    *,
    implicit: bool = False,
) -> list[Array]:
    """Returns the columns sign kappa r int L_k(u) e^(sign kappa (u - lambda')) du of an `ExponentialStep`.

    They replace m(u) by the polynomial through the last predictions.

    Args:
      levels: Level[N].
      used: [N - 1], the number of predictions in each step.
      num_columns: the largest of them.
      form: which prediction is kept.
      step: the exact solution of each step, [N - 1, *S].
      implicit: whether the first prediction is the one at the step's end (Adams-Moulton) instead of its start.
    """
    half_log_snr = 0.5 * log_snr(levels)
    xp = namespace(step, half_log_snr)
    power = form.sign * step.kappa
    measure = lambda u: (power * step.rate)[None] * xp.exp(power[None] * (u - half_log_snr[None, 1:]))  # noqa: E731
    return lagrange_integrals(half_log_snr, used, num_columns, measure, implicit=implicit)


def lagrange_integrals(
    u: Array, used: np.ndarray, num_columns: int, measure: Callable[[Array], Array], *, implicit: bool = False
) -> list[Array]:
    """Returns columns int L_k(u) measure(u) du over each step, L_k the Lagrange polynomials of the last `used` nodes.

    Args:
      u: [N, *S] nodes.
      used: [N - 1], the number of nodes in each step.
      num_columns: the largest of them.
      measure: [Q, N - 1, *S] -> the same shape, the measure at Q quadrature points in each step.
      implicit: whether the first node is that at the step's end.
    """
    points, weights = np.polynomial.legendre.leggauss(24)
    along = lambda a: a.reshape(-1, *(1,) * np.ndim(u))  # noqa: E731
    points, weights = along(0.5 + 0.5 * points), along(0.5 * weights)
    length = u[1:] - u[:-1]
    q = u[None, :-1] + points * length[None]
    weighted = weights * measure(q)
    xp = namespace(u, weighted)
    nodes = [value_before(u, k) for k in range(num_columns)]
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
        columns.append(xp.where(used > k, xp.sum(polynomial * weighted, axis=0) * length, 0.0))
    return columns
