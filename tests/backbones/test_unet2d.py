"""UNet2D: equality with UNet, published sizes, the effect of each field, labels."""

import dataclasses

import jax
import jax.numpy as jnp
import nets
import numpy as np
import pytest

from diffusers_fn.backbones import UNet, UNet2D

TINY = UNet2D(
    channels=8,
    channel_multipliers=(1, 2),
    num_res_blocks=1,
    down_attention=(False, True),
    up_attention=(False, True),
    norm_groups=4,
    zero_init_output=False,
)
X = jnp.asarray(np.random.default_rng(0).standard_normal([2, 4, 4, 3]), jnp.float32)
T = jnp.array([3, 700])


@pytest.mark.long
def test_it_equals_unet_with_the_same_fields():
    unet = UNet(
        image_size=4,
        channels=8,
        channel_multipliers=(1, 2),
        num_res_blocks=1,
        attention_resolutions=(2,),
        norm_groups=4,
        zero_init_output=False,
    )
    params = nets.random_params(unet, X)
    assert nets.structure(nets.random_params(TINY, X)) == nets.structure(params)
    outs = [jax.jit(net.apply)({"params": params}, X, T) for net in (unet, TINY)]
    np.testing.assert_allclose(*outs, atol=1e-5)


@pytest.mark.long
def test_published_parameter_counts():
    x = jnp.zeros([1, 32, 32, 3])
    assert nets.count(UNet2D(), x) == 35_746_307  # DDPM for CIFAR-10
    defaults = UNet2D(
        channels=224,
        channel_multipliers=(1, 2, 3, 4),
        down_attention=(False, True, True, True),
        up_attention=(False, True, True, True),
    )
    assert nets.count(defaults, x) == 274_056_163  # the reference's own defaults


CHANGES = {
    "in_channels": 4,
    "out_channels": 5,
    "channels": 16,
    "channel_multipliers": (1, 1),
    "num_res_blocks": 2,
    "down_attention": (True, True),
    "up_attention": False,
    "down_resample_block": True,
    "up_resample_block": (False, True),
    "middle": False,
    "mid_attention": False,
    "mid_divisor": 2.0,
    "mid_attention_groups": 8,
    "head_dim": 4,
    "embedding_dim": 16,
    "num_timesteps": 1000,
    "fourier_time": True,
    "num_classes": 3,
    "class_time": True,
    "class_vectors": True,
    "center_input": True,
    "activation": "mish",
    "scale_shift_norm": True,
    "dropout": 0.5,
    "learned_variance": True,
    "norm_groups": 2,
    "norm_eps": 0.1,
    "time_cos_first": True,
    "time_freq_shift": 0.0,
    "downsample_padding": (1, 1),
    "attention_fn": lambda q, k, v: jax.nn.dot_product_attention(q, k, v, scale=0.0),
}
ELSEWHERE = {"native_conv", "null_class", "zero_init_output", "remat", "dtype", "param_dtype"}  # below and in the laws


@pytest.fixture(scope="module")
def tiny():
    params = nets.random_params(TINY, X)
    return params, TINY.apply({"params": params}, X, T)


def test_every_field_has_a_change():
    assert set(CHANGES) | ELSEWHERE == {field.name for field in dataclasses.fields(UNet2D)} - {"parent", "name"}


@pytest.mark.long
@pytest.mark.parametrize("field", sorted(set(CHANGES) - {"in_channels"}))  # below
def test_every_field_changes_the_network(tiny, field):
    params, out = tiny
    net = TINY.clone(**{field: CHANGES[field]})
    cond = {"class_time": [5], "class_vectors": [jnp.ones([2, 32])]}.get(field, [])
    shapes = jax.eval_shape(net.init, jax.random.key(0), X, T, *cond)["params"]
    if nets.structure(shapes) == nets.structure(params):
        changed = net.apply({"params": params}, X, T, *cond, train=True, rngs={"dropout": nets.quick_key(0)})
        assert nets.relative_rms(changed, out) > 1e-4


