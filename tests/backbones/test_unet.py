"""UNet: published sizes, the effect of each field, image sizes, misuse."""

import dataclasses

import jax
import jax.numpy as jnp
import nets
import numpy as np
import pytest

from diffusers_fn.backbones import SuperResolution, UNet, blocks
from diffusers_fn.backbones.ops.conv import conv2d

TINY = UNet(
    image_size=8,
    channels=8,
    channel_multipliers=(1, 1),
    num_res_blocks=1,
    attention_resolutions=(4,),
    norm_groups=4,
    zero_init_output=False,
)
X = jnp.asarray(np.random.default_rng(0).standard_normal([2, 8, 8, 3]), jnp.float32)
T = jnp.array([3, 700])


@pytest.mark.parametrize(
    ("fields", "size", "expected"),
    [
        ({}, 32, 35_746_307),  # the published CIFAR-10 network of Ho et al.
        ({"image_size": 256, "channel_multipliers": (1, 1, 2, 2, 4, 4)}, 256, 113_673_219),  # and theirs for LSUN
    ],
)
def test_published_parameter_counts(fields, size, expected):
    assert nets.count(UNet(**fields), jnp.zeros([1, size, size, 3])) == expected


ADM = {"head_dim": 64, "attention_resolutions": (32, 16, 8), "scale_shift_norm": True, "resblock_updown": True}
ADM |= {"num_classes": 1000, "null_class": False, "learned_variance": True}


@pytest.mark.long
@pytest.mark.parametrize(
    ("image_size", "channels", "channel_multipliers", "num_res_blocks", "expected"),
    [
        # Dhariwal and Nichol, table 11: 296, 422, 554 and 559 million.
        (64, 192, (1, 2, 3, 4), 3, 295_904_454),
        (128, 256, (1, 1, 2, 3, 4), 2, 421_529_606),
        (256, 256, (1, 1, 2, 2, 4, 4), 2, 553_838_086),
        (512, 256, (0.5, 1, 1, 2, 2, 4, 4), 2, 558_997_638),
    ],
)
def test_adm_parameter_counts(image_size, channels, channel_multipliers, num_res_blocks, expected):
    fields = {"channel_multipliers": channel_multipliers, "num_res_blocks": num_res_blocks}
    adm = UNet(image_size=image_size, channels=channels, **fields, **ADM)
    x = jax.ShapeDtypeStruct((1, image_size, image_size, 3), jnp.float32)
    shapes = jax.eval_shape(adm.init, jax.random.key(0), x, jnp.zeros([]), jnp.zeros([1], int))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == expected


def test_an_upsampler_parameter_count():
    """From 64 to 256 pixels: 312 million in table 11."""
    fields = ADM | {"head_dim": None, "num_heads": 4}
    net = SuperResolution(UNet(3, 256, 192, (1, 1, 2, 2, 4, 4), 2, **fields))
    x, low = jax.ShapeDtypeStruct((1, 256, 256, 3), jnp.float32), jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    cond = {"low_res": low, "cond": jnp.zeros([1], int)}
    shapes = jax.eval_shape(net.init, jax.random.key(0), x, jnp.zeros([]), cond)
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 311_795_910


CHANGES = {
    "out_channels": 5,
    "image_size": 4,  # attention at 4 is now level 0's
    "channels": 16,
    "channel_multipliers": (1, 2),
    "num_res_blocks": 2,
    "attention_resolutions": (8, 4),
    "num_heads": 2,
    "head_dim": 4,
    "scale_shift_norm": True,
    "resblock_updown": True,
    "num_classes": 10,
    "dropout": 0.5,
    "learned_variance": True,
    "zero_init_output": True,
    "norm_groups": 2,
    "norm_eps": 0.1,
    "time_cos_first": True,
    "time_freq_shift": 0.0,
    "downsample_padding": (1, 1),
    "attention_fn": lambda q, k, v: jax.nn.dot_product_attention(q, k, v, scale=0.0),
    "dtype": jnp.bfloat16,
    "param_dtype": jnp.bfloat16,
    "num_heads_up": 2,
    "resample_conv": False,
}
ELSEWHERE = {
    "native_conv",
    "null_class",
    "new_attention_order",
    "remat",
}  # below, test_unet_parity.py, test_unet_laws.py


@pytest.fixture(scope="module")
def tiny():
    """Returns the unchanged network's parameters and its output."""
    params = nets.random_params(TINY, X)
    return params, TINY.apply({"params": params}, X, T)


def test_every_field_has_a_change():
    assert set(CHANGES) | ELSEWHERE == {field.name for field in dataclasses.fields(UNet)} - {"parent", "name"}


@pytest.mark.long
@pytest.mark.parametrize("field", sorted(set(CHANGES) - {"zero_init_output", "dtype"}))  # those: test_laws.py
def test_every_field_changes_the_network(tiny, field):
    params, out = tiny
    net = TINY.clone(**{field: CHANGES[field]})
    shapes = jax.eval_shape(net.init, jax.random.key(0), X, T)["params"]
    if nets.structure(shapes) == nets.structure(params):
        changed = net.apply({"params": params}, X, T, train=True, rngs={"dropout": nets.quick_key(0)})
        assert nets.relative_rms(changed, out) > 1e-4


