"""Layers in a program exported for a batch of any size: on a CPU they compute what they compute for that size alone."""

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

from diffusers_fn.backbones.ops import attention, conv, platforms
from diffusers_fn.backbones.ops.dense import product

PLATFORMS = ("cpu", "cuda", "tpu")


def compiled_for_any_batch(function):
    """Returns function(*arrays), exported for arrays whose first axis is a symbol."""

    def call(*arrays):
        (batch,) = jax.export.symbolic_shape("batch")
        shapes = [jax.ShapeDtypeStruct((batch, *a.shape[1:]), a.dtype) for a in arrays]
        exported = jax.export.export(jax.jit(function), platforms=PLATFORMS)(*shapes)
        return exported, jax.jit(exported.call)

    return call


def random(*shape):
    return jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)


@pytest.mark.usefixtures("quick_runs")
@pytest.mark.parametrize(
    ("side", "channels", "features", "few"),
    [(8, 16, 16, 13), (16, 16, 24, 4), (8, 16, 3, 1), (8, 3, 16, 1)],
    ids=["winograd", "winograd of large images", "product first", "patches first"],
)
def test_convolutions(side, channels, features, few):
    kernel = random(3, 3, channels, features)
    run = lambda x: conv.conv2d(x, kernel)  # noqa: E731
    exported, call = compiled_for_any_batch(run)(random(1, side, side, channels))
    assert "stablehlo.convolution" in exported.mlir_module()  # for accelerators
    for batch in {1, max(few - 1, 1), few, 20}:
        x = random(batch, side, side, channels)
        np.testing.assert_array_equal(call(x), jax.jit(run)(x))


def test_bands_of_large_images(monkeypatch):
    monkeypatch.setattr("diffusers_fn.backbones.ops.winograd._CHUNK", 64)
    monkeypatch.setattr("diffusers_fn.backbones.ops.winograd._ROWS", 16)
    kernel = random(3, 3, 13, 13)
    _, call = compiled_for_any_batch(lambda x: conv.conv2d(x, kernel))(random(1, 26, 26, 13))
    for batch in (1, 3):
        x = random(batch, 26, 26, 13)
        wanted = conv.conv2d(x, kernel, native=True)
        np.testing.assert_allclose(call(x), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("quick_runs")
def test_attention_in_groups_of_heads(monkeypatch):
    monkeypatch.setattr(attention, "_LARGE", 6 * 5 * 5)  # 6 examples times heads
    _, call = compiled_for_any_batch(attention.dot_product_attention)(*3 * [random(1, 5, 4, 8)])
    for batch in (1, 2, 7):  # in one group, in two, head by head
        given = [scale * random(batch, 5, 4, 8) for scale in (1.0, 2.0, 3.0)]
        jax.clear_caches()
        np.testing.assert_array_equal(call(*given), jax.jit(attention.dot_product_attention)(*given))


def test_dense_layers():
    kernel = random(4, 3)
    exported, call = compiled_for_any_batch(lambda x: product(x, kernel))(random(1, 5, 4))
    assert "optimization_barrier" in exported.mlir_module()  # the way of a CPU
    x = random(6, 5, 4)
    np.testing.assert_allclose(call(x), x @ kernel, rtol=1e-5, atol=1e-6)


def test_other_axes_of_any_size_are_computed_in_the_default_way():
    (length,) = jax.export.symbolic_shape("length")
    run = lambda x: platforms.by_platform(x, cpu=jnp.negative, default=jnp.positive, like=x, kept=1)  # noqa: E731
    for shape, wanted in (((2, length), 1.0), ((length, 2), -1.0)):
        exported = jax.export.export(jax.jit(run))(jax.ShapeDtypeStruct(shape, jnp.float32))
        assert exported.call(np.ones((2, 2), np.float32)).ravel().tolist() == 4 * [wanted]
