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


# Limits worked out by hand, with the constants of WEIGHTS and PARAMETERIZATIONS. The error of x0 is -sigma / alpha
# times that of epsilon, and sigma / (alpha q - sigma p) times that of another output.
ALPHA, SIGMA, INF = 0.9, 0.8, np.inf
# At alpha = 0: SNR = 0. (on x0, on epsilon), the second the limit of the first over SNR.
PURE_NOISE = {
    "uniform": (1.0, INF),
    "snr": (0.0, 1.0),
    "min_snr": (0.0, 1.0),  # min(SNR, 2) / SNR
    "truncated_snr": (1.0, INF),
    "p2": (0.0, 0.5**-1.5),  # (k + SNR)^-gamma
    "edm": (1 / 0.6**2, INF),
    "sigmoid": (0.0, 1.0),  # 1 / (1 + SNR e^-bias)
}
# At sigma = 0: 1 / SNR = 0.
CLEAN = {
    "uniform": (1.0, 0.0),
    "snr": (INF, 1.0),
    "min_snr": (2.0, 0.0),
    "truncated_snr": (INF, 1.0),
    "p2": (0.0, 0.0),  # SNR^(1 - 1.5) and SNR^-1.5
    "edm": (INF, 1.0),
    "sigmoid": (np.exp(-1.0), 0.0),  # 1 / (1 / SNR + e^-bias)
}
# v: alpha^2 + sigma^2; velocity: alpha + sigma; edm: (0.7^2 alpha^2 + sigma^2) / (0.7 sqrt(0.7^2 alpha^2 + sigma^2)).
PURE_NOISE_FACTOR = {"x0": 1.0, "v": SIGMA**-2, "velocity": 1.0, "edm": 0.7**2}  # of the weight on x0
PURE_NOISE_FACTOR_EPS = {"epsilon": 1.0, "score": SIGMA**2}  # of the weight on epsilon
CLEAN_FACTOR = {"x0": 1.0}
CLEAN_FACTOR_EPS = {"epsilon": 1.0, "v": ALPHA**-2, "velocity": 1.0, "edm": 1.0}


def limit(end, weight, name):
    """The weight on the output at an end, infinite where there is none."""
    on_x0, on_eps = (PURE_NOISE if end == "noise" else CLEAN)[weight]
    factors, factors_eps = (
        (PURE_NOISE_FACTOR, PURE_NOISE_FACTOR_EPS) if end == "noise" else (CLEAN_FACTOR, CLEAN_FACTOR_EPS)
    )
    if name in factors:
        return on_x0 * factors[name]
    return on_eps * factors_eps[name] if name in factors_eps else INF


def loss_of(weight, name, level):
    x0, eps, out = jnp.array([[0.5, -1.0]]), jnp.array([[1.5, 0.2]]), jnp.array([[0.3, 0.4]])
    return losses.denoising_loss(out, x0, eps, level, PARAMETERIZATIONS[name], weight=weight)


@pytest.mark.parametrize("weight", WEIGHTS)
@pytest.mark.parametrize("end", ["noise", "clean"])
def test_weights_at_the_ends_are_their_limits(end, weight):
    kind = float if weight == "snr" else np.float64  # Python numbers too
    level = dfn.Level(*(kind(a) for a in ((0.0, SIGMA, 1.0) if end == "noise" else (ALPHA, 0.0, 0.0))))
    tiny = [0.0, 1e-30, 1e-20]  # whose squares float32 rounds to zero
    for name, parameterization in PARAMETERIZATIONS.items():
        wanted = limit(end, weight, name)
        converted = losses.output_weight(WEIGHTS[weight], parameterization)
        if np.isfinite(wanted):
            np.testing.assert_allclose(converted(level), wanted, rtol=1e-14)
            assert np.isfinite(loss_of(WEIGHTS[weight], name, level)).all()
        else:
            with pytest.raises(ValueError, match=r"is infinite at (alpha|sigma) = 0"):
                loss_of(WEIGHTS[weight], name, level)

        def at(small, converted=converted):
            given = (small, jnp.float32(SIGMA)) if end == "noise" else (jnp.float32(ALPHA), small)
            return converted(dfn.Level(*given, jnp.float32(0.0)))

        if (end, name) == ("clean", "score"):
            continue  # its target is infinite
        traced = jax.jit(jax.vmap(at))(jnp.array(tiny, jnp.float32))
        np.testing.assert_allclose(traced, np.full(3, wanted), rtol=1e-6, atol=2e-20)
        if np.isfinite(wanted):
            assert np.isfinite(jax.jit(jax.grad(at))(jnp.float32(0.0)))


@pytest.mark.parametrize(("weight", "name"), [("min_snr", "epsilon"), ("sigmoid", "score"), ("min_snr", "v")])
def test_the_loss_at_pure_noise_trains(weight, name):
    """One of two examples is pure noise, traced: the loss is the weight times the error, and so is its gradient."""
    x0, eps = jnp.array([[0.5], [0.5]]), jnp.array([[1.5], [1.5]])
    level = dfn.Level(jnp.array([0.0, 0.6]), jnp.array([1.0, 0.8]), jnp.zeros(2))

    @jax.jit
    @jax.value_and_grad
    def loss(out, level):
        each = losses.denoising_loss(out, x0, eps, level, PARAMETERIZATIONS[name], weight=WEIGHTS[weight])
        return each[0] + 0.0 * each[1]

    wanted = {"epsilon": 1.0, "score": 1.0, "v": 0.0}[name]
    target = {"epsilon": 1.5, "score": -1.5, "v": -0.5}[name]
    value, gradient = loss(jnp.array([[0.25], [0.25]]), level)
    assert float(value) == pytest.approx(wanted * (0.25 - target) ** 2)
    np.testing.assert_allclose(gradient, [[wanted * 2 * (0.25 - target)], [0.0]], rtol=1e-6)


def test_the_likelihood_weight_at_pure_noise():
    """-SNR' / 2 of SNR = ((1 - t) / t)^2 is (1 - t) / t^3, and of tan(pi t / 2)^-2 it falls to 0 as 1 - t too."""
    flow = losses.likelihood(dfn.processes.flow())
    np.testing.assert_allclose(flow(dfn.processes.flow()(0.75)), 0.25 / 0.75**3, rtol=1e-12)
    for process in (dfn.processes.flow(), dfn.processes.trigonometric()):
        weight = losses.likelihood(process)
        for name in ("x0", "v", "velocity", "edm"):
            converted = losses.output_weight(weight, PARAMETERIZATIONS[name])
            assert converted(process(1.0)) == 0.0
            traced = jax.jit(jax.value_and_grad(lambda a, c=converted: c(dfn.Level(a, jnp.float32(1), a))))
            assert np.isfinite(traced(jnp.float32(0.0))).all()
            assert traced(jnp.float32(0.0))[0] == 0.0
        with pytest.raises(ValueError, match="infinite at alpha = 0"):
            losses.output_weight(weight, parameterizations.epsilon)(process(1.0))


def test_a_weight_of_your_own_is_checked_at_pure_noise():
    own = losses.output_weight(lambda level: losses.snr(level) + 1, parameterizations.epsilon)
    np.testing.assert_allclose(own(dfn.Level(0.6, 0.8, 0.0)), 1 + (0.8 / 0.6) ** 2, rtol=1e-12)
    with pytest.raises(ValueError, match=r"'epsilon' is infinite at alpha = 0, sigma = 0.5"):
        own(dfn.Level(np.array([0.6, 0.0]), np.array([0.8, 0.5]), np.zeros(2)))


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
