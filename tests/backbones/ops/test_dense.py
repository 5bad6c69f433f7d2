"""The product of dense layers against the plain one: values, derivatives, programs."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusers_fn.backbones import ops
from diffusers_fn.backbones.ops.dense import product, product_of


@pytest.mark.long
@pytest.mark.parametrize(("shape", "axis", "features"), [((2, 5, 6), -1, 7), ((2, 4, 3, 2), (-2, -1), (2, 4))])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_dense_layers_are_the_same_functions(shape, axis, features, dtype):
    rng = np.random.default_rng(0)
    x, direction = (jnp.asarray(rng.standard_normal(shape), dtype) for _ in range(2))
    ours, plain = (layer(features, axis, dtype=dtype) for layer in (ops.DenseGeneral, nn.DenseGeneral))
    params = plain.init(jax.random.key(0), x)
    jax.tree.map(np.testing.assert_array_equal, ours.init(jax.random.key(0), x), params)
    along = jax.tree.map(jnp.ones_like, params)

    @functools.partial(jax.jit, static_argnums=0)
    def derivatives(net, params, x):
        run = lambda params, x: net.apply(params, x).astype(jnp.float32)  # noqa: E731
        loss = lambda params, x: jnp.sum(jnp.sin(run(params, x)))  # noqa: E731
        tangent = lambda params, x: jax.jvp(run, (params, x), (along, direction))[1]  # noqa: E731
        second = jax.grad(lambda params, x: jnp.sum(jnp.sin(tangent(params, x))), (0, 1))(params, x)
        each = jax.vmap(lambda x: jax.grad(loss)(params, x))(jnp.stack([x, direction]))
        return run(params, x), jax.grad(loss, (0, 1))(params, x), tangent(params, x), second, each

    tolerance = 1e-5 if dtype == jnp.float32 else 5e-2
    for a, b in zip(*(jax.tree.leaves(derivatives(net, params, x)) for net in (ours, plain))):
        scale = float(jnp.abs(b).max())
        np.testing.assert_allclose(np.float32(a), np.float32(b), atol=tolerance * scale)


def test_the_gradient_transposes_no_activations_and_is_computed_only_if_needed():
    x, kernel = jnp.ones([8, 64, 32]), jnp.ones([32, 48])
    run = lambda x, kernel: product(x, kernel).sum()  # noqa: E731
    both = jax.jit(jax.grad(run, (0, 1))).lower(x, kernel).compile().as_text()
    assert "f32[32,512]" not in both  # x^T
    of_x = jax.jit(lambda x, kernel: jax.jvp(lambda x: run(x, kernel), (x,), (x,))[1]).lower(x, kernel)
    assert of_x.as_text().count("stablehlo.dot_general") == 1


def test_a_function_of_the_activations_is_computed_again_instead_of_kept():
    x, kernel = jnp.ones([2, 3, 4]), jnp.ones([4, 5])
    of_sin = lambda x, kernel: product_of(jnp.sin, x, kernel)  # noqa: E731
    plain = lambda x, kernel: jnp.einsum("blc,cd->bld", jnp.sin(x), kernel)  # noqa: E731
    for a, b in zip(*(jax.vjp(f, x, kernel)[1](plain(x, kernel)) for f in (of_sin, plain))):
        np.testing.assert_allclose(a, b, rtol=1e-6)
    kept = jax.tree.leaves(jax.vjp(of_sin, x, kernel)[1])
    assert sorted(array.shape for array in kept) == [x.shape, kernel.shape]