def test_head_dim_wins_over_num_heads():
    net = TINY.clone(head_dim=4, num_heads=3)
    kernel = jax.eval_shape(net.init, jax.random.key(0), X, T)["params"]["mid_attention"]["qkv"]["kernel"]
    assert kernel.shape == (8, 3, 2, 4)


def test_attention_is_where_it_should_be():
    for resolutions, levels in [((4,), {1}), ((8,), {0}), ((), set()), ((8, 4), {0, 1})]:
        net = TINY.clone(attention_resolutions=resolutions)
        params = jax.eval_shape(net.init, jax.random.key(0), X, T)["params"]
        names = {name for name in params if "attention" in name}
        expected = {f"down_{level}_attention_0" for level in levels}
        expected |= {f"up_{level}_attention_{i}" for level in levels for i in range(2)}
        assert names == expected | {"mid_attention"}


def test_same_parameters_serve_every_size_that_halves():
    params = jax.eval_shape(TINY.init, jax.random.key(0), X, T)
    for height, width in [(4, 8), (6, 10)]:
        x = jnp.ones([1, height, width, 3])
        assert jax.eval_shape(TINY.apply, params, x, T[:1]).shape == x.shape


def test_without_a_null_class_a_label_must_be_given():
    net = TINY.clone(num_classes=3, null_class=False)
    shapes = jax.eval_shape(net.init, jax.random.key(0), X, T, jnp.zeros([2], int))["params"]
    assert shapes["embedding"]["class_table"]["embedding"].shape == (3, 32)
    for cond, message in [
        (None, r"this network has no null class: cond must hold class labels in 0 \.\. 2"),
        (3, r"class labels must lie in 0 \.\. 2; got 3"),
    ]:
        with pytest.raises(ValueError, match=message):
            jax.eval_shape(lambda: net.init(jax.random.key(0), X, T, cond))  # noqa: B023


def test_resampling_keeps_means_and_inverts():
    x = jnp.asarray(np.random.default_rng(3).standard_normal([2, 4, 6, 3]), jnp.float32)
    np.testing.assert_allclose(blocks.average_pool(blocks.nearest(x)), x, rtol=1e-6)
    np.testing.assert_allclose(blocks.average_pool(x).mean((1, 2)), x.mean((1, 2)), atol=1e-6)
    assert blocks.nearest(x)[1, 5, 7, 2] == x[1, 2, 3, 2]


def test_convolution_is_a_correlation_at_the_right_pixel():
    """A kernel with one tap moves the picture by that tap."""
    x = jnp.asarray(np.random.default_rng(4).standard_normal([1, 6, 6, 2]), jnp.float32)
    kernel = jnp.zeros([3, 3, 2, 2]).at[0, 2].set(jnp.eye(2))
    out = conv2d(x, kernel, stride=1, padding=(1, 1))
    np.testing.assert_array_equal(out[0, 1:, :-1], x[0, :-1, 1:])
    np.testing.assert_array_equal(out[0, 0], 0.0)
    np.testing.assert_array_equal(out[0, :, -1], 0.0)
    strided = conv2d(x, kernel, stride=2, padding=(0, 1))  # window (i, j) starts at pixel (2 i, 2 j)
    np.testing.assert_array_equal(strided[0, :, :2], x[0, ::2, 2::2])


@pytest.mark.parametrize(
    ("fields", "shape", "message"),
    [
        ({}, (2, 8, 3), r"x must have shape \[B, H, W, C\]; got \[2, 8, 3\]"),
        ({}, (2, 8, 9, 3), r"H and W must be multiples of 2 for 2 levels; got \(8, 9\)"),
        ({"image_size": 9}, (2, 8, 8, 3), r"image_size must be a multiple of 2 for 2 levels; got 9"),
        ({"attention_resolutions": (16,)}, (2, 8, 8, 3), r"among the levels' resolutions \[8, 4\].*got \(16,\)"),
        ({"num_heads": 3}, (2, 8, 8, 3), r"num_heads must divide .*num_heads=3, 8 channels"),
        ({"num_heads": 0}, (2, 8, 8, 3), r"num_heads must divide .*num_heads=0, 8 channels"),
        ({"head_dim": 5}, (2, 8, 8, 3), r"head_dim must divide .*head_dim=5, 8 channels"),
        ({"norm_groups": 3}, (2, 8, 8, 3), r"norm_groups must divide .*norm_groups=3 and a layer of 8 channels"),
        ({"channel_multipliers": ()}, (2, 8, 8, 3), r"channel_multipliers must not be empty"),
        ({"num_res_blocks": 0}, (2, 8, 8, 3), r"num_res_blocks must be at least 1; got \(1, 1\) and 0"),
        ({"downsample_padding": (0, 0)}, (2, 8, 8, 3), r"downsample_padding must add 1 or 2 zeros .*got \(0, 0\)"),
        ({"channels": 9, "norm_groups": 1}, (2, 8, 8, 3), r"channels must be even; got 9"),
    ],
)
def test_misuse_is_explained(fields, shape, message):
    net = TINY.clone(**fields)
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(net.init, jax.random.key(0), jnp.zeros(shape), T)
