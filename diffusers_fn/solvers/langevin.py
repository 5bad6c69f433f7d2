"""Correctors, which are steps of Langevin dynamics at one level, and the predictor-corrector sampler.

A corrector moves x towards q(x) at its level by

    x <- x + e score + sqrt(2 e) z,     score = -eps_hat / sigma

(Song et al., "Score-Based Generative Modeling through Stochastic Differential Equations", 2021,
https://arxiv.org/abs/2011.13456, algorithms 4 and 5). They differ in the step size e.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffusers_fn import _random
from diffusers_fn._arrays import concrete, expand, namespace, safe_sqrt
from diffusers_fn._types import Array, ArrayLike
from diffusers_fn.denoisers import Denoiser
from diffusers_fn.levels import Level
from diffusers_fn.solvers.base import History, LinearRow, Solver, Step, linear_init
from diffusers_fn.solvers.plans import check_plan

__all__ = ["Corrector", "PredictorCorrectorRow", "annealed_langevin", "langevin", "predictor_corrector"]


@functools.partial(jax.tree_util.register_dataclass, data_fields=["rows"], meta_fields=["correct"])
@dataclasses.dataclass(frozen=True)
class Corrector:
    """The corrector of a predictor-corrector sampler, applied at each level before the predictor.

    Attributes:
      correct: (key, denoise, x, level, row) -> x, at the same level.
      rows: a pytree of arrays [N, ...], one row per level.
    """

    correct: Callable[[Any, Denoiser, jax.Array, Level, Any], jax.Array]
    rows: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PredictorCorrectorRow:
    """The predictor's row and the corrector's row of one level."""

    predictor: LinearRow
    corrector: Any

    @property
    def level(self) -> Level:
        return self.predictor.level


def langevin(
    levels: Level,
    snr: ArrayLike = 0.16,
    *,
    num_steps: int = 1,
    scale: ArrayLike | None = None,
    average_norms: bool = False,
) -> Corrector:
    """Returns the Langevin corrector, whose step size keeps a signal-to-noise ratio.

        e = 2 scale (snr |z| / |score|)^2

    Song et al. 2021, https://arxiv.org/abs/2011.13456, algorithms 4 and 5. Norms are taken per example, so that no
    sample depends on another; the authors' code takes their means over the batch: `average_norms`. Data of few
    dimensions need that, since a single |z| / |score| is then far from its mean.

    Args:
      levels: Level[N], those of the predictor.
      snr: [], r of the paper; 0.16 is its authors' default.
      num_steps: number of steps per level, M of the paper; each is one more network evaluation.
      scale: [N] or []; by default (alpha / alpha')^2 with the next level's alpha', which is 1 after the last level: the
        alpha_i of algorithm 5, 1 where alpha = 1.
      average_norms: whether the norms are averaged over the batch.

    Raises:
      ValueError: if levels are not a plan, num_steps < 1, or snr or scale (not traced) is negative.

    >>> from diffusers_fn import grids
    >>> langevin(grids.karras(3), snr=0.1).rows["factor"].round(4)
    array([0.02, 0.02, 0.02])
    """
    scale = _checked(levels, snr, num_steps, scale)
    xp = namespace(scale, snr)
    return Corrector(_Langevin(num_steps, average_norms), {"factor": 2 * scale * xp.square(snr)})


def annealed_langevin(
    levels: Level, snr: ArrayLike = 0.16, *, num_steps: int = 1, scale: ArrayLike | None = None
) -> Corrector:
    """Returns the corrector of annealed Langevin dynamics, whose step is proportional to the level's variance.

        e = 2 scale (snr sigma)^2

    Song & Ermon, "Generative Modeling by Estimating Gradients of the Data Distribution", 2019,
    https://arxiv.org/abs/1907.05600, algorithm 1, as in the appendix of Song et al. 2021. With a predictor that
    leaves x as it is, `linear_solver(levels, x=[1.0], x0=0.0, eps=0.0)`, `predictor_corrector` is that algorithm.

    Args and Raises: as for `langevin`.

    >>> levels = Level(np.ones(2), np.array([2.0, 1.0]), np.zeros(2))
    >>> annealed_langevin(levels, snr=0.5).rows["e"]
    array([2. , 0.5])
    """
    scale = _checked(levels, snr, num_steps, scale)
    return Corrector(_AnnealedLangevin(num_steps), {"e": 2 * scale * (snr * levels.sigma) ** 2})


def predictor_corrector(predictor: Solver, corrector: Corrector) -> Solver:
    """Returns the sampler that corrects at each level, then predicts the next (Song et al. 2021, algorithm 1).

    As in the authors' code the corrector comes first at every level, then the predictor, which at the last level is the
    final denoise. With M corrector steps there are M + 1 network evaluations per level.

    Args:
      predictor: a table with one row per level, e.g. `reverse_diffusion(levels)`, `ancestral`, `euler_maruyama`.
      corrector: for the same levels, `langevin` or `annealed_langevin`.

    Raises:
      ValueError: if the predictor is not a table or has churn, or the two are not for the same number of levels.

    >>> from diffusers_fn import grids, oracles
    >>> from diffusers_fn.sampling import sample
    >>> from diffusers_fn.solvers.sde import reverse_diffusion
    >>> levels = grids.karras(100)
    >>> solver = predictor_corrector(reverse_diffusion(levels), langevin(levels))
    >>> x = 80.0 * jax.random.normal(jax.random.key(0), (2, 100))
    >>> samples = sample(jax.random.key(1), oracles.gaussian(3.0, 0.1), solver, x)
    >>> bool(jnp.all(jnp.abs(samples.x0 - 3.0) < 0.6))
    True
    """
    if predictor.init is not linear_init:
        raise ValueError("the predictor must be a table, made by `linear_solver`")
    if predictor.rows.churn is not None:
        raise ValueError("the predictor adds noise before it evaluates (churn), which the corrector would not see")
    own, other = (jax.tree.leaves(rows)[0].shape[0] for rows in (predictor.rows.x0, corrector.rows))
    if own != other:
        raise ValueError(
            f"predictor and corrector must be for the same levels; got {own} rows and {other} levels "
            "(methods with more than one evaluation per level cannot be predictors)"
        )
    rows = PredictorCorrectorRow(predictor.rows, corrector.rows)
    step = _PredictorCorrector(predictor.step, predictor.stochastic, corrector.correct)
    return Solver(_init, step, rows, stochastic=True)


def _init(x: jax.Array, rows: PredictorCorrectorRow) -> History:
    return linear_init(x, rows.predictor)


# Callables that compare equal when their options do, so that equal samplers share one compilation.


@dataclasses.dataclass(frozen=True)
class _PredictorCorrector:
    predict: Callable[..., tuple[History, Step]]
    predictor_is_stochastic: bool
    correct: Callable[..., jax.Array]

    def __call__(
        self, key: jax.Array, denoise: Denoiser, state: History, row: PredictorCorrectorRow
    ) -> tuple[History, Step]:
        corrector_key, predictor_key = _random.split(key)
        x = self.correct(corrector_key, denoise, state.x, row.level, row.corrector)
        state = dataclasses.replace(state, xs=(x, *state.xs[1:]))
        return self.predict(predictor_key if self.predictor_is_stochastic else None, denoise, state, row.predictor)


@dataclasses.dataclass(frozen=True)
class _Langevin:
    num_steps: int
    average_norms: bool

    def __call__(self, key: jax.Array, denoise: Denoiser, x: jax.Array, level: Level, row: Any) -> jax.Array:
        def norm(a: jax.Array) -> jax.Array:
            """[B], or [] if averaged."""
            norms = jnp.linalg.norm(a.reshape(a.shape[0], -1), axis=1)
            return jnp.mean(norms) if self.average_norms else norms

        def step_size(z: jax.Array, score: jax.Array) -> jax.Array:
            score_norm = norm(score)
            moves = score_norm > 0  # a zero score gives no scale for the step
            ratio = norm(z) / jnp.where(moves, score_norm, 1.0)
            return expand(row["factor"], x) * expand(jnp.where(moves, ratio**2, 0.0), x)

        return _dynamics(key, denoise, x, level, step_size, self.num_steps)


@dataclasses.dataclass(frozen=True)
class _AnnealedLangevin:
    num_steps: int

    def __call__(self, key: jax.Array, denoise: Denoiser, x: jax.Array, level: Level, row: Any) -> jax.Array:
        return _dynamics(key, denoise, x, level, lambda z, score: expand(row["e"], x), self.num_steps)


def _dynamics(
    key: jax.Array, denoise: Denoiser, x: jax.Array, level: Level, step_size: Callable[..., jax.Array], num_steps: int
) -> jax.Array:
    """x after num_steps steps x <- x + e score + sqrt(2 e) z."""

    def step(x: jax.Array, key: jax.Array) -> tuple[jax.Array, None]:
        score = -denoise(x, level).eps.astype(x.dtype) / expand(level.sigma, x)
        z = _random.normal(key, x)
        e = step_size(z, score)
        return x + e * score + safe_sqrt(2 * e) * z, None

    return jax.lax.scan(step, x, _random.split(key, num_steps))[0]


def _checked(levels: Level, snr: Any, num_steps: int, scale: Any) -> Array:
    """The scale, [N, *S], after the checks of both correctors."""
    check_plan(levels)
    if num_steps < 1:
        raise ValueError(f"a corrector takes at least one step per level; got num_steps {num_steps}")
    xp = namespace(levels, scale)
    if scale is None:
        following = xp.concatenate([levels.alpha[1:], xp.ones_like(levels.alpha[:1])])
        scale = (levels.alpha / following) ** 2
    for name, value in (("snr", concrete(snr)), ("scale", concrete(scale))):
        if value is not None and not np.all(value >= 0):
            raise ValueError(f"{name} must not be negative; got {value}")
    if np.shape(snr) != ():
        raise ValueError(f"snr must be one number; got shape {np.shape(snr)}")
    return xp.broadcast_to(xp.asarray(scale), np.shape(levels.sigma))
