"""The classifier's own: exact sizes, the pools, misuse, and guidance by it."""

import jax
import jax.numpy as jnp
import nets
import numpy as np
import pytest

from diffusers_fn.backbones import Classifier
from diffusers_fn.backbones.classifier import AttentionPool

TINY = Classifier(
    num_classes=5,
    image_size=4,
    channels=8,
    channel_multipliers=(1, 2),
    num_res_blocks=1,
    attention_resolutions=(2,),
    head_dim=4,
    norm_groups=4,
    zero_init_output=False,
)
X = jnp.asarray(np.random.default_rng(0).standard_normal([2, 4, 4, 3]), jnp.float32)
T = jnp.array([3, 700])


@pytest.mark.long
@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"num_res_blocks": 4}, 65_438_568),  # the published one for 64 pixels
        ({"image_size": 256, "channel_multipliers": (1, 1, 2, 2, 4, 4)}, 54_096_360),  # and for 256
        ({}, 41_287_016),
        ({"pool": "adaptive"}, 40_465_768),
        ({"pool": "spatial"}, 50_129_256),
        ({"pool": "spatial_v2"}, 50_133_352),
    ],
)
def test_published_parameter_counts(fields, expected):
    net = Classifier(**fields)
    assert nets.count(net, jnp.zeros([1, net.image_size, net.image_size, 3])) == expected


@pytest.mark.parametrize("pool", ["adaptive", "spatial", "spatial_v2"])
def test_other_pools_take_every_size_that_halves(pool):
    net = TINY.clone(pool=pool, norm_groups=2)
    params = jax.eval_shape(net.init, jax.random.key(0), X, T)
    assert jax.eval_shape(net.apply, params, jnp.ones([3, 6, 8, 3]), jnp.zeros([3])).shape == (3, 5)


def test_the_attention_pool_is_one_query_more():
    """Written out with NumPy for one head."""
    pool, x = AttentionPool(features=5), X[:1, :2, :2]
    rng = np.random.default_rng(1)
    draw = lambda *shape: rng.standard_normal(shape)  # noqa: E731
    params = {
        "positions": draw(5, 3),
        "qkv": {"kernel": draw(3, 3, 1, 3), "bias": draw(3, 1, 3)},
        "out": {"kernel": draw(1, 3, 5), "bias": draw(5)},
    }
    pixels = np.asarray(x, np.float64).reshape(4, 3)
    z = np.concatenate([pixels.mean(0, keepdims=True), pixels]) + params["positions"]
    query, key, value = (z @ params["qkv"]["kernel"][:, i, 0] + params["qkv"]["bias"][i, 0] for i in range(3))
    weights = np.exp(query[0] @ key.T / np.sqrt(3))
    expected = weights @ value / weights.sum() @ params["out"]["kernel"][0] + params["out"]["bias"]
    out = pool.apply({"params": jax.tree.map(jnp.float32, params)}, x)
    np.testing.assert_allclose(out[0], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("fields", "x", "message"),
    [
        ({"pool": "max"}, X, r"pool must be one of adaptive, attention, spatial, spatial_v2; got 'max'"),
        ({}, jnp.zeros([2, 8, 8, 3]), r'with pool="attention" H and W must be image_size=4; got \(8, 8\)'),
        ({"pool": "adaptive"}, jnp.zeros([2, 3, 4, 3]), r"H and W must be multiples of 2 .*got \(3, 4\)"),
        ({"attention_resolutions": (3,)}, X, r"attention_resolutions among \[4, 2\]; got 4 and \(3,\)"),
        ({"num_classes": 0}, X, r"must be at least 1; got \(1, 2\), 1 and 0"),
        ({"dropout": 1.0}, X, r"dropout must lie in \[0, 1\); got 1.0"),
        ({"head_dim": 3}, X, r"head_dim must divide"),
        ({}, X[0], r"x must have shape \[B, H, W, C\]; got \[4, 4, 3\]"),
    ],
)
def test_misuse_is_explained(fields, x, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(TINY.clone(**fields).init, jax.random.key(0), x, T)
