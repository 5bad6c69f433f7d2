"""The error between a network's output and its target, one number per example."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from diffusers_fn import parameterizations
from diffusers_fn._arrays import check_callable, check_data, working_dtype
from diffusers_fn.levels import Level
from diffusers_fn.losses.weights import Weight, output_weight
from diffusers_fn.parameterizations import Parameterization

__all__ = ["Error", "denoising_loss", "huber", "l1", "mse"]

Error = Callable[[jax.Array, jax.Array], jax.Array]  # (output, target) [B, ...] each -> [B]


def mse(out: jax.Array, target: jax.Array) -> jax.Array:
    """Returns the mean squared error [B] of arrays [B, ...].

    >>> mse(jnp.zeros((1, 2)), jnp.array([[1.0, 3.0]]))
    Array([5.], dtype=float32)
    """
    return _mean((out - target) ** 2)


def l1(out: jax.Array, target: jax.Array) -> jax.Array:
    """Returns the mean absolute error [B] of arrays [B, ...].

    >>> l1(jnp.zeros((1, 2)), jnp.array([[1.0, 3.0]]))
    Array([2.], dtype=float32)
    """
    return _mean(jnp.abs(out - target))


def huber(out: jax.Array, target: jax.Array) -> jax.Array:
    """Returns the mean Huber error [B] of arrays [B, ...]: d^2 / 2 up to |d| = 1, |d| - 1/2 beyond.

    >>> huber(jnp.zeros((1, 2)), jnp.array([[1.0, 3.0]]))
    Array([1.5], dtype=float32)
    """
    return _mean(optax.losses.huber_loss(out, target, delta=1.0))


def denoising_loss(
    out: jax.Array,
    x0: jax.Array,
    eps: jax.Array,
    level: Level,
    parameterization: Parameterization,
    *,
    error: Error = mse,
    weight: Weight | None = None,
) -> jax.Array:
    """Returns the loss [B] of a network's output against its target.

    With weight None this is L_simple, the unweighted error of the output (Ho et al. 2020,
    https://arxiv.org/abs/2006.11239, eq. 14). Otherwise the error is multiplied by `output_weight`, so that with
    `mse` the loss is weight(level) |x0 - x0_hat|^2 for every parameterization.

    Args:
      out: [B, ...] the network's output for x = alpha x0 + sigma eps (without variance channels).
      x0: [B, ...] clean data.
      eps: [B, ...] the noise in x.
      level: S = [] or [B].
      parameterization: what `out` means.
      error: mse, l1 or huber.
      weight: None, or a weight such as `snr` or `min_snr(5.0)`.

    Raises:
      ValueError: if the shapes differ, a dtype is not floating, or for a level (not traced) the weight on the output is
        infinite (see `output_weight`) or the target is (`score` at sigma = 0).

    >>> from diffusers_fn.parameterizations import epsilon
    >>> x0, eps = jnp.ones((1, 2)), jnp.zeros((1, 2))
    >>> denoising_loss(jnp.full((1, 2), 0.5), x0, eps, Level(0.8, 0.6, 0.0), epsilon)
    Array([0.25], dtype=float32)
    """
    check_data(x0=x0, eps=eps, out=out)
    target = parameterizations.target(parameterization, x0, eps, level)
    check_callable("error", error, "losses.mse")
    dtype = working_dtype(out, target)
    loss = error(out.astype(dtype), target.astype(dtype))
    if weight is None:
        return loss
    return loss * jnp.asarray(output_weight(weight, parameterization)(level), loss.dtype)


def _mean(error: jax.Array) -> jax.Array:
    return jnp.mean(error.reshape(error.shape[0], -1), axis=1)
