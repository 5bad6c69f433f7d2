"""The dense encoder and decoder, and the Gaussian that encoders return."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusers_fn.backbones import SimpleDecoder, SimpleEncoder, diagonal_gaussian


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def silu(a):
    return a / (1 + np.exp(-a))


@pytest.mark.parametrize("shape", [(6,), (2, 3, 2)])
def test_encoder_and_decoder_are_dense_layers(rng, shape):
    x = rng.standard_normal([4, *shape]).astype(np.float32)
    encoder = SimpleEncoder(input_dim=shape, latent_dim=3, hidden_dims=(5,))
    decoder = SimpleDecoder(latent_dim=3, output_dim=shape, hidden_dims=(5,))
    assert encoder.is_image == decoder.is_image == (len(shape) > 1)
    weights = encoder.init(jax.random.key(0), x)["params"]
    mean, logvar = encoder.apply({"params": weights}, x)
    h = silu(x.reshape(4, -1) @ weights["dense_0"]["kernel"] + weights["dense_0"]["bias"][None])
    np.testing.assert_allclose(mean, h @ weights["mean"]["kernel"], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(logvar, h @ weights["logvar"]["kernel"], rtol=1e-4, atol=1e-5)

    weights = decoder.init(jax.random.key(1), mean)["params"]
    h = silu(mean @ weights["dense_0"]["kernel"])
    expected = (h @ weights["dense_out"]["kernel"]).reshape(x.shape)
    np.testing.assert_allclose(decoder.apply({"params": weights}, mean), expected, rtol=1e-4, atol=1e-5)


def test_log_variance_is_clipped():
    encoder = SimpleEncoder(input_dim=(1,), latent_dim=2, hidden_dims=())
    layer = {"kernel": jnp.array([[1.0, -1.0]]), "bias": jnp.zeros(2)}
    mean, logvar = encoder.apply({"params": {"mean": layer, "logvar": layer}}, jnp.array([[100.0]]))
    assert mean.tolist() == [[100.0, -100.0]]
    assert logvar.tolist() == [[20.0, -30.0]]


def test_results_are_float32_whatever_the_computation():
    encoder = SimpleEncoder(input_dim=(4,), latent_dim=2, dtype=jnp.bfloat16)
    (mean, logvar), variables = encoder.init_with_output(jax.random.key(0), jnp.ones([1, 4]))
    assert mean.dtype == logvar.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}


@pytest.mark.parametrize(
    ("net", "shape", "message"),
    [
        (SimpleEncoder((4, 4, 1), 2), (3, 4, 5, 1), r"x must have shape \[B, \*\(4, 4, 1\)\]; got \[3, 4, 5, 1\]"),
        (SimpleDecoder(2, (4,)), (3, 5), r"z must have shape \[B, 2\]; got \[3, 5\]"),
        (SimpleEncoder((), 2), (3,), r"input_dim must hold positive numbers; got \(\)"),
        (SimpleEncoder((4,), 2, (8, 0)), (3, 4), r"hidden_dims must hold positive numbers; got \(8, 0\)"),
        (SimpleDecoder(0, (4,)), (3, 0), r"latent_dim must hold positive numbers; got \(0,\)"),
    ],
)
def test_misuse_is_explained(net, shape, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(net.init, jax.random.key(0), jnp.zeros(shape))


def test_divergence_is_the_mean_of_the_log_ratio(rng):
    # Exact to the order of the quadrature: E_q[log q - log p] with 40 Gauss-Hermite nodes, one axis at a time.
    mean, logvar = rng.standard_normal([2, 3]), rng.standard_normal([2, 3])
    nodes, weights = np.polynomial.hermite_e.hermegauss(40)
    z = mean[..., None] + np.exp(logvar / 2)[..., None] * nodes
    log_ratio = -(nodes**2) / 2 - logvar[..., None] / 2 + z**2 / 2
    expected = (log_ratio * weights).sum(-1).sum(-1) / np.sqrt(2 * np.pi)
    kl = diagonal_gaussian.kl_to_standard_normal(jnp.asarray(mean, jnp.float32), jnp.asarray(logvar, jnp.float32))
    np.testing.assert_allclose(kl, expected, rtol=1e-5)


def test_divergence_is_accurate_near_zero():
    logvar = jnp.full([1, 1], 1e-3, jnp.float32)
    kl = diagonal_gaussian.kl_to_standard_normal(jnp.zeros([1, 1]), logvar)
    np.testing.assert_allclose(kl, [0.5 * (np.expm1(1e-3) - 1e-3)], rtol=1e-3)  # exp would lose half of it


def test_likelihood_integrates_to_one():
    grid = jnp.linspace(-8, 8, 2001)[:, None]
    mean, logvar = jnp.full([2001, 1], 0.3), jnp.full([2001, 1], -0.7)
    density = np.exp(-diagonal_gaussian.negative_log_likelihood(grid, mean, logvar))
    np.testing.assert_allclose(density.sum() * 16 / 2000, 1, rtol=1e-5)


def test_draws_have_the_mean_and_the_variance_and_pass_gradients():
    mean, logvar = jnp.full([100_000], 2.0), jnp.full([100_000], np.log(0.25))
    z, vjp = jax.vjp(lambda m, v: diagonal_gaussian.reparameterize(jax.random.key(0), m, v), mean, logvar)
    assert abs(z.mean() - 2) < 5 * 0.5 / np.sqrt(100_000)
    np.testing.assert_allclose(z.var(), 0.25, rtol=5 * np.sqrt(2 / 100_000))
    to_mean, to_logvar = vjp(jnp.ones_like(z))
    np.testing.assert_array_equal(to_mean, 1)
    np.testing.assert_allclose(to_logvar, (z - mean) / 2, atol=1e-5)  # d z / d logvar = std eps / 2
