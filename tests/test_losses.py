"""Losses: weights convert between parameterizations, times follow their laws, exact denoisers are the minimum."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_files import load
from tables import PARAMETERIZATIONS

import diffusers_fn as dfn
from diffusers_fn import losses, oracles, parameterizations

WEIGHTS = {
    "uniform": losses.uniform,
    "snr": losses.snr,
    "min_snr": losses.min_snr(2.0),
    "truncated_snr": losses.truncated_snr,
    "p2": losses.p2(1.5, 0.5),
    "edm": losses.edm(0.6),
    "sigmoid": losses.sigmoid(-1.0),
}
# Off the VP circle; SNR from 0.14 to 2000, so that every min and max takes both sides.
OFF_CIRCLE = dfn.Level(np.array([1.3, 0.7, 1.0, 0.4, 0.9]), np.array([0.3, 1.9, 2.5, 0.5, 0.02]), np.arange(5.0))
ON_CIRCLE = dfn.Level(np.cos([0.1, 0.4, 0.9, 1.3]), np.sin([0.1, 0.4, 0.9, 1.3]), np.arange(4.0))


@pytest.fixture(scope="module")
def triple():
    rng = np.random.default_rng(7)
    return rng.gamma(2.0, 0.8, (5, 3, 2)) - 0.3, rng.standard_normal((5, 3, 2)), rng.standard_normal((5, 3, 2))


@pytest.mark.parametrize("weight", WEIGHTS)
@pytest.mark.parametrize("name", PARAMETERIZATIONS)
@pytest.mark.usefixtures("x64")
def test_a_weight_means_the_same_for_every_parameterization(name, weight, triple):
    x0, eps, out = map(jnp.asarray, triple)
    parameterization, weight = PARAMETERIZATIONS[name], WEIGHTS[weight]
    x = dfn.add_noise(x0, eps, OFF_CIRCLE)
    loss = losses.denoising_loss(out, x0, eps, OFF_CIRCLE, parameterization, weight=weight)
    x0_hat = dfn.to_prediction(parameterization, out, x, OFF_CIRCLE).x0
    wanted = weight(OFF_CIRCLE) * np.mean((x0 - x0_hat) ** 2, axis=(1, 2))
    # x0_hat of the network's eps and x loses log10(SNR) / 2 < 2 digits.
    np.testing.assert_allclose(loss, wanted, rtol=1e-12)


def test_weights_on_the_output_are_the_published_ones():
    snr = np.exp(dfn.log_snr(ON_CIRCLE))
    on = lambda weight, name: losses.output_weight(weight, PARAMETERIZATIONS[name])(ON_CIRCLE)  # noqa: E731
    close = functools.partial(np.testing.assert_allclose, rtol=1e-12)
    ones = np.ones(4)
    # Min-SNR-gamma as training scripts write it (Hang et al. 2023): x0, epsilon and v.
    close(on(losses.min_snr(5.0), "x0"), np.minimum(snr, 5.0))
    close(on(losses.min_snr(5.0), "epsilon"), np.minimum(snr, 5.0) / snr)
    close(on(losses.min_snr(5.0), "v"), np.minimum(snr, 5.0) / (snr + 1))
    assert snr.min() < 5.0 < snr.max()
    # The unweighted loss of epsilon has the weight SNR, that of v SNR + 1 (Salimans & Ho 2022, section 4).
    close(on(losses.snr, "epsilon"), ones)
    close(on(lambda level: losses.snr(level) + 1, "v"), ones)
    close(on(losses.p2(1.5, 0.5), "epsilon"), (0.5 + snr) ** -1.5)
    close(on(losses.sigmoid(-1.0), "epsilon"), 1 / (1 + np.exp(np.log(snr) + 1)))
    close(on(losses.truncated_snr, "x0"), np.maximum(snr, 1))
    # The loss of the score is weighted by sigma^2 to give that of epsilon (Song et al. 2021).
    close(on(losses.snr, "score"), ON_CIRCLE.sigma**2)


def test_edms_weight_makes_the_plain_loss_of_its_output():
    edm = parameterizations.edm(0.6)
    np.testing.assert_allclose(losses.output_weight(losses.edm(0.6), edm)(OFF_CIRCLE), 1.0, rtol=1e-12)
    # Table 1: (sigma^2 + sigma_data^2) / (sigma sigma_data)^2 where alpha = 1.
    level = dfn.Level(np.ones(3), np.array([0.1, 1.0, 9.0]), np.zeros(3))
    wanted = (level.sigma**2 + 0.36) / (level.sigma * 0.6) ** 2
    np.testing.assert_allclose(losses.edm(0.6)(level), wanted, rtol=1e-13)


def test_uniform_weight_on_flow_matching():
    # On alpha = 1 - sigma the velocity's error is that of x0 divided by sigma.
    sigma = np.array([0.1, 0.5, 0.9])
    converted = losses.output_weight(losses.uniform, parameterizations.velocity)(dfn.Level(1 - sigma, sigma, sigma))
    np.testing.assert_allclose(converted, sigma**2, rtol=1e-12)


# The weights as published, of x0's error: functions of SNR = alpha^2 / sigma^2.
PUBLISHED = {
    "uniform": lambda snr: 1.0,
    "snr": lambda snr: snr,
    "min_snr": lambda snr: min(snr, 2.0),
    "truncated_snr": lambda snr: max(snr, 1.0),
    "p2": lambda snr: snr / (0.5 + snr) ** 1.5,
    "edm": lambda snr: snr + 1 / 0.6**2,
    "sigmoid": lambda snr: snr / (1 + snr * np.e),
}


def limit(weight, parameterization, alpha, sigma):
    """weight (sigma / (alpha q - sigma p))^2 next to the end, where float64 has room; inf if it grows there."""
    at = []
    for tiny in (1e-40, 1e-60):
        level = dfn.Level(np.float64(alpha or tiny), np.float64(sigma or tiny), 0.0)
        p, q = parameterization.line(level)
        factor = (level.sigma / (level.alpha * q - level.sigma * p)) ** 2
        at.append(PUBLISHED[weight]((level.alpha / level.sigma) ** 2) * factor)
    return np.inf if at[1] > 1e6 * at[0] else 0.0 if at[1] < 1e-6 * at[0] else at[1]


@pytest.mark.parametrize("end", [(0.0, 1.5), (0.7, 0.0)], ids=["pure_noise", "clean"])
@pytest.mark.parametrize("name", PARAMETERIZATIONS)
def test_weights_at_both_ends_are_the_limits_of_the_published_formulas(name, end):
    """At the end itself, and next to it in float32, whose squares have no room for 1e-30."""
    parameterization = PARAMETERIZATIONS[name]
    for weight in WEIGHTS:
        wanted, converted = (
            limit(weight, parameterization, *end),
            losses.output_weight(WEIGHTS[weight], parameterization),
        )
        level = dfn.Level(*end, 0.0)
        if np.isinf(wanted):
            with pytest.raises(ValueError, match=r"weight of the loss is not finite .* alpha"):
                converted(level)
            continue
        np.testing.assert_allclose(converted(level), wanted, rtol=1e-12, atol=1e-30, err_msg=weight)
        for tiny in (0.0, 1e-30, 1e-20):
            at = dfn.Level(*(jnp.float32(value or tiny) for value in end), 0.0)
            np.testing.assert_allclose(jax.jit(converted)(at), wanted, rtol=1e-5, atol=1e-18, err_msg=weight)


def test_min_snr_of_epsilon_at_pure_noise_is_one_and_its_gradient_that_of_the_plain_loss():
    x0, eps = jnp.ones((2, 3)), jnp.full((2, 3), 0.5)
    level = dfn.Level(jnp.array([0.0, 0.6]), jnp.array([1.0, 0.8]), jnp.zeros(2))

    def mean(out, weight):
        return losses.denoising_loss(out, x0, eps, level, parameterizations.epsilon, weight=weight).sum()

    gradients = [jax.grad(mean)(jnp.zeros((2, 3)), weight) for weight in (losses.min_snr(5.0), None)]
    np.testing.assert_allclose(gradients[0], gradients[1], rtol=1e-6)  # both SNR lie below 5
    with pytest.raises(ValueError, match="not finite for the parameterization 'epsilon'"):
        mean(jnp.zeros((2, 3)), losses.uniform)


def test_a_score_has_no_target_for_clean_data():
    with pytest.raises(ValueError, match="'score' has an infinite target at sigma = 0"):
        parameterizations.target(parameterizations.score, jnp.ones((1, 2)), jnp.ones((1, 2)), dfn.Level(1.0, 0.0, 0.0))


def test_errors_by_hand():
    out, wanted = jnp.array([[0.0, 0.0], [1.0, -3.0]]), jnp.array([[0.5, 3.0], [1.0, -1.0]])
    np.testing.assert_array_equal(losses.mse(out, wanted), [(0.25 + 9) / 2, (0 + 4) / 2])
    np.testing.assert_array_equal(losses.l1(out, wanted), [(0.5 + 3) / 2, (0 + 2) / 2])
    # d^2 / 2 up to 1, |d| - 1/2 beyond.
    np.testing.assert_array_equal(losses.huber(out, wanted), [(0.125 + 2.5) / 2, (0 + 1.5) / 2])


def test_the_plain_loss_compares_the_output():
    x0, eps = jnp.ones((2, 4)), jnp.full((2, 4), 3.0)
    level = dfn.Level(jnp.array([0.5, 0.25]), jnp.array([0.25, 0.5]), jnp.zeros(2))
    for name, wanted in {"epsilon": 3.0, "x0": 1.0, "v": None, "velocity": 2.0}.items():
        wanted = np.array([0.5 * 3 - 0.25, 0.25 * 3 - 0.5]) if wanted is None else np.full(2, wanted)
        for error, size in ((losses.mse, wanted**2), (losses.l1, np.abs(wanted))):
            loss = losses.denoising_loss(jnp.zeros((2, 4)), x0, eps, level, PARAMETERIZATIONS[name], error=error)
            np.testing.assert_array_equal(loss, size.astype(np.float32))


@pytest.mark.parametrize("name", PARAMETERIZATIONS)
@pytest.mark.usefixtures("x64")
def test_the_exact_denoiser_is_the_minimum(name):
    """The expected loss has no slope at the oracle, along out + c, out + c x and out + c x^2."""
    parameterization, level = PARAMETERIZATIONS[name], dfn.Level(0.8, 0.9, 0.0)
    key0, key1, key2 = jax.random.split(jax.random.key(11), 3)
    n = 40_000
    coin = jax.random.bernoulli(key2, 0.3, (n, 1))
    x0 = jnp.where(coin, -0.9, 0.6) + jnp.where(coin, 0.2, 0.5) * jax.random.normal(key0, (n, 1))
    eps = jax.random.normal(key1, (n, 1))
    x = dfn.add_noise(x0, eps, level)
    exact = oracles.mixture([0.3, 0.7], [-0.9, 0.6], [0.2, 0.5])(x, level)
    out = dfn.target(parameterization, exact.x0, exact.eps, level)

    def loss(c, example=slice(None)):
        shift = c[0] + c[1] * x[example] + c[2] * x[example] ** 2
        return losses.denoising_loss(out[example] + shift, x0[example], eps[example], level, parameterization)

    gradients = jax.jit(jax.jacfwd(loss))(jnp.zeros(3))  # [n, 3]
    error = jnp.std(gradients, axis=0) / np.sqrt(n)
    assert np.all(np.abs(jnp.mean(gradients, axis=0)) < 4 * error)
    # And the minimum is a strict one: a shift of 0.1 costs 0.01 on average.
    assert float(jnp.mean(loss(jnp.array([0.1, 0.0, 0.0])) - loss(jnp.zeros(3)))) == pytest.approx(0.01, rel=0.5)


# Time samplers.

DRAWS = 20_000
KOLMOGOROV = 1.95  # P(sqrt(n) sup |F_n - F| > 1.95) = 0.001


def distance(values, cdf):
    """Returns sup |F_n - F|, the Kolmogorov-Smirnov statistic."""
    values = np.sort(np.asarray(values, np.float64))
    wanted = np.asarray(cdf(values), np.float64)
    n = values.size
    return max(np.max(np.arange(1, n + 1) / n - wanted), np.max(wanted - np.arange(n) / n))


@pytest.mark.parametrize("name", ["uniform_time", "antithetic_time", "stratified_time"])
def test_times_are_uniform(name):
    u = getattr(losses, name)(jax.random.key(3), DRAWS)
    assert u.shape == (DRAWS,)
    assert 0 <= float(u.min()) <= float(u.max()) < 1
    # Antithetic pairs: half as many independent draws.
    n = DRAWS / 2 if name == "antithetic_time" else DRAWS
    assert distance(u, lambda v: v) < KOLMOGOROV / np.sqrt(n)


@pytest.mark.parametrize("batch_size", [1, 2, 7])
def test_each_stratum_has_one(batch_size):
    for seed in range(20):
        u = losses.stratified_time(jax.random.key(seed), batch_size)
        np.testing.assert_array_equal(jnp.floor(u * batch_size), jnp.arange(batch_size))


def test_within_a_stratum_the_draw_is_uniform():
    u = jax.vmap(lambda key: losses.stratified_time(key, 4))(jax.random.split(jax.random.key(0), DRAWS // 4))
    assert distance((4 * u - jnp.arange(4.0)[None]).ravel(), lambda v: v) < KOLMOGOROV / np.sqrt(DRAWS)


@pytest.mark.parametrize("batch_size", [1, 2, 5, 8])
def test_antithetic_times_mirror_each_other(batch_size):
    u = np.asarray(losses.antithetic_time(jax.random.key(2), batch_size))
    half = (batch_size + 1) // 2
    assert u.shape == (batch_size,)
    np.testing.assert_array_equal(u[half:], np.float32(1) - u[: batch_size - half])


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (0.5, 0.7)])
def test_logit_normal_times(mean, std):
    u = losses.logit_normal_time(mean, std)(jax.random.key(5), DRAWS)
    assert 0 <= float(u.min()) <= float(u.max()) < 1
    normal_cdf = lambda v: jax.scipy.stats.norm.cdf((np.log(v) - np.log1p(-v) - mean) / std)  # noqa: E731
    assert distance(u, normal_cdf) < KOLMOGOROV / np.sqrt(DRAWS)


def test_extreme_logits_stay_below_one():
    assert float(losses.logit_normal_time(200.0, 1.0)(jax.random.key(0), 4).max()) < 1.0


@pytest.mark.parametrize("sampler", [losses.uniform_time, losses.logit_normal_time()])
def test_times_from_one_key_per_example_depend_on_that_key_alone(sampler):
    keys = jax.random.split(jax.random.key(1), 4)
    together = sampler(keys, 4)
    for i in range(4):
        np.testing.assert_array_equal(together[i], sampler(keys[i : i + 1], 1)[0])
    assert np.unique(together).size == 4


def test_loss_second_moment_is_openais():
    golden = load("orig_gaussian_diffusion/resample")
    ts, values, wanted = golden["ts"], golden["losses"], golden["weights_after_each"]
    wanted = wanted / wanted.sum(axis=1, keepdims=True)  # their weights are ones until the record is full
    # Their weights stop being uniform once each of the ten timesteps has `history` losses.
    full = int(np.argmax(np.ptp(wanted, axis=1) > 0))
    history = int(np.bincount(ts[: full + 1], minlength=10).min())
    probabilities = jax.jit(functools.partial(losses.time_probabilities, uniform_prob=0.01))  # as recorded
    update = jax.jit(losses.update_loss_second_moment)
    record = losses.loss_second_moment(10, history)
    for i in range(ts.size):
        record = update(record, jnp.asarray(ts[i : i + 1]), jnp.asarray(values[i : i + 1]))
        # Float32: the root of a mean of squares, normalised; a few roundings of 6e-8.
        np.testing.assert_allclose(probabilities(record), wanted[i], rtol=1e-6)
    at_once = update(losses.loss_second_moment(10, history), jnp.asarray(ts), jnp.asarray(values))
    jax.tree.map(np.testing.assert_array_equal, at_once, record)
    # The importance weights 1 / (T p) of the reference.
    p = probabilities(record)
    np.testing.assert_allclose(1 / (10 * p[golden["sample_idx_seed0"]]), golden["sample_importance_w"], rtol=1e-6)


def test_drawn_times_follow_the_probabilities_and_are_corrected_for():
    record = losses.loss_second_moment(4, history=1)
    record = losses.update_loss_second_moment(record, jnp.arange(4), jnp.array([1.0, 2.0, 3.0, 4.0]))
    p = np.array([0.1, 0.2, 0.3, 0.4])
    np.testing.assert_allclose(losses.time_probabilities(record, uniform_prob=0.0), p, rtol=1e-6)
    t, weight = losses.draw_times(jax.random.key(0), record, DRAWS, uniform_prob=0.0)
    frequencies = np.bincount(t, minlength=4) / DRAWS
    assert np.all(np.abs(frequencies - p) < 4 * np.sqrt(p * (1 - p) / DRAWS))
    np.testing.assert_allclose(weight, 1 / (4 * p[t]), rtol=1e-6)
    # Any function's weighted mean over the draws estimates its plain mean over t: here (0 + 1 + 4 + 9) / 4.
    terms = weight * t.astype(float) ** 2
    assert abs(float(terms.mean()) - 3.5) < 4 * float(terms.std()) / np.sqrt(DRAWS)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: losses.min_snr(0.0), "gamma must be positive; got 0.0"),
        (lambda: losses.p2(1.0, -1.0), "k must be positive; got -1.0"),
        (lambda: losses.edm(0.0), "sigma_data must be positive"),
        (lambda: losses.logit_normal_time(0.0, 0.0), "std must be positive"),
        (lambda: losses.loss_second_moment(0), "must be at least 1; got 0 and 10"),
        (lambda: losses.uniform_time(jax.random.split(jax.random.key(0), 3), 4), "3 keys for a batch of 4"),
        (
            lambda: losses.denoising_loss(
                jnp.ones((2, 6)), jnp.ones((2, 3)), jnp.ones((2, 3)), dfn.Level(1.0, 1.0, 0.0), parameterizations.v
            ),
            r"out must have the shape of x0, \(2, 3\); got \(2, 6\)",
        ),
        (
            lambda: losses.denoising_loss(
                jnp.ones((2, 3)), jnp.ones((2, 3), int), jnp.ones((2, 3)), dfn.Level(1.0, 1.0, 0.0), parameterizations.v
            ),
            "x0 must be an array of floating type",
        ),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
