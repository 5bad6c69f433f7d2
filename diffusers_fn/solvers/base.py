"""What a solver is: a table of numbers, one row per network evaluation, and the one step that all tables share.

How to read a row. The sampler keeps the last J states x_1, x_2, ..., x_J and the last K values m_1, m_2, ..., m_K,
newest first. A row evaluates the network at the state x_1 and the row's level, which gives x0_hat and eps_hat, and
puts a new value in front of the kept ones,

    m_1 = row.x0 x0_hat + row.eps eps_hat.

The new state is a weighted sum of the states and values, plus noise z ~ N(0, 1):

    x' = sum_j row.x[j] x_j  +  sum_k row.m[k] m_k  +  row.noise z

The last row of every table is the final denoise x' = x0_hat, the result of every method's step to sigma = 0.

Examples, for a step from the level (alpha, sigma) to (alpha', sigma'):

    method                row.x               row.x0             row.eps            row.m          row.noise
    DDIM, eta = 0         [0]                 alpha'             sigma'             [1]            None
    Euler                 [1]                 alpha' - alpha     sigma' - sigma     [1]            None
    ancestral (DDPM)      [coef_x]            coef_x0            0                  [1]            sqrt(var)
    DPM-Solver++(2M)      [sigma' / sigma]    1                  0                  [w_1, w_2]     None
    Heun, first row       [1]                 alpha' - alpha     sigma' - sigma     [1, 0]         None
    Heun, second row      [1]                 alpha' - alpha     sigma' - sigma     [1/2, -1/2]    None

Multistep methods keep m = x0_hat or eps_hat and combine the last few. Runge-Kutta methods keep slopes; each of their
rows continues from the stage before it, so Heun's second row adds half the change of slope to Euler's point. One step
of it, from sigma = 4 to sigma = 1 with alpha = 1, evaluates at 4 and at 1, and the final denoise at 1 again:

>>> from diffusers_fn import grids, solvers
>>> rows = solvers.heun(grids.karras(2, sigma_max=4.0, sigma_min=1.0)).rows
>>> rows.level.sigma.round(6), rows.x[:, 0], rows.x0, rows.eps.round(6)
(array([4., 1., 1.]), array([1., 1., 0.]), array([0., 0., 1.]), array([-3., -3.,  0.]))
>>> rows.m
array([[ 1. ,  0. ],
       [ 0.5, -0.5],
       [ 1. ,  0. ]])

Two columns are optional. `noise` is None in a deterministic table, and no random number is generated. `churn` is noise
that is added to x_1 before the evaluation, x_1 + row.churn z; the row's level is then that of the churned state.

Numbers are computed in float64 on the host where levels and options are NumPy or Python numbers, and rounded once, to
the precision of x, by `sample`; with traced levels or options they are traced. Solvers of equal shape share one
compiled program, since the numbers are its inputs. A solver of your own is one call to `linear_solver`.
"""

from __future__ import annotations

import dataclasses
import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffusers_fn import _random
from diffusers_fn._arrays import expand, namespace, safe_sqrt
from diffusers_fn._types import Array, ArrayLike
from diffusers_fn.denoisers import Denoiser
from diffusers_fn.levels import Level
from diffusers_fn.parameterizations import Prediction

__all__ = [
    "History",
    "LinearRow",
    "Solver",
    "Step",
    "check_maker",
    "linear_init",
    "linear_solver",
    "linear_step",
    "start_level",
]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LinearRow:
    """A row of a table, one network evaluation, or R of them stacked; S is [] or [B], B the batch size.

    The equation is in this module's docstring.

    Attributes:
      level: [R, *S] at which the network is evaluated.
      x: [R, J, *S] coefficients of the last J states, newest first.
      x0: [R, *S] coefficient of x0_hat in the value m_1.
      eps: [R, *S] coefficient of eps_hat in the value m_1.
      m: [R, K, *S] coefficients of the last K values, newest first.
      noise: [R, *S] standard deviation of fresh noise, or None for none.
      noise_range: [R, *S] or None. With a learned variance the standard deviation is
        noise * exp(var_frac * noise_range).
      churn: [R, *S] standard deviation of the noise added before the evaluation, or None for none.
      nominal_churn: [R, *S] standard deviation of the added noise that `level` accounts for, or None without churn. It
        is `churn` itself unless a factor such as s_noise multiplies the noise alone.
    """

    level: Level
    x: Array
    x0: Array
    eps: Array
    m: Array
    noise: Array | None = None
    noise_range: Array | None = None
    churn: Array | None = None
    nominal_churn: Array | None = None


