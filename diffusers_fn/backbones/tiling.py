"""Applies a function to large images tile by tile, blended where the tiles overlap."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

__all__ = ["tiled"]


def __dir__() -> list[str]:
    return __all__


def tiled(
    function: Callable[[jax.Array], Any],
    x: jax.Array,
    *,
    tile: int,
    overlap: int,
    up: int = 1,
    down: int = 1,
) -> Any:
    """Returns function(x) for images or latents x [B, H, W, C], computed tile by tile in the memory of one tile.

    Along each axis, the result is a weighted sum over the tiles k,

        y = sum_k w_k function(x_k),      sum_k w_k = 1,

    where w_k rises and falls linearly over the overlap with its neighbours. All tiles have one size (the last one is
    moved back to end with the image), so that the function is compiled once and runs in a `jax.lax.scan`. An axis
    shorter than a tile is one tile. For a function that depends on all of its input (attention, group normalisation)
    the result differs from function(x), because each tile is processed alone.

    With an autoencoder of factor 8, in tiles of 64 latents:

        tiled(decode, z, tile=64, overlap=16, up=8)         tiled(encode, x, tile=64, overlap=16, down=8)

    Args:
      function: maps [B, h, w, C] to a pytree of [B, h up / down, w up / down, ...].
      tile, overlap: the size of a tile and the smallest overlap of neighbours, in units of `down` input pixels.
      up, down: the output has H up / down rows, and W likewise.

    Raises:
      ValueError: unless 0 <= overlap < tile, down divides H and W, and the function's outputs have the size that up
        and down determine.

    >>> x = jnp.arange(2 * 10 * 12.0).reshape(2, 10, 12, 1)
    >>> y = tiled(lambda x: 3 * x, x, tile=4, overlap=2)
    >>> bool(jnp.allclose(y, 3 * x, rtol=1e-6))
    True
    """
    if not 0 <= overlap < tile:
        raise ValueError(f"overlap must lie in 0 .. tile - 1; got overlap={overlap}, tile={tile}")
    if x.ndim != 4 or up < 1 or down < 1 or x.shape[1] % down or x.shape[2] % down:
        raise ValueError(
            f"x must have shape [B, H, W, C] with H and W multiples of down={down}, and up={up} and down must be at "
            f"least 1; got {list(x.shape)}"
        )
    sizes = x.shape[1] // down, x.shape[2] // down
    tiles = tuple(min(tile, size) for size in sizes)
    starts, weights = zip(*(_axis(size, length, overlap, up) for size, length in zip(sizes, tiles)))
    index = np.stack(np.meshgrid(np.arange(len(starts[0])), np.arange(len(starts[1])), indexing="ij"), -1).reshape(
        -1, 2
    )

    def cut(start: jax.Array) -> jax.Array:
        corner = (0, start[0] * down, start[1] * down, 0)
        return jax.lax.dynamic_slice(x, corner, (x.shape[0], tiles[0] * down, tiles[1] * down, x.shape[-1]))

    def canvas(out: jax.ShapeDtypeStruct) -> jax.Array:
        if out.ndim < 3 or out.shape[1:3] != (tiles[0] * up, tiles[1] * up):
            raise ValueError(
                f"function must return [B, {tiles[0] * up}, {tiles[1] * up}, ...] for a tile of "
                f"{tiles[0] * down} x {tiles[1] * down} (up={up}, down={down}); got {list(out.shape)}"
            )
        return jnp.zeros((out.shape[0], sizes[0] * up, sizes[1] * up, *out.shape[3:]), out.dtype)

    def add(canvases: Any, row: tuple[Any, ...]) -> tuple[Any, None]:
        start, row_weights, column_weights = row
        weight = row_weights[:, None] * column_weights[None, :]

        def place(whole: jax.Array, part: jax.Array) -> jax.Array:
            corner = (0, start[0] * up, start[1] * up) + (0,) * (part.ndim - 3)
            share = part * weight.astype(part.dtype).reshape(1, *weight.shape, *(1,) * (part.ndim - 3))
            before = jax.lax.dynamic_slice(whole, corner, part.shape)
            return jax.lax.dynamic_update_slice(whole, before + share, corner)

        return jax.tree.map(place, canvases, function(cut(start))), None

    corners = np.stack([starts[axis][index[:, axis]] for axis in range(2)], -1)
    start = jnp.asarray(corners, jnp.int32)
    canvases = jax.tree.map(canvas, jax.eval_shape(lambda: function(cut(start[0]))))
    rows = (start, *(jnp.asarray(weights[axis][index[:, axis]]) for axis in range(2)))
    return jax.lax.scan(add, canvases, rows)[0]


def _axis(size: int, tile: int, overlap: int, up: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the starts [K] of the tiles on an axis and their weights [K, tile up], which add to one everywhere."""
    starts = np.array([*range(0, size - tile, tile - overlap), size - tile])
    shares = np.zeros([len(starts), size * up])
    position = np.arange(tile * up) + 0.5
    for k, start in enumerate(starts):
        before = starts[k - 1] + tile - start if k > 0 else 0  # overlap with its neighbours
        after = start + tile - starts[k + 1] if k + 1 < len(starts) else 0
        rise = position / (before * up) if before else np.ones(tile * up)
        fall = position[::-1] / (after * up) if after else np.ones(tile * up)
        shares[k, start * up : (start + tile) * up] = np.minimum(np.minimum(rise, fall), 1)
    shares /= shares.sum(0)
    return starts, np.stack([shares[k, start * up : (start + tile) * up] for k, start in enumerate(starts)])
