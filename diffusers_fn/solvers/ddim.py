"""DDIM and ancestral sampling (DDPM)."""

from __future__ import annotations

import numpy as np

from diffusers_fn._arrays import check_eta, is_zero, safe_sqrt
from diffusers_fn._types import Array, ArrayLike
from diffusers_fn.levels import Level, posterior, snr_ratio
from diffusers_fn.solvers.base import Solver, linear_solver
from diffusers_fn.solvers.plans import check_plan, neighbours
from diffusers_fn.variances import Variance, fixed_small

__all__ = ["ancestral", "ancestral_step", "ddim"]


def ddim(levels: Level, eta: ArrayLike = 0.0) -> Solver:
    """Returns the DDIM solver (Song et al. 2021, https://arxiv.org/abs/2010.02502, eq. 12 and 16).

        x' = alpha' x0_hat + sqrt(sigma'^2 - s^2) eps_hat + s z,    s = eta sqrt(var)

    with var the posterior variance between the two levels. eta = 0 is deterministic (Euler's method on
    dx = x0_hat d(alpha) + eps_hat d(sigma)), eta = 1 is `ancestral` with fixed_small. A Python 0 builds a table
    without noise; a traced eta, or an array, keeps the noise column, so that changing it compiles nothing.

    Args:
      levels: Level[N], any process.
      eta: [] in [0, 1].

    Raises:
      ValueError: if levels are not a plan (see `check_plan`) or eta (not traced) is outside [0, 1].

    >>> from diffusers_fn import grids
    >>> ddim(grids.karras(3)).rows.x0
    array([1., 1., 1.])
    """
    check_plan(levels)
    check_eta(eta)
    if np.shape(eta) != ():
        raise ValueError(f"eta must be one number; got shape {np.shape(eta)}")
    start, end = neighbours(levels)
    if is_zero(eta):
        return linear_solver(levels, x=[0.0], x0=end.alpha, eps=end.sigma)
    sigma, s = ancestral_step(start, end, eta)
    return linear_solver(levels, x=[0.0], x0=end.alpha, eps=sigma, noise=s)


def ancestral_step(start: Level, end: Level, eta: ArrayLike) -> tuple[Array, Array]:
    """Returns (sqrt(sigma'^2 - s^2), s): the sigma to go down to, and the noise that leads from there up to sigma'.

    s = eta sigma' sqrt(1 - r), r = SNR / SNR'. Both are computed from r, so that rounded levels cannot make a root
    negative.

    >>> ancestral_step(Level(1.0, 2.0, 0.0), Level(1.0, 1.0, 0.0), 1.0)
    (np.float64(0.5), np.float64(0.8660254037844386))
    """
    r = snr_ratio(start, end)
    return end.sigma * safe_sqrt((1.0 - eta**2) + eta**2 * r), eta * end.sigma * safe_sqrt(1.0 - r)


def ancestral(levels: Level, variance: Variance = fixed_small) -> Solver:
    """Returns ancestral sampling, that of DDPM (Ho et al. 2020, https://arxiv.org/abs/2006.11239, algorithm 2).

        x' = coef_x0 x0_hat + coef_x x + s z

    with the posterior mean between any two levels, neighbouring timesteps or not. The step out of the last level is
    the noiseless x0_hat.

    Args:
      levels: Level[N], any process.
      variance: fixed_small, fixed_large, learned or learned_range.

    Raises:
      ValueError: if levels are not a plan (see `check_plan`).

    >>> from diffusers_fn import grids
    >>> ancestral(grids.karras(3)).rows.noise.round(4)
    array([2.514e+00, 2.000e-03, 0.000e+00])
    """
    check_plan(levels)
    start, end = neighbours(levels)
    coef_x0, coef_x, _ = posterior(start, end)
    noise, noise_range = variance.between(start, end)
    return linear_solver(levels, x=[coef_x], x0=coef_x0, eps=0.0, noise=noise, noise_range=noise_range)
