"""Solvers that add noise before each step and then solve more of the ODE: the stochastic samplers of EDM.

Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models", 2022,
https://arxiv.org/abs/2206.00364, algorithm 2. A step from rho = sigma / alpha first goes up,

    rho^ = (1 + gamma) rho,   gamma = min(s_churn / N, sqrt(2) - 1) if s_min <= rho <= s_max, else 0,
    x^ / alpha^ = x / alpha + s_noise sqrt(rho^ ^2 - rho^2) z,

and the network is evaluated at the level of rho^: the column `churn` of the table. N is the number of levels; the final
denoise is churned like every step.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import numpy as np

from diffusers_fn._arrays import concrete, is_zero, namespace, safe_sqrt
from diffusers_fn._types import Array, ArrayLike
from diffusers_fn.levels import Level, log_snr
from diffusers_fn.processes import Process, at_log_snr, between
from diffusers_fn.solvers.base import Solver
from diffusers_fn.solvers.dpm_solver import dpm2
from diffusers_fn.solvers.exponential import noise_prediction
from diffusers_fn.solvers.plans import check_alpha, check_num_levels, check_plan
from diffusers_fn.solvers.runge_kutta import euler, heun
from diffusers_fn.solvers.singlestep import second_order
from diffusers_fn.solvers.stages import Stage, before_each_step, solver_from_stages

__all__ = ["dpm2_churn", "euler_churn", "heun_churn"]


def heun_churn(
    levels: Level,
    s_churn: ArrayLike = 0.0,
    s_min: ArrayLike = 0.0,
    s_max: ArrayLike = np.inf,
    s_noise: ArrayLike = 1.0,
    *,
    process: Process | None = None,
) -> Solver:
    """Returns the stochastic sampler of EDM (Karras et al. 2022, algorithm 2): `heun` from the churned level.

        d = x0_hat (alpha' - alpha^) + eps_hat (sigma' - sigma^) at x^,   x~ = x^ + d,   x' = x^ + (d + d~) / 2

    where d~ is d with the prediction at x~ and the next level. The paper's settings for ImageNet-64 are s_churn=40,
    s_min=0.05, s_max=50, s_noise=1.003.

    Args:
      levels: Level[N], N >= 2, alpha > 0. Where alpha changes from level to level, pass the process; the first level is
        then not churned.
      s_churn: [], the amount of noise over all steps; a Python 0 is `heun`, without noise. All four may be traced.
      s_min, s_max: [], the range of sigma / alpha that is churned.
      s_noise: [], a factor for the added noise; the level does not depend on it.
      process: the process on which the churned levels and their labels lie; with `final_denoise=False` the result has
        the alpha of the last churned level. Without a process alpha is unchanged, and the label is extrapolated
        linearly in log SNR from the step before, which is exact for EDM's log(sigma) / 4.

    Raises:
      ValueError: if levels are not a plan (see `check_plan`) of at least two levels, alpha is 0, alpha changes and
        there is no process, or a number (not traced) is negative.

    >>> from diffusers_fn import grids
    >>> rows = heun_churn(grids.karras(3, sigma_min=1.0), s_churn=1.0, s_max=50.0).rows
    >>> rows.level.sigma.round(2), rows.churn.round(2)
    (array([80.  , 12.53, 16.71,  1.  ,  1.33]), array([ 0.  ,  0.  , 11.05,  0.  ,  0.88]))
    """
    if is_zero(s_churn):
        return heun(levels)
    churned = _churned(levels, s_churn, s_min, s_max, s_noise, process)
    start, end, scale = churned.level[:-1], levels[1:], churned.scale[1:]
    slope = end.alpha - start.alpha, end.sigma - start.sigma
    stages = [Stage(start, *slope, 1.0, [1.0]), Stage(end, *slope, scale, [0.5 * scale, 0.5 * scale])]
    return _solver(stages, churned)


def euler_churn(
    levels: Level,
    s_churn: ArrayLike = 0.0,
    s_min: ArrayLike = 0.0,
    s_max: ArrayLike = np.inf,
    s_noise: ArrayLike = 1.0,
    *,
    process: Process | None = None,
) -> Solver:
    """Returns `euler` from the churned level: `heun_churn` without its correction.

    Args and Raises: as `heun_churn`.

    >>> from diffusers_fn import grids
    >>> euler_churn(grids.karras(3), s_churn=1.0).rows.eps.round(3)
    array([-104.151,   -3.352,    0.   ])
    """
    if is_zero(s_churn):
        return euler(levels)
    churned = _churned(levels, s_churn, s_min, s_max, s_noise, process)
    start, end, scale = churned.level[:-1], levels[1:], churned.scale[1:]
    return _solver([Stage(start, end.alpha - start.alpha, end.sigma - start.sigma, scale, [scale])], churned)


def dpm2_churn(
    levels: Level,
    s_churn: ArrayLike = 0.0,
    s_min: ArrayLike = 0.0,
    s_max: ArrayLike = np.inf,
    s_noise: ArrayLike = 1.0,
    *,
    process: Process | None = None,
) -> Solver:
    """Returns `dpm2` from the churned level.

    Args and Raises: as `heun_churn`.

    >>> from diffusers_fn import grids
    >>> dpm2_churn(grids.karras(3), s_churn=1.0).rows.level.sigma.round(3)
    array([1.06667e+02, 1.63800e+01, 3.35400e+00, 8.20000e-02, 3.00000e-03])
    """
    if is_zero(s_churn):
        return dpm2(levels, process)
    churned = _churned(levels, s_churn, s_min, s_max, s_noise, process)
    start, end, scale = churned.level[:-1], levels[1:], churned.scale[1:]
    middle = between(start, end, 0.5, process)
    scaled_end = Level(end.alpha * scale, end.sigma * scale, end.t)  # of the same log SNR
    return _solver(second_order(start, middle, scaled_end, noise_prediction), churned)


class _Churned(NamedTuple):
    """The churn at each of N levels.

    Attributes:
      level: Level[N] of the evaluation.
      scale: [N, *S] the factor of x before the noise, alpha^ / alpha.
      churn: [N, *S] standard deviation of the noise.
      nominal_churn: [N, *S] the same with s_noise = 1, which determines the level.
    """

    level: Level
    scale: Array
    churn: Array
    nominal_churn: Array


def _churned(levels: Level, s_churn: Any, s_min: Any, s_max: Any, s_noise: Any, process: Process | None) -> _Churned:
    check_plan(levels)
    check_num_levels(levels, 2)
    check_alpha(levels)
    for name, value in {"s_churn": s_churn, "s_min": s_min, "s_max": s_max, "s_noise": s_noise}.items():
        known = concrete(value)
        if known is not None and (known.shape != () or not known >= 0):
            raise ValueError(f"{name} must be one number, not negative; got {value}")
    xp = namespace(levels, s_churn, s_min, s_max, s_noise)
    rho = levels.sigma / levels.alpha
    gamma = xp.minimum(s_churn / rho.shape[0], np.sqrt(2.0) - 1.0)
    gamma = xp.where((rho >= s_min) & (rho <= s_max), gamma, 0.0)
    up = 2.0 * xp.log1p(gamma)  # in log SNR
    if process is None:
        _check_constant_alpha(levels)
        slope = xp.diff(levels.t, axis=0) / xp.diff(log_snr(levels), axis=0)
        label = levels.t - up * xp.concatenate([slope[:1], slope])
        level = Level(levels.alpha + 0.0 * label, (1.0 + gamma) * levels.sigma, label)
    else:
        # x is scaled by the row before, so where alpha changes the first level stays as it is.
        same_alpha = levels.alpha[:1] == levels.alpha[1:2]
        up = xp.concatenate([xp.where(same_alpha, up[:1], 0.0), up[1:]])
        raised = at_log_snr(process, log_snr(levels) - up)
        level = jax.tree.map(lambda a, b: xp.where(up > 0, a, b), raised, levels)
    nominal_churn = level.alpha * rho * safe_sqrt(xp.expm1(up))
    return _Churned(level, level.alpha / levels.alpha, s_noise * nominal_churn, nominal_churn)


def _solver(stages: list[Stage], churned: _Churned) -> Solver:
    """The stages, with noise before each step and before the final denoise."""
    churn, nominal_churn = (before_each_step(a, len(stages)) for a in (churned.churn, churned.nominal_churn))
    return solver_from_stages([stages], churned.level[-1:], churn=churn, nominal_churn=nominal_churn)


def _check_constant_alpha(levels: Level) -> None:
    alpha = concrete(levels.alpha)
    if alpha is not None and not np.all(alpha == alpha[:1]):
        raise ValueError(
            "where alpha changes from level to level, churned levels lie on the process alone: pass it, "
            "e.g. process=processes.vp(), or use levels with alpha = 1"
        )
