"""Solvers with several evaluations per step, and churn: their order, equal tables, exact moments."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from solver_checks import START, edm, flow, gaussian, graded, measured_order, mixture, replay, states, vp

import diffusers_fn as dfn
from diffusers_fn import grids, oracles, processes, solvers
from diffusers_fn.solvers import data_prediction, noise_prediction

with_options = functools.partial
nested = lambda order: lambda levels: solvers.singlestep(levels, in_blocks(levels, order), nested=True)  # noqa: E731


def in_blocks(levels, order):
    whole, rest = divmod(levels.sigma.shape[0] - 1, order)
    return [order] * whole + [1] * rest


# name: (make, order on mixture data, order on Gaussian data, numbers of levels)
SECOND, THIRD, FOURTH = (200, 400), (600, 1200), (80, 160)
ORDERS = {
    # On a chord the Gaussian's spread is the root of a parabola, and the midpoint rule's leading error vanishes.
    "midpoint": (solvers.midpoint, 2, 3, SECOND),
    "ralston": (lambda levels: solvers.runge_kutta(levels, solvers.two_stage(2 / 3)), 2, 2, SECOND),
    "rk4": (solvers.rk4, 4, 4, FOURTH),
    "three_eighths": (lambda levels: solvers.runge_kutta(levels, solvers.THREE_EIGHTHS), 4, 4, (120, 240)),
    "dpm_solver_1": (lambda levels: solvers.dpm_solver(levels, 1), 1, 1, SECOND),
    "dpm2": (solvers.dpm2, 2, 2, SECOND),
    "dpm_solver_2_taylor": (lambda levels: solvers.dpm_solver(levels, 2, taylor=True), 2, 2, SECOND),
    "dpm_solver_3": (solvers.dpm_solver, 3, 3, THIRD),
    "dpm_solver_3_taylor": (with_options(solvers.dpm_solver, taylor=True), 3, 3, THIRD),
    "dpmpp_2s": (solvers.dpmpp_2s, 2, 2, SECOND),
    "dpmpp_2s_taylor": (with_options(solvers.dpmpp_2s, taylor=True), 2, 2, SECOND),
    "dpmpp_3s": (solvers.dpmpp_3s, 3, 3, THIRD),
    "dpmpp_3s_taylor": (with_options(solvers.dpmpp_3s, taylor=True), 3, 3, THIRD),
    "on_one_grid_2": (nested(2), 2, 2, (201, 401)),
    "on_one_grid_3": (nested(3), 3, 3, (301, 601)),
}


@pytest.mark.parametrize("levels_of", [vp, flow, edm])
@pytest.mark.parametrize("name", ORDERS)
@pytest.mark.parametrize("denoise", [gaussian, pytest.param(mixture, marks=pytest.mark.long)])
def test_order_of_convergence(name, levels_of, denoise):
    make, of_mixture, of_gaussian, sizes = ORDERS[name]
    order = of_gaussian if denoise is gaussian else of_mixture
    assert measured_order(make, levels_of, denoise, sizes) == pytest.approx(order, abs=0.15)


@pytest.mark.parametrize(
    "process", [processes.sub_vp(), processes.cosine(), processes.trigonometric(), processes.ve(0.01, 60)]
)
@pytest.mark.parametrize("name", ["midpoint", "rk4", "dpm2", "dpmpp_2s"])
def test_inner_levels_lie_on_the_process(name, process):
    levels_of = lambda n: processes.at_log_snr(process, -2 * graded(4.0, -3.0, n))  # noqa: E731
    make = lambda levels: getattr(solvers, name)(levels, process=process)  # noqa: E731
    visited, own = make(levels_of(5)).rows.level, process(make(levels_of(5)).rows.level.t)
    np.testing.assert_allclose(visited.alpha, own.alpha, rtol=1e-9)
    np.testing.assert_allclose(visited.sigma, own.sigma, rtol=1e-9)
    _, order, _, sizes = ORDERS[name]
    assert measured_order(make, levels_of, mixture, sizes) == pytest.approx(order, abs=0.15)


@pytest.mark.parametrize("process", [processes.vp(), processes.cosine(), processes.flow(), processes.edm()])
@pytest.mark.parametrize(("tableau", "order"), [(solvers.EULER, 1), (solvers.MIDPOINT, 2), (solvers.RK4, 4)])
def test_order_in_time(process, tableau, order):
    def make(levels):
        return solvers.runge_kutta_in_time(process, process.time(dfn.log_snr(levels)), tableau)

    levels_of = lambda n: processes.at_log_snr(process, -2 * graded(4.0, -3.0, n))  # noqa: E731
    sizes = (100, 200) if order == 4 else (400, 800)
    assert measured_order(make, levels_of, mixture, sizes) == pytest.approx(order, abs=0.15)


# What is the same as what.


def assert_same_rows(one, other, rtol=1e-12):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-13), one.rows, other.rows)


ALIKE = {
    "heun is a tableau": (solvers.heun, lambda levels: solvers.runge_kutta(levels, solvers.two_stage(1.0))),
    "euler is a tableau": (solvers.euler, lambda levels: solvers.runge_kutta(levels, solvers.EULER)),
    "midpoint is a tableau": (solvers.midpoint, lambda levels: solvers.runge_kutta(levels, solvers.two_stage(0.5))),
    "order one is DDIM's": (
        lambda levels: solvers.dpm_solver(levels, 1, data_prediction),
        lambda levels: solvers.dpmpp_1(levels, data_prediction),
    ),
    "order one, in turn": (lambda levels: solvers.singlestep(levels, [1] * 6), solvers.dpmpp_1),
    "order one with noise": (
        lambda levels: solvers.singlestep(levels, [1] * 6, noise_prediction, eta=0.6),
        lambda levels: solvers.dpmpp_1_sde(levels, 0.6, noise_prediction),
    ),
    "ancestral without noise": (lambda levels: solvers.dpm2_ancestral(levels, 0), solvers.dpm2),
    "churn without churn": (lambda levels: solvers.heun_churn(levels), solvers.heun),
}


@pytest.mark.parametrize("name", ALIKE)
def test_one_table_by_two_names(name):
    one, other = ALIKE[name]
    for levels in (vp(7), flow(7), edm(7)):
        assert_same_rows(one(levels), other(levels))


@pytest.mark.parametrize("levels_of", [vp, flow, edm])
@pytest.mark.parametrize("taylor", [False, True])
@pytest.mark.parametrize("form", [data_prediction, noise_prediction])
def test_dpm_solver_is_singlestep_on_its_own_levels(form, taylor, levels_of):
    orders = [2, 3, 1, 3]
    solver = solvers.dpm_solver(levels_of(5), orders, form, taylor=taylor)
    assert_same_rows(solvers.singlestep(solver.rows.level, orders, form, taylor=taylor), solver, rtol=1e-9)


@pytest.mark.parametrize("form", [data_prediction, noise_prediction])
def test_one_state_is_as_good_as_three(form):
    """Rows that continue from the stage before, and rows that start from their step's start (with noise of 0)."""
    levels, orders = vp(12), [3, 2, 1, 3, 2]
    one = solvers.singlestep(levels, orders, form, taylor=True)
    three = solvers.singlestep(levels, orders, form, taylor=True, eta=np.array(0.0))
    assert (one.rows.x.shape[1], three.rows.x.shape[1]) == (1, 3)
    draws = np.ones((12, START.size))
    np.testing.assert_allclose(states(one, mixture, START), states(three, mixture, START, draws), rtol=1e-10)


