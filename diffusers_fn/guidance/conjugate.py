"""Conjugate gradients for one small system an example, solved together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from diffusers_fn.guidance.predictions import inner


def conjugate_gradients(
    product: Callable[[jax.Array], jax.Array], b: jax.Array, *, tolerance: float, max_iterations: int
) -> jax.Array:
    """Returns u with product(u) = b, where product is linear, symmetric, not negative, and keeps examples apart.

    Hestenes & Stiefel 1952, https://doi.org/10.6028/jres.049.044, section 3. An example stops where its residual is
    `tolerance` of b's norm; gradients pass through the equation, not through the iterations.

    Args:
      product: [B, ...] -> [B, ...].
      b: [B, ...].

    >>> conjugate_gradients(lambda u: 2 * u, jnp.ones((1, 2)), tolerance=1e-6, max_iterations=5)
    Array([[0.5, 0.5]], dtype=float32)
    """

    def solve(product: Callable[[jax.Array], jax.Array], b: jax.Array) -> jax.Array:
        enough = tolerance**2 * inner(b, b)

        def body(state: Any) -> Any:
            i, u, residual, direction, square = state
            image = product(direction)
            curvature = inner(direction, image)
            step = jnp.where(
                (square > enough) & (curvature > 0), square / jnp.where(curvature > 0, curvature, 1.0), 0.0
            )
            u, residual = u + step * direction, residual - step * image
            new = inner(residual, residual)
            direction = residual + new / jnp.where(square > 0, square, 1.0) * direction
            return i + 1, u, residual, direction, jnp.where(step > 0, new, 0.0)  # an example that stops is done

        def unfinished(state: Any) -> jax.Array:
            return (state[0] < max_iterations) & jnp.any(state[-1] > enough)

        start = (0, jnp.zeros_like(b), b, b, inner(b, b))
        return jax.lax.while_loop(unfinished, body, start)[1]

    return jax.lax.custom_linear_solve(product, b, solve, symmetric=True)
