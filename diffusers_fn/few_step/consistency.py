"""Continuous-time consistency models: f(x, t) is where the probability flow takes x, found in one evaluation.

On a process with alpha = cos(a), sigma = sin(a) a network F with the v parameterization says

    f(x, t) = cos(a) x - sin(a) F(x, t),

which is x itself at a = 0. f is right when it does not change along the flow. The loss moves F against that change,
g; with the velocity of the data (training) or of a teacher (distillation) along the flow. Sample with `solvers.lcm`.
Shapes: B is the batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from diffusers_fn._arrays import check_data, expand
from diffusers_fn.levels import Level, check_level
from diffusers_fn.losses import mse


def consistency_tangent(
    net: Callable[[jax.Array, Level], jax.Array],
    process: Callable[[Any], Level],
    x: jax.Array,
    t: jax.Array,
    velocity: jax.Array,
    *,
    warmup: Any = 1.0,
) -> tuple[jax.Array, jax.Array]:
    """Returns (F, g): the network's output at x, and how far and where to it should move; both [B, ...].

        g = cos(a) df/da = -cos(a)^2 (F - dx/da) - r cos(a) sin(a) (x + dF/da)

    with d/da along the flow. Where F is a consistency function, g is 0 for the velocity of the exact flow, and 0 on
    average over what led to x for that of the data. No gradient passes through g.

    Lu & Song, "Simplifying, Stabilizing and Scaling Continuous-Time Consistency Models", 2024,
    https://arxiv.org/abs/2410.11081, algorithm 1 with sigma_d = 1.

    Args:
      net: (x, level) -> F [B, ...], differentiable in x and level.t. Dropout masks must be the same at each call.
      process: t -> Level with alpha^2 + sigma^2 = 1, e.g. `processes.trigonometric()`.
      x: [B, ...] noisy data.
      t: [B] times of the process, where alpha > 0 or sigma > 0 changes with t.
      velocity: [B, ...] dx/da = cos(a) eps - sin(a) x0: `target(v, x0, eps, level)` of what x was made from, or of a
        teacher's prediction for x.
      warmup: [] r, from 0 (the loss is then the denoising loss of v) to 1.

    Raises:
      ValueError: if shapes or dtypes do not agree.

    For standard normal data the flow leaves x where it is, so F = -x tan(a / 2), and at a = pi / 4:

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
    # dF/da times cos(a) sin(a), which bounds the derivatives of log SNR that a label may have.
    both = level.alpha * level.sigma
    F, dF = jax.jvp(lambda x, t: net(x, process(t)), (x, t), (expand(both, x) * velocity, both / speed))
    g = expand(-(level.alpha**2), x) * (F - velocity) - warmup * (expand(both, x) * x + dF)
    return F, jax.lax.stop_gradient(g)


def consistency_loss(F: jax.Array, g: jax.Array, *, scale: float | None = None) -> jax.Array:
    """Returns the loss [B] whose gradient moves F [B, ...] along g: |F - stop(F) - g|^2 / D, D the size of an example.

    Its value is the mean square of g. With a scale c every example pulls alike, however large its g: g / (|g| + c)
    stands for g, |g| the root of its mean square (Lu & Song 2024, https://arxiv.org/abs/2410.11081, section 4.2, with
    c = 0.1). That suits a teacher's velocity. With the velocity of the data g is noise around what it should be, and
    noise of which large values are cut is no longer 0 on average: small networks then learn blurred or noisy samples.

    Args:
      F: [B, ...] the network's output.
      g: [B, ...], see `consistency_tangent`.
      scale: c, positive, or None to take g as it is.

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
    """Returns the root of the mean square [B] of each example of g [B, ...].

    >>> root_mean_square(jnp.full((1, 2), -3.0))
    Array([3.], dtype=float32)
    """
    return jnp.sqrt(jnp.mean(g.reshape(g.shape[0], -1) ** 2, axis=1))
