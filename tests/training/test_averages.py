"""Averages of the parameters: warm-ups of other libraries, power functions, post-hoc reconstruction."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusers_fn.training import averages, post_hoc

# From the code of Karras et al. 2024 (github.com/NVlabs/edm2, training/phema.py, run in NumPy float64).
GAMMAS = {
    0.01: 96.99489782370986,
    0.05: 16.972198602303447,
    0.1: 6.937203937601809,
    0.15: 3.5578687748994646,
    0.25: 0.71982395800071,
}
SNAPSHOTS = ([250, 250, 500, 500, 1000, 1000], [0.05, 0.1] * 3)
POST_HOC = {
    (1000, 0.07): [
        1.8290308282082495e-08,
        -4.49292400795139e-07,
        8.876677764761024e-05,
        -0.002180815345130406,
        0.4391580810790899,
        0.5629343984904854,
    ],
    (800, 0.15): [
        -0.0033396402584560964,
        0.011551755433600047,
        -0.07844364796609625,
        0.2925023154358953,
        -1.2118493972329771,
        1.989578614588034,
    ],
}


def run(schedule, values):
    """The average after each of the values, in the precision that JAX is set to."""
    keep = averages.averaging(schedule)

    def body(state, value):
        state = keep.update(state, value)
        return state, state.trees[0]

    return np.asarray(jax.lax.scan(body, keep.init(jnp.zeros_like(values[0])), values)[1])


def profile(gamma, end, length):
    """The weight of each step n in a power-function average: the integral of t^gamma over (n - 1, n]."""
    edges = np.minimum(np.arange(length + 1) / end, 1.0) ** (gamma + 1)
    return np.diff(edges)


# One average.


def test_warm_up_of_k_diffusion():
    # EMAWarmup(inv_gamma=1, power=2/3) and (inv_gamma=10, power=1, min_value=0.1, start_at=3), 30 steps each. Its
    # min_value also applies before start_at, where this average (as EMAModel's) is the parameters themselves.
    first = [1 - (1 + s) ** (-2 / 3) for s in range(30)]
    n = jnp.arange(1, 31)
    np.testing.assert_allclose(1 - averages.warmed_up(0.9999)(n), first, atol=3e-7)
    second = np.maximum(0.1, [1 - 10 / (10 + max(0, s - 3)) for s in range(30)])
    got = 1 - averages.warmed_up(0.9999, inv_gamma=10.0, power=1.0, min_decay=0.1, start=3)(n)
    np.testing.assert_allclose(got[4:], second[4:], atol=3e-7)
    np.testing.assert_array_equal(got[:4], 0.0)


def test_warm_up_with_power_one_is_the_plain_mean(x64):
    values = jnp.asarray(np.random.default_rng(0).normal(size=(20, 3)))
    got = run(averages.warmed_up(0.9999, power=1.0), values)
    means = np.cumsum(values, axis=0) / np.arange(1, 21)[:, None]
    np.testing.assert_allclose(got, means, rtol=1e-12)


def test_the_decay_is_at_most_the_given_one():
    late = jnp.array([10**6])
    for schedule in (averages.warmed_up(0.999), averages.ratio_warmed_up(0.999)):
        np.testing.assert_allclose(schedule(late), 1e-3, rtol=1e-5)


def test_half_life(x64):
    values = jnp.concatenate([jnp.ones((1, 1)), jnp.zeros((20, 1))])
    got = run(averages.half_life(10.0, ramp=None), values)
    np.testing.assert_allclose(got[10], 0.5 * got[0], rtol=1e-12)


def test_a_power_function_average_weights_each_step_by_the_integral_of_its_power(x64):
    length, gamma = 50, GAMMAS[0.1]
    got = run(averages.power_function(0.1), jnp.eye(length))
    for n in (1, 2, 17, 50):
        np.testing.assert_allclose(got[n - 1], profile(gamma, n, length), atol=1e-14)


def test_the_relative_standard_deviation_of_a_power_function_average_is_its_std():
    length = 100_000
    for std, gamma in GAMMAS.items():
        weights, t = profile(gamma, length, length), (np.arange(length) + 0.5) / length
        mean = np.sum(weights * t)
        np.testing.assert_allclose(np.sqrt(np.sum(weights * (t - mean) ** 2)), std, rtol=1e-6)


def test_weights_of_long_averages_survive_float32():
    # 1 - decay = 1 - (1 - 1/n)^(gamma + 1) near n = 10^7, where the decay itself rounds to 1 in float32.
    n = 10**7
    exact = -np.expm1((GAMMAS[0.05] + 1) * np.log1p(-1 / n))
    np.testing.assert_allclose(averages.power_function(0.05)(jnp.array(n)), exact, rtol=1e-6)


def test_several_averages_equal_single_ones_and_bfloat16_parameters_are_averaged_in_float32():
    schedules = (averages.exponential(0.9), averages.power_function(0.05), averages.power_function(0.1))
    values = jnp.asarray(np.random.default_rng(1).normal(size=(7, 2)), jnp.bfloat16)
    keep = averages.averaging(*schedules)
    state = keep.init(values[0])
    for value in values:
        state = keep.update(state, value)
    assert int(state.count) == 7
    alone = [averages.averaging(each) for each in schedules]
    for tree, one in zip(state.trees, alone):
        expected = one.init(values[0])
        for value in values:
            expected = one.update(expected, value)
        assert tree.dtype == jnp.float32
        np.testing.assert_array_equal(tree, expected.trees[0])


# Averages of other lengths, after the run.


def test_exponents_and_deviations_of_the_paper():
    stds = np.array(list(GAMMAS))
    np.testing.assert_allclose(averages.power_function_gamma(stds), list(GAMMAS.values()), rtol=1e-10)
    np.testing.assert_allclose(averages.power_function_std(list(GAMMAS.values())), stds, rtol=1e-12)
    assert abs(averages.power_function_gamma(1 / np.sqrt(12)) - 0.0) < 1e-12


@pytest.mark.parametrize("target", POST_HOC)
def test_post_hoc_weights_of_the_authors_code(target):
    got = averages.post_hoc_weights(*SNAPSHOTS, *target)
    np.testing.assert_allclose(got, POST_HOC[target], atol=1e-9)


def test_a_stored_average_is_reconstructed_exactly():
    for i, target in enumerate(zip(*SNAPSHOTS)):
        np.testing.assert_allclose(averages.post_hoc_weights(*SNAPSHOTS, *target), np.eye(6)[i], atol=1e-9)


def test_the_error_of_post_hoc_weights_is_that_of_the_profiles():
    """The profiles on a fine grid of times, for snapshots of two lengths at two steps."""
    t, given = (np.arange(100_000) + 0.5) / 100_000, ([0.5, 0.5, 1.0, 1.0], [0.05, 0.1, 0.05, 0.1])
    p = lambda end, g: np.where(t < end, (g + 1) * (t / end) ** g / end, 0.0)  # noqa: E731
    given = (np.array(given[0]) * 1000, given[1])
    for std in (0.03, 0.07, 0.2):
        weights = averages.post_hoc_weights(*given, 1000, std)
        target = p(1.0, averages.power_function_gamma(std))
        mixed = sum(w * p(s / 1000, averages.power_function_gamma(d)) for w, s, d in zip(weights, *given))
        numeric = np.sqrt(np.sum((mixed - target) ** 2) / np.sum(target**2))
        np.testing.assert_allclose(averages.post_hoc_error(*given, 1000, std), numeric, rtol=1e-3)
    assert averages.post_hoc_error(*given, 1000, 0.1) < 1e-6


def test_inner_products_in_closed_form():
    t = (np.arange(200_000) + 0.5) / 200_000 * 7.0
    p = lambda end, gamma: np.where(t < end, (gamma + 1) * (t / end) ** gamma / end, 0.0)  # noqa: E731
    for a, b in itertools.product([(3.0, 5.5), (7.0, 2.0), (7.0, 9.0)], repeat=2):
        numeric = np.sum(p(*a) * p(*b)) * 7.0 / len(t)
        np.testing.assert_allclose(post_hoc._inner_product(*a, *b), numeric, rtol=1e-4)


@pytest.mark.parametrize("std", [0.06, 0.08, 0.15, 0.2])
def test_post_hoc_averages_of_a_random_walk_are_those_of_the_run(std):
    length, every = 4096, 256
    walk = np.cumsum(np.random.default_rng(2).normal(size=(length, 5)), axis=0)
    steps, stds = np.repeat(np.arange(every, length + 1, every), 2), np.tile([0.05, 0.1], length // every)
    stored = [profile(GAMMAS[round(s, 2)], n, length) @ walk for n, s in zip(steps, stds)]
    got = averages.combine(stored, averages.post_hoc_weights(steps, stds, length, std))
    exact = profile(float(averages.power_function_gamma(std)), length, length) @ walk
    spread = np.std(walk, axis=0)
    nearest = min((s for s in (0.05, 0.1)), key=lambda s: abs(s - std))
    without = stored[-2 if nearest == 0.05 else -1]
    assert np.max(np.abs(got - exact) / spread) < 0.01
    assert np.max(np.abs(got - exact)) < 0.1 * np.max(np.abs(without - exact))


def test_combining_keeps_types_and_cancels_in_float64():
    host = [{"w": np.full(3, 1e4 + i, np.float32)} for i in range(3)]
    combined = averages.combine(host, [1e4, -2e4, 1e4 + 1])
    assert combined["w"].dtype == np.float32
    np.testing.assert_allclose(combined["w"], 1e4 + 2, rtol=1e-7)
    traced = jax.jit(lambda trees: averages.combine(trees, [0.5, 0.25, 0.25]))(host)
    np.testing.assert_allclose(traced["w"], 1e4 + 0.75, rtol=1e-7)


# Wrong input.


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: averages.exponential(1.0), "decay must lie in"),
        (lambda: averages.warmed_up(0.9, min_decay=0.95), "min_decay at most decay"),
        (lambda: averages.ratio_warmed_up(0.9, start=-1), "start must be an integer of at least 0"),
        (lambda: averages.half_life(0.0), "must be positive"),
        (lambda: averages.power_function(0.3), "plain mean"),
        (lambda: averages.post_hoc_weights([10, 10], [0.1, 0.1], 10, 0.1), "twice"),
        (lambda: averages.post_hoc_weights([10], [0.1, 0.05], 10, 0.1), r"must be \[N\]"),
        (lambda: averages.post_hoc_weights([0], [0.1], 10, 0.1), "at least 1"),
        (lambda: averages.combine([np.ones(1)], [0.5, 0.5]), "one weight per snapshot"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
