"""Conditioning on a smaller image, for any network of images."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

__all__ = ["SuperResolution"]


class SuperResolution(nn.Module):
    """Computes net([x, enlarged low_res], t, rest of cond) for x [B, H, W, C] and cond["low_res"] [B, h, w, D].

    The small image is brought to H x W by linear interpolation and joined to x as further channels. Saharia et al.,
    "Image Super-Resolution via Iterative Refinement" (2021), https://arxiv.org/abs/2104.07636; Dhariwal and Nichol,
    "Diffusion Models Beat GANs on Image Synthesis" (2021), https://arxiv.org/abs/2105.05233, section 5.4 (upsampling
    stacks).

    cond is a dict of "low_res" and, optionally, "cond", which the network receives as its own. train and the rng
    collections are the network's.

    Fields:
      net: a network of images, such as `UNet`; its out_channels must be set, because it no longer follows x.

    Raises ValueError for a net or a cond that do not fit.

    >>> from diffusers_fn.backbones.unet import UNet
    >>> net = UNet(out_channels=3, image_size=8, channels=8, channel_multipliers=(1,), attention_resolutions=(),
    ...            norm_groups=4)
    >>> x, cond = jnp.zeros([2, 8, 8, 3]), {"low_res": jnp.zeros([2, 4, 4, 3])}
    >>> jax.eval_shape(SuperResolution(net).init_with_output, jax.random.key(0), x, 0, cond)[0].shape
    (2, 8, 8, 3)
    """

    net: nn.Module

    @nn.compact
    def __call__(self, x: jax.Array, t: jax.Array, cond: Mapping[str, Any], *, train: bool = False) -> jax.Array:
        if getattr(self.net, "out_channels", 0) is None:
            raise ValueError("the out_channels of net must be set: they cannot follow x, which gets further channels")
        if not isinstance(cond, Mapping) or "low_res" not in cond or set(cond) - {"low_res", "cond"}:
            given = sorted(cond) if isinstance(cond, Mapping) else type(cond).__name__
            raise ValueError(f'cond must be a dict with "low_res" and optionally "cond"; got {given}')
        low_res = jnp.asarray(cond["low_res"])
        if x.ndim != 4 or low_res.ndim != 4 or low_res.shape[0] != x.shape[0]:
            raise ValueError(
                f'x must have shape [B, H, W, C] and cond["low_res"] [B, h, w, D]; got {list(x.shape)} and '
                f"{list(low_res.shape)}"
            )
        shape = (*x.shape[:3], low_res.shape[-1])
        enlarged = jax.image.resize(low_res.astype(x.dtype), shape, "linear", antialias=False)
        return self.net(jnp.concatenate([x, enlarged], axis=-1), t, cond.get("cond"), train=train)
