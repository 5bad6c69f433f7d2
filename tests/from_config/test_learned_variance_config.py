"""The objectives hybrid and vlb by config: what the loss is, and which combinations are refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffusers_fn as dfn
from configs import learned_variance
from diffusers_fn.from_config.defaults import customise

BATCH = {
    "image": jnp.linspace(-1, 1, 4 * 64).reshape(4, 8, 8, 1).round(1),
    "label": jnp.array([0, 3, 5, 9], jnp.int32),
}


def small(arg, **sections):
    config = customise(
        learned_variance.get_config(arg),
        backbone={"hidden_size": 8, "depth": 1, "zero_init_output": False},
        loss={"label_dropout": 0.0},
        sampler={"num_inference_steps": 5},
    )
    return customise(config, **sections)


@pytest.fixture(scope="module")
def model():
    diffusion = dfn.build(small("hybrid"))
    return diffusion, diffusion.init(jax.random.key(0))


@pytest.mark.long
def test_hybrid_is_the_plain_loss_and_a_thousandth_of_the_bound(model):
    diffusion, params = model
    keys = jax.random.split(jax.random.key(1), 4)
    loss, metrics = jax.jit(diffusion.loss)(params, keys, BATCH)
    np.testing.assert_allclose(loss, metrics["mse"] + 1e-3 * metrics["vlb"], rtol=1e-5)
    alone = jax.jit(dfn.build(small("hybrid", loss={"vlb_weight": 0.0})).loss)(params, keys, BATCH)
    np.testing.assert_allclose(alone[0], metrics["mse"], rtol=1e-6)


def test_vlb_is_the_bound_weighted_by_importance():
    objective = dfn.build_objective(small("vlb"))
    params = dfn.build(small("vlb")).init(jax.random.key(0))
    loss, metrics = jax.jit(objective.loss)(params, jax.random.key(1), BATCH, objective.extras)
    np.testing.assert_allclose(loss, metrics["vlb"], rtol=1e-6)  # with the record empty t is uniform
    extras = objective.update_extras(objective.extras, metrics)
    assert int(extras.count.sum()) == 4


@pytest.mark.parametrize(
    ("arg", "sections", "message"),
    [
        ("hybrid", {"noise_schedule": {"process": "vp"}}, "set noise_schedule.process to 'table'; got 'vp'"),
        ("hybrid", {"noise_schedule": {"time_label": "log_sigma"}}, "set noise_schedule.time_label to 'step'"),
        ("hybrid", {"loss": {"offset_noise": 0.1}}, "set loss.offset_noise to 0; got 0.1"),
        ("hybrid", {"loss": {"time_sampler": "log_normal"}}, "set loss.time_sampler to 'uniform'"),
        ("vlb", {"loss": {"weight": "min_snr"}}, "set loss.loss_type to 'mse' and loss.weight to 'simple'"),
        ("hybrid", {"variance": "fixed_small", "backbone": {"learned_variance": False}}, "trains a learned variance"),
        ("hybrid", {"loss": {"objective": "denoising"}}, "set config.loss.objective to 'hybrid' or 'vlb'"),
        ("hybrid", {"backbone": {"learned_variance": False}}, "the network has no variance output"),
    ],
)
def test_combinations_that_do_not_fit_are_refused(arg, sections, message):
    with pytest.raises(ValueError, match=message):
        dfn.build(small(arg, **sections))
