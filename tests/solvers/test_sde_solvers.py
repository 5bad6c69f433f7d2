"""Reverse-time SDEs, correctors, adaptive steps: exact variances, exact flows, other people's samples."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_files import exact_denoiser, load

import diffusers_fn as dfn
from diffusers_fn import grids, oracles, parameterizations, processes, solvers
from diffusers_fn.levels import posterior, transition

STD = 0.5
PROCESSES = {"vp": processes.vp(), "sub_vp": processes.sub_vp(), "ve": processes.ve()}


def uniform(process, n):
    return np.linspace(process.t_max, process.t_min, n)


def final_std(solver, start=None):
    """The exact std of the samples for data N(0, .5^2), by recursion over the rows, from prior noise or from start."""
    start = solver.rows.level.sigma[0] if start is None else start
    return oracles.marginal_moments(solver, 0.0, STD, start=(0.0, start))[1]


def exact_std(level):
    """The std of x0_hat at a level that was reached exactly, which is a little less than the data's."""
    return level.alpha * STD**2 / np.sqrt((level.alpha * STD) ** 2 + level.sigma**2)


# The distribution of the samples.


@pytest.mark.parametrize("name", PROCESSES)
def test_the_std_of_the_data_at_1000_steps(name):
    process = PROCESSES[name]
    t = uniform(process, 1000)
    assert final_std(solvers.euler_maruyama(process, t)) == pytest.approx(STD, rel=0.01)
    assert final_std(solvers.euler_maruyama(process, t, lambda t: 2 * process.rates(t)[1])) == pytest.approx(
        STD, rel=0.01
    )
    assert final_std(solvers.heun_sde(process, t)) == pytest.approx(STD, rel=0.01)
    assert final_std(solvers.reverse_diffusion(process(t))) == pytest.approx(STD, rel=0.01)


CHURNED = {
    "heun_sde": lambda process, t: solvers.heun_sde(process, t, 0.7),
    "heun_churn": lambda process, t: solvers.heun_churn(process(t), 3.0, s_noise=1.5, process=process),
    "euler_churn": lambda process, t: solvers.euler_churn(process(t), 3.0, s_noise=0.0, process=process),
    "restarts": lambda process, t: solvers.with_restarts(
        lambda levels: solvers.heun_sde(process, levels.t, 0.7), process(t), [(1, 3, 2)]
    ),
}


@pytest.mark.parametrize("make", CHURNED.values(), ids=CHURNED)
def test_noise_before_the_first_evaluation_leaves_the_start_where_it_is(make):
    process = processes.ve(0.1, 10.0)
    t = np.linspace(0.8, 0.1, 6)
    solver, first = make(process, t), process(t[:1])
    assert solver.rows.churn[0] > 0 or solver.rows.nominal_churn[0] > 0
    padded = solvers.pad(solver, solver.rows.x0.shape[0] + 2)
    np.testing.assert_allclose(padded.rows.level.sigma[:2], np.repeat(first.sigma, 2), rtol=1e-12)
    start = 0.3, float(np.hypot(STD, first.sigma[0]))
    moments = oracles.marginal_moments(solver, 0.3, STD, start=start)
    np.testing.assert_allclose(oracles.marginal_moments(solver, 0.3, STD), moments, rtol=1e-12)
    np.testing.assert_allclose(oracles.marginal_moments(padded, 0.3, STD), moments, rtol=1e-12)


@functools.cache
def one_program():
    return jax.jit(lambda key, solver, x: dfn.sample(key, oracles.gaussian(0.0, STD), solver, x))


@pytest.mark.long
@pytest.mark.usefixtures("quick_runs")
@pytest.mark.parametrize("name", PROCESSES)
def test_predictor_corrector_reaches_the_std_of_the_data_at_1000_steps(name):
    process = PROCESSES[name]
    levels = process(uniform(process, 1000))
    solver = solvers.predictor_corrector(solvers.reverse_diffusion(levels), solvers.langevin(levels, 0.1))
    x = levels.sigma[0] * jax.random.normal(jax.random.key(0), (80, 1000))
    samples = one_program()(jax.random.key(1), solver, x)
    # 80,000 numbers: the standard error of their std is .25%, so 1% is 4 of them.
    assert float(jnp.std(samples.x0)) == pytest.approx(STD, rel=0.01)


VP = processes.vp(0.5, 5.0)
CONVERGENT = {
    "euler": (lambda t: solvers.euler_maruyama(VP, t), 1),
    "euler, half": (lambda t: solvers.euler_maruyama(VP, t, lambda t: 0.5 * VP.rates(t)[1]), 1),
    "euler, constant": (lambda t: solvers.euler_maruyama(VP, t, 0.7), 1),
    "euler, none": (lambda t: solvers.euler_maruyama(VP, t, 0), 1),
    "heun": (lambda t: solvers.heun_sde(VP, t), 1),
    "heun, constant": (lambda t: solvers.heun_sde(VP, t, 0.7), 1),
    "heun, none": (lambda t: solvers.heun_sde(VP, t, 0), 2),
    "reverse": (lambda t: solvers.reverse_diffusion(VP(t)), 1),
    "reverse, none": (lambda t: solvers.reverse_diffusion(VP(t), probability_flow=True), 1),
}


