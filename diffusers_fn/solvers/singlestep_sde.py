"""Single-step DPM-Solver(++) with fresh noise in every hop: the ancestral forms of order two, and DPM-Solver++(SDE)."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from diffusers_fn._arrays import check_eta, is_zero
from diffusers_fn.levels import Level
from diffusers_fn.processes import Process
from diffusers_fn.solvers.base import Solver, check_num_levels, check_plan, linear_solver, neighbours
from diffusers_fn.solvers.exponential_stages import (
    ancestral_end,
    hop_from_start,
    inner_levels,
    ladder,
    places,
    stage_weights,
    states_rows,
)
from diffusers_fn.solvers.forms import check_alpha, data_prediction, noise_prediction
from diffusers_fn.solvers.singlestep import dpmpp_2s, with_inner_levels
from diffusers_fn.solvers.stages import join_levels


def dpm2_ancestral(levels: Level, eta: Any = 1.0, process: Process | None = None, *, s_noise: Any = 1.0) -> Solver:
    """Returns `dpm2` down to sqrt(sigma'^2 - s^2) and s of fresh noise, s = eta sigma' sqrt(1 - SNR / SNR').

    Katherine Crowson's sampler (https://github.com/crowsonkb/k-diffusion), "DPM2 a". With eta = 1 the level inside each
    hop is its end.

    Args:
      levels: Level[N], N >= 2, any process, alpha > 0.
      eta: [] in [0, 1]; a Python 0 is `dpm2`.
      process: as `dpm_solver`.
      s_noise: [], what the noise is multiplied by.

    Raises:
      ValueError: as `dpm_solver`.

    >>> from diffusers_fn import grids
    >>> dpm2_ancestral(grids.karras(3)).rows.noise.round(4)
    array([0.000e+00, 2.514e+00, 0.000e+00, 2.000e-03, 0.000e+00])
    """
    return with_inner_levels(levels, 2, noise_prediction, process, eta, s_noise)


def dpmpp_2s_ancestral(levels: Level, eta: Any = 1.0, process: Process | None = None, *, s_noise: Any = 1.0) -> Solver:
    """Returns `dpmpp_2s` down to sqrt(sigma'^2 - s^2) and s of fresh noise: "DPM++ 2S a".

    Args and Raises: as `dpm2_ancestral`.

    >>> from diffusers_fn import grids
    >>> dpmpp_2s_ancestral(grids.karras(3)).rows.noise.round(4)
    array([0.000e+00, 2.514e+00, 0.000e+00, 2.000e-03, 0.000e+00])
    """
    return with_inner_levels(levels, 2, data_prediction, process, eta, s_noise)


def dpmpp_sde(levels: Level, eta: Any = 1.0, process: Process | None = None, *, s_noise: Any = 1.0) -> Solver:
    """Returns DPM-Solver++(SDE): the middle is reached with fresh noise, and so is the end, from the start with its x0.

        x_1 = x_coef_1 x + W_1 x0_hat(x) + s_1 z_1,     x' = x_coef x + W x0_hat(x_1) + s z

    with the middle halfway in log SNR and s = eta sigma' sqrt(1 - SNR / SNR'). Katherine Crowson's sampler
    (https://github.com/crowsonkb/k-diffusion), whose noise is of one Brownian path; here z_1 and z are independent, as
    with its other noise samplers. eta = 1 is `singlestep` with eta = 1 on both levels of a hop.

    Args and Raises: as `dpm2_ancestral`; with a Python 0 it is `dpmpp_2s`.

    >>> from diffusers_fn import grids
    >>> dpmpp_sde(grids.karras(3)).rows.noise.round(4)
    array([1.39603e+01, 2.51400e+00, 7.09000e-02, 2.00000e-03, 0.00000e+00])
    """
    if is_zero(eta):
        return dpmpp_2s(levels, data_prediction, process)
    check_plan(levels)
    check_num_levels(levels, 2)
    check_alpha(levels)
    check_eta(eta)
    frm, to = neighbours(levels)
    orders = [2] * frm.sigma.shape[0]
    place, size = places(orders)
    at = inner_levels(frm, to, to, jax.tree.map(lambda a: a[-1:], levels), orders, process)
    ends = ladder(at, to, orders)
    start = jax.tree.map(lambda a: a[np.arange(place.size) - place], at)
    down, noise = ancestral_end(start, ends, eta)
    hop, curve = hop_from_start(at, down, place, data_prediction)
    weights = stage_weights(at, ends, place, size, hop, curve)
    columns = states_rows(hop.x, weights, place)
    last = jax.tree.map(lambda a: a[-1:], levels)
    return linear_solver(join_levels(at, last), x0=1.0, eps=0.0, noise=s_noise * noise, **columns)
