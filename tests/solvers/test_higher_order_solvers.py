"""Runge-Kutta and multistep solvers: order of convergence, published error figures."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from solver_checks import START, edm, flow, gaussian, measured_order, mixture, replay, vp

import diffusers_fn as dfn
from diffusers_fn import grids, oracles, solvers


def of_order(make, order):
    return lambda levels: make(levels, order=order)


def noise_form(make):
    return lambda levels: make(levels, solvers.noise_prediction)


ORDERS = {
    "ddim": (solvers.ddim, 1),
    "euler": (solvers.euler, 1),
    "dpmpp_1": (solvers.dpmpp_1, 1),
    "dpm_1": (noise_form(solvers.dpmpp_1), 1),
    "heun": (solvers.heun, 2),
    "dpmpp_2m": (solvers.dpmpp_2m, 2),
    "dpm_2m": (noise_form(solvers.dpmpp_2m), 2),
    **{f"deis_{order}": (of_order(solvers.deis, order), order) for order in (1, 2, 3)},
    "deis_3_of_x0": (lambda levels: solvers.deis(levels, 3, solvers.data_prediction), 3),
    **{f"unipc_{order}": (of_order(solvers.unipc, order), order + 1) for order in (1, 2)},
    **{f"lms_{order}": (of_order(solvers.lms, order), order) for order in (1, 2, 3)},
}


@pytest.mark.parametrize("levels_of", [vp, flow, edm])
@pytest.mark.parametrize("name", ORDERS)
@pytest.mark.parametrize("denoise", [gaussian, pytest.param(mixture, marks=pytest.mark.long)])
def test_order_of_convergence(name, levels_of, denoise):
    make, order = ORDERS[name]
    assert measured_order(make, levels_of, denoise, (400, 800)) == pytest.approx(order, abs=0.15)


@pytest.mark.parametrize("order", [3, 4])
def test_ipndm_is_adams_bashforth_where_sigma_is_evenly_spaced(order):
    """The weights of an even grid, started exactly: the low-order start is left out of the measurement."""
    errors = []
    for n in (100, 200):
        sigma = np.linspace(2.0, 0.5, n)
        rows = solvers.ipndm(dfn.Level(np.ones(n), sigma, sigma), order).rows
        std = np.hypot(0.5, sigma)
        x, eps = 0.3 + std, sigma / std  # along the exact path that starts at standard score 1
        # The defect of one step from exact values, which is h^(order + 1).
        i = n // 2
        x_next = rows.x[i, 0] * x[i] + sum(rows.m[i, k] * eps[i - k] for k in range(order))
        errors.append(abs(x_next - x[i + 1]))
    assert np.log2(errors[0] / errors[1]) == pytest.approx(order + 1, abs=0.15)


# Relative error of the final sample of N(0, .5^2) on Karras' grid (sigma 80 to .002, rho 7), by N.
EDM_ERRORS = {
    "euler": [-0.270, -0.154, -0.0780, -0.0392, -0.0197, -0.00986],
    "heun": [0.220, 0.0553, 0.0122, 2.87e-3, 6.91e-4, 1.64e-4],
    "dpmpp_2m": [0.159, 0.0623, 0.0131, 2.97e-3, 7.0e-4, 1.66e-4],
}


@pytest.mark.parametrize("name", EDM_ERRORS)
def test_errors_on_the_edm_oracle(name):
    for n, wanted in zip((10, 18, 36, 72, 144, 288), EDM_ERRORS[name]):
        levels = grids.karras(n)
        x = replay(getattr(solvers, name)(levels), lambda *a: gaussian(*a, mean=0.0), np.array([np.hypot(80.0, 0.5)]))
        x0, _ = gaussian(x, levels[-1], mean=0.0)
        # Known to three digits.
        assert x0[0] / 0.5 - 1.0 == pytest.approx(wanted, rel=5e-3, abs=0)


@pytest.mark.parametrize("make", [solvers.dpmpp_2m, solvers.dpmpp_3m, solvers.heun])
def test_pure_noise_may_start_a_higher_order_plan(make):
    sigma = np.linspace(1.0, 0.05, 48)
    levels = dfn.Level(1.0 - sigma, sigma, sigma)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(make(levels).rows))
    x0, _ = gaussian(replay(make(levels), gaussian, START), levels[-1])
    # On the flow from pure noise, a standard score is kept: x0 = mean + std x.
    np.testing.assert_allclose(x0, 0.3 + 0.5 * START, atol=0.03)


def test_solvers_of_equal_shape_share_one_compilation():
    traces = []

    @jax.jit
    def run(solver, x):
        traces.append(None)
        return dfn.sample(None, oracles.gaussian(0.3, 0.5), solver, x).x0

    x = jnp.ones((2, 3))
    for levels in (vp(8), flow(8), edm(8)):
        for make in (
            solvers.dpmpp_2m,
            noise_form(solvers.dpmpp_2m),
            of_order(solvers.deis, 2),
            of_order(solvers.lms, 2),
        ):
            run(make(levels), x)
        run(solvers.unipc(levels, 1), x)
        run(solvers.ipndm(levels, 2), x)
    assert len(traces) == 1
    for levels in (vp(8), flow(8)):
        for make in (solvers.ddim, solvers.euler, solvers.dpmpp_1):
            run(make(levels), x)
    assert len(traces) == 2


def test_the_scan_body_has_no_branch_and_no_random_bits():
    for make in (solvers.heun, solvers.dpmpp_3m, solvers.unipc, solvers.lms):
        jaxpr = str(
            jax.make_jaxpr(lambda x, make=make: dfn.sample(None, oracles.gaussian(0.0, 1.0), make(vp(9)), x).x0)(
                jnp.ones((2, 3))
            )
        )
        assert "cond" not in jaxpr
        assert "random" not in jaxpr
        assert jaxpr.count("scan") >= 1


def test_traced_levels_give_the_same_rows():
    levels = vp(9)
    on_device = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), levels)
    for make in (
        solvers.heun,
        solvers.dpmpp_2m,
        solvers.dpmpp_3m,
        solvers.deis,
        solvers.lms,
        solvers.ipndm,
        solvers.unipc,
    ):
        traced, host = jax.jit(lambda levels, make=make: make(levels).rows)(on_device), make(levels).rows
        # Float32 differences of log SNR lose three digits of seven.
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-3), traced, host)


PLAN = vp(8)
PURE = dfn.Level(np.array([0.0, 0.3, 0.6, 0.9, 0.95]), np.array([1.0, 0.7, 0.4, 0.1, 0.05]), np.zeros(5))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: solvers.unipc(PLAN, 5), "order must be 1, 2, 3 or 4; got 5"),
        (lambda: solvers.dpmpp_2m_sde(PLAN, 1.5), r"eta must lie in \[0, 1\]; got 1.5"),
        (lambda: solvers.heun(jax.tree.map(lambda a: a[::-1], PLAN)), "must descend"),
        *[
            (lambda make=make: make(PURE), "needs alpha > 0 at every level")
            for make in (solvers.deis, solvers.lms, solvers.ipndm, solvers.unipc, noise_form(solvers.dpmpp_2m))
        ],
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("name", ["epsilon", "score", "v", "x0", "velocity"])
def test_a_network_that_cannot_start_at_pure_noise_is_refused(name):
    network = dfn.make_denoiser(lambda params, x, t, cond: 0.1 * x, None, getattr(dfn.parameterizations, name))
    run = lambda: dfn.sample(None, dfn.clip_x0()(network), solvers.dpmpp_2m(PURE), jnp.ones((2, 3))).x0  # noqa: E731
    if name in ("epsilon", "score"):
        with pytest.raises(ValueError, match=r"does not determine x0 at alpha = 0 .*use v, x0 or velocity"):
            run()
    else:
        assert np.all(np.isfinite(run()))


@pytest.mark.parametrize("eta", [0.5, 1.0])
@pytest.mark.parametrize("levels_of", [vp, flow, edm])
def test_the_variance_of_the_stochastic_dpm_solver_converges(levels_of, eta):
    """The closed recursion of (x, m_1) on a Gaussian: its spread goes to the data's with the step."""
    errors = []
    for n in (200, 400):
        rows = solvers.dpmpp_2m_sde(levels_of(n), eta).rows
        total = (rows.level.alpha * 0.5) ** 2 + rows.level.sigma**2
        covariance = np.array([[total[0], 0.0], [0.0, 0.0]])  # of the state and the last kept value, mean 0
        for i in range(n):
            k = rows.level.alpha[i] * 0.25 / total[i]
            step = np.array([[rows.x[i, 0] + rows.m[i, 0] * k, rows.m[i, 1]], [k, 0.0]])
            covariance = step @ covariance @ step.T + np.diag([rows.noise[i] ** 2, 0.0])
        last = rows.level.alpha[-1] * 0.25 / np.sqrt(total[-1])
        errors.append(abs(np.sqrt(covariance[0, 0]) / last - 1.0))
    assert errors[1] < 1e-3
    assert np.log2(errors[0] / errors[1]) > 0.85
