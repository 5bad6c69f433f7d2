"""Plans, exact denoisers and a replay of tables in NumPy, float64: solvers are measured without compiling anything.

The equation of solvers/base.py is written out here a second time, independent of the one that `sample` runs.
"""

import functools

import numpy as np

import diffusers_fn as dfn
from diffusers_fn import oracles

START = np.array([1.3, -0.7, 0.2, 2.1])
MEAN, STD = 0.3, 0.5
WEIGHTS, MEANS, STDS = np.array([0.35, 0.65]), np.array([-0.8, 0.6]), np.array([0.4, 0.5])


def graded(first, last, n):
    """From first to last in steps that grow linearly, so that a first step of low order does not set the order."""
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


def gaussian(x, level, mean=MEAN, std=STD):
    """(x0_hat, eps_hat) of `oracles.gaussian`, without its checks: they take most of the time of long replays."""
    residual = (x - level.alpha * mean) / ((level.alpha * std) ** 2 + level.sigma**2)
    return mean + level.alpha * std**2 * residual, level.sigma * residual


def mixture(x, level, weights=WEIGHTS, means=MEANS, stds=STDS):
    """(x0_hat, eps_hat) of `oracles.mixture(..., independent=True)` in NumPy; components are on the first axis."""
    weights, means, stds = (a.reshape(*a.shape, *(1,) * (x.ndim + 1 - a.ndim)) for a in (weights, means, stds))
    var = (level.alpha * stds) ** 2 + level.sigma**2
    residual = (x - level.alpha * means) / var
    logits = np.log(weights) - 0.5 * np.log(var) - 0.5 * var * residual**2
    r = np.exp(logits - logits.max(axis=0))
    r = r / r.sum(axis=0)
    return np.sum(r * (means + level.alpha * stds**2 * residual), axis=0), np.sum(r * level.sigma * residual, axis=0)


def recorded_denoisers(data):
    """The denoisers of the data that other people's runs were recorded on, see `golden_files.exact_denoiser`."""
    return {
        "gauss": functools.partial(gaussian, mean=data["mu"], std=data["sd"]),
        "gmm": functools.partial(mixture, weights=data["gmm_w"], means=data["gmm_m"], stds=data["gmm_s"]),
    }


def states(solver, denoise, x, noise=None, churn=None, final_denoise=True):
    """All states of a run, the start among them [R + 1, ...], with the given draws, one per row while there are any."""
    rows = solver.rows
    xs, ms = [x] + [0.0 * x] * (rows.x.shape[1] - 1), [0.0 * x] * rows.m.shape[1]
    seen = [x]
    for i in range(rows.x.shape[0] if final_denoise else rows.x.shape[0] - 1):
        if rows.churn is not None:
            xs = [xs[0] + rows.churn[i] * churn[i], *xs[1:]]
        x0, eps = denoise(xs[0], rows.level[i])
        ms = [rows.x0[i] * x0 + rows.eps[i] * eps, *ms[:-1]]
        new = sum(a * b for a, b in zip(rows.x[i], xs)) + sum(a * b for a, b in zip(rows.m[i], ms))
        if rows.noise is not None and i < len(noise):
            new = new + rows.noise[i] * noise[i]
        xs = [new, *xs[:-1]]
        seen.append(new)
    return np.stack(seen)


def replay(solver, denoise, x):
    """The state at the last level of a deterministic solver."""
    return states(solver, denoise, x, final_denoise=False)[-1]


def measured_order(make, levels_of, denoise, sizes):
    """The order of convergence to the exact flow of `denoise`, between two numbers of levels."""
    start, end = levels_of(2)
    x = START * np.hypot(start.alpha, start.sigma)
    if denoise is gaussian:
        exact = oracles.gaussian_flow(MEAN, STD, x, start, end)
    else:
        exact = oracles.mixture_flow(WEIGHTS, MEANS, STDS, x, start, end)
    errors = [np.linalg.norm(replay(make(levels_of(n)), denoise, x) - exact) for n in sizes]
    return np.log(errors[0] / errors[1]) / np.log(sizes[1] / sizes[0])
