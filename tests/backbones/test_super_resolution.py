"""Conditioning on a smaller image: it is the network on joined channels, and the small image is interpolated."""

import jax
import jax.numpy as jnp
import nets
import numpy as np
import pytest

from diffusers_fn.backbones import SuperResolution, UNet

NET = UNet(
    out_channels=3,
    image_size=8,
    channels=8,
    channel_multipliers=(1,),
    num_res_blocks=1,
    attention_resolutions=(),
    num_classes=2,
    norm_groups=4,
    zero_init_output=False,
)
RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.standard_normal([2, 8, 8, 3]), jnp.float32)
LOW = jnp.asarray(RNG.standard_normal([2, 4, 4, 2]), jnp.float32)
T = jnp.array([3, 700])


def test_it_is_the_network_on_joined_channels():
    both = jnp.concatenate([X, jax.image.resize(LOW, [2, 8, 8, 2], "linear")], axis=-1)
    params, labels = nets.random_params(NET, both), jnp.array([1, 0])
    net = SuperResolution(NET)
    shapes = jax.eval_shape(net.init, jax.random.key(0), X, T, {"low_res": LOW, "cond": labels})["params"]
    assert nets.structure(shapes) == nets.structure({"net": params})
    for cond in (labels, None):
        out = net.apply({"params": {"net": params}}, X, T, {"low_res": LOW, "cond": cond})
        np.testing.assert_array_equal(out, NET.apply({"params": params}, both, T, cond))


def test_training_reaches_the_network():
    net = SuperResolution(NET.clone(dropout=0.5))
    params, cond = nets.random_params(NET, jnp.zeros([2, 8, 8, 5])), {"low_res": LOW}
    out = net.apply({"params": {"net": params}}, X, T, cond)
    noisy = net.apply({"params": {"net": params}}, X, T, cond, train=True, rngs={"dropout": nets.quick_key(0)})
    assert nets.relative_rms(noisy, out) > 0.01


@pytest.mark.parametrize(
    ("net", "cond", "message"),
    [
        (NET.clone(out_channels=None), {"low_res": LOW}, r"the out_channels of net must be set"),
        (NET, None, r'cond must be a dict with "low_res" and .*; got NoneType'),
        (NET, {"cond": 1}, r"cond must be a dict .*; got \['cond'\]"),
        (NET, {"low_res": LOW, "label": 1}, r"cond must be a dict .*; got \['label', 'low_res'\]"),
        (NET, {"low_res": LOW[:1]}, r"\[B, h, w, D\]; got \[2, 8, 8, 3\] and \[1, 4, 4, 2\]"),
    ],
)
def test_misuse_is_explained(net, cond, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda: SuperResolution(net).init(jax.random.key(0), X, T, cond))
