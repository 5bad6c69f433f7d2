"""Mean flows: a network with two time labels learns the average velocity of the flow between the two times.

On the straight process x = (1 - t) x0 + t eps with velocity v = eps - x0,

    u(x, r, t) = 1 / (t - r) times the integral of v from r to t along the flow,   x_r = x_t - (t - r) u(x_t, r, t).

`jump` samples with such steps, one or more; u(x, t, t) is v, which any other solver can use. The time label of the
network is the pair (t, r), see `backbones.TwoTimeConditioned`. Shapes: B is the batch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from diffusers_fn import _random
from diffusers_fn._arrays import check_data, expand, namespace, split_like
from diffusers_fn._types import ArrayLike
from diffusers_fn.levels import Level
from diffusers_fn.losses import TimeSampler
from diffusers_fn.solvers import Solver, ddim

__all__ = ["TwoTimeNetwork", "adaptive_mse", "draw_two_times", "jump", "mean_flow_target"]

TwoTimeNetwork = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


def mean_flow_target(
    net: TwoTimeNetwork, x: jax.Array, t: jax.Array, r: jax.Array, velocity: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Returns (u, target), both [B, ...]: the network's output u(x, r, t) and its regression target.

        target = v - (t - r) du/dt,   du/dt = v . grad_x u + d_t u

    If u is the average velocity, the target equals u for the velocity v of the exact flow, and equals u on average over
    (x0, eps) given x for the velocity of the data. No gradient passes through the target. Geng et al., "Mean Flows for
    One-step Generative Modeling", 2025, https://arxiv.org/abs/2505.13447, eq. 6 and 8-11.

    Args:
      net: (x, t, r) -> u [B, ...]. Dropout masks must be the same at each call.
      x: [B, ...] noisy data.
      t: [B] the time of x.
      r: [B] the time at the end of the step, at most t.
      velocity: [B, ...] v = eps - x0. To train with guidance (section 4.2 of the paper), pass
        `apply_guidance(eps - x0, u, scale)` with u = u(x, t, t) of the network without condition; sampling then takes
        one network evaluation per step.

    Raises:
      ValueError: if shapes or dtypes do not agree.

    >>> net = lambda x, t, r: x / t[:, None]  # for data that are 0, x = t eps
    >>> x, velocity = jnp.full((1, 2), 0.6), jnp.full((1, 2), 3.0)
    >>> mean_flow_target(net, x, jnp.array([0.2]), jnp.array([0.1]), velocity)[1]
    Array([[3., 3.]], dtype=float32)
    """
    check_data(x=x, velocity=velocity)
    t, r = split_like((t, r), x)
    u, du = jax.jvp(net, (x, t, r), (velocity, jnp.ones_like(t), jnp.zeros_like(r)))
    return u, jax.lax.stop_gradient(velocity - expand(t - r, x) * du)


def adaptive_mse(out: jax.Array, target: jax.Array, *, power: float = 1.0, c: float = 1e-3) -> jax.Array:
    """Returns the loss [B] w |out - target|^2 with w = stop(1 / (|out - target|^2 + c)^power), where |.|^2 is a sum.

    With power = 1 all examples have similar weight; power = 0 is the squared error. Geng et al. 2025,
    https://arxiv.org/abs/2505.13447, section 4.3, with power = 1.

    Args:
      out: [B, ...] the network's output.
      target: [B, ...] its regression target.
      power: the paper's p.
      c: positive, avoids division by zero.

    Raises:
      ValueError: if shapes do not agree, or c is not positive.

    >>> round(float(adaptive_mse(jnp.zeros((1, 2)), jnp.full((1, 2), 3.0), c=2.0)[0]), 4)
    0.9
    """
    check_data(out=out, target=target)
    if not c > 0:
        raise ValueError(f"c must be positive; got {c}")
    error = jnp.sum((out - target).reshape(out.shape[0], -1) ** 2, axis=1)
    return error * jax.lax.stop_gradient((error + c) ** -power)


def draw_two_times(
    key: jax.Array, batch_size: int, draw: TimeSampler, *, share: float = 0.25
) -> tuple[jax.Array, jax.Array]:
    """Returns times (t, r), each [B]: the two draws, larger first, for a share of the examples; else r = t.

    Geng et al. 2025, https://arxiv.org/abs/2505.13447, section 4.3, with logit-normal times of mean -0.4 and standard
    deviation 1, and share 0.25.

    Args:
      key: one key, or [B] keys.
      batch_size: B.
      draw: (key, B) -> times [B] in [0, 1), from `losses`.
      share: the probability of r < t, in [0, 1].

    Raises:
      ValueError: unless share lies in [0, 1].

    >>> from diffusers_fn.losses import uniform_time
    >>> t, r = draw_two_times(jax.random.key(0), 4, uniform_time, share=1.0)
    >>> bool(jnp.all(r < t))
    True
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share, the probability of r < t, must lie in [0, 1]; got {share}")
    first_key, second_key, share_key = _random.split(key, 3)
    first, second = draw(first_key, batch_size), draw(second_key, batch_size)
    apart = _random.draw(jax.random.uniform, share_key, (batch_size,), jnp.result_type(float)) < share
    t = jnp.maximum(first, second)
    return t, jnp.where(apart, jnp.minimum(first, second), t)


def jump(levels: Level, clean: ArrayLike = 0.0) -> Solver:
    """Returns the solver for a network with two time labels: one network evaluation per step from level to level.

        x' = alpha' x0_hat + sigma' eps_hat,   (x0_hat, eps_hat) = denoise(x, (level, level'))

    It is `ddim` with the pair (t, t') of the labels of a level and of the next one as the time label. With the velocity
    parameterization on the straight process, x' = x - (t - t') u(x, t', t): Geng et al. 2025,
    https://arxiv.org/abs/2505.13447, eq. 12. One level makes one step, from noise to data.

    Args:
      levels: Level[N], the plan, of any process.
      clean: the label of the clean level, at which the last step ends.

    Raises:
      ValueError: if levels is not a plan (see `check_plan`).

    >>> from diffusers_fn import grids, processes
    >>> jump(grids.uniform_t(processes.flow(), 2, t_min=0.5)).rows.level.t
    (array([1. , 0.5]), array([0.5, 0. ]))
    """
    solver = ddim(levels)
    xp = namespace(levels, clean)
    last = xp.broadcast_to(xp.asarray(clean, levels.t.dtype), levels.t[:1].shape)
    labels: Any = (levels.t, xp.concatenate([levels.t[1:], last]))
    labelled = Level(levels.alpha, levels.sigma, labels)
    return dataclasses.replace(solver, rows=dataclasses.replace(solver.rows, level=labelled))