@pytest.mark.parametrize(("make", "order"), CONVERGENT.values(), ids=CONVERGENT)
def test_the_variance_tends_to_the_exact_one(make, order):
    errors = []
    for n in (400, 800):
        t = np.linspace(1.0, 0.05, n)
        start, end = VP(t[0]), VP(t[-1])
        errors.append(abs(final_std(make(t), np.hypot(start.alpha * STD, start.sigma)) - exact_std(end)))
    assert np.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.15)


def test_reverse_diffusion_passes_the_checks_of_every_solver():
    oracles.check_solver(solvers.reverse_diffusion)
    oracles.check_solver(lambda levels: solvers.reverse_diffusion(levels, probability_flow=True), order=1)


@pytest.mark.parametrize("make", [processes.flow, processes.trigonometric], ids=["flow", "trigonometric"])
def test_a_finite_diffusion_starts_at_pure_noise(make):
    process, t = make(), np.linspace(1.0, 0.01, 1000)
    for diffusion in (lambda t: 2 * t, 0.0, 1.0):
        solver = solvers.euler_maruyama(process, t, diffusion)
        assert final_std(solver) == pytest.approx(exact_std(process(0.01)), rel=0.005)


def test_the_slopes_at_pure_noise_are_the_analytic_ones():
    """alpha = cos(pi t / 2), sigma = sin(pi t / 2): at t = 1 their slopes are -pi / 2 and 0."""
    rows = solvers.euler_maruyama(processes.trigonometric(), np.array([1.0, 0.5]), 0.0).rows
    np.testing.assert_allclose(rows.x0[0], 0.5 * np.pi / 2, rtol=1e-7)
    np.testing.assert_allclose(rows.eps[0], 0.0, atol=1e-7)


@pytest.mark.parametrize("tableau", [solvers.EULER, solvers.HEUN], ids=["euler", "heun"])
def test_times_in_float32_start_at_pure_noise_too(tableau):
    for process in (processes.flow(), processes.trigonometric()):
        make = lambda t, process=process: solvers.runge_kutta_in_time(process, t, tableau).rows  # noqa: E731
        wanted, rows = make(np.linspace(1, 0.1, 4)), make(jnp.linspace(1, 0.1, 4))
        for one, other in zip(jax.tree.leaves(rows), jax.tree.leaves(wanted), strict=True):
            np.testing.assert_allclose(one, other, rtol=2e-3, atol=1e-3)  # slopes from half the digits


def test_the_gradient_in_eta_passes_pure_noise():
    """On a plan from alpha = 0, against central differences."""
    levels, x = processes.flow()(np.linspace(1, 0.05, 6)), jax.random.normal(jax.random.key(0), (2, 3))
    denoise = oracles.gaussian(0.3, 0.5)
    for make in (solvers.ddim, solvers.dpmpp_1_sde, solvers.dpmpp_2m_sde, solvers.dpmpp_3m_sde):
        total = lambda eta, make=make: dfn.sample(jax.random.key(1), denoise, make(levels, eta), x).x0.sum()  # noqa: E731
        run = jax.jit(jax.value_and_grad(total))
        (above, _), (below, _), (_, slope) = run(0.51), run(0.49), run(0.5)
        by_differences = (above - below) / 0.02
        np.testing.assert_allclose(slope, by_differences, rtol=5e-3, atol=5e-4)  # 1e-6 / 0.02, a few
    through = jax.grad(lambda p: jnp.sum(solvers.ddim(processes.flow()(jnp.linspace(1, 0.05, 6) ** p), 1.0).rows.noise))
    assert np.isfinite(through(1.2))


@pytest.mark.long
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("taylor", [False, True])
def test_the_gradient_in_the_levels_passes_pure_noise(eta, taylor):
    """With respect to all that the tables of a plan from alpha = 0 hold, against central differences."""
    t = jnp.linspace(1, 0.05, 6)

    def tables(p):
        levels = processes.flow()(t**p)
        levels = dataclasses.replace(levels, sigma=levels.sigma * (1.0 + 0.3 * (p - 1.2)))
        made = [solvers.ddim(levels, eta), solvers.dpmpp_1_sde(levels, eta)]
        made += [make(levels, eta, taylor=taylor) for make in (solvers.dpmpp_2m_sde, solvers.dpmpp_3m_sde)]
        if eta == 0:
            made += [solvers.euler(levels), solvers.heun(levels)]
        return [(solver.rows.x, solver.rows.x0, solver.rows.eps, solver.rows.m, solver.rows.noise) for solver in made]

    slopes = jax.jacfwd(tables)(1.2)
    differences = jax.tree.map(lambda a, b: (a - b) / 2e-6, tables(1.2 + 1e-6), tables(1.2 - 1e-6))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), slopes, differences)
    total = lambda p: sum(jnp.sum(jnp.sin(leaf)) for leaf in jax.tree.leaves(tables(p)))  # noqa: E731
    np.testing.assert_allclose(jax.grad(total)(1.2), jax.jvp(total, (1.2,), (1.0,))[1], rtol=1e-9)


