"""The text encoder: published outputs and sizes, causality, pooling, fields."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import published
import pytest
from calls import CALLS, Case

from diffusers_fn.backbones import ClipTextEncoder
from diffusers_fn.pretrained import clip_text

FAMILIES = {"clip_text_quickgelu": clip_text.family, "clip_text_projected": clip_text.projected_family}
RECORDED = [
    ("clip_text_quickgelu", "main"),  # end of text by the highest id
    ("clip_text_quickgelu", "masked"),
    ("clip_text_projected", "main"),  # exact GELU, end of text by its id, projection
    ("clip_text_projected", "masked"),
    ("clip_text_projected", "no_eos"),
]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("name", "call"), RECORDED)
def test_same_outputs(name, call, dtype):
    with jax.enable_x64(dtype == "float64"):
        encoder, params = published.network(name, FAMILIES[name], jnp.dtype(dtype))
        io = published.recorded(name, call)
        out = jax.jit(encoder.apply)({"params": params}, io["in/ids"], io.get("in/am"))
        found = {"last": out.last_hidden} | {f"hidden{i}": h for i, h in enumerate(out.hidden)}
        found |= {"pooled": out.pooled} if out.text_embeds is None else {"text_embeds": out.text_embeds}
        suffix = {"float32": "_f32", "float64": "_f64"}[dtype]
        assert {f"out.{key}{suffix}" for key in found} == {key for key in io if key.endswith(suffix)}
        for key, array in found.items():
            assert array.dtype == dtype
            # 7.1e-7 and 1.2e-15 measured
            assert published.error(array, io[f"out.{key}{suffix}"]) < (2e-5 if dtype == "float32" else 1e-12)


@pytest.mark.parametrize("name", FAMILIES)
def test_config_and_tensors_come_back(name):
    published.assert_round_trip(name, FAMILIES[name])


@pytest.mark.long
@pytest.mark.parametrize(
    ("encoder", "family", "expected"),
    [
        (ClipTextEncoder(), clip_text.family, 123_060_480),
        (ClipTextEncoder.open_clip_h(), clip_text.family, 340_387_840),
        (ClipTextEncoder.open_clip_g(), clip_text.projected_family, 694_659_840),
    ],
)
def test_published_parameter_counts(encoder, family, expected):
    variables = jax.eval_shape(encoder.init, jax.random.key(0), *clip_text.inputs(encoder))
    assert sum(leaf.size for leaf in jax.tree.leaves(variables)) == expected
    assert family.from_config(family.to_config(encoder)) == encoder


def test_names_of_older_checkpoints():
    encoder = ClipTextEncoder()
    names = {name for entry in clip_text.entries(encoder) for name in entry.names}
    names |= {constant.name for constant in clip_text.constants(encoder)}
    older = ["text_model.embeddings.position_ids", "text_model.encoder.layers.11.mlp.fc2.bias"]
    assert {clip_text.family.rename(name) for name in older} <= names


TINY, (IDS,) = CALLS["clip_text"]


@pytest.fixture(scope="module")
def case():
    return Case(TINY, (IDS,))


def test_tokens_attend_to_earlier_tokens_only(case):
    apply = jax.jit(lambda ids: TINY.apply({"params": case.params}, ids).last_hidden)
    before = apply(IDS)
    for i in range(IDS.shape[1]):
        after = apply(IDS.at[:, i].set((IDS[:, i] + 1) % 20))
        changed = np.abs(after - before).max((0, 2)) > 1e-3
        np.testing.assert_array_equal(changed, np.arange(IDS.shape[1]) >= i)


def test_hidden_tokens_have_no_content_for_others(case):
    apply = jax.jit(lambda ids, mask: TINY.apply({"params": case.params}, ids, mask).last_hidden)
    mask = jnp.ones_like(IDS).at[:, 2].set(0)
    before, after = apply(IDS, mask), apply(IDS.at[:, 2].set((IDS[:, 2] + 1) % 20), mask)
    keep = np.arange(IDS.shape[1]) != 2
    np.testing.assert_array_equal(before[:, keep], after[:, keep])
    assert np.abs(before - apply(IDS, jnp.ones_like(IDS))).max((0, 2))[3] > 1e-3


def test_pools_the_end_of_text(case):
    ids = jnp.array([[3, 9, 4, 9], [19, 1, 2, 9], [5, 5, 5, 6]])
    for eos, places in [(None, [1, 0, 3]), (9, [1, 3, 0])]:  # the highest id; the first 9, or the start
        out = TINY.clone(eos_id=eos).apply({"params": case.params}, ids)
        np.testing.assert_array_equal(out.pooled, out.last_hidden[np.arange(3), np.array(places)])
    np.testing.assert_allclose(out.text_embeds, out.pooled @ case.params["projection"]["kernel"], rtol=1e-5, atol=1e-6)


def test_hidden_states_are_before_the_last_normalisation(case):
    out = TINY.apply({"params": case.params}, IDS)
    norm, x = jax.tree.map(np.asarray, case.params["norm_out"]), np.asarray(out.hidden[-1], np.float64)
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(out.last_hidden, x * norm["scale"] + norm["bias"], atol=1e-5)
    tokens = case.params["tokens"]["embedding"][IDS] + case.params["positions"][None]
    np.testing.assert_allclose(out.hidden[0], tokens, rtol=1e-6)
    one_less = TINY.clone(depth=1, projection_dim=None)
    shorter = one_less.apply({"params": case.params}, IDS)
    np.testing.assert_allclose(shorter.hidden[-1], out.hidden[-2], atol=1e-6)


CHANGES = {
    "vocab_size": 30,
    "max_length": 7,
    "hidden_size": 16,
    "depth": 3,
    "num_heads": 4,
    "mlp_ratio": 3.0,
    "activation": "gelu",
    "eos_id": 7,
    "projection_dim": None,
    "norm_eps": 0.1,
    "attention_fn": lambda q, k, v, mask: jax.nn.dot_product_attention(q, k, v),
}


def test_every_field_has_a_change():
    fields = {field.name for field in dataclasses.fields(ClipTextEncoder)} - {"parent", "name"}
    assert set(CHANGES) | {"remat", "dtype", "param_dtype"} == fields  # those: test_conditional_laws.py


@pytest.mark.long
@pytest.mark.parametrize("field", CHANGES)
def test_every_field_changes_the_network(case, field):
    encoder = TINY.clone(**{field: CHANGES[field]})
    shapes = jax.eval_shape(encoder.init, jax.random.key(0), IDS)["params"]
    if jax.tree.map(np.shape, shapes) == jax.tree.map(np.shape, case.params):
        out, before = (net.apply({"params": case.params}, IDS) for net in (encoder, TINY))
        assert np.abs(out.pooled - before.pooled).max() > 1e-4


@pytest.mark.parametrize(
    ("ids", "mask", "message"),
    [
        (jnp.zeros([2, 6]), None, r"ids must be integers of shape \[B, L\]; got float32 \[2, 6\]"),
        (jnp.zeros([6], int), None, r"ids must be integers of shape \[B, L\]; got int32 \[6\]"),
        (jnp.zeros([2, 7], int), None, r"at most max_length=6 tokens; got 7"),
        (jnp.zeros([2, 6], int), jnp.ones([2, 5]), r"attention_mask must have shape \[2, 6\]; got \[2, 5\]"),
    ],
)
def test_misuse_is_explained(ids, mask, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda: TINY.init(jax.random.key(0), ids, mask))


def test_configs_and_networks_that_are_not_of_this_family_are_refused():
    with pytest.raises(ValueError, match=r"hidden_act must be one of .*got 'relu'"):
        clip_text.from_config({"hidden_act": "relu"})
    with pytest.raises(ValueError, match="text_config is unknown"):
        clip_text.from_config({"text_config": {}})
    with pytest.raises(ValueError, match="a config can hold the activations quick_gelu, gelu; got <"):
        clip_text.to_config(ClipTextEncoder(activation=jnp.tanh))
