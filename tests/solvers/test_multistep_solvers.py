"""Multistep solvers: their orders, the exact stochastic step, SA-Solver, PLMS and PNDM, LCM and TCD."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from solver_checks import START, edm, flow, gaussian, measured_order, mixture, replay, vp

import diffusers_fn as dfn
from diffusers_fn import grids, oracles, processes, solvers
from diffusers_fn.solvers import data_prediction, exponential_step, neighbours, noise_prediction

# Order of convergence, against the exact flow.

KEEP = {"lower_order_final": False}  # a last step of order two limits the order to three


def sa(predictor_order, corrector_order, form=data_prediction, **options):
    return lambda levels: solvers.sa_solver(levels, 0, predictor_order, corrector_order, form, **KEEP | options)


def unipc(order, form=data_prediction, **options):
    return lambda levels: solvers.unipc(levels, order, form, **KEEP | options)


# Solver, order, numbers of levels at which the order is reached.
ORDERS = {
    "dpmpp_2m taylor": (lambda levels: solvers.dpmpp_2m(levels, taylor=True), 2, (200, 400)),
    "dpm_2m taylor": (lambda levels: solvers.dpmpp_2m(levels, noise_prediction, taylor=True), 2, (400, 800)),
    "dpmpp_2m euler_at_final": (lambda levels: solvers.dpmpp_2m(levels, euler_at_final=True), 2, (400, 800)),
    "dpmpp_3m": (solvers.dpmpp_3m, 2, (1600, 3200)),
    "dpm_3m": (lambda levels: solvers.dpmpp_3m(levels, noise_prediction), 2, (1600, 3200)),
    "deis_4": (lambda levels: solvers.deis(levels, 4), 4, (1600, 3200)),
    "deis_4 of x0": (lambda levels: solvers.deis(levels, 4, data_prediction), 4, (400, 800)),
    "lms_4": (lambda levels: solvers.lms(levels, 4), 4, (200, 400)),
    "ipndm": (solvers.ipndm, 2, (200, 400)),
    "plms": (solvers.plms, 2, (200, 400)),
    "pndm": (solvers.pndm, 2, (200, 400)),
    "unipc_2 bh1": (unipc(2, bh1=True), 3, (200, 400)),
    "unipc_2 of eps": (unipc(2, noise_prediction), 3, (200, 400)),
    "unipc_3": (unipc(3), 4, (400, 800)),
    "unipc_3 bh1": (unipc(3, bh1=True), 4, (400, 800)),
    "unipc_3 of eps": (unipc(3, noise_prediction), 4, (1600, 3200)),
    "unipc_4": (unipc(4), 5, (600, 1200)),
    "unipc_2 uncorrected": (unipc(2, corrector=False), 2, (200, 400)),
    "unipc_3 uncorrected": (unipc(3, corrector=False), 3, (800, 1600)),
    "unipc_4 lowered at the end": (lambda levels: solvers.unipc(levels, 4), 3, (800, 1600)),
    "sa_12": (sa(1, 2), 2, (200, 400)),
    "sa_22": (sa(2, 2), 2, (3200, 6400)),
    "sa_23": (sa(2, 3), 3, (200, 400)),
    "sa_23 not simplified": (sa(2, 3, simplified=False), 3, (200, 400)),
    "sa_23 of eps": (sa(2, 3, noise_prediction), 3, (200, 400)),
    "sa_30": (sa(3, 0), 3, (800, 1600)),
    "sa_34": (sa(3, 4), 4, (400, 800)),
}


@pytest.mark.parametrize("levels_of", [vp, flow, edm])
@pytest.mark.parametrize("name", ORDERS)
@pytest.mark.parametrize("denoise", [gaussian, pytest.param(mixture, marks=pytest.mark.long)])
def test_order_of_convergence(name, levels_of, denoise):
    make, order, sizes = ORDERS[name]
    assert measured_order(make, levels_of, denoise, sizes) == pytest.approx(order, abs=0.15)


@pytest.mark.parametrize(("make", "order"), [(solvers.plms, 3), (solvers.pndm, 4), (solvers.ipndm, 2)])
@pytest.mark.parametrize("denoise", [gaussian, mixture])
def test_adams_means_where_sigma_over_alpha_is_evenly_spaced(make, order, denoise):
    """The means are those of an even grid; there the start sets the order: none, Heun's, or Runge-Kutta's."""

    def even(n):
        sigma = np.linspace(0.6, 0.2, n)
        return dfn.Level(np.ones(n), sigma, sigma)

    assert measured_order(make, even, denoise, (100, 200)) == pytest.approx(order, abs=0.15)


# The exact solution over a step.


@pytest.mark.parametrize("form", [data_prediction, noise_prediction])
@pytest.mark.parametrize("eta", [0, 0.6, 1.0])
@pytest.mark.parametrize("levels_of", [vp, flow, edm])
def test_two_steps_are_one(levels_of, eta, form):
    """With a constant prediction the solution is exact, so that steps compose."""
    levels = levels_of(3)
    short, long = (exponential_step(*neighbours(plan), form, eta) for plan in (levels, levels[::2]))
    np.testing.assert_allclose(short.x.prod(), long.x[0], rtol=1e-12)
    np.testing.assert_allclose(short.x[1] * short.w0[0] + short.w0[1], long.w0[0], rtol=1e-12)
    if eta == 0:
        assert short.noise is None
    else:
        variance = (short.x[1] * short.noise[0]) ** 2 + short.noise[1] ** 2
        np.testing.assert_allclose(variance, long.noise[0] ** 2, rtol=1e-12)


@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("levels_of", [vp, flow, edm])
def test_a_step_keeps_the_marginal_of_known_data(levels_of, eta):
    levels = levels_of(6)
    step = exponential_step(*neighbours(levels), data_prediction, np.array(eta))
    np.testing.assert_allclose(step.x * levels.alpha[:-1] + step.w0, levels.alpha[1:], rtol=1e-12)
    variance = (step.x * levels.sigma[:-1]) ** 2 + step.noise**2
    np.testing.assert_allclose(variance, levels.sigma[1:] ** 2, rtol=1e-12)


@pytest.mark.parametrize("form", [data_prediction, noise_prediction])
@pytest.mark.parametrize("eta", [0, 0.6])
def test_the_slope_is_the_integral_of_a_linear_prediction(eta, form):
    """int sign kappa r e^(sign kappa (u - lambda')) (u - lambda) / h du, by a fine midpoint rule."""
    levels = vp(4)
    step, half = exponential_step(*neighbours(levels), form, eta), 0.5 * dfn.log_snr(levels)
    for i in range(3):
        h = half[i + 1] - half[i]
        part = (np.arange(20_000) + 0.5) / 20_000
        kernel = form.sign * step.kappa[i] * step.rate[i] * np.exp(form.sign * step.kappa[i] * (part - 1) * h)
        np.testing.assert_allclose(np.mean(kernel) * h, step.w0[i], rtol=1e-7)
        np.testing.assert_allclose(np.mean(kernel * part) * h, step.w1[i], rtol=1e-7)


# One solver under two names.


def same_rows(one, other, rtol=1e-11):
    one, other = one.rows, other.rows
    size = max(one.m.shape[1], other.m.shape[1])
    padded = [np.pad(rows.m, ((0, 0), (0, size - rows.m.shape[1]))) for rows in (one, other)]
    np.testing.assert_allclose(*padded, rtol=rtol, atol=1e-11)
    for name in ("x", "x0", "eps"):
        np.testing.assert_allclose(getattr(one, name), getattr(other, name), rtol=rtol, atol=1e-12)
    noise = [0.0 if rows.noise is None else rows.noise for rows in (one, other)]
    np.testing.assert_allclose(*noise, rtol=rtol, atol=1e-12)


@pytest.mark.parametrize("levels_of", [vp, flow, edm])
def test_names_for_one_table(levels_of):
    levels = levels_of(9)
    for form in (data_prediction, noise_prediction):
        same_rows(solvers.dpmpp_2m(levels, form), solvers.dpmpp_2m_sde(levels, np.array(0.0), form))
        same_rows(solvers.dpmpp_3m(levels, form), solvers.dpmpp_3m_sde(levels, np.array(0.0), form, taylor=False))
        # Without its corrector UniPC is DPM-Solver++(2M), where its paper's B(h) is e^h - 1.
        same_rows(unipc(1, form, corrector=False)(levels), solvers.dpmpp_1(levels, form))
        same_rows(unipc(2, form, corrector=False)(levels), solvers.dpmpp_2m(levels, form))
        same_rows(unipc(2, form, corrector=np.zeros(8))(levels), solvers.dpmpp_2m(levels, form))
        # Without its corrector SA-Solver is an exponential Adams-Bashforth method.
        same_rows(sa(3, 0, form, simplified=False)(levels), solvers.deis(levels, 3, form))
        same_rows(sa(2, 0, form, simplified=False)(levels), solvers.dpmpp_2m(levels, form, taylor=True))
        tau = np.sqrt(0.6)
        stochastic = solvers.sa_solver(levels, tau, 2, 0, form, simplified=False, **KEEP)
        same_rows(stochastic, solvers.dpmpp_2m_sde(levels, 0.6, form, taylor=True))
        same_rows(solvers.sa_solver(levels, 1.0, 1, 0, form, **KEEP), solvers.dpmpp_1_sde(levels, 1.0, form))
    x0_form, ancestral = solvers.dpmpp_1_sde(levels).rows, solvers.ancestral(levels).rows
    np.testing.assert_allclose(x0_form.m[:, 0], ancestral.x0, rtol=1e-9)
    np.testing.assert_allclose(x0_form.x, ancestral.x, rtol=1e-9)
    np.testing.assert_allclose(x0_form.noise, ancestral.noise, rtol=1e-9)


def test_lower_orders_at_the_end():
    levels = vp(9)
    lowered = {"lower_order_final": True, "euler_at_final": True}
    for make in (solvers.dpmpp_3m, solvers.deis):
        first = solvers.dpmpp_1(levels, noise_prediction).rows
        whole = make(levels, form=noise_prediction).rows
        rows = make(levels, form=noise_prediction, **lowered).rows
        np.testing.assert_allclose(rows.m[-2, 0], first.m[-2, 0], rtol=1e-11)
        np.testing.assert_array_equal(rows.m[-2, 1:], 0.0)
        assert rows.m[-3, 1] != 0.0
        assert rows.m[-3, 2] == 0.0
        np.testing.assert_array_equal(rows.m[:-3], whole.m[:-3])
        rows = make(levels, form=noise_prediction, lower_order_final=True).rows
        assert rows.m[-2, 1] != 0.0
        assert rows.m[-2, 2] == 0.0
        np.testing.assert_array_equal(rows.m[:-2], whole.m[:-2])


def test_the_corrector_can_be_left_out_of_single_hops():
    levels = edm(7)
    corrected, none = unipc(2)(levels).rows.m, unipc(2, corrector=False)(levels).rows.m
    some = unipc(2, corrector=[0, 1, 1, 0, 1, 1])(levels).rows.m
    left_out = [1, 4]  # row i corrects step i - 1
    np.testing.assert_array_equal(some[left_out], none[left_out])
    kept = [0, 2, 3, 5, 6]
    np.testing.assert_array_equal(some[kept], corrected[kept])


# SA-Solver, literally.


def literal_sa(levels, tau, predictor_order, corrector_order, simplified, denoise, x, draws):
    """Algorithm 1 of the paper as it stands: the corrector starts over from the state and noise before the step."""
    half = 0.5 * dfn.log_snr(levels)
    points, weights = np.polynomial.legendre.leggauss(40)

    def integrals(i, nodes, tau):
        """(1 + tau^2) alpha' int L_k(u) e^((1 + tau^2) (u - lambda')) du over the step from i to i + 1."""
        start, end = half[i], half[i + 1]
        u = 0.5 * (start + end) + 0.5 * (end - start) * points
        kernel = 0.5 * (end - start) * weights * np.exp((1 + tau**2) * (u - end))
        out = []
        for k, node in enumerate(nodes):
            others = [other for j, other in enumerate(nodes) if j != k]
            out.append(np.sum(kernel * np.prod([(u - other) / (node - other) for other in others], axis=0)))
        if simplified and len(nodes) == 2:
            h, kappa = end - start, 1 + tau**2
            surplus = 0.5 * h**2 - (kappa * h - 1 + np.exp(-kappa * h)) / kappa**2
            out += surplus / (nodes[0] - nodes[1]) * np.array([1.0, -1.0])
        return (1 + tau**2) * levels.alpha[i + 1] * np.array(out)

    def move(i, x, lambdas, predictions):
        decay = np.exp(-(tau[i] ** 2) * (half[i + 1] - half[i])) * levels.sigma[i + 1] / levels.sigma[i]
        noise = levels.sigma[i + 1] * np.sqrt(1 - np.exp(-2 * tau[i] ** 2 * (half[i + 1] - half[i])))
        gradient = sum(b * m for b, m in zip(integrals(i, lambdas, tau[i]), predictions))
        return decay * x + gradient + noise * draws[i]

    seen = [(half[0], denoise(x, levels[0])[0])]
    for i in range(levels.sigma.size - 1):
        recent = seen[::-1]
        predicted = move(i, x, *zip(*recent[:predictor_order]))
        if i == levels.sigma.size - 2:
            return predicted
        new = (half[i + 1], denoise(predicted, levels[i + 1])[0])
        x = move(i, x, *zip(*[new, *recent][:corrector_order]))
        seen.append(new)
    raise AssertionError


@pytest.mark.parametrize("simplified", [False, True])
@pytest.mark.parametrize("orders", [(1, 2), (2, 2), (3, 4), (2, 4), (4, 3)])
@pytest.mark.parametrize("levels_of", [vp, flow, edm])
def test_sa_solver_is_the_paper_s_algorithm(levels_of, orders, simplified):
    levels = levels_of(9)
    tau = np.linspace(0.2, 1.2, 8)
    draws = np.random.default_rng(0).standard_normal((8, 4))
    x = START * np.hypot(levels.alpha[0], levels.sigma[0])
    options = {"simplified": simplified, "lower_order_final": False}
    rows = solvers.sa_solver(levels, lambda level: tau, *orders, **options).rows
    ms, ours = [0 * x] * rows.m.shape[1], x
    for i in range(8):
        ms = [mixture(ours, levels[i])[0], *ms[:-1]]
        ours = rows.x[i, 0] * ours + sum(a * b for a, b in zip(rows.m[i], ms)) + rows.noise[i] * draws[i]
    np.testing.assert_allclose(ours, literal_sa(levels, tau, *orders, simplified, mixture, x, draws), rtol=1e-9)


def test_simplified_weights_are_the_leading_ones():
    """They differ from the exact ones by h^3 in the predictor, and have the sum of a whole step."""
    for n in (50, 100):
        levels = edm(n)
        simple, exact_rows = (solvers.sa_solver(levels, 0.7, 2, 0, simplified=s).rows.m for s in (True, False))
        np.testing.assert_allclose(simple.sum(axis=1), exact_rows.sum(axis=1), rtol=1e-12)
        # kappa h^2 / 2 against the integral: a relative kappa h / 3.
        h = 0.5 * np.diff(dfn.log_snr(levels))[1:-1]
        relative = simple[1:-2, 1] / exact_rows[1:-2, 1] - 1.0
        np.testing.assert_allclose(relative, (1 + 0.49) * h / 3, rtol=0.1, atol=0.002)


# PLMS, literally.


@pytest.mark.parametrize("num_steps", [2, 3, 10])
def test_plms_is_the_loop_that_repeats_a_timestep(num_steps):
    """Formula 9 of Liu et al. 2022 with a growing list of values, over timesteps 901, 801, 801, 701, 601, ..."""
    schedule = dfn.make_noise_schedule(dfn.linear_betas(1000))
    stride = 1000 // num_steps
    times = np.arange(num_steps)[::-1] * stride + 1
    abar = np.append(
        schedule.alphas_cumprod, schedule.alphas_cumprod[0]
    )  # entry -1: before timestep 0 comes timestep 0

    def formula(x, t, t_prev, eps):
        a, a_prev = abar[t], abar[max(t_prev, -1)]
        denominator = a * np.sqrt(1 - a_prev) + np.sqrt(a * (1 - a) * a_prev)
        return np.sqrt(a_prev / a) * x - (a_prev - a) * eps / denominator

    x, kept = START, []
    first = x
    for i, t in enumerate([times[0], *times[1:2], *times[1:]]):
        eps = mixture(x, dfn.Level(np.sqrt(abar[t]), np.sqrt(1 - abar[t]), t))[1]
        if i == 1:
            x = formula(first, times[0], times[1], (eps + kept[0]) / 2)
            continue
        kept.append(eps)
        if i == 0:
            mean = eps
        elif len(kept) == 2:
            mean = (3 * kept[-1] - kept[-2]) / 2
        elif len(kept) == 3:
            mean = (23 * kept[-1] - 16 * kept[-2] + 5 * kept[-3]) / 12
        else:
            mean = (55 * kept[-1] - 59 * kept[-2] + 37 * kept[-3] - 9 * kept[-4]) / 24
        x = formula(x, t, t - stride, mean)
    # Their last step goes to timestep 0.
    levels = dfn.level_at(schedule, np.append(times, 0))
    np.testing.assert_allclose(replay(solvers.plms(levels), mixture, START), x, rtol=1e-9)


# Stochastic solvers tend to the data.

STOCHASTIC = {
    "dpmpp_1_sde": solvers.dpmpp_1_sde,
    "dpm_1_sde": lambda levels: solvers.dpmpp_1_sde(levels, 1.0, noise_prediction),
    "dpmpp_2m_sde": lambda levels: solvers.dpmpp_2m_sde(levels, 0.4),
    "dpmpp_2m_sde taylor": lambda levels: solvers.dpmpp_2m_sde(levels, taylor=True),
    "dpm_2m_sde": lambda levels: solvers.dpmpp_2m_sde(levels, 1.0, noise_prediction),
    "dpmpp_3m_sde": solvers.dpmpp_3m_sde,
    "sa": solvers.sa_solver,
    "sa_34": lambda levels: solvers.sa_solver(levels, 0.8, 3, 4),
    "sa of eps": lambda levels: solvers.sa_solver(levels, 1.0, 2, 3, noise_prediction),
    "sa, tau of the level": lambda levels: solvers.sa_solver(levels, lambda level: 1.0 * (level.sigma > 0.3)),
}


@pytest.mark.parametrize("name", STOCHASTIC)
def test_moments_tend_to_the_data_s(name):
    """By the closed recursion over the rows, on vp, flow and edm levels."""
    oracles.check_solver(STOCHASTIC[name], sizes=(400, 800))


@pytest.mark.long
@pytest.mark.parametrize("name", ["dpmpp_3m_sde", "sa_34", "dpm_2m_sde"])
def test_samples_of_an_asymmetric_mixture(name):
    """Mean and spread within four standard errors, and a bias that 150 steps leave."""
    weights, means, stds = np.array([0.25, 0.75]), np.array([[-1.0, 0.4], [0.5, -0.2]]), np.array([0.3, 0.5])
    mean = weights @ means
    centred = means - mean
    covariance = np.einsum("k,ki,kj->ij", weights, centred, centred) + np.eye(2) * (weights @ stds**2)
    size, levels = 20_000, grids.uniform_log_snr(processes.vp(), 150)
    key_x, key = jax.random.split(jax.random.key(3))
    denoise = oracles.mixture(weights, means, stds)
    x0 = dfn.sample(key, denoise, STOCHASTIC[name](levels), jax.random.normal(key_x, (size, 2))).x0
    x0 = np.asarray(x0, np.float64)
    assert np.all(np.abs(x0.mean(axis=0) - mean) < 4 * np.sqrt(np.diag(covariance) / size) + 5e-3)
    np.testing.assert_allclose(np.cov(x0.T), covariance, atol=4 * 0.6 / np.sqrt(size) + 5e-3)


# Consistency models.


def test_the_consistency_sampler_on_a_gaussian():
    """x' = alpha' x0_hat + sigma' z forgets x: the spread is that of the last x0_hat alone."""
    levels = edm(5)
    total = np.hypot(0.5, levels.sigma)
    std = total[0]
    for i in range(4):
        std = np.hypot(0.25 / total[i] ** 2 * std, levels.sigma[i + 1])
    expected = 0.25 / total[-1] ** 2 * std
    _, got = oracles.marginal_moments(solvers.lcm(levels), 0.0, 0.5, start=(0.0, total[0]))
    assert got == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("process", [processes.vp(), processes.trigonometric(), processes.flow()])
@pytest.mark.parametrize("gamma", [0.3, 0.9])
def test_strategic_stochastic_sampling_keeps_the_marginal(process, gamma):
    levels = process(np.linspace(0.95, 0.05, 7))
    rows = solvers.tcd(levels, process, gamma).rows
    np.testing.assert_array_equal(rows.x0[:-1], levels.alpha[1:])
    np.testing.assert_allclose(rows.eps[:-1] ** 2 + rows.noise[:-1] ** 2, levels.sigma[1:] ** 2, rtol=1e-11)
    target = process((1 - gamma) * levels.t[1:])
    np.testing.assert_allclose(rows.eps[:-1] / levels.alpha[1:], target.sigma / target.alpha, rtol=1e-11)


def test_strategic_stochastic_sampling_between_its_ends():
    process = processes.trigonometric()
    levels = process(np.linspace(0.95, 0.05, 7))
    same_rows(solvers.tcd(levels, process, 1.0), solvers.lcm(levels))
    same_rows(solvers.tcd(levels, process, np.array(0.0)), solvers.ddim(levels))
    assert solvers.tcd(levels, process, 0).rows.noise is None
    traced = jax.jit(lambda gamma: solvers.tcd(levels, process, gamma).rows.noise)(0.3)
    np.testing.assert_allclose(traced, solvers.tcd(levels, process, 0.3).rows.noise, rtol=2e-5, atol=1e-6)


# Programs.

FAMILY = {
    "dpmpp_2m": lambda levels: solvers.dpmpp_2m(levels, taylor=True, euler_at_final=True),
    "dpmpp_3m": lambda levels: solvers.dpmpp_3m(levels, lower_order_final=True),
    "dpmpp_3m_sde": solvers.dpmpp_3m_sde,
    "dpm_2m_sde": STOCHASTIC["dpm_2m_sde"],
    "plms": solvers.plms,
    "pndm": solvers.pndm,
    "unipc": solvers.unipc,
    "sa": solvers.sa_solver,
    "sa, tau of the level": STOCHASTIC["sa, tau of the level"],
}


@pytest.mark.parametrize("name", FAMILY)
def test_traced_levels_give_the_same_rows(name):
    levels, make = vp(9), FAMILY[name]
    on_device = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), levels)
    # Float32 differences of log SNR lose three digits of seven.
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-3)  # noqa: E731
    jax.tree.map(close, jax.jit(lambda levels: make(levels).rows)(on_device), make(levels).rows)


