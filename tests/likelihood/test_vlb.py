"""The variational bound and its losses against published numbers and closed forms."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats
from golden_files import load

import diffusers_fn as dfn
from diffusers_fn import likelihood, losses, oracles, parameterizations

LINEAR = dfn.make_noise_schedule(dfn.linear_betas(1000))
SCHEDULES = {"lin1000": LINEAR, "cos1000": dfn.make_noise_schedule(dfn.cosine_betas(1000))}
KINDS = {"EPSILON": parameterizations.epsilon, "START_X": parameterizations.x0}
# Both sides are in double precision. The published code computes var1 / var2 - 1, which loses a few thousand times
# 1e-16, on terms as small as 1e-9 bits.
RTOL, ATOL = 1e-8, 1e-12


def close(actual, wanted, rtol=RTOL, atol=ATOL):
    np.testing.assert_allclose(actual, wanted, rtol=rtol, atol=atol)


# The Gaussians.


@pytest.mark.usefixtures("x64")
def test_normal_kl_is_openais():
    golden = load("orig_gaussian_diffusion/losses")
    close(likelihood.normal_kl(*(jnp.asarray(a) for a in golden["kl_in"])), golden["kl_f64"])


def test_normal_kl_of_nearly_equal_variances_keeps_its_digits():
    # KL = r^2 / 4 + O(r^3) for a ratio exp(r); in float32 the textbook form has no digit left at r = 1e-4.
    assert abs(float(likelihood.normal_kl(0.0, jnp.float32(1e-3), 0.0, 0.0)) / 2.5008e-7 - 1) < 1e-3


@pytest.mark.parametrize("log_std", ["-6", "-4", "-1.5", "0.5"])
@pytest.mark.usefixtures("x64")
def test_approximate_discretized_gaussian_is_openais(log_std):
    golden = load("orig_gaussian_diffusion/losses")
    x, mean = jnp.asarray(golden["dgll_x"]), jnp.asarray(golden["dgll_mean"])
    found = likelihood.discretized_gaussian_log_likelihood(
        x, mean, jnp.full_like(x, float(log_std)), approximate=True
    )  # fmt: skip
    # A probability is a difference of two numbers up to 1, each accurate to a few times 1e-16.
    np.testing.assert_allclose(np.exp(found), np.exp(golden[f"dgll_ls{log_std}_f64"]), rtol=1e-11, atol=1e-15)


def exact_log_probability(x, mean, std, num_levels):
    """By scipy in double precision, from the tails on the side where they are small."""
    half = 1 / (num_levels - 1)
    low, high = (x - half - mean) / std, (x + half - mean) / std
    low, high = np.where(x < -0.9999, -np.inf, low), np.where(x > 0.9999, np.inf, high)
    flip = low + high > 0
    low, high = np.where(flip, -high, low), np.where(flip, -low, high)
    return scipy.special.log_ndtr(high) + np.log1p(-np.exp(scipy.special.log_ndtr(low) - scipy.special.log_ndtr(high)))


@pytest.mark.parametrize("num_levels", [256, 17])
def test_discretized_gaussian_is_exact_in_float32(num_levels):
    x, mean, log_std = np.meshgrid(
        np.linspace(-1, 1, num_levels), np.linspace(-1.3, 1.1, 7), np.linspace(-7, 0.5, 6), indexing="ij"
    )
    x, mean, log_std = (a.astype(np.float32) for a in (x, mean, log_std))
    exact = jax.jit(functools.partial(likelihood.discretized_gaussian_log_likelihood, num_levels=num_levels))
    found = exact(jnp.asarray(x), jnp.asarray(mean), jnp.asarray(log_std))
    wanted = exact_log_probability(x.astype(float), mean.astype(float), np.exp(log_std.astype(float)), num_levels)
    # Near the mean: rounding of 1e-7 relative to the probability of a bin, 2e-3 for the widest std. Far out: the square
    # of 2 / exp(-7) standard deviations, with twice the relative rounding of x and of 1 / std.
    np.testing.assert_allclose(found, wanted, rtol=2e-6, atol=3e-4 if num_levels == 256 else 2e-5)


def test_the_probabilities_of_the_grey_levels_sum_to_one():
    x = jnp.linspace(-1, 1, 17)
    log_prob = jax.jit(functools.partial(likelihood.discretized_gaussian_log_likelihood, num_levels=17))
    log_p = log_prob(x, jnp.full_like(x, 0.3), jnp.full_like(x, -1.0))
    assert abs(float(jnp.exp(log_p).sum()) - 1) < 1e-5


def test_gradients_are_finite_for_probabilities_that_underflow():
    x = jnp.array([-1.0, 0.0, 1.0])

    def nll(mean, log_std):
        return -likelihood.discretized_gaussian_log_likelihood(x, mean, jnp.full_like(x, log_std)).sum()

    slopes = jax.jit(jax.grad(nll, (0, 1)))
    for mean in (-1.0, 0.5, 30.0):
        for log_std in (-9.0, 12.0):
            gradient = slopes(jnp.full((3,), mean), log_std)
            assert all(np.all(np.isfinite(part)) for part in gradient), (mean, log_std, gradient)


# The terms.


def openai(name):
    """Inputs of the reference with channels last: (x_start, eps, t)."""
    golden = load("orig_gaussian_diffusion/calls")
    return [jnp.asarray(np.moveaxis(golden[k], 1, -1)) for k in ("x_start", "eps")] + [jnp.asarray(golden[f"{name}/t"])]


def network(x, t, learned):
    """The network of the reference's run, see its meta.json."""
    t = t.reshape(-1, 1, 1, 1)
    out, var_out = 0.7 * x + 0.2 * jnp.sin(3 * x + 0.01 * t), jnp.tanh(0.8 * x - 0.5 + 0.001 * t)
    return jnp.concatenate([out, var_out], axis=-1) if learned else out


