"""Time features and class labels."""

import jax
import jax.numpy as jnp
import nets
import numpy as np
import pytest

from diffusers_fn.backbones import embeddings


@pytest.mark.parametrize("freq_shift", [0.0, 1.0])
def test_features_are_sines_and_cosines_at_geometric_frequencies(freq_shift):
    t = np.array([0.0, 0.5, 3.0, 871.0])
    omega = 10_000.0 ** (-np.arange(4) / (4 - freq_shift))
    expected = np.concatenate([np.sin(t[:, None] * omega), np.cos(t[:, None] * omega)], axis=-1)
    sin_first = embeddings.sinusoidal_features(jnp.asarray(t, jnp.float32), 8, freq_shift=freq_shift)
    cos_first = embeddings.sinusoidal_features(jnp.asarray(t, jnp.float32), 8, freq_shift=freq_shift, cos_first=True)
    # The angles reach 871, where float32 is spaced 6e-5.
    np.testing.assert_allclose(sin_first, expected, atol=1e-4)
    np.testing.assert_array_equal(cos_first, jnp.roll(sin_first, 4, axis=-1))


def test_features_keep_float32_under_narrow_labels():
    t = jnp.array([300.0], jnp.bfloat16)
    assert embeddings.sinusoidal_features(t, 8).dtype == jnp.float32


def test_signed_log_spreads_every_scale_evenly():
    sigma = 0.002 * 2.0 ** np.arange(16)  # up to 65
    steps = np.diff(embeddings.signed_log(jnp.asarray(sigma, jnp.float32)))
    np.testing.assert_allclose(steps, np.log(2), rtol=0.1)
    t = jnp.linspace(-5, 5, 101)
    np.testing.assert_allclose(embeddings.signed_log(-t), -embeddings.signed_log(t), rtol=1e-6)


def test_labels_of_narrow_types_read_large_tables():
    embed = embeddings.LabelEmbedding(dim=4, num_classes=200)
    params = embed.init(nets.quick_key(0), jnp.ones([3, 8]), None)
    wanted = embed.apply(params, jnp.ones([3, 8]), jnp.array([0, 5, 9]))
    for dtype in ("int8", "uint8", "int16"):
        np.testing.assert_array_equal(embed.apply(params, jnp.ones([3, 8]), jnp.array([0, 5, 9], dtype)), wanted)
    below = jax.jit(embed.apply)(params, jnp.ones([3, 8]), jnp.array([0, -1, 9], "int8"))
    np.testing.assert_array_equal(np.isnan(below).any(axis=1), [False, True, False])


def test_labels_outside_the_table_give_nan_under_a_trace():
    embed = embeddings.LabelEmbedding(dim=4, num_classes=3)
    variables = embed.init(jax.random.key(0), jnp.ones([2, 4]), None)
    out = jax.jit(embed.apply)(variables, jnp.ones([3, 4]), jnp.array([3, 4, -1]))
    np.testing.assert_array_equal(np.isnan(out).all(-1), [False, True, True])


@pytest.mark.parametrize(("dim", "freq_shift"), [(7, 0.0), (2, 1.0)])
def test_dimensions_without_frequencies_are_refused(dim, freq_shift):
    with pytest.raises(ValueError, match=rf"dim must be even .*got dim={dim}"):
        embeddings.sinusoidal_features(jnp.zeros([1]), dim, freq_shift=freq_shift)


@pytest.mark.parametrize(
    ("cond", "num_classes", "message"),
    [
        (jnp.array([1.0, 2.0]), 3, r"integer class labels; got dtype float32"),
        (jnp.array([1, 2, 3]), 3, r"cond must have shape \[\] or \[2\]; got \[3\]"),
        (4, 3, r"class labels must lie in 0 \.\. 3 .*; got 4"),
        (-1, 3, r"class labels must lie in 0 \.\. 3 .*; got -1"),
        (1, None, r"no classes \(num_classes=None\), so cond must be None"),
        (1, 0, r"num_classes must be None or at least 1; got 0"),
    ],
)
def test_class_labels_that_do_not_fit_are_explained(cond, num_classes, message):
    with pytest.raises(ValueError, match=message):
        embeddings.class_labels(cond, num_classes, 2)


@pytest.mark.parametrize(("shape", "message"), [([3], r"\[3\]"), ([2, 1], r"\[2, 1\]")])
def test_time_labels_that_do_not_fit_are_explained(shape, message):
    with pytest.raises(ValueError, match=r"t must have shape \[\] or \[2\]; got " + message):
        embeddings.time_labels(jnp.zeros(shape), 2, jnp.float32)
