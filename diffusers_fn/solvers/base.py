"""Solvers as tables of numbers: explicit general linear methods with one row per network evaluation.

How to read a row. The sampler holds the last J states x_1, x_2, ... (newest first). A row evaluates the network at
x_1 and the row's level, and keeps one number an entry of what it says,

    m_1 = row.x0 x0_hat + row.eps eps_hat,

in front of those of the rows before, m_2, ..., m_K. Then

    x' = sum_j row.x[j] x_j  +  sum_k row.m[k] m_k  +  row.noise z

becomes the newest state. So DDIM with eta = 0 has x = [0], x0 = alpha', eps = sigma', m = [1]; ancestral sampling has
x = [coef_x], x0 = coef_x0, eps = 0, noise = sqrt(var); the multistep methods keep m = x0_hat or eps_hat and weigh the
last ones. A Runge-Kutta method keeps slopes, m = x0_hat d(alpha) + eps_hat d(sigma); each of its rows goes on from the
stage before, so Heun's second row is x' = x_1 + (m_1 - m_2) / 2: Euler's point plus half the change of slope. With a
column `churn`, x_1 is x_1 + row.churn z before the evaluation, and the row's level that of the evaluation. `noise` and
`churn` are None in a deterministic table: then no random number is generated at all. The last row of every table is
the final denoise x' = x0_hat, which is where each method arrives when it hops into sigma = 0.

The numbers are computed in float64 on the host when levels and options are NumPy or Python numbers, and rounded
once, to x's dtype, by `sample`; with traced levels or options they are traced. All solvers of equal shape share
one compiled program, since the numbers are its inputs.
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
from diffusers_fn._arrays import concrete, expand, namespace, safe_sqrt
from diffusers_fn.denoisers import Denoiser
from diffusers_fn.levels import Array, Level, log_snr
from diffusers_fn.parameterizations import Prediction


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Row:
    """One network evaluation of a linear method, or R of them stacked; S is [] or [B].

    Attributes:
      level: [R, *S] where the network is evaluated.
      x: [R, J, *S] coefficients of the last J states, newest first.
      x0: [R, *S] coefficient of the predicted x0 in what is kept, m_1.
      eps: [R, *S] coefficient of the predicted eps in m_1.
      m: [R, K, *S] coefficients of the last K kept values, newest first.
      noise: [R, *S] standard deviation of fresh noise, or None for none.
      noise_range: [R, *S] or None: with a learned variance, the noise is noise * exp(var_frac * noise_range).
      churn: [R, *S] standard deviation of fresh noise added to x_1 before the evaluation, or None for none.
      rise: [R, *S] standard deviation of the noise by which `level` lies above x_1 before churn, or None without churn.
    """

    level: Level
    x: Array
    x0: Array
    eps: Array
    m: Array
    noise: Array | None = None
    noise_range: Array | None = None
    churn: Array | None = None
    rise: Array | None = None


@functools.partial(jax.tree_util.register_dataclass, data_fields=["rows"], meta_fields=["init", "step", "stochastic"])
@dataclasses.dataclass(frozen=True)
class Solver:
    """A sampler's plan: a value that passes through jit, whose functions are static and whose rows are arrays.

    Attributes:
      init: (x, rows) -> state, what the first row needs; a pytree whose attribute `x` is the newest state.
      step: (key, denoise, state, row) -> (state, step), one network evaluation and a `Step` that tells of it.
      rows: a pytree of arrays [R, ...], one entry an evaluation; the last is the final denoise.
      stochastic: whether `step` needs a key (it gets None otherwise).
    """

    init: Callable[[jax.Array, Any], Any]
    step: Callable[[Any, Denoiser, Any, Any], tuple[Any, Step]]
    rows: Any
    stochastic: bool


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Step:
    """What one row did, for `sample(..., emit=...)`.

    Attributes:
      x: [B, ...] the state at which the network was evaluated.
      level: S, its level.
      prediction: what the network said there.
      x_next: [B, ...] the new state.
    """

    x: jax.Array
    level: Level
    prediction: Prediction
    x_next: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class History:
    """State of a linear method: the last J states and the last K - 1 kept values, newest first."""

    xs: tuple[jax.Array, ...]
    ms: tuple[jax.Array, ...]

    @property
    def x(self) -> jax.Array:
        return self.xs[0]


def linear_solver(
    levels: Level,
    *,
    x: Sequence[Any],
    x0: Any,
    eps: Any,
    m: Sequence[Any] = (1.0,),
    noise: Any = None,
    noise_range: Any = None,
    churn: Any = None,
    rise: Any = None,
) -> Solver:
    """Returns the solver whose table has the given columns; the final denoise is added as its last row.

    A column is a number or [R, *S]; see this module's docstring for the equation.

    Args:
      levels: Level[R + 1], where the R rows and the final denoise evaluate the network.
      x: J columns, coefficients of the states, newest first.
      x0: a column, the coefficient of the predicted x0 in what is kept.
      eps: a column, the coefficient of the predicted eps in what is kept.
      m: K columns, coefficients of the kept values, newest first.
      noise: a column of standard deviations, or None for a deterministic method.
      noise_range: a column, see `Row`.
      churn: [R + 1, *S], or None: the standard deviation of noise added before each evaluation, the final denoise's
        too; the levels are those of the evaluations.
      rise: [R + 1, *S], see `Row`; None is churn, by which levels rise then.

    >>> levels = Level(np.array([0.6, 0.8]), np.array([0.8, 0.6]), np.array([1.0, 0.0]))
    >>> linear_solver(levels, x=[0.0], x0=levels.alpha[1:], eps=levels.sigma[1:]).rows.x0
    array([0.8, 1. ])
    """
    xp = namespace(levels, x, x0, eps, m, noise, noise_range, churn, rise)
    shape = np.shape(levels.sigma)
    rise = churn if rise is None else rise

    def extend(values: Any, last: float) -> Array:
        """[R + 1, *S]: a column, ending with the final denoise's entry."""
        column = xp.broadcast_to(xp.asarray(values), (shape[0] - 1, *shape[1:]))
        return xp.concatenate([column, np.full((1, *shape[1:]), last, column.dtype)])

    def stack(columns: Sequence[Any], last: float) -> Array:
        """[R + 1, number of columns, *S], ending with the row (last, 0, ..., 0)."""
        return xp.stack([extend(values, 0.0 if i else last) for i, values in enumerate(columns)], axis=1)

    rows = Row(
        level=levels,
        x=stack(x, 0.0),
        x0=extend(x0, 1.0),
        eps=extend(eps, 0.0),
        m=stack(m, 1.0),
        noise=None if noise is None else extend(noise, 0.0),
        noise_range=None if noise_range is None else extend(noise_range, 0.0),
        churn=None if churn is None else xp.broadcast_to(xp.asarray(churn), shape),
        rise=None if rise is None else xp.broadcast_to(xp.asarray(rise), shape),
    )
    return Solver(linear_init, linear_step, rows, stochastic=noise is not None or churn is not None)