def close_terms(found, wanted, t):
    """At t = 0 a probability near the minimum 1e-12 is accurate to 1e-16 / 1e-12, its log of about 27 to 1e-5 / 27."""
    np.testing.assert_array_less(abs(found - wanted), np.where(t == 0, 1e-6, RTOL) * abs(wanted) + ATOL)


CASES = [
    (name, kind, variance)
    for name in SCHEDULES
    for kind in KINDS
    for variance in ("FIXED_SMALL", "FIXED_LARGE", "LEARNED", "LEARNED_RANGE")
    if name == "lin1000" or (kind == "EPSILON" and variance in ("FIXED_SMALL", "LEARNED_RANGE"))
]


@pytest.mark.parametrize(("name", "kind", "variance"), CASES)
@pytest.mark.usefixtures("x64")
def test_terms_of_the_bound_are_openais(name, kind, variance):
    golden = load("orig_gaussian_diffusion/bounds")
    x_start, eps, t = openai(name)
    x_t = dfn.q_sample(SCHEDULES[name], x_start, t, eps)
    out = network(x_t, t, variance.startswith("LEARNED"))
    knobs = {"parameterization": KINDS[kind], "variance": getattr(dfn, variance.lower()), "approximate": True}
    terms = jax.jit(
        lambda *args: [
            likelihood.vb_terms_bpd(SCHEDULES[name], *args, clip_denoised=clip, **knobs).bpd for clip in (False, True)
        ]
    )
    for clip, found in enumerate(terms(out, x_start, x_t, t)):
        close_terms(found, golden[f"{name}/{kind}/{variance}/vb_clip{clip:d}_f64"], t)


@pytest.mark.parametrize(("name", "kind", "variance"), CASES)
@pytest.mark.usefixtures("x64")
def test_learned_variance_losses_are_openais(name, kind, variance):
    golden = load("orig_gaussian_diffusion/bounds")
    schedule, case = SCHEDULES[name], f"{name}/{kind}/{variance}"
    x_start, eps, t = openai(name)
    learned = variance.startswith("LEARNED")
    out = network(dfn.q_sample(schedule, x_start, t, eps), t, learned)
    knobs = {"parameterization": KINDS[kind], "variance": getattr(dfn, variance.lower()), "approximate": True}
    vlb = jax.jit(functools.partial(likelihood.vlb_loss, schedule, **knobs))(out, x_start, eps, t)
    close_terms(vlb, golden[f"{case}/loss_RESCALED_KL/loss_f64"], t)
    if learned:
        loss = jax.jit(
            lambda weight: likelihood.hybrid_loss(schedule, out, x_start, eps, t, vlb_weight=weight, **knobs)
        )
        hybrid, simple = loss(1e-3), loss(0.0)
        close_terms(hybrid, golden[f"{case}/loss_RESCALED_MSE/loss_f64"], t)
        close(simple, golden[f"{case}/loss_RESCALED_MSE/mse_f64"])


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.usefixtures("x64")
def test_prior_term_is_openais(name):
    golden = load("orig_gaussian_diffusion/bounds")
    close(likelihood.prior_bpd(SCHEDULES[name], openai(name)[0]), golden[f"{name}/prior_bpd_f64"])


