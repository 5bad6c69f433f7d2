"""Posterior guidance: PiGDM is exact on Gaussian data, DPS converges to the posterior with corrector steps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffusers_fn as dfn
from diffusers_fn import grids, guidance, oracles, solvers

# Data N(MEAN, STD^2) in three dimensions, measured in two of them: y = A x0 + noise.
A = np.array([[0.9, -0.4, 0.3], [0.2, 0.7, -1.1]])
MEAN, STD = np.array([0.3, -0.5, 0.2]), 0.8
Y = np.array([0.7, -1.1])
LEVELS = [dfn.Level(1.0, 5.0, 0.0), dfn.Level(0.8, 0.6, 0.0), dfn.Level(0.3, 0.95, 0.0), dfn.Level(0.99, 0.02, 0.0)]


def operator(x):
    return jnp.matmul(x, A.T.astype(x.dtype), precision="highest")


def prior(x, level, cond=None):
    return oracles.gaussian(MEAN, STD)(x, level)


def posterior(a, y, noise_std, mean, var):
    """Mean of x0 ~ N(mean, var I) given y = a x0 + noise, in NumPy."""
    system = var * a @ a.T + noise_std**2 * np.eye(len(a))
    return mean + var * a.T @ np.linalg.solve(system, y - a @ mean)


@pytest.mark.parametrize("noise_std", [0.0, 0.1, 2.0])
@pytest.mark.parametrize("level", LEVELS, ids=lambda level: f"{level.alpha}-{level.sigma}")
@pytest.mark.usefixtures("x64")
def test_pigdm_on_gaussian_data_is_the_exact_denoiser_given_y(level, noise_std):
    """E[x0 | x, y], where x and y are independent measurements of x0."""
    x = np.array([[1.0, -0.3, 0.4], [-2.0, 0.1, 0.9]])
    var = 1 / (1 / STD**2 + (level.alpha / level.sigma) ** 2)
    given_x = MEAN + var * level.alpha / level.sigma**2 * (x - level.alpha * MEAN)
    wanted = np.stack([posterior(A, Y, noise_std, mean, var) for mean in given_x])
    transform = guidance.pigdm(operator, np.stack([Y, Y]), noise_std=noise_std, data_std=STD, tolerance=1e-13)
    prediction = jax.jit(transform(prior))(jnp.asarray(x), level)
    np.testing.assert_allclose(prediction.x0, wanted, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(level.alpha * prediction.x0 + level.sigma * prediction.eps, x, atol=1e-9)


@pytest.mark.usefixtures("x64")
def test_levels_and_noise_may_differ_per_example():
    level = dfn.Level(jnp.array([0.8, 0.3]), jnp.array([0.6, 0.95]), jnp.zeros(2))
    noise, x = jnp.array([0.1, 0.5]), jnp.array([[1.0, -0.3, 0.4], [-2.0, 0.1, 0.9]])
    y = jnp.asarray(np.stack([Y, -Y]))

    def guided(y, x, level, noise):
        transform = guidance.pigdm(operator, y, noise_std=noise, data_std=STD, tolerance=1e-13)
        return transform(prior)(x, level).x0

    run = jax.jit(guided)
    both = run(y, x, level, noise)
    for i in range(2):
        alone = run(y[i : i + 1], x[i : i + 1], level[i], noise[i])
        np.testing.assert_allclose(both[i], alone[0], rtol=1e-12)


# The means of samples: every map here is affine, so a noiseless run from the mean of the start returns the mean.


def sample_mean(transform, solver, levels, replayed_noise):
    replayed_noise.value = np.zeros((1, 3))
    start = jnp.asarray(levels.alpha[0] * MEAN)[None]
    return np.asarray(dfn.sample(jax.random.key(0), transform(prior), solver, start).x0[0])


def relative_error(ours, noise_std):
    wanted = posterior(A, Y, noise_std, MEAN, STD**2)
    return np.abs(ours - wanted).max() / np.abs(wanted - MEAN).max()


def plan(num):
    return grids.at_ratios(np.geomspace(50.0, 0.01, num), dfn.processes.vp())


@pytest.mark.parametrize("noise_std", [0.0, 0.5])
@pytest.mark.usefixtures("x64")
def test_samples_by_pigdm_have_the_posterior_mean(noise_std, replayed_noise):
    transform = guidance.pigdm(operator, Y[None], noise_std=noise_std, data_std=STD, tolerance=1e-13)
    mean = sample_mean(transform, solvers.ancestral(plan(200)), plan(200), replayed_noise)
    assert relative_error(mean, noise_std) < 1e-3  # the start, at sigma / alpha = 50, ignores y


@pytest.mark.usefixtures("x64")
def test_samples_by_dps_converge_to_the_posterior_mean_with_corrector_steps(replayed_noise):
    """The approximate marginals of DPS are not those of one diffusion, so a plain sampler is biased for any number of
    steps; Langevin steps converge to the marginal of each level, and the last one is the posterior."""
    transform = guidance.dps(operator, Y[None], noise_std=0.5)

    def error(num, corrections):
        levels = plan(num)
        solver = solvers.ancestral(levels)
        if corrections:
            corrector = solvers.annealed_langevin(levels, 0.3, num_steps=corrections)
            solver = solvers.predictor_corrector(solver, corrector)
        return relative_error(sample_mean(transform, solver, levels, replayed_noise), 0.5)

    assert 0.05 < error(200, 0) < 0.25
    errors = [error(200, 1), error(200, 4), error(200, 16)]
    assert errors[2] < 0.015
    # First order in the number of corrections: four times as many leave a quarter of the error in the limit.
    assert errors[0] > 2 * errors[1] > 6 * errors[2]


@pytest.mark.usefixtures("x64")
def test_dps_is_its_gradient_by_hand():
    """x0_hat is affine in x with slope j = alpha STD^2 / (alpha^2 STD^2 + sigma^2)."""
    level, x = LEVELS[1], jnp.array([[1.0, -0.3, 0.4]])
    slope = 0.8 * STD**2 / ((0.8 * STD) ** 2 + 0.36)
    plain = prior(np.asarray(x), level)
    residual = Y - plain.x0[0] @ A.T
    for options, gradient in (
        ({"noise_std": 0.3}, slope * A.T @ residual / 0.09),
        ({}, slope * A.T @ residual / np.linalg.norm(residual)),
    ):
        guided = jax.jit(guidance.dps(operator, Y[None], scale=0.7, **options)(prior))(x, level)
        np.testing.assert_allclose(guided.eps[0] - plain.eps[0], -0.7 * 0.6 * gradient, rtol=1e-10)
        np.testing.assert_allclose(guided.x0[0] - plain.x0[0], 0.7 * 0.36 / 0.8 * gradient, rtol=1e-10)


@pytest.mark.usefixtures("x64")
def test_dps_by_steps_is_the_papers_algorithm(replayed_noise):
    """Algorithm 1 as in their code: each ancestral step minus zeta times the gradient of |y - A x0_hat|."""
    levels, zeta = plan(8), 0.4
    solver = solvers.ancestral(levels)
    draws = np.random.default_rng(0).standard_normal((8, 1, 3))
    x = start = np.array([[0.4, -0.8, 1.1]])
    for i in range(8):
        alpha, sigma = levels.alpha[i], levels.sigma[i]
        slope = alpha * STD**2 / ((alpha * STD) ** 2 + sigma**2)
        x0 = MEAN + slope * (x - alpha * MEAN)
        residual = Y - x0 @ A.T
        gradient = -slope * residual @ A / np.linalg.norm(residual)  # of |y - A x0_hat| in x
        coef_x0, coef_x, var = dfn.posterior(levels[i], levels[i + 1]) if i < 7 else (1.0, 0.0, 0.0)
        x = coef_x0 * x0 + coef_x * x + np.sqrt(var) * draws[i] - zeta * gradient
    transform = guidance.dps(operator, Y[None], scale=guidance.shift_scale(solver, zeta))
    scan = replayed_noise.scan(draws)
    ours = dfn.sample(jax.random.key(0), transform(prior), solver, jnp.asarray(start), scan=scan).x0
    np.testing.assert_allclose(ours, x, rtol=1e-8)


# Inpainting and super-resolution.


def test_inpainting_keeps_the_measured_entries_with_a_mask_per_example():
    """Entries are independent: the measured ones keep their values, the others are samples of the prior."""
    keep = jnp.array([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]])
    known = keep * jnp.array([[0.9, 5.0, -0.2], [5.0, 5.0, 1.5]])
    levels = grids.karras(20)
    x = 80.0 * jax.random.normal(jax.random.key(0), (2, 3))
    draw = jax.jit(
        lambda transform, x: dfn.sample(None, transform(prior), solvers.ddim(levels), x).x0, static_argnums=0
    )
    transform = guidance.pigdm(lambda x: keep * x, known, data_std=STD, max_iterations=1)
    plain = draw(lambda denoise: denoise, x)
    # The last level has sigma 0.002; the rest is rounding of x, which starts at 80.
    np.testing.assert_allclose(draw(transform, x), jnp.where(keep > 0, known, plain), atol=1e-4)


@pytest.mark.usefixtures("x64")
def test_super_resolution_keeps_the_means_and_takes_one_iteration():
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 4, 6, 3)))
    y = guidance.average_pool(jnp.asarray(np.random.default_rng(1).standard_normal((2, 4, 6, 3))), 2)
    assert y.shape == (2, 2, 3, 3)
    np.testing.assert_allclose(
        y[0, 0, 1, 2], np.random.default_rng(1).standard_normal((2, 4, 6, 3))[0, :2, 2:4, 2].mean()
    )
    denoise, level = oracles.gaussian(0.1, 0.5), LEVELS[1]
    transform = guidance.pigdm(lambda x: guidance.average_pool(x, 2), y, data_std=0.5, max_iterations=1)
    plain, guided = denoise(x, level).x0, transform(denoise)(x, level).x0
    np.testing.assert_allclose(guidance.average_pool(guided, 2), y, atol=1e-12)
    # The component in the null space of pooling is unchanged.
    details = lambda a: a - jnp.repeat(jnp.repeat(guidance.average_pool(a, 2), 2, axis=1), 2, axis=2)  # noqa: E731
    np.testing.assert_allclose(details(guided), details(plain), atol=1e-12)


@pytest.mark.usefixtures("x64")
def test_a_constant_in_the_operator_shifts_the_measurement():
    x, level, offset = jnp.array([[1.0, -0.3, 0.4]]), LEVELS[1], jnp.array([[1.0, -2.0]])
    run = lambda operator, y: guidance.pigdm(operator, y, noise_std=0.3, data_std=STD, tolerance=1e-13)(prior)(x, level)  # noqa: E731
    affine, linear = run(lambda x: operator(x) + offset, Y[None] + offset), run(operator, jnp.asarray(Y[None]))
    np.testing.assert_allclose(affine.x0, linear.x0, rtol=1e-9)


def test_a_changed_measurement_compiles_nothing():
    level, x = LEVELS[1], jnp.ones((1, 3))
    run = jax.jit(lambda y, s: guidance.pigdm(operator, y, noise_std=s, data_std=STD)(prior)(x, level).x0)
    first = run(jnp.asarray(Y[None], jnp.float32), 0.1)
    assert float(jnp.abs(run(jnp.ones((1, 2)), 0.2) - first).max()) > 0.1
    assert run._cache_size() == 1


@pytest.mark.parametrize(
    ("transform", "message"),
    [
        (lambda: guidance.pigdm(operator, jnp.ones((1, 3))), r"to the shape of y, \(1, 3\); it returns \(1, 2\)"),
        (lambda: guidance.dps(operator, jnp.ones(2)), r"to the shape of y, \(2,\); it returns \(1, 2\)"),
        (lambda: guidance.pigdm(lambda x: x**2, jnp.ones((1, 3))), r"needs a linear operator"),
        (lambda: guidance.pigdm(jnp.sin, jnp.ones((1, 3))), r"needs a linear operator"),
        (lambda: guidance.pigdm(operator, Y[None], noise_std=-1.0), r"noise_std must not be negative; got -1.0"),
        (lambda: guidance.pigdm(operator, Y[None], data_std=0.0), r"data_std must be positive"),
        (lambda: guidance.dps(operator, Y[None], noise_std=0.0), r"noise_std must be positive"),
        (
            lambda: guidance.dps(lambda x: guidance.average_pool(x, 2), Y[None]),
            r"\[B, H, W, C\] with H and W multiples",
        ),
    ],
)
def test_misuse_is_explained(transform, message):
    with pytest.raises(ValueError, match=message):
        transform()(prior)(jnp.ones((1, 3)), LEVELS[1])


def test_pigdm_at_clean_data_with_a_noisy_measurement_changes_nothing():
    """x determines x0 at sigma = 0: y adds nothing, whether the level is traced or not."""
    network = dfn.make_denoiser(lambda params, x, t, cond: 0.5 * x, None, dfn.parameterizations.epsilon)
    guided = guidance.pigdm(operator, jnp.asarray(Y, jnp.float32)[None], noise_std=0.5)(network)
    x, clean = jnp.array([[1.0, -0.3, 0.4]]), dfn.Level(1.0, 0.0, 0.0)
    for level in (clean, jax.tree.map(jnp.float32, clean)):
        prediction = jax.jit(guided)(x, level)
        np.testing.assert_array_equal(prediction.x0, x)
        np.testing.assert_array_equal(prediction.eps, 0.5 * x)
    with pytest.raises(ValueError, match="at sigma = 0 pigdm needs noise_std > 0"):
        guidance.pigdm(operator, jnp.asarray(Y, jnp.float32)[None])(network)(x, clean)


def test_dps_accepts_nonlinear_operators():
    guided = guidance.dps(lambda x: x[:, :1] ** 2, jnp.array([[4.0]]), noise_std=0.1)(prior)
    assert float(guided(jnp.ones((1, 3)), LEVELS[1]).x0[0, 0]) > float(prior(jnp.ones((1, 3)), LEVELS[1]).x0[0, 0])
