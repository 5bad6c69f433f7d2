"""ControlNet: steers the text-conditioned U-Net by an image such as edges, depths or poses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from diffusers_fn.backbones import blocks, conditions, embeddings, ops
from diffusers_fn.backbones.text_conditioned import TextConditioned

__all__ = ["ConditionEncoder", "ControlNet", "scaled_residuals"]


class ControlNet(TextConditioned):
    """Computes residuals of a `UNet2DCondition` from x [B, H, W, C], labels t [] or [B], a text and an image.

    The way down and the middle of such a U-Net, whose input is conv_in(x) plus features of the image; each activation
    that the way down saves, and the middle's output, pass a 1x1 convolution that starts at zero. Zhang et al., "Adding
    Conditional Control to Text-to-Image Diffusion Models" (2023), https://arxiv.org/abs/2302.05543, section 3. `sd1()`
    and `sdxl()` are published sizes.

    The output is {"down_residuals": a list, "mid_residual": an array}: entries of the U-Net's `cond`. Their strength is
    a factor, see `scaled_residuals`:

        residuals = controlnet.apply(control_variables, x, t, cond | {"image": edges})
        out = unet.apply(variables, x, t, cond | scaled_residuals(residuals, strength))

    `cond` is a dict of arrays as for `UNet2DCondition`, without residuals and with
      image [B, f H, f W, condition_channels]: required, in [0, 1], with f = 2 ** (len(condition_widths) - 1).

    train=True turns on dropout, which draws from the rng collection "dropout".

    Fields: as those of `UNet2DCondition`, and
      condition_channels: channels of the image.
      condition_widths: channels of the image's features, at each resolution from that of the image.

    Raises ValueError for fields that contradict each other and inputs that do not fit; the message names them.

    >>> net = ControlNet(channels=8, channel_multipliers=(1, 2), transformer_depths=(1, 0), num_heads=2,
    ...                  context_dim=6, norm_groups=4, condition_widths=(4, 8))
    >>> args = jnp.zeros([2, 8, 8, 4]), 7, {"context": jnp.zeros([2, 3, 6]), "image": jnp.zeros([2, 16, 16, 3])}
    >>> out = jax.eval_shape(net.init_with_output, jax.random.key(0), *args)[0]
    >>> len(out["down_residuals"]), out["mid_residual"].shape
    (6, (2, 4, 4, 16))
    """

    condition_channels: int = 3
    condition_widths: Sequence[int] = (16, 32, 96, 256)

    @classmethod
    def sd1(cls, **fields: Any) -> ControlNet:
        """Returns the ControlNet of Stable Diffusion 1, 361,279,120 parameters; fields replace its own.

        >>> ControlNet.sd1().context_dim
        768
        """
        return cls(**fields)

    @classmethod
    def sdxl(cls, **fields: Any) -> ControlNet:
        """Returns the ControlNet of Stable Diffusion XL, 1,251,014,160 parameters; fields replace its own.

        >>> ControlNet.sdxl().text_time_dims
        (256, 2816)
        """
        own: dict[str, Any] = {"channel_multipliers": (1, 2, 4), "transformer_depths": (0, 2, 10), "mid_depth": 10}
        own |= {"num_heads": (5, 10, 20), "context_dim": 2048, "linear_projection": True}
        return cls(**(own | {"text_time_dims": (256, 2816)} | fields))

    @nn.compact
    def __call__(
        self, x: jax.Array, t: jax.Array, cond: Mapping[str, Any] | None = None, *, train: bool = False
    ) -> dict[str, Any]:
        self._check(x)
        cond = conditions.checked(cond, self, x.shape[0], {"image": True})
        factor = 2 ** (len(self.condition_widths) - 1)
        image = (x.shape[0], factor * x.shape[1], factor * x.shape[2], self.condition_channels)
        conditions.check_shapes(cond, {"image": image})
        emb = self._embed(x, t, cond)
        context, mask = self._context(cond)

        h = self._conv(self.widths()[0], "conv_in")(x)
        encoder = ConditionEncoder(
            self.widths()[0], self.condition_widths, self.zero_init_output, name="condition", **self.types
        )
        h = h + blocks.rematerialised(encoder, self.remat)(cond["image"])
        saved = self._way_down(h, self._blocks(emb, context, mask, train))
        h = self._middle(saved[-1], emb, context, mask, train)
        down = [self._residual(h, f"down_residual_{i}", x) for i, h in enumerate(saved)]
        return {"down_residuals": down, "mid_residual": self._residual(h, "mid_residual", x)}

    def _residual(self, h: jax.Array, name: str, x: jax.Array) -> jax.Array:
        init = nn.initializers.zeros if self.zero_init_output else embeddings.dense_init
        h = ops.Dense(h.shape[-1], kernel_init=init, name=name, **self.types)(h)
        return h.astype(jnp.promote_types(x.dtype, jnp.float32))


class ConditionEncoder(ops.Module):
    """Computes features [B, H / f, W / f, features] of images [B, H, W, C]: convolutions with silu, f = 2 ** (K - 1).

    `widths` are the channels at each of the K resolutions. Zhang et al. (2023), section 3.2.

    >>> encoder = ConditionEncoder(features=8, widths=(4, 6))
    >>> jax.eval_shape(encoder.init_with_output, jax.random.key(0), jnp.ones([1, 8, 8, 3]))[0].shape
    (1, 4, 4, 8)
    """

    features: int
    widths: Sequence[int]
    zero_init: bool = True

    @nn.compact
    def __call__(self, image: jax.Array) -> jax.Array:
        def conv(h: Any, features: int, name: str, **fields: Any) -> Any:
            fields = {"kernel_init": embeddings.dense_init, "padding": 1, **fields}
            return ops.Conv(features, (3, 3), name=name, **fields, **self.types)(h)

        h = ops.silu(conv(image, self.widths[0], "conv_in"))
        for i, width in enumerate(self.widths[1:]):
            h = ops.silu(conv(h, self.widths[i], f"conv_{i}"))
            h = ops.silu(conv(h, width, f"downsample_{i}", strides=2))
        init = nn.initializers.zeros if self.zero_init else embeddings.dense_init
        return conv(h, self.features, "conv_out", kernel_init=init)


def scaled_residuals(
    residuals: Mapping[str, Any], strength: jax.Array | float, *, guess_mode: bool = False
) -> dict[str, Any]:
    """Returns the residuals of a `ControlNet` times their strength, a number [] or one per example [B].

    A strength of 0 turns it off, for some examples or some levels of noise. With guess_mode, residual k of n (those of
    the way down, then the middle's) is also multiplied by 10 ** (k / (n - 1) - 1), from 0.1 to 1: the deeper, the
    stronger, so that an image alone, without a text, is followed (Zhang et al. 2023, appendix). Published pipelines
    guide with such residuals on the prompt's half of the batch alone: a strength of 0 for the other half.

    Raises ValueError for a strength of another shape.

    >>> residuals = {"down_residuals": [jnp.ones([2, 1, 1, 1])], "mid_residual": jnp.ones([2, 1, 1, 1])}
    >>> scaled = scaled_residuals(residuals, jnp.array([0.0, 2.0]), guess_mode=True)
    >>> [h.ravel().round(3).tolist() for h in (*scaled["down_residuals"], scaled["mid_residual"])]
    [[0.0, 0.20000000298023224], [0.0, 2.0]]
    """
    arrays = [*residuals["down_residuals"], residuals["mid_residual"]]
    batch = arrays[0].shape[0]
    if jnp.shape(strength) not in ((), (batch,)):
        raise ValueError(f"strength must have shape [] or [{batch}]; got {list(jnp.shape(strength))}")
    factors = np.logspace(-1, 0, len(arrays)) if guess_mode else np.ones(len(arrays))

    def times(h: jax.Array, factor: float) -> jax.Array:
        scale = jnp.asarray(strength, h.dtype) * jnp.asarray(factor, h.dtype)
        return h * scale.reshape(*scale.shape, *[1] * (h.ndim - scale.ndim))

    *down, middle = map(times, arrays, factors)
    return {"down_residuals": down, "mid_residual": middle}
