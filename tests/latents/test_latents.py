"""Latent diffusion: exact distributions with a linear codec, the evidence bound, calibration, gradients."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffusers_fn as dfn
from diffusers_fn import latents, losses
from diffusers_fn.backbones import SimpleDecoder, SimpleEncoder
from diffusers_fn.latents import Codec


class Model(NamedTuple):
    """A model for `in_latent_space` that returns the inputs it receives."""

    loss: Any = lambda params, key, batch: (batch["image"].sum(1), dict(batch))
    sample: Any = lambda params, key, num_samples, **options: dfn.Samples(params[None].repeat(num_samples, 0), options)
    invert: Any = lambda params, x0, **options: (params, x0, options)


def points(mean, std):
    """2 D points whose mean and covariance are exactly mean and diag(std^2)."""
    directions = np.sqrt(len(std)) * np.diag(std)
    return mean + np.concatenate([directions, -directions])


@pytest.fixture(scope="module")
def linear():
    """Data x = Q u + b in five dimensions with u ~ N(m, diag(s^2)) in three, and the codec u = Q^T (x - b)."""
    rng = np.random.default_rng(0)
    q = np.linalg.qr(rng.standard_normal((5, 3)))[0].astype(np.float32)
    b = rng.standard_normal((1, 5)).astype(np.float32)
    m, s = np.array([2.0, -1.0, 0.5]), np.array([3.0, 0.7, 1.5])
    codec = Codec(lambda x: ((x - b) @ q, jnp.full((x.shape[0], 3), -jnp.inf)), lambda u: u @ q.T + b)
    return codec, q, b, m, s


# Samples.


@pytest.mark.parametrize("per_channel", [False, True])
def test_samples_have_the_exact_distribution_of_the_data(linear, per_channel):
    """Gaussian data, a linear codec and the exact denoiser of latents: the sampler is affine, so its values at 0 and at
    the unit vectors give the mean and a square root of the covariance, without draws."""
    codec, q, b, m, s = linear
    data = (points(m, s) @ q.T + b).astype(np.float32)
    scale, shift = latents.calibrate_codec(codec, [data[:4], data[4:]], per_channel=per_channel)
    oracle = dfn.oracles.gaussian((m - shift) * scale, s * scale)
    schedule = dfn.make_noise_schedule(dfn.linear_betas(1000))
    solver = dfn.solvers.heun(dfn.grids.uniform_log_snr(schedule, 200))

    def sample(params, key, num_samples, *, start):
        return dfn.sample(None, oracle, solver, start)

    model = latents.in_latent_space(Model(sample=sample), codec, scale=scale, shift=shift)
    start = jnp.concatenate([jnp.zeros((1, 3)), jnp.eye(3)])
    x = np.asarray(model.sample(None, None, 4, start=start).x0, np.float64)
    root = x[1:] - x[:1]
    np.testing.assert_allclose(x[0], m @ q.T + b[0], atol=0.02)  # the start, with alpha = 0.006, neglects the mean
    np.testing.assert_allclose(root.T @ root, (q * s**2) @ q.T, atol=2e-3 * np.max(s**2))


def test_samples_are_decoded_and_the_trace_is_not(linear):
    codec = linear[0]
    z = jnp.array([1.0, 2.0, 3.0])
    samples = latents.in_latent_space(Model(), codec, scale=2.0, shift=1.0).sample(z, None, 2, emit="all", cond=3)
    np.testing.assert_allclose(samples.x0, codec.decode(z[None] / 2 + 1).repeat(2, 0), rtol=1e-6)
    assert samples.trace == {"emit": "all", "cond": 3}


def test_inversion_begins_at_the_mean_latents(linear):
    codec, q, b, *_ = linear
    noisy = codec._replace(encode=lambda x: (codec.encode(x)[0], jnp.zeros((x.shape[0], 3))))
    x0 = jnp.asarray(np.random.default_rng(1).standard_normal((4, 5)), jnp.float32)
    own, z, options = latents.in_latent_space(Model(), noisy, scale=2.0, shift=1.0).invert("own", x0, cond=3)
    np.testing.assert_allclose(z, 2 * ((x0 - b) @ q - 1), rtol=1e-5, atol=1e-5)
    assert (own, options) == ("own", {"cond": 3})


# The loss of stage two.


@pytest.fixture(scope="module")
def noisy():
    """A codec with a positive variance of latents."""
    return Codec(lambda x: (2 * x[:, :2], jnp.sin(x[:, :2])), lambda z: jnp.concatenate([z, z], 1))


def given(model, key, **batch):
    return model.loss(None, key, batch)[1]


@pytest.mark.parametrize("keys", [(), (4,)])
def test_latents_encoded_before_give_the_same_loss(noisy, keys):
    model = latents.in_latent_space(Model(), noisy, scale=0.5, shift=0.25)
    key = jax.random.split(jax.random.key(0), keys)
    x = jax.random.normal(jax.random.key(1), (4, 3))
    mean, logvar = noisy.encode(x)
    label = jnp.arange(4)
    seen = given(model, key, image=x, label=label, noise=x)
    assert set(seen) == {"image", "label", "noise"}
    assert seen["label"] is label
    np.testing.assert_array_equal(seen["image"], given(model, key, mean=mean, logvar=logvar)["image"])
    eps = (seen["image"] / 0.5 + 0.25 - mean) / jnp.exp(logvar / 2)
    assert np.unique(np.round(eps, 4)).size == 8  # drawn, independently for each entry
    assert np.abs(eps).max() < 4.5
    np.testing.assert_array_equal(given(model, key, latent=mean)["image"], (mean - 0.25) * 0.5)


def test_with_a_key_per_example_the_loss_does_not_depend_on_the_batch(noisy):
    model = latents.in_latent_space(Model(), noisy)
    keys, x = jax.random.split(jax.random.key(0), 4), jax.random.normal(jax.random.key(1), (4, 3))
    together = given(model, keys, image=x)["image"]
    for i in range(2):
        alone = given(model, keys[i : i + 1], image=x[i : i + 1])["image"]
        np.testing.assert_array_equal(together[i : i + 1], alone)


def test_a_batch_split_over_devices_gives_the_same_latents(noisy):
    mesh = jax.sharding.Mesh(jax.devices(), ("batch",))
    model = latents.in_latent_space(Model(), noisy, scale=0.5)
    keys, x = jax.random.split(jax.random.key(0), 8), jax.random.normal(jax.random.key(1), (8, 3))
    run = jax.jit(lambda keys, x: given(model, keys, image=x)["image"])
    split = run(*dfn.training.split_batch((keys, x), mesh))
    assert len(split.sharding.device_set) == 8
    np.testing.assert_allclose(split, run(keys, x), rtol=1e-6)


def test_parameters_and_scale_are_arguments_of_one_program():
    """Two autoencoders and two scales share one compilation, and gradients pass through parameters and scale."""
    traces = []

    @jax.jit
    def loss(params, scale, shift, key, x):
        traces.append(None)
        codec = latents.make_codec(lambda p, x: (p * x, 0 * x), lambda p, z: z / p, params)
        model = latents.in_latent_space(Model(), codec, scale=scale, shift=shift)
        return model.loss(None, key, {"image": x})[0].sum()

    key, x = jax.random.key(0), jnp.ones((2, 3))
    for value in (1.0, 2.0):
        loss(value, np.float32(value), np.float32(0), key, x)
    assert len(traces) == 1
    slopes = jax.grad(loss, (0, 1, 2))(2.0, 3.0, 0.5, key, x)
    np.testing.assert_allclose(slopes[0], 3.0 * 6)  # d/dp sum (p x + eps - shift) scale
    np.testing.assert_allclose(slopes[2], -3.0 * 6)


# Scale and shift.


@pytest.mark.parametrize("per_channel", [False, True])
def test_calibration_gives_mean_zero_and_variance_one(per_channel):
    rng = np.random.default_rng(1)
    z = (rng.standard_normal((60, 2, 2, 3)) * [0.1, 5.0, 2.0] + [10.0, -1.0, 0.0]).astype(np.float32)
    scale, shift = latents.calibrate(z, per_channel=per_channel)
    assert scale.dtype == shift.dtype == np.float64
    assert scale.shape == shift.shape == ((3,) if per_channel else ())
    unit = np.asarray(latents.scale_latents(jnp.asarray(z), scale, shift), np.float64)
    axes = (0, 1, 2) if per_channel else None
    np.testing.assert_allclose(unit.std(axes), 1, rtol=1e-5)
    np.testing.assert_allclose(unit.mean(axes), 0, atol=2e-5)  # float32 rounding times 10 / 0.1


def test_calibration_counts_the_variance_of_the_encoder():
    """Draws from N(mean, exp(logvar)) have mean 0 and variance 1, within four standard errors."""
    rng = np.random.default_rng(2)
    mean, logvar = 0.5 + rng.standard_normal((4000, 3)), np.log(rng.uniform(0.5, 4.0, (4000, 3)))
    scale, shift = latents.calibrate(mean, logvar)
    z = latents.reparameterize(jax.random.key(0), *(jnp.asarray(a, jnp.float32) for a in (mean, logvar)))
    unit = np.asarray(latents.scale_latents(z, scale, shift))
    error = 1 / np.sqrt(unit.size)
    assert abs(unit.mean()) < 4 * error
    assert abs(unit.var() - 1) < 4 * np.sqrt(3) * error
    assert mean.std() * scale < 0.7  # the means alone have a smaller variance


@pytest.mark.parametrize("per_channel", [False, True])
def test_calibration_by_batches_is_that_of_all(per_channel):
    rng = np.random.default_rng(3)
    mean, logvar = 1e4 + rng.standard_normal((10, 4, 2)), rng.standard_normal((10, 4, 2))
    codec = Codec(lambda i: (mean[i], logvar[i]), lambda z: z)
    batches = [np.arange(3), np.arange(3, 4), np.arange(4, 10)]
    by_batches = latents.calibrate_codec(codec, iter(batches), per_channel=per_channel)
    for one, all_at_once in zip(by_batches, latents.calibrate(mean, logvar, per_channel=per_channel)):
        np.testing.assert_allclose(one, all_at_once, rtol=1e-11)


@pytest.mark.parametrize(
    ("scale", "shift"), [(0.25, 0.5), (np.float64(4.0), 0.0), (np.array([2.0, 4.0]), np.array([1.0, 0.5]))]
)
def test_scaled_encode_then_decode_is_the_identity(scale, shift):
    """Exact for powers of two. A draw of the scaled codec is the scaled draw."""
    codec = latents.scaled(Codec(lambda x: (x, jnp.cos(x)), lambda z: z), scale, shift)
    x = jnp.asarray(np.random.default_rng(4).integers(-8, 8, (5, 3, 2)) / 8, jnp.float32)
    mean, logvar = codec.encode(x)
    np.testing.assert_array_equal(codec.decode(mean), x)
    key = jax.random.key(0)
    draw = latents.scale_latents(latents.reparameterize(key, x, jnp.cos(x)), scale, shift)
    np.testing.assert_allclose(latents.reparameterize(key, mean, logvar), draw, rtol=1e-5, atol=1e-5)


# The loss of stage one.


def test_negative_evidence_bound_is_tight_at_the_exact_posterior(x64, replayed_noise):
    """For x = W z + std eps with orthogonal columns of W the posterior is Gaussian with a diagonal covariance, and the
    bound is the likelihood. The error is quadratic in the draw, so its mean over +- sqrt(d) e_i is exact."""
    rng = np.random.default_rng(5)
    w = np.linalg.qr(rng.standard_normal((4, 2)))[0] * [1.5, 0.4]
    std, x = 0.3, rng.standard_normal((3, 4))
    precision = np.sum(w**2, axis=0) / std**2 + 1
    variance = np.broadcast_to(1 / precision, (3, 2))
    codec = Codec(lambda x: (x @ w / std**2 / precision[None], jnp.log(variance)), lambda z: z @ w.T)
    bounds = []
    for draw in points(np.zeros(2), np.ones(2)):
        replayed_noise.value = np.broadcast_to(draw, (3, 2))
        loss, parts = latents.autoencoder_loss(
            jax.random.key(0), codec, jnp.asarray(x), error=latents.gaussian_nll(std), kl_weight=1.0
        )
        bounds.append(-4 * loss)
        np.testing.assert_allclose(loss, parts["reconstruction"] + parts["kl"] / 4, rtol=1e-12)
    covariance = w @ w.T + std**2 * np.eye(4)
    quadratic = np.sum(x * np.linalg.solve(covariance, x.T).T, axis=1)
    log_likelihood = -0.5 * (quadratic + np.linalg.slogdet(2 * np.pi * covariance)[1])
    np.testing.assert_allclose(np.mean(bounds, 0), log_likelihood, rtol=1e-10)


@pytest.mark.parametrize("error", [losses.mse, latents.perceptual(lambda x: [x**2, x[:, :1]], 0.5)])
def test_encoder_and_decoder_both_learn(x64, error):
    """Derivatives along random directions of each network's parameters, against finite differences. (A loss on latents
    only would give the decoder no gradient.)"""
    encoder = SimpleEncoder((4,), 2, (3,), dtype=jnp.float64, param_dtype=jnp.float64)
    decoder = SimpleDecoder(2, (4,), (3,), dtype=jnp.float64, param_dtype=jnp.float64)
    rng = np.random.default_rng(6)
    x = jnp.asarray(rng.standard_normal((5, 4)))
    shapes = jax.eval_shape(
        lambda key: {"encoder": encoder.init(key, x), "decoder": decoder.init(key, jnp.zeros((1, 2)))},
        jax.random.key(0),
    )
    draw = lambda: jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape), shapes)  # noqa: E731

    @jax.jit
    def loss(params):
        codec = latents.make_codec(
            lambda p, x: encoder.apply(p["encoder"], x), lambda p, z: decoder.apply(p["decoder"], z), params
        )
        return latents.autoencoder_loss(jax.random.key(1), codec, x, error=error, kl_weight=0.3)[0].mean()

    params, direction = draw(), draw()
    slopes = jax.jit(jax.grad(loss))(params)
    for network in ("encoder", "decoder"):

        def shifted(h, n=network):
            return {**params, n: jax.tree.map(lambda p, along: p + h * along, params[n], direction[n])}

        finite = (loss(shifted(1e-5)) - loss(shifted(-1e-5))) / 2e-5
        slope = sum(
            jnp.vdot(g, d) for g, d in zip(jax.tree.leaves(slopes[network]), jax.tree.leaves(direction[network]))
        )
        np.testing.assert_allclose(slope, finite, rtol=1e-6)
        assert all(np.all(np.isfinite(leaf)) and np.any(leaf != 0) for leaf in jax.tree.leaves(slopes[network]))


def test_feature_error_by_hand():
    out, wanted = jnp.array([[1.0, 2.0]]), jnp.array([[0.0, 4.0]])
    error = latents.perceptual(lambda x: {"square": x**2, "sum": x.sum(1, keepdims=True)}, 10.0, error=losses.l1)
    squares, sums = (1 + 144) / 2, 1.0
    np.testing.assert_allclose(error(out, wanted), [1.5 + 10 * (squares + sums)])
    slope = jax.grad(lambda w: latents.perceptual(lambda x: x**2, error=lambda o, w: 0 * o.sum(1))(out, w).sum())
    np.testing.assert_array_equal(slope(wanted), 0 * wanted)  # no gradient passes through the features of the data


# Wrong input.


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: latents.calibrate(np.ones((4, 2))), "the latents are constant: no scale"),
        (lambda: latents.calibrate([[1.0, 0.0], [1.0, 1.0]], per_channel=True), r"constant in channels \[0\]"),
        (lambda: latents.calibrate([[1.0, np.nan]]), "latents must be finite"),
        (lambda: latents.calibrate(np.ones((4, 2)), np.ones((4, 3))), r"must have one shape .* \(4, 2\) and \(4, 3\)"),
        (lambda: latents.calibrate_codec(Codec(None, None), []), "needs at least one batch"),
        (lambda: latents.scaled(Codec(None, None), -1.0), "scale must be positive; got -1.0"),
        (lambda: latents.scale_latents(jnp.ones((2, 4, 3)), np.ones(2)), r"shape \(3,\) .* or \(4, 3\); got \(2,\)"),
        (lambda: latents.gaussian_nll(0.0), "std must be positive; got 0.0"),
        (
            lambda: latents.reparameterize(jax.random.split(jax.random.key(0), 3), jnp.ones((2, 1)), jnp.ones((2, 1))),
            "one key per example; got 3 keys for 2 examples",
        ),
        (
            lambda: latents.autoencoder_loss(
                jax.random.key(0), Codec(lambda x: (x, x), lambda z: z[:, :1]), jnp.ones((2, 2))
            ),
            r"decode\(z\) must have the shape of x, \(2, 2\); got \(2, 1\)",
        ),
        (
            lambda: latents.autoencoder_loss(jax.random.key(0), Codec(None, None), jnp.ones((2, 2)), kl_weight=-1),
            "kl_weight must not be negative; got -1",
        ),
        (
            lambda: latents.in_latent_space(Model(), Codec(None, None)).loss(None, jax.random.key(0), {"mean": 1}),
            r"needs 'image', or 'mean' and 'logvar', or 'latent'; got \['mean'\]",
        ),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
