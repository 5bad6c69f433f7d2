"""Reverse-time stochastic equations as tables: Euler-Maruyama, a stochastic Heun, reverse diffusion.

With the forward equation dx = f x dt + g dw of a process, every choice of w(t) >= 0 gives an equation whose solutions
have the process's own marginals, run from noise to data (t falls, so dt < 0):

    dx = [f x - (g^2 + w) / 2 score] dt + sqrt(w) dw,     score = -eps_hat / sigma

w = g^2 is the reverse-time equation of Song et al. 2021 (https://arxiv.org/abs/2011.13456, eq. 6), w = 0 the
probability-flow ODE (eq. 13), anything else lies between or beyond (Ma et al., "SiT: Exploring Flow and Diffusion-based
Generative Models with Scalable Interpolant Transformers", 2024, https://arxiv.org/abs/2401.08740). The drift is
linear in the network's predictions,

    x0_hat d(alpha)/dt + eps_hat (d(sigma)/dt + w / (2 sigma)),

which is finite at pure noise too, as long as w is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from diffusers_fn._arrays import concrete, floating, is_zero, namespace, safe_sqrt
from diffusers_fn._types import Array, ArrayLike
from diffusers_fn.levels import Level, transition
from diffusers_fn.processes import Process
from diffusers_fn.solvers.base import Solver, linear_solver
from diffusers_fn.solvers.plans import check_plan, neighbours
from diffusers_fn.solvers.stages import Stage, before_each_step, solver_from_stages

__all__ = ["DiffusionCoefficient", "euler_maruyama", "heun_sde", "reverse_diffusion"]

DiffusionCoefficient = Callable[[Any], Array] | float | Array | None  # w, the squared coefficient of the noise


def euler_maruyama(
    process: Process, t: Array, diffusion: DiffusionCoefficient = None, *, dt: ArrayLike | None = None
) -> Solver:
    """Returns the Euler-Maruyama method on the reverse-time equation (see this module), of weak order one.

        x' = x - dt [x0_hat d(alpha)/dt + eps_hat (d(sigma)/dt + w / (2 sigma))] + sqrt(w dt) z,     dt = t - t' > 0

    The code of Song et al. 2021 (https://arxiv.org/abs/2011.13456) has steps of 1 / N for all times; pass them as `dt`.

    Args:
      process: any.
      t: [N] times, descending in noise; the levels are process(t).
      diffusion: w, a function of t or a number; None is the process's own g^2, a Python 0 the ODE, without noise.
      dt: [N - 1] or [], the step sizes where they are not the differences of t.

    Raises:
      ValueError: if process(t) is not a plan, w is negative or infinite (as g^2 is at pure
        noise, alpha = 0), or dt is not positive.

    >>> from diffusers_fn.processes import ve
    >>> solver = euler_maruyama(ve(0.1, 10.0), np.linspace(1.0, 0.0, 3))
    >>> solver.rows.eps.round(2), solver.rows.noise.round(2)
    (array([-46.05,  -4.61,   0.  ]), array([21.46,  2.15,  0.  ]))
    """
    levels, t = _levels(process, t)
    dt = _step_sizes(t, dt)
    d_alpha, d_sigma, w = _drift(process, t, levels, diffusion)
    noise = None if is_zero(diffusion) else safe_sqrt(w[:-1] * dt)
    return linear_solver(levels, x=[1.0], x0=-dt * d_alpha[:-1], eps=-dt * d_sigma[:-1], noise=noise)


def heun_sde(process: Process, t: Array, diffusion: DiffusionCoefficient = None) -> Solver:
    """Returns Heun's method on the reverse-time equation, noise first: 2N - 1 evaluations.

        x^ = x + sqrt(w dt) z,   d = drift(x^, t),   d' = drift(x^ - dt d, t'),   x' = x^ - dt (d + d') / 2

    with the drift of this module and dt = t - t' > 0. Of second order where there is no noise (diffusion = 0), of weak
    order one otherwise, with an error often smaller than that of `euler_maruyama`. It is the Heun sampler of SiT (Ma et
    al. 2024, https://arxiv.org/abs/2401.08740), whose diffusion is w / 2.

    Args and Raises: as for `euler_maruyama`.

    >>> from diffusers_fn.processes import flow
    >>> solver = heun_sde(flow(), np.array([1.0, 0.5, 0.25]), diffusion=lambda t: 2 * t)
    >>> solver.rows.churn.round(3)
    array([1. , 0. , 0.5, 0. , 0. ])
    """
    levels, t = _levels(process, t)
    dt = _step_sizes(t, None)
    d_alpha, d_sigma, w = _drift(process, t, levels, diffusion)
    stages = [
        Stage(levels[:-1], -dt * d_alpha[:-1], -dt * d_sigma[:-1], 1.0, [1.0]),
        Stage(levels[1:], -dt * d_alpha[1:], -dt * d_sigma[1:], 1.0, [0.5, 0.5]),
    ]
    if is_zero(diffusion):
        return solver_from_stages([stages], levels[-1:])
    noise = safe_sqrt(w[:-1] * dt)
    noise = before_each_step(namespace(noise).append(noise, 0.0), 2)
    # The network is evaluated at t, not at the level of x^: the level does not rise with the noise.
    return solver_from_stages([stages], levels[-1:], churn=noise, nominal_churn=0.0)


def reverse_diffusion(levels: Level, *, probability_flow: bool = False) -> Solver:
    """Returns reverse diffusion sampling: the forward chain between the levels, taken backwards.

        x' = (2 - ratio) x - var / sigma eps_hat + sqrt(var) z

    where x = ratio x' + sqrt(var) z is the forward step (see `transition`). Song et al. 2021,
    https://arxiv.org/abs/2011.13456, the predictors of algorithms 2 (VE) and 3 (VP); for alpha = 1 it has the mean of
    `ancestral` and the larger variance.

    Args:
      levels: Level[N], any process.
      probability_flow: True halves the score's part and leaves the noise out.

    Raises:
      ValueError: if levels are not a plan (see `check_plan`).

    >>> from diffusers_fn import grids
    >>> reverse_diffusion(grids.karras(3)).rows.noise.round(3)
    array([79.96 ,  2.515,  0.   ])
    """
    check_plan(levels)
    start, end = neighbours(levels)
    ratio, var = transition(start, end)
    xp = namespace(levels)
    if probability_flow:
        return linear_solver(levels, x=[2.0 - ratio], x0=0.0, eps=-0.5 * var / start.sigma)
    return linear_solver(levels, x=[2.0 - ratio], x0=0.0, eps=-var / start.sigma, noise=xp.sqrt(var))


def _levels(process: Process, t: Any) -> tuple[Level, Array]:
    """The plan at the times, and the times as an array of floating type."""
    if np.ndim(t) != 1:
        raise ValueError(f"t must be the [N] times of a plan; got shape {np.shape(t)}")
    t = floating(t)
    levels = process(t)
    levels = jax.tree.map(lambda a: namespace(a).broadcast_to(a, t.shape), levels)
    check_plan(levels)
    return levels, t


def _step_sizes(t: Array, dt: Any) -> Array:
    if dt is None:
        return t[:-1] - t[1:]
    given = concrete(dt)
    if np.shape(dt) not in ((), (t.shape[0] - 1,)) or (given is not None and not np.all(given > 0)):
        raise ValueError(f"dt must be positive, of shape [] or [{t.shape[0] - 1}], one per step; got {dt}")
    return namespace(t, dt).broadcast_to(dt, (t.shape[0] - 1,))


def _drift(process: Process, t: Array, levels: Level, diffusion: DiffusionCoefficient) -> tuple[Array, Array, Array]:
    """d(alpha)/dt, d(sigma)/dt + w / (2 sigma) and w, each [N]."""
    alpha = concrete(levels.alpha)
    if diffusion is None and alpha is not None and np.any(alpha == 0):
        raise ValueError(
            "at pure noise (alpha = 0) the reverse equation's own diffusion g^2 is infinite: start from a smaller t, "
            "or pass a diffusion that is finite there"
        )
    xp = namespace(levels, t)
    # f and g^2 are infinite at pure noise, though the slopes of alpha and sigma are not: there, take them next to it.
    inside = xp.where(levels.alpha == 0, t * (1 - np.sqrt(np.finfo(t.dtype).eps)), t)
    near = process.level(inside)
    f, g2 = process.rates(inside)
    w = g2 if diffusion is None else diffusion(t) if callable(diffusion) else diffusion
    readable = concrete(w)
    if readable is not None and not np.all((readable >= 0) & np.isfinite(readable)):
        raise ValueError(f"diffusion must be finite and not negative at every t; got {readable}")
    w = namespace(w, t).broadcast_to(w, t.shape)
    return f * near.alpha, f * near.sigma + g2 / (2 * near.sigma) + w / (2 * levels.sigma), w
