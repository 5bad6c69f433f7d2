"""Minimal filtering (Winograd): 3x3 convolutions with a third of the multiplications.

m values of a correlation with 3 taps g need m + 2 products: y = A^T ((G g) * (B^T d)), with d the m + 2 values that
they read (Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", 2015, https://arxiv.org/abs/1509.09308,
eq. 6). Here tiles of 4 rows by 2 columns take 6 x 4 products instead of 72, each a matrix product over the channels.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

__all__ = ["TILE", "winograd"]

# Numbers that the products of a chunk read and write, so that they fit a cache, and the fewest rows of a product.
_CHUNK = 2**17
_ROWS = 256


def _minimal_filter(points: Sequence[float]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns (A^T [m, n], G [n, 3], B^T [n, n]) for m = n - 2 values, from n - 1 points and infinity.

    By Cook and Toom: the correlation is the transpose of a product of polynomials, which is evaluated at the points
    and interpolated.
    """
    n = len(points) + 1
    others = [[q for q in points if q != p] for p in points]
    norms = [np.prod(np.subtract(p, rest)) for p, rest in zip(points, others)]
    polynomials = [*(np.poly(rest) for rest in others), np.poly(points)]
    lagrange = np.array([np.pad(polynomial[::-1], (0, n - len(polynomial))) for polynomial in polynomials])

    def powers(width: int) -> np.ndarray:  # of each point; of infinity the highest alone
        return np.vstack([np.vander(points, width, increasing=True), np.eye(width)[-1]])

    return powers(n - 2).T, powers(3) / np.array([*norms, 1.0])[:, None], lagrange


# The points determine the rounding error: with these it is at most twice that of the plain sum, with the usual
# 0, 1, -1, 2, -2 up to five times. Barabasz et al., "Error Analysis and Improving the Accuracy of Winograd Convolution
# for Deep Neural Networks" (2018), https://arxiv.org/abs/1803.10986.
_ROW_FILTER = _minimal_filter((0, 2 / 3, -2 / 3, 3 / 2, -3 / 2))
_COLUMN_FILTER = _minimal_filter((0, 1, -1))
TILE = (4, 2)


