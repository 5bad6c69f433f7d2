"""Exact flows and densities against integrals, and checks of solvers that detect wrong ones."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffusers_fn as dfn
from diffusers_fn import grids, oracles, processes, solvers
from diffusers_fn.solvers import linear_solver, neighbours

WEIGHTS, MEANS, STDS = np.array([0.3, 0.7]), np.array([-0.9, 0.6]), np.array([0.2, 0.5])
NOISY, MIDDLE, CLEAN = dfn.Level(0.1, 3.0, 0.0), dfn.Level(0.8, 0.6, 0.0), dfn.Level(1.0, 0.0, 0.0)


# Exact flows and densities.


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("start", [NOISY, MIDDLE, CLEAN])
@pytest.mark.parametrize("end", [NOISY, MIDDLE, CLEAN])
def test_flows_are_transitive_and_keep_the_distribution(start, end):
    """The flow maps the marginal of one level to that of the other: here by their distribution functions on a grid."""
    x = np.linspace(-1.5, 1.5, 7) * np.hypot(start.alpha, start.sigma)
    there = oracles.mixture_flow(WEIGHTS, MEANS, STDS, x, start, end)
    back = oracles.mixture_flow(WEIGHTS, MEANS, STDS, there, end, start)
    np.testing.assert_allclose(back, x, rtol=1e-8, atol=1e-8)
    density = oracles.mixture_log_prob(WEIGHTS, MEANS, STDS)

    def below(x, level):
        """The probability below each x, by the trapezoid rule."""
        points = np.linspace(-40.0, 0.0, 40_001)[:, None] + x
        values = np.exp(density(points.reshape(-1, 1), level)).reshape(points.shape)
        return np.trapezoid(values, points, axis=0)

    # The error of the rule is h^2 / 12 times the slope at the end.
    np.testing.assert_allclose(below(there, end), below(x, start), atol=2e-7)
    one = oracles.gaussian_flow(0.6, 0.5, x, start, end)
    np.testing.assert_allclose(oracles.mixture_flow([1.0], [0.6], [0.5], x, start, end), one, rtol=1e-9, atol=1e-9)


@pytest.mark.usefixtures("x64")
def test_the_flow_solves_the_equation():
    """dx = x0_hat d(alpha) + eps_hat d(sigma) along a path of levels, by central differences."""
    path = lambda s: dfn.Level(np.cos(s), np.sin(s), 0.0)  # noqa: E731
    x, h = np.array([[0.7], [-1.1]]), 1e-4
    ahead, behind = (oracles.mixture_flow(WEIGHTS, MEANS, STDS, x, path(0.9), path(0.9 + d)) for d in (h, -h))
    prediction = oracles.mixture(WEIGHTS, MEANS, STDS, independent=True)(jnp.asarray(x), path(0.9))
    slope = -np.sin(0.9) * prediction.x0 + np.cos(0.9) * prediction.eps
    np.testing.assert_allclose((ahead - behind) / (2 * h), slope, rtol=1e-6)


@pytest.mark.parametrize("independent", [False, True])
@pytest.mark.usefixtures("x64")
def test_the_gradient_of_the_density_is_the_score(independent):
    means, stds = (np.stack([a, a[::-1]], axis=1) for a in (MEANS, STDS))
    if independent:
        means, stds = MEANS, STDS
    x = jnp.array([[0.2, -0.3], [1.1, 0.4]])
    log_prob = oracles.mixture_log_prob(WEIGHTS, means, stds, independent=independent)
    gradient = jax.jit(jax.grad(lambda x: log_prob(x, MIDDLE).sum()))(x)
    eps = jax.jit(oracles.mixture(WEIGHTS, means, stds, independent=independent))(x, MIDDLE).eps
    np.testing.assert_allclose(gradient, -eps / MIDDLE.sigma, rtol=1e-10)


def test_draws_of_a_mixture_have_its_moments():
    means, stds = np.array([[-0.9, 0.3], [0.6, -0.5]]), np.array([[0.2, 0.4], [0.5, 0.3]])
    size = 20_000
    x = np.asarray(oracles.draw_mixture(jax.random.key(0), WEIGHTS, means, stds, size))
    mean = WEIGHTS @ means
    covariance = np.einsum("k,ki,kj->ij", WEIGHTS, means - mean, means - mean) + np.diag(WEIGHTS @ stds**2)
    assert np.all(np.abs(x.mean(axis=0) - mean) < 4 * np.sqrt(np.diag(covariance) / size))
    np.testing.assert_allclose(np.cov(x.T), covariance, atol=4 * 0.7 / np.sqrt(size))


# Checks.


def half_heun(levels):
    """Heun's method with a wrong weight: consistent, but of first order."""
    solver = solvers.heun(levels)
    rows = solver.rows
    m = np.where(rows.m == 0.5, 0.6, np.where(rows.m == -0.5, -0.6, rows.m))
    return dataclasses.replace(solver, rows=dataclasses.replace(rows, m=m))


