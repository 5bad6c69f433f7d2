"""Steps with several evaluations: each stage is written from the step's start, as papers do, and becomes a row.

From the state x at the start of a step, S stages lead to the state at its end:

    x_0 = x,   x_{i+1} = a_i x + sum_k w_ik m_k + s_i z_i,   x' = x_S,   m_k = c_k x0_hat + d_k eps_hat at x_k

`Stage` i holds the level of x_i and the numbers a_i, w_i0 ... w_ii, s_i, c_i, d_i of all steps at once, as vectors over
the steps. `solver_from_stages` turns them into the table of a linear solver, one row per stage.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax

from diffusers_fn._arrays import namespace
from diffusers_fn._types import Array, ArrayLike
from diffusers_fn.levels import Level, append
from diffusers_fn.solvers.base import Solver, linear_solver

__all__ = ["Stage", "before_each_step", "interleave", "solver_from_stages"]


class Stage(NamedTuple):
    """One network evaluation within each of M steps, and the state that follows it, a x + sum_k w_k m_k + s z.

    Every number is [M, *S], or one number for all steps.

    Attributes:
      level: Level[M] at which the network is evaluated.
      x0: coefficient of x0_hat in this stage's m.
      eps: coefficient of eps_hat in this stage's m.
      x: a, the coefficient of the state at the step's start.
      m: w_0, w_1, ..., the coefficients of the m of the step's first stage, its second, ..., this one.
      noise: s, the standard deviation of fresh noise, or None for none.
    """

    level: Level
    x0: ArrayLike
    eps: ArrayLike
    x: ArrayLike
    m: Sequence[ArrayLike]
    noise: ArrayLike | None = None


def solver_from_stages(segments: Sequence[Sequence[Stage]], last: Level, **columns: Any) -> Solver:
    """Returns the solver that takes the steps of each segment in turn, then the final denoise.

    Without noise inside steps each row continues from the state before it, x_{i+1} = (a_i / a_{i-1}) x_i + ..., and one
    state is enough. With noise at a stage before the last, every row starts from the state at its step's start.

    Args:
      segments: lists of stages; each list describes M consecutive steps. Segments may differ in M and in length.
      last: Level[1] of the final denoise.
      columns: more columns of `linear_solver`, e.g. churn.

    The midpoint method from sigma = 2 to sigma = 1, alpha = 1:

    >>> import numpy as np
    >>> at = lambda sigma: Level(np.ones(1), np.array([sigma]), np.zeros(1))
    >>> stages = [Stage(at(2.0), 0.0, -1.0, 1.0, [0.5]), Stage(at(1.5), 0.0, -1.0, 1.0, [0.0, 1.0])]
    >>> solver_from_stages([stages], at(1.0)).rows.m
    array([[ 0.5,  0. ],
           [ 1. , -0.5],
           [ 1. ,  0. ]])
    """
    if not segments:
        return linear_solver(last, x=[1.0], x0=0.0, eps=0.0, **columns)
    noise_inside = any(stage.noise is not None for stages in segments for stage in stages[:-1])
    noise_anywhere = any(stage.noise is not None for stages in segments for stage in stages)
    num_values = max(len(stages) for stages in segments)
    num_states = num_values if noise_inside else 1
    tables = []
    for stages in segments:
        rows = []
        for i, stage in enumerate(stages):
            x, m = _weights(stages, i, noise_inside)
            row: dict[str, Any] = {
                "x0": stage.x0,
                "eps": stage.eps,
                "x": _widen(x, num_states),
                "m": _widen(m, num_values),
            }
            if noise_anywhere:
                row["noise"] = 0.0 if stage.noise is None else stage.noise
            rows.append((stage.level, _full(row, stage.level)))
        tables.append(jax.tree.map(lambda *a: interleave(*a), *rows))
    level, row = jax.tree.map(lambda *a: namespace(a).concatenate(a), *tables)
    return linear_solver(append(level, last), **row, **columns)


def _weights(stages: Sequence[Stage], i: int, from_start: bool) -> tuple[list[ArrayLike], list[ArrayLike]]:
    """(x, m): the coefficients of the last states and values, newest first, in the state after stage i."""
    stage = stages[i]
    if from_start:
        return [namespace(stage.x).zeros_like(stage.x)] * i + [stage.x], list(stage.m[::-1])
    if i == 0:
        return [stage.x], list(stage.m[::-1])
    before = stages[i - 1]  # x_i = before.x x + sum_k before.m[k] m_k, solved for x
    ratio = stage.x / before.x
    m = [w - ratio * w_before for w, w_before in itertools.zip_longest(stage.m, before.m, fillvalue=0.0)]
    return [ratio], m[::-1]


def _full(row: Any, level: Level) -> Any:
    """The row's numbers as [M, *S]."""
    xp = namespace(row, level)
    return jax.tree.map(lambda a: xp.broadcast_to(xp.asarray(a), level.sigma.shape), row)


def _widen(columns: list[ArrayLike], num: int) -> list[ArrayLike]:
    return columns + [namespace(columns).zeros_like(columns[0])] * (num - len(columns))


def interleave(*columns: Array) -> Array:
    """Returns [S M, ...] of S arrays [M, ...]: the first entry of each, then the second of each, ...

    >>> import numpy as np
    >>> interleave(np.array([1, 2]), np.array([10, 20]))
    array([ 1, 10,  2, 20])
    """
    stacked = namespace(columns).stack(columns, axis=1)
    return stacked.reshape(-1, *stacked.shape[2:])


def before_each_step(values: Array, num_stages: int) -> Array:
    """Returns a column with `values` [M + 1, *S] at the first of the stages of each step and at the final denoise.

    >>> import numpy as np
    >>> before_each_step(np.array([3.0, 2.0, 1.0]), 2)
    array([3., 0., 2., 0., 1.])
    """
    first, last = values[:-1], values[-1:]
    return namespace(values).concatenate([interleave(first, *[0.0 * first] * (num_stages - 1)), last])
