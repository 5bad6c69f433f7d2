"""Layouts of UNet2DModel's blocks, and a check of its config, shared by `unet2d.py` and `ncsnpp.py`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diffusers_fn.pretrained.entries import Entry, conv, linear, norm
from diffusers_fn.pretrained.layouts import heads_out, pointwise, separate_qkv

__all__ = ["attention", "check_choice", "res_block"]


def check_choice(fields: Mapping[str, Any], name: str, allowed: tuple[Any, ...]) -> None:
    """Raises ValueError unless a field has an allowed value.

    >>> check_choice({"act_fn": "silu"}, "act_fn", ("silu", "relu"))
    """
    if fields[name] not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(str, allowed))}; got {fields[name]!r}")


def res_block(path: str, name: str, *, skip: bool) -> list[Entry]:
    """Returns the entries of `blocks.ResBlock` from a ResnetBlock2D; skip: its shortcut is a convolution.

    >>> res_block("a", "b", skip=True)[-1].names
    ('b.conv_shortcut.bias',)
    """
    found = [*norm(f"{path}/norm_0", f"{name}.norm1"), *conv(f"{path}/conv_0", f"{name}.conv1")]
    found += linear(f"{path}/emb", f"{name}.time_emb_proj")
    found += [*norm(f"{path}/norm_1", f"{name}.norm2"), *conv(f"{path}/conv_1", f"{name}.conv2")]
    return found + (pointwise(f"{path}/skip", f"{name}.conv_shortcut") if skip else [])


def attention(path: str, name: str, channels: int, head_dim: int | None, *, normalised: bool = True) -> list[Entry]:
    """Returns the entries of `blocks.SelfAttention` from an Attention with this number of channels.

    >>> attention("a", "b", 8, None)[-1].names
    ('b.to_out.0.bias',)
    """
    heads = 1 if head_dim is None else channels // head_dim
    found = norm(f"{path}/norm", f"{name}.group_norm") if normalised else []
    found += separate_qkv(f"{path}/qkv", [f"{name}.to_{letter}" for letter in "qkv"], heads)
    return found + heads_out(f"{path}/out", f"{name}.to_out.0", heads, axes=0)
