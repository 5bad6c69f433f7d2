"""Lazy norms: the same numbers, and less kept for the backward pass."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusers_fn.backbones import ops
from diffusers_fn.backbones.blocks import ResBlock
from diffusers_fn.backbones.ops.apart import compiled_apart
from diffusers_fn.backbones.transformer import Attention, FeedForward


class Layer(ops.ConvNetwork):
    """conv(silu(film(norm(x)))), with the norm in the convolution or before it."""

    lazy: bool
    features: int

    @nn.compact
    def __call__(self, x, *film):
        h = ops.GroupNorm(4, name="norm")(x)
        conv = ops.Conv(self.features, (3, 3), name="conv")
        if self.lazy:
            return conv(ops.silu(ops.modulate(h, *film) if film else h))
        h = ops.array(h)
        return conv(nn.silu(h * (1 + film[0]) + film[1] if film else h))


class TokenLayer(nn.Module):
    """inner(film(norm(x))) for tokens, with the norm in the first dense layer or before it."""

    lazy: bool
    inner: nn.Module
    affine: bool

    @nn.compact
    def __call__(self, x, *film):
        h = ops.LayerNorm(1e-3, use_bias=self.affine, use_scale=self.affine, name="norm")(x)
        if self.lazy:
            return self.inner(ops.modulate(h, *film) if film else h)
        h = ops.array(h)
        return self.inner(h * (1 + film[0]) + film[1] if film else h)


def check_equal(lazy, plain, x, film, key):
    """Compares parameters, outputs, gradients and directional derivatives."""
    init_key, weights_key = jax.random.split(key)
    params = plain.init(init_key, x, *film)
    jax.tree.map(np.testing.assert_array_equal, lazy.init(init_key, x, *film), params)
    weights = jax.random.normal(weights_key, jax.eval_shape(plain.apply, params, x, *film).shape)

    def all_of(layer):
        loss = lambda *args: jnp.vdot(layer.apply(*args), weights)  # noqa: E731
        along = lambda *args: jax.jvp(loss, args, args)[1]  # noqa: E731
        return jax.jit(lambda *args: (layer.apply(*args), jax.grad(loss, tuple(range(len(args))))(*args), along(*args)))

    for got, wanted in zip(*(jax.tree.leaves(all_of(layer)(params, x, *film)) for layer in (lazy, plain))):
        np.testing.assert_allclose(got, wanted, atol=2e-5 * float(jnp.abs(wanted).max()))


@pytest.mark.long
@pytest.mark.parametrize("native", [False, True])
@pytest.mark.parametrize("films", [0, 2])
@pytest.mark.parametrize(("side", "features"), [(16, 16), (4, 16), (8, 3)])  # each kind of convolution
def test_lazy_norms_change_no_number_and_no_derivative(side, features, films, native):
    keys = jax.random.split(jax.random.key(0), 4)
    x = 1 + jax.random.normal(keys[0], [4, side, side, 16])
    film = [jax.random.normal(key, [4, 1, 1, 16]) for key in keys[1 : 1 + films]]
    lazy, plain = (Layer(lazy, features, native_conv=native) for lazy in (True, False))
    check_equal(lazy, plain, x, film, keys[3])


@pytest.mark.long
@pytest.mark.parametrize(("films", "affine"), [(0, True), (2, False), (2, True)])
@pytest.mark.parametrize("inner", [Attention(2), FeedForward(24)], ids=["attention", "feed-forward"])
def test_lazy_tokens_are_the_same_and_less_is_kept(inner, films, affine):
    keys = jax.random.split(jax.random.key(0), 4)
    x = 1 + jax.random.normal(keys[0], [2, 12, 8])
    film = [jax.random.normal(key, [2, 1, 8]) for key in keys[1 : 1 + films]]
    lazy, plain = (TokenLayer(lazy, inner, affine) for lazy in (True, False))
    check_equal(lazy, plain, x, film, keys[3])

    def kept(layer):
        params = layer.init(keys[3], x, *film)
        backward = jax.jit(lambda *args: jax.vjp(layer.apply, *args)[1])(params, x, *film)
        return sum(leaf.nbytes for leaf in jax.tree.leaves(backward))

    assert kept(lazy) <= kept(plain) - x.nbytes


def test_groups_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="norm_groups must divide the channels of every layer; got norm_groups=4"):
        jax.eval_shape(Layer(True, 8).init, jax.random.key(0), jnp.ones([1, 4, 4, 6]))


@pytest.mark.long
def test_a_chain_of_blocks_keeps_two_arrays_per_block_on_a_cpu():
    block, x, emb = ResBlock(32, norm_groups=8), jnp.ones([4, 16, 16, 32]), jnp.ones([1, 8])
    params = block.init(jax.random.key(0), x, emb)

    def temporary_bytes(blocks):
        run = lambda x: functools.reduce(lambda h, _: block.apply(params, h, emb), range(blocks), x)  # noqa: E731
        program = jax.jit(jax.grad(lambda x: run(x).sum())).lower(x).compile()
        return program.memory_analysis().temp_size_in_bytes

    of_a_block = (temporary_bytes(8) - temporary_bytes(4)) / 4
    assert of_a_block < 2.5 * x.nbytes + 2 * sum(leaf.nbytes for leaf in jax.tree.leaves(params))


def test_recomputed_activations_are_not_kept_across_a_call():
    x, w = jnp.ones([64, 64]), jnp.ones([64, 1024])
    layer = compiled_apart(lambda x, w: jnp.tanh(jnp.sin(x @ w) @ w.T))
    chain = lambda x, w: functools.reduce(lambda h, _: layer(h, w), range(6), x).sum()  # noqa: E731
    program = jax.jit(jax.grad(chain)).lower(x, w).compile()
    hidden = 6 * (x @ w).nbytes  # JAX 0.10 keeps them without the call
    assert program.memory_analysis().temp_size_in_bytes < 0.5 * hidden


def test_every_transformation_passes_through_a_call():
    apart = compiled_apart(lambda x, power: x**power, static_argnames=("power",))
    x = jnp.arange(1.0, 4.0)
    plain = lambda x: x**3  # noqa: E731
    run = lambda x: apart(x, power=3)  # noqa: E731
    for transform in (jax.jit, jax.vmap, lambda f: jax.vmap(jax.grad(f)), lambda f: jax.jacfwd(f), jax.hessian):
        np.testing.assert_array_equal(transform(run)(x), transform(plain)(x))
    _, ys = jax.lax.scan(lambda c, x: (c, run(x)), 0, x)
    np.testing.assert_array_equal(ys, plain(x))
