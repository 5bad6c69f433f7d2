"""Posterior guidance for inverse problems: samples of x0 given a measurement y = A x0 + noise.

The operator A is a function [B, ...] -> [B, ...] that maps each example by itself: `lambda x: mask * x` for inpainting,
`lambda x: average_pool(x, 4)` for super-resolution.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffusers_fn._arrays import check_per_example, concrete, expand
from diffusers_fn._types import ArrayLike
from diffusers_fn.denoisers import Denoiser, Transform
from diffusers_fn.guidance.conjugate import conjugate_gradients
from diffusers_fn.guidance.predictions import inner_product, shift_by_gradient
from diffusers_fn.guidance.scales import Scale, scale_at
from diffusers_fn.levels import Level
from diffusers_fn.parameterizations import Prediction

__all__ = ["Operator", "average_pool", "dps", "pigdm"]

Operator = Callable[[jax.Array], jax.Array]


def dps(operator: Operator, y: jax.Array, *, noise_std: ArrayLike | None = None, scale: Scale = 1.0) -> Transform:
    """Returns the transform of diffusion posterior sampling (DPS).

    It follows the gradient in x, through the denoiser, of

        log p(y | x) ~ -|y - A(x0_hat(x))|^2 / (2 noise_std^2),    or of -|y - A(x0_hat(x))| if noise_std is None.

    Chung et al., "Diffusion Posterior Sampling for General Noisy Inverse Problems", 2023,
    https://arxiv.org/abs/2209.14687, eq. 10 and 16. The first form is their approximation of the score. The second form
    with scale = `shift_scale(solver, zeta)` is their algorithm 1: each step moves by zeta times the gradient of the
    norm, as in their code (the paper's zeta_i is zeta / (2 |y - A(x0_hat)|)). A may be nonlinear. DPS neglects the
    variance of x0 given x, so samples are biased for any number of steps, unless corrector steps follow
    (`predictor_corrector`); `pigdm` includes that variance.

    Args:
      operator: A, [B, ...] -> the shape of y, differentiable, one example at a time.
      y: [B, ...] the measurement.
      noise_std: [] or [B], the standard deviation of the measurement noise; None for the second form.
      scale: [] or [B], may be traced, or a function of the level; 0 changes no bit.

    Raises:
      ValueError: if noise_std (not traced) is not positive; when called, if the operator does not map x0 to y's
        shape or a level (not traced) is pure noise (alpha = 0).

    >>> from diffusers_fn.oracles import gaussian
    >>> known = dps(lambda x: x[:, :1], jnp.array([[2.0]]), noise_std=1.0)(gaussian(0.0, 1.0))
    >>> print(known(jnp.zeros((1, 2)), Level(0.8, 0.6, 0.0)).x0)  # sigma^2 y
    [[0.72 0.  ]]
    """
    if noise_std is not None:
        _check_positive("noise_std", noise_std)

    def transform(denoise: Denoiser) -> Denoiser:
        def guided(x: jax.Array, level: Level, cond: Any = None) -> Prediction:
            def log_likelihood(x: jax.Array) -> tuple[jax.Array, Prediction]:
                prediction = denoise(x, level, cond)
                _check_shape(operator, prediction.x0, y)
                residual = y.astype(prediction.x0.dtype) - operator(prediction.x0)
                square = inner_product(residual, residual).reshape(-1)
                check_per_example("noise_std", 0.0 if noise_std is None else noise_std, x)
                if noise_std is None:
                    positive = square > 0
                    return -jnp.sum(jnp.where(positive, jnp.sqrt(jnp.where(positive, square, 1.0)), 0.0)), prediction
                return -0.5 * jnp.sum(square / expand(noise_std, square) ** 2), prediction

            gradient, prediction = jax.grad(log_likelihood, has_aux=True)(x)
            return shift_by_gradient(prediction, gradient, scale_at(scale, level, x), level)

        return guided

    return transform


def pigdm(
    operator: Operator,
    y: jax.Array,
    *,
    noise_std: ArrayLike = 0.0,
    data_std: ArrayLike = 1.0,
    scale: Scale = 1.0,
    tolerance: float = 1e-5,
    max_iterations: int = 50,
) -> Transform:
    """Returns the transform of pseudo-inverse guidance (PiGDM), for any linear operator.

        grad_x log p(y | x) ~ (d x0_hat / d x)^T A^T (r^2 A A^T + noise_std^2 I)^-1 (y - A x0_hat),
        r^2 = data_std^2 sigma^2 / (alpha^2 data_std^2 + sigma^2)

    Song et al., "Pseudoinverse-Guided Diffusion Models for Inverse Problems", 2023,
    https://openreview.net/forum?id=9_gsMA8MRKQ, eq. 7. r^2 is the variance of x0 given x for data N(mean, data_std^2),
    for which the guided denoiser is exact. The system is solved by conjugate gradients on A A^T, with the transpose
    that JAX derives; inpainting and average pooling need one iteration. With noise_std 0, y must lie in the range of A.
    The paper's experiments without noise multiply the gradient by r^2: pass that as `scale`.

    Args:
      operator: [B, ...] -> the shape of y, A x0 plus an optional constant, one example at a time.
      y: [B, ...] the measurement.
      noise_std: [] or [B], the standard deviation of the measurement noise, may be traced.
      data_std: [] or [B], the standard deviation of the data; 1 in the paper.
      scale: [] or [B], may be traced, or a function of the level; 0 changes no bit.
      tolerance: relative residual at which the conjugate gradients stop.
      max_iterations: the largest number of iterations.

    Raises:
      ValueError: if noise_std (not traced) is negative or data_std is not positive; when called, if the operator is not
        linear or does not map x0 to y's shape, or a level (not traced) is pure noise (alpha = 0), or clean (sigma = 0)
        with noise_std 0.

    >>> from diffusers_fn.oracles import gaussian
    >>> known = pigdm(lambda x: x[:, :1], jnp.array([[2.0]]), noise_std=1.0)(gaussian(0.0, 1.0))
    >>> known(jnp.zeros((1, 2)), Level(0.8, 0.6, 0.0)).x0.round(4)  # E[x0 | x, y] = 2 * 0.36 / 1.36
    Array([[0.5294, 0.    ]], dtype=float32)
    """
    _check_positive("data_std", data_std)
    if (known := concrete(noise_std)) is not None and np.any(known < 0):
        raise ValueError(f"noise_std must not be negative; got {noise_std}")

    def transform(denoise: Denoiser) -> Denoiser:
        def guided(x: jax.Array, level: Level, cond: Any = None) -> Prediction:
            def x0_hat(x: jax.Array) -> tuple[jax.Array, Prediction]:
                prediction = denoise(x, level, cond)
                return prediction.x0, prediction

            exact, clean = concrete(noise_std), concrete(level.sigma)
            if exact is not None and clean is not None and np.any((exact == 0) & (clean == 0)):
                raise ValueError("at sigma = 0 pigdm needs noise_std > 0: the guided eps is infinite for exact y")
            x0, pullback, prediction = jax.vjp(x0_hat, x, has_aux=True)
            _check_shape(operator, x0, y)
            transpose = _transpose(operator, x0, y)
            alpha, sigma, d = (expand(a, x0) for a in (level.alpha, level.sigma, data_std))
            r2 = (d * sigma) ** 2 / ((alpha * d) ** 2 + sigma**2)
            total = r2 + expand(noise_std, x0) ** 2  # divides the system, which then has a limit at sigma = 0
            share = (r2 / total).reshape((-1,) + (1,) * (y.ndim - 1))
            residual = y.astype(x0.dtype) - operator(x0)
            offset = operator(jnp.zeros_like(x0))
            product = lambda u: share * (operator(transpose(u)) - offset) + (1 - share) * u  # noqa: E731
            u = conjugate_gradients(product, residual, tolerance=tolerance, max_iterations=max_iterations)
            (gradient,) = pullback(transpose(u) / total)
            return shift_by_gradient(prediction, gradient, scale_at(scale, level, x), level)

        return guided

    return transform


def average_pool(x: jax.Array, factor: int) -> jax.Array:
    """Returns the means of x over squares of factor x factor pixels, [B, H / factor, W / factor, C].

    Args:
      x: [B, H, W, C].
      factor: divides H and W.

    Raises:
      ValueError: unless x has four axes and factor divides H and W.

    >>> average_pool(jnp.arange(4.0).reshape(1, 2, 2, 1), 2).ravel()
    Array([1.5], dtype=float32)
    """
    if x.ndim != 4 or x.shape[1] % factor or x.shape[2] % factor:
        raise ValueError(f"x must be [B, H, W, C] with H and W multiples of {factor}; got shape {x.shape}")
    batch, height, width, channels = x.shape
    # One axis after the other, as mesh axes of type Explicit need it.
    squares = x.reshape(batch, height // factor, factor, width, channels)
    squares = squares.reshape(batch, height // factor, factor, width // factor, factor, channels)
    return jnp.mean(squares, axis=(2, 4))


def _check_positive(name: str, value: Any) -> None:
    known = concrete(value)
    if known is not None and not np.all(known > 0):
        raise ValueError(f"{name} must be positive; got {value}")


def _check_shape(operator: Operator, x0: jax.Array, y: jax.Array) -> None:
    shape = jax.eval_shape(operator, x0).shape
    if shape != y.shape:
        raise ValueError(
            f"the operator must map x0, of shape {x0.shape}, to the shape of y, {y.shape}; it returns {shape}"
        )


def _transpose(operator: Operator, x0: jax.Array, y: jax.Array) -> Operator:
    """A^T, which maps the shape of y to that of x0."""
    transpose = jax.linear_transpose(operator, jax.ShapeDtypeStruct(x0.shape, x0.dtype))
    apply = lambda u: transpose(u)[0]  # noqa: E731
    try:
        jax.eval_shape(apply, jax.ShapeDtypeStruct(y.shape, x0.dtype))
    except (NotImplementedError, AssertionError, TypeError) as error:
        raise ValueError("pigdm needs a linear operator, and this one is not linear: use dps") from error
    return apply
