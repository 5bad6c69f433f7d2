"""The way down and the way up of a U-Net, for any blocks.

    block(h, way, level, i)     block i of a level, and the attention after it if there is one; way is "down" or "up"
    downsample(h, level)        from a level to the next
    upsample(h, level)          from a level to the one before

`UNet`, `UNet1D`, `UNet2D`, `UNet2DCondition`, `SongUNet` and `DhariwalUNet` use both, `Classifier` and the encoder of
`AutoencoderKL` only the way down. The decoder of `AutoencoderKL` has no skip connections, so it has a loop of its own.

Parameters have the same names in all of them: down_0_block_1, down_0_attention_1, down_0_downsample, mid_block_0,
mid_attention, mid_block_1, up_1_block_0, up_1_attention_0, up_1_upsample.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

__all__ = ["walk_down", "walk_up"]

_Block = Callable[[jax.Array, str, int, int], jax.Array]
_Resample = Callable[[jax.Array, int], jax.Array]


def walk_down(h: jax.Array, num_blocks: Sequence[int], block: _Block, downsample: _Resample) -> list[jax.Array]:
    """Returns the activations to save, h first: after every block and every downsampling.

    num_blocks: blocks per level.

    >>> walk_down(0, [1, 1], lambda h, way, level, i: h + 1, lambda h, level: h + 100)
    [0, 1, 101, 102]
    """
    saved = [h]
    for level, count in enumerate(num_blocks):
        for i in range(count):
            saved.append(h := block(h, "down", level, i))
        if level < len(num_blocks) - 1:
            saved.append(h := downsample(h, level))
    return saved


def walk_up(
    h: jax.Array, saved: Sequence[jax.Array], num_blocks: Sequence[int], block: _Block, upsample: _Resample
) -> jax.Array:
    """Returns the last activations. Before every block, h is concatenated with the last saved ones not yet used.

    num_blocks: blocks per level of the way down; the way up has one more per level.

    >>> h, saved = jnp.zeros([1, 4]), [jnp.zeros([1, 4])] * 2
    >>> walk_up(h, saved, [1], lambda h, way, level, i: h[:, :4] + 1, lambda h, level: h)
    Array([[2., 2., 2., 2.]], dtype=float32)
    """
    saved = list(saved)
    for level, count in reversed(list(enumerate(num_blocks))):
        for i in range(count + 1):
            h = block(jnp.concatenate([h, saved.pop()], axis=-1), "up", level, i)
        if level > 0:
            h = upsample(h, level)
    return h
