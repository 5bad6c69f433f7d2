"""Pseudo numerical methods: Adams-Bashforth means of eps_hat in DDIM's formula, and two ways to start them.

Liu et al., "Pseudo Numerical Methods for Diffusion Models on Manifolds", 2022, https://arxiv.org/abs/2202.09778.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import numpy as np

from diffusers_fn._arrays import namespace
from diffusers_fn.levels import Array, Level, log_snr
from diffusers_fn.processes import Process, between
from diffusers_fn.solvers.adams import ADAMS_BASHFORTH
from diffusers_fn.solvers.base import Solver, check_num_levels, check_plan, linear_solver, neighbours
from diffusers_fn.solvers.forms import check_alpha, noise_prediction, whole_hop


def plms(levels: Level) -> Solver:
    """Returns PLMS: `ipndm` of order four, whose first hop is corrected by a second evaluation at its end.

        x~_1 = DDIM(x_0, eps_0),   x_1 = DDIM(x_0, (eps_0 + eps~_1) / 2),   then means of eps_0, eps_1, eps_2, ...

    The second level is visited twice, so there are N + 1 evaluations: Katherine Crowson's sampler in latent diffusion
    (https://github.com/CompVis/latent-diffusion/pull/51), "skip_prk_steps" elsewhere. The means ignore the spacing: the
    order is two on a smooth grid, where sigma / alpha is not evenly spaced.

    Args:
      levels: Level[N], N >= 2, any process whose first alpha is positive.

    Raises:
      ValueError: if levels are no plan (see `check_plan`) of at least two levels, or alpha = 0.

    >>> from diffusers_fn import grids
    >>> plms(grids.karras(5)).rows.level.sigma.round(1)
    array([80. , 17.5, 17.5,  2.5,  0.2,  0. ])
    """
    check_plan(levels)
    check_num_levels(levels, 2)
    check_alpha(levels)
    frm, to = neighbours(levels)
    xp = namespace(levels)
    visited = jax.tree.map(lambda a: xp.concatenate([a[:2], a[1:]]), levels)
    scale, whole = to.alpha / frm.alpha, whole_hop(levels, noise_prediction)
    one = xp.ones_like(scale[:1])
    start = [xp.concatenate([whole[:1], 0.5 * whole[:1]]), xp.concatenate([0.0 * whole[:1], -0.5 * whole[:1]])]
    # Row 1's value is not used again: those that are come from rows 0, 2, 3, ...
    kept = [0, *range(2, whole.shape[0] + 1)]
    m = _columns(start, whole[1:], kept, first=1)
    return linear_solver(visited, x=[xp.concatenate([scale[:1], one, scale[1:]])], x0=0.0, eps=1.0, m=m)


def pndm(levels: Level, middles: Level | None = None, process: Process | None = None) -> Solver:
    """Returns PNDM, the "F-PNDM" of the paper: three hops of a pseudo Runge-Kutta method, then `ipndm` of order four.

    The hops at the start take four evaluations each, of the classical method in sigma / alpha, at both ends and twice
    in the middle (eq. 13); N + 9 in all. The first value of each is the one that later means use, up to twelve rows
    later, so that this table keeps thirteen values.

    Args:
      levels: Level[N], N >= 4, any process whose first alpha is positive.
      middles: Level[3], where the first three hops are halved: in t for discrete timesteps, as in the paper. Otherwise
        they are halved in sigma / alpha, where the start is of order four.
      process: the process on which such middles lie; None interpolates, see `processes.between`.

    Raises:
      ValueError: if levels are no plan (see `check_plan`) of at least four levels, alpha = 0, or middles are not three.

    >>> from diffusers_fn import grids
    >>> pndm(grids.karras(6)).rows.m.shape
    (15, 13)
    """
    check_plan(levels)
    check_num_levels(levels, 4)
    check_alpha(levels)
    xp = namespace(levels, middles)
    first, last = (jax.tree.map(lambda a: a[:3], ends) for ends in neighbours(levels))
    if middles is None:
        ratio = log_snr(last) - log_snr(first)
        fraction = 2.0 * (np.log(2.0) - xp.logaddexp(0.0, -0.5 * ratio)) / ratio
        middles = between(first, last, fraction, process)
    if np.shape(middles.sigma)[:1] != (3,):
        raise ValueError(
            f"middles must be Level[3], one in each of the first three hops; got {np.shape(middles.sigma)}"
        )

    def by_hop(*stages: Array) -> Array:
        """[3] of each of the four stages to [12]."""
        return xp.stack(stages, axis=1).reshape(12, *stages[0].shape[1:])

    at_start = jax.tree.map(by_hop, first, middles, middles, last)
    visited = jax.tree.map(lambda start, a: xp.concatenate([start, a[3:]]), at_start, levels)
    half, scale = middles.alpha / first.alpha, last.alpha / first.alpha
    w_half, w = middles.sigma - first.sigma * half, last.sigma - first.sigma * scale
    one, none = xp.ones_like(w), xp.zeros_like(w)
    start = [
        by_hop(w_half, w_half, w, w / 6),
        by_hop(none, -w_half, -w_half * scale / half, -w * 2 / 3),
        by_hop(none, none, none, w / 3),
        by_hop(none, none, none, w / 6),
    ]
    frm, to = jax.tree.map(lambda a: a[3:], neighbours(levels))
    whole = whole_hop(levels, noise_prediction)[3:]
    kept = [0, 4, 8, *range(12, 12 + whole.shape[0])]
    m = _columns(start, whole, kept, first=3)
    x = xp.concatenate([by_hop(half, one, scale / half, one), to.alpha / frm.alpha])
    return linear_solver(visited, x=[x], x0=0.0, eps=1.0, m=m)


def _columns(start: list[Array], whole: Array, kept: Sequence[int], first: int) -> list[Array]:
    """The columns of m: those of the start, then Adams-Bashforth means of the values that the rows `kept` have seen.

    whole: [R, *S], DDIM's coefficient of eps_hat in the rows after the start, which are kept[first:].
    """
    xp = namespace(start, whole)
    lags = [[row - kept[i - k] for k in range(min(i + 1, 4))] for i, row in enumerate(kept)][first:]
    num_columns = max([len(start), *(row[-1] + 1 for row in lags)])
    mean = np.zeros((len(lags), num_columns))
    for i, row in enumerate(lags):
        mean[i, row] = ADAMS_BASHFORTH[len(row) - 1, : len(row)]
    start = start + [0.0 * start[0]] * (num_columns - len(start))
    along = lambda column: column.reshape(-1, *(1,) * (whole.ndim - 1))  # noqa: E731
    return [xp.concatenate([start[k], along(mean[:, k]) * whole]) for k in range(num_columns)]