@functools.cache
def correlated_mixture():
    """Weights, means and stds of two components in two dimensions, and the mean and covariance of the whole."""
    w, means, stds = np.array([0.3, 0.7]), np.array([[-0.9, -0.5], [0.4, 0.6]]), np.array([[0.3, 0.5], [0.4, 0.2]])
    mean = w @ means
    return w, means, stds, mean, np.einsum("k,ki,kj->ij", w, means - mean, means - mean) + np.diag(w @ stds**2)


def by_euler_maruyama(process, t):
    return solvers.euler_maruyama(process, t)


def by_heun(process, t):
    return solvers.heun_sde(process, t)


def by_reverse_diffusion(process, t):
    return solvers.reverse_diffusion(process(t))


def by_annealed_langevin(process, t):
    levels = process(t)
    return solvers.predictor_corrector(solvers.ancestral(levels), solvers.annealed_langevin(levels, 0.1))


@pytest.mark.long
@pytest.mark.parametrize("make", [by_euler_maruyama, by_heun, by_reverse_diffusion, by_annealed_langevin])
def test_mean_and_covariance_of_an_asymmetric_mixture(make):
    w, means, stds, mean, covariance = correlated_mixture()
    process, n = processes.vp(), 10_000
    ends = dfn.log_snr(process(np.array([1.0, 1e-3])))
    solver = make(process, process.time(np.linspace(*ends, 400)))
    keys = jax.random.split(jax.random.key(3), 4)
    which = jax.random.choice(keys[0], 2, (n,), p=jnp.asarray(w))
    x0 = jnp.asarray(means)[which] + jnp.asarray(stds)[which] * jax.random.normal(keys[1], (n, 2))
    x = dfn.add_noise(x0, jax.random.normal(keys[2], (n, 2)), process(1.0))
    x0 = np.asarray(jax.jit(dfn.sample, static_argnums=1)(keys[3], oracles.mixture(w, means, stds), solver, x).x0)
    centred = x0 - mean
    products = np.einsum("bi,bj->bij", centred, centred)
    assert np.all(np.abs(x0.mean(0) - mean) < 4 * x0.std(0) / np.sqrt(n))
    assert np.all(np.abs(products.mean(0) - covariance) < 4 * products.std(0) / np.sqrt(n))


# Other people's samples: yang-song/score_sde_pytorch.

SONG_N = 30
SONG = {
    "vp": dict(process=processes.vp(), betas=np.linspace(0.1, 20.0, SONG_N)[::-1] / SONG_N),
    "subvp": dict(process=processes.sub_vp()),
    "ve": dict(process=processes.ve(), sigmas=np.geomspace(0.01, 50.0, SONG_N)[::-1]),
}
SONG_T = np.linspace(1.0, 1e-3, SONG_N)


def song_levels(sde):
    """The levels of the discrete chain, labelled by the time at which the network is asked: the two differ there."""
    if sde == "vp":
        alphas_cumprod = np.cumprod(1 - SONG["vp"]["betas"][::-1])[::-1]
        return dfn.Level(np.sqrt(alphas_cumprod), np.sqrt(1 - alphas_cumprod), SONG_T)
    return dfn.Level(np.ones(SONG_N), SONG["ve"]["sigmas"], SONG_T)


def with_last(solver, **columns):
    """The solver whose last row is not the final denoise but x' = x x + x0 x0_hat + eps eps_hat + noise z."""
    replaced = {name: getattr(solver.rows, name).copy() for name in columns}
    for name, value in columns.items():
        replaced[name][-1] = value
    return dataclasses.replace(solver, rows=dataclasses.replace(solver.rows, **replaced))


def song_predictor(sde, name, probability_flow):
    """N rows for N steps: the last step of the authors goes beyond the last level, by a rule of its own."""
    process, clean = SONG[sde]["process"], dfn.Level(1.0, 0.0, 0.0)
    if name == "euler_maruyama" or (sde == "subvp" and name == "reverse_diffusion"):
        solver = solvers.euler_maruyama(
            process, np.append(SONG_T, 5e-4), 0.0 if probability_flow else None, dt=1 / SONG_N
        )
        return dataclasses.replace(solver, rows=jax.tree.map(lambda a: a[:-1], solver.rows))
    levels = process(SONG_T) if sde == "subvp" else song_levels(sde)
    last = jax.tree.map(lambda a: a[-1], levels)
    if name == "reverse_diffusion":
        ratio, var = transition(last, clean)
        solver = solvers.reverse_diffusion(levels, probability_flow=probability_flow)
        columns = dict(x=2 - ratio, x0=0.0, eps=-(0.5 if probability_flow else 1.0) * var / last.sigma)
        return with_last(solver, **columns, **({} if probability_flow else {"noise": np.sqrt(var)}))
    if name == "ancestral_sampling":
        variance = dfn.fixed_large if sde == "vp" else dfn.fixed_small
        _, var = transition(last, clean)
        solver = solvers.ancestral(levels, variance)
        return with_last(solver, noise=np.sqrt(var) if sde == "vp" else posterior(last, clean)[2])
    assert name == "none"
    return with_last(solvers.linear_solver(levels, x=[1.0], x0=0.0, eps=0.0), x=1.0, x0=0.0)


