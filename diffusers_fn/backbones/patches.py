"""Images as tokens: patches of P x P pixels, taken row by row, and their positions.

Images are [B, H, W, C], tokens [B, L, D]: batch size B, L tokens of D features.
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from diffusers_fn.backbones import ops
from diffusers_fn.backbones.blocks import tiles, untiled

__all__ = ["PatchEmbed", "patchify", "sincos_axes", "sincos_positions", "unpatchify"]


def patchify(x: jax.Array, patch_size: int) -> jax.Array:
    """Returns the patches of x [B, H, W, C] as tokens [B, (H / P) (W / P), P P C], each in the order row, column, C.

    Raises ValueError unless x is [B, H, W, C] and P divides H and W.

    >>> import jax.numpy as jnp
    >>> patchify(jnp.arange(16.0).reshape(1, 4, 4, 1), 2)[0, 1].tolist()
    [2.0, 3.0, 6.0, 7.0]
    """
    patches = _patches(x, patch_size)
    return patches.reshape(*patches.shape[:2], -1)


def unpatchify(tokens: jax.Array, patch_size: int, height: int, width: int) -> jax.Array:
    """Returns the image [B, H, W, C] with these patches: the inverse of `patchify`.

    >>> import jax.numpy as jnp
    >>> x = jnp.arange(48.0).reshape(1, 4, 6, 2)
    >>> bool((unpatchify(patchify(x, 2), 2, 4, 6) == x).all())
    True
    """
    batch, rows, columns = tokens.shape[0], height // patch_size, width // patch_size
    x = tokens.reshape(batch, rows, columns, tokens.shape[-1]).reshape(batch, rows, columns, patch_size, patch_size, -1)
    return untiled(x.transpose(0, 1, 3, 2, 4, 5))


def sincos_positions(rows: int, columns: int, dim: int, stretch_to: tuple[float, float] | None = None) -> np.ndarray:
    """Returns fixed position features [rows columns, dim], float64, for a grid that is read row by row.

    With the frequencies omega_k = 10000 ** (-k / (dim / 4)), k = 0 .. dim / 4 - 1, the token at row i and column j
    has

        [sin(j omega), cos(j omega), sin(i omega), cos(i omega)]

    Vaswani et al., "Attention Is All You Need" (2017), https://arxiv.org/abs/1706.03762, section 3.5, for each axis,
    as He et al., "Masked Autoencoders Are Scalable Vision Learners" (2021), https://arxiv.org/abs/2111.06377, join
    them. With stretch_to=(a, b) the rows and columns lie evenly on [0, a) and [0, b) instead of at whole numbers.

    Raises ValueError unless 4 divides dim.

    >>> sincos_positions(2, 3, 8).shape
    (6, 8)
    """
    of_rows, of_columns = sincos_axes(rows, columns, dim, stretch_to)
    features = np.empty((rows, columns, dim))
    features[..., : dim // 2], features[..., dim // 2 :] = of_columns, of_rows[:, None]
    return features.reshape(rows * columns, dim)


def sincos_axes(
    rows: int, columns: int, dim: int, stretch_to: tuple[float, float] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the halves of `sincos_positions`: [rows, dim / 2] of the rows and [columns, dim / 2] of the columns.

    Raises ValueError unless 4 divides dim.
    """
    if dim < 4 or dim % 4:
        raise ValueError(f"the features of sin-cos positions must be a multiple of 4; got {dim}")
    omega = 1 / 10_000.0 ** (np.arange(dim // 4) / (dim / 4))
    ends = (rows, columns) if stretch_to is None else stretch_to
    angles = [(np.arange(n) * (end / n))[:, None] * omega for n, end in zip((rows, columns), ends)]
    of_rows, of_columns = (np.concatenate([np.sin(angle), np.cos(angle)], axis=-1) for angle in angles)
    return of_rows, of_columns


class PatchEmbed(ops.DenseGeneral):
    """Computes a linear map of every patch: x [B, H, W, C] -> tokens [B, (H / P) (W / P), features].

    It is the convolution with windows and strides of P = patch_size, with its kernel [P, P, C, features]. The kernel is
    drawn as that of a linear layer with P P C inputs.

    >>> import jax.numpy as jnp
    >>> patch = PatchEmbed(features=8, patch_size=2)
    >>> jax.eval_shape(patch.init_with_output, jax.random.key(0), jnp.ones([1, 4, 6, 3]))[0].shape
    (1, 6, 8)
    """

    axis: tuple[int, ...] = (-3, -2, -1)
    patch_size: int = 2

    def __call__(self, x: Any) -> jax.Array:
        return super().__call__(_patches(x, self.patch_size))


def _patches(x: jax.Array, patch_size: int) -> jax.Array:
    """Returns the patches of x [B, H, W, C] as [B, (H / P) (W / P), P, P, C]."""
    if x.ndim != 4:
        raise ValueError(f"x must have shape [B, H, W, C]; got {list(x.shape)}")
    batch, height, width, _ = x.shape
    if patch_size < 1 or height % patch_size or width % patch_size:
        raise ValueError(f"H and W must be multiples of patch_size={patch_size}; got {height} and {width}")
    x = tiles(x, patch_size).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(batch, (height // patch_size) * (width // patch_size), *x.shape[3:])
