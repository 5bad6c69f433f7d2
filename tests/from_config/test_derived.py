"""What follows from the data: classes and size of the network, clipping; scores, inversion, samples of another size."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from small_models import some_params

import diffusers_fn as dfn
from diffusers_fn.from_config import derived, tables
from diffusers_fn.from_config.network import BackboneEntry, make_backbone
from diffusers_fn.from_config.noise import make_noise

UNET = {"name": "unet", "channels": 8, "channel_multipliers": (1, 2), "num_res_blocks": 1, "norm_groups": 4}


def config(**sections):
    return dfn.customise(dfn.default_config(), **sections)


@pytest.mark.parametrize(
    ("data", "backbone", "classes"),
    [(None, None, 0), (3, None, 3), (None, 3, 3), (3, 3, 3), (3, 0, 0), (0, None, 0), (0, 3, 3)],
)
def test_the_number_of_classes_is_set_once(data, backbone, classes):
    chosen = config(data={"num_classes": data}, backbone={"name": "mlp", "num_classes": backbone})
    assert derived.num_classes(chosen) == classes


def test_two_numbers_of_classes_that_differ_are_refused():
    with pytest.raises(ValueError, match=r"backbone.num_classes is 10, but config.data.num_classes is 3"):
        dfn.build(config(data={"num_classes": 3}, backbone={"name": "mlp", "num_classes": 10}))


def test_data_num_classes_alone_makes_the_network_conditional():
    backbone = {"name": "mlp", "hidden_size": 8, "depth": 1, "embedding_dim": 8}
    diffusion = dfn.build(config(data={"shape": (2,), "num_classes": 3}, backbone=backbone))
    batch = {"image": jnp.zeros((2, 2))}
    with pytest.raises(ValueError, match="the batch needs 'label'"):
        diffusion.loss(some_params(diffusion.init), jax.random.key(0), batch)


def test_attention_sits_at_the_resolutions_that_are_named():
    """Attention at 4 of a 16 x 16 picture is on the third level, whatever the module's own default size."""
    chosen = config(
        data={"shape": (16, 16, 3)},
        backbone={**UNET, "channel_multipliers": (1, 1, 2), "attention_resolutions": (4,)},
    )
    params = jax.eval_shape(dfn.build(chosen).init, jax.random.key(0))
    attentions = sorted(name for name in params if "attention" in name or "attn" in name)
    assert attentions
    assert not [name for name in attentions if "_0_" in name or "_1_" in name]