def linear_init(x: jax.Array, rows: Row) -> History:
    """Returns the state before the first row; columns that look further back must be zero in the first rows."""
    if rows.level.sigma.shape[1:] not in ((), x.shape[:1]):
        raise ValueError(f"levels must be [N] or [N, {x.shape[0]}] (x's batch axis); got {rows.level.sigma.shape}")
    blank = jnp.zeros_like(x)
    return History((x,) + (blank,) * (rows.x.shape[1] - 1), (blank,) * (rows.m.shape[1] - 1))


def linear_step(key: Any, denoise: Denoiser, state: History, row: Row) -> tuple[History, Step]:
    """Returns (state, step) after one row; the equation in this module's docstring."""
    x = state.x
    if row.churn is not None:
        key, churn_key = (None, key) if row.noise is None else _random.split(key)
        x = x + expand(row.churn, x) * _random.normal(churn_key, x)
    prediction = denoise(x, row.level)
    x0, eps = prediction.x0.astype(x.dtype), prediction.eps.astype(x.dtype)
    xs, ms = (x, *state.xs[1:]), state.ms

    terms = [expand(row.x[j], x) * xs[j] for j in range(row.x.shape[0])]  # none, where `sample` knows them to be 0
    if ms:
        ms = (expand(row.x0, x) * x0 + expand(row.eps, x) * eps, *ms)
        terms += [expand(row.m[k], x) * m_k for k, m_k in enumerate(ms)]
    else:  # nothing is kept for later: the numbers are multiplied before the arrays
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


