"""Guidance scales: schedules over steps as functions of the level, intervals, and scales that depend on the step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffusers_fn as dfn
from diffusers_fn import grids, guidance, oracles, solvers

LINEAR = dfn.make_noise_schedule(dfn.linear_betas(1000))
PLANS = {
    "ddpm": grids.leading(LINEAR, 50),
    "every step": grids.linspace(LINEAR, 1000),
    "karras": grids.karras(40),
    "flow": grids.uniform_t(dfn.processes.flow(), 30),
}

SAME = dfn.Level(np.ones(3), np.array([2.0, 1.0, 1.0]), np.zeros(3))
TWICE = solvers.linear_solver(SAME, x=[0.0], x0=1.0, eps=SAME.sigma[1:])


@pytest.mark.long
@pytest.mark.parametrize("plan", PLANS)
def test_a_schedule_on_a_plan_is_exact_at_each_of_its_levels(plan):
    levels = PLANS[plan]
    num = levels.sigma.shape[0]
    values = guidance.cosine_guidance_schedule(jnp.arange(num), num, 1.0, 7.5)
    scale = guidance.scale_on_plan(levels, values)
    rounded = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), levels)  # the levels inside the scan
    np.testing.assert_array_equal(
        jax.jit(jax.lax.scan, static_argnums=0)(lambda c, at: (c, scale(at)), 0, rounded)[1], values
    )
    np.testing.assert_array_equal(scale(rounded), values)  # levels [B]


def test_between_two_levels_it_is_linear_in_log_snr():
    levels = dfn.Level(np.ones(3), np.array([8.0, 2.0, 1.0]), np.zeros(3))
    scale = guidance.scale_on_plan(levels, jnp.array([1.0, 3.0, 7.0]))
    at = dfn.Level(jnp.ones(4), jnp.array([4.0, 2.0**0.5, 100.0, 0.1]), jnp.zeros(4))
    np.testing.assert_allclose(scale(at), [2.0, 5.0, 1.0, 7.0], rtol=1e-6)
    # Only the ratio sigma / alpha matters. Pure noise is outside the plan, at its noisy end.
    np.testing.assert_allclose(scale(dfn.Level(0.5, 2.0, 0.0)), 2.0, rtol=1e-6)
    assert float(scale(dfn.Level(0.0, 1.0, 0.0))) == 1.0


def test_a_sampling_run_follows_the_schedule_step_by_step():
    levels, num = grids.karras(6), 6
    values = guidance.linear_guidance_schedule(jnp.arange(num), num, 1.0, 7.0)
    denoise = lambda x, level, cond: dfn.Prediction(0 * x + cond[:, None], x)  # noqa: E731
    x = 80.0 * jnp.ones((2, 1))

    @jax.jit
    def scales(values):
        guided = guidance.classifier_free(guidance.scale_on_plan(levels, values), 0.0)(denoise)
        emit = lambda step: step.prediction.x0[:, 0]  # noqa: E731
        return dfn.sample(None, dfn.bind(guided, jnp.ones(2)), solvers.ddim(levels), x, emit=emit).trace

    np.testing.assert_array_equal(scales(values), jnp.stack([values, values], axis=1))
    scales(jnp.flip(values))
    assert scales._cache_size() == 1


def test_the_interval_is_open_below_and_closed_above():
    scale = guidance.interval(lambda level: 2 + level.t, 0.5, 2.0)
    sigma = jnp.array([0.4, 0.5, 0.500001, 2.0, 2.000001])
    np.testing.assert_array_equal(scale(dfn.Level(jnp.ones(5), sigma, jnp.zeros(5))), [1, 1, 2, 2, 1])
    np.testing.assert_array_equal(scale(dfn.Level(0.25 * jnp.ones(2), jnp.array([0.4, 0.1]), jnp.zeros(2))), [2, 1])
    assert float(guidance.interval(3.0, 0.0, jnp.inf)(dfn.Level(0.0, 1.0, 0.0))) == 3.0
    assert float(guidance.interval(3.0, 1.0, 2.0, outside=0.0)(dfn.Level(1.0, 5.0, 0.0))) == 0.0


def test_outside_the_interval_the_prediction_is_the_conditional_one_bit_for_bit():
    denoise = lambda x, level, cond: dfn.Prediction(x * cond[:, None], x)  # noqa: E731
    x, cond = jax.random.normal(jax.random.key(0), (2, 3)), jnp.array([1.7, 0.3])
    run = jax.jit(
        lambda low, high: guidance.classifier_free(guidance.interval(5.0, low, high), 0.0)(denoise)(
            x, dfn.Level(0.8, 0.6, 0.0), cond
        )
    )
    np.testing.assert_array_equal(run(0.8, 2.0).x0, x * cond[:, None])
    assert float(jnp.abs(run(0.7, 2.0).x0 - x * cond[:, None]).max()) > 1
    assert run._cache_size() == 1


@pytest.mark.parametrize(
    "solver", [solvers.ancestral, solvers.ddim, lambda levels: solvers.ddim(levels, 0.6), solvers.euler]
)
@pytest.mark.usefixtures("x64")
def test_the_scale_for_a_shift_moves_the_next_state_by_it(solver, replayed_noise):
    """For a constant gradient the guided step minus the unguided step is amount times the gradient."""
    levels = jax.tree.map(lambda a: a[30:34], grids.leading(LINEAR, 50))
    solver, amounts = solver(levels), np.array([0.3, 0.2, 0.1, 0.05])
    denoise, x = oracles.gaussian(0.2, 0.5), jnp.array([[0.3, -1.2, 0.7], [1.1, 0.2, -0.4]])
    push = lambda x, level: jnp.sum(x * jnp.array([[1.0, -2.0, 0.5]]), axis=1)  # noqa: E731
    guided = guidance.classifier(push, guidance.shift_scale(solver, amounts))(denoise)
    replayed_noise.value = 0.3 * jnp.ones((2, 3))
    for i in range(4):
        row = jax.tree.map(lambda a, i=i: a[i], solver.rows)
        state = solver.init(x, solver.rows)
        key = jax.random.key(0) if solver.stochastic else None
        plain, ours = (solver.step(key, d, state, row)[0].x for d in (denoise, guided))
        np.testing.assert_allclose(ours - plain, amounts[i] * jnp.array([[1.0, -2.0, 0.5]] * 2), rtol=1e-9)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: guidance.scale_on_plan(grids.karras(3), jnp.ones(4)), r"one value per level; got \(3,\) and \(4,\)"),
        (lambda: guidance.scale_on_plan(dfn.Level(1.0, 2.0, 0.0), 1.0), r"Level\[N\]"),
        (lambda: guidance.interval(2.0, 1.0, 0.5), r"0 <= low < high; got low = 1.0, high = 0.5"),
        (lambda: guidance.interval(2.0, -1.0, 0.5), r"0 <= low < high"),
        (lambda: guidance.shift_scale(solvers.heun(grids.karras(5)), 1.0), r"one evaluation per step and no history"),
        (lambda: guidance.shift_scale(solvers.heun_churn(grids.karras(5)), 1.0), r"one evaluation per step"),
        (lambda: guidance.shift_scale(TWICE, 1.0), r"visits a level twice or goes back up"),
    ],
)
def test_misuse_is_explained(call, message):
    with pytest.raises(ValueError, match=message):
        call()
