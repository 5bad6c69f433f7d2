"""Pseudo numerical methods: Adams-Bashforth means of eps_hat in DDIM's formula, and two ways to start them.

Liu et al., "Pseudo Numerical Methods for Diffusion Models on Manifolds", 2022, https://arxiv.org/abs/2202.09778.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import numpy as np

from diffusers_fn._arrays import namespace
from diffusers_fn._types import Array
from diffusers_fn.levels import Level, log_snr
from diffusers_fn.processes import Process, between
from diffusers_fn.solvers.adams import ADAMS_BASHFORTH
from diffusers_fn.solvers.base import Solver, linear_solver
from diffusers_fn.solvers.exponential import exponential_step, noise_prediction
from diffusers_fn.solvers.plans import check_alpha, check_plan, neighbours
from diffusers_fn.solvers.stages import interleave

__all__ = ["plms", "pndm"]


def plms(levels: Level) -> Solver:
    """Returns PLMS: `ipndm` of order four, whose first step is corrected by a second evaluation at its end.

        x~_1 = DDIM(x_0, eps_0),   x_1 = DDIM(x_0, (eps_0 + eps~_1) / 2),   then means of eps_0, eps_1, eps_2, ...

    The second level is visited twice, so there are N + 1 evaluations. It is Katherine Crowson's sampler in latent
    diffusion (https://github.com/CompVis/latent-diffusion/pull/51), "skip_prk_steps" elsewhere. The means
    ignore the spacing: the order is two on a smooth grid, where sigma / alpha is not evenly spaced.

    Args:
      levels: Level[N], any process whose first alpha is positive.

    Raises:
      ValueError: if levels are not a plan (see `check_plan`), or alpha = 0.

    >>> from diffusers_fn import grids
    >>> plms(grids.karras(5)).rows.level.sigma.round(1)
    array([80. , 17.5, 17.5,  2.5,  0.2,  0. ])
    """
    check_plan(levels)
    check_alpha(levels)
    step = exponential_step(*neighbours(levels), noise_prediction)
    xp, first = namespace(levels), step.w0[:1]
    visited = jax.tree.map(lambda a: xp.concatenate([a[:2], a[1:]]), levels)
    start = [xp.concatenate([first, 0.5 * first]), xp.concatenate([0.0 * first, -0.5 * first])]
    # The value of row 1 is not used again: the means are those of rows 0, 2, 3, ...
    kept = [0, *range(2, step.w0.shape[0] + 1)]
    m = _columns(start, step.w0[1:], kept, first=1)
    x = xp.concatenate([step.x[:1], xp.ones_like(step.x[:1]), step.x[1:]])
    return linear_solver(visited, x=[x], x0=0.0, eps=1.0, m=m)


def pndm(levels: Level, middles: Level | None = None, process: Process | None = None) -> Solver:
    """Returns PNDM, the "F-PNDM" of the paper: three steps of a pseudo Runge-Kutta method, then `ipndm` of order four.

    Each of the first three steps takes four evaluations, of the classical method in sigma / alpha: at both ends and
    twice in the middle (eq. 13); N + 9 in all. The means use the first value of each of these steps up to twelve rows
    later, so this table keeps thirteen values.

    Args:
      levels: Level[N], any process whose first alpha is positive.
      middles: Level[3], the middles of the first three steps (fewer if the plan has fewer steps): in t for discrete
        timesteps, as in the paper. By default
        they lie halfway in sigma / alpha, where the start is of order four.
      process: on which these default middles lie; None interpolates, see `processes.between`.

    Raises:
      ValueError: if levels are not a plan (see `check_plan`) alpha = 0, or there is not one middle for each step of
        the start.

    >>> from diffusers_fn import grids
    >>> pndm(grids.karras(6)).rows.m.shape
    (15, 13)
    """
    check_plan(levels)
    check_alpha(levels)
    xp = namespace(levels, middles)
    num = min(3, levels.sigma.shape[0] - 1)  # steps of the start
    first, last = levels[:num], levels[1 : num + 1]
    if middles is None:
        ratio = log_snr(last) - log_snr(first)
        fraction = 2.0 * (np.log(2.0) - xp.logaddexp(0.0, -0.5 * ratio)) / ratio
        middles = between(first, last, fraction, process)
    if np.shape(middles.sigma)[:1] != (num,):
        raise ValueError(
            f"middles must be Level[{num}], one in each of the first steps, at most 3; got {np.shape(middles.sigma)}"
        )
    at_start = jax.tree.map(interleave, first, middles, middles, last)
    visited = jax.tree.map(lambda start, a: xp.concatenate([start, a[num:]]), at_start, levels)
    half, scale = middles.alpha / first.alpha, last.alpha / first.alpha
    w_half, w = middles.sigma - first.sigma * half, last.sigma - first.sigma * scale
    one, none = xp.ones_like(w), xp.zeros_like(w)
    start = [
        interleave(w_half, w_half, w, w / 6),
        interleave(none, -w_half, -w_half * scale / half, -w * 2 / 3),
        interleave(none, none, none, w / 3),
        interleave(none, none, none, w / 6),
    ]
    step = exponential_step(*neighbours(levels[num:]), noise_prediction)
    kept = [*range(0, 4 * num, 4), *range(4 * num, 4 * num + step.w0.shape[0])]
    m = _columns(start, step.w0, kept, first=num)
    x = xp.concatenate([interleave(half, one, scale / half, one), step.x])
    return linear_solver(visited, x=[x], x0=0.0, eps=1.0, m=m)


def _columns(start: list[Array], w0: Array, kept: Sequence[int], first: int) -> list[Array]:
    """The columns of m: those of the start, then Adams-Bashforth means of the values kept by the rows `kept`.

    w0: [R, *S], DDIM's coefficient of eps_hat in the rows after the start, which are kept[first:].
    """
    xp = namespace(start, w0)
    lags = [[row - kept[i - k] for k in range(min(i + 1, 4))] for i, row in enumerate(kept)][first:]
    num_columns = max([len(start), *(row[-1] + 1 for row in lags)])
    mean = np.zeros((len(lags), num_columns))
    for i, row in enumerate(lags):
        mean[i, row] = ADAMS_BASHFORTH[len(row) - 1, : len(row)]
    start = start + [0.0 * start[0]] * (num_columns - len(start))
    along = lambda column: column.reshape(-1, *(1,) * (w0.ndim - 1))  # noqa: E731
    return [xp.concatenate([start[k], along(mean[:, k]) * w0]) for k in range(num_columns)]
