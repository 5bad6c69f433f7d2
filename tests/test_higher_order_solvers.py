"""Runge-Kutta and multistep solvers: order of convergence, published error figures, other people's trajectories."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_files import load, meta

import diffusers_fn as dfn
from diffusers_fn import grids, oracles, solvers

LINEAR = dfn.make_noise_schedule(dfn.linear_betas(1000))


def graded(first, last, n):
    """From first to last with hops that grow linearly, so that a first hop of low order does not set the order."""
    return first + (last - first) * np.linspace(0.0, 1.0, n) ** 2


def vp(n):
    log_ratio = graded(-4.0, 3.0, n)
    return dfn.Level(np.sqrt(1 / (1 + np.exp(-2 * log_ratio))), np.sqrt(1 / (1 + np.exp(2 * log_ratio))), np.zeros(n))


def flow(n):
    sigma = graded(0.97, 0.03, n)
    return dfn.Level(1.0 - sigma, sigma, sigma)


def edm(n):
    sigma = graded(10.0 ** (1 / 7), 0.01 ** (1 / 7), n) ** 7
    return dfn.Level(np.ones(n), sigma, np.log(sigma) / 4)


def gaussian(x, alpha, sigma, mean=0.3, std=0.5):
    residual = (x - alpha * mean) / ((alpha * std) ** 2 + sigma**2)
    return mean + alpha * std**2 * residual, sigma * residual


def mixture(x, alpha, sigma):
    weights, means, stds = np.array([0.35, 0.65]), np.array([-0.8, 0.6]), np.array([0.4, 0.5])
    var = (alpha * stds) ** 2 + sigma**2
    residual = (x[:, None] - alpha * means) / var
    density = weights * np.exp(-0.5 * residual**2 * var) / np.sqrt(var)
    r = density / density.sum(axis=1, keepdims=True)
    return np.sum(r * (means + alpha * stds**2 * residual), axis=1), np.sum(r * sigma * residual, axis=1)


def replay(solver, denoise, x):
    """x at the last level, from the rows alone: the equation of solvers/base.py in NumPy, float64."""
    rows = solver.rows
    xs = [x] + [0.0 * x] * (rows.x.shape[1] - 1)
    ms = [0.0 * x] * rows.m.shape[1]
    for i in range(rows.x.shape[0] - 1):
        x0, eps = denoise(xs[0], rows.level.alpha[i], rows.level.sigma[i])
        ms = [rows.x0[i] * x0 + rows.eps[i] * eps, *ms[:-1]]
        new = sum(a * b for a, b in zip(rows.x[i], xs)) + sum(a * b for a, b in zip(rows.m[i], ms))
        xs = [new, *xs[:-1]]
    return xs[0]


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
    **{f"lms_{order}": (of_order(solvers.lms, order), order) for order in (1, 2, 3)},
}
START = np.array([1.3, -0.7, 0.2, 2.1])


def slope(make, levels_of, denoise, sizes):
    """The order between the last two sizes."""
    ends = levels_of(2)
    x = START * np.hypot(ends.alpha[0], ends.sigma[0])
    if denoise is gaussian:  # dx / x along the flow: the standard score of x is kept
        std = np.hypot(0.5 * ends.alpha, ends.sigma)
        truth = ends.alpha[1] * 0.3 + std[1] / std[0] * (x - ends.alpha[0] * 0.3)
    else:  # a fourth-order method on a far finer grid
        truth = replay(solvers.deis(levels_of(5_000), 4), denoise, x)
    errors = [np.linalg.norm(replay(make(levels_of(n)), denoise, x) - truth) for n in sizes]
    return -np.diff(np.log(errors))[-1] / np.diff(np.log(sizes))[-1]


@pytest.mark.parametrize("levels_of", [vp, flow, edm])
@pytest.mark.parametrize("name", ORDERS)
@pytest.mark.parametrize("denoise", [gaussian, mixture])
def test_order_of_convergence(name, levels_of, denoise):
    make, order = ORDERS[name]
    assert slope(make, levels_of, denoise, (400, 800)) == pytest.approx(order, abs=0.15)


@pytest.mark.parametrize("order", [3, 4])
def test_ipndm_is_adams_bashforth_where_sigma_is_evenly_spaced(order):
    """The weights of an even grid, started exactly: the low-order start is left out of the measurement."""
    errors = []
    for n in (100, 200):
        sigma = np.linspace(2.0, 0.5, n)
        rows = solvers.ipndm(dfn.Level(np.ones(n), sigma, sigma), order).rows
        std = np.hypot(0.5, sigma)
        x, eps = 0.3 + std, sigma / std  # along the exact path that starts at standard score 1
        # The defect of one hop from exact values, which is h^(order + 1).
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
        x0, _ = gaussian(x, 1.0, levels.sigma[-1], mean=0.0)
        # Known to three digits.
        assert x0[0] / 0.5 - 1.0 == pytest.approx(wanted, rel=5e-3, abs=0)


def trajectory(name, n, dist):
    """(levels, start, states after each evaluation, row of meta.json) of another library's run in float64."""
    arrays = load("traj/traj")
    run = meta("traj")["runs"][f"{name}/{n}"]
    alpha, sigma = arrays[f"{name}/{n}/a_s_f64"].T
    if run["family"] == "ve":  # its state is x / alpha
        alpha, sigma = np.ones_like(alpha), sigma / alpha
    states = arrays[f"{name}/{n}/{dist}/traj_f64"]
    return alpha, sigma, arrays[f"{name}/{n}/sigmas_f64"], states, run


TRAJECTORIES = {
    "dpmpp_2m_midpoint_lin": solvers.dpmpp_2m,
    "dpmpp_3m_midpoint_lin": solvers.dpmpp_3m,
    "deis_2": lambda levels: solvers.deis(levels, 2),
    "deis_3": lambda levels: solvers.deis(levels, 3),
    "euler": solvers.euler,
    "heun_karras": solvers.heun,
    "lms_order3": lambda levels: solvers.lms(levels, 3),
    "edm_dpmpp_2m_midpoint_exponential": solvers.dpmpp_2m,
    "flow_heun_shift3": solvers.heun,
    "edm_sde_dpmpp_2m": solvers.dpmpp_2m_sde,
    "euler_a": solvers.euler_ancestral,
}
