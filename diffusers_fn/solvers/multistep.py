"""Multistep methods: one evaluation a level, the last ones remembered. DPM-Solver(++), DEIS, LMS, iPNDM.

With a form's scale s, rate r and prediction m (s = sigma, r = alpha, m = x0_hat in data prediction; s = alpha,
r = sigma, m = eps_hat in noise prediction) the probability-flow ODE is d(x / s) = m d(r / s) exactly, so that

    x' = (s' / s) x + s' int m d(r / s),

and a method says how m is continued from its last values. lambda = log(alpha / sigma); h is a hop's step in it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from diffusers_fn._arrays import concrete, namespace
from diffusers_fn.discrete import check_eta
from diffusers_fn.levels import Array, Level, log_snr, snr_ratio
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
    start = hops(levels) < 2  # hops of lower order, with infinite r
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


def deis(levels: Level, order: int = 3, form: Form = noise_prediction) -> Solver:
    """Returns the exponential Adams-Bashforth method: the last predictions' polynomial in lambda, integrated exactly.

        x' = (s' / s) x + s' sum_k m_k int L_k(lambda) d(r / s)

    with the Lagrange polynomials L_k. In noise prediction it is DEIS in log rho (Zhang & Chen 2023,
    https://arxiv.org/abs/2204.13902, eq. 15). The first hops are of lower order, as many values as there are.

    Args:
      levels: Level[N], N >= order + 1, any process whose first alpha is positive.
      order: 1 to 4, how many predictions are used.
      form: noise_prediction or data_prediction.

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
    xp = namespace(levels)
    _, to = neighbours(levels)
    half_log_snr = 0.5 * log_snr(levels)
    # s' d(r / s) = r' e^(sign (u - lambda')) sign du
    measure = lambda u: form.sign * form.rate(to)[None] * xp.exp(form.sign * (u - half_log_snr[None, 1:]))  # noqa: E731
    return one_state(levels, form, _adams(half_log_snr, order, measure))


def lms(levels: Level, order: int = 4) -> Solver:
    """Returns the linear multistep method in rho = sigma / alpha: x' / alpha' = x / alpha + sum_k eps_k int L_k d(rho).

    Adams-Bashforth on d(x / alpha) / d(rho) = eps_hat, for levels spaced as they like (Katherine Crowson's sampler,
    https://github.com/crowsonkb/k-diffusion; its integrals are by quadrature, here they are exact; it
    extrapolates into sigma = 0 too, here that hop is x0_hat as everywhere).

    Args: as `deis`, without the form.
    Raises: as `deis`.

    >>> from diffusers_fn import grids
    >>> lms(grids.karras(4), order=2).rows.m[2].round(3)
    array([-0.48 ,  0.012])
    """
    check_order(levels, order)
    check_alpha(levels)
    _, to = neighbours(levels)
    return one_state(
        levels, noise_prediction, _adams(levels.sigma / levels.alpha, order, lambda u: to.alpha[None] + 0 * u)
    )


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
    rows = np.minimum(hops(levels), order - 1)
    whole = whole_hop(levels, noise_prediction)
    return one_state(levels, noise_prediction, [_ADAMS_BASHFORTH[rows, k] * whole for k in range(order)])


_ADAMS_BASHFORTH = np.array(
    [
        [1.0, 0.0, 0.0, 0.0],
        [3 / 2, -1 / 2, 0.0, 0.0],
        [23 / 12, -16 / 12, 5 / 12, 0.0],
        [55 / 24, -59 / 24, 37 / 24, -9 / 24],
    ]
)


def one_state(levels: Level, form: Form, m: list[Array]) -> Solver:
    """The solver x' = (s' / s) x + sum_k m[k] m_k."""
    frm, to = neighbours(levels)
    x0, eps = form.keeps
    return linear_solver(levels, x=[form.scale(to) / form.scale(frm)], x0=x0, eps=eps, m=m)


def whole_hop(levels: Level, form: Form) -> Array:
    """s' (r' / s' - r / s), what a constant prediction is multiplied by; [N - 1, *S]."""
    frm, to = neighbours(levels)
    return form.rate(to) - form.rate(frm) * (form.scale(to) / form.scale(frm))


def _ratio(levels: Level, k: int) -> Array:
    """How many times longer in lambda than a hop the k-th hop before it was; infinite where there was none."""
    xp = namespace(levels)
    h = xp.diff(log_snr(levels), axis=0)
    return xp.concatenate([np.full((min(k, h.shape[0]), *h.shape[1:]), np.inf), h[: h.shape[0] - k] / h[k:]])


def hops(levels: Level) -> np.ndarray:
    """0 ... N - 2, shaped to combine with a column."""
    shape = np.shape(levels.sigma)
    return np.arange(shape[0] - 1).reshape(-1, *(1,) * (len(shape) - 1))


def _adams(u: Array, order: int, measure: Callable[[Array], Array]) -> list[Array]:
    """Columns int L_k(u) measure(u) du over each hop, with L_k the Lagrange polynomials of the last nodes.

    measure: [Q, N - 1, *S] -> the same, for quadrature points of each hop.
    """
    xp = namespace(u)
    points, weights = np.polynomial.legendre.leggauss(24)
    along = lambda a: a.reshape(-1, *(1,) * np.ndim(u))  # noqa: E731
    points, weights = along(0.5 + 0.5 * points), along(0.5 * weights)
    step = u[1:] - u[:-1]
    q = u[None, :-1] + points * step[None]
    columns = [0.0 * step] * order
    rows = np.arange(step.shape[0]).reshape(-1, *(1,) * (step.ndim - 1))
    for n in range(1, order + 1):  # n nodes: the whole order from row `order - 1` on, fewer before
        mine = rows >= n - 1 if n == order else rows == n - 1
        nodes = [u[np.maximum(np.arange(step.shape[0]) - k, -k - 1)] for k in range(n)]
        for k in range(n):
            others = [node for j, node in enumerate(nodes) if j != k]
            polynomial = 1.0 + 0.0 * q
            for node in others:
                gap = xp.where(mine, nodes[k] - node, 1.0)
                polynomial = polynomial * (q - node[None]) / gap[None]
            column = xp.sum(weights * polynomial * measure(q), axis=0) * step
            columns[k] = xp.where(mine, column, columns[k])
    return columns


def check_order(levels: Level, order: int) -> None:
    """Raises ValueError unless levels are a plan that is long enough for a multistep method of order 1 to 4."""
    if order not in (1, 2, 3, 4):
        raise ValueError(f"order must be 1, 2, 3 or 4; got {order}")
    check_plan(levels)
    check_num_levels(levels, order + 1)


def _check(levels: Level, num_levels: int, form: Form) -> None:
    check_plan(levels)
    check_num_levels(levels, num_levels)
    if form is noise_prediction:
        check_alpha(levels)


def check_alpha(levels: Level) -> None:
    """Raises ValueError if a readable alpha is zero, where sigma / alpha is infinite."""
    alpha = concrete(levels.alpha)
    if alpha is not None and np.any(alpha == 0):
        raise ValueError(
            "this solver needs alpha > 0 at every level: sigma / alpha is infinite on pure noise; start at a level "
            "with a little signal, or use ddim, euler, heun or dpmpp_2m, which can start at alpha = 0"
        )
