"""What follows from the data: size and classes of the network, and whether anything is clipped."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_models import small_config, some_params

import diffusers_fn as dfn
from diffusers_fn.from_config import derived, tables
from diffusers_fn.from_config.defaults import customise, default_backbone, default_config
from diffusers_fn.from_config.network import make_backbone

SMALL_UNET = {
    "name": "unet",
    "channels": 8,
    "channel_multipliers": (1, 2),
    "num_res_blocks": 1,
    "attention_resolutions": (4,),
    "norm_groups": 4,
}


def images(shape=(8, 8, 1), **sections):
    config = customise(default_config(), data={"shape": shape}, sampler={"num_inference_steps": 2})
    return customise(config, **sections)


# Size.


@pytest.mark.parametrize(("height", "attends"), [(4, 0), (8, 1)])
def test_attention_is_at_the_resolution_of_the_data_that_it_names(height, attends):
    """Resolution 4 is level 0 of 4 x 4 and level 1 of 8 x 8 and of 8 x 12."""
    for width in (height, height + 4):
        params = jax.eval_shape(dfn.build(images((height, width, 1), backbone=SMALL_UNET)).init, jax.random.key(0))
        found = {name for name in params if name.startswith("down") and "attention" in name}
        assert {name.split("_")[1] for name in found} == {str(attends)}


def test_another_image_size_is_refused_with_the_same_network_in_other_words():
    config = images((16, 16, 1), backbone={**SMALL_UNET, "image_size": 8})
    with pytest.raises(ValueError, match=r"image_size is 8, but the data are 16 x 16.*is that of .* with \(8,\)"):
        dfn.build(config)
    same = images((16, 16, 1), backbone={**SMALL_UNET, "attention_resolutions": (8,)})
    shapes = jax.eval_shape(dfn.build(same).init, jax.random.key(0))
    module = dfn.backbones.UNet(**{**SMALL_UNET, "image_size": 8} | {"name": None})
    x = jnp.zeros((1, 16, 16, 1))
    wanted = jax.eval_shape(module.init, jax.random.key(0), x, jnp.ones(1))["params"]
    assert jax.tree.map(jnp.shape, shapes) == jax.tree.map(jnp.shape, wanted)


@pytest.mark.parametrize(
    ("name", "shape", "size"),
    [
        ("unet", (16, 24, 3), 16),
        ("uvit", (16, 16, 3), 16),
        ("uvit", (16, 24, 3), (16, 24)),
        ("dit", (16, 24, 3), 16),
        ("song_unet", (16, 24, 3), 16),
        ("mlp", (16,), None),
    ],
)
def test_the_size_of_a_network_is_that_of_the_data(name, shape, size):
    assert getattr(make_backbone(default_backbone(name), shape), "image_size", None) == size


def test_stretched_positions_of_oblong_data_need_the_side_of_a_square():
    dit = {"name": "dit", "hidden_size": 16, "depth": 1, "num_heads": 2, "stretch_positions": True}
    with pytest.raises(ValueError, match=r"stretch_positions .* the data are 8 x 12: set backbone.image_size"):
        dfn.build(images((8, 12, 1), backbone=dit))
    dfn.build(images((8, 12, 1), backbone={**dit, "image_size": 8}))


# Classes.


@pytest.mark.parametrize(("network", "labels", "found"), [(None, 3, 3), (3, None, 3), (0, 3, 0), (None, None, 0)])
def test_one_field_states_the_number_of_classes(network, labels, found):
    config = small_config(data={"num_classes": labels}, backbone={"num_classes": network})
    assert derived.num_classes(config) == found
    params = jax.eval_shape(dfn.build(config).init, jax.random.key(0))
    assert any(leaf.shape[0] == 4 for leaf in jax.tree.leaves(params)) == (found == 3)  # the class table


def test_two_numbers_of_classes_are_refused():
    with pytest.raises(ValueError, match=r"backbone.num_classes is 3, but config.data.num_classes is 4: set data"):
        dfn.build(small_config(data={"num_classes": 4}, backbone={"num_classes": 3}))


def test_a_classifier_has_the_classes_of_the_data():
    config = small_config(num_classes=5, backbone={"name": "mlp_classifier", "hidden_size": 8, "depth": 1})
    params = jax.eval_shape(dfn.build_classifier(config).init, jax.random.key(0))
    assert params["dense_out"]["kernel"].shape == (8, 5)
    with pytest.raises(ValueError, match=r"a classifier needs at least 2 classes; got 0: set config.data.num_classes"):
        dfn.build_classifier(small_config(backbone={"name": "mlp_classifier"}))


def test_a_network_without_classes_takes_no_labels_of_the_data():
    config = small_config(num_classes=3, backbone={"name": "simple_autoencoder", "latent_dim": 2})
    assert derived.num_classes(config) == 0
    assert derived.num_data_classes(config) == 3


# Range.


class OfNormalData(nn.Module):
    """The exact epsilon of data N(0, std^2) on the default table; the parameter is not used."""

    std: float = 4.0

    @nn.compact
    def __call__(self, x, t, cond=None, *, train=False):
        self.param("unused", nn.initializers.zeros, (1,))
        table = dfn.make_noise_schedule(dfn.linear_betas(1000))
        level = dfn.level_at(table, jnp.asarray(t).astype(jnp.int32))
        factor = level.sigma / (level.alpha**2 * self.std**2 + level.sigma**2)
        return x * factor.reshape(factor.shape + (1,) * (x.ndim - factor.ndim))


def test_the_bound_of_data_in_any_range_is_that_of_a_density():
    """For t = 0: -log N(x0; mean, var), computed from p_mean_variance, in bits per entry."""
    table = dfn.make_noise_schedule(dfn.linear_betas(10, 1e-2, 0.3))
    x0, eps = 40.0 * jax.random.normal(jax.random.key(0), (2, 3, 4)), jax.random.normal(jax.random.key(1), (2, 3, 4))
    t = jnp.array([0, 0])
    x_t = dfn.q_sample(table, x0, t, eps)
    terms = dfn.likelihood.vb_terms_bpd(table, 0.9 * eps, x0, x_t, t, clip_denoised=False, num_levels=None)
    p = dfn.p_mean_variance(table, 0.9 * eps, x_t, t, clip_denoised=False)
    wanted = -jax.scipy.stats.norm.logpdf(x0, p.mean, jnp.exp(p.log_variance / 2)).mean((1, 2)) / np.log(2)
    np.testing.assert_allclose(terms.bpd, wanted, rtol=1e-4)


def test_a_learned_variance_on_data_in_any_range_is_trained_by_the_bound_of_a_density():
    """Two timesteps: the terms of the first differ by the logarithm of the width of a bin."""
    sections = {
        "variance": "learned_range",
        "loss": {"objective": "vlb"},
        "backbone": {"learned_variance": True},
        "noise_schedule": {"noise_steps": 2, "beta_start": 0.1, "beta_end": 0.2},
        "sampler": {"num_inference_steps": 2},
    }
    models = [dfn.build(small_config(data={"normalize": normalize}, **sections)) for normalize in (False, True)]
    params = jax.tree.map(jnp.zeros_like, some_params(models[0].init))
    batch = {"image": jnp.full((64, 2), 0.5)}
    density, grey = (np.asarray(jax.jit(model.loss)(params, jax.random.key(4), batch)[0]) for model in models)
    first = np.abs(density - grey) > 1e-3
    assert 20 < first.sum() < 44  # half the examples have t = 0; the others' terms are those of grey levels
    # P(level) = density times the bin's width, 2 / 255, where the density is smooth; twice, for two timesteps.
    np.testing.assert_allclose((grey - density)[first], 2 * np.log2(127.5), rtol=1e-3)


# Other sizes, given states, scores, inversion.


@pytest.mark.long
def test_samples_of_another_size_are_those_of_the_network_at_that_size():
    diffusion = dfn.build(images(backbone=SMALL_UNET, sampler={"num_inference_steps": 1, "clip_denoised": False}))
    params = some_params(diffusion.init)
    x = jax.random.normal(jax.random.key(0), (2, 12, 4, 1))
    samples = diffusion.sample(params, jax.random.key(1), 2, shape=(12, 4, 1), x=x)
    level = dfn.level_at(dfn.make_noise_schedule(dfn.linear_betas(1000)), 999)
    eps = diffusion.apply(params, x, jnp.full(2, 999.0))
    np.testing.assert_allclose(samples.x0, (x - level.sigma * eps) / level.alpha, rtol=1e-4, atol=1e-3)
    for options, message in {
        "channels": ({"shape": (8, 8, 3)}, r"data.shape = \(8, 8, 1\); got \(8, 8, 3\)"),
        "axes": ({"shape": (8, 1)}, r"as many axes, .* got \(8, 1\)"),
        "odd": ({"shape": (7, 8, 1)}, r"takes no examples of shape \(7, 8, 1\): H and W must be multiples of 2"),
        "x": ({"x": jnp.zeros((3, 8, 8, 1))}, r"x, the states .* must have shape \(2, 8, 8, 1\); got \(3, 8, 8, 1\)"),
    }.values():
        with pytest.raises(ValueError, match=message):
            diffusion.sample(params, jax.random.key(1), 2, **options)


def test_an_mlp_takes_no_other_size():
    diffusion = dfn.build(small_config(data={"shape": (4, 1)}))
    with pytest.raises(ValueError, match=r"'mlp' of config.data.shape = \(4, 1\) takes no examples of shape \(6, 1\)"):
        diffusion.sample(some_params(diffusion.init), jax.random.key(0), 2, shape=(6, 1))


def normal_model():
    known = tables.Tables(backbones={**tables.BACKBONES, "normal": tables.BackboneEntry(OfNormalData)})
    config = small_config(data={"normalize": False}, sampler={"skip_type": "log_snr"})
    with config.unlocked():
        config.backbone = {"name": "normal"}
    return dfn.build(config, known), {"unused": jnp.zeros(1)}


def test_the_score_is_that_of_the_noisy_data():
    diffusion, params = normal_model()
    x = jax.random.normal(jax.random.key(0), (3, 2))
    table = dfn.make_noise_schedule(dfn.linear_betas(1000))
    level = dfn.level_at(table, jnp.array([0, 500, 999]))
    wanted = -x / (level.alpha**2 * 16 + level.sigma**2)[:, None]
    np.testing.assert_allclose(diffusion.score(params, x, level), wanted, rtol=1e-4)
    np.testing.assert_allclose(diffusion.score(params, x, np.array([0.0, 0.5, 1.0])), wanted, rtol=1e-4)
    with pytest.raises(
        ValueError, match=r"a time must lie in \[0, 1\].*divide a timestep by noise_schedule.noise_steps"
    ):
        diffusion.score(params, x, 500)
    with pytest.raises(ValueError, match="this model is unconditional"):
        diffusion.score(params, x, 0.5, cond=1)


def test_sampling_brings_inverted_data_back_with_first_order():
    diffusion, params = normal_model()
    x0 = jnp.array([[3.0, -5.0]])

    @functools.partial(jax.jit, static_argnums=0)
    def error(steps):
        x = diffusion.invert(params, x0, num_inference_steps=steps)
        back = diffusion.sample(params, jax.random.key(0), 1, x=x, num_inference_steps=steps).x0
        return jnp.abs(back / x0 - 1).max()

    errors = [float(error(steps)) for steps in (40, 80)]
    assert errors[1] < 0.1
    assert 1.5 < errors[0] / errors[1] < 4.5  # first order, or second where the errors of both ways cancel


def test_a_model_of_few_steps_has_neither_score_nor_inversion():
    diffusion = dfn.build(
        small_config(
            noise_schedule={"process": "flow"},
            parameterization="velocity",
            loss={"objective": "mean_flow"},
            sampler={"name": "jump"},
        )
    )
    params, x = some_params(diffusion.init), jnp.zeros((1, 2))
    for call in (lambda: diffusion.score(params, x, 0.5), lambda: diffusion.invert(params, x)):
        with pytest.raises(ValueError, match=r"objective 'mean_flow' .* neither a score nor an inversion"):
            call()
