"""Entries that map the tensors of a torch checkpoint to linen parameters and back, exactly.

A linear layer is [out, in] in torch and [in, out] in linen; a convolution is [out, in, *window] in torch and
[*window, in, out] in linen. Every layout here only permutes elements, so loading and saving are exact.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

__all__ = ["Entry", "conv", "linear", "norm", "same"]


class Entry(NamedTuple):
    """One linen parameter and the checkpoint's tensors from which it is made.

    Attributes:
      path: the parameter's path below "params", e.g. "down_0/conv/kernel".
      names: the names of its tensors in the checkpoint; several where linen stacks them in one parameter.
      to_linen: the tensors, in the order of `names` -> the parameter.
      to_torch: the parameter -> the tuple of tensors, the exact inverse of `to_linen`. It should return views
        (transposes, reshapes, slices).
    """

    path: str
    names: tuple[str, ...]
    to_linen: Callable[..., np.ndarray]
    to_torch: Callable[[np.ndarray], tuple[np.ndarray, ...]]


def same(path: str, name: str) -> list[Entry]:
    """Returns the entry of a tensor that has the same layout in both, e.g. a bias or a table of embeddings.

    >>> same("table/embedding", "emb.weight")[0].names
    ('emb.weight',)
    """
    return [Entry(path, (name,), lambda a: a, lambda a: (a,))]


def linear(path: str, name: str, *, bias: bool = True) -> list[Entry]:
    """Returns the entries of an nn.Dense at `path`, made from an nn.Linear at `name`.

    >>> [entry.path for entry in linear("out", "proj")]
    ['out/kernel', 'out/bias']
    """
    kernel = Entry(f"{path}/kernel", (f"{name}.weight",), lambda a: a.T, lambda a: (a.T,))
    return [kernel, *(same(f"{path}/bias", f"{name}.bias") if bias else [])]


def conv(path: str, name: str, *, bias: bool = True) -> list[Entry]:
    """Returns the entries of a convolution over one, two or three axes.

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
    """Returns the entries of a group or layer normalisation with scale and bias.

    >>> [(entry.path, entry.names) for entry in norm("norm", "norm1")]
    [('norm/scale', ('norm1.weight',)), ('norm/bias', ('norm1.bias',))]
    """
    return [*same(f"{path}/scale", f"{name}.weight"), *same(f"{path}/bias", f"{name}.bias")]
