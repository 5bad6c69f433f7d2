"""Normalisations against linen's and, in float64, their derivatives against those of the definition."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusers_fn.backbones.ops import GroupNorm, LayerNorm, RMSNorm, array

SHAPE = (2, 4, 3, 12)
OURS = {
    "groups": GroupNorm(4, 1e-3),
    "features": LayerNorm(1e-3),
    "plain": LayerNorm(1e-3, use_bias=False, use_scale=False),
}
LINEN = {
    "groups": nn.GroupNorm(4, epsilon=1e-3, use_fast_variance=False),
    "features": nn.LayerNorm(epsilon=1e-3, use_fast_variance=False),
    "plain": nn.LayerNorm(epsilon=1e-3, use_fast_variance=False, use_bias=False, use_scale=False),
}


def make(name, dtype=np.float32):
    rng = np.random.default_rng(0)
    x = jnp.asarray(3.0 + 2.0 * rng.standard_normal(SHAPE), dtype)
    params = {} if name == "plain" else {key: rng.standard_normal(12) for key in ("scale", "bias")}
    return {"params": jax.tree.map(jnp.float32, params)}, x


@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_computes_and_draws_what_linen_does(name, dtype):
    params, x = make(name, dtype)
    ours, linen = OURS[name].clone(dtype=dtype), LINEN[name].clone(dtype=dtype)
    got, wanted = array(ours.apply(params, x)), linen.apply(params, x)
    assert got.dtype == wanted.dtype == dtype
    np.testing.assert_allclose(np.float32(got), np.float32(wanted), atol=1e-5 if dtype == jnp.float32 else 0.04)
    jax.tree.map(np.testing.assert_array_equal, ours.init(jax.random.key(0), x), linen.init(jax.random.key(0), x))


def by_definition(name, x):
    axes, shape = ((1, 2, 4), (2, 4, 3, 4, 3)) if name == "groups" else ((3,), SHAPE)
    parts = x.reshape(shape)
    std = jnp.sqrt(parts.var(axes, keepdims=True) + 1e-3)
    return ((parts - parts.mean(axes, keepdims=True)) / std).reshape(SHAPE)


@pytest.mark.parametrize("name", ["groups", "plain"])
def test_derivatives_are_those_of_the_definition_in_both_modes_and_again(x64, name):
    _, x = make(name, np.float64)
    direction = jnp.asarray(np.random.default_rng(1).standard_normal(SHAPE))
    params = {"params": {"scale": jnp.ones(12), "bias": jnp.zeros(12)}} if name == "groups" else {}
    ours = lambda x: array(OURS[name].clone(dtype=jnp.float64).apply(params, x))  # noqa: E731

    @functools.partial(jax.jit, static_argnums=0)
    def derivatives(run, x):
        loss = lambda x: jnp.vdot(jnp.sin(run(x)), direction)  # noqa: E731
        slope = lambda x: jax.jvp(loss, (x,), (direction,))[1]  # noqa: E731
        each = jax.vmap(jax.grad(loss))(jnp.stack([x, direction]))
        return run(x), jax.grad(loss)(x), slope(x), jax.grad(slope)(x), each

    for got, wanted in zip(derivatives(ours, x), derivatives(lambda x: by_definition(name, x), x)):
        np.testing.assert_allclose(got, wanted, atol=1e-10)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_rms_normalisation_is_linens(dtype):
    (_, x), scale = make("features", dtype), {"scale": jnp.linspace(-1.0, 2.0, 12)}
    ours, linen = RMSNorm(1e-3, dtype), nn.RMSNorm(epsilon=1e-3, dtype=dtype)
    got, wanted = array(ours.apply({"params": scale}, x)), linen.apply({"params": scale}, x)
    assert got.dtype == wanted.dtype == dtype
    np.testing.assert_allclose(np.float32(got), np.float32(wanted), atol=1e-5 if dtype == jnp.float32 else 0.04)
    jax.tree.map(np.testing.assert_array_equal, ours.init(jax.random.key(0), x), linen.init(jax.random.key(0), x))
