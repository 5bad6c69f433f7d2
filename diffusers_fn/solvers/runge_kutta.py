"""Euler's and Heun's methods on dx = x0_hat d(alpha) + eps_hat d(sigma), for the levels of any process."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from diffusers_fn._arrays import namespace
from diffusers_fn.levels import Array, Level
from diffusers_fn.solvers.base import Solver, check_num_levels, check_plan, linear_solver, neighbours
from diffusers_fn.solvers.ddim import ddim


def euler(levels: Level) -> Solver:
    """Returns Euler's method, of first order: x' = x + x0_hat (alpha' - alpha) + eps_hat (sigma' - sigma).

    At alpha = 1 it is the Euler step of Karras et al. 2022 (https://arxiv.org/abs/2206.00364, algorithm 1 without its
    correction), at alpha = 1 - sigma that of rectified flow (Liu et al. 2023, https://arxiv.org/abs/2209.03003).

    Args:
      levels: Level[N], N >= 2, any process.

    Raises:
      ValueError: if levels are no plan (see `check_plan`) of at least two levels.

    >>> from diffusers_fn import grids
    >>> euler(grids.karras(3)).rows.eps.round(4)
    array([-77.4848,  -2.5132,   0.    ])
    """
    check_plan(levels)
    check_num_levels(levels, 2)
    frm, to = neighbours(levels)
    return linear_solver(levels, x=[1.0], x0=to.alpha - frm.alpha, eps=to.sigma - frm.sigma)


def euler_ancestral(levels: Level, eta: Any = 1.0) -> Solver:
    """Returns Euler's method down to sigma_down, then fresh noise up to the next level ("Euler a").

    With s = eta sigma' sqrt(1 - SNR / SNR') it is x' = alpha' x0_hat + sqrt(sigma'^2 - s^2) eps_hat + s z, so `ddim`
    under its other name; eta = 1 by default.

    Raises:
      ValueError: as `ddim`, and unless there are at least two levels.

    >>> from diffusers_fn import grids
    >>> euler_ancestral(grids.karras(3)).rows.noise.round(4)
    array([2.514e+00, 2.000e-03, 0.000e+00])
    """
    check_plan(levels)
    check_num_levels(levels, 2)
    return ddim(levels, eta)


def heun(levels: Level) -> Solver:
    """Returns Heun's method (the trapezoid rule), of second order, with two evaluations a hop: 2N - 1 in all.

        d = x0_hat (alpha' - alpha) + eps_hat (sigma' - sigma) at x,   x~ = x + d,   x' = x + (d + d~) / 2

    where d~ is d with the prediction at x~. At alpha = 1 it is algorithm 1 of Karras et al. 2022
    (https://arxiv.org/abs/2206.00364) without its noise.

    Args:
      levels: Level[N], N >= 2, any process.

    Raises:
      ValueError: if levels are no plan (see `check_plan`) of at least two levels.

    >>> from diffusers_fn import grids
    >>> heun(grids.karras(3)).rows.m
    array([[ 1. ,  0. ],
           [ 0.5, -0.5],
           [ 1. ,  0. ],
           [ 0.5, -0.5],
           [ 1. ,  0. ]])
    """
    check_plan(levels)
    check_num_levels(levels, 2)
    frm, to = neighbours(levels)
    xp = namespace(levels)

    def interleave(a: Array, b: Array) -> Array:
        return xp.stack([a, b], axis=1).reshape(2 * a.shape[0], *a.shape[1:])

    visited = jax.tree.map(lambda a, b, all_: xp.concatenate([interleave(a, b), all_[-1:]]), frm, to, levels)
    d_alpha, d_sigma = to.alpha - frm.alpha, to.sigma - frm.sigma
    whole, half = np.ones(d_sigma.shape), np.full(d_sigma.shape, 0.5)
    return linear_solver(
        visited,
        x=[1.0],
        x0=interleave(d_alpha, d_alpha),
        eps=interleave(d_sigma, d_sigma),
        m=[interleave(whole, half), interleave(0.0 * whole, -half)],
    )
