"""Plans of one level, and multistep methods on plans with fewer steps than their order."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffusers_fn as dfn
from diffusers_fn import oracles, processes, solvers
from experiments.compare_solvers import SOLVERS

MEAN, STD = 0.3, 0.5
PROCESSES = {"vp": processes.vp(), "flow": processes.flow(), "edm": processes.edm()}
X = np.array([[1.3, -0.2, 0.4]])


def plan(process, num_levels):
    return processes.at_log_snr(process, np.linspace(-2.0, 3.0, 5)[:num_levels])


def x0_hat(x, alpha, sigma):
    """E[x0 | x] of N(MEAN, STD^2) data."""
    return MEAN + alpha * STD**2 / ((alpha * STD) ** 2 + sigma**2) * (x - alpha * MEAN)


def eps_hat(x, alpha, sigma):
    return sigma / ((alpha * STD) ** 2 + sigma**2) * (x - alpha * MEAN)


def run(solver, *, final_denoise=True):
    """(the samples, the number of network evaluations)."""
    calls = []

    def denoise(x, level, cond=None):
        calls.append(None)
        return oracles.gaussian(MEAN, STD)(x, level)

    key = jax.random.key(0) if solver.stochastic else None
    x0 = dfn.sample(key, denoise, solver, jnp.asarray(X), scan=dfn.python_scan, final_denoise=final_denoise).x0
    return np.asarray(x0), len(calls)


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.usefixtures("x64")
def test_one_level_is_one_evaluation_whose_result_is_the_predicted_x0(process):
    """The step to sigma = 0 is x0_hat for every method (EDM, algorithm 1; DDIM, eq. 12 with alpha' = 1, sigma' = 0)."""
    levels = plan(PROCESSES[process], 1)
    wanted = x0_hat(X, levels.alpha[0], levels.sigma[0])
    for name, entry in SOLVERS.items():
        if name == "heun_churn":  # where to add noise depends on the step
            with pytest.raises(ValueError, match="needs at least 2 levels; got 1"):
                entry.make(levels, PROCESSES[process])
            continue
        found, evaluations = run(entry.make(levels, PROCESSES[process]))
        np.testing.assert_allclose(found, wanted, rtol=1e-12, err_msg=name)
        assert evaluations == 1, name


FIRST_ORDER = {
    "euler": solvers.euler,
    "dpmpp_1": solvers.dpmpp_1,
    "dpmpp_2m": solvers.dpmpp_2m,
    "dpmpp_3m": solvers.dpmpp_3m,
    "deis": lambda levels: solvers.deis(levels, 4),
    "lms": solvers.lms,
    "ipndm": solvers.ipndm,
    "unipc": lambda levels: solvers.unipc(levels, 4),
    "sa_solver": lambda levels: solvers.sa_solver(levels, 0.0, predictor_order=4, corrector_order=4),
}


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("name", FIRST_ORDER)
@pytest.mark.usefixtures("x64")
def test_the_first_step_of_a_multistep_method_is_of_first_order(name, process):
    """x' = alpha' x0_hat + sigma' eps_hat: Song et al. 2021, https://arxiv.org/abs/2010.02502, eq. 12, eta = 0."""
    levels = plan(PROCESSES[process], 2)
    (a, b), (s, r) = levels.alpha, levels.sigma
    wanted = b * x0_hat(X, a, s) + r * eps_hat(X, a, s)
    found, evaluations = run(FIRST_ORDER[name](levels), final_denoise=False)
    np.testing.assert_allclose(found, wanted, rtol=1e-12)
    assert evaluations == 1
    np.testing.assert_allclose(run(FIRST_ORDER[name](levels))[0], x0_hat(wanted, b, r), rtol=1e-12)


@pytest.mark.parametrize(
    ("high", "low"),
    [
        (solvers.dpmpp_3m, solvers.dpmpp_2m),
        (lambda levels: solvers.deis(levels, 4), lambda levels: solvers.deis(levels, 2)),
        (lambda levels: solvers.lms(levels, 4), lambda levels: solvers.lms(levels, 2)),
        (lambda levels: solvers.ipndm(levels, 4), lambda levels: solvers.ipndm(levels, 2)),
        (
            lambda levels: solvers.unipc(levels, 4, lower_order_final=False),
            lambda levels: solvers.unipc(levels, 2, lower_order_final=False),
        ),
    ],
)
@pytest.mark.usefixtures("x64")
def test_two_steps_are_those_of_the_method_of_second_order(high, low):
    levels = plan(PROCESSES["vp"], 3)
    np.testing.assert_allclose(run(high(levels))[0], run(low(levels))[0], rtol=1e-12)


@pytest.mark.parametrize("num_levels", [2, 3])
@pytest.mark.usefixtures("x64")
def test_pndm_on_a_short_plan_is_its_start(num_levels):
    """Classical Runge-Kutta steps of d(x / alpha) / d(sigma / alpha) = eps_hat at alpha = 1: PNDM's eq. 13."""
    levels, x = plan(PROCESSES["edm"], num_levels), X
    for start, end in zip(levels.sigma, levels.sigma[1:]):
        h = end - start
        k1 = eps_hat(x, 1.0, start)
        k2 = eps_hat(x + h / 2 * k1, 1.0, start + h / 2)
        k3 = eps_hat(x + h / 2 * k2, 1.0, start + h / 2)
        k4 = eps_hat(x + h * k3, 1.0, end)
        x = x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    found, evaluations = run(solvers.pndm(levels, process=PROCESSES["edm"]), final_denoise=False)
    np.testing.assert_allclose(found, x, rtol=1e-12)
    assert evaluations == 4 * (num_levels - 1)
