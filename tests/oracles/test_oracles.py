"""Exact denoisers against integrals, sums and published trajectories."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_files import exact_denoiser, load

import diffusers_fn as dfn
from diffusers_fn import grids, oracles, solvers

LEVELS = [dfn.Level(0.8, 0.6, 0.0), dfn.Level(1.3, 0.4, 0.0), dfn.Level(0.3, 2.1, 0.0)]
WEIGHTS, MEANS, STDS = np.array([0.3, 0.7]), np.array([-0.9, 0.6]), np.array([0.2, 0.5])


def normal(x, mean, std):
    return np.exp(-0.5 * ((x - mean) / std) ** 2) / (std * np.sqrt(2 * np.pi))


def integrated(density, x, level):
    """(E[x0 | x], E[eps | x]) for scalars x, by the trapezoid rule over x0: exact to rounding for smooth densities."""
    x0 = np.linspace(-8, 8, 20_001)
    joint = density(x0) * normal(x[:, None], level.alpha * x0, level.sigma)
    mean = (joint * x0).sum(axis=1) / joint.sum(axis=1)
    return mean, (x - level.alpha * mean) / level.sigma


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.usefixtures("x64")
def test_the_gaussian_oracle_is_the_integral(level):
    x = np.linspace(-2.0, 3.0, 9)
    prediction = jax.jit(oracles.gaussian(0.4, 0.7))(jnp.asarray(x[:, None]), level)
    x0, eps = integrated(lambda x0: normal(x0, 0.4, 0.7), x, level)
    np.testing.assert_allclose(prediction.x0[:, 0], x0, rtol=1e-9, atol=1e-10)
    np.testing.assert_allclose(prediction.eps[:, 0], eps, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.usefixtures("x64")
def test_the_mixture_oracle_is_the_integral(level):
    x = np.linspace(-2.0, 3.0, 9)
    prediction = jax.jit(oracles.mixture(3 * WEIGHTS, MEANS, STDS))(jnp.asarray(x[:, None]), level)
    x0, eps = integrated(lambda x0: (WEIGHTS * normal(x0[:, None], MEANS, STDS)).sum(axis=1), x, level)
    np.testing.assert_allclose(prediction.x0[:, 0], x0, rtol=1e-9, atol=1e-10)
    np.testing.assert_allclose(prediction.eps[:, 0], eps, rtol=1e-9, atol=1e-10)


@pytest.mark.usefixtures("x64")
def test_a_mixture_of_whole_examples_is_bayes_rule():
    """Two components in the plane: one responsibility for the whole example."""
    means, stds = np.array([[-0.9, 0.3], [0.6, -0.5]]), np.array([[0.2, 0.4], [0.5, 0.3]])
    x = np.array([[0.2, 0.1], [-0.7, 0.4], [1.0, -1.0]])
    alpha, sigma = np.array([0.8, 1.2, 0.5]), np.array([0.6, 0.4, 0.9])
    level = dfn.Level(alpha, sigma, np.zeros(3))
    prediction = jax.jit(oracles.mixture(WEIGHTS, means, stds))(jnp.asarray(x), level)
    a, s = alpha[:, None], sigma[:, None]
    std = [np.sqrt((a * sd) ** 2 + s**2) for sd in stds]
    likelihood = [w * np.prod(normal(x, a * m, d), axis=1) for w, m, d in zip(WEIGHTS, means, std)]
    posterior = [m + a * sd**2 / d**2 * (x - a * m) for m, sd, d in zip(means, stds, std)]
    wanted = sum(r[:, None] * p for r, p in zip(likelihood, posterior)) / sum(likelihood)[:, None]
    np.testing.assert_allclose(prediction.x0, wanted, rtol=1e-12)
    np.testing.assert_allclose(a * prediction.x0 + s * prediction.eps, x, rtol=1e-12)
    # With independent entries each axis follows its own one-dimensional mixture.
    apart = jax.jit(oracles.mixture(WEIGHTS, means, stds, independent=True))(jnp.asarray(x), level)
    for axis in range(2):
        alone = oracles.mixture(WEIGHTS, means[:, axis], stds[:, axis])(x[:, axis : axis + 1], level)
        np.testing.assert_allclose(apart.x0[:, axis], alone.x0[:, 0], rtol=1e-12)
    assert np.abs(apart.x0 - prediction.x0).max() > 0.05


@pytest.mark.usefixtures("x64")
def test_the_finite_oracle_is_the_sum():
    rng = np.random.default_rng(0)
    data, x = rng.standard_normal((6, 2, 3)), rng.standard_normal((4, 2, 3))
    alpha, sigma = np.array([0.8, 1.2, 0.5, 0.05]), np.array([0.6, 0.4, 0.9, 2.0])
    prediction = jax.jit(oracles.finite(data))(jnp.asarray(x), dfn.Level(alpha, sigma, np.zeros(4)))
    for i in range(4):
        w = np.exp(-np.sum((x[i] - alpha[i] * data) ** 2, axis=(1, 2)) / (2 * sigma[i] ** 2))
        wanted = np.einsum("m,mij->ij", w, data) / w.sum()
        np.testing.assert_allclose(prediction.x0[i], wanted, rtol=1e-11)
        np.testing.assert_allclose(prediction.eps[i], (x[i] - alpha[i] * wanted) / sigma[i], rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize(
    "make",
    [
        lambda: oracles.gaussian(np.array([0.1, -0.4, 0.3]), 0.7),
        lambda: oracles.mixture(3 * WEIGHTS, MEANS, STDS),
        lambda: oracles.mixture(WEIGHTS, np.stack([MEANS, -MEANS, 0.5 * MEANS], 1), STDS[:, None] * np.ones(3)),
        lambda: oracles.mixture(WEIGHTS, MEANS, STDS, independent=True),
        lambda: oracles.finite(np.array([[0.1, 0.2, -0.3], [0.7, -0.6, 0.4]])),
        lambda: oracles.mixture_log_prob(WEIGHTS, MEANS, STDS),
        lambda: oracles.mixture_log_prob(WEIGHTS, MEANS, STDS, independent=True),
    ],
)
@pytest.mark.usefixtures("x64")
def test_numpy_in_is_float64_out(make):
    """NumPy inputs of any type give NumPy float64 results, the same numbers as in JAX."""
    oracle = make()
    x = np.random.default_rng(0).standard_normal((2, 3)).astype(np.float32)
    for level in (LEVELS[0], dfn.Level(np.array([0.8, 1.3]), np.array([0.6, 0.4]), np.zeros(2))):
        in_numpy, in_jax = oracle(x, level), jax.jit(oracle)(jnp.asarray(x, jnp.float64), level)
        for a, b in zip(jax.tree.leaves(in_numpy), jax.tree.leaves(in_jax), strict=True):
            assert isinstance(b, jax.Array)
            assert isinstance(a, np.ndarray)
            assert a.dtype == np.float64
            np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-13)


def test_a_jax_array_anywhere_makes_the_prediction_a_jax_array():
    ones, at = np.ones((2, 3)), dfn.Level(0.8, 0.6, 0.0)
    for oracle, x, level in (
        (oracles.gaussian(jnp.zeros(3), 1.0), ones, at),
        (oracles.mixture(jnp.ones(2), MEANS, STDS), ones, at),
        (oracles.finite(jnp.ones((1, 3))), ones, at),
        (oracles.gaussian(0.0, 1.0), jnp.asarray(ones), at),
        (oracles.gaussian(0.0, 1.0), ones, dfn.Level(jnp.array(0.8), 0.6, 0.0)),
    ):
        assert isinstance(oracle(x, level).x0, jax.Array)


def test_one_component_is_the_gaussian():
    x = jnp.linspace(-2, 2, 6).reshape(2, 3)
    level = dfn.Level(jnp.array([0.7, 1.4]), jnp.array([0.9, 0.2]), jnp.zeros(2))
    mean, std = jnp.array([0.1, -0.4, 0.3]), jnp.array([0.5, 1.0, 2.0])
    mixture = jax.jit(oracles.mixture([2.0], mean[None], std[None]))(x, level)
    gaussian = jax.jit(oracles.gaussian(mean, std))(x, level)
    np.testing.assert_allclose(mixture.x0, gaussian.x0, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(mixture.eps, gaussian.eps, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("oracle", [oracles.gaussian(0.4, 0.7), oracles.mixture([0.5, 0.5], [-1.0, 1.0], [0.5, 0.3])])
def test_clean_data_is_its_own_prediction(oracle):
    x = jnp.array([[0.3, -0.8], [1.2, 0.1]])
    prediction = oracle(x, dfn.Level(1.0, 0.0, 0.0))
    np.testing.assert_allclose(prediction.x0, x, rtol=1e-6, atol=1e-7)
    np.testing.assert_array_equal(prediction.eps, jnp.zeros_like(x))  # sigma times a finite number


@pytest.mark.parametrize(
    ("oracle", "mean"),
    [
        (oracles.gaussian(0.4, 0.7), [0.4, 0.4]),
        (oracles.mixture([0.3, 0.7], [-0.9, 0.6], [0.2, 0.5]), [0.15, 0.15]),
        (oracles.finite(np.array([[0.1, 0.2], [0.7, -0.6]])), [0.4, -0.2]),
    ],
)
def test_at_pure_noise_x0_is_the_mean(oracle, mean):
    x = jnp.array([[0.3, -0.8]])
    prediction = oracle(x, dfn.Level(1e-12, 1.0, 0.0))
    np.testing.assert_allclose(prediction.x0[0], mean, rtol=1e-6)
    np.testing.assert_allclose(prediction.eps, x, rtol=1e-6)


@pytest.mark.parametrize("sigma", [1e-3, 1e-4])
def test_a_little_noise_costs_no_digits(sigma):
    """x0 and eps have separate formulas: neither is computed as a difference divided by sigma."""
    x0 = jnp.array([[0.3, -0.8, 0.55]])
    eps = jnp.array([[1.0, -0.5, 0.25]])
    level = dfn.Level(1.0, sigma, 0.0)
    x = dfn.add_noise(x0, eps, level)
    prediction = oracles.gaussian(0.2, 0.5)(x, level)
    x_exact = np.asarray(x, np.float64)
    wanted = sigma / (0.25 + sigma**2) * (x_exact - 0.2)
    np.testing.assert_allclose(prediction.eps, wanted, rtol=1e-6)


# Published trajectories: DDIM and DDPM of diffusers with these denoisers.

ANALYTIC = load("traj/analytic")
SCHEDULES = {
    "ddim_lin_leading": dfn.linear_betas(1000),
    "ddim_sd_leading_off1_noone": dfn.scaled_linear_betas(1000),
    "ddim_sd_clip": dfn.scaled_linear_betas(1000),
    "ddiminv_sd_leading": dfn.scaled_linear_betas(1000),
    "ddpm_sd_clip_trailing": dfn.scaled_linear_betas(1000),
}


def whole_path(samples):
    return jnp.concatenate([samples.trace, samples.x0[None]])


@pytest.mark.parametrize("data", ["gauss", "gmm"])
@pytest.mark.parametrize(
    ("name", "n"),
    [(name, n) for name in ("ddim_lin_leading", "ddim_sd_leading_off1_noone") for n in (10, 20, 50)]
    + [("ddim_sd_clip", 20)],
)
@pytest.mark.usefixtures("x64")
def test_ddim_trajectories_are_diffusers(name, n, data):
    golden, schedule = load("traj/traj"), dfn.make_noise_schedule(SCHEDULES[name])
    timesteps = golden[f"{name}/{n}/timesteps"]
    to_alpha_zero = name.endswith("noone")  # their last step ends at alpha_bar[0], not at clean data
    levels = dfn.level_at(schedule, np.append(timesteps, 0) if to_alpha_zero else timesteps)
    np.testing.assert_allclose(levels.alpha[:n], golden[f"{name}/{n}/a_s_f64"][:, 0], rtol=1e-12)
    transform = dfn.clip_x0(keep_eps=True) if name == "ddim_sd_clip" else dfn.chain()
    samples = dfn.sample(
        None,
        transform(exact_denoiser(data)),
        solvers.ddim(levels),
        jnp.asarray(ANALYTIC["xT"]),
        emit=lambda step: step.x,
        final_denoise=not to_alpha_zero,
    )
    np.testing.assert_allclose(whole_path(samples), golden[f"{name}/{n}/{data}/traj_f64"], rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("data", ["gauss", "gmm"])
@pytest.mark.usefixtures("x64")
def test_ddpm_trajectories_are_diffusers(data, replayed_noise):
    golden, name = load("traj/traj"), "ddpm_sd_clip_trailing"
    schedule = dfn.make_noise_schedule(SCHEDULES[name])
    levels = grids.trailing(schedule, 20)
    np.testing.assert_array_equal(levels.t, golden[f"{name}/20/timesteps"])
    samples = dfn.sample(
        jax.random.key(0),
        dfn.clip_x0()(exact_denoiser(data)),
        solvers.ancestral(levels),
        jnp.asarray(ANALYTIC["xT"]),
        emit=lambda step: step.x,
        scan=replayed_noise.scan(golden["noise_b34a6fb952"]),
    )
    # The reference adds noise of standard deviation 1e-10 in the last step, where its variance is clamped at 1e-20.
    np.testing.assert_allclose(whole_path(samples), golden[f"{name}/20/{data}/traj_f64"], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("data", ["gauss", "gmm"])
@pytest.mark.parametrize("n", [10, 20, 50])
@pytest.mark.usefixtures("x64")
def test_inversion_trajectories_are_diffusers(n, data):
    """DDIMInverse: its first step uses the eps of level 0 at the unscaled clean data."""
    golden, name = load("traj/traj"), "ddiminv_sd_leading"
    schedule, denoise = dfn.make_noise_schedule(SCHEDULES[name]), jax.jit(exact_denoiser(data))
    path = golden[f"{name}/{n}/{data}/traj_f64"]
    x, t = jnp.asarray(path[0]), -1
    np.testing.assert_allclose(x, ANALYTIC["mu"] + ANALYTIC["sd"] * ANALYTIC["xT"], rtol=1e-12)
    for i, target in enumerate(golden[f"{name}/{n}/timesteps"]):
        eps = denoise(x, dfn.level_at(schedule, np.full(2, max(t, 0)))).eps
        x, t = dfn.ddim_reverse_step(schedule, x, np.full(2, t), np.full(2, target), eps), target
        np.testing.assert_allclose(x, path[i + 1], rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: oracles.mixture([0.5, 0.5], [1.0], [1.0]), r"means and stds \[K\]"),
        (lambda: oracles.mixture(0.5, [1.0], [1.0]), r"weights must be \[K\]"),
        (lambda: oracles.finite(np.ones((3, 4)))(jnp.ones((2, 3)), LEVELS[0]), "examples must have the data's shape"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_the_gaussian_oracle_refuses_a_mean_of_another_shape():
    with pytest.raises(ValueError, match="must be numbers or have an example's shape"):
        oracles.gaussian(np.ones(4), 1.0)(jnp.ones((2, 3)), LEVELS[0])


def test_draws_of_a_mixture_of_integers_with_one_std_per_component():
    """Components far apart: the standard deviation within each is its std."""
    draw = oracles.draw_mixture
    one = np.asarray(draw(jax.random.key(0), [0.5, 0.5], [-1000, 1000], [1, 3], 4000))
    for mean, std in ((-1000, 1), (1000, 3)):
        assert abs(one[np.sign(one) == np.sign(mean)].std() / std - 1) < 0.08  # five standard errors
    means, stds = jnp.array([[-1000.0, -1000.0], [1000.0, 1000.0]]), jnp.array([0.0, 3.0])
    two = np.asarray(draw(jax.random.key(1), [0.5, 0.5], means, stds, 2000))
    np.testing.assert_array_equal(two[two[:, 0] < 0], -1000.0)
    np.testing.assert_allclose(two[two[:, 0] > 0].std(axis=0), 3.0, rtol=0.12)
