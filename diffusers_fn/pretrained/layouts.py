"""Layouts shared by several families: 1x1 convolutions as dense layers, and self-attention."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from diffusers_fn.pretrained.entries import Entry, norm, same

__all__ = ["heads_out", "joint_attention", "joint_qkv", "pointwise", "separate_qkv"]


def pointwise(path: str, name: str, *, axes: int = 2, bias: bool = True) -> list[Entry]:
    """Returns the entries of an nn.Dense at `path`, made from a convolution [out, in, 1, ...] with `axes` ones.

    >>> pointwise("skip", "shortcut")[0].to_linen(np.zeros([5, 3, 1, 1])).shape
    (3, 5)
    """

    def to_linen(a: np.ndarray) -> np.ndarray:
        return a.reshape(a.shape[:2]).T

    def to_torch(a: np.ndarray) -> tuple[np.ndarray, ...]:
        return (a.T.reshape(*a.T.shape, *[1] * axes),)

    kernel = Entry(f"{path}/kernel", (f"{name}.weight",), to_linen, to_torch)
    return [kernel, *(same(f"{path}/bias", f"{name}.bias") if bias else [])]


def joint_qkv(
    path: str, name: str, channels: int, heads: int, *, order: str, axes: int = 1, bias: bool = True
) -> list[Entry]:
    """Returns the entries of a projection [C, 3, heads, head_dim], made from [3 C, C, 1, ...] with `axes` ones.

    `order` is the layout of the 3 C outputs, slowest axis first: "3" is query, key and value, "h" the head, "c" the
    channel within a head. It is "h3c" in guided-diffusion's first attention, "3hc" in its second and in DiT, "hc3" in
    EDM.

    >>> kernel, bias = joint_qkv("qkv", "qkv", 4, 2, order="hc3")
    >>> bias.to_linen(np.arange(12))[:, 0].tolist()  # the first head's queries, keys and values
    [[0, 3], [1, 4], [2, 5]]
    """
    sizes = {"3": 3, "h": heads, "c": channels // heads}
    split, to_ours = [sizes[letter] for letter in order], [order.index(letter) for letter in "3hc"]
    to_theirs = ["3hc".index(letter) for letter in order]

    def kernel_to_linen(a: np.ndarray) -> np.ndarray:
        return np.moveaxis(a.reshape(*split, channels).transpose(*to_ours, 3), 3, 0)

    def kernel_to_torch(a: np.ndarray) -> tuple[np.ndarray, ...]:
        flat = np.moveaxis(a, 0, 3).transpose(*to_theirs, 3)
        return (flat.reshape(3 * channels, channels, *[1] * axes),)

    def bias_to_linen(a: np.ndarray) -> np.ndarray:
        return a.reshape(split).transpose(to_ours)

    def bias_to_torch(a: np.ndarray) -> tuple[np.ndarray, ...]:
        return (a.transpose(to_theirs).reshape(3 * channels),)

    kernel = Entry(f"{path}/kernel", (f"{name}.weight",), kernel_to_linen, kernel_to_torch)
    return [kernel, *([Entry(f"{path}/bias", (f"{name}.bias",), bias_to_linen, bias_to_torch)] if bias else [])]


def separate_qkv(path: str, names: Sequence[str], heads: int, *, bias: bool = True) -> list[Entry]:
    """Returns the entries of a projection [C, 3, heads, head_dim], made from three linear layers [C, C].

    >>> kernel, bias = separate_qkv("qkv", ["to_q", "to_k", "to_v"], 2)
    >>> bias.names, kernel.to_linen(*[np.zeros([4, 4])] * 3).shape
    (('to_q.bias', 'to_k.bias', 'to_v.bias'), (4, 3, 2, 2))
    """

    def kernel_to_linen(*a: np.ndarray) -> np.ndarray:
        return np.stack([each.T for each in a], axis=1).reshape(a[0].shape[1], 3, heads, -1)

    def kernel_to_torch(a: np.ndarray) -> tuple[np.ndarray, ...]:
        return tuple(a[:, i].reshape(len(a), -1).T for i in range(3))

    def bias_to_linen(*a: np.ndarray) -> np.ndarray:
        return np.stack(a).reshape(3, heads, -1)

    def bias_to_torch(a: np.ndarray) -> tuple[np.ndarray, ...]:
        return tuple(each.reshape(-1) for each in a)

    weights, biases = ([f"{name}.{kind}" for name in names] for kind in ("weight", "bias"))
    kernel = Entry(f"{path}/kernel", tuple(weights), kernel_to_linen, kernel_to_torch)
    return [kernel, *([Entry(f"{path}/bias", tuple(biases), bias_to_linen, bias_to_torch)] if bias else [])]


def heads_out(path: str, name: str, heads: int, *, axes: int = 1) -> list[Entry]:
    """Returns the entries of an output projection [heads, head_dim, D], made from [D, C, 1, ...] with `axes` ones.

    >>> heads_out("out", "proj", 2, axes=0)[0].to_linen(np.zeros([5, 4])).shape
    (2, 2, 5)
    """

    def to_linen(a: np.ndarray) -> np.ndarray:
        return a.reshape(a.shape[:2]).T.reshape(heads, -1, len(a))

    def to_torch(a: np.ndarray) -> tuple[np.ndarray, ...]:
        flat = a.reshape(-1, a.shape[-1]).T
        return (flat.reshape(*flat.shape, *[1] * axes),)

    return [Entry(f"{path}/kernel", (f"{name}.weight",), to_linen, to_torch), *same(f"{path}/bias", f"{name}.bias")]


def joint_attention(
    path: str, names: tuple[str, str, str], channels: int, heads: int, *, order: str, axes: int = 1
) -> list[Entry]:
    """Returns the entries of `blocks.SelfAttention`; `names` are those of its norm, qkv and output projection.

    >>> [entry.path for entry in joint_attention("a", ("norm", "qkv", "proj"), 4, 2, order="h3c")][::3]
    ['a/norm/scale', 'a/qkv/bias']
    """
    found = [*norm(f"{path}/norm", names[0]), *heads_out(f"{path}/out", names[2], heads, axes=axes)]
    return found[:2] + joint_qkv(f"{path}/qkv", names[1], channels, heads, order=order, axes=axes) + found[2:]