def winograd(x: jax.Array, kernel: jax.Array, *, padding: Sequence[tuple[int, int]]) -> jax.Array:
    """Returns the convolution of x [B, H, W, C] with a kernel [3, 3, C, D] at stride 1: [B, H', W', D].

    padding: zeros (before, after) each axis. Images, or bands of rows of large images, are processed in chunks that fit
    a cache. In float32 the rounding error is about twice that of the plain sum.

    >>> x, kernel = jnp.ones([1, 5, 5, 2]), jnp.ones([3, 3, 2, 1])
    >>> winograd(x, kernel, padding=((1, 1), (1, 1)))[0, :3, :3, 0].round(4).tolist()
    [[8.0, 12.0, 12.0], [12.0, 18.0, 18.0], [12.0, 18.0, 18.0]]
    """
    batch, height, width, channels = x.shape
    out_height, out_width = (side + sum(zeros) - 2 for side, zeros in zip((height, width), padding))
    tall, wide = -(-out_height // TILE[0]), -(-out_width // TILE[1])
    most = max(_CHUNK // (channels + kernel.shape[-1]), _ROWS)  # tiles in a chunk
    images, band = _even_parts(batch, most // (tall * wide)), _even_parts(tall, most // wide)
    tall = -(-tall // band) * band
    (above, _), (left, _) = padding
    rows = (above, TILE[0] * (tall + 1) - height - above)
    columns = (left, TILE[1] * (wide + 1) - width - left)
    chunks = x if images is batch else jnp.pad(x, ((0, -batch % images), (0, 0), (0, 0), (0, 0)))
    if band < tall:
        chunks = _bands(jnp.pad(x, ((0, 0), rows, (0, 0), (0, 0))), band)
        rows = (0, 0)

    def of_chunk(images: jax.Array, transformed: jax.Array) -> jax.Array:
        return _of_tiles(jnp.pad(images, ((0, 0), rows, columns, (0, 0))), transformed)

    transformed = _of_kernel(kernel)
    if chunks.shape[0] == images:
        y = of_chunk(chunks, transformed)
    else:
        one = jax.checkpoint(of_chunk, prevent_cse=False)
        chunks = chunks.reshape(-1, images, *chunks.shape[1:])
        _, y = lax.scan(lambda _, chunk: (None, one(chunk, transformed)), None, chunks)
    y = y.reshape(-1, TILE[0] * tall, TILE[1] * wide, kernel.shape[-1])
    return y[:batch, :out_height, :out_width]


def _of_kernel(kernel: jax.Array) -> jax.Array:
    """Returns G g G^T of a kernel [3, 3, C, D]: [4 * 6, C, D], columns first as in `_of_tiles`."""
    both = np.einsum("ra,cb->crab", _ROW_FILTER[1], _COLUMN_FILTER[1]).reshape(24, 9)
    return (jnp.asarray(both, kernel.dtype) @ kernel.reshape(9, -1)).reshape(24, *kernel.shape[2:])


def _of_tiles(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Returns the convolution of padded images [N, 4 h + 4, 2 w + 2, C] with a transformed kernel: [N, 4 h, 2 w, D].

    Axes that an operation treats alike are joined, because many short loops take long to compile.
    """
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height, width * channels)
    rows = jnp.stack(_combined(_ROW_FILTER[2], _overlapping(x, TILE[0])))  # [6, N, h, (2 w + 2) C]
    rows = rows.reshape(-1, width, channels)
    tiles = jnp.stack(_combined(_COLUMN_FILTER[2], _overlapping(rows, TILE[1])))  # [4, 6 N h, w, C]
    products = jnp.einsum("jtc,jcd->jtd", tiles.reshape(24, -1, channels), kernel)
    products = products.reshape(4, -1, kernel.shape[-1])
    columns = jnp.stack(_combined(_COLUMN_FILTER[0], _unstack(products, 0)), axis=1)  # [6 N h w, 2, D]
    columns = columns.reshape(6, batch * (height // TILE[0] - 1), -1)
    y = jnp.stack(_combined(_ROW_FILTER[0], _unstack(columns, 0)), axis=1)  # [N h, 4, 2 w D]
    return y.reshape(batch, height - TILE[0], width - TILE[1], -1)


def _combined(matrix: np.ndarray, arrays: Sequence[jax.Array]) -> list[jax.Array]:
    """Returns one linear combination of arrays for each row of a matrix, without the terms that are zero."""
    dtype = arrays[0].dtype
    terms = lambda row: [a if c == 1 else a * jnp.asarray(c, dtype) for c, a in zip(row, arrays) if c]  # noqa: E731
    return [functools.reduce(jnp.add, terms(row)) for row in matrix]


def _overlapping(x: jax.Array, tile: int) -> list[jax.Array]:
    """Returns value 0, 1, .. tile + 1 of every tile along axis 1: tile + 2 arrays; neighbours share two values."""
    values = _unstack(x.reshape(x.shape[0], -1, tile, x.shape[-1]), 2)
    return [value[:, :-1] for value in values] + [value[:, 1:] for value in values[:2]]


def _unstack(x: jax.Array, axis: int) -> list[jax.Array]:
    """Returns x[..., i, ...] for every i of an axis. Its transpose is one concatenation."""
    return [jnp.squeeze(part, axis) for part in lax.split(x, [1] * x.shape[axis], axis=axis)]


def _bands(x: jax.Array, band: int) -> jax.Array:
    """Returns bands of rows of tiles with the next row: [B, 4 h + 4, W, C] -> [B h / band, 4 band + 4, W, C]."""
    batch, height, width, channels = x.shape
    tiles = x.reshape(batch, height // TILE[0], TILE[0], width, channels)
    own = tiles[:, :-1].reshape(batch, -1, band, *tiles.shape[2:])
    following = tiles[:, band::band, None]
    return jnp.concatenate([own, following], axis=2).reshape(-1, TILE[0] * (band + 1), width, channels)


def _even_parts(number: int, bound: int) -> int:
    """Returns the size of the parts, at most `bound`, if a number is split into the fewest equal parts (rounded up).

    A number that is a symbol of `jax.export` is not split, or into ones if the bound is less than 2.

    >>> _even_parts(37, 32), _even_parts(8, 0)
    (19, 1)
    """
    if bound < 2 or not isinstance(number, int):
        return 1 if bound < 2 else number
    return -(-number // -(-number // bound))
