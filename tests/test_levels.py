"""Levels, and the Gaussians between two of them: the tables, Bayes' rule, and composition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_files import load

import diffusers_fn as dfn
from diffusers_fn import variances

SCHEDULES = {
    "linear": dfn.make_noise_schedule(dfn.linear_betas(1000)),
    "scaled_linear": dfn.make_noise_schedule(dfn.scaled_linear_betas(1000)),
    "cosine": dfn.make_noise_schedule(dfn.cosine_betas(1000)),
}
# Three levels off the VP circle, the noisiest first: alpha falls and grows, sigma / alpha only falls.
OFF_CIRCLE = [dfn.Level(0.7, 1.9, 2.0), dfn.Level(1.3, 0.8, 1.0), dfn.Level(1.1, 0.2, 0.0)]
CLEAN = dfn.Level(1.0, 0.0, -1.0)


@pytest.mark.parametrize("name", SCHEDULES)
def test_neighbouring_levels_give_the_table(name):
    schedule = SCHEDULES[name]
    t = np.arange(1000)
    noisier, cleaner = dfn.level_at(schedule, t), dfn.level_at(schedule, t - 1)
    ratio, var = dfn.transition(noisier, cleaner)
    # Both sides subtract alpha_bar from 1 on their way: 1e-16 over 1 - alpha_bar >= 4e-5, a few times over.
    np.testing.assert_allclose(ratio**2, schedule.alphas, rtol=1e-11)
    np.testing.assert_allclose(var, schedule.betas, rtol=1e-10)
    coef_x0, coef_x, var = dfn.posterior(noisier, cleaner)
    np.testing.assert_allclose(coef_x0, schedule.posterior_mean_coef1, rtol=1e-10)
    np.testing.assert_allclose(coef_x, schedule.posterior_mean_coef2, rtol=1e-10)
    np.testing.assert_allclose(var, schedule.posterior_variance, rtol=1e-10)
    assert coef_x[0] == var[0] == 0.0
    assert coef_x0[0] == 1.0


@pytest.mark.parametrize("name", SCHEDULES)
def test_strided_levels_give_the_published_variances(name):
    golden = load("steps/variance")
    t = golden["steps50_timesteps"]
    noisier, cleaner = (dfn.level_at(SCHEDULES[name], at) for at in (t, np.maximum(t - 20, -1)))
    small, large = dfn.posterior(noisier, cleaner)[2], dfn.transition(noisier, cleaner)[1]
    # The reference clamps fixed_small at 1e-20; here the variance of a step to clean data is 0.
    wanted = golden[f"{name}/fixed_small/steps50_f64"]
    np.testing.assert_allclose(small[:-1], wanted[:-1], rtol=1e-10)
    assert wanted[-1] == 1e-20
    np.testing.assert_allclose(large, golden[f"{name}/fixed_large/steps50_f64"], rtol=1e-10)
    np.testing.assert_allclose(small, golden[f"{name}/ddim50/variance_f64"], rtol=1e-10, atol=1e-18)
    np.testing.assert_allclose(variances.fixed_small.between(noisier, cleaner)[0] ** 2, small, rtol=1e-14)
    np.testing.assert_allclose(variances.fixed_large.between(noisier, cleaner)[0] ** 2, large, rtol=1e-14)


@pytest.mark.parametrize("v", [-1, 0, 0.5, 1])
def test_a_learned_range_between_levels_is_the_published_one(v):
    schedule, wanted = SCHEDULES["linear"], load("steps/variance")[f"linear/learned_range_{v}/all_f64"]
    t = np.arange(1, 1000)  # at t = 0 the reference interpolates from log(1e-20)
    std, log_range = variances.learned_range.between(dfn.level_at(schedule, t), dfn.level_at(schedule, t - 1))
    var_frac = (v + 1) / 2
    np.testing.assert_allclose(2 * (np.log(std) + var_frac * log_range), wanted[1:], rtol=1e-10)


def test_known_variances_of_ddim():
    """_get_variance(t, prev) asserted by diffusers' tests, with its digits cut off after the fifth."""
    t, prev = np.array([420, 980, 487, 999]), np.array([400, 960, 486, 998])
    var = dfn.posterior(dfn.level_at(SCHEDULES["linear"], t), dfn.level_at(SCHEDULES["linear"], prev))[2]
    np.testing.assert_allclose(var, [0.14771, 0.32460, 0.00979, 0.02], atol=1e-5)