def test_dpmpp_sde_is_the_reverse_sde_at_eta_one():
    solver = solvers.dpmpp_sde(edm(5))
    assert_same_rows(solvers.singlestep(solver.rows.level, [2] * 4, eta=1.0), solver, rtol=1e-9)


def test_on_flow_the_midpoint_and_rk4_are_the_textbooks():
    """The velocity eps - x0 at the middle sigma, by hand."""
    sigma = np.array([1.0, 0.7, 0.3])

    def velocity(x, s):
        x0, eps = mixture(x, dfn.Level(1 - s, s, s))
        return eps - x0

    for make in (solvers.midpoint, solvers.rk4):
        x = START
        for s, h in zip(sigma[:-1], np.diff(sigma)):
            k1 = velocity(x, s)
            k2 = velocity(x + h / 2 * k1, s + h / 2)
            k3 = velocity(x + h / 2 * k2, s + h / 2)
            k4 = velocity(x + h * k3, s + h)
            x = x + h * (k2 if make is solvers.midpoint else (k1 + 2 * k2 + 2 * k3 + k4) / 6)
        levels = dfn.Level(1 - sigma, sigma, sigma)
        for process in (None, processes.flow()):
            solver = make(levels, process)
            np.testing.assert_allclose(replay(solver, mixture, START), x, rtol=1e-9)
            np.testing.assert_allclose(solver.rows.level.t, solver.rows.level.sigma, rtol=1e-12)


