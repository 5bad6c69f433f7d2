"""Text conditions of a config: what the network receives, caption dropout, and bad fields."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffusers_fn as dfn
from diffusers_fn.backbones import TextContext, UNet2DCondition
from diffusers_fn.from_config.batches import make_batch_reader
from diffusers_fn.from_config.conditions import make_conditions
from diffusers_fn.from_config.defaults import customise, default_config

FIELDS = {
    "channels": 8,
    "channel_multipliers": (1, 2),
    "num_res_blocks": 1,
    "transformer_depths": (0, 1),
    "num_heads": 2,
    "context_dim": 8,
    "norm_groups": 4,
}


class Shows(UNet2DCondition):
    """Returns the context and its mask in place of an estimate."""

    def __call__(self, x, t, cond, *, train=False):
        return cond["context"], cond["context_mask"]


def config_of(text=None, **sections):
    text = {"kind": "words", "num_tokens": 3, "vocab_size": 9, "depth": 1, "num_heads": 2} | (text or {})
    base = {
        "data": {"shape": (8, 8, 3), "num_classes": 0},
        "backbone": {"name": "unet2d_condition", "in_channels": 3, "out_channels": 3, **FIELDS},
        "text": text,
    }
    return customise(default_config(), **{**base, **sections})


def shown(ids, **fields):
    module = TextContext(Shows(**FIELDS), num_tokens=3, vocab_size=9, num_heads=2, **fields)
    x, t = jnp.zeros((2, 8, 8, 4)), jnp.zeros(2)
    params = module.init(jax.random.key(0), x, t)
    return jax.tree.map(np.asarray, module.apply(params, x, t, ids))


def test_the_context_is_that_of_the_visible_tokens_in_their_order():
    context, mask = shown(jnp.array([[4, 5, 0], [5, 4, 0]]), depth=1)
    assert context.shape == (2, 4, 8)
    assert mask.tolist() == [[True, True, True, False]] * 2
    assert np.abs(context[0, :3] - context[1, :3]).min(axis=-1).max() > 1e-3  # the order of words has an effect
    alone = shown(jnp.array([[4, 5, 7], [5, 4, 0]]), depth=1)
    np.testing.assert_array_equal(alone[0][1], context[1])  # texts do not depend on each other
    assert np.abs(alone[0][0, :3] - context[0, :3]).max() > 1e-3  # a further word does


def test_without_blocks_a_token_is_its_normalised_row_and_position():
    module = TextContext(Shows(**FIELDS), num_tokens=3, vocab_size=9, num_heads=2, depth=0)
    x, ids = jnp.zeros((1, 8, 8, 4)), jnp.array([[4, 2, 0]])
    params = module.init(jax.random.key(1), x, jnp.zeros(1))
    p = params["params"]
    sums = np.concatenate([p["start_token"][0], p["token_table"]["embedding"][ids[0]]]) + np.asarray(p["positions"][0])
    mean, var = sums.mean(-1, keepdims=True), sums.var(-1, keepdims=True)
    context, _ = module.apply(params, x, jnp.zeros(1), ids)
    np.testing.assert_allclose(context[0], (sums - mean) / np.sqrt(var + 1e-6), atol=1e-4)


def test_padding_has_no_effect_and_no_text_is_all_padding():
    vectors = np.zeros((2, 3, 5), np.float32)
    vectors[0, 0] = 1.0
    context, mask = shown(vectors, vector_dim=5)
    assert mask.tolist() == [[True, True, False, False], [True, False, False, False]]
    empty, _ = shown(None, vector_dim=5)
    np.testing.assert_array_equal(empty[1], context[1])
    assert np.abs(empty[0] - context[0]).max() > 1e-3


@pytest.mark.parametrize("vectors", [False, True])
def test_dropout_blanks_whole_captions_with_the_mask_of_class_labels(vectors):
    text = {"kind": "table", "vector_dim": 2} if vectors else {}
    conditions = make_conditions(config_of(text), 0)
    n, shape = 4_000, (4_000, 3, 2) if vectors else (4_000, 3)
    rows = np.random.default_rng(0).integers(1, 9, shape).astype(np.float32 if vectors else np.int32)
    batch = {"image": jnp.zeros((n, 2)), "text": rows, "label": np.ones(n, np.int32)}
    key = jax.random.key(3)
    cond = np.asarray(make_batch_reader((2,), conditions, 0.3)(key, batch)[1]).reshape(n, -1)
    dropped = (cond == 0).all(axis=1)
    np.testing.assert_array_equal(cond[~dropped], rows.reshape(n, -1)[~dropped])
    assert abs(dropped.mean() - 0.3) < 4 * np.sqrt(0.3 * 0.7 / n)
    labels = make_batch_reader((2,), make_conditions(default_config(), 5), 0.3)(key, batch)[1]
    np.testing.assert_array_equal(dropped, np.asarray(labels) == 5)


def test_a_guided_sample_depends_on_its_own_text_alone():
    small = {
        "in_channels": 3,
        "out_channels": 3,
        "channel_multipliers": (1,),
        "transformer_depths": (1,),
        "mid_depth": None,
    }
    config = config_of(
        data={"shape": (4, 4, 3), "num_classes": 0},
        backbone={"name": "unet2d_condition", **FIELDS, **small},
        sampler={"num_inference_steps": 1, "cfg_scale": 2.0, "clip_denoised": False},
    )
    diffusion = dfn.build(config)
    params = diffusion.init(jax.random.key(0))
    params = jax.tree.map(lambda p: p + 0.1 * jnp.sin(jnp.arange(p.size, dtype=p.dtype)).reshape(p.shape), params)
    keys = jax.random.split(jax.random.key(1), 2)
    sample = jax.jit(lambda ids: diffusion.sample(params, keys, 2, cond=ids).x0)
    first, second = sample(np.array([[3, 4, 0], [5, 0, 0]])), sample(np.array([[3, 4, 0], [6, 0, 0]]))
    np.testing.assert_array_equal(first[0], second[0])
    assert np.abs(first[1] - second[1]).max() > 1e-4


@pytest.mark.parametrize(
    ("text", "sections", "message"),
    [
        ({"kind": "clip"}, {}, "config.text.kind must be one of|clip"),
        ({"num_tokens": 0}, {}, "config.text.num_tokens must be at least 1; got 0"),
        ({}, {"data": {"shape": (8, 8, 3), "num_classes": 3}}, "a model has one kind of condition"),
        ({}, {"backbone": {"name": "unet"}}, "'unet' takes no texts: set backbone.name to 'unet2d_condition'"),
        ({"num_heads": 3}, {}, "num_heads must divide the features of a context token, 8; got 3"),
        ({}, {"sampler": {"cfg_scale": 2.0}, "loss": {"label_dropout": 0.0}}, "learned to do without its label"),
    ],
)
def test_bad_text_conditions_are_refused(text, sections, message):
    with pytest.raises(ValueError, match=message):
        dfn.build(config_of(text, **sections))


@pytest.mark.parametrize(
    ("cond", "message"),
    [
        (np.array([[1, 2]]), r"texts must be token ids of shape \(3,\) or \(1, 3\); got int.* \(1, 2\)"),
        (np.ones((1, 3)), "texts must be token ids"),
        ("red heart", "texts must be token ids .* got 'red heart'"),
        (np.array([[1, 2, 9]]), r"token ids must lie in \[0, 8\]; got 1 to 9"),
    ],
)
def test_bad_texts_are_refused(cond, message):
    with pytest.raises(ValueError, match=message):
        make_conditions(config_of(), 0).check(cond, 1, True)
