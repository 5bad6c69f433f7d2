"""Guidance that depends on the hop: scales for a solver's table."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from diffusers_fn._arrays import concrete, namespace
from diffusers_fn.guidance.scales import scale_on_plan
from diffusers_fn.levels import Array, Level, log_snr
from diffusers_fn.solvers.base import LinearRow, Solver


def shift_scale(solver: Solver, amount: Any) -> Callable[[Level], jax.Array]:
    """Returns the scale at which guidance by a gradient g moves a solver's next state by amount * g.

    Guidance in its epsilon form changes eps by -scale sigma g and x0 by scale sigma^2 / alpha g, so a row
    x' = a x + b x0 + c eps moves by scale (b sigma^2 / alpha - c sigma) g. For step sizes tuned for a sampler: `amount`
    is zeta in the paper of `dps`, or the variance of the noise for `classifier_mean_shift`.

    Args:
      solver: the table that the guided denoiser will be sampled with, of one step a hop: `ancestral`, `ddim`, `euler`.
      amount: [] or [R], a number a row, the final denoise's last; may be traced.

    Raises:
      ValueError: if the solver is no such table or visits a level twice.

    >>> from diffusers_fn import grids, solvers
    >>> levels = grids.karras(3)
    >>> scale = shift_scale(solvers.ddim(levels), 0.5)
    >>> moves = scale(Level(1.0, 80.0, 0.0)) * (80**2 - 80 * levels.sigma[1])
    >>> round(float(moves), 4)
    0.5
    """
    rows = one_step_rows(solver)
    return scale_on_rows(rows, amount / per_gradient(rows))


def one_step_rows(solver: Solver) -> LinearRow:
    """Returns the rows of a table whose hops use one state and one evaluation, on levels [R] that descend.

    Raises:
      ValueError: if the solver is something else.
    """
    rows = solver.rows
    if not isinstance(rows, LinearRow) or rows.x.shape[1] != 1 or rows.m.shape[1] != 1 or rows.churn is not None:
        raise ValueError(
            "guidance by the hop needs a table of one evaluation a hop and no memory, such as ancestral, ddim or euler"
        )
    if len(np.shape(rows.level.sigma)) != 1:
        raise ValueError(
            f"guidance by the hop needs levels [N], the same for every example; got {rows.level.sigma.shape}"
        )
    alpha, sigma = concrete(rows.level.alpha), concrete(rows.level.sigma)
    if alpha is not None and sigma is not None and np.any(np.diff(log_snr(Level(alpha, sigma, 0.0))) <= 0):
        raise ValueError(
            "guidance by the hop tells hops by their level, and this solver visits one twice or goes back up"
        )
    return rows


def per_gradient(rows: LinearRow) -> Array:
    """How far x' moves for guidance of scale 1 along a gradient, an entry a row: b sigma^2 / alpha - c sigma."""
    level, xp = rows.level, namespace(rows)
    if (alpha := concrete(level.alpha)) is not None and np.any(alpha == 0):
        raise ValueError("guidance needs a plan whose first level has alpha > 0; this one starts at pure noise")
    m = xp.asarray(rows.m)[:, 0]
    return m * (rows.x0 * level.sigma**2 / level.alpha - rows.eps * level.sigma)


def scale_on_rows(rows: LinearRow, values: Any) -> Callable[[Level], jax.Array]:
    """The function of the level that is values[i] at row i's."""
    return scale_on_plan(rows.level, namespace(rows, values).broadcast_to(values, np.shape(rows.level.sigma)))
