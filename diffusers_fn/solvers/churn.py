"""Solvers that add noise before each hop and then solve more of the ODE: the stochastic samplers of EDM.

Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models", 2022,
https://arxiv.org/abs/2206.00364, algorithm 2. A hop from rho = sigma / alpha first goes up,

    rho^ = (1 + gamma) rho,   gamma = min(s_churn / N, sqrt(2) - 1) if s_min <= rho <= s_max, else 0,
    x^ / alpha^ = x / alpha + s_noise sqrt(rho^ ^2 - rho^2) z,

and the network is asked at the level of rho^: the column `churn` of the table. N is the number of levels; the final
denoise is churned like every hop.
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from diffusers_fn._arrays import concrete, is_zero, namespace, safe_sqrt
from diffusers_fn.levels import Array, Level, log_snr
from diffusers_fn.processes import Process, at_log_snr
from diffusers_fn.solvers.base import Solver, check_num_levels, check_plan, linear_solver
from diffusers_fn.solvers.exponential_stages import (
    hop_from_start,
    inner_levels,
    ladder,
    one_state_rows,
    places,
    stage_weights,
)
from diffusers_fn.solvers.forms import check_alpha, noise_prediction
from diffusers_fn.solvers.runge_kutta import euler, heun
from diffusers_fn.solvers.singlestep import dpm2
from diffusers_fn.solvers.stages import from_stages, interleave, join_levels
from diffusers_fn.solvers.tableaus import HEUN


def edm_stochastic(
    levels: Level,
    s_churn: Any = 0.0,
    s_min: Any = 0.0,
    s_max: Any = np.inf,
    s_noise: Any = 1.0,
    *,
    process: Process | None = None,
) -> Solver:
    """Returns the stochastic sampler of EDM (Karras et al. 2022, algorithm 2): `heun` from the churned level.

    The paper's settings for ImageNet-64 are s_churn=40, s_min=0.05, s_max=50, s_noise=1.003.

    Args:
      levels: Level[N], N >= 2, alpha > 0. Where alpha changes from level to level, give the process; the first level is
        then not churned.
      s_churn: [], how much noise in all; a Python 0 is `heun`, without noise. All four may be traced.
      s_min, s_max: [], the range of sigma / alpha that is churned.
      s_noise: [], what the noise is multiplied by, without changing the level.
      process: where the churned levels lie and their labels; with `final_denoise=False` the state is left at the alpha
        that its last level would be churned to. Without one alpha stays, and the label moves with log SNR
        as it does in the hop before: exact for EDM's log(sigma) / 4.

    Raises:
      ValueError: if levels are no plan (see `check_plan`) of at least two levels, alpha is 0, alpha changes and there
        is no process, or a readable number is negative.

    >>> from diffusers_fn import grids
    >>> rows = edm_stochastic(grids.karras(3, sigma_min=1.0), s_churn=1.0, s_max=50.0).rows
    >>> rows.level.sigma.round(2), rows.churn.round(2)
    (array([80.  , 12.53, 16.71,  1.  ,  1.33]), array([ 0.  ,  0.  , 11.05,  0.  ,  0.88]))
    """
    if is_zero(s_churn):
        return heun(levels)
    hat, rise, scale = _churned(levels, s_churn, s_min, s_max, s_noise, process)
    frm, to, last = _hops(hat, levels)
    slopes = [to.alpha - frm.alpha] * 2, [to.sigma - frm.sigma] * 2
    weights, noise = [*HEUN.stages, HEUN.weights], _noise(rise, s_noise, 2)
    return from_stages([frm, to], last, [1.0, 1.0, scale[1:]], weights, *slopes, **noise)


def euler_churn(
    levels: Level,
    s_churn: Any = 0.0,
    s_min: Any = 0.0,
    s_max: Any = np.inf,
    s_noise: Any = 1.0,
    *,
    process: Process | None = None,
) -> Solver:
    """Returns `euler` from the churned level, as `edm_stochastic` without its correction.

    Args and Raises: as `edm_stochastic`.

    >>> from diffusers_fn import grids
    >>> euler_churn(grids.karras(3), s_churn=1.0).rows.eps.round(3)
    array([-104.151,   -3.352,    0.   ])
    """
    if is_zero(s_churn):
        return euler(levels)
    hat, rise, scale = _churned(levels, s_churn, s_min, s_max, s_noise, process)
    frm, to, last = _hops(hat, levels)
    slopes = [to.alpha - frm.alpha], [to.sigma - frm.sigma]
    return from_stages([frm], last, [1.0, scale[1:]], [(), (1.0,)], *slopes, **_noise(rise, s_noise, 1))


def dpm2_churn(
    levels: Level,
    s_churn: Any = 0.0,
    s_min: Any = 0.0,
    s_max: Any = np.inf,
    s_noise: Any = 1.0,
    *,
    process: Process | None = None,
) -> Solver:
    """Returns `dpm2` from the churned level.

    Args and Raises: as `edm_stochastic`.

    >>> from diffusers_fn import grids
    >>> dpm2_churn(grids.karras(3), s_churn=1.0).rows.level.sigma.round(3)
    array([1.06667e+02, 1.63800e+01, 3.35400e+00, 8.20000e-02, 3.00000e-03])
    """
    if is_zero(s_churn):
        return dpm2(levels, process)
    hat, rise, scale = _churned(levels, s_churn, s_min, s_max, s_noise, process)
    frm, to, last = _hops(hat, levels)
    orders = [2] * frm.sigma.shape[0]
    place, size = places(orders)
    at = inner_levels(frm, to, to, last, orders, process)
    # x at the hop's end is scaled to the level that it is churned to.
    ends = ladder(at, Level(to.alpha * scale[1:], to.sigma * scale[1:], to.t), orders)
    hop, curve = hop_from_start(at, ends, place, noise_prediction)
    columns = one_state_rows(hop.x, stage_weights(at, ends, place, size, hop, curve), place)
    return linear_solver(join_levels(at, last), x0=0.0, eps=1.0, **_noise(rise, s_noise, 2), **columns)


def _churned(
    levels: Level, s_churn: Any, s_min: Any, s_max: Any, s_noise: Any, process: Process | None
) -> tuple[Level, Array, Array]:
    """(hat, rise, scale) of each level, [N, *S]: where it goes up to, by what noise, and what x is scaled by before."""
    check_plan(levels)
    check_num_levels(levels, 2)
    check_alpha(levels)
    for name, value in {"s_churn": s_churn, "s_min": s_min, "s_max": s_max, "s_noise": s_noise}.items():
        known = concrete(value)
        if known is not None and (known.shape != () or not known >= 0):
            raise ValueError(f"{name} must be one number, not negative; got {value}")
    xp = namespace(levels, s_churn, s_min, s_max, s_noise)
    ratio = levels.sigma / levels.alpha
    gamma = xp.minimum(s_churn / ratio.shape[0], np.sqrt(2.0) - 1.0)
    gamma = xp.where((ratio >= s_min) & (ratio <= s_max), gamma, 0.0)
    up = 2.0 * xp.log1p(gamma)
    if process is None:
        _check_constant_alpha(levels)
        slope = xp.diff(levels.t, axis=0) / xp.diff(log_snr(levels), axis=0)
        label = levels.t - up * xp.concatenate([slope[:1], slope])
        hat = Level(levels.alpha + 0.0 * label, (1.0 + gamma) * levels.sigma, label)
    else:
        # Nothing scales x before the first row, so that where scaling is needed the first level stays as it is.
        still = levels.alpha[:1] == levels.alpha[1:2]
        up = xp.concatenate([xp.where(still, up[:1], 0.0), up[1:]])
        there = at_log_snr(process, log_snr(levels) - up)
        hat = jax.tree.map(lambda a, b: xp.where(up > 0, a, b), there, levels)
    scale = hat.alpha / levels.alpha
    return hat, hat.alpha * ratio * safe_sqrt(xp.expm1(up)), scale


def _hops(hat: Level, levels: Level) -> tuple[Level, Level, Level]:
    """(frm, to, last): hops start at churned levels; the final denoise is at one."""
    first, rest = (lambda a: a[:-1]), (lambda a: a[1:])
    return jax.tree.map(first, hat), jax.tree.map(rest, levels), jax.tree.map(lambda a: a[-1:], hat)


def _noise(rise: Array, s_noise: Any, num_stages: int) -> dict[str, Array]:
    """The columns of rows of hops of so many stages: noise before the first stage, and before the final denoise."""
    others = [0.0 * rise[:-1]] * (num_stages - 1)
    rise = namespace(rise).concatenate([interleave(rise[:-1], *others), rise[-1:]])
    return {"churn": s_noise * rise, "rise": rise}


def _check_constant_alpha(levels: Level) -> None:
    alpha = concrete(levels.alpha)
    if alpha is not None and not np.all(alpha == alpha[:1]):
        raise ValueError(
            "where alpha changes from level to level, churned levels lie on the process alone: pass it, "
            "e.g. process=processes.vp(), or use levels with alpha = 1"
        )