@pytest.mark.parametrize("size", [16, 64])
def test_another_size_than_that_of_the_data_is_refused(size):
    backbone = {**UNET, "image_size": size, "attention_resolutions": (size // 2,)}
    with pytest.raises(ValueError, match=rf"image_size is {size}, but the data are 32 x 32: leave it None"):
        dfn.build(config(data={"shape": (32, 32, 3)}, backbone=backbone))


def test_the_same_size_is_accepted_and_a_picture_need_not_be_square():
    backbone = {**UNET, "image_size": 8, "attention_resolutions": (4,)}
    dfn.build(config(data={"shape": (8, 8, 3)}, backbone=backbone))
    wide = dfn.build(config(data={"shape": (8, 16, 3)}, backbone={**UNET, "attention_resolutions": (4,)}))
    params = jax.eval_shape(wide.init, jax.random.key(0))
    samples = jax.eval_shape(lambda p, key: wide.sample(p, key, 2), params, jax.random.key(0))
    assert samples.x0.shape == (2, 8, 16, 3)


@pytest.mark.parametrize(("labels", "rows"), [(3, 4), (0, None), (None, None)])
def test_a_section_without_the_field_has_the_classes_of_the_data(labels, rows):
    chosen = config(data={"shape": (2,), "num_classes": labels})
    with chosen.unlocked():
        chosen.backbone = {"name": "mlp", "hidden_size": 8, "depth": 1, "embedding_dim": 16}
    shapes = [leaf.shape for leaf in jax.tree.leaves(jax.eval_shape(dfn.build(chosen).init, jax.random.key(0)))]
    assert ((rows, 16) in shapes) == (rows is not None)


def test_the_estimate_of_self_conditioning_may_have_no_bound():
    """For data of any range; with a bound, larger estimates are one."""
    x, estimates = jnp.ones((2, 2)), [jnp.full((2, 2), value) for value in (50.0, 100.0)]
    for bound, differ in ((math.inf, True), (1.0, False)):
        backbone = {"name": "mlp", "hidden_size": 8, "depth": 1, "embedding_dim": 8}
        model = dfn.build(config(data={"shape": (2,)}, backbone=backbone, self_conditioning=bound))
        low, high = (model.apply(some_params(model.init), x, 10.0, x0=x0) for x0 in estimates)
        assert bool(jnp.any(low != high)) == differ


def test_a_size_without_attention_is_free_and_a_missing_field_has_the_default_of_the_module():
    backbone = {**UNET, "image_size": 8, "attention_resolutions": ()}
    dfn.build(config(data={"shape": (16, 16, 3)}, backbone=backbone))
    settings = ConfigDict({"name": "unet", "image_size": 64})  # attention_resolutions: (16,)
    with pytest.raises(ValueError, match=r"is that of image_size None with \(8,\)"):
        make_backbone(settings, (32, 32, 3))


def test_a_network_of_ones_own_needs_no_field_num_classes():
    class Net(nn.Module):
        width: int = 2

    made = make_backbone(ConfigDict({"name": "net", "width": 3}), (2,), 0, {"net": BackboneEntry(Net)})
    assert made == Net(width=3)


# An exact network: the noise that a Gaussian of standard deviation 4 expects.


def gaussian(**data):
    """The model of N(0.5, 4^2) with an exact network, its parameters, and its noise levels."""
    chosen = config(
        data={"shape": (2,), **data}, noise_schedule={"process": "vp"},
        sampler={"name": "heun", "num_inference_steps": 60, "skip_type": "log_snr"},
    )  # fmt: skip
    noise = make_noise(chosen.noise_schedule)

    class Exact(nn.Module):
        @nn.compact
        def __call__(self, x, t, cond=None, *, train=False):
            self.param("unused", nn.initializers.zeros, ())
            level = noise.process.level(jnp.asarray(t, x.dtype) / chosen.noise_schedule.noise_steps)
            return dfn.oracles.gaussian(0.5, 4.0)(x, level).eps

    with chosen.unlocked():
        chosen.backbone = ConfigDict({"name": "exact"})
    diffusion = dfn.build(chosen, tables.Tables(backbones={"exact": BackboneEntry(Exact)}))
    return diffusion, diffusion.init(jax.random.key(0)), noise


def test_data_of_any_range_are_not_clipped():
    keys = jax.random.split(jax.random.key(0), 20_000)
    for normalize, std in ((False, 4.0), (True, None)):
        diffusion, params, _ = gaussian(normalize=normalize)
        x0 = np.asarray(diffusion.sample(params, keys, len(keys)).x0)
        if std is None:
            assert np.abs(x0).max() <= 1.0
        else:
            np.testing.assert_allclose([x0.mean(), x0.std()], [0.5, std], atol=0.05)


def test_the_score_is_that_of_the_noised_gaussian():
    diffusion, params, noise = gaussian(normalize=False)
    level = noise.process.level(np.float64(0.5))
    x = jnp.array([[1.0, -2.0], [0.0, 3.0]])
    expected = -(x - 0.5 * level.alpha) / (16 * level.alpha**2 + level.sigma**2)
    np.testing.assert_allclose(diffusion.score(params, x, level), expected, rtol=1e-4)


def test_inversion_is_undone_by_the_sampler():
    """The round trip's error is of the order of DDIM: a quarter for four times the steps."""
    diffusion, params, noise = gaussian(normalize=False)
    x0 = jnp.array([[3.0, -2.0], [0.5, 7.0]])
    errors = []
    for steps in (40, 160):
        levels = noise.grid("log_snr", steps)
        x = diffusion.invert(params, x0, num_inference_steps=steps)
        denoise = dfn.oracles.gaussian(0.5, 4.0)
        back = dfn.sample(None, denoise, dfn.solvers.ddim(levels), x).x0
        errors.append(float(jnp.abs(back - x0).max()))
    assert errors[0] < 1.0
    assert errors[1] < errors[0] / 2.5
    with pytest.raises(ValueError, match="this model is unconditional"):
        diffusion.invert(params, x0, cond=jnp.zeros(2, int))


def test_samples_have_the_shape_that_is_asked_for():
    chosen = config(data={"shape": (8, 8, 3)}, backbone=UNET | {"attention_resolutions": (4,)})
    diffusion = dfn.build(chosen)
    params = jax.eval_shape(diffusion.init, jax.random.key(0))

    def shape_of(diffusion, params, shape):
        sample = lambda params, key: diffusion.sample(params, key, 2, shape=shape).x0  # noqa: E731
        return jax.eval_shape(sample, params, jax.random.key(0)).shape

    assert shape_of(diffusion, params, (16, 12, 3)) == (2, 16, 12, 3)
    with pytest.raises(ValueError, match=r"config.data.shape = \(8, 8, 3\); got \(8, 8, 1\)"):
        shape_of(diffusion, params, (8, 8, 1))
    with pytest.raises(ValueError, match=r"takes no examples of shape \(7, 8, 3\)"):
        shape_of(diffusion, params, (7, 8, 3))
    flat = dfn.build(config(data={"shape": (4, 4, 1)}))
    with pytest.raises(ValueError, match=r"takes no examples of shape \(5, 4, 1\)"):
        shape_of(flat, jax.eval_shape(flat.init, jax.random.key(0)), (5, 4, 1))
