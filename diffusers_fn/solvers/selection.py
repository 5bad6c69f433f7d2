"""One of several solvers, chosen by a traced index: a traced number of steps."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffusers_fn._arrays import concrete, namespace
from diffusers_fn._types import Array, ArrayLike
from diffusers_fn.solvers.base import Solver, linear_step

__all__ = ["select"]


def select(solvers: Sequence[Solver], index: ArrayLike) -> tuple[Solver, jax.Array]:
    """Returns (solver, number of rows): solvers[index] with rows in front that are not to be run; index may be traced.

    For `sample(..., scan=while_scan(number of rows))`, which runs the rows of solvers[index] alone, with the same noise
    for the same key. One compiled program serves all of the solvers. Their rows are stored one after the other, the
    longest first, and a window that ends with the chosen ones is read. Columns that a solver lacks, because
    its plan is short, are zeros.

    Args:
      solvers: of one kind, such as `[ddim(grids.karras(n)) for n in range(1, 51)]`.
      index: [] integer, 0 ... len(solvers) - 1. A traced one beyond these is clipped to them.

    Raises:
      ValueError: if there are no solvers, they are of different kinds, or the index (not traced) is out of range.

    >>> from diffusers_fn import grids, oracles, sample, while_scan
    >>> from diffusers_fn.solvers.ddim import ddim
    >>> solver, num_rows = select([ddim(grids.karras(n)) for n in (1, 2, 3)], 1)
    >>> int(num_rows)
    2
    >>> x, denoise = jnp.ones((1, 2)), oracles.gaussian(0.0, 1.0)
    >>> chosen = sample(None, denoise, solver, x, scan=while_scan(num_rows)).x0
    >>> bool(jnp.all(chosen == sample(None, denoise, ddim(grids.karras(2)), x).x0))
    True
    """
    solvers = list(solvers)
    if not solvers:
        raise ValueError("solvers must be a sequence of at least one solver; got none")
    given = concrete(index)
    if given is not None and not 0 <= int(given) < len(solvers):
        raise ValueError(f"index must lie in 0 ... {len(solvers) - 1}; got {int(given)}")
    first, kinds = solvers[0], [_kind(solver) for solver in solvers]
    for number, kind in enumerate(kinds):
        if kind != kinds[0]:
            raise ValueError(
                f"solvers must be of one kind, that differ in their numbers alone; number {number} is not of the kind "
                "of number 0"
            )
    lengths = np.array([_num_rows(solver) for solver in solvers], np.int32)
    order, longest = np.argsort(-lengths, kind="stable"), int(lengths.max())
    ends = np.empty_like(lengths)
    ends[order] = np.cumsum(lengths[order])
    rows = jax.tree.map(_joined, *(solvers[number].rows for number in order))
    if first.step is linear_step and isinstance(rows.x, np.ndarray) and not rows.x.any():
        rows = dataclasses.replace(rows, x=rows.x[:, :0])  # as `sample` does
    index = jnp.clip(jnp.asarray(index, jnp.int32), 0, len(solvers) - 1)
    start = jnp.asarray(ends)[index] - longest
    window = jax.tree.map(lambda a: jax.lax.dynamic_slice_in_dim(jnp.asarray(a), start, longest), rows)
    return dataclasses.replace(first, rows=window), jnp.asarray(lengths)[index]


def _kind(solver: Solver) -> Any:
    """What solvers must have in common; the second axis of a column may differ."""
    shapes = tuple((np.ndim(leaf), np.shape(leaf)[2:]) for leaf in jax.tree.leaves(solver.rows))
    return solver.init, solver.step, solver.stochastic, jax.tree.structure(solver.rows), shapes


def _num_rows(solver: Solver) -> int:
    return np.shape(jax.tree.leaves(solver.rows)[0])[0]


def _joined(*columns: Array) -> Array:
    """Returns columns [R_i, ...] one after the other, with zeros where the second axis is shorter than the longest."""
    xp = namespace(columns)
    width = max(np.shape(column)[1] if np.ndim(column) > 1 else 0 for column in columns)

    def widened(column: Any) -> Any:
        if np.ndim(column) < 2:
            return column
        return xp.pad(column, ((0, 0), (0, width - column.shape[1]), *((0, 0),) * (column.ndim - 2)))

    return xp.concatenate([widened(column) for column in columns])
