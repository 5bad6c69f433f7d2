"""T5's encoder: published outputs and sizes, positions, fields, misuse."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import published
import pytest
from calls import CALLS, Case

from diffusers_fn.backbones import T5Encoder
from diffusers_fn.backbones.t5 import position_buckets
from diffusers_fn.pretrained import t5

RECORDED = [("t5_gated", "main"), ("t5_gated", "masked"), ("t5_relu", "main")]


def attention(query, key, value, mask=None, bias=None):
    """Attention in float64, as published.attention, with a bias."""
    logits = jnp.einsum("bqhd,bkhd->bhqk", query, key) / np.sqrt(query.shape[-1]) + bias
    logits = logits if mask is None else jnp.where(mask, logits, -jnp.inf)
    return jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(logits), value)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("name", "call"), RECORDED)
def test_same_outputs(name, call, dtype):
    with jax.enable_x64(dtype == "float64"):
        encoder, params = published.network(name, t5.family, jnp.dtype(dtype))
        encoder = encoder if dtype == "float32" else encoder.clone(attention_fn=attention)
        io = published.recorded(name, call)
        out = jax.jit(encoder.apply)({"params": params}, io["in/ids"], io.get("in/am"))
        assert out.dtype == dtype
        # The reference keeps normalisations and softmax in float32.
        tolerance = 1e-5 if dtype == "float32" else 2e-6  # 9e-7 and 3e-7 measured
        assert published.error(out, io[f"out_{'f32' if dtype == 'float32' else 'f64'}"]) < tolerance


@pytest.mark.parametrize("name", ["t5_gated", "t5_relu"])
def test_config_and_tensors_come_back(name):
    published.assert_round_trip(name, t5.family)


def test_the_second_name_of_the_token_table_is_accepted():
    encoder, params = published.network("t5_relu", t5.family)
    tensors = {name: np.asarray(value) for name, value in t5_tensors(encoder, params).items()}
    again = published.from_torch(
        tensors | {"encoder.embed_tokens.weight": tensors["shared.weight"]}, encoder, t5.family
    )
    jax.tree.map(np.testing.assert_array_equal, again, params)


def t5_tensors(encoder, params):
    return published.to_torch(params, encoder, t5.family)


PUBLISHED = [
    (T5Encoder.small(), 35_332_800),
    (T5Encoder.base(), 109_628_544),
    (T5Encoder.large(), 341_231_104),
    (T5Encoder.xl(), 1_223_527_424),
    (T5Encoder(), 4_762_310_656),
]


@pytest.mark.parametrize(("encoder", "expected"), PUBLISHED)
def test_published_parameter_counts(encoder, expected):
    variables = jax.eval_shape(encoder.init, jax.random.key(0), *t5.inputs(encoder))
    assert sum(leaf.size for leaf in jax.tree.leaves(variables)) == expected
    assert t5.family.from_config(t5.family.to_config(encoder)) == encoder


def test_buckets_are_those_of_the_paper():
    """Section 2.1: a bucket for each small distance, then logarithmic ones up to 128, then one for all larger."""
    buckets = position_buckets(np.arange(-1000, 1001))
    behind, ahead = buckets[:1001][::-1], buckets[1000:]
    np.testing.assert_array_equal(behind[:8], np.arange(8))
    np.testing.assert_array_equal(ahead[1:], behind[1:] + 16)
    assert np.all(np.diff(behind) >= 0)
    assert set(behind[128:]) == {15}
    for distance in (9, 16, 33, 77, 127):
        assert behind[distance] == min(15, 8 + int(8 * np.log(distance / 8) / np.log(16)))


TINY, (IDS,) = CALLS["t5"]


@pytest.fixture(scope="module")
def case():
    return Case(TINY, (IDS,))


def test_only_distances_matter_and_hidden_tokens_have_no_content(case):
    apply = jax.jit(lambda ids, mask: TINY.apply({"params": case.params}, ids, mask))
    mask = jnp.ones_like(IDS).at[:, 5].set(0)
    before, after = apply(IDS, mask), apply(IDS.at[:, 5].set((IDS[:, 5] + 1) % 20), mask)
    keep = np.arange(IDS.shape[1]) != 5
    np.testing.assert_array_equal(before[:, keep], after[:, keep])
    first = jnp.ones_like(IDS).at[:, 5:].set(0)
    later = jnp.zeros_like(IDS).at[:, 1:6].set(1)
    shifted = apply(jnp.roll(IDS, 1, axis=1), later)  # the tokens 0 .. 4 at 1 .. 5
    np.testing.assert_allclose(apply(IDS, first)[:, :5], shifted[:, 1:6], atol=1e-5)
    assert np.abs(apply(IDS, jnp.ones_like(IDS)) - apply(IDS[:, ::-1], jnp.ones_like(IDS))[:, ::-1]).max() > 1e-2


CHANGES = {
    "vocab_size": 30,
    "hidden_size": 16,
    "depth": 3,
    "num_heads": 4,
    "mlp_ratio": 3.0,
    "attention_dim": 16,
    "activation": "relu",
    "gated_mlp": False,
    "num_buckets": 4,
    "max_distance": 60,
    "norm_eps": 0.1,
    "attention_fn": lambda q, k, v, bias: jax.nn.dot_product_attention(q, k, v),
}


def test_every_field_has_a_change():
    fields = {field.name for field in dataclasses.fields(T5Encoder)} - {"parent", "name"}
    assert set(CHANGES) | {"remat", "dtype", "param_dtype"} == fields  # those: test_conditional_laws.py


@pytest.mark.long
@pytest.mark.parametrize("field", CHANGES)
def test_every_field_changes_the_network(case, field):
    encoder = TINY.clone(**{field: CHANGES[field]})
    shapes = jax.eval_shape(encoder.init, jax.random.key(0), IDS)["params"]
    if jax.tree.map(np.shape, shapes) == jax.tree.map(np.shape, case.params):
        out, before = (net.apply({"params": case.params}, IDS) for net in (encoder, TINY))
        assert np.abs(out - before).max() > 1e-4


@pytest.mark.parametrize(
    ("fields", "ids", "mask", "message"),
    [
        ({}, jnp.zeros([2, 6]), None, r"ids must be integers of shape \[B, L\]; got float32 \[2, 6\]"),
        ({}, jnp.zeros([2, 6], int), jnp.ones([2, 5]), r"attention_mask must have shape \[2, 6\]; got \[2, 5\]"),
        ({"num_heads": 3}, jnp.zeros([2, 6], int), None, "num_heads must divide the channels"),
    ],
)
def test_misuse_is_explained(fields, ids, mask, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda: TINY.clone(**fields).init(jax.random.key(0), ids, mask))


def test_configs_and_networks_that_are_not_of_this_family_are_refused():
    with pytest.raises(ValueError, match=r"feed_forward_proj must be one of .*; got 'gated-silu'"):
        t5.from_config({"feed_forward_proj": "gated-silu"})
    with pytest.raises(ValueError, match="a config can hold the feed-forward layers"):
        t5.to_config(T5Encoder(gated_mlp=False))