def song_corrector(sde, name):
    levels = SONG[sde]["process"](SONG_T)
    scale = 1 - SONG["vp"]["betas"] if sde == "vp" else 1.0
    if name == "langevin":
        return solvers.langevin(levels, 0.16, scale=scale, average_norms=True)
    return solvers.annealed_langevin(levels, 0.16, scale=scale)


@functools.cache
def song_denoiser(sde, dist):
    """A score network: x and t alone decide its output, the exact score at t."""

    def score(params, x, t, cond):
        level = SONG[sde]["process"](t)
        return -exact_denoiser(dist)(x, level).eps / level.sigma

    return dfn.make_denoiser(score, None, parameterizations.score)


class OrderedNoise:
    """Stands in for jax.random.normal within a row: the recorded draws in their order."""

    def __init__(self, monkeypatch):
        self.queue = []
        monkeypatch.setattr(jax.random, "normal", lambda key, shape, dtype: self.queue.pop(0).astype(dtype))

    def run(self, denoise, solver, x, draws):
        """Returns what `sample` does; draws: [R, draws a row, ...]."""

        def scan(body, init, xs):
            def with_draws(carry, inputs):
                row_draws, xs = inputs
                self.queue = list(row_draws)
                return body(carry, xs)

            return jax.lax.scan(with_draws, init, (draws, xs))

        return dfn.sample(jax.random.key(0), denoise, solver, x, scan=scan).x0


@pytest.fixture
def ordered_noise(monkeypatch):
    return OrderedNoise(monkeypatch)


SONG_KEYS = [key for key in load("orig_score_sde/samplers") if key.startswith("pc/") and key.endswith("denoise1")]
SONG_KEYS = [key for key in SONG_KEYS if "/none/none/" not in key]