@functools.partial(jax.tree_util.register_dataclass, data_fields=["rows"], meta_fields=["init", "step", "stochastic"])
@dataclasses.dataclass(frozen=True)
class Solver:
    """A plan for `sample`, a pytree that passes through jit: its functions are static and its rows are arrays.

    Attributes:
      init: (x, rows) -> state, the state before the first row: a pytree whose attribute `x` is the newest state.
      step: (key, denoise, state, row) -> (state, step), one network evaluation; `step` is its `Step`.
      rows: a pytree of arrays [R, ...], one row per evaluation; the last is the final denoise.
      stochastic: whether `step` needs a key; it gets None otherwise.
    """

    init: Callable[[jax.Array, Any], Any]
    step: Callable[[Any, Denoiser, Any, Any], tuple[Any, Step]]
    rows: Any
    stochastic: bool


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Step:
    """The evaluation and the result of one row, for `sample(..., emit=...)`.

    Attributes:
      x: [B, ...] the state at which the network was evaluated.
      level: S, its level.
      prediction: the prediction there.
      x_next: [B, ...] the new state.
    """

    x: jax.Array
    level: Level
    prediction: Prediction
    x_next: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class History:
    """State of a linear solver: the last J states and the last K - 1 values, newest first."""

    xs: tuple[jax.Array, ...]
    ms: tuple[jax.Array, ...]

    @property
    def x(self) -> jax.Array:
        return self.xs[0]


def linear_solver(
    levels: Level,
    *,
    x: Sequence[ArrayLike],
    x0: ArrayLike,
    eps: ArrayLike,
    m: Sequence[ArrayLike] = (1.0,),
    noise: ArrayLike | None = None,
    noise_range: ArrayLike | None = None,
    churn: ArrayLike | None = None,
    nominal_churn: ArrayLike | None = None,
) -> Solver:
    """Returns the solver whose table has the given columns, followed by the row of the final denoise.

    A column is a number or [R, *S]; the equation is in this module's docstring.

    Args:
      levels: Level[R + 1], those of the R rows and of the final denoise.
      x: J columns, the coefficients of the last states, newest first.
      x0: a column, the coefficient of x0_hat in the value that a row keeps.
      eps: a column, the coefficient of eps_hat in the value that a row keeps.
      m: K columns, the coefficients of the last values, newest first. Columns for values or states that do not exist
        yet must be zero in the first rows.
      noise: a column of standard deviations, or None for a deterministic solver.
      noise_range: a column, see `LinearRow`.
      churn: [R + 1, *S] standard deviations of noise added before each evaluation, the final denoise included, or None.
        `levels` are then those of the churned states.
      nominal_churn: [R + 1, *S], see `LinearRow`; None for `churn` itself.

    DDIM from one level to the next:

    >>> levels = Level(np.array([0.6, 0.8]), np.array([0.8, 0.6]), np.array([1.0, 0.0]))
    >>> linear_solver(levels, x=[0.0], x0=levels.alpha[1:], eps=levels.sigma[1:]).rows.x0
    array([0.8, 1. ])
    """
    xp = namespace(levels, x, x0, eps, m, noise, noise_range, churn, nominal_churn)
    shape = np.shape(levels.sigma)
    nominal_churn = churn if nominal_churn is None else nominal_churn

    def extend(values: Any, last: float) -> Array:
        """[R + 1, *S]: a column, and its value in the row of the final denoise."""
        column = xp.broadcast_to(xp.asarray(values), (shape[0] - 1, *shape[1:]))
        return xp.concatenate([column, np.full((1, *shape[1:]), last, column.dtype)])

    def stack(columns: Sequence[Any], last: float) -> Array:
        """[R + 1, number of columns, *S], ending with the row (last, 0, ..., 0)."""
        return xp.stack([extend(values, 0.0 if i else last) for i, values in enumerate(columns)], axis=1)

    rows = LinearRow(
        level=levels,
        x=stack(x, 0.0),
        x0=extend(x0, 1.0),
        eps=extend(eps, 0.0),
        m=stack(m, 1.0),
        noise=None if noise is None else extend(noise, 0.0),
        noise_range=None if noise_range is None else extend(noise_range, 0.0),
        churn=None if churn is None else xp.broadcast_to(xp.asarray(churn), shape),
        nominal_churn=None if nominal_churn is None else xp.broadcast_to(xp.asarray(nominal_churn), shape),
    )
    return Solver(linear_init, linear_step, rows, stochastic=noise is not None or churn is not None)


