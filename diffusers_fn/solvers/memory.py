"""Solvers for denoisers with a memory, which becomes part of the solver's state."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from diffusers_fn.levels import Level
from diffusers_fn.parameterizations import Prediction
from diffusers_fn.solvers.base import LinearRow, Solver, Step

__all__ = ["with_memory"]


def with_memory(solver: Solver) -> Solver:
    """Returns the solver for a denoiser with a memory, (x, level, memory) -> (prediction, memory).

    The memory has the shape of x and is zero at first; each evaluation, the final denoise included, gets the memory of
    the one before. It is part of the solver's state, so sampling stays one scan of a pure function.

    Args:
      solver: a table (every solver but `predictor_corrector` and `adaptive`).

    Raises:
      ValueError: if the solver is not a table.

    >>> from diffusers_fn import grids, oracles, sample
    >>> from diffusers_fn.solvers import ddim
    >>> mean = lambda x, level, memory=0.0: (oracles.gaussian(0.0, 1.0)(x, level), memory + 1.0)
    >>> x = 80.0 * jnp.ones((1, 1))
    >>> last = sample(None, mean, with_memory(ddim(grids.karras(5))), x).x0
    >>> bool(last == sample(None, oracles.gaussian(0.0, 1.0), ddim(grids.karras(5)), x).x0)
    True
    """
    if not isinstance(solver.rows, LinearRow):
        raise ValueError(
            "only a table, a solver whose rows are of type LinearRow, can carry a denoiser's memory; "
            f"got rows of type {type(solver.rows).__name__}"
        )
    return Solver(_Init(solver.init), _Step(solver.step), solver.rows, solver.stochastic)


@functools.partial(jax.tree_util.register_dataclass, data_fields=["inner", "memory"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class _WithMemory:
    inner: Any
    memory: jax.Array

    @property
    def x(self) -> jax.Array:
        return self.inner.x


# Callables that compare equal when the functions in them do, so that equal solvers share one compilation.


@dataclasses.dataclass(frozen=True)
class _Init:
    init: Callable[..., Any]

    def __call__(self, x: jax.Array, rows: LinearRow) -> _WithMemory:
        return _WithMemory(self.init(x, rows), jnp.zeros_like(x))


@dataclasses.dataclass(frozen=True)
class _Step:
    step: Callable[..., tuple[Any, Step]]

    def __call__(self, key: Any, denoise: Any, state: _WithMemory, row: LinearRow) -> tuple[_WithMemory, Step]:
        memories = []

        def without_memory(x: jax.Array, level: Level, cond: Any = None) -> Prediction:
            result = denoise(x, level, state.memory)
            if not isinstance(result, tuple):
                raise ValueError(
                    "solvers.with_memory needs a denoiser that returns (prediction, memory), such as self_conditioned; "
                    f"got {type(result).__name__}: leave with_memory out"
                )
            prediction, memory = result
            memories.append(memory)
            return prediction

        inner, step = self.step(key, without_memory, state.inner, row)
        (memory,) = memories  # one evaluation per row
        return _WithMemory(inner, memory.astype(state.memory.dtype)), step
