"""A number of steps in an array: one compiled program for all of them, with the numbers of each one's own program."""

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from small_models import small_config, some_params

import diffusers_fn as dfn
from diffusers_fn import grids, solvers
from diffusers_fn.from_config.samplers import SOLVERS
from diffusers_fn.solvers import select

MOST = 6
# A history that grows with the plan, more rows than steps, noise, a least number of steps.
QUICK = ("ddim", "heun", "plms", "dpmpp_2m_sde", "heun_churn")


def of(name, **sections):
    """Returns (diffusion, params) of a model whose sampler has 3 steps."""
    if SOLVERS[name].two_times:
        sections["loss"] = {"objective": "mean_flow"}
        sections |= {"noise_schedule": {"process": "flow"}, "parameterization": "velocity"}
    sampler = {"name": name, "num_inference_steps": 3, "clip_denoised": False}
    diffusion = dfn.build(small_config(sampler=sampler, **sections))
    return diffusion, some_params(diffusion.init)


def check_all_steps(diffusion, params, least):
    """Samples of every number of steps from one trace, against those of each number's own program."""
    keys, traces = jax.random.split(jax.random.key(1), 3), []

    @jax.jit
    def traced(keys, steps):
        traces.append(None)
        options = {"num_inference_steps": steps, "max_inference_steps": MOST}
        return diffusion.sample(params, keys, 3, **options).x0

    found = []
    for steps in range(least, MOST + 1):
        static = jax.jit(lambda keys, n=steps: diffusion.sample(params, keys, 3, num_inference_steps=n).x0)
        found.append(traced(keys, jnp.int32(steps)))
        np.testing.assert_allclose(found[-1], static(keys), rtol=1e-5, atol=1e-5)
    assert len(traces) == 1
    assert len({np.asarray(each).tobytes() for each in found}) == len(found)
    # Beyond the range a traced number is clipped.
    np.testing.assert_array_equal(traced(keys, jnp.int32(MOST + 3)), found[-1])
    np.testing.assert_array_equal(traced(keys, jnp.int32(0)), found[0])


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.long) for name in SOLVERS]
)
def test_every_solver(name):
    check_all_steps(*of(name), least=SOLVERS[name].min_levels)


def test_the_network_is_evaluated_as_often_as_needed():
    config, calls = small_config(), []
    tables = dfn.from_config.tables.Tables()
    diffusion = dfn.build(config, tables)
    params = some_params(diffusion.init)

    def counted(denoise):
        def counting(x, level, cond=None):
            jax.debug.callback(lambda: calls.append(None))
            return denoise(x, level)

        return counting

    run = jax.jit(
        lambda key, steps: diffusion.sample(
            params, key, 2, num_inference_steps=steps, max_inference_steps=20, transform=counted
        )
    )
    jax.block_until_ready(run(jax.random.key(0), jnp.int32(3)))
    jax.effects_barrier()
    assert len(calls) == 3


def test_vmap_over_keys_and_over_steps():
    diffusion, params = of("dpmpp_2m_sde")
    keys, steps = jax.random.split(jax.random.key(3), 2), jnp.array([2, 5])
    sample = lambda key, n: diffusion.sample(params, key, 2, num_inference_steps=n, max_inference_steps=MOST).x0  # noqa: E731
    for axes, given in (((0, None), (keys, steps[1])), ((0, 0), (keys, steps))):
        found = jax.vmap(sample, axes)(*given)
        for i in range(2):
            wanted = sample(keys[i], given[1][i] if axes[1] == 0 else given[1])
            np.testing.assert_allclose(found[i], wanted, rtol=1e-5, atol=1e-5)


def test_a_symbolic_number_of_samples_and_of_steps():
    diffusion, params = of("heun")
    (number,) = jax.export.symbolic_shape("n")

    def run(keys, steps):
        keys = jax.random.wrap_key_data(keys)
        return diffusion.sample(params, keys, keys.shape[0], num_inference_steps=steps, max_inference_steps=MOST).x0

    arguments = jax.ShapeDtypeStruct((number, 2), np.uint32), jax.ShapeDtypeStruct((), np.int32)
    exported = jax.export.export(jax.jit(run), platforms=["cpu", "tpu"])(*arguments)
    assert exported.out_avals[0].shape == (number, 2)
    one_key = jax.jit(lambda key, x: diffusion.sample(params, key, x.shape[0]).x0)
    drawn = jax.export.export(one_key)(jax.random.key(0), jax.ShapeDtypeStruct((number,), np.float32))
    for n, steps in ((2, 3), (5, 4)):
        keys = jax.random.split(jax.random.key(2), n)
        wanted = diffusion.sample(params, keys, n, num_inference_steps=steps).x0
        np.testing.assert_allclose(exported.call(jax.random.key_data(keys), steps), wanted, rtol=1e-5, atol=1e-5)
        wanted = diffusion.sample(params, jax.random.key(0), n).x0
        np.testing.assert_allclose(drawn.call(jax.random.key(0), np.zeros(n, np.float32)), wanted, rtol=1e-5, atol=1e-5)


def test_mistakes():
    diffusion, params = of("ddim")
    key = jax.random.key(0)
    for options, message in (
        (
            {"num_inference_steps": jnp.int32(4)},
            r"num_inference_steps must lie in 1 \.\.\. 3; got 4: set max_inference",
        ),
        ({"num_inference_steps": jnp.int32(0)}, r"must lie in 1 \.\.\. 3; got 0"),
        ({"num_inference_steps": 7, "max_inference_steps": 6}, r"must lie in 1 \.\.\. 6; got 7"),
        ({"num_inference_steps": jnp.float32(3)}, r"must be one integer; got an array float32\[\]"),
        ({"num_inference_steps": jnp.array([3])}, r"must be one integer; got an array int32\[1\]"),
        ({"max_inference_steps": 0}, "max_inference_steps must be an integer of at least 1; got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            diffusion.sample(params, key, 2, **options)


def test_select_refuses_solvers_of_different_kinds():
    levels = grids.karras(3)
    with pytest.raises(ValueError, match="number 1 is not of the kind of number 0"):
        select([solvers.ddim(levels), solvers.ancestral(levels)], 0)
    with pytest.raises(ValueError, match=r"index must lie in 0 \.\.\. 0; got 1"):
        select([solvers.ddim(levels)], 1)
    with pytest.raises(ValueError, match="at least one solver"):
        select([], 0)
