"""Sampling, losses and training with keys of every JAX generator, and the properties that differ between them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import diffusers_fn as dfn
from configs import ddpm_toy2d
from diffusers_fn import _random
from diffusers_fn.from_config.defaults import customise

GENERATORS = ("threefry2x32", "rbg", "unsafe_rbg")


def check_standard_normal(z):
    """Mean, variance and fourth moment within five standard errors."""
    z = np.asarray(z, np.float64).ravel()
    for moment, exact, variance in ((z, 0, 1), (z**2, 1, 2), (z**4, 3, 96)):
        assert abs(moment.mean() - exact) < 5 * (variance / z.size) ** 0.5


@pytest.mark.long
@pytest.mark.parametrize("impl", GENERATORS)
@pytest.mark.parametrize("batched", [False, True])
def test_noise_is_standard_normal_and_independent_between_rows_and_examples(impl, batched):
    key = jax.random.key(3, impl=impl)
    keys = jax.random.split(key, 8) if batched else key
    # One ancestral step with x0_hat = 0 from a much higher noise level: the result is the noise of that step.
    levels = dfn.Level(np.ones(2), np.array([1000.0, 10.0]), np.array([1.0, 0.5]))
    solver = dfn.solvers.ancestral(levels, dfn.fixed_large)
    zero = dfn.oracles.gaussian(0.0, 1e-6)
    draw = jax.jit(lambda keys: dfn.sample(keys, zero, solver, jnp.zeros((8, 4_000)), final_denoise=False).x0)
    noise = np.asarray(draw(keys)) / np.asarray(jnp.std(draw(keys)))
    check_standard_normal(noise)
    correlations = np.corrcoef(noise) - np.eye(8)
    assert np.abs(correlations).max() < 5 / 4_000**0.5
    rows = [_random.normal(_random.fold_in(keys, row), jnp.zeros((8, 500))).ravel() for row in range(2)]
    assert abs(np.corrcoef(rows)[0, 1]) < 5 / 4_000**0.5


@pytest.mark.parametrize("impl", GENERATORS)
def test_only_threefry_draws_for_each_example_from_its_own_key_alone(impl):
    keys = jax.random.split(jax.random.key(0, impl=impl), 4)
    x = jnp.zeros((4, 5))
    whole, half = _random.normal(keys, x), _random.normal(keys[2:], x[2:])
    assert bool(jnp.all(whole[2:] == half)) == (impl == "threefry2x32")
    assert len(np.unique(whole)) == 20
    # With the other generators the first key determines all numbers, as documented for `sample`.
    others = jnp.concatenate([keys[:1], keys[:0:-1]])
    assert bool(jnp.all(_random.normal(others, x) == whole)) == (impl != "threefry2x32")


@pytest.mark.long
@pytest.mark.parametrize("impl", GENERATORS)
def test_a_config_trains_and_samples_with_it(impl):
    config = customise(
        ddpm_toy2d.get_config(),
        backbone={"hidden_size": 8, "depth": 1},
        sampler={"name": "ancestral", "clip_denoised": False},
    )
    config.sampler.num_inference_steps = 3
    model, optimizer = dfn.build(config), optax.sgd(1e-3)
    key = jax.random.key(1, impl=impl)
    params = jax.jit(model.init)(key)
    step = dfn.training.make_train_step(model.loss, optimizer)

    @jax.jit
    def train_and_sample(params, keys):
        state, metrics = step(dfn.training.make_train_state(params, optimizer), keys, {"image": jnp.ones((6, 2))})
        return metrics["loss"], model.sample(state.params, keys, 6).x0

    for keys in (key, jax.random.split(key, 6)):
        loss, samples = train_and_sample(params, keys)
        assert bool(jnp.isfinite(loss))
        assert samples.shape == (6, 2)
        assert len(np.unique(samples)) == 12


@pytest.mark.parametrize("impl", GENERATORS)
def test_time_samplers_take_it(impl):
    key = jax.random.key(2, impl=impl)
    for keys in (key, jax.random.split(key, 4_000)):
        for draw in (dfn.losses.uniform_time, dfn.losses.stratified_time):
            u = np.asarray(draw(keys, 4_000))
            assert u.min() >= 0
            assert u.max() <= 1
            assert abs(u.mean() - 0.5) < 5 * (1 / 12 / 4_000) ** 0.5


def test_deterministic_solvers_draw_nothing_with_a_key_either():
    levels, denoise = dfn.grids.karras(6), dfn.oracles.gaussian(0.0, 1.0)
    keys, x = jax.random.split(jax.random.key(0), 2), jnp.ones((2, 3))
    for make in (dfn.solvers.ddim, dfn.solvers.heun, dfn.solvers.dpmpp_2m):
        program = jax.make_jaxpr(lambda keys, x, solver: dfn.sample(keys, denoise, solver, x).x0)
        assert "random_" not in str(program(keys, x, make(levels)))
    assert "random_bits" in str(program(keys, x, dfn.solvers.ancestral(levels)))
