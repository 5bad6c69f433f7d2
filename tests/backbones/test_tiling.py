"""Tiles: exact for local functions, blended by hand-made weights, in the memory of a tile."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusers_fn.backbones import AutoencoderKL, blocks, tiling
from diffusers_fn.backbones.ops.conv import conv2d

tiled = tiling.tiled


@pytest.fixture
def x():
    return jnp.asarray(np.random.default_rng(0).standard_normal([2, 22, 13, 3]), jnp.float32)


@pytest.mark.parametrize(("tile", "overlap"), [(8, 3), (8, 0), (8, 7), (13, 4), (50, 10), (1, 0)])
def test_functions_of_one_pixel_are_exact(x, tile, overlap):
    out = jax.jit(lambda x: tiled(jnp.tanh, x, tile=tile, overlap=overlap))(x)
    np.testing.assert_allclose(out, jnp.tanh(x), rtol=1e-6, atol=1e-6)


def test_outputs_may_be_larger_smaller_and_several(x):
    def function(x):
        return {"up": blocks.nearest(x), "same": x.sum(-1)}

    with pytest.raises(ValueError, match=r"function must return \[B, 16, 16, \.\.\.\] for a tile of 8 x 8"):
        tiled(function, x, tile=8, overlap=2, up=2)
    out = tiled(blocks.nearest, x, tile=8, overlap=2, up=2)
    np.testing.assert_allclose(out, blocks.nearest(x), atol=1e-6)
    even = x[:, :, :12]
    out = tiled(lambda x: (blocks.average_pool(x), blocks.average_pool(x)[..., 0]), even, tile=4, overlap=1, down=2)
    np.testing.assert_allclose(out[0], blocks.average_pool(even), atol=1e-6)
    np.testing.assert_allclose(out[1], blocks.average_pool(even)[..., 0], atol=1e-6)


def test_tiles_fade_into_each_other_linearly():
    # Tiles of 4 start at 0 and 2; each is filled with the number of its first pixel.
    x = jnp.arange(6.0).reshape(1, 1, 6, 1)
    out = tiled(lambda x: jnp.broadcast_to(x[:, :, :1], x.shape), x, tile=4, overlap=2)
    np.testing.assert_allclose(out[0, 0, :, 0], [0, 0, 0.25 * 2, 0.75 * 2, 2, 2], atol=1e-6)


def test_seams_of_a_convolution_fade_with_the_overlap():
    # Only the outermost pixels of a tile miss a part of their window. What they weigh falls with the overlap.
    x = jnp.asarray(np.random.default_rng(1).standard_normal([1, 64, 64, 1]), jnp.float32)
    kernel = jnp.asarray(np.random.default_rng(2).standard_normal([3, 3, 1, 1]), jnp.float32)

    def conv(x):
        return conv2d(x, kernel, stride=1, padding=(1, 1))

    errors = [np.abs(tiled(conv, x, tile=32, overlap=overlap) - conv(x)).max() for overlap in (0, 4, 16)]
    assert errors[0] > 1
    assert errors[1] < errors[0] / 2
    assert errors[2] < errors[1] / 2


def test_gradients_are_those_of_the_function(x):
    tiles = jax.grad(lambda x: jnp.sum(tiled(jnp.sin, x, tile=8, overlap=2) ** 2))(x)
    whole = jax.grad(lambda x: jnp.sum(jnp.sin(x) ** 2))(x)
    np.testing.assert_allclose(tiles, whole, atol=1e-5)


@pytest.mark.long
def test_an_autoencoder_needs_less_memory_in_tiles():
    net = AutoencoderKL(channels=8, channel_multipliers=(1, 1, 1), num_res_blocks=1, norm_groups=4, mid_attention=False)
    z = jnp.asarray(np.random.default_rng(0).standard_normal([1, 32, 32, 4]), jnp.float32)
    params = net.init(jax.random.key(0), jnp.zeros([1, 8, 8, 3]))["params"]

    def decode(z):
        return net.apply({"params": params}, z, method="decode")

    whole = jax.jit(decode).lower(z).compile()
    tiles = jax.jit(lambda z: tiled(decode, z, tile=8, overlap=2, up=4)).lower(z).compile()
    used = [compiled.memory_analysis().temp_size_in_bytes for compiled in (whole, tiles)]
    assert used[1] < used[0] / 2
    np.testing.assert_allclose(jax.jit(lambda z: tiled(decode, z, tile=32, overlap=8, up=4))(z), whole(z), atol=1e-4)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tile": 4, "overlap": 4}, r"overlap must lie in 0 \.\. tile - 1; got overlap=4, tile=4"),
        ({"tile": 4, "overlap": -1}, r"got overlap=-1"),
        ({"tile": 4, "overlap": 1, "down": 2}, r"multiples of down=2.*got \[2, 22, 13, 3\]"),
    ],
)
def test_misuse_is_explained(x, fields, message):
    with pytest.raises(ValueError, match=message):
        tiled(jnp.sin, x, **fields)
