"""Attention against its definition, in float64."""

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

from diffusers_fn.backbones.ops import attention, dot_product_attention

# (B, L, M, heads, D) and the shape of a mask
CASES = {
    "small": ((2, 5, 7, 3, 4), None),
    "small, a mask": ((2, 5, 7, 3, 4), (2, 1, 1, 7)),
    "head after head": ((1, 512, 512, 3, 4), None),
    "head after head, a mask of the batch": ((2, 256, 512, 2, 4), (2, 1, 1, 512)),
    "head after head, a mask for each": ((1, 512, 512, 2, 4), (1, 2, 512, 512)),
    "head after head, a mask for all of the batch": ((2, 384, 512, 3, 4), (1, 1, 384, 512)),
    "two heads at a time": ((1, 128, 256, 6, 4), (1, 6, 1, 256)),
    "one large head": ((1, 512, 512, 1, 4), (1, 1, 512, 512)),
}


@pytest.fixture(autouse=True)
def few_weights_are_large(monkeypatch):
    monkeypatch.setattr(attention, "_LARGE", 1 << 16)


def make(name, dtype=np.float32):
    (batch, length, context, heads, width), mask = CASES[name]
    rng = np.random.default_rng(0)
    shapes = [(batch, size, heads, width) for size in (length, context, context)]
    arrays = [jnp.asarray(2.0 * rng.standard_normal(shape), dtype) for shape in shapes]
    return arrays, None if mask is None else jnp.asarray(rng.random(mask) < 0.7)


def by_definition(query, key, value, mask=None):
    logits = jnp.einsum("blhd,bmhd->bhlm", query, key) / np.sqrt(query.shape[-1])
    weights = jnp.exp(logits - logits.max(-1, keepdims=True))
    weights = weights if mask is None else jnp.where(mask, weights, 0.0)
    return jnp.einsum("bhlm,bmhd->blhd", weights / weights.sum(-1, keepdims=True), value)


@pytest.mark.long
@pytest.mark.parametrize("name", CASES)
def test_values_and_derivatives_are_those_of_the_definition(x64, name):
    arrays, mask = make(name, np.float64)
    directions = [jnp.cos(jnp.arange(a.size)).reshape(a.shape) for a in arrays]

    def derivatives(run):
        loss = lambda *arrays: jnp.sum(jnp.sin(run(*arrays, mask)))  # noqa: E731
        slope = lambda *arrays: jax.jvp(loss, arrays, tuple(directions))[1]  # noqa: E731
        return jax.jit(lambda *arrays: (run(*arrays, mask), jax.grad(loss, (0, 1, 2))(*arrays), slope(*arrays)))

    got, wanted = derivatives(dot_product_attention)(*arrays), derivatives(by_definition)(*arrays)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted)):
        np.testing.assert_allclose(a, b, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("name", ["small", "head after head"])
def test_transforms_and_second_derivatives(x64, name):
    (query, key, value), _ = make(name, np.float64)

    def twice(run):
        loss = lambda query: jnp.sum(jnp.sin(run(query, key, value)))  # noqa: E731
        return jax.jit(lambda query: jax.jvp(jax.grad(loss), (query,), (jnp.cos(query),))[1])

    got = jax.jit(jax.vmap(twice(dot_product_attention)))(jnp.stack([query, 2 * query]))
    np.testing.assert_allclose(got[1], twice(by_definition)(2 * query), atol=1e-9)


@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 2e-6), (jnp.bfloat16, 2e-2)])
@pytest.mark.parametrize("name", CASES)
def test_rounds_as_jax_does(name, dtype, tolerance):
    arrays, mask = make(name, dtype)
    got = jax.jit(dot_product_attention)(*arrays, mask)
    wanted = jax.jit(jax.nn.dot_product_attention)(*arrays, mask=mask)
    assert got.dtype == dtype
    np.testing.assert_allclose(np.float32(got), np.float32(wanted), atol=tolerance, rtol=tolerance)


def test_a_query_that_may_attend_nowhere_is_finite():
    arrays, _ = make("small")
    assert np.isfinite(dot_product_attention(*arrays, jnp.zeros([2, 1, 1, 7], bool))).all()


def test_the_weights_of_one_head_are_held_at_a_time_for_gradients_too():
    def temporaries(heads):
        loss = lambda *arrays: dot_product_attention(*arrays).sum()  # noqa: E731
        arrays = [jnp.ones([1, 512, heads, 4])] * 3
        return jax.jit(jax.grad(loss, (0, 1, 2))).lower(*arrays).compile().memory_analysis().temp_size_in_bytes

    assert temporaries(12) - temporaries(2) < 1 << 20  # the weights of a single head are that much


@pytest.mark.parametrize(("platform", "loops"), [("cpu", 1), ("cuda", 0)])
def test_accelerators_get_the_attention_of_jax(platform, loops):
    arrays, _ = make("head after head")
    exported = jax.export.export(jax.jit(dot_product_attention), platforms=[platform])(*arrays)
    assert exported.mlir_module().count("stablehlo.while") == loops


@pytest.mark.parametrize("name", ["small, a mask", "head after head", "two heads at a time"])
@pytest.mark.parametrize("batch", [1, None])
def test_a_bias_is_added_to_the_logits(name, batch):
    (query, key, value), mask = make(name)
    sizes = query.shape[0] if batch is None else batch, query.shape[2], query.shape[1], key.shape[1]
    bias = jnp.asarray(np.random.default_rng(1).standard_normal(sizes), jnp.float32)
    got = jax.jit(dot_product_attention)(query, key, value, mask, bias=bias)
    logits = jnp.einsum("blhd,bmhd->bhlm", query, key) / np.sqrt(query.shape[-1]) + bias
    logits = logits if mask is None else jnp.where(mask, logits, -jnp.inf)
    wanted = jnp.einsum("bhlm,bmhd->blhd", jax.nn.softmax(logits), value)
    np.testing.assert_allclose(got, wanted, atol=2e-6, rtol=2e-6)
