"""What solvers are measured with: plans, exact denoisers and a replay of tables in NumPy, float64."""

import numpy as np

import diffusers_fn as dfn
from diffusers_fn import solvers

START = np.array([1.3, -0.7, 0.2, 2.1])


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


def states(solver, denoise, x, noise=None, churn=None):
    """All states of a run [R + 1, ...], the start and the final denoise among them, with the given draws [R, ...]."""
    rows = solver.rows
    xs, ms = [x] + [0.0 * x] * (rows.x.shape[1] - 1), [0.0 * x] * rows.m.shape[1]
    seen = [x]
    for i in range(rows.x.shape[0]):
        if rows.churn is not None:
            xs = [xs[0] + rows.churn[i] * churn[i], *xs[1:]]
        x0, eps = denoise(xs[0], rows.level.alpha[i], rows.level.sigma[i])
        ms = [rows.x0[i] * x0 + rows.eps[i] * eps, *ms[:-1]]
        new = sum(a * b for a, b in zip(rows.x[i], xs)) + sum(a * b for a, b in zip(rows.m[i], ms))
        if rows.noise is not None:
            new = new + rows.noise[i] * noise[i]
        xs = [new, *xs[:-1]]
        seen.append(new)
    return np.stack(seen)
