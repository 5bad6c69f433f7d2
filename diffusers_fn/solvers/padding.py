"""Tables of equal length for plans of different lengths, so that they share one compiled program."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np

from diffusers_fn._arrays import namespace
from diffusers_fn.solvers.base import LinearRow, Solver, start_level

__all__ = ["pad"]


def pad(solver: Solver, num_rows: int) -> Solver:
    """Returns the solver padded to `num_rows` rows; the rows in front leave x unchanged.

    A padding row is x' = x_1 at the level that the solver starts from, without noise. `sample` returns the same samples
    for the padded solver, with the same noise for the same key. A scan evaluates the network in padding rows too and
    drops the result; `sample(..., scan=while_scan(n))`, with n the number of the solver's own rows, skips them, and n
    may be traced.

    Args:
      solver: a table (see `linear_solver`) of R rows.
      num_rows: at least R.

    Raises:
      ValueError: if the solver is not a table or has more than num_rows rows.

    >>> from diffusers_fn import grids
    >>> from diffusers_fn.solvers.ddim import ddim
    >>> pad(ddim(grids.karras(2)), 4).rows.x[:, 0]
    array([1., 1., 0., 0.])
    """
    rows = solver.rows
    if not isinstance(rows, LinearRow):
        raise ValueError(
            f"only tables can be padded, solvers whose rows are of type LinearRow; got {type(rows).__name__}"
        )
    own = rows.x0.shape[0]
    if own > num_rows:
        raise ValueError(f"num_rows must be at least the solver's own number of rows, {own}; got {num_rows}")
    xp = namespace(rows)
    in_front = lambda a, value: xp.concatenate([xp.broadcast_to(value, (num_rows - own, *a.shape[1:])), a])  # noqa: E731
    padded = jax.tree.map(lambda a: in_front(a, xp.zeros_like(a[:1])), rows)
    identity = np.zeros(rows.x.shape[1:])
    identity[0] = 1.0
    padded = dataclasses.replace(
        padded,
        level=jax.tree.map(in_front, rows.level, start_level(solver)),
        x=in_front(rows.x, xp.asarray(identity, rows.x.dtype)),
    )
    return dataclasses.replace(solver, rows=padded)
