"""The two ways of a U-Net, down and up, whatever its blocks are made of.

`res_block(h, width, name)` and `attention(h, name)` return new activations, and so do `halve(h, level, name)` and
`double(h, level, name)`, which lead from a level to the next. Their names follow one pattern in every network here:
down_0_block_1, down_0_attention_1, down_0_downsample, up_1_block_0, up_1_upsample.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

Block = Callable[[jax.Array, int, str], jax.Array]
Attend = Callable[[jax.Array, str], jax.Array]
Resample = Callable[[jax.Array, int, str], jax.Array]


def walk_down(
    h: jax.Array,
    widths: Sequence[int],
    attends: Sequence[bool],
    num_blocks: int,
    res_block: Block,
    attention: Attend,
    halve: Resample,
) -> list[jax.Array]:
    """Returns the activations to save, h first: after every block (and its attention) and every halving.

    >>> walk_down(0, [8, 8], [False, True], 1, lambda h, *_: h + 1, lambda h, _: h + 10, lambda h, *_: h + 100)
    [0, 1, 101, 112]
    """
    saved = [h]
    for level, width in enumerate(widths):
        for i in range(num_blocks):
            h = res_block(h, width, f"down_{level}_block_{i}")
            if attends[level]:
                h = attention(h, f"down_{level}_attention_{i}")
            saved.append(h)
        if level < len(widths) - 1:
            h = halve(h, level, f"down_{level}_downsample")
            saved.append(h)
    return saved


def walk_up(
    h: jax.Array,
    saved: Sequence[jax.Array],
    widths: Sequence[int],
    attends: Sequence[bool],
    num_blocks: int,
    res_block: Block,
    attention: Attend,
    double: Resample,
) -> jax.Array:
    """Returns the last activations; before every block h is joined with the last saved ones not yet used.

    There is one block a level more than on the way down.

    >>> h, saved = jnp.zeros([1, 4]), [jnp.zeros([1, 4])] * 2
    >>> walk_up(h, saved, [4], [False], 1, lambda h, width, _: h[:, :width] + 1, lambda h, _: h, lambda h, *_: h)
    Array([[2., 2., 2., 2.]], dtype=float32)
    """
    saved = list(saved)
    for level, width in reversed(list(enumerate(widths))):
        for i in range(num_blocks + 1):
            h = res_block(jnp.concatenate([h, saved.pop()], axis=-1), width, f"up_{level}_block_{i}")
            if attends[level]:
                h = attention(h, f"up_{level}_attention_{i}")
        if level > 0:
            h = double(h, level, f"up_{level}_upsample")
    return h