@pytest.mark.parametrize(("square", "wanted"), [(1 / 4, 7.3e-6), (1 / 3, 9.7e-6)])
def test_prior_term_of_the_linear_schedule(square, wanted):
    # (mean^2 alpha_bar + var - 1 - log var) / (2 log 2) at alpha_bar = 4.036e-5, to the two digits given here.
    found = float(likelihood.prior_bpd(LINEAR, jnp.full((1, 5), np.sqrt(square), jnp.float32))[0])
    assert abs(found - wanted) < 0.06e-6


# The bound.


SHORT = dfn.make_noise_schedule(dfn.linear_betas(50, 2e-3, 0.4))
STD = 0.25


def expected_terms(schedule, mean, std, variance):
    """E[L_t] in nats for t >= 1, N(mean, std^2) data and their exact denoiser: the closed form in double precision."""
    alpha_bar, alpha_bar_prev = schedule.alphas_cumprod, schedule.alphas_cumprod_prev
    # The predicted x_0 is the mean of p(x_0 | x_t), so the variance of its error is that of p(x_0 | x_t).
    error = std**2 * (1 - alpha_bar) / (alpha_bar * std**2 + 1 - alpha_bar)
    true = schedule.posterior_variance[1:]
    ours = true if variance is dfn.fixed_small else schedule.betas[1:]
    square = (schedule.posterior_mean_coef1**2 * error)[1:]
    assert alpha_bar_prev[0] == 1.0
    return 0.5 * (np.log(ours / true) + true / ours + square / ours - 1)


@pytest.fixture(scope="module")
def bounds():
    """Data x0 and {variance: Bound}: 2,000 draws of N(0.25, STD^2) with eight entries, rounded to 256 levels."""
    x0 = 0.25 + STD * np.random.default_rng(0).standard_normal((2000, 8))
    x0 = jnp.asarray(np.clip(np.round(127.5 * (x0 + 1)), 0, 255) / 127.5 - 1, jnp.float32)
    score = jax.jit(likelihood.calc_bpd, static_argnames=("denoise", "variance", "clip_denoised"))
    denoise = oracles.gaussian(0.25, STD)
    return x0, {
        variance: score(jax.random.key(1), SHORT, denoise, x0, variance=variance, clip_denoised=False)
        for variance in (dfn.fixed_small, dfn.fixed_large)
    }


@pytest.mark.parametrize("variance", [dfn.fixed_small, dfn.fixed_large], ids=lambda v: v.name)
def test_terms_of_gaussian_data_are_their_closed_form(bounds, variance):
    x0, found = bounds[0], bounds[1][variance]
    wanted = expected_terms(SHORT, 0.25, STD, variance) / np.log(2)
    vb = np.asarray(found.vb, np.float64)[:, 1:]
    standard_error = vb.std(axis=0) / np.sqrt(vb.shape[0])
    assert np.all(np.abs(vb.mean(axis=0) - wanted) < 4.5 * standard_error)  # for 49 terms together
    np.testing.assert_allclose(found.total_bpd, found.prior_bpd + found.vb.sum(axis=1), rtol=1e-6)
    # The error of x0 is the variance of p(x_0 | x_t); that of the noise is alpha^2 / sigma^2 times it.
    alpha_bar = SHORT.alphas_cumprod
    error = STD**2 * (1 - alpha_bar) / (alpha_bar * STD**2 + 1 - alpha_bar)
    for name, value in (("x0_mse", error), ("mse", error * alpha_bar / (1 - alpha_bar))):
        np.testing.assert_allclose(getattr(found, name).mean(axis=0), value, rtol=0.05)
    assert x0.shape == (2000, 8)


@pytest.mark.parametrize("variance", [dfn.fixed_small, dfn.fixed_large], ids=lambda v: v.name)
def test_bound_lies_above_the_entropy(bounds, variance):
    x0, found = bounds[0], bounds[1][variance]
    mass = scipy.stats.norm(0.25, STD)
    exact = -np.log2(mass.cdf(np.asarray(x0) + 1 / 255) - mass.cdf(np.asarray(x0) - 1 / 255)).mean()
    gap = float(found.total_bpd.mean()) - exact
    # beta_t is the better variance for Gaussian data (Ho et al. 2020, section 3.2).
    low, high = (0.0, 0.3) if variance is dfn.fixed_large else (0.3, 10.0)
    assert low < gap < high


