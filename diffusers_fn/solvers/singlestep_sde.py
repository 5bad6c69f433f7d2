"""Single-step DPM-Solver(++) with fresh noise in every step: the ancestral methods of order two, DPM-Solver++(SDE)."""

from __future__ import annotations

from typing import Any

from diffusers_fn._arrays import check_eta, is_zero
from diffusers_fn._types import ArrayLike
from diffusers_fn.levels import Level
from diffusers_fn.processes import Process, between
from diffusers_fn.solvers.base import Solver
from diffusers_fn.solvers.ddim import ancestral_step
from diffusers_fn.solvers.dpm_solver import dpm_solver, dpmpp_2s, level_towards
from diffusers_fn.solvers.exponential import (
    ExponentialForm,
    data_prediction,
    exponential_step,
    noise_prediction,
)
from diffusers_fn.solvers.plans import check_alpha, check_plan, neighbours
from diffusers_fn.solvers.singlestep import second_order
from diffusers_fn.solvers.stages import Stage, solver_from_stages

__all__ = ["dpm2_ancestral", "dpmpp_2s_ancestral", "dpmpp_sde"]


def dpm2_ancestral(
    levels: Level, eta: ArrayLike = 1.0, process: Process | None = None, *, s_noise: ArrayLike = 1.0
) -> Solver:
    """Returns `dpm2` down to sqrt(sigma'^2 - s^2), then noise of standard deviation s up to sigma'.

    With s = eta sigma' sqrt(1 - SNR / SNR'): Katherine Crowson's sampler (https://github.com/crowsonkb/k-diffusion),
    "DPM2 a". With eta = 1 the level inside each step is its end.

    Args:
      levels: Level[N], any process, alpha > 0.
      eta: [] in [0, 1]; a Python 0 is `dpm2`.
      process: as `dpm_solver`.
      s_noise: [], a factor for the noise.

    Raises:
      ValueError: as `dpm_solver`.

    >>> from diffusers_fn import grids
    >>> dpm2_ancestral(grids.karras(3)).rows.noise.round(4)
    array([0.000e+00, 2.514e+00, 0.000e+00, 2.000e-03, 0.000e+00])
    """
    return _second_order_ancestral(levels, noise_prediction, eta, process, s_noise)


def dpmpp_2s_ancestral(
    levels: Level, eta: ArrayLike = 1.0, process: Process | None = None, *, s_noise: ArrayLike = 1.0
) -> Solver:
    """Returns `dpmpp_2s` down to sqrt(sigma'^2 - s^2), then noise of standard deviation s: "DPM++ 2S a".

    Args and Raises: as `dpm2_ancestral`.

    >>> from diffusers_fn import grids
    >>> dpmpp_2s_ancestral(grids.karras(3)).rows.noise.round(4)
    array([0.000e+00, 2.514e+00, 0.000e+00, 2.000e-03, 0.000e+00])
    """
    return _second_order_ancestral(levels, data_prediction, eta, process, s_noise)


def dpmpp_sde(
    levels: Level, eta: ArrayLike = 1.0, process: Process | None = None, *, s_noise: ArrayLike = 1.0
) -> Solver:
    """Returns DPM-Solver++(SDE): a step to the middle, then one from start to end with the middle's x0_hat.

        x_1 = x_coef_1 x + w_1 x0_hat(x) + s_1 z_1,     x' = x_coef x + w x0_hat(x_1) + s z

    with the middle halfway in log SNR. Both steps begin at x, go down to sqrt(sigma'^2 - s^2) and add noise of standard
    deviation s = eta sigma' sqrt(1 - SNR / SNR'), with sigma' and SNR' at their own end. It is Katherine Crowson's
    sampler (https://github.com/crowsonkb/k-diffusion), whose noise comes from one Brownian path; here z_1 and z are
    independent, as with its other noise samplers. eta = 1 is `singlestep` with eta = 1 and two levels per step.

    Args and Raises: as `dpm2_ancestral`; with a Python 0 it is `dpmpp_2s`.

    >>> from diffusers_fn import grids
    >>> dpmpp_sde(grids.karras(3)).rows.noise.round(4)
    array([1.39603e+01, 2.51400e+00, 7.09000e-02, 2.00000e-03, 0.00000e+00])
    """
    if is_zero(eta):
        return dpmpp_2s(levels, data_prediction, process)
    check_plan(levels)
    check_alpha(levels)
    check_eta(eta)
    start, end = neighbours(levels)
    middle = between(start, end, 0.5, process)
    sigma_1, s_1 = ancestral_step(start, middle, eta)
    sigma, s = ancestral_step(start, end, eta)
    to_middle = exponential_step(start, Level(middle.alpha, sigma_1, middle.t), data_prediction)
    to_end = exponential_step(start, Level(end.alpha, sigma, end.t), data_prediction)
    stages = [
        Stage(start, *data_prediction.keeps, to_middle.x, [to_middle.w0], s_noise * s_1),
        Stage(middle, *data_prediction.keeps, to_end.x, [0.0 * to_end.w0, to_end.w0], s_noise * s),
    ]
    return solver_from_stages([stages], levels[-1:])


def _second_order_ancestral(
    levels: Level, form: ExponentialForm, eta: Any, process: Process | None, s_noise: Any
) -> Solver:
    if is_zero(eta):
        return dpm_solver(levels, 2, form, process)
    check_plan(levels)
    check_alpha(levels)
    check_eta(eta)
    start, end = neighbours(levels)
    sigma, s = ancestral_step(start, end, eta)
    down = Level(end.alpha, sigma, end.t)
    middle = level_towards(start, down, end, levels[-1:], 0.5, process)
    *inner, last = second_order(start, middle, down, form)
    return solver_from_stages([[*inner, last._replace(noise=s_noise * s)]], levels[-1:])