def check_plan(levels: Level) -> None:
    """Raises ValueError unless levels are a plan: Level[N], noisy, finite and descending in noise.

    Values that are traced cannot be read and are not checked.

    >>> check_plan(Level(np.ones(2), np.array([1.0, 2.0]), np.zeros(2)))
    Traceback (most recent call last):
    ...
    ValueError: levels must descend from the noisiest to the cleanest; log SNR falls after entry 0
    """
    if not all(hasattr(leaf, "dtype") for leaf in (levels.alpha, levels.sigma, levels.t)):
        raise ValueError("levels must be Level[N] of arrays, as a grid returns it; got Python numbers or lists")
    shapes = {name: np.shape(getattr(levels, name)) for name in ("alpha", "sigma", "t")}
    if len(set(shapes.values())) != 1 or len(shapes["alpha"]) not in (1, 2) or shapes["alpha"][0] < 1:
        raise ValueError(
            f"levels must be Level[N] (or [N, B]) with N >= 1, as a grid returns them; got shapes {shapes}"
        )
    for name in ("alpha", "sigma"):
        dtype = jnp.result_type(getattr(levels, name))
        if not jnp.issubdtype(dtype, jnp.floating) or jnp.finfo(dtype).bits < 32:
            raise ValueError(f"levels.{name} must be float32 or float64: {dtype} cannot resolve a plan")
    alpha, sigma = concrete(levels.alpha), concrete(levels.sigma)
    if alpha is None or sigma is None:
        return
    if not (np.all(np.isfinite(alpha)) and np.all(np.isfinite(sigma)) and np.all(alpha >= 0)):
        raise ValueError("levels must be finite with alpha >= 0")
    if np.any(sigma <= 0):
        raise ValueError(
            "every level of a plan must be noisy (sigma > 0): leave the clean level out, "
            "sample() ends with the hop into sigma = 0"
        )
    falls = np.diff(log_snr(Level(alpha, sigma, 0.0)), axis=0) <= 0
    if np.any(falls):
        where = int(np.argmax(falls.reshape(falls.shape[0], -1).any(axis=1)))
        raise ValueError(f"levels must descend from the noisiest to the cleanest; log SNR falls after entry {where}")


def check_num_levels(levels: Level, least: int) -> None:
    """Raises ValueError unless a plan has at least so many levels.

    >>> check_num_levels(Level(np.ones(2), np.array([2.0, 1.0]), np.zeros(2)), 3)
    Traceback (most recent call last):
    ...
    ValueError: this solver needs at least 3 levels; got 2: take more steps or a lower order
    """
    given = np.shape(levels.sigma)[0]
    if given < least:
        raise ValueError(
            f"this solver needs at least {least} levels; got {given}: take more steps or a lower order"
            + (" (ddim takes one level, a single denoise)" if given == 1 else "")
        )


def neighbours(levels: Level) -> tuple[Level, Level]:
    """Returns (frm, to), the two ends of each of the N - 1 hops of a plan.

    >>> frm, to = neighbours(Level(np.ones(3), np.array([3.0, 2.0, 1.0]), np.zeros(3)))
    >>> frm.sigma, to.sigma
    (array([3., 2.]), array([2., 1.]))
    """
    return jax.tree.map(lambda a: a[:-1], levels), jax.tree.map(lambda a: a[1:], levels)


def start_level(solver: Solver) -> Level:
    """Returns Level[1], the level of the state x that `sample` starts from.

    It is the level of the first row, except where noise is added before the first evaluation (`Row.churn`): the state
    lies below that level by this noise.

    >>> levels = Level(np.array([0.6, 0.8]), np.array([0.8, 0.6]), np.array([1.0, 0.0]))
    >>> start_level(linear_solver(levels, x=[1.0], x0=0.0, eps=0.0, churn=0.48)).sigma.round(2)
    array([0.64])
    """
    rows = solver.rows
    first, rise = jax.tree.map(lambda a: a[:1], rows.level), getattr(rows, "rise", None)
    return first if rise is None else Level(first.alpha, safe_sqrt(first.sigma**2 - rise[:1] ** 2), first.t)