@pytest.mark.parametrize("name", FAMILY)
def test_a_plan_an_example(name):
    """Levels [N, B] are B plans."""
    single = [vp(9), flow(9)]
    both = jax.tree.map(lambda *columns: np.stack(columns, axis=1), *single)
    for i, levels in enumerate(single):
        close = lambda a, b: np.testing.assert_allclose(a[..., i], b, rtol=1e-11, atol=1e-13)  # noqa: B023, E731
        jax.tree.map(close, FAMILY[name](both).rows, FAMILY[name](levels).rows)


def test_knobs_are_traced_values():
    levels, traces = vp(9), []

    @jax.jit
    def run(key, eta, tau, corrector):
        traces.append(None)
        x = jnp.ones((2, 3))
        denoise = oracles.gaussian(0.3, 0.5)
        makers = (
            solvers.dpmpp_3m_sde(levels, eta),
            solvers.sa_solver(levels, tau),
            solvers.unipc(levels, 2, corrector=corrector),
        )
        return [dfn.sample(key, denoise, solver, x).x0 for solver in makers]

    for eta, tau, corrector in ((0.3, 0.2, 1.0), (1.0, 1.0, 0.0)):
        outs = run(jax.random.key(0), eta, tau, corrector)
        assert all(np.all(np.isfinite(out)) for out in outs)
    assert len(traces) == 1


