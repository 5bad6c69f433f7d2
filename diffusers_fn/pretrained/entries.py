"""Which tensors of a torch checkpoint are which linen parameters, and in which layout: both ways, exactly.

Torch keeps a linear layer as [out, in] and a convolution as [out, in, *window]; linen has [in, out] and
[*window, in, out]. Every layout here is a permutation of numbers, so that loading and saving lose no bit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class Entry(NamedTuple):
    """One linen parameter and the tensors that it is made of.

    Attributes:
      path: of the parameter in the module's params, "down_0/conv/kernel".
      names: of the tensors in the checkpoint; more than one where linen keeps them stacked.
      to_linen: the tensors -> the parameter.
      to_torch: the parameter -> a tuple of the tensors, the inverse.
    """

    path: str
    names: tuple[str, ...]
    to_linen: Callable[..., np.ndarray]
    to_torch: Callable[[np.ndarray], tuple[np.ndarray, ...]]


def same(path: str, name: str) -> list[Entry]:
    """A tensor that both keep alike, e.g. a bias, a table of embeddings or of positions.

    >>> same("table/embedding", "emb.weight")[0].names
    ('emb.weight',)
    """
    return [Entry(path, (name,), lambda a: a, lambda a: (a,))]


def linear(path: str, name: str, *, bias: bool = True) -> list[Entry]:
    """nn.Dense at `path` from nn.Linear at `name`.

    >>> [entry.path for entry in linear("out", "proj")]
    ['out/kernel', 'out/bias']
    """
    kernel = Entry(f"{path}/kernel", (f"{name}.weight",), lambda a: a.T, lambda a: (a.T,))
    return [kernel, *(same(f"{path}/bias", f"{name}.bias") if bias else [])]


def conv(path: str, name: str, *, bias: bool = True) -> list[Entry]:
    """A convolution over one, two or three axes.

    >>> entry = conv("conv_in", "conv_in", bias=False)[0]
    >>> entry.to_linen(np.zeros((5, 3, 1, 2))).shape, entry.to_torch(np.zeros((1, 2, 3, 5)))[0].shape
    ((1, 2, 3, 5), (5, 3, 1, 2))
    """

    def to_linen(a: np.ndarray) -> np.ndarray:
        return np.moveaxis(a, (0, 1), (-1, -2))

    def to_torch(a: np.ndarray) -> tuple[np.ndarray, ...]:
        return (np.moveaxis(a, (-1, -2), (0, 1)),)

    kernel = Entry(f"{path}/kernel", (f"{name}.weight",), to_linen, to_torch)
    return [kernel, *(same(f"{path}/bias", f"{name}.bias") if bias else [])]


def norm(path: str, name: str) -> list[Entry]:
    """A group or layer normalisation with scale and bias.

    >>> [(entry.path, entry.names) for entry in norm("norm", "norm1")]
    [('norm/scale', ('norm1.weight',)), ('norm/bias', ('norm1.bias',))]
    """
    return [*same(f"{path}/scale", f"{name}.weight"), *same(f"{path}/bias", f"{name}.bias")]