def test_labels_inside_steps():
    """On EDM levels log(sigma) / 4 without the process; on others from the process."""
    for make in (solvers.midpoint, solvers.rk4, solvers.dpmpp_3s, solvers.dpm2_ancestral):
        level = make(edm(6)).rows.level
        np.testing.assert_allclose(level.t, np.log(level.sigma) / 4, rtol=1e-9, atol=1e-12)
    schedule = dfn.make_noise_schedule(dfn.linear_betas(1000))
    table = processes.tabulated(schedule)
    level = solvers.dpmpp_3s(grids.linspace(schedule, 5), process=table).rows.level
    np.testing.assert_allclose(table(level.t).sigma, level.sigma, rtol=1e-9)


def test_pure_noise_may_start_where_nothing_lies_between():
    sigma = np.linspace(1.0, 0.05, 40)
    pure = dfn.Level(1 - sigma, sigma, sigma)
    for make in (
        solvers.midpoint,
        solvers.rk4,
        lambda levels: solvers.dpm_solver(levels, [1] + [2] * 38, data_prediction),
        lambda levels: solvers.dpm_solver(levels, [1] + [2] * 38, data_prediction, eta=1.0),
        lambda levels: solvers.singlestep(levels, [1, 2] * 13, eta=0.5),
    ):
        rows = make(pure).rows
        assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(rows))
    x0, _ = gaussian(replay(solvers.rk4(pure), gaussian, START), dfn.Level(0.95, 0.05, 0.05))
    np.testing.assert_allclose(x0, 0.3 + 0.5 * START, atol=0.01)
    zero_snr = processes.cosine()(np.array([1.0, 0.8, 0.5]))
    assert np.all(np.isfinite(solvers.midpoint(zero_snr, processes.cosine()).rows.level.t))


def test_the_orders_of_fast():
    """As many evaluations as asked for, and the remaining evaluations at the end."""
    for num in range(1, 30):
        for order in (1, 2, 3):
            orders = solvers.fast_orders(num, order)
            assert sum(orders) == num
            assert sorted(orders, reverse=True) == orders
            assert orders.count(order) == num // order - (order == 3 and num % 3 == 0)


# Noise.

STOCHASTIC = {
    "dpm2_ancestral": (solvers.dpm2_ancestral, 2),
    "dpm2_ancestral_half": (lambda levels: solvers.dpm2_ancestral(levels, 0.5), 2),
    "dpmpp_2s_ancestral": (solvers.dpmpp_2s_ancestral, 2),
    "dpm_fast": (lambda levels: solvers.dpm_solver(levels, 3, eta=1.0), 2),
    "dpmpp_sde": (solvers.dpmpp_sde, 1),
    "dpmpp_sde_half": (lambda levels: solvers.dpmpp_sde(levels, 0.5), 1),
    "singlestep_2_sde": (lambda levels: solvers.singlestep(levels, in_blocks(levels, 2), eta=1.0), 1),
    "singlestep_3_sde": (lambda levels: solvers.singlestep(levels, in_blocks(levels, 3), eta=0.5, taylor=True), 1),
    "sde_of_noise": (lambda levels: solvers.singlestep(levels, in_blocks(levels, 2), noise_prediction, eta=1.0), 1),
}


@pytest.mark.parametrize("levels_of", [vp, flow, edm])
@pytest.mark.parametrize("name", STOCHASTIC)
def test_the_spread_of_stochastic_samples_converges(name, levels_of):
    """The closed recursion on a Gaussian: the mean is exact, the spread goes to that of x0_hat at the last level."""
    make, order = STOCHASTIC[name]
    errors = []
    for n in (301, 601):
        levels = levels_of(n)
        wanted = levels.alpha[-1] * 0.25 / np.hypot(0.5 * levels.alpha[-1], levels.sigma[-1])
        mean, std = oracles.marginal_moments(make(levels))
        assert mean == pytest.approx(0.3, abs=1e-12)
        errors.append(abs(std / wanted - 1.0))
    assert errors[1] < 0.03
    assert np.log2(errors[0] / errors[1]) > order - 0.2