def test_attention_and_blocks_are_where_they_should_be():
    net = UNet2D(
        channels=8,
        channel_multipliers=(1, 1, 1),
        num_res_blocks=1,
        down_attention=(True, False, False),
        up_attention=(False, True, False),
        down_resample_block=(False, True, False),
        up_resample_block=(False, False, True),
        mid_attention=False,
        norm_groups=4,
    )
    params = jax.eval_shape(net.init, jax.random.key(0), X, T)["params"]
    attending = {name for name in params if "attention" in name}
    assert attending == {"down_0_attention_0", "up_1_attention_0", "up_1_attention_1"}
    by_block = {name for name in params if "sample" in name and "norm_0" in params[name]}
    assert by_block == {"down_1_downsample", "up_2_upsample"}
    assert {name for name in params if "sample" in name} - by_block == {"down_0_downsample", "up_1_upsample"}


def test_no_normalisation_before_the_middle_attention_with_scale_shift_as_published():
    for fields, expected in [({}, False), ({"mid_attention_groups": 4}, True), ({"scale_shift_norm": False}, True)]:
        net = TINY.clone(**({"scale_shift_norm": True} | fields))
        params = jax.eval_shape(net.init, jax.random.key(0), X, T)["params"]
        assert ("norm" in params["mid_attention"]) == expected


@pytest.mark.long
def test_labels_that_are_times_or_vectors(tiny):
    """A label 0 embedded like a time has an embedding; a vector of zeros adds nothing."""
    params, out = tiny
    vectors = TINY.clone(class_vectors=True)
    np.testing.assert_array_equal(vectors.apply({"params": params}, X, T, jnp.zeros([2, 32])), out)
    times = TINY.clone(class_time=True)
    params = nets.random_params(times.clone(class_time=False), X)
    params |= {f"class_time_{i}": jax.tree.map(jnp.zeros_like, params["embedding"][f"time_{i}"]) for i in range(2)}
    np.testing.assert_array_equal(times.apply({"params": params}, X, T, 5), times.apply({"params": params}, X, T, T))


def test_a_score_is_divided_by_its_sigma():
    net, sigma = TINY.clone(fourier_time=True), jnp.array([0.3, 7.0])
    params = nets.random_params(net, X)
    params["embedding"] = jax.tree.map(jnp.zeros_like, params["embedding"])  # no dependence on time
    score, other = (net.apply({"params": params}, X, s) for s in (sigma, jnp.ones(2)))
    np.testing.assert_allclose(score * sigma[:, None, None, None], other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("fields", "args", "message"),
    [
        ({"in_channels": 4}, (X, T), r"x must have shape \[B, H, W, 4\]; got \[2, 4, 4, 3\]"),
        ({}, (X[:, :3], T), r"H and W must be multiples of 2 for 2 levels; got \(3, 4\)"),
        ({"down_attention": (True,)}, (X, T), r"down_attention must be one value or one for each of the 2 levels"),
        ({"channel_multipliers": ()}, (X, T), r"channel_multipliers must not be empty"),
        ({"downsample_padding": (0, 0)}, (X, T), r"downsample_padding must add 1 or 2 zeros .*got \(0, 0\)"),
        ({"num_classes": 3, "class_time": True}, (X, T), r"at most one of num_classes, class_time and class_vectors"),
        ({"num_timesteps": 10, "fourier_time": True}, (X, T), r"at most one of fourier_time and num_timesteps"),
        ({"num_timesteps": 10}, (X, T / 2), r"t must be integers with num_timesteps=10; got float32"),
        ({"class_time": True}, (X, T), r"class-conditional \(class_time\): cond must hold a number"),
        ({"class_vectors": True}, (X, T, jnp.ones([2, 3])), r"cond must have shape \[2, 32\] .*got \(2, 3\)"),
    ],
)
def test_misuse_is_explained(fields, args, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(TINY.clone(**fields).init, jax.random.key(0), *args)
