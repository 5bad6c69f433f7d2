"""Exact denoisers for data of known distribution, so that samplers can be tested against the truth.

For x = alpha x0 + sigma eps they return E[x0 | x] and E[eps | x] in closed form. The Gaussian ones compute each from
its own formula, so that neither loses digits where alpha or sigma is small. All accept conditioning and ignore it.

If x, the level and the distribution are NumPy arrays or Python numbers, the prediction is computed on the host in NumPy
float64; if one of them is a JAX array, in JAX. So the same denoiser serves a sampler and a float64 replay of it.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffusers_fn._arrays import expand, namespace
from diffusers_fn._types import Array, Numbers
from diffusers_fn.denoisers import Denoiser
from diffusers_fn.levels import Level
from diffusers_fn.parameterizations import Prediction

__all__ = [
    "as_data",
    "components_last",
    "finite",
    "gaussian",
    "mixture",
    "mixture_components",
    "per_example",
]


def gaussian(mean: Numbers, std: Numbers) -> Denoiser:
    """Returns the exact denoiser of data whose entries are independent, each N(mean, std^2).

        E[x0 | x] = mean + alpha std^2 / var (x - alpha mean),   E[eps | x] = sigma / var (x - alpha mean)

    with var = alpha^2 std^2 + sigma^2.

    Args:
      mean: a number, or an array with the shape of one example.
      std: as mean.

    Raises:
      ValueError: when called, if mean or std has another shape.

    >>> gaussian(0.0, 1.0)(jnp.ones((1, 2)), Level(0.8, 0.6, 0.0)).x0
    Array([[0.8, 0.8]], dtype=float32)
    >>> gaussian(0.0, 1.0)(np.ones((1, 2)), Level(0.8, 0.6, 0.0)).x0  # NumPy in, float64 out
    array([[0.8, 0.8]])
    """

    def denoise(x: Array, level: Level, cond: Any = None) -> Prediction:
        xp = namespace(mean, std, x, level.alpha, level.sigma)
        x = as_data(x, xp)
        alpha, sigma = per_example(level.alpha, x, xp), per_example(level.sigma, x, xp)
        mu, sd = _per_entry(mean, x, xp), _per_entry(std, x, xp)
        residual = (x - alpha * mu) / ((alpha * sd) ** 2 + sigma**2)
        return Prediction(mu + alpha * sd**2 * residual, sigma * residual)

    return denoise


def mixture(weights: Numbers, means: Numbers, stds: Numbers, *, independent: bool = False) -> Denoiser:
    """Returns the exact denoiser of a mixture of K Gaussians with diagonal covariances.

        E[x0 | x] = sum_k r_k(x) E[x0 | x, k],   r_k proportional to w_k N(x; alpha mean_k, alpha^2 std_k^2 + sigma^2)

    Args:
      weights: [K], positive; they are normalised to sum to 1.
      means: [K], or [K, ...] with the shape of one example.
      stds: as means.
      independent: False for one mixture over whole examples; True if each entry of an example follows its own mixture,
        independent of the other entries.

    Raises:
      ValueError: unless weights is a vector and means and stds have K entries.

    >>> denoise = mixture([0.5, 0.5], [-1.0, 1.0], [0.1, 0.1])
    >>> denoise(jnp.full((1, 2), 0.8), Level(0.8, 0.6, 0.0)).x0.round(2)
    Array([[1., 1.]], dtype=float32)
    """
    on_device, on_host = mixture_components(weights, means, stds)

    def denoise(x: Array, level: Level, cond: Any = None) -> Prediction:
        xp = namespace(weights, means, stds, x, level.alpha, level.sigma)
        x = as_data(x, xp)
        components = on_device if on_host is None or xp is jnp else on_host
        log_w, mu, sd = (components_last(a, x) for a in components)  # [1, ..., K]
        alpha, sigma = per_example(level.alpha, x[..., None], xp), per_example(level.sigma, x[..., None], xp)
        var = (alpha * sd) ** 2 + sigma**2
        residual = (x[..., None] - alpha * mu) / var
        log_density = -0.5 * residual**2 * var - 0.5 * xp.log(var)
        if not independent:
            log_density = xp.sum(log_density, axis=tuple(range(1, x.ndim)), keepdims=True)
        r = _softmax(log_w + log_density, xp)
        x0 = xp.sum(r * (mu + alpha * sd**2 * residual), axis=-1)
        return Prediction(x0, xp.sum(r * sigma * residual, axis=-1))

    return denoise


def finite(data: Numbers) -> Denoiser:
    """Returns the exact denoiser of the uniform distribution over M given examples.

        E[x0 | x] = sum_m softmax_m(-|x - alpha data_m|^2 / (2 sigma^2)) data_m

    A network of unlimited capacity that is trained on the data set learns this function (Karras et al., "Elucidating
    the Design Space of Diffusion-Based Generative Models", 2022, https://arxiv.org/abs/2206.00364, eq. 57).

    Args:
      data: [M, ...].

    Raises:
      ValueError: when called, if the examples of x and of data differ in shape. sigma must be positive (not checked).

    >>> data = jnp.array([[-1.0, 0.0], [1.0, 0.0]])
    >>> finite(data)(jnp.array([[0.8, 0.0]]), Level(0.8, 0.1, 0.0)).x0
    Array([[1., 0.]], dtype=float32)
    """
    on_device = jnp.asarray(data)
    on_host = np.asarray(data, np.float64) if namespace(data) is np else None

    def denoise(x: Array, level: Level, cond: Any = None) -> Prediction:
        xp = namespace(data, x, level.alpha, level.sigma)
        x = as_data(x, xp)
        examples: Any = on_host if xp is np else on_device.astype(x.dtype)
        if examples.shape[1:] != x.shape[1:]:
            raise ValueError(f"x's examples must have the data's shape {examples.shape[1:]}; got {x.shape[1:]}")
        alpha, sigma = per_example(level.alpha, x, xp), per_example(level.sigma, x, xp)
        # Differences before squares: |x|^2 - 2 x.d + |d|^2 would lose the digits that separate similar examples.
        difference = x[:, None] - per_example(level.alpha, x[:, None], xp) * examples[None]
        residual = difference / per_example(level.sigma, x[:, None], xp)
        weights = _softmax(-0.5 * xp.sum(residual.reshape(*residual.shape[:2], -1) ** 2, axis=-1), xp)
        precision = {} if xp is np else {"precision": "highest"}
        x0 = xp.tensordot(weights, examples, axes=1, **precision)
        return Prediction(x0, (x - alpha * x0) / sigma)

    return denoise


def mixture_components(weights: Any, means: Any, stds: Any) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
    """Returns (log of the normalised weights, means, stds) twice: in JAX, and in NumPy float64.

    The second is empty if one of the inputs is a JAX array.

    Raises:
      ValueError: unless weights is [K] and means and stds are [K] or [K, ...].

    >>> mixture_components([1.0, 1.0], [0.0], [1.0])
    Traceback (most recent call last):
    ...
    ValueError: weights must be [K], means and stds [K] or [K, ...]; got (2,), (1,), (1,)
    """
    shapes = np.shape(weights), np.shape(means), np.shape(stds)
    if len(shapes[0]) != 1 or shapes[1][:1] != shapes[0] or shapes[2][:1] != shapes[0]:
        raise ValueError("weights must be [K], means and stds [K] or [K, ...]; got {}, {}, {}".format(*shapes))
    floating = (jnp.asarray(a).astype(jnp.result_type(float, jnp.asarray(a))) for a in (means, stds))
    on_device = (jax.nn.log_softmax(jnp.log(jnp.asarray(weights))), *floating)
    if namespace(weights, means, stds) is jnp:
        return on_device, ()
    shares, *rest = (np.asarray(a, np.float64) for a in (weights, means, stds))
    return on_device, (np.log(shares / shares.sum()), *rest)


def components_last(values: Array, x: Array) -> Array:
    """Returns values [K] or [K, ...] as [1, ..., K], to combine with x[..., None].

    >>> components_last(jnp.array([1.0, 2.0]), jnp.zeros((5, 3))).shape
    (1, 1, 2)
    """
    values = namespace(values).moveaxis(values.astype(x.dtype), 0, -1)
    if values.ndim == 1:
        return values.reshape((1,) * x.ndim + (-1,))
    return values[None]


def as_data(x: Array, xp: ModuleType) -> Array:
    """Returns x as an array of the namespace: in float64 for NumPy, in its own type for JAX.

    >>> as_data(np.ones(2, np.float32), np).dtype
    dtype('float64')
    """
    return np.asarray(x, np.float64) if xp is np else jnp.asarray(x)


def per_example(coefficient: Any, x: Any, xp: ModuleType) -> Any:
    """Returns a coefficient [] or [B] shaped to multiply x [B, ...].

    >>> per_example(np.array([2.0, 3.0]), np.ones((2, 4)), np).shape
    (2, 1)
    """
    if xp is jnp:
        return expand(coefficient, x)
    coefficient = np.asarray(coefficient, np.float64)
    return coefficient.reshape(coefficient.shape + (1,) * (x.ndim - coefficient.ndim if coefficient.ndim else 0))


def _per_entry(value: Any, x: Any, xp: ModuleType) -> Any:
    """A number, or an array with the shape of one example, shaped to combine with x [B, ...]."""
    value = xp.asarray(value, x.dtype)
    if value.shape not in ((), x.shape[1:]):
        raise ValueError(f"mean and std must be numbers or have an example's shape {x.shape[1:]}; got {value.shape}")
    return value if value.ndim == 0 else value[None]


def _softmax(logits: Array, xp: ModuleType) -> Array:
    """Over the last axis."""
    if xp is jnp:
        return jax.nn.softmax(logits, axis=-1)
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)