def test_transitions_compose():
    high, middle, low = OFF_CIRCLE
    (ratio1, var1), (ratio2, var2) = dfn.transition(middle, low), dfn.transition(high, middle)
    ratio, var = dfn.transition(high, low)
    assert ratio == pytest.approx(ratio1 * ratio2, rel=1e-14)
    assert var == pytest.approx(var2 + ratio2**2 * var1, rel=1e-14)


@pytest.mark.parametrize(("noisier", "cleaner"), [OFF_CIRCLE[:2], OFF_CIRCLE[1:], OFF_CIRCLE[::2]])
def test_the_posterior_is_bayes_rule(noisier, cleaner):
    # q(y | x, x0) is proportional to N(x; ratio y, var) N(y; alpha x0, sigma^2), with y at `cleaner`: precisions add.
    ratio, var = dfn.transition(noisier, cleaner)
    precision = ratio**2 / var + 1 / cleaner.sigma**2
    coef_x0, coef_x, posterior_var = dfn.posterior(noisier, cleaner)
    assert posterior_var == pytest.approx(1 / precision, rel=1e-13)
    assert coef_x == pytest.approx(ratio / var / precision, rel=1e-13)
    assert coef_x0 == pytest.approx(cleaner.alpha / cleaner.sigma**2 / precision, rel=1e-13)


@pytest.mark.parametrize(("noisier", "cleaner"), [OFF_CIRCLE[:2], OFF_CIRCLE[::2]])
def test_the_posterior_leads_back_to_the_marginal(noisier, cleaner):
    # x = alpha x0 + sigma eps at `noisier`, then a posterior draw: mean and variance of q(x | x0) at `cleaner`.
    coef_x0, coef_x, var = dfn.posterior(noisier, cleaner)
    assert coef_x0 + coef_x * noisier.alpha == pytest.approx(cleaner.alpha, rel=1e-14)
    assert var + (coef_x * noisier.sigma) ** 2 == pytest.approx(cleaner.sigma**2, rel=1e-14)


def test_posteriors_follow_one_another():
    # high -> middle -> low given x0 is high -> low.
    high, middle, low = OFF_CIRCLE
    a1, b1, v1 = dfn.posterior(high, middle)
    a2, b2, v2 = dfn.posterior(middle, low)
    a, b, v = dfn.posterior(high, low)
    assert a2 + b2 * a1 == pytest.approx(a, rel=1e-13)
    assert b2 * b1 == pytest.approx(b, rel=1e-13)
    assert v2 + b2**2 * v1 == pytest.approx(v, rel=1e-13)


def test_pure_noise_above_and_clean_data_below():
    pure, middle, clean = dfn.Level(0.0, 1.5, 1.0), OFF_CIRCLE[1], CLEAN
    # From pure noise the posterior is q(x | x0) of the cleaner level.
    assert dfn.posterior(pure, middle) == (middle.alpha, 0.0, middle.sigma**2)
    assert dfn.transition(pure, middle) == (0.0, 1.5**2)
    # At the clean level it is x0.
    assert dfn.posterior(middle, clean) == (1.0, 0.0, 0.0)
    assert dfn.posterior(pure, clean) == (1.0, 0.0, 0.0)
    assert dfn.transition(middle, clean) == (middle.alpha, middle.sigma**2)