def test_the_learned_range_bound_equals_the_fixed_ones_at_its_ends(bounds):
    x0 = bounds[0][:16]
    oracle = oracles.gaussian(0.25, STD)
    key = jax.random.key(2)

    @jax.jit
    def learned_range(frac):
        def denoise(x, level, cond=None):
            prediction = oracle(x, level)
            return dfn.Prediction(prediction.x0, prediction.eps, jnp.full_like(x, frac))

        return likelihood.calc_bpd(key, SHORT, denoise, x0, variance=dfn.learned_range)

    fixed_range = jax.jit(
        lambda variance: likelihood.calc_bpd(key, SHORT, oracle, x0, variance=variance), static_argnums=0
    )
    for frac, variance in ((0.0, dfn.fixed_small), (1.0, dfn.fixed_large)):
        learned, fixed = learned_range(frac), fixed_range(variance)
        if variance is dfn.fixed_small:
            np.testing.assert_allclose(learned.vb, fixed.vb, rtol=1e-4, atol=1e-6)
        else:  # at t = 0 fixed_large uses the posterior variance of t = 1, the learned range beta_0
            np.testing.assert_allclose(learned.vb[:, 1:], fixed.vb[:, 1:], rtol=1e-4, atol=1e-6)


def test_the_respaced_bound_evaluates_the_network_at_the_kept_timesteps():
    kept = np.array([0, 7, 20, 33, 49])
    schedule, labels = dfn.respace(SHORT, kept), []

    def denoise(x, level, cond=None):
        jax.debug.callback(lambda t: labels.append(float(t)), level.t)
        return oracles.gaussian(0.25, STD)(x, level)

    x0 = jnp.full((2, 3), 0.5)
    labelled = likelihood.calc_bpd(jax.random.key(0), schedule, denoise, x0, labels=kept)
    jax.effects_barrier()
    assert sorted(labels) == kept.tolist()
    plain = likelihood.calc_bpd(jax.random.key(0), schedule, oracles.gaussian(0.25, STD), x0)
    np.testing.assert_allclose(labelled.vb, plain.vb, rtol=1e-5)


def test_with_a_key_per_example_results_do_not_depend_on_the_batch():
    x0 = jnp.linspace(-0.9, 0.9, 12).reshape(4, 3)
    keys = jax.random.split(jax.random.key(3), 4)
    run = jax.jit(lambda keys, x0: likelihood.calc_bpd(keys, SHORT, oracles.gaussian(0.25, STD), x0))
    together, part = run(keys, x0), run(keys[2:], x0[2:])
    np.testing.assert_allclose(together.vb[2:], part.vb, rtol=1e-5, atol=1e-6)


# Gradients of the losses.


def test_each_part_of_the_hybrid_loss_trains_its_own_channels():
    x0, eps = jnp.linspace(-1, 1, 12).reshape(3, 4), jnp.linspace(1.5, -1, 12).reshape(3, 4)
    t = jnp.array([0, 300, 900])
    out = jnp.concatenate([0.8 * eps + 0.1, 0.3 * x0], axis=-1)

    def gradient(loss):
        return jax.jit(jax.grad(lambda out: loss(out).sum()))(out)

    hybrid = jax.jit(
        jax.grad(lambda out, weight: likelihood.hybrid_loss(LINEAR, out, x0, eps, t, vlb_weight=weight).sum())
    )
    both, simple = hybrid(out, 1e-3), hybrid(out, 0.0)
    plain = gradient(lambda out: losses.mse(out[:, :4], eps))
    np.testing.assert_array_equal(both[:, :4], plain[:, :4])  # L_vlb has no gradient in the mean channels
    np.testing.assert_array_equal(simple[:, 4:], 0.0)  # L_simple has none in the variance channels
    vlb = gradient(lambda out: likelihood.vlb_loss(LINEAR, out, x0, eps, t))
    np.testing.assert_allclose(both[:, 4:], 1e-3 * vlb[:, 4:], rtol=1e-4, atol=1e-9)
    assert np.all(np.abs(np.asarray(vlb)) > 0)  # vlb_loss trains both


