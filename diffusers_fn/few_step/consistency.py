"""Continuous-time consistency models: f(x, t) is the clean end of the probability flow from x, in one evaluation.

On a process with alpha = cos(a), sigma = sin(a), a network F with the v parameterization defines

    f(x, t) = cos(a) x - sin(a) F(x, t),

which is x at a = 0. f is exact if it is constant along the flow. The loss moves F against the change g of f along the
flow, whose velocity is that of the data (consistency training) or of a teacher (consistency distillation). Sample with
`solvers.lcm`. Shapes: B is the batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from diffusers_fn._arrays import check_data, expand
from diffusers_fn._types import ArrayLike
from diffusers_fn.levels import Level, check_level
from diffusers_fn.losses import mse

__all__ = ["consistency_loss", "consistency_tangent", "root_mean_square"]


def consistency_tangent(
    net: Callable[[jax.Array, Level], jax.Array],
    process: Callable[[Any], Level],
    x: jax.Array,
    t: jax.Array,
    velocity: jax.Array,
    *,
    warmup: ArrayLike = 1.0,
) -> tuple[jax.Array, jax.Array]:
    """Returns (F, g), both [B, ...]: the network's output at x, and the change of F that the loss aims at.

        g = cos(a) df/da = -cos(a)^2 (F - dx/da) - r cos(a) sin(a) (x + dF/da)

    with d/da along the flow. For an exact consistency function g is 0 with the velocity of the exact flow, and 0 on
    average over (x0, eps) given x with the velocity of the data. No gradient passes through g.

    Lu & Song, "Simplifying, Stabilizing and Scaling Continuous-Time Consistency Models", 2024,
    https://arxiv.org/abs/2410.11081, algorithm 1 with sigma_d = 1.

    Args:
      net: (x, level) -> F [B, ...], differentiable in x and level.t. Dropout masks must be the same at each call.
      process: t -> Level with alpha^2 + sigma^2 = 1, e.g. `processes.trigonometric()`.
      x: [B, ...] noisy data.
      t: [B] times of the process at which alpha or sigma changes with t.
      velocity: [B, ...] dx/da = cos(a) eps - sin(a) x0: `target(v, x0, eps, level)` for the x0 and eps of x, or for a
        teacher's prediction for x.
      warmup: [] r, the tangent warm-up, from 0 (the loss is then the denoising loss of v) to 1.

    Raises:
      ValueError: if shapes or dtypes do not agree.

    For standard normal data x is constant along the flow, so F = -x tan(a / 2); at a = pi / 4:

    >>> from diffusers_fn import processes
    >>> net = lambda x, level: x * ((level.alpha - 1) / level.sigma)[:, None]
    >>> x, still = jnp.ones((1, 2)), jnp.zeros((1, 2))
    >>> F, g = consistency_tangent(net, processes.trigonometric(), x, jnp.array([0.5]), still)
    >>> round(float(F[0, 0]), 4), bool(jnp.all(jnp.abs(g) < 1e-6))
    (-0.4142, True)
    """
    check_data(x=x, velocity=velocity)
    level, rate = jax.jvp(process, (t,), (jnp.ones_like(t),))
    check_level(level, x)
    speed = level.alpha * rate.sigma - level.sigma * rate.alpha  # da/dt
    # dF/da is computed times cos(a) sin(a), which stays finite if the time label is the log SNR.
    both = level.alpha * level.sigma
    F, dF = jax.jvp(lambda x, t: net(x, process(t)), (x, t), (expand(both, x) * velocity, both / speed))
    g = expand(-(level.alpha**2), x) * (F - velocity) - warmup * (expand(both, x) * x + dF)
    return F, jax.lax.stop_gradient(g)


def consistency_loss(F: jax.Array, g: jax.Array, *, scale: float | None = None) -> jax.Array:
    """Returns the loss [B] |F - stop(F) - g|^2 / D, whose gradient moves F [B, ...] along g; D entries per example.

    Its value is the mean square of g. With a scale c, g is normalised to g / (|g| + c) with |g| its root mean square,
    so that all examples have similar weight (Lu & Song 2024, https://arxiv.org/abs/2410.11081, section 4.2, with
    c = 0.1). Normalise with the velocity of a teacher. With the velocity of the data g is a noisy estimate, whose mean
    the normalisation biases: small networks then learn blurred or noisy samples.

    Args:
      F: [B, ...] the network's output.
      g: [B, ...], see `consistency_tangent`.
      scale: c, positive; None for no normalisation.

    Raises:
      ValueError: if shapes do not agree, or scale is not positive.

    >>> loss = lambda F: consistency_loss(F, jnp.full((1, 2), 3.0))[0]
    >>> jax.grad(loss)(jnp.zeros((1, 2)))  # -2 g / D
    Array([[-3., -3.]], dtype=float32)
    """
    check_data(F=F, g=g)
    if scale is not None:
        if not scale > 0:
            raise ValueError(f"scale must be positive, or None for no normalisation; got {scale}")
        g = expand(1.0 / (root_mean_square(g) + scale), g) * g
    return mse(F, jax.lax.stop_gradient(F + g))


def root_mean_square(g: jax.Array) -> jax.Array:
    """Returns the root mean square [B] of each example of g [B, ...].

    >>> root_mean_square(jnp.full((1, 2), -3.0))
    Array([3.], dtype=float32)
    """
    return jnp.sqrt(jnp.mean(g.reshape(g.shape[0], -1) ** 2, axis=1))