def test_log_snr_is_nan_where_alpha_is_and_infinite_at_pure_noise():
    for array in (np.array, jnp.array):
        found = dfn.log_snr(dfn.Level(array([np.nan, 0.0, 1.0]), array([0.5, 0.5, 1.0]), array([0.0, 0.0, 0.0])))
        np.testing.assert_array_equal(found, [np.nan, -np.inf, 0.0])
    assert round(dfn.log_snr(dfn.Level(0.5, 0.25, 0.0)), 3) == 1.386  # a number, not an array of one


def test_log_snr():
    np.testing.assert_allclose(dfn.log_snr(OFF_CIRCLE[0]), np.log(0.7**2 / 1.9**2), rtol=1e-14)
    ends = dfn.log_snr(dfn.Level(np.array([0.0, 1.0]), np.array([1.0, 0.0]), np.zeros(2)))
    np.testing.assert_array_equal(ends, [-np.inf, np.inf])
    np.testing.assert_array_equal(dfn.log_snr(dfn.Level(jnp.array([0.0, 1.0]), jnp.array([1.0, 0.0]), 0.0)), ends)


# Plans: indexing, slicing, iteration, appending.

PLAN = dfn.Level(np.array([0.2, 0.5, 0.7, 0.9]), np.array([2.0, 1.5, 0.8, 0.1]), np.array([3.0, 2.0, 1.0, 0.0]))
PLANS = {
    "numpy": PLAN,
    "jax": jax.tree.map(jnp.asarray, PLAN),
    "per_example": jax.tree.map(lambda values: np.stack([values, 2 * values + 0.1], axis=1), PLAN),
}
INDICES = {
    "integer": 2,
    "numpy_integer": np.int64(1),
    "negative": -1,
    "slice": slice(1, 3),
    "reversed": slice(None, None, -1),
    "empty": slice(4, None),
    "integers": np.array([3, 0, 0]),
    "booleans": np.array([True, False, False, True]),
}


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
@pytest.mark.parametrize("index", INDICES.values(), ids=INDICES)
def test_a_plan_is_indexed_as_its_arrays_are(plan, index):
    level = plan[index]
    for field in ("alpha", "sigma", "t"):
        values = getattr(level, field)
        np.testing.assert_array_equal(values, getattr(plan, field)[index])
        assert isinstance(values, jax.Array) == isinstance(plan.alpha, jax.Array)


def test_a_plan_per_example_is_indexed_by_both_axes():
    plan = PLANS["per_example"]
    np.testing.assert_array_equal(plan[:, 1].sigma, plan.sigma[:, 1])
    assert plan[0, 1].sigma == plan.sigma[0, 1]


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_a_plan_is_iterated_over_once(plan):
    levels = list(plan)
    assert len(levels) == 4
    np.testing.assert_array_equal(np.stack([level.sigma for level in levels]), plan.sigma)
    first, *_, last = plan
    np.testing.assert_array_equal([first.t, last.t], plan.t[np.array([0, -1])])


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
@pytest.mark.parametrize("index", [4, -5])
def test_an_index_out_of_range_is_refused(plan, index):
    # An index of a JAX array alone would be clamped to the range.
    with pytest.raises(IndexError, match=f"level {index} is out of range for a plan of 4 levels"):
        plan[index]


@pytest.mark.parametrize("use", [lambda level: level[0], lambda level: level[:1], list])
@pytest.mark.parametrize("level", [dfn.Level(0.8, 0.6, 0.0), PLANS["jax"][0]], ids=["numbers", "jax"])
def test_a_single_level_is_no_plan(level, use):
    with pytest.raises(IndexError, match=r"a single level \(S = \[\]\) cannot be indexed"):
        use(level)


