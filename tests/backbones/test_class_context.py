"""A class label as context: the tokens, the null class, the gradient, and texts that pass through."""

import jax
import jax.numpy as jnp
import nets
import numpy as np
import pytest

from diffusers_fn.backbones import ClassContext, UNet2DCondition

pytestmark = pytest.mark.long  # compiles a text-conditioned network

FIELDS = {"channels": 8, "channel_multipliers": (1,), "num_res_blocks": 1, "transformer_depths": (1,)}
FIELDS |= {"num_heads": 2, "norm_groups": 4}
NET = UNet2DCondition(context_dim=6, mid_depth=None, **FIELDS)
X = jnp.asarray(np.random.default_rng(0).standard_normal([3, 4, 4, 4]), jnp.float32)
T = jnp.array([7.0, 400.0, 20.0])
LABELS = jnp.array([2, 0, 3])  # 3 is the null class


@pytest.fixture(scope="module")
def tokens():
    """A module with two tokens per class, and its parameters."""
    module = ClassContext(NET, num_classes=3, num_tokens=2)
    return module, nets.random_params(module, X)


@pytest.mark.long
@pytest.mark.usefixtures("quick_runs")
def test_a_class_is_a_row_of_tokens(tokens):
    module, params = tokens
    assert params["context_table"].shape == (4, 2, 6)
    by_label = jax.jit(module.apply)({"params": params}, X, T, LABELS)
    by_text = jax.jit(NET.apply)({"params": params["net"]}, X, T, {"context": params["context_table"][LABELS]})
    np.testing.assert_array_equal(by_label, by_text)
    other = jax.jit(module.apply)({"params": params}, X, T, LABELS[::-1])
    assert nets.relative_rms(other, by_label) > 1e-3


@pytest.mark.long
@pytest.mark.usefixtures("quick_runs")
def test_no_label_is_the_last_row_and_one_label_stands_for_all(tokens):
    module, params = tokens
    apply = jax.jit(module.apply)
    np.testing.assert_array_equal(apply({"params": params}, X, T), apply({"params": params}, X, T, jnp.full(3, 3)))
    np.testing.assert_array_equal(
        apply({"params": params}, X, T, jnp.array(1)), apply({"params": params}, X, T, jnp.full(3, 1))
    )


def test_a_mapping_passes_untouched(tokens):
    module, params = tokens
    text = jnp.asarray(np.random.default_rng(1).standard_normal([3, 5, 6]), jnp.float32)
    cond = {"context": text, "context_mask": jnp.arange(5)[None] < jnp.array([[1], [5], [3]])}
    through = jax.jit(module.apply)({"params": params}, X, T, cond)
    np.testing.assert_array_equal(through, jax.jit(NET.apply)({"params": params["net"]}, X, T, cond))


def test_without_classes_the_null_row_is_the_context():
    module = ClassContext(NET)
    params = nets.random_params(module, X)
    assert params["context_table"].shape == (1, 1, 6)
    context = jnp.broadcast_to(params["context_table"], (3, 1, 6))
    out = jax.jit(module.apply)({"params": params}, X, T)
    np.testing.assert_array_equal(out, jax.jit(NET.apply)({"params": params["net"]}, X, T, {"context": context}))


def test_only_rows_of_given_labels_have_a_gradient(tokens):
    module, params = tokens
    loss = lambda params: jnp.mean(module.apply({"params": params}, X, T, jnp.array([2, 0, 0])) ** 2)  # noqa: E731
    rows = np.abs(jax.jit(jax.grad(loss))(params)["context_table"]).max(axis=(1, 2))
    assert (rows > 0).tolist() == [True, False, True, False]


def test_a_hidden_label_outside_the_table_is_nan_for_its_example_alone(tokens):
    module, params = tokens
    out = jax.jit(module.apply)({"params": params}, X, T, jnp.array([4, 1, -1]))
    assert np.isnan(out).all(axis=(1, 2, 3)).tolist() == [True, False, True]
    assert np.isfinite(out[1]).all()


def test_a_network_with_pooled_text_receives_one_and_the_size_of_x():
    net = NET.clone(text_time_dims=(4, 29), text_dim=5)
    module = ClassContext(net, num_classes=3)
    x = X[:, :2]
    params = nets.random_params(module, x)
    assert params["context_table"].shape == (4, 1, 5)
    assert params["pooled_table"].shape == (4, 29 - 6 * 4)
    sizes = jnp.broadcast_to(jnp.array([2.0, 4, 0, 0, 2, 4]), (3, 6))
    cond = {"context": params["context_table"][LABELS], "text_embeds": params["pooled_table"][LABELS]}
    by_hand = jax.jit(net.apply)({"params": params["net"]}, x, T, cond | {"time_ids": sizes})
    np.testing.assert_array_equal(jax.jit(module.apply)({"params": params}, x, T, LABELS), by_hand)


@pytest.mark.parametrize(
    ("module", "cond", "message"),
    [
        (ClassContext(NET, num_tokens=0), None, "num_tokens must be at least 1; got 0"),
        (ClassContext(NET, num_classes=0), None, "num_classes must be None or at least 1; got 0"),
        (ClassContext(NET.clone(num_classes=3)), None, "the net's own num_classes, .* got 3, False and None"),
        (ClassContext(NET.clone(class_time=True)), None, "the net's own num_classes, .* got None, True and None"),
        (ClassContext(NET.clone(text_time_dims=(4, 24))), None, r"room for a text and six sizes; got \(4, 24\)"),
        (ClassContext(NET), jnp.zeros(3, int), "this network has no classes"),
        (ClassContext(NET, num_classes=3), np.array([0, 4, 1]), r"class labels must lie in 0 .. 3 \(3 is the null"),
        (ClassContext(NET, num_classes=3), jnp.zeros(3), "cond must hold integer class labels"),
    ],
)
def test_misuse_is_explained(module, cond, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda key: module.init(key, X, T, cond), jax.random.key(0))