def too_noisy(levels):
    """DDIM with eta = 1 that does not reduce the eps coefficient by the variance of the noise."""
    _, to = neighbours(levels)
    rows = solvers.ddim(levels, 1.0).rows
    return linear_solver(levels, x=[0.0], x0=to.alpha, eps=to.sigma, noise=rows.noise[:-1])


def unfinished(levels):
    solver = solvers.euler(levels)
    return dataclasses.replace(solver, rows=jax.tree.map(lambda a: a[:-1], solver.rows))


def test_a_correct_solver_passes_and_its_orders_are_returned():
    figures = oracles.check_solver(solvers.euler, 1, sizes=(50, 100))
    assert set(figures) == {f"{p}/{d}" for p in ("vp", "flow", "edm") for d in ("gaussian", "mixture")}
    assert all(abs(figure - 1) < 0.15 for figure in figures.values())
    assert set(oracles.check_solver(solvers.ancestral, sizes=(50, 100))) == {
        "vp/moments",
        "flow/moments",
        "edm/moments",
    }


@pytest.mark.parametrize(
    ("make", "order", "message"),
    [
        (half_heun, 2, r"order 1.0\d\d on vp levels, gaussian data; declared 2"),
        (solvers.euler, 2, "declared 2"),
        (too_noisy, None, r"moments of samples converge to those of the data with order -?0\.0\d+, below 0\.8"),
        (unfinished, 1, "the last row of a table must be the final denoise"),
    ],
)
def test_a_wrong_solver_is_detected(make, order, message):
    with pytest.raises(AssertionError, match=message):
        oracles.check_solver(make, order)


def test_the_recursion_matches_simulated_moments():
    """Means and standard deviations of samples, for tables with history, noise and churn."""
    size = 40_000
    levels = grids.karras(8, 0.05, 5.0)
    churned = linear_solver(
        dfn.Level(levels.alpha, np.hypot(levels.sigma, 0.3), levels.t),
        x=[0.4, 0.1], x0=0.5, eps=np.linspace(0.3, 0.1, 7), m=[0.7, 0.2, 0.1], noise=0.2, churn=0.3,
    )  # fmt: skip
    for solver in (solvers.dpmpp_2m_sde(levels, 0.6), solvers.heun(levels), churned):
        x = 0.2 + 5.0 * jax.random.normal(jax.random.key(0), (size, 1))
        x0 = np.asarray(dfn.sample(jax.random.key(1), oracles.gaussian(0.3, 0.5), solver, x).x0)
        mean, std = oracles.marginal_moments(solver, 0.3, 0.5, start=(0.2, 5.0))
        assert abs(x0.mean() - mean) < 4 * std / np.sqrt(size)
        assert abs(x0.std() / std - 1) < 4 / np.sqrt(2 * size)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: oracles.measure_order(solvers.ancestral, processes.vp()),
            "is measured for deterministic solvers only",
        ),
        (
            lambda: oracles.measure_order(solvers.euler, processes.vp(), "images"),
            "'gaussian' or 'mixture'; got 'images'",
        ),
        (lambda: oracles.measure_order(solvers.euler, processes.vp(), sizes=(5,)), "needs at least two sizes"),
        (lambda: oracles.check_solver(solvers.euler), "a deterministic solver needs its order"),
        (lambda: oracles.marginal_moments(solvers.ancestral(grids.karras(3), dfn.learned_range)), "without a learned"),
        (lambda: oracles.mixture_flow([1.0], [[0.0]], [1.0], np.ones(1), MIDDLE, CLEAN), r"must be \[K\]"),
        (lambda: oracles.mixture_log_prob([1.0], [0.0, 1.0], [1.0]), r"weights must be \[K\]"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
