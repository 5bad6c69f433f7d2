"""Memory of a sampling run: donation of x, no trajectory, guidance in two passes, decoding in chunks."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffusers_fn as dfn
from configs import ddpm_digits
from diffusers_fn.from_config.defaults import customise

LEVELS = dfn.grids.karras(30)
DENOISE = dfn.oracles.gaussian(0.3, 0.5)
SHAPE = (4, 16, 16, 3)


@pytest.mark.parametrize("make", [dfn.solvers.ddim, dfn.solvers.ancestral, dfn.solvers.heun, dfn.solvers.dpmpp_2m])
def test_x_can_be_donated(make):
    solver = make(LEVELS)
    run = jax.jit(lambda key, x: dfn.sample(key, DENOISE, solver, x).x0, donate_argnums=1)
    x = 80.0 * jax.random.normal(jax.random.key(0), SHAPE)
    kept = np.array(x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # "Some donated buffers were not usable"
        donated = run(jax.random.key(1), x)
    assert x.is_deleted()
    plain = dfn.sample(jax.random.key(1), DENOISE, solver, jnp.asarray(kept)).x0
    np.testing.assert_allclose(donated, plain, rtol=1e-5, atol=1e-5)


def compiled(emit=None, steps=30):
    solver = dfn.solvers.ddim(dfn.grids.karras(steps))
    run = jax.jit(lambda x: dfn.sample(None, DENOISE, solver, x, emit=emit), donate_argnums=0)
    return run.lower(jax.ShapeDtypeStruct(SHAPE, jnp.float32)).compile().memory_analysis()


def test_no_trajectory_is_kept_without_emit():
    state = 4 * int(np.prod(SHAPE))
    short, long, asked = compiled(), compiled(steps=300), compiled(emit=lambda step: step.x)
    assert long.temp_size_in_bytes - short.temp_size_in_bytes < state  # 270 more steps add their tables, no states
    assert short.output_size_in_bytes < 2 * state
    assert asked.output_size_in_bytes > 30 * state
    assert short.alias_size_in_bytes == state  # the samples overwrite x


def small_digits(**sampler):
    config = customise(ddpm_digits.get_config(), sampler=sampler)
    return dfn.build(customise(config, backbone={"hidden_size": 16, "depth": 1}))


@pytest.fixture(scope="module")
def digits_params():
    return jax.tree.map(lambda p: p + 0.02, small_digits().init(jax.random.key(0)))


@pytest.mark.parametrize("name", ["classifier_free", "classifier_free_pp", "projected"])
def test_guidance_in_one_batch_and_in_two_passes_are_the_same(name, digits_params):
    settings = {"cfg_scale": 2.0, "guidance": name, "num_inference_steps": 5, "clip_denoised": False}
    samples, widths = [], []
    for batched in (True, False):
        model = small_digits(**settings, cfg_batched=batched)
        run = lambda params, model=model: model.sample(params, jax.random.key(1), 3, cond=np.array([0, 1, 2])).x0  # noqa: E731
        traced = jax.jit(run).trace(digits_params)
        text = str(traced.jaxpr)
        widths.append(("f32[6,16]" in text, "f32[3,16]" in text))
        samples.append(traced.lower().compile()(digits_params))
    assert widths[0][0]
    assert not widths[1][0]  # no batch is doubled
    np.testing.assert_allclose(*samples, rtol=1e-4, atol=1e-5)
    assert float(jnp.std(samples[0])) > 0.1


def test_latents_are_decoded_in_chunks_to_the_same_data():
    decode = lambda z: jnp.sin(z @ jnp.ones((3, 5)))  # noqa: E731
    codec = dfn.latents.Codec(lambda x: (x, x), decode)
    z = jax.random.normal(jax.random.key(0), (7, 3))
    for size in (1, 2, 3, 7, 8):
        np.testing.assert_allclose(dfn.latents.in_chunks(codec, size).decode(z), decode(z), rtol=1e-6)
    chunk = jax.make_jaxpr(dfn.latents.in_chunks(codec, 2).decode)(z)
    assert "f32[2,5]" in str(chunk)
    with pytest.raises(ValueError, match="at least 1; got 0"):
        dfn.latents.in_chunks(codec, 0)
