"""Inversion: from data to the noise that `sample` turns back into the data.

In x = alpha x0 + sigma eps, and in the sampler's equation

    dx = x0_hat d(alpha) + eps_hat d(sigma),

the pairs (alpha, x0) and (sigma, eps) play the same role. Exchanging them turns a plan from the data to the noise into
one from the noise to the data. So every deterministic solver also inverts, with its own order of convergence.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffusers_fn._arrays import check_data, concrete, expand, namespace, working_dtype
from diffusers_fn._types import Array, Scan
from diffusers_fn.denoisers import Denoiser, check_pure_noise
from diffusers_fn.levels import Level
from diffusers_fn.parameterizations import Prediction
from diffusers_fn.sampling import sample
from diffusers_fn.solvers.base import Solver, check_maker
from diffusers_fn.solvers.ddim import ddim
from diffusers_fn.solvers.plans import check_plan

__all__ = ["invert", "invert_implicit"]


def __dir__() -> list[str]:
    return __all__


def invert(
    denoise: Denoiser,
    levels: Level,
    x0: jax.Array,
    *,
    make: Callable[[Level], Solver] = ddim,
    refine: int = 0,
    scan: Scan = jax.lax.scan,
) -> jax.Array:
    """Returns x at levels[0], the noise that `sample` with `make(levels)` turns back into x0.

    The state at the last level solves x = alpha x0 + sigma eps_hat(x), by fixed-point iteration from alpha x0. From
    there the solver runs upwards. With `ddim` and refine = 0 this is the deterministic DDIM step in reverse (Song et
    al. 2021, https://arxiv.org/abs/2010.02502, eq. 14), with one network evaluation per level. The error of the round
    trip has the order of the solver. Nothing is clipped.

    Args:
      denoise: the denoiser, its conditioning bound, without clipping or thresholding.
      levels: Level[N], the plan of the sampler, noisiest first. If the first level is pure noise (alpha = 0), it must
        be so for every example and not traced; traced, the result is right for ddim, euler and heun only.
      x0: [B, ...] clean data.
      make: levels -> the deterministic solver that samples. For a solver with inner stages pass
        `processes.exchanged(process)` to it, so that the time labels of its stages are exact and not interpolated.
      refine: additional evaluations for the fixed point at the last level. Each multiplies its remaining error, which
        does not depend on N, by about (sigma / std of the data)^2. `invert_implicit` refines every step.
      scan: as for `sample`.

    Returns:
      [B, ...], in x0's dtype but at least float32.

    Raises:
      ValueError: if levels are not a plan, if the first level is pure noise for some examples only, if x0 has no
        floating dtype, refine is negative, make is not a function of the levels or the solver draws noise.

    >>> from diffusers_fn import grids, oracles, solvers
    >>> denoise, levels = oracles.gaussian(0.0, 1.0), grids.karras(200)
    >>> x = invert(denoise, levels, jnp.full((1, 2), 0.5))
    >>> sample(None, denoise, solvers.ddim(levels), x).x0.round(1)
    Array([[0.5, 0.5]], dtype=float32)
    """
    check_plan(levels)
    check_maker(make)
    refine = _check_count("refine", refine, 0)
    x = invert_implicit(denoise, levels[-1:], x0, evaluations=1 + refine, scan=scan)
    if levels.sigma.shape[0] == 1:
        return x
    # Pure noise is the clean level of the exchanged plan: the final denoise reaches it.
    alpha = concrete(levels.alpha)
    pure = alpha is not None and bool(np.all(alpha[0] == 0))
    if alpha is not None and np.any(alpha[0] == 0) and not pure:
        raise ValueError("the first level must be pure noise (alpha = 0) for every example or for none")
    upwards = make(_exchange_level(levels[: 0 if pure else None : -1]))
    if upwards.stochastic:
        raise ValueError("only a deterministic solver can be inverted; this one draws noise: use eta = 0")
    x = sample(None, _exchange(denoise), upwards, x, final_denoise=pure, scan=scan).x0
    return expand(levels.sigma[0], x) * x if pure else x


def invert_implicit(
    denoise: Denoiser,
    levels: Level,
    x0: jax.Array,
    *,
    evaluations: int = 1,
    scan: Scan = jax.lax.scan,
) -> jax.Array:
    """Returns x at levels[0], the noise that `sample` with `solvers.ddim(levels)` turns back into x0.

    A sampler step leads from x' to x = (alpha / alpha') x' + (sigma - alpha sigma' / alpha') eps_hat(x'), from level
    (alpha', sigma') to (alpha, sigma). So the inverse step leads to the fixed point of

        x' = (alpha' / alpha) x + (sigma' - alpha' sigma / alpha) eps_hat(x')

    which is iterated from the previous step's eps_hat (Pan et al. 2023, https://arxiv.org/abs/2309.04907; Garibi et al.
    2024, https://arxiv.org/abs/2403.14602). The first step starts at the clean data, with eps_hat = 0. With one network
    evaluation per level, the cost of `invert`, the error of the round trip is of second order in the step size; each
    further evaluation adds one order.

    Args:
      denoise: as for `invert`.
      levels: Level[N], the plan of the sampler, noisiest first, with alpha > 0.
      x0: [B, ...] clean data.
      evaluations: network evaluations per level, at least 1.
      scan: as for `sample`, over the N * evaluations network evaluations.

    Returns:
      [B, ...], in x0's dtype but at least float32.

    Raises:
      ValueError: if levels are not a plan, x0 has no floating dtype or evaluations is below 1.

    >>> from diffusers_fn import grids, oracles, sample, solvers
    >>> denoise, levels = oracles.gaussian(0.0, 1.0), grids.karras(50)
    >>> x = invert_implicit(denoise, levels, jnp.full((1, 2), 0.5), evaluations=8)
    >>> sample(None, denoise, solvers.ddim(levels), x).x0.round(3)
    Array([[0.5, 0.5]], dtype=float32)
    """
    check_plan(levels)
    check_data(x0=x0)
    evaluations = _check_count("evaluations", evaluations, 1)
    x = jnp.asarray(x0, working_dtype(x0))
    check_pure_noise(denoise, levels, x)
    upwards = levels[::-1]
    scale = upwards.alpha / _shift(upwards.alpha, 1.0)  # alpha' / alpha
    gain = upwards.sigma - scale * _shift(upwards.sigma, 0.0)  # sigma' - alpha' sigma / alpha
    repeat = lambda a: jnp.repeat(jnp.asarray(a, x.dtype), evaluations, axis=0)  # noqa: E731
    is_last = np.tile(np.arange(1, evaluations + 1) == evaluations, gain.shape[0])

    def body(state: tuple[jax.Array, jax.Array], row: Any) -> tuple[tuple[jax.Array, jax.Array], None]:
        x, eps = state
        level, scale, gain, is_last = row
        step = lambda eps: expand(scale, x) * x + expand(gain, x) * eps  # noqa: E731
        eps = denoise(step(eps), level).eps.astype(x.dtype)
        return (jnp.where(is_last, step(eps), x), eps), None

    rows = (*jax.tree.map(repeat, (upwards, scale, gain)), is_last)
    (x, _), _ = scan(body, (x, jnp.zeros_like(x)), rows)
    return x


def _shift(values: Array, first: float) -> Array:
    """Returns the values [N, ...] moved by one position, with `first` in front."""
    xp = namespace(values)
    return xp.concatenate([xp.full_like(values[:1], first), values[:-1]])


def _exchange_level(level: Level) -> Level:
    return Level(alpha=level.sigma, sigma=level.alpha, t=level.t)


def _exchange(denoise: Denoiser) -> Denoiser:
    """Returns the denoiser with data and noise exchanged: x = sigma eps + alpha x0, with eps as the data."""

    def exchanged(x: jax.Array, level: Level, cond: Any = None) -> Prediction:
        prediction = denoise(x, _exchange_level(level), cond)
        return Prediction(x0=prediction.eps, eps=prediction.x0)

    return exchanged


def _check_count(name: str, value: int, least: int) -> int:
    if value != int(value) or value < least:
        raise ValueError(f"{name} must be an integer of at least {least}; got {value}")
    return int(value)
