"""Solvers whose denoiser remembers: the memory is part of the solver's state."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from diffusers_fn.levels import Level
from diffusers_fn.parameterizations import Prediction
from diffusers_fn.solvers.base import Row, Solver, Step


def with_memory(solver: Solver) -> Solver:
    """Returns the solver for a denoiser that remembers, (x, level, memory) -> (prediction, memory).

    The memory, of x's shape and zero at first, is part of the solver's state: nothing is hidden, and sampling stays one
    scan of a pure function. The last row, the final denoise, is an evaluation like any other.

    Args:
      solver: a table (every solver but `predictor_corrector` and `adaptive`).

    Raises:
      ValueError: if it is none.

    >>> from diffusers_fn import grids, oracles, sample
    >>> from diffusers_fn.solvers import ddim
    >>> mean = lambda x, level, memory=0.0: (oracles.gaussian(0.0, 1.0)(x, level), memory + 1.0)
    >>> x = 80.0 * jnp.ones((1, 1))
    >>> last = sample(None, mean, with_memory(ddim(grids.karras(5))), x).x0
    >>> bool(last == sample(None, oracles.gaussian(0.0, 1.0), ddim(grids.karras(5)), x).x0)
    True
    """
    if not isinstance(solver.rows, Row):
        raise ValueError("only a table, of one evaluation a row, can carry a denoiser's memory")
    return Solver(_Init(solver.init), _Step(solver.step), solver.rows, solver.stochastic)


@functools.partial(jax.tree_util.register_dataclass, data_fields=["inner", "memory"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class _Remembered:
    inner: Any
    memory: jax.Array

    @property
    def x(self) -> jax.Array:
        return self.inner.x


# Functions that carry others, equal when those are: so equal solvers share one compilation.


@dataclasses.dataclass(frozen=True)
class _Init:
    init: Callable[..., Any]

    def __call__(self, x: jax.Array, rows: Row) -> _Remembered:
        return _Remembered(self.init(x, rows), jnp.zeros_like(x))


@dataclasses.dataclass(frozen=True)
class _Step:
    step: Callable[..., tuple[Any, Step]]

    def __call__(self, key: Any, denoise: Any, state: _Remembered, row: Row) -> tuple[_Remembered, Step]:
        said = []

        def forgetful(x: jax.Array, level: Level, cond: Any = None) -> Prediction:
            prediction, memory = denoise(x, level, state.memory)
            said.append(memory)
            return prediction

        inner, step = self.step(key, forgetful, state.inner, row)
        (memory,) = said  # a row evaluates once
        return _Remembered(inner, memory.astype(state.memory.dtype)), step
