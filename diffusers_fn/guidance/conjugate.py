"""Conjugate gradients for a batch of small linear systems, one per example."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from diffusers_fn.guidance.predictions import inner_product

__all__ = ["conjugate_gradients"]


def conjugate_gradients(
    product: Callable[[jax.Array], jax.Array], b: jax.Array, *, tolerance: float, max_iterations: int
) -> jax.Array:
    """Returns u [B, ...] with product(u) = b, for a symmetric positive semidefinite linear map per example.

    Hestenes & Stiefel, "Methods of Conjugate Gradients for Solving Linear Systems", 1952,
    https://doi.org/10.6028/jres.049.044, section 3. Gradients are those of the equation, not of the iterations.

    Args:
      product: [B, ...] -> [B, ...], the linear map; no example may depend on another.
      b: [B, ...].
      tolerance: an example is solved once its residual is below tolerance times the norm of its b.
      max_iterations: the iterations end after this number even if some examples are not solved.

    >>> conjugate_gradients(lambda u: 2 * u, jnp.ones((1, 2)), tolerance=1e-6, max_iterations=5)
    Array([[0.5, 0.5]], dtype=float32)
    """

    def solve(product: Callable[[jax.Array], jax.Array], b: jax.Array) -> jax.Array:
        allowed = tolerance**2 * inner_product(b, b)

        def body(state: Any) -> Any:
            i, u, residual, direction, square = state
            image = product(direction)
            curvature = inner_product(direction, image)
            step = jnp.where(
                (square > allowed) & (curvature > 0), square / jnp.where(curvature > 0, curvature, 1.0), 0.0
            )
            u, residual = u + step * direction, residual - step * image
            new = inner_product(residual, residual)
            direction = residual + new / jnp.where(square > 0, square, 1.0) * direction
            return i + 1, u, residual, direction, jnp.where(step > 0, new, 0.0)  # solved examples stay

        def unfinished(state: Any) -> jax.Array:
            return (state[0] < max_iterations) & jnp.any(state[-1] > allowed)

        start = (0, jnp.zeros_like(b), b, b, inner_product(b, b))
        return jax.lax.while_loop(unfinished, body, start)[1]

    return jax.lax.custom_linear_solve(product, b, solve, symmetric=True)