@pytest.mark.long
@pytest.mark.parametrize("name", ["dpm2_ancestral", "dpmpp_sde", "dpmpp_sde_half", "heun_churn", "dpm2_churn"])
def test_samples_of_an_asymmetric_mixture(name):
    """Mean, spread and skew of 20 000 samples from the exact marginal, within four standard errors."""
    weights, means, stds = np.array([0.3, 0.7]), np.array([-0.9, 0.6]), np.array([0.2, 0.5])
    levels, size = edm(121), 20_000
    make = {"heun_churn": CHURNED["heun"], "dpm2_churn": CHURNED["dpm2"]}.get(name)
    solver = make(levels, s_churn=20.0, s_max=5.0) if make else STOCHASTIC[name][0](levels)
    start, key = jax.random.split(jax.random.key(3))
    data = oracles.draw_mixture(jax.random.fold_in(start, 0), weights, means[:, None], stds[:, None], size)
    x = data + levels.sigma[0] * jax.random.normal(jax.random.fold_in(start, 1), (size, 1))
    x0 = np.asarray(dfn.sample(key, oracles.mixture(weights, means, stds, independent=True), solver, x).x0)[:, 0]
    mean = weights @ means
    moment = [weights @ (stds**2 + (means - mean) ** 2), weights @ ((means - mean) ** 3 + 3 * (means - mean) * stds**2)]
    # x0_hat at sigma = 0.01 lacks 1e-4 of the variance; the first-order methods have another 1% of it to go.
    assert x0.mean() == pytest.approx(mean, abs=4 * np.sqrt(moment[0] / size))
    centred = x0 - x0.mean()
    for power, wanted in zip((2, 3), moment):
        error = 4 * np.std(centred**power) / np.sqrt(size)
        assert np.mean(centred**power) == pytest.approx(wanted, abs=error + 0.02 * abs(wanted))


def test_s_noise_multiplies_the_noise_alone():
    for make in (solvers.euler_ancestral, solvers.dpm2_ancestral, solvers.dpmpp_2s_ancestral, solvers.dpmpp_sde):
        plain, louder = make(edm(5)).rows, make(edm(5), s_noise=1.5).rows
        np.testing.assert_allclose(louder.noise, 1.5 * plain.noise)
        np.testing.assert_array_equal(louder.m, plain.m)


# Churn.

KNOBS = {"s_churn": 3.0, "s_min": 0.05, "s_max": 5.0, "s_noise": 1.01}
CHURNED = {"euler": solvers.euler_churn, "heun": solvers.heun_churn, "dpm2": solvers.dpm2_churn}


def variance_of_algorithm_2(sigma, method, s_churn, s_min, s_max, s_noise, data_std=0.5):
    """Karras et al. 2022, algorithm 2, on N(0, data_std^2): every step multiplies x by a number and adds noise."""
    d = lambda s: s / (data_std**2 + s**2)  # dx/d(sigma) = d x  # noqa: E731
    variance = data_std**2 + sigma[0] ** 2
    for i, s in enumerate(sigma):
        gamma = min(s_churn / sigma.size, np.sqrt(2) - 1) if s_min <= s <= s_max else 0.0
        hat = s + gamma * s
        variance += s_noise**2 * (hat**2 - s**2)
        if i == sigma.size - 1:
            return variance * (data_std**2 / (data_std**2 + hat**2)) ** 2
        after = sigma[i + 1]
        h, middle = after - hat, np.sqrt(hat * after)
        variance *= {
            "euler": 1 + h * d(hat),
            "heun": 1 + h / 2 * (d(hat) + d(after) * (1 + h * d(hat))),
            "dpm2": 1 + h * d(middle) * (1 + (middle - hat) * d(hat)),
        }[method] ** 2