def test_deterministic_tables_draw_nothing():
    for solver in (solvers.plms(vp(9)), solvers.pndm(vp(9)), sa(2, 2)(vp(9)), solvers.dpmpp_3m_sde(vp(9), 0)):
        assert not solver.stochastic
        assert solver.rows.noise is None


@pytest.mark.parametrize("make", [solvers.dpmpp_1_sde, solvers.dpmpp_2m_sde, solvers.dpmpp_3m_sde, solvers.lcm])
def test_pure_noise_may_start_a_stochastic_plan(make):
    sigma = np.linspace(1.0, 0.05, 60)
    solver = make(dfn.Level(1.0 - sigma, sigma, sigma))
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(solver.rows))
    if make is not solvers.lcm:
        mean, std = oracles.marginal_moments(solver, 0.3, 0.5, start=(0.0, 1.0))
        assert mean == pytest.approx(0.3, abs=0.02)
        assert std == pytest.approx(0.5, abs=0.03)


PLAN = vp(6)
PURE = dfn.Level(np.array([0.0, 0.3, 0.6, 0.9, 0.95]), np.array([1.0, 0.7, 0.4, 0.1, 0.05]), np.zeros(5))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: solvers.pndm(PLAN, vp(2)),
            r"middles must be Level\[3\], one in each of the first steps, at most 3; got \(2,\)",
        ),
        (lambda: solvers.sa_solver(PLAN, 1.0, 0), "predictor_order must be 1 to 4 and corrector_order 0"),
        (lambda: solvers.sa_solver(PLAN, 1.0, 1, 5), "got 1 and 5"),
        (lambda: solvers.sa_solver(PLAN, -0.1), "tau must not be negative; got -0.1"),
        (lambda: solvers.dpmpp_3m_sde(PLAN, 1.5), r"eta must lie in \[0, 1\]; got 1.5"),
        (lambda: solvers.unipc(PLAN, 2, corrector=np.ones(3)), r"one number or one per step, \[5\]; got shape \(3,\)"),
        (lambda: solvers.tcd(PLAN, processes.vp(), 1.5), r"gamma must be one number in \[0, 1\]; got 1.5"),
        (lambda: solvers.lcm(jax.tree.map(lambda a: a[::-1], PLAN)), "must descend"),
        *[
            (lambda make=make: make(PURE), "needs alpha > 0 at every level")
            for make in (solvers.plms, solvers.pndm, solvers.sa_solver, STOCHASTIC["dpm_2m_sde"])
        ],
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