def test_the_bound_at_pure_noise():
    """L_t of an x0 or v network is finite at alpha = 0; that of an epsilon network is not, and is refused."""
    schedule = dfn.make_noise_schedule(dfn.zero_terminal_snr(dfn.linear_betas(10)))
    x0, eps = jnp.array([[0.5, -0.25]] * 2), jnp.array([[1.5, 0.25]] * 2)
    out = jnp.concatenate([x0 + 0.1, jnp.zeros((2, 2))], axis=-1)

    @jax.value_and_grad
    def loss(out, t, parameterization):
        return jnp.sum(likelihood.vlb_loss(schedule, out, x0, eps, t, parameterization=parameterization))

    step = jax.jit(loss, static_argnums=2)
    for parameterization in (parameterizations.x0, parameterizations.v):
        value, gradient = step(out, jnp.array([0, 9]), parameterization)
        assert np.isfinite(value)
        assert np.isfinite(gradient).all()
    with pytest.raises(ValueError, match=r"infinite at pure noise .* 'epsilon': use v or x0"):
        step(out, jnp.array([0, 9]), parameterizations.epsilon)
    known = np.array([0, 8])  # leaves pure noise out
    assert np.isfinite(jax.jit(lambda out: loss(out, known, parameterizations.epsilon)[0])(out))


def test_descent_on_the_bound_finds_the_best_variance():
    """For Gaussian data and the exact mean it is beta_tilde + coef1^2 error, from the closed form of the term."""
    t, size = 25, 4000
    x0 = 0.25 + STD * jax.random.normal(jax.random.key(0), (size, 1))
    eps = jax.random.normal(jax.random.key(1), (size, 1))
    ts = jnp.full((size,), t)
    mean = oracles.gaussian(0.25, STD)(dfn.q_sample(SHORT, x0, ts, eps), dfn.level_at(SHORT, jnp.asarray(t))).eps
    low, high = SHORT.posterior_log_variance_clipped[t], np.log(SHORT.betas[t])

    def loss(v):
        out = jnp.concatenate([mean, jnp.full_like(mean, v)], axis=-1)
        return likelihood.vlb_loss(SHORT, out, x0, eps, ts).mean()

    v = jnp.float32(0.0)
    slope, curvature = jax.jit(jax.grad(loss)), jax.jit(jax.grad(jax.grad(loss)))
    for _ in range(6):  # Newton's method
        v -= slope(v) / curvature(v)
    frac = (float(v) + 1) / 2
    alpha_bar = SHORT.alphas_cumprod[t]
    error = STD**2 * (1 - alpha_bar) / (alpha_bar * STD**2 + 1 - alpha_bar)
    wanted = np.log(SHORT.posterior_variance[t] + SHORT.posterior_mean_coef1[t] ** 2 * error)
    # The relative standard error of a variance from 4,000 draws is sqrt(2 / 4000).
    assert abs(frac * high + (1 - frac) * low - wanted) < 4 * np.sqrt(2 / size)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda x: likelihood.hybrid_loss(LINEAR, x, x, x, jnp.array([3]), variance=dfn.fixed_small),
            "pass learned_range or learned; got fixed_small",
        ),
        (lambda x: likelihood.hybrid_loss(LINEAR, x, x, x, jnp.array([3])), "twice as many channels"),
        (lambda x: likelihood.discretized_gaussian_log_likelihood(x, x, x, num_levels=1), "at least 2; got 1"),
        (lambda x: likelihood.discretized_gaussian_log_likelihood(x, x, x[0]), "must have one shape"),
        (
            lambda x: likelihood.calc_bpd(jax.random.key(0), SHORT, oracles.gaussian(0.0, 1.0), x, labels=np.arange(3)),
            r"labels must be \[50\]",
        ),
        (
            lambda x: likelihood.calc_bpd(
                jax.random.key(0), SHORT, oracles.gaussian(0.0, 1.0), x, variance=dfn.learned_range
            ),
            "twice as many channels",
        ),
        (
            lambda x: likelihood.calc_bpd(
                jax.random.key(0),
                dfn.make_noise_schedule(dfn.zero_terminal_snr(dfn.linear_betas(20, 1e-3, 0.3))),
                dfn.make_denoiser(lambda params, x, t, cond: x, None, parameterizations.epsilon),
                x,
            ),
            "does not determine x0 at alpha = 0",
        ),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(jnp.zeros((1, 4)))