@pytest.mark.parametrize("method", CHURNED)
@pytest.mark.parametrize("s_churn", [1.0, 7.0, 80.0])  # the last is more than the most, sqrt(2) - 1 a level
def test_the_variance_of_churned_samples(method, s_churn):
    levels, knobs = grids.karras(9), KNOBS | {"s_churn": s_churn}
    solver = CHURNED[method](levels, **knobs)
    mean, std = oracles.marginal_moments(solver, mean=0.0)
    assert mean == 0.0
    assert std**2 == pytest.approx(variance_of_algorithm_2(levels.sigma, method, **knobs), rel=1e-9)
    np.testing.assert_allclose(solver.rows.level.t, np.log(solver.rows.level.sigma) / 4, rtol=1e-9)
    assert_same_rows(CHURNED[method](levels, **knobs, process=processes.edm()), solver, rtol=1e-9)


@pytest.mark.parametrize("process", [processes.vp(), processes.flow(), processes.sub_vp(), processes.cosine()])
@pytest.mark.parametrize("method", CHURNED)
def test_churn_where_alpha_changes(method, process):
    """The churned levels are the process' own, and the samples keep their distribution as the steps grow."""
    knobs = {"s_churn": 20.0, "s_min": 0.1, "s_max": 20.0, "process": process}
    errors = []
    for n in (100, 200):
        levels = processes.at_log_snr(process, -2 * graded(4.0, -3.0, n))
        solver = CHURNED[method](levels, **knobs)
        level = solver.rows.level
        own = process(level.t)
        np.testing.assert_allclose(level.alpha, own.alpha, rtol=1e-6)
        np.testing.assert_allclose(level.sigma, own.sigma, rtol=1e-6)
        assert np.sum(solver.rows.churn > 0) > n // 3
        wanted = level.alpha[-1] * 0.25 / np.hypot(0.5 * level.alpha[-1], level.sigma[-1])
        mean, std = oracles.marginal_moments(solver)
        assert mean == pytest.approx(0.3, abs=1e-6)
        errors.append(abs(std / wanted - 1.0))
    assert errors[1] < (0.05 if method == "euler" else 5e-3)
    assert np.log2(errors[0] / errors[1]) > (0.8 if method == "euler" else 1.8)


def test_the_most_churn_and_the_range():
    rows = solvers.euler_churn(grids.karras(8), s_churn=1e9, s_min=0.1, s_max=30.0).rows
    sigma = grids.karras(8).sigma
    inside = (sigma >= 0.1) & (sigma <= 30.0)
    np.testing.assert_allclose(rows.level.sigma, np.where(inside, np.sqrt(2.0) * sigma, sigma), rtol=1e-12)
    np.testing.assert_allclose(rows.churn, np.where(inside, sigma, 0.0), rtol=1e-7, atol=1e-12)
    louder = solvers.euler_churn(grids.karras(8), s_churn=1e9, s_min=0.1, s_max=30.0, s_noise=2.0).rows
    np.testing.assert_allclose(louder.churn, 2.0 * rows.churn)
    np.testing.assert_array_equal(louder.level.sigma, rows.level.sigma)


def test_churn_knobs_compile_once():
    traces = []

    @jax.jit
    def run(key, s_churn, s_min, s_max, s_noise):
        traces.append(None)
        solver = solvers.heun_churn(grids.karras(6), s_churn, s_min, s_max, s_noise)
        x = 80.0 * jnp.ones((2, 3))
        return dfn.sample(key, oracles.gaussian(0.3, 0.5), solver, x).x0

    results = [
        run(jax.random.key(0), *knobs) for knobs in ((0.0, 0.0, 1e9, 1.0), (4.0, 0.0, 1e9, 1.0), (4.0, 1.0, 9.0, 1.1))
    ]
    assert len(traces) == 1
    heun = dfn.sample(None, oracles.gaussian(0.3, 0.5), solvers.heun(grids.karras(6)), 80.0 * jnp.ones((2, 3))).x0
    np.testing.assert_allclose(results[0], heun, rtol=1e-5)
    assert np.all(np.abs(results[1] - results[2]) > 1e-4)


# Tables as values.

MAKERS = {
    "midpoint": solvers.midpoint,
    "rk4": solvers.rk4,
    "dpm_solver": solvers.dpm_solver,
    "dpmpp_3s_taylor": with_options(solvers.dpmpp_3s, taylor=True),
    "dpmpp_sde": solvers.dpmpp_sde,
    "dpm_fast": lambda levels: solvers.dpm_solver(levels, 3, eta=1.0),
    "singlestep": lambda levels: solvers.singlestep(levels, in_blocks(levels, 3), eta=0.5),
    "heun_churn": with_options(solvers.heun_churn, **KNOBS),
    "dpm2_churn": with_options(solvers.dpm2_churn, **KNOBS),
}


