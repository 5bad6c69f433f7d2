"""U-ViT's sizes, its tokens and its fields."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import nets
import numpy as np
import pytest

from diffusers_fn.backbones import UViT

X = jnp.asarray(np.random.default_rng(0).standard_normal([2, 4, 8, 3]), jnp.float32)
T = jnp.array([7.0, 400.0])
TINY = UViT(image_size=(4, 8), hidden_size=16, depth=2, num_heads=2)


@pytest.mark.long
def test_published_sizes():
    def count(net, shape, *cond):
        variables = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros(shape), jnp.zeros([]), *cond)
        return sum(leaf.size for leaf in jax.tree.leaves(variables))

    # CIFAR-10; ImageNet 64, whose table has no null class; ImageNet 256 in latents, whose null class is the 1001st.
    assert count(UViT.S(), [1, 32, 32, 3]) == 44_255_328
    medium = UViT.M(image_size=64, patch_size=4, num_classes=1000, null_class=False)
    assert count(medium, [1, 64, 64, 3], 0) == 130_940_292
    assert count(UViT.L(num_classes=1000), [1, 32, 32, 4]) == 286_763_172
    assert count(UViT.H(num_classes=1000), [1, 32, 32, 4]) == 500_832_016
    # Text to image: the same as S, with 4 channels, 77 more positions and a map of 768 features.
    text = UViT.S(text_shape=(77, 768))
    more = 77 * 512 + 769 * 512 - (2 * 2 * 512 * -1 + 513 * -4) + (9 * 16 + 4) - (9 * 9 + 3)
    assert count(text, [1, 32, 32, 4], jnp.zeros([1, 77, 768])) == 44_255_328 + more


@pytest.mark.long
def test_text_tokens_and_their_order_matter():
    net = TINY.clone(text_shape=(5, 6))
    text = jnp.asarray(np.random.default_rng(1).standard_normal([2, 5, 6]), jnp.float32)
    params = nets.random_params(net, X, cond=text)
    outs = [net.apply({"params": params}, X, T, cond) for cond in (text, text[::-1], text[:, ::-1])]
    assert outs[0].shape == X.shape
    for other in outs[1:]:
        assert nets.relative_rms(other, outs[0]) > 0.01


def test_long_skips_reach_the_way_out_in_mirrored_order():
    # With blocks that add nothing, every layer sees its input; then h <- Dense([h, skip]) is all that happens.
    net = TINY.clone(depth=4, conv_out=False)
    params = nets.random_params(net, X)
    for name, part in params.items():
        if name == "mid" or name.startswith(("in_", "out_")):
            for layer in (part["attention"]["out"], part["mlp"]["dense_1"]):
                layer.update(jax.tree.map(jnp.zeros_like, layer))
    tokens = {}

    def record(next_call, args, kwargs, context):
        out = next_call(*args, **kwargs)
        if context.module.name in ("in_0", "in_1", "out_0", "out_1"):
            tokens[context.module.name] = args, out
        return out

    with nn.intercept_methods(record):
        net.apply({"params": params}, X, T)
    for i, mirror in enumerate(("in_1", "in_0")):
        (h, skip), out = tokens[f"out_{i}"]
        np.testing.assert_array_equal(skip, tokens[mirror][1])
        weights = params[f"out_{i}"]["skip"]
        expected = jnp.concatenate([h, skip], -1) @ weights["kernel"] + weights["bias"][None, None]
        np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("fields", "cond", "message"),
    [
        ({"image_size": 8}, None, r"image_size = \(8, 8\), because positions are learned; got \[2, 4, 8, 3\]"),
        ({"in_channels": 4}, None, r"in_channels=4 channels; got 3"),
        ({"depth": 0}, None, r"depth must be at least 1; got 0"),
        ({"num_heads": 3}, None, r"num_heads must divide hidden_size; got num_heads=3, hidden_size=16"),
        (
            {"text_shape": (5, 6), "num_classes": 3},
            None,
            r"exclude each other; got num_classes=3 and text_shape=\(5, 6\)",
        ),
        ({"text_shape": (5, 6)}, None, r"cond must be text features of shape \[2, 5, 6\]; got None"),
        ({"text_shape": (5, 6)}, jnp.zeros([2, 5, 7]), r"text features of shape \[2, 5, 6\]; got \(2, 5, 7\)"),
        ({"num_classes": 3, "null_class": False}, None, r"no null class: cond must hold class labels in 0 \.\. 2"),
    ],
)
def test_misuse_is_explained(fields, cond, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda: TINY.clone(**fields).init(jax.random.key(0), X, T, cond))
