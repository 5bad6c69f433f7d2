"""Normalisation by means and variances: of groups of channels of an image, of the features of a token."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffusers_fn.backbones.deferred import Deferred


class GroupNorm(nn.Module):
    """Computes group normalisation of [B, H, W, C], learned scale and bias included.

    Statistics are taken in float32 or wider. Wu and He, "Group Normalization" (2018),
    https://arxiv.org/abs/1803.08494. Raises ValueError unless the groups divide C: a smaller number of groups
    would silently be another network. `groups` may be a function of C.

    >>> norm = GroupNorm(groups=2)
    >>> jax.eval_shape(norm.init_with_output, jax.random.key(0), jnp.ones([1, 2, 2, 4]))[0].shape
    (1, 2, 2, 4)
    """

    groups: int | Callable[[int], int] = 32
    eps: float = 1e-6
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.deferred(x)()

    @nn.compact
    def deferred(
        self, x: jax.Array, *film: jax.Array, activation: Callable[[jax.Array], jax.Array] | None = None
    ) -> Deferred:
        """Returns activation(norm(x)), or with film = (scale, shift) activation(norm(x) (1 + scale) + shift), to come.

        scale and shift are broadcast to x. What the activation holds inside is computed again in the backward pass.
        """
        groups = self.groups(x.shape[-1]) if callable(self.groups) else self.groups
        if groups < 1 or x.shape[-1] % groups:
            raise ValueError(
                f"norm_groups must divide the channels of every layer; got norm_groups={groups} "
                f"and a layer of {x.shape[-1]} channels"
            )
        affine = _affine_params(self, x)
        return Deferred(_Norm(groups, self.eps, self.dtype, len(affine), activation), (x, *affine, *film))


class LayerNorm(nn.Module):
    """Computes layer normalisation of [..., D], with a learned scale and bias if affine.

    Statistics are taken in float32 or wider. Ba et al., "Layer Normalization" (2016),
    https://arxiv.org/abs/1607.06450, section 3.

    >>> LayerNorm(affine=False).apply({}, jnp.array([[1.0, 3.0]])).round(3)
    Array([[-1.,  1.]], dtype=float32)
    """

    eps: float = 1e-6
    affine: bool = True
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.deferred(x)()

    @nn.compact
    def deferred(self, x: jax.Array, *film: jax.Array) -> Deferred:
        """Returns norm(x), or with film = (scale, shift) norm(x) (1 + scale) + shift, to come."""
        affine = _affine_params(self, x) if self.affine else []
        return Deferred(_Norm(None, self.eps, self.dtype, len(affine)), (x, *affine, *film))


@dataclasses.dataclass(frozen=True)
class _Norm:
    """The function behind both, of groups of channels, or of features where there are none."""

    groups: int | None
    eps: float
    dtype: Any
    affine: int  # how many arrays are the norm's own scale and bias
    activation: Callable[[jax.Array], jax.Array] | None = None

    def __call__(self, x: jax.Array, *arrays: jax.Array) -> jax.Array:
        affine, film = arrays[: self.affine], arrays[self.affine :]
        means = _feature_means if self.groups is None else functools.partial(_group_means, self.groups)
        wide = jnp.promote_types(self.dtype, jnp.float32)
        y = normalise(means, self.eps, x.astype(jnp.promote_types(x.dtype, wide)))
        y = y * affine[0].astype(wide) + affine[1].astype(wide) if affine else y
        y = y.astype(self.dtype)
        y = y * (1 + film[0]) + film[1] if film else y
        return y if self.activation is None else jax.checkpoint(self.activation)(y)


def _affine_params(norm: GroupNorm | LayerNorm, x: jax.Array) -> list[jax.Array]:
    """Returns a norm's learned scale and bias, of as many axes as x [..., C]."""
    inits = {"scale": nn.initializers.ones, "bias": nn.initializers.zeros}
    arrays = (norm.param(name, init, (x.shape[-1],), norm.param_dtype) for name, init in inits.items())
    return [jnp.expand_dims(array, range(x.ndim - 1)) for array in arrays]


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def normalise(means: Callable[[jax.Array], jax.Array], eps: float, x: jax.Array) -> jax.Array:
    """Returns y = (x - means(x)) / std, with std = sqrt(means((x - means(x))^2) + eps).

    The derivative is written out, and its factors are in the order that makes its transpose

        dx = (dy - means(dy) - y means(y dy)) / std

    with the factor 1 / std last: so XLA's CPU compiler computes dx once, in other orders again in every operation of
    the layer before that uses it (a training step of DiT then takes 1.2 times as long).

    Args:
      means: the means of what is normalised together, broadcastable to x: a projection, linear and symmetric.
      eps: added to the variance.
      x: float32 or wider.

    >>> normalise(lambda x: x.mean(keepdims=True), 0.0, jnp.array([1.0, 3.0]))
    Array([-1.,  1.], dtype=float32)
    """
    return _parts(means, eps, x)[0]


@normalise.defjvp
def _normalise_jvp(means: Any, eps: float, primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> Any:
    y, rstd = _parts(means, eps, *primals)
    dx = tangents[0] * rstd
    return y, dx - means(dx) - y * means(y * dx)


def _parts(means: Callable[[jax.Array], jax.Array], eps: float, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns (y, 1 / std)."""
    x = x - means(x)  # E[x^2] - E[x]^2 would cancel where the mean is large
    rstd = jax.lax.rsqrt(means(x * x) + eps)
    return x * rstd, rstd


def _group_means(groups: int, x: jax.Array) -> jax.Array:
    """Returns the means of groups of channels, for every channel: [B, H, W, C] -> [B, 1, 1, C].

    Over the pixels first: whole rows of channels are added, not a few numbers at a time.
    """
    means = x.mean((1, 2)).reshape(x.shape[0], groups, -1).mean(-1)
    return jnp.repeat(means, x.shape[-1] // groups, axis=-1)[:, None, None, :]


def _feature_means(x: jax.Array) -> jax.Array:
    """Returns the mean of the last axis: [..., D] -> [..., 1]."""
    return x.mean(-1, keepdims=True)