@pytest.mark.parametrize("name", MAKERS)
def test_traced_levels_give_the_same_rows(name):
    make, levels = MAKERS[name], edm(7) if "churn" in name else vp(7)
    host = make(levels).rows
    assert all(isinstance(leaf, np.ndarray) and leaf.dtype == np.float64 for leaf in jax.tree.leaves(host))
    with jax.enable_x64(True):
        traced = jax.jit(lambda levels: make(levels).rows)(jax.tree.map(jnp.asarray, levels))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-9), traced, host)


@pytest.mark.parametrize("name", MAKERS)
def test_a_plan_per_example(name):
    """Levels [N, B]: each example's column is the table of its own plan."""
    make = MAKERS[name]
    single = [edm(7), dfn.Level(np.ones(7), edm(7).sigma * 0.9, np.log(edm(7).sigma * 0.9) / 4)]
    both = make(jax.tree.map(lambda *a: np.stack(a, axis=1), *single)).rows
    for i in range(2):
        alone = make(single[i]).rows
        jax.tree.map(lambda a, b, i=i: np.testing.assert_allclose(a[..., i], b, rtol=1e-11, atol=1e-13), both, alone)


def test_solvers_of_equal_shape_share_one_compilation():
    traces = []

    @jax.jit
    def run(solver, x):
        traces.append(None)
        return dfn.sample(None, oracles.gaussian(0.3, 0.5), solver, x).x0

    x = jnp.ones((2, 3))
    for levels in (vp(4), flow(4), edm(4)):
        for make in (solvers.heun, solvers.midpoint, solvers.dpm2, solvers.dpmpp_2s):
            run(make(levels), x)
    assert len(traces) == 1


@pytest.mark.parametrize("make", [solvers.dpmpp_sde, solvers.dpm2_ancestral, MAKERS["heun_churn"]])
def test_padding_changes_no_sample(make):
    solver, x, key = make(edm(4)), 10.0 * jnp.ones((2, 3)), jax.random.key(0)
    one, other = (dfn.sample(key, oracles.gaussian(0.3, 0.5), s, x).x0 for s in (solver, solvers.pad(solver, 12)))
    np.testing.assert_allclose(one, other, rtol=1e-6)


@pytest.mark.long
@pytest.mark.parametrize("make", [solvers.midpoint, solvers.rk4, solvers.dpm2, solvers.dpmpp_3s])
@pytest.mark.usefixtures("x64")
def test_inversion_and_back(make):
    """The same solver upwards: what is left of the round trip falls with the order."""
    denoise, x0 = oracles.gaussian(0.3, 0.5), jnp.array([[1.0, -0.4], [0.2, 0.7]])
    errors = []
    for n in (12, 24):
        levels = flow(n)
        up = dfn.invert(denoise, levels, x0, make=make, refine=30)
        errors.append(float(jnp.abs(dfn.sample(None, denoise, make(levels), up).x0 - x0).max()))
    assert errors[1] < 0.03
    assert np.log2(errors[0] / errors[1]) > 1.8


@pytest.mark.long
@pytest.mark.parametrize("name", [*MAKERS, "restarts"])
@pytest.mark.usefixtures("x64")
def test_gradients_with_respect_to_the_levels(name):
    """Of the rows, against differences."""
    make = MAKERS.get(name, lambda levels: solvers.with_restarts(MAKERS["heun_churn"], levels, [(1, 3, 1)]))
    weights = np.random.default_rng(0).normal(size=200)
    direction = 1e-2 * edm(7).sigma * np.cos(np.arange(7.0))

    def measured(step):
        sigma = edm(7).sigma + step * direction
        xp = jnp if isinstance(step, jax.Array) else np
        rows = make(dfn.Level(xp.ones_like(sigma), sigma, xp.log(sigma) / 4)).rows
        flat = xp.concatenate([leaf.reshape(-1) for leaf in jax.tree.leaves(rows)])
        return xp.sum(flat * np.resize(weights, flat.shape))

    slope = jax.jit(jax.grad(measured))(jnp.array(0.0))
    assert float(slope) == pytest.approx((measured(1e-5) - measured(-1e-5)) / 2e-5, rel=1e-5, abs=1e-7)


