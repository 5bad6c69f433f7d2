"""Normalisation by means and variances: of groups of channels of an image, of the features of a token.

The layers take the arguments of linen's layers of the same names, and return lazy arrays.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffusers_fn.backbones.ops.lazy import Lazy

__all__ = ["GroupNorm", "LayerNorm", "RMSNorm", "normalise"]


class GroupNorm(nn.Module):
    """Computes group normalisation of x [B, ..., C], lazily, with a learned scale and bias.

    Statistics are computed in float32 or wider. Wu and He, "Group Normalization" (2018),
    https://arxiv.org/abs/1803.08494. Raises ValueError unless the groups divide C: another number of groups would
    silently be another network. `num_groups` may be a function of C.

    >>> norm = GroupNorm(num_groups=2)
    >>> jax.eval_shape(norm.init_with_output, jax.random.key(0), jnp.ones([1, 2, 2, 4]))[0].shape
    (1, 2, 2, 4)
    """

    num_groups: int | Callable[[int], int] = 32
    epsilon: float = 1e-6
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> Any:
        groups = self.num_groups(x.shape[-1]) if callable(self.num_groups) else self.num_groups
        if groups < 1 or x.shape[-1] % groups:
            raise ValueError(
                f"norm_groups must divide the channels of every layer; got norm_groups={groups} "
                f"and a layer of {x.shape[-1]} channels"
            )
        scale, bias = _affine_params(self, x)
        return Lazy(_Norm(groups, self.epsilon, self.dtype, True, True), (x, scale, bias))


class LayerNorm(nn.Module):
    """Computes layer normalisation of x [..., D], lazily, with a learned scale and bias.

    Statistics are computed in float32 or wider. Ba et al., "Layer Normalization" (2016),
    https://arxiv.org/abs/1607.06450, section 3.

    >>> from diffusers_fn.backbones.ops import array
    >>> array(LayerNorm(use_scale=False, use_bias=False).apply({}, jnp.array([[1.0, 3.0]]))).round(3)
    Array([[-1.,  1.]], dtype=float32)
    """

    epsilon: float = 1e-6
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32
    use_bias: bool = True
    use_scale: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> Any:
        norm = _Norm(None, self.epsilon, self.dtype, self.use_scale, self.use_bias)
        return Lazy(norm, (x, *_affine_params(self, x, self.use_scale, self.use_bias)))


class RMSNorm(nn.Module):
    """Computes x / sqrt(mean(x^2) + epsilon) scale for x [..., D], lazily, with a learned scale.

    The mean is computed in float32 or wider. Zhang and Sennrich, "Root Mean Square Layer Normalization" (2019),
    https://arxiv.org/abs/1910.07467, equation 4.

    >>> from diffusers_fn.backbones.ops import array
    >>> x = jnp.array([[2.0, -2.0]])
    >>> array(RMSNorm().apply({"params": {"scale": jnp.ones(2)}}, x)).round().tolist()
    [[1.0, -1.0]]
    """

    epsilon: float = 1e-6
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> Any:
        return Lazy(_RootMeanSquare(self.epsilon, self.dtype), (x, *_affine_params(self, x, use_bias=False)))


@dataclasses.dataclass(frozen=True)
class _RootMeanSquare:
    """The function behind `RMSNorm`."""

    eps: float
    dtype: Any

    def __call__(self, x: jax.Array, scale: jax.Array) -> jax.Array:
        wide = jnp.promote_types(self.dtype, jnp.float32)
        x = x.astype(jnp.promote_types(x.dtype, wide))
        return (x * jax.lax.rsqrt(_feature_means(x * x) + self.eps) * scale.astype(wide)).astype(self.dtype)


@dataclasses.dataclass(frozen=True)
class _Norm:
    """The function behind the other two: normalisation of groups of channels, or of all features if groups is None."""

    groups: int | None
    eps: float
    dtype: Any
    use_scale: bool
    use_bias: bool

    def __call__(self, x: jax.Array, *affine: jax.Array) -> jax.Array:
        means = _feature_means if self.groups is None else functools.partial(_group_means, self.groups)
        wide = jnp.promote_types(self.dtype, jnp.float32)
        y = normalise(means, self.eps, x.astype(jnp.promote_types(x.dtype, wide)))
        y = y * affine[0].astype(wide) if self.use_scale else y
        y = y + affine[-1].astype(wide) if self.use_bias else y
        return y.astype(self.dtype)


def _affine_params(norm: Any, x: jax.Array, use_scale: bool = True, use_bias: bool = True) -> list[jax.Array]:
    """Returns the learned scale and bias that a norm has, with as many axes as x [..., C]."""
    inits = {"scale": nn.initializers.ones} if use_scale else {}
    inits |= {"bias": nn.initializers.zeros} if use_bias else {}
    arrays = (norm.param(name, init, (x.shape[-1],), norm.param_dtype) for name, init in inits.items())
    return [jnp.expand_dims(array, range(x.ndim - 1)) for array in arrays]


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def normalise(means: Callable[[jax.Array], jax.Array], eps: float, x: jax.Array) -> jax.Array:
    """Returns y = (x - means(x)) / std, with std = sqrt(means((x - means(x))^2) + eps).

    The derivative is written out, and its factors are in the order that makes its transpose

        dx = (dy - means(dy) - y means(y dy)) / std

    with the factor 1 / std last. With another order, XLA's CPU compiler computes dx again in every operation of the
    previous layer that uses it.

    Args:
      means: x -> the means of the numbers that are normalised together, broadcastable to x. It must be linear,
        symmetric and a projection.
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
    """Returns the means of groups of channels, for every channel: [B, ..., C] -> [B, 1, .., 1, C].

    The mean over the pixels comes first, so that whole rows of channels are added, not a few numbers at a time.
    """
    pixels = tuple(range(1, x.ndim - 1))
    means = x.mean(pixels).reshape(x.shape[0], groups, -1).mean(-1)
    return jnp.expand_dims(jnp.repeat(means, x.shape[-1] // groups, axis=-1), pixels)


def _feature_means(x: jax.Array) -> jax.Array:
    """Returns the mean of the last axis: [..., D] -> [..., 1]."""
    return x.mean(-1, keepdims=True)
