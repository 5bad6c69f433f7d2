"""From data to the noise that `sample` turns back into it: the same equation, upwards.

Upwards is downwards with the roles of data and noise exchanged. In x = alpha x0 + sigma eps and in

    dx = x0_hat d(alpha) + eps_hat d(sigma)

nothing tells (alpha, x0) from (sigma, eps): swap them, and a plan that climbs from the data to the noise is one that
descends. So each deterministic solver inverts as it samples, with its order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffusers_fn._arrays import check_data, concrete, expand, namespace, working_dtype
from diffusers_fn.denoisers import Denoiser
from diffusers_fn.levels import Array, Level
from diffusers_fn.parameterizations import Prediction
from diffusers_fn.sampling import sample
from diffusers_fn.solvers.base import Solver, linear_solver
from diffusers_fn.solvers.ddim import ddim
from diffusers_fn.solvers.plans import check_plan


def invert(
    denoise: Denoiser,
    levels: Level,
    x0: jax.Array,
    *,
    make: Callable[[Level], Solver] = ddim,
    refine: int = 0,
    scan: Callable[..., Any] = jax.lax.scan,
) -> jax.Array:
    """Returns x at levels[0], the noise that `sample` with `make(levels)` turns back into x0.

    First x at the last level, x = alpha x0 + sigma eps_hat(x), by fixed-point iteration from alpha x0; then the
    solver's hops taken upwards. With `ddim` and refine = 0 that is the deterministic DDIM step in reverse (Song et al.
    2021, https://arxiv.org/abs/2010.02502, eq. 14), with one evaluation a level. The round trip's error falls with the
    order of the solver. Nothing is clipped.

    Args:
      denoise: the denoiser, its conditioning bound, without clipping or thresholding.
      levels: Level[N], the plan of the sampler, noisiest first. A first level of pure noise (alpha = 0) must be
        readable, and pure for every example: if it is traced, only ddim, euler and heun are right.
      x0: [B, ...] clean data.
      make: levels -> a deterministic solver, the one that samples. Inner stages get their labels between those of the
        levels; for exact ones give the solver `processes.exchanged(process)` here.
      refine: how many evaluations more the fixed point at the last level takes. Each multiplies what is left of its
        error, which does not fall with N, by about (sigma / std of the data)^2. See `invert_implicit` for hops that are
        refined too.
      scan: as for `sample`.

    Raises:
      ValueError: if levels are no plan or start at pure noise for some examples alone, x0 is not of floating type,
        refine is negative or the solver draws noise.

    >>> from diffusers_fn import grids, oracles, solvers
    >>> denoise, levels = oracles.gaussian(0.0, 1.0), grids.karras(200)
    >>> x = invert(denoise, levels, jnp.full((1, 2), 0.5))
    >>> sample(None, denoise, solvers.ddim(levels), x).x0.round(1)
    Array([[0.5, 0.5]], dtype=float32)
    """
    check_plan(levels)
    refine = _check_count("refine", refine, 0)
    last = jax.tree.map(lambda a: a[-1:], levels)
    x = invert_implicit(denoise, last, x0, evaluations=1 + refine, scan=scan)
    if levels.sigma.shape[0] == 1:
        return x
    # A first level of pure noise is where the exchanged plan has its clean end, reached by the final denoise.
    alpha = concrete(levels.alpha)
    pure = alpha is not None and bool(np.all(alpha[0] == 0))
    if alpha is not None and np.any(alpha[0] == 0) and not pure:
        raise ValueError("the first level must be pure noise (alpha = 0) for every example or for none")
    upwards = make(_exchange_level(jax.tree.map(lambda a: a[: 0 if pure else None : -1], levels)))
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
    scan: Callable[..., Any] = jax.lax.scan,
) -> jax.Array:
    """Returns x at levels[0], the noise that `sample` with `solvers.ddim(levels)` turns back into x0, hop by hop.

    DDIM comes down from (x', alpha', sigma') to x = (alpha / alpha') x' + (sigma - alpha sigma' / alpha') eps_hat(x').
    Going up, x' is the fixed point of

        x' = (alpha' / alpha) x + (sigma' - alpha' sigma / alpha) eps_hat(x')

    and each evaluation improves x' once, from the last hop's eps_hat on (Pan et al. 2023, https://arxiv.org/abs/2309.04907;
    Garibi et al. 2024, https://arxiv.org/abs/2403.14602). The first hop starts at the clean data. With one evaluation
    a level, the cost of `invert`, the round trip's error falls with the second power of the step; each more adds one.

    Args:
      denoise: as for `invert`.
      levels: Level[N], the plan of the sampler, noisiest first, with alpha > 0.
      x0: [B, ...] clean data.
      evaluations: of the network at each level, at least 1.
      scan: as for `sample`.

    Raises:
      ValueError: if levels are no plan, x0 is not of floating type or evaluations is below 1.

    >>> from diffusers_fn import grids, oracles, solvers
    >>> denoise, levels = oracles.gaussian(0.0, 1.0), grids.karras(50)
    >>> x = invert_implicit(denoise, levels, jnp.full((1, 2), 0.5), evaluations=8)
    >>> sample(None, denoise, solvers.ddim(levels), x).x0.round(3)
    Array([[0.5, 0.5]], dtype=float32)
    """
    check_plan(levels)
    check_data(x0=x0)
    evaluations = _check_count("evaluations", evaluations, 1)
    xp = namespace(levels)
    to = jax.tree.map(lambda a: a[::-1], levels)
    before = lambda a, clean: xp.concatenate([xp.full_like(a[:1], clean), a[:-1]])  # noqa: E731
    scale = to.alpha / before(to.alpha, 1.0)
    gain = to.sigma - scale * before(to.sigma, 0.0)  # of eps_hat over the hop
    # A row at x' corrects it by gain (m_1 - m_2); the last one of a level goes on to the next, with its m_1.
    onward = xp.concatenate([scale[1:], xp.ones_like(scale[:1])])
    next_gain = xp.concatenate([gain[1:], xp.zeros_like(gain[:1])])

    def repeat(inner: Array, last: Array) -> Array:
        """A level's rows: `evaluations` - 1 times inner, then last."""
        return xp.stack([inner] * (evaluations - 1) + [last], axis=1).reshape(-1, *last.shape[1:])

    one = xp.ones_like(gain)
    solver = linear_solver(
        jax.tree.map(lambda a: xp.concatenate([xp.repeat(a, evaluations, axis=0), a[-1:]]), to),
        x=[repeat(one, onward)],
        x0=0.0,
        eps=1.0,
        m=[repeat(gain, onward * gain + next_gain), repeat(-gain, -onward * gain)],
    )
    x = expand(to.alpha[0], x0) * jnp.asarray(x0, working_dtype(x0))
    return sample(None, denoise, solver, x, final_denoise=False, scan=scan).x0


def _exchange_level(level: Level) -> Level:
    return Level(alpha=level.sigma, sigma=level.alpha, t=level.t)


def _exchange(denoise: Denoiser) -> Denoiser:
    """The denoiser for x = sigma eps + alpha x0 read the other way round, with noise as data."""

    def exchanged(x: jax.Array, level: Level, cond: Any = None) -> Prediction:
        prediction = denoise(x, _exchange_level(level), cond)
        return Prediction(x0=prediction.eps, eps=prediction.x0)

    return exchanged


def _check_count(name: str, value: int, least: int) -> int:
    if value != int(value) or value < least:
        raise ValueError(f"{name} must be an integer of at least {least}; got {value}")
    return int(value)
