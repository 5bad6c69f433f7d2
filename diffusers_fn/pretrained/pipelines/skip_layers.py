"""Skip-layer guidance: away from what the network predicts without some of its blocks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from diffusers_fn.denoisers import Denoiser
from diffusers_fn.levels import Level
from diffusers_fn.pretrained.schedulers import Plan

__all__ = ["SkipLayers", "skip_layer_guidance"]


class SkipLayers(NamedTuple):
    """Blocks, scale and steps of skip-layer guidance; the defaults are those published for Stable Diffusion 3.5.

    Hyung et al., "Spatiotemporal Skip Guidance for Enhanced Video Diffusion Sampling", 2024,
    https://arxiv.org/abs/2411.18664, describe the same rule for video.

    Attributes:
      blocks: numbers of the transformer's blocks.
      scale: [], of the difference; may be traced.
      start, end: it acts between these shares of the steps.
    """

    blocks: Sequence[int]
    scale: Any = 2.8
    start: float = 0.01
    end: float = 0.2


def skip_layer_guidance(guided: Denoiser, whole: Denoiser, short: Denoiser, skip: SkipLayers, plan: Plan) -> Denoiser:
    """Returns the denoiser guided + scale (whole - short) at the steps start N < i < end N of N, elsewhere `guided`.

    Args:
      guided: after guidance by the text.
      whole, short: the network with the text, and the same without the blocks.
      skip: scale and steps.
      plan: whose steps they are.

    Raises:
      ValueError: if start and end are not in order.
    """
    if not 0 <= skip.start <= skip.end <= 1:
        raise ValueError(f"skip_layers must have 0 <= start <= end <= 1; got {skip.start} and {skip.end}")
    timesteps, num = plan.timesteps, len(plan.timesteps)
    on = [i for i in range(num) if num * skip.start < i < num * skip.end]
    if not on:
        return guided
    first, last = timesteps[on[0]], timesteps[on[-1]]

    def denoise(x: jax.Array, level: Level, cond: Any = None) -> Any:
        def pushed(prediction: Any) -> Any:
            pairs = whole(x, level, cond), short(x, level, cond)
            return jax.tree.map(lambda out, a, b: out + skip.scale * (a - b), prediction, *pairs)

        acts = jnp.all((level.t <= first) & (level.t >= last))
        return jax.lax.cond(acts, pushed, lambda prediction: prediction, guided(x, level, cond))

    return denoise