def linear_init(x: jax.Array, rows: LinearRow) -> History:
    """Returns the state before the first row, in which earlier states and values are zero."""
    if rows.level.sigma.shape[1:] not in ((), x.shape[:1]):
        raise ValueError(f"levels must be [N] or [N, {x.shape[0]}] (x's batch axis); got {rows.level.sigma.shape}")
    blank = jnp.zeros_like(x)
    return History((x,) + (blank,) * (rows.x.shape[1] - 1), (blank,) * (rows.m.shape[1] - 1))


def linear_step(key: Any, denoise: Denoiser, state: History, row: LinearRow) -> tuple[History, Step]:
    """Returns (state, step) after one row, by the equation of this module's docstring."""
    x = state.x
    if row.churn is not None:
        key, churn_key = (None, key) if row.noise is None else _random.split(key)
        x = x + expand(row.churn, x) * _random.normal(churn_key, x)
    prediction = denoise(x, row.level)
    if isinstance(prediction, tuple):
        raise ValueError("this denoiser has a memory: sample it with solvers.with_memory(solver)")
    x0, eps = prediction.x0.astype(x.dtype), prediction.eps.astype(x.dtype)
    xs, ms = (x, *state.xs[1:]), state.ms

    terms = [expand(row.x[j], x) * xs[j] for j in range(row.x.shape[0])]  # `sample` drops columns of zeros
    if ms:
        ms = (expand(row.x0, x) * x0 + expand(row.eps, x) * eps, *ms)
        terms += [expand(row.m[k], x) * m_k for k, m_k in enumerate(ms)]
    else:  # no history: the coefficients are folded first
        terms += [expand(row.m[0] * row.x0, x) * x0, expand(row.m[0] * row.eps, x) * eps]
    x_next = functools.reduce(operator.add, terms)
    if row.noise is not None:
        std = expand(row.noise, x)
        if row.noise_range is not None:
            if prediction.var_frac is None:
                raise ValueError(
                    "this solver needs a learned variance (network output of twice x's channels), but the "
                    "denoiser's prediction has var_frac None: use variance fixed_small or fixed_large"
                )
            std = std * jnp.exp(prediction.var_frac.astype(x.dtype) * expand(row.noise_range, x))
        x_next += std * _random.normal(key, x)

    state = History((x_next, *xs[:-1]), ms[: len(state.ms)])
    return state, Step(x, row.level, prediction, x_next)


def start_level(solver: Solver) -> Level:
    """Returns Level[1], the level of the state x that `sample` starts from.

    It is the level of the first row, or where noise is added before the first evaluation (`LinearRow.churn`) the level
    of the state without that noise.

    >>> levels = Level(np.array([0.6, 0.8]), np.array([0.8, 0.6]), np.array([1.0, 0.0]))
    >>> start_level(linear_solver(levels, x=[1.0], x0=0.0, eps=0.0, churn=0.48)).sigma.round(2)
    array([0.64])
    """
    first, nominal_churn = solver.rows.level[:1], getattr(solver.rows, "nominal_churn", None)
    if nominal_churn is None:
        return first
    return Level(first.alpha, safe_sqrt(first.sigma**2 - nominal_churn[:1] ** 2), first.t)


def check_maker(make: object) -> None:
    """Raises ValueError unless the value is a function, levels -> Solver, and not a solver.

    >>> check_maker("ddim")
    Traceback (most recent call last):
    ...
    ValueError: make must be a function levels -> Solver, such as solvers.ddim; got str
    """
    if not callable(make):
        given = "a solver: pass the function, and the levels by themselves" if isinstance(make, Solver) else ""
        raise ValueError(
            f"make must be a function levels -> Solver, such as solvers.ddim; got {given or type(make).__name__}"
        )
