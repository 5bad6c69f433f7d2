"""Guidance scales that depend on the sampler step, computed from a solver's table."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import numpy as np

from diffusers_fn._arrays import concrete, namespace
from diffusers_fn._types import Array, ArrayLike
from diffusers_fn.guidance.scales import scale_on_plan
from diffusers_fn.levels import Level, log_snr
from diffusers_fn.solvers.base import LinearRow, Solver

__all__ = ["one_step_rows", "scale_on_rows", "shift_per_gradient", "shift_scale"]


def shift_scale(solver: Solver, amount: ArrayLike) -> Callable[[Level], jax.Array]:
    """Returns the scale, a function of the level, at which guidance by a gradient g moves the next state by amount * g.

    Guidance in its epsilon form changes eps by -scale sigma g and x0 by scale sigma^2 / alpha g, so a row
    x' = a x + b x0 + c eps moves by scale (b sigma^2 / alpha - c sigma) g. Use it for published step sizes: `amount` is
    zeta in the paper of `dps`, and the variance of the noise in `classifier_mean_shift`.

    Args:
      solver: the solver that the guided denoiser is sampled with, a table with one network evaluation per step:
        `ancestral`, `ddim`, `euler`.
      amount: [] or [R], one number per row, the last for the final denoise; may be traced.

    Raises:
      ValueError: if the solver is not such a table or visits a level twice.

    >>> from diffusers_fn import grids, solvers
    >>> levels = grids.karras(3)
    >>> scale = shift_scale(solvers.ddim(levels), 0.5)
    >>> shift = scale(Level(1.0, 80.0, 0.0)) * (80**2 - 80 * levels.sigma[1])
    >>> round(float(shift), 4)
    0.5
    """
    rows = one_step_rows(solver)
    return scale_on_rows(rows, amount / shift_per_gradient(rows))


def one_step_rows(solver: Solver) -> LinearRow:
    """Returns the rows of a table whose steps use one state and one network evaluation, on descending levels [R].

    Raises:
      ValueError: if the solver is not such a table.

    >>> from diffusers_fn import grids, solvers
    >>> one_step_rows(solvers.ddim(grids.karras(3))).x0.shape
    (3,)
    """
    rows = solver.rows
    if not isinstance(rows, LinearRow) or rows.x.shape[1] != 1 or rows.m.shape[1] != 1 or rows.churn is not None:
        raise ValueError(
            "guidance that depends on the step needs a solver with one evaluation per step and no history, such as "
            "ancestral, ddim or euler"
        )
    if len(np.shape(rows.level.sigma)) != 1:
        raise ValueError(
            f"guidance that depends on the step needs levels [N], the same for all examples; got "
            f"{rows.level.sigma.shape}"
        )
    alpha, sigma = concrete(rows.level.alpha), concrete(rows.level.sigma)
    if alpha is not None and sigma is not None and np.any(np.diff(log_snr(Level(alpha, sigma, 0.0))) <= 0):
        raise ValueError(
            "guidance that depends on the step identifies a step by its level, and this solver visits a level twice or "
            "goes back up"
        )
    return rows


def shift_per_gradient(rows: LinearRow) -> Array:
    """Returns b sigma^2 / alpha - c sigma [R], the shift of x' per unit of gradient at guidance scale 1.

    Raises:
      ValueError: if a level (not traced) has alpha = 0.

    >>> from diffusers_fn import grids, solvers
    >>> shift_per_gradient(one_step_rows(solvers.ddim(grids.karras(2)))).round(4).tolist()  # 80 (80 - 0.002), 0.002^2
    [6399.84, 0.0]
    """
    level, xp = rows.level, namespace(rows)
    if (alpha := concrete(level.alpha)) is not None and np.any(alpha == 0):
        raise ValueError("guidance by a gradient needs levels with alpha > 0; this plan starts at pure noise")
    m = xp.asarray(rows.m)[:, 0]
    return m * (rows.x0 * level.sigma**2 / level.alpha - rows.eps * level.sigma)


def scale_on_rows(rows: LinearRow, values: Array | Sequence[float]) -> Callable[[Level], jax.Array]:
    """Returns the scale, a function of the level, whose value is values[i] at the level of row i.

    Args:
      rows: R rows.
      values: [] or [R], may be traced.

    >>> from diffusers_fn import grids, solvers
    >>> float(scale_on_rows(solvers.ddim(grids.karras(2)).rows, [3.0, 5.0])(Level(1.0, 80.0, 0.0)))
    3.0
    """
    return scale_on_plan(rows.level, namespace(rows, values).broadcast_to(values, np.shape(rows.level.sigma)))
