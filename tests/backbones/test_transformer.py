"""Patches, positions, attention and feed-forward against their definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusers_fn.backbones import patches, transformer
from diffusers_fn.backbones.ops.conv import conv2d


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_patches_are_read_row_by_row_and_come_back(rng):
    x = rng.standard_normal([2, 6, 9, 2])
    tokens = patches.patchify(jnp.asarray(x, jnp.float32), 3)
    expected = np.stack([x[:, i : i + 3, j : j + 3].reshape(2, -1) for i in (0, 3) for j in (0, 3, 6)], axis=1)
    np.testing.assert_array_equal(tokens, expected.astype(np.float32))
    np.testing.assert_array_equal(patches.unpatchify(tokens, 3, 6, 9), x.astype(np.float32))


def test_positions_follow_their_equation_column_first():
    table = patches.sincos_positions(3, 5, 16).reshape(3, 5, 16)
    omega = 10_000.0 ** (-np.arange(4) / 4)
    for i in range(3):
        for j in range(5):
            expected = np.concatenate([np.sin(j * omega), np.cos(j * omega), np.sin(i * omega), np.cos(i * omega)])
            np.testing.assert_allclose(table[i, j], expected, atol=1e-14)


def test_stretched_positions_interpolate_those_of_another_grid():
    coarse = patches.sincos_positions(4, 3, 8).reshape(4, 3, 8)
    fine = patches.sincos_positions(8, 6, 8, stretch_to=(4, 3)).reshape(8, 6, 8)
    np.testing.assert_allclose(fine[::2, ::2], coarse, atol=1e-14)


def test_patch_embedding_is_a_strided_convolution(rng):
    x = jnp.asarray(rng.standard_normal([2, 4, 6, 3]), jnp.float32)
    params = {"kernel": rng.standard_normal([2, 2, 3, 5]), "bias": rng.standard_normal(5)}
    params = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), params)
    out = patches.PatchEmbed(patch_size=2, features=5).apply({"params": params}, x)
    expected = conv2d(x, params["kernel"], stride=2, padding=(0, 0)) + params["bias"][None, None, None]
    np.testing.assert_allclose(out, expected.reshape(2, 6, 5), atol=1e-5)


def test_attention_is_softmax_of_scaled_products(rng):
    x = rng.standard_normal([2, 5, 8])
    kernel, bias = rng.standard_normal([8, 3, 2, 4]) / 3, rng.standard_normal([3, 2, 4])
    out_kernel, out_bias = rng.standard_normal([2, 4, 8]), rng.standard_normal(8)
    params = {"qkv": {"kernel": kernel, "bias": bias}, "out": {"kernel": out_kernel, "bias": out_bias}}
    query, key, value = np.einsum("bld,dkhc->kblhc", x, kernel) + bias[:, None, None]
    weights = np.exp(np.einsum("bqhc,bkhc->bhqk", query, key) / 2)  # sqrt of head_dim
    mixed = np.einsum("bhqk,bkhc->bqhc", weights / weights.sum(-1, keepdims=True), value)
    expected = np.einsum("bqhc,hcd->bqd", mixed, out_kernel) + out_bias
    params = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), params)
    out = transformer.Attention(num_heads=2).apply({"params": params}, jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-4)


def test_attention_takes_another_implementation():
    def mean_of_values(query, key, value):
        return jnp.broadcast_to(value.mean(1, keepdims=True), value.shape)

    attention = transformer.Attention(num_heads=2, qkv_bias=False, attention_fn=mean_of_values)
    variables = attention.init(jax.random.key(0), x := jnp.arange(40.0).reshape(1, 5, 8))
    assert "bias" not in variables["params"]["qkv"]
    out = attention.apply(variables, x)
    np.testing.assert_allclose(out, jnp.broadcast_to(out[:, :1], out.shape), rtol=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: patches.patchify(jnp.zeros([1, 4, 5, 1]), 2), "multiples of patch_size=2; got 4 and 5"),
        (lambda: patches.patchify(jnp.zeros([4, 4, 1]), 2), r"shape \[B, H, W, C\]; got \[4, 4, 1\]"),
        (lambda: patches.sincos_positions(2, 2, 6), "multiple of 4; got 6"),
        (
            lambda: transformer.Attention(num_heads=3).init(jax.random.key(0), jnp.zeros([1, 2, 8])),
            "num_heads must divide hidden_size; got num_heads=3, hidden_size=8",
        ),
    ],
)
def test_misuse_is_explained(call, message):
    with pytest.raises(ValueError, match=message):
        call()
