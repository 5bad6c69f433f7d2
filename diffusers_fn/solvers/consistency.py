"""Multistep sampling of consistency models: a jump to cleaner data, then noise again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from diffusers_fn._arrays import concrete, is_zero, safe_sqrt
from diffusers_fn._types import ArrayLike
from diffusers_fn.levels import Level, transition
from diffusers_fn.solvers.base import Solver, linear_solver
from diffusers_fn.solvers.ddim import ddim
from diffusers_fn.solvers.plans import check_plan, neighbours

__all__ = ["lcm", "tcd"]


def lcm(levels: Level) -> Solver:
    """Returns the sampler of consistency models: x' = alpha' x0_hat + sigma' z, all noise fresh.

    Song et al., "Consistency Models", 2023, https://arxiv.org/abs/2303.01469, algorithm 1; in latents Luo et al.,
    "Latent Consistency Models", 2023, https://arxiv.org/abs/2310.04378, algorithm 3. Their boundary condition, x0_hat =
    c_skip x + c_out f(x), is part of the denoiser. With an ordinary denoiser the samples have too little spread.

    Args:
      levels: Level[N], any process.

    Raises:
      ValueError: if levels are not a plan (see `check_plan`).

    >>> from diffusers_fn import grids
    >>> lcm(grids.karras(3)).rows.noise.round(4)
    array([2.5152e+00, 2.0000e-03, 0.0000e+00])
    """
    check_plan(levels)
    _, end = neighbours(levels)
    return linear_solver(levels, x=[0.0], x0=end.alpha, eps=0.0, noise=end.sigma)


def tcd(levels: Level, process: Callable[[Any], Level], gamma: ArrayLike = 0.3) -> Solver:
    """Returns strategic stochastic sampling: DDIM to the time s = (1 - gamma) t', then noise up to the level at t'.

        x_s = alpha_s x0_hat + sigma_s eps_hat
        x' = (alpha' / alpha_s) x_s + sqrt(sigma'^2 - (alpha' / alpha_s)^2 sigma_s^2) z

    Zheng et al., "Trajectory Consistency Distillation", 2024, https://arxiv.org/abs/2402.19159, algorithm 4. gamma = 0
    is `ddim`; with gamma = 1 and a process that is clean at t = 0 it is `lcm`.

    Args:
      levels: Level[N], whose labels t are the process's own time.
      process: t -> Level, e.g. `processes.tabulated(schedule)`; for whole timesteps, as the authors round them,
        `lambda t: level_at(schedule, np.floor(t).astype(int))`.
      gamma: [] in [0, 1].

    Raises:
      ValueError: if levels are not a plan (see `check_plan`) or gamma (not traced) is outside [0, 1].

    >>> from diffusers_fn import grids, processes
    >>> process = processes.trigonometric()
    >>> tcd(grids.uniform_t(process, 3), process, 0.5).rows.noise.round(2)
    array([0.64, 0.  , 0.  ])
    """
    check_plan(levels)
    known = concrete(gamma)
    if known is not None and not (np.shape(known) == () and 0 <= known <= 1):
        raise ValueError(f"gamma must be one number in [0, 1]; got {gamma}")
    if is_zero(gamma):
        return ddim(levels)
    _, end = neighbours(levels)
    target = process((1.0 - gamma) * end.t)
    ratio, var = transition(end, target)
    return linear_solver(levels, x=[0.0], x0=end.alpha, eps=ratio * target.sigma, noise=safe_sqrt(var))