def test_a_traced_plan_is_indexed_by_numbers_and_by_traced_integers():
    plan = PLANS["jax"]

    @jax.jit
    def pick(plan, i):
        total = sum(level.sigma for level in plan)
        return plan[i].sigma, plan[-1].sigma, plan[1:].sigma, total

    at, last, rest, total = pick(plan, 2)
    np.testing.assert_array_equal([at, last], [plan.sigma[2], plan.sigma[3]])
    np.testing.assert_array_equal(rest, plan.sigma[1:])
    assert float(total) == pytest.approx(4.4, rel=1e-6)
    each = jax.vmap(lambda plan: plan[1].t, in_axes=1)(jax.tree.map(jnp.asarray, PLANS["per_example"]))
    np.testing.assert_array_equal(each, PLANS["per_example"].t[1].astype(np.float32))
    with pytest.raises(IndexError, match="level 4 is out of range"):
        jax.jit(lambda plan: plan[4])(plan)


def test_levels_and_plans_are_appended():
    for plan in (PLANS["numpy"], PLANS["jax"]):
        longer = dfn.append(plan, CLEAN)
        np.testing.assert_array_equal(longer.alpha, [*plan.alpha, 1.0])
        np.testing.assert_array_equal(longer.t, [*plan.t, -1.0])
        assert longer.sigma.dtype == plan.sigma.dtype
        np.testing.assert_array_equal(dfn.append(plan, plan[1:3]).t, [3.0, 2.0, 1.0, 0.0, 2.0, 1.0])
    assert isinstance(dfn.append(PLAN, jax.tree.map(jnp.asarray, CLEAN)).alpha, jax.Array)
    traced = jax.jit(lambda plan: dfn.append(plan, CLEAN).sigma)(PLANS["jax"])
    np.testing.assert_array_equal(traced, [*PLANS["jax"].sigma, 0.0])


def test_levels_are_appended_per_example():
    plan = PLANS["per_example"]
    for level, wanted in ((CLEAN, [0.0, 0.0]), (plan[0], plan.sigma[0])):
        np.testing.assert_array_equal(dfn.append(plan, level).sigma, [*plan.sigma, wanted])
    np.testing.assert_array_equal(dfn.append(plan, plan[:2]).sigma, plan.sigma[[0, 1, 2, 3, 0, 1]])


# Noise of a level.


def test_add_noise_broadcasts_levels_over_examples():
    x0 = jnp.arange(12.0).reshape(2, 3, 2) / 7
    noise = jnp.cos(x0)
    per_example = dfn.Level(jnp.array([0.5, 2.0]), jnp.array([0.25, 4.0]), jnp.zeros(2))
    x = dfn.add_noise(x0, noise, per_example)
    for i in range(2):
        np.testing.assert_array_equal(x[i : i + 1], dfn.add_noise(x0[i : i + 1], noise[i : i + 1], per_example[i]))
    # Powers of two multiply exactly and one addition rounds once: bit for bit.
    np.testing.assert_array_equal(x[1], np.float32(2) * np.asarray(x0)[1] + np.float32(4) * np.asarray(noise)[1])


@pytest.mark.parametrize(
    ("x0", "noise", "alpha", "message"),
    [
        (jnp.ones((2, 3)), jnp.ones((2, 4)), 1.0, r"noise must have the shape of x0, \(2, 3\); got \(2, 4\)"),
        (jnp.ones((2, 3), jnp.uint8), jnp.ones((2, 3)), 1.0, "x0 must be an array of floating type"),
        (jnp.ones((2, 3)), jnp.ones((2, 3), jnp.int32), 1.0, "noise must be an array of floating type"),
        (jnp.ones(()), jnp.ones(()), 1.0, "got a scalar"),
        (jnp.ones((2, 3)), jnp.ones((2, 3)), jnp.ones(3), r"level.alpha must have shape \[\] or \[2\]"),
        (jnp.ones((2, 3)), jnp.ones((2, 3)), jnp.ones((2, 1)), r"level.alpha must have shape \[\] or \[2\]"),
    ],
)
def test_bad_data_is_refused(x0, noise, alpha, message):
    with pytest.raises(ValueError, match=message):
        dfn.add_noise(x0, noise, dfn.Level(alpha, alpha, alpha))