def test_gradients_with_respect_to_the_knobs():
    def spread(knobs):
        rows = solvers.heun_churn(grids.karras(5), *knobs).rows
        return jnp.sum(rows.churn)

    gradient = jax.jit(jax.grad(spread))(jnp.array([1.0, 0.1, 20.0, 1.0]))
    assert np.all(np.isfinite(gradient))
    assert gradient[0] > 0  # more churn
    assert float(gradient[3]) == pytest.approx(
        float(spread(jnp.array([1.0, 0.1, 20.0, 1.0]))), rel=1e-5
    )  # linear in s_noise


def test_the_scan_body_has_no_branch_and_no_random_bits():
    for make in (solvers.rk4, solvers.dpm_solver, solvers.dpmpp_2s):
        program = jax.make_jaxpr(lambda x, make=make: dfn.sample(None, oracles.gaussian(0.0, 1.0), make(vp(4)), x).x0)
        jaxpr = str(program(jnp.ones((2, 3))))
        assert "cond" not in jaxpr
        assert "random" not in jaxpr
    assert solvers.dpm2_ancestral(vp(4), jnp.array(0.0)).stochastic
    assert not solvers.dpm2_ancestral(vp(4), 0).stochastic


PLAN = vp(8)
PURE = dfn.Level(np.array([0.0, 0.3, 0.6, 0.9]), np.array([1.0, 0.7, 0.4, 0.1]), np.zeros(4))
ZERO_SNR = processes.cosine()(np.array([1.0, 0.8, 0.5]))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: solvers.singlestep(PLAN, [3, 3]), "orders must be 1, 2 or 3 each, and their sum 7 on this plan"),
        (lambda: solvers.singlestep(PLAN, [4, 3]), "orders must be 1, 2 or 3 each"),
        (lambda: solvers.dpm_solver(PLAN, 4), "orders must be 1, 2 or 3 each"),
        (lambda: solvers.dpm_solver(PLAN, [3, 3]), "their number 7 on this plan"),
        (lambda: solvers.fast_orders(0), "num_evaluations positive; got 3 and 0"),
        (lambda: solvers.two_stage(0.0), r"in \(0, 1\] of the step; got 0"),
        (lambda: solvers.runge_kutta(PLAN, solvers.Tableau((0.0, 0.5), ((), ()), (0.0, 1.0))), "a tableau needs"),
        (lambda: solvers.runge_kutta(PLAN, solvers.Tableau((0.0, 1.5), ((), (1.5,)), (0.0, 1.0))), "a tableau needs"),
        (lambda: solvers.midpoint(ZERO_SNR), "pass the process"),
        (lambda: solvers.dpmpp_2s(PURE), "needs alpha > 0 at every level"),
        (lambda: solvers.dpmpp_2s_ancestral(PURE), "needs alpha > 0 at every level"),
        (lambda: solvers.dpmpp_sde(PURE), "needs alpha > 0 at every level"),
        (lambda: solvers.dpm2(PURE), "needs alpha > 0 at every level"),
        (lambda: solvers.heun_churn(PURE, 1.0), "needs alpha > 0 at every level"),
        (lambda: solvers.singlestep(PURE, [2, 1]), "needs alpha > 0 at every level"),
        (lambda: solvers.dpm2_ancestral(PLAN, 1.5), r"eta must lie in \[0, 1\]; got 1.5"),
        (lambda: solvers.heun_churn(PLAN, 1.0), "churned levels lie on the process alone: pass it"),
        (lambda: solvers.heun_churn(edm(5), -1.0), "s_churn must be one number, not negative; got -1.0"),
        (lambda: solvers.euler_churn(edm(5), 1.0, s_noise=np.ones(2)), "s_noise must be one number"),
        (lambda: solvers.runge_kutta_in_time(processes.vp(), 0.5, solvers.EULER), r"t must be the \[N\] times"),
        *[
            (lambda make=make: make(jax.tree.map(lambda a: a[:1], PLAN), 1.0), "at least 2 levels; got 1")
            for make in (solvers.heun_churn, solvers.euler_churn, solvers.dpm2_churn)
        ],
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