@pytest.mark.parametrize("key", SONG_KEYS)
def test_the_samples_of_score_sde(x64, ordered_noise, key):
    golden = load("orig_score_sde/samplers")
    _, sde, dist, predictor, corrector, flow, _ = key.split("/")
    solver = song_predictor(sde, predictor, probability_flow=flow == "pf1")
    per_row = int(predictor != "none") + int(corrector != "none")  # their ODE predictor draws noise and drops it
    if corrector != "none":
        solver = solvers.predictor_corrector(solver, song_corrector(sde, corrector))
    draws = golden["noise_bank"][: SONG_N * per_row].reshape(SONG_N, per_row, *golden["xT"].shape)
    x = golden["xT"] * (50.0 if sde == "ve" else 1.0)
    denoise = song_denoiser(sde, dist)
    noisy = ordered_noise.run(denoise, solver, jnp.asarray(x), draws)
    # With denoise=True the authors return the mean of the last predictor: its noise is left out again.
    own = solver.rows if corrector == "none" else solver.rows.predictor
    noise = 0.0 if own.noise is None else own.noise[-1] * draws[-1, -1]
    np.testing.assert_allclose(noisy - noise, golden[key], rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(noisy, golden[key.replace("denoise1", "denoise0")], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("predictor", ["ancestral_sampling", "reverse_diffusion"])
def test_the_authors_noiseless_end_is_the_final_denoise_for_ve(predictor):
    """Their last step goes to sigma = 0."""
    rows = song_predictor("ve", predictor, probability_flow=False).rows
    np.testing.assert_allclose(rows.x[-1] + rows.x0[-1], 1.0)  # x = x0_hat + sigma eps_hat
    np.testing.assert_allclose(rows.x[-1, 0] * rows.level.sigma[-1] + rows.eps[-1], 0.0, atol=1e-12)


# Other people's samples: willisma/SiT, whose time runs the other way.

SIT = {"Linear": processes.flow(), "GVP": processes.trigonometric(), "VP": processes.vp()}
SIT_KEYS = [key for key in load("orig_sit/sde") if key.startswith("sde/")]
SIT_KEYS.remove("sde/GVP/velocity/gauss/Heun/sigma/None/25")  # evaluates the network on clean data: no level of a plan


@pytest.mark.parametrize("key", SIT_KEYS)
def test_the_samples_of_sit(x64, ordered_noise, key):
    golden = load("orig_sit/sde")
    _, path, model, dist, method, form, last, _ = key.split("/")
    process = SIT[path]
    start = 1.0 if path == "VP" or (model == "velocity" and form == "sigma") else 1 - 1e-3
    end = 0.04 if last != "None" else 0.0 if model == "velocity" and path != "VP" else 1e-3
    t = np.linspace(start, end, 25)
    diffusion = (lambda t: 2 * process(t).sigma) if form == "sigma" else None  # w is twice theirs
    if end == 0.0:  # the last step ends on clean data, which is no level of a plan: pass its length instead
        solver = solvers.euler_maruyama(process, np.append(t[:-1], 1e-3), diffusion, dt=-np.diff(t))
    else:
        solver = (solvers.euler_maruyama if method == "Euler" else solvers.heun_sde)(process, t, diffusion)
    rows = solver.rows.x0.shape[0] - 1
    draws = golden["noise_bank"][:, None]
    if method == "Heun":  # the second row of a step adds no noise
        draws = np.stack([draws, 0 * draws], axis=1).reshape(rows, *draws.shape[1:])
    if last == "Tweedie":  # the final denoise
        draws = np.concatenate([draws, draws[-1:]])
        actual = ordered_noise.run(exact_denoiser(dist), solver, jnp.asarray(golden["xT"]), draws)
    else:
        cut = dataclasses.replace(solver, rows=jax.tree.map(lambda a: a[:-1], solver.rows))
        actual = ordered_noise.run(exact_denoiser(dist), cut, jnp.asarray(golden["xT"]), draws)
        if last != "None":  # one more step as far as t = 0, of the SDE's drift (Mean) or of the ODE (Euler)
            step = solvers.euler_maruyama(
                process, np.array([0.04, 1e-3]), diffusion if last == "Mean" else 0.0, dt=0.04
            )
            step = dataclasses.replace(step, rows=dataclasses.replace(step.rows, noise=None), stochastic=False)
            actual = dfn.sample(None, exact_denoiser(dist), step, actual, final_denoise=False).x0
    # Pure noise: the slopes there are good to 1e-8 (see `_drift`), elsewhere to rounding.
    np.testing.assert_allclose(actual, golden[key], rtol=1e-6 if start == 1.0 else 1e-9, atol=1e-7)


# Correctors.


def test_the_step_of_langevin_is_that_of_the_paper():
    """One step by hand, for two examples of very different scores; then with the batch's mean norms."""
    level, denoise = dfn.Level(1.0, 2.0, 0.0), oracles.gaussian(0.0, 0.5)
    levels = jax.tree.map(lambda a: np.array([a]), level)
    x, key = jnp.array([[1.0, 2.0, 3.0], [40.0, 0.0, -9.0]]), jax.random.key(0)
    z = np.asarray(jax.random.normal(jax.random.split(key, 1)[0], x.shape))
    score = -np.asarray(x) / 4.25
    ratio = np.linalg.norm(z, axis=1, keepdims=True) / np.linalg.norm(score, axis=1, keepdims=True)
    means = np.linalg.norm(z, axis=1).mean() / np.linalg.norm(score, axis=1).mean()
    for average, r in ((False, ratio), (True, means)):
        corrector = solvers.langevin(levels, 0.3, scale=0.8, average_norms=average)
        e = 2 * 0.8 * (0.3 * r) ** 2
        actual = corrector.correct(key, denoise, x, level, jax.tree.map(lambda a: a[0], corrector.rows))
        np.testing.assert_allclose(actual, x + e * score + np.sqrt(2 * e) * z, rtol=1e-5)


def test_the_scale_of_a_corrector_is_one_minus_beta():
    schedule = dfn.make_noise_schedule(dfn.linear_betas(1000))
    levels = grids.linspace(schedule, 1000)
    for make in (solvers.langevin, solvers.annealed_langevin):
        (rows,) = make(levels, 1.0).rows.values()
        expected = 2 * (1 - schedule.betas[::-1]) * (levels.sigma**2 if make is solvers.annealed_langevin else 1.0)
        np.testing.assert_allclose(rows, expected, rtol=1e-12)


@pytest.mark.long
@pytest.mark.parametrize("make", [solvers.langevin, solvers.annealed_langevin])
def test_a_corrector_alone_converges_to_the_level_it_is_at(make):
    """Many steps from a wrong start leave q(x) at the level, up to the bias of a step of finite size."""
    level = dfn.Level(0.8, 0.6, 0.0)
    levels = jax.tree.map(lambda a: np.array([a]), level)
    corrector = make(levels, 0.1, num_steps=2000, scale=1.0)
    row = jax.tree.map(lambda a: a[0], corrector.rows)
    correct = jax.jit(lambda key, x: corrector.correct(key, oracles.gaussian(0.3, STD), x, level, row))
    x = np.asarray(correct(jax.random.key(0), jnp.full((20, 1000), 2.0)))
    assert x.mean() == pytest.approx(0.8 * 0.3, abs=0.025)
    assert x.std() == pytest.approx(np.hypot(0.8 * STD, 0.6), rel=0.02)


def test_where_the_score_is_zero_langevin_stays():
    levels = dfn.Level(np.ones(1), np.ones(1), np.zeros(1))
    corrector = solvers.langevin(levels)
    row, level = jax.tree.map(lambda a: a[0], (corrector.rows, levels))
    x = corrector.correct(jax.random.key(0), oracles.gaussian(0.0, 1.0), jnp.zeros((1, 3)), level, row)
    np.testing.assert_array_equal(x, np.zeros((1, 3)))


@jax.jit
def sampled(key, solver, x):
    return dfn.sample(key, oracles.gaussian(0.0, STD), solver, x).x0


def test_an_example_depends_on_its_own_key_alone():
    levels = processes.ve()(uniform(processes.ve(), 10))
    solver = solvers.predictor_corrector(solvers.reverse_diffusion(levels), solvers.langevin(levels, num_steps=2))
    keys = jax.random.split(jax.random.key(0), 4)
    x = 50.0 * jax.random.normal(jax.random.key(1), (4, 8))
    together, apart = sampled(keys, solver, x), sampled(keys[1:3], solver, x[1:3])
    np.testing.assert_allclose(together[1:3], apart, rtol=1e-5, atol=1e-6)


@pytest.mark.long
def test_each_example_may_have_levels_of_its_own():
    processes_ = [processes.ve(0.01, 20.0), processes.ve(0.02, 50.0)]
    plans = [process(uniform(process, 8)) for process in processes_]
    stacked = jax.tree.map(lambda *a: np.stack(a, axis=1), *plans)
    keys = jax.random.split(jax.random.key(0), 2)
    x = 20.0 * jax.random.normal(jax.random.key(1), (2, 8))

    def run(levels, keys, x):
        solver = solvers.predictor_corrector(solvers.reverse_diffusion(levels), solvers.langevin(levels))
        ode = solvers.adaptive(jax.tree.map(lambda a: a[[0, -1]], levels), 1e-6, 1e-6)
        return sampled(keys, solver, x), sampled(None, ode, x)

    together, together_ode = run(stacked, keys, x)
    for i, plan in enumerate(plans):
        alone, alone_ode = run(plan, keys[i : i + 1], x[i : i + 1])
        np.testing.assert_allclose(together[i : i + 1], alone, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(together_ode[i : i + 1], alone_ode, rtol=1e-4, atol=1e-5)


def test_predictor_corrector_shows_its_steps_and_keeps_a_deterministic_predictor():
    levels = processes.ve()(uniform(processes.ve(), 5))
    predictor = solvers.reverse_diffusion(levels, probability_flow=True)
    assert not predictor.stochastic
    solver = solvers.predictor_corrector(predictor, solvers.langevin(levels))
    samples = dfn.sample(
        jax.random.key(0), oracles.gaussian(0.0, STD), solver, jnp.ones((2, 3)), emit=lambda step: step.x_next
    )
    assert samples.trace.shape == (5, 2, 3)
    np.testing.assert_array_equal(samples.trace[-1], samples.x0)


def test_one_compilation_serves_every_number():
    traces = []

    @jax.jit
    def run(key, solver, x):
        traces.append(None)
        return dfn.sample(key, oracles.gaussian(0.0, STD), solver, x).x0

    key, x = jax.random.key(0), jnp.ones((2, 3))
    for name, snr in (("vp", 0.1), ("ve", 0.16), ("sub_vp", jnp.float32(0.2))):
        process = PROCESSES[name]
        t = uniform(process, 6)
        for predictor in (solvers.euler_maruyama(process, t), solvers.reverse_diffusion(process(t))):
            run(key, solvers.predictor_corrector(predictor, solvers.langevin(process(t), snr)), x)
    assert len(traces) == 1
    for name in PROCESSES:
        process = PROCESSES[name]
        ends = process(np.array([process.t_max, process.t_min]))
        for rtol in (1e-3, 1e-4):
            run(key, solvers.adaptive(ends, rtol, 1e-4), x)
    assert len(traces) == 2


def test_times_and_knobs_may_be_traced():
    process, t = processes.vp(), uniform(processes.vp(), 12)
    key, x = jax.random.key(0), jnp.ones((2, 3))

    def make(t, w, snr):
        return solvers.predictor_corrector(solvers.euler_maruyama(process, t, w), solvers.langevin(process(t), snr))

    def power(snr, w):
        return jnp.sum(sampled(key, make(t, w, snr), x) ** 2)

    expected = sampled(key, make(t, 0.5, 0.16), x)
    traced = jax.jit(make)(jnp.asarray(t, jnp.float32), jnp.float32(0.5), jnp.float32(0.16))
    np.testing.assert_allclose(sampled(key, traced, x), expected, rtol=1e-4, atol=1e-5)
    powers, slopes = jax.vmap(jax.value_and_grad(power), (None, 0))(0.16, jnp.array([0.5, 0.1]))
    for w, value, slope in zip((0.5, 0.1), powers, slopes):
        np.testing.assert_allclose(value, power(0.16, w), rtol=1e-4)
        np.testing.assert_allclose(slope, (power(0.162, w) - power(0.158, w)) / 0.004, rtol=0.02)


def test_the_linear_ones_have_no_cond_and_no_needless_random_bits():
    process, t = processes.vp(), uniform(processes.vp(), 4)
    denoise, x = oracles.gaussian(0.0, STD), jnp.ones((1, 2))
    for solver in (
        solvers.euler_maruyama(process, t, 0),
        solvers.heun_sde(process, t, 0),
        solvers.reverse_diffusion(process(t), probability_flow=True),
    ):
        text = str(jax.make_jaxpr(lambda x, solver=solver: dfn.sample(None, denoise, solver, x).x0)(x))
        assert "cond" not in text
        assert "random" not in text


# Adaptive steps.


@pytest.mark.parametrize("dist", ["gauss", "gmm"])
def test_adaptive_meets_the_rk45_samples_of_score_sde(x64, dist):
    golden, process = load("orig_score_sde/samplers"), processes.vp()
    solver = solvers.adaptive(process(np.array([1.0, 1e-3])), 1e-9, 1e-9, process=process)
    x = jnp.asarray(golden["xT"])
    actual = dfn.sample(None, exact_denoiser(dist), solver, x, final_denoise=False).x0
    np.testing.assert_allclose(actual, golden[f"ode/vp/{dist}"], rtol=1e-6, atol=1e-6)


ALL = {**PROCESSES, "edm": processes.edm(), "flow": processes.flow(), "cosine": processes.cosine()}


MEAN = 0.3


@functools.cache
def adaptive_run():
    """One program for all that have no process."""
    denoise = oracles.gaussian(MEAN, STD)
    return jax.jit(lambda solver, x: dfn.sample(None, denoise, solver, x, emit=lambda step: step.x_next).trace)


@pytest.mark.parametrize(
    ("name", "path"), [(name, None) for name in ALL] + [(name, ALL[name]) for name in ("sub_vp", "flow")]
)
def test_adaptive_is_the_exact_flow_of_a_gaussian(x64, name, path):
    """The standard score of x is kept at every level, whatever path leads from one to the next."""
    process = ALL[name]
    levels = process(np.linspace(0.99 * process.t_max, process.t_min, 3))
    std = np.hypot(STD * levels.alpha, levels.sigma)
    z = np.array([[1.3, -0.7], [0.2, 2.1]])
    exact = levels.alpha[:, None, None] * MEAN + std[:, None, None] * z
    trace = adaptive_run()(solvers.adaptive(levels, 1e-8, 1e-8, process=path), jnp.asarray(exact[0]))
    np.testing.assert_allclose(trace[:2], exact[1:], rtol=1e-6, atol=1e-7)
    last = jax.tree.map(lambda a: a[-1], levels)
    np.testing.assert_allclose(trace[2], oracles.gaussian(MEAN, STD)(exact[2], last).x0, rtol=1e-6, atol=1e-7)


def test_the_tolerance_is_kept_and_paid_for():
    process = processes.edm()
    ends, denoise = process(np.array([80.0, 0.02])), oracles.gaussian(0.0, STD)
    x = 80.0 * jnp.array([[1.0, -0.5], [0.02, 0.1]])
    exact = x * np.hypot(STD, 0.02) / np.hypot(STD, 80.0)

    @jax.jit
    def run(rtol):
        solver = solvers.adaptive(ends, rtol, rtol, process=process)
        return dfn.sample(
            None, denoise, solver, x, final_denoise=False, emit=lambda step: (step.x_next, step.num_steps)
        )

    errors, steps = [], []
    for rtol in (1e-3, 1e-4, 1e-5):
        samples = run(rtol)
        errors.append(float(jnp.max(jnp.abs(samples.x0 - exact))))
        steps.append(int(samples.trace[1][0]))
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 1e-4
    assert steps[0] < steps[1] < steps[2]


def test_an_easy_batch_does_not_dilute_the_error_of_one_example():
    """The steps are those of the hardest example alone."""
    process = processes.vp()
    ends = process(np.array([1.0, 1e-2]))
    solver = solvers.adaptive(ends, 1e-5, 1e-5)
    hard, easy = jnp.array([[-0.5]]), jnp.full((200, 1), 0.7)  # near the watershed of the modes, and far from it

    @jax.jit
    def num_steps(x):
        denoise = oracles.mixture([0.3, 0.7], [-1.0, 1.0], [0.05, 0.05])
        return dfn.sample(None, denoise, solver, x, final_denoise=False, emit=lambda step: step.num_steps).trace[0]

    assert num_steps(jnp.concatenate([hard, easy])) >= num_steps(hard) > num_steps(easy)


@pytest.mark.long
def test_adaptive_has_gradients_and_says_when_it_did_not_arrive():
    process = processes.vp()
    levels = process(np.array([1.0, 1e-2]))
    std = np.hypot(STD * levels.alpha, levels.sigma)

    def run(x, max_steps):
        solver = solvers.adaptive(levels, max_steps=max_steps)
        return dfn.sample(None, oracles.gaussian(0.0, STD), solver, x, final_denoise=False).x0

    x = jnp.array([[0.5, -1.0]])
    gradient = jax.jit(jax.grad(lambda x: jnp.sum(run(x, 40))))(x)
    np.testing.assert_allclose(gradient, np.full((1, 2), std[-1] / std[0]), rtol=1e-3)
    assert np.all(np.isnan(jax.jit(run, static_argnums=1)(x, 2)))


def test_no_step_passes_over_the_part_where_x_moves():
    """From x that hardly moves at first; without a bound the error is 1e-3, of a tolerance of 1e-5."""
    process = processes.vp()
    levels = process(np.array([1.0, 1e-2]))
    std = np.hypot(STD * levels.alpha, levels.sigma)
    x = jnp.array([[0.5, -1.0]])
    run = jax.jit(lambda solver: dfn.sample(None, oracles.gaussian(0.0, STD), solver, x, final_denoise=False).x0)
    errors = [
        float(jnp.max(jnp.abs(run(solvers.adaptive(levels, max_step_size=max_step_size)) - x * (std[1] / std[0]))))
        for max_step_size in (2.0, 100.0)
    ]
    assert errors[0] < 2e-5 < 5e-4 < errors[1]


# Bad input.


def by_time(make):
    """levels, knob -> the reverse equation of EDM's process on the times of these levels, with that diffusion."""
    return lambda levels, diffusion: make(processes.edm(), levels.sigma, diffusion)


SILENT = {
    "dpmpp_2m_sde": solvers.dpmpp_2m_sde,
    "dpmpp_2m_sde of eps": lambda levels, eta: solvers.dpmpp_2m_sde(levels, eta, solvers.noise_prediction),
    "singlestep": lambda levels, eta: solvers.singlestep(levels, [2, 1], eta=eta),
    "sa_solver": solvers.sa_solver,
    "euler_maruyama": by_time(solvers.euler_maruyama),
    "heun_sde": by_time(solvers.heun_sde),
    "tcd": lambda levels, gamma: solvers.tcd(levels, processes.labelled(processes.edm(), lambda t: t), gamma),
}


@pytest.mark.long
@pytest.mark.parametrize("make", SILENT.values(), ids=SILENT)
def test_gradients_pass_through_noise_that_is_zero(x64, make):
    """A traced knob of 0 keeps the column of noise, whose root must not spoil the slope of the rest."""
    denoise, x = oracles.gaussian(0.2, STD), jnp.array([[20.0, -7.0]])
    sigma = jnp.array([20.0, 3.0, 0.7, 0.1])

    def energy(sigma, knob):
        solver = make(dfn.Level(jnp.ones_like(sigma), sigma, sigma), knob)
        return jnp.sum(dfn.sample(jax.random.key(0), denoise, solver, x).x0 ** 2)

    of_levels, of_knob = jax.jit(jax.grad(energy, (0, 1)))(sigma, jnp.array(0.0))
    np.testing.assert_allclose(of_levels, jax.jit(jax.grad(lambda sigma: energy(sigma, 0)))(sigma), rtol=1e-9)
    assert np.isfinite(of_knob)


@pytest.mark.parametrize("make", [solvers.langevin, solvers.annealed_langevin])
def test_gradients_pass_through_a_corrector_that_stays(x64, make):
    levels, x = grids.karras(4), jnp.array([[20.0, -7.0]])
    predictor = solvers.euler(levels)

    def energy(solver, x):
        return jnp.sum(dfn.sample(jax.random.key(0), oracles.gaussian(0.2, STD), solver, x).x0 ** 2)

    def corrected(x, snr):
        return energy(solvers.predictor_corrector(predictor, make(levels, snr)), x)

    of_x, of_snr = jax.grad(corrected, (0, 1))(x, jnp.array(0.0))
    np.testing.assert_allclose(of_x, jax.grad(energy, 1)(predictor, x), rtol=1e-9)
    assert np.isfinite(of_snr)


def test_bad_input_is_refused():
    flow, vp = processes.flow(), processes.vp()
    levels = vp(uniform(vp, 5))
    refused = [
        (lambda: solvers.euler_maruyama(flow, np.array([1.0, 0.5])), "at pure noise"),
        (lambda: solvers.euler_maruyama(vp, np.array([0.5, 1.0])), "must descend"),
        (lambda: solvers.euler_maruyama(vp, 0.5), r"\[N\] times"),
        (lambda: solvers.euler_maruyama(vp, np.array([1.0, 0.5]), -1.0), "not negative"),
        (lambda: solvers.euler_maruyama(vp, np.array([1.0, 0.5]), dt=-0.1), "dt must be positive"),
        (lambda: solvers.heun_sde(vp, np.array([1.0, 0.0])), "sigma > 0"),
        (lambda: solvers.langevin(levels, -0.1), "snr must not be negative"),
        (lambda: solvers.langevin(levels, num_steps=0), "at least one step"),
        (lambda: solvers.annealed_langevin(levels, scale=-1.0), "scale must not be negative"),
        (lambda: solvers.adaptive(levels, 0.0), "rtol must be one positive"),
        (lambda: solvers.adaptive(levels, max_step_size=0.0), "max_step_size must be one positive"),
        (lambda: solvers.adaptive(levels, max_steps=0), "max_steps"),
        (lambda: solvers.adaptive(flow(np.array([1.0, 0.5]))), "alpha > 0"),
        (
            lambda: solvers.predictor_corrector(solvers.heun(levels), solvers.langevin(levels)),
            "for the same levels; got 9 rows and 5 levels",
        ),
        (lambda: solvers.predictor_corrector(solvers.adaptive(levels), solvers.langevin(levels)), "must be a table"),
        (
            lambda: solvers.predictor_corrector(solvers.euler_churn(grids.karras(5), 1.0), solvers.langevin(levels)),
            "adds noise before it evaluates",
        ),
    ]
    for call, message in refused:
        with pytest.raises(ValueError, match=message):
            call()


def test_without_diffrax_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "diffrax", None)
    with pytest.raises(ImportError, match=r"diffusers_fn\[adaptive\]"):
        solvers.adaptive(processes.vp()(np.array([1.0, 0.5])))
