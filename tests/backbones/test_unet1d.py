"""UNet1D: a size from first principles, the reach of a convolution, fields, misuse."""

import dataclasses

import jax
import jax.numpy as jnp
import nets
import numpy as np
import pytest

from diffusers_fn.backbones import UNet1D, ops

TINY = UNet1D(
    channels=8,
    channel_multipliers=(1, 2),
    num_res_blocks=1,
    attention_levels=(1,),
    norm_groups=4,
    zero_init_output=False,
)
X = jnp.asarray(np.random.default_rng(0).standard_normal([2, 8, 3]), jnp.float32)
T = jnp.array([3, 700])


def test_parameter_count_from_first_principles():
    emb, norm = 32, lambda c: 2 * c
    conv = lambda a, b: 3 * a * b + b  # noqa: E731
    dense = lambda a, b: a * b + b  # noqa: E731
    attend = lambda c: norm(c) + dense(c, 3 * c) + dense(c, c)  # noqa: E731

    def block(a, b):
        film = dense(emb, 2 * b)
        return norm(a) + conv(a, b) + film + norm(b) + conv(b, b) + (dense(a, b) if a != b else 0)

    total = dense(16, emb) + dense(emb, emb) + conv(3, 8)
    total += block(8, 8) + conv(8, 8) + block(8, 16) + attend(16)  # down
    total += 2 * block(16, 16) + attend(16)  # middle
    total += block(16 + 16, 16) + block(16 + 8, 16) + 2 * attend(16) + conv(16, 16)  # up
    total += block(16 + 8, 8) + block(8 + 8, 8) + norm(8) + conv(8, 3)
    assert nets.count(TINY, X) == total


def test_the_convolution_reaches_one_step_to_both_sides():
    kernel = jnp.zeros([3, 3, 3]).at[0].set(jnp.eye(3))  # the step before
    params = {"kernel": kernel, "bias": jnp.zeros(3)}
    out = ops.Conv(3, (3,)).apply({"params": params}, X)
    np.testing.assert_array_equal(out[:, 1:], X[:, :-1])
    np.testing.assert_array_equal(out[:, 0], 0)
    halved = ops.Conv(3, (3,), strides=2, padding=((0, 1),)).apply({"params": params}, X)
    np.testing.assert_array_equal(halved, X[:, ::2])


def test_same_parameters_serve_every_length_that_halves():
    params = jax.eval_shape(TINY.init, jax.random.key(0), X, T)
    for length in (2, 14):
        x = jnp.ones([1, length, 3])
        assert jax.eval_shape(TINY.apply, params, x, T[:1]).shape == x.shape


CHANGES = {
    "out_channels": 5,
    "channels": 16,
    "channel_multipliers": (1, 1),
    "num_res_blocks": 2,
    "attention_levels": (),
    "num_heads": 2,
    "head_dim": 4,
    "scale_shift_norm": False,
    "num_classes": 3,
    "dropout": 0.5,
    "learned_variance": True,
    "norm_groups": 2,
    "norm_eps": 0.1,
    "attention_fn": lambda q, k, v: jax.nn.dot_product_attention(q, k, v, scale=0.0),
}
ELSEWHERE = {"native_conv", "zero_init_output", "remat", "dtype", "param_dtype"}  # in the laws


def test_every_field_has_a_change():
    assert set(CHANGES) | ELSEWHERE == {field.name for field in dataclasses.fields(UNet1D)} - {"parent", "name"}


@pytest.fixture(scope="module")
def tiny():
    params = nets.random_params(TINY, X)
    return params, TINY.apply({"params": params}, X, T)


@pytest.mark.long
@pytest.mark.parametrize("field", CHANGES)
def test_every_field_changes_the_network(tiny, field):
    params, out = tiny
    net = TINY.clone(**{field: CHANGES[field]})
    shapes = jax.eval_shape(net.init, jax.random.key(0), X, T)["params"]
    if nets.structure(shapes) == nets.structure(params):
        changed = net.apply({"params": params}, X, T, train=True, rngs={"dropout": nets.quick_key(0)})
        assert nets.relative_rms(changed, out) > 1e-4


@pytest.mark.parametrize(
    ("fields", "x", "message"),
    [
        ({}, jnp.zeros([2, 4, 4, 3]), r"x must have shape \[B, L, C\]; got \[2, 4, 4, 3\]"),
        ({}, X[:, :7], r"L must be a multiple of 2 for 2 levels; got 7"),
        ({"attention_levels": (2,)}, X, r"attention_levels must be among 0 \.\. 1; got \(2,\)"),
        ({"channel_multipliers": ()}, X, r"channel_multipliers must not be empty"),
        ({"channels": 9}, X, r"channels must be even; got 9"),
        ({"head_dim": 5}, X, r"head_dim must divide"),
    ],
)
def test_misuse_is_explained(fields, x, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(TINY.clone(**fields).init, jax.random.key(0), x, T)
