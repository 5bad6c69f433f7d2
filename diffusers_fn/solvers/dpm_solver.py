"""DPM-Solver(++) between the levels of a plan, with levels of its own inside each step.

Lu et al., "DPM-Solver: A Fast ODE Solver for Diffusion Probabilistic Model Sampling in Around 10 Steps", 2022,
https://arxiv.org/abs/2206.00927, and "DPM-Solver++", 2022, https://arxiv.org/abs/2211.01095.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import numpy as np

from diffusers_fn._arrays import check_eta, is_zero, namespace, safe_sqrt
from diffusers_fn._types import ArrayLike
from diffusers_fn.levels import Level, log_snr
from diffusers_fn.processes import Process, at_log_snr, between
from diffusers_fn.solvers.base import Solver
from diffusers_fn.solvers.ddim import ancestral_step
from diffusers_fn.solvers.exponential import ExponentialForm, data_prediction, noise_prediction
from diffusers_fn.solvers.plans import check_alpha, check_plan, neighbours
from diffusers_fn.solvers.singlestep import check_orders, formulas, runs
from diffusers_fn.solvers.stages import solver_from_stages

__all__ = ["dpm2", "dpm_solver", "dpmpp_2s", "dpmpp_3s", "level_towards"]

# The levels inside a step of DPM-Solver-1, -2 and -3, as fractions of its length in lambda.
_SHARES = {1: (), 2: (1 / 2,), 3: (1 / 3, 2 / 3)}


def dpm_solver(
    levels: Level,
    order: int | Sequence[int] = 3,
    form: ExponentialForm = noise_prediction,
    process: Process | None = None,
    *,
    eta: ArrayLike = 0.0,
    s_noise: ArrayLike = 1.0,
    taylor: bool = False,
) -> Solver:
    """Returns DPM-Solver-1, -2 or -3 (Lu et al. 2022, https://arxiv.org/abs/2206.00927, algorithms 1 and 2).

    Every step from one level to the next takes `order` network evaluations, at its start and at 1/2, or at 1/3 and 2/3,
    of its length in lambda; the formulas are those of `solvers.singlestep`. "DPM-Solver-fast" has one order per step:
    `fast_orders(num_evaluations)`.

    With eta > 0 a step ends at sqrt(sigma'^2 - s^2), but not below the last level, and noise of standard deviation s is
    added, s = eta sigma' sqrt(1 - SNR / SNR'), as in Katherine Crowson's dpm_fast
    (https://github.com/crowsonkb/k-diffusion).

    Args:
      levels: Level[N], any process, alpha > 0 (data_prediction also takes a step of order 1 from alpha = 0).
      order: 1, 2 or 3, or a list with the order of each of the N - 1 steps.
      form: noise_prediction; data_prediction for DPM-Solver++.
      process: on which the levels inside steps lie; None interpolates, see `processes.between`.
      eta: [] in [0, 1].
      s_noise: [], a factor for the noise.
      taylor: as `singlestep`.

    Raises:
      ValueError: as `singlestep`.

    >>> from diffusers_fn import grids
    >>> dpm_solver(grids.karras(3, sigma_min=1.0), 2).rows.level.sigma.round(2)
    array([80.  , 31.67, 12.53,  3.54,  1.  ])
    """
    check_plan(levels)
    check_eta(eta)
    num_steps = levels.sigma.shape[0] - 1
    orders = [order] * num_steps if isinstance(order, int | np.integer) else list(order)
    check_orders(orders, len(orders), num_steps, "their number")
    if form is noise_prediction or max(orders[:1], default=1) > 1:
        check_alpha(levels)
    start, end = neighbours(levels)
    down, noise = end, None
    if not is_zero(eta):
        sigma, noise = ancestral_step(start, end, eta)
        lowest = end.alpha * levels.sigma[-1:] / levels.alpha[-1:]  # of the last level's log SNR
        noise = namespace(noise).where(sigma < lowest, safe_sqrt(end.sigma**2 - lowest**2), noise)
        down = Level(end.alpha, namespace(sigma).maximum(sigma, lowest), end.t)
    stages_of, segments = formulas(taylor), []
    for first, num, p in runs(orders):
        part = slice(first, first + num)
        if noise is None:
            inside = [between(start[part], end[part], share, process) for share in _SHARES[p]]
            segments.append(stages_of[p](start[part], *inside, end[part], form))
        else:
            ends = start[part], down[part], end[part]
            inside = [level_towards(*ends, levels[-1:], share, process) for share in _SHARES[p]]
            *earlier, last = stages_of[p](start[part], *inside, down[part], form)
            segments.append([*earlier, last._replace(noise=s_noise * noise[part])])
    return solver_from_stages(segments, levels[-1:])


def dpm2(levels: Level, process: Process | None = None) -> Solver:
    """Returns DPM2 ("KDPM2"), which is DPM-Solver-2: a midpoint method in sigma / alpha, the middle halfway in log SNR.

        x_1 / alpha_1 = x / alpha + (rho_1 - rho) eps_hat(x),   x' / alpha' = x / alpha + (rho' - rho) eps_hat(x_1)

    with rho = sigma / alpha and rho_1 = sqrt(rho rho'): Katherine Crowson's sampler
    (https://github.com/crowsonkb/k-diffusion). `dpm2_churn` is its version with noise.

    Args and Raises: as `dpm_solver`.

    >>> from diffusers_fn import grids
    >>> dpm2(grids.karras(3)).rows.m[:2].round(2)  # -65.8 to the middle, then -77.5 to the end instead
    array([[-65.81,   0.  ],
           [-77.48,  65.81]])
    """
    return dpm_solver(levels, 2, noise_prediction, process)


def dpmpp_2s(
    levels: Level, form: ExponentialForm = data_prediction, process: Process | None = None, *, taylor: bool = False
) -> Solver:
    """Returns DPM-Solver++(2S) (Lu et al. 2022, https://arxiv.org/abs/2211.01095, algorithm 1, r = 1/2).

    Args and Raises: as `dpm_solver`.

    >>> from diffusers_fn import grids
    >>> dpmpp_2s(grids.karras(3)).rows.m.round(3)
    array([[ 0.823,  0.   ],
           [ 0.969, -0.146],
           [ 0.972,  0.   ],
           [ 0.999, -0.027],
           [ 1.   ,  0.   ]])
    """
    return dpm_solver(levels, 2, form, process, taylor=taylor)


def dpmpp_3s(
    levels: Level, form: ExponentialForm = data_prediction, process: Process | None = None, *, taylor: bool = False
) -> Solver:
    """Returns DPM-Solver-3 in data prediction, "DPM-Solver++(3S)": order 3, three network evaluations per step.

    Args and Raises: as `dpm_solver`.

    >>> from diffusers_fn import grids
    >>> dpmpp_3s(grids.karras(2, sigma_min=10.0)).rows.level.sigma
    array([80., 40., 20., 10.])
    """
    return dpm_solver(levels, 3, form, process, taylor=taylor)


def level_towards(start: Level, down: Level, end: Level, last: Level, share: float, process: Process | None) -> Level:
    """Returns Level[M] at the fraction `share` of the way from `start` to `down`, from which noise leads to `end`.

    The way is measured in log SNR. The level may lie beyond `end`; without a process it is then interpolated between
    `start` and `last`.

    Args:
      start: Level[M].
      down: Level[M].
      end: Level[M] of the plan.
      last: Level[1], the last one of the plan.
      share: in (0, 1).
      process: the process of the plan; None interpolates, see `processes.between`.
    """
    xp = namespace(start, down, end)
    log_ratio = (1 - share) * log_snr(start) + share * log_snr(down)
    if process is not None:
        return at_log_snr(process, log_ratio)
    fraction = (log_ratio - log_snr(start)) / (log_snr(end) - log_snr(start))
    inside = between(start, end, xp.clip(fraction, 0.0, 1.0))
    if share <= 0.5:  # never beyond `end`, as eta <= 1
        return inside
    last = jax.tree.map(lambda a, b: xp.broadcast_to(a, np.shape(b)), last, end)
    beyond = between(start, last, xp.clip((log_ratio - log_snr(start)) / (log_snr(last) - log_snr(start)), 0.0, 1.0))
    return jax.tree.map(lambda a, b: xp.where(fraction > 1.0, a, b), beyond, inside)
