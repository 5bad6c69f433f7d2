"""Runge-Kutta methods on dx = x0_hat d(alpha) + eps_hat d(sigma): Euler, Heun, midpoint, RK4, any explicit tableau.

They integrate along chords, straight lines between levels in the plane of alpha and sigma, on which d(alpha) and
d(sigma) are constant. The equation gives the same x along every path between two levels, so the order is the tableau's
on every process; `flow` levels and levels with alpha = 1 lie on chords anyway. `runge_kutta_in_time` integrates in a
process's own time.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from diffusers_fn._arrays import floating, namespace
from diffusers_fn._types import ArrayLike
from diffusers_fn.levels import Level
from diffusers_fn.processes import Process
from diffusers_fn.solvers.base import Solver, linear_solver
from diffusers_fn.solvers.chord import on_chord
from diffusers_fn.solvers.ddim import ddim
from diffusers_fn.solvers.plans import check_plan, neighbours
from diffusers_fn.solvers.stages import Stage, solver_from_stages
from diffusers_fn.solvers.tableaus import HEUN, MIDPOINT, RK4, Tableau, check_tableau

__all__ = [
    "euler",
    "euler_ancestral",
    "heun",
    "midpoint",
    "rk4",
    "runge_kutta",
    "runge_kutta_in_time",
]


def euler(levels: Level) -> Solver:
    """Returns Euler's method, of first order: x' = x + x0_hat (alpha' - alpha) + eps_hat (sigma' - sigma).

    At alpha = 1 it is the Euler step of Karras et al. 2022 (https://arxiv.org/abs/2206.00364, algorithm 1 without its
    correction), at alpha = 1 - sigma that of rectified flow (Liu et al. 2023, https://arxiv.org/abs/2209.03003).

    Args:
      levels: Level[N], any process.

    Raises:
      ValueError: if levels are not a plan (see `check_plan`).

    >>> from diffusers_fn import grids
    >>> euler(grids.karras(3)).rows.eps.round(4)
    array([-77.4848,  -2.5132,   0.    ])
    """
    check_plan(levels)
    start, end = neighbours(levels)
    return linear_solver(levels, x=[1.0], x0=end.alpha - start.alpha, eps=end.sigma - start.sigma)


def euler_ancestral(levels: Level, eta: ArrayLike = 1.0, *, s_noise: ArrayLike = 1.0) -> Solver:
    """Returns Euler's method down to sigma_down, then fresh noise up to the next level ("Euler a").

        x' = alpha' x0_hat + sqrt(sigma'^2 - s^2) eps_hat + s z,    s = eta sigma' sqrt(1 - SNR / SNR')

    This is `ddim` with eta = 1 by default.

    Args:
      levels: Level[N], any process.
      eta: [] in [0, 1].
      s_noise: [], a factor for the noise.

    Raises:
      ValueError: as `ddim`.

    >>> from diffusers_fn import grids
    >>> euler_ancestral(grids.karras(3)).rows.noise.round(4)
    array([2.514e+00, 2.000e-03, 0.000e+00])
    """
    check_plan(levels)
    solver = ddim(levels, eta)
    if solver.rows.noise is None:
        return solver
    return dataclasses.replace(solver, rows=dataclasses.replace(solver.rows, noise=s_noise * solver.rows.noise))


def heun(levels: Level) -> Solver:
    """Returns Heun's method (the trapezoid rule), of second order: two network evaluations per step, 2N - 1 in all.

        d = x0_hat (alpha' - alpha) + eps_hat (sigma' - sigma) at x,   x~ = x + d,   x' = x + (d + d~) / 2

    where d~ is d with the prediction at x~. At alpha = 1 it is algorithm 1 of Karras et al. 2022
    (https://arxiv.org/abs/2206.00364) without its noise.

    Args:
      levels: Level[N], any process.

    Raises:
      ValueError: if levels are not a plan (see `check_plan`).

    >>> from diffusers_fn import grids
    >>> heun(grids.karras(3)).rows.m
    array([[ 1. ,  0. ],
           [ 0.5, -0.5],
           [ 1. ,  0. ],
           [ 0.5, -0.5],
           [ 1. ,  0. ]])
    """
    return runge_kutta(levels, HEUN)


def midpoint(levels: Level, process: Process | None = None) -> Solver:
    """Returns the midpoint method, of second order: two network evaluations per step, 2N - 1 in all.

        d = x0_hat (alpha' - alpha) + eps_hat (sigma' - sigma),   x' = x + d at x + d / 2

    The second evaluation is halfway along the chord, on flow levels at the middle sigma; `dpm2` has its middle in
    log SNR.

    Args: as `runge_kutta`, without the tableau.
    Raises: as `runge_kutta`.

    >>> from diffusers_fn.processes import flow
    >>> midpoint(flow()(np.array([1.0, 0.5]))).rows.level.sigma
    array([1.  , 0.75, 0.5 ])
    """
    return runge_kutta(levels, MIDPOINT, process)


def rk4(levels: Level, process: Process | None = None) -> Solver:
    """Returns the classical Runge-Kutta method, of fourth order: four network evaluations per step, 4N - 3 in all.

    The "rk4" of torchdiffeq is `runge_kutta(levels, THREE_EIGHTHS)`.

    Args: as `runge_kutta`, without the tableau.
    Raises: as `runge_kutta`.

    >>> from diffusers_fn.processes import flow
    >>> rk4(flow()(np.array([1.0, 0.5]))).rows.level.sigma
    array([1.  , 0.75, 0.75, 0.5 , 0.5 ])
    """
    return runge_kutta(levels, RK4, process)


def runge_kutta(levels: Level, tableau: Tableau, process: Process | None = None) -> Solver:
    """Returns the explicit Runge-Kutta method of a tableau along the chords between the levels.

        x_i = x + sum_k a_ik d_k,   x' = x + sum_k b_k d_k,
        d_k = x0_hat (alpha' - alpha) + eps_hat (sigma' - sigma) at x_k

    A stage inside the step lies at the point c_i of the chord; the network is evaluated at the process's level of the
    same sigma / alpha, with x scaled to it.

    Args:
      levels: Level[N], any process; alpha = 0 at the first is allowed.
      tableau: a, b, c: MIDPOINT, HEUN, RK4, THREE_EIGHTHS, `two_stage(fraction)` or another.
      process: on which the levels of inner stages and their labels lie; None interpolates between the neighbours, see
        `processes.between`.

    Raises:
      ValueError: if levels are not a plan (see `check_plan`), the tableau is not explicit or its
        nodes leave [0, 1], or alpha = 0 on a variance-preserving plan without its process.

    >>> from diffusers_fn import grids
    >>> from diffusers_fn.solvers.tableaus import two_stage
    >>> runge_kutta(grids.karras(3), two_stage(2 / 3)).rows.m[:2].round(4)
    array([[ 0.6667,  0.    ],
           [ 0.75  , -0.4167]])
    """
    check_plan(levels)
    check_tableau(tableau)
    start, end = neighbours(levels)
    slope = end.alpha - start.alpha, end.sigma - start.sigma
    points, scales = zip(*(on_chord(start, end, node, process) for node in tableau.nodes))
    stages = []
    for level, scale, weights in zip(points, [*scales[1:], 1.0], [*tableau.stages[1:], tableau.weights]):
        stages.append(Stage(level, *slope, scale, [scale * weight for weight in weights]))
    return solver_from_stages([stages], levels[-1:])


def runge_kutta_in_time(process: Process, t: ArrayLike, tableau: Tableau) -> Solver:
    """Returns the explicit Runge-Kutta method of a tableau in a process's own time.

        x_i = x + (t' - t) sum_k a_ik d_k,   x' = x + (t' - t) sum_k b_k d_k,
        d_k = x0_hat d(alpha)/dt + eps_hat d(sigma)/dt at x_k and t + c_k (t' - t)

    So the network's velocity is integrated as it is, on any path: the samplers of SiT (Ma et al. 2024,
    https://arxiv.org/abs/2401.08740) and, with any sigma(t) and scaling s(t) as process, those of Karras et al. 2022,
    https://arxiv.org/abs/2206.00364, algorithm 3. The order is the tableau's where the process is smooth in
    t, which a tabulated process is not.

    Args:
      process: any.
      t: [N] times, descending in noise; the levels are process(t).
      tableau: as `runge_kutta`.

    Raises:
      ValueError: if process(t) is not a plan (see `check_plan`), or as `runge_kutta` for the
        tableau.

    >>> from diffusers_fn.processes import trigonometric
    >>> from diffusers_fn.solvers.tableaus import EULER
    >>> runge_kutta_in_time(trigonometric(), np.array([0.9, 0.5, 0.1]), EULER).rows.x0.round(4)
    array([0.6206, 0.4443, 1.    ])
    """
    if np.ndim(t) != 1:
        raise ValueError(f"t must be the [N] times of a plan; got shape {np.shape(t)}")
    times = floating(t)
    levels = process(times)
    check_plan(levels)
    check_tableau(tableau)
    stages, dt = [], times[1:] - times[:-1]
    for node, weights in zip(tableau.nodes, [*tableau.stages[1:], tableau.weights]):
        now = times[:-1] + node * dt
        level = process(now)
        # f and g^2 are infinite at pure noise, though the slopes of alpha and sigma are not: take them next to it.
        inside = namespace(level).where(level.alpha == 0, now + np.sqrt(np.finfo(now.dtype).eps) * dt, now)
        (f, g2), near = process.rates(inside), process.level(inside)
        d_alpha, d_sigma = f * near.alpha, f * near.sigma + g2 / (2 * near.sigma)
        stages.append(Stage(level, dt * d_alpha, dt * d_sigma, 1.0, weights))
    return solver_from_stages([stages], levels[-1:])
